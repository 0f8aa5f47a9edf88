"""WebSocket's frames, as plainly as can be: a builder, and a strict decoder of a whole stream,
which shares nothing with the package's own."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
KEY = b"\x37\xfa\x21\x3d"  # RFC 6455, 5.7


def masked(data: bytes, key: bytes) -> bytes:
    stream = (key * (len(data) // 4 + 1))[: len(data)]
    whole = int.from_bytes(data, "big") ^ int.from_bytes(stream, "big")
    return whole.to_bytes(len(data), "big")


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    key: bytes | None = None,
    length: int | None = None,
    form: int | None = None,
) -> bytes:
    """A frame; with a `key` it is masked. `length` is what it announces, and `form` the
    bytes of its long form (0, 2 or 8), if these are not what they should be."""
    n = len(payload) if length is None else length
    if form is None:
        form = 0 if n < 126 else 2 if n < 65536 else 8
    bit = 0 if key is None else 0x80
    head = bytes([fin << 7 | rsv << 4 | opcode])
    head += bytes([bit | (n if form == 0 else 126 if form == 2 else 127)])
    head += {0: b"", 2: struct.pack("!H", n & 0xFFFF), 8: struct.pack("!Q", n)}[form]
    return head + (payload if key is None else key + masked(payload, key))


def close_payload(code: int, reason: str = "") -> bytes:
    return struct.pack("!H", code) + reason.encode()


def allowed_code(code: int) -> bool:
    return code in {1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)}


def is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def may_become_text(data: bytes) -> bool:
    """Whether it is, or is the beginning of, UTF-8."""
    if is_text(data):
        return True
    # Up to three bytes of a character may be missing.
    seconds = [b"\x80", b"\x8f", b"\x90", b"\x9f", b"\xa0", b"\xbf"]
    tails = [second + more for second in seconds for more in (b"", b"\x80", b"\x80\x80")]
    return any(is_text(data + tail) for tail in tails)


@dataclass
class Seen:
    """What a stream says."""

    messages: list[tuple[int, bool, bytes]] = field(default_factory=list)
    pings: list[bytes] = field(default_factory=list)
    pongs: list[bytes] = field(default_factory=list)
    over: tuple[int, int] | None = None  # by the peer (1) or by its mistake (2), code
    reason: bytes = b""


class _Mistake(Exception):
    pass


def decode(
    stream: bytes,
    *,
    client: bool = False,
    max_message: int = 1 << 20,
    max_fragments: int = 1 << 20,
    may_compress: bool = False,
) -> Seen:
    """What a strict receiver in that role makes of a stream."""
    seen = Seen()
    parts: list[bytes] | None = None
    kind, compressed, at = 0, False, 0

    def fail(code: int) -> None:
        seen.over = (2, code)
        raise _Mistake

    def text_so_far(data: bytes) -> None:
        if kind == TEXT and not compressed and not may_become_text(data):
            fail(1007)

    try:
        while at < len(stream):
            first = stream[at]
            fin, rsv, opcode = first >> 7, first >> 4 & 7, first & 15
            if opcode not in (0, 1, 2, 8, 9, 10):
                fail(1002)
            if rsv and not (rsv == 4 and may_compress and opcode in (TEXT, BINARY)):
                fail(1002)
            if opcode >= 8 and not fin:
                fail(1002)
            if opcode < 8 and (opcode == CONTINUATION) != (parts is not None):
                fail(1002)
            if at + 2 > len(stream):
                return seen
            mask, length = stream[at + 1] >> 7, stream[at + 1] & 127
            if mask == client or (opcode >= 8 and length > 125):
                fail(1002)
            at += 2
            size = {126: 2, 127: 8}.get(length, 0)
            if at + size + 4 * mask > len(stream):
                return seen
            if size:
                length = int.from_bytes(stream[at : at + size], "big")
                if length < (126 if size == 2 else 65536) or length >= 1 << 63:
                    fail(1002)
            at += size
            key = stream[at : at + 4 * mask] or bytes(4)
            at += 4 * mask
            if opcode < 8:
                if parts is None:
                    parts, kind, compressed = [], opcode, bool(rsv & 4)
                if sum(map(len, parts)) + length > max_message:
                    fail(1009)
                if len(parts) + 1 > max_fragments:
                    fail(1009)
            payload = masked(stream[at : at + length], key)
            whole = at + length <= len(stream)
            at += length
            if opcode < 8:
                assert parts is not None
                parts.append(payload)
                data = b"".join(parts)
                text_so_far(data)
                if fin and whole:
                    if kind == TEXT and not compressed and not is_text(data):
                        fail(1007)
                    seen.messages.append((kind, compressed, data))
                    parts = None
            elif whole and opcode == PING:
                seen.pings.append(payload)
            elif whole and opcode == PONG:
                seen.pongs.append(payload)
            elif whole:
                if len(payload) == 1:
                    fail(1002)
                code = int.from_bytes(payload[:2], "big") if payload else 1005
                if payload and not allowed_code(code):
                    fail(1002)
                if not is_text(payload[2:]):
                    fail(1007)
                seen.over, seen.reason = (1, code), payload[2:]
                return seen
    except _Mistake:
        pass
    return seen
