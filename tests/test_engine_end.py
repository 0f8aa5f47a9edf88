"""Every way for an engine to end: nothing is left, and whoever waits is told."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from helpers import dial, few_descriptors, read, read_all, two_conns, until
from trio.testing import wait_all_tasks_blocked

from trio_wknet import Conn, Engine, Listener, open_engine

pytestmark = pytest.mark.usefixtures("nothing_left")
LOCAL = "tcp://127.0.0.1:0"


# -- ends ------------------------------------------------------------------------------------


async def test_closing_wakes_everyone(reactors: int) -> None:
    woken = []

    async def expect_closed(name: str, call: Callable[[], Any]) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await call()
        woken.append(name)

    async def wait(conn: Conn) -> None:
        await conn.wait_closed()
        woken.append("end")

    async with trio.open_nursery() as nursery, open_engine(reactors) as engine:
        async with two_conns(engine) as (conn, _):
            listener = await engine.listen(LOCAL)
            nursery.start_soon(expect_closed, "accept", listener.accept)
            nursery.start_soon(expect_closed, "receive", conn.receive_some)
            nursery.start_soon(expect_closed, "send", lambda: conn.send_all(bytes(100_000_000)))
            nursery.start_soon(wait, conn)
            await wait_all_tasks_blocked()
            assert woken == []
            await engine._aclose()
    assert sorted(woken) == ["accept", "end", "receive", "send"]


class Boom(Exception):
    pass


@pytest.mark.parametrize("error", [Boom, KeyboardInterrupt, SystemExit])
def test_a_run_that_ends_by_an_exception(reactors: int, error: type[BaseException]) -> None:
    async def main() -> None:
        async with open_engine(reactors) as engine:
            listener = await engine.listen(LOCAL)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listener.serve, Conn.receive_some)
                with dial(listener):
                    await until(lambda: listener.statistics().handlers == 1)
                    raise error

    with pytest.raises(BaseException) as raised:  # noqa: PT011
        trio.run(main)
    assert raised.group_contains(error) or raised.type is error


def test_ctrl_c_in_this_process(reactors: int) -> None:
    async def main() -> None:
        async with open_engine(reactors) as engine, two_conns(engine) as (conn, _):
            signal.raise_signal(signal.SIGINT)
            await conn.receive_some()

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)


def test_an_engine_left_open_at_the_end_of_a_run(reactors: int) -> None:
    """By an async generator that nobody closed, for example."""
    kept: list[Any] = []

    async def main() -> None:
        engine = Engine._open(reactors, "least_connections")
        listener = await engine.listen(LOCAL)
        with dial(listener):
            conn = await listener.accept()
        kept.extend([engine, listener, conn])

    trio.run(main)
    engine, listener, conn = kept
    assert "closed" in repr(engine)
    assert conn.close_reason in ("engine closed", "eof")
    assert isinstance(listener, Listener)


def test_one_run_after_the_other(reactors: int) -> None:
    async def main() -> bytes:
        async with open_engine(reactors) as engine, two_conns(engine) as (one, other):
            await one.send_all(b"again")
            await one.aclose()
            return await read_all(other)

    assert [trio.run(main) for _ in range(5)] == [b"again"] * 5


def test_a_run_in_another_thread(reactors: int) -> None:
    seen = []

    async def main() -> None:
        async with open_engine(reactors) as engine, two_conns(engine) as (one, other):
            await one.send_all(b"thread")
            seen.append(await read(other, 6))

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    thread.join()
    assert seen == [b"thread"]


async def test_out_of_descriptors_for_an_engine(reactors: int) -> None:
    for free in range(4 * max(reactors, 1)):
        with few_descriptors(free):
            failure = None
            try:
                async with open_engine(reactors):
                    pass
            except OSError as exc:
                failure = exc.errno
            assert failure in (None, errno.EMFILE)


# -- other processes ----------------------------------------------------------------------------


def run_script(script: str, **options: Any) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parent.parent
    return subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", script],
        cwd=root, capture_output=True, text=True, timeout=60, **options,
    )  # fmt: skip


def test_nothing_starts_at_import() -> None:
    """Pitfall 16: netpoll #305 made threads at import."""
    script = """
import os, threading
import trio  # and ctypes along with it, for which libffi may hold its own file open
before = len(os.listdir("/proc/self/fd"))
import trio_wknet
assert len(os.listdir("/proc/self/task")) == threading.active_count() == 1
for name in trio_wknet.__all__:
    getattr(trio_wknet, name)
assert len(os.listdir("/proc/self/fd")) == before
"""
    done = run_script(script)
    assert (done.returncode, done.stderr) == (0, "")


FORK = """
import contextlib, os, socket, sys, trio, trio_wknet

async def main():
    async with trio_wknet.open_engine({reactors}) as engine:
        listener = await engine.listen("tcp://127.0.0.1:0")
        client = socket.create_connection(listener.address)
        conn = await listener.accept()
        engine._core.send_batch.threshold = 0
        deferred = conn.send_all(b"deferred, ")
        trap = deferred.send(None)
        child = os.fork()
        if child == 0:
            ways = [
                lambda: engine.statistics(),
                lambda: engine.listen(0).send(None),
                lambda: conn.send_nowait(b"from the child"),
                lambda: conn.receive_some().send(None),
                lambda: deferred.send(trap),
                lambda: listener.accept().send(None),
            ]
            for way in ways:
                try:
                    way()
                except RuntimeError as exc:
                    assert "fork" in str(exc), exc
                else:
                    os._exit(1)
            conn.abort()
            conn._drop()
            listener._close_all()
            os._exit(7)
        assert os.waitpid(child, 0)[1] == 7 << 8
        with contextlib.suppress(StopIteration):
            deferred.send(trap)
        # The child's end has not closed what is the parent's.
        await conn.send_all(b"parent")
        assert client.recv(100) == b"deferred, parent"
        client.close()
        await conn.aclose()

trio.run(main)
"""


def test_after_a_fork(reactors: int) -> None:
    """uvloop PR #268. The child may not use it, nor disturb the parent's."""
    done = run_script(FORK.format(reactors=reactors))
    assert (done.returncode, done.stderr) == (0, "")


CTRL_C = """
import threading, os, sys, trio, trio_wknet

async def main():
    async with trio_wknet.open_wknet_listener("tcp://127.0.0.1:0", reactors={reactors}) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.serve, trio_wknet.Conn.receive_some)
            conn = await trio.open_tcp_stream("127.0.0.1", listener.address[1])
            async with conn:
                while not listener.statistics().handlers:
                    await trio.sleep(0.001)
                print("ready", flush=True)
                await trio.sleep_forever()

before = len(os.listdir("/proc/self/fd"))
try:
    trio.run(main)
except KeyboardInterrupt:
    pass
except BaseException as group:
    assert any(isinstance(e, KeyboardInterrupt) for e in group.exceptions), group
else:
    sys.exit("no KeyboardInterrupt")
assert threading.active_count() == 1, threading.enumerate()
assert len(os.listdir("/proc/self/fd")) == before
print("clean", flush=True)
"""


def test_ctrl_c_in_a_process(reactors: int) -> None:
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", CTRL_C.format(reactors=reactors)]
    with subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (out, process.returncode) == ("clean\n", 0), err
