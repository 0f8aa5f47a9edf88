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
    is_secure: bool = False
    """Whether it is over TLS."""


_PORTS = {"ws": 80, "wss": 443}


def parse_url(url: object) -> URL:
    """Parse ``ws://host[:port][/path][?query]``, or ``wss://...``.

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
    if parts.scheme not in _PORTS:
        raise ValueError(f"url must start with 'ws://' or 'wss://', not {url!r}")
    if not parts.hostname:
        raise ValueError(f"url {url!r} has no host")
    if parts.username is not None:
        raise ValueError(f"url {url!r} must hold no user; send an Authorization header")
    if parts.fragment or url.endswith("#"):
        raise ValueError(f"url {url!r} must hold no fragment (RFC 6455, section 3)")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if port is None:
        port = _PORTS[parts.scheme]
    return URL(parts.hostname, port, target, parts.netloc, parts.scheme == "wss")
