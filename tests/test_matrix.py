"""The connection matrix against a plain model: a dict from handle to descriptor."""

from __future__ import annotations

import random

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from trio_wknet._native.matrix import SlotTable

SLAB = 256
HIGHEST = 2**32


class MatrixMachine(RuleBasedStateMachine):
    handles = Bundle("handles")  # live ones and stale ones

    @initialize()
    def open(self) -> None:
        self.table = SlotTable()
        self.model: dict[int, int] = {}
        self.stale: set[int] = set()

    @rule(target=handles, fd=st.integers(0, 2**31 - 1))
    def add(self, fd: int) -> int:
        handle = self.table.add(fd)
        assert handle not in self.model
        assert handle not in self.stale
        assert handle != 0
        self.model[handle] = fd
        return handle

    @rule(count=st.integers(1, 2 * SLAB))
    def add_many(self, count: int) -> None:
        for fd in range(count):
            self.add(fd)

    @rule(handle=handles)
    def remove(self, handle: int) -> None:
        assert self.table.remove(handle) == (handle in self.model)
        if self.model.pop(handle, None) is not None:
            self.stale.add(handle)

    @rule(handle=handles, times=st.integers(1, 500))
    def reuse(self, handle: int, times: int) -> None:
        """However often the slot passes through other hands, a handle to an
        earlier connection finds nothing."""
        self.remove(handle)
        for fd in range(times):
            passing = self.add(fd)
            assert self.table.get(handle) is None
            self.remove(passing)

    @rule(handle=st.integers(0, 2**64 - 1))
    def a_number_that_is_no_handle(self, handle: int) -> None:
        assert self.table.get(handle) == self.model.get(handle)
        assert self.table.remove(handle) == (self.model.pop(handle, None) is not None)

    @rule(handle=handles, generations=st.integers(-5, 5))
    def another_generation(self, handle: int, generations: int) -> None:
        other = (handle + generations * HIGHEST) % 2**64
        assert self.table.get(other) == self.model.get(other)

    @rule(handle=handles)
    def get(self, handle: int) -> None:
        assert self.table.get(handle) == self.model.get(handle)

    @invariant()
    def every_handle_means_its_own(self) -> None:
        assert len(self.table) == len(self.model)
        assert sorted(self.table.each()) == sorted(self.model)
        assert len({handle % HIGHEST for handle in self.model}) == len(self.model)

    def teardown(self) -> None:
        for handle, fd in self.model.items():
            assert self.table.get(handle) == fd
        assert all(self.table.get(handle) is None for handle in self.stale)


TestMatrix = MatrixMachine.TestCase


def test_generations_differ_through_many_reuses() -> None:
    table = SlotTable()
    seen = set()
    for fd in range(20_000):
        handle = table.add(fd)
        assert handle not in seen
        seen.add(handle)
        table.remove(handle)
    assert len({handle % HIGHEST for handle in seen}) == 1
    assert not any(table.remove(handle) for handle in seen)
    assert len(table) == 0


def test_slots_do_not_move_while_the_table_grows() -> None:
    table = SlotTable()
    handles = [table.add(fd) for fd in range(40 * SLAB)]
    assert [table.get(handle) for handle in handles] == list(range(40 * SLAB))
    order = random.Random(2)
    order.shuffle(handles)
    for handle in handles[: 20 * SLAB]:
        assert table.remove(handle)
    assert sorted(table.each()) == sorted(handles[20 * SLAB :])
