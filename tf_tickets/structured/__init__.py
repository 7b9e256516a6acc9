"""Channel masks, channel dependencies, physically smaller models."""

from tf_tickets.structured.dead import remove_dead_channels
from tf_tickets.structured.decide import ShrinkReport, Stop
from tf_tickets.structured.draw import draw_channels, slimming
from tf_tickets.structured.shrink import shrink
from tf_tickets.structured.ticket import ChannelTicket

__all__ = [
    "ChannelTicket",
    "ShrinkReport",
    "Stop",
    "draw_channels",
    "remove_dead_channels",
    "shrink",
    "slimming",
]
