"""A loss over data as a function of a model's weights.

``data → batches → Objective (one batch) → LossOverData (their mean)``, and
`trials`, which trains with one ticket after another.
"""
