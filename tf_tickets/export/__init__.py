"""Ship a ticket: artifacts that other programs load and serve."""

from tf_tickets.export.digests import Verified, verify
from tf_tickets.export.folding import FoldReport, fold
from tf_tickets.export.formats import (
    FORMATS,
    litert,
    report,
    saved_model,
    write,
)
from tf_tickets.export.litert import prunable_for_xnnpack
from tf_tickets.export.report import Report, Written
from tf_tickets.export.savedmodel import load_sparse, unpack
from tf_tickets.export.source import Source

__all__ = [
    "FORMATS",
    "FoldReport",
    "Report",
    "Source",
    "Verified",
    "Written",
    "fold",
    "litert",
    "load_sparse",
    "prunable_for_xnnpack",
    "report",
    "saved_model",
    "unpack",
    "verify",
    "write",
]
