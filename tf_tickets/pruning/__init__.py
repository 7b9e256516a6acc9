"""Scores → budget per tensor → exact selection: how masks are drawn."""

from tf_tickets.pruning.criteria import CRITERIA
from tf_tickets.pruning.density_search import DensitySearch, search_densities
from tf_tickets.pruning.grasp import grasp
from tf_tickets.pruning.oneshot import prune
from tf_tickets.pruning.prospr import prospr
from tf_tickets.pruning.schedules import Constant, Geometric, Polynomial
from tf_tickets.pruning.scopes import SCOPES
from tf_tickets.pruning.smart_ratio import SmartRatio, smart_ratio
from tf_tickets.pruning.snip import snip
from tf_tickets.pruning.synflow import synflow
from tf_tickets.pruning.topk import keep_largest

CRITERIA.update(grasp=grasp, prospr=prospr, snip=snip, synflow=synflow)
SCOPES.update(smart_ratio=SmartRatio(), smart_ratio_v3=SmartRatio("v3"))

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
