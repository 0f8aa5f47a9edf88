"""This library's own exceptions. All others are Trio's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import trio

if TYPE_CHECKING:
    from trio_wknet._group import BroadcastResult
    from trio_wknet._relay import RelayResult


def is_only(
    exc: BaseException, kind: type[BaseException] | tuple[type[BaseException], ...]
) -> bool:
    """Whether an exception, or every one of an exception group, is of a kind."""
    members = getattr(exc, "exceptions", None)
    if members is not None:
        return all(is_only(member, kind) for member in members)
    return isinstance(exc, kind)


class IncompleteRead(Exception):
    """The peer finished sending before `Conn.receive_exactly`, `Conn.receive_until` or a
    frame had enough bytes.

    Nothing is lost: the bytes that arrived stay in the connection's buffer, for
    `Conn.receive_some`.

    Attributes:
      expected: the number of bytes that were asked for, or that the frame has, with its
          header, or its header; None for a delimiter.
      buffered: the number of bytes in the buffer.
    """

    def __init__(self, expected: int | None, buffered: int) -> None:
        wanted = "a delimiter" if expected is None else f"{expected} bytes"
        super().__init__(f"the peer finished sending before {wanted}; {buffered} bytes are there")
        self.expected = expected
        self.buffered = buffered

    def __reduce__(self) -> tuple[type[IncompleteRead], tuple[int | None, int]]:
        return type(self), (self.expected, self.buffered)


class DelimiterNotFound(Exception):
    """`Conn.receive_until` found no delimiter within its ``max_bytes``.

    Nothing is lost: the bytes stay in the connection's buffer.

    Attributes:
      delimiter: the bytes that were searched for.
      max_bytes: the most bytes that may precede it.
    """

    def __init__(self, delimiter: bytes, max_bytes: int) -> None:
        super().__init__(f"delimiter {delimiter!r} not found within {max_bytes} bytes")
        self.delimiter = delimiter
        self.max_bytes = max_bytes

    def __reduce__(self) -> tuple[type[DelimiterNotFound], tuple[bytes, int]]:
        return type(self), (self.delimiter, self.max_bytes)


class FrameTooLong(Exception):
    """A frame is longer than the framing's ``max_frame``.

    It is refused where its length is known, before memory is taken for it. Nothing is lost:
    the bytes stay, its header included, and ``unframe`` gives the connection back with them.
    What is received from the channel after that is this error again.

    Attributes:
      announced: how many bytes the frame would have as it is delivered; None where nothing
          announces it: no delimiter came within ``allowed`` bytes.
      allowed: the framing's ``max_frame``.
    """

    def __init__(self, announced: int | None, allowed: int) -> None:
        if announced is None:
            text = f"no delimiter ends the frame within {allowed} bytes"
        else:
            text = f"a frame of {announced} bytes was announced, and {allowed} are allowed"
        super().__init__(text)
        self.announced = announced
        self.allowed = allowed

    def __reduce__(self) -> tuple[type[FrameTooLong], tuple[int | None, int]]:
        return type(self), (self.announced, self.allowed)


class MalformedFrame(Exception):
    """The bytes that announce a frame's length cannot do so: with its adjustment it is less
    than nothing, or a varint does not end within 10 bytes and 64 bits.

    Nothing is lost, as with `FrameTooLong`.

    Attributes:
      announced: how many bytes the frame would have as it is delivered, less than it can
          have; None where the length itself cannot be read.
    """

    def __init__(self, announced: int | None) -> None:
        if announced is None:
            text = "the frame's length is a varint of more than 64 bits"
        else:
            text = f"the frame's length is too small: {announced} bytes would be delivered"
        super().__init__(text)
        self.announced = announced

    def __reduce__(self) -> tuple[type[MalformedFrame], tuple[int | None]]:
        return type(self), (self.announced,)


class ConnectionClosed(Exception):
    """A WebSocket's connection is over.

    It is also what `trio.abc.Channel` raises in that case, so that software for any channel
    finds what it expects: a `trio.ClosedResourceError` if this program has closed it; else a
    `trio.EndOfChannel` where a receive finds that the peer has closed it normally, with code
    1000 or 1001 or without one; else a `trio.BrokenResourceError`. Its cause is the `OSError`,
    if the connection broke.

    Attributes:
      code: that of the first close frame; 1005 if that has none; 1006 if there was none.
      reason: the text of that frame; may be empty.
      by: whose frame it was: ``"peer"``, or ``"local"`` if it was ours, as it is if the peer
          has broken the protocol; ``"network"`` if the connection ended without one.
    """

    def __init__(self, code: int, reason: str, by: Literal["peer", "local", "network"]) -> None:
        said = f"{code} ({reason})" if reason else str(code)
        if by == "network":
            text = "the connection ended without a close frame"
        else:
            text = f"the connection was closed {'here' if by == 'local' else 'by the peer'}: {said}"
        super().__init__(text)
        self.code = code
        self.reason = reason
        self.by = by

    def __reduce__(
        self,
    ) -> tuple[type[ConnectionClosed], tuple[int, str, Literal["peer", "local", "network"]]]:
        return type(self), (self.code, self.reason, self.by)


class ConnectionClosedHere(ConnectionClosed, trio.ClosedResourceError):
    pass


class ConnectionClosedNormally(ConnectionClosed, trio.EndOfChannel):
    pass


class ConnectionBroken(ConnectionClosed, trio.BrokenResourceError):
    pass


def connection_closed(
    code: int,
    reason: str,
    by: Literal["peer", "local", "network"],
    here: bool,
    sending: bool,
    cause: BaseException | None,
) -> ConnectionClosed:
    """The exception for that: `here` if this program has closed the connection."""
    kind: type[ConnectionClosed] = ConnectionBroken
    if here:
        kind = ConnectionClosedHere
    elif not sending and by == "peer" and code in (1000, 1001, 1005):
        kind = ConnectionClosedNormally
    closed = kind(code, reason, by)
    closed.__cause__ = cause
    return closed


class HandshakeError(Exception):
    """A server did not answer a WebSocket's handshake properly."""


class HandshakeRejected(HandshakeError):
    """A server answered a WebSocket's handshake with something else.

    Attributes:
      status: the HTTP status, such as 404.
      headers: name and value of each header.
      body: the response's body, up to 64 KiB.
    """

    def __init__(self, status: int, headers: tuple[tuple[str, str], ...], body: bytes) -> None:
        super().__init__(f"the server answered with HTTP status {status}")
        self.status = status
        self.headers = headers
        self.body = body

    def __reduce__(
        self,
    ) -> tuple[type[HandshakeRejected], tuple[int, tuple[tuple[str, str], ...], bytes]]:
        return type(self), (self.status, self.headers, self.body)


class BroadcastIncomplete(Exception):
    """Members of a `Group` were too slow for a broadcast that was to reach all
    (``when_slow="error"``).

    Attributes:
      result: the `BroadcastResult`.
    """

    def __init__(self, result: BroadcastResult) -> None:
        super().__init__(f"{result.skipped} members were too slow for a broadcast")
        self.result = result

    def __reduce__(self) -> tuple[type[BroadcastIncomplete], tuple[BroadcastResult]]:
        return type(self), (self.result,)


class RelayBroken(trio.BrokenResourceError):
    """One of the two sides of a `relay` broke. Its cause says how: for a `Conn` it is the
    `OSError`.

    Attributes:
      side: ``"a"`` or ``"b"``, the first that broke.
      result: a `RelayResult`, of what was relayed until then.
    """

    def __init__(self, side: Literal["a", "b"], result: RelayResult) -> None:
        super().__init__(
            f"{side} broke, after {result.a_to_b} bytes from a to b "
            f"and {result.b_to_a} bytes from b to a"
        )
        self.side = side
        self.result = result

    def __reduce__(self) -> tuple[type[RelayBroken], tuple[Literal["a", "b"], RelayResult]]:
        return type(self), (self.side, self.result)
