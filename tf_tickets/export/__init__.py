"""Ship a ticket: artifacts that other programs load and serve."""

from tf_tickets.export.loading import load_sparse, unpack
from tf_tickets.export.report import Report, report
from tf_tickets.export.savedmodel import saved_model

__all__ = ["Report", "load_sparse", "report", "saved_model", "unpack"]
