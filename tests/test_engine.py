"""The engine: opening, where it may be used, and every way for it to end."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from helpers import (
    conn_and_peer,
    content,
    dial,
    plain_pair,
    read,
    two_conns,
    until,
    url,
)
from trio.testing import MockClock

from trio_wknet import Conn, open_engine

pytestmark = pytest.mark.usefixtures("nothing_left")
LOCAL = "tcp://127.0.0.1:0"


def reactor_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("wknet")]


# -- opening ---------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_an_engine_has_its_threads_while_it_is_open(count: int) -> None:
    assert reactor_threads() == []
    async with open_engine(count) as engine:
        assert engine.reactors == count
        assert len(reactor_threads()) == count
        assert len(engine.statistics().reactors) == max(count, 1)
    assert reactor_threads() == []
    assert "closed" in repr(engine)


async def test_the_default_number_of_reactors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    async with open_engine() as engine:
        assert engine.reactors == 0
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    async with open_engine() as engine:
        assert engine.reactors == 1


async def test_engines_are_independent(reactors: int) -> None:
    async with open_engine(reactors) as one, two_conns(one) as (client, server):
        async with open_engine(reactors) as other, two_conns(other) as (a, b):
            await a.send_all(b"x")
            assert await read(b, 1) == b"x"
        await client.send_all(b"y")
        assert await read(server, 1) == b"y"


async def test_round_robin() -> None:
    async with open_engine(3, balance="round_robin") as engine:
        async with await engine.listen(LOCAL) as listener:
            socks = [dial(listener) for _ in range(9)]
            conns = [await listener.accept() for _ in socks]
            assert [r.connections for r in engine.statistics().reactors] == [3, 3, 3]
            for conn, sock in zip(conns, socks, strict=True):
                conn.abort()
                sock.close()


async def test_no_thread_is_left_if_one_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def fail_for_the_second(thread: threading.Thread) -> None:
        if thread.name == "wknet-reactor-1":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail_for_the_second)
    with pytest.raises(RuntimeError, match="can't start"):
        async with open_engine(3):
            pass
    assert reactor_threads() == []


async def test_signals_are_the_main_threads(reactors: int) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    async with open_engine(reactors):
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
        for thread in threading.enumerate():
            if thread.name.startswith("wknet"):
                status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()  # noqa: ASYNC240
                blocked = next(x for x in status.splitlines() if x.startswith("SigBlk"))
                assert int(blocked.split()[1], 16) >> (signal.SIGINT - 1) & 1


# -- under a mock clock -----------------------------------------------------------------


def test_importing_brings_in_nothing_that_is_for_tests() -> None:
    """`trio.testing` has the mock clock, and imports pytest."""
    code = "import sys, trio_wknet; print({'trio.testing', '_pytest'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


async def test_echo_under_an_autojump_clock(autojump_clock: MockClock) -> None:
    """A foreign thread would be invisible to it: in-loop, whatever was asked for."""
    async with open_engine(3) as engine:
        assert engine.reactors == 0
        listener = await engine.listen(LOCAL)

        async def echo(conn: Conn) -> None:
            while data := await conn.receive_some():
                await trio.sleep(10)
                await conn.send_all(data)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.serve, echo)
            conn = await engine.connect(url(listener))
            for n in range(20):
                message = content(n, 1000)
                with trio.fail_after(11):
                    await conn.send_all(message)
                    assert await conn.receive_exactly(1000) == message
            with trio.move_on_after(1000) as scope:
                await conn.receive_some()
            assert scope.cancelled_caught
            await conn.aclose()
            nursery.cancel_scope.cancel()


# -- where it may be used ------------------------------------------------------------------


async def in_thread(function: Callable[[], Any]) -> Any:
    return await trio.to_thread.run_sync(function)


def test_outside_a_run() -> None:
    with pytest.raises(RuntimeError, match=r"async context|inside"):
        open_engine(1).__aenter__().send(None)


async def test_from_another_thread(reactors: int) -> None:
    async with open_engine(reactors) as engine, two_conns(engine) as (conn, _):
        listener = await engine.listen(LOCAL)

        def try_all() -> None:
            for call in (
                lambda: engine.statistics(),
                lambda: engine.listen(LOCAL).send(None),
                lambda: engine.connect("tcp://127.0.0.1:1").send(None),
                lambda: engine.adopt(socket.socket()),
                lambda: conn.receive_some().send(None),
                lambda: conn.send_all(b"x").send(None),
                lambda: conn.send_nowait(b"x"),
                lambda: conn.receive_nowait(),
                lambda: listener.accept().send(None),
            ):
                with pytest.raises(RuntimeError, match="another thread"):
                    call()

        with pytest.warns(ResourceWarning):  # noqa: PT031, the socket.socket()
            await in_thread(try_all)
            gc.collect()
        await listener.aclose()


async def test_after_it_was_closed(reactors: int) -> None:
    async with open_engine(reactors) as engine, conn_and_peer(engine) as (conn, _):
        listener = await engine.listen(LOCAL)
        await engine._aclose()
        await engine._aclose()
        with pytest.raises(trio.ClosedResourceError):
            await conn.receive_some()
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()
        await listener.aclose()
        assert conn.close_reason == "engine closed"
    one, other = plain_pair()
    with one, other:
        for call in (
            lambda: engine.listen(LOCAL),
            lambda: engine.connect("tcp://127.0.0.1:1"),
        ):
            with pytest.raises(RuntimeError, match="closed"):
                await call()
        with pytest.raises(RuntimeError, match="closed"):
            engine.adopt(one)
        assert one.fileno() >= 0
        with pytest.raises(RuntimeError, match="closed"):
            engine.statistics()


# -- statistics ------------------------------------------------------------------------------------


async def test_statistics(reactors: int) -> None:
    async with open_engine(reactors) as engine:
        async with two_conns(engine) as (one, other):
            assert engine.statistics().connections == 2
            await one.send_all(b"12345")
            assert await read(other, 5) == b"12345"
            statistics = other.statistics()
            assert (statistics.bytes_received, statistics.receive_calls) == (5, 1)
            assert one.statistics().send_calls == 1
            assert 0 <= statistics.idle_time <= statistics.uptime
            events = sum(r.events for r in engine.statistics().reactors)
            assert events > 0
            await one.aclose()
            await other.aclose()
            assert other.statistics().bytes_received == 5, "kept as they were"
        await until(lambda: engine.statistics().connections == 0)
