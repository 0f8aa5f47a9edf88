"""Closing, in every way and from both ends: what arrives, who is woken, what is said."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import termios
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import trio
from helpers import SMALL, conn_and_peer, content, dial, read, read_all, send, until
from test_send import reset
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_wknet import Conn, ConnOptions, Engine, Limits, open_engine

WIDE = Limits(linger_bytes=1 << 30, outbound=4_000_000)
Peer = tuple[Conn, Any]


def connections(engine: Engine) -> int:
    return engine.statistics().connections


# -- aclose and lingering -------------------------------------------------------------


async def test_aclose_sends_what_send_nowait_left_then_the_end(engine: Engine, kind: str) -> None:
    async with conn_and_peer(engine, kind, options=SMALL) as (conn, sock):
        data = content("left", 900_000)
        conn.send_nowait(data)
        await conn.aclose()
        assert conn.socket.fileno() == -1
        assert await read_all(sock) == data
        sock.close()
        await until(lambda: connections(engine) == 0)


async def test_every_byte_arrives_though_the_peer_sends_on(engine: Engine, kind: str) -> None:
    """Pitfall 9: unread input and a bare close() delivered 113 152 of 3 910 656
    bytes (hyper #3078, hypercorn #106)."""
    async with conn_and_peer(engine, kind, limits=WIDE) as (conn, sock):
        data = content("response", 3_910_656)
        await send(sock, b"x" * 100_000)  # never read by the application
        stop = trio.Event()

        async def send_on() -> None:
            while not stop.is_set():
                await send(sock, b"y" * 1000)
            sock.shutdown(socket.SHUT_WR)

        async def respond() -> None:
            for at in range(0, len(data), 100_000):
                conn.send_nowait(data[at : at + 100_000])
            await conn.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_on)
            nursery.start_soon(respond)
            await until(lambda: conn.close_reason, "aclose")
            assert await read_all(sock) == data
            stop.set()
        await until(lambda: connections(engine) == 0)


async def test_a_peer_that_reads_only_after_it_has_sent_all(engine: Engine, kind: str) -> None:
    """Closing must read while it flushes, or both ends wait for each other."""
    async with conn_and_peer(engine, kind, options=SMALL) as (conn, sock):
        data = content("flush", 600_000)
        conn.send_nowait(data)
        await conn.aclose()
        await send(sock, bytes(2_000_000))
        assert await read_all(sock) == data


async def test_lingering_is_bounded_in_bytes(engine: Engine, kind: str) -> None:
    limits = Limits(linger_bytes=50_000, linger_time=3600)
    async with conn_and_peer(engine, kind, limits=limits) as (conn, sock):
        await conn.aclose()
        with pytest.raises(OSError, match=r"reset|pipe"):
            while True:
                await send(sock, bytes(1000))
        await until(lambda: connections(engine) == 0)


@pytest.mark.parametrize("clogged", [False, True])
async def test_lingering_is_bounded_in_time(engine: Engine, kind: str, clogged: bool) -> None:
    """Also in-loop where nothing else moves, and where nothing was ever sent."""
    limits = Limits(linger_time=0.05)
    async with conn_and_peer(engine, kind, limits=limits, options=SMALL) as (conn, _):
        if clogged:
            conn.send_nowait(bytes(500_000))
            await wait_all_tasks_blocked(0.01)
        await conn.aclose()
        await until(lambda: connections(engine) == 0)


async def push(sock: Any) -> None:
    """Send a little at a time, for as long as that goes."""
    with suppress(OSError):
        while True:
            await send(sock, b"push")
            await trio.sleep(0.01)


async def test_a_peer_that_only_sends_learns_of_the_close(engine: Engine, kind: str) -> None:
    """Long before the time for lingering is over: that is for what is not yet sent."""
    limits = Limits(linger_time=4)
    async with (
        conn_and_peer(engine, kind, limits=limits) as (conn, sock),
        conn_and_peer(engine, kind, limits=limits, options=SMALL) as (clogged, _),
    ):
        await conn.send_all(b"bye")
        clogged.send_nowait(bytes(500_000))
        await clogged.aclose()
        await conn.aclose()
        await push(sock)
        assert connections(engine) == 1


async def test_how_long_a_peer_that_only_sends_is_borne(autojump_clock: MockClock) -> None:
    async with open_engine() as engine, conn_and_peer(engine, "tcp") as (conn, sock):
        await conn.send_all(b"bye")
        await conn.aclose()
        await push(sock)
        assert 0.99 < trio.current_time() < 1.1


async def test_what_is_not_acknowledged_is_not_cut_off(autojump_clock: MockClock) -> None:
    """The peer sends, and reads late: a reset would destroy what the kernel holds for it."""
    small = ConnOptions(receive_buffer=4096)
    async with open_engine() as engine, conn_and_peer(engine, "tcp", options=small) as (conn, sock):
        data = content("late", 60_000)
        await conn.send_all(data)
        await conn.aclose()
        with trio.move_on_after(8):
            await push(sock)
        assert await read_all(sock) == data


async def test_lingering_for_no_time_closes_at_once(engine: Engine, kind: str) -> None:
    async with conn_and_peer(engine, kind, limits=Limits(linger_time=0)) as (conn, sock):
        await conn.send_all(b"bye")
        await conn.aclose()
        assert await read_all(sock) == b"bye"
        await until(lambda: connections(engine) == 0)


async def test_an_engine_waits_for_those_that_linger(engine: Engine) -> None:
    async with conn_and_peer(engine, options=SMALL) as (conn, sock):
        data = content("engine", 500_000)
        conn.send_nowait(data)
        await conn.aclose()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine._aclose)
            assert await read_all(sock) == data
            sock.close()


async def test_a_cancelled_aclose_still_closes(engine: Engine, kind: str) -> None:
    async with conn_and_peer(engine, kind) as (conn, sock):
        await trio.aclose_forcefully(conn)
        assert conn.close_reason == "closed"
        assert await read_all(sock) == b""
        await until(lambda: connections(engine) == 0)


async def test_what_was_sent_survives_a_forceful_close(engine: Engine) -> None:
    """trio.serve_listeners ends every handler with aclose_forcefully."""
    listener = await engine.listen("tcp://127.0.0.1:0")
    socks = [dial(listener) for _ in range(50)]

    async def bye(conn: Conn) -> None:
        await conn.send_all(b"bye")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, bye, [listener])
        for sock in socks:
            sock.setblocking(False)
            with trio.socket.from_stdlib_socket(sock) as theirs:
                assert await read_all(theirs) == b"bye"
        nursery.cancel_scope.cancel()


# -- abort, reset -----------------------------------------------------------------------


@contextmanager
def forked_child() -> Iterator[None]:
    """A child of this process that holds what it has open, and does nothing."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, from 3.12 on
        pid = os.fork()
    if pid == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    try:
        yield
    finally:
        os.close(writing)
        os.waitpid(pid, 0)


async def test_a_forced_close_while_a_child_holds_the_socket(engine: Engine, kind: str) -> None:
    async with conn_and_peer(engine, kind) as (conn, sock):
        await conn.send_all(b"bye")
        await sock.send(b"not read")
        with forked_child():
            await trio.aclose_forcefully(conn)
            assert await read_all(sock) == b"bye"


async def test_abort_while_a_child_holds_the_socket(engine: Engine, kind: str) -> None:
    async with conn_and_peer(engine, kind) as (conn, sock):
        with forked_child():
            conn.abort()
            if kind == "tcp":
                with pytest.raises(ConnectionResetError):
                    await sock.recv(1)
            else:
                assert await sock.recv(1) == b""


async def test_a_detached_socket_that_a_child_holds_goes_on(engine: Engine, kind: str) -> None:
    async with conn_and_peer(engine, kind) as (conn, sock):
        with forked_child():
            plain, _ = await conn.detach()
            with plain:
                plain.send(b"on")
                assert await read(sock, 2) == b"on"


async def test_abort_resets(engine: Engine) -> None:
    async with conn_and_peer(engine) as (conn, sock):
        conn.abort()
        conn.abort()
        with pytest.raises(ConnectionResetError):
            await sock.recv(1)
        assert conn.close_reason == "aborted"
        assert conn.id is None
        await until(lambda: connections(engine) == 0)


async def test_bytes_before_a_reset_are_received_first(engine: Engine) -> None:
    async with conn_and_peer(engine) as (conn, sock):
        data = content("before", 50_000)
        await send(sock, data)
        await until(lambda: conn.statistics().bytes_received == len(data))
        reset(sock)
        await conn.wait_closed()
        assert await conn.receive_exactly(len(data)) == data
        for _ in range(2):
            with pytest.raises(trio.BrokenResourceError) as raised:
                await conn.receive_some()
            assert isinstance(raised.value.__cause__, ConnectionResetError)
        with pytest.raises(trio.BrokenResourceError):
            conn.receive_nowait()
        assert conn.close_reason == "reset"


async def test_a_reset_behind_a_pause_is_called_so_from_the_first(engine: Engine) -> None:
    """The reactor does not read then, so it cannot run into the error itself."""
    async with conn_and_peer(engine, limits=Limits(inbound=1000)) as (conn, sock):
        data = content("paused", 200_000)
        sock._sock.send(data)
        await until(lambda: conn.statistics().buffered_inbound >= 1000)
        reset(sock)
        await conn.wait_closed()
        assert conn.close_reason == "reset"
        got = bytearray()
        with pytest.raises(trio.BrokenResourceError) as raised:
            while True:
                piece = await conn.receive_some()
                assert piece, "a reset was taken for an end"
                got += piece
        assert isinstance(raised.value.__cause__, ConnectionResetError)
        assert data.startswith(bytes(got))


async def receive_until_broken(conn: Conn) -> tuple[bytes, Any]:
    """What is received before the connection is found broken, and by what."""
    got = bytearray()
    with pytest.raises(trio.BrokenResourceError) as raised:
        while True:
            piece = await conn.receive_some()
            assert piece, "a reset was taken for an end"
            got += piece
    return bytes(got), raised.value.__cause__


def send_nowait_until_broken(conn: Conn) -> None:
    with pytest.raises(trio.BrokenResourceError):
        while True:
            with suppress(trio.WouldBlock):
                conn.send_nowait(b"x")


async def send_all_until_broken(conn: Conn) -> None:
    with pytest.raises(trio.BrokenResourceError):
        while True:
            await conn.send_all(b"x")


@pytest.mark.parametrize("how", ["send_nowait", "send_all"])
async def test_a_reset_that_sending_ran_into(engine: Engine, how: str, long: bool) -> None:
    """A socket tells of it once: in-loop to the sender, before the reactor has its turn;
    with threads to whoever comes first. Reading then ends in what looks like a FIN."""
    for n in range(2000 if long else 100):
        async with conn_and_peer(engine) as (conn, sock):
            data = content(n, n % 3 * 500)
            if data:
                sock._sock.send(data)
            reset(sock)
            if how == "send_nowait":
                send_nowait_until_broken(conn)
            else:
                await send_all_until_broken(conn)
            got, cause = await receive_until_broken(conn)
            assert got == data
            assert isinstance(cause, ConnectionResetError)
            assert conn.close_reason == "reset"


def unacknowledged(sock: Any) -> int:
    """How many bytes the other end's kernel has not taken."""
    return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)


@pytest.mark.parametrize("finished", [False, True], ids=["reset", "finished"])
async def test_what_came_before_is_received_though_the_reactor_cannot_send(
    engine: Engine, finished: bool
) -> None:
    """Reading has paused, bytes are in the kernel, and `send_nowait` has left some to the
    reactor, which runs into the reset. Who sends is told; who receives, after the bytes."""
    limits, options = Limits(inbound=1000), ConnOptions(send_buffer=4096)
    async with conn_and_peer(engine, limits=limits, options=options) as (conn, sock):
        data = content("before", 30_000)
        await send(sock, data[:2000])
        await until(lambda: conn.statistics().buffered_inbound >= 1000)
        await send(sock, data[2000:])
        while True:
            try:
                conn.send_nowait(bytes(100_000))
            except trio.WouldBlock:
                break
        await until(lambda: unacknowledged(sock) == 0)
        if finished:
            sock.shutdown(socket.SHUT_WR)
        reset(sock)
        with pytest.raises(trio.BrokenResourceError):
            await conn.flush()
        assert conn.statistics().buffered_outbound == 0
        with pytest.raises(trio.BrokenResourceError):
            conn.send_nowait(b"x")
        got, cause = await receive_until_broken(conn)
        assert got == data
        assert isinstance(cause, BrokenPipeError if finished else ConnectionResetError)


async def test_data_and_hangup_in_one_event(engine: Engine, kind: str) -> None:
    """Pitfall 8: netty #4317, and wknet, close on HUP without reading."""
    for size in (1, 1000, 100_000):
        async with conn_and_peer(engine, kind) as (conn, sock):
            data = content("hup", size)
            await conn.send_eof()  # with both directions shut epoll says HUP
            # Without a checkpoint in between: in-loop this is one event.
            accepted = sock._sock.send(data)
            sock.close()
            await conn.wait_closed()
            assert await read_all(conn) == data[:accepted]
            assert conn.close_reason == "eof"


async def test_a_reset_at_any_moment_leaks_nothing(engine: Engine) -> None:
    def in_use() -> int:
        return sum(r.pool_in_use for r in engine.statistics().reactors)

    before = in_use()
    for moment in range(6):
        for _ in range(10):
            async with conn_and_peer(engine, options=SMALL) as (conn, sock):
                if moment == 1:
                    conn.send_nowait(bytes(100_000))
                elif moment == 2:
                    await sock.send(b"x")
                elif moment == 3:
                    sock.shutdown(socket.SHUT_WR)
                elif moment == 4:
                    await conn.aclose()
                elif moment == 5:
                    await conn.send_eof()
                reset(sock)
                if moment % 2:
                    await conn.aclose()
    await until(lambda: connections(engine) == 0)
    assert in_use() == before


# -- noticing the end ---------------------------------------------------------------------


def end_by_closing(conn: Conn, sock: Any) -> None:
    sock.close()


def end_by_half_closing(conn: Conn, sock: Any) -> None:
    sock.shutdown(socket.SHUT_WR)


def end_by_reset(conn: Conn, sock: Any) -> None:
    reset(sock)


def end_by_abort(conn: Conn, sock: Any) -> None:
    conn.abort()


def end_with_a_burst(conn: Conn, sock: Any) -> None:
    sock._sock.send(bytes(50_000))
    sock.close()


ENDS = [end_by_closing, end_by_half_closing, end_by_reset, end_by_abort, end_with_a_burst]


@pytest.mark.parametrize("paused", [False, True], ids=["reading", "paused"])
@pytest.mark.parametrize("end", ENDS)
async def test_the_end_is_noticed_without_receiving(
    engine: Engine, kind: str, end: Callable[[Conn, Any], None], paused: bool
) -> None:
    options = ConnOptions(send_buffer=200_000, receive_buffer=200_000)
    async with conn_and_peer(engine, kind, limits=Limits(inbound=1000), options=options) as (
        conn,
        sock,
    ):
        if paused:
            await send(sock, bytes(2000))
            await until(lambda: conn.statistics().buffered_inbound >= 1000)
        seen = []

        async def watch_scope() -> None:
            with conn.cancel_on_disconnect() as scope:
                await trio.sleep_forever()
            assert scope.cancelled_caught
            seen.append("scope")

        async def watch() -> None:
            await conn.wait_closed()
            seen.append("wait")

        assert conn.close_reason is None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch_scope)
            nursery.start_soon(watch)
            nursery.start_soon(watch)
            await wait_all_tasks_blocked()
            end(conn, sock)
        assert sorted(seen) == ["scope", "wait", "wait"]
        assert conn.close_reason is not None
        await conn.wait_closed()
        with conn.cancel_on_disconnect() as scope:
            await trio.sleep_forever()
        assert scope.cancelled_caught


async def test_a_scope_that_was_left_is_not_cancelled(peer: Peer) -> None:
    conn, sock = peer
    with conn.cancel_on_disconnect() as scope:
        await trio.lowlevel.checkpoint()
    with trio.CancelScope() as outer, conn.cancel_on_disconnect():
        outer.cancel()
        await trio.sleep_forever()
    sock.close()
    await conn.wait_closed()
    assert not scope.cancel_called


# -- close_reason -----------------------------------------------------------------------


async def test_close_reason_of_each_way(engine: Engine) -> None:
    async def reason_after(act: Callable[[Conn, Any], Any], *, wait: bool = True) -> str | None:
        async with conn_and_peer(engine) as (conn, sock):
            result = act(conn, sock)
            if result is not None:
                await result
            if wait:
                await conn.wait_closed()
            return conn.close_reason

    assert await reason_after(lambda conn, sock: None, wait=False) is None
    assert await reason_after(lambda conn, sock: sock.close()) == "eof"
    assert await reason_after(lambda conn, sock: sock.shutdown(socket.SHUT_WR)) == "eof"
    assert await reason_after(lambda conn, sock: reset(sock)) == "reset"
    assert await reason_after(lambda conn, sock: conn.aclose()) == "closed"
    assert await reason_after(lambda conn, sock: conn.abort()) == "aborted"
    assert await reason_after(lambda conn, sock: conn.send_eof(), wait=False) is None
    assert await reason_after(lambda conn, sock: trio.aclose_forcefully(conn)) == "closed"  # noqa: ASYNC105


async def test_the_first_reason_stays(peer: Peer) -> None:
    conn, sock = peer
    sock.close()
    await conn.wait_closed()
    await conn.aclose()
    conn.abort()
    assert conn.close_reason == "eof"


# -- closing wakes ---------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["aclose", "abort", "engine"])
async def test_a_local_close_wakes_everyone_once(engine: Engine, kind: str, way: str) -> None:
    """Pitfalls 12 and 19."""
    async with conn_and_peer(engine, kind, options=SMALL) as (conn, _):
        woken = []

        async def expect(name: str, call: Callable[[], Any]) -> None:
            with suppress(trio.ClosedResourceError):
                await call()
            woken.append(name)

        async def watch() -> None:
            with conn.cancel_on_disconnect():
                await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect, "receive", conn.receive_some)
            nursery.start_soon(expect, "send", lambda: conn.send_all(bytes(10_000_000)))
            for _ in range(5):
                nursery.start_soon(expect, "end", conn.wait_closed)
                nursery.start_soon(expect, "scope", watch)
            await wait_all_tasks_blocked()
            assert woken == []
            if way == "aclose":
                await conn.aclose()
            elif way == "abort":
                conn.abort()
            else:
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await engine._aclose()
        assert sorted(woken) == ["end"] * 5 + ["receive"] + ["scope"] * 5 + ["send"]


# -- detach -------------------------------------------------------------------------------------


async def test_detach_gives_the_socket_and_the_unread_bytes(engine: Engine, kind: str) -> None:
    async with conn_and_peer(engine, kind) as (conn, sock):
        await send(sock, b"head:tail")
        assert await conn.receive_until(b":") == b"head"
        conn.send_nowait(b"answer")
        descriptor = conn.socket.fileno()
        plain, unread = await conn.detach()
        with plain:
            assert (plain.fileno(), unread) == (descriptor, b"tail")
            assert conn.close_reason == "detached"
            assert conn.socket.fileno() == -1
            await send(sock, b"more")
            with trio.socket.from_stdlib_socket(plain.dup()) as again:
                assert await again.recv(100) == b"more"
                await again.send(b"!")
            assert await read(sock, 7) == b"answer!"
        with pytest.raises(trio.ClosedResourceError):
            await conn.receive_some()
        await until(lambda: connections(engine) == 0)


async def test_a_detached_socket_can_be_adopted_again(engine: Engine) -> None:
    async with conn_and_peer(engine, "unix") as (conn, sock):
        for n in range(50):
            plain, unread = await conn.detach()
            assert unread == b""
            again = engine.adopt(plain)
            assert isinstance(again, Conn)
            conn = again
            await sock.send(b"%d;" % n)
            assert await conn.receive_until(b";") == b"%d" % n
        await conn.aclose()


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
async def test_detach_while_another_task_closes(engine: Engine, turns: int) -> None:
    for close in (Conn.abort, Conn._close, Conn._drop):
        async with conn_and_peer(engine) as (conn, _):

            async def take() -> None:
                with suppress(trio.ClosedResourceError, trio.BusyResourceError):
                    plain, _ = await conn.detach()
                    plain.close()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(take)
                nursery.start_soon(take)
                for _ in range(turns):
                    await trio.lowlevel.checkpoint()
                close(conn)
                assert conn.socket.fileno() == -1
        await until(lambda: connections(engine) == 0)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
async def test_send_eof_while_another_task_closes(engine: Engine, turns: int) -> None:
    for close in (Conn.abort, Conn._close, Conn._drop):
        async with conn_and_peer(engine) as (conn, _):

            async def end() -> None:
                with suppress(trio.ClosedResourceError):
                    await conn.send_eof()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(end)
                for _ in range(turns):
                    await trio.lowlevel.checkpoint()
                close(conn)
