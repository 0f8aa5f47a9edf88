"""A connection of trio-websocket's interface, over one of ours."""

from __future__ import annotations

import itertools
import sys
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, ClassVar, NoReturn

import trio

from trio_wknet import _errors
from trio_wknet._websocket.stream import StreamWebSocket
from trio_wknet.contrib.trio_websocket._values import (
    CloseReason,
    ConnectionClosed,
    Endpoint,
    Headers,
    endpoint_of,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from trio_wknet._websocket.channel import WebSocket

MAX_PAYLOAD = 125  # bytes of a control frame


class WebSocketConnection(trio.abc.AsyncResource):
    """A WebSocket. It is closed at the end of an ``async with`` block.

    Unlike a `trio_wknet.WebSocket` it may be used by several tasks at a time: they take turns.
    """

    CONNECTION_ID: ClassVar[Iterator[int]] = itertools.count()

    def __init__(self, *_: NoReturn, **__: NoReturn) -> None:
        raise TypeError(
            "a WebSocketConnection cannot be constructed; serving and connecting return one"
        )

    _websocket: WebSocket | StreamWebSocket
    _stream: trio.abc.Stream
    _headers: Headers
    _is_client: bool
    _id: int
    _receiving: trio.Lock
    _sending: trio.StrictFIFOLock

    @classmethod
    def _over(
        cls,
        websocket: WebSocket | StreamWebSocket,
        nursery: trio.Nursery,
        headers: Headers,
        *,
        client: bool,
    ) -> WebSocketConnection:
        """After the handshake. What has to be done in the background is, in the nursery."""
        connection = cls.__new__(cls)
        connection._websocket = websocket
        if isinstance(websocket, StreamWebSocket):
            connection._stream = websocket.stream
        else:
            connection._stream = websocket.conn
        connection._headers = headers
        connection._is_client = client
        connection._id = next(cls.CONNECTION_ID)
        connection._receiving = trio.Lock()
        connection._sending = trio.StrictFIFOLock()
        if isinstance(websocket, StreamWebSocket) or not client:
            nursery.start_soon(connection._keep)
        return connection

    async def _keep(self) -> None:
        """Read, where no reactor does. A server ends its stream when the closing handshake is
        done, whatever its application does: the client waits for that."""
        websocket = self._websocket
        if isinstance(websocket, StreamWebSocket):
            await websocket._keep_reading()
            if not self._is_client:
                await websocket._end_early()
        else:
            await websocket._until(lambda: websocket._is_closed(False))
            async with self._sending:
                with suppress(trio.ClosedResourceError, trio.BrokenResourceError):
                    await websocket.conn.send_eof()

    def __str__(self) -> str:
        return f"{'client' if self._is_client else 'server'}-{self._id}"

    # --- facts ---------------------------------------------------------------

    @property
    def closed(self) -> CloseReason | None:
        """Why the connection is closed, or being closed; None while it is open."""
        code = self._websocket.close_code
        if code is None:
            return None
        return CloseReason(code, self._websocket.close_reason or None)

    @property
    def is_client(self) -> bool:
        """Whether this is the client's end."""
        return self._is_client

    @property
    def is_server(self) -> bool:
        """Whether this is the server's end."""
        return not self._is_client

    @property
    def local(self) -> Endpoint | str:
        """This end: an `Endpoint`, or the stream's ``repr()`` if it is not of TCP."""
        return endpoint_of(self._stream, local=True)

    @property
    def remote(self) -> Endpoint | str:
        """The other end, likewise."""
        return endpoint_of(self._stream, local=False)

    @property
    def path(self) -> str | None:
        """The path and the query that were requested."""
        return self._websocket.request.target

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol that was agreed on; None if none was."""
        return self._websocket.subprotocol

    @property
    def handshake_headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """The headers of the peer's handshake, names in lower case, but for the handshake's
        own."""
        return self._headers

    # --- messages ------------------------------------------------------------

    @asynccontextmanager
    async def _turn(self, lock: trio.Lock | trio.StrictFIFOLock) -> AsyncIterator[None]:
        """One task at a time; and our exceptions as trio-websocket's."""
        try:
            lock.acquire_nowait()
        except trio.WouldBlock:
            await lock.acquire()
        try:
            yield
        except _errors.ConnectionClosed as exc:
            raise ConnectionClosed(CloseReason(exc.code, exc.reason or None)) from None
        finally:
            lock.release()

    async def get_message(self) -> str | bytes:
        """Wait for a message, and return it. A checkpoint. Cancellation is atomic: no message
        is consumed.

        Returns:
          A `str` for a text message, `bytes` for a binary one.

        Raises:
          ConnectionClosed: if the peer has closed the connection, or it is broken, and every
              message that came before has been received; or if it was closed here.
        """
        async with self._turn(self._receiving):
            return await self._websocket.receive()

    async def send_message(self, message: str | bytes) -> None:
        """Send a message. A checkpoint.

        Args:
          message: a `str` is sent as text, `bytes` as binary.

        Raises:
          ConnectionClosed: if the connection is closed, or being closed.
          ValueError: if ``message`` is neither.
        """
        if not isinstance(message, (str, bytes)):
            raise ValueError(f"message must be str or bytes, not {message!r}")
        async with self._turn(self._sending):
            await self._websocket.send(message)

    async def ping(self, payload: bytes | None = None) -> None:
        """Send a ping, and wait until the peer has answered it, or a later one. A checkpoint.

        Args:
          payload: at most 125 bytes, other than those of pings that are waited for; by
              default, one of its own.

        Raises:
          ConnectionClosed: if the connection is closed, before or during the call.
          ValueError: if ``payload`` is too long, or that of another ping.
        """
        try:
            await self._websocket.ping(payload)
        except _errors.ConnectionClosed as exc:
            raise ConnectionClosed(CloseReason(exc.code, exc.reason or None)) from None

    async def pong(self, payload: bytes | None = None) -> None:
        """Send a pong that nobody has asked for. A checkpoint.

        Args:
          payload: at most 125 bytes; by default none.

        Raises:
          ConnectionClosed: if the connection is closed.
          ValueError: if ``payload`` is too long.
        """
        data = payload or b""
        if len(data) > MAX_PAYLOAD:
            raise ValueError(f"payload must have at most {MAX_PAYLOAD} bytes, not {len(data)}")
        await trio.lowlevel.checkpoint()
        async with self._turn(self._sending):
            if isinstance(self._websocket, StreamWebSocket):
                await self._websocket._send_pong(data)
                return
            while True:
                try:
                    self._websocket._send_pong(data)
                    return
                except trio.WouldBlock:
                    await self._websocket.conn.wait_send_all_might_not_block()

    # --- the end -------------------------------------------------------------

    async def aclose(self, code: int = 1000, reason: str | None = None) -> None:
        """Close the connection: send a close frame, wait for the peer's, and close the stream.
        A checkpoint. Idempotent.

        If it is cancelled, the stream is closed at once. An exception that is being handled
        stays the one that is raised then.

        Args:
          code: 1000 to 1003, 1007 to 1014, or 3000 to 4999; default 1000, normal.
          reason: a text of at most 123 bytes in UTF-8. Default: none.

        Raises:
          ValueError: if ``code`` or ``reason`` is invalid.
        """
        is_handling = sys.exc_info()[1] is not None
        try:
            await self._websocket.aclose(code, reason or "")
        except trio.Cancelled:
            if not is_handling:
                raise
