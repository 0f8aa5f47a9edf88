"""This library's own exceptions. All others are Trio's."""

from __future__ import annotations


class IncompleteRead(Exception):
    """The peer finished sending before `Conn.receive_exactly` or `Conn.receive_until` had
    enough bytes.

    Nothing is lost: the bytes that arrived stay in the connection's buffer, for
    `Conn.receive_some`.

    Attributes:
      expected: the number of bytes that were asked for; None for a delimiter.
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
