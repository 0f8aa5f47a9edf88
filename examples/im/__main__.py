"""The command line: ``python -m examples.im --help``."""

from __future__ import annotations

import argparse
import logging
import os
import webbrowser
from contextlib import ExitStack
from functools import partial
from typing import Any

import trio

from .server import Settings, run
from .store import open_local


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.im", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="to listen on; default 127.0.0.1")
    parser.add_argument("--port", type=int, default=5222, help="for TCP; default 5222")
    parser.add_argument("--web-port", type=int, default=8080, help="for the page; default 8080")
    parser.add_argument(
        "--reuse-port", action="store_true", help="let the next version listen, too"
    )
    parser.add_argument("--history", default="im.db", metavar="FILE", help="default im.db")
    parser.add_argument("--nodes", type=int, default=1, help="workers; more than one need Redis")
    parser.add_argument("--redis", metavar="URL", help="be a node of those that share it")
    parser.add_argument("--no-browser", action="store_true", help="do not open the page")
    parser.add_argument("--log", action="store_true", help="say who leaves, and why")
    return parser.parse_args()


async def serve(options: argparse.Namespace) -> None:
    """Be one process."""
    open_store: partial[Any] = partial(open_local, options.history)
    if options.redis:
        from .cluster import open_shared

        open_store = partial(open_shared, options.redis)
    settings = Settings(
        host=options.host,
        port=options.port,
        web_port=options.web_port,
        reuse_port=options.reuse_port,
    )
    async with trio.open_nursery() as nursery:
        tcp, web = await nursery.start(run, settings, open_store)
        await say_where(tcp, web, options)


async def serve_nodes(options: argparse.Namespace) -> None:
    """Be the parent of several."""
    from .nodes import redis_server, reserved, run_nodes

    with ExitStack() as stack:
        url = options.redis or stack.enter_context(redis_server())
        print("Redis is", url, flush=True)
        async with reserved(options.host, options.port, options.web_port) as (port, web_port):
            await say_where((options.host, port), (options.host, web_port), options)
            node = ["--redis", url, "--reuse-port", "--no-browser", "--host", options.host]
            node += ["--port", str(port), "--web-port", str(web_port)]
            await run_nodes(options.nodes, node + ["--log"] * options.log)


async def say_where(
    tcp: tuple[str, int], web: tuple[str, int], options: argparse.Namespace
) -> None:
    page = f"http://{web[0]}:{web[1]}/"
    print("listening on", tcp[:2], flush=True)
    print("the page is", page, flush=True)
    if not options.no_browser and os.environ.keys() & {"DISPLAY", "WAYLAND_DISPLAY"}:
        await trio.to_thread.run_sync(webbrowser.open, page)


if __name__ == "__main__":
    options = arguments()
    logging.basicConfig(level=logging.INFO if options.log else logging.WARNING)
    trio.run(serve_nodes if options.nodes > 1 else serve, options)
