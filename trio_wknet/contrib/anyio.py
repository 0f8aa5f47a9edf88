"""Connections and listeners as AnyIO's, for software that is written for it.

AnyIO's functions make streams of AnyIO's own. But what it builds on streams, TLS
included, and what other software expects, are its abstract classes. So an adapter that
implements them fits everywhere.

AnyIO's exceptions are not Trio's, and every exception that is raised here is AnyIO's. Each
async method is a checkpoint, because those of `trio_wknet.Conn` and `trio_wknet.Listener`
are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import anyio
import trio
from anyio.abc import SocketListener as AbstractSocketListener
from anyio.abc import SocketStream as AbstractSocketStream

from trio_wknet._conn import Conn
from trio_wknet._listener import Listener
from trio_wknet._sockets.facade import stand_in

if TYPE_CHECKING:
    import socket

_TRIOS = (trio.BrokenResourceError, trio.BusyResourceError, trio.ClosedResourceError)


def _anyios(exc: Exception, doing: str) -> Exception:
    """What AnyIO calls it."""
    if isinstance(exc, trio.BusyResourceError):
        return anyio.BusyResourceError(doing)
    if isinstance(exc, trio.BrokenResourceError):
        return anyio.BrokenResourceError(*exc.args)
    return anyio.ClosedResourceError(*exc.args)


class SocketStream(AbstractSocketStream):
    """A `trio_wknet.Conn` as an `anyio.abc.SocketStream`::

        stream = SocketStream(await trio_wknet.open_tcp_stream("localhost", 5100))
        stream = await TLSStream.wrap(stream, hostname="localhost")

    It has AnyIO's socket attributes (`anyio.abc.SocketAttribute`). Its
    ``raw_socket`` has addresses and options, and closes the connection when it
    is closed, but cannot send or receive: bytes belong to the reactor. A connection on a
    unix socket is not an `anyio.abc.UNIXSocketStream`: descriptors are not passed, so there is
    no ``send_fds`` and no ``receive_fds``, and descriptors that a peer sends are closed.

    Args:
      conn: the connection, such as `trio_wknet.open_tcp_stream` returns. Use it for what
          AnyIO has no method for. It is closed with this.

    Raises:
      TypeError: if ``conn`` is not a `trio_wknet.Conn`.
      anyio.ClosedResourceError: if it is closed.
    """

    def __init__(self, conn: Conn | trio.SocketStream) -> None:
        if not isinstance(conn, Conn):
            raise TypeError(f"conn must be a Conn, not {conn!r}")
        self._conn: Conn = conn
        self._sock = _stand_in(conn)

    def __repr__(self) -> str:
        return f"<trio_wknet.contrib.anyio.SocketStream of {self._conn!r}>"

    if not TYPE_CHECKING:  # a type checker would take it for leave to ask for anything

        def __getattr__(self, name: str) -> NoReturn:
            advice = ""
            if name in ("send_fds", "receive_fds"):
                advice = ": descriptors (SCM_RIGHTS) are passed on AnyIO's own unix sockets alone"
            cls = type(self).__name__
            raise AttributeError(f"{cls!r} object has no attribute {name!r}{advice}")

    @property
    def _raw_socket(self) -> socket.socket:
        return self._sock

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Wait for bytes, and return those that are there. A checkpoint.

        Cancellation is atomic: no data is consumed.

        Args:
          max_bytes: the most bytes to return, 1 or more; by default 65536.

        Returns:
          The bytes, at least one.

        Raises:
          anyio.EndOfStream: if the peer finished sending.
          anyio.ClosedResourceError: if the connection is closed, before or during the call.
          anyio.BrokenResourceError: if it broke; the cause is an `OSError`.
          anyio.BusyResourceError: if another task is receiving.
          ValueError: if ``max_bytes`` is less than 1.
        """
        if max_bytes < 1:
            raise ValueError("max_bytes must be a positive integer")
        try:
            data = await self._conn.receive_some(max_bytes)
        except _TRIOS as exc:
            raise _anyios(exc, "reading from") from exc.__cause__
        if not data:
            raise anyio.EndOfStream
        return data

    async def send(self, item: bytes) -> None:
        """Send bytes, and return once the kernel has taken all of them. A checkpoint.

        If the call is cancelled, a part may have been sent.

        Args:
          item: any contiguous bytes-like object.

        Raises:
          anyio.ClosedResourceError: if the connection is closed, before or during the call,
              or `send_eof` was called.
          anyio.BrokenResourceError: if it broke; the cause is an `OSError`.
          anyio.BusyResourceError: if another task is sending.
          TypeError: if ``item`` is not bytes-like.
        """
        try:
            await self._conn.send_all(item)
        except _TRIOS as exc:
            raise _anyios(exc, "writing to") from exc.__cause__

    async def send_eof(self) -> None:
        """Finish sending, so that the peer sees the end of the stream; receiving goes on. A
        checkpoint. Idempotent.

        Raises:
          anyio.ClosedResourceError: if the connection is closed, before or during the call.
          anyio.BrokenResourceError: if it broke; the cause is an `OSError`.
          anyio.BusyResourceError: if another task is sending.
        """
        try:
            await self._conn.send_eof()
        except _TRIOS as exc:
            raise _anyios(exc, "writing to") from exc.__cause__

    async def aclose(self) -> None:
        """Close gracefully, as `trio_wknet.Conn.aclose` does; if cancelled, at once. A
        checkpoint. Idempotent.

        Raises:
          RuntimeError: if called from another thread.
        """
        await self._conn.aclose()


class SocketListener(AbstractSocketListener):
    """A `trio_wknet.Listener` as an `anyio.abc.SocketListener`::

        async with open_wknet_listener("tcp://localhost:5100") as listener:
            await SocketListener(listener).serve(handler)

    If it listens on several addresses, its attributes are those of the first. ``serve`` is
    AnyIO's: unlike `trio_wknet.Listener.serve` it leaves closing the streams to the handlers,
    and it cannot be drained; a connection with an idle timeout is closed under its handler.

    Args:
      listener: the listener, such as `trio_wknet.open_tcp_listeners` returns. It is closed
          with this.

    Raises:
      TypeError: if ``listener`` is not a `trio_wknet.Listener`.
      anyio.ClosedResourceError: if it is closed.
    """

    def __init__(self, listener: Listener | trio.SocketListener) -> None:
        if not isinstance(listener, Listener):
            raise TypeError(f"listener must be a Listener, not {listener!r}")
        self._listener: Listener = listener
        self._sock = _stand_in(listener)

    def __repr__(self) -> str:
        return f"<trio_wknet.contrib.anyio.SocketListener of {self._listener!r}>"

    @property
    def _raw_socket(self) -> socket.socket:
        return self._sock

    async def accept(self) -> SocketStream:
        """Wait for a connection. A checkpoint.

        Cancellation is atomic: the next accept gets the connection.

        Returns:
          A `SocketStream`.

        Raises:
          anyio.ClosedResourceError: if the listener is closed, before or during the call.
          anyio.BusyResourceError: if another task is accepting.
        """
        try:
            return SocketStream(await self._listener.accept())
        except _TRIOS as exc:
            raise _anyios(exc, "accepting connections from") from exc.__cause__

    async def aclose(self) -> None:
        """Stop listening, as `trio_wknet.Listener.aclose` does. A checkpoint. Idempotent.

        Raises:
          RuntimeError: if called from another thread.
        """
        await self._listener.aclose()


def _stand_in(endpoint: Conn | Listener) -> socket.socket:
    try:
        return stand_in(endpoint.socket)
    except trio.ClosedResourceError as exc:
        raise anyio.ClosedResourceError(*exc.args) from None
