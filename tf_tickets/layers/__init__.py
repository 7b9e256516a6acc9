"""Layers that compute under a mask, and the masks that are trained."""

from tf_tickets.layers.initializers import Bernoulli, Beta, SignedConstant
from tf_tickets.layers.masked import Masked
from tf_tickets.layers.selecting import SelectChannels
from tf_tickets.layers.supermask import Supermask, SupermaskModel

__all__ = [
    "Bernoulli",
    "Beta",
    "Masked",
    "SelectChannels",
    "SignedConstant",
    "Supermask",
    "SupermaskModel",
]
