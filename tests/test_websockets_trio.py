"""The websockets library's Trio implementation: over this transport, and as a peer."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import trio
from helpers import installed, tcp_address
from tls_helpers import NAME, client_context, server_context
from websockets.exceptions import ConnectionClosed as TheirConnectionClosed

import trio_wknet
from trio_wknet import (
    ConnectionClosed,
    PerMessageDeflate,
    WebSocket,
    WebSocketOptions,
    open_websocket,
    open_wknet_listener,
)
from trio_wknet._engine import default_engine

# Those that are for Python 3.10 do not have it.
connect = pytest.importorskip("websockets.trio.client").connect
serve = pytest.importorskip("websockets.trio.server").serve

HOST = "127.0.0.1"
MESSAGES = ("hello", b"bytes", "é" * 40_000, b"")
OPTIONS = WebSocketOptions(compression=PerMessageDeflate(), subprotocols=["chat"])


async def their_echo(websocket: Any) -> None:
    with suppress(TheirConnectionClosed):
        async for message in websocket:
            await websocket.send(message)


async def start_theirs(nursery: trio.Nursery, handler: Any = their_echo, **options: Any) -> int:
    serving = partial(serve, handler, 0, host=HOST, subprotocols=["chat"], **options)
    server: Any = await nursery.start(serving)
    port: int = server.listeners[0].socket.getsockname()[1]
    return port


async def talk_as_theirs(url: str, **options: Any) -> None:
    async with connect(url, proxy=None, subprotocols=["chat"], **options) as websocket:
        assert websocket.subprotocol == "chat"
        for message in MESSAGES:
            await websocket.send(message)
            assert await websocket.recv() == message
        pong: Any = await websocket.ping()
        await pong.wait()
        await websocket.aclose(4000, "enough")
    with pytest.raises(TheirConnectionClosed):
        await websocket.send("late")


async def talk_as_ours(websocket: Any) -> None:
    assert websocket.subprotocol == "chat"
    for message in MESSAGES:
        await websocket.send(message)
        assert await websocket.receive() == message
    assert await websocket.ping() >= 0


@pytest.mark.parametrize("reactors", [0, 1, 2])
@pytest.mark.parametrize("secure", [False, True], ids=["ws", "wss"])
def test_it_runs_on_this_transport(reactors: int, secure: bool) -> None:
    connections: list[int] = []

    async def handler(websocket: Any) -> None:
        connections.append(len(default_engine(None).connections))
        await their_echo(websocket)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            tls: Any = {"ssl": server_context()} if secure else {}
            port = await start_theirs(nursery, handler, **tls)
            tls = {"ssl": client_context(), "server_hostname": NAME} if secure else {}
            await talk_as_theirs(f"{'wss' if secure else 'ws'}://{HOST}:{port}/", **tls)
            nursery.cancel_scope.cancel()

    trio_wknet.run(main, reactors=reactors)
    assert connections == [2]  # both ends


@pytest.mark.parametrize("reactors", [0, 1])
async def test_its_client_and_our_server(reactors: int) -> None:
    codes: list[Any] = []

    async def handler(websocket: WebSocket) -> None:
        with pytest.raises(ConnectionClosed):
            while True:
                await websocket.send(await websocket.receive())
        codes.append((websocket.close_code, websocket.close_reason))

    listening = open_wknet_listener(f"ws://{HOST}:0", reactors=reactors, websocket=OPTIONS)
    async with listening as listener, trio.open_nursery() as nursery:
        await nursery.start(listener.serve, handler)
        _, port = tcp_address(listener.listener)
        await talk_as_theirs(f"ws://{HOST}:{port}/")
        await listener.drain()
        nursery.cancel_scope.cancel()
    assert codes == [(4000, "enough")]


@pytest.mark.parametrize("reactors", [0, 1])
async def test_our_client_and_its_server(reactors: int) -> None:
    with installed(reactors):
        async with trio.open_nursery() as nursery:
            port = await start_theirs(nursery)
            async with open_websocket(f"ws://{HOST}:{port}/", options=OPTIONS) as websocket:
                await talk_as_ours(websocket)
            assert websocket.close_code == 1000
            nursery.cancel_scope.cancel()


async def test_our_client_over_tls_and_its_server() -> None:
    async with trio.open_nursery() as nursery:
        port = await start_theirs(nursery, ssl=server_context())
        stream = await trio.open_tcp_stream(HOST, port)
        tls = trio.SSLStream(stream, client_context(), server_hostname=NAME)
        websocket = await WebSocket.connect(tls, f"wss://{NAME}:{port}/", options=OPTIONS)
        await talk_as_ours(websocket)
        await websocket.aclose()
        nursery.cancel_scope.cancel()
