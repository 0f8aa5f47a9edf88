"""URLs of WebSockets."""

from __future__ import annotations

from urllib.parse import urlsplit

import attrs


@attrs.frozen
class URL:
    """Where a WebSocket is."""

    host: str
    port: int
    target: str
    authority: str
    """The Host header."""


_PORTS = {"ws": 80, "wss": 443}


def parse_url(url: object, *, secure: bool = False) -> URL:
    """Parse ``ws://host[:port][/path][?query]``; if it may be `secure`, ``wss://...``, too.

    Raises:
      TypeError, ValueError: if it is something else; the message names ``url``.
    """
    if not isinstance(url, str):
        raise TypeError(f"url must be a string, not {url!r}")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(f"url {url!r} must be ASCII, with other characters percent-encoded")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise ValueError(f"url {url!r}: {exc}") from None
    if parts.scheme != "ws" and not (secure and parts.scheme == "wss"):
        raise ValueError(f"url must start with 'ws://', not {url!r}")
    if not parts.hostname:
        raise ValueError(f"url {url!r} has no host")
    if parts.username is not None:
        raise ValueError(f"url {url!r} must hold no user; send an Authorization header")
    if parts.fragment or url.endswith("#"):
        raise ValueError(f"url {url!r} must hold no fragment (RFC 6455, section 3)")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return URL(parts.hostname, _PORTS[parts.scheme] if port is None else port, target, parts.netloc)
