"""Framings as Python would do them, to compare with, and streams to divide."""

from __future__ import annotations

from typing import Any

import trio
from hypothesis import strategies as st

from trio_wknet import (
    Delimited,
    FixedLength,
    FrameTooLong,
    IncompleteRead,
    LengthPrefixed,
    MalformedFrame,
    VarintPrefixed,
)

End = type[Exception]


def split(framing: Any, data: bytes) -> tuple[list[bytes], bytes, End]:
    """The frames in a stream, what is left behind the last one, and how it ends."""
    frames: list[bytes] = []
    while True:
        found = FIRST[type(framing)](framing, data)
        if isinstance(found, type):
            end = trio.EndOfChannel if found is IncompleteRead and not data else found
            return frames, data, end
        frame, total = found
        frames.append(frame)
        data = data[total:]


def _length_prefixed(framing: LengthPrefixed, data: bytes) -> Any:
    header = framing.offset + framing.size
    if len(data) < header:
        return IncompleteRead
    length = int.from_bytes(data[framing.offset : header], framing.byteorder)
    if length + framing.adjustment < 0:
        return MalformedFrame
    total = header + length + framing.adjustment
    strip = header if framing.strip is None else framing.strip
    if total - strip > framing.max_frame:
        return FrameTooLong
    return (data[strip:total], total) if len(data) >= total else IncompleteRead


def _delimited(framing: Delimited, data: bytes) -> Any:
    end = data.find(framing.delimiter)
    kept = len(framing.delimiter) if framing.keep else 0
    least = max(len(data) - len(framing.delimiter) + 1, 0) if end < 0 else end
    if least + kept > framing.max_frame:
        return FrameTooLong
    if end < 0:
        return IncompleteRead
    return data[: end + kept], end + len(framing.delimiter)


def _fixed_length(framing: FixedLength, data: bytes) -> Any:
    return (data[: framing.n], framing.n) if len(data) >= framing.n else IncompleteRead


def _varint_prefixed(framing: VarintPrefixed, data: bytes) -> Any:
    length = 0
    for i in range(10):
        if i == len(data):
            return IncompleteRead
        length |= (data[i] & 0x7F) << (7 * i)
        if length >= 1 << 64:
            return MalformedFrame
        if data[i] < 0x80:
            if length > framing.max_frame:
                return FrameTooLong
            total = i + 1 + length
            return (data[i + 1 : total], total) if len(data) >= total else IncompleteRead
    return MalformedFrame


FIRST: Any = {
    LengthPrefixed: _length_prefixed,
    Delimited: _delimited,
    FixedLength: _fixed_length,
    VarintPrefixed: _varint_prefixed,
}


# --- streams ----------------------------------------------------------------------


@st.composite
def length_prefixed(draw: st.DrawFn) -> LengthPrefixed:
    size = draw(st.sampled_from([1, 2, 3, 4, 8]))
    offset = draw(st.sampled_from([0, 0, 1, 7]))
    adjustment = draw(st.sampled_from([0, 0, 1, 5, -size, -offset - size]))
    strip = draw(st.none() | st.integers(0, offset + size + max(adjustment, 0)))
    return LengthPrefixed(
        size,
        draw(st.sampled_from(["big", "little"])),
        offset=offset,
        adjustment=adjustment,
        strip=strip,
        max_frame=draw(LIMITS),
    )


LIMITS = st.sampled_from([40, 1000, 100_000])
FRAMINGS: st.SearchStrategy[Any] = st.one_of(
    length_prefixed(),
    st.builds(
        Delimited,
        st.sampled_from([b"\n", b"\r\n", b"aab", b"aaaa"]),
        keep=st.booleans(),
        max_frame=LIMITS,
    ),
    st.builds(FixedLength, st.sampled_from([1, 2, 40, 1000, 20_000])),
    st.builds(VarintPrefixed, LIMITS),
)
SIZES = st.integers(0, 45) | st.sampled_from([127, 128, 900, 16_384, 16_390, 40_000])


def encoded(framing: Any, body: bytes) -> Any:
    """A body on the wire. It may be one that is refused."""
    if isinstance(framing, LengthPrefixed):
        body = body.ljust(max(framing.adjustment, 0), b"+")
        length = (len(body) - framing.adjustment) % 256**framing.size
        return b"!" * framing.offset + length.to_bytes(framing.size, framing.byteorder) + body
    if isinstance(framing, Delimited):
        return body + framing.delimiter
    if isinstance(framing, FixedLength):
        return body[: framing.n].ljust(framing.n, b"+")
    assert isinstance(framing, VarintPrefixed)
    length, header = len(body), bytearray()
    while length > 0x7F:
        header.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([*header, length]) + body


@st.composite
def streams(draw: st.DrawFn) -> tuple[Any, bytes]:
    """A framing, and a stream that mostly follows it."""
    framing = draw(FRAMINGS)
    data = b""
    for number, size in enumerate(draw(st.lists(SIZES, max_size=8))):
        data += encoded(framing, bytes(97 + (number + i) % 3 for i in range(size)))
    return framing, data + draw(st.binary(max_size=12))


@st.composite
def pieces(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """Any split of a stream into few pieces, or a regular one into small ones."""
    if draw(st.booleans()) and len(data) < 600:
        step = draw(st.integers(1, 7))
        return [data[i : i + step] for i in range(0, len(data), step)]
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=6)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
