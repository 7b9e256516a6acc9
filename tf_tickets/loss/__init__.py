"""A loss over data as a function of a model's weights."""
