"""The addresses of both ends are known as long as the `Conn` is, whatever ended it."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from helpers import until

from trio_wknet import Conn, Engine, Limits, Listener, open_engine
from trio_wknet._sockets.address import socket_address

IN_TIME = Limits(linger_time=0.0)


@pytest.fixture(params=["ipv4", "ipv6", "unix"])
async def listener(
    request: pytest.FixtureRequest, engine: Engine, tmp_path: Path
) -> AsyncIterator[Listener]:
    addresses = {
        "ipv4": "tcp://127.0.0.1:0",
        "ipv6": "tcp://[::1]:0",
        "unix": f"unix://{tmp_path}/socket",
    }
    async with await engine.listen(addresses[request.param], limits=IN_TIME) as opened:
        yield opened


def dialled_with_a_name(listener: Listener, folder: Path) -> socket.socket:
    address: Any = listener.address
    client = socket.socket(listener.socket.family)
    if isinstance(address, str):
        client.bind(f"{folder}/client")
    client.connect(address)
    return client


@asynccontextmanager
async def accepted(listener: Listener, folder: Path) -> AsyncIterator[tuple[Conn, socket.socket]]:
    with dialled_with_a_name(listener, folder) as client:
        yield await listener.accept(), client


async def abort(conn: Conn, client: socket.socket) -> None:
    conn.abort()


async def aclose(conn: Conn, client: socket.socket) -> None:
    await conn.aclose()


async def close_forcefully(conn: Conn, client: socket.socket) -> None:
    await trio.aclose_forcefully(conn)


async def close_its_socket(conn: Conn, client: socket.socket) -> None:
    conn.socket.close()


async def detach(conn: Conn, client: socket.socket) -> None:
    sock, _ = await conn.detach()
    sock.close()


async def be_idle(conn: Conn, client: socket.socket) -> None:
    conn.idle_timeout = 0.01
    await until(lambda: conn.close_reason == "idle")


async def be_reset(conn: Conn, client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    await conn.wait_closed()
    conn.abort()


async def be_left(conn: Conn, client: socket.socket) -> None:
    client.close()
    await conn.wait_closed()
    await conn.aclose()


ENDINGS = [abort, aclose, close_forcefully, close_its_socket, detach, be_idle, be_reset, be_left]


@pytest.mark.parametrize("end", ENDINGS)
async def test_known_after_the_end_without_having_been_asked(
    listener: Listener, tmp_path: Path, end: Callable[[Conn, socket.socket], Awaitable[None]]
) -> None:
    async with accepted(listener, tmp_path) as (conn, client):
        local, remote = client.getpeername(), client.getsockname()
        await end(conn, client)
        assert conn.id is None
        assert (conn.local_address, conn.remote_address) == (local, remote)
        assert f"{conn.close_reason} laddr={local!r} raddr={remote!r}>" in repr(conn)


@pytest.mark.parametrize("which", ["local_address", "remote_address"])
async def test_known_where_one_of_them_was_asked_for(
    listener: Listener, tmp_path: Path, which: str
) -> None:
    async with accepted(listener, tmp_path) as (conn, client):
        local, remote = client.getpeername(), client.getsockname()
        getattr(conn, which)
        conn.abort()
        assert (conn.local_address, conn.remote_address) == (local, remote)


async def test_known_while_the_peers_reset_has_not_been_closed(
    listener: Listener, tmp_path: Path
) -> None:
    """There the kernel's getpeername fails."""
    async with accepted(listener, tmp_path) as (conn, client):
        local, remote = client.getpeername(), client.getsockname()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        await conn.wait_closed()
        assert (conn.local_address, conn.remote_address) == (local, remote)
        assert repr(conn).endswith(f" laddr={local!r} raddr={remote!r}>")
        conn.abort()


async def test_known_to_on_close(listener: Listener, tmp_path: Path) -> None:
    seen: list[Any] = []

    def on_close(conn: Conn, reason: str) -> None:
        seen.append((conn.local_address, conn.remote_address))

    def on_data(conn: Conn) -> None: ...

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: listener.serve_events(on_data, on_close=on_close))
        with dialled_with_a_name(listener, tmp_path) as client:
            expected = [(client.getpeername(), client.getsockname())]
        await until(lambda: seen)
        nursery.cancel_scope.cancel()
    assert seen == expected


async def test_known_once_the_engine_is_closed(
    nothing_left: None, reactors: int, tmp_path: Path
) -> None:
    async with open_engine(reactors) as engine:
        listener = await engine.listen("tcp://127.0.0.1:0")
        client = dialled_with_a_name(listener, tmp_path)
        local, remote = client.getpeername(), client.getsockname()
        conn = await listener.accept()
    client.close()
    assert (conn.local_address, conn.remote_address) == (local, remote)


async def test_of_connections_that_were_made_and_adopted(engine: Engine) -> None:
    async with await engine.listen("tcp://127.0.0.1:0") as listener:
        client = await engine.connect(f"tcp://127.0.0.1:{listener.socket.getsockname()[1]}")
        server = await listener.accept()
        client.abort()
        server.abort()
        assert client.local_address == server.remote_address
        assert client.remote_address == server.local_address == listener.address
    left, right = socket.socketpair()
    with right:
        conn = engine.adopt(left)
        assert isinstance(conn, Conn)
        conn.abort()
        assert conn.local_address == conn.remote_address == ""


@pytest.mark.parametrize(
    ("raw", "address"),
    [
        (struct.pack("=H", socket.AF_INET) + b"\x12\x34\x01\x02\x03\x04", ("1.2.3.4", 0x1234)),
        (
            struct.pack("=H", socket.AF_INET6)
            + struct.pack("!HI16s", 80, 5, socket.inet_pton(socket.AF_INET6, "fe80::1"))
            + struct.pack("=I", 7),
            ("fe80::1", 80, 5, 7),
        ),
        (struct.pack("=H", socket.AF_UNIX), ""),
        (struct.pack("=H", socket.AF_UNIX) + b"/run/x\0", "/run/x"),
        (struct.pack("=H", socket.AF_UNIX) + b"/run/\xff\0", "/run/\udcff"),
        (struct.pack("=H", socket.AF_UNIX) + b"\0name\0", b"\0name\0"),
        (struct.pack("=HHII", socket.AF_VSOCK, 0, 5000, 2), (2, 5000)),
        (struct.pack("=H", 99) + bytes(range(14)), (99, bytes(range(14)))),
    ],
)
def test_a_systems_address(raw: bytes, address: object) -> None:
    assert socket_address(raw) == address
