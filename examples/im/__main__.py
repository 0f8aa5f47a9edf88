"""The command line: ``python -m examples.im --help``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import webbrowser
from functools import partial
from pathlib import Path
from typing import Any

import trio

from .server import run
from .store import open_local


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.im", description=__doc__)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="to listen on; default 127.0.0.1")
    add("--port", type=int, default=5222, help="for TCP; default 5222")
    add("--web-port", type=int, default=8080, help="for the page; default 8080")
    add("--reuse-port", action="store_true", help="let the next version listen, too")
    add("--history", default="im.db", metavar="FILE", help="default im.db; Redis has FILE.redis")
    add("--nodes", type=int, default=1, help="workers; more than one need Redis")
    add("--redis", metavar="URL", help="be a node, or some, of those that share it")
    add("--no-browser", action="store_true", help="do not open the page")
    add("--log", action="store_true", help="say who leaves, and why")
    return parser.parse_args()


async def serve(options: argparse.Namespace) -> None:
    """Be one process."""
    open_store: partial[Any] = partial(open_local, options.history)
    if options.redis:
        from .cluster import open_shared

        open_store = partial(open_shared, options.redis)
    where = options.host, options.port, options.web_port, options.reuse_port
    async with trio.open_nursery() as nursery:
        await say_where(options, *await nursery.start(run, open_store, *where))


async def serve_nodes(options: argparse.Namespace) -> None:
    """Be the parent of several."""
    from .nodes import reserve, run_nodes

    host, folder = options.host, Path(options.history + ".redis")
    with reserve(host, options.port) as tcp, reserve(host, options.web_port) as web:
        where = [tcp.getsockname(), web.getsockname()]
        node = [sys.executable, "-m", str(__package__), *sys.argv[1:], "--nodes=1", "--reuse-port"]
        node += ["--no-browser", f"--port={where[0][1]}", f"--web-port={where[1][1]}"]
        ready = partial(say_where, options, *where)
        await run_nodes(options.nodes, options.redis, folder, node, ready)


async def say_where(options: argparse.Namespace, tcp: Any, web: Any) -> None:
    page = f"http://{web[0]}:{web[1]}/"
    print("listening on", tcp[:2], flush=True)
    print("the page is", page, flush=True)
    if not options.no_browser and os.environ.keys() & {"DISPLAY", "WAYLAND_DISPLAY"}:
        await trio.to_thread.run_sync(webbrowser.open, page)


if __name__ == "__main__":
    options = arguments()
    logging.basicConfig(level=logging.INFO if options.log else logging.WARNING)
    trio.run(serve_nodes if options.nodes > 1 else serve, options)
