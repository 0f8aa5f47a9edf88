"""The PROXY protocol, versions 1 and 2: what a header is, and what it says.

Pure functions: bytes in, a `ProxyHeader` or a `ValueError` out, as haproxy's
doc/proxy-protocol.txt specifies. `header_size` tells the length of a header before all of
it is there, so that no byte behind it is consumed.

Where the specification leaves a choice: a header of more than 4096 bytes is refused,
as nginx does; a connection forwarded for a datagram socket, or for something unknown,
keeps its real addresses; checksums are verified.
"""

from __future__ import annotations

import os
import re
import socket
from functools import cache
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from trio_wknet._sockets.address import SocketAddress

MAX_HEADER = 4096  # bytes

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_MOST_LINE = 107  # bytes, CRLF included
_LEAST_LINE = len(b"PROXY UNKNOWN\r\n")
_UNKNOWN = re.compile(rb"PROXY UNKNOWN( .*)?\r\n", re.DOTALL)
_PORT = rb"(0|[1-9][0-9]{0,4})"
_LINE = re.compile(rb"PROXY TCP([46]) ([^ ]+) ([^ ]+) " + _PORT + b" " + _PORT + rb"\r\n")

_FIXED = 16  # bytes of version 2 before the addresses
_LOCAL, _PROXY = 0, 1
_FAMILIES = (socket.AF_UNSPEC, socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
_ADDRESS_BYTES = {socket.AF_INET: 4, socket.AF_INET6: 16, socket.AF_UNIX: 108}
_STREAM, _DATAGRAM = 1, 2
_CRC32C = 3  # its type


@attrs.frozen(kw_only=True)
class ProxyHeader:
    """What a load balancer said about a connection, by the PROXY protocol."""

    version: int
    """1 or 2."""

    source: SocketAddress | None
    """The client's address, as `socket.socket.getpeername` would return it. None if the
    balancer did not say, as for its own health checks: then the connection's real addresses
    apply."""

    destination: SocketAddress | None
    """The address that the client connected to; None like ``source``."""

    tlvs: tuple[tuple[int, bytes], ...] = ()
    """Further fields of version 2, as (type, value) pairs in their order: for
    example type 1 is the ALPN protocol, 2 the host name that the client asked for."""


def header_size(data: bytes) -> int:
    """The number of bytes needed, given the first ones: the header's own size if they are
    all there, else how many to wait for.

    Raises:
      ValueError: if no header begins like this, or it is too long.
    """
    if not data:
        return 1
    if data[: len(_SIGNATURE)] == _SIGNATURE[: len(data)]:
        return _binary_size(data)
    if data[:6] == b"PROXY "[: len(data)]:
        return _line_size(data)
    raise ValueError(f"it does not begin like one, but with {data[:16]!r}")


def _binary_size(data: bytes) -> int:
    if len(data) < _FIXED:
        return _FIXED
    size = _FIXED + int.from_bytes(data[14:16], "big")
    if size > MAX_HEADER:
        raise ValueError(f"it is longer than {MAX_HEADER} bytes: {size}")
    return size


def _line_size(data: bytes) -> int:
    end = data.find(b"\r\n", 0, _MOST_LINE)
    if end >= 0:
        return end + 2
    if len(data) >= _MOST_LINE:
        raise ValueError(f"it is longer than {_MOST_LINE} bytes: {data[:_MOST_LINE]!r}")
    return max(len(data) + 1, _LEAST_LINE)


def parse_header(data: bytes) -> ProxyHeader:
    """Parse a complete header.

    Raises:
      ValueError: if it is malformed; the message says how.
    """
    return _parse_binary(data) if data.startswith(_SIGNATURE) else _parse_line(data)


# --- version 1 --------------------------------------------------------------------


def _parse_line(line: bytes) -> ProxyHeader:
    if _UNKNOWN.fullmatch(line):
        return ProxyHeader(version=1, source=None, destination=None)
    found = _LINE.fullmatch(line)
    if found is None:
        raise ValueError(f"it is malformed: {line!r}")
    digit, *hosts, source_port, destination_port = found.groups()
    family = socket.AF_INET if digit == b"4" else socket.AF_INET6
    try:
        packed = [socket.inet_pton(family, host.decode("ascii")) for host in hosts]
    except (OSError, ValueError):
        raise ValueError(f"it holds no such address: {line!r}") from None
    return ProxyHeader(
        version=1,
        source=_inet_address(family, packed[0], int(source_port)),
        destination=_inet_address(family, packed[1], int(destination_port)),
    )


def _inet_address(family: int, packed: bytes, port: int) -> tuple[Any, ...]:
    if port > 65535:
        raise ValueError(f"it holds no such port: {port}")
    host = socket.inet_ntop(family, packed)
    return (host, port) if family == socket.AF_INET else (host, port, 0, 0)


# --- version 2 --------------------------------------------------------------------


def _parse_binary(data: bytes) -> ProxyHeader:
    version, command = divmod(data[12], 16)
    if version != 2 or command not in (_LOCAL, _PROXY):
        raise ValueError(f"it holds no such version and command: {data[12]:#04x}")
    if command == _LOCAL:
        return ProxyHeader(version=2, source=None, destination=None)
    kind, transport = divmod(data[13], 16)
    if kind >= len(_FAMILIES) or transport > _DATAGRAM:
        raise ValueError(f"it holds no such family and transport: {data[13]:#04x}")
    family = _FAMILIES[kind]
    if family == socket.AF_UNSPEC or transport != _STREAM:
        return ProxyHeader(version=2, source=None, destination=None)
    source, destination, end = _addresses(family, data)
    return ProxyHeader(
        version=2, source=source, destination=destination, tlvs=_parse_tlvs(data, end)
    )


def _addresses(family: int, data: bytes) -> tuple[Any, Any, int]:
    """Source, destination, and where they end."""
    size = _ADDRESS_BYTES[socket.AddressFamily(family)]
    ports = _FIXED + 2 * size
    end = ports if family == socket.AF_UNIX else ports + 4
    if len(data) < end:
        raise ValueError(f"it is too short for its addresses: {len(data)} bytes")
    first, second = data[_FIXED : _FIXED + size], data[_FIXED + size : ports]
    if family == socket.AF_UNIX:
        return _unix_address(first), _unix_address(second), end
    return (
        _inet_address(family, first, int.from_bytes(data[ports : ports + 2], "big")),
        _inet_address(family, second, int.from_bytes(data[ports + 2 : end], "big")),
        end,
    )


def _unix_address(field: bytes) -> str | bytes:
    """A path; or b"\\0name", an abstract name; or nothing."""
    if field[0]:
        return os.fsdecode(field.partition(b"\0")[0])
    return field.rstrip(b"\0") or ""


def _parse_tlvs(data: bytes, start: int) -> tuple[tuple[int, bytes], ...]:
    found = []
    while start < len(data):
        value = start + 3
        end = value + int.from_bytes(data[start + 1 : value], "big")
        if value > len(data) or end > len(data):
            raise ValueError(f"its value of type {data[start]:#04x} is cut short")
        if data[start] == _CRC32C:
            _verify(data, value, end)
        found.append((data[start], data[value:end]))
        start = end
    return tuple(found)


def _verify(data: bytes, start: int, end: int) -> None:
    cleared = data[:start] + bytes(end - start) + data[end:]
    if data[start:end] != crc32c(cleared).to_bytes(4, "big"):
        raise ValueError("its checksum is wrong")


@cache
def _crc32c_table() -> tuple[int, ...]:
    table = list(range(256))
    for _ in range(8):
        table = [entry >> 1 ^ (0x82F63B78 if entry & 1 else 0) for entry in table]
    return tuple(table)


def crc32c(data: bytes) -> int:
    """The checksum of RFC 4960, appendix B."""
    table = _crc32c_table()
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
