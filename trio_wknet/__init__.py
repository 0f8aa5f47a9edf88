"""A fast transport backend for Trio: epoll reactors on native threads."""

from trio_wknet._conn import Conn
from trio_wknet._engine import Engine, open_engine
from trio_wknet._errors import DelimiterNotFound, IncompleteRead
from trio_wknet._listener import Listener, open_wknet_listener
from trio_wknet._native.ringbuffer import RingBuffer
from trio_wknet._options import ConnOptions, Limits
from trio_wknet._statistics import (
    ConnStatistics,
    EngineStatistics,
    ListenerStatistics,
    ReactorStatistics,
)

__all__ = [
    "Conn",
    "ConnOptions",
    "ConnStatistics",
    "DelimiterNotFound",
    "Engine",
    "EngineStatistics",
    "IncompleteRead",
    "Limits",
    "Listener",
    "ListenerStatistics",
    "ReactorStatistics",
    "RingBuffer",
    "open_engine",
    "open_wknet_listener",
]
