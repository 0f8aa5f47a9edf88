"""Connecting to unix sockets.

Facts. While the queue of a listening unix socket is full, a blocking connect(2) waits, and
a non-blocking one fails at once with EAGAIN; no descriptor ever tells that there is room.
Trio takes that EAGAIN for a connect in progress, finds the socket writable, and returns
a stream that is not connected.

Decision. Wait, as a blocking connect does, and as a TCP connect does if the
queue is full: try again, after a pause that grows. It is cancelled like any wait.

Trade-off. Waiting clients have no order: a later one may be first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from trio_wknet._drop_in.bypass import bypass, is_trios

if TYPE_CHECKING:
    import os

FIRST_PAUSE, MAX_PAUSE = 0.001, 0.05  # seconds


async def connect_unix(
    filename: str | bytes | os.PathLike[str] | os.PathLike[bytes],
) -> trio.SocketStream:
    """`trio.open_unix_socket`, which is connected when it returns. A checkpoint."""
    pause = FIRST_PAUSE
    while True:
        with bypass():
            stream = await trio.open_unix_socket(filename)
        if not is_trios(stream.socket) or is_connected(stream.socket):
            return stream
        stream.socket.close()
        await trio.sleep(pause)
        pause = min(2 * pause, MAX_PAUSE)


def is_connected(sock: trio.socket.SocketType) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
