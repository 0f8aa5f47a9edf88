"""`trio_wknet.contrib.trio_websocket` does what trio-websocket does: the same names, and peers
of both kinds. Its own suite is run by ``nox -s ecosystem``."""

from __future__ import annotations

import copy
import inspect
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trio_websocket as theirs
from tls_helpers import CA, client_context
from trio.testing import memory_stream_pair
from websocket_model import CLOSE, KEY, PONG, close_payload, decode, frame

import trio_wknet
from trio_wknet import Conn, StreamWebSocket, WebSocket
from trio_wknet.contrib import trio_websocket as ours
from trio_wknet.contrib.trio_websocket import (
    CloseReason,
    ConnectionClosed,
    ConnectionRejected,
    ConnectionTimeout,
    DisconnectionTimeout,
    Endpoint,
    HandshakeError,
    WebSocketConnection,
    WebSocketRequest,
    WebSocketServer,
    connect_websocket,
    open_websocket,
    open_websocket_url,
    serve_websocket,
    wrap_client_stream,
    wrap_server_stream,
)

HOST = "127.0.0.1"
CERTIFICATE = CA.issue_cert(HOST)
Handler = Callable[[WebSocketRequest], Awaitable[None]]


async def echo(request: WebSocketRequest) -> None:
    connection = await request.accept()
    try:
        while True:
            await connection.send_message(await connection.get_message())
    except ConnectionClosed:
        pass


@asynccontextmanager
async def serving(
    handler: Handler = echo, tls: Any = None, serve: Any = serve_websocket, **options: Any
) -> AsyncIterator[int]:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve, handler, HOST, 0, tls, **options))
        yield server.port
        nursery.cancel_scope.cancel()


# --- the same interface -------------------------------------------------------------------


def public(module: Any) -> set[str]:
    return {name for name in dir(module) if not name.startswith("_")}


def test_names() -> None:
    assert set(ours.__all__) == public(theirs)
    for name in ours.__all__:
        it, other = getattr(ours, name), getattr(theirs, name)
        assert isinstance(it, type) == isinstance(other, type)
        if isinstance(it, type):
            assert public(it) == public(other), name
            if issubclass(other, Exception):
                bases = {base.__name__ for base in other.__mro__}
                assert {base.__name__ for base in it.__mro__} == bases


def signatures(module: Any) -> dict[str, list[tuple[str, Any, Any]]]:
    found = {}
    for name in ours.__all__:
        it = getattr(module, name)
        functions = {name: it}
        if isinstance(it, type):
            functions = {
                f"{name}.{attribute}": getattr(it, attribute)
                for attribute in (*public(it), "__init__")
                if inspect.isfunction(getattr(it, attribute))
            }
        for called, function in functions.items():
            parameters = inspect.signature(function).parameters.values()
            found[called] = [(it.name, it.kind, it.default) for it in parameters]
    return found


# They cannot be constructed.
OURS_TO_MAKE = ("WebSocketConnection.__init__", "WebSocketRequest.__init__")


def test_signatures() -> None:
    here, there = signatures(ours), signatures(theirs)
    for name in OURS_TO_MAKE:
        del here[name], there[name]
    assert here == there
    for kind in (WebSocketConnection, WebSocketRequest):
        with pytest.raises(TypeError, match="cannot be constructed"):
            kind()


def test_close_reasons() -> None:
    for code in range(5100):
        here, there = CloseReason(code, "text"), theirs.CloseReason(code, "text")
        assert (here.code, here.name, here.reason) == (there.code, there.name, there.reason)
        assert repr(here) == repr(there)


def test_exceptions_can_be_copied() -> None:
    assert copy.copy(ConnectionClosed(CloseReason(1000, None))).reason.code == 1000  # type: ignore[union-attr]
    rejected = copy.copy(ConnectionRejected(404, ((b"a", b"b"),), b"c"))
    assert (rejected.status_code, rejected.headers, rejected.body) == (404, ((b"a", b"b"),), b"c")


def test_endpoints() -> None:
    for args in (("10.0.0.2", 80, False), ("::1", 443, True), ("::1", 8000, False)):
        assert Endpoint(*args).url == theirs.Endpoint(*args).url
        assert repr(Endpoint(*args)) == repr(theirs.Endpoint(*args))


# --- both libraries at both ends ------------------------------------------------------------


@pytest.mark.parametrize("secure", [False, True], ids=["ws", "wss"])
@pytest.mark.parametrize("server", [ours, theirs], ids=["ours", "theirs"])
@pytest.mark.parametrize("client", [ours, theirs], ids=["ours", "theirs"])
async def test_messages_pings_and_closing(client: Any, server: Any, secure: bool) -> None:
    ended = trio.Event()
    seen: list[Any] = []

    async def handler(request: Any) -> None:
        assert request.path == "/chat?a=b"
        assert request.proposed_subprotocols == ("x", "y")
        assert dict(request.headers)[b"x-test"] == b"1"
        assert request.local.is_ssl == request.remote.is_ssl == secure
        connection = await request.accept(subprotocol="y", extra_headers=[(b"X-Test", b"2")])
        try:
            await connection.ping(b"from the server")
            while True:
                await connection.send_message(await connection.get_message())
        except server.ConnectionClosed as closed:
            seen.append((closed.reason.code, closed.reason.reason))
        ended.set()

    async with serving(handler, server_tls() if secure else None, server.serve_websocket) as port:
        opening = client.open_websocket(
            HOST,
            port,
            "/chat?a=b",
            use_ssl=client_context() if secure else False,
            subprotocols=["x", "y"],
            extra_headers=[(b"X-Test", b"1")],
        )
        async with opening as connection:
            assert connection.is_client
            assert not connection.is_server
            assert connection.path == "/chat?a=b"
            assert connection.subprotocol == "y"
            assert (b"x-test", b"2") in connection.handshake_headers
            assert str(connection).startswith("client-")
            assert connection.remote.port == port
            for message in ("hello", b"bytes", "é" * 100_000):
                await connection.send_message(message)
                assert await connection.get_message() == message
            await connection.ping()
            await connection.pong(b"not asked for")
            assert connection.closed is None
            await connection.aclose(4000, "enough")
        await ended.wait()
        assert seen == [(4000, "enough")]
        reason: Any = connection.closed
        assert reason.code == 4000
        for call in (connection.get_message, partial(connection.send_message, "no")):
            with pytest.raises(client.ConnectionClosed):
                await call()


def server_tls() -> ssl.SSLContext:
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    CERTIFICATE.configure_cert(made)
    return made


# --- what lies below ------------------------------------------------------------------------


async def test_over_a_conn_no_task_reads() -> None:
    async with serving() as port, trio.open_nursery() as nursery:
        connection = await connect_websocket(nursery, HOST, port, "/", use_ssl=False)
        assert isinstance(connection._websocket, WebSocket)
        assert len(nursery.child_tasks) == 0
        await connection.aclose()


@pytest.mark.parametrize("ends", ["memory", "conn"])
async def test_wrapped_streams(ends: str) -> None:
    async with trio.open_nursery() as nursery:
        if ends == "memory":
            client_stream, server_stream = memory_stream_pair()
        else:
            (listener,) = await trio_wknet.open_tcp_listeners(0, host=HOST)
            port = listener.socket.getsockname()[1]
            client_stream = await trio_wknet.open_tcp_stream(HOST, port)  # type: ignore[assignment]
            server_stream = await listener.accept()  # type: ignore[assignment]
            await listener.aclose()

        async def serve() -> None:
            request = await wrap_server_stream(nursery, server_stream)
            async with await request.accept() as connection:
                assert connection.is_server
                await connection.send_message(await connection.get_message())
                with pytest.raises(ConnectionClosed):
                    await connection.get_message()

        nursery.start_soon(serve)
        connection = await wrap_client_stream(nursery, client_stream, HOST, "/x")
        kind = StreamWebSocket if ends == "memory" else WebSocket
        assert isinstance(connection._websocket, kind)
        assert isinstance(connection.local, str) == (ends == "memory")
        async with connection:
            await connection.send_message("hello")
            assert await connection.get_message() == "hello"


async def test_a_ping_is_answered_though_nobody_receives() -> None:
    async def handler(request: WebSocketRequest) -> None:
        await request.accept()
        await trio.sleep_forever()

    for tls in (None, server_tls()):
        async with serving(handler, tls) as port:
            use_ssl = client_context() if tls else False
            async with open_websocket(HOST, port, "/", use_ssl=use_ssl) as connection:
                await connection.send_message("not received")
                await connection.ping()
            # The server's end of the stream comes without its handler, too.
            assert connection.closed is not None
            assert connection.closed.code == 1000


async def test_many_tasks_share_a_connection() -> None:
    async with serving() as port:
        async with open_websocket(HOST, port, "/", use_ssl=False) as connection:
            received: list[Any] = []

            async def send(number: int) -> None:
                await connection.send_message(b"%d" % number * 50_000)

            async def receive() -> None:
                received.append(await connection.get_message())

            async with trio.open_nursery() as nursery:
                for number in range(5):
                    nursery.start_soon(send, number)
                    nursery.start_soon(receive)
            assert sorted(received) == [b"%d" % number * 50_000 for number in range(5)]


async def test_a_message_too_big_closes_it() -> None:
    async with serving() as port:
        opening = open_websocket(HOST, port, "/", use_ssl=False, max_message_size=100)
        async with opening as connection:
            await connection.send_message(bytes(101))
            with pytest.raises(ConnectionClosed) as caught:
                await connection.get_message()
            assert caught.value.reason is not None
            assert caught.value.reason.code == 1009


# --- refusals and timeouts ------------------------------------------------------------------


async def test_a_rejection() -> None:
    async def handler(request: WebSocketRequest) -> None:
        await request.reject(403, extra_headers=[(b"X-Why", b"because")], body=b"no")
        with pytest.raises(RuntimeError, match="answered"):
            await request.accept()

    async with serving(handler) as port:
        with pytest.raises(ConnectionRejected) as caught:
            async with open_websocket(HOST, port, "/", use_ssl=False):
                pass
    assert (caught.value.status_code, caught.value.body) == (403, b"no")
    assert (b"x-why", b"because") in caught.value.headers


async def test_a_subprotocol_that_was_not_proposed() -> None:
    async def handler(request: WebSocketRequest) -> None:
        with pytest.raises(ValueError, match="'z' was not proposed"):
            await request.accept(subprotocol="z")
        await request.accept()

    async with serving(handler) as port:
        async with open_websocket(HOST, port, "/", use_ssl=False) as connection:
            assert connection.subprotocol is None


async def test_timeouts(autojump_clock: object) -> None:
    """A server that does not answer the handshake, or a close frame."""

    async def handler(_: Conn) -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio_wknet.serve_tcp, handler, 0, host=HOST))
        port = listener.socket.getsockname()[1]
        with pytest.raises(ConnectionTimeout):
            async with open_websocket(HOST, port, "/", use_ssl=False, connect_timeout=1):
                pass
        nursery.cancel_scope.cancel()
    with pytest.raises(HandshakeError):
        async with open_websocket(HOST, port, "/", use_ssl=False):
            pass

    async def answers(stream: trio.SocketStream) -> None:
        websocket = await WebSocket.accept(stream)
        assert websocket is not None
        await trio.sleep_forever()  # nobody reads

    async with trio.open_nursery() as nursery:
        listeners: Any = await nursery.start(partial(trio.serve_tcp, answers, 0, host=HOST))
        port = listeners[0].socket.getsockname()[1]
        with pytest.raises(DisconnectionTimeout):
            async with open_websocket(HOST, port, "/", use_ssl=False, disconnect_timeout=1):
                pass
        nursery.cancel_scope.cancel()


async def test_a_client_that_says_nothing(autojump_clock: object) -> None:
    async def handler(request: WebSocketRequest) -> None:
        raise AssertionError("there is no request")

    async with serving(handler, connect_timeout=1) as port:
        async with await trio_wknet.open_tcp_stream(HOST, port) as stream:
            with pytest.raises(trio.BrokenResourceError):
                assert await stream.receive_some() == b""
                raise trio.BrokenResourceError


async def test_exceptions_of_the_block_are_in_no_group() -> None:
    async with serving() as port:
        cause = RuntimeError()
        for error in (ValueError("mine"), KeyboardInterrupt()):
            with pytest.raises(type(error)) as caught:
                async with open_websocket(HOST, port, "/", use_ssl=False):
                    raise error from cause
            assert caught.value is error
            assert caught.value.__cause__ is cause
        with trio.move_on_after(10) as scope:
            async with open_websocket(HOST, port, "/", use_ssl=False):
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught
        # Closing is cancelled, too, which does not hide what was raised.
        with pytest.raises(ValueError, match="mine"), trio.CancelScope() as scope:
            async with open_websocket(HOST, port, "/", use_ssl=False):
                scope.cancel()
                raise ValueError("mine")


async def test_a_handler_that_fails() -> None:
    async def handler(request: WebSocketRequest) -> None:
        await request.accept()
        raise ValueError("mine")

    with pytest.RaisesGroup(pytest.RaisesGroup(pytest.RaisesGroup(pytest.RaisesGroup(ValueError)))):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(serve_websocket, handler, HOST, 0, None)
            with trio.CancelScope(shield=True):
                async with open_websocket(HOST, server.port, "/", use_ssl=False) as connection:
                    with pytest.raises(ConnectionClosed):
                        await connection.get_message()


async def test_urls() -> None:
    async with serving() as port:
        async with open_websocket_url(f"ws://{HOST}:{port}?q=1") as connection:
            assert connection.path == "/?q=1"
    for url in ("http://a", "ws:///path"):
        with pytest.raises(ValueError, match="URL"):
            open_websocket_url(url)
    with pytest.raises(ValueError, match="SSL context"):
        open_websocket_url("ws://a", client_context())
    async with trio.open_nursery() as nursery:
        with pytest.raises(TypeError, match="use_ssl"):
            await connect_websocket(nursery, HOST, 1, "/", use_ssl=1)  # type: ignore[arg-type]


async def test_servers_on_other_listeners() -> None:
    with pytest.raises(ValueError, match="at least one"):
        WebSocketServer(echo, [])
    listeners = await trio.open_tcp_listeners(0, host=HOST)
    server = WebSocketServer(echo, listeners)
    async with trio.open_nursery() as nursery:
        assert await nursery.start(server.run) is server
        (endpoint,) = server.listeners
        assert isinstance(endpoint, Endpoint)
        assert endpoint.port == server.port
        async with open_websocket_url(endpoint.url) as connection:
            await connection.send_message("hello")
            assert await connection.get_message() == "hello"
        nursery.cancel_scope.cancel()
    two = WebSocketServer(echo, [*listeners, *listeners])
    with pytest.raises(RuntimeError, match="more than 1"):
        _ = two.port


async def test_messages_before_the_peers_goodbye_are_there() -> None:
    """Also where the stream has ended before, and an answer could not be sent."""
    ours_end, peer = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        websocket = StreamWebSocket._over(ours_end, "client", request=None)
        connection = WebSocketConnection._over(websocket, nursery, (), client=True)
        await peer.send_all(frame(1, b"1") + frame(CLOSE, close_payload(1000)))
        await peer.aclose()
        assert await connection.get_message() == "1"
        with pytest.raises(ConnectionClosed):
            await connection.get_message()
        with pytest.raises(ConnectionClosed):
            await connection.send_message("late")
        await connection.aclose()


async def test_a_pong_is_sent_as_it_is() -> None:
    ours_end, peer = memory_stream_pair()
    websocket = StreamWebSocket._over(ours_end, "server")
    async with trio.open_nursery() as nursery:
        connection = WebSocketConnection._over(websocket, nursery, (), client=False)
        await connection.pong(b"x")
        assert decode(bytes(await peer.receive_some()), client=True).pongs == [b"x"]
        with pytest.raises(ValueError, match="125"):
            await connection.pong(bytes(126))
        await peer.send_all(frame(PONG, b"", key=KEY) + frame(CLOSE, b"", key=KEY))
        await peer.send_eof()
        with pytest.raises(ConnectionClosed):
            await connection.get_message()
        with pytest.raises(ConnectionClosed):
            await connection.pong()
        await connection.aclose()
