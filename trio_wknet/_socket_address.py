"""Addresses of sockets: what Python makes of the system's."""

from __future__ import annotations

import os
import socket
import struct
from typing import Any, TypeAlias

# TCP over IPv4, TCP over IPv6, a unix socket's path, and an abstract name. That of
# another family may be something else.
SocketAddress: TypeAlias = tuple[str, int] | tuple[str, int, int, int] | str | bytes

_FAMILY = 2  # bytes before the rest of the name


def socket_address(raw: bytes) -> SocketAddress:
    """What `socket.socket.getsockname` would give for a ``struct sockaddr``."""
    (family,) = struct.unpack_from("=H", raw)
    if family == socket.AF_INET:
        port, host = struct.unpack_from("!H4s", raw, _FAMILY)
        return socket.inet_ntop(family, host), port
    if family == socket.AF_INET6:
        port, flow, host = struct.unpack_from("!HI16s", raw, _FAMILY)
        (scope,) = struct.unpack_from("=I", raw, 24)
        return socket.inet_ntop(family, host), port, flow, scope
    if family == socket.AF_UNIX:
        path = raw[_FAMILY:]
        return path if path[:1] == b"\0" else os.fsdecode(path.partition(b"\0")[0])
    if family == socket.AF_VSOCK:
        port, host = struct.unpack_from("=II", raw, 4)
        return host, port
    other: Any = (family, raw[_FAMILY:16])
    return other  # type: ignore[no-any-return]
