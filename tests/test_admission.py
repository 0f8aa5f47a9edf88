"""Admission: who gets in, what becomes of the others, and that each place is given back once,
in every form."""

from __future__ import annotations

import multiprocessing
import os
import re
import socket
import struct
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from helpers import PATIENCE, dial, few_descriptors, refusing, until
from proxy_headers import TRUSTED, inet
from trio.testing import MockClock

import trio_wknet
from trio_wknet import Admission, Conn, Engine, Limits, Listener, open_engine
from trio_wknet._native.trio import proxy_gate

LOCAL = "tcp://127.0.0.1:0"
AT_ONCE = Limits(linger_time=0)


@pytest.fixture
def address(kind: str, tmp_path: Path) -> str:
    return LOCAL if kind == "tcp" else f"unix://{tmp_path}/socket"


@asynccontextmanager
async def listening(
    engine: Engine, admission: Admission, address: str = LOCAL, **options: Any
) -> AsyncIterator[Listener]:
    options = {"limits": AT_ONCE, **options}
    async with await engine.listen(address, admission=admission, **options) as listener:
        yield listener


async def echo(conn: Conn) -> None:
    with suppress(trio.BrokenResourceError):
        async for data in conn:
            await conn.send_all(data)


@asynccontextmanager
async def echoing(
    engine: Engine, admission: Admission, address: str = LOCAL, **options: Any
) -> AsyncIterator[Listener]:
    async with listening(engine, admission, address, **options) as listener:
        async with trio.open_nursery() as nursery:
            await nursery.start(listener.serve, echo)
            yield listener
            nursery.cancel_scope.cancel()


def knock(listener: Listener, source: str | None = None) -> socket.socket:
    """A plain socket that is connected, or was refused before `connect` returned."""
    if source is None and isinstance(listener.address, str):
        return dial(listener)
    sock = socket.socket()
    if source is not None:
        sock.bind((source, 0))
    with suppress(ConnectionResetError):
        sock.connect(listener.address[:2])
    return sock


@contextmanager
def clients(listener: Listener, *sources: str | None) -> Iterator[list[socket.socket]]:
    socks = [knock(listener, source) for source in sources]
    try:
        yield socks
    finally:
        for sock in socks:
            sock.close()


async def say(sock: socket.socket, data: bytes = b"hello") -> bytes:
    """What comes back; nothing if it was refused."""
    sock.setblocking(False)
    with trio.fail_after(PATIENCE), suppress(OSError):
        sock.send(data)
        await trio.lowlevel.wait_readable(sock)
        return sock.recv(100)
    return b""


def refused(of: Listener | Engine) -> dict[str, int]:
    """Why, without what did not happen."""
    return {why: count for why, count in of.statistics().refused_by.items() if count}


# --- the number of connections ------------------------------------------------------------


async def test_refusing_beyond_the_number(engine: Engine, address: str) -> None:
    admission = Admission(max_connections=2, when_full="refuse")
    async with echoing(engine, admission, address) as listener:
        with clients(listener, *[None] * 5) as socks:
            assert [await say(sock) for sock in socks] == [b"hello"] * 2 + [b""] * 3
        assert refused(listener) == refused(engine) == {"max_connections": 3}
        assert listener.statistics().refused == 3
        assert listener.statistics().accepted == 2
    assert refused(engine) == {"max_connections": 3}


async def test_a_refused_client_sees_a_reset(engine: Engine) -> None:
    async with echoing(engine, Admission(max_connections=1, when_full="refuse")) as listener:
        with clients(listener, None) as (first,):
            assert await say(first) == b"hello"
            with clients(listener, None) as (late,):
                await trio.lowlevel.wait_readable(late)
                with pytest.raises(ConnectionResetError):
                    late.recv(1)


async def test_waiting_beyond_the_number(engine: Engine, address: str) -> None:
    """They are in the kernel's queue, and each gets in when another has gone."""
    async with echoing(engine, Admission(max_connections=2), address) as listener:
        with clients(listener, *[None] * 6) as socks:
            for sock in socks:
                assert await say(sock) == b"hello"
                assert listener.statistics().handlers <= 2
                sock.close()
        await until(lambda: listener.statistics().handlers == 0)
        assert listener.statistics().accepted == 6
        assert refused(listener) == {}


async def test_whoever_waits_is_not_accepted(engine: Engine) -> None:
    """Another listener shows that the reactors have had their turns."""
    async with (
        echoing(engine, Admission(max_connections=1)) as full,
        echoing(engine, Admission()) as other,
    ):
        with clients(full, None, None) as socks:
            assert await say(socks[0]) == b"hello"
            with clients(other, *[None] * 4) as witnesses:
                for sock in witnesses:
                    assert await say(sock) == b"hello"
            assert full.statistics().accepted == 1


async def test_nothing_spins_while_a_port_waits(engine: Engine) -> None:
    async with echoing(engine, Admission(max_connections=1)) as listener:
        with clients(listener, None, None, None) as socks:
            assert await say(socks[0]) == b"hello"
            await until(lambda: engine._core.held_ports() == 1)
            before = sum(reactor.turns for reactor in engine.statistics().reactors)
            await trio.sleep(0.05)
            after = sum(reactor.turns for reactor in engine.statistics().reactors)
            assert after - before < 20
            socks[0].close()
            assert await say(socks[1]) == b"hello"


# --- by address -------------------------------------------------------------------------


@pytest.mark.parametrize("when_full", ["wait", "refuse"])
async def test_by_address(engine: Engine, when_full: Any) -> None:
    admission = Admission(max_connections=10, max_per_address=2, when_full=when_full)
    one, other = "127.0.0.1", "127.0.0.2"
    async with echoing(engine, admission) as listener:
        with clients(listener, one, one, one, other, one, other) as socks:
            answers = [await say(sock) for sock in socks]
            assert answers == [b"hello", b"hello", b"", b"hello", b"", b"hello"]
            assert refused(listener) == refused(engine) == {"max_per_address": 2}
            socks[0].close()
            await until(lambda: listener.statistics().handlers == 3)
            await until_in(listener, one)


async def until_in(listener: Listener, source: str | None = None) -> None:
    """A client gets in as soon as the reactor has closed the one before it."""
    with trio.fail_after(PATIENCE):
        while True:
            with clients(listener, source) as (sock,):
                if await say(sock):
                    return


async def test_ipv4_is_ipv4_on_both(engine: Engine) -> None:
    """One address, whether it comes to a socket of IPv4 or is mapped to IPv6."""
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as sock:
        admission = Admission(max_per_address=1, trusted=["127.0.0.2"])
        listener = engine.adopt(sock, admission=admission)
    assert isinstance(listener, Listener)
    async with listener, trio.open_nursery() as nursery:
        await nursery.start(listener.serve, echo)
        socks = [socket.socket() for _ in range(4)]
        for client, source in zip(socks, ["1", "1", "2", "2"], strict=True):
            client.bind((f"127.0.0.{source}", 0))
            with suppress(ConnectionResetError):
                client.connect(("127.0.0.1", listener.address[1]))
        assert [await say(client) for client in socks] == [b"hello", b"", b"hello", b"hello"]
        for client in socks:
            client.close()
        nursery.cancel_scope.cancel()


async def test_unix_sockets_have_no_address(engine: Engine, tmp_path: Path) -> None:
    admission = Admission(max_per_address=1, trusted=["::/0"], max_connections=3)
    async with echoing(engine, admission, f"unix://{tmp_path}/socket") as listener:
        with clients(listener, None, None, None) as socks:
            assert [await say(sock) for sock in socks] == [b"hello"] * 3


@pytest.mark.parametrize("when_full", ["wait", "refuse"])
async def test_the_trusted_do_not_count(engine: Engine, when_full: Any) -> None:
    admission = Admission(
        max_connections=2, max_per_address=1, when_full=when_full, trusted=["127.0.0.8/31"]
    )
    async with echoing(engine, admission) as listener:
        sources = ["127.0.0.8", "127.0.0.9", "127.0.0.8", "127.0.0.1", "127.0.0.8"]
        with clients(listener, *sources) as socks:
            assert [await say(sock) for sock in socks] == [b"hello"] * 5
            assert refused(listener) == {}


# --- the rate -----------------------------------------------------------------------------


async def test_refusing_beyond_the_rate(engine: Engine, address: str) -> None:
    admission = Admission(accept_rate=1e-3, when_full="refuse")
    async with echoing(engine, admission, address) as listener:
        with clients(listener, None, None, None) as socks:
            assert [await say(sock) for sock in socks] == [b"hello", b"", b""]
        assert refused(listener) == {"accept_rate": 2}


async def test_waiting_for_the_rate(autojump_clock: MockClock) -> None:
    """Two a second: two at once, and then one each half second, in virtual time."""
    came: list[float] = []

    async def handler(conn: Conn) -> None:
        came.append(trio.current_time() - began)
        await conn.receive_some()

    async with open_engine() as engine:
        async with listening(engine, Admission(accept_rate=2)) as listener:
            async with trio.open_nursery() as nursery:
                await nursery.start(listener.serve, handler)
                began = trio.current_time()
                with clients(listener, *[None] * 5):
                    while len(came) < 5:  # noqa: ASYNC110
                        await trio.sleep(0.1)
                nursery.cancel_scope.cancel()
    assert [round(at, 1) for at in came] == [0, 0, 0.5, 1.0, 1.5]


async def test_a_flood_does_not_use_up_the_rate(engine: Engine) -> None:
    """What is refused for its address is not counted."""
    admission = Admission(accept_rate=2.5, max_per_address=1)
    async with echoing(engine, admission) as listener:
        with clients(listener, *["127.0.0.1"] * 20, "127.0.0.2") as socks:
            assert await say(socks[0]) == b"hello"
            assert await say(socks[-1]) == b"hello"
            assert refused(listener) == {"max_per_address": 19}


# --- places are given back ---------------------------------------------------------------


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def _aclose(conn: Conn, sock: socket.socket) -> None:
    await conn.aclose()


async def _abort(conn: Conn, sock: socket.socket) -> None:
    conn.abort()


async def _detach(conn: Conn, sock: socket.socket) -> None:
    ours, _ = await conn.detach()
    ours.close()


async def _peer_resets(conn: Conn, sock: socket.socket) -> None:
    reset(sock)
    with pytest.raises(trio.BrokenResourceError):
        await conn.receive_some()
    await conn.aclose()


async def _peer_finishes(conn: Conn, sock: socket.socket) -> None:
    sock.close()
    assert await conn.receive_some() == b""
    await conn.aclose()


async def _idle(conn: Conn, sock: socket.socket) -> None:
    conn.idle_timeout = 0.001
    with pytest.raises(trio.ClosedResourceError):
        await conn.receive_some()


@pytest.mark.parametrize("end", [_aclose, _abort, _detach, _peer_resets, _peer_finishes, _idle])
async def test_every_end_gives_a_place_back(
    engine: Engine, end: Callable[[Conn, socket.socket], Any]
) -> None:
    """With one place, each of these can come only after the one before it."""
    async with listening(engine, Admission(max_connections=1, max_per_address=1)) as listener:
        for _ in range(3):
            with clients(listener, None) as (sock,):
                await end(await listener.accept(), sock)
        await until(lambda: engine.statistics().connections == 0)
        with clients(listener, None):
            (await listener.accept()).abort()
        assert refused(listener) == {}


async def test_what_was_never_accepted_gives_its_place_back(engine: Engine) -> None:
    """It waited in the listener's queue, which was closed."""
    async with listening(engine, Admission(max_connections=1)) as listener:
        with clients(listener, None, None):
            await until(lambda: listener.statistics().waiting == 1)
            await until(lambda: engine._core.held_ports() == 1)
    await until(lambda: engine.statistics().connections == 0)
    assert engine._core.held_ports() == 0


async def test_an_engine_that_ends_while_a_port_waits(reactors: int, nothing_left: None) -> None:
    async with open_engine(reactors) as engine:
        listener = await engine.listen(LOCAL, admission=Admission(max_connections=1))
        with clients(listener, None, None):
            await until(lambda: engine._core.held_ports() == 1)
            conn = await listener.accept()
    assert conn.close_reason is not None
    assert listener.statistics().refused == 0


async def test_draining_with_a_full_queue(engine: Engine, address: str) -> None:
    """What the kernel had queued is served, one after the other, before the drain ends."""
    served: list[bytes] = []

    async def handler(conn: Conn) -> None:
        served.append(await conn.receive_some())

    async with listening(engine, Admission(max_connections=1), address) as listener:
        with clients(listener, *[None] * 4) as socks:
            for number, sock in enumerate(socks):
                sock.send(bytes([number]))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listener.serve, handler)
                await until(lambda: served)
                await listener.drain()
        assert sorted(served) == [b"\0", b"\1", b"\2", b"\3"]


async def test_a_connection_outlives_its_listener(engine: Engine) -> None:
    """And so does what it counts in, until it ends."""
    async with listening(engine, Admission(max_connections=2, max_per_address=2)) as listener:
        with clients(listener, None) as (sock,):
            conn = await listener.accept()
            await listener.aclose()
            sock.send(b"hello")
            assert await conn.receive_some() == b"hello"
            await conn.aclose()
    await until(lambda: engine.statistics().connections == 0)


# --- behind a load balancer ---------------------------------------------------------------


def header(source: str) -> bytes:
    return inet((source, 56324), ("192.168.0.11", 443))


async def test_by_the_address_in_the_header(engine: Engine, address: str) -> None:
    """All connections come from one balancer."""
    admission = Admission(max_per_address=1, trusted=["192.0.2.9"])
    async with echoing(engine, admission, address, proxy_protocol=TRUSTED) as listener:
        sources = ["192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.9", "192.0.2.9"]
        with clients(listener, *[None] * 5) as socks:
            answers = [
                await say(sock, header(source) + b"hello")
                for sock, source in zip(socks, sources, strict=True)
            ]
            assert answers == [b"hello", b"", b"hello", b"hello", b"hello"]
            assert refused(listener) == refused(engine) == {"max_per_address": 1}
            socks[0].close()
            await until(lambda: listener.statistics().handlers == 3)
        await until(lambda: engine.statistics().connections == 0)
        with clients(listener, None) as (sock,):
            assert await say(sock, header("192.0.2.1") + b"hello") == b"hello"


async def test_places_of_those_that_the_gate_refuses(engine: Engine) -> None:
    """They are taken before the header, and are free again after it."""
    admission = Admission(max_connections=1, max_per_address=1)
    async with echoing(engine, admission, proxy_protocol=TRUSTED) as listener:
        for number in range(3):
            with clients(listener, None) as (sock,):
                assert await say(sock, b"GET / HTTP/1.1\r\n\r\n") == b""
            with clients(listener, None) as (sock,):
                assert await say(sock, header("192.0.2.1") + b"hello") == b"hello"
            assert refused(listener) == refused(engine) == {"proxy_header": number + 1}


async def test_a_trusted_client_gives_its_place_to_one_that_waits(engine: Engine) -> None:
    admission = Admission(max_connections=1, trusted=["192.0.2.9"])
    async with echoing(engine, admission, proxy_protocol=TRUSTED) as listener:
        with clients(listener, None, None, None) as socks:
            for sock, source in zip(socks, ["192.0.2.9", "192.0.2.9", "192.0.2.1"], strict=True):
                assert await say(sock, header(source) + b"hello") == b"hello"


async def test_an_address_that_does_not_fit_in_memory(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(proxy_gate, "packed_address", fails)
    async with echoing(engine, Admission(max_per_address=1), proxy_protocol=TRUSTED) as listener:
        with clients(listener, None) as (sock,):
            assert await say(sock, header("192.0.2.1") + b"hello") == b""
        assert refused(listener) == {"proxy_header": 1}


# --- in place of Trio's transport ----------------------------------------------------------


def test_run_gives_it_to_every_listener(nothing_left: None, reactors: int) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            handler: Any = echo
            serve = partial(trio.serve_tcp, handler, 0, host="127.0.0.1")
            (listener,) = await nursery.start(serve)
            assert isinstance(listener, Listener)
            with clients(listener, None, None) as socks:
                assert [await say(sock) for sock in socks] == [b"hello", b""]
            assert refused(listener) == {"max_connections": 1}
            nursery.cancel_scope.cancel()

    trio_wknet.run(
        main, reactors=reactors, admission=Admission(max_connections=1, when_full="refuse")
    )
    with pytest.raises(TypeError, match="admission must be Admission, not 5"):
        trio_wknet.run(main, admission=5)  # type: ignore[arg-type]


# --- together ------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [False, True], ids=["one-port", "reuse-port"])
@pytest.mark.parametrize("when_full", ["wait", "refuse"])
async def test_churn(engine: Engine, spread: bool, when_full: Any, long: bool) -> None:
    """Clients come and go at once, on several reactors: never more than there are places, no
    wake is lost, and in the end all places are free."""
    most, rounds = 3, 200 if long else 20
    admission = Admission(max_connections=most, max_per_address=most, when_full=when_full)
    answered = 0
    async with echoing(engine, admission, reuse_port=spread) as listener:

        async def client(number: int) -> None:
            nonlocal answered
            for turn in range(rounds):
                sock = socket.socket()
                sock.setblocking(False)
                with sock, suppress(OSError):
                    with suppress(BlockingIOError):
                        sock.connect(listener.address[:2])
                    await trio.lowlevel.wait_writable(sock)
                    answer = await say(sock)
                    answered += answer == b"hello"
                    assert listener.statistics().handlers <= most
                    if (number + turn) % 3 == 0:
                        reset(sock)

        with trio.fail_after(900 if long else PATIENCE):
            async with trio.open_nursery() as nursery:
                for number in range(8):
                    nursery.start_soon(client, number)
        statistics = listener.statistics()
        assert answered + statistics.refused >= 8 * rounds
        if when_full == "wait":
            assert answered == 8 * rounds
        await until(lambda: engine.statistics().connections == 0)
        assert engine._core.held_ports() == 0
        with clients(listener, *[None] * most) as socks:
            assert [await say(sock) for sock in socks] == [b"hello"] * most


# --- bad values ------------------------------------------------------------------------------

NUMBERS = ["max_connections", "max_per_address", "accept_rate"]


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        *[(name, 0, ValueError) for name in ("max_connections", "max_per_address", "accept_rate")],
        *[(name, -1, ValueError) for name in ("max_connections", "max_per_address", "accept_rate")],
        *[(name, "1", TypeError) for name in ("max_connections", "max_per_address", "accept_rate")],
        *[
            (name, True, TypeError)
            for name in ("max_connections", "max_per_address", "accept_rate")
        ],
        ("max_connections", 2**31, ValueError),
        ("max_connections", 1.5, TypeError),
        ("max_per_address", 2**31, ValueError),
        ("accept_rate", float("inf"), ValueError),
        ("accept_rate", float("nan"), ValueError),
        ("when_full", "drop", ValueError),
        ("when_full", None, ValueError),
        ("when_full", [], ValueError),
        ("trusted", None, TypeError),
        ("trusted", "10.0.0.0/8", TypeError),
        ("trusted", [10], TypeError),
        ("trusted", ["10.0.0.1/8"], ValueError),
        ("trusted", ["unix:"], ValueError),
    ],
)
def test_bad_values(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"^{name} must .*"):
        Admission(**{name: value})


async def test_where_it_does_not_belong(engine: Engine) -> None:
    for bad in ("many", 5, Admission):
        with pytest.raises(
            TypeError, match=r"admission must be Admission, not " + re.escape(repr(bad))
        ):
            await engine.listen(LOCAL, admission=bad)  # type: ignore[call-overload]
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(ValueError, match="admission must be None"):
        engine.adopt(ours, admission=Admission())


# --- without descriptors or memory, and in children -----------------------------------------


async def every_place_is_free(engine: Engine, listener: Listener, places: int) -> None:
    """So many come in, and no more."""
    await until(lambda: engine.statistics().connections == 0)
    before = refused(listener)
    with clients(listener, *[None] * (places + 2)) as socks:
        answers = [await say(sock) for sock in socks]
    assert answers.count(b"hello") == places
    assert refused(listener)["max_connections"] == before.get("max_connections", 0) + 2


@pytest.mark.parametrize("lacking", ["descriptors", "places"])
async def test_places_are_kept_through_a_shortage(engine: Engine, lacking: str) -> None:
    """What could not be accepted has taken none, gets in once it can, and leaves its own."""
    admission = Admission(max_connections=5, max_per_address=5, when_full="refuse")
    async with echoing(engine, admission) as listener:
        plain = [socket.socket() for _ in range(4)]
        with few_descriptors(1) if lacking == "descriptors" else refusing("places", first=4):
            for sock in plain:
                sock.connect(listener.address[:2])
            await until(lambda: listener.statistics().starved)
            assert refused(listener) == {}
            assert listener.statistics().accepted < 4
        assert [await say(sock) for sock in plain] == [b"hello"] * 4
        assert listener.statistics().shortages >= 1
        assert refused(listener) == {}
        for sock in plain:
            sock.close()
        await every_place_is_free(engine, listener, 5)


async def test_waiting_ports_through_a_shortage(engine: Engine) -> None:
    """The same where ports take a place before they accept."""
    async with echoing(engine, Admission(max_connections=2, max_per_address=5)) as listener:
        plain = [socket.socket() for _ in range(4)]
        with few_descriptors(0):
            for sock in plain:
                sock.connect(listener.address[:2])
            await until(lambda: listener.statistics().starved)
        for sock in plain:
            assert await say(sock) == b"hello"
            assert listener.statistics().handlers <= 2
            sock.close()
        await until(lambda: engine.statistics().connections == 0)
        with clients(listener, None, None) as socks:
            assert [await say(sock) for sock in socks] == [b"hello"] * 2


@pytest.mark.parametrize("how", ["fork", "multiprocessing"])
async def test_children_take_no_place_and_leave_none(engine: Engine, how: str) -> None:
    """They hold the descriptors, and nothing else."""
    admission = Admission(max_connections=2, max_per_address=2, when_full="refuse")
    async with echoing(engine, admission) as listener:
        with clients(listener, None, None) as socks:
            assert [await say(sock) for sock in socks] == [b"hello"] * 2
            with child_that_waits(how):
                assert await say(socks[0], b"again") == b"again"
                with clients(listener, None) as (third,):
                    assert await say(third) == b""
                for sock in socks:
                    sock.shutdown(socket.SHUT_WR)  # the child holds it, too
                await every_place_is_free(engine, listener, 2)
        await every_place_is_free(engine, listener, 2)


@contextmanager
def child_that_waits(how: str) -> Iterator[None]:
    """A copy of this process, until the block is left."""
    ours, its = os.pipe()

    def wait_for_end() -> None:
        os.close(its)
        os.read(ours, 1)

    def fork() -> Callable[[], object]:
        child = os.fork()
        if child == 0:
            wait_for_end()
            os._exit(0)
        return lambda: os.waitpid(child, 0)

    def start() -> Callable[[], object]:
        process = multiprocessing.get_context("fork").Process(target=wait_for_end)
        process.start()
        return process.join

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from 3.12 on, of threads
        end = fork() if how == "fork" else start()
    try:
        yield
    finally:
        os.close(its)
        end()
        os.close(ours)
