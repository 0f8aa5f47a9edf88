"""Servers of TLS, each by its name: ``python benchmarks/experiment.py tls --serve NAME`` runs
one. They echo, say which port they listen on, and end when standard input does."""

from __future__ import annotations

import argparse
import os
import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

from harness.answers import say
from harness.asgi_app import app
from harness.servers import asyncio_echo, echo
from harness.serving import HOST, run_asyncio, serve_asyncio, trio_until_stdin_ends

OWN, PEER = "trio", "uvloop"


def context() -> ssl.SSLContext:
    """A server's, whose certificate has a key of ECDSA P-256."""
    import trustme

    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("localhost").configure_cert(made)
    return made


def own() -> None:
    """`trio.SSLStream` on Trio's transport."""
    import trio

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            serve = partial(trio.serve_ssl_over_tcp, echo, 0, context(), host=HOST)
            (listener,) = await nursery.start(serve)
            say(listener.transport_listener.socket.getsockname()[1])
            await trio_until_stdin_ends(trio.sleep_forever)
            nursery.cancel_scope.cancel()

    trio.run(main)


def ours(reactors: int) -> None:
    import trio

    from trio_wknet import open_wknet_listener

    async def main() -> None:
        address = f"tls://{HOST}:0"
        async with open_wknet_listener(address, tls=context(), reactors=reactors) as listener:
            say(listener.address[1])
            await trio_until_stdin_ends(partial(listener.serve, echo))

    trio.run(main)


def trios_on_ours(reactors: int) -> None:
    """`trio.SSLStream` on this transport."""
    import trio

    from trio_wknet import open_wknet_listener

    settings = context()

    async def handler(conn: Any) -> None:
        await echo(trio.SSLStream(conn, settings, server_side=True))

    async def main() -> None:
        async with open_wknet_listener(f"tcp://{HOST}:0", reactors=reactors) as listener:
            say(listener.address[1])
            await trio_until_stdin_ends(partial(listener.serve, handler))

    trio.run(main)


def peer() -> None:
    """asyncio's streams on uvloop."""

    async def main() -> None:
        import asyncio

        # The load leaves in the middle of handshakes.
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        server = await asyncio.start_server(asyncio_echo, HOST, 0, ssl=context(), backlog=65535)
        await serve_asyncio(server)

    run_asyncio(main, use_uvloop=True)


def hypercorn(reactors: int | None) -> None:
    """A one-line application, on this transport; None: on Trio's."""
    import trio
    import trustme
    from hypercorn.config import Config
    from hypercorn.trio import serve

    import trio_wknet

    async def main(certificate: str) -> None:
        config = Config.from_mapping(
            bind=f"{HOST}:0", errorlog=None, certfile=certificate, keyfile=certificate
        )
        async with trio.open_nursery() as nursery:
            run = partial(serve, app, config, shutdown_trigger=trio.sleep_forever)
            (bind,) = await nursery.start(run)
            say(urlsplit(bind).port)
            await trio_until_stdin_ends(trio.sleep_forever)
            nursery.cancel_scope.cancel()

    with TemporaryDirectory() as folder:
        path = Path(folder) / "server.pem"
        trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(path)
        if reactors is None:
            trio.run(main, str(path))
        else:
            trio_wknet.run(main, str(path), reactors=reactors)


SERVERS: dict[str, Callable[[], None]] = {
    OWN: own,
    PEER: peer,
    "wknet-threaded": partial(ours, 1),
    "wknet-inloop": partial(ours, 0),
    "sslstream-on-wknet": partial(trios_on_ours, 1),
    "hypercorn-trio": partial(hypercorn, None),
    "hypercorn-wknet": partial(hypercorn, 1),
}


def run(options: argparse.Namespace) -> None:
    """Be the server that ``options.serve`` names, on the core ``options.core``."""
    import resource

    os.sched_setaffinity(0, {options.core})
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    SERVERS[options.serve]()
