"""Memory goes back after a peak, and nobody is woken once it has."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from helpers import descriptors, until
from trio.testing import MockClock

from trio_wknet import Conn, Engine, Limits, open_engine

ROOT = Path(__file__).parent.parent
SANITIZED = {"ASAN_OPTIONS", "TSAN_OPTIONS"} & set(os.environ)
FLOOR = 256 << 10  # bytes that a pool keeps
PIECE = 64 << 10


@asynccontextmanager
async def pairs(engine: Engine, count: int) -> AsyncIterator[list[tuple[Conn, socket.socket]]]:
    found: list[tuple[Conn, socket.socket]] = []
    try:
        for _ in range(count):
            ours, theirs = socket.socketpair()
            theirs.setblocking(False)
            conn = engine.adopt(ours, limits=Limits(inbound=1 << 20))
            assert isinstance(conn, Conn)
            found.append((conn, theirs))
        yield found
    finally:
        for conn, theirs in found:
            conn.abort()
            theirs.close()


async def turned(condition: Callable[[], object], what: str) -> None:
    """Like `until`, where the reactor turns with Trio's loop and time stands still."""
    for _ in range(100):
        if condition():
            return
        await trio.lowlevel.checkpoint()
    raise AssertionError(f"{what} did not come about")


async def receive_a_peak(
    engine: Engine,
    crowd: list[tuple[Conn, socket.socket]],
    wait: Callable[[Callable[[], object], str], Awaitable[None]] = until,
) -> None:
    """Each connection has 64 KiB unread at once; then they are read."""
    for _, peer in crowd:
        assert peer.send(bytes(PIECE)) == PIECE
    expected = len(crowd) * PIECE
    await wait(lambda: engine.statistics().pool_in_use >= expected, "the peak")
    for conn, _ in crowd:
        await conn.receive_exactly(PIECE)


async def send_a_peak(crowd: list[tuple[Conn, socket.socket]]) -> None:
    """Each connection has much unsent at once; then it is read."""
    unsent = 0
    for conn, _ in crowd:
        conn.send_nowait(bytes(1 << 20))
        unsent += conn.statistics().buffered_outbound
    assert unsent > 2 * FLOOR
    for conn, peer in crowd:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_on, trio.socket.from_stdlib_socket(peer))
            await conn.flush()
            nursery.cancel_scope.cancel()


async def read_on(peer: Any) -> None:
    while await peer.recv(1 << 20):
        pass


def waits(engine: Engine) -> set[str]:
    """How the reactors wait now, as the kernel has it: "for ever", "for a time", or "not"
    where a thread does something else."""
    if engine.reactors == 0:
        timers = [fd for fd, what in descriptors().items() if "timerfd" in what]
        infos = [Path(f"/proc/self/fdinfo/{fd}").read_text() for fd in timers]
        # One that has expired has no time left, but ticks, until the reactor turns.
        unset = [{"ticks: 0", "it_value: (0, 0)"} <= set(info.splitlines()) for info in infos]
        return {"for ever" if it else "for a time" for it in unset}
    threads = [thread for thread in threading.enumerate() if "wknet-reactor" in thread.name]
    return {wait_of_thread(thread.native_id) for thread in threads}


def wait_of_thread(number: int | None) -> str:
    """By the system call that a thread is in: epoll_wait's first argument is an epoll,
    its fourth an int, the timeout. epoll_ctl's fourth is a pointer."""
    call = Path(f"/proc/self/task/{number}/syscall").read_text().split()
    if len(call) < 7:  # "running"
        return "not"
    if "eventpoll" not in descriptors().get(int(call[1], 16), ""):
        return "not"
    return "for ever" if int(call[4], 16) & 0xFFFFFFFF == 0xFFFFFFFF else "for a time"


def readable(path: str) -> bool:
    try:
        return bool(Path(path).read_text())
    except OSError:
        return False


async def test_pools_give_back_what_they_do_not_need_and_then_nobody_is_woken(
    engine: Engine, reactors: int, long: bool
) -> None:
    if reactors == 2 and not long:
        pytest.skip("it takes seconds")
    pools = 1 if reactors == 0 else reactors + 1
    async with pairs(engine, 40) as crowd:
        await receive_a_peak(engine, crowd)
        await send_a_peak(crowd)
        await until(lambda: engine.statistics().pool_kept <= pools * FLOOR, "the pools' floor")
        in_use = max(1, reactors) * PIECE
        await until(lambda: engine.statistics().pool_in_use == in_use, "nothing in use")
        if readable("/proc/self/syscall"):
            await until(lambda: waits(engine) == {"for ever"}, "an end of looking after memory")
            with crowd[0][0].idle_scope(1000):
                await until(lambda: "for a time" in waits(engine), "an alarm that is seen")


@pytest.fixture
def clock() -> MockClock:
    return MockClock()


async def test_in_virtual_time_a_second_is_one_of_the_clock(
    nothing_left: None, clock: MockClock
) -> None:
    async with open_engine() as engine, pairs(engine, 40) as crowd:
        await receive_a_peak(engine, crowd, turned)
        for _ in range(20):
            await trio.lowlevel.checkpoint()
        kept = engine.statistics().pool_kept
        assert kept > 2 * FLOOR
        for _ in range(4):
            assert engine.statistics().pool_kept <= kept
            clock.jump(1.0)
            await trio.lowlevel.checkpoint()
        assert engine.statistics().pool_kept == FLOOR


async def test_a_clock_that_jumps_by_itself_is_not_led_on(
    nothing_left: None, autojump_clock: MockClock
) -> None:
    """Looking after memory is no reason for time to pass."""
    async with open_engine() as engine, pairs(engine, 40) as crowd:
        await receive_a_peak(engine, crowd, turned)
        assert engine.statistics().pool_kept > 2 * FLOOR
        before = trio.current_time()
        told = trio.Event()
        token = trio.lowlevel.current_trio_token()
        timer = threading.Timer(0.3, token.run_sync_soon, (told.set,))
        timer.start()
        await told.wait()
        timer.join()
        assert trio.current_time() == before


@pytest.mark.skipif(bool(SANITIZED), reason="sanitizers keep what is freed")
@pytest.mark.parametrize("size", [8192, 0], ids=["busy", "idle"])
def test_memory_falls_after_a_peak(reactors: int, size: int, long: bool) -> None:
    """10 000 connections, each with a handler, and with unread bytes or none. Once they
    are closed, their process has within 20 % of the memory that it had before. Python's
    objects are in the heap there: whether its own allocator gives an arena back is up to
    the odd object that stays in it."""
    if (reactors, size) != (1, 8192) and not long:
        pytest.skip("one form is enough in a short run")
    count = 10_000
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < count + 100:
        pytest.skip("too few descriptors")
    program = [sys.executable, "-m", "tests.memory_peak", str(reactors), str(count), str(size)]
    env = {**os.environ, "PYTHONMALLOC": "malloc"}
    done = subprocess.run(
        program, capture_output=True, text=True, check=False, cwd=ROOT, env=env, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    before, peak, after = map(int, done.stdout.split())
    assert peak > before + count * (size + 2000), "there was no peak"
    assert after < 1.2 * before, f"{before} bytes before the peak, {after} after it"
