"""Scores → budget per tensor → exact selection: how masks are drawn."""

from tf_tickets.pruning.criteria import CRITERIA
from tf_tickets.pruning.oneshot import prune
from tf_tickets.pruning.schedules import Constant, Geometric, Polynomial
from tf_tickets.pruning.scopes import SCOPES
from tf_tickets.pruning.topk import keep_largest

__all__ = [
    "CRITERIA",
    "SCOPES",
    "Constant",
    "Geometric",
    "Polynomial",
    "keep_largest",
    "prune",
]
