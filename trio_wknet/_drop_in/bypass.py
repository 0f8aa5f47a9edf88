"""Where this library needs a stream of Trio's own: past the classes that `run` and `install`
replace. And which sockets are Trio's own."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator

bypassed: ContextVar[bool] = ContextVar("trio_wknet bypasses its own classes", default=False)


@contextmanager
def bypass() -> Iterator[None]:
    """In this task, inside the block, Trio's functions give Trio's streams."""
    token = bypassed.set(True)
    try:
        yield
    finally:
        bypassed.reset(token)


@cache
def _trios_socket_class() -> type:
    with socket.socket() as plain:
        return type(trio.socket.from_stdlib_socket(plain))


def is_trios(sock: trio.socket.SocketType) -> bool:
    """Not a custom factory's, which may be real, and may be kept and used by it."""
    factory = trio.socket.set_custom_socket_factory(None)  # there is no other way to ask
    trio.socket.set_custom_socket_factory(factory)
    return factory is None and type(sock) is _trios_socket_class()
