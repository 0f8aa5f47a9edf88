"""When descriptors, memory or watches run out: who waits, who is told, and that it passes."""

from __future__ import annotations

import errno
import logging
import os
import shlex
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import trio
from helpers import ManualClock, dialled, echo, few_descriptors, until
from trio.testing import wait_all_tasks_blocked

from trio_wknet import Conn, Engine
from trio_wknet._shortage import QUIET, ShortageLog

HERE = Path(__file__).parent
LOCAL = "tcp://127.0.0.1:0"


# -- epoll refuses -----------------------------------------------------------------------


@pytest.fixture(scope="session")
def refuser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that makes epoll refuse, for LD_PRELOAD."""
    library = tmp_path_factory.mktemp("refuser") / "epoll_refuses.so"
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    source = str(HERE / "epoll_refuses.c")
    subprocess.run([*compiler, "-shared", "-fPIC", source, "-o", str(library), "-ldl"], check=True)
    return library


def test_epoll_refuses(refuser: Path, reactors: int) -> None:
    """Its cases are in epoll_refuses.py."""
    preloaded = ":".join(filter(None, [os.environ.get("LD_PRELOAD"), str(refuser)]))
    search = os.pathsep.join(filter(None, [str(HERE), *sys.path]))
    ran = subprocess.run(
        [sys.executable, "-W", "error", HERE / "epoll_refuses.py", refuser, str(reactors)],
        env={**os.environ, "LD_PRELOAD": preloaded, "PYTHONPATH": search},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stderr == ""


# -- descriptors run out -------------------------------------------------------------------


@pytest.mark.parametrize("spread", [False, True], ids=["one-port", "reuse-port"])
async def test_a_drain_waits_for_descriptors(
    engine: Engine, spread: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Closing the port would reset what the kernel has queued."""
    listener = await engine.listen(LOCAL, reuse_port=spread)
    clients = [socket.socket() for _ in range(8)]
    drained = trio.Event()

    async def drain() -> None:
        await listener.drain()
        drained.set()

    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(listener.serve, echo)
            await trio.to_thread.run_sync(lambda: None)  # its thread wants descriptors, too
            with few_descriptors(3):
                for client in clients:
                    client.connect(listener.address)
                await until(lambda: listener.statistics().starved)
                nursery.start_soon(drain)
                await wait_all_tasks_blocked()
                assert not drained.is_set()
                for n, client in enumerate(clients):
                    client.send(b"%d" % n)
                    client.shutdown(socket.SHUT_WR)
                for n, client in enumerate(clients):
                    client.settimeout(20)
                    assert await trio.to_thread.run_sync(client.recv, 100) == b"%d" % n
                await drained.wait()
        assert listener.statistics().accepted == 8
        assert not listener.statistics().starved
    finally:
        for client in clients:
            client.close()
    began = [line for line in caplog.messages if "stopped accepting" in line]
    ended = [line for line in caplog.messages if "accepts again" in line]
    assert len(began) == len(ended) == 1
    assert f"[EMFILE] {os.strerror(errno.EMFILE)}" in began[0]
    assert repr(listener.address) in began[0]


async def test_a_drain_without_descriptors_can_be_cut_short(engine: Engine) -> None:
    listener = await engine.listen(LOCAL)
    clients = [socket.socket() for _ in range(5)]
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(listener.serve, echo)
            with few_descriptors(2):
                for client in clients:
                    client.connect(listener.address)
                await until(lambda: listener.statistics().starved)
                nursery.start_soon(listener.drain)
                await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
        assert not listener._open
        # What is left: the engine's own, and one that each reactor holds ready.
        reactors = len(engine.statistics().reactors)
        await until(lambda: engine.statistics().slots_in_use <= 1 + reactors)
    finally:
        for client in clients:
            client.close()


async def test_the_log_tells_of_a_shortage_once(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """However often it is tried again meanwhile."""
    async with await engine.listen(LOCAL) as listener:
        clients = [socket.socket() for _ in range(3)]
        with few_descriptors(1):
            for client in clients:
                client.connect(listener.address)
            conns: list[Conn] = [await listener.accept()]
            await until(lambda: listener.statistics().starved)
            turns = sum(r.turns for r in engine.statistics().reactors)
            # It is tried every 50 ms.
            await until(lambda: sum(r.turns for r in engine.statistics().reactors) > turns + 2)
            assert listener.statistics().shortages == 1
            assert len(caplog.messages) == 1
        conns += [await listener.accept(), await listener.accept()]
        await until(lambda: len(caplog.messages) == 2)
        assert listener.statistics().shortages == 1
        for conn in conns:
            conn.abort()
        for client in clients:
            client.close()
    assert {record.name for record in caplog.records} == {"trio_wknet.shortage"}
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


async def test_a_listener_closed_in_a_shortage_says_so(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    listener = await engine.listen(LOCAL)
    clients = [socket.socket() for _ in range(3)]
    with few_descriptors(1):
        for client in clients:
            client.connect(listener.address)
        conn = await listener.accept()
        await until(lambda: listener.statistics().starved)
        await until(lambda: len(caplog.messages) == 1)
        await listener.aclose()
    await listener.aclose()
    conn.abort()
    for client in clients:
        client.close()
    began, ended = caplog.messages
    assert "has stopped accepting" in began
    assert repr(listener.address) in ended
    assert "was closed, 0." in ended
    assert ended.endswith(" s into the shortage")


async def test_a_log_that_fails_stops_nothing(
    engine: Engine, unraisable: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise KeyError("handler")

    handler = Failing()
    logging.getLogger("trio_wknet.shortage").addHandler(handler)
    try:
        async with await engine.listen(LOCAL) as listener:
            with dialled(listener, 0) as clients, few_descriptors(2):
                clients += [socket.socket(), socket.socket()]
                for client in clients:
                    client.connect(listener.address)
                await until(lambda: listener.statistics().starved)
                await until(lambda: unraisable)
                clients.pop().close()
                (await listener.accept()).abort()
    finally:
        logging.getLogger("trio_wknet.shortage").removeHandler(handler)
    assert {type(report.exc_value) for report in unraisable} == {KeyError}


# -- what the log says -----------------------------------------------------------------------


def test_the_log_of_stops_that_follow_each_other(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    log = ShortageLog("stops", "goes on", clock)
    log.update("it", True, 1, errno.EMFILE)
    clock.now = 1.5
    log.update("it", True, 1, errno.EMFILE)  # nothing new
    log.update("it", False, 1, errno.EMFILE)
    for times in range(2, 5):
        log.update("it", True, times, errno.EMFILE)
        log.update("it", False, times, errno.EMFILE)
    assert len(caplog.messages) == 2
    clock.now += QUIET
    log.update("it", False, 6, errno.ENOSPC)  # two, over before anybody looked
    assert [line.replace(os.strerror(errno.EMFILE), "...") for line in caplog.messages[:2]] == [
        "'it' stops: [EMFILE] ...",
        "'it' goes on after 1.5 s; it has stopped 1 times so far",
    ]
    assert caplog.messages[2].endswith(" (and 3 times before, unlogged)")
    assert caplog.messages[3] == "'it' goes on after 0.0 s; it has stopped 6 times so far"
    assert len(caplog.messages) == 4
