"""`on_stall`: what is told when Trio's loop does not come round."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest
import trio
from helpers import PATIENCE, two_conns, until

import trio_wknet
from trio_wknet import Stall, open_engine
from trio_wknet._stall import LOOKS, Lookout

AFTER = 0.02  # seconds


class Told:
    """What `on_stall` was called with, and a way to block until it is."""

    def __init__(self) -> None:
        self.stalls: list[Stall] = []
        self.threads: list[str] = []
        self.called = threading.Event()

    def __call__(self, stall: Stall) -> None:
        self.stalls.append(stall)
        self.threads.append(threading.current_thread().name)
        self.called.set()

    def of(self, function: str) -> list[Stall]:
        """Those in which it was running; a busy machine may stall anywhere."""
        return [one for one in self.stalls if function in [frame.name for frame in one.stack]]


def blocks(told: Told) -> None:
    assert told.called.wait(PATIENCE)


async def stalls_here(told: Told) -> None:
    """Block Trio's thread until that is told."""
    while not told.of("blocks"):
        told.called.clear()
        blocks(told)


async def test_a_task_that_blocks(reactors: int) -> None:
    told = Told()
    async with open_engine(reactors, on_stall=told, stall_after=AFTER):
        await trio.lowlevel.checkpoint()
        await stalls_here(told)
        await until(lambda: len(told.of("blocks")) == 2)
    begun, ended = told.of("blocks")
    assert (begun.over, ended.over) == (False, True)
    assert AFTER <= begun.seconds <= ended.seconds < PATIENCE
    assert begun.late >= 0
    # The stack is the blocked thread's, from its first function on.
    names = [frame.name for frame in begun.stack]
    assert names.index("stalls_here") < names.index("blocks")
    assert ended.stack == begun.stack
    assert set(told.threads) == {"wknet-stalls"}
    assert "wknet-stalls" not in [thread.name for thread in threading.enumerate()]


async def test_the_end_is_told_by_closing_the_engine(reactors: int) -> None:
    told = Told()
    with trio.CancelScope() as scope:
        async with open_engine(reactors, on_stall=told, stall_after=AFTER):
            await trio.lowlevel.checkpoint()
            await stalls_here(told)
            scope.cancel()
    assert [one.over for one in told.of("blocks")] == [False, True]


async def test_a_callback_that_blocks(reactors: int) -> None:
    """In event mode callbacks run in the hook, not in a task."""
    told = Told()

    def on_data(conn: Any) -> None:
        conn.receive_nowait()
        while not told.of("blocks"):
            told.called.clear()
            blocks(told)

    async with open_engine(reactors, on_stall=told, stall_after=AFTER) as engine:
        async with trio.open_nursery() as nursery:
            listener = await engine.listen("tcp://127.0.0.1:0")
            nursery.start_soon(listener.serve_events, on_data)
            async with await engine.connect(f"tcp://127.0.0.1:{listener.address[1]}") as conn:
                await conn.send_all(b"x")
                await until(lambda: len(told.of("on_data")) == 2)
            nursery.cancel_scope.cancel()


async def test_it_is_logged(reactors: int, caplog: pytest.LogCaptureFixture) -> None:
    def text() -> str:
        return "".join(record.getMessage() for record in caplog.records)

    def blocks_until_logged() -> None:
        patience = threading.Event()
        while "blocks_until_logged" not in text():
            patience.wait(0.001)

    with caplog.at_level(logging.WARNING, "trio_wknet.stall"):
        async with open_engine(reactors, on_stall="log", stall_after=AFTER):
            await trio.lowlevel.checkpoint()
            blocks_until_logged()
    assert "has not come round for" in text()
    assert "has come round after" in text()


async def test_what_it_raises_is_logged(reactors: int, caplog: pytest.LogCaptureFixture) -> None:
    told = Told()

    def on_stall(stall: Stall) -> None:
        told(stall)
        raise ZeroDivisionError

    async with open_engine(reactors, on_stall=on_stall, stall_after=AFTER) as engine:
        await trio.lowlevel.checkpoint()
        await stalls_here(told)
        async with two_conns(engine):  # all goes on
            await until(lambda: len(told.of("blocks")) == 2)
    assert "ZeroDivisionError" in caplog.text


def test_of_a_run(reactors: int) -> None:
    told = Told()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, lambda stream: stream.aclose(), listeners)
            await trio.lowlevel.checkpoint()
            await stalls_here(told)
            nursery.cancel_scope.cancel()

    trio_wknet.run(main, reactors=reactors, on_stall=told, stall_after=AFTER)
    assert [one.over for one in told.of("blocks")] == [False, True]


async def test_nobody_looks_unless_asked(reactors: int) -> None:
    async with open_engine(reactors):
        assert "wknet-stalls" not in [thread.name for thread in threading.enumerate()]


async def test_a_loop_that_waits_is_no_stall(reactors: int) -> None:
    """The loop is seen to wait from another thread, and to run while a task does."""
    async with open_engine(reactors) as engine:
        core = engine._core
        await trio.lowlevel.checkpoint()
        since, now = core.running_since()
        assert since is not None
        assert since <= now
        waiting = await trio.to_thread.run_sync(_sees_it_wait, core)
        assert waiting
    assert core.running_since()[0] is None


def _sees_it_wait(core: Any) -> bool:
    patience = threading.Event()
    for _ in range(10000):
        if core.running_since()[0] is None:
            return True
        patience.wait(0.001)
    return False


def test_a_stall_is_told_of_once_and_at_its_end() -> None:
    lookout = Lookout(1.0)
    usual = 1.0 / LOOKS
    assert lookout.look(None, 100.0) == (None, usual)  # it sleeps
    assert lookout.look(100.1, 100.2) == (None, usual)  # it runs
    new, pause = lookout.look(100.1, 101.0)  # for almost too long
    assert (new, pause <= 0.11) == (None, True)
    assert lookout.look(101.05, 101.1) == (None, usual)  # it has come round
    assert lookout.look(101.05, 102.05)[0] == "begun"
    assert lookout.look(101.05, 102.2)[0] is None
    assert lookout.look(101.05, 109.0)[0] is None
    assert lookout.look(None, 109.1) == ("over", usual)
    assert lookout.look(None, 109.2)[0] is None
    # One right behind another.
    assert lookout.look(110.0, 111.5)[0] == "begun"
    assert lookout.look(111.6, 113.0)[0] == "over"
    assert lookout.look(111.6, 113.0)[0] == "begun"


async def _asynchronous(stall: Stall) -> None:
    pass


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"on_stall": 1}, TypeError, "on_stall must be callable, 'log' or None, not 1"),
        ({"on_stall": "print"}, TypeError, "on_stall must be callable"),
        ({"on_stall": _asynchronous}, TypeError, "on_stall must be a plain function"),
        ({"stall_after": 0}, ValueError, "stall_after"),
        ({"stall_after": -1}, ValueError, "stall_after"),
        ({"stall_after": float("nan")}, ValueError, "stall_after"),
        ({"stall_after": "1"}, TypeError, "stall_after"),
        ({"stall_after": 1e9}, ValueError, "stall_after"),
    ],
)
async def test_bad_options(options: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        async with open_engine(0, **options):
            pass
    with pytest.raises(kind, match=text):
        trio_wknet.run(trio.sleep, 0, **options)
