"""When Trio's thread looks on before it sleeps; and that nothing is lost where it does."""

from __future__ import annotations

import trio
from helpers import content, read, two_conns

from trio_wknet import Conn, Engine
from trio_wknet._native.testing import SpinTrial

MAX_BUDGET, RETRY = 8, 256


def play(trial: SpinTrial, *heard: int) -> bool:
    """Hear of some, and be about to sleep."""
    for whom in heard:
        trial.hear(whom)
    return trial.goes_on()


def test_one_peer_that_answers_each_time() -> None:
    trial = SpinTrial()
    assert not play(trial, 1), "it may be the only time"
    assert play(trial, 1)
    assert play(trial, 1)


def test_other_patterns() -> None:
    trial = SpinTrial()
    for turn in range(20):
        assert not play(trial, turn % 2 + 1), "two in turn"
    for _ in range(20):
        assert not play(trial, 1, 1), "more than a message"
        assert not play(trial, 1, 2), "two at once"
        assert not play(trial), "something else woke Trio"


def test_looking_on_in_vain_is_given_up_and_tried_again() -> None:
    trial = SpinTrial()
    play(trial, 1)
    for _ in range(MAX_BUDGET):
        assert play(trial, 1)
        trial.note(False)
    tries = [play(trial, 1) for _ in range(2 * RETRY)]
    assert [n for n, tried in enumerate(tries, 1) if tried] == [RETRY, 2 * RETRY]
    trial.note(True)
    assert play(trial, 1), "the try was worth it"
    trial.note(False)
    assert not play(trial, 1), "luck is soon used up"


def test_luck_is_bounded() -> None:
    trial = SpinTrial()
    play(trial, 1)
    for _ in range(1000):
        assert play(trial, 1)
        trial.note(True)
    for _ in range(MAX_BUDGET):
        assert play(trial, 1)
        trial.note(False)
    assert not play(trial, 1)


async def test_ping_pong(engine: Engine, kind: str) -> None:
    """Long enough that all of its states are met; both ends may be looking on."""
    async with two_conns(engine, kind) as (one, other), trio.open_nursery() as nursery:

        async def echo(conn: Conn) -> None:
            async for data in conn:
                await conn.send_all(data)

        nursery.start_soon(echo, other)
        for n in range(3 * RETRY):
            data = content(n, 1 + n % 100)
            await one.send_all(data)
            assert await read(one, len(data)) == data
        await one.send_eof()


async def test_a_deadline_in_the_middle_of_ping_pong(engine: Engine) -> None:
    """Looking on ends with the deadline, or some microseconds after it."""
    async with two_conns(engine) as (one, other):
        for _ in range(20):
            await one.send_all(b"ping")
            assert await read(other, 4) == b"ping"
            with trio.move_on_after(0.00002) as scope:
                await other.receive_some()
            assert scope.cancelled_caught
