"""UTF-8 as WebSocket checks and decodes it, beside Python's own codec."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_wknet._native.testing import text_in

# On either side of each border between lengths, and of what is no character.
BORDERS = "\x00\x7f\x80\xff\u0100\u07ff\u0800\u0fff\u1000\ud7ff\ue000\uffff\U00010000\U0010ffff"
# The same of single bytes.
BYTES = bytes.fromhex("007f80 8f909f a0bfc0 c1c2c3 c4dfe0 e1eced eeeff0 f1f3f4 f5ff")


def decoded(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def check(data: bytes, *cuts: int) -> None:
    ends = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    found = text_in([data[a:b] for a, b in pairwise(ends)])
    expected = decoded(data)
    # Strings of different width, such as one that is wider than it need be, are never equal.
    assert found == expected
    assert found is None or found.isascii() == (max(data, default=0) < 0x80)


@given(st.text(max_size=80), st.lists(st.integers(0, 300), max_size=3))
def test_any_text_in_any_pieces(text: str, cuts: list[int]) -> None:
    check(text.encode(), *cuts)


@pytest.mark.parametrize("seed", range(4))
def test_text_with_a_fault(seed: int) -> None:
    """What random bytes hardly are: nearly text, at every place of a block of sixteen."""
    choose = random.Random(seed)
    right = 0
    for _ in range(5000):
        data = bytearray("".join(choose.choices(BORDERS, k=choose.randrange(40))).encode())
        for _ in range(choose.randrange(3)):
            place = choose.randrange(len(data) + 1)
            data[place : place + choose.randrange(2)] = [choose.choice(BYTES)] * choose.randrange(2)
        right += decoded(bytes(data)) is not None
        check(bytes(data), choose.randrange(200), choose.randrange(200))
    assert 1000 < right < 4000


@pytest.mark.parametrize("greatest", BORDERS)
def test_each_width(greatest: str) -> None:
    for length in (0, 1, 7, 15, 16, 17, 40, 5000):
        for before in ("", "a", "é", "中"):
            if before <= greatest:
                check((before * length + greatest).encode())
                check((greatest + before * length).encode())


@pytest.mark.parametrize("first", BYTES)
def test_every_pair_behind_a_byte(first: int) -> None:
    """Alone, and in the middle of a block of sixteen."""
    for second in BYTES:
        for third in BYTES:
            odd = bytes([first, second, third])
            check(odd)
            check(b"." * 9 + odd + b"." * 20)
            check(b"." * 9 + odd + b"\x80" + b"." * 20)
