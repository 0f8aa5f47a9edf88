"""The block pool against a plain model: blocks are ranges of addresses."""

from __future__ import annotations

import gc

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

from trio_wknet._native.pool import BlockPool

SMALLEST = 512
LARGEST_KEPT = 1 << 20

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

    @initialize(keep_at_most=st.sampled_from([0, 511, 512, 4096, 100_000, 1 << 30]))
    def open(self, keep_at_most: int) -> None:
        self.keep_at_most = keep_at_most
        self.pool = BlockPool(keep_at_most)
        self.live: dict[int, tuple[int, int]] = {}  # number: address, capacity
        self.kept: list[int] = []  # capacities
        self.taken = 0
        self.allocated = 0

    @rule(target=numbers, size=sizes)
    def take(self, size: int) -> int:
        number = self.pool.take(size)
        capacity = capacity_for(size)
        assert self.pool.capacity(number) == capacity
        self.live[number] = (self.pool.address(number), capacity)
        self.taken += 1
        if capacity in self.kept:
            self.kept.remove(capacity)
        else:
            self.allocated += 1
        return number

    @rule(number=consumes(numbers), foreign=st.booleans())
    def give(self, number: int, foreign: bool) -> None:
        _, capacity = self.live.pop(number)
        self.pool.give(number, foreign)
        if capacity <= LARGEST_KEPT and sum(self.kept) + capacity <= self.keep_at_most:
            self.kept.append(capacity)

    @rule(target=numbers, number=consumes(numbers))
    def give_from_elsewhere_and_take_again(self, number: int) -> int:
        """A foreign give comes back: the next block of that size is that one,
        unless the owner has others of it, or it could not be kept."""
        address, capacity = self.live[number]
        alone = capacity not in self.kept
        self.give(number, True)
        again: int = self.take(capacity)  # type: ignore[assignment]
        if alone and capacity <= LARGEST_KEPT and self.allocated_last == self.allocated:
            assert self.live[again][0] == address
        return again

    @precondition(lambda self: self.kept)
    @rule()
    def trim(self) -> None:
        self.pool.trim()
        self.kept.clear()

    @invariant()
    def counts_are_exact(self) -> None:
        in_use = sum(capacity for _, capacity in self.live.values())
        assert self.pool.counts() == (sum(self.kept), in_use, self.taken, self.allocated)
        assert sum(self.kept) <= self.keep_at_most
        self.allocated_last = self.allocated

    @invariant()
    def live_blocks_do_not_overlap(self) -> None:
        ends = 0
        for address, capacity in sorted(self.live.values()):
            assert address >= ends
            ends = address + capacity


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


def test_a_pool_in_a_cycle_is_collected_with_its_blocks() -> None:
    """The collector clears what a pool refers to before it ends it."""
    cycle: list[object] = [BlockPool(0)]
    cycle.append(cycle)
    cycle[0].take(512)  # type: ignore[attr-defined]
    del cycle
    gc.collect()  # what fails in it fails the test, as an unraisable exception
