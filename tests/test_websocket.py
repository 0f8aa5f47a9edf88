"""trio-websocket over `trio_wknet.install`, against the websockets library."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any

import pytest
import trio
import trustme
from helpers import PATIENCE, content
from trio_websocket import (
    ConnectionClosed,
    WebSocketRequest,
    open_websocket_url,
    serve_websocket,
)
from websockets.exceptions import ConnectionClosed as TheirConnectionClosed
from websockets.sync import client
from websockets.sync.server import serve

from trio_wknet import Conn, TLSStream
from trio_wknet._engine import default_engine

pytestmark = pytest.mark.usefixtures("install")
# Not where their server is: it leaves its threads, and some versions a pipe, behind.
nothing_left = pytest.mark.usefixtures("nothing_left")
HOST = "127.0.0.1"
CA = trustme.CA()
CERTIFICATE = CA.issue_cert("localhost")
BIG = 500_000

in_thread = trio.to_thread.run_sync
# Their client, without a thread that pings, and ends when it likes.
connect = partial(client.connect, open_timeout=PATIENCE, ping_interval=None)


def contexts(secure: bool) -> tuple[ssl.SSLContext | None, ssl.SSLContext | None]:
    """The server's, and the client's."""
    if not secure:
        return None, None
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    CERTIFICATE.configure_cert(server)
    client = ssl.create_default_context()
    CA.configure_trust(client)
    return server, client


class Shop:
    """A server of trio-websocket's: it sends back what it gets, and tells how it ended."""

    def __init__(self, secure: bool) -> None:
        self.secure = secure
        self.ended, self.ends = trio.open_memory_channel[Any](100)

    async def handle(self, request: WebSocketRequest) -> None:
        with suppress(ConnectionClosed):
            websocket = await request.accept()
            assert type(websocket._stream) is (TLSStream if self.secure else Conn)
            assert len(default_engine(None).connections) >= 1
            if request.path == "/bye":
                await websocket.aclose(4000, "not today")
                return
            while True:
                await websocket.send_message(await websocket.get_message())
        await self.ended.send(websocket.closed)


@asynccontextmanager
async def served(secure: bool = False) -> AsyncIterator[tuple[Shop, str, Any]]:
    """A server of trio-websocket's that runs meanwhile; its url; what a client trusts."""
    ours, theirs = contexts(secure)
    shop = Shop(secure)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(serve_websocket, shop.handle, HOST, 0, ours)
            scheme, host = ("wss", "localhost") if secure else ("ws", HOST)
            yield shop, f"{scheme}://{host}:{server.port}", theirs
            nursery.cancel_scope.cancel()


# -- their client ----------------------------------------------------------------


@nothing_left
@pytest.mark.parametrize("secure", [False, True], ids=["ws", "wss"])
async def test_their_client(secure: bool) -> None:
    big = content("websocket", BIG)

    def talk(url: str, context: Any) -> None:
        with connect(url, ssl=context, compression=None) as websocket:
            for message in ("text \N{SNOWMAN}", b"bytes", "", big):
                websocket.send(message)
                assert websocket.recv(PATIENCE) == message
            websocket.send(iter(["in ", "three ", "pieces"]))
            assert websocket.recv(PATIENCE) == "in three pieces"
            assert websocket.ping().wait(PATIENCE)

    async with served(secure) as (shop, url, context):
        await in_thread(talk, url, context)
        assert (await shop.ends.receive()).code == 1000


@nothing_left
async def test_closing_by_the_server() -> None:
    def talk(url: str) -> None:
        with connect(f"{url}/bye") as websocket:
            with pytest.raises(TheirConnectionClosed) as raised:
                websocket.recv(PATIENCE)
        assert raised.value.rcvd is not None
        assert (raised.value.rcvd.code, raised.value.rcvd.reason) == (4000, "not today")

    async with served() as (_, url, _):
        await in_thread(talk, url)


@nothing_left
@pytest.mark.parametrize("how", ["eof", "reset"])
async def test_a_client_that_is_gone(how: str) -> None:
    def talk(url: str) -> None:
        with connect(url) as websocket:
            websocket.send("hello")
            assert websocket.recv(PATIENCE) == "hello"
            if how == "reset":
                linger = struct.pack("ii", 1, 0)
                websocket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            websocket.close_socket()

    async with served() as (shop, url, _):
        await in_thread(talk, url)
        assert (await shop.ends.receive()).code == 1006
        await in_thread(talk, url)  # the server goes on


@nothing_left
async def test_many_clients() -> None:
    def talk(url: str, number: int) -> None:
        with connect(url) as websocket:
            for message in range(10):
                websocket.send(f"{number} {message}")
                assert websocket.recv(PATIENCE) == f"{number} {message}"

    async with served() as (_, url, _):
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(in_thread, talk, url, number)


# -- their server ----------------------------------------------------------------


def echo(websocket: Any) -> None:
    with suppress(TheirConnectionClosed):
        for message in websocket:
            if message == "bye":
                websocket.close(4001, "as you wish")
            else:
                websocket.send(message)


@contextmanager
def their_server(secure: bool = False) -> Iterator[tuple[str, Any]]:
    ours, theirs = contexts(secure)
    # trio-websocket's client does not close its connection when it is told goodbye: it
    # takes the server this long to do so alone.
    with serve(
        echo, HOST, 0, ssl=ours, compression=None, ping_interval=None, close_timeout=0.01
    ) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            scheme, host = ("wss", "localhost") if secure else ("ws", HOST)
            yield f"{scheme}://{host}:{server.socket.getsockname()[1]}", theirs
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("secure", [False, True], ids=["ws", "wss"])
async def test_our_client(secure: bool) -> None:
    big = content("client", BIG)
    with their_server(secure) as (url, context), trio.fail_after(30):
        async with open_websocket_url(url, ssl_context=context) as websocket:
            assert type(websocket._stream) is (TLSStream if secure else Conn)
            for message in ("text", b"bytes", big):
                await websocket.send_message(message)
                assert await websocket.get_message() == message
            await websocket.ping()
            await websocket.send_message("bye")
            with pytest.raises(ConnectionClosed) as raised:
                await websocket.get_message()
            assert raised.value.reason is not None
            assert (raised.value.reason.code, raised.value.reason.reason) == (4001, "as you wish")


@nothing_left
async def test_both_ours() -> None:
    async with served() as (_, url, _):
        async with open_websocket_url(url) as websocket:
            await websocket.send_message("hello")
            assert await websocket.get_message() == "hello"
            assert len(default_engine(None).connections) == 2
