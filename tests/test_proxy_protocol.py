"""Listeners behind a load balancer that sends PROXY headers, in every form of serving."""

from __future__ import annotations

import gc
import ipaddress
import logging
import random
import re
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trustme
from helpers import PATIENCE, conn_and_peer, content, dial, dialled, read, read_all, until
from proxy_headers import LINE, SOURCE, TRUSTED, inet, tlv, version_2
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_wknet import (
    Conn,
    Engine,
    Limits,
    Listener,
    ProxyHeader,
    open_engine,
    open_wknet_listener,
)
from trio_wknet._native.trio import proxy_gate
from trio_wknet._proxy import trust
from trio_wknet._proxy.header import header_size

LOCAL = "tcp://127.0.0.1:0"
HEADER = inet(SOURCE, ("192.168.0.11", 443), tlv(2, b"example.org"))
FORMS = ["accept", "serve", "serve_listeners", "events"]
QUICK = Limits(proxy_header_time=0.05)
PATIENT = Limits(proxy_header_time=PATIENCE)  # whatever else the machine does
GRACIOUS = Limits(proxy_header_time=20 * PATIENCE)  # nor has anybody to make room


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Server:
    """Echoes, and remembers who came."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.seen: list[Conn] = []

    def connected(self, conn: Conn) -> None:
        assert conn.remote_address, "known from the first"
        self.seen.append(conn)

    async def handle(self, conn: Conn) -> None:
        self.connected(conn)
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in conn:
                await conn.send_all(data)
            await conn.aclose()

    def answer(self, conn: Conn) -> None:
        with suppress(trio.BrokenResourceError):
            conn.send_nowait(conn.receive_nowait())

    async def accept_all(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                nursery.start_soon(self.handle, await self.listener.accept())

    async def run(
        self, form: str, *, task_status: trio.TaskStatus[object] = trio.TASK_STATUS_IGNORED
    ) -> None:
        if form == "accept":
            await self.accept_all()
        elif form == "serve":
            await self.listener.serve(self.handle, task_status=task_status)
        elif form == "serve_listeners":
            await trio.serve_listeners(self.handle, [self.listener])
        else:
            await self.listener.serve_events(
                self.answer, on_connect=self.connected, task_status=task_status
            )


@asynccontextmanager
async def serving(
    engine: Engine, form: str = "serve", address: str = LOCAL, **options: Any
) -> AsyncIterator[Server]:
    options = {"proxy_protocol": TRUSTED, "limits": PATIENT, **options}
    async with await engine.listen(address, **options) as listener:
        server = Server(listener)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.run, form)
            yield server
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def client(listener: Listener) -> AsyncIterator[trio.SocketStream]:
    """A balancer's connection, without the engine under test."""
    sock = dial(listener)
    sock.setblocking(False)
    async with trio.SocketStream(trio.socket.from_stdlib_socket(sock)) as stream:
        yield stream


async def answers(listener: Listener, header: bytes = HEADER, data: bytes = b"hello") -> None:
    async with client(listener) as stream:
        await stream.send_all(header + data)
        assert await read(stream, len(data)) == data


async def is_refused(stream: trio.SocketStream) -> None:
    with trio.fail_after(PATIENCE), suppress(trio.BrokenResourceError):
        assert await stream.receive_some() == b""


def refused(listener: Listener) -> int:
    return listener.statistics().refused


# -- whom a connection is for ----------------------------------------------------------


@pytest.mark.parametrize("header", [LINE, HEADER], ids=["line", "binary"])
async def test_the_address_is_the_clients(engine: Engine, form: str, header: bytes) -> None:
    """And everything behind the header is the handler's."""
    async with serving(engine, form) as server:
        async with client(server.listener) as stream:
            data = content(form, 300_000)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, header + data)
                assert await read(stream, len(data)) == data
            (conn,) = server.seen
            assert conn.remote_address == SOURCE
            assert conn.proxy_header is not None
            assert conn.proxy_header.destination == ("192.168.0.11", 443)
            assert conn.local_address == server.listener.address
            assert conn.socket.getpeername() == stream.socket.getsockname()
            assert engine.connections[conn.id or 0].proxy_header == conn.proxy_header
        await until(lambda: not conn._open)
        assert conn.remote_address == SOURCE, "also afterwards"
        assert refused(server.listener) == 0


@pytest.mark.parametrize("header", [LINE, HEADER], ids=["line", "binary"])
async def test_a_header_that_comes_byte_by_byte(engine: Engine, form: str, header: bytes) -> None:
    async with serving(engine, form, limits=attrs.evolve(PATIENT, inbound=1)) as server:
        async with client(server.listener) as stream:
            for n in range(len(header)):
                assert server.seen == []
                await stream.send_all(header[n : n + 1])
                if n % 7 == 0:
                    await until(lambda: server.listener.statistics().waiting == 1)
            await until(lambda: len(server.seen) == 1)
            await stream.send_all(b"hello")
            assert await read(stream, 5) == b"hello"
            assert server.seen[0].remote_address == SOURCE


async def test_over_a_unix_socket(engine: Engine, form: str, tmp_path: Path) -> None:
    path = f"unix://{tmp_path}/socket"
    names = b"/run/client".ljust(108, b"\0") + b"/run/server".ljust(108, b"\0")
    async with serving(engine, form, path, proxy_protocol=["unix:"]) as server:
        await answers(server.listener)
        await answers(server.listener, version_2(names, kind=0x31))
        assert [conn.remote_address for conn in server.seen] == [SOURCE, "/run/client"]


@pytest.mark.parametrize("header", [b"PROXY UNKNOWN\r\n", version_2(command=0x20, kind=0)])
async def test_a_balancers_own_connection(engine: Engine, form: str, header: bytes) -> None:
    async with serving(engine, form) as server:
        async with client(server.listener) as stream:
            await stream.send_all(header + b"hello")
            assert await read(stream, 5) == b"hello"
            (conn,) = server.seen
            assert conn.remote_address == stream.socket.getsockname()
            assert conn.proxy_header is not None
            assert conn.proxy_header.source is None


async def test_an_ipv4_balancer_on_a_socket_for_both(engine: Engine) -> None:
    """Such as systemd opens; its addresses look like ::ffff:127.0.0.1."""
    if not socket.has_dualstack_ipv6():
        pytest.skip("no dual-stack sockets here")
    sock = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    port = sock.getsockname()[1]
    listener = engine.adopt(sock, proxy_protocol=[ipaddress.ip_address("127.0.0.1")])
    assert isinstance(listener, Listener)
    async with listener:
        with socket.create_connection(("127.0.0.1", port)) as balancer:
            balancer.send(LINE)
            conn = await listener.accept()
            assert conn.remote_address == SOURCE
            conn.abort()


async def test_the_header_stands_before_tls(engine: Engine) -> None:
    authority = trustme.CA()
    ours, theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("client.test").configure_cert(ours)
    authority.configure_trust(theirs)

    async def answer(stream: trio.SSLStream[Conn]) -> None:
        await stream.send_all(repr(stream.transport_stream.remote_address).encode())

    async with await engine.listen(LOCAL, proxy_protocol=TRUSTED, limits=PATIENT) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, answer, [trio.SSLListener(listener, ours)])
            async with client(listener) as plain:
                await plain.send_all(HEADER)
                stream = trio.SSLStream(plain, theirs, server_hostname="client.test")
                assert await stream.receive_some() == repr(SOURCE).encode()
            nursery.cancel_scope.cancel()


async def test_without_the_option_there_is_no_header(engine: Engine) -> None:
    async with await engine.listen(LOCAL) as listener:
        with dialled(listener, 1) as socks:
            socks[0].send(LINE)
            conn = await listener.accept()
            assert conn.proxy_header is None
            assert await read(conn, len(LINE)) == LINE
            assert conn.remote_address == socks[0].getsockname()
            conn.abort()


async def test_a_private_engines_listener(reactors: int) -> None:
    async with open_wknet_listener(LOCAL, reactors=reactors, proxy_protocol=TRUSTED) as listener:
        with dialled(listener, 1) as socks:
            socks[0].send(LINE)
            conn = await listener.accept()
            assert conn.remote_address == SOURCE
            conn.abort()


# -- headers that are late -------------------------------------------------------------


async def test_who_has_not_said_holds_up_nobody(engine: Engine, form: str) -> None:
    async with serving(engine, form) as server:
        async with client(server.listener) as slow:
            await slow.send_all(HEADER[:20])
            await until(lambda: server.listener.statistics().waiting == 1)
            for _ in range(3):
                await answers(server.listener)
            assert len(server.seen) == 3
            assert server.listener.statistics().waiting == 1
            await slow.send_all(HEADER[20:] + b"hello")
            assert await read(slow, 5) == b"hello"
            assert server.listener.statistics().waiting == 0


@pytest.mark.parametrize("reactors", [1, 2])  # in-loop nothing comes meanwhile
async def test_a_header_that_comes_between_two_looks(
    engine: Engine, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has come by the time its wake is arranged, and nothing comes behind it."""

    def size_as_it_comes(data: bytes) -> int:
        if not data:
            before = engine.statistics().pool_in_use
            peer.sendall(HEADER)
            while engine.statistics().pool_in_use == before:
                time.sleep(0.0001)  # until the reactor has it
        return header_size(data)

    monkeypatch.setattr("trio_wknet._native.trio.proxy_gate.header_size", size_as_it_comes)
    async with serving(engine, form, limits=PATIENT) as server:
        with dial(server.listener) as peer, trio.fail_after(PATIENCE / 2):
            while not server.seen:  # noqa: ASYNC110
                await trio.sleep(0.001)
            assert server.seen[0].remote_address == SOURCE


async def test_nobody_sees_who_has_not_said(engine: Engine) -> None:
    """No object is made for it."""
    async with serving(engine) as server, client(server.listener):
        await until(lambda: server.listener.statistics().waiting == 1)
        await until(lambda: engine.statistics().connections == 1)
        assert len(engine.connections) == 0
        assert server.listener.statistics().handlers == 0


async def test_time_runs_out(engine: Engine, form: str, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(engine, form, limits=QUICK, idle_timeout=0.01) as server:
        async with client(server.listener) as silent, client(server.listener) as slow:
            await slow.send_all(LINE[:10])
            await is_refused(silent)
            await is_refused(slow)
        await until(lambda: engine.statistics().connections == 0)
        assert refused(server.listener) == 2
        assert server.seen == []
    assert sum("no PROXY header in time" in line for line in caplog.messages) == 2


async def test_bytes_that_trickle_buy_no_time(mock_clock: MockClock) -> None:
    async with open_engine(0) as engine, serving(engine, limits=Limits()) as server:
        async with client(server.listener) as stream:
            await until_now(lambda: server.listener.statistics().waiting == 1)
            for n in range(5):
                assert refused(server.listener) == 0
                await stream.send_all(LINE[n : n + 1])
                await wait_all_tasks_blocked()
                mock_clock.jump(1.001)
            await until_now(lambda: refused(server.listener) == 1)


async def until_now(condition: Callable[[], object]) -> None:
    """Where time stands still."""
    for _ in range(10_000):
        if condition():
            return
        await trio.lowlevel.checkpoint()
    raise AssertionError("it did not come about")


async def test_what_has_passed_is_not_interrupted_later(mock_clock: MockClock, form: str) -> None:
    async with open_engine(0) as engine, serving(engine, form) as server:
        async with client(server.listener) as stream:
            await stream.send_all(HEADER + b"one")
            assert await read(stream, 3) == b"one"
            mock_clock.jump(2 * PATIENCE)
            await wait_all_tasks_blocked()
            await stream.send_all(b"two")
            assert await read(stream, 3) == b"two"


async def test_the_idle_timeout_begins_behind_the_header(engine: Engine, form: str) -> None:
    async with serving(engine, form, idle_timeout=0.05) as server:
        async with client(server.listener) as stream:
            await stream.send_all(HEADER)
            await is_refused(stream)
        (conn,) = server.seen
        await until(lambda: conn.close_reason == "idle")
        assert refused(server.listener) == 0


async def test_what_waits_is_bounded(engine: Engine, form: str) -> None:
    async with serving(engine, form, limits=attrs.evolve(GRACIOUS, accept_queue=2)) as server:
        statistics = server.listener.statistics
        with dialled(server.listener, 5) as socks:
            await until(lambda: statistics().waiting == 2)
            for n, sock in enumerate(socks):
                assert statistics().accepted <= n + 2
                sock.send(HEADER if n % 2 else b"nonsense")
            await until(lambda: len(server.seen) == 2)
            await until(lambda: refused(server.listener) == 3)
            assert statistics().waiting == 0


# -- who makes room --------------------------------------------------------------------


async def test_the_silent_make_room(engine: Engine) -> None:
    """They fill the queue, and more of them wait in the kernel's. Who comes behind with a
    header is served long before their time is up."""
    limits = attrs.evolve(PATIENT, accept_queue=8, proxy_header_time=10.0)  # a grace of 0.5 s
    async with serving(engine, limits=limits) as server:
        with dialled(server.listener, 24) as silent, trio.fail_after(5):
            await answers(server.listener)
            assert refused(server.listener) >= 16, "those who stood longest"
            await until(lambda: server.listener.statistics().waiting <= 8)
            # The last of them have their time, and are heard.
            silent[-1].send(HEADER + b"late")
            silent[-1].settimeout(PATIENCE)
            assert await trio.to_thread.run_sync(silent[-1].recv, 10) == b"late"


async def test_the_silent_make_room_for_all_forms(mock_clock: MockClock, form: str) -> None:
    limits = Limits(accept_queue=8)  # a grace of 0.25 s
    async with open_engine(0) as engine, serving(engine, form, limits=limits) as server:
        with dialled(server.listener, 24), dialled(server.listener, 1) as honest:
            honest[0].send(HEADER + b"hello")
            await until_now(lambda: server.listener.statistics().waiting == 8)
            while not server.seen:
                assert mock_clock.current_time() < 1.0
                await wait_all_tasks_blocked()
                mock_clock.jump(0.05)
            honest[0].settimeout(PATIENCE)
            await wait_all_tasks_blocked()
            assert honest[0].recv(10) == b"hello"
        assert refused(server.listener) >= 16


async def test_who_has_his_grace_makes_no_room(engine: Engine, form: str) -> None:
    """A burst of honest ones whose headers are under way must not drive itself out."""
    async with serving(engine, form, limits=attrs.evolve(GRACIOUS, accept_queue=4)) as server:
        with dialled(server.listener, 12) as socks:
            await until(lambda: server.listener.statistics().waiting == 4)
            for sock in socks:
                sock.send(HEADER)
            await until(lambda: len(server.seen) == 12)
        assert refused(server.listener) == 0


async def test_nobody_makes_room_that_nobody_wants(mock_clock: MockClock) -> None:
    limits = Limits(accept_queue=8, proxy_header_time=20.0)  # a grace of 1 s
    async with open_engine(0) as engine, serving(engine, limits=limits) as server:
        statistics = server.listener.statistics
        with dialled(server.listener, 7) as socks:
            await until_now(lambda: statistics().waiting == 7)
            mock_clock.jump(1.5)
            await wait_all_tasks_blocked()
            assert refused(server.listener) == 0
            # One more fills the queue: of those past their grace the oldest goes, so
            # that one may come.
            with dialled(server.listener, 1) as last:
                await until_now(lambda: refused(server.listener) == 1)
                await wait_all_tasks_blocked()
                assert statistics().waiting == 7
                last[0].send(HEADER)
                await until_now(lambda: len(server.seen) == 1)
            assert refused(server.listener) == 1
            socks[0].settimeout(PATIENCE)
            with suppress(ConnectionResetError):
                assert socks[0].recv(1) == b""


async def test_who_has_said_enough_makes_no_room(mock_clock: MockClock) -> None:
    """Whose header has come is let pass, not refused for his age."""
    limits = Limits(accept_queue=2, proxy_header_time=20.0)
    async with open_engine(0) as engine, serving(engine, limits=limits) as server:
        statistics = server.listener.statistics
        with dialled(server.listener, 2) as socks:
            await until_now(lambda: statistics().waiting == 2)
            for sock in socks:
                sock.send(HEADER)
            mock_clock.jump(1.5)
            await until_now(lambda: len(server.seen) == 2)
            assert refused(server.listener) == 0


# -- the log -----------------------------------------------------------------------------


async def test_a_flood_of_nonsense_is_few_lines(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """At first each refusal gets its own, then one a second; none is uncounted."""
    async with serving(engine) as server:
        for _ in range(5):
            with dialled(server.listener, 20) as socks:
                for sock in socks:
                    sock.send(b"nonsense")
                await until(lambda: refused(server.listener) % 20 == 0)
        await until(lambda: refused(server.listener) == 100)
        lines = len(caplog.messages)
        assert 10 <= lines < 10 + 2 * PATIENCE
    said = "\n".join(caplog.messages)
    unlogged = [int(n) for n in re.findall(r"(?:and|refused) (\d+) (?:others|more)", said)]
    assert sum(unlogged) + lines == 100


async def test_who_is_not_logged_takes_nobodys_line(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """Balancers that look whether somebody listens are told of at level DEBUG."""
    async with serving(engine) as server:
        with dialled(server.listener, 30):
            pass
        await until(lambda: refused(server.listener) == 30)
        with dialled(server.listener, 1) as socks:
            socks[0].send(b"nonsense")
            await until(lambda: caplog.messages)
    assert len(caplog.messages) == 1
    assert "unlogged" not in caplog.messages[0]


# -- a listener that is closed by what it runs ---------------------------------------------


async def test_a_finalizer_closes_the_listener_while_it_looks(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is garbage is collected anywhere, as in `trusts` or `getpeername`. The slot is
    another connection's afterwards, and must not be the gate's."""
    for where in ("trusts", "peer_of"):
        listener = await engine.listen(LOCAL, proxy_protocol=TRUSTED, limits=PATIENT)

        def closing(*_: Any, listener: Listener = listener) -> bool:
            listener._close_all()
            return True

        with monkeypatch.context() as patched:
            if where == "trusts":
                patched.setattr(trust.Trusted, "trusts", closing)
            else:
                patched.setattr(proxy_gate, "peer_of", closing)
            with dialled(listener, 1) as socks:
                socks[0].send(b"nonsense")
                await until(lambda: not listener._open)  # noqa: B023
                await until(lambda: engine.statistics().connections == 0)
        assert refused(listener) == 0
        for kind in ("unix", "tcp"):
            async with conn_and_peer(engine, kind) as (conn, peer):
                await peer.send(HEADER)
                assert await read(conn, len(HEADER)) == HEADER


# -- what is refused -------------------------------------------------------------------


@pytest.mark.parametrize(
    "nonsense",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324\r\n",
        b"PROXY TCP4 " + b"1" * 96,
        version_2(size=4081),
        version_2(bytes(12), command=0x41),
        inet(SOURCE, SOURCE, tlv(3, b"1234")),
    ],
    ids=["http", "short", "endless", "long", "version", "checksum"],
)
async def test_nonsense(
    engine: Engine, form: str, nonsense: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(engine, form) as server:
        async with client(server.listener) as stream:
            await stream.send_all(nonsense)
            await is_refused(stream)
            assert refused(server.listener) == 1
            assert repr(stream.socket.getsockname()) in caplog.messages[0]
        await answers(server.listener)
        assert len(server.seen) == 1


async def test_an_untrusted_source(
    engine: Engine, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    elsewhere = ["192.0.2.0/24", ipaddress.ip_network("::1/128"), "unix:"]
    async with serving(engine, form, proxy_protocol=elsewhere) as server:
        for data in (HEADER, b"no header", b""):
            async with client(server.listener) as stream:
                with suppress(trio.BrokenResourceError):
                    await stream.send_all(data)
                await is_refused(stream)
        assert refused(server.listener) == 3
        assert server.seen == []
        await until(lambda: engine.statistics().connections == 0)
    assert sum("does not trust" in line for line in caplog.messages) == 3


@pytest.mark.parametrize("header", [b"", LINE[:30], HEADER[:20]])
@pytest.mark.parametrize("how", ["end", "reset"])
async def test_who_leaves_within_the_header(
    engine: Engine, form: str, header: bytes, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(engine, form) as server:
        with dial(server.listener) as sock:
            sock.send(header)
            if how == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await until(lambda: refused(server.listener) == 1)
        await answers(server.listener)
        assert len(server.seen) == 1
    if not header:
        assert caplog.messages == [], "so balancers look whether somebody listens"


async def test_who_leaves_behind_the_header(engine: Engine) -> None:
    async with await engine.listen(LOCAL, proxy_protocol=TRUSTED, limits=PATIENT) as listener:
        with dial(listener) as sock:
            sock.send(HEADER + b"last words")
        conn = await listener.accept()
        assert await read_all(conn) == b"last words"
        await conn.aclose()


async def test_a_crowd_of_all_kinds(engine: Engine, form: str) -> None:
    chance = random.Random(form)

    async def one(good: bool) -> None:
        data = (HEADER if chance.random() < 0.5 else LINE) if good else chance.randbytes(60)
        async with client(server.listener) as stream:
            with suppress(trio.BrokenResourceError):
                while data:
                    n = chance.randrange(1, 40)
                    await stream.send_all(data[:n])
                    data = data[n:]
                    await trio.lowlevel.checkpoint()
            if good:
                await stream.send_all(b"hello")
                assert await read(stream, 5) == b"hello"
            else:
                await is_refused(stream)

    async with serving(engine, form) as server:
        async with trio.open_nursery() as nursery:
            for n in range(60):
                nursery.start_soon(one, n % 3 != 0)
        assert (len(server.seen), refused(server.listener)) == (40, 20)
        assert {conn.remote_address for conn in server.seen} == {SOURCE}


# -- the end ---------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["serve", "events"])
async def test_drain_waits_for_headers(engine: Engine, form: str) -> None:
    listener = await engine.listen(LOCAL, proxy_protocol=TRUSTED, limits=PATIENT)
    server = Server(listener)
    drained: list[int] = []

    async def drain() -> None:
        await listener.drain()
        drained.append(len(server.seen))

    with dialled(listener, 2) as socks:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run, form)
            await until(lambda: listener.statistics().waiting == 2)
            nursery.start_soon(drain)
            await wait_all_tasks_blocked()
            socks[0].send(b"nonsense")
            await until(lambda: refused(listener) == 1)
            await wait_all_tasks_blocked()
            assert not drained
            socks[1].send(HEADER)
            await until(lambda: len(server.seen) == 1)
            socks[1].close()
    assert drained == [1]


@pytest.mark.parametrize("form", ["serve", "events"])
async def test_drain_ends_with_the_last_refusal(engine: Engine, form: str) -> None:
    listener = await engine.listen(LOCAL, proxy_protocol=TRUSTED, limits=PATIENT)
    server = Server(listener)
    with dialled(listener, 1) as socks:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run, form)
            await until(lambda: listener.statistics().waiting == 1)
            nursery.start_soon(listener.drain)
            await wait_all_tasks_blocked()
            socks[0].send(b"nonsense")
    assert server.seen == []


async def test_closing_lets_go_of_all(engine: Engine) -> None:
    listener = await engine.listen(LOCAL, proxy_protocol=TRUSTED, limits=PATIENT)
    with dialled(listener, 4) as socks:
        for sock in socks[:2]:
            sock.send(HEADER)
        socks[2].send(HEADER[:20])
        await until(lambda: listener.statistics().waiting == 4)
        await until(lambda: engine.statistics().connections == 4)
        for _ in range(10):
            await trio.lowlevel.checkpoint()
        await listener.aclose()
        await until(lambda: engine.statistics().connections == 0)
        assert listener.statistics().waiting == 4, "as it was at the end"
    gc.collect()
    assert [it for it in gc.get_objects() if isinstance(it, ProxyHeader)] == []


async def test_an_engine_that_ends_while_headers_are_awaited(reactors: int) -> None:
    async with open_engine(reactors) as engine:
        listener = await engine.listen(LOCAL, proxy_protocol=TRUSTED, limits=PATIENT)
        with dialled(listener, 2) as socks:
            socks[0].send(HEADER)
            await until(lambda: listener.statistics().waiting == 2)
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()


async def test_cancelling_accept_loses_nobody(engine: Engine) -> None:
    async with await engine.listen(LOCAL, proxy_protocol=TRUSTED, limits=PATIENT) as listener:
        with dialled(listener, 20) as socks:
            for sock in socks:
                sock.send(HEADER)
            accepted: list[Conn] = []
            n = 0
            while len(accepted) < 20:
                n += 1
                with trio.CancelScope() as scope:
                    if n % 2:
                        scope.cancel()
                    accepted.append(await listener.accept())
            assert {conn.remote_address for conn in accepted} == {SOURCE}
            for conn in accepted:
                conn.abort()


async def test_headers_go_with_their_connections(engine: Engine, form: str) -> None:
    async with serving(engine, form) as server:
        for _ in range(20):
            await answers(server.listener)
        await until(lambda: engine.statistics().connections == 0)
        server.seen.clear()
    gc.collect()
    assert [it for it in gc.get_objects() if isinstance(it, ProxyHeader)] == []


async def test_a_logging_handler_that_closes_the_listener(engine: Engine) -> None:
    """It runs where connections are looked at."""
    listener = await engine.listen(LOCAL, proxy_protocol=TRUSTED, limits=PATIENT)

    class Closer(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            listener._close_all()

    logger, closer = logging.getLogger("trio_wknet.proxy_protocol"), Closer()
    logger.addHandler(closer)
    try:
        with dialled(listener, 6) as socks:
            for sock in socks:
                sock.send(b"nonsense")
            with pytest.raises(trio.ClosedResourceError):
                await listener.accept()
            await until(lambda: engine.statistics().connections == 0)
    finally:
        logger.removeHandler(closer)


# -- arguments -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("networks", "error", "words"),
    [
        ("10.0.0.0/8", TypeError, "a collection of networks, not '10.0.0.0/8'"),
        (7, TypeError, "a collection of networks, not 7"),
        ([10], TypeError, "proxy_protocol must hold networks, not 10"),
        (["10.0.0.1/8"], ValueError, "10.0.0.1/8 has host bits set"),
        (["balancer.example"], ValueError, "'balancer.example' does not appear to be"),
        ([], ValueError, "proxy_protocol must hold a network"),
        (["unix:"], ValueError, "proxy_protocol must hold a network"),
    ],
)
async def test_bad_networks(engine: Engine, networks: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        await engine.listen(LOCAL, proxy_protocol=networks)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        with pytest.raises(error, match=words):
            engine.adopt(sock, proxy_protocol=networks)


async def test_bad_places(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must hold 'unix:' for a unix socket"):
        await engine.listen(f"unix://{tmp_path}/socket", proxy_protocol=["127.0.0.1"])
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(ValueError, match="must be None for a connected socket"):
        engine.adopt(ours, proxy_protocol=["unix:"])


@pytest.mark.parametrize("seconds", [0, -1, 1e9, float("nan")])
def test_bad_times(seconds: float) -> None:
    with pytest.raises(ValueError, match="proxy_header_time must be"):
        Limits(proxy_header_time=seconds)
