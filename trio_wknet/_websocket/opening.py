"""Opening a WebSocket over a connection, or another stream: the handshake's bytes in and out."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Literal

import attrs
import h11
import trio

from trio_wknet._conn import Conn
from trio_wknet._errors import DelimiterNotFound, HandshakeError, HandshakeRejected, IncompleteRead
from trio_wknet._websocket.buffered import BufferedStream
from trio_wknet._websocket.channel import WebSocket
from trio_wknet._websocket.deflate import coders
from trio_wknet._websocket.handshake import (
    END_OF_HEADER,
    BadResponse,
    ClientSide,
    Handshake,
    Refused,
    ServerSide,
)
from trio_wknet._websocket.http import Request, Response, check_headers, plain
from trio_wknet._websocket.stream import StreamWebSocket

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from trio_wknet._websocket.deflate import Deflater, Inflater
    from trio_wknet._websocket.http import HeaderList
    from trio_wknet._websocket.options import WebSocketOptions
    from trio_wknet._websocket.url import URL

    OnRequest = Callable[[Request], Response | Awaitable[Response | None] | None]

MAX_REFUSAL = 65_536  # bytes of a refusal's body that are kept


def source_of(stream: trio.abc.Stream) -> Conn | BufferedStream:
    """What a handshake is received from."""
    return stream if isinstance(stream, Conn) else BufferedStream(stream)


def opened(
    source: Conn | BufferedStream,
    role: Literal["server", "client"],
    options: WebSocketOptions,
    request: Request,
    handshake: Handshake,
    *,
    unread: bytes = b"",
    unsent: bytes = b"",
) -> WebSocket | StreamWebSocket:
    """A WebSocket, after a handshake up to sending a response."""
    compression: tuple[Inflater, Deflater] | tuple[None, None] = (None, None)
    if handshake.compression is not None and options.compression is not None:
        compression = coders(
            handshake.compression,
            options.compression,
            server=role == "server",
            max_message=options.max_message,
        )
    agreed: Any = {
        "max_message": options.max_message,
        "max_fragments": options.max_fragments,
        "close_timeout": options.close_time,
        "subprotocol": handshake.subprotocol,
        "request": request,
        "compression": compression,
    }
    if isinstance(source, Conn):
        if unsent:
            source.send_nowait(unsent)
        return WebSocket._over(
            source,
            role,
            unread=unread,
            ping_interval=options.ping_interval,
            ping_timeout=options.ping_timeout,
            **agreed,
        )
    return StreamWebSocket._over(
        source.stream, role, unread=unread + source.take(), unsent=unsent, **agreed
    )


# --- the server's side --------------------------------------------------------------------


async def accept(
    stream: trio.abc.Stream,
    path: str | None,
    options: WebSocketOptions,
    on_request: OnRequest | None,
) -> WebSocket | StreamWebSocket | None:
    """Answer one request. None if it has not become a WebSocket: then it was answered, if
    that was possible."""
    side = ServerSide(options, path)
    source = source_of(stream)
    try:
        request = await read_request(source, side)
        if request is None:
            return None
        if on_request is not None:
            await _ask(on_request, request)
        handshake, response = side.accept(request)
    except Refused as refused:
        await answer(source, side, refused.response)
        return None
    return await accepted(source, options, request, handshake, response)


async def accepted(
    source: Conn | BufferedStream,
    options: WebSocketOptions,
    request: Request,
    handshake: Handshake,
    response: bytes,
) -> WebSocket | StreamWebSocket | None:
    """A WebSocket, after its response was sent; None if that could not be."""
    try:
        websocket = opened(source, "server", options, request, handshake, unsent=response)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return None
    if isinstance(websocket, StreamWebSocket) and not await websocket._send_response():
        return None
    return websocket


@attrs.define
class Proposal:
    """A proper request that was not answered yet."""

    stream: trio.abc.Stream
    source: Conn | BufferedStream
    side: ServerSide
    request: Request

    async def accept(self, more: HeaderList) -> WebSocket | StreamWebSocket | None:
        """A WebSocket, with more headers in the response; None if the client has gone."""
        handshake, response = self.side.accept(self.request, more)
        return await accepted(self.source, self.side.options, self.request, handshake, response)

    async def refuse(self, response: Response) -> None:
        await answer(self.source, self.side, response)


async def receive_proposal(stream: trio.abc.Stream, options: WebSocketOptions) -> Proposal | None:
    """None if no proper request came; it was answered, if that was possible."""
    side = ServerSide(options, None)
    source = source_of(stream)
    try:
        request = await read_request(source, side)
        if request is None:
            return None
        side.check(request)
    except Refused as refused:
        await answer(source, side, refused.response)
        return None
    return Proposal(stream, source, side, request)


def upgrade(
    stream: trio.abc.Stream,
    headers: HeaderList,
    target: str,
    unread: bytes,
    options: WebSocketOptions,
) -> WebSocket | StreamWebSocket:
    """Answer a request that was read already."""
    side = ServerSide(options, None)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    try:
        request = side.read(f"GET {target} HTTP/1.1\r\n{lines}\r\n".encode("latin-1"))
        handshake, response = side.accept(request)
    except Refused as refused:
        raise HandshakeError(refused.response.body.decode().strip()) from None
    return opened(
        source_of(stream), "server", options, request, handshake, unread=unread, unsent=response
    )


async def read_request(source: Conn | BufferedStream, side: ServerSide) -> Request | None:
    """The request; None if none came."""
    header: bytes | None = None
    with trio.move_on_after(side.options.handshake_time):
        try:
            header = await source.receive_until(END_OF_HEADER, side.options.max_header)
        except DelimiterNotFound:
            raise Refused(plain(431, f"at most {side.options.max_header} bytes")) from None
        except (IncompleteRead, trio.BrokenResourceError, trio.ClosedResourceError):
            return None
    return None if header is None else side.read(header + END_OF_HEADER)


async def _ask(on_request: OnRequest, request: Request) -> None:
    """Let the application answer.

    Raises:
      Refused: with its answer, if it has one.
    """
    answer = on_request(request)
    if inspect.isawaitable(answer):
        answer = await answer
    check_answer(answer)
    if answer is not None:
        raise Refused(answer)


def check_answer(answer: object) -> None:
    if answer is not None and not isinstance(answer, Response):
        raise TypeError(f"on_request must return a Response or None, not {answer!r}")


async def answer(source: Conn | BufferedStream, side: ServerSide, response: Response) -> None:
    """Send a response that is not an upgrade, in as much time as the handshake has."""
    data = side.answer(response)
    with trio.move_on_after(side.options.handshake_time):
        try:
            await source.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return


# --- the client's side --------------------------------------------------------------------


async def connect(
    stream: trio.abc.Stream,
    url: URL,
    headers: Mapping[str, str] | Iterable[tuple[str, str]],
    options: WebSocketOptions,
) -> WebSocket | StreamWebSocket:
    """Ask for a WebSocket over a connection, as `connect_and_tell` does."""
    websocket, _ = await connect_and_tell(stream, url, headers, options)
    return websocket


async def connect_and_tell(
    stream: trio.abc.Stream,
    url: URL,
    headers: Mapping[str, str] | Iterable[tuple[str, str]],
    options: WebSocketOptions,
) -> tuple[WebSocket | StreamWebSocket, HeaderList]:
    """Ask for a WebSocket over a connection; also, the headers of the response.

    Raises:
      HandshakeRejected: if the server answers something else.
      HandshakeError: if it gives no proper answer.
    """
    side = ClientSide(options, url.authority, url.target, check_headers(headers, "headers"))
    request, data = side.request()
    source = source_of(stream)
    try:
        await source.send_all(data)
        handshake = None
        while handshake is None:  # interim responses
            header = await source.receive_until(END_OF_HEADER, options.max_header)
            handshake = side.read(header + END_OF_HEADER)
    except DelimiterNotFound:
        raise HandshakeError(
            f"the server's answer has a header of more than {options.max_header} bytes"
        ) from None
    except (IncompleteRead, trio.BrokenResourceError) as exc:
        raise HandshakeError("the connection ended before the server answered") from exc
    except BadResponse as exc:
        raise HandshakeError(str(exc)) from None
    if not isinstance(handshake, Handshake):
        raise await _rejection(source, side, handshake)
    return opened(source, "client", options, request, handshake), handshake.headers


async def _rejection(
    source: Conn | BufferedStream, side: ClientSide, response: h11.Response
) -> HandshakeRejected:
    body = b""
    try:
        while len(body) < MAX_REFUSAL and (part := side.next_of_body()) is not None:
            if not part:
                side.feed_body(await source.receive_some())
            body += part
    except trio.BrokenResourceError:
        pass  # what came will do
    headers: HeaderList = tuple(
        (name.decode("latin-1"), value.decode("latin-1")) for name, value in response.headers
    )
    return HandshakeRejected(response.status_code, headers, body[:MAX_REFUSAL])
