"""Event mode's Python half for WebSockets: the handshake, and what bounds its time. The native
half decides when it is tried, and which callback is due (`message_events.pyx`)."""

from __future__ import annotations

import inspect
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import trio

from trio_wknet._errors import DelimiterNotFound, IncompleteRead
from trio_wknet._events import Serving
from trio_wknet._native.trio.latch import Latch
from trio_wknet._native.trio.message_events import MessageServer
from trio_wknet._websocket.channel import WebSocket
from trio_wknet._websocket.handshake import END_OF_HEADER, Refused, ServerSide
from trio_wknet._websocket.http import plain
from trio_wknet._websocket.opening import check_answer, opened

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_wknet._conn import Conn
    from trio_wknet._listener import Listener
    from trio_wknet._websocket.http import Request, Response
    from trio_wknet._websocket.opening import OnRequest
    from trio_wknet._websocket.options import WebSocketOptions


_LATER = 0.02  # seconds; so that many late handshakes are ended by one wake


class MessageServing(Serving, MessageServer):
    """One `WebSocketListener.serve_messages`."""

    def __init__(
        self,
        listener: Listener,
        nursery: trio.Nursery,
        options: WebSocketOptions,
        path: str | None,
        on_messages: Callable[[WebSocket, list[str | bytes]], Awaitable[object] | None],
        on_connect: Callable[[WebSocket], Awaitable[object] | None] | None,
        on_close: Callable[[WebSocket, int, str], Awaitable[object] | None] | None,
        on_error: Callable[[WebSocket, Exception], object] | None,
        on_request: OnRequest | None,
    ) -> None:
        self._told = Latch(listener._core)
        self._listener = listener
        self._options = options
        self._path = path
        self._on_connect = on_connect
        self._on_request = on_request
        self._nursery = nursery
        self._watching: trio.CancelScope | None = None
        MessageServer.__init__(
            self,
            listener,
            nursery,
            self._shake,
            self._watch,
            options.handshake_time,
            partial(WebSocket.__new__, WebSocket),
            on_messages,
            on_close,
            on_error,
            self._tell,
        )

    async def serve(self) -> None:
        try:
            await super().serve()
        finally:
            if self._watching is not None:
                self._watching.cancel()

    # --- the time of handshakes ----------------------------------------------

    def _watch(self) -> None:
        """A handshake begins: have the task run that ends late ones. It sleeps until the
        first may be late, so it is started no more often than that."""
        if self._watching is None:
            self._nursery.start_soon(self._close_when_late)
            self._watching = trio.CancelScope()

    async def _close_when_late(self) -> None:
        assert self._watching is not None
        with self._watching:
            while (seconds := self._close_late()) is not None:  # noqa: ASYNC110
                await trio.sleep(seconds + _LATER)
        self._watching = None

    # --- a handshake ---------------------------------------------------------

    def _shake(self, conn: Conn) -> Awaitable[object] | None:
        """Go on with a handshake; it is called again when more of it has come."""
        options = self._options
        try:
            header = conn.receive_until_nowait(END_OF_HEADER, options.max_header)
        except trio.WouldBlock:
            return None
        except DelimiterNotFound:
            header = None
        except (IncompleteRead, trio.BrokenResourceError):
            conn.close_nowait()
            return None
        self._end_handshake(conn)
        side = ServerSide(options, self._path)
        try:
            if header is None:
                raise Refused(plain(431, f"at most {options.max_header} bytes"))
            request = side.read(header + END_OF_HEADER)
            answer = None if self._on_request is None else self._on_request(request)
            if inspect.isawaitable(answer):
                return self._shake_later(conn, side, request, answer)
            return self._open(conn, side, request, answer)
        except Refused as refused:
            return self._refuse(conn, side, refused.response)

    async def _shake_later(
        self, conn: Conn, side: ServerSide, request: Request, answer: Awaitable[Response | None]
    ) -> None:
        """The same, where ``on_request`` is an async function."""
        try:
            awaitable = self._open(conn, side, request, await answer)
        except Refused as refused:
            awaitable = self._refuse(conn, side, refused.response)
        if awaitable is not None:
            await awaitable

    def _open(
        self, conn: Conn, side: ServerSide, request: Request, answer: Response | None
    ) -> Awaitable[object] | None:
        """Make it a WebSocket, unless the application has answered.

        Raises:
          Refused: if it has, or the request cannot become one.
        """
        check_answer(answer)
        if answer is not None:
            raise Refused(answer)
        handshake, response = side.accept(request)
        try:
            websocket = opened(conn, "server", self._options, request, handshake, unsent=response)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            conn.close_nowait()
            return None
        assert isinstance(websocket, WebSocket)
        self._begin_messages(conn)
        return None if self._on_connect is None else self._on_connect(websocket)

    def _refuse(self, conn: Conn, side: ServerSide, response: Response) -> Awaitable[object] | None:
        """Answer, and close the connection behind that."""
        data = side.answer(response)
        try:
            conn.send_nowait(data)
        except (trio.WouldBlock, ValueError):
            return self._send_refusal(conn, data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        conn.close_nowait()
        return None

    async def _send_refusal(self, conn: Conn, data: bytes) -> None:
        """The same for one that is larger than ``limits.outbound``."""
        with (
            trio.move_on_after(self._options.handshake_time),
            suppress(trio.BrokenResourceError, trio.ClosedResourceError),
        ):
            await conn.send_all(data)
        conn.close_nowait()
