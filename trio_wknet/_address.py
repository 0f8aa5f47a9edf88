"""Addresses: what ``tcp://`` and ``unix://`` mean, and sockets that listen there."""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import attrs
import trio

from trio_wknet._misuse import as_tcp

if TYPE_CHECKING:
    from trio_wknet._options import ConnOptions

MAX_BACKLOG = 65_535
MAX_UNIX_NAME = 107  # bytes
PORT_TRIES = 64


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


def _refuse(address: Address, exc: OSError) -> OSError:
    """The same error, with the address in its message."""
    reason = exc.strerror or str(exc)
    refusal = OSError(exc.errno, f"cannot listen on {address.text}: {reason}")
    refusal.__cause__ = exc
    return refusal


async def open_listening_sockets(
    address: Address,
    backlog: int | None,
    reuse_port: bool,
    copies: int,
    options: ConnOptions,
) -> list[socket.socket]:
    """Sockets that listen on an address, ``copies`` for each address that it
    resolves to. A checkpoint. If anything fails, nothing is left open."""
    backlog = _check_backlog(backlog)
    if not isinstance(reuse_port, bool):
        raise TypeError(f"reuse_port must be True or False, not {reuse_port!r}")
    if address.path is not None:
        if reuse_port:
            raise ValueError("reuse_port must be False for a unix socket")
        await trio.lowlevel.checkpoint()
        return [_listen_unix(address, backlog, options)]
    try:
        found = await trio.socket.getaddrinfo(
            address.host,
            address.port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )
    except OSError as exc:
        raise _refuse(address, exc) from exc
    return _listen_tcp(address, found, backlog, reuse_port, copies, options)


def _check_backlog(backlog: int | None) -> int:
    if backlog is None:
        return MAX_BACKLOG
    if isinstance(backlog, bool) or not isinstance(backlog, int):
        raise TypeError(f"backlog must be an integer or None, not {backlog!r}")
    if backlog < 1:
        raise ValueError(f"backlog must be at least 1, not {backlog}")
    return min(backlog, MAX_BACKLOG)


def _listen_tcp(
    address: Address,
    found: list[tuple[Any, ...]],
    backlog: int,
    reuse_port: bool,
    copies: int,
    options: ConnOptions,
) -> list[socket.socket]:
    # A resolver may name an address more than once.
    ends = list(dict.fromkeys((entry[0], entry[4]) for entry in found))
    # The port that the first address gets may be in use at another.
    for _ in range(PORT_TRIES if address.port == 0 and len(ends) > 1 else 1):
        try:
            return _listen_on_all(ends, address.port, backlog, reuse_port, copies, options)
        except OSError as exc:
            refusal = exc
            if exc.errno != errno.EADDRINUSE:
                break
    raise _refuse(address, refusal) from refusal


def _listen_on_all(
    ends: list[tuple[int, tuple[Any, ...]]],
    port: int,
    backlog: int,
    reuse_port: bool,
    copies: int,
    options: ConnOptions,
) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    unsupported: OSError | None = None
    try:
        for family, where in ends:
            for _ in range(copies):
                try:
                    sock = socket.socket(family, socket.SOCK_STREAM)
                except OSError as exc:
                    # A name may resolve to IPv6 on a kernel without it.
                    if exc.errno != errno.EAFNOSUPPORT:
                        raise
                    unsupported = exc
                    continue
                sockets.append(sock)
                _bind_tcp(sock, (where[0], port, *where[2:]), reuse_port)
                # With port 0 all addresses share the port that the first one got.
                port = sock.getsockname()[1]
                options.apply(sock)
                sock.listen(backlog)
                sock.setblocking(False)
        if not sockets:
            assert unsupported is not None
            raise unsupported
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _bind_tcp(sock: socket.socket, where: tuple[Any, ...], reuse_port: bool) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse_port:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind(where)


def _listen_unix(address: Address, backlog: int, options: ConnOptions) -> socket.socket:
    path = address.path
    assert path is not None
    is_file = address.file is not None
    if options.unix_mode is not None and not is_file:
        raise ValueError(f"unix_mode must be None for an abstract name, {address.text!r}")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    bound = False
    try:
        if is_file:
            _remove_stale(path)
        sock.bind(path)
        bound = is_file
        if options.unix_mode is not None:
            os.chmod(path, options.unix_mode)
        options.apply(sock)
        sock.listen(backlog)
        sock.setblocking(False)
    except BaseException as exc:
        if bound:  # first: while the socket is open, the file is certainly its own
            with suppress(OSError):
                os.unlink(path)
        sock.close()
        if isinstance(exc, OSError):
            raise _refuse(address, exc) from exc
        raise
    return sock


def _remove_stale(path: str) -> None:
    """Remove a socket file that is in the way, as asyncio does. Anything else is
    left alone, and binding fails on it."""
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.stat(path).st_mode):
            os.unlink(path)
