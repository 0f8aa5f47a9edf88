"""WebSocket's decoder by itself, against a plain model, over any division into reads."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websocket_model import (
    BINARY,
    CLOSE,
    CONTINUATION,
    KEY,
    PING,
    PONG,
    TEXT,
    Seen,
    close_payload,
    decode,
    frame,
)

from trio_wknet._native.testing import MessageDecoder


def fed(decoder: MessageDecoder, stream: bytes, cuts: list[int]) -> list[tuple[int, bool, bytes]]:
    """Feed a stream in pieces, and take what is there after each."""
    messages = []
    at = 0
    for cut in [*sorted(cut for cut in cuts if cut < len(stream)), len(stream)]:
        decoder.feed(stream[at:cut])
        at = max(at, cut)
        messages += decoder.take()
    return messages


def compare(stream: bytes, cuts: list[int], **options: Any) -> Seen:
    expected = decode(stream, **options)
    decoder = MessageDecoder(**options)
    messages = fed(decoder, stream, cuts)
    # Where the mistake is in the middle of a read, what came before it was delivered.
    assert messages == expected.messages
    if expected.over is None:
        assert decoder.over is None
    else:
        assert decoder.over is not None
        assert decoder.over[:2] == expected.over
        if expected.over[0] == 1:
            assert decoder.over[2] == expected.reason
    answers = decode(b"".join(decoder.answers()), client=not options.get("client", False))
    assert answers.pongs == expected.pings[-1:]
    if expected.over is None:
        assert answers.over is None
    else:
        assert answers.over == (1, expected.over[1])
    return expected


cuts = st.lists(st.integers(0, 400), max_size=8)
payloads = st.one_of(
    st.binary(max_size=20),
    st.text(max_size=12).map(str.encode),
    st.sampled_from([0, 1, 124, 125, 126, 127, 300]).map(lambda n: bytes(n)),
    st.sampled_from([b"\xf0\x9f", b"\x98\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80"]),
    st.sampled_from([1000, 1001, 1004, 1005, 1006, 1015, 2999, 3000, 4999, 5000, 0]).map(
        lambda code: code.to_bytes(2, "big") + b"bye"
    ),
)


@st.composite
def frames(draw: st.DrawFn, client: bool) -> bytes:
    """Mostly right."""
    opcode = draw(st.sampled_from([TEXT, BINARY, CONTINUATION, CONTINUATION, PING, PONG] * 3 + [8]))
    odd = draw(st.integers(0, 24)) == 0
    key = None if client else draw(st.sampled_from([KEY, bytes(4), b"\xff\x00\xff\x01"]))
    if odd:
        key = draw(st.sampled_from([None, KEY]))
    return frame(
        draw(st.integers(0, 15)) if odd else opcode,
        draw(payloads),
        fin=opcode >= 8 or draw(st.booleans()),
        rsv=draw(st.integers(0, 7)) if odd else draw(st.sampled_from([0, 0, 0, 0, 4])),
        key=key,
        form=draw(st.sampled_from([None, None, 0, 2, 8])) if odd else None,
        length=draw(st.sampled_from([None, 0, 125, 126, 65536, 1 << 62])) if odd else None,
    )


@given(st.data())
def test_any_stream_in_any_pieces(data: st.DataObject) -> None:
    client = data.draw(st.booleans())
    parts = []
    for _ in range(data.draw(st.integers(0, 8))):
        try:
            parts.append(data.draw(frames(client)))
        except ValueError:  # a length that its form cannot say
            continue
    compare(
        b"".join(parts),
        data.draw(cuts),
        client=client,
        max_message=data.draw(st.sampled_from([10, 126, 1 << 20])),
        max_fragments=data.draw(st.sampled_from([1, 3, 1 << 20])),
        may_compress=data.draw(st.booleans()),
    )


@given(st.binary(max_size=60), cuts, st.booleans())
def test_any_bytes(stream: bytes, cuts: list[int], client: bool) -> None:
    compare(stream, cuts, client=client)


@given(st.lists(st.text(max_size=40), min_size=1, max_size=6), cuts, st.data())
def test_text_in_fragments(texts: list[str], cuts: list[int], data: st.DataObject) -> None:
    """Characters divided anywhere, by fragments and by reads, with pings in between."""
    stream = b""
    for text in texts:
        raw = text.encode()
        at = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=4)))
        pieces = [raw[a:b] for a, b in zip([0, *at], [*at, len(raw)], strict=True)]
        for i, piece in enumerate(pieces):
            opcode = CONTINUATION if i else TEXT
            stream += frame(opcode, piece, fin=i == len(pieces) - 1, key=KEY)
            if i % 2:
                stream += frame(PING, bytes([i]), key=KEY)
    seen = compare(stream, cuts)
    assert [message[2].decode() for message in seen.messages] == texts


def test_utf8_is_what_python_takes_for_it() -> None:
    """Every sequence of up to four bytes that is close to a limit, behind ASCII of any length,
    so that it is checked by words or by bytes."""
    edges = [0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1]
    edges += [0xEC, 0xED, 0xEE, 0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xFF]
    rng = random.Random(1)
    cases = [bytes([a, b]) for a in edges for b in edges]
    cases += [bytes([a, b, c]) for a in edges[8:] for b in edges for c in edges[::3]]
    cases += [
        bytes([a, b, c, d])
        for a in edges[18:]
        for b in edges
        for c in (0x7F, 0x80, 0xBF, 0xC0)
        for d in (0x7F, 0x80, 0xBF, 0xC0)
    ]
    for case in cases:
        text = b"x" * rng.randrange(20) + case + b"y" * rng.randrange(12)
        decoder = MessageDecoder()
        decoder.feed(frame(TEXT, text, key=KEY))
        try:
            text.decode()
        except UnicodeDecodeError:
            assert decoder.take() == []
            assert decoder.over == (2, 1007, b"text is not UTF-8"), case
        else:
            assert decoder.take() == [(TEXT, False, text)], case


@pytest.mark.parametrize("size", [0, 1, 7, 8, 31, 32, 33, 125, 126, 127, 65535, 65536, 200_000])
@pytest.mark.parametrize("client", [False, True], ids=["server", "client"])
def test_every_size_in_every_way(size: int, client: bool) -> None:
    """Unmasking at every offset of the key and of the block."""
    rng = random.Random(size)
    data = rng.randbytes(size)
    stream = b"".join(
        frame(BINARY, data, key=None if client else rng.randbytes(4)) for _ in range(3)
    )
    steps = [7, 4096, len(stream)] if size > 1000 else [1, 2, 3, 5, 64, len(stream)]
    for step in steps:
        if size > 1000 and step == 7:
            stream_part = stream[: len(stream) // 3]
            decoder = MessageDecoder(client)
            messages = fed(decoder, stream_part, [5, 9, 14, 15, 16, 100, 65540, 65541])
            assert messages == [(BINARY, False, data)]
            continue
        decoder = MessageDecoder(client)
        messages = fed(decoder, stream, list(range(0, len(stream), step)))
        assert messages == 3 * [(BINARY, False, data)]
        assert decoder.held == (0, 0)


def test_an_announced_length_takes_no_memory() -> None:
    decoder = MessageDecoder(max_message=1 << 29)
    decoder.feed(frame(BINARY, b"x" * 100, key=KEY, length=1 << 29))
    assert decoder.held[1] <= 4096
    for total in (1000, 100_000, 2_000_000):
        decoder.feed(bytes(total))
    assert decoder.held[1] <= 1 << 23


def test_too_big_is_known_at_the_header() -> None:
    decoder = MessageDecoder(max_message=1000)
    decoder.feed(frame(BINARY, b"", key=KEY, length=1001)[:8])
    assert decoder.over == (2, 1009, b"message is too big")
    assert decoder.held == (0, 0)


def test_too_big_in_sum() -> None:
    decoder = MessageDecoder(max_message=1000)
    decoder.feed(frame(BINARY, bytes(600), fin=False, key=KEY))
    decoder.feed(frame(CONTINUATION, bytes(400), fin=False, key=KEY))
    assert decoder.over is None
    decoder.feed(frame(CONTINUATION, b"", fin=False, key=KEY))
    decoder.feed(frame(CONTINUATION, b"", key=KEY, length=1)[:6])
    assert decoder.over == (2, 1009, b"message is too big")
    assert decoder.held == (0, 0)


def test_empty_fragments_take_no_memory_and_are_counted() -> None:
    decoder = MessageDecoder(max_fragments=50_000)
    decoder.feed(frame(BINARY, b"", fin=False, key=KEY))
    empty = frame(CONTINUATION, b"", fin=False, key=KEY)
    decoder.feed(empty * 49_999)
    assert decoder.over is None
    assert decoder.held == (8, 512)
    decoder.feed(empty)
    assert decoder.over == (2, 1009, b"message has too many fragments")


def test_the_last_of_several_pings_is_answered() -> None:
    decoder = MessageDecoder()
    decoder.feed(b"".join(frame(PING, b"%d" % n, key=KEY) for n in range(1000)))
    assert decoder.answers() == [frame(PONG, b"999")]
    assert decoder.answers() == []
    assert decoder.held == (0, 0)


def test_a_pong_confirms_earlier_pings() -> None:
    decoder = MessageDecoder()
    for n in (1, 2, 3):
        decoder.ping(n, b"p%d" % n)
    decoder.feed(frame(PONG, b"p2", key=KEY))  # before it was sent
    assert decoder.confirmed == 0
    assert decoder.answers() == [frame(PING, b"p%d" % n) for n in (1, 2, 3)]
    assert not decoder.feed(frame(PONG, b"unsolicited", key=KEY))
    assert decoder.feed(frame(PONG, b"p2", key=KEY) + frame(PONG, b"x", key=KEY))
    assert decoder.confirmed == 2
    assert not decoder.feed(frame(PONG, b"p1", key=KEY))
    assert decoder.confirmed == 2
    decoder.feed(frame(PONG, b"p3", key=KEY))
    assert decoder.confirmed == 3


def test_nothing_is_decoded_after_the_end() -> None:
    decoder = MessageDecoder()
    decoder.feed(
        frame(TEXT, b"before", key=KEY)
        + frame(BINARY, b"half", fin=False, key=KEY)
        + frame(PING, b"p", key=KEY)
        + frame(CLOSE, close_payload(4000, "so"), key=KEY)
        + frame(PING, b"q", key=KEY)
        + b"anything"
    )
    assert decoder.take() == [(TEXT, False, b"before")]
    assert decoder.held == (0, 0)
    assert decoder.over == (1, 4000, b"so")
    assert decoder.answers() == [frame(PONG, b"p"), frame(CLOSE, close_payload(4000))]
    assert not decoder.feed(frame(PING, b"q", key=KEY))
    assert decoder.answers() == []


def test_a_client_masks_what_it_answers() -> None:
    decoder = MessageDecoder(client=True)
    decoder.feed(frame(PING, b"hello") + frame(CLOSE, close_payload(1000)))
    key = bytes([1, 2, 3, 4])
    close = frame(CLOSE, close_payload(1000), key=key)
    assert decoder.answers() == [frame(PONG, b"hello", key=key), close]
