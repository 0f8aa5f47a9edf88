"""Mailboxes against a plain model, and under many senders at once."""

from __future__ import annotations

import functools
import operator
import sys
import threading
from collections.abc import Iterator

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from trio_wknet._native.testing import NotificationBox

notifications = st.integers(0, 4)
bit_sets = st.integers(1, 2**32 - 1) | st.sampled_from([1, 2, 4, 1 << 31])


class MailboxMachine(RuleBasedStateMachine):
    """The model: the order notifications were queued in, those gathered and not yet
    sent, and every notification's bits."""

    @initialize()
    def open(self) -> None:
        self.box = NotificationBox(5)
        self.queue: list[int] = []
        self.gathered: list[int] = []
        self.bits: dict[int, int] = {}

    @rule(number=notifications, bits=bit_sets)
    def post(self, number: int, bits: int) -> None:
        fresh = number not in self.bits
        assert self.box.post(number, bits) == fresh
        self.bits[number] = self.bits.get(number, 0) | bits
        if fresh:
            self.queue.append(number)

    @rule(number=notifications, bits=bit_sets)
    def gather(self, number: int, bits: int) -> None:
        self.box.gather(number, bits)
        if number not in self.bits:
            self.gathered.append(number)
        self.bits[number] = self.bits.get(number, 0) | bits

    @rule()
    def send(self) -> None:
        assert self.box.send() == bool(self.gathered)
        self.queue += self.gathered
        self.gathered = []

    @rule()
    def take(self) -> None:
        expected = [(number, self.bits.pop(number)) for number in self.queue]
        self.queue = []
        assert self.box.take() == expected

    @invariant()
    def knows_whether_something_waits(self) -> None:
        assert self.box.waiting() == bool(self.queue)


TestMailbox = MailboxMachine.TestCase


@pytest.mark.parametrize("number", [-1, 3])
def test_a_letter_that_is_not_there(number: int) -> None:
    box = NotificationBox(3)
    with pytest.raises(IndexError, match=str(number)):
        box.post(number, 1)
    with pytest.raises(IndexError, match=str(number)):
        box.gather(number, 1)


def run_all(*bodies: functools.partial[None]) -> None:
    threads = [threading.Thread(target=body) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


SENDERS = 4
NOTIFICATIONS = 8


@pytest.fixture(autouse=True)
def _quick_turns() -> Iterator[None]:
    """Threads change places often, not every 5 ms."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def take_until(box: NotificationBox, done: threading.Event, seen: list[tuple[int, int]]) -> None:
    while True:
        last = done.is_set()
        batch = box.take()
        assert len({number for number, _ in batch}) == len(batch), "a notification was in twice"
        assert all(bits for _, bits in batch), "a notification came without bits"
        seen += batch
        if last and not batch:
            return


def test_many_senders_lose_no_letter() -> None:
    """A notification is queued by whoever turned its bits from 0: so there are as many
    arrivals as posts that say so, and each sender's bit arrives at each notification."""
    box = NotificationBox(NOTIFICATIONS)
    done = threading.Event()
    seen: list[tuple[int, int]] = []
    queued = [0] * SENDERS

    def send(sender: int) -> None:
        for turn in range(400):
            queued[sender] += box.post_many((turn + sender) % NOTIFICATIONS, 1 << sender, 1000)

    taker = threading.Thread(target=take_until, args=(box, done, seen))
    taker.start()
    run_all(*(functools.partial(send, n) for n in range(SENDERS)))
    done.set()
    taker.join()
    assert len(seen) == sum(queued) > 0
    assert not box.waiting()
    for number in range(NOTIFICATIONS):
        arrived = functools.reduce(operator.or_, (bits for at, bits in seen if at == number))
        assert arrived == (1 << SENDERS) - 1


def test_no_bit_is_lost() -> None:
    """Each sender waits until its bit has arrived before it sends the next one:
    exactly one arrival for each post, or it would wait forever."""
    rounds = 1_000
    box = NotificationBox(NOTIFICATIONS)
    answers = [threading.Semaphore(0) for _ in range(SENDERS)]
    arrivals = [0] * SENDERS
    stop = threading.Event()

    def send(sender: int) -> None:
        for turn in range(rounds):
            box.post((turn + sender) % NOTIFICATIONS, 1 << sender)
            assert answers[sender].acquire(timeout=30), f"the bit of round {turn} was lost"

    def take() -> None:
        while not stop.is_set():
            for _, bits in box.take():
                for sender in range(SENDERS):
                    if bits >> sender & 1:
                        arrivals[sender] += 1
                        answers[sender].release()

    taker = threading.Thread(target=take)
    taker.start()
    try:
        run_all(*(functools.partial(send, n) for n in range(SENDERS)))
    finally:
        stop.set()
        taker.join()
    assert arrivals == [rounds] * SENDERS
