"""What a user adds to ``model.fit``."""

from tf_tickets.callbacks.dynamic import DynamicSparseTraining
from tf_tickets.callbacks.early_bird import EarlyBird
from tf_tickets.callbacks.enforce import EnforceTicket
from tf_tickets.callbacks.freezing import IterativeFreezing, freezing_rate
from tf_tickets.callbacks.gradual import GradualPruning
from tf_tickets.callbacks.group_pruning import GroupPruning
from tf_tickets.callbacks.hessian import HessianEigenvalue
from tf_tickets.callbacks.imp import IterativeMagnitudePruning
from tf_tickets.callbacks.logger import SparsityLogger
from tf_tickets.callbacks.low_precision import LowPrecision, low_precision
from tf_tickets.callbacks.rewind import Rewind

__all__ = [
    "DynamicSparseTraining",
    "EarlyBird",
    "EnforceTicket",
    "GradualPruning",
    "GroupPruning",
    "IterativeFreezing",
    "HessianEigenvalue",
    "IterativeMagnitudePruning",
    "LowPrecision",
    "Rewind",
    "SparsityLogger",
    "freezing_rate",
    "low_precision",
]
