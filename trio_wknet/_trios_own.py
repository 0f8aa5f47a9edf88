"""Trio's own streams, also where `run` or `install` has replaced them; and sockets."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator

wanted: ContextVar[bool] = ContextVar("trio_wknet wants Trio's own", default=False)


@contextmanager
def trios_own() -> Iterator[None]:
    """In this task, inside the block, Trio's functions give Trio's streams."""
    token = wanted.set(True)
    try:
        yield
    finally:
        wanted.reset(token)


@cache
def _trios_socket_class() -> type:
    with socket.socket() as plain:
        return type(trio.socket.from_stdlib_socket(plain))


def is_trios(sock: trio.socket.SocketType) -> bool:
    """Not a custom factory's, which may be real, and may be kept and used by it."""
    factory = trio.socket.set_custom_socket_factory(None)  # there is no other way to ask
    trio.socket.set_custom_socket_factory(factory)
    return factory is None and type(sock) is _trios_socket_class()
