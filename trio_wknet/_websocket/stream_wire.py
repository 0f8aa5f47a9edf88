"""The stream under a `StreamWebSocket`, and which task uses it.

Reading. One task at a time reads from the stream, whatever it waits for: a message, a pong, or
the peer's close frame. Others wait until it has read something. If it is cancelled, one of
them goes on.

Sending. One task at a time sends, by the lock. Pongs, pings and close frames wait in the
decoder. Whoever finds some sends them if nobody is sending; else the task that is sending does
so, before it lets go of the lock. So none is inside a message, and who reads does not wait
for who sends. A frame that is due is sent shielded, in bounded time: a receive that is
cancelled must not leave half a frame, for the other end can make no sense of what follows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import trio

if TYPE_CHECKING:
    import sys
    from collections.abc import Callable

    from trio_wknet._native.trio.websocket_stream import StreamDecoder

    if sys.version_info >= (3, 12):
        from collections.abc import Buffer
    else:
        from typing_extensions import Buffer

AHEAD = 65_536  # bytes of messages that were not taken, at which others than receivers stop
ANSWER_TIME = 10.0  # seconds in which the peer must take a pong


@attrs.define(eq=False)
class StreamWire:
    """A stream, and the decoder of what comes on it."""

    stream: trio.abc.Stream
    decoder: StreamDecoder
    close_time: float
    """Seconds that the closing handshake may take."""
    unsent: bytes
    """The answer to the handshake, until it is sent."""
    sending: trio.Lock = attrs.field(factory=trio.Lock, init=False)
    is_broken: bool = attrs.field(default=False, init=False)
    """The stream is, or half a message was sent on it."""
    is_ended: bool = attrs.field(default=False, init=False)
    """The stream is: nothing more can be read."""
    is_closing: bool = attrs.field(default=False, init=False)
    """`stop` was called."""
    cause: BaseException | None = attrs.field(default=None, init=False)
    """Why it is broken, if that is known."""
    _is_reading: bool = attrs.field(default=False, init=False)
    _reading_scope: trio.CancelScope | None = attrs.field(default=None, init=False)
    _news: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, init=False)
    """Tasks that wait for what another one reads, or for room."""

    # --- reading -------------------------------------------------------------

    def feed(self, data: Buffer) -> None:
        """Bytes have come."""
        if not self.decoder.feed(data):
            self.break_off(MemoryError("no memory for a message"))

    def break_off(self, cause: BaseException | None, *, ended: bool = True) -> None:
        """Nothing more can be sent, and, if it has `ended`, received."""
        self.is_broken = True
        self.is_ended = self.is_ended or ended
        self.cause = self.cause or cause
        self._news.unpark_all()

    def stop(self) -> None:
        """Messages are not wanted any more. Who reads stops, and who waits looks."""
        self.is_closing = True
        if self._reading_scope is not None:
            self._reading_scope.cancel()
        self._news.unpark_all()

    def make_room(self) -> None:
        """Messages were taken."""
        self._news.unpark_all()

    def is_over(self) -> bool:
        """Whether no message will come but those that are there."""
        return self.is_ended or self.is_closing or self.decoder.is_over

    async def read(self) -> None:
        """Read from the stream, or wait until another task has; and answer what asks for it.
        It is cancelled by `stop`, too, and then returns."""
        if self._is_reading:
            await self._news.park()
            return
        self._is_reading = True
        try:
            with trio.CancelScope() as self._reading_scope:
                data = await self.stream.receive_some()
                if data:
                    self.feed(data)
                else:
                    self.is_ended = True
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            self.break_off(exc)
        finally:
            self._is_reading = False
            self._reading_scope = None
            self._news.unpark_all()
        await self.answer()

    async def read_ahead(self) -> None:
        """Read, unless there is much that nobody has received."""
        if self.decoder.buffered >= AHEAD:
            await self._news.park()
        else:
            await self.read()

    async def read_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self.read_ahead()

    # --- sending -------------------------------------------------------------

    def is_due(self) -> bool:
        return bool(self.unsent) or self.decoder.is_due

    async def answer(self) -> None:
        """Send what is due, unless another task is sending: then that one does it."""
        while self.is_due() and not self.is_broken:
            try:
                self.sending.acquire_nowait()
            except trio.WouldBlock:
                return
            try:
                await self.send_due()
            finally:
                self.sending.release()

    async def send_due(self) -> None:
        """Send what is due, by who holds the lock. When this returns nothing is, or all is
        broken."""
        while self.is_due() and not self.is_broken:
            frames = self.unsent + self.decoder.answers()
            self.unsent = b""
            seconds = min(self.close_time, ANSWER_TIME)
            with trio.move_on_after(seconds, shield=True) as scope:
                await self.send_bytes(frames)
            if scope.cancelled_caught:
                self.break_off(trio.TooSlowError("the peer does not read"))

    async def send_bytes(self, data: bytes) -> None:
        """By who holds the lock. Whether it was sent shows in `is_broken`."""
        whole = False
        try:
            await self.stream.send_all(data)
            whole = True
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            # What the peer has sent may still be received, its close frame included.
            self.break_off(exc, ended=False)
            whole = True
        finally:
            if not whole:
                self.break_off(None)

    # --- the end -------------------------------------------------------------

    async def end(self) -> None:
        """A kernel drops what was sent last if a socket is closed with unread bytes. So the
        peer's are read to their end, where the stream can say that there are no more of ours."""
        stream = self.stream
        async with self.sending:  # who has it may be sending our close frame
            if isinstance(stream, trio.abc.HalfCloseableStream) and not self.is_broken:
                await stream.send_eof()
                await self.read_until(lambda: self.is_ended)
        await stream.aclose()
