"""FrameChannel: Trio's channel contract over a connection's frames.

Receiving and sending are in the native bases (`frames.pyx`, `frame_send.pyx`); here is what
need not be fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import trio

from trio_wknet._framing import compiled, require_framing
from trio_wknet._native.trio.frame_send import FrameSend
from trio_wknet._statistics import FrameStatistics, frame_statistics

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from trio_wknet._conn import Conn
    from trio_wknet._framing import Framing


class FrameChannel(FrameSend, trio.abc.Channel[bytes]):
    """A connection's messages: a `trio.abc.Channel` of `bytes` in full.

    ``async for frame in channel`` receives until the peer has finished sending. Trio is
    woken for whole frames only, and `receive_many` takes all that have come at once.

    A frame larger than ``limits.inbound`` is moved out of the connection's buffer in parts,
    so that buffer never exceeds its bound; memory for it grows with the bytes that have
    come, up to ``max_frame``, whatever the peer announces.

    Every async method is a checkpoint. A receive that is cancelled has taken nothing, and
    a frame is sent whole or not at all.

    Channels come from `Conn.framed`.
    """

    __slots__ = ("__weakref__",)

    conn: Conn
    framing: Framing

    def __init__(self, *_: NoReturn, **__: NoReturn) -> None:
        raise TypeError("FrameChannel cannot be called: Conn.framed gives channels")

    @classmethod
    def _over(cls, conn: Conn, framing: Framing) -> FrameChannel:
        require_framing(framing)
        channel = cls.__new__(cls)
        channel._begin(conn, framing, compiled(framing))
        return channel

    def __repr__(self) -> str:
        return f"<trio_wknet.FrameChannel {self.framing!r} over {self.conn!r}>"

    def unframe(self) -> Conn:
        """End this channel, and give the connection back. Not a checkpoint.

        Every byte that was not taken is received from it next, headers and a part of a frame
        included, as for a change of protocol in the middle of a stream. If that is more than
        ``limits.inbound`` it is received all the same.

        Returns:
          The connection, `conn`.

        Raises:
          trio.BusyResourceError: a task is receiving.
          trio.ClosedResourceError: the connection was closed here, or this was called before.
        """
        self._unframe()
        return self.conn

    def idle_point(self) -> AbstractContextManager[trio.CancelScope]:
        """Say that nothing but the wait in this block is under way, like `Conn.idle_point`. Not
        a checkpoint.

        Returns:
          A context manager, to be entered once, whose value is the `trio.CancelScope`.

        Raises:
          RuntimeError: if it is entered in another thread, or twice.
        """
        return self.conn.idle_point()

    async def aclose(self) -> None:
        """Close the connection gracefully, like `Conn.aclose`. A checkpoint.

        Raises:
          RuntimeError: if called from another thread.
        """
        await self.conn.aclose()

    def statistics(self) -> FrameStatistics:
        """A snapshot of the counters. Not a checkpoint.

        Returns:
          The numbers of frames, bytes and batches.

        Raises:
          RuntimeError: in another thread, while the connection is open.
        """
        self.conn._ensure_thread()
        return frame_statistics(self._counters())
