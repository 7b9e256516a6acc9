"""What a ticket is worth: checks, distances, costs, reports."""

from tf_tickets.analysis.connectivity import (
    ConnectivityCurve,
    instability,
    linear_connectivity,
)
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
from tf_tickets.analysis.flow import (
    ActivationSparsity,
    GradientFlow,
    activation_sparsity,
    gradient_flow,
)
from tf_tickets.analysis.hessian import (
    LossCurve,
    TopEigenvalue,
    hessian_top_eigenvalue,
    loss_along_eigenvector,
)
from tf_tickets.analysis.landscape import (
    LossSurface,
    input_landscape,
    loss_landscape,
)
from tf_tickets.analysis.sanity import SanityReport, sanity_checks

__all__ = [
    "ActivationSparsity",
    "ConnectivityCurve",
    "FlopsReport",
    "GradientFlow",
    "LayerFlops",
    "LossCurve",
    "LossSurface",
    "Phase",
    "SanityReport",
    "TopEigenvalue",
    "TrainingLedger",
    "activation_sparsity",
    "flops",
    "gradient_flow",
    "hessian_top_eigenvalue",
    "input_landscape",
    "instability",
    "linear_connectivity",
    "loss_along_eigenvector",
    "loss_landscape",
    "mask_distance_matrix",
    "plot_mask_distances",
    "sanity_checks",
]
