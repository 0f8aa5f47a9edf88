"""A pytest plugin, for use along with replace_transport: TCP streams and listeners that AnyIO
makes in a run of Trio's are `trio_wknet.contrib.anyio`'s.

Those of unix sockets stay AnyIO's, which send descriptors.
"""

from __future__ import annotations

import socket
from typing import Any

import trio
from anyio._backends import _trio

from trio_wknet import Conn
from trio_wknet.contrib.anyio import SocketListener, SocketStream


def _stream(sock: Any) -> SocketStream:
    stream = trio.SocketStream(sock)
    assert isinstance(stream, Conn)
    return SocketStream(stream)


def _listener(raw: socket.socket) -> SocketListener:
    listener: Any = trio.SocketListener(trio.socket.from_stdlib_socket(raw))
    return SocketListener(listener)


_trio.SocketStream = _stream  # type: ignore[assignment,misc]
_trio.TCPSocketListener = _listener  # type: ignore[assignment,misc]
