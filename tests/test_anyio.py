"""trio_wknet.contrib.anyio: our connections as AnyIO's, in a Trio run."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio
import trustme
from anyio.abc import SocketAttribute
from anyio.abc import SocketStream as AbstractSocketStream
from anyio.lowlevel import checkpoint
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.tls import TLSAttribute, TLSListener, TLSStream
from helpers import SMALL, clog, content, two_conns, until, url
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

import trio_wknet
from trio_wknet import Conn, Engine, Limits
from trio_wknet._engine import default_reactors
from trio_wknet.contrib.anyio import SocketListener, SocketStream

HERE = "tcp://127.0.0.1:0"
NAME = "transport.example"
CA = trustme.CA()
CERTIFICATE = CA.issue_cert(NAME)


@pytest.fixture
async def streams(pair: tuple[Conn, Conn]) -> tuple[SocketStream, SocketStream]:
    """Two of AnyIO's, connected with each other."""
    return SocketStream(pair[0]), SocketStream(pair[1])


@pytest.fixture
async def tcp(engine: Engine) -> AsyncIterator[tuple[Conn, SocketStream]]:
    """One of AnyIO's, and its peer."""
    async with two_conns(engine) as (ours, theirs):
        yield theirs, SocketStream(ours)


async def echo(stream: Any) -> None:
    async with stream:
        async for data in stream:
            await stream.send(data)


@asynccontextmanager
async def served(engine: Engine, handler: Any = echo) -> AsyncIterator[str]:
    """The url of a server of AnyIO's that runs meanwhile."""
    async with SocketListener(await engine.listen(HERE)) as listener:
        async with anyio.create_task_group() as group:
            group.start_soon(listener.serve, handler)
            yield f"tcp://127.0.0.1:{listener.extra(SocketAttribute.local_port)}"
            group.cancel_scope.cancel()


async def receive(stream: Any, size: int) -> bytes:
    return await BufferedByteReceiveStream(stream).receive_exactly(size)


async def expect(error: type[BaseException], call: Any, *args: Any) -> None:
    with pytest.raises(error):
        await call(*args)


async def test_there_and_back(engine: Engine) -> None:
    data = content("anyio", 1_000_000)
    async with served(engine) as address, SocketStream(await engine.connect(address)) as stream:
        assert isinstance(stream, AbstractSocketStream)
        async with anyio.create_task_group() as group:
            group.start_soon(stream.send, data)
            assert await receive(stream, len(data)) == data
        await stream.send_eof()
        await expect(anyio.EndOfStream, stream.receive)
        await expect(anyio.EndOfStream, stream.receive)


async def test_from_and_to_anyios_own(engine: Engine) -> None:
    """A peer is a peer."""
    async with served(engine) as address:
        port = int(address.rpartition(":")[2])
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(b"hello")
            assert await receive(stream, 5) == b"hello"
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        async with anyio.create_task_group() as group:
            group.start_soon(listener.serve, echo)
            port = listener.extra(SocketAttribute.local_port)
            async with SocketStream(await engine.connect(f"tcp://127.0.0.1:{port}")) as ours:
                await ours.send(b"hello")
                assert await receive(ours, 5) == b"hello"
            group.cancel_scope.cancel()


async def test_the_default_engines(nothing_left: None, reactors: int) -> None:
    """What the seven functions give is annotated as Trio's."""
    default_reactors.set(reactors)
    (trios,) = await trio_wknet.open_tcp_listeners(0, host="127.0.0.1")
    async with SocketListener(trios) as listener:
        stream = SocketStream(await trio_wknet.open_tcp_stream(*trios.socket.getsockname()))
        async with stream, await listener.accept() as accepted:
            await stream.send(b"x")
            assert await accepted.receive() == b"x"


# -- attributes ------------------------------------------------------------------


async def test_attributes_of_a_stream(tcp: tuple[Conn, SocketStream]) -> None:
    peer, stream = tcp
    assert stream.extra(SocketAttribute.family) == socket.AF_INET
    assert stream.extra(SocketAttribute.local_address) == peer.remote_address
    assert stream.extra(SocketAttribute.remote_address) == peer.local_address
    assert stream.extra(SocketAttribute.local_port) == peer.remote_address[1]
    assert stream.extra(SocketAttribute.remote_port) == peer.local_address[1]
    raw = stream.extra(SocketAttribute.raw_socket)
    assert isinstance(raw, socket.socket)
    assert (raw.gettimeout(), raw.proto) == (0.0, socket.IPPROTO_TCP)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    assert raw.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        raw.recv(1)
    await stream.aclose()
    assert raw.fileno() == -1
    assert stream.extra(SocketAttribute.family) == socket.AF_INET
    with pytest.raises(anyio.TypedAttributeLookupError):
        stream.extra(SocketAttribute.remote_address)


async def test_descriptors_are_not_passed(tcp: tuple[Conn, SocketStream]) -> None:
    stream: Any = tcp[1]
    for name in ("send_fds", "receive_fds"):
        says = rf"no attribute '{name}': descriptors \(SCM_RIGHTS\) are passed on AnyIO's own"
        with pytest.raises(AttributeError, match=says):
            getattr(stream, name)
        assert not hasattr(stream, name)
    with pytest.raises(AttributeError, match=r"^'SocketStream' object has no attribute 'none'$"):
        stream.none  # noqa: B018


async def test_the_raw_socket_closes_the_stream(tcp: tuple[Conn, SocketStream]) -> None:
    peer, stream = tcp
    stream.extra(SocketAttribute.raw_socket).close()
    assert await peer.receive_some() == b""
    await expect(anyio.ClosedResourceError, stream.receive)


async def test_attributes_of_a_listener(engine: Engine) -> None:
    listener = await engine.listen("tcp://localhost:0")
    async with SocketListener(listener) as anyios:
        assert anyios.extra(SocketAttribute.local_address) == listener.address[:2]
        assert anyios.extra(SocketAttribute.local_port) == listener.address[1]
        raw = anyios.extra(SocketAttribute.raw_socket)
        assert (raw.gettimeout(), raw.proto) == (0.0, socket.IPPROTO_TCP)
        with pytest.raises(anyio.TypedAttributeLookupError):
            anyios.extra(SocketAttribute.remote_address)


async def test_attributes_on_a_unix_socket(engine: Engine) -> None:
    async with two_conns(engine, "unix") as (client, server):
        stream = SocketStream(client)
        assert stream.extra(SocketAttribute.family) == socket.AF_UNIX
        assert stream.extra(SocketAttribute.remote_address) == server.local_address
        with pytest.raises(anyio.TypedAttributeLookupError):
            stream.extra(SocketAttribute.remote_port)


# -- errors ----------------------------------------------------------------------


async def test_closed_here(streams: tuple[SocketStream, SocketStream]) -> None:
    one, _ = streams
    async with anyio.create_task_group() as group:
        group.start_soon(expect, anyio.ClosedResourceError, one.receive)
        await wait_all_tasks_blocked()
        await one.aclose()
    await one.aclose()
    for call in (one.receive, one.send_eof, partial(one.send, b"x")):
        await expect(anyio.ClosedResourceError, call)


async def test_broken_by_the_peer(tcp: tuple[Conn, SocketStream]) -> None:
    peer, stream = tcp
    peer.abort()
    for call in (stream.receive, partial(stream.send, b"x"), stream.send_eof):
        with pytest.raises(anyio.BrokenResourceError) as raised:
            await call()
        assert isinstance(raised.value.__cause__, ConnectionError)


async def test_busy(engine: Engine) -> None:
    tight = Limits(inbound=4096)
    async with two_conns(engine, "unix", limits=tight, options=SMALL) as (ours, theirs):
        stream = SocketStream(ours)
        await clog(ours, lambda: theirs.statistics().buffered_inbound >= tight.inbound)
        async with anyio.create_task_group() as group:
            group.start_soon(stream.receive)
            group.start_soon(stream.send, bytes(1_000_000))
            await wait_all_tasks_blocked()
            with pytest.raises(anyio.BusyResourceError, match="already reading from"):
                await stream.receive()
            for call in (partial(stream.send, b"x"), stream.send_eof):
                with pytest.raises(anyio.BusyResourceError, match="already writing to"):
                    await call()
            group.cancel_scope.cancel()


async def test_errors_of_a_listener(engine: Engine) -> None:
    listener = SocketListener(await engine.listen(HERE))
    async with anyio.create_task_group() as group:
        group.start_soon(expect, anyio.ClosedResourceError, listener.accept)
        await wait_all_tasks_blocked()
        with pytest.raises(anyio.BusyResourceError, match="already accepting"):
            await listener.accept()
        await listener.aclose()
    await listener.aclose()
    await expect(anyio.ClosedResourceError, listener.accept)


async def test_bad_arguments(tcp: tuple[Conn, SocketStream]) -> None:
    peer, stream = tcp
    for number in (0, -1):
        with pytest.raises(ValueError, match=r"^max_bytes must be a positive integer$"):
            await stream.receive(number)
    for wrong in (None, stream, peer.socket):
        with pytest.raises(TypeError, match="conn must be a Conn, not "):
            SocketStream(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="listener must be a Listener, not "):
            SocketListener(wrong)  # type: ignore[arg-type]
    peer.abort()
    with pytest.raises(anyio.ClosedResourceError):
        SocketStream(peer)


# -- checkpoints, cancelling -----------------------------------------------------


async def test_checkpoints(engine: Engine) -> None:
    async with SocketListener(await engine.listen(HERE)) as listener:
        with assert_checkpoints():
            stream = SocketStream(await engine.connect(url(listener._listener)))
        with assert_checkpoints():
            peer = await listener.accept()
        with assert_checkpoints():
            await peer.send(b"x")
        with assert_checkpoints():
            assert await stream.receive() == b"x"
        with assert_checkpoints():
            await peer.send_eof()
        with assert_checkpoints():
            await peer.send_eof()
        for one in (peer, peer, stream):
            with assert_checkpoints():
                await one.aclose()
    with assert_checkpoints():
        await listener.aclose()


async def test_a_cancelled_receive_loses_nothing(
    streams: tuple[SocketStream, SocketStream],
) -> None:
    one, other = streams
    with anyio.move_on_after(0):
        await one.receive()
    async with anyio.create_task_group() as group:
        group.start_soon(one.receive)
        await wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    await other.send(b"all of it")
    assert await receive(one, 9) == b"all of it"


async def test_a_cancelled_accept_loses_nothing(engine: Engine) -> None:
    async with SocketListener(await engine.listen(HERE)) as listener:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await listener.accept()
        async with await engine.connect(url(listener._listener)) as client:
            async with await listener.accept() as stream:
                await stream.send(b"x")
                assert await client.receive_some() == b"x"


async def test_closing_forcefully(tcp: tuple[Conn, SocketStream]) -> None:
    peer, stream = tcp
    await anyio.aclose_forcefully(stream)
    await expect(anyio.ClosedResourceError, stream.receive)
    assert await peer.receive_some() == b""


# -- what AnyIO builds on streams ------------------------------------------------


def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The server's and the client's, that tell an end from a truncation."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    CERTIFICATE.configure_cert(server)
    client = ssl.create_default_context()
    CA.configure_trust(client)
    for context in (server, client):
        context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    return server, client


async def wrapped(stream: Any, context: ssl.SSLContext) -> TLSStream:
    return await TLSStream.wrap(stream, ssl_context=context, hostname=NAME)


async def test_tls_on_both_ends(engine: Engine) -> None:
    server, client = contexts()
    data = content("tls", 300_000)

    async def handler(plain: Any) -> None:
        stream = await TLSStream.wrap(plain, ssl_context=server, server_side=True)
        await echo(stream)

    async with served(engine, handler) as address:
        stream = await wrapped(SocketStream(await engine.connect(address)), client)
        port = int(address.rpartition(":")[2])
        assert stream.extra(SocketAttribute.remote_port) == port
        assert stream.extra(TLSAttribute.tls_version) in ("TLSv1.2", "TLSv1.3")
        async with anyio.create_task_group() as group:
            group.start_soon(stream.send, data)
            assert await receive(stream, len(data)) == data
        await stream.aclose()  # says goodbye, and waits for the server's


async def test_tls_that_is_cut_off(engine: Engine) -> None:
    server, client = contexts()
    async with SocketListener(await engine.listen(HERE)) as plain:
        listener = TLSListener(plain, server)
        received, done = trio.open_memory_channel[Any](1)

        async def handler(stream: Any) -> None:
            assert await receive(stream, 4) == b"half"
            with pytest.raises(anyio.BrokenResourceError) as raised:
                await stream.receive()
            await received.send(raised.value)

        async with anyio.create_task_group() as group:
            group.start_soon(listener.serve, handler)
            conn = SocketStream(await engine.connect(url(plain._listener)))
            stream = await wrapped(conn, client)
            await stream.send(b"half")
            await conn.aclose()  # beneath it: no goodbye
            failure = await done.receive()
            assert isinstance(failure.__cause__, ssl.SSLEOFError)
            group.cancel_scope.cancel()


async def test_a_handler_that_leaves_its_stream_open(engine: Engine) -> None:
    """Then it stays open: closing is the handler's, as everywhere in AnyIO."""
    kept: list[AbstractSocketStream] = []

    async def handler(stream: AbstractSocketStream) -> None:
        kept.append(stream)
        await checkpoint()

    async with served(engine, handler) as address:
        async with await engine.connect(address) as client:
            await until(lambda: kept, "the handler")
            await kept[0].send(b"still")
            assert await client.receive_exactly(5) == b"still"
            await kept[0].aclose()


# -- without AnyIO ---------------------------------------------------------------

WITHOUT = """
import sys
sys.modules["anyio"] = None
import trio_wknet
try:
    import trio_wknet.contrib.anyio
except ImportError as exc:
    print(type(exc).__name__, exc.name)
"""


def test_without_anyio() -> None:
    """The package itself does not need it."""
    command = [sys.executable, "-W", "error", "-c", WITHOUT]
    folder = Path(trio_wknet.__file__).parent.parent
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert result.stdout == "ModuleNotFoundError anyio\n"
