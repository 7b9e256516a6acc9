"""Ship a ticket: artifacts that other programs load and serve."""

from tf_tickets.export.clusters import (
    Cluster,
    SparseInference,
    sparse_inference,
)
from tf_tickets.export.digests import Verified, verify
from tf_tickets.export.folding import FoldReport, fold
from tf_tickets.export.formats import (
    FORMATS,
    litert,
    report,
    saved_model,
    write,
)
from tf_tickets.export.litert import prunable_for_xnnpack, xnnpack_policy
from tf_tickets.export.places import Best, best_files
from tf_tickets.export.report import Report, Written
from tf_tickets.export.savedmodel import load_sparse, unpack
from tf_tickets.export.source import Source
from tf_tickets.export.xnnpack import Rewriting, for_xnnpack

__all__ = [
    "FORMATS",
    "Best",
    "Cluster",
    "FoldReport",
    "Report",
    "Rewriting",
    "Source",
    "SparseInference",
    "Verified",
    "Written",
    "best_files",
    "fold",
    "for_xnnpack",
    "litert",
    "load_sparse",
    "prunable_for_xnnpack",
    "report",
    "saved_model",
    "sparse_inference",
    "unpack",
    "verify",
    "write",
    "xnnpack_policy",
]
