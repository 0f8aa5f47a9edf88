"""The command line: ``python -m examples.im --help``."""

from __future__ import annotations

import argparse
import logging
import os
import webbrowser
from functools import partial
from typing import Any

import trio

from .server import Settings, run
from .store import open_local


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.im", description="Serve.")
    parser.add_argument("--host", default="127.0.0.1", help="to listen on; default 127.0.0.1")
    parser.add_argument("--port", type=int, default=5222, help="for TCP; default 5222")
    parser.add_argument("--web-port", type=int, default=8080, help="for the page; default 8080")
    parser.add_argument(
        "--reuse-port", action="store_true", help="let the next version listen, too"
    )
    parser.add_argument("--history", default="im.db", metavar="FILE", help="default im.db")
    parser.add_argument("--no-browser", action="store_true", help="do not open the page")
    parser.add_argument("--log", action="store_true", help="say who leaves, and why")
    return parser.parse_args()


async def main(options: argparse.Namespace) -> None:
    settings = Settings(
        host=options.host,
        port=options.port,
        web_port=options.web_port,
        reuse_port=options.reuse_port,
    )
    async with trio.open_nursery() as nursery:
        serve = partial(run, settings, partial(open_local, options.history))
        tcp, web = await nursery.start(serve)
        say_where(tcp, web)
        if not options.no_browser and os.environ.keys() & {"DISPLAY", "WAYLAND_DISPLAY"}:
            await trio.to_thread.run_sync(webbrowser.open, page_of(web))


def say_where(tcp: Any, web: Any) -> None:
    print("listening on", tcp[:2], flush=True)
    print("the page is", page_of(web), flush=True)


def page_of(web: Any) -> str:
    return f"http://{web[0]}:{web[1]}/"


if __name__ == "__main__":
    options = arguments()
    logging.basicConfig(level=logging.INFO if options.log else logging.WARNING)
    trio.run(main, options)
