"""What ``statistics()`` returns: frozen snapshots."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class ConnStatistics:
    """A connection's counters. After it was closed they stay as they were then."""

    bytes_received: int
    receive_calls: int
    """recv calls of the reactor that brought bytes."""
    bytes_sent: int
    """Bytes that the kernel took. After a cancelled ``send_all`` the difference to
    before tells how far it came."""
    send_calls: int
    buffered_inbound: int
    """Bytes received and not yet taken."""
    buffered_outbound: int
    """Bytes accepted by ``send_nowait`` and not yet taken by the kernel."""
    idle_time: float
    """Seconds since bytes last moved in either direction."""
    uptime: float
    """Seconds since the connection was accepted or adopted."""


@attrs.frozen(kw_only=True)
class ListenerStatistics:
    """A listener's counters."""

    accepted: int
    """Connections accepted so far, with those that still wait for ``accept``."""
    waiting: int
    """Connections that wait for ``accept``, or for their PROXY header."""
    refused: int
    """Connections closed without a handler, because they did not begin with a valid
    PROXY header, had to make room for others before they did, or come from nobody who
    may send one."""
    starved: bool
    """Whether accepting has stopped for lack of file descriptors, of memory, or of
    descriptors that epoll may watch. It starts again by itself once something is closed.
    Logged as ``trio_wknet.shortage`` when it begins and when it ends."""
    shortages: int
    """How often that has begun."""
    handlers: int
    """Handlers of ``serve`` that are running, or connections of ``serve_events``."""


@attrs.frozen(kw_only=True)
class ReactorStatistics:
    """One reactor's counters."""

    connections: int
    turns: int
    """Times that it went through its loop."""
    events: int
    """Events that epoll gave it."""
    pool_kept: int
    """Bytes of buffers kept for reuse. What a second does not need of them is given
    back to the system, down to 256 KiB."""
    pool_in_use: int
    """Bytes of buffers in use: for unread data, and 64 KiB to receive into."""


@attrs.frozen(kw_only=True)
class EngineStatistics:
    """An engine's counters."""

    connections: int
    """Connections open, those that are lingering included."""
    unwatched: int
    """Connections that epoll cannot take for now, for lack of memory or because of
    ``fs.epoll.max_user_watches``: they receive nothing until it can, and no listener
    accepts others. Logged as ``trio_wknet.shortage`` when it begins and when it ends."""
    shortages: int
    """How often that has begun."""
    wakes: int
    """Times that a reactor had to wake Trio's loop."""
    slots_in_use: int
    """Entries of the slot map in use: one for each connection, listener and
    listening socket, and a few of the engine's own."""
    slots_ready: int
    """Entries that are free and have their memory. Of 256 that stand together and are
    all free the memory is given back to the system, but for the first four times 256."""
    slab_bytes: int
    """Bytes of memory for both."""
    pool_kept: int
    """Bytes of buffers kept for reuse, by the reactors and for sending."""
    pool_in_use: int
    """Bytes of buffers in use, by the reactors and for sending."""
    reactors: tuple[ReactorStatistics, ...]


@attrs.frozen(kw_only=True)
class WheelStatistics:
    """A timing wheel's counters."""

    pending: int
    """Timers that wait."""
    fired: int
    """Calls that were made."""
    cancelled: int
    """Timers that were cancelled while they waited, scopes that were left included."""
    turns: int
    """Times that the wheel was turned. Between two turns it costs nothing."""
    visits: int
    """Timers looked at in turning: one that fires once for each level it came down, and
    one that was moved to a later time once where it used to be."""
