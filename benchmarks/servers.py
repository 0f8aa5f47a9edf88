"""The servers that are compared, each by its name: ``python servers.py NAME [CORE]``.

Every server listens on a free loopback port, prints it, and echoes until the client
closes. It runs on one core if that is given, and ends when its standard input does.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

HOST = "127.0.0.1"
RECEIVE = 65536
IDLE = 300.0  # seconds without bytes that a connection may have, where that is bounded


def announce(port: int) -> None:
    print(port, flush=True)


# --- Trio and this library: the same handlers on both transports ---------------


async def echo(stream: Any) -> None:
    try:
        while data := await stream.receive_some():
            await stream.send_all(data)
    except Exception:
        pass  # the load generator leaves in the middle of a message


async def echo_with_deadline(stream: Any) -> None:
    """How a Trio program bounds the silence of its peers."""
    import trio

    try:
        with trio.CancelScope() as scope:
            while True:
                scope.deadline = trio.current_time() + IDLE
                if not (data := await stream.receive_some()):
                    return
                await stream.send_all(data)
    except Exception:
        pass


async def echo_nowait(stream: Any) -> None:
    try:
        while data := await stream.receive_some():
            stream.send_nowait(data)
    except Exception:
        pass


async def trio_until_stdin_ends(serve: Callable[[], Awaitable[object]]) -> None:
    import trio

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await trio.to_thread.run_sync(sys.stdin.read)
        nursery.cancel_scope.cancel()


def trio_streams(handler: Callable[[Any], Awaitable[None]]) -> Callable[[], None]:
    def run() -> None:
        import trio

        async def main() -> None:
            listeners = await trio.open_tcp_listeners(0, host=HOST)
            announce(listeners[0].socket.getsockname()[1])
            await trio_until_stdin_ends(partial(trio.serve_listeners, handler, listeners))

        trio.run(main)

    return run


def wknet(
    reactors: int, handler: Callable[[Any], Awaitable[None]], idle_timeout: float | None = None
) -> Callable[[], None]:
    def run() -> None:
        import trio

        from trio_wknet import open_wknet_listener

        async def main() -> None:
            async with open_wknet_listener(
                f"tcp://{HOST}:0", reactors=reactors, idle_timeout=idle_timeout
            ) as listener:
                announce(listener.address[1])
                await trio_until_stdin_ends(lambda: listener.serve(handler))

        trio.run(main)

    return run


def echo_event(conn: Any) -> None:
    conn.send_nowait(conn.receive_nowait())


def wknet_events(reactors: int) -> Callable[[], None]:
    def run() -> None:
        import trio

        from trio_wknet import open_wknet_listener

        async def main() -> None:
            async with open_wknet_listener(f"tcp://{HOST}:0", reactors=reactors) as listener:
                announce(listener.address[1])
                serve = partial(listener.serve_events, echo_event, on_error=lambda conn, exc: None)
                await trio_until_stdin_ends(serve)

        trio.run(main)

    return run


# --- asyncio and uvloop -----------------------------------------------------------


async def asyncio_echo(reader: Any, writer: Any) -> None:
    try:
        while data := await reader.read(RECEIVE):
            writer.write(data)
            await writer.drain()
    except Exception:
        pass
    writer.close()


def asyncio_streams(use_uvloop: bool) -> Callable[[], None]:
    def run() -> None:
        import asyncio

        async def main() -> None:
            server = await asyncio.start_server(asyncio_echo, HOST, 0, backlog=65535)
            await serve_asyncio(server)

        run_asyncio(main, use_uvloop)

    return run


def asyncio_protocol(use_uvloop: bool) -> Callable[[], None]:
    def run() -> None:
        import asyncio

        class Echo(asyncio.Protocol):
            def connection_made(self, transport: Any) -> None:
                self.transport = transport

            def data_received(self, data: bytes) -> None:
                self.transport.write(data)

        async def main() -> None:
            loop = asyncio.get_running_loop()
            server = await loop.create_server(Echo, HOST, 0, backlog=65535)
            await serve_asyncio(server)

        run_asyncio(main, use_uvloop)

    return run


async def serve_asyncio(server: Any) -> None:
    import asyncio

    announce(server.sockets[0].getsockname()[1])
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def watch() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=watch, daemon=True).start()
    await ended.wait()


def run_asyncio(main: Callable[[], Awaitable[None]], use_uvloop: bool) -> None:
    import asyncio

    if use_uvloop:
        import uvloop

        uvloop.run(main())  # type: ignore[arg-type]
    else:
        asyncio.run(main())  # type: ignore[arg-type]


SERVERS: dict[str, Callable[[], None]] = {
    "trio": trio_streams(echo),
    "trio-deadline": trio_streams(echo_with_deadline),
    "wknet-threaded": wknet(1, echo),
    "wknet-inloop": wknet(0, echo),
    "wknet-threaded-idle": wknet(1, echo, IDLE),
    "wknet-inloop-idle": wknet(0, echo, IDLE),
    "wknet-threaded-nowait": wknet(1, echo_nowait),
    "wknet-inloop-nowait": wknet(0, echo_nowait),
    "wknet-threaded-events": wknet_events(1),
    "wknet-inloop-events": wknet_events(0),
    "asyncio-streams": asyncio_streams(False),
    "uvloop-streams": asyncio_streams(True),
    "asyncio-protocol": asyncio_protocol(False),
    "uvloop-protocol": asyncio_protocol(True),
}


def main(name: str, core: str = "") -> None:
    if core:
        os.sched_setaffinity(0, {int(core)})
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    SERVERS[name]()


if __name__ == "__main__":
    main(*sys.argv[1:])
