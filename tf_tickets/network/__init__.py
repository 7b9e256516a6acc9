"""A Keras model as something to read and to rewrite."""

from tf_tickets.network import (  # noqa: F401
    attention,
    kinds,
    weighted,
    weightless,
)

__all__ = ["kinds"]
