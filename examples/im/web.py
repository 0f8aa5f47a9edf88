"""What is asked by HTTP, on the WebSockets' port: the page, and metrics."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from trio_wknet import Engine, Request, Response

PAGE = (Path(__file__).parent / "page.html").read_bytes()
HTML = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self' ws: wss:; img-src data:",
}
TEXT = {"Content-Type": "text/plain; charset=utf-8"}


def pages(engine: Engine) -> Callable[[Request], Response | None]:
    """What answers requests, with None for those of WebSockets."""
    metrics = metrics_of(engine)

    def answer(request: Request) -> Response | None:
        match request.path:
            case "/socket":
                return None
            case "/":
                return Response(200, PAGE, HTML)
            case "/health":
                return Response(200, b"well\n", TEXT)
            case "/metrics" if metrics:
                return Response(200, metrics(), TEXT)
        return Response(404, b"there is nothing here\n", TEXT)

    return answer


def metrics_of(engine: Engine) -> Callable[[], bytes] | None:
    """What Prometheus reads, if its client is installed."""
    try:
        from prometheus_client import CollectorRegistry, generate_latest
    except ImportError:
        return None
    from trio_wknet.contrib.prometheus import WknetCollector

    registry = CollectorRegistry()
    registry.register(WknetCollector({"im": engine}))
    return partial(generate_latest, registry)
