"""Opening WebSockets: listeners, clients, what is refused, and other libraries as peers."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
import trio
import trio_websocket
from helpers import PATIENCE, http_connection, tcp_address, until
from trio.testing import wait_all_tasks_blocked
from websockets.sync import client as their_client

from trio_wknet import (
    Conn,
    ConnectionClosed,
    Engine,
    HandshakeError,
    HandshakeRejected,
    PerMessageDeflate,
    Request,
    Response,
    WebSocket,
    WebSocketListener,
    WebSocketOptions,
    open_websocket,
    open_wknet_listener,
)

in_thread = trio.to_thread.run_sync
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
PLAIN = WebSocketOptions()
SHORT = WebSocketOptions(handshake_time=0.05)


async def shout(websocket: WebSocket) -> None:
    async for message in websocket:
        await websocket.send(message.upper())


@asynccontextmanager
async def serving(
    engine: Engine,
    handler: Callable[[WebSocket], Any] = shout,
    *,
    address: str = "ws://127.0.0.1:0",
    options: WebSocketOptions = PLAIN,
    on_request: Any = None,
) -> AsyncIterator[WebSocketListener]:
    async with open_wknet_listener(address, engine=engine, websocket=options) as listener:
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(listener.serve, handler, on_request=on_request))
            yield listener
            nursery.cancel_scope.cancel()


def url(listener: WebSocketListener, rest: str = "") -> str:
    host, port = tcp_address(listener.listener)
    return f"ws://{host}:{port}{rest}"


def dial(listener: WebSocketListener) -> socket.socket:
    sock = socket.create_connection(tcp_address(listener.listener), PATIENCE)
    sock.settimeout(PATIENCE)
    return sock


def read_to_the_end(sock: socket.socket) -> bytes:
    with sock, sock.makefile("rb") as file:
        return file.read()


def ask(listener: WebSocketListener, method: str, target: str) -> tuple[int, bytes, Any]:
    connection = http_connection(listener.address)
    connection.request(method, target)
    with connection.getresponse() as response:
        return response.status, response.read(), response.headers


# --- a listener and a client --------------------------------------------------------------


async def test_messages_both_ways(engine: Engine) -> None:
    async with serving(engine) as listener:
        assert isinstance(listener, WebSocketListener)
        async with open_websocket(url(listener), engine=engine) as websocket:
            await websocket.send("hello")
            assert await websocket.receive() == "HELLO"
            await websocket.send(b"bytes")
            assert await websocket.receive() == b"BYTES"
        assert websocket.close_code == 1000


async def test_each_end_knows_what_was_agreed(engine: Engine) -> None:
    seen: list[WebSocket] = []

    async def handler(websocket: WebSocket) -> None:
        seen.append(websocket)
        await shout(websocket)

    options = WebSocketOptions(subprotocols=["a", "b"])
    async with serving(engine, handler, options=options) as listener:
        opening = open_websocket(
            url(listener, "/room?id=1"),
            engine=engine,
            subprotocols=["c", "b"],
            headers={"Cookie": "x=y"},
        )
        async with opening as websocket:
            await websocket.send("hello")
            assert await websocket.receive() == "HELLO"
            assert websocket.subprotocol == seen[0].subprotocol == "b"
            assert seen[0].request == websocket.request
            assert (seen[0].request.path, seen[0].request.query) == ("/room", "id=1")
            assert seen[0].request.header("cookie") == "x=y"
            assert seen[0].remote_address == websocket.conn.local_address


async def test_trio_wknets_own_engine_is_the_default() -> None:
    async with open_wknet_listener("ws://127.0.0.1:0") as opened, trio.open_nursery() as nursery:
        listener: Any = opened
        await nursery.start(listener.serve, shout)
        async with open_websocket(url(listener)) as websocket:
            await websocket.send("hello")
            assert await websocket.receive() == "HELLO"
        nursery.cancel_scope.cancel()


async def test_messages_in_the_packet_of_the_handshake(engine: Engine) -> None:
    frame = b"\x81\x85\0\0\0\0hello"
    async with serving(engine) as listener:
        with dial(listener) as sock:
            await in_thread(sock.sendall, UPGRADE + frame + frame)
            with sock.makefile("rb") as file:
                lines = await in_thread(lambda: [file.readline() for _ in range(5)])
                assert lines[0].startswith(b"HTTP/1.1 101")
                assert lines[-1] == b"\r\n"
                assert await in_thread(file.read, 14) == b"\x81\x05HELLO\x81\x05HELLO"


async def test_messages_in_the_packet_of_the_answer(engine: Engine) -> None:
    async def eager(websocket: WebSocket) -> None:
        websocket.send_nowait("first")
        await websocket.send("second")

    async with serving(engine, eager) as listener:
        async with open_websocket(url(listener), engine=engine) as websocket:
            assert [message async for message in websocket] == ["first", "second"]


async def test_a_request_byte_by_byte(engine: Engine) -> None:
    async with serving(engine) as listener:
        with dial(listener) as sock:
            for byte in UPGRADE:
                await in_thread(sock.sendall, bytes([byte]))
            assert (await in_thread(sock.recv, 12)) == b"HTTP/1.1 101"


async def test_a_unix_socket(engine: Engine, tmp_path: Any) -> None:
    address = f"unix://{tmp_path}/socket"
    async with serving(engine, address=address):
        conn = await engine.connect(address)
        websocket = await WebSocket.connect(conn, "ws://example.org/")
        await websocket.send("hello")
        assert await websocket.receive() == "HELLO"
        await websocket.aclose()


# --- what is not a WebSocket --------------------------------------------------------------


async def test_plain_requests_are_answered_by_the_application(engine: Engine) -> None:
    seen: list[Request] = []

    async def on_request(request: Request) -> Response | None:
        seen.append(request)
        await trio.lowlevel.checkpoint()
        if request.path == "/health":
            return Response(200, b"fine", {"Content-Type": "text/plain"})
        return None

    async with serving(engine, on_request=on_request) as listener:
        status, body, headers = await in_thread(ask, listener, "GET", "/health?x=1")
        assert (status, body) == (200, b"fine")
        assert headers["Content-Type"] == "text/plain"
        assert (await in_thread(ask, listener, "HEAD", "/health"))[:2] == (200, b"")
        status, body, headers = await in_thread(ask, listener, "GET", "/else")
        assert (status, headers["Sec-WebSocket-Version"]) == (426, "13")
        assert [request.target for request in seen] == ["/health?x=1", "/health", "/else"]
        assert not seen[0].is_upgrade
        async with open_websocket(url(listener), engine=engine) as websocket:
            await websocket.send("hello")
            assert await websocket.receive() == "HELLO"
        assert seen[3].is_upgrade


async def test_the_application_can_refuse(engine: Engine) -> None:
    def on_request(request: Request) -> Response | None:
        return Response(401, b"who are you?", {"X-Reason": "none"})

    async with serving(engine, on_request=on_request) as listener:
        with pytest.raises(HandshakeRejected, match="401") as caught:
            async with open_websocket(url(listener), engine=engine):
                raise AssertionError
        assert (caught.value.status, caught.value.body) == (401, b"who are you?")
        assert ("x-reason", "none") in caught.value.headers


async def test_what_the_application_must_return(engine: Engine) -> None:
    listener = await engine.listen("ws://127.0.0.1:0", websocket=WebSocketOptions())
    says = "on_request must return a Response or None"
    with pytest.RaisesGroup(pytest.RaisesGroup(pytest.RaisesExc(TypeError, match=says))):
        async with trio.open_nursery() as nursery:
            wrong: Any = lambda request: "no"  # noqa: E731
            await nursery.start(partial(listener.serve, shout, on_request=wrong))
            with dial(listener) as sock:
                await in_thread(sock.sendall, UPGRADE)
                await trio.sleep_forever()


async def test_a_path(engine: Engine) -> None:
    async with serving(engine, address="ws://127.0.0.1:0/chat") as listener:
        async with open_websocket(url(listener, "/chat?x"), engine=engine) as websocket:
            await websocket.send("hello")
            assert await websocket.receive() == "HELLO"
        with pytest.raises(HandshakeRejected, match="404"):
            async with open_websocket(url(listener), engine=engine):
                raise AssertionError


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"rubbish\r\n\r\n", 400),
        (UPGRADE.replace(b"13", b"12"), 426),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 9000, 431),
        (UPGRADE.replace(b"\r\n\r\n", b"\r\nContent-Length: 9\r\n\r\n"), 413),
    ],
)
async def test_what_is_refused_gets_an_answer(engine: Engine, sent: bytes, status: int) -> None:
    async with serving(engine) as listener:
        with dial(listener) as sock:
            await in_thread(sock.sendall, sent)
            answer = await in_thread(read_to_the_end, sock)
            assert answer.startswith(f"HTTP/1.1 {status} ".encode())
            assert b"\r\nConnection: close\r\n" in answer
        async with open_websocket(url(listener), engine=engine) as websocket:
            await websocket.send("still there")
            assert await websocket.receive() == "STILL THERE"


@pytest.mark.parametrize("sent", [b"", b"GET / HT", UPGRADE[:-2]])
async def test_a_handshake_that_does_not_end(engine: Engine, sent: bytes) -> None:
    async with serving(engine, options=SHORT) as listener:
        with dial(listener) as sock:
            await in_thread(sock.sendall, sent)
            assert await in_thread(read_to_the_end, sock) == b""


@pytest.mark.parametrize("sent", [b"", b"GET / HT", UPGRADE])
async def test_a_peer_that_leaves(engine: Engine, sent: bytes) -> None:
    async with serving(engine) as listener:
        for _ in range(3):
            with dial(listener) as sock:
                await in_thread(sock.sendall, sent)
        async with open_websocket(url(listener), engine=engine) as websocket:
            await websocket.send("hello")
            assert await websocket.receive() == "HELLO"
        await until(lambda: listener.statistics().handlers == 0)


# --- servers that a client may meet -------------------------------------------------------


@asynccontextmanager
async def answering(engine: Engine, answer: bytes, *, end: bool = True) -> AsyncIterator[str]:
    """A server that answers every request with some bytes."""

    async def handler(conn: Any) -> None:
        await conn.receive_until(b"\r\n\r\n")
        await conn.send_all(answer)
        if not end:
            await trio.sleep_forever()

    async with open_wknet_listener("tcp://127.0.0.1:0", engine=engine) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.serve, handler)
            yield f"ws://127.0.0.1:{listener.address[1]}/"
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"", "the connection ended before the server answered"),
        (b"HTTP/1.1 101", "the connection ended before the server answered"),
        (b"SSH-2.0-x\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 101 OK\r\nX: y\r\n\r\n", "Upgrade"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 9000, "more than 8192 bytes"),
    ],
)
async def test_servers_that_do_not_answer_properly(
    engine: Engine, answer: bytes, says: str
) -> None:
    async with answering(engine, answer) as where:
        with pytest.raises(HandshakeError, match=says):
            async with open_websocket(where, engine=engine):
                raise AssertionError


async def test_a_refusal_has_a_body(engine: Engine) -> None:
    answer = b"HTTP/1.1 503 Later\r\nRetry-After: 5\r\n\r\n" + b"x" * 100_000
    async with answering(engine, answer) as where:
        with pytest.raises(HandshakeRejected) as caught:
            async with open_websocket(where, engine=engine):
                raise AssertionError
    assert caught.value.status == 503
    assert caught.value.body == b"x" * 65_536
    assert ("retry-after", "5") in caught.value.headers


@pytest.mark.parametrize("length", [0, 4])
async def test_a_refusal_on_a_connection_that_stays_open(engine: Engine, length: int) -> None:
    answer = f"HTTP/1.1 404 No\r\nContent-Length: {length}\r\n\r\n".encode() + bytes(length)
    async with answering(engine, answer, end=False) as where:
        with pytest.raises(HandshakeRejected) as caught:
            async with open_websocket(where, engine=engine):
                raise AssertionError
    assert caught.value.body == bytes(length)


async def test_a_server_that_does_not_answer(engine: Engine) -> None:
    async with answering(engine, b"HTTP/1.1 ", end=False) as where:
        with pytest.raises(trio.TooSlowError):
            async with open_websocket(where, engine=engine, options=SHORT):
                raise AssertionError


# --- how a handler ends -------------------------------------------------------------------


async def test_a_handler_that_returns(engine: Engine) -> None:
    async def handler(websocket: WebSocket) -> None:
        await websocket.receive()

    async with serving(engine, handler) as listener:
        async with open_websocket(url(listener), engine=engine) as websocket:
            await websocket.send("x")
            assert [message async for message in websocket] == []
            assert websocket.close_code == 1000


async def test_a_handler_whose_peer_is_gone(engine: Engine) -> None:
    ended: list[BaseException] = []

    async def handler(websocket: WebSocket) -> None:
        try:
            await websocket.receive()
        except ConnectionClosed as exc:
            ended.append(exc)
            raise

    async with serving(engine, handler) as listener:
        with dial(listener) as sock:
            await in_thread(sock.sendall, UPGRADE)
            await in_thread(sock.recv, 12)
        await until(lambda: ended)
        async with open_websocket(url(listener), engine=engine) as websocket:
            await websocket.send("serving goes on")


async def test_a_handler_that_raises(engine: Engine) -> None:
    async def handler(websocket: WebSocket) -> None:
        await websocket.receive()
        raise LookupError("mine")

    listener = await engine.listen("ws://127.0.0.1:0", websocket=WebSocketOptions())
    with pytest.RaisesGroup(pytest.RaisesGroup(pytest.RaisesExc(LookupError, match="mine"))):
        async with trio.open_nursery() as nursery:
            await nursery.start(listener.serve, handler)
            async with open_websocket(url(listener), engine=engine) as websocket:
                await websocket.send("x")
                with trio.CancelScope(shield=True), pytest.raises(ConnectionClosed) as closed:
                    await websocket.receive()
                assert closed.value.code == 1011


async def test_drain(engine: Engine) -> None:
    async with open_wknet_listener(
        "ws://127.0.0.1:0", engine=engine, websocket=WebSocketOptions()
    ) as listener:
        async with trio.open_nursery() as nursery:
            await nursery.start(listener.serve, shout)
            async with open_websocket(url(listener), engine=engine) as websocket:
                await websocket.send("one")
                assert await websocket.receive() == "ONE"
                nursery.start_soon(listener.drain)
                await wait_all_tasks_blocked()
                await websocket.send("two")
                assert await websocket.receive() == "TWO"


# --- other libraries ----------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, PerMessageDeflate()])
async def test_the_websockets_library_as_client(
    engine: Engine, compression: PerMessageDeflate | None
) -> None:
    def talk(where: str) -> list[str | bytes]:
        with their_client.connect(where, ping_interval=None) as websocket:
            websocket.send("hello")
            websocket.send("ü" * 70_000)
            websocket.send([b"a" * 300, b"b" * 300])
            return [websocket.recv() for _ in range(3)]

    options = WebSocketOptions(compression=compression)
    async with serving(engine, options=options) as listener:
        got = await in_thread(talk, url(listener))
        assert got == ["HELLO", "Ü" * 70_000, b"A" * 300 + b"B" * 300]


async def test_trio_websocket_as_client(engine: Engine) -> None:
    async with serving(engine) as listener:
        async with trio_websocket.open_websocket_url(url(listener)) as websocket:
            await websocket.send_message("hello")
            assert await websocket.get_message() == "HELLO"
            await websocket.ping(b"x")


async def test_trio_websocket_as_server(engine: Engine) -> None:
    async def handler(request: trio_websocket.WebSocketRequest) -> None:
        websocket = await request.accept()
        while True:
            await websocket.send_message((await websocket.get_message()).upper())

    async def quiet(request: trio_websocket.WebSocketRequest) -> None:
        with suppress(trio_websocket.ConnectionClosed):
            await handler(request)

    async with trio.open_nursery() as nursery:
        server = await nursery.start(trio_websocket.serve_websocket, quiet, "127.0.0.1", 0, None)
        async with open_websocket(f"ws://127.0.0.1:{server.port}/", engine=engine) as websocket:
            await websocket.send("hello")
            assert await websocket.receive() == "HELLO"
        assert websocket.close_code == 1000
        nursery.cancel_scope.cancel()


# --- bad input ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "error", "says"),
    [
        (b"ws://a/", TypeError, "url must be a string"),
        ("http://a/", ValueError, "url must start with 'ws://'"),
        ("ws:///path", ValueError, "has no host"),
        ("ws://user@a/", ValueError, "must hold no user"),
        ("ws://a/#x", ValueError, "fragment"),
        ("ws://a/#", ValueError, "fragment"),
        ("ws://a/ b", ValueError, "percent-encoded"),
        ("ws://ä/", ValueError, "percent-encoded"),
        ("ws://a:x/", ValueError, "url"),
    ],
)
async def test_bad_urls(engine: Engine, where: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        async with open_websocket(where, engine=engine):
            raise AssertionError


async def test_bad_arguments(engine: Engine) -> None:
    anything: Any = 5
    for argument in ("engine", "options", "limits", "conn_options", "headers", "subprotocols"):
        with pytest.raises(TypeError, match=argument.removeprefix("conn_")):
            async with open_websocket(
                "ws://127.0.0.1:1/", **{"engine": engine, argument: anything}
            ):
                raise AssertionError
    with pytest.raises(TypeError, match="websocket must be WebSocketOptions"):
        await engine.listen("ws://127.0.0.1:0", websocket=anything)
    with pytest.raises(ValueError, match="must not have a query"):
        await engine.listen("ws://127.0.0.1:0/?x")
    with pytest.raises(TypeError, match="listener must be a Listener"):
        WebSocketListener(anything)
    async with open_wknet_listener("tcp://127.0.0.1:0", engine=engine) as listener:
        with pytest.raises(TypeError, match="path must be a string"):
            WebSocketListener(listener, path=anything)
        with pytest.raises(ValueError, match="path must begin with '/'"):
            WebSocketListener(listener, path="chat")
        with pytest.raises(TypeError, match="options must be WebSocketOptions"):
            WebSocketListener(listener, options=anything)
        websockets = WebSocketListener(listener)
        with pytest.raises(TypeError, match="handler must be callable"):
            await websockets.serve(anything)
        with pytest.raises(TypeError, match="on_request must be callable"):
            await websockets.serve(shout, on_request=anything)


# --- connections that the application has opened ------------------------------------------------


async def test_accept_and_connect(pair: tuple[Conn, Conn]) -> None:
    ours, theirs = pair
    opened: list[WebSocket | None] = []

    async def accept() -> None:
        opened.append(await WebSocket.accept(ours, options=WebSocketOptions(subprotocols=["a"])))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        client = await WebSocket.connect(theirs, "ws://example.org/chat", subprotocols=["a"])
    (server,) = opened
    assert server is not None
    assert server.request == client.request
    assert server.request.header("host") == "example.org"
    assert server.subprotocol == client.subprotocol == "a"
    await client.send("hello")
    assert await server.receive() == "hello"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.aclose)
        nursery.start_soon(client.aclose)


async def test_accept_answers_what_is_no_websocket(peer: tuple[Conn, Any]) -> None:
    conn, sock = peer
    await sock.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    opened = await WebSocket.accept(conn, on_request=lambda request: Response(204))
    assert opened is None
    assert (await sock.recv(100)).startswith(b"HTTP/1.1 204 No Content\r\n")


async def test_upgrade(peer: tuple[Conn, Any]) -> None:
    conn, sock = peer
    headers = [tuple(line.split(": ")) for line in UPGRADE.decode().split("\r\n")[1:-2]]
    frame = b"\x81\x85\0\0\0\0hello"
    await sock.send(frame)
    await until(lambda: conn.statistics().buffered_inbound == len(frame))
    websocket = WebSocket.upgrade(conn, headers, "/a?b", unread=frame)  # type: ignore[arg-type]
    assert websocket.request.target == "/a?b"
    assert [await websocket.receive(), await websocket.receive()] == ["hello", "hello"]
    assert (await sock.recv(1000)).startswith(b"HTTP/1.1 101 ")


async def test_upgrade_refuses(peer: tuple[Conn, Any]) -> None:
    conn, sock = peer
    with pytest.raises(HandshakeError, match=r"426 .*WebSocket server"):
        WebSocket.upgrade(conn, {"Host": "a"})
    with pytest.raises(HandshakeError, match="400 "):
        WebSocket.upgrade(conn, {"Host": "a"}, "/ /")
    with pytest.raises(TypeError, match="conn must be a Conn"):
        WebSocket.upgrade(sock, {"Host": "a"})
    with pytest.raises(TypeError, match="conn must be a Conn"):
        await WebSocket.connect(sock, "ws://a/")
    with pytest.raises(TypeError, match="conn must be a Conn"):
        await WebSocket.accept(sock)
    anything: Any = 5
    with pytest.raises(TypeError, match="options must be"):
        await WebSocket.accept(conn, options=anything)
    with pytest.raises(TypeError, match="on_request must be callable"):
        await WebSocket.accept(conn, on_request=anything)
    await sock.send(b"untouched")
    assert await conn.receive_some() == b"untouched"
