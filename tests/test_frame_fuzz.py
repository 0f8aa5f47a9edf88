"""The scanners of frames, with random input, against a plain model in C (`testing.pyx`).
`nox -s fuzz` runs this under AddressSanitizer."""

from __future__ import annotations

import pytest

from trio_wknet._native.testing import fuzz_frames

PARTS = 20


@pytest.mark.parametrize("part", range(PARTS))
def test_frames_are_found_as_the_model_finds_them(part: int, long: bool) -> None:
    count = 10_000_000 // PARTS if long else 2_500
    assert fuzz_frames(part * count, count) > count // 10
