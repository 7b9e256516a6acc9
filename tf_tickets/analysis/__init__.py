"""What a ticket is worth: checks, distances, costs, reports."""

from tf_tickets.analysis.distances import (
    mask_distance_matrix,
    plot_mask_distances,
)
from tf_tickets.analysis.flops import (
    FlopsReport,
    LayerFlops,
    Phase,
    TrainingLedger,
    flops,
)
from tf_tickets.analysis.sanity import SanityReport, sanity_checks

__all__ = [
    "FlopsReport",
    "LayerFlops",
    "Phase",
    "SanityReport",
    "TrainingLedger",
    "flops",
    "mask_distance_matrix",
    "plot_mask_distances",
    "sanity_checks",
]
