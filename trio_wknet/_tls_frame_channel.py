"""TLSFrameChannel: Trio's channel contract over the frames of a TLS stream."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn, TypeVar

import trio
from trio.lowlevel import cancel_shielded_checkpoint, checkpoint_if_cancelled

from trio_wknet._framing import compiled, require_framing
from trio_wknet._native.trio.tls_frames import StreamFrames
from trio_wknet._statistics import FrameStatistics, frame_statistics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    from trio_wknet._framing import Framing
    from trio_wknet._tls import TLSStream

    if sys.version_info >= (3, 12):
        from collections.abc import Buffer
    else:
        from typing_extensions import Buffer

T = TypeVar("T")
LONGEST = 1 << 29


class TLSFrameChannel(trio.abc.Channel[bytes]):
    """The messages of a `TLSStream`: a `trio.abc.Channel` of `bytes` in full, with the methods
    of a `FrameChannel`.

    ``async for frame in channel`` receives until the peer has said goodbye. `receive_many`
    takes all that have come at once. Memory grows with the bytes that have come, up to
    ``max_frame``, whatever the peer announces.

    Every async method is a checkpoint. A receive that is cancelled has taken nothing. A send
    that is cancelled breaks the stream, as `TLSStream.send_all` does.

    Channels come from `TLSStream.framed`.
    """

    __slots__ = ("__weakref__", "_frames", "_is_linked", "framing", "stream")

    stream: TLSStream
    """What it receives from, and sends on."""
    framing: Framing
    """As `TLSStream.framed` was given it."""
    _frames: StreamFrames
    _is_linked: bool

    def __init__(self, *_: NoReturn, **__: NoReturn) -> None:
        raise TypeError("TLSFrameChannel cannot be called: TLSStream.framed gives channels")

    @classmethod
    def _over(cls, stream: TLSStream, framing: Framing) -> TLSFrameChannel:
        require_framing(framing)
        longest = getattr(framing, "max_frame", None) or framing.n  # type: ignore[union-attr]
        if longest > LONGEST:
            raise ValueError(f"framing must have frames of at most {LONGEST} bytes, not {longest}")
        channel = cls.__new__(cls)
        channel.stream, channel.framing = stream, framing
        channel._frames = StreamFrames(compiled(framing))
        channel._is_linked = True
        stream._begin_frames(channel._frames, channel)
        return channel

    def __repr__(self) -> str:
        return f"<trio_wknet.TLSFrameChannel {self.framing!r} over {self.stream!r}>"

    def _ensure_linked(self) -> None:
        self.stream._ensure_thread()
        if not self._is_linked:
            raise trio.ClosedResourceError("this channel was ended by unframe()")

    def _ensure_turn(self) -> None:
        self._ensure_linked()
        self.stream._ensure_receiving()

    # --- receiving -----------------------------------------------------------

    async def receive(self) -> bytes:
        """Wait for a whole frame, and return it. A checkpoint.

        Returns:
          One frame's bytes. Cancelled, it has taken nothing.

        Raises:
          trio.EndOfChannel: the peer has said goodbye, behind a whole frame.
          IncompleteRead: it has said goodbye inside a frame.
          FrameTooLong: the next frame is longer than ``max_frame``. Like the error above it
              comes behind every whole frame before, again each time, and takes nothing:
              `unframe` gives all the bytes.
          MalformedFrame: the next frame cannot be one. Likewise.
          trio.ClosedResourceError: the stream was closed here, before or meanwhile, or this
              channel was ended by `unframe`.
          trio.BrokenResourceError: the connection broke, or TLS failed, as by an end without
              goodbye, and every whole frame that came before was received. Its cause is the
              `OSError`.
          trio.BusyResourceError: another task is receiving.
          RuntimeError: in another thread.
        """
        return await self._wait_for(self._frames.take)

    async def receive_many(self, max_frames: int | None = None) -> list[bytes]:
        """Wait for a whole frame, and return all that have come. A checkpoint.

        Args:
          max_frames: how many at most, 1 or more; by default as many as there are.

        Returns:
          A list of at least one frame. Cancelled, it has taken nothing.

        Raises:
          TypeError, ValueError: for ``max_frames``. Else as `receive` does.
        """
        return await self._wait_for(lambda: self._frames.take_many(max_frames))

    async def _wait_for(self, take: Callable[[], T | None]) -> T:
        self._ensure_turn()
        await checkpoint_if_cancelled()
        found = take()
        if found is not None:
            await cancel_shielded_checkpoint()
            return found
        while found is None:
            if not await self.stream._feed_frames():
                raise self._frames.end()
            found = take()
        return found

    def receive_nowait(self) -> bytes:
        """Return a whole frame, like `receive`, without waiting. Not a checkpoint.

        Returns:
          One frame's bytes.

        Raises:
          trio.WouldBlock: no whole frame has come, and one may.
          trio.NeedHandshakeError: the handshake is not done. Else as `receive` does.
        """
        return self._take_now(self._frames.take)

    def receive_many_nowait(self, max_frames: int | None = None) -> list[bytes]:
        """Return all whole frames that have come, like `receive_many`, without waiting. Not a
        checkpoint.

        Args:
          max_frames: how many at most, 1 or more; by default as many as there are.

        Returns:
          A list of at least one frame.

        Raises:
          trio.WouldBlock: no whole frame has come, and one may.
          trio.NeedHandshakeError: the handshake is not done. Else as `receive_many` does.
        """
        return self._take_now(lambda: self._frames.take_many(max_frames))

    def _take_now(self, take: Callable[[], T | None]) -> T:
        self._ensure_turn()
        found = take()
        while found is None:
            more = self.stream._feed_frames_nowait()
            if more is None:
                raise trio.WouldBlock
            if not more:
                raise self._frames.end()
            found = take()
        return found

    # --- sending -------------------------------------------------------------

    async def send(self, value: Buffer) -> None:
        """Send a frame, and return once the kernel owns every byte. A checkpoint.

        Args:
          value: a contiguous bytes-like object, the frame as the peer is to have it
              delivered.

        Raises:
          ValueError: the peer could not have it delivered, see `FrameChannel.send`. Nothing
              was sent.
          trio.ClosedResourceError: closed here, before or meanwhile.
          trio.BrokenResourceError: the connection broke, or TLS failed. Its cause is the
              `OSError`.
          trio.BusyResourceError: another task is sending.
          TypeError: ``value`` is not bytes-like.
          RuntimeError: in another thread.
        """
        await self._send(value, True)

    async def send_many(self, frames: Iterable[Buffer]) -> None:
        """Send many frames in as few records as possible, and return once the kernel owns every
        byte. A checkpoint.

        Args:
          frames: an iterable of contiguous bytes-like objects. If one of them cannot be sent
              none is.

        Raises:
          ValueError, TypeError: if one of them cannot be sent; the message says which.
          trio.ClosedResourceError, trio.BrokenResourceError, trio.BusyResourceError: as
              `send` does.
        """
        await self._send(frames, False)

    async def _send(self, frames: Buffer | Iterable[Buffer], single: bool) -> None:
        self._ensure_linked()
        wire, count, size = self._frames.written(frames, single)
        await self.stream.send_all(wire)
        self._frames.sent(count, size)

    def send_nowait(self, value: Buffer) -> None:
        """Send a frame without waiting, as `TLSStream.send_nowait` does. Not a checkpoint.

        Args:
          value: the frame. It may be changed once this has returned.

        Raises:
          trio.WouldBlock: more than ``limits.outbound`` bytes would be unsent. Nothing was
              sent.
          trio.ClosedResourceError, trio.BrokenResourceError, ValueError, TypeError: as `send`
              and `TLSStream.send_nowait` do.
        """
        self._send_now(value, True)

    def send_many_nowait(self, frames: Iterable[Buffer]) -> None:
        """Send many frames like `send_nowait`: all of them, or, where this raises, none. Not a
        checkpoint.

        Args:
          frames: an iterable of frames.

        Raises:
          trio.WouldBlock: more than ``limits.outbound`` bytes would be unsent. Nothing was
              sent.
          ValueError, TypeError: if one of them cannot be sent; the message says which.
          trio.ClosedResourceError, trio.BrokenResourceError: as `send_nowait` does.
        """
        self._send_now(frames, False)

    def _send_now(self, frames: Buffer | Iterable[Buffer], single: bool) -> None:
        self._ensure_linked()
        wire, count, size = self._frames.written(frames, single)
        self.stream.send_nowait(wire)
        self._frames.sent(count, size)

    # --- the end -------------------------------------------------------------

    def idle_point(self) -> AbstractContextManager[trio.CancelScope]:
        """Say that nothing but the wait in this block is under way, like `TLSStream.idle_point`.
        Not a checkpoint.

        Returns:
          A context manager, to be entered once, whose value is the `trio.CancelScope`.

        Raises:
          RuntimeError: if it is entered in another thread, or twice.
        """
        return self.stream._idle_point(self._frames.holds_bytes)

    def unframe(self) -> TLSStream:
        """End this channel, and give the stream back. Not a checkpoint.

        Every byte that was not taken is received from it next, headers and a part of a frame
        included, as for a change of protocol in the middle of a stream.

        Returns:
          The stream.

        Raises:
          trio.BusyResourceError: a task is receiving.
          trio.ClosedResourceError: this was called before.
          RuntimeError: in another thread.
        """
        self._ensure_linked()
        self.stream._end_frames()
        self._is_linked = False
        return self.stream

    async def aclose(self) -> None:
        """Close the stream, like `TLSStream.aclose`. A checkpoint.

        Raises:
          trio.BrokenResourceError: if a handshake was not done, and fails.
          RuntimeError: in another thread.
        """
        await self.stream.aclose()

    def statistics(self) -> FrameStatistics:
        """A snapshot of the counters. Not a checkpoint.

        Returns:
          The numbers of frames, bytes and batches.

        Raises:
          RuntimeError: in another thread, while the connection is open.
        """
        self.stream._ensure_thread()
        return frame_statistics(self._frames.counters())
