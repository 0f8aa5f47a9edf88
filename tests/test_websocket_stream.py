"""WebSockets over streams that are no `Conn`: in memory, over TLS, over Trio's own sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from helpers import PATIENCE, tcp_address, two_conns
from tls_helpers import NAME, client_context, server_context
from trio.testing import memory_stream_pair, wait_all_tasks_blocked
from websocket_model import BINARY, CLOSE, KEY, PING, PONG, TEXT, close_payload, decode, frame
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve

from trio_wknet import (
    Conn,
    ConnectionClosed,
    HandshakeError,
    HandshakeRejected,
    PerMessageDeflate,
    Request,
    Response,
    StreamWebSocket,
    TLSStream,
    WebSocket,
    WebSocketOptions,
    open_engine,
    open_wknet_listener,
)

FORMS = ["memory", "trio", "TLSStream", "SSLStream"]
PLAIN = WebSocketOptions()
KEY_HEADERS = {
    "Host": "a",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}


@asynccontextmanager
async def two_streams(form: str, reactors: int = 0) -> AsyncIterator[Any]:
    if form == "memory":
        yield memory_stream_pair()
        return
    if form == "trio":
        ends = trio.socket.socketpair()
        yield tuple(map(trio.SocketStream, ends))
        return
    kind: Any = TLSStream if form == "TLSStream" else trio.SSLStream
    async with open_engine(reactors) as engine, two_conns(engine) as (client, server):
        yield (
            kind(client, client_context(), server_hostname=NAME),
            kind(server, server_context(), server_side=True),
        )


@asynccontextmanager
async def two_websockets(
    form: str, client: WebSocketOptions = PLAIN, server: WebSocketOptions = PLAIN
) -> AsyncIterator[tuple[StreamWebSocket, StreamWebSocket]]:
    made: dict[str, Any] = {}

    async def connect(stream: trio.abc.Stream) -> None:
        made["client"] = await WebSocket.connect(stream, "ws://a/b?c", options=client)

    async def accept(stream: trio.abc.Stream) -> None:
        made["server"] = await WebSocket.accept(stream, options=server)

    async with two_streams(form) as streams:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connect, streams[0])
            nursery.start_soon(accept, streams[1])
        try:
            yield made["client"], made["server"]
        finally:
            for ws in made.values():
                await trio.aclose_forcefully(ws)


async def close_both(client: StreamWebSocket, server: StreamWebSocket) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.aclose)
        nursery.start_soon(server.aclose)


# --- between two ends ---------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
async def test_messages_both_ways(form: str) -> None:
    async with two_websockets(form) as (client, server):
        assert isinstance(client, StreamWebSocket)
        assert isinstance(server, StreamWebSocket)
        assert server.request == client.request
        assert server.request.target == "/b?c"
        for here, there in ((client, server), (server, client)):
            for message in ("", "ä", b"", b"x" * 65_536, "é" * 100_000):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(here.send, message)
                    assert await there.receive() == message
            await here.send_many(["a", bytearray(b"b"), memoryview(b"c")])
            received: list[Any] = []
            while len(received) < 3:
                received += await there.receive_many()
            assert received == ["a", b"b", b"c"]
        await close_both(client, server)
        assert client.close_code == server.close_code == 1000
        counts = server.statistics()
        assert (counts.messages_received, counts.messages_sent) == (8, 8)
        assert counts.bytes_received == 2 + 65_536 + 200_000 + 3


@pytest.mark.parametrize("form", FORMS)
async def test_a_channel_ends_where_the_peer_closes_it(form: str) -> None:
    async with two_websockets(form) as (client, server):

        async def say() -> None:
            await client.send_many(["1", "2"])
            await client.aclose(1001, "bye")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(say)
            assert [message async for message in server] == ["1", "2"]
            assert (server.close_code, server.close_reason) == (1001, "bye")
            with pytest.raises(ConnectionClosed) as caught:
                await server.send("too late")
            assert (caught.value.code, caught.value.by) == (1001, "peer")
            await server.aclose()
        with pytest.raises(trio.ClosedResourceError) as here:
            await client.receive()
        assert isinstance(here.value, ConnectionClosed)
        assert (here.value.code, here.value.by) == (1001, "local")


@pytest.mark.parametrize("form", FORMS)
async def test_pings_while_somebody_receives(form: str) -> None:
    async with two_websockets(form) as (client, server):

        async def receive() -> None:
            with pytest.raises(ConnectionClosed):
                await server.receive()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            assert await client.ping() >= 0
            async with trio.open_nursery() as pings:
                for payload in (b"a", b"b", b""):
                    pings.start_soon(client.ping, payload)
            assert server.statistics().pings_answered >= 2
            await close_both(client, server)


@pytest.mark.parametrize("form", ["memory", "TLSStream"])
async def test_compressed(form: str) -> None:
    options = WebSocketOptions(compression=PerMessageDeflate(), max_message=10_000)
    text = "all work and no play " * 20
    async with two_websockets(form, options, options) as (client, server):
        for message in (text, "short", text, text.encode()):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send, message)
                assert await server.receive() == message
        assert client.statistics().bytes_sent < len(text)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, "x" * 10_001)
            with pytest.raises(ConnectionClosed) as caught:
                await server.receive()
            assert (caught.value.code, caught.value.by) == (1009, "local")


# --- a peer that is only bytes ------------------------------------------------------------


def over(
    role: Any = "server", **options: Any
) -> tuple[StreamWebSocket, trio.StapledStream[Any, Any]]:
    ours, theirs = memory_stream_pair()
    return StreamWebSocket._over(ours, role, **options), theirs


def masked(opcode: int, payload: bytes = b"", **unusual: Any) -> bytes:
    return frame(opcode, payload, key=KEY, **unusual)


async def test_what_is_unread_is_decoded_first() -> None:
    ws, peer = over(unread=masked(TEXT, b"1") + masked(PING, b"p") + masked(TEXT, b"2")[:3])
    assert ws.receive_nowait() == "1"
    with pytest.raises(trio.WouldBlock):
        ws.receive_many_nowait()
    await peer.send_all(masked(TEXT, b"2")[3:])
    assert await ws.receive() == "2"
    assert decode(bytes(await peer.receive_some()), client=True).pongs == [b"p"]


async def test_a_cancelled_receive_has_taken_nothing() -> None:
    ws, peer = over()
    stream = b"".join(masked(PING, b"%d" % n) + masked(BINARY, b"%d" % n) for n in range(50))

    async def feed() -> None:
        for at in range(0, len(stream), 7):
            await peer.send_all(stream[at : at + 7])
            await trio.lowlevel.checkpoint()

    received: list[Any] = []
    tries = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed)
        while len(received) < 50:
            tries += 1
            with trio.CancelScope() as scope:
                if tries % 3 == 0:
                    scope.cancel()
                else:
                    nursery.start_soon(_cancel_soon, scope, tries % 5)
                received.append(await ws.receive())
    assert received == [b"%d" % n for n in range(50)]
    answer = decode(bytes(await peer.receive_some(1 << 20)), client=True)
    assert answer.pongs[-1] == b"49"
    assert answer.over is None


async def _cancel_soon(scope: trio.CancelScope, steps: int) -> None:
    for _ in range(steps):
        await trio.lowlevel.checkpoint()
    scope.cancel()


class Clogged(trio.abc.Stream):
    """One whose `send_all` waits for `opened` in the middle, and which notes what it sent."""

    def __init__(self) -> None:
        self.opened = trio.Event()
        self.sent = b""
        self.begun = 0
        self.closed = False
        self.incoming, self.from_peer = trio.open_memory_channel[bytes](100)

    async def send_all(self, data: Any) -> None:
        await trio.lowlevel.checkpoint()
        self.begun += 1
        self.sent += data[: len(data) // 2]
        await self.opened.wait()
        self.sent += data[len(data) // 2 :]

    async def wait_send_all_might_not_block(self) -> None:
        await self.opened.wait()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        try:
            return await self.from_peer.receive()
        except trio.EndOfChannel:
            return b""

    async def aclose(self) -> None:
        self.closed = True
        await trio.lowlevel.checkpoint()


async def test_an_answer_waits_for_the_message_that_is_being_sent() -> None:
    stream = Clogged()
    ws = StreamWebSocket._over(stream, "server")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ws.send, "message")
        await wait_all_tasks_blocked()
        await stream.incoming.send(masked(PING, b"p") + masked(TEXT, b"not held up"))
        assert await ws.receive() == "not held up"
        assert stream.begun == 1
        with pytest.raises(trio.BusyResourceError):
            await ws.send("another")
        stream.opened.set()
    assert stream.sent == frame(TEXT, b"message") + frame(PONG, b"p")


async def test_a_message_waits_for_an_answer() -> None:
    stream = Clogged()
    ws = StreamWebSocket._over(stream, "server")
    async with trio.open_nursery() as nursery:
        await stream.incoming.send(masked(PING, b"p") + masked(TEXT, b"1"))
        nursery.start_soon(ws.receive)
        await wait_all_tasks_blocked()
        nursery.start_soon(ws.send, "message")
        await wait_all_tasks_blocked()
        stream.opened.set()
    assert stream.sent == frame(PONG, b"p") + frame(TEXT, b"message")


async def test_a_send_that_is_cancelled_in_the_middle_breaks_it() -> None:
    stream = Clogged()
    ws = StreamWebSocket._over(stream, "server", unread=masked(TEXT, b"came before"))
    with trio.CancelScope() as scope:
        scope.cancel()
        await ws.send("not begun")
    assert stream.begun == 0
    assert ws.close_code is None
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ws.send, "begun")
            await wait_all_tasks_blocked()
            scope.cancel()
    assert stream.begun == 1
    assert await ws.receive() == "came before"
    for call in (ws.receive, partial(ws.send, "more"), ws.ping):
        with pytest.raises(trio.BrokenResourceError) as caught:
            await call()
        assert isinstance(caught.value, ConnectionClosed)
        assert (caught.value.code, caught.value.by) == (1006, "network")
    await ws.aclose()
    assert stream.closed


async def test_a_send_that_is_cancelled_while_it_waits_has_sent_nothing() -> None:
    """Though an answer goes ahead of it, and takes its time."""
    stream = Clogged()
    ws = WebSocket.upgrade(stream, KEY_HEADERS)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ws.send, "never sent")
            await wait_all_tasks_blocked()
            scope.cancel()
            stream.opened.set()
    assert stream.begun == 1
    assert ws.close_code is None
    await ws.send("sent")
    assert stream.sent.endswith(b"\r\n\r\n" + frame(TEXT, b"sent"))


async def test_a_receive_that_is_cancelled_ends_its_answer(autojump_clock: object) -> None:
    stream = Clogged()
    ws = StreamWebSocket._over(stream, "server", close_timeout=5)
    await stream.incoming.send(masked(PING, b"p") + masked(TEXT, b"message"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_open_later, stream)
        with trio.move_on_after(1) as scope:
            assert await ws.receive() == "message"
    assert scope.cancel_called
    assert stream.sent == frame(PONG, b"p")
    assert ws.close_code is None


async def _open_later(stream: Clogged) -> None:
    await trio.sleep(3)
    stream.opened.set()


async def test_a_peer_that_does_not_take_an_answer(autojump_clock: object) -> None:
    stream = Clogged()
    ws = StreamWebSocket._over(stream, "server", close_timeout=5)
    await stream.incoming.send(masked(PING, b"p") + masked(TEXT, b"message"))
    start = trio.current_time()
    assert await ws.receive() == "message"
    assert trio.current_time() - start == 5
    with pytest.raises(ConnectionClosed) as caught:
        await ws.receive()
    assert caught.value.by == "network"
    assert isinstance(caught.value.__cause__, trio.TooSlowError)


@pytest.mark.parametrize("steps", range(6))
@pytest.mark.parametrize("call", ["ping", "aclose", "accept", "connect"])
async def test_cancelling_at_every_step(call: str, steps: int) -> None:
    """What was called ends at once, and the stream can be closed."""
    ours, theirs = memory_stream_pair()
    ws = StreamWebSocket._over(ours, "server")
    calls: dict[str, Any] = {
        "ping": partial(ws.ping, b"p"),
        "aclose": ws.aclose,
        "accept": partial(WebSocket.accept, ours),
        "connect": partial(WebSocket.connect, ours, "ws://a"),
    }
    with trio.fail_after(PATIENCE), trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_soon, scope, steps)
            nursery.start_soon(calls[call])
    assert scope.cancelled_caught
    if call == "ping":
        await theirs.send_all(masked(TEXT, b"goes on"))
        assert await ws.receive() == "goes on"
    await trio.aclose_forcefully(ws)
    with pytest.raises(trio.ClosedResourceError):
        await ours.receive_some()


async def test_one_receiver_at_a_time() -> None:
    ws, peer = over()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ws.receive)
        await wait_all_tasks_blocked()
        for call in (ws.receive, ws.receive_many):
            with pytest.raises(trio.BusyResourceError):
                await call()
        for now in (ws.receive_nowait, ws.receive_many_nowait):
            with pytest.raises(trio.BusyResourceError):
                now()
        await peer.send_all(masked(TEXT, b"one"))


async def test_who_reads_may_be_cancelled_while_others_wait() -> None:
    """Then another task goes on reading: here, the one that waits for its pong."""
    ws, peer = over("client")
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                inner.start_soon(ws.receive)
                await wait_all_tasks_blocked()
                nursery.start_soon(ws.ping, b"p")
                await wait_all_tasks_blocked()
                scope.cancel()
        assert decode(bytes(await peer.receive_some())).pings == [b"p"]
        await peer.send_all(frame(TEXT, b"message") + frame(PONG, b"p"))
    assert ws.receive_nowait() == "message"


async def test_a_ping_does_not_gather_messages_without_end() -> None:
    ws, peer = over("client")
    message = frame(BINARY, bytes(60_000))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ws.ping, b"p")
        await wait_all_tasks_blocked()
        for _ in range(5):
            await peer.send_all(message)
            await wait_all_tasks_blocked()
        await peer.send_all(frame(PONG, b"p"))
        await wait_all_tasks_blocked()
        assert ws.statistics().messages_waiting == 2
        received = 0
        while received < 5:
            received += len(await ws.receive_many())


async def test_closing_wakes_who_receives() -> None:
    ws, peer = over()
    async with trio.open_nursery() as nursery:

        async def receive() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await ws.receive()

        nursery.start_soon(receive)
        nursery.start_soon(receive_pong, ws)
        await wait_all_tasks_blocked()
        nursery.start_soon(ws.aclose)
        await wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1  # the closing handshake
        await peer.send_all(masked(TEXT, b"dropped") + masked(CLOSE, close_payload(1000)))
        await peer.send_eof()
    assert decode(bytes(await peer.receive_some()), client=True).over == (1, 1000)
    assert ws.close_code == 1000
    await ws.aclose()


async def receive_pong(ws: StreamWebSocket) -> None:
    with pytest.raises(trio.ClosedResourceError):
        await ws.ping()


async def test_closing_is_bounded(autojump_clock: object) -> None:
    stream = Clogged()
    ws = StreamWebSocket._over(stream, "server", close_timeout=5)
    start = trio.current_time()
    await ws.aclose()
    assert stream.closed
    assert trio.current_time() - start == 5
    ws, _ = over(close_timeout=5)
    start = trio.current_time()
    await ws.aclose()
    assert trio.current_time() - start == 5
    assert (ws.close_code, ws.close_reason) == (1000, "")


async def test_closing_that_is_cancelled_closes_the_stream() -> None:
    ws, peer = over()
    await trio.aclose_forcefully(ws)
    with pytest.raises(trio.ClosedResourceError):
        await ws.stream.receive_some()
    with pytest.raises(trio.ClosedResourceError):
        await ws.send("no")
    await peer.aclose()


async def test_messages_on_a_connection_that_is_half_broken_are_received() -> None:
    """A pong that cannot be sent does not take them along, nor the peer's goodbye."""
    ws, peer = over("client")
    await peer.receive_stream.aclose()
    received: list[Any] = []

    async def receive() -> None:
        received.append(await ws.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await peer.send_all(frame(PING, b"p"))
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BrokenResourceError):
            await ws.send("no")
        await peer.send_all(frame(TEXT, b"1"))
    await peer.send_all(frame(TEXT, b"2") + frame(CLOSE, close_payload(4000)))
    assert received == ["1"]
    assert await ws.receive() == "2"
    with pytest.raises(ConnectionClosed) as caught:
        await ws.receive()
    assert (caught.value.code, caught.value.by) == (4000, "peer")
    await ws.aclose()


@pytest.mark.parametrize("ending", ["end", "closed here"])
async def test_an_end_without_a_close_frame(ending: str) -> None:
    ws, peer = over()
    await peer.send_all(masked(TEXT, b"whole") + masked(TEXT, b"not whole")[:-1])
    if ending == "end":
        await peer.aclose()
        assert await ws.receive() == "whole"
    else:
        assert await ws.receive() == "whole"
        await ws.stream.aclose()
    with pytest.raises(ConnectionClosed) as caught:
        await ws.receive()
    assert caught.value.code == ws.close_code == 1006
    assert caught.value.by == ("network" if ending == "end" else "local")
    assert isinstance(caught.value, trio.ClosedResourceError) == (ending != "end")
    await ws.aclose()
    assert ws.close_code == 1006


# --- handshakes ---------------------------------------------------------------------------


REQUEST = (
    b"GET /chat HTTP/1.1\r\n"
    + "".join(f"{name}: {value}\r\n" for name, value in KEY_HEADERS.items()).encode()
    + b"\r\n"
)


async def accepted(data: bytes, step: int, **options: Any) -> tuple[StreamWebSocket | None, bytes]:
    """What becomes of a client's bytes, that come by `step`; and what it gets."""
    ours, theirs = memory_stream_pair()
    made: list[StreamWebSocket | None] = []

    async def accept() -> None:
        made.append(await WebSocket.accept(ours, **options))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        for at in range(0, len(data), step):
            await theirs.send_all(data[at : at + step])
            await wait_all_tasks_blocked()
    return made[0], bytes(await theirs.receive_some(1 << 20))


@pytest.mark.parametrize("step", [1, 7, 1000])
async def test_what_is_behind_the_request_is_decoded_first(step: int) -> None:
    behind = masked(TEXT, b"1") + masked(PING, b"p") + masked(TEXT, b"2")
    seen: list[Request] = []
    ours, theirs = memory_stream_pair()
    made: list[Any] = []

    async def accept() -> None:
        ws = await WebSocket.accept(ours, on_request=seen.append)
        assert ws is not None
        made.extend([ws, await ws.receive(), await ws.receive()])

    stream = REQUEST + behind
    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        for at in range(0, len(stream), step):
            await theirs.send_all(stream[at : at + step])
            await wait_all_tasks_blocked()
    assert made[1:] == ["1", "2"]
    assert made[0].request is seen[0]
    answer = bytes(await theirs.receive_some(1 << 20))
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
    assert rest == frame(PONG, b"p")


async def test_refusals() -> None:
    ws, answer = await accepted(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 1000)
    assert ws is None
    assert answer.startswith(b"HTTP/1.1 426 ")
    ws, answer = await accepted(b"nonsense\r\n\r\n", 1000)
    assert ws is None
    assert answer.startswith(b"HTTP/1.1 400 ")
    ws, answer = await accepted(REQUEST, 1000, on_request=lambda _: Response(404, b"no"))
    assert ws is None
    assert answer.startswith(b"HTTP/1.1 404 ")
    options = WebSocketOptions(max_header=256)
    long = b"GET / HTTP/1.1\r\nHost: " + b"a" * 400
    for data in (long, long + b"\r\n\r\n"):
        ws, answer = await accepted(data, 100, options=options)
        assert ws is None
        assert answer.startswith(b"HTTP/1.1 431 ")


async def test_a_client_that_goes_or_stalls(autojump_clock: object) -> None:
    ours, theirs = memory_stream_pair()
    await theirs.send_all(REQUEST[:20])
    await theirs.aclose()
    assert await WebSocket.accept(ours) is None
    ours, theirs = memory_stream_pair()
    assert await WebSocket.accept(ours, options=WebSocketOptions(handshake_time=2)) is None
    assert trio.current_time() > 0


async def test_a_server_that_refuses_or_goes() -> None:
    ours, theirs = memory_stream_pair()
    await theirs.send_all(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 403 No\r\nA: b\r\n")
    await theirs.send_all(b"Content-Length: 4\r\n\r\nbody")
    with pytest.raises(HandshakeRejected) as caught:
        await WebSocket.connect(ours, "wss://a")
    assert (caught.value.status, caught.value.body) == (403, b"body")
    assert ("a", "b") in caught.value.headers
    ours, theirs = memory_stream_pair()
    await theirs.aclose()
    with pytest.raises(HandshakeError):
        await WebSocket.connect(ours, "ws://a")
    ours, theirs = memory_stream_pair()
    await theirs.send_all(b"HTTP/1.1 101 " + b"x" * 10_000)
    with pytest.raises(HandshakeError, match="8192"):
        await WebSocket.connect(ours, "ws://a")


async def test_upgrading_sends_the_answer_with_what_comes_first() -> None:
    ours, theirs = memory_stream_pair()
    ws = WebSocket.upgrade(ours, KEY_HEADERS, "/x", unread=masked(TEXT, b"1"))
    assert isinstance(ws, StreamWebSocket)
    assert ws.request.target == "/x"
    await ws.send("hello")
    head, _, rest = bytes(await theirs.receive_some()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    assert rest == b"" or rest == frame(TEXT, b"hello")
    assert rest or bytes(await theirs.receive_some()) == frame(TEXT, b"hello")
    assert ws.receive_nowait() == "1"
    ws = WebSocket.upgrade(memory_stream_pair()[0], KEY_HEADERS)
    with trio.CancelScope() as scope:
        scope.cancel()
        await ws.receive()
    assert ws._wire.is_due()
    with pytest.raises(HandshakeError):
        WebSocket.upgrade(ours, {"Host": "a"})


async def test_what_cannot_be_meant() -> None:
    ws, _ = over()
    for wrong in (None, 1, ["a"]):
        with pytest.raises(TypeError, match="message"):
            await ws.send(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"messages\[1\]"):
            await ws.send_many(["a", wrong])  # type: ignore[list-item]
    for none in ("abc", b"abc", 3):
        with pytest.raises(TypeError, match="messages must be"):
            await ws.send_many(none)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="surrogates"):
        await ws.send("\ud800")
    with pytest.raises(TypeError, match="contiguous"):
        await ws.send(memoryview(b"abcd")[::2])
    for most, error in ((0, ValueError), ("1", TypeError), (True, TypeError)):
        with pytest.raises(error, match="max_messages"):
            ws.receive_many_nowait(most)  # type: ignore[arg-type]
    for code in (999, 1005, 5000):
        with pytest.raises(ValueError, match="code"):
            await ws.aclose(code)
    with pytest.raises(ValueError, match="payload"):
        await ws.ping(bytes(126))
    with pytest.raises(TypeError, match="cannot be constructed"):
        StreamWebSocket()
    with pytest.raises(TypeError, match=r"trio\.abc\.Stream"):
        await WebSocket.accept(3)  # type: ignore[call-overload]
    assert ws.close_code is None
    assert "open over" in repr(ws)


# --- the websockets library, over TLS -------------------------------------------------------


@pytest.mark.parametrize("reactors", [0, 1])
async def test_the_websockets_library_as_client(reactors: int) -> None:
    def talk(port: int) -> None:
        sock = socket.create_connection(("127.0.0.1", port), PATIENCE)
        with connect(
            f"wss://{NAME}/", sock=sock, ssl=client_context(), server_hostname=NAME, max_size=None
        ) as theirs:
            for message in ("hello", b"bytes", "é" * 40_000):
                theirs.send(message)
                assert theirs.recv(PATIENCE) == message
            assert theirs.ping().wait(PATIENCE)
            theirs.close(4000, "enough")

    codes: list[Any] = []

    async def serve(conn: Conn) -> None:
        stream = TLSStream(conn, server_context(), server_side=True)
        options = WebSocketOptions(compression=PerMessageDeflate())
        ws = await WebSocket.accept(stream, options=options)
        assert ws is not None
        with pytest.raises(ConnectionClosed):
            while True:
                await ws.send(await ws.receive())
        codes.append((ws.close_code, ws.close_reason))
        await ws.aclose()

    async with open_wknet_listener("tcp://127.0.0.1:0", reactors=reactors) as listener:
        async with trio.open_nursery() as nursery:
            await nursery.start(listener.serve, serve)
            await trio.to_thread.run_sync(talk, tcp_address(listener)[1])
            await listener.drain()
            nursery.cancel_scope.cancel()
    assert codes == [(4000, "enough")]


@pytest.mark.parametrize("reactors", [0, 1])
async def test_the_websockets_library_as_server(reactors: int) -> None:
    def shout(theirs: ServerConnection) -> None:
        for message in theirs:
            theirs.send(message)

    with serve(shout, "127.0.0.1", 0, ssl=server_context()) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            port = server.socket.getsockname()[1]
            async with open_engine(reactors) as engine:
                conn = await engine.connect(f"tcp://127.0.0.1:{port}")
                stream = TLSStream(conn, client_context(), server_hostname=NAME)
                options = WebSocketOptions(compression=PerMessageDeflate())
                ws = await WebSocket.connect(stream, f"wss://{NAME}:{port}/", options=options)
                assert isinstance(ws, StreamWebSocket)
                for message in ("hello", b"bytes", "é" * 40_000):
                    await ws.send(message)
                    assert await ws.receive() == message
                assert await ws.ping() >= 0
                await ws.aclose(4000, "enough")
        finally:
            server.shutdown()
            thread.join()
