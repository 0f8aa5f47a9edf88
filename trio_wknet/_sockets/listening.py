"""Sockets that listen on an address: all of them, or an error and none."""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from trio_wknet._options import ConnOptions
    from trio_wknet._sockets.address import Address

MAX_BACKLOG = 65_535
PORT_TRIES = 64


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


def close_unused(sockets: list[socket.socket], file: str | None) -> None:
    """Close what was opened, and remove its file, as nobody will serve there."""
    if file is not None:  # first, as above
        with suppress(OSError):
            os.unlink(file)
    for sock in sockets:
        sock.close()


def _remove_stale(path: str) -> None:
    """Remove a socket file that is in the way, as asyncio does. Anything else is
    left alone, and binding fails on it."""
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.stat(path).st_mode):
            os.unlink(path)
