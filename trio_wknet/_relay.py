"""relay: two streams, each of which is sent what the other one receives.

Between two connections the reactors do it (`_native/trio/relay.pyx`); between other streams,
tasks of Trio's.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

import attrs
import trio

from trio_wknet._conn import Conn
from trio_wknet._errors import RelayBroken
from trio_wknet._native.trio.relay import relay_native
from trio_wknet._tls_conn import TLSConn

if TYPE_CHECKING:
    Side = Literal["a", "b"]

DEFAULT_BUFFER = 65536
MAX_BUFFER = 1 << 30
PIECE = 65536


@attrs.frozen(kw_only=True)
class RelayResult:
    """How many bytes were relayed each way."""

    a_to_b: int
    """Received from ``a``, and sent on ``b``."""
    b_to_a: int
    """Received from ``b``, and sent on ``a``."""


async def relay(
    a: trio.abc.Stream, b: trio.abc.Stream, *, buffer: int = DEFAULT_BUFFER
) -> RelayResult:
    """Send on each of two streams what the other one receives, until both have ended. A
    checkpoint.

    Between two `Conn` objects the reactors do it, and no Python runs for a message; large ones do
    not leave the kernel. They may be on different reactors, and of different engines.
    Bytes that were received before go first, and so do bytes that are still to be sent. The
    end of one direction is carried over (FIN), and the other direction goes on. A side that
    does not read slows the other one down. Both keep their idle timeouts, idle scopes,
    rates and statistics. Neither is closed::

        async with a, b:
            await relay(a, b)

    Meanwhile the relay owns both connections: what receives or sends on them raises
    `trio.BusyResourceError`. Closing one of them ends the relay.

    If it is cancelled, or ends with an exception, no byte is lost between the two: what was taken
    from one connection and not yet sent on the other one is left to be sent there, as by
    `Conn.send_nowait`, and both can be used. Their ``statistics()`` count on.

    With any other streams, such as `TLSStream` and `trio.SocketStream`, two tasks do the same by
    ``receive_some`` and ``send_all``. Then, if it is cancelled, up to ``buffer`` bytes each way
    may be lost; and if one of the streams cannot end one direction alone (it has no
    ``send_eof``), what would be carried over to it ends the relay instead.

    Args:
      a: a `Conn`, or another stream.
      b: another one.
      buffer: the most bytes that are held in each direction, 1 or more; by default 65536. For
          bulk it is also the size of a pipe, of which a relay has up to two, with two
          descriptors each, from the first large message on. If there are no descriptors, or the
          system refuses such a size, it goes on with less speed.

    Returns:
      A `RelayResult`, when both directions have ended.

    Raises:
      RelayBroken: if one of them broke. A `trio.BrokenResourceError`, which says which one it
          was, and how many bytes were relayed.
      trio.ClosedResourceError: if one of them is closed, before or during the call.
      trio.BusyResourceError: if a task, a framing, TLS, or a server of callbacks receives or
          sends on one of them.
      TypeError: if they are not streams, or ``buffer`` is not an integer.
      ValueError: if ``a`` is ``b``, or ``buffer`` is out of range.
      RuntimeError: if called from another thread.
    """
    for name, stream in (("a", a), ("b", b)):
        if not isinstance(stream, trio.abc.Stream):
            raise TypeError(f"{name} must be a trio.abc.Stream, not {stream!r}")
    if a is b:
        raise ValueError("a and b must be two streams, not the same one")
    if isinstance(buffer, bool) or not isinstance(buffer, int):
        raise TypeError(f"buffer must be an integer, not {buffer!r}")
    if not 1 <= buffer <= MAX_BUFFER:
        raise ValueError(f"buffer must be from 1 to {MAX_BUFFER} bytes, not {buffer}")
    for stream in (a, b):
        if isinstance(stream, TLSConn):
            await stream.receive_some()  # raises: its bytes are those of TLS
    if isinstance(a, Conn) and isinstance(b, Conn):
        return await _relay_conns(a, b, buffer)
    return await _Pumps(a, b, min(buffer, PIECE)).run()


async def _relay_conns(a: Conn, b: Conn, buffer: int) -> RelayResult:
    a_to_b, b_to_a, error, culprit = await relay_native(a, b, buffer)
    result = RelayResult(a_to_b=a_to_b, b_to_a=b_to_a)
    if error:
        raise RelayBroken("b" if culprit else "a", result) from OSError(error, os.strerror(error))
    return result


class _Pumps:
    """A relay by two tasks."""

    def __init__(self, a: trio.abc.Stream, b: trio.abc.Stream, piece: int) -> None:
        self.streams: dict[Side, trio.abc.Stream] = {"a": a, "b": b}
        self.piece = piece
        self.moved: dict[Side, int] = {"a": 0, "b": 0}
        self.scope = trio.CancelScope()
        self.failure: Exception | None = None
        self.culprit: Side = "a"

    async def run(self) -> RelayResult:
        with self.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.pump, "a", "b")
                nursery.start_soon(self.pump, "b", "a")
        result = RelayResult(a_to_b=self.moved["a"], b_to_a=self.moved["b"])
        if isinstance(self.failure, trio.BrokenResourceError):
            raise RelayBroken(self.culprit, result) from self.failure
        if self.failure is not None:
            raise self.failure
        return result

    async def pump(self, source: Side, sink: Side) -> None:
        to = self.streams[sink]
        at = source
        try:
            while data := await self.streams[source].receive_some(self.piece):
                at = sink
                await to.send_all(data)
                self.moved[source] += len(data)
                at = source
            at = sink
            if hasattr(to, "send_eof"):
                await to.send_eof()
            else:
                self.scope.cancel()
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError) as exc:
            if self.failure is None:
                self.failure, self.culprit = exc, at
            self.scope.cancel()
