"""Sets of handles, compared with Python's."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trio_wknet._native.testing import Handles

# Few generations and indices, at distances that a hash might not like: they meet again.
handles = st.builds(
    lambda generation, index, distance: generation << 32 | index * distance,
    st.integers(1, 3),
    st.integers(0, 40),
    st.sampled_from([1, 2, 256, 4096]),
)


@given(st.lists(st.tuples(st.booleans(), handles), max_size=400))
def test_like_a_set(steps: list[tuple[bool, int]]) -> None:
    found, model = Handles(), set[int]()
    for adds, handle in steps:
        assert (handle in found) == (handle in model)
        if adds:
            assert found.add(handle) == (handle not in model)
            model.add(handle)
        else:
            assert found.discard(handle) == (handle in model)
            model.discard(handle)
        assert len(found) == len(model)
    assert sorted(found.copied()) == sorted(model)
    assert all(handle in found for handle in model)


def test_it_grows_and_shrinks() -> None:
    found = Handles()
    many = [1 << 32 | number for number in range(10_000)]
    for handle in many:
        assert found.add(handle)
    assert found.room <= 4 * len(many)
    for handle in many:
        assert found.discard(handle)
    assert len(found) == 0
    assert found.room <= 8
