"""What the behavioural tests share: connected pairs, checked streams of bytes, waiting."""

from __future__ import annotations

import http.client
import os
import random
import resource
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import trio

import trio_wknet
from trio_wknet import Conn, ConnOptions, Engine, Limits, Listener
from trio_wknet._native.testing import MEMORY_SITES, refuse_memory

# Small kernel buffers: what a test wants to fill is full soon.
SMALL = ConnOptions(send_buffer=4096, receive_buffer=4096)
DEFAULT = Limits()
PLAIN = ConnOptions()
PATIENCE = 20.0  # seconds; only a broken library reaches it


async def until(condition: Callable[[], object], what: str = "the condition") -> None:
    """Wait for what another thread, or the kernel, brings about."""
    with trio.move_on_after(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.001)
        return
    raise AssertionError(f"{what} did not come about")


@contextmanager
def refusing(
    *sites: str, first: int = 1, count: int = 0xFFFFFFFF, one_in: int = 1
) -> Iterator[None]:
    """Refuse native memory for these sites (memory.pxd; none given: for any): from the `first`
    request on so many, or one in so many of them."""
    refuse_memory(sites or MEMORY_SITES, first, count, one_in)
    try:
        yield
    finally:
        refuse_memory(())


def content(seed: object, size: int) -> bytes:
    """Bytes that tell when one is lost, doubled or misplaced."""
    return random.Random(repr(seed)).randbytes(size)


def plain_pair(kind: str = "tcp", options: ConnOptions | None = None) -> tuple[Any, Any]:
    """Two connected sockets of the standard library, blocking."""
    if kind == "unix":
        ours, theirs = socket.socketpair(socket.AF_UNIX)
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            if options is not None:
                options.apply(listener)
            theirs = socket.socket()
            if options is not None:
                options.apply(theirs)
            theirs.connect(listener.getsockname())
            ours, _ = listener.accept()
    for sock in (ours, theirs):
        (options or PLAIN).apply(sock)
    return ours, theirs


def fill(sock: socket.socket) -> int:
    """Send until the kernel takes no more; how many bytes it took."""
    size = 0
    with suppress(BlockingIOError):
        while True:
            size += sock.send(bytes(65536))
    return size


@asynccontextmanager
async def conn_and_peer(
    engine: Engine,
    kind: str = "tcp",
    *,
    limits: Limits = DEFAULT,
    options: ConnOptions | None = None,
) -> AsyncIterator[tuple[Conn, Any]]:
    """A connection, and a socket of Trio's as its peer."""
    ours, theirs = plain_pair(kind, options)
    conn = engine.adopt(ours, limits=limits, options=options or PLAIN)
    assert isinstance(conn, Conn)
    theirs.setblocking(False)
    peer = trio.socket.from_stdlib_socket(theirs)
    try:
        yield conn, peer
    finally:
        peer.close()
        conn.abort()


@asynccontextmanager
async def two_conns(
    engine: Engine,
    kind: str = "tcp",
    *,
    limits: Limits = DEFAULT,
    options: ConnOptions = PLAIN,
) -> AsyncIterator[tuple[Conn, Conn]]:
    """Two connections of the engine, connected with each other."""
    with tempfile.TemporaryDirectory() as folder:
        address = "tcp://127.0.0.1:0" if kind == "tcp" else f"unix://{folder}/socket"
        listener = await engine.listen(address, limits=limits, options=options)
        client = await engine.connect(url(listener), limits=limits, options=options)
        server = await listener.accept()
        await listener.aclose()
    try:
        yield client, server
    finally:
        client.abort()
        server.abort()


@contextmanager
def installed(
    reactors: int | None = None, admission: trio_wknet.Admission | None = None
) -> Iterator[None]:
    trio_wknet.install(reactors=reactors, admission=admission)
    try:
        yield
    finally:
        trio_wknet.uninstall()


def url(listener: Any) -> str:
    """What connects to a listener."""
    address = listener.address
    if isinstance(address, str):
        return f"unix://{address}"
    if isinstance(address, bytes):
        return f"unix://@{os.fsdecode(address[1:])}"
    host, port, *_ = address
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def tcp_address(listener: Listener) -> tuple[str, int]:
    """Host and port of a listener's first address."""
    address = listener.address
    assert isinstance(address, tuple)
    return address[:2]


def unix_path(listener: Listener) -> str:
    address = listener.address
    assert isinstance(address, str)
    return address


def dial(listener: Any) -> socket.socket:
    """A plain blocking socket connected to a listener."""
    address = listener.address
    if isinstance(address, str):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(address)
        return sock
    return socket.create_connection(address[:2])


def http_connection(address: Any) -> http.client.HTTPConnection:
    """Python's own client of HTTP/1.1."""
    host, port = address
    return http.client.HTTPConnection(host, port, timeout=PATIENCE)


async def send(peer: Any, data: bytes) -> None:
    """All of it, through a Trio socket."""
    view = memoryview(data)
    while view:
        view = view[await peer.send(view) :]


async def read(source: Any, size: int) -> bytes:
    """Exactly `size` bytes from a stream or a Trio socket."""
    receive = source.receive_some if hasattr(source, "receive_some") else source.recv
    data = bytearray()
    while len(data) < size:
        more = await receive(min(size - len(data), 65536))
        if not more:
            raise EOFError(f"ended after {len(data)} of {size} bytes")
        data += more
    return bytes(data)


async def read_all(source: Any) -> bytes:
    """Up to the end."""
    receive = source.receive_some if hasattr(source, "receive_some") else source.recv
    data = bytearray()
    while more := await receive(65536):
        data += more
    return bytes(data)


async def clog(stream: Any, stopped: Callable[[], bool] = lambda: True) -> None:
    """Fill a stream until sending blocks, and goes on to block. `stopped` tells
    whether the other end has stopped reading: when a reactor gets to that is its
    affair. And TCP tries a closed window again after 200 ms."""
    size, quiet = 65536, 0.005 if stream.socket.family == socket.AF_UNIX else 0.3
    while True:
        final = stopped()
        with trio.move_on_after(quiet) as scope:
            await stream.send_all(bytes(size))
        if scope.cancelled_caught and final:
            if size == 1:
                return
            size = 1


def descriptors() -> dict[int, str]:
    """This process's open descriptors and what they are."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one that listed them
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


@contextmanager
def few_descriptors(free: int) -> Iterator[None]:
    """Let this process open so many more."""
    probe = os.open("/dev/null", os.O_RDONLY)
    os.close(probe)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fillers = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe + 64, hard))
    try:
        with suppress(OSError):
            while True:
                fillers.append(os.open("/dev/null", os.O_RDONLY))
        for _ in range(free):
            os.close(fillers.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for filler in fillers:
            os.close(filler)


@contextmanager
def dialled(listener: Any, count: int) -> Iterator[list[Any]]:
    socks: list[Any] = []
    try:
        for _ in range(count):
            socks.append(dial(listener))
        yield socks
    finally:
        for sock in socks:
            sock.close()


async def echo(conn: Conn) -> None:
    while data := await conn.receive_some():
        await conn.send_all(data)


async def is_served(engine: Engine, listener: Any, data: bytes = b"hello") -> None:
    conn = await engine.connect(url(listener))
    await conn.send_all(data)
    await conn.send_eof()
    assert await read_all(conn) == data
    await conn.aclose()


class Gate:
    """Garbage whose finalizer waits: whoever frees it is held there, in another thread,
    while this one goes on."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.go = threading.Event()

    def __del__(self) -> None:
        self.reached.set()
        assert self.go.wait(30)


class ManualClock:
    """A clock that is moved by hand, and what was called when."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self.calls: list[tuple[object, float]] = []

    def __call__(self) -> float:
        return self.now

    def note(self, what: object = None) -> None:
        self.calls.append((what, self.now))
