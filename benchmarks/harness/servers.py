"""The servers that are compared, each by its name: ``python servers.py NAME``.

Every server listens on a loopback port, says which one, and echoes until the client
closes. It answers questions (`worker.py`), all but the one in C, and ends when its standard
input does. Each receives and sends in its library's own plain way, up to 64 KiB at a time,
and leaves the socket's options as the library sets them: TCP_NODELAY is on in all of them
but gevent's.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import resource
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from harness.answers import answer_all, say
from harness.compiled import compiled, compiler

HOST = "127.0.0.1"
RECEIVE = 65536
BACKLOG = 65535
IDLE = 300.0  # seconds without bytes that a connection may have, where that is bounded

Serve = Callable[[argparse.Namespace], None]


def collect() -> float:
    """How many seconds a full garbage collection takes."""
    began = time.perf_counter()
    gc.collect()
    return time.perf_counter() - began


def answer_until_stdin_ends() -> None:
    answer_all(sys.stdin, {"collect": collect})


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
        await trio.to_thread.run_sync(answer_until_stdin_ends)
        nursery.cancel_scope.cancel()


def trio_streams(handler: Callable[[Any], Awaitable[None]]) -> Serve:
    def run(options: argparse.Namespace) -> None:
        import trio

        async def main() -> None:
            listeners = await trio.open_tcp_listeners(options.port, host=HOST)
            say(listeners[0].socket.getsockname()[1])
            await trio_until_stdin_ends(partial(trio.serve_listeners, handler, listeners))

        trio.run(main)

    return run


def echo_event(conn: Any) -> None:
    conn.send_nowait(conn.receive_nowait())


async def serve_handler(handler: Callable[[Any], Awaitable[None]], listener: Any) -> None:
    await listener.serve(handler)


def note(conn: Any, exc: Exception) -> None:
    import trio

    if not isinstance(exc, trio.BrokenResourceError):  # the load generator just leaves
        print(f"{conn!r} is closed because of {exc!r}", file=sys.stderr)


async def serve_events(listener: Any) -> None:
    await listener.serve_events(echo_event, on_error=note)


def wknet(reactors: int, serve: Callable[[Any], Awaitable[None]], idle: bool = False) -> Serve:
    def run(options: argparse.Namespace) -> None:
        import trio

        from trio_wknet import open_wknet_listener

        async def main() -> None:
            async with open_wknet_listener(
                f"tcp://{HOST}:{options.port}",
                reactors=reactors,
                reuse_port=options.port != 0,
                idle_timeout=options.idle_timeout if idle else None,
            ) as listener:
                say(listener.address[1])
                await trio_until_stdin_ends(partial(serve, listener))

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


def asyncio_streams(use_uvloop: bool) -> Serve:
    def run(options: argparse.Namespace) -> None:
        import asyncio

        async def main() -> None:
            server = await asyncio.start_server(asyncio_echo, HOST, options.port, backlog=BACKLOG)
            await serve_asyncio(server)

        run_asyncio(main, use_uvloop)

    return run


def asyncio_protocol(use_uvloop: bool) -> Serve:
    def run(options: argparse.Namespace) -> None:
        import asyncio

        class Echo(asyncio.Protocol):
            def connection_made(self, transport: Any) -> None:
                self.transport = transport

            def data_received(self, data: bytes) -> None:
                self.transport.write(data)

        async def main() -> None:
            loop = asyncio.get_running_loop()
            server = await loop.create_server(Echo, HOST, options.port, backlog=BACKLOG)
            await serve_asyncio(server)

        run_asyncio(main, use_uvloop)

    return run


async def serve_asyncio(server: Any) -> None:
    import asyncio

    say(server.sockets[0].getsockname()[1])
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def watch() -> None:
        answer_until_stdin_ends()
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


# --- anyio --------------------------------------------------------------------------


async def anyio_echo(stream: Any) -> None:
    try:
        async with stream:
            async for data in stream:
                await stream.send(data)
    except Exception:
        pass


def anyio_streams(backend: str) -> Serve:
    def run(options: argparse.Namespace) -> None:
        import anyio

        async def main() -> None:
            listener = await anyio.create_tcp_listener(
                local_host=HOST, local_port=options.port, backlog=BACKLOG
            )
            say(listener.extra(anyio.abc.SocketAttribute.local_port))
            async with anyio.create_task_group() as group:
                group.start_soon(listener.serve, anyio_echo)
                await anyio.to_thread.run_sync(answer_until_stdin_ends)
                group.cancel_scope.cancel()

        anyio.run(main, backend=backend)

    return run


# --- gevent -------------------------------------------------------------------------


def gevent_echo(sock: Any, address: object) -> None:
    try:
        while data := sock.recv(RECEIVE):
            sock.sendall(data)
    except OSError:
        pass


def gevent_server(options: argparse.Namespace) -> None:
    import gevent
    from gevent.server import StreamServer

    # A bare greenlet for each connection, the cheapest that it has.
    address, spawn = (HOST, options.port), gevent.spawn_raw
    server = StreamServer(address, gevent_echo, backlog=BACKLOG, spawn=spawn)
    server.start()
    say(server.server_port)
    gevent.get_hub().threadpool.apply(answer_until_stdin_ends)


# --- C --------------------------------------------------------------------------------


def plain_c(options: argparse.Namespace) -> None:
    """Become the program, which keeps this process's core and limits."""
    program = compiled(Path(__file__).with_name("echo.c"))
    os.execv(program, [str(program), str(options.port)])


HANDLER = partial(serve_handler, echo)
HANDLER_NOWAIT = partial(serve_handler, echo_nowait)

SERVERS: dict[str, Serve] = {
    "trio": trio_streams(echo),
    "trio-deadline": trio_streams(echo_with_deadline),
    "wknet-threaded": wknet(1, HANDLER),
    "wknet-inloop": wknet(0, HANDLER),
    "wknet-threaded-idle": wknet(1, HANDLER, idle=True),
    "wknet-inloop-idle": wknet(0, HANDLER, idle=True),
    "wknet-threaded-nowait": wknet(1, HANDLER_NOWAIT),
    "wknet-inloop-nowait": wknet(0, HANDLER_NOWAIT),
    "wknet-threaded-events": wknet(1, serve_events),
    "wknet-inloop-events": wknet(0, serve_events),
    "wknet-threaded-events-idle": wknet(1, serve_events, idle=True),
    "wknet-inloop-events-idle": wknet(0, serve_events, idle=True),
    "asyncio-streams": asyncio_streams(False),
    "uvloop-streams": asyncio_streams(True),
    "asyncio-protocol": asyncio_protocol(False),
    "uvloop-protocol": asyncio_protocol(True),
    "anyio-trio": anyio_streams("trio"),
    "anyio-asyncio": anyio_streams("asyncio"),
    "gevent": gevent_server,
    "c-epoll": plain_c,
}


def missing(server: str) -> str | None:
    """What a server needs and this machine has not, if there is something."""
    package = server.partition("-")[0]
    if package == "c":
        return None if compiler() else "a C compiler"
    needed = package in ("anyio", "gevent", "uvloop")
    return package if needed and importlib.util.find_spec(package) is None else None


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Echo on a loopback port.")
    parser.add_argument("server", choices=list(SERVERS))
    parser.add_argument("--core", type=int, help="run on this core only")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--idle-timeout", type=float, default=IDLE, help="seconds")
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    SERVERS[options.server](options)


if __name__ == "__main__":
    main()
