"""A WebSocket over any stream: TLS, a memory stream, or what else a program has.

A reactor decodes only what a `Conn` receives. Over any other stream the tasks that call do all
of the work; which of them reads and which sends is decided in `stream_wire.py`.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, NoReturn

import trio

from trio_wknet._errors import ConnectionClosed, connection_closed
from trio_wknet._native.trio.idle_point import IdlePoint
from trio_wknet._native.trio.websocket_stream import StreamDecoder
from trio_wknet._statistics import WebSocketStatistics, websocket_statistics
from trio_wknet._tls import TLSStream
from trio_wknet._websocket.control import close_reason, control_payload
from trio_wknet._websocket.deflate import Unacceptable
from trio_wknet._websocket.stream_wire import StreamWire

if TYPE_CHECKING:
    import sys
    from collections.abc import Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from trio_wknet._websocket.deflate import Deflater, Inflater
    from trio_wknet._websocket.http import Request

    if sys.version_info >= (3, 12):
        from collections.abc import Buffer
    else:
        from typing_extensions import Buffer

LOST = 1006  # no close frame came
_MAX_MESSAGES = 1 << 30


class StreamWebSocket(trio.abc.Channel[str | bytes]):
    """A WebSocket (RFC 6455) over a stream that is no `Conn`, such as a `TLSStream`, a
    `trio.SSLStream`, or one of `trio.testing`'s: a `trio.abc.Channel` of `str` and `bytes`.

    `WebSocket.connect`, `WebSocket.accept` and `WebSocket.upgrade` return it for such a
    stream. It has the methods of `WebSocket`, but for `WebSocket.send_nowait` and
    `WebSocket.send_many_nowait`, since a stream has nothing like them.

    There is no task of its own. The stream is read while a task is in `receive`,
    `receive_many`, `ping` or `aclose`: that is when the peer's pings are answered.

    A receive that is cancelled has taken nothing. If it has begun to answer a ping it ends
    that first, within 10 seconds, or ``close_time`` if that is less. A send that is cancelled
    after it has begun leaves half a message, so the WebSocket is broken: all that follows
    raises `ConnectionClosed` with code 1006. One that is cancelled before that has sent
    nothing.
    """

    __slots__ = (
        "__weakref__",
        "_deflater",
        "_inflater",
        "_is_client",
        "_is_receiving",
        "_is_sending",
        "_request",
        "_subprotocol",
        "_wire",
    )

    def __init__(self, *_: NoReturn, **__: NoReturn) -> None:
        raise TypeError("a StreamWebSocket cannot be constructed; WebSocket.accept returns one")

    @classmethod
    def _over(
        cls,
        stream: trio.abc.Stream,
        role: Literal["server", "client"],
        *,
        unread: bytes = b"",
        unsent: bytes = b"",
        max_message: int = 1 << 20,
        max_fragments: int = 1 << 20,
        close_timeout: float = 10.0,
        subprotocol: str | None = None,
        request: Request | None = None,
        compression: tuple[Inflater, Deflater] | tuple[None, None] = (None, None),
    ) -> StreamWebSocket:
        """Speak WebSocket on a stream whose handshake is done, up to sending `unsent`. Not a
        checkpoint."""
        ws = cls.__new__(cls)
        ws._inflater, ws._deflater = compression
        ws._is_client = role == "client"
        decoder = StreamDecoder(ws._is_client, max_message, max_fragments, ws._inflater is not None)
        ws._wire = StreamWire(stream, decoder, close_timeout, unsent)
        ws._subprotocol = subprotocol
        ws._request = request
        ws._is_receiving = ws._is_sending = False
        ws._wire.feed(unread)
        return ws

    _deflater: Deflater | None
    _inflater: Inflater | None
    _is_client: bool
    _is_receiving: bool
    _is_sending: bool
    _request: Request | None
    _subprotocol: str | None
    _wire: StreamWire

    def __repr__(self) -> str:
        code = self.close_code
        state = "open" if code is None else f"closed {code}"
        return f"<trio_wknet.StreamWebSocket {state} over {self.stream!r}>"

    @property
    def stream(self) -> trio.abc.Stream:
        """The stream, which is closed along with the WebSocket. Use it for nothing else."""
        return self._wire.stream

    # --- receiving -----------------------------------------------------------

    @contextmanager
    def _receiver(self) -> Iterator[None]:
        if self._is_receiving:
            raise trio.BusyResourceError("another task is receiving")
        self._is_receiving = True
        try:
            yield
        finally:
            self._is_receiving = False

    def _take(self, most: int) -> list[str | bytes]:
        """Messages that are there.

        Raises:
          ConnectionClosed: if there are none, and none will come.
        """
        wire = self._wire
        messages: list[str | bytes] = []
        if wire.is_closing:
            raise self._why_closed(sending=False)
        try:
            while len(messages) < most and (message := wire.decoder.take()) is not None:
                if isinstance(message, tuple):
                    message = self._inflated(*message)
                    if message is None:
                        break
                messages.append(message)
        except MemoryError:
            if not messages:
                raise
        if messages:
            wire.decoder.count_batch()
            wire.make_room()
        elif wire.is_over():
            raise self._why_closed(sending=False)
        return messages

    def _inflated(self, is_text: bool, packed: bytes) -> str | bytes | None:
        """A message; None if it cannot be one, which is the end."""
        assert self._inflater is not None
        try:
            return self._inflater.message(packed, is_text=is_text)
        except Unacceptable as refusal:
            self._wire.decoder.refuse(refusal.code, refusal.reason)
            return None

    async def _keep_reading(self) -> None:
        """Read, and answer pings, until the end, though nobody receives: for a task of its own."""
        while not self._wire.is_over():
            await self._wire.read_ahead()

    async def _receive(self, most: int) -> list[str | bytes]:
        wire = self._wire
        with self._receiver():
            await trio.lowlevel.checkpoint()
            while True:
                # What the decoder asks for goes out before it is handed on: who receives
                # rarely need not be who answers late.
                if wire.is_due():
                    await wire.answer()
                try:
                    messages = self._take(most)
                except ConnectionClosed:
                    await wire.answer()
                    raise
                if messages:
                    return messages
                await wire.read()

    async def receive(self) -> str | bytes:
        """Wait for a message, and return it. A checkpoint.

        Cancellation is atomic: no message is consumed.

        Returns:
          A `str` for a text message, `bytes` for a binary one.

        Raises:
          ConnectionClosed: if the peer has closed the connection, or it is broken, and every
              message that came before has been received; or if it was closed here, before
              or during the call.
          trio.BusyResourceError: if another task is receiving.
        """
        return (await self._receive(1))[0]

    async def receive_many(self, max_messages: int | None = None) -> list[str | bytes]:
        """Wait for a message, and return all that have come. A checkpoint.

        Cancellation is atomic: no message is consumed.

        Args:
          max_messages: how many at most, 1 or more; by default as many as there are.

        Returns:
          A list of at least one message, each as `receive` returns it.

        Raises:
          TypeError, ValueError: if ``max_messages`` is invalid.
          ConnectionClosed, trio.BusyResourceError: as `receive` does.
        """
        return await self._receive(_most(max_messages))

    def receive_nowait(self) -> str | bytes:
        """Return a message that was read along with an earlier one, without waiting. Not a
        checkpoint.

        Returns:
          A `str` for a text message, `bytes` for a binary one.

        Raises:
          trio.WouldBlock: if there is none. Nothing is read from the stream.
          ConnectionClosed, trio.BusyResourceError: as `receive` does.
        """
        return self.receive_many_nowait(1)[0]

    def receive_many_nowait(self, max_messages: int | None = None) -> list[str | bytes]:
        """Return all messages that were read along with earlier ones, like `receive_many`,
        without waiting. Not a checkpoint.

        Args:
          max_messages: how many at most, 1 or more; by default as many as there are.

        Returns:
          A list of at least one message, each as `receive` returns it.

        Raises:
          trio.WouldBlock: if there is none. Nothing is read from the stream.
          TypeError, ValueError: if ``max_messages`` is invalid.
          ConnectionClosed, trio.BusyResourceError: as `receive` does.
        """
        with self._receiver():
            messages = self._take(_most(max_messages))
        if not messages:
            raise trio.WouldBlock
        return messages

    # --- sending -------------------------------------------------------------

    async def _send_response(self) -> bool:
        """Send the answer to the handshake. Whether that was possible."""
        await self._wire.answer()
        return not self._wire.is_broken

    def _ensure_may_send(self) -> None:
        if self._wire.is_broken or self._wire.is_closing or self._wire.decoder.said_goodbye:
            raise self._why_closed(sending=True)

    async def _send(self, payloads: Sequence[tuple[bool, Buffer]]) -> None:
        """Send messages, each given as whether it is text, and its bytes."""
        wire = self._wire
        if self._is_sending:
            raise trio.BusyResourceError("another task is sending")
        self._ensure_may_send()
        self._is_sending = True
        try:
            await wire.sending.acquire()
            try:
                await wire.send_due()
                await trio.lowlevel.checkpoint_if_cancelled()
                self._ensure_may_send()
                frames = b"".join([self._frame(*payload) for payload in payloads])
                await wire.send_bytes(frames)
                if wire.is_broken:
                    raise self._why_closed(sending=True)
                wire.decoder.count_sent(len(payloads), len(frames))
                await wire.send_due()
            finally:
                wire.sending.release()
        finally:
            self._is_sending = False

    def _frame(self, is_text: bool, payload: Buffer) -> bytes:
        """Compressed by who holds the lock: a message refers to those before it."""
        deflater = self._deflater
        if deflater is None or memoryview(payload).nbytes < deflater.threshold:
            return self._wire.decoder.message(is_text, payload, compressed=False)
        packed = deflater.compress(memoryview(payload))
        return self._wire.decoder.message(is_text, packed, compressed=True)

    async def send(self, message: str | Buffer) -> None:
        """Send a message. A checkpoint.

        If it is cancelled after it has begun, the WebSocket is broken.

        Args:
          message: a `str`, which is sent as text, or a contiguous bytes-like object, which is
              sent as binary. It must not change meanwhile.

        Raises:
          ConnectionClosed: if a close frame was sent or received, the connection is closed,
              before or during the call, or it broke.
          trio.BusyResourceError: if another task is sending.
          TypeError: if ``message`` is neither.
          ValueError: if it is a `str` that has no form in UTF-8: one with surrogates.
        """
        await self._send([_payload(message, "message")])

    async def send_many(self, messages: Iterable[str | Buffer]) -> None:
        """Send many messages by one call. A checkpoint.

        If it is cancelled after it has begun, the WebSocket is broken.

        Args:
          messages: an iterable of messages, each as `send` takes it. If one of them cannot be
              sent none is.

        Raises:
          TypeError, ValueError: if one of them cannot be sent; the message says which.
          ConnectionClosed, trio.BusyResourceError: as `send` does.
        """
        if isinstance(messages, (str, bytes, bytearray, memoryview)):
            raise TypeError(
                f"messages must be an iterable of messages, not {type(messages).__name__}"
            )
        try:
            given = tuple(messages)
        except TypeError:
            raise TypeError(
                f"messages must be an iterable of messages, not {type(messages).__name__}"
            ) from None
        await self._send([_payload(message, f"messages[{i}]") for i, message in enumerate(given)])

    async def _send_pong(self, payload: bytes) -> None:
        """Send a pong that nobody has asked for."""
        wire = self._wire
        await wire.sending.acquire()
        try:
            self._ensure_may_send()
            await wire.send_bytes(wire.decoder.pong(payload))
            await wire.send_due()
        finally:
            wire.sending.release()
        if wire.is_broken:
            raise self._why_closed(sending=True)

    # --- control frames ------------------------------------------------------

    async def ping(self, payload: Buffer | None = None) -> float:
        """Send a ping, and wait until the peer has answered it, or a later one. A checkpoint.

        Messages that come meanwhile wait for `receive`, up to 64 KiB of them.

        Args:
          payload: a bytes-like object of at most 125 bytes, other than those of pings that
              are waited for; by default, one of its own.

        Returns:
          The seconds that it took.

        Raises:
          ConnectionClosed: if a close frame was sent or received, the connection is closed,
              before or during the call, or it broke.
          ValueError: if ``payload`` is too long, or that of another ping.
          TypeError: if it is not bytes-like.
        """
        data = None if payload is None else control_payload(payload)
        self._ensure_may_send()
        number = self._wire.decoder.add_ping(data)
        start = trio.current_time()
        try:
            await trio.lowlevel.checkpoint()
            await self._wire.answer()
            await self._wire.read_until(lambda: self._is_answered(number))
        finally:
            self._wire.decoder.forget_ping(number)
        return trio.current_time() - start

    def _is_answered(self, number: int) -> bool:
        if self._wire.decoder.is_answered(number):
            return True
        if self._wire.is_over() or self._wire.is_broken:
            raise self._why_closed(sending=True)
        return False

    # --- the end -------------------------------------------------------------

    def idle_point(self) -> AbstractContextManager[trio.CancelScope]:
        """Say that nothing but the wait in this block is under way, like `Conn.idle_point`. Not
        a checkpoint::

            with ws.idle_point() as scope:
                message = await ws.receive()
            if scope.cancelled_caught:
                await ws.aclose(1001)  # the server ends

        Only over a `TLSStream` over a `Conn` is there a drain that may cancel it.

        Returns:
          A context manager, to be entered once, whose value is the `trio.CancelScope`.

        Raises:
          RuntimeError: if it is entered in another thread, or twice.
        """
        stream = self.stream
        if not isinstance(stream, TLSStream):
            return IdlePoint(None)
        return stream._idle_point(lambda: self._wire.decoder.buffered > 0)

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection: send a close frame, wait for the peer's, and close the stream,
        all of it within ``close_time`` seconds. A checkpoint. Idempotent.

        If the peer's came before, or the connection is broken, there is nothing to wait for.
        Messages that were not received are dropped, and tasks that wait for one get a
        `ConnectionClosed`. A client waits for the server to end the stream, too.

        If it is cancelled, as by `trio.aclose_forcefully`, the stream is closed at once.

        Args:
          code: 1000 to 1003, 1007 to 1014, or 3000 to 4999; default 1000, normal.
          reason: a text of at most 123 bytes in UTF-8, for people. Default: none.

        Raises:
          ValueError: if ``code`` or ``reason`` is invalid.
          TypeError: likewise.
        """
        self._say_goodbye(code, close_reason(code, reason))
        done = False
        try:
            with trio.move_on_after(self._wire.close_time):
                await self._wire.answer()
                await self._wire.read_until(self._is_closed)
                await self._wire.end()
                done = True
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._wire.is_ended = True
            if not done:
                await trio.aclose_forcefully(self.stream)

    async def _end_early(self) -> None:
        """After the peer's goodbye: end the stream, and keep the messages that came."""
        try:
            with trio.move_on_after(self._wire.close_time):
                await self._wire.end()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        self._wire.is_ended = True

    def _say_goodbye(self, code: int, reason: bytes) -> None:
        """Have our close frame sent, if that was not done, and drop all messages. `code` 1005 is
        an empty frame."""
        wire = self._wire
        if not wire.is_ended:
            wire.decoder.say_goodbye(code, reason)
        wire.decoder.discard()
        wire.stop()

    def _end_at_once(self, code: int) -> None:
        """Have our close frame sent by a `TLSStream`, if nothing is in the way, before the
        connection is closed without waiting."""
        wire = self._wire
        self._say_goodbye(code, b"")
        if wire.is_due() and not wire.is_broken and not wire.sending.locked():
            assert isinstance(self.stream, TLSStream)
            self.stream._send_last(wire.unsent + wire.decoder.answers())

    def _is_closed(self) -> bool:
        """Whether nothing of the closing handshake is to be waited for."""
        wire = self._wire
        if wire.is_ended or wire.is_broken:
            return True
        waits_for_end = self._is_client and wire.decoder.was_closed_by_peer
        return wire.decoder.is_over and not waits_for_end

    def _close_state(
        self,
    ) -> tuple[int | None, str, Literal["peer", "local", "network"] | None]:
        wire = self._wire
        code, reason, by = wire.decoder.close_state()
        if code is None and (wire.is_ended or wire.is_broken):
            return LOST, "", "local" if self._is_closed_here() else "network"
        return code, reason, by

    def _is_closed_here(self) -> bool:
        """Whether the stream was closed by this program, if not by `aclose`."""
        return isinstance(self._wire.cause, trio.ClosedResourceError)

    def _why_closed(self, *, sending: bool) -> ConnectionClosed:
        code, reason, by = self._close_state()
        cause = self._wire.cause
        if isinstance(cause, trio.BrokenResourceError) and cause.__cause__ is not None:
            cause = cause.__cause__
        here = self._wire.is_closing or self._is_closed_here()
        if code is None:
            code, by = LOST, "network" if not here else "local"
        assert by is not None
        return connection_closed(code, reason, by, here, sending, cause)

    # --- facts ---------------------------------------------------------------

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol that was agreed on; None if none was."""
        return self._subprotocol

    @property
    def request(self) -> Request:
        """The request of the handshake."""
        assert self._request is not None
        return self._request

    @property
    def close_code(self) -> int | None:
        """The code of the first close frame, whoever sent it; 1005 if it has none; 1006 if the
        connection ended without one; None while it is open."""
        return self._close_state()[0]

    @property
    def close_reason(self) -> str | None:
        """The text of that frame; None while it is open."""
        code, reason, _ = self._close_state()
        return None if code is None else reason

    def statistics(self) -> WebSocketStatistics:
        """A snapshot of the counters. Not a checkpoint.

        Returns:
          The numbers of messages, bytes, batches and pings.
        """
        return websocket_statistics(self._wire.decoder.counters())


def _most(max_messages: object) -> int:
    if max_messages is None:
        return _MAX_MESSAGES
    if isinstance(max_messages, bool) or not hasattr(max_messages, "__index__"):
        raise TypeError(f"max_messages must be an integer or None, not {max_messages!r}")
    most: int = max_messages.__index__()
    if not 1 <= most <= _MAX_MESSAGES:
        raise ValueError(f"max_messages must be from 1 to {_MAX_MESSAGES}, not {most}")
    return most


def _payload(message: object, name: str) -> tuple[bool, Buffer]:
    """Whether a message is text, and its bytes."""
    if isinstance(message, bytes):
        return False, message
    if isinstance(message, str):
        try:
            return True, message.encode()
        except UnicodeEncodeError as exc:
            raise ValueError(f"{name} cannot be sent as text: {exc}") from None
    try:
        view = memoryview(message)  # type: ignore[arg-type]
        if not view.c_contiguous:
            raise TypeError
    except TypeError:
        raise TypeError(
            f"{name} must be a str, or contiguous and bytes-like, not {type(message).__name__}"
        ) from None
    return False, view.cast("B") if view.ndim else bytes(view)
