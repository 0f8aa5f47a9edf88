"""Connections and listeners as AnyIO's, for software that is written for it.

AnyIO's functions make streams of AnyIO's own. But what it builds on streams, TLS
included, and whoever asks for one, takes anything with its abstract classes.

AnyIO's exceptions are not Trio's, and everything that is raised here is AnyIO's. Each
method is a checkpoint, because those of `trio_wknet.Conn` and `trio_wknet.Listener` are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import anyio
import trio
from anyio.abc import SocketListener as AbstractSocketListener
from anyio.abc import SocketStream as AbstractSocketStream

from trio_wknet._conn import Conn
from trio_wknet._listener import Listener
from trio_wknet._socket import stand_in

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

    It has AnyIO's attributes of sockets (`anyio.abc.SocketAttribute`). The
    ``raw_socket`` among them knows names and options, and closes the connection when it
    is closed, but cannot send or receive: bytes belong to the reactor. A connection on a
    unix socket is no `anyio.abc.UNIXSocketStream`: descriptors are not passed, so there is
    no ``send_fds`` and no ``receive_fds``, and those that a peer sends along are closed.

    Args:
      conn: the connection. What else it can do is still done with the `trio_wknet.Conn`, and it is
          closed with this. `trio_wknet.open_tcp_stream` is annotated like Trio's
          function, and gives one, too.

    Raises:
      TypeError: ``conn`` is not a `trio_wknet.Conn`.
      anyio.ClosedResourceError: it is closed.
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
        """Wait for bytes, and take up to ``max_bytes`` of them. Cancelled, it took none.

        Raises:
          anyio.EndOfStream: the peer finished sending.
          anyio.ClosedResourceError: the connection was closed here, before or meanwhile.
          anyio.BrokenResourceError: it broke; the cause is an `OSError`.
          anyio.BusyResourceError: another task is receiving.
          ValueError: ``max_bytes`` is less than 1.
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
        """Send all of ``item``: returns once the kernel has it. Cancelled, it may have
        sent a part.

        Raises `anyio.ClosedResourceError`, `anyio.BrokenResourceError`, and
        `anyio.BusyResourceError` while another task sends.
        """
        try:
            await self._conn.send_all(item)
        except _TRIOS as exc:
            raise _anyios(exc, "writing to") from exc.__cause__

    async def send_eof(self) -> None:
        """Tell the peer that no more bytes will come; receiving goes on. Again does
        nothing. Raises what `send` does."""
        try:
            await self._conn.send_eof()
        except _TRIOS as exc:
            raise _anyios(exc, "writing to") from exc.__cause__

    async def aclose(self) -> None:
        """Close gracefully, as `trio_wknet.Conn.aclose` does; cancelled, at once. Again does
        nothing."""
        await self._conn.aclose()


class SocketListener(AbstractSocketListener):
    """A `trio_wknet.Listener` as an `anyio.abc.SocketListener`::

        async with open_wknet_listener("tcp://localhost:5100") as listener:
            await SocketListener(listener).serve(handler)

    Its attributes are those of the first address, if it listens on several. ``serve`` is
    AnyIO's: unlike that of `trio_wknet.Listener` it leaves closing the streams to the handlers, and
    has no ``drain``; a connection with an idle timeout is closed under its handler.

    Args:
      listener: where it accepts. It is closed with this. `trio_wknet.open_tcp_listeners`
          is annotated like Trio's function, and gives such listeners, too.

    Raises:
      TypeError: ``listener`` is not a `trio_wknet.Listener`.
      anyio.ClosedResourceError: it is closed.
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
        """Wait for a connection. Cancelled, it took none.

        Raises:
          anyio.ClosedResourceError: the listener was closed, before or meanwhile.
          anyio.BusyResourceError: another task is accepting.
        """
        try:
            return SocketStream(await self._listener.accept())
        except _TRIOS as exc:
            raise _anyios(exc, "accepting connections from") from exc.__cause__

    async def aclose(self) -> None:
        """Stop listening, as `trio_wknet.Listener.aclose` does. Again does nothing."""
        await self._listener.aclose()


def _stand_in(endpoint: Conn | Listener) -> socket.socket:
    try:
        return stand_in(endpoint.socket)
    except trio.ClosedResourceError as exc:
        raise anyio.ClosedResourceError(*exc.args) from None
