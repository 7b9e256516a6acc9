"""Scores → budget per tensor → exact selection: how masks are drawn."""

from tf_tickets.pruning.criteria import (
    CRITERIA,
    grasp,
    prospr,
    snip,
    synflow,
)
from tf_tickets.pruning.density_search import DensitySearch, search_densities
from tf_tickets.pruning.prune import prune
from tf_tickets.pruning.schedules import Constant, Geometric, Polynomial
from tf_tickets.pruning.scopes import SCOPES, smart_ratio
from tf_tickets.pruning.topk import keep_largest

__all__ = [
    "CRITERIA",
    "SCOPES",
    "Constant",
    "DensitySearch",
    "Geometric",
    "Polynomial",
    "grasp",
    "keep_largest",
    "prospr",
    "prune",
    "search_densities",
    "smart_ratio",
    "snip",
    "synflow",
]
