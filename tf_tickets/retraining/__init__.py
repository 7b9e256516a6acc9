"""Spending a ticket better: keep the mask, change how it is retrained."""

from tf_tickets.retraining.activations import (
    ActivationReport,
    AnnealActivations,
    TemporaryActivation,
    replace_activations,
)
from tf_tickets.retraining.annealing import AnnealSkips
from tf_tickets.retraining.distillation import (
    distiller,
    with_teacher_logits,
)
from tf_tickets.retraining.merging import (
    MergeReport,
    merge_skip_connections,
)
from tf_tickets.retraining.rescaling import Rescaling, rescale_initialization
from tf_tickets.retraining.skips import SkipReport, inject_skip_connections
from tf_tickets.retraining.soft_labels import (
    LabelSmoothing,
    keras_label_smoothing,
    smoothed,
)
from tf_tickets.retraining.spending import TWEAKS, Spending, spend

__all__ = [
    "ActivationReport",
    "AnnealActivations",
    "AnnealSkips",
    "LabelSmoothing",
    "MergeReport",
    "Rescaling",
    "SkipReport",
    "Spending",
    "TWEAKS",
    "TemporaryActivation",
    "distiller",
    "inject_skip_connections",
    "keras_label_smoothing",
    "merge_skip_connections",
    "replace_activations",
    "rescale_initialization",
    "smoothed",
    "spend",
    "with_teacher_logits",
]
