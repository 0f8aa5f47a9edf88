"""How a message goes through the broker: 12 bytes, and the message.

===== ===== ==============================================================
bytes value meaning
===== ===== ==============================================================
0-1   wk    ours
2     1     version: readers ignore, and count, what they do not know
3     flags 1: text, in UTF-8; 2: members that are slow are closed
4-11        the node that sent it, by a random number
12-         the message
===== ===== ==============================================================
"""

from __future__ import annotations

import secrets
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    if sys.version_info >= (3, 12):
        from collections.abc import Buffer
    else:
        from typing_extensions import Buffer

MAGIC = b"wk\x01"
TEXT, CLOSES_SLOW = 1, 2
NODE = 8
HEADER = len(MAGIC) + 1 + NODE


class Malformed(ValueError):
    """It is no message of ours."""


class Envelopes:
    """What a node puts into envelopes, and takes out of them."""

    def __init__(self) -> None:
        self.node = secrets.token_bytes(NODE)
        self._headers = [MAGIC + bytes([flags]) + self.node for flags in range(4)]

    def seal(self, data: str | Buffer, *, closes_slow: bool) -> bytes:
        flags = CLOSES_SLOW if closes_slow else 0
        if isinstance(data, str):
            return self._headers[flags | TEXT] + data.encode()
        return b"".join((self._headers[flags], data))

    def is_own(self, envelope: bytes) -> bool:
        return envelope[HEADER - NODE : HEADER] == self.node and envelope.startswith(MAGIC)

    @staticmethod
    def unseal(envelope: bytes) -> tuple[str | memoryview, bool]:
        """The message, and whether members that are slow are closed."""
        if len(envelope) < HEADER or not envelope.startswith(MAGIC):
            raise Malformed("no message of trio_wknet, or of another version of it")
        flags = envelope[len(MAGIC)]
        if flags & ~(TEXT | CLOSES_SLOW):
            raise Malformed(f"flags {flags:#x}")
        message = memoryview(envelope)[HEADER:]
        closes_slow = bool(flags & CLOSES_SLOW)
        if not flags & TEXT:
            return message, closes_slow
        try:
            return str(message, "utf-8"), closes_slow
        except UnicodeDecodeError as exc:
            raise Malformed("text that is not UTF-8") from exc
