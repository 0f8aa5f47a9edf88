"""What is asked by HTTP, on the WebSockets' port: the page, a token for a new name, and metrics.

In a service that knows its users, logging in there would give the token.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from urllib.parse import parse_qs

from trio_wknet import Engine, Request, Response

from . import tokens
from .hub import Hub
from .protocol import NAME

SOCKET = "/socket"
HTML = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self' ws: wss:; img-src data:",
}
TEXT = {"Content-Type": "text/plain; charset=utf-8"}
JSON = {"Content-Type": "application/json", "Cache-Control": "no-store"}


class Web:
    def __init__(self, hub: Hub, metrics: Callable[[], bytes] | None) -> None:
        self._hub = hub
        self._metrics = metrics
        self._page = (Path(__file__).parent / "page.html").read_bytes()

    def answer(self, request: Request) -> Response | Awaitable[Response] | None:
        """None: it is for a WebSocket."""
        if request.path == SOCKET:
            return None
        if request.path == "/":
            return Response(200, self._page, HTML)
        if request.path == "/health":
            return Response(200, b"well\n", TEXT)
        if request.path == "/metrics" and self._metrics:
            return Response(200, self._metrics(), TEXT)
        if request.path == "/token":
            return self._give_token(request)
        return Response(404, b"there is nothing here\n", TEXT)

    async def _give_token(self, request: Request) -> Response:
        name = parse_qs(request.query).get("name", [""])[0]
        if not NAME.fullmatch(name):
            return Response(400, b"a name has 1 to 32 letters, digits, _ or -\n", TEXT)
        if not await self._hub.store.claim(name):
            return Response(409, b"that name is taken\n", TEXT)
        token = tokens.issue(self._hub.secret, name)
        return Response(200, json.dumps({"name": name, "token": token}).encode(), JSON)


def metrics_of(engine: Engine) -> Callable[[], bytes] | None:
    """What Prometheus reads, if its client is installed."""
    try:
        from prometheus_client import CollectorRegistry, generate_latest

        from trio_wknet.contrib.prometheus import WknetCollector
    except ImportError:
        return None
    registry = CollectorRegistry()
    registry.register(WknetCollector({"im": engine}))
    return partial(generate_latest, registry)
