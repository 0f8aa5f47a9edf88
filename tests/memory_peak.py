"""A peak of connections, and the memory that it leaves: run by tests/test_trim.py in a
process of its own. Prints the bytes in memory before the peak, during it, and once they
have fallen far enough, or patience ends.

    python -m tests.memory_peak REACTORS CONNECTIONS BYTES
"""

from __future__ import annotations

import gc
import resource
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import trio

from trio_wknet import Conn, Engine, open_engine

PATIENCE = 60.0  # seconds; only a broken library reaches it
ENOUGH = 1.15


def be_clients(path: str, count: int, size: int) -> None:
    """The other ends, in a process of their own, because descriptors are limited for
    each. Of a Unix socket, which has no ports to run out of, and where connecting waits
    for the listener rather than for a timer. All ends if the server does."""
    socks = [socket.socket(socket.AF_UNIX) for _ in range(count)]
    for sock in socks:
        sock.connect(path)
        sock.sendall(bytes(size))
    sys.stdin.readline()
    for sock in socks:
        left = size
        while left:
            data = sock.recv(left)
            assert data, "the server has gone"
            left -= len(data)
        sock.close()


async def until(condition: Callable[[], bool]) -> bool:
    """Whether it came about in time."""
    with trio.move_on_after(PATIENCE) as scope:
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.05)
    return not scope.cancelled_caught


async def hold(engine: Engine, count: int, size: int) -> int:
    """Serve a crowd of which each has sent so much and nobody was answered, then answer
    all; returns the bytes in memory in between."""
    answer = trio.Event()

    async def handler(conn: Conn) -> None:
        await answer.wait()
        if size:
            await conn.send_all(await conn.receive_exactly(size))
        assert await conn.receive_some() == b""

    in_use = engine.statistics().pool_in_use

    def all_wait() -> bool:
        unread = engine.statistics().pool_in_use - in_use
        return listener.statistics().handlers == count and unread >= count * size

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/listener"
        command = [sys.executable, "-m", "tests.memory_peak", "clients", path]
        command += [str(count), str(size)]
        listener = await engine.listen(f"unix://{path}")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.serve, handler)
            # Unlike Popen's, its end never waits without Trio, for a process that waits
            # for us.
            run_clients = partial(trio.run_process, command, stdin=subprocess.PIPE)
            clients: trio.Process = await nursery.start(run_clients)
            assert clients.stdin is not None
            assert await until(all_wait)
            peak = resident()
            answer.set()
            await clients.stdin.aclose()
            assert await until(lambda: listener.statistics().handlers == 0)
            await clients.wait()
            nursery.cancel_scope.cancel()
    return peak


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def main(reactors: int, count: int, size: int) -> None:
    async with open_engine(reactors) as engine:
        await hold(engine, 100, size)  # imports, first tasks
        before = resident()
        peak = await hold(engine, count, size)
        await until(lambda: resident() <= ENOUGH * before)
        print(before, peak, resident())


_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
if sys.argv[1] == "clients":
    be_clients(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
else:
    trio.run(main, int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
