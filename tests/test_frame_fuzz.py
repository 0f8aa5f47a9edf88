"""The scanners of frames, and the decoder of WebSocket, with random input: the scanners against
a plain model in C (`testing.pyx`), the decoder against itself, with the same bytes at once and
in pieces (test_websocket_decoder.py has its model). `nox -s fuzz` runs this under
AddressSanitizer."""

from __future__ import annotations

import pytest

from trio_wknet._native.testing import fuzz_frames, fuzz_messages

PARTS = 20


@pytest.mark.parametrize("part", range(PARTS))
def test_frames_are_found_as_the_model_finds_them(part: int, long: bool) -> None:
    count = 10_000_000 // PARTS if long else 2_500
    assert fuzz_frames(part * count, count) > count // 10


@pytest.mark.parametrize("part", range(PARTS))
def test_messages_are_decoded_in_pieces_as_at_once(part: int, long: bool) -> None:
    count = 10_000_000 // PARTS if long else 2_500
    assert fuzz_messages(part * count, count) > count // 2
