"""The timing wheel's native part against a plain model: a dict of times."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from trio_wknet._native.testing import NodeWheel

NEVER = 2**64 - 1
NODES = 40
MS = 10**6
S = 10**9
DAY = 86400 * S
VISITS_A_TURN = 4096

indices = st.integers(0, NODES - 1)
delays = st.one_of(
    st.integers(0, 30 * MS),
    st.integers(0, 20 * S),
    st.sampled_from([0, 1, MS, 10 * MS, 10 * S, 300 * S, DAY, 1000 * DAY, 300 * 365 * DAY]),
    st.integers(0, 63).map(lambda bits: 1 << bits),
    st.integers(0, 2**63),
)
wheels: dict[str, st.SearchStrategy[int]] = {
    "tick": st.sampled_from([1, 7, 1000, 10 * MS, 10 * MS, S, 2**40]),
    "slots": st.sampled_from([2, 3, 64, 65, 130, 1000, 1000, 4095, 4096]),
    "now": st.sampled_from([0, 1, 12345 * S + 6789, 2**63 - 1, 2**64 - DAY]),
}


def capped(time: int) -> int:
    return max(0, min(time, NEVER - 1))


def take_all(wheel: NodeWheel) -> list[int]:
    taken = []
    while (index := wheel.take()) is not None:
        taken.append(index)
    return taken


class WheelMachine(RuleBasedStateMachine):
    """`due` has the nodes that are linked. What is due after a turn is what a list
    sorted by ticks has up to the present tick."""

    @initialize(tick=wheels["tick"], slots=wheels["slots"], now=wheels["now"])
    def open(self, tick: int, slots: int, now: int) -> None:
        self.wheel = NodeWheel(tick, slots, now, NODES)
        self.tick = tick
        self.now = now
        self.due: dict[int, int] = {}

    def is_due(self, index: int) -> bool:
        first_tick = -(-self.due[index] // self.tick)
        return self.due[index] != NEVER and first_tick <= self.now // self.tick

    @rule(index=indices, delay=delays)
    def add(self, index: int, delay: int) -> None:
        """It may be linked already, and even be among what is due."""
        self.due[index] = capped(self.now + delay)
        self.wheel.add(index, self.due[index])

    @rule(index=indices, delay=delays)
    def add_late(self, index: int, delay: int) -> None:
        self.due[index] = capped(self.now - delay)
        self.wheel.add(index, self.due[index])

    @rule(index=indices)
    def add_for_good(self, index: int) -> None:
        self.due[index] = NEVER
        self.wheel.add(index, NEVER)

    @rule(index=indices)
    def remove(self, index: int) -> None:
        self.due.pop(index, None)
        self.wheel.remove(index)

    @rule(which=indices)
    def remove_one(self, which: int) -> None:
        if self.due:
            self.remove(sorted(self.due)[which % len(self.due)])

    @rule(index=indices, delay=delays)
    def postpone(self, index: int, delay: int) -> None:
        """Activity: the time moves later, and nobody tells the wheel."""
        if self.due.get(index, NEVER) != NEVER:
            self.due[index] = capped(max(self.now, self.due[index]) + delay)
            self.wheel.postpone(index, self.due[index])

    def go_to(self, now: int) -> None:
        self.now = capped(now)
        self.wheel.turn(self.now)

    @rule(delay=delays)
    def forward(self, delay: int) -> None:
        self.go_to(self.now + delay)

    @rule(delay=delays)
    def back(self, delay: int) -> None:
        self.go_to(self.now - delay)

    @rule(early=st.integers(0, 2))
    def forward_to_the_next(self, early: int) -> None:
        following, visits = self.wheel.next(), self.wheel.visits
        if self.now < following < NEVER:
            self.go_to(max(self.now, following - early))
            assert (self.wheel.visits > visits) == (early == 0)

    @rule(data=st.data(), which=indices)
    def forward_to_one(self, data: st.DataObject, which: int) -> None:
        if self.due:
            index = sorted(self.due)[which % len(self.due)]
            off = data.draw(st.integers(-self.tick, self.tick))
            self.go_to(max(self.now, self.due[index] + off))

    @rule()
    def take_one(self) -> None:
        index = self.wheel.take()
        if index is None:
            self.wheel.turn(self.now)  # what was late when it was added
            assert not any(self.is_due(index) for index in self.due) or self.wheel.next() == 0
        else:
            assert self.is_due(index)
            del self.due[index]

    @rule()
    def take_all(self) -> None:
        self.wheel.turn(self.now)
        expected = {index for index in self.due if self.is_due(index)}
        assert sorted(take_all(self.wheel)) == sorted(expected)
        for index in expected:
            del self.due[index]

    @rule(
        actions=st.lists(
            st.tuples(st.sampled_from(["add", "add_late", "remove", "postpone"]), indices, delays),
            max_size=10,
        )
    )
    def take_and_meddle(self, actions: list[tuple[str, int, int]]) -> None:
        """Who takes may do anything in between."""
        for name, index, delay in actions:
            self.take_one()
            getattr(self, name)(index, *([] if name == "remove" else [delay]))

    @invariant()
    def what_is_linked_is_known(self) -> None:
        assert len(self.wheel) == len(self.due)
        for index in range(NODES):
            assert self.wheel.linked(index) == (index in self.due)

    @invariant()
    def nobody_is_missed_by_turning_at_the_next(self) -> None:
        following = self.wheel.next()
        times = [-(-due // self.tick) * self.tick for due in self.due.values()]
        earliest = min(times, default=NEVER)
        assert following <= max(earliest, self.now)
        if not self.due:
            assert following == NEVER


TestWheel = WheelMachine.TestCase


@given(
    slots=wheels["slots"],
    now=st.integers(0, 20_000),
    after=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=20),
)
def test_the_next_is_the_earliest(slots: int, now: int, after: list[float]) -> None:
    """Exactly, where all nodes are on the lowest level, wherever in its ring."""
    wheel = NodeWheel(1, slots, now, len(after))
    due = [now + 1 + int(share * (slots - 1)) for share in after]
    for index, time in enumerate(due):
        wheel.add(index, time)
    for index in sorted(range(len(due)), key=due.__getitem__):
        assert wheel.next() == due[index]
        wheel.remove(index)
    assert wheel.next() == NEVER


@given(**wheels, delay=delays)
@example(tick=1, slots=3, now=12345000006789, delay=1975)
def test_a_node_comes_down_a_level_a_turn(tick: int, slots: int, now: int, delay: int) -> None:
    """Turning only when the wheel says so finds a node in as many turns as its delay
    has levels: an empty stretch of time wakes nobody."""
    wheel = NodeWheel(tick, slots, now, 1)
    due = capped(now + delay)
    wheel.add(0, due)
    first, last = now // tick, -(-due // tick)
    levels = 1
    # By buckets, not by ticks: as a delay may begin and end within one, it may reach a
    # bucket further than its length, and so a level higher.
    while last // slots ** (levels - 1) - first // slots ** (levels - 1) >= slots:
        levels += 1
    while (index := wheel.take()) is None and (following := wheel.next()) < NEVER:
        assert now // tick * tick <= following < due + tick
        now = max(now, following)
        wheel.turn(now)
    assert wheel.visits <= levels
    # The tick may be later than 64 bits can tell.
    assert index == (0 if -(-due // tick) * tick < NEVER else None)


@given(**wheels, after=st.lists(delays, min_size=1, max_size=50), jump=delays)
def test_what_is_due_comes_in_order_of_ticks(
    tick: int, slots: int, now: int, after: list[int], jump: int
) -> None:
    wheel = NodeWheel(tick, slots, now, len(after))
    due = [capped(now + delay) for delay in after]
    for index, time in enumerate(due):
        wheel.add(index, time)
    now = capped(now + jump)
    wheel.turn(now)
    taken = [due[index] for index in take_all(wheel)]
    assert [-(-time // tick) for time in taken] == sorted(-(-time // tick) for time in taken)
    assert sorted(taken) == sorted(time for time in due if -(-time // tick) <= now // tick)


def test_a_jump_of_days_does_not_go_through_the_ticks() -> None:
    wheel = NodeWheel(1, 1000, 0, 3)  # ticks of 1 ns: a loop over them would not end
    for index, days in enumerate([1, 100, 50_000]):
        wheel.add(index, days * DAY)
    wheel.turn(40_000 * DAY)
    assert take_all(wheel) == [0, 1]
    assert wheel.visits <= 3 * 7
    wheel.turn(0)
    wheel.turn(49_999 * DAY)
    assert wheel.take() is None
    wheel.turn(50_000 * DAY)
    assert wheel.take() == 2


def test_a_clock_that_went_back_does_not_hold_timers_up() -> None:
    wheel = NodeWheel(10 * MS, 1000, 1000 * S, 3)
    wheel.add(0, 1300 * S)
    wheel.turn(1200 * S)
    wheel.turn(500 * S)
    wheel.add(1, 510 * S)
    wheel.turn(509 * S)
    assert wheel.take() is None
    wheel.turn(510 * S)
    assert take_all(wheel) == [1]
    wheel.turn(1300 * S)
    assert take_all(wheel) == [0]


@pytest.mark.parametrize("back", range(1, 9))
def test_going_back_to_a_bucket_in_use(back: int) -> None:
    wheel = NodeWheel(1, 3, 100, 30)
    due = [101 + index for index in range(30)]
    for index, time in enumerate(due):
        wheel.add(index, time)
    wheel.turn(100 - back)
    for now in range(100 - back, 131):
        wheel.turn(now)
        assert take_all(wheel) == ([now - 101] if now > 100 else [])
    assert len(wheel) == 0


def test_turning_brings_the_wheel_to_the_present() -> None:
    """So that what is added then hangs where it belongs, not a level too high."""
    wheel = NodeWheel(10 * MS, 1000, 0, 2)
    wheel.add(0, DAY)
    wheel.turn(5000 * S)
    wheel.add(1, 5005 * S)
    assert wheel.next() == 5005 * S


def test_what_is_due_and_was_moved_is_not_taken() -> None:
    wheel = NodeWheel(10 * MS, 1000, 0, 4)
    for index in range(4):
        wheel.add(index, S)
    wheel.turn(S)
    wheel.postpone(0, 2 * S)  # activity between turning and taking
    wheel.remove(1)
    wheel.add(2, 3 * S)
    assert take_all(wheel) == [3]
    assert len(wheel) == 2
    wheel.turn(2 * S)
    assert take_all(wheel) == [0]
    wheel.turn(3 * S)
    assert take_all(wheel) == [2]


def test_an_active_connection_is_visited_once_in_its_timeout() -> None:
    timeout = 300 * S
    wheel = NodeWheel(10 * MS, 1000, 0, 1)
    wheel.add(0, timeout)
    now = 0
    for _ in range(10_000):  # a byte each second
        now += S
        wheel.postpone(0, now + timeout)
        if wheel.next() <= now:
            wheel.turn(now)
        assert wheel.take() is None
    assert 30 <= wheel.visits <= 35
    while (index := wheel.take()) is None:
        now = wheel.next()
        wheel.turn(now)
    assert index == 0
    assert now == 10_000 * S + timeout


def test_a_turn_visits_a_bounded_number() -> None:
    size = 3 * VISITS_A_TURN + 5
    wheel = NodeWheel(10 * MS, 1000, 0, size)
    for index in range(size):
        wheel.add(index, 305 * S)
    now, turns, taken = 305 * S, 0, 0
    while wheel.next() <= now:
        before = wheel.visits
        wheel.turn(now)
        turns += 1
        assert wheel.visits - before <= VISITS_A_TURN
        taken += len(take_all(wheel))
    assert taken == size
    assert turns == 7  # each node twice, once on each level
    assert wheel.next() == NEVER


def test_many_nodes_with_activity() -> None:
    """A long mixture, compared with what must come when."""
    rng = random.Random(7)
    size, timeout, now = 2000, 30 * S, 12345 * S
    wheel = NodeWheel(10 * MS, 64, now, size)
    due = {}
    for index in range(size):
        due[index] = now + rng.randrange(timeout)
        wheel.add(index, due[index])
    while due:
        now += rng.choice([MS, 9 * MS, 10 * MS, 15 * MS, S, 7 * S])
        for index in rng.sample(range(size), 20):
            if index in due and rng.random() < 0.9:
                due[index] = max(due[index], now + rng.randrange(timeout))
                wheel.postpone(index, due[index])
        wheel.turn(now)
        for index in take_all(wheel):
            assert due.pop(index) <= now
        assert all(now < time + 10 * MS for time in due.values())
        assert len(wheel) == len(due)


@pytest.mark.parametrize("slots", [2, 16, 4096])
def test_the_last_tick_has_a_bucket(slots: int) -> None:
    """The time furthest off is rounded up to a tick, which takes a level more where the
    ticks of 64 bits fill their levels exactly."""
    wheel = NodeWheel(2**40, slots, 0, 2)
    wheel.add(0, NEVER)
    wheel.add(1, NEVER - 2**40)
    wheel.turn(NEVER)
    assert take_all(wheel) == [1]
    assert wheel.next() == NEVER
    wheel.remove(0)
    assert len(wheel) == 0


def test_the_end_of_time() -> None:
    wheel = NodeWheel(1, 2, 0, 2)
    wheel.add(0, NEVER)
    wheel.add(1, NEVER - 1)
    wheel.turn(NEVER)
    assert take_all(wheel) == [1]
    wheel.remove(0)
    wheel.turn(NEVER)
    assert wheel.next() == NEVER


@pytest.mark.parametrize("numbers", [(0, 2, 0, 1), (1, 1, 0, 1), (1, 4097, 0, 1), (1, 2, 0, 2**31)])
def test_what_is_out_of_range(numbers: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="out of range"):
        NodeWheel(*numbers)
