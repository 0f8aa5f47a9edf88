"""Addresses: what ``tcp://`` and ``unix://`` mean, and what the system's look like in Python."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import attrs

from trio_wknet._usage_errors import as_tcp

# TCP over IPv4, TCP over IPv6, a unix socket's path, and an abstract name. That of
# another family may be something else.
SocketAddress: TypeAlias = tuple[str, int] | tuple[str, int, int, int] | str | bytes

MAX_UNIX_NAME = 107  # bytes
_FAMILY = 2  # bytes before the rest of the name


@attrs.frozen
class Address:
    """A parsed address: a path (or a null character and an abstract name), or a host (None:
    all interfaces) and a port."""

    text: str
    host: str | None
    port: int
    path: str | None

    @property
    def file(self) -> str | None:
        """The path, if it is one."""
        return None if self.path is None or self.path.startswith("\0") else self.path


def parse_address(address: str | int) -> Address:
    """Parse ``"tcp://host:port"``, ``"unix:///path"``, ``"unix://@name"`` or a port.

    Raises:
      TypeError: if it is neither a string nor an integer.
      ValueError: if it is not such an address; the message says what is wrong.
    """
    if isinstance(address, bool) or not isinstance(address, (str, int)):
        raise TypeError(f"address must be a string or a port, not {address!r}{_advice(address)}")
    if isinstance(address, int):
        if not 0 <= address <= 65535:
            raise ValueError(f"address: a port must be from 0 to 65535, not {address}")
        return Address(f"tcp://*:{address}", None, address, None)
    scheme, separator, _ = address.partition("://")
    if separator and scheme == "tcp":
        return _parse_tcp(address)
    if separator and scheme == "unix":
        return _parse_unix(address)
    raise ValueError(
        f"address must start with 'tcp://' or 'unix://', or be a port number, not {address!r}"
        f"{_advice(address)}"
    )


def _advice(address: object) -> str:
    """How to write the address that was probably meant, or ""."""
    if isinstance(address, tuple) and len(address) in (2, 4):
        return as_tcp(*address[:2])
    if isinstance(address, Path) and address.is_absolute():
        return f": write 'unix://{address}'"
    if not isinstance(address, str):
        return ""
    path = address.removeprefix("unix:")
    if path.startswith("/"):
        return f": write 'unix://{path}'"
    host, _, port = address.removeprefix("tcp:").rpartition(":")
    return as_tcp(host.strip("[]"), int(port)) if host and port.isdecimal() else ""


def _parse_tcp(address: str) -> Address:
    # urlsplit ignores white space, and a "?" at the end.
    if not address.isprintable() or set(" ?#") & set(address):
        raise ValueError(f"address {address!r} has more than a host and a port")
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError as exc:
        raise ValueError(f"address {address!r}: {exc}") from None
    if port is None:
        raise ValueError(f"address {address!r} has no port; port 0 takes a free one")
    if parts.path or parts.username is not None:
        raise ValueError(f"address {address!r} has more than a host and a port")
    host = parts.hostname
    return Address(address, None if host in (None, "", "*") else host, port, None)


def _parse_unix(address: str) -> Address:
    """What follows is used literally: a path may hold any character, and ``%`` is one."""
    path = address[len("unix://") :]
    if not path.startswith("/") and not (path.startswith("@") and len(path) > 1):
        raise ValueError(
            f"address {address!r} must hold an absolute path, 'unix:///path', "
            f"or an abstract name, 'unix://@name'"
        )
    if "\0" in path:
        raise ValueError(f"address {address!r} contains a null character")
    try:
        size = len(os.fsencode(path))
    except UnicodeEncodeError as exc:
        raise ValueError(f"address {address!r} is not a path: {exc}") from None
    if size > MAX_UNIX_NAME:
        raise ValueError(
            f"address {address!r} takes {size} bytes, but a unix socket's path or name takes "
            f"at most {MAX_UNIX_NAME}"
        )
    return Address(address, None, 0, "\0" + path[1:] if path.startswith("@") else path)


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
