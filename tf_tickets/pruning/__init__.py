"""Scores → budget per tensor → exact selection: how masks are drawn."""

from tf_tickets.pruning.criteria import (
    CRITERIA,
    grasp,
    lamp,
    movement,
    prospr,
    snip,
    synflow,
    wanda,
)
from tf_tickets.pruning.density_search import DensitySearch, search_densities
from tf_tickets.pruning.patterns import PATTERNS, grouped
from tf_tickets.pruning.prune import prune
from tf_tickets.pruning.reconstruct import reconstruct
from tf_tickets.pruning.schedules import Constant, Geometric, Polynomial
from tf_tickets.pruning.scopes import SCOPES, at_least, smart_ratio
from tf_tickets.pruning.topk import keep_largest

__all__ = [
    "CRITERIA",
    "PATTERNS",
    "SCOPES",
    "Constant",
    "DensitySearch",
    "Geometric",
    "Polynomial",
    "at_least",
    "grasp",
    "grouped",
    "keep_largest",
    "lamp",
    "movement",
    "prospr",
    "prune",
    "reconstruct",
    "search_densities",
    "smart_ratio",
    "snip",
    "synflow",
    "wanda",
]
