"""Ship a ticket: artifacts that other programs load and serve."""

from tf_tickets.export.savedmodel import saved_model

__all__ = ["saved_model"]
