"""run, install, uninstall: what was written for Trio, on the reactors."""

from __future__ import annotations

import errno
import gc
import signal
import socket
import subprocess
import sys
import threading
from abc import ABCMeta
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from helpers import PATIENCE, descriptors, dial, installed, read, read_all, until
from trio import SocketListener, SocketStream  # imported before anything is replaced
from trio.testing import MockClock, open_stream_to_socket_listener, wait_all_tasks_blocked

import trio_wknet
from trio_wknet import Conn, Listener
from trio_wknet._engine import default_engine

pytestmark = pytest.mark.usefixtures("nothing_left", "_replaced_by_nobody")
HOST = "127.0.0.1"


def types(objects: list[Any]) -> list[type]:
    return [type(one) for one in objects]


@pytest.fixture
def _replaced_by_nobody() -> Iterator[None]:
    """Before and after a test Trio's classes are as they were."""
    assert types([trio.SocketStream, trio.SocketListener]) == [ABCMeta] * 2
    yield
    assert types([trio.SocketStream, trio.SocketListener]) == [ABCMeta] * 2
    with pytest.raises(RuntimeError, match="more often"):
        trio_wknet.uninstall()


async def echo(stream: Any) -> None:
    async for data in stream:
        await stream.send_all(data)


async def both_ends() -> list[Any]:
    """A listener, a client's and a server's stream, by Trio's functions, after an echo."""
    ends: list[Any] = []

    async def handler(stream: Any) -> None:
        ends.append(stream)
        await echo(stream)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio.serve_tcp, handler, 0, host=HOST))
            ends.append(listeners[0])
            stream = await trio.open_tcp_stream(*listeners[0].socket.getsockname())
            ends.append(stream)
            async with stream:
                await stream.send_all(b"echo")
                assert await read(stream, 4) == b"echo"
            nursery.cancel_scope.cancel()
    return ends


TRIOS = [SocketListener, SocketStream, SocketStream]
OURS = [Listener, Conn, Conn]


# -- what is replaced ------------------------------------------------------------


def test_run(reactors: int) -> None:
    async def main(one: int, *, two: int = 2) -> int:
        assert types(await both_ends()) == OURS
        assert default_engine(None).reactors == reactors
        return one + two

    assert trio_wknet.run(main, 40, reactors=reactors) == 42
    assert types(trio.run(both_ends)) == TRIOS


def test_run_passes_everything_else_to_trio() -> None:
    seen = []

    class Instrument(trio.abc.Instrument):
        def before_run(self) -> None:
            seen.append("run")

    async def main() -> float:
        await trio.sleep(1000)
        return trio.current_time()

    clock = MockClock(autojump_threshold=0)
    before = clock.current_time()
    assert trio_wknet.run(main, clock=clock, instruments=[Instrument()]) == before + 1000
    assert seen == ["run"]
    with pytest.raises(TypeError, match="nonsense"):
        trio_wknet.run(main, nonsense=1)
    with pytest.raises(TypeError, match=r"(?i)trio expected an async function"):
        trio_wknet.run(lambda: None)  # type: ignore[arg-type, return-value]


def test_install(reactors: int) -> None:
    with installed(reactors):
        assert types(trio.run(both_ends)) == OURS
        assert types(trio.run(both_ends)) == OURS
        assert trio.SocketStream is SocketStream
    assert types(trio.run(both_ends)) == TRIOS


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, SystemExit])
def test_a_run_that_ends_by_an_exception(reactors: int, error: type[BaseException]) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio.serve_tcp, echo, 0, host=HOST))
            async with await open_stream_to_socket_listener(listeners[0]):
                await wait_all_tasks_blocked()
                raise error

    with pytest.raises(BaseException) as raised:  # noqa: PT011
        trio_wknet.run(main, reactors=reactors)
    assert raised.group_contains(error) or raised.type is error


async def test_every_way_to_a_stream(install: int, tmp_path: Path) -> None:
    """Whether the class is looked up in `trio` or was imported before."""
    path = str(tmp_path / "socket")
    streams: list[Any] = []
    with trio.socket.socket(socket.AF_UNIX) as sock:
        await sock.bind(path)
        sock.listen()
        listener: Any = SocketListener(sock)
        streams.append(await trio.open_unix_socket(path))
        streams.append(await listener.accept())
        streams.append(await open_stream_to_socket_listener(listener))
        streams.append(await listener.accept())
    left, right = trio.socket.socketpair()
    streams.append(trio.SocketStream(left))
    streams.append(SocketStream(socket=right))
    assert types([listener, *streams]) == [Listener, *[Conn] * 6]
    for one, other in zip(streams[::2], streams[1::2], strict=True):
        await one.send_all(b"x")
        assert await other.receive_some() == b"x"
        await one.aclose()
        await other.aclose()
    await listener.aclose()


async def test_a_listener_from_before() -> None:
    """It stays what it is, and what it accepts does not."""
    (listener,) = await trio.open_tcp_listeners(0, host=HOST)
    with installed(0):
        async with await open_stream_to_socket_listener(listener) as client:
            async with await listener.accept() as stream:
                assert types([listener, client, stream]) == TRIOS[:1] + OURS[1:]
    await listener.aclose()


def test_isinstance_and_the_class_itself() -> None:
    """Unlike a replaced name, the class goes on to be one."""
    for cls in (SocketStream, SocketListener):
        before = repr(cls), cls.__mro__, cls.__doc__
        with installed():
            assert (repr(cls), cls.__mro__, cls.__doc__) == before
            assert issubclass(Conn if cls is SocketStream else Listener, cls)
            assert not isinstance(object(), cls)
    assert not issubclass(Conn, SocketListener)
    assert not issubclass(Listener, SocketStream)


async def test_errors_of_the_constructors(install: int) -> None:
    """As Trio's, and the socket stays its owner's."""
    with socket.socket() as plain, trio.socket.socket() as fresh:
        for call in (SocketStream, SocketListener):
            with pytest.raises(TypeError, match=f"{call.__name__} requires a Trio socket"):
                call(plain)  # type: ignore[arg-type]
        with trio.socket.socket(type=socket.SOCK_DGRAM) as datagrams:
            for call in (SocketStream, SocketListener):
                with pytest.raises(ValueError, match="requires a SOCK_STREAM socket"):
                    call(datagrams)
        with pytest.raises(ValueError, match="requires a listening socket"):
            SocketListener(fresh)
        assert fresh.fileno() >= 0


# -- what is not -----------------------------------------------------------------


class StandIn(trio.socket.SocketType):
    """A custom factory's socket."""

    type = socket.SOCK_STREAM
    family = socket.AF_INET
    proto = 0

    def setsockopt(self, *args: Any) -> None:
        pass

    def getsockopt(self, *args: Any) -> Any:
        return 1

    async def connect(self, address: Any) -> None:
        await trio.lowlevel.checkpoint()

    async def bind(self, address: Any) -> None:
        await trio.lowlevel.checkpoint()

    def listen(self, backlog: int = 0) -> None:
        pass

    def close(self) -> None:
        pass


class Factory(trio.abc.SocketFactory):
    def __init__(self, make: Any) -> None:
        self.make = make

    def socket(self, family: Any = None, type: Any = None, proto: Any = None) -> Any:
        return self.make(family, type, proto)


def real(family: int, kind: int, proto: int) -> Any:
    return trio.socket.from_stdlib_socket(socket.socket(family, kind, proto))


@pytest.mark.parametrize("make", [lambda *_: StandIn(), real], ids=["stand-in", "real"])
@pytest.mark.parametrize("module", [trio, trio_wknet], ids=["installed", "seven"])
async def test_sockets_of_a_custom_factory_are_left_alone(
    make: Any, module: Any, install: int
) -> None:
    with socket.create_server((HOST, 0)) as plain:
        trio.socket.set_custom_socket_factory(Factory(make))
        stream = await module.open_tcp_stream(*plain.getsockname())
        (listener,) = await module.open_tcp_listeners(0, host=HOST)
        assert types([listener, stream]) == TRIOS[:2]
        factory = trio.socket.set_custom_socket_factory(None)
        assert isinstance(factory, Factory)
        await stream.aclose()
        await listener.aclose()


async def test_a_stand_in_is_left_alone_without_a_factory(install: int) -> None:
    stand_in = StandIn()
    assert trio.SocketStream(stand_in).socket is stand_in
    assert trio.SocketListener(stand_in).socket is stand_in


async def test_a_socket_that_is_not_connected_is_left_alone(install: int) -> None:
    with trio.socket.socket() as sock:
        stream = SocketStream(sock)
        assert type(stream) is SocketStream
        assert stream.socket is sock


def test_outside_of_a_run_nothing_is_replaced() -> None:
    left, right = socket.socketpair()
    with left, right, installed():
        assert type(SocketStream(trio.socket.from_stdlib_socket(left))) is SocketStream


# -- the socket that was passed --------------------------------------------------


async def test_the_socket_of_a_listener_can_still_be_asked(install: int) -> None:
    """hypercorn asks the one that it made with the standard library."""
    with socket.create_server((HOST, 0)) as plain:
        name = plain.getsockname()
        sock = trio.socket.from_stdlib_socket(plain)
        listener = SocketListener(sock)
        assert plain.getsockname() == sock.getsockname() == name
        assert plain.fileno() == sock.fileno() == listener.socket.fileno() >= 0
        assert plain.family == sock.family == listener.socket.family == socket.AF_INET
        assert plain.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
        assert "laddr" in repr(plain)
        await listener.aclose()
        assert plain.fileno() == sock.fileno() == listener.socket.fileno() == -1
        for one in (plain, sock, listener.socket):
            with pytest.raises(OSError, match="Bad file descriptor") as raised:
                one.getsockname()
            assert raised.value.errno == errno.EBADF


async def test_the_socket_of_a_stream_can_still_be_asked(install: int) -> None:
    left, right = trio.socket.socketpair()
    stream = SocketStream(left)
    assert left.getpeername() == right.getsockname()
    left.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        await left.recv(1)  # bytes belong to the reactor
    await stream.aclose()
    assert left.fileno() == -1
    left.close()
    right.close()


async def test_closing_the_socket_closes_the_stream(install: int) -> None:
    left, right = trio.socket.socketpair()
    with left, right:
        stream: Any = SocketStream(left)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_closed, stream.receive_some)
            await wait_all_tasks_blocked()
            left.close()
        assert await right.recv(1) == b""
    assert stream.close_reason == "closed"


async def test_closing_the_socket_closes_the_listener(install: int) -> None:
    sock = trio.socket.socket()
    await sock.bind((HOST, 0))
    sock.listen()
    listener = SocketListener(sock)
    name = sock.getsockname()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_closed, listener.accept)
        await wait_all_tasks_blocked()
        sock.close()
    await until(lambda: refuses(name), "closing")


def refuses(name: Any) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(name) == errno.ECONNREFUSED


async def expect_closed(call: Any) -> None:
    with pytest.raises(trio.ClosedResourceError):
        await call()


async def test_the_facade_closes_too(install: int) -> None:
    """Trio closes listeners by their sockets when it cannot open them all."""
    (listener,) = await trio.open_tcp_listeners(0, host=HOST)
    async with await open_stream_to_socket_listener(listener) as client:
        stream: Any = await listener.accept()
        stream.socket.close()
        assert await client.receive_some() == b""
        assert stream.close_reason == "closed"
    name = listener.socket.getsockname()
    listener.socket.close()
    await until(lambda: refuses(name), "closing")


async def test_a_socket_that_is_collected_is_not_closed_twice(install: int) -> None:
    """Its descriptor is another's by then."""
    left, right = trio.socket.socketpair()
    stream = SocketStream(left)
    number = left.fileno()
    right.close()
    await stream.aclose()
    await until(lambda: number not in descriptors(), "closing")
    fresh = [socket.socket() for _ in range(8)]
    assert number in [sock.fileno() for sock in fresh]
    del left, stream
    gc.collect()
    for sock in fresh:
        assert sock.getsockname()
        sock.close()


# -- counting, threads -----------------------------------------------------------


def test_each_install_takes_an_uninstall() -> None:
    trio_wknet.install()
    trio_wknet.install()
    trio_wknet.uninstall()
    assert types(trio.run(both_ends)) == OURS
    trio_wknet.uninstall()
    assert types(trio.run(both_ends)) == TRIOS


def test_uninstall_without_install() -> None:
    with pytest.raises(RuntimeError, match="uninstall"):
        trio_wknet.uninstall()

    async def main() -> None:
        with pytest.raises(RuntimeError, match="uninstall"):  # it is `run` who did this
            trio_wknet.uninstall()
        assert types(await both_ends()) == OURS

    trio_wknet.run(main)


def test_the_number_of_reactors_is_chosen_once() -> None:
    async def number() -> int:
        await both_ends()
        return default_engine(None).reactors

    with installed():
        with installed(2), installed(2), installed():
            with pytest.raises(ValueError, match=r"reactors is 2 .* cannot be 1"):
                trio_wknet.install(reactors=1)
            assert trio.run(number) == 2
            assert trio_wknet.run(number) == 2
            assert trio_wknet.run(number, reactors=0) == 0
        assert trio.run(number) == 2  # until everything is taken back
    with installed(1):
        assert trio.run(number) == 1


@pytest.mark.parametrize("call", [trio_wknet.install, partial(trio_wknet.run, both_ends)])
def test_bad_numbers_of_reactors(call: Any) -> None:
    for reactors in (-1, 100_000):
        with pytest.raises(ValueError, match=f"reactors must be .* not {reactors}"):
            call(reactors=reactors)
    for other in ("2", 1.5, True):
        with pytest.raises(TypeError, match=f"reactors must be .* not {other!r}"):
            call(reactors=other)


def test_install_and_uninstall_in_other_threads() -> None:
    for change, expected in (trio_wknet.install, OURS), (trio_wknet.uninstall, TRIOS):
        thread = threading.Thread(target=change)
        thread.start()
        thread.join()
        assert types(trio.run(both_ends)) == expected


async def test_install_during_a_run() -> None:
    """What exists stays; what comes later does not."""
    left, right = trio.socket.socketpair()
    async with SocketStream(left) as before, SocketStream(right) as other:
        await trio.to_thread.run_sync(trio_wknet.install)
        assert types(await both_ends()) == OURS
        (listener,) = await trio.open_tcp_listeners(0, host=HOST)
        await trio.to_thread.run_sync(trio_wknet.uninstall)
        assert types(await both_ends()) == TRIOS
        assert types([before, listener]) == [SocketStream, Listener]
        await before.send_all(b"still")
        assert await other.receive_some() == b"still"
        async with await open_stream_to_socket_listener(listener) as client:
            async with await listener.accept() as stream:
                await client.send_all(b"there")
                assert await stream.receive_some() == b"there"
                assert types([stream, client]) == [Conn, SocketStream]
        await listener.aclose()


def test_a_run_of_another_thread_is_not_affected() -> None:
    found: list[Any] = []

    async def main() -> None:
        thread = threading.Thread(target=lambda: found.extend(types(trio.run(both_ends))))
        thread.start()
        await trio.to_thread.run_sync(thread.join)
        assert types(await both_ends()) == OURS

    trio_wknet.run(main)
    assert found == TRIOS


def test_runs_in_several_threads_at_once(reactors: int) -> None:
    found: list[Any] = []
    together = threading.Barrier(3)

    async def main() -> None:
        await trio.to_thread.run_sync(together.wait)
        found.append(types(await both_ends()))
        await trio.to_thread.run_sync(together.wait)

    threads = [
        threading.Thread(target=partial(trio_wknet.run, main, reactors=reactors)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [OURS] * 3


async def test_run_inside_a_run() -> None:
    """Refused, as by Trio, and nothing is replaced by it."""
    with pytest.raises(RuntimeError, match=r"call run\(\) from inside a run\(\)"):
        trio_wknet.run(both_ends)
    assert types(await both_ends()) == TRIOS


def test_runs_one_after_the_other(reactors: int) -> None:
    for _ in range(3):
        assert types(trio_wknet.run(both_ends, reactors=reactors)) == OURS


# -- Ctrl-C ----------------------------------------------------------------------

CTRL_C = """
import os, sys, threading
import trio, trio_wknet

async def handler(stream):
    await stream.send_all(b"hello")
    await trio.sleep_forever()

async def main():
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, handler, 0)
        stream = await trio.testing.open_stream_to_socket_listener(listeners[0])
        print(await stream.receive_some(), type(stream).__name__, flush=True)
        await stream.receive_some()

import trio.testing
before = sorted(os.listdir("/proc/self/fd"))
try:
    trio_wknet.run(main, reactors=int(sys.argv[1]))
except BaseException as exc:
    assert isinstance(exc, KeyboardInterrupt) or exc.split(KeyboardInterrupt)[1] is None
    print("interrupted")
print([t.name for t in threading.enumerate() if "Trio" not in t.name])
print(sorted(os.listdir("/proc/self/fd")) == before, type(trio.SocketStream).__name__)
"""


def test_ctrl_c_leaves_no_thread_and_no_descriptor(reactors: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "error", "-c", CTRL_C, str(reactors)],
        cwd=Path(trio_wknet.__file__).parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "b'hello' Conn\n"
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=PATIENCE)
    assert errors == ""
    assert output == "interrupted\n['MainThread']\nTrue ABCMeta\n"


# -- a stream as other software uses it ------------------------------------------


async def test_what_httpcore_and_hypercorn_ask(install: int) -> None:
    """Addresses, options, and whether a pooled connection has ended."""
    (listener,) = await trio.open_tcp_listeners(0, host=HOST)
    client = await trio.open_tcp_stream(*listener.socket.getsockname())
    server = await listener.accept()
    sock = client.socket
    assert isinstance(sock, trio.socket.SocketType)
    assert sock.getsockname() == server.socket.getpeername()
    assert sock.getpeername() == server.socket.getsockname() == listener.socket.getsockname()
    assert not hasattr(client, "do_handshake")
    client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, True)
    assert not sock.is_readable()
    await server.send_all(data=b"ab")
    await until(sock.is_readable, "bytes")
    assert await client.receive_some(max_bytes=1) == b"a"
    assert sock.is_readable()  # the other is in the ring, and not in the kernel
    assert await client.receive_some() == b"b"
    assert not sock.is_readable()
    await server.aclose()
    await until(sock.is_readable, "the end")
    assert await read_all(client) == b""
    await client.aclose()
    assert sock.fileno() == -1
    await listener.aclose()


async def test_a_peer_of_the_standard_library(install: int) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host=HOST)
    with dial(listener_address(listener)) as peer:
        stream: Any = await listener.accept()
        peer.sendall(b"end")
        peer.shutdown(socket.SHUT_WR)
        assert await read_all(stream) == b"end"
        await stream.send_all(b"of it")
        await stream.aclose()
        assert peer.recv(10) == b"of it"
        assert peer.recv(10) == b""
    await listener.aclose()


def listener_address(listener: Any) -> Listener:
    assert isinstance(listener, Listener)
    return listener
