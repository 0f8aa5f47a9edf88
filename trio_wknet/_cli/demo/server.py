"""The demo's servers, a process each: `python -m trio_wknet._cli.demo.server NAME`.

It speaks in lines of JSON. The first one on stdout says where the server listens;
every line that comes on stdin is answered with one of statistics; when stdin ends, the
server does. A pipe ends with its process, however that dies, so no server is left over.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
import trio

from trio_wknet._engine import open_engine

HOST = "127.0.0.1"


async def echo(stream: trio.abc.Stream) -> None:
    """The handler. Both transports run this very function."""
    try:
        async for data in stream:
            await stream.send_all(data)
    except trio.BrokenResourceError:
        pass  # the load generator leaves in the middle of messages


async def serve_wknet(reactors: int | None) -> None:
    """Echo on this library's reactors."""
    async with open_engine(reactors) as engine, trio.open_nursery() as nursery:
        listener = await engine.listen(f"tcp://{HOST}:0")
        nursery.start_soon(listener.serve, echo)

        def statistics() -> dict[str, Any]:
            return {
                "listener": attrs.asdict(listener.statistics()),
                "engine": attrs.asdict(engine.statistics()),
            }

        await answer({"port": listener.address[1], "reactors": engine.reactors}, statistics)
        nursery.cancel_scope.cancel()


async def serve_trio() -> None:
    """Echo on Trio's own sockets."""
    async with trio.open_nursery() as nursery, trio.open_nursery() as handlers:
        serve = partial(trio.serve_tcp, echo, 0, host=HOST, handler_nursery=handlers)
        listeners: list[trio.SocketListener] = await nursery.start(serve)
        port = listeners[0].socket.getsockname()[1]
        await answer({"port": port}, lambda: {"handlers": len(handlers.child_tasks)})
        nursery.cancel_scope.cancel()
        handlers.cancel_scope.cancel()


async def answer(hello: dict[str, Any], statistics: Callable[[], dict[str, Any]]) -> None:
    """Say hello, and then the statistics whenever they are asked for, until stdin ends."""
    print(json.dumps(hello), flush=True)
    async with trio.lowlevel.FdStream(os.dup(0)) as questions:
        async for asked in questions:
            for _ in range(asked.count(b"\n")):
                now = {"at": trio.current_time(), **statistics()}
                print(json.dumps(now), flush=True)


def main(name: str, reactors: str = "") -> None:
    """Serve; `reactors` is a number, or empty for the library's own choice."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if name == "wknet":
        trio.run(serve_wknet, int(reactors) if reactors else None)
    else:
        trio.run(serve_trio)


if __name__ == "__main__":
    main(*sys.argv[1:])
