"""Channel masks, channel dependencies, physically smaller models."""

from tf_tickets.structured.dead import remove_dead_channels
from tf_tickets.structured.decide import ShrinkReport, Stop
from tf_tickets.structured.draw import draw_channels, slimming
from tf_tickets.structured.groups import (
    GroupTicket,
    WeightGroups,
    draw_groups,
)
from tf_tickets.structured.shrink import shrink
from tf_tickets.structured.ticket import ChannelTicket

__all__ = [
    "ChannelTicket",
    "GroupTicket",
    "ShrinkReport",
    "Stop",
    "WeightGroups",
    "draw_channels",
    "draw_groups",
    "remove_dead_channels",
    "shrink",
    "slimming",
]
