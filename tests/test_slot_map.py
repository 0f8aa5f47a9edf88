"""The slot map against a plain model: a dict from handle to descriptor, and
the set of slabs that have memory."""

from __future__ import annotations

import os
import random
import resource
import threading
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from trio_wknet._native.testing import SlotTable

SLAB = 256
KEEP_WARM = 4
HIGHEST = 2**32
FREED_IS_KEPT = "ASAN_OPTIONS" in os.environ
FEW = 9  # slabs that the machine uses; more would only be slower


def index(handle: int) -> int:
    return handle % HIGHEST


class SlotMapMachine(RuleBasedStateMachine):
    handles = Bundle("handles")  # live ones and stale ones

    @initialize()
    def open(self) -> None:
        self.table = SlotTable()
        self.model: dict[int, int] = {}
        self.stale: set[int] = set()
        self.used: list[set[int]] = []  # slots of each slab
        self.warm: set[int] = set()

    @rule(target=handles, fd=st.integers(0, 2**31 - 1))
    def add(self, fd: int) -> int:
        handle = self.table.add(fd)
        assert handle not in self.model
        assert handle not in self.stale
        assert handle >= HIGHEST
        self.model[handle] = fd
        slab = next((i for i, used in enumerate(self.used) if len(used) < SLAB), len(self.used))
        assert index(handle) // SLAB == slab, "a slot is not in the lowest slab with room"
        if slab == len(self.used):
            self.used.append(set())
        self.used[slab].add(index(handle))
        self.warm.add(slab)
        return handle

    @rule(count=st.integers(1, 3 * SLAB))
    def add_many(self, count: int) -> None:
        for fd in range(min(count, FEW * SLAB - len(self.model))):
            self.add(fd)

    @rule(handle=handles)
    def remove(self, handle: int) -> None:
        assert self.table.remove(handle) == (handle in self.model)
        if self.model.pop(handle, None) is not None:
            self.returned(handle)

    def returned(self, handle: int) -> None:
        self.stale.add(handle)
        self.used[index(handle) // SLAB].remove(index(handle))
        empty = [slab for slab in sorted(self.warm) if not self.used[slab]]
        self.warm.difference_update(empty[KEEP_WARM:])

    @rule(share=st.floats(0, 1), seed=st.integers(0, 99))
    def remove_many(self, share: float, seed: int) -> None:
        order = random.Random(seed)
        for handle in order.sample(sorted(self.model), int(share * len(self.model))):
            self.remove(handle)

    @rule(seed=st.integers(0, 99), slabs=st.sets(st.integers(0, FEW - 1)))
    def empty_slabs(self, seed: int, slabs: set[int]) -> None:
        found = [handle for handle in self.model if index(handle) // SLAB in slabs]
        random.Random(seed).shuffle(found)
        for handle in found:
            self.remove(handle)

    @rule(handle=handles, times=st.integers(1, 500))
    def reuse(self, handle: int, times: int) -> None:
        """However often the slot passes through other hands, a handle to an
        earlier connection finds nothing."""
        self.remove(handle)
        for fd in range(times):
            passing = self.add(fd)
            assert self.table.get(handle) is None
            self.remove(passing)

    @rule(handle=st.integers(0, 2**64 - 1) | st.integers(0, FEW * SLAB))
    def a_number_that_is_no_handle(self, handle: int) -> None:
        assert self.table.get(handle) == self.model.get(handle)
        if handle not in self.model:
            assert not self.table.remove(handle)

    @rule(handle=handles, generations=st.integers(-5, 5))
    def another_generation(self, handle: int, generations: int) -> None:
        other = (handle + generations * HIGHEST) % 2**64
        assert self.table.get(other) == self.model.get(other)

    @rule(handle=handles)
    def get(self, handle: int) -> None:
        assert self.table.get(handle) == self.model.get(handle)

    @rule()
    def no_stale_handle_finds_anything(self) -> None:
        assert not [handle for handle in self.stale if self.table.get(handle) is not None]

    @invariant()
    def every_handle_means_its_own(self) -> None:
        assert len(self.table) == len(self.model)
        assert sorted(self.table.each()) == sorted(self.model)
        assert len({index(handle) for handle in self.model}) == len(self.model)

    @invariant()
    def slabs_are_warm_where_slots_are_used_and_little_more(self) -> None:
        assert self.table.warm == sorted(self.warm)
        empty = [slab for slab in self.warm if not self.used[slab]]
        assert len(empty) <= KEEP_WARM

    def teardown(self) -> None:
        for handle, fd in self.model.items():
            assert self.table.get(handle) == fd
        self.no_stale_handle_finds_anything()


TestSlotMap = SlotMapMachine.TestCase


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


def test_a_slab_that_has_had_the_last_generation_gives_no_more_slots() -> None:
    table = SlotTable(2**32 - 4)
    handles = [table.add(0) for _ in range(3)]
    assert [index(handle) for handle in handles] == [0, 1, 2]
    assert handles[-1] >> 32 == 2**32 - 1
    behind = table.add(0)
    assert index(behind) == SLAB
    for handle in [*handles, behind]:
        assert table.remove(handle)
        assert table.get(handle) is None
        assert table.get(index(handle)) is None
    seen = {*handles, behind}
    for _ in range(1000):
        handle = table.add(0)
        assert handle not in seen
        assert index(handle) >= SLAB
        seen.add(handle)
        assert table.remove(handle)
    # Spent slabs are not among those that are kept warm for what comes next.
    assert table.warm == [index(handle) // SLAB]


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(FREED_IS_KEPT, reason="AddressSanitizer keeps what is freed")
def test_memory_goes_back_after_a_peak() -> None:
    table = SlotTable()
    table.remove(table.add(0))
    before = resident()
    handles = [table.add(0) for _ in range(100_000)]
    assert resident() - before > 40_000_000
    last = handles.pop()
    random.Random(3).shuffle(handles)
    for handle in handles:
        table.remove(handle)
    assert resident() - before < 10_000_000  # the list itself is some MB
    assert table.warm == [0, 1, 2, 3, index(last) // SLAB]
    assert table.get(last) == 0
    assert not any(table.remove(handle) for handle in handles)
    assert [index(table.add(0)) for _ in range(300)] == list(range(300))


@pytest.mark.parametrize("full", [0, 1, 7])
def test_a_connection_at_a_slabs_edge_moves_no_pages(full: int) -> None:
    table = SlotTable()
    peak = [table.add(0) for _ in range((full + 8) * SLAB)]
    for handle in peak[full * SLAB :]:
        table.remove(handle)
    warm = table.warm
    assert warm == list(range(full + KEEP_WARM))
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10_000):
        handle = table.add(0)
        assert index(handle) // SLAB == full
        table.remove(handle)
        assert table.warm == warm
    # Where freed memory is kept, each object made here is a new page now and then.
    if not FREED_IS_KEPT:
        assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults < 1000


def test_stale_handles_are_looked_up_while_slabs_cool(long: bool) -> None:
    """Threads that look up stale handles, without the GIL, while pages come and go."""
    table = SlotTable()
    handles = [table.add(0) for _ in range(30 * SLAB)]
    for handle in handles:
        table.remove(handle)
    found: list[int] = []
    ending = threading.Event()

    def look_up() -> None:
        while not ending.is_set():
            found.append(table.count_found(handles))

    threads = [threading.Thread(target=look_up) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(1000 if long else 20):
            table.swell(30 * SLAB)
    finally:
        ending.set()
        for thread in threads:
            thread.join()
    assert set(found) == {0}
    assert len(table) == 0
