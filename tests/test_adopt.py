"""What `Engine.adopt` takes: plain sockets, which say of themselves what they are."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import trio
import trustme
from helpers import conn_and_peer, echo, plain_pair, read_all

from trio_wknet import Conn, ConnOptions, Engine, Listener, _options
from trio_wknet._sockets.facade import SocketFacade

MPTCP = 262
TLS_CONTEXT = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
trustme.CA().issue_cert("localhost").configure_cert(TLS_CONTEXT)


class Subclass(socket.socket):
    """As of a library that does something else with the bytes."""


def wrapped(sock: socket.socket) -> socket.socket:
    return TLS_CONTEXT.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)


def subclassed(sock: socket.socket) -> socket.socket:
    return Subclass(fileno=sock.detach())


@contextmanager
def connected_or_listening(state: str) -> Iterator[socket.socket]:
    if state == "listening":
        with socket.create_server(("127.0.0.1", 0)) as sock:
            yield sock
    else:
        ours, theirs = plain_pair()
        with ours, theirs:
            yield ours


@pytest.mark.parametrize("state", ["connected", "listening"])
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (wrapped, r"SSLSocket.*; for TLS, adopt the plain socket, and call start_tls"),
        (subclassed, r"Subclass"),
        (trio.socket.from_stdlib_socket, r"trio\.socket.*; trio_wknet\.install\(\)"),
        (lambda sock: sock.fileno(), r"\d+$"),
    ],
)
async def test_what_is_not_a_plain_socket(
    engine: Engine, state: str, make: Callable[[socket.socket], Any], says: str
) -> None:
    """It stays its owner's, as it was."""
    with connected_or_listening(state) as plain:
        sock = make(plain)
        with pytest.raises(TypeError, match=f"^sock must be exactly a socket.socket, not .*{says}"):
            engine.adopt(sock)
        if not isinstance(sock, int):
            assert sock.fileno() >= 0
            sock.close()


async def test_a_facade_and_a_handle_are_nobodys_to_adopt(engine: Engine) -> None:
    async with conn_and_peer(engine) as (conn, _):
        with pytest.raises(TypeError, match=r"sock must be exactly a socket\.socket"):
            engine.adopt(conn.socket)  # type: ignore[arg-type]


# -- what is said of a socket ------------------------------------------------------


@pytest.mark.parametrize("default", [None, 5.0])
async def test_a_detached_socket_says_that_it_does_not_block(
    engine: Engine, kind: str, default: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with conn_and_peer(engine, kind) as (conn, _):
        proto = conn.socket.proto
        assert proto == (socket.IPPROTO_TCP if kind == "tcp" else 0)
        socket.setdefaulttimeout(default)
        try:
            sock, _ = await conn.detach()
        finally:
            socket.setdefaulttimeout(None)
        with sock:
            assert sock.gettimeout() == 0.0
            assert not sock.getblocking()
            assert (sock.family, sock.type) == (conn.socket.family, socket.SOCK_STREAM)
            assert sock.proto == proto
            with pytest.raises(BlockingIOError):
                sock.recv(1)
        assert conn.socket.proto == proto


# -- families and protocols --------------------------------------------------------


def mptcp_server() -> socket.socket:
    try:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, MPTCP)
    except OSError as exc:
        pytest.skip(f"no MPTCP here: {exc}")
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    return sock


async def test_tcp_over_several_paths(engine: Engine) -> None:
    sock = mptcp_server()
    name = sock.getsockname()
    listener = engine.adopt(sock)
    assert isinstance(listener, Listener)
    async with trio.open_nursery() as nursery:
        client = socket.socket(socket.AF_INET, socket.SOCK_STREAM, MPTCP)
        await trio.to_thread.run_sync(client.connect, name)
        conn = engine.adopt(client)
        assert isinstance(conn, Conn)
        assert conn.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert conn.socket.proto == MPTCP
        nursery.start_soon(listener.serve, echo)
        await conn.send_all(b"hello")
        await conn.send_eof()
        assert await read_all(conn) == b"hello"
        await conn.aclose()
        nursery.cancel_scope.cancel()


class NotTcp:
    """A socket of a family that this machine need not have."""

    def __init__(self, family: int, proto: int) -> None:
        self.family, self.proto = family, proto
        self.options: list[tuple[int, int, int]] = []

    def getsockopt(self, level: int, option: int) -> int:
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_PROTOCOL)
        return self.proto

    def setsockopt(self, level: int, option: int, value: int) -> None:
        self.options.append((level, option, value))


@pytest.mark.parametrize(
    ("family", "proto", "tcp"),
    [
        (socket.AF_INET, socket.IPPROTO_TCP, True),
        (socket.AF_INET6, socket.IPPROTO_TCP, True),
        (socket.AF_INET, MPTCP, True),
        (socket.AF_INET, socket.IPPROTO_SCTP, False),
        (socket.AF_UNIX, 0, False),
        (socket.AF_VSOCK, 0, False),
        (socket.AF_TIPC, 0, False),
        (43, socket.IPPROTO_TCP, False),  # AF_SMC
    ],
)
def test_options_of_tcp_are_for_tcp(family: int, proto: int, tcp: bool) -> None:
    sock: Any = NotTcp(family, proto)
    assert _options.is_tcp(sock) == tcp
    ConnOptions(keepalive=True).apply(sock)
    assert ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1) in sock.options) == tcp
    assert (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1) in sock.options


def test_a_family_that_python_does_not_know() -> None:
    facade = SocketFacade(43, lambda: -1, lambda: False, lambda: None, lambda: None)
    assert facade.family == 43
    assert repr(facade) == "<trio_wknet socket fd=-1 family=43>"
    assert facade.proto == 0


async def test_a_vsock_listener(engine: Engine) -> None:
    """Over the loopback of vsock, where the kernel has it."""
    with suppress(OSError), socket.socket(socket.AF_VSOCK) as sock:
        sock.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
        _, port = sock.getsockname()
        sock.listen()
        listener = engine.adopt(sock)
        assert isinstance(listener, Listener)
        async with listener:
            assert listener.address[1] == port
            assert listener.socket.family == socket.AF_VSOCK
            assert listener.socket.proto == 0
        return
    pytest.skip("no vsock here")
