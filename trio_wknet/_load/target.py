"""Where the load goes, and from which local addresses, as the native side takes them.

A connection that we close first stays in TIME_WAIT on our side for a minute, and
holds one of some 28 000 local ports for its (source address, server) pair. Churn
would use them all up within seconds, and a plain run with 30 000 connections could
not even begin. On the IPv4 loopback the whole of 127.0.0.0/8 is ours, so connects
take turns with 127.0.0.1, 127.0.0.2, ...; each brings its own set of ports. Closing
by reset would avoid TIME_WAIT too, but the server under test would see the resets.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
import struct
from typing import Any

from trio_wknet._sockets.address import parse_address

UNIX = "unix://"
CHURN_SOURCES = 64
CONNECTIONS_PER_SOURCE = 20_000
MAX_SOURCES = 250
SPARE_DESCRIPTORS = 16


def unix_path(host: str) -> str | None:
    """The path of a `unix:///path` or `unix://@name` host, None for any other host.

    Raises `ValueError` when it is not absolute or too long for a socket.
    """
    if not host.startswith(UNIX):
        return None
    try:
        return parse_address(host).path
    except ValueError as exc:
        raise ValueError(f"host: {exc}") from None


def resolve(host: str, port: int | None, timeout: float) -> bytes:
    """The server's address as `struct sockaddr` bytes; `OSError` if there is none.

    Of several addresses it is the first that takes a connection within `timeout`
    seconds, or the first one if none does. A single address is not tried.
    """
    path = unix_path(host)
    if path is not None:
        return pack(socket.AF_UNIX, path)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as unknown:
        raise socket.gaierror(unknown.errno, f"{host!r}: {unknown.strerror}") from None
    answering = (info for info in found if len(found) > 1 and _answers(info, timeout))
    family, _, _, _, address = next(answering, found[0])
    return pack(family, address)


def _answers(info: tuple[Any, ...], timeout: float) -> bool:
    with socket.socket(info[0], socket.SOCK_STREAM) as probe:
        probe.settimeout(timeout)
        return probe.connect_ex(info[4]) == 0


def pack(family: int, address: Any) -> bytes:
    """The `struct sockaddr` of an address in the form that `socket` gives it."""
    head = struct.pack("=H", family)
    if family == socket.AF_UNIX:
        name = os.fsencode(address)
        return head + name + (b"" if name.startswith(b"\0") else b"\0")
    host, port, *rest = address
    raw = socket.inet_pton(family, host.partition("%")[0])
    if family == socket.AF_INET:
        return head + struct.pack("!H4s8x", port, raw)
    flow, scope = rest
    return head + struct.pack("!HI16s", port, flow, raw) + struct.pack("=I", scope)


def pick_sources(target: bytes, wanted: int | None, connections: int, churn: bool) -> int:
    """How many loopback addresses connects take turns with; 0 leaves it to the kernel.

    Raises `ValueError` when some are wanted and the target is not on 127.0.0.0/8.
    """
    loopback = target[:2] == struct.pack("=H", socket.AF_INET) and target[4] == 127
    if wanted is not None and wanted > 0 and not loopback:
        raise ValueError(
            f"sources: only a server on 127.0.0.0/8 can be loaded from several "
            f"addresses, so not {wanted}"
        )
    if wanted is not None or not loopback:
        return wanted or 0
    if churn:
        return CHURN_SOURCES
    needed = -(-connections // CONNECTIONS_PER_SOURCE)
    return min(needed, MAX_SOURCES) if needed > 1 else 0


def pack_sources(number: int) -> tuple[bytes, ...]:
    """127.0.0.1 and following, as `struct sockaddr` bytes with no port."""
    return tuple(pack(socket.AF_INET, (f"127.0.0.{i + 1}", 0)) for i in range(number))


def reserve_descriptors(connections: int) -> None:
    """Ensure that this number of sockets can be opened.

    Raises the process's soft limit if it must and the hard limit lets it, else
    `OSError` (EMFILE) that names the numbers.
    """
    in_use = len(os.listdir("/proc/self/fd"))
    needed = connections + in_use + SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise OSError(
            errno.EMFILE,
            f"{connections} connections were asked for, which with the {in_use} descriptors "
            f"in use need {needed}; the limit is {hard} (ulimit -Hn)",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
