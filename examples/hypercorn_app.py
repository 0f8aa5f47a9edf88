"""An ASGI application served by hypercorn: ``python examples/hypercorn_app.py [port]``,
or with HTTP/2 over TLS: ``python examples/hypercorn_app.py port certificate.pem key.pem``.

Ends gracefully on SIGTERM and Ctrl-C: requests under way are answered. A second signal ends
it at once.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import trio
from hypercorn.config import Config
from hypercorn.trio import serve

import trio_wknet


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        for _ in ("startup", "shutdown"):
            event = await receive()
            await send({"type": event["type"] + ".complete"})
        return
    assert scope["type"] == "http"
    words = f"{scope['path']} by HTTP/{scope['http_version']}\n".encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(words))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": words})


async def main(port: str = "5100", certificate: str | None = None, key: str | None = None) -> None:
    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.certfile, config.keyfile = certificate, key
    config.loglevel = "WARNING"
    async with trio_wknet.drain_on_signal() as shutdown, trio.open_nursery() as nursery:
        stop = shutdown.wait
        binds = await nursery.start(partial(serve, app, config, shutdown_trigger=stop))
        address = urlsplit(binds[0])
        print("listening on", (address.hostname, address.port), flush=True)


if __name__ == "__main__":
    trio_wknet.run(main, *sys.argv[1:])  # instead of trio.run
