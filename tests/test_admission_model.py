"""Admission's own arithmetic, against a model: counts, addresses, the rate, and who is woken."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trio_wknet import Admission
from trio_wknet._admission import native_arguments, packed_address
from trio_wknet._native.testing import Door
from trio_wknet._native.trio.admission import NativeAdmission
from trio_wknet._statistics import all_ended_by, ended_by, refused_by

ADMITTED, MAX_CONNECTIONS, MAX_PER_ADDRESS, ACCEPT_RATE, EXEMPT = 0, 1, 2, 3, 9
SECOND = 10**9


def door(*, gated: bool = False, **options: Any) -> Door:
    return Door(NativeAdmission(*native_arguments(Admission(**options), gated=gated)))


def host(address: str) -> bytes:
    packed = packed_address((address, 0))
    assert packed is not None
    return packed


def reasons(the_door: Door, *addresses: str) -> list[int]:
    return [the_door.enter(host(address), 0)[1] for address in addresses]


# The clients of the model, and what counts as one address with each.
CLIENTS = {
    "192.0.2.1": "192.0.2.1",
    "::ffff:192.0.2.1": "192.0.2.1",
    "192.0.2.2": "192.0.2.2",
    "2001:db8::1": "2001:db8::/64",
    "2001:db8::ffff:0:2": "2001:db8::/64",
    "2001:db8:0:1::1": "2001:db8:0:1::/64",
    "::1": "::/64",
    "::2": "::/64",
}
TRUSTED = "198.51.100.7"


class Comings(RuleBasedStateMachine):
    """Connections come and go at a door that refuses."""

    MOST, EACH = 5, 2

    def __init__(self) -> None:
        super().__init__()
        self.door = door(
            max_connections=self.MOST,
            max_per_address=self.EACH,
            when_full="refuse",
            trusted=["198.51.100.0/24"],
        )
        self.inside: dict[int, str] = {}

    @rule(client=st.sampled_from(sorted(CLIENTS)))
    def enter(self, client: str) -> None:
        key = CLIENTS[client]
        number, reason, _ = self.door.enter(host(client), 0)
        if len(self.inside) == self.MOST:
            assert reason == MAX_CONNECTIONS
        elif list(self.inside.values()).count(key) == self.EACH:
            assert reason == MAX_PER_ADDRESS
        else:
            assert reason == ADMITTED
            assert number is not None
            self.inside[number] = key

    @rule()
    def a_trusted_one(self) -> None:
        assert self.door.enter(host(TRUSTED), 0) == (None, EXEMPT, False)

    @rule(data=st.data())
    @precondition(lambda self: self.inside)
    def leave(self, data: Any) -> None:
        number = data.draw(st.sampled_from(sorted(self.inside)))
        del self.inside[number]
        assert not self.door.leave(number)

    @invariant()
    def the_counts_are_right(self) -> None:
        assert self.door.count == len(self.inside)
        assert self.door.addresses == len(set(self.inside.values()))


TestComings = Comings.TestCase
TestComings.settings = settings(max_examples=20, stateful_step_count=30)


class Waiting(RuleBasedStateMachine):
    """Ports that wait for room: whoever makes some is told of each."""

    MOST = 2

    def __init__(self) -> None:
        super().__init__()
        self.door = door(max_connections=self.MOST, max_per_address=1)
        self.inside: dict[int, str] = {}
        self.reserved = 0
        self.held = 0

    def full(self) -> bool:
        return len(self.inside) + self.reserved == self.MOST

    @rule()
    def reserve(self) -> None:
        full = self.full()
        assert self.door.reserve(0) == (None if full else True)
        self.held += full
        self.reserved += not full

    @precondition(lambda self: self.held)
    @rule()
    def try_again(self) -> None:
        self.door.wait_no_more()
        self.held -= 1
        self.reserve()

    @precondition(lambda self: self.reserved)
    @rule()
    def nobody_was_there(self) -> None:
        self.reserved -= 1
        assert self.door.give_back() == (self.held > 0)

    @precondition(lambda self: self.reserved)
    @rule(client=st.sampled_from(sorted(CLIENTS)))
    def enter(self, client: str) -> None:
        key = CLIENTS[client]
        self.reserved -= 1
        number, reason, room = self.door.enter(host(client), 0)
        if key in self.inside.values():
            assert (reason, room) == (MAX_PER_ADDRESS, self.held > 0)
        else:
            assert (reason, room) == (ADMITTED, False)
            assert number is not None
            self.inside[number] = key

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def leave(self, data: Any) -> None:
        number = data.draw(st.sampled_from(sorted(self.inside)))
        del self.inside[number]
        assert self.door.leave(number) == (self.held > 0)

    @invariant()
    def the_counts_are_right(self) -> None:
        assert self.door.count == len(self.inside) + self.reserved
        assert self.door.waiting == self.held


TestWaiting = Waiting.TestCase
TestWaiting.settings = settings(max_examples=20, stateful_step_count=30)


def test_many_addresses() -> None:
    """More than there are buckets at first, and each can be found again."""
    the_door = door(max_per_address=1)
    clients = [str(ip_address(0x0A000000 + number)) for number in range(5000)]
    inside = [the_door.enter(host(client), 0)[0] for client in clients]
    assert the_door.addresses == 5000
    assert set(reasons(the_door, *clients)) == {MAX_PER_ADDRESS}
    for number in inside:
        assert number is not None
        the_door.leave(number)
    assert (the_door.count, the_door.addresses) == (0, 0)


def test_behind_a_gate() -> None:
    """Who somebody is comes later than the connection."""
    the_door = door(
        gated=True, max_connections=3, max_per_address=1, when_full="refuse", trusted=[TRUSTED]
    )
    numbers = [the_door.enter(None, 0)[0] for _ in range(3)]
    assert the_door.enter(None, 0) == (None, MAX_CONNECTIONS, False)
    first, second, third = (number for number in numbers if number is not None)
    assert the_door.name(first, host("192.0.2.1")) == (ADMITTED, False)
    assert the_door.name(second, host("192.0.2.1")) == (MAX_PER_ADDRESS, False)
    assert the_door.name(third, host(TRUSTED)) == (EXEMPT, False)
    assert (the_door.count, the_door.addresses) == (2, 1)
    for number in (third, second, first):
        the_door.leave(number)
    assert (the_door.count, the_door.addresses) == (0, 0)


@pytest.mark.parametrize(("rate", "burst"), [(0.5, 1), (1, 1), (4, 4), (1000, 1000)])
def test_the_rate(rate: float, burst: int) -> None:
    """A second's worth at once, and then one in each interval."""
    the_door = door(accept_rate=rate, when_full="refuse")
    now = 5 * SECOND
    for _ in range(burst):
        assert the_door.enter(None, now)[1] == ADMITTED
    interval = round(SECOND / rate)
    for _ in range(3):
        assert the_door.enter(None, now)[1] == ACCEPT_RATE
        now += interval - 1
        assert the_door.enter(None, now)[1] == ACCEPT_RATE
        now += 1
        assert the_door.enter(None, now)[1] == ADMITTED
    now += 1000 * interval
    assert [the_door.enter(None, now)[1] for _ in range(burst + 1)] == [0] * burst + [ACCEPT_RATE]


def test_waiting_for_the_rate() -> None:
    """A port learns until when; what was reserved for nobody is given back."""
    the_door = door(accept_rate=2)
    assert the_door.reserve(0) is True
    assert the_door.reserve(0) is True
    assert the_door.reserve(0) == SECOND // 2
    assert the_door.waiting == 1
    assert the_door.give_back()
    the_door.wait_no_more()
    assert the_door.reserve(0) is True
    assert the_door.reserve(0) == SECOND // 2


@pytest.mark.parametrize(
    ("network", "inside", "outside"),
    [
        ("192.0.2.0/24", "192.0.2.255", "192.0.3.0"),
        ("192.0.2.7", "::ffff:192.0.2.7", "192.0.2.8"),
        ("2001:db8::/33", "2001:db8:7fff::1", "2001:db8:8000::1"),
        ("0.0.0.0/0", "203.0.113.1", "2001:db8::1"),
        ("::/0", "2001:db8::1", None),
        ("2001:db8::1", "2001:db8::1", "2001:db8::2"),
    ],
)
def test_trusted_networks(network: str, inside: str, outside: str | None) -> None:
    the_door = door(max_connections=1, when_full="refuse", trusted=[network])
    assert reasons(the_door, *([outside] if outside else [])) in ([ADMITTED], [])
    assert reasons(the_door, inside, inside) == [EXEMPT, EXEMPT]
    if outside is not None:
        assert reasons(the_door, outside) == [MAX_CONNECTIONS]


def test_the_names_are_those_of_the_counters() -> None:
    counts = list(range(8))
    assert refused_by(counts) == {
        "max_connections": MAX_CONNECTIONS,
        "max_per_address": MAX_PER_ADDRESS,
        "accept_rate": ACCEPT_RATE,
        "proxy_header": 4,
    }
    assert ended_by(counts) == {"first_byte_time": 5, "min_rate": 6}
    assert all_ended_by(counts) == {"first_byte_time": 5, "min_rate": 6, "budget": 7}
