"""What had arrived before a deadline counts, however long the loop, or the whole process,
stood still: with more connections than a turn of a reactor takes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from helpers import conn_and_peer, dialled, fill, plain_pair, read, send, until
from proxy_headers import LINE, TRUSTED
from trio.testing import wait_all_tasks_blocked

from trio_wknet import Conn, Engine, Limits

LOCAL = "tcp://127.0.0.1:0"
MANY = 520  # three turns of a reactor
TIMEOUT = 0.02  # seconds; set when the bytes are there, so no load on the machine matters
STALL = 0.1
Pairs = list[tuple[Conn, socket.socket]]
Within = Callable[[Conn, trio.CancelScope], trio.CancelScope]


@contextmanager
def pairs_of(
    engine: Engine, kind: str, prepare: Callable[[socket.socket], object] = lambda sock: None
) -> Iterator[Pairs]:
    with ExitStack() as stack:
        pairs: Pairs = []
        for _ in range(MANY):
            ours, theirs = plain_pair(kind)
            stack.callback(theirs.close)
            prepare(ours)
            conn = engine.adopt(ours)
            assert isinstance(conn, Conn)
            stack.callback(conn.abort)
            pairs.append((conn, theirs))
        yield pairs


def fill_to_the_last_byte(sock: socket.socket) -> None:
    sock.setblocking(False)
    fill(sock)
    with suppress(BlockingIOError):
        while True:
            sock.send(b"x")


def empty(sock: socket.socket) -> None:
    sock.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            sock.recv(65536)


def stall() -> None:
    """Hold up the loop."""
    time.sleep(STALL)


def by_trio(conn: Conn, scope: trio.CancelScope) -> trio.CancelScope:
    scope.deadline = trio.current_time() + TIMEOUT
    return trio.CancelScope()


def by_idleness(conn: Conn, scope: trio.CancelScope) -> trio.CancelScope:
    return conn.idle_scope(TIMEOUT)


def by_idleness_of_one(conn: Conn, scope: trio.CancelScope) -> trio.CancelScope:
    return conn.idle_scope(60, read=TIMEOUT, write=60)


def by_idleness_of_sending(conn: Conn, scope: trio.CancelScope) -> trio.CancelScope:
    return conn.idle_scope(write=TIMEOUT)


EACH = [by_trio, by_idleness, by_idleness_of_one]


class Waiters:
    """Tasks that wait, each in a scope, and what each found. `within` gives each little
    time, by its scope or by another that it returns."""

    def __init__(self, within: Within) -> None:
        self.within = within
        self.entered: dict[Conn, trio.CancelScope] = {}
        self.timed: dict[Conn, trio.CancelScope] = {}
        self.found: list[object] = []

    async def wait(self, conn: Conn, action: Callable[[], Awaitable[object]]) -> None:
        with trio.CancelScope() as scope:
            self.entered[conn] = scope
            result = await action()
        late = scope.cancelled_caught or self.timed[conn].cancel_called
        self.found.append("late" if late else result)

    async def receive(self, conn: Conn) -> None:
        await self.wait(conn, conn.receive_some)

    def set_times(self) -> None:
        """From now on there is little time."""
        for conn, scope in self.entered.items():
            self.timed[conn] = self.within(conn, scope)


@pytest.mark.parametrize("within", EACH)
async def test_bytes_that_came_in_time(engine: Engine, kind: str, within: Within) -> None:
    waiters = Waiters(within)
    with pairs_of(engine, kind) as pairs:
        async with trio.open_nursery() as nursery:
            for conn, _ in pairs:
                nursery.start_soon(waiters.receive, conn)
            await wait_all_tasks_blocked()
            for _, peer in pairs:
                peer.send(b"x")
            waiters.set_times()
            stall()
    assert waiters.found == [b"x"] * MANY


@pytest.mark.parametrize("within", EACH)
async def test_ends_that_came_in_time(engine: Engine, within: Within) -> None:
    waiters = Waiters(within)
    with pairs_of(engine, "unix") as pairs:
        async with trio.open_nursery() as nursery:
            for conn, _ in pairs:
                nursery.start_soon(waiters.receive, conn)
            await wait_all_tasks_blocked()
            for _, peer in pairs:
                peer.shutdown(socket.SHUT_WR)
            waiters.set_times()
            stall()
    assert waiters.found == [b""] * MANY


async def test_a_connection_that_came_in_time(engine: Engine) -> None:
    """Behind more events than a turn takes."""
    accepted: list[Conn] = []
    with pairs_of(engine, "unix") as pairs:
        async with await engine.listen(LOCAL) as listener, trio.open_nursery() as nursery:

            async def accept() -> None:
                with scope:
                    accepted.append(await listener.accept())

            scope = trio.CancelScope()
            nursery.start_soon(accept)
            await wait_all_tasks_blocked()
            for _, peer in pairs:
                peer.send(b"x")
            with dialled(listener, 1):
                scope.deadline = trio.current_time() + TIMEOUT
                stall()
                await until(lambda: accepted or scope.cancelled_caught)
    assert len(accepted) == 1
    accepted[0].abort()


@pytest.mark.parametrize("within", [by_trio, by_idleness, by_idleness_of_sending])
async def test_room_that_was_made_in_time(engine: Engine, within: Within) -> None:
    async def send(conn: Conn) -> None:
        await waiters.wait(conn, lambda: conn.send_all(b"x"))

    waiters = Waiters(within)
    with pairs_of(engine, "unix", prepare=fill_to_the_last_byte) as pairs:
        async with trio.open_nursery() as nursery:
            for conn, _ in pairs:
                nursery.start_soon(send, conn)
            await wait_all_tasks_blocked()
            assert waiters.found == []
            for _, peer in pairs:
                empty(peer)
            waiters.set_times()
            stall()
    assert waiters.found == [None] * MANY


# -- idle timeouts of servers --------------------------------------------------------


class Served:
    """Who was answered, and how connections ended."""

    def __init__(self) -> None:
        self.taken = 0
        self.open: list[Conn] = []
        self.reasons: list[str | None] = []

    async def handle(self, conn: Conn) -> None:
        self.open.append(conn)
        try:
            async for data in conn:
                self.take(conn, data)
        except trio.Cancelled:
            self.reasons.append("idle")
            raise

    def connected(self, conn: Conn) -> None:
        self.open.append(conn)

    def told(self, conn: Conn) -> None:
        self.take(conn, conn.receive_nowait())

    async def told_later(self, conn: Conn) -> None:
        conn.idle_timeout = None
        self.take(conn, await conn.receive_some())

    def closed(self, conn: Conn, reason: str | None) -> None:
        self.reasons.append(reason)

    def take(self, conn: Conn, data: bytes | bytearray) -> None:
        self.taken += len(data)
        conn.idle_timeout = None

    async def serve(self, listener: Any, form: str) -> None:
        if form == "serve":
            await listener.serve(self.handle)
        else:
            on_data = self.told if form == "plain" else self.told_later
            await listener.serve_events(on_data, on_connect=self.connected, on_close=self.closed)


@pytest.mark.parametrize("form", ["serve", "plain", "async"])
async def test_who_talks_is_not_idle(engine: Engine, kind: str, tmp_path: Path, form: str) -> None:
    """Whoever says nothing is idle, as ever."""
    address = LOCAL if kind == "tcp" else f"unix://{tmp_path}/socket"
    served = Served()
    silent = 3
    async with (
        await engine.listen(address, idle_timeout=60) as listener,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(served.serve, listener, form)
        with dialled(listener, MANY) as socks:
            await until(lambda: len(served.open) == MANY)
            for sock in socks[silent:]:
                sock.send(b"x")
            for conn in engine.connections.values():
                conn.idle_timeout = TIMEOUT
            stall()
            await until(lambda: len(served.reasons) + served.taken >= MANY)
            assert served.reasons == ["idle"] * silent
            nursery.cancel_scope.cancel()


async def test_a_callback_that_holds_up_the_loop(engine: Engine) -> None:
    """It is called inside the hook, after the look at sockets and before deadlines."""
    waiters = Waiters(by_trio)
    with pairs_of(engine, "unix") as pairs:
        async with await engine.listen(LOCAL) as listener, trio.open_nursery() as nursery:

            def on_data(conn: Conn) -> None:
                conn.receive_nowait()
                for _, peer in pairs:
                    peer.send(b"x")
                waiters.set_times()
                stall()

            nursery.start_soon(listener.serve_events, on_data)
            with dialled(listener, 1) as socks:
                async with trio.open_nursery() as receiving:
                    for conn, _ in pairs:
                        receiving.start_soon(waiters.receive, conn)
                    await wait_all_tasks_blocked()
                    socks[0].send(b"go")
            nursery.cancel_scope.cancel()
    assert waiters.found == [b"x"] * MANY


async def test_who_was_held_back_meanwhile_is_not_idle(engine: Engine, kind: str) -> None:
    """Reading had paused while a task computed. What was left in the kernel came in time,
    and is read as soon as there is room."""
    data = bytes(400_000)
    async with conn_and_peer(engine, kind, limits=Limits(inbound=1000)) as (conn, peer):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, peer, data)
            await until(lambda: conn.statistics().buffered_inbound >= 1000)
            scope = conn.idle_scope(TIMEOUT)
            stall()
            received = 0
            while received < len(data):
                received += len(await conn.receive_some())
                assert not scope.cancel_called


async def test_a_task_that_holds_up_the_loop_before_it_receives(engine: Engine, kind: str) -> None:
    """Nobody waits for the byte yet when the time is over."""
    async with conn_and_peer(engine, kind) as (conn, peer):
        scope = conn.idle_scope(TIMEOUT)
        await peer.send(b"x")
        stall()
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        assert not scope.cancel_called
        assert await conn.receive_some() == b"x"


async def test_headers_that_came_in_time(engine: Engine) -> None:
    limits = Limits(proxy_header_time=2 * STALL)
    async with await engine.listen(LOCAL, proxy_protocol=TRUSTED, limits=limits) as listener:
        with dialled(listener, MANY) as socks:
            for sock in socks:
                sock.send(LINE[:10])
            await until(lambda: listener.statistics().accepted == MANY)
            for sock in socks:
                sock.send(LINE[10:])
            for _ in range(3):
                stall()
            for _ in range(MANY):
                (await listener.accept()).abort()


async def test_a_deadline_without_a_stall(engine: Engine, kind: str) -> None:
    async with conn_and_peer(engine, kind) as (conn, peer):
        for _ in range(20):
            with trio.move_on_after(0.001) as scope:
                await conn.receive_some()
            assert scope.cancelled_caught
        await peer.send(b"x")
        assert await read(conn, 1) == b"x"


# -- between the hook and the deadlines --------------------------------------------------


class _Held(trio.abc.Instrument):
    def __init__(self, meanwhile: Callable[[], object]) -> None:
        self.meanwhile = meanwhile

    def after_io_wait(self, timeout: float) -> None:
        trio.lowlevel.remove_instrument(self)
        self.meanwhile()


def hold_up_behind_the_hook(meanwhile: Callable[[], object]) -> None:
    """Trio calls instruments in the order in which they were added, the engine's first. What
    holds it up there may be an instrument, another thread, or that the process is stopped.
    Here that is in the next turn but one, when this task waits."""

    def hold_up() -> None:
        trio.lowlevel.add_instrument(_Held(meanwhile))
        token.run_sync_soon(lambda: None)  # or there might be no turn

    token = trio.lowlevel.current_trio_token()
    token.run_sync_soon(hold_up)


@pytest.mark.parametrize("within", EACH)
async def test_bytes_that_came_behind_the_hook(engine: Engine, within: Within) -> None:
    def meanwhile() -> None:
        for _, peer in pairs:
            peer.send(b"x")
        waiters.set_times()
        stall()

    waiters = Waiters(within)
    with pairs_of(engine, "unix") as pairs:
        async with trio.open_nursery() as nursery:
            for conn, _ in pairs:
                nursery.start_soon(waiters.receive, conn)
            await wait_all_tasks_blocked()
            hold_up_behind_the_hook(meanwhile)
    assert waiters.found == [b"x"] * MANY


async def test_room_that_was_made_behind_the_hook(engine: Engine) -> None:
    async def send(conn: Conn) -> None:
        await waiters.wait(conn, lambda: conn.send_all(b"x"))

    def meanwhile() -> None:
        for _, peer in pairs:
            empty(peer)
        waiters.set_times()
        stall()

    waiters = Waiters(by_trio)
    with pairs_of(engine, "unix", prepare=fill_to_the_last_byte) as pairs:
        async with trio.open_nursery() as nursery:
            for conn, _ in pairs:
                nursery.start_soon(send, conn)
            await wait_all_tasks_blocked()
            hold_up_behind_the_hook(meanwhile)
    assert waiters.found == [None] * MANY


async def test_a_connection_that_came_behind_the_hook(engine: Engine) -> None:
    accepted: list[Conn] = []
    async with await engine.listen(LOCAL) as listener:
        with trio.CancelScope() as scope, ExitStack() as stack:

            def meanwhile() -> None:
                stack.enter_context(dialled(listener, 1))
                scope.deadline = trio.current_time() + TIMEOUT
                stall()

            hold_up_behind_the_hook(meanwhile)
            accepted.append(await listener.accept())
    assert len(accepted) == 1
    accepted[0].abort()


async def test_who_has_got_nothing_behind_the_hook_is_cancelled(engine: Engine) -> None:
    """One pass later; not at the next deadline, or never."""

    def meanwhile() -> None:
        scope.deadline = trio.current_time() + TIMEOUT
        stall()

    async with conn_and_peer(engine, "unix") as (conn, _):
        with trio.CancelScope() as scope:
            hold_up_behind_the_hook(meanwhile)
            await conn.receive_exactly(2)
        assert scope.cancelled_caught


async def test_what_is_told_while_the_hook_tells_the_rest(engine: Engine, reactors: int) -> None:
    """After a stall. A reactor has looked by then, and told, but after the drain began."""
    waiters = Waiters(by_trio)
    with pairs_of(engine, "unix") as pairs:
        async with await engine.listen(LOCAL) as listener:
            few = pairs[:10]

            def on_data(conn: Conn) -> None:
                conn.receive_nowait()
                for _, peer in few:
                    peer.send(b"x")
                for scope in waiters.entered.values():
                    scope.deadline = trio.current_time()
                # What is no stall by itself is time enough for a thread.
                time.sleep(0.005 if reactors else STALL)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(listener.serve_events, on_data)
                with dialled(listener, 1) as socks:
                    async with trio.open_nursery() as receiving:
                        for conn, _ in few:
                            waiters.timed[conn] = trio.CancelScope()
                            receiving.start_soon(waiters.receive, conn)
                        await wait_all_tasks_blocked()
                        socks[0].send(b"go")
                        stall()
                nursery.cancel_scope.cancel()
    assert waiters.found == [b"x"] * len(few)


# -- a process that was stopped --------------------------------------------------------

STOPPED = """
import os, resource, signal, sys, threading, time
import trio, trio.testing, trio_wknet

reactors, count, timeout, asleep = (float(argument) for argument in sys.argv[1:])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
entered = {}
timed = {}
received = []

def stop():
    os.kill(os.getpid(), signal.SIGSTOP)

class StopAsleep(trio.abc.Instrument):
    def __init__(self):
        self.sleeps = threading.Event()
        threading.Thread(target=self.run).start()

    def before_io_wait(self, timeout):
        if timeout > 0:
            self.sleeps.set()

    def run(self):
        self.sleeps.wait()
        stop()

async def receive(conn):
    with trio.CancelScope() as entered[conn]:
        await conn.receive_some()
        if not timed[conn].cancel_called:
            received.append(conn)

def set_time(i, conn):
    if i % 2:
        timed[conn] = conn.idle_scope(timeout)
    else:
        timed[conn] = trio.CancelScope()
        entered[conn].deadline = trio.current_time() + timeout

async def main():
    async with trio_wknet.open_engine(int(reactors)) as engine:
        async with await engine.listen("tcp://127.0.0.1:0") as listener:
            print(listener.address[1], flush=True)
            conns = [await listener.accept() for _ in range(int(count))]
        async with trio.open_nursery() as nursery:
            for conn in conns:
                nursery.start_soon(receive, conn)
            # Or one might be stopped while it enters its scope, where Trio cancels it.
            await trio.testing.wait_all_tasks_blocked()
            begun = time.monotonic()
            for i, conn in enumerate(conns):
                set_time(i, conn)
            if asleep:
                trio.lowlevel.add_instrument(StopAsleep())
            else:
                stop()
        print(begun, len(received), flush=True)
        for conn in conns:
            conn.abort()

trio.run(main)
"""


def stop_a_process(reactors: int, timeout: float, asleep: bool) -> tuple[bool, int]:
    """Whether it was stopped before the first deadline, and how many it answered to."""
    arguments = (str(argument) for argument in (reactors, MANY, timeout, int(asleep)))
    with (
        subprocess.Popen(
            [sys.executable, "-c", STOPPED, *arguments], stdout=subprocess.PIPE, text=True
        ) as process,
        ExitStack() as stack,
    ):
        stack.callback(process.kill)
        assert process.stdout is not None
        address = ("127.0.0.1", int(process.stdout.readline()))
        socks = [stack.enter_context(socket.create_connection(address)) for _ in range(MANY)]
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        stopped = time.monotonic()
        for sock in socks:
            sock.send(b"x")
        time.sleep(timeout + STALL)
        process.send_signal(signal.SIGCONT)
        begun, received = process.stdout.readline().split()
    return stopped < float(begun) + timeout, int(received)


@pytest.mark.parametrize("asleep", [False, True], ids=["busy", "asleep"])
def test_a_process_that_was_stopped(reactors: int, asleep: bool, nothing_left: None) -> None:
    timeout = 0.1
    in_time = False
    while not in_time:  # the machine may take its time until the process is stopped
        in_time, received = stop_a_process(reactors, timeout, asleep)
        timeout *= 2
    assert received == MANY
