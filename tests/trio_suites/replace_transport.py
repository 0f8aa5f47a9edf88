"""A pytest plugin: Trio's own suites, with its socket classes replaced by ours.

``pytest -p replace_transport --pyargs trio._tests.test_ssl`` runs a suite that
Trio ships as if an application had put this library in the place of
`trio.SocketStream` and `trio.SocketListener`. The environment variable
WKNET_REACTORS says in which form (0: in-loop).
"""

from __future__ import annotations

import os
import socket
from typing import Any

import trio
import trio.lowlevel

from trio_wknet._conn import Conn
from trio_wknet._engine import Engine, _choose_reactors
from trio_wknet._listener import Listener
from trio_wknet._options import Limits

REACTORS = int(os.environ.get("WKNET_REACTORS", "0"))

_engine: trio.lowlevel.RunVar[Engine] = trio.lowlevel.RunVar("wknet_suite_engine")
_OriginalStream = trio.SocketStream
_OriginalListener = trio.SocketListener


def engine() -> Engine:
    """This run's engine; it ends with the run."""
    try:
        return _engine.get()
    except LookupError:
        _engine.set(Engine(_choose_reactors(REACTORS), "least_connections"))
        return _engine.get()


def _plain(sock: Any) -> socket.socket:
    trio.lowlevel.notify_closing(sock)
    family, kind, proto = sock.family, sock.type, sock.proto
    return socket.socket(family, kind, proto, fileno=sock.detach())


def _is_real(sock: Any) -> bool:
    """Not a stand-in of a test's own."""
    return type(sock) is _TrioSocket


_left, _right = socket.socketpair()
_TrioSocket = type(trio.socket.from_stdlib_socket(_left))
_left.close()
_right.close()


class _StreamMeta(type(Conn)):  # type: ignore[misc]
    def __call__(cls, sock: Any) -> Any:
        if not _is_real(sock) or sock.type != socket.SOCK_STREAM:
            return _OriginalStream(sock)
        global _streams
        _streams += 1
        return Conn._from_socket(engine()._core, _plain(sock), Limits())

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, (Conn, _OriginalStream))


class _ListenerMeta(type(Listener)):  # type: ignore[misc]
    def __call__(cls, sock: Any) -> Any:
        if not _is_real(sock) or sock.type != socket.SOCK_STREAM:
            return _OriginalListener(sock)
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return _OriginalListener(sock)  # raises
        return engine()._make_listener([_plain(sock)], Limits(), spread=False, path=None)

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, (Listener, _OriginalListener))


class SocketStream(metaclass=_StreamMeta):
    pass


class SocketListener(metaclass=_ListenerMeta):
    pass


_streams = 0


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_line(f"replaced by trio_wknet: {_streams} streams")


trio.SocketStream = SocketStream  # type: ignore[misc,assignment]
trio.SocketListener = SocketListener  # type: ignore[misc,assignment]
