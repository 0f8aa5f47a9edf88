"""Servers that echo WebSocket messages, without compression and without pings."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

from harness.answers import say
from harness.serving import (
    BACKLOG,
    HOST,
    Serve,
    run_asyncio,
    serve_asyncio,
    serve_handler,
    trio_until_stdin_ends,
    wknet,
)

MAX_MESSAGE = 1 << 24


# --- trio-websocket ---------------------------------------------------------------------


async def trio_websocket_echo(request: Any) -> None:
    from trio_websocket import ConnectionClosed

    socket = await request.accept()
    try:
        while True:
            await socket.send_message(await socket.get_message())
    except ConnectionClosed:
        pass  # the load generator leaves without a close frame


def trio_websocket_server(options: argparse.Namespace) -> None:
    import trio
    from trio_websocket import serve_websocket

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            serve = partial(serve_websocket, max_message_size=MAX_MESSAGE)
            server = await nursery.start(serve, trio_websocket_echo, HOST, options.port, None)
            say(server.port)
            await trio_until_stdin_ends(trio.sleep_forever)
            nursery.cancel_scope.cancel()

    trio.run(main)


# --- websockets on Trio -----------------------------------------------------------------


async def websockets_on_trio(
    handler: Callable[[Any], Awaitable[None]], work: Callable[[], Awaitable[None]]
) -> None:
    """Serve, and say where, until some work is done."""
    import trio
    from websockets.trio.server import serve

    options: Any = {"backlog": BACKLOG, "ping_interval": None, "compression": None}
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve, handler, 0, host=HOST, **options))
        say(server.listeners[0].socket.getsockname()[1])
        await work()
        nursery.cancel_scope.cancel()


# --- websockets on uvloop ---------------------------------------------------------------


async def websockets_echo(socket: Any) -> None:
    from websockets.exceptions import ConnectionClosed

    try:
        async for message in socket:
            await socket.send(message)
    except ConnectionClosed:
        pass


def websockets_server(options: argparse.Namespace) -> None:
    async def main() -> None:
        from websockets.asyncio.server import serve

        server = serve(
            websockets_echo,
            HOST,
            options.port,
            compression=None,
            ping_interval=None,
            max_size=MAX_MESSAGE,
        )
        async with server as listening:
            await serve_asyncio(listening)

    run_asyncio(main, use_uvloop=True)


# --- picows on uvloop -------------------------------------------------------------------


def picows_server(options: argparse.Namespace) -> None:
    async def main() -> None:
        from picows import WSListener, WSMsgType, ws_create_server

        messages = (WSMsgType.TEXT, WSMsgType.BINARY)

        class Echo(WSListener):
            def on_ws_frame(self, transport: Any, frame: Any) -> None:
                if frame.msg_type in messages:
                    transport.send(frame.msg_type, frame.get_payload_as_bytes())

        server = await ws_create_server(
            lambda request: Echo(), HOST, options.port, max_frame_size=MAX_MESSAGE
        )
        await serve_asyncio(server)

    run_asyncio(main, use_uvloop=True)


# --- this library -----------------------------------------------------------------------


def with_websocket() -> dict[str, Any]:
    from trio_wknet import WebSocketOptions

    return {"websocket": WebSocketOptions(max_message=MAX_MESSAGE)}


async def messages(socket: Any) -> None:
    with suppress(Exception):
        async for message in socket:
            await socket.send(message)


async def messages_many(socket: Any) -> None:
    with suppress(Exception):
        while True:
            await socket.send_many(await socket.receive_many())


def messages_event(socket: Any, messages: list[Any]) -> None:
    socket.send_many_nowait(messages)


async def serve_messages(listener: Any) -> None:
    # Without on_error: how a client leaves never ends serving.
    await listener.serve_messages(messages_event)


FORMS = {
    "websocket": partial(serve_handler, messages),
    "websocket-many": partial(serve_handler, messages_many),
    "websocket-events": serve_messages,
}

SERVERS: dict[str, Serve] = {
    **{
        f"wknet-{where}-{name}": wknet(reactors, serve, more=with_websocket)
        for where, reactors in (("threaded", 1), ("inloop", 0))
        for name, serve in FORMS.items()
    },
    "trio-websocket": trio_websocket_server,
    "websockets-uvloop": websockets_server,
    "picows-uvloop": picows_server,
}
