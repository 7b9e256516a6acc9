"""What a user adds to ``model.fit``."""

from tf_tickets.callbacks.enforce import EnforceTicket
from tf_tickets.callbacks.gradual import GradualPruning
from tf_tickets.callbacks.imp import IterativeMagnitudePruning
from tf_tickets.callbacks.logger import SparsityLogger
from tf_tickets.callbacks.rewind import Rewind

__all__ = [
    "EnforceTicket",
    "GradualPruning",
    "IterativeMagnitudePruning",
    "Rewind",
    "SparsityLogger",
]
