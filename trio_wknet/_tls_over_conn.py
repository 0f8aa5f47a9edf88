"""What a `TLSStream` has of the `Conn` that it is over: its end, idle times and counters."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import trio

from trio_wknet._conn import Conn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import EllipsisType

    from trio_wknet._idle import Idle
    from trio_wknet._rates import Rates
    from trio_wknet._sockets.address import SocketAddress
    from trio_wknet._statistics import ConnStatistics


class OverConn:
    """Those methods. What moves on the connection are the bytes of TLS: idle times and counters
    are about these, and the end is the connection's, not a goodbye that nobody has received.

    Over another transport they raise `TypeError`, after `TLSStream.unwrap`
    `trio.ClosedResourceError`."""

    if TYPE_CHECKING:

        @property
        def transport_stream(self) -> Any: ...

    def _conn(self, call: str) -> Conn:
        transport = self.transport_stream
        if isinstance(transport, Conn):
            return transport
        if transport is None:
            raise trio.ClosedResourceError("this TLS stream was already closed")
        raise TypeError(f"{call} works over a Conn, not over a {type(transport).__name__}")

    @property
    def close_reason(self) -> str | None:
        """Why the connection ended, see `Conn.close_reason`; None while it is open in both
        directions. A goodbye of the peer's alone is not its end."""
        return self._conn("close_reason").close_reason

    @property
    def local_address(self) -> SocketAddress:
        """This end's address, see `Conn.local_address`."""
        return self._conn("local_address").local_address

    @property
    def remote_address(self) -> SocketAddress:
        """The peer's address, see `Conn.remote_address`."""
        return self._conn("remote_address").remote_address

    async def wait_closed(self) -> None:
        """Wait until ``close_reason`` is not None, like `Conn.wait_closed`. A checkpoint.

        Raises:
          TypeError: if the stream is not over a `Conn`.
          RuntimeError: if called from another thread.
        """
        await self._conn("wait_closed").wait_closed()

    @contextmanager
    def cancel_on_disconnect(self) -> Iterator[trio.CancelScope]:
        """A cancel scope that is cancelled when the connection ends, see
        `Conn.cancel_on_disconnect`. A goodbye of the peer's alone does not cancel it, but peers
        end the connection along with it. Not a checkpoint.

        Returns:
          A context manager, whose value is the `trio.CancelScope`.

        Raises:
          TypeError: if the stream is not over a `Conn`.
          RuntimeError: if entered in another thread.
        """
        with self._conn("cancel_on_disconnect").cancel_on_disconnect() as scope:
            yield scope

    def idle_scope(
        self,
        seconds: float | Idle | None = None,
        *,
        read: float | None = None,
        write: float | None = None,
    ) -> trio.CancelScope:
        """A `trio.CancelScope` that is cancelled when the connection is idle, see
        `Conn.idle_scope`. What counts is any byte of TLS, also one of a record that is not
        whole. Not a checkpoint.

        Args:
          seconds: seconds without bytes in either direction, or an `Idle`; None, the default:
              no limit.
          read: seconds without bytes received; None, the default: no limit.
          write: seconds without bytes sent; None, the default: no limit.

        Returns:
          The scope, to be entered with ``with``.

        Raises:
          trio.ClosedResourceError: if the stream is closed.
          TypeError, ValueError: if a time is not a number, or not finite and more than 0; if
              none is given; or if the stream is not over a `Conn`.
          RuntimeError: if called from another thread.
        """
        return self._conn("idle_scope").idle_scope(seconds, read=read, write=write)

    def rate(
        self, *, read: float | EllipsisType | None = ..., write: float | EllipsisType | None = ...
    ) -> Rates:
        """Bound how many bytes of TLS a second are received and sent, see `Conn.rate`. Not a
        checkpoint.

        Args:
          read: bytes a second to receive, 1 or more; None: no bound. By default it is left as
              it is.
          write: bytes a second to send, likewise.

        Returns:
          The `Rates` that are in effect from here on.

        Raises:
          trio.ClosedResourceError: if the stream is closed.
          TypeError, ValueError: if a rate is not a number, or less than 1, or not finite; or
              if the stream is not over a `Conn`.
          RuntimeError: if called from another thread.
        """
        return self._conn("rate").rate(read=read, write=write)

    @property
    def idle_timeout(self) -> float | Idle | None:
        """Seconds without bytes of TLS after which the connection is closed, see
        `Conn.idle_timeout`."""
        return self._conn("idle_timeout").idle_timeout

    @idle_timeout.setter
    def idle_timeout(self, seconds: float | Idle | None) -> None:
        self._conn("idle_timeout").idle_timeout = seconds

    def statistics(self) -> ConnStatistics:
        """Return a snapshot of the connection's counters, which are about the bytes of TLS. Not a
        checkpoint.

        Returns:
          A `ConnStatistics`.

        Raises:
          TypeError: if the stream is not over a `Conn`.
          RuntimeError: if called from another thread.
        """
        return self._conn("statistics").statistics()

    def abort(self) -> None:
        """Close the connection at once with a reset, see `Conn.abort`. Not a checkpoint.
        Idempotent.

        Raises:
          TypeError: if the stream is not over a `Conn`.
          RuntimeError: if called from another thread.
        """
        self._conn("abort").abort()
