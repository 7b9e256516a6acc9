"""A Keras model as something to read and to rewrite."""

from tf_tickets.network import kinds, weighted, weightless  # noqa: F401

__all__ = ["kinds"]
