"""An ASGI application of one line, so that what serves it is measured."""

from __future__ import annotations

from typing import Any

HEADERS = [(b"content-type", b"text/plain"), (b"content-length", b"5")]
START = {"type": "http.response.start", "status": 200, "headers": HEADERS}
BODY = {"type": "http.response.body", "body": b"hello"}


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        raise NotImplementedError  # hypercorn goes on without the others
    await send(START)
    await send(BODY)
