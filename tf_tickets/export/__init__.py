"""Ship a ticket: artifacts that other programs load and serve."""

from tf_tickets.export.litert import LiteRTReport, litert
from tf_tickets.export.loading import load_sparse, unpack
from tf_tickets.export.measuring import report
from tf_tickets.export.policy import prunable_for_xnnpack
from tf_tickets.export.report import Report
from tf_tickets.export.savedmodel import saved_model

__all__ = [
    "LiteRTReport",
    "Report",
    "litert",
    "load_sparse",
    "prunable_for_xnnpack",
    "report",
    "saved_model",
    "unpack",
]
