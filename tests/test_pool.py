"""The block pool against a plain model: blocks are ranges of addresses."""

from __future__ import annotations

import gc
from collections import Counter

import pytest
from helpers import refusing
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from trio_wknet._native.testing import BlockPool

SMALLEST = 512
LARGEST_KEPT = 1 << 20
FLOOR = 256 << 10  # bytes kept however long they lie idle
MUCH_RELEASED = 4 << 20
LEAST_MAPPED = 64 << 10

sizes = st.one_of(
    st.integers(0, 4096),
    st.integers(1, LARGEST_KEPT),
    st.sampled_from([2**bits + more for bits in range(8, 22) for more in (-1, 0, 1)]),
)


def capacity_for(size: int) -> int:
    capacity = SMALLEST
    while capacity < size:
        capacity *= 2
    return capacity


class PoolMachine(RuleBasedStateMachine):
    numbers = Bundle("numbers")

    @initialize(
        keep_at_most=st.sampled_from([0, 511, 512, 4096, 100_000, 1 << 20, 1 << 30]),
        maps=st.booleans(),
    )
    def open(self, keep_at_most: int, maps: bool) -> None:
        self.keep_at_most = keep_at_most
        self.maps = maps
        self.pool = BlockPool(keep_at_most, maps)
        self.live: dict[int, tuple[int, int]] = {}  # number: address, capacity
        self.free: Counter[int] = Counter()  # blocks of each capacity, the owner's
        self.returned: Counter[int] = Counter()  # by other threads, and not yet looked at
        self.idle: dict[int, int] = {}  # the fewest that were free in this period
        self.taken = 0
        self.allocated = 0
        self.released = 0
        self.excess = False
        self.told = 0

    @property
    def kept(self) -> int:
        return sum(capacity * n for capacity, n in (self.free + self.returned).items())

    def collect(self) -> None:
        self.free += self.returned
        self.returned.clear()

    def look_for_excess(self) -> None:
        if (self.kept > FLOOR or self.released >= MUCH_RELEASED) and not self.excess:
            self.excess = True
            self.told += 1

    def release(self, capacity: int) -> None:
        if self.maps and capacity >= LEAST_MAPPED:
            return  # leaves no hole
        self.released += capacity
        if self.released >= MUCH_RELEASED:
            self.look_for_excess()

    @rule(target=numbers, size=sizes)
    def take(self, size: int) -> int:
        number = self.pool.take(size)
        capacity = capacity_for(size)
        assert self.pool.capacity(number) == capacity
        self.live[number] = (self.pool.address(number), capacity)
        self.taken += 1
        if not self.free[capacity] and capacity <= LARGEST_KEPT:
            self.collect()
        if self.free[capacity]:
            self.free[capacity] -= 1
        else:
            self.allocated += 1
        self.idle[capacity] = min(self.idle.get(capacity, 0), self.free[capacity])
        return number

    @rule(target=numbers, sizes=st.lists(sizes, min_size=1, max_size=50))
    def take_several(self, sizes: list[int]) -> MultipleResults[int]:
        return multiple(*[self.take(size) for size in sizes])  # type: ignore[arg-type]

    @rule(number=consumes(numbers), foreign=st.booleans())
    def give(self, number: int, foreign: bool) -> None:
        _, capacity = self.live.pop(number)
        self.pool.give(number, foreign)
        if capacity > LARGEST_KEPT or self.kept + capacity > self.keep_at_most:
            self.release(capacity)
            return
        (self.returned if foreign else self.free)[capacity] += 1
        if self.kept > FLOOR:
            self.look_for_excess()

    @rule(target=numbers, number=consumes(numbers))
    def give_from_elsewhere_and_take_again(self, number: int) -> int:
        """A foreign give comes back: the next block of that size is that one,
        unless the owner has others of it, or it could not be kept."""
        address, capacity = self.live[number]
        alone = not self.free[capacity] and not self.returned[capacity]
        self.give(number, True)
        allocated = self.allocated
        again: int = self.take(capacity)  # type: ignore[assignment]
        if alone and capacity <= LARGEST_KEPT and allocated == self.allocated:
            assert self.live[again][0] == address
        return again

    @rule()
    def trim(self) -> None:
        self.pool.trim()
        for capacity in (self.free + self.returned).elements():
            self.release(capacity)
        self.free.clear()
        self.returned.clear()
        self.idle.clear()

    @rule()
    def a_period_passes(self) -> None:
        """What lay idle all the time goes, the largest first, down to the floor."""
        self.pool.trim_idle()
        self.collect()
        for capacity in sorted(self.free, reverse=True):
            while self.idle.get(capacity, 0) > 0 and self.kept > FLOOR:
                self.idle[capacity] -= 1
                self.free[capacity] -= 1
                self.release(capacity)
        self.idle = dict(self.free)

    @rule()
    def nothing_is_needed_for_two_periods(self) -> None:
        self.a_period_passes()
        self.a_period_passes()
        assert self.kept <= FLOOR

    @rule(heap=st.booleans())
    def the_watcher_looks(self, heap: bool) -> None:
        if heap:
            assert self.pool.forget_released() == self.released
            self.released = 0
        settled = self.kept <= FLOOR and self.released < MUCH_RELEASED
        assert self.pool.settled() == settled
        if settled:
            self.excess = False

    @invariant()
    def counts_are_exact(self) -> None:
        in_use = sum(capacity for _, capacity in self.live.values())
        assert self.pool.counts() == (self.kept, in_use, self.taken, self.allocated)
        assert self.kept <= self.keep_at_most

    @invariant()
    def the_watcher_is_told_of_excess_once(self) -> None:
        assert self.pool.told == self.told
        assert self.excess or self.kept <= FLOOR

    @invariant()
    def live_blocks_do_not_overlap(self) -> None:
        ends = 0
        for address, capacity in sorted(self.live.values()):
            assert address >= ends
            ends = address + capacity

    @invariant()
    def large_blocks_have_pages_of_their_own(self) -> None:
        for address, capacity in self.live.values():
            if self.maps and capacity >= LEAST_MAPPED:
                assert address % 4096 == 0


TestPool = PoolMachine.TestCase


def test_blocks_of_other_threads_come_back_all() -> None:
    pool = BlockPool(1 << 20)
    numbers = [pool.take(512) for _ in range(100)]
    addresses = {pool.address(number) for number in numbers}
    for number in numbers:
        pool.give(number, foreign=True)
    again = {pool.address(pool.take(512)) for _ in range(100)}
    assert again == addresses
    assert pool.counts() == (0, 51200, 200, 100)


def cycle_through(pool: BlockPool, count: int) -> None:
    """A burst that needs so many blocks of 64 KiB at once."""
    for number in [pool.take(65536) for _ in range(count)]:
        pool.give(number)


def test_what_a_period_needs_again_and_again_is_kept() -> None:
    pool = BlockPool(16 << 20)
    cycle_through(pool, 100)
    pool.trim_idle()
    for _ in range(5):
        for _ in range(10):
            cycle_through(pool, 40)
        pool.trim_idle()
    kept, _, _, allocated = pool.counts()
    assert kept == 40 * 65536
    assert allocated == 100, "what is needed in each period was given back"
    assert pool.told == 1


def test_idle_blocks_are_given_back_within_two_periods() -> None:
    pool = BlockPool(16 << 20)
    cycle_through(pool, 200)
    pool.trim_idle()
    pool.trim_idle()
    assert pool.counts()[0] == FLOOR
    assert not pool.settled(), "the allocator's heap is yet to be trimmed"
    assert pool.forget_released() == 196 * 65536
    assert pool.settled()
    cycle_through(pool, 4)
    assert pool.settled()
    assert pool.told == 1
    cycle_through(pool, 5)
    assert pool.told == 2


def test_a_pool_in_a_cycle_is_collected_with_its_blocks() -> None:
    """The collector clears what a pool refers to before it ends it."""
    cycle: list[object] = [BlockPool(0)]
    cycle.append(cycle)
    cycle[0].take(512)  # type: ignore[attr-defined]
    del cycle
    gc.collect()  # what fails in it fails the test, as an unraisable exception


def test_without_memory_what_is_kept_goes_first() -> None:
    """A block of another size is of no use where one is asked for."""
    pool = BlockPool(1 << 20)
    for number in [pool.take(4096) for _ in range(8)]:
        pool.give(number)
    assert pool.counts()[0] == 8 * 4096
    with refusing("blocks", count=1):
        pool.take(8192)
    assert pool.counts()[0] == 0
    with refusing("blocks"), pytest.raises(MemoryError):
        pool.take(16384)
