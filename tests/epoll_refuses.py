"""What test_shortage.py runs where epoll can be made to refuse (epoll_refuses.c).

LD_PRELOAD=epoll_refuses.so python epoll_refuses.py epoll_refuses.so REACTORS
"""

from __future__ import annotations

import ctypes
import errno
import functools
import logging
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import trio
from helpers import conn_and_peer, dialled, echo, plain_pair, read, until
from trio.testing import wait_all_tasks_blocked
from websocket_model import KEY, PING, PONG, frame

from trio_wknet import Conn, ConnectionClosed, Engine, Limits, WebSocket, open_engine

refusal = ctypes.c_int.in_dll(ctypes.CDLL(sys.argv[1]), "refusal")
lines: list[str] = []


class Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        lines.append(record.getMessage())


@contextmanager
def refused(error: int) -> Iterator[None]:
    refusal.value = error
    try:
        yield
    finally:
        refusal.value = 0


async def a_port_waits(engine: Engine, kind: str, folder: str) -> None:
    lines.clear()
    with refused(errno.ENOSPC):
        listener = await engine.listen(address(kind, folder))
        await until(lambda: listener.statistics().starved)
        with trio.move_on_after(0.12):  # tried again twice meanwhile
            await listener.accept()
            raise AssertionError("epoll has refused the port")
        assert listener.statistics().shortages == 1, "trying again is no other one"
    with dialled(listener, 1) as socks:
        conn = await listener.accept()
        socks[0].send(b"x")
        assert await read(conn, 1) == b"x"
        conn.abort()
    assert not listener.statistics().starved
    await until(lambda: len(lines) == 2)
    assert "has stopped accepting for a while: [ENOSPC]" in lines[0]
    assert "accepts again after" in lines[1]
    # At once, whether it waits or not.
    with refused(errno.ENOMEM):
        other = await engine.listen("tcp://127.0.0.1:0")
        await until(lambda: other.statistics().starved)
        await other.aclose()
    await listener.aclose()


async def a_port_fails(engine: Engine, kind: str, folder: str) -> None:
    with refused(errno.EPERM):
        listener = await engine.listen(address(kind, folder))
        for _ in range(2):
            try:
                await listener.accept()
            except OSError as failure:
                assert failure.errno == errno.EPERM
            else:
                raise AssertionError("accept did not fail")
    assert not listener.statistics().starved
    await listener.aclose()


async def what_was_accepted_waits(engine: Engine, kind: str, folder: str) -> None:
    lines.clear()
    before = engine.statistics().shortages
    async with trio.open_nursery() as nursery:
        listener = await engine.listen(address(kind, folder))
        await nursery.start(listener.serve, echo)
        with dialled(listener, 1) as early:  # the port is watched
            early[0].send(b"x")
            assert await trio.to_thread.run_sync(early[0].recv, 1) == b"x"
        await until(lambda: listener.statistics().handlers == 0)
        with refused(errno.ENOSPC), dialled(listener, 6) as socks:
            await until(lambda: engine.statistics().unwatched)
            await until(lambda: listener.statistics().starved)
            for n, sock in enumerate(socks):
                sock.send(b"%d" % n)
            # They do not pile up. (Threads learn of it while they accept a batch.)
            assert 1 <= engine.statistics().unwatched <= 6
            await wait_all_tasks_blocked()
            refusal.value = 0
            for n, sock in enumerate(socks):
                assert await trio.to_thread.run_sync(sock.recv, 9) == b"%d" % n
        assert engine.statistics().unwatched == 0
        assert engine.statistics().shortages > before
        await until(lambda: listener.statistics().handlers == 0)
        await listener.drain()
    await until(lambda: len(lines) == 4)
    assert sum("cannot watch a connection for now" in line for line in lines) == 1
    assert sum("watches all connections again" in line for line in lines) == 1


async def what_was_adopted_waits(engine: Engine, kind: str, folder: str) -> None:
    with refused(errno.ENOSPC):
        async with conn_and_peer(engine, kind) as (conn, peer):
            await until(lambda: engine.statistics().unwatched == 1)
            await peer.send(b"early")
            conn.send_nowait(bytes(900_000))  # more than the kernel takes at once
            refusal.value = 0
            assert await conn.receive_some() == b"early"
            assert await read(peer, 900_000) == bytes(900_000)
    assert engine.statistics().unwatched == 0


async def a_websocket_that_waits_is_kept_alive(engine: Engine, kind: str, folder: str) -> None:
    """One over a connection whose handshake was made before it was adopted."""
    with refused(errno.ENOSPC):
        async with conn_and_peer(engine, kind) as (conn, peer):
            await until(lambda: engine.statistics().unwatched == 1)
            ws = WebSocket._over(
                conn, "server", unread=frame(PING, b"early", key=KEY), ping_interval=0.02
            )
            turns = sum(reactor.turns for reactor in engine.statistics().reactors)
            # The reactor has seen what it is to do, and cannot do it yet.
            await until(lambda: sum(r.turns for r in engine.statistics().reactors) > turns + 2)
            refusal.value = 0
            assert await read(peer, 7) == frame(PONG, b"early")
            assert await read(peer, 12) == frame(PING, b"trio-wknet")
            try:
                await ws.receive()
            except ConnectionClosed as closed:
                assert closed.reason == "ping timeout"
            else:
                raise AssertionError("the peer was silent")


async def what_waits_may_end(engine: Engine, kind: str, folder: str) -> None:
    for how in ("abort", "detach", "aclose"):
        with refused(errno.ENOSPC):
            ours, theirs = plain_pair(kind)
            conn = engine.adopt(ours, limits=Limits(linger_time=0.1))
            assert isinstance(conn, Conn)
            await until(lambda: engine.statistics().unwatched == 1)
            theirs.settimeout(10)
            if how == "abort":
                conn.abort()
            elif how == "detach":
                (await conn.detach())[0].close()
            else:
                await conn.send_all(b"last words")
                await conn.aclose()
                assert theirs.recv(10) == b"last words"
                assert theirs.recv(10) == b""
            theirs.close()
            if how != "aclose":
                await until(lambda: engine.statistics().unwatched == 0)
        # One that lingers, unwatched, does so as long as it may.
        await until(lambda: engine.statistics().connections == 0)
        assert engine.statistics().unwatched == 0


async def what_was_adopted_fails(engine: Engine, kind: str, folder: str) -> None:
    with refused(errno.EPERM):
        async with conn_and_peer(engine, kind) as (conn, _):
            try:
                await conn.receive_some()
            except trio.BrokenResourceError as failure:
                assert isinstance(failure.__cause__, OSError)
                assert failure.__cause__.errno == errno.EPERM
            else:
                raise AssertionError("receiving did not fail")


def address(kind: str, folder: str) -> str:
    return "tcp://127.0.0.1:0" if kind == "tcp" else f"unix://{folder}/socket"


async def main(reactors: int) -> None:
    logging.getLogger("trio_wknet.shortage").addHandler(Lines())
    cases: list[Any] = [
        a_port_waits,
        a_port_fails,
        what_was_accepted_waits,
        what_was_adopted_waits,
        what_was_adopted_fails,
        a_websocket_that_waits_is_kept_alive,
        what_waits_may_end,
    ]
    for case in cases:
        for kind in ("tcp", "unix"):
            print(case.__name__, kind, flush=True)
            with trio.fail_after(30), tempfile.TemporaryDirectory() as folder:
                async with open_engine(reactors) as engine:
                    await case(engine, kind, folder)
                    await until(lambda: engine.statistics().connections == 0)
                    assert engine.statistics().unwatched == 0


if __name__ == "__main__":
    trio.run(functools.partial(main, int(sys.argv[2])))
