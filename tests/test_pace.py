"""Connections that are too slow for their listener's admission: they say nothing, trickle, or do
not read. And those that are not."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from helpers import PATIENCE, dial, until
from proxy_headers import LINE, TRUSTED
from trio.testing import MockClock

from trio_wknet import Admission, Conn, Engine, Limits, Listener, open_engine

LOCAL = "tcp://127.0.0.1:0"
AT_ONCE = Limits(linger_time=0)
SHORT = 0.04  # seconds, of a window
FAST = 1_000_000  # bytes a second: nobody here is
FIRST_BYTE = Admission(first_byte_time=0.03)
RATE = Admission(min_rate=FAST, rate_window=SHORT)


@pytest.fixture(params=["serve", "events"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def address(kind: str, tmp_path: Path) -> str:
    return LOCAL if kind == "tcp" else f"unix://{tmp_path}/socket"


class Server:
    """Takes what comes, answers it or not, and remembers why connections ended."""

    def __init__(self, answers: bool = False, greeting: bytes = b"") -> None:
        self.answers = answers
        self.greeting = greeting
        self.reasons: list[str | None] = []
        self.conns: list[Conn] = []

    async def handle(self, conn: Conn) -> None:
        """Exceptions are let out: `serve` goes on."""
        try:
            while self.greeting:
                await conn.send_all(self.greeting)
            async for data in conn:
                if self.answers:
                    await conn.send_all(data)
        finally:
            self.reasons.append(conn.close_reason)

    def connected(self, conn: Conn) -> None:
        self.conns.append(conn)
        if self.greeting:
            conn.send_nowait(self.greeting)

    def take(self, conn: Conn) -> None:
        data = conn.receive_nowait()
        if self.answers:
            conn.send_nowait(data)

    def closed(self, conn: Conn, reason: str) -> None:
        self.reasons.append(reason)

    async def run(self, form: str, listener: Listener, task_status: Any) -> None:
        if form == "serve":
            await listener.serve(self.handle, task_status=task_status)
        else:
            await listener.serve_events(
                self.take,
                on_connect=self.connected,
                on_close=self.closed,
                task_status=task_status,
            )


@asynccontextmanager
async def serving(
    engine: Engine,
    admission: Admission,
    form: str,
    server: Server,
    address: str = LOCAL,
    **more: Any,
) -> AsyncIterator[Listener]:
    more = {"limits": AT_ONCE, **more}
    async with await engine.listen(address, admission=admission, **more) as listener:
        async with trio.open_nursery() as nursery:

            async def run(task_status: Any) -> None:
                await server.run(form, listener, task_status)

            await nursery.start(lambda task_status: run(task_status))
            yield listener
            nursery.cancel_scope.cancel()


def ended(of: Listener | Engine) -> dict[str, int]:
    return {why: count for why, count in of.statistics().ended_by.items() if count}


async def is_cut_off(sock: socket.socket) -> None:
    sock.setblocking(False)
    with trio.fail_after(PATIENCE), suppress(OSError):
        while True:
            await trio.lowlevel.wait_readable(sock)
            if not sock.recv(65536):
                return


# --- those that are too slow ---------------------------------------------------------------


async def test_a_client_that_says_nothing(engine: Engine, form: str, address: str) -> None:
    server = Server()
    async with serving(engine, FIRST_BYTE, form, server, address) as listener:
        for number in range(1, 3):  # serving goes on
            with dial(listener) as sock:
                await is_cut_off(sock)
            await until(lambda n=number: len(server.reasons) == n)  # type: ignore[misc]
        await until(lambda: engine.statistics().connections == 0)
        assert ended(listener) == ended(engine) == {"first_byte_time": 2}
    assert server.reasons == ["no first byte"] * 2


async def test_a_client_that_nobody_accepts(engine: Engine) -> None:
    async with await engine.listen(LOCAL, admission=FIRST_BYTE) as listener:
        with dial(listener) as sock:
            await is_cut_off(sock)
            conn = await listener.accept()
            with pytest.raises(trio.BrokenResourceError) as raised:
                await conn.receive_some()
            assert isinstance(raised.value.__cause__, TimeoutError)
            await conn.aclose()
            assert conn.close_reason == "no first byte"


async def test_a_client_that_trickles(engine: Engine, form: str, address: str) -> None:
    server = Server()
    async with serving(engine, RATE, form, server, address) as listener:
        with dial(listener) as sock, trio.fail_after(PATIENCE):
            with suppress(OSError):
                while True:
                    sock.send(b".")
                    await trio.sleep(0.002)
        await until(lambda: server.reasons)
        assert ended(listener) == ended(engine) == {"min_rate": 1}
    assert server.reasons == ["too slow"]


async def test_a_client_that_does_not_read(engine: Engine, form: str, address: str) -> None:
    """A task waits in send_all, or bytes wait in the queue."""
    server = Server(greeting=bytes(8_000_000 if form == "events" else 100_000))
    limits = Limits(linger_time=0, outbound=10_000_000)
    async with serving(engine, RATE, form, server, address, limits=limits) as listener:
        with dial(listener):
            await until(lambda: server.reasons)
        await until(lambda: engine.statistics().connections == 0)
        assert ended(listener) == {"min_rate": 1}
    assert server.reasons == ["too slow"]


async def test_silence_behind_a_header(engine: Engine, form: str) -> None:
    """The header is not the first byte."""
    server = Server()
    async with serving(engine, FIRST_BYTE, form, server, proxy_protocol=TRUSTED) as listener:
        with dial(listener) as sock:
            sock.send(LINE)
            await is_cut_off(sock)
        await until(lambda: server.reasons)
        assert ended(listener) == {"first_byte_time": 1}


# --- those that are not: in virtual time ---------------------------------------------------


@asynccontextmanager
async def in_virtual_time(
    admission: Admission, server: Server, **more: Any
) -> AsyncIterator[Listener]:
    async with open_engine() as engine, serving(engine, admission, "events", server, **more) as one:
        yield one


async def answer(sock: socket.socket) -> bytes:
    sock.setblocking(False)
    await trio.lowlevel.wait_readable(sock)
    return sock.recv(1000)


async def test_a_dialogue(autojump_clock: MockClock) -> None:
    """Small messages that are answered, in every half of the window."""
    admission = Admission(first_byte_time=5, min_rate=1000)
    async with in_virtual_time(admission, Server(answers=True)) as listener:
        with dial(listener) as sock:
            for _ in range(30):
                sock.send(b"hello")
                assert await answer(sock) == b"hello"
                await trio.sleep(2)
        assert ended(listener) == {}


async def test_pauses(autojump_clock: MockClock) -> None:
    """Requests that take several halves of the window to be answered; the first just in time."""
    server = Server()
    async with in_virtual_time(Admission(first_byte_time=5, min_rate=1000), server) as listener:
        with dial(listener) as sock:
            await trio.sleep(4.9)
            for _ in range(10):
                sock.send(b"hello")
                await trio.sleep(16)
                server.conns[0].send_nowait(b"answer")
                assert await answer(sock) == b"answer"
                # Acknowledged now: the kernel's time does not jump.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
                await trio.sleep(12)
            assert ended(listener) == {}
            assert server.reasons == []


@pytest.mark.parametrize("pause", [5.1, 12, 61])
async def test_a_byte_now_and_then(autojump_clock: MockClock, pause: float) -> None:
    """The halves of the window between in which nothing comes do not help."""
    server = Server()
    async with in_virtual_time(Admission(min_rate=1000), server) as listener:
        with dial(listener) as sock, suppress(OSError):
            for _ in range(3):
                sock.send(b".")
                await trio.sleep(pause)
        assert ended(listener) == {"min_rate": 1}


async def test_an_upload(autojump_clock: MockClock) -> None:
    """As fast as it must be, and then slower."""
    server = Server()
    async with in_virtual_time(Admission(min_rate=1000), server) as listener:
        with dial(listener) as sock:
            for _ in range(50):
                sock.send(bytes(1100))
                await trio.sleep(1)
            assert ended(listener) == {}
            with suppress(OSError):
                for _ in range(50):
                    sock.send(bytes(500))
                    await trio.sleep(1)
        assert ended(listener) == {"min_rate": 1}


async def test_silence_after_the_first_byte(autojump_clock: MockClock) -> None:
    server = Server()
    async with in_virtual_time(Admission(first_byte_time=5, min_rate=1000), server) as listener:
        with dial(listener) as sock:
            sock.send(b".")
            await trio.sleep(1000)
            assert server.reasons == []
        assert ended(listener) == {}


async def test_an_end_without_a_byte(autojump_clock: MockClock) -> None:
    """That is for the application."""

    async def handler(conn: Conn) -> None:
        assert await conn.receive_some() == b""
        await trio.sleep(100)
        await conn.send_all(b"late")

    admission = Admission(first_byte_time=5, min_rate=1000)
    async with open_engine() as engine, await engine.listen(LOCAL, admission=admission) as listener:
        async with trio.open_nursery() as nursery:
            await nursery.start(listener.serve, handler)
            with dial(listener) as sock:
                sock.shutdown(socket.SHUT_WR)
                assert await answer(sock) == b"late"
            assert ended(listener) == {}
            nursery.cancel_scope.cancel()


async def test_the_trusted_take_their_time(autojump_clock: MockClock) -> None:
    admission = Admission(first_byte_time=5, trusted=["127.0.0.1"])
    server = Server()
    async with in_virtual_time(admission, server) as listener:
        with dial(listener):
            await trio.sleep(100)
            assert server.reasons == []


async def test_a_handler_that_is_busy(autojump_clock: MockClock) -> None:
    """Bytes that nobody waits for are not too few."""

    async def handler(conn: Conn) -> None:
        await trio.sleep(100)
        async for _ in conn:
            pass

    async with open_engine() as engine:
        listener = await engine.listen(LOCAL, admission=Admission(min_rate=1000))
        async with listener, trio.open_nursery() as nursery:
            await nursery.start(listener.serve, handler)
            with dial(listener) as sock:
                for _ in range(90):
                    sock.send(b".")
                    await trio.sleep(1)
                assert ended(listener) == {}
            nursery.cancel_scope.cancel()


async def test_an_idle_timeout_beside_it(autojump_clock: MockClock) -> None:
    """Each has its time."""
    admission = Admission(first_byte_time=5, min_rate=1000)
    server = Server()
    async with in_virtual_time(admission, server, idle_timeout=30) as listener:
        with dial(listener) as sock:
            sock.send(b".")
            await trio.sleep(29)
            assert server.reasons == []
            await trio.sleep(2)
        assert server.reasons == ["idle"]
        with dial(listener):
            await trio.sleep(6)
        assert server.reasons == ["idle", "no first byte"]


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        *[("first_byte_time", bad, ValueError) for bad in (0, -1, 86401, float("nan"))],
        *[("first_byte_time", bad, TypeError) for bad in ("1", True)],
        *[("min_rate", bad, ValueError) for bad in (0, -1, 10**10)],
        *[("min_rate", bad, TypeError) for bad in (1.5, "1", True)],
        *[("rate_window", bad, ValueError) for bad in (0, 0.01, 3601, float("nan"))],
        *[("rate_window", bad, TypeError) for bad in (None, "1", True)],
    ],
)
def test_bad_values(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"^{name} must .*"):
        Admission(**{name: value})
