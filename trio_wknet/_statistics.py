"""What ``statistics()`` returns: frozen snapshots."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

import attrs

T = TypeVar("T", bound=attrs.AttrsInstance)


@attrs.frozen(kw_only=True)
class ConnStatistics:
    """A connection's counters. After it is closed they stay as they were then."""

    bytes_received: int
    """Bytes read from the socket."""
    receive_calls: int
    """Calls of recv(2) that returned bytes."""
    bytes_sent: int
    """Bytes that the kernel took. After a cancelled `Conn.send_all`, the difference to
    before says how much it sent."""
    send_calls: int
    """Calls of send(2) that took bytes."""
    buffered_inbound: int
    """Bytes received and not yet taken."""
    buffered_outbound: int
    """Bytes accepted by `Conn.send_nowait` and not yet taken by the kernel."""
    idle_time: float
    """Seconds since bytes last moved in either direction."""
    uptime: float
    """Seconds since the connection was accepted or adopted."""


@attrs.frozen(kw_only=True)
class FrameStatistics:
    """A frame channel's counters. After it was closed, or ended by ``unframe``, they stay as
    they were then."""

    frames_received: int
    """Frames that were taken."""
    bytes_received: int
    """Bytes of these, as they were delivered."""
    batches_received: int
    """Receives that returned frames: `FrameChannel.receive_many` takes several at once."""
    frames_sent: int
    """Frames that were accepted for sending."""
    bytes_sent: int
    """Bytes of these, without what the framing adds."""
    batches_sent: int
    """Sends that they came in: ``send_many`` takes several at once."""


@attrs.frozen(kw_only=True)
class Traffic:
    """What connections have moved, those that have ended included: the sums of their own
    statistics. What a reactor still sends for a connection that was closed gracefully does not
    count."""

    bytes_received: int
    """Bytes read from their sockets; of TLS, as they are on the wire."""
    bytes_sent: int
    """Bytes that the kernel took."""
    messages_received: int
    """Frames, and messages of WebSockets, that were taken. Those over TLS do not count."""
    messages_sent: int
    """The same of those that were accepted for sending."""
    buffered_inbound: int
    """Bytes that open connections have received, and that were not taken."""
    buffered_outbound: int
    """Bytes that open connections are to send, and that the kernel has not taken."""


@attrs.frozen(kw_only=True)
class ListenerStatistics:
    """A listener's counters."""

    accepted: int
    """Connections accepted so far, including those that still wait for `Listener.accept`."""
    waiting: int
    """Connections that wait for `Listener.accept`, or for their PROXY header."""
    refused: int
    """Connections closed without a handler: those of ``refused_by`` together."""
    refused_by: Mapping[str, int] = attrs.field(hash=False)
    """The same by why: ``"max_connections"``, ``"max_per_address"`` and ``"accept_rate"`` of
    its `Admission`; and ``"proxy_header"``, because they did not begin with a valid PROXY
    header, because they had to make room for others before they did, or because their peer is
    not a trusted load balancer."""
    ended_by: Mapping[str, int] = attrs.field(hash=False)
    """Connections that were let in, and ended for being too slow, by the setting of its
    `Admission` that did: ``"first_byte_time"`` and ``"min_rate"``."""
    starved: bool
    """Whether accepting has stopped for lack of file descriptors, of memory, or of
    epoll watches. It resumes by itself once something is closed.
    Logged as ``trio_wknet.shortage`` when it begins and when it ends."""
    shortages: int
    """The number of times that this has begun."""
    handlers: int
    """Running handlers of `Listener.serve`, or connections of `Listener.serve_events` or
    `Listener.serve_frames`. Of a `TLSListener`, without those whose handshake is not done."""
    open: int
    """Accepted connections that a handler, a task or callbacks have, until they are closed by
    this program."""
    closed_by: Mapping[str, int] = attrs.field(hash=False)
    """Connections that were open and have ended, by `Conn.close_reason`: all that it can be, with
    the texts of system errors only where there were any."""
    traffic: Traffic
    """What its connections have moved so far, and hold now."""
    handshakes_done: int
    """Handshakes of TLS on its connections that are done."""
    handshake_seconds: float
    """The seconds that these took together."""
    failed_handshakes: int
    """Those that have failed, were cancelled, or took too long. Those that a `TLSListener`
    serves are logged as ``trio_wknet.tls``."""
    handshakes: int = 0
    """Of a `TLSListener` that serves: handshakes under way."""


def refused_by(counts: list[int]) -> dict[str, int]:
    """From the native counters, which are in this order, behind one that is not used."""
    names = ("max_connections", "max_per_address", "accept_rate", "proxy_header")
    return dict(zip(names, counts[1:], strict=False))


def ended_by(counts: list[int]) -> dict[str, int]:
    """From the same, what listeners count."""
    names = ("first_byte_time", "min_rate")
    return dict(zip(names, counts[5:], strict=False))


def all_ended_by(counts: list[int]) -> dict[str, int]:
    """From those of an engine."""
    return {**ended_by(counts), "budget": counts[7]}


@attrs.frozen(kw_only=True)
class Histogram:
    """How often values fell into each of several ranges."""

    bounds: tuple[float, ...]
    """The upper ends of the ranges, ascending; the last is infinite."""
    counts: tuple[int, ...]
    """The number of values in each range: above the bound before it, and not above its own."""
    total: float
    """All values added up."""
    maximum: float
    """The largest value; 0 if there is none."""

    @property
    def count(self) -> int:
        """The number of values."""
        return sum(self.counts)

    def percentile(self, percent: float) -> float:
        """Estimate a percentile.

        Args:
          percent: from 0 to 100.

        Returns:
          The upper end of the range that it is in, at most `maximum`; 0 if there are no
          values.

        Raises:
          ValueError: if ``percent`` is not from 0 to 100.
        """
        if not 0 <= percent <= 100:
            raise ValueError(f"percent must be from 0 to 100, not {percent!r}")
        rank, seen = max(1, math.ceil(percent / 100 * self.count)), 0
        for bound, number in zip(self.bounds, self.counts, strict=True):
            seen += number
            if seen >= rank:
                return min(bound, self.maximum)
        return 0.0


# As measure.pxd has them: a first range, four for each power of two, and the rest.
_LAG_BOUNDS = (
    *(2.0**10 / 1e9, *(2.0**n * (5 + part) / 4 / 1e9 for n in range(10, 36) for part in range(4))),
    math.inf,
)
_SIZE_BOUNDS = (*(2.0**n for n in range(16)), math.inf)


def lag_histogram(counts: list[int], lags: tuple[int, int, int]) -> Histogram:
    """From the native buckets, and the last lag, the longest, and all together (ns)."""
    return Histogram(
        bounds=_LAG_BOUNDS, counts=tuple(counts), total=lags[2] / 1e9, maximum=lags[1] / 1e9
    )


def size_histogram(counts: list[int], batches: tuple[int, int, int]) -> Histogram:
    """From the native buckets, and the number of batches, what they had, and the largest."""
    return Histogram(
        bounds=_SIZE_BOUNDS, counts=tuple(counts), total=batches[1], maximum=batches[2]
    )


@attrs.frozen(kw_only=True)
class ReactorStatistics:
    """One reactor's counters."""

    connections: int
    """Connections that it drives."""
    turns: int
    """Turns of its loop."""
    events: int
    """Events that epoll reported."""
    pool_kept: int
    """Bytes of buffers kept for reuse. Those that were not needed for a second are returned
    to the system, down to 256 KiB."""
    pool_in_use: int
    """Bytes of buffers in use: for unread data, and 64 KiB to receive into."""
    busy_time: float
    """Seconds that it spent in its turns rather than waiting for events, of
    `EngineStatistics.measured_time`. The turn in progress is not included."""


@attrs.frozen(kw_only=True)
class WebSocketStatistics:
    """A WebSocket's counters. Bytes are those of messages, without what frames and masks add;
    of what was sent, with it."""

    messages_received: int
    """Messages that were taken."""
    bytes_received: int
    """Their bytes."""
    batches_received: int
    """Calls that returned messages."""
    messages_sent: int
    """Messages that were sent, or queued."""
    bytes_sent: int
    """Their bytes, with what frames them."""
    batches_sent: int
    """Calls that sent messages."""
    messages_waiting: int
    """Whole messages that have come and were not taken."""
    pings_answered: int
    """Pings of the peer's that the reactor has answered."""


def frame_statistics(counts: tuple[int, ...]) -> FrameStatistics:
    """From a scan's counters."""
    return _in_order(FrameStatistics, counts)


def websocket_statistics(counts: tuple[int, ...]) -> WebSocketStatistics:
    """From the decoder's counters."""
    return _in_order(WebSocketStatistics, counts)


def traffic(sums: tuple[int, ...]) -> Traffic:
    """From the sums of `Totals`."""
    return _in_order(Traffic, sums)


def _in_order(kind: type[T], counts: tuple[int, ...]) -> T:
    """From counters that are in the order of the fields."""
    names = (field.name for field in attrs.fields(kind))
    return kind(**dict(zip(names, counts, strict=True)))


@attrs.frozen(kw_only=True)
class EngineStatistics:
    """An engine's counters."""

    connections: int
    """Open connections, including those that linger."""
    unwatched: int
    """Connections that epoll cannot watch for now, for lack of memory or because of
    ``fs.epoll.max_user_watches``. They receive nothing until it can, and no listener
    accepts others. Logged as ``trio_wknet.shortage`` when it begins and when it ends."""
    shortages: int
    """The number of times that this has begun."""
    refused_by: Mapping[str, int] = attrs.field(hash=False)
    """Connections that its listeners have refused, also those that are closed, by why, as in
    `ListenerStatistics`."""
    ended_by: Mapping[str, int] = attrs.field(hash=False)
    """The same of connections that were ended for being too slow; and by ``"budget"``, those that
    were ended because the engine held more than ``max_buffered``, also if the application had
    closed them, and they were only sending their rest."""
    buffered: int
    """Bytes that it holds for its connections: the memory of buffers, received and to be sent, and
    of parts of large frames. It is what ``max_buffered`` bounds."""
    paused_by_budget: int
    """The number of times that it came near ``max_buffered``, so that receiving paused where
    nobody waited."""
    accepted: int
    """Connections that its listeners have accepted, also those that are closed."""
    connected: int
    """Connections of `Engine.connect` and `Engine.adopt`."""
    open: int
    """Connections that a handler, a task or callbacks have, until they are closed by this
    program: those of `Engine.connections`."""
    closed_by: Mapping[str, int] = attrs.field(hash=False)
    """Connections that were open and have ended, as in `ListenerStatistics`: those of all
    listeners, and those of ``connected``."""
    traffic: Traffic
    """What all of them have moved so far, and hold now."""
    handshakes_done: int
    """Handshakes of TLS that are done, a client's included."""
    handshake_seconds: float
    """The seconds that these took together."""
    failed_handshakes: int
    """Those that have failed, were cancelled, or took too long."""
    broadcasts: int
    """Broadcasts of its groups that are done."""
    broadcast_to: Mapping[str, int] = attrs.field(hash=False)
    """What became of these, by member: ``"sent"``, ``"queued"``, ``"skipped"`` and ``"closed"``, as
    in `BroadcastResult`."""
    wakes: int
    """The number of times that a reactor had to wake Trio's loop."""
    measured_time: float
    """Seconds for which the engine has measured the following, and `ReactorStatistics.busy_time`:
    only while `Engine.measure` has switched that on."""
    loop_busy_time: float
    """Seconds of it that Trio's loop has run tasks and callbacks, up to its last wait; this
    engine's own work in it included."""
    loop_lag: float
    """The last value of ``wake_latency``, in seconds."""
    wake_latency: Histogram
    """Seconds from when a reactor posts news and wakes Trio, until Trio's side takes them and
    wakes the tasks, which run next. In-loop nothing has to wake Trio: it is the time for which
    tasks ran before Trio looked, the most that the news can have waited, and 0 for news that
    ended a wait."""
    batches: int
    """The number of times that Trio's side took news."""
    completions: int
    """News that it took: each is about one connection or listener."""
    batch_sizes: Histogram
    """Of the batches, by how many news they had: 1, 2, up to 4, up to 8, and so on."""
    slots_in_use: int
    """Entries of the slot map in use: one for each connection, listener and
    listening socket, and a few of the engine's own."""
    slots_ready: int
    """Free entries that have memory. The memory of a slab, 256 adjacent entries, is returned
    to the system when all of them are free, except for the first four slabs."""
    slab_bytes: int
    """Bytes of memory for both."""
    pool_kept: int
    """Bytes of buffers kept for reuse, by the reactors and for sending."""
    pool_in_use: int
    """Bytes of buffers in use, by the reactors and for sending."""
    reactors: tuple[ReactorStatistics, ...]
    """Those of each reactor; in-loop there is one."""


@attrs.frozen(kw_only=True)
class WheelStatistics:
    """A timing wheel's counters."""

    pending: int
    """Timers that are waiting."""
    fired: int
    """Calls that were made."""
    cancelled: int
    """Timers that were cancelled while they waited, including scopes that were left."""
    turns: int
    """Turns of the wheel. Between two turns it costs nothing."""
    visits: int
    """Timers looked at in turning: a timer that fires counts once for each level that it
    came down, and one that was moved to a later time once where it used to be."""
