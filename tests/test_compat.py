"""Trio's seven functions, on the run's default engine."""

from __future__ import annotations

import errno
import inspect
import os
import socket
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio
from helpers import PATIENCE, descriptors, dialled, few_descriptors, read, read_all, until
from trio.testing import (
    MockClock,
    assert_checkpoints,
    open_stream_to_socket_listener,
    wait_all_tasks_blocked,
)

import trio_wknet
from trio_wknet import Conn, Listener
from trio_wknet._engine import default_engine, default_reactors

pytestmark = pytest.mark.usefixtures("nothing_left")

SEVEN = [
    "open_ssl_over_tcp_listeners",
    "open_ssl_over_tcp_stream",
    "open_tcp_listeners",
    "open_tcp_stream",
    "open_unix_socket",
    "serve_ssl_over_tcp",
    "serve_tcp",
]
HOST = "127.0.0.1"


@pytest.mark.parametrize("name", SEVEN)
def test_signatures_are_those_of_the_installed_trio(name: str) -> None:
    ours, trios = getattr(trio_wknet, name), getattr(trio, name)
    assert inspect.iscoroutinefunction(ours)

    def parameters(function: Any) -> list[Any]:
        found = inspect.signature(function).parameters.values()
        return [(found.name, found.kind, found.default) for found in found]

    assert parameters(ours) == parameters(trios)


# -- fixtures --------------------------------------------------------------------


@pytest.fixture
async def default(reactors: int) -> AsyncIterator[int]:
    """So many reactors has the default engine of the test's run."""
    default_reactors.set(reactors)
    with trio.fail_after(30):
        yield reactors


async def echo(stream: Any) -> None:
    with suppress(trio.BrokenResourceError):
        async for data in stream:
            await stream.send_all(data)


@asynccontextmanager
async def served(serve: Callable[..., Any], *args: Any, **options: Any) -> AsyncIterator[list[Any]]:
    """The listeners of a server that runs meanwhile."""
    async with trio.open_nursery() as nursery:
        yield await nursery.start(partial(serve, *args, **options))
        nursery.cancel_scope.cancel()


def port_of(listener: Any) -> int:
    return int(listener.socket.getsockname()[1])


# -- against real clients --------------------------------------------------------


async def test_serve_tcp(default: int) -> None:
    seen: list[Any] = []

    async def handler(stream: trio.SocketStream) -> None:
        seen.append(stream)
        await echo(stream)

    async with served(trio_wknet.serve_tcp, handler, 0, host=HOST) as (listener,):
        assert type(listener) is Listener
        async with await trio.open_tcp_stream(HOST, port_of(listener)) as client:
            await client.send_all(b"hello")
            assert await read(client, 5) == b"hello"
            await client.send_eof()
            assert await read_all(client) == b""
    assert type(seen[0]) is Conn
    assert isinstance(seen[0], trio.SocketStream)
    assert default_engine(None).reactors == default


async def test_serve_tcp_closes_what_its_handler_left_open(default: int) -> None:
    """At once, and what was sent arrives: as trio.serve_listeners does it."""

    async def handler(stream: trio.SocketStream) -> None:
        await stream.send_all(b"bye")

    async with served(trio_wknet.serve_tcp, handler, 0, host=HOST) as (listener,):
        for _ in range(20):
            async with await trio.open_tcp_stream(HOST, port_of(listener)) as client:
                assert await read_all(client) == b"bye"


async def test_serve_tcp_ends_by_its_handlers_exception(default: int) -> None:
    async def handler(stream: trio.SocketStream) -> None:
        raise KeyError("boom")

    with pytest.raises(BaseException) as raised:  # noqa: PT011
        async with served(trio_wknet.serve_tcp, handler, 0, host=HOST) as (listener,):
            client = await trio.open_tcp_stream(HOST, port_of(listener))
            async with client:
                await trio.sleep_forever()
    assert raised.group_contains(KeyError)


async def test_serve_tcp_uses_the_given_nursery(default: int) -> None:
    started = []

    class Nursery:
        def start_soon(self, async_fn: Any, *args: Any) -> None:
            started.append(args[0])
            args[0].abort()

    options = {"host": HOST, "handler_nursery": Nursery(), "backlog": 5}
    async with served(trio_wknet.serve_tcp, echo, 0, **options) as (listener,):
        with dialled(listener, 1):
            await until(lambda: started, "a handler")
    assert type(started[0]) is Conn


async def test_open_tcp_listeners(default: int) -> None:
    """On all interfaces by default, and each on a port of its own where it is 0."""
    with assert_checkpoints():
        listeners: list[Any] = await trio_wknet.open_tcp_listeners(0)
    families = {listener.socket.family for listener in listeners}
    assert all(isinstance(listener, Listener) for listener in listeners)
    assert all(isinstance(listener, trio.SocketListener) for listener in listeners)
    assert families in ({socket.AF_INET}, {socket.AF_INET, socket.AF_INET6})
    for listener in listeners:
        async with await open_stream_to_socket_listener(listener) as client:
            async with await listener.accept() as stream:
                await client.send_all(b"x")
                assert await stream.receive_some() == b"x"
        await listener.aclose()


async def test_accepted_sockets_have_the_options_that_a_socket_stream_sets(default: int) -> None:
    (listener,) = await trio_wknet.open_tcp_listeners(0, host=HOST)
    (trios,) = await trio.open_tcp_listeners(0, host=HOST)
    async with listener, trios:
        for option in (socket.TCP_NODELAY, socket.TCP_NOTSENT_LOWAT):
            values = []
            for one in (listener, trios):
                async with await open_stream_to_socket_listener(one):
                    async with await one.accept() as stream:
                        values.append(stream.getsockopt(socket.IPPROTO_TCP, option))
            assert values[0] == values[1] != 0


async def test_open_tcp_stream(default: int) -> None:
    async with served(trio.serve_tcp, echo, 0, host=HOST) as (listener,):
        stream: Any
        with assert_checkpoints():
            stream = await trio_wknet.open_tcp_stream(HOST, port_of(listener))
        assert type(stream) is Conn
        assert isinstance(stream, trio.SocketStream)
        async with stream:
            for option in (socket.TCP_NODELAY, socket.TCP_NOTSENT_LOWAT):
                assert stream.getsockopt(socket.IPPROTO_TCP, option) != 0
            await stream.send_all(b"there and back")
            assert await read(stream, 14) == b"there and back"
            await stream.send_eof()
            assert await read_all(stream) == b""


async def test_open_tcp_stream_from_a_local_address(default: int) -> None:
    async with served(trio.serve_tcp, echo, 0, host="127.0.0.1") as (listener,):
        stream = await trio_wknet.open_tcp_stream(
            "127.0.0.1", port_of(listener), local_address="127.0.0.2"
        )
        async with stream:
            assert stream.socket.getsockname()[0] == "127.0.0.2"


class Resolver(trio.abc.HostnameResolver):
    """Everything is at these addresses."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses

    async def getaddrinfo(
        self, host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> list[Any]:
        kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [(*kind, (address, port)) for address in self.addresses]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        raise NotImplementedError


async def test_open_tcp_stream_keeps_happy_eyeballs(default: int) -> None:
    """The first address of a name refuses; the second is tried without delay."""
    trio.socket.set_custom_hostname_resolver(Resolver("127.0.0.2", "127.0.0.1"))
    async with served(trio.serve_tcp, echo, 0, host="127.0.0.1") as listeners:
        port = port_of(listeners[0])
        stream = await trio_wknet.open_tcp_stream(
            "somewhere.example", port, happy_eyeballs_delay=1e6
        )
        async with stream:
            assert stream.socket.getpeername() == ("127.0.0.1", port)


async def test_open_unix_socket(default: int, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as plain:
        plain.bind(str(path))
        plain.listen()
        stream: Any
        for name in (path, str(path), os.fsencode(path)):
            with assert_checkpoints():
                stream = await trio_wknet.open_unix_socket(name)
            peer, _ = plain.accept()
            assert type(stream) is Conn
            async with stream:
                await stream.send_all(b"x")
                assert peer.recv(1) == b"x"
                peer.close()
                assert await stream.receive_some() == b""


# -- errors ----------------------------------------------------------------------


@pytest.fixture
def busy() -> Iterator[socket.socket]:
    """A port in use."""
    with socket.create_server((HOST, 0)) as sock:
        yield sock


@pytest.fixture
def refusing() -> Iterator[socket.socket]:
    """A port on which nobody listens, and which nobody else gets."""
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        yield sock


def failures(busy: int, refusing: int, nowhere: str) -> list[Callable[[ModuleType], Any]]:
    """Calls that fail, each to be made of either module."""
    return [
        lambda module: module.serve_tcp(echo, busy, host=HOST),
        lambda module: module.serve_tcp(echo, "80"),
        lambda module: module.serve_tcp(echo, 0, backlog="5"),
        lambda module: module.open_tcp_listeners(busy, host=HOST),
        lambda module: module.open_tcp_listeners("80"),
        lambda module: module.open_tcp_listeners(None),
        lambda module: module.open_tcp_listeners(0, host="192.0.2.1"),
        lambda module: module.open_tcp_stream(HOST, refusing),
        lambda module: module.open_tcp_stream(HOST, refusing, happy_eyeballs_delay=None),
        lambda module: module.open_tcp_stream(None, 80),
        lambda module: module.open_tcp_stream(HOST, None),
        lambda module: module.open_tcp_stream(HOST, "80"),
        lambda module: module.open_tcp_stream(HOST, refusing, local_address="192.0.2.1"),
        lambda module: module.open_unix_socket(nowhere),
        lambda module: module.open_unix_socket(5),
        lambda module: module.open_ssl_over_tcp_stream(HOST, refusing),
        lambda module: module.open_ssl_over_tcp_stream(HOST, "80"),
        lambda module: module.open_ssl_over_tcp_listeners(busy, None, host=HOST),
        lambda module: module.open_ssl_over_tcp_listeners("80", None),
        lambda module: module.serve_ssl_over_tcp(echo, busy, None, host=HOST),
        lambda module: module.serve_ssl_over_tcp(echo, 0, None, host=HOST, backlog=1.5),
    ]


def told(exc: BaseException | None) -> Any:
    """What an exception says, and the ones behind it."""
    if exc is None:
        return None
    inside = [told(one) for one in getattr(exc, "exceptions", ())]
    return type(exc), str(exc), getattr(exc, "errno", None), inside, told(exc.__cause__)


@pytest.mark.parametrize("which", range(21))
async def test_errors_are_trios(
    which: int, busy: socket.socket, refusing: socket.socket, tmp_path: Path
) -> None:
    calls = failures(busy.getsockname()[1], refusing.getsockname()[1], str(tmp_path / "none"))
    assert len(calls) == 21
    found = []
    for module in (trio, trio_wknet):
        with pytest.raises(Exception) as raised:  # noqa: PT011
            await calls[which](module)
        found.append(told(raised.value))
    assert found[0] == found[1]


async def test_a_refused_connection_opens_no_engine(refusing: socket.socket) -> None:
    before = set(threading.enumerate())
    with pytest.raises(OSError, match="all attempts to connect"):
        await trio_wknet.open_tcp_stream(*refusing.getsockname())
    assert [t for t in threading.enumerate() if t not in before and "Trio" not in t.name] == []


async def test_no_descriptors_for_an_engine() -> None:
    """The connection that was made for nothing is closed."""
    async with served(trio.serve_tcp, echo, 0, host=HOST) as (listener,):
        before = descriptors()
        with few_descriptors(2), pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
            await trio_wknet.open_tcp_stream(HOST, port_of(listener))
        await until(lambda: descriptors() == before, "closing")


# -- the default engine ----------------------------------------------------------


async def use_default_engine(module: ModuleType = trio_wknet) -> Any:
    """Serve, connect, echo; the engine is left to the end of the run."""
    async with served(module.serve_tcp, echo, 0, host=HOST) as (listener,):
        async with await module.open_tcp_stream(HOST, port_of(listener)) as stream:
            await stream.send_all(b"used")
            assert await read(stream, 4) == b"used"
            assert type(stream) is Conn
    return default_engine(None)


async def test_one_engine_for_each_run(default: int) -> None:
    assert await use_default_engine() is await use_default_engine()
    assert default_engine(None).reactors == default


def test_two_runs_one_after_the_other() -> None:
    first, second = trio.run(use_default_engine), trio.run(use_default_engine)
    assert first is not second
    assert "closed" in repr(first)
    assert "closed" in repr(second)


def test_a_mock_clock_makes_it_in_loop() -> None:
    engine = trio.run(use_default_engine, clock=MockClock())
    assert "in-loop" not in repr(engine)  # it is closed
    assert engine.reactors == 0


async def test_it_is_separate_from_engines_that_are_opened(default: int) -> None:
    """Engine.connect uses Trio's functions, too."""
    async with served(trio_wknet.serve_tcp, echo, 0, host=HOST) as (listener,):
        async with trio_wknet.open_engine(0) as engine:
            conn = await engine.connect(f"tcp://{HOST}:{port_of(listener)}")
            assert engine.statistics().connections == 1
        assert conn.close_reason == "engine closed"
        async with await trio_wknet.open_tcp_stream(HOST, port_of(listener)) as stream:
            await stream.send_all(b"still there")
            assert await read(stream, 11) == b"still there"


def test_a_run_that_ends_by_an_exception(reactors: int) -> None:
    async def main() -> None:
        default_reactors.set(reactors)
        async with served(trio_wknet.serve_tcp, echo, 0, host=HOST) as (listener,):
            stream = await trio_wknet.open_tcp_stream(HOST, port_of(listener))
            await stream.send_all(b"x")
            raise KeyError("boom")

    with pytest.raises(BaseException) as raised:  # noqa: PT011
        trio.run(main)
    assert raised.group_contains(KeyError) or raised.type is KeyError


# Trio closes it after the last task is gone, system tasks included.
async def generator(make: Callable[[], Any], then: Callable[[Any], Any]) -> AsyncGenerator[Any]:
    stream = await make()
    try:
        yield stream
    finally:
        await then(stream)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_generator_that_uses_its_stream_after_the_last_task(reactors: int, kind: str) -> None:
    """As a shielded goodbye does, which waits for the peer's answer."""
    family = socket.AF_INET if kind == "tcp" else socket.AF_UNIX
    answered = []
    kept: list[Any] = []

    def answer(sock: socket.socket) -> None:
        with sock:
            sock.settimeout(PATIENCE)
            while (data := sock.recv(65536)) and not data.endswith(b"!"):
                pass
            if data:
                sock.sendall(b"bye")

    async def goodbye(stream: Any) -> None:
        with trio.move_on_after(PATIENCE, shield=True):
            await stream.send_all(bytes(10_000_000) + b"!")
            answered.append(await read_all(stream))
        await stream.aclose()

    async def main(address: Any) -> None:
        default_reactors.set(reactors)

        async def make() -> Any:
            if kind == "tcp":
                return await trio_wknet.open_tcp_stream(*address)
            return await trio_wknet.open_unix_socket(address)

        kept.append(generator(make, goodbye))
        stream = await kept[0].__anext__()
        kept.append(stream)
        peer, _ = listener.accept()
        thread = threading.Thread(target=answer, args=(peer,))
        kept.append(thread)
        thread.start()

    with socket.socket(family) as listener:
        listener.bind((HOST, 0) if kind == "tcp" else "")
        listener.listen()
        trio.run(main, listener.getsockname())
        kept[2].join()
    assert answered == [b"bye"]
    assert kept[1].close_reason in ("eof", "closed")


def test_a_generator_that_connects_after_the_last_task(reactors: int) -> None:
    """Which opens the default engine there."""
    answered: list[bytes] = []

    def answer(sock: socket.socket) -> None:
        with sock:
            sock.settimeout(PATIENCE)
            sock.sendall(sock.recv(5))

    async def connects(address: Any) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            with trio.move_on_after(PATIENCE, shield=True):
                async with await trio_wknet.open_tcp_stream(*address) as stream:
                    peer, _ = listener.accept()
                    thread = threading.Thread(target=answer, args=(peer,))
                    thread.start()
                    await stream.send_all(b"hello")
                    answered.append(await read_all(stream))
                    thread.join()

    async def main(address: Any) -> Any:
        default_reactors.set(reactors)
        kept = connects(address)
        await kept.__anext__()
        return kept

    with socket.create_server((HOST, 0)) as listener:
        trio.run(main, listener.getsockname())
    assert answered == [b"hello"]


def test_a_listener_that_is_closed_after_the_last_task(reactors: int) -> None:
    kept: list[Any] = []

    async def main() -> None:
        default_reactors.set(reactors)

        async def make() -> Any:
            return (await trio_wknet.open_tcp_listeners(0, host=HOST))[0]

        kept.append(generator(make, lambda listener: listener.aclose()))
        kept.append((await kept[0].__anext__()).socket.getsockname())

    trio.run(main)
    with socket.socket() as sock:
        sock.bind(kept[1])


def test_an_engine_that_is_closed_after_the_last_task(reactors: int) -> None:
    kept: list[Any] = []

    async def engines() -> AsyncGenerator[Any]:
        async with trio_wknet.open_engine(reactors) as engine:
            yield engine

    async def main() -> None:
        kept.append(engines())
        kept.append(await kept[0].__anext__())

    trio.run(main)
    assert "closed" in repr(kept[1])


# -- as tests and applications use it --------------------------------------------


@pytest.fixture
async def server_port() -> AsyncIterator[int]:
    async with served(trio_wknet.serve_tcp, echo, 0, host=HOST) as (listener,):
        yield port_of(listener)


@pytest.fixture
async def client(server_port: int) -> AsyncIterator[trio.SocketStream]:
    async with await trio_wknet.open_tcp_stream(HOST, server_port) as stream:
        yield stream


async def test_fixtures_of_pytest_trio(client: trio.SocketStream) -> None:
    await client.send_all(b"fixture")
    assert await read(client, 7) == b"fixture"


async def test_nested_cancel_scopes(default: int, client: trio.SocketStream) -> None:
    """Each ends what it surrounds, and no byte is lost."""
    with trio.CancelScope() as outer:
        with trio.CancelScope() as inner:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.receive_some)
                await wait_all_tasks_blocked()
                inner.cancel()
        assert inner.cancelled_caught
        await client.send_all(b"between")
        assert await read(client, 7) == b"between"
        with trio.CancelScope(shield=True):
            outer.cancel()
            await client.send_all(b"shielded")
            assert await read(client, 8) == b"shielded"
        await client.receive_some()
    assert outer.cancelled_caught
    await client.send_all(b"after")
    assert await read(client, 5) == b"after"


async def test_a_cancelled_connect_leaves_nothing(default: int) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await trio_wknet.open_tcp_stream(HOST, 1)
    assert scope.cancelled_caught
    with trio.CancelScope() as scope:
        scope.cancel()
        await trio_wknet.serve_tcp(echo, 0)
    assert scope.cancelled_caught
