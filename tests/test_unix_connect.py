"""Connecting to unix sockets: a queue that is full, and names of every kind."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from helpers import echo, installed, is_served, read_all, until, url
from trio.testing import MockClock

import trio_wknet
from trio_wknet import Conn, ConnOptions, Engine, open_engine
from trio_wknet._engine import default_reactors

Connect = Callable[[str], Awaitable[trio.SocketStream]]


@pytest.fixture
def full(tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A server that accepts nobody yet, and whose queue is full."""
    path = f"{tmp_path}/socket"
    clients = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(1)
        server.setblocking(False)
        while True:
            client = socket.socket(socket.AF_UNIX)
            clients.append(client)
            client.setblocking(False)
            try:
                client.connect(path)
            except BlockingIOError:
                break
        yield server, path
        for client in clients:
            client.close()


@pytest.fixture(params=["Engine.connect", "open_unix_socket", "installed"])
def connect(request: pytest.FixtureRequest, engine: Engine, reactors: int) -> Iterator[Connect]:
    default_reactors.set(reactors)
    if request.param == "Engine.connect":
        yield lambda path: engine.connect(f"unix://{path}")
    elif request.param == "open_unix_socket":
        yield trio_wknet.open_unix_socket
    else:
        with installed(reactors):
            yield trio_wknet.open_unix_socket


async def test_it_waits_while_the_servers_queue_is_full(
    full: tuple[socket.socket, str], connect: Connect
) -> None:
    server, path = full
    streams: list[trio.SocketStream] = []

    async def client() -> None:
        streams.append(await connect(path))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(client)
        await trio.sleep(0.01)
        assert streams == []
        server.accept()[0].close()
    (stream,) = streams
    assert isinstance(stream, Conn)
    assert stream.remote_address == path
    await stream.send_all(b"hello")
    served = []
    with pytest.raises(BlockingIOError):
        while True:
            served.append(server.accept()[0])
    assert served[-1].recv(5) == b"hello"
    for sock in served:
        sock.close()
    assert await read_all(stream) == b""
    await stream.aclose()


async def test_trios_function_when_installed(
    nothing_left: None, full: tuple[socket.socket, str], reactors: int
) -> None:
    """It gave a stream that was not connected."""
    with installed(reactors):
        with pytest.raises(BlockingIOError, match="queue"):
            await trio.open_unix_socket(full[1])


async def test_its_wait_can_be_cancelled(full: tuple[socket.socket, str], connect: Connect) -> None:
    _, path = full
    with trio.move_on_after(0.01) as scope:
        await connect(path)
    assert scope.cancelled_caught


async def test_a_server_that_goes_meanwhile(
    full: tuple[socket.socket, str], connect: Connect
) -> None:
    server, path = full

    async def leave() -> None:
        await trio.sleep(0.005)
        server.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(leave)
        with pytest.raises(ConnectionRefusedError):
            await connect(path)


def test_its_pauses_grow(
    nothing_left: None, full: tuple[socket.socket, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that jumps: 1, 2, 4, ... and then 50 ms."""
    _, path = full
    times: list[float] = []
    trios = trio.open_unix_socket

    async def open_unix_socket(filename: Any) -> trio.SocketStream:
        times.append(trio.current_time())
        return await trios(filename)

    async def main() -> None:
        async with open_engine() as engine:
            with trio.move_on_after(1):
                await engine.connect(f"unix://{path}")

    monkeypatch.setattr(trio, "open_unix_socket", open_unix_socket)
    trio.run(main, clock=MockClock(autojump_threshold=0))
    pauses = [1000 * (b - a) for a, b in pairwise(times)]
    assert pauses[:8] == pytest.approx([1, 2, 4, 8, 16, 32, 50, 50])
    assert pauses[8:] == pytest.approx([50] * len(pauses[8:]))


# -- names -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a%41b", "100%", "a%2Fb", "%ff", "a b?c#d", "\u00e9", "\udcff"])
async def test_a_path_is_taken_as_it_stands(engine: Engine, tmp_path: Path, name: str) -> None:
    listener = await engine.listen(f"unix://{tmp_path}/{name}")
    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(listener.serve, echo)
        assert os.listdir(tmp_path) == [name]
        assert listener.address == f"{tmp_path}/{name}"
        await is_served(engine, listener)
        nursery.cancel_scope.cancel()
    assert os.listdir(tmp_path) == []


async def test_the_longest_path(engine: Engine, tmp_path: Path) -> None:
    path = f"{tmp_path}/".ljust(107, "x")
    async with await engine.listen(f"unix://{path}") as listener:
        async with await engine.connect(f"unix://{path}") as client:
            assert client.remote_address == path
            (await listener.accept()).abort()


@pytest.mark.parametrize("name", ["", "/with/slashes", "%41", "\u00e9"])
async def test_an_abstract_name(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"trio_wknet-{os.getpid()}{name}"
    listener = await engine.listen(f"unix://@{name}")
    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(listener.serve, echo)
        assert listener.address == b"\0" + os.fsencode(name)
        assert repr(listener.address) in repr(listener)
        assert url(listener) == f"unix://@{name}"
        await is_served(engine, listener)
        with pytest.raises(OSError, match="Address already in use"):
            await engine.listen(f"unix://@{name}")
        nursery.cancel_scope.cancel()
    with pytest.raises(ConnectionRefusedError):
        await engine.connect(f"unix://@{name}")
    assert os.listdir(tmp_path) == []


async def test_the_longest_abstract_name(engine: Engine) -> None:
    name = f"trio_wknet-{os.getpid()}-".ljust(106, "x")
    async with await engine.listen(f"unix://@{name}") as listener:
        assert listener.address == b"\0" + name.encode()


async def test_an_abstract_name_has_no_mode(engine: Engine) -> None:
    with pytest.raises(ValueError, match=r"unix_mode must be None for .*'unix://@name'"):
        await engine.listen("unix://@name", options=ConnOptions(unix_mode=0o600))


async def test_draining_a_listener_with_an_abstract_name(engine: Engine) -> None:
    name = f"trio_wknet-{os.getpid()}-drained"
    listener = await engine.listen(f"unix://@{name}")
    served: list[bool] = []

    async def serve() -> None:
        await listener.serve(echo)
        served.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await is_served(engine, listener)
        await listener.drain()
    await until(partial(bool, served))
