"""What connections send and what has to come back, for each protocol of the load.

Both are patterns that repeat, made once for all connections; each connection begins at a
place of its own in them. They are made so that bytes that are lost, doubled, swapped or
sent to another connection differ from what is expected:

- *raw* has no messages: noise whose period is a prime number of bytes, so that no message
  size lines up with it;
- in the other protocols, every message has a header and a payload of its own, and the
  period is a prime number of messages. A connection begins with another message than its
  neighbour.

So a message costs what it costs in raw: the next bytes of the pattern are sent, and what
comes back is compared with the other pattern.
"""

from __future__ import annotations

import base64
import hashlib
import random
from collections.abc import Callable
from itertools import pairwise
from typing import Literal, TypeAlias, get_args

import attrs

Protocol: TypeAlias = Literal["raw", "length-prefixed", "websocket", "websocket-text"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)

STRIDE = 7919
"""Bytes, or messages, from where a connection begins in the pattern to where the next does."""
RAW_PERIOD = 65521
LEAST_MESSAGES = 7
MAX_MESSAGE = 1 << 24
"""Bytes of a payload, except in raw: the patterns of larger ones would take too much memory."""
ALPHABET = "abc xyz." + "äéñøßЖλя" + "中文字符日本語한" + "😀🎉🚀🌍"
"""Characters of one to four bytes in UTF-8."""

_KEY = base64.b64encode(b"trio_wknet bench")
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3
_ACCEPT = base64.b64encode(hashlib.sha1(_KEY + _GUID).digest())


@attrs.frozen
class Stream:
    """A pattern, as `LoadGenerator` takes it."""

    pattern: bytes
    stride: int
    """Bytes from where a connection begins to where the next one does."""
    message: int
    """Bytes of a message, with its header."""

    @classmethod
    def of(cls, messages: list[bytes]) -> Stream:
        """All messages have the same size."""
        size = len(messages[0])
        return cls(b"".join(messages), STRIDE % len(messages) * size, size)

    @property
    def as_tuple(self) -> tuple[bytes, int, int]:
        """The three of them."""
        return self.pattern, self.stride, self.message


@attrs.frozen
class Exchange:
    """What goes out and what has to come back, on all connections."""

    outbound: Stream
    inbound: Stream
    request: bytes = b""
    """Sent first, and answered with an HTTP head, where the protocol begins so."""
    accept: bytes = b""
    """What that head must contain."""


def exchange(protocol: Protocol, size: int, host: str) -> Exchange:
    """The streams of a protocol.

    Args:
        protocol: one of `PROTOCOLS`.
        size: bytes of a payload.
        host: what a WebSocket request names as its host.
    """
    if protocol == "raw":
        noise = Stream(random.Random(1).randbytes(RAW_PERIOD), STRIDE, size)
        return Exchange(noise, noise)
    if protocol == "length-prefixed":
        header = size.to_bytes(4, "big")
        frames = Stream.of([header + payload for payload in _noise(size)])
        return Exchange(frames, frames)
    opcode, payloads = (1, _text) if protocol == "websocket-text" else (2, _noise)
    return _websocket(opcode, payloads, size, host)


# -- Payloads ------------------------------------------------------------------


def messages_in(size: int) -> int:
    """How many payloads of a size a pattern has: a prime number, 64 KiB if there can be."""
    most = max(LEAST_MESSAGES, RAW_PERIOD // size)
    return next(n for n in range(most, 1, -1) if all(n % d for d in range(2, int(n**0.5) + 1)))


def _noise(size: int) -> list[bytes]:
    number = messages_in(size)
    return _cut(random.Random(1).randbytes(size * number), size)


def _text(size: int) -> list[bytes]:
    """The same of characters: what a cut leaves of one is replaced by dots."""
    number = messages_in(size)
    # They have 2.3 bytes in the mean, so that these are a seventh more than enough.
    characters = random.Random(1).choices(ALPHABET, k=size * number // 2 + 64)
    pieces = _cut("".join(characters).encode()[: size * number], size)
    return [piece.decode(errors="ignore").encode().ljust(size, b".") for piece in pieces]


def _cut(data: bytes, size: int) -> list[bytes]:
    return [data[start:end] for start, end in pairwise(range(0, len(data) + 1, size))]


# -- WebSocket -----------------------------------------------------------------


def _websocket(
    opcode: int, payloads: Callable[[int], list[bytes]], size: int, host: str
) -> Exchange:
    """Masked frames there, each with a mask of its own; the same unmasked back."""
    first = bytes([0x80 | opcode])
    masks = random.Random(2)
    there, back = [], []
    for payload in payloads(size):
        mask = masks.randbytes(4)
        there.append(first + _length(size, 0x80) + mask + _masked(payload, mask))
        back.append(first + _length(size, 0) + payload)
    return Exchange(Stream.of(there), Stream.of(back), _request(host), _ACCEPT)


def _length(size: int, mask_bit: int) -> bytes:
    if size < 126:
        return bytes([mask_bit | size])
    if size < 1 << 16:
        return bytes([mask_bit | 126]) + size.to_bytes(2, "big")
    return bytes([mask_bit | 127]) + size.to_bytes(8, "big")


def _masked(payload: bytes, mask: bytes) -> bytes:
    size = len(payload)
    whole = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(whole, "big")).to_bytes(size, "big")


def _request(host: str) -> bytes:
    lines = (
        b"GET / HTTP/1.1",
        b"Host: " + host.encode(),
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Key: " + _KEY,
        b"Sec-WebSocket-Version: 13",
    )
    return b"\r\n".join((*lines, b"", b""))
