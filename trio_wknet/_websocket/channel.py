"""WebSocket: Trio's channel contract over a WebSocket's messages.

Receiving and sending are in the native bases (`websocket.pyx`, `websocket_send.pyx`), and the
protocol itself on the reactor; here is what need not be fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NoReturn, overload

import trio

from trio_wknet._conn import Conn
from trio_wknet._native.trio.latch import Latch
from trio_wknet._native.trio.websocket_send import WebSocketSend
from trio_wknet._statistics import WebSocketStatistics, websocket_statistics
from trio_wknet._usage_errors import require_callable
from trio_wknet._websocket.control import close_reason, control_payload
from trio_wknet._websocket.extra import opening
from trio_wknet._websocket.http import check_headers
from trio_wknet._websocket.options import WebSocketOptions, check_options, with_subprotocols
from trio_wknet._websocket.url import parse_url

if TYPE_CHECKING:
    import sys
    from collections.abc import Callable, Iterable, Mapping
    from contextlib import AbstractContextManager

    from trio_wknet._sockets.address import SocketAddress
    from trio_wknet._websocket.deflate import Deflater, Inflater
    from trio_wknet._websocket.http import Request
    from trio_wknet._websocket.opening import OnRequest
    from trio_wknet._websocket.stream import StreamWebSocket

    if sys.version_info >= (3, 12):
        from collections.abc import Buffer
    else:
        from typing_extensions import Buffer


class WebSocket(WebSocketSend, trio.abc.Channel[str | bytes]):
    """A connection that speaks WebSocket (RFC 6455): a `trio.abc.Channel` of `str` and `bytes`
    in full.

    ``async for message in ws`` receives until the peer has closed the connection normally.
    The reactor decodes: Trio is woken for whole messages only, `receive_many` takes all that
    have come at once, and pings are answered, and close frames, while the program is busy.

    Memory for messages that were not taken is bounded by ``limits.inbound``, at which the
    reactor stops reading; only a message that is the next to be taken may be larger, up to
    ``max_message``. So the peer's pings are answered, and its pongs seen, as far as the reactor
    has read.

    Every async method is a checkpoint. A receive that is cancelled has taken nothing, and a
    message is sent whole or not at all.
    """

    # In event mode an object may be made for each message, so its fields are native.
    __slots__ = ("__weakref__",)

    conn: Conn

    def __init__(self, *_: NoReturn, **__: NoReturn) -> None:
        raise TypeError("a WebSocket cannot be constructed; serving and connecting return one")

    @classmethod
    def _over(
        cls,
        conn: Conn,
        role: Literal["server", "client"],
        *,
        unread: bytes = b"",
        max_message: int = 1 << 20,
        max_fragments: int = 1 << 20,
        close_timeout: float = 10.0,
        subprotocol: str | None = None,
        request: Request | None = None,
        compression: tuple[Inflater, Deflater] | tuple[None, None] = (None, None),
        ping_interval: float | None = None,
        ping_timeout: float | None = None,
    ) -> WebSocket:
        """Speak WebSocket on a connection whose handshake is done. Not a checkpoint.

        Args:
          conn: the connection; its bytes are the WebSocket's from here on, those that it holds
              included.
          role: ``"server"`` or ``"client"``.
          unread: bytes that were received from it behind the handshake. Default: none.
          max_message: the most bytes of a message, 1 to 2**29; default 1 MiB.
          max_fragments: the most fragments of a message, 1 or more; default 2**20.
          close_timeout: seconds that the closing handshake may take; default 10.
          subprotocol: what was agreed on; default None.
          request: what the application is to see of the request; default None.
          compression: what was agreed on; default: none.
          ping_interval, ping_timeout: as of `WebSocketOptions`; default None.

        Raises:
          trio.BusyResourceError: if the connection is framed, or a task is receiving from it
              or detaching it.
          trio.ClosedResourceError: if it was closed here.
        """
        ws = cls.__new__(cls)
        ws._begin(conn, role == "client", max_message, max_fragments, unread, *compression)
        ws._agree(request, subprotocol, close_timeout)
        if ping_interval is not None:
            ws._keep_alive(ping_interval, ping_timeout or ping_interval)
        return ws

    # What is no Conn becomes a StreamWebSocket, and a Conn is a stream, too.
    @overload
    @classmethod
    async def connect(  # type: ignore[overload-overlap]
        cls,
        conn: Conn,
        url: str,
        *,
        subprotocols: Iterable[str] | None = None,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        options: WebSocketOptions = WebSocketOptions(),
    ) -> WebSocket: ...

    @overload
    @classmethod
    async def connect(
        cls,
        conn: trio.abc.Stream,
        url: str,
        *,
        subprotocols: Iterable[str] | None = None,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        options: WebSocketOptions = WebSocketOptions(),
    ) -> StreamWebSocket: ...

    @classmethod
    async def connect(
        cls,
        conn: trio.abc.Stream,
        url: str,
        *,
        subprotocols: Iterable[str] | None = None,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        options: WebSocketOptions = WebSocketOptions(),
    ) -> WebSocket | StreamWebSocket:
        """Make a connection a WebSocket, as a client: for one that `open_websocket` cannot
        open, such as a unix socket, or TLS. A checkpoint.

        There is no bound in time but the caller's. If this raises, or is cancelled, the
        connection is still the caller's, to be closed.

        Args:
          conn: a `Conn`, or any other `trio.abc.Stream`; its bytes are the WebSocket's from
              here on.
          url: ``"ws://host[:port][/path][?query]"``, which the request names; it may
              begin with ``wss://``, too, which is the caller's to see to.
          subprotocols: those that are offered, the preferred one first; by default
              ``options.subprotocols``.
          headers: more headers of the request: a mapping, or pairs of name and value. By
              default none.
          options: by default ``WebSocketOptions()``.

        Returns:
          A `WebSocket`; for a stream that is no `Conn`, a `StreamWebSocket`.

        Raises:
          HandshakeRejected: if the server answers with something else than a WebSocket.
          HandshakeError: if it does not answer properly.
          trio.ClosedResourceError, trio.BusyResourceError: as the connection's own methods do.
          ValueError, TypeError: if an argument is invalid.
          ImportError: if h11 is not installed (the extra ``websocket``).
        """
        parsed = parse_url(url)
        _check_stream(conn)
        opened: WebSocket | StreamWebSocket = await opening().connect(
            conn,
            parsed,
            check_headers(headers, "headers"),
            with_subprotocols(options, subprotocols),
        )
        return opened

    @overload
    @classmethod
    async def accept(  # type: ignore[overload-overlap]
        cls,
        conn: Conn,
        *,
        on_request: OnRequest | None = None,
        options: WebSocketOptions = WebSocketOptions(),
    ) -> WebSocket | None: ...

    @overload
    @classmethod
    async def accept(
        cls,
        conn: trio.abc.Stream,
        *,
        on_request: OnRequest | None = None,
        options: WebSocketOptions = WebSocketOptions(),
    ) -> StreamWebSocket | None: ...

    @classmethod
    async def accept(
        cls,
        conn: trio.abc.Stream,
        *,
        on_request: OnRequest | None = None,
        options: WebSocketOptions = WebSocketOptions(),
    ) -> WebSocket | StreamWebSocket | None:
        """Make a connection a WebSocket, as a server that accepts connections by itself:
        `WebSocketListener` does this for each. A checkpoint.

        Args:
          conn: a `Conn`, or any other `trio.abc.Stream`, whose first bytes are a request.
          on_request: called with the `Request`, as in `WebSocketListener.serve`. By default
              None.
          options: by default ``WebSocketOptions()``.

        Returns:
          A `WebSocket`, or, for a stream that is no `Conn`, a `StreamWebSocket`; or None if
          the request did not become one, and was answered as far as possible. Then the
          connection is to be closed.

        Raises:
          TypeError: if an argument is invalid, or ``on_request`` returns something else.
          ImportError: if h11 is not installed (the extra ``websocket``).
        """
        _check_stream(conn)
        check_options(options)
        if on_request is not None:
            require_callable(on_request=on_request)
        opened: WebSocket | StreamWebSocket | None = await opening().accept(
            conn, None, options, on_request
        )
        return opened

    @overload
    @classmethod
    def upgrade(  # type: ignore[overload-overlap]
        cls,
        conn: Conn,
        headers: Mapping[str, str] | Iterable[tuple[str, str]],
        target: str = "/",
        *,
        unread: bytes = b"",
        options: WebSocketOptions = WebSocketOptions(),
    ) -> WebSocket: ...

    @overload
    @classmethod
    def upgrade(
        cls,
        conn: trio.abc.Stream,
        headers: Mapping[str, str] | Iterable[tuple[str, str]],
        target: str = "/",
        *,
        unread: bytes = b"",
        options: WebSocketOptions = WebSocketOptions(),
    ) -> StreamWebSocket: ...

    @classmethod
    def upgrade(
        cls,
        conn: trio.abc.Stream,
        headers: Mapping[str, str] | Iterable[tuple[str, str]],
        target: str = "/",
        *,
        unread: bytes = b"",
        options: WebSocketOptions = WebSocketOptions(),
    ) -> WebSocket | StreamWebSocket:
        """Make a connection a WebSocket whose request was read already, as by an HTTP server:
        send the answer. Not a checkpoint.

        Args:
          conn: a `Conn`, or any other `trio.abc.Stream`, from which the request was received.
          headers: those of the request, which was a GET of HTTP/1.1: a mapping, or pairs of
              name and value.
          target: the request's path and query; by default ``"/"``.
          unread: what was received behind the request; by default nothing. Bytes that were not
              received stay in the connection, and come after these.
          options: by default ``WebSocketOptions()``.

        Returns:
          A `WebSocket`. For a stream that is no `Conn`, a `StreamWebSocket`, whose first send or
          receive sends the answer.

        Raises:
          HandshakeError: if the request cannot become a WebSocket. Nothing was sent: the
              server is to answer it, with status 400 or 426.
          trio.WouldBlock: if more than ``limits.outbound`` bytes would be unsent.
          trio.ClosedResourceError, trio.BrokenResourceError: as `Conn.send_nowait` does.
          trio.BusyResourceError: if a task is receiving from the connection.
          ValueError, TypeError: if an argument is invalid.
          ImportError: if h11 is not installed (the extra ``websocket``).
        """
        _check_stream(conn)
        check_options(options)
        opened: WebSocket | StreamWebSocket = opening().upgrade(
            conn, check_headers(headers, "headers"), target, unread, options
        )
        return opened

    def __repr__(self) -> str:
        code = self.close_code
        state = "open" if code is None else f"closed {code}"
        return f"<trio_wknet.WebSocket {state} over {self.conn!r}>"

    # --- control frames ------------------------------------------------------

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait until that is so. It is looked at when a control frame has come that somebody
        may wait for, and at the end."""
        await trio.lowlevel.checkpoint()
        while not condition():
            latch = Latch(self.conn._core)
            self._add_latch(latch)
            try:
                await latch.wait()
            finally:
                self._remove_latch(latch)

    async def ping(self, payload: Buffer | None = None) -> float:
        """Send a ping, and wait until the peer has answered it, or a later one. A checkpoint.

        The reactor sends it, between two messages of whoever sends, and sees the pong, though
        nobody receives.

        Args:
          payload: a bytes-like object of at most 125 bytes, other than those of pings that
              are waited for; by default, one of its own.

        Returns:
          The seconds that it took.

        Raises:
          ConnectionClosed: if a close frame was sent or received, the connection is closed,
              before or during the call, or it broke.
          ValueError: if ``payload`` is too long, or that of another ping.
          TypeError: if it is not bytes-like.
          RuntimeError: if called from another thread.
        """
        number = self._send_ping(None if payload is None else control_payload(payload))
        start = trio.current_time()
        try:
            await self._until(lambda: self._is_answered(number))
        finally:
            self._forget_ping(number)
        return trio.current_time() - start

    # --- the end -------------------------------------------------------------

    def idle_point(self) -> AbstractContextManager[trio.CancelScope]:
        """Say that nothing but the wait in this block is under way, like `Conn.idle_point`. Not
        a checkpoint::

            with ws.idle_point() as scope:
                message = await ws.receive()
            if scope.cancelled_caught:
                await ws.aclose(1001)  # the server ends

        Returns:
          A context manager, to be entered once, whose value is the `trio.CancelScope`.

        Raises:
          RuntimeError: if it is entered in another thread, or twice.
        """
        return self.conn.idle_point()

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection: send a close frame, wait for the peer's, at most
        ``close_timeout`` seconds, and end the stream. A checkpoint. Idempotent.

        If the peer's came before, or the connection is broken, there is nothing to wait for.
        Messages that were not received are dropped, and tasks that wait for one get a
        `ConnectionClosed`. A client waits for the server to end the stream, too.

        If it is cancelled, as by `trio.aclose_forcefully`, the connection is closed at once.

        Args:
          code: 1000 to 1003, 1007 to 1014, or 3000 to 4999; default 1000, normal.
          reason: a text of at most 123 bytes in UTF-8, for people. Default: none.

        Raises:
          ValueError: if ``code`` or ``reason`` is invalid.
          TypeError: likewise.
          RuntimeError: if called from another thread.
        """
        said = close_reason(code, reason)
        self.conn._ensure_thread()
        self._say_goodbye(code, said)
        try:
            with trio.move_on_after(self._agreed.close_timeout):
                await self._until(lambda: self._is_closed(self._is_client))
        except BaseException:
            self.conn._drop()
            raise
        self.conn._close()

    def close_nowait(self, code: int = 1000, reason: str = "") -> None:
        """Send a close frame, and close the connection gracefully, without waiting for the
        peer's: for code that cannot await, as in a plain callback. Not a checkpoint.
        Idempotent.

        What ``send_nowait`` left is still sent, ahead of the close frame. Messages that were
        not received are dropped, and tasks that wait for one get a `ConnectionClosed`.

        Args:
          code: as of `aclose`; default 1000, normal.
          reason: as of `aclose`; default: none.

        Raises:
          ValueError: if ``code`` or ``reason`` is invalid.
          TypeError: likewise.
          RuntimeError: if called from another thread.
        """
        said = close_reason(code, reason)
        self.conn._ensure_thread()
        self._say_goodbye(code, said)
        self.conn._close()

    # --- facts ---------------------------------------------------------------

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol that was agreed on; None if none was."""
        return self._agreed.subprotocol

    @property
    def request(self) -> Request:
        """The request of the handshake."""
        request = self._agreed.request
        assert request is not None
        return request

    @property
    def remote_address(self) -> SocketAddress:
        """The peer's address, as `Conn.remote_address`."""
        return self.conn.remote_address

    @property
    def close_code(self) -> int | None:
        """The code of the first close frame, whoever sent it; 1005 if it has none; 1006 if the
        connection ended without one; None while it is open."""
        code: int | None = self._close_state()[0]
        return code

    @property
    def close_reason(self) -> str | None:
        """The text of that frame; None while it is open."""
        code, reason, _ = self._close_state()
        return None if code is None else reason

    def statistics(self) -> WebSocketStatistics:
        """A snapshot of the counters. Not a checkpoint.

        Returns:
          The numbers of messages, bytes, batches and pings.

        Raises:
          RuntimeError: in another thread, while the connection is open.
        """
        self.conn._ensure_thread()
        return websocket_statistics(self._counters())


def _check_stream(conn: object) -> None:
    if not isinstance(conn, trio.abc.Stream):
        raise TypeError(f"conn must be a Conn, or another trio.abc.Stream, not {conn!r}")
