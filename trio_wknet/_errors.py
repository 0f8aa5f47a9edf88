"""Exceptions of this library's own. Everything else is Trio's."""

from __future__ import annotations


class IncompleteRead(Exception):
    """The peer ended before ``receive_exactly`` or ``receive_until`` had enough.

    Nothing is lost: what did arrive stays in the connection's buffer, and
    ``receive_some`` gives it.

    Attributes:
      expected: how many bytes were asked for; None where a delimiter was.
      buffered: how many bytes are there.
    """

    def __init__(self, expected: int | None, buffered: int) -> None:
        wanted = "a delimiter" if expected is None else f"{expected} bytes"
        super().__init__(f"the peer ended the stream before {wanted}; {buffered} bytes are there")
        self.expected = expected
        self.buffered = buffered

    def __reduce__(self) -> tuple[type[IncompleteRead], tuple[int | None, int]]:
        return type(self), (self.expected, self.buffered)


class DelimiterNotFound(Exception):
    """``receive_until`` found no delimiter within its ``max_bytes``.

    Nothing is lost: the bytes stay in the connection's buffer.

    Attributes:
      delimiter: what was looked for.
      max_bytes: how many bytes may stand before it.
    """

    def __init__(self, delimiter: bytes, max_bytes: int) -> None:
        super().__init__(f"{delimiter!r} does not stand within the first {max_bytes} bytes")
        self.delimiter = delimiter
        self.max_bytes = max_bytes

    def __reduce__(self) -> tuple[type[DelimiterNotFound], tuple[bytes, int]]:
        return type(self), (self.delimiter, self.max_bytes)
