"""What the tests of the PROXY protocol share: headers as balancers send them."""

from __future__ import annotations

import socket
from typing import Any

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
LINE = b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"
SOURCE = ("192.168.0.1", 56324)
TRUSTED = ["127.0.0.0/8", "unix:"]


def version_2(
    body: bytes = b"", *, command: int = 0x21, kind: int = 0x11, size: int | None = None
) -> bytes:
    length = len(body) if size is None else size
    return SIGNATURE + bytes([command, kind]) + length.to_bytes(2, "big") + body


def inet(source: tuple[Any, ...], destination: tuple[Any, ...], tlvs: bytes = b"") -> bytes:
    """A header of version 2 for TCP."""
    family = socket.AF_INET6 if ":" in source[0] else socket.AF_INET
    body = b"".join(
        [
            socket.inet_pton(family, source[0]),
            socket.inet_pton(family, destination[0]),
            source[1].to_bytes(2, "big"),
            destination[1].to_bytes(2, "big"),
        ]
    )
    return version_2(body + tlvs, kind=0x21 if family == socket.AF_INET6 else 0x11)


def tlv(kind: int, value: bytes) -> bytes:
    return bytes([kind]) + len(value).to_bytes(2, "big") + value
