"""What all servers have in common: where they listen, how they run, and how they end.

Each of the functions below returns a server as `servers.py` has it: to be called with the
command's options, it runs until standard input ends.
"""

from __future__ import annotations

import argparse
import gc
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from harness.answers import answer_all, say

HOST = "127.0.0.1"
BACKLOG = 65535

Serve = Callable[[argparse.Namespace], None]


def collect() -> float:
    """How many seconds a full garbage collection takes."""
    began = time.perf_counter()
    gc.collect()
    return time.perf_counter() - began


def answer_until_stdin_ends() -> None:
    answer_all(sys.stdin, {"collect": collect})


# --- Trio and this library: the same handlers on both transports ---------------


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


async def serve_handler(handler: Callable[[Any], Awaitable[None]], listener: Any) -> None:
    await listener.serve(handler)


def note(conn: Any, exc: Exception) -> None:
    import trio

    if not isinstance(exc, trio.BrokenResourceError):  # the load generator just leaves
        print(f"{conn!r} is closed because of {exc!r}", file=sys.stderr)


def wknet(
    reactors: int,
    serve: Callable[[Any], Awaitable[None]],
    idle: bool = False,
    more: Callable[[], dict[str, Any]] = dict,
) -> Serve:
    """`more` gives other arguments of `open_wknet_listener`."""

    def run(options: argparse.Namespace) -> None:
        import trio

        from trio_wknet import open_wknet_listener

        async def main() -> None:
            async with open_wknet_listener(
                f"tcp://{HOST}:{options.port}",
                reactors=reactors,
                reuse_port=options.port != 0,
                idle_timeout=options.idle_timeout if idle else None,
                **more(),
            ) as listener:
                say(listener.address[1])
                await trio_until_stdin_ends(partial(serve, listener))

        trio.run(main)

    return run


# --- asyncio and uvloop -----------------------------------------------------------


def asyncio_streams(handler: Callable[[Any, Any], Awaitable[None]], use_uvloop: bool) -> Serve:
    """A task for each connection, with asyncio's streams."""

    def run(options: argparse.Namespace) -> None:
        import asyncio

        async def main() -> None:
            server = await asyncio.start_server(handler, HOST, options.port, backlog=BACKLOG)
            await serve_asyncio(server)

        run_asyncio(main, use_uvloop)

    return run


def asyncio_protocol(make: Callable[[], Any], use_uvloop: bool) -> Serve:
    """An `asyncio.Protocol` for each connection; `make` gives the class, so that asyncio is
    imported only in a server that uses it."""

    def run(options: argparse.Namespace) -> None:
        import asyncio

        async def main() -> None:
            loop = asyncio.get_running_loop()
            server = await loop.create_server(make(), HOST, options.port, backlog=BACKLOG)
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
