"""What happens while Trio sleeps, and is told all the same: closing by a host of guest mode;
and the end of a run whose pump has failed."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
import trio
from helpers import PATIENCE, dial, until
from trio.testing import wait_all_tasks_blocked

from trio_wknet import Conn, open_engine
from trio_wknet._native.trio.core import Core

pytestmark = pytest.mark.usefixtures("nothing_left")
LOCAL = "tcp://127.0.0.1:0"


def test_a_host_that_closes(reactors: int) -> None:
    """on_close is called, though Trio sleeps, and nothing else would wake it."""

    async def main(loop: asyncio.AbstractEventLoop) -> str:
        conns: list[Conn] = []
        reasons: list[str] = []
        told = trio.Event()

        def on_close(conn: Conn, reason: str) -> None:
            reasons.append(reason)
            told.set()

        async with open_engine(reactors) as engine, trio.open_nursery() as nursery:
            listener = await engine.listen(LOCAL)
            nursery.start_soon(
                lambda: listener.serve_events(
                    lambda conn: None, on_connect=conns.append, on_close=on_close
                )
            )
            with dial(listener):
                await until(lambda: conns)
                await wait_all_tasks_blocked()
                loop.call_later(0.05, lambda: conns[0].close_nowait())
                # Not a deadline of Trio's: that would wake it.
                with trio.CancelScope() as scope:
                    loop.call_later(PATIENCE / 4, scope.cancel)
                    await told.wait()
                assert not scope.cancelled_caught
            nursery.cancel_scope.cancel()
        return reasons[0]

    async def host() -> Any:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()
        trio.lowlevel.start_guest_run(
            main,
            loop,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=done.set_result,
        )
        return (await done).unwrap()

    assert asyncio.run(host()) == "closed"


def test_a_pump_that_fails(reactors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run ends, with an internal error that says why, though a listener waits for its
    reactors, shielded."""
    wait_readable = trio.lowlevel.wait_readable
    broken = False

    async def failing(descriptor: Any) -> None:
        await wait_readable(descriptor)
        if broken:
            raise OSError("injected")

    async def main() -> None:
        nonlocal broken
        async with open_engine(reactors) as engine:
            listener = await engine.listen(LOCAL)
            await wait_all_tasks_blocked()
            broken = True
            if reactors:  # which ring only if Trio sleeps
                os.eventfd_write(engine._core.fileno(), 1)
            with dial(listener):
                await listener.serve(Conn.receive_some)

    monkeypatch.setattr(trio.lowlevel, "wait_readable", failing)
    with pytest.raises(trio.TrioInternalError) as raised:
        trio.run(main)
    assert "injected" in repr(raised.value.__cause__)


@pytest.mark.parametrize("which", ["reactors", "clock"])
def test_a_core_that_cannot_be_made_leaves_nothing(which: str) -> None:
    def clock() -> float:
        raise ZeroDivisionError

    before = len(os.listdir("/proc/self/fd"))
    if which == "reactors":
        with pytest.raises(ValueError, match="without reactor threads"):
            Core(1, False, Conn, lambda: 0.0)
    else:
        with pytest.raises(ZeroDivisionError):
            Core(0, False, Conn, clock)
    assert len(os.listdir("/proc/self/fd")) == before
