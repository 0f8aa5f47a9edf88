"""TLS in place of `trio.SSLStream` and `trio.SSLListener`: by the seven functions, and by what
`run` and `install` replace."""

from __future__ import annotations

import inspect
import socket
import ssl
from abc import ABCMeta
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import trio
import trio._highlevel_ssl_helpers
import trio._ssl
from helpers import dial, installed, read, read_all, tcp_address, until
from tls_helpers import NAME, client_context, server_context
from trio import SSLListener, SSLStream  # imported before anything is replaced
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

import trio_wknet
from trio_wknet import Conn, Listener, TLSListener, TLSStream
from trio_wknet._drop_in import classes
from trio_wknet._drop_in.bypass import bypass
from trio_wknet._engine import default_reactors

pytestmark = pytest.mark.usefixtures("nothing_left")
HOST = "127.0.0.1"
CLASSES = (trio.SocketStream, trio.SocketListener, trio.SSLStream, trio.SSLListener)


class Here(trio.abc.HostnameResolver):
    """Every name is this machine's."""

    async def getaddrinfo(self, host: Any, port: Any, *args: Any, **kwargs: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (HOST, port))]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        raise NotImplementedError


async def echo(stream: Any) -> None:
    async with stream:
        async for data in stream:
            await stream.send_all(data)


async def says(stream: Any, data: bytes = b"hello") -> None:
    await stream.send_all(data)
    assert await read(stream, len(data)) == data


@asynccontextmanager
async def served(
    module: ModuleType, handler: Any = echo, **options: Any
) -> AsyncIterator[tuple[Any, Any]]:
    """A server's listener, and what opens a client's stream to it, by a module's functions."""
    trio.socket.set_custom_hostname_resolver(Here())
    serve = partial(module.serve_ssl_over_tcp, handler, 0, server_context(), host=HOST, **options)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(serve)
            port = listener.transport_listener.socket.getsockname()[1]
            yield (
                listener,
                partial(module.open_ssl_over_tcp_stream, NAME, port, ssl_context=client_context()),
            )
            nursery.cancel_scope.cancel()


async def both_ends(module: ModuleType = trio) -> list[Any]:
    """A listener, a client's and a server's stream, after an echo."""
    ends: list[Any] = []

    async def handler(stream: Any) -> None:
        ends.append(stream)
        await echo(stream)

    async with served(module, handler) as (listener, connect):
        async with await connect() as stream:
            await says(stream)
        ends += [stream, listener]
    return ends


def are_ours(ends: list[Any]) -> bool:
    *streams, listener = ends
    (ours,) = {type(it) is TLSStream for it in streams}
    assert ours == isinstance(listener, TLSListener)
    assert all(isinstance(it, SSLStream) for it in streams)
    assert isinstance(listener, SSLListener)
    assert ours or [*map(type, ends)] == [SSLStream, SSLStream, SSLListener]
    return ours


@asynccontextmanager
async def two_conns() -> AsyncIterator[tuple[Any, Any]]:
    left, right = trio.socket.socketpair()
    async with trio.SocketStream(left) as one, trio.SocketStream(right) as other:
        assert isinstance(one, Conn)
        yield one, other


# -- the functions -----------------------------------------------------------------------


async def test_the_seven_functions(reactors: int) -> None:
    """They need neither `run` nor `install`."""
    default_reactors.set(reactors)
    ends = await both_ends(trio_wknet)
    assert are_ours(ends)
    listener = ends[-1]
    assert type(listener.transport_listener) is Listener
    assert repr(listener).startswith("<trio_wknet.TLSListener over")
    assert not are_ours(await both_ends(trio))


async def test_a_drop_in_listener_serves_as_any_other(reactors: int) -> None:
    """With the handshake before the handler, and counted."""
    default_reactors.set(reactors)
    trio.socket.set_custom_hostname_resolver(Here())
    (listener,) = await trio_wknet.open_ssl_over_tcp_listeners(0, server_context(), host=HOST)
    assert isinstance(listener, TLSListener)
    seen: list[Any] = []

    async def handler(stream: TLSStream) -> None:
        seen.append(stream.version())
        await echo(stream)

    _, port = tcp_address(listener.listener)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.serve, handler)
        with dial(listener) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
            await until(lambda: listener.statistics().failed_handshakes == 1)
        async with await trio_wknet.open_ssl_over_tcp_stream(
            NAME, port, ssl_context=client_context()
        ) as stream:
            await says(stream)
        await listener.drain()
    assert seen == ["TLSv1.3"]


@pytest.mark.parametrize("serve", ["accept", "serve"])
async def test_https_compatible(serve: str) -> None:
    """A stream ends without goodbye, at either end."""
    (listener,) = await trio_wknet.open_ssl_over_tcp_listeners(
        0, server_context(), host=HOST, https_compatible=True
    )
    assert isinstance(listener, TLSListener)
    ends: list[bytes] = []

    async def handler(stream: Any) -> None:
        await stream.send_all(b"answer")
        ends.append(await read_all(stream))
        if serve == "accept":
            await stream.aclose()

    async with trio.open_nursery() as nursery:
        if serve == "accept":
            nursery.start_soon(trio.serve_listeners, handler, [listener])
        else:
            nursery.start_soon(listener.serve, handler)
        conn = await trio_wknet.open_tcp_stream(*listener.address[:2])
        options: Any = {"server_hostname": NAME, "https_compatible": True}
        async with TLSStream(conn, client_context(), **options) as stream:
            assert await read(stream, 6) == b"answer"
            await stream.send_all(b"question")
            await conn.send_eof()
            assert await read_all(stream) == b""
        nursery.cancel_scope.cancel()
    assert ends == [b"question"]


async def test_the_default_context() -> None:
    """Trio's own: it checks who the server is, and tells a cut from an end."""
    refused: list[Any] = []

    async def handler(stream: Any) -> None:
        with pytest.raises(trio.BrokenResourceError) as raised:
            await stream.do_handshake()
        refused.append(raised.value.__cause__)

    async with served(trio_wknet, handler) as (_, connect):
        stream = await connect(ssl_context=None)
        assert type(stream) is TLSStream
        assert stream.context.check_hostname
        assert not stream.context.options & getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
        assert stream.server_hostname == NAME
        assert stream.server_side is False
        with pytest.raises(trio.BrokenResourceError) as raised:
            await stream.do_handshake()
        assert isinstance(raised.value.__cause__, ssl.SSLCertVerificationError)
        await stream.aclose()
        await until(lambda: refused)


async def test_a_context_that_is_none() -> None:
    """Trio's own takes anything that has wrap_bio."""

    class Context:
        inner = client_context()

        def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
            return self.inner.wrap_bio(*args, **kwargs)

    context: Any = Context()
    with installed(0):
        async with two_conns() as (one, _):
            assert type(SSLStream(one, context, server_hostname=NAME)) is SSLStream
        async with served(trio_wknet) as (_, connect):
            # It is the SSLObject that has a context of its own.
            stream = await connect(ssl_context=context)
            assert type(stream) is TLSStream
            await says(stream)
            await stream.aclose()
        (listener,) = await trio.open_tcp_listeners(0, host=HOST)
        assert type(SSLListener(listener, context)) is SSLListener
        assert type(SSLListener(listener, client_context())) is SSLListener
        await listener.aclose()


async def test_a_connection_whose_stream_cannot_be_made_is_closed() -> None:
    class Context(ssl.SSLContext):
        def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
            raise KeyError("no more")

    (listener,) = await trio_wknet.open_ssl_over_tcp_listeners(
        0, Context(ssl.PROTOCOL_TLS_SERVER), host=HOST
    )
    async with listener:
        assert isinstance(listener, TLSListener)
        with dial(listener) as sock:
            with pytest.raises(KeyError, match="no more"):
                await listener.accept()
            with suppress(ConnectionResetError):
                assert await trio.to_thread.run_sync(sock.recv, 1) == b""


# -- the classes -------------------------------------------------------------------------


def test_run(reactors: int) -> None:
    async def main() -> None:
        assert are_ours(await both_ends())
        assert are_ours(await both_ends(trio_wknet))

    trio_wknet.run(main, reactors=reactors)
    assert not are_ours(trio.run(both_ends))


async def test_install(install: int) -> None:
    assert are_ours(await both_ends())


async def test_each_class_by_itself(install: int) -> None:
    """Imported before, by another name, subscripted, and by keywords."""
    context: Any = {"ssl_context": client_context(), "server_hostname": NAME}
    for cls in (SSLStream, trio._ssl.SSLStream, trio.SSLStream[trio.SocketStream]):
        async with two_conns() as (one, other):
            stream = cls(transport_stream=one, **context)
            server = cls(other, server_context(), server_side=True)
            assert type(stream) is type(server) is TLSStream
            assert stream.transport_stream is one
            async with trio.open_nursery() as nursery:
                nursery.start_soon(echo, server)
                await says(stream)
                await stream.aclose()
    for listener_class in (SSLListener, trio.SSLListener[trio.SocketStream]):
        (below,) = await trio.open_tcp_listeners(0, host=HOST)
        listener: Any = listener_class(
            transport_listener=below, ssl_context=server_context(), https_compatible=True
        )
        assert isinstance(listener, TLSListener)
        assert listener.transport_listener is below
        assert listener._https_compatible
        await listener.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await below.accept()


async def test_a_transport_can_be_used_without_its_stream(install: int) -> None:
    """As with Trio's. A `TLSListener` of ours refuses that."""
    ended = trio.Event()

    async def handler(stream: Any) -> None:
        assert type(stream.transport_stream) is Conn
        await stream.send_all(b"all")
        await stream.transport_stream.send_eof()
        await ended.wait()
        await trio.aclose_forcefully(stream)

    async with served(trio, handler) as (_, connect):
        stream = await connect()
        assert await read(stream, 3) == b"all"
        with pytest.raises(trio.BrokenResourceError) as raised:
            await stream.receive_some()
        assert isinstance(raised.value.__cause__, ssl.SSLEOFError)
        await stream.aclose()
        ended.set()


async def test_what_stays_trios_own(install: int) -> None:
    context = client_context()
    memory, _ = memory_stream_pair()
    assert type(SSLStream(memory, context, server_hostname=NAME)) is SSLStream
    async with two_conns() as (one, other):
        with bypass():
            assert type(SSLStream(one, context, server_hostname=NAME)) is SSLStream
        inner = SSLStream(one, context, server_hostname=NAME)
        assert type(inner) is TLSStream
        assert type(SSLStream(inner, context, server_hostname=NAME)) is SSLStream

        async with trio.open_nursery() as nursery:
            start = partial(other.start_tls, server_context(), server_side=True)
            nursery.start_soon(start)
            await inner.do_handshake()
        twice = SSLStream(other, context, server_hostname=NAME)
        assert type(twice) is SSLStream
        with pytest.raises(trio.BusyResourceError, match="bytes are those of a TLS stream"):
            await twice.do_handshake()


def test_outside_of_a_run() -> None:
    kept: list[Any] = []

    async def main() -> None:
        async with two_conns() as (one, _):
            kept.append(one)

    with installed(0):
        trio.run(main)
        assert type(SSLStream(kept[0], client_context(), server_hostname=NAME)) is SSLStream


def facts() -> list[Any]:
    return [(it, repr(it), it.__mro__, it.__doc__, parameters(it)) for it in CLASSES]


def parameters(cls: type) -> list[Any]:
    found = inspect.signature(cls).parameters.values()
    return [(it.name, it.kind, it.default) for it in found]


def test_the_classes_go_on_to_be_what_they_are() -> None:
    modules: tuple[Any, ...] = (trio, trio._ssl)
    before = facts()
    assert [type(it) for it in CLASSES] == [ABCMeta] * 4
    with installed():
        assert facts() == before
        for module in modules:
            assert (module.SSLStream, module.SSLListener) == (SSLStream, SSLListener)
        assert issubclass(TLSStream, SSLStream)
        assert issubclass(TLSListener, SSLListener)
        assert not issubclass(TLSStream, (SSLListener, trio.SocketStream))
        assert not issubclass(Conn, SSLStream)
        assert not isinstance(object(), (SSLStream, SSLListener))
        with pytest.raises(TypeError, match="does not support subclassing"):
            type("Mine", (SSLStream,), {})
        with pytest.raises(TypeError, match="transport_stream"):
            SSLStream()  # type: ignore[call-arg]
    assert [type(it) for it in CLASSES] == [ABCMeta] * 4
    assert facts() == before


async def test_somebodys_subclass_is_left_alone(
    install: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In spite of Trio."""
    monkeypatch.delattr(SSLStream, "__init_subclass__")
    monkeypatch.delattr(SSLListener, "__init_subclass__")

    class Stream(SSLStream[Any]):  # type: ignore[misc]
        pass

    class Listening(SSLListener[Any]):  # type: ignore[misc]
        pass

    async with two_conns() as (one, other):
        async with trio.open_nursery() as nursery:
            server = Stream(other, server_context(), server_side=True)
            assert type(server) is Stream
            nursery.start_soon(echo, server)
            stream = Stream(one, client_context(), server_hostname=NAME)
            await says(stream)
            await stream.aclose()
    async with (await trio.open_tcp_listeners(0, host=HOST))[0] as below:
        assert type(Listening(below, server_context())) is Listening


async def test_uninstall_in_another_thread_while_one_is_made() -> None:
    """Python looks up the metaclass's call, and then the metaclass is another."""
    call: Any = {cls: replacement.__call__ for cls, replacement in classes._REPLACED.items()}
    memory, _ = memory_stream_pair()
    stream = call[SSLStream](SSLStream, memory, server_context(), server_side=True)
    assert type(stream) is SSLStream
    below = object()
    listener = call[SSLListener](SSLListener, below, server_context())
    assert type(listener) is SSLListener
    left, right = trio.socket.socketpair()
    with right, left:
        made = call[trio.SocketStream](trio.SocketStream, left)
        assert type(made) is trio.SocketStream
    with trio.socket.socket() as sock:
        await sock.bind((HOST, 0))
        sock.listen()
        made = call[trio.SocketListener](trio.SocketListener, sock)
        assert type(made) is trio.SocketListener


# -- draining ----------------------------------------------------------------------------


@pytest.mark.parametrize("module", [trio, trio_wknet], ids=["installed", "seven"])
async def test_drain(module: ModuleType, install: int) -> None:
    """It waits for the handlers of `trio.serve_listeners`, which ends as it does."""
    ended: list[str] = []

    async def handler(stream: Any) -> None:
        with pytest.raises(RuntimeError, match="called from a handler"):
            await listener.drain()
        try:
            await echo(stream)
            ended.append("handler")
        except trio.Cancelled:
            ended.append("cancelled")
            raise

    async def drain() -> None:
        await listener.drain()
        ended.append("drain")

    with pytest.raises(Exception) as raised:  # noqa: PT011
        async with served(module, handler) as (listener, connect):
            async with trio.open_nursery() as nursery:
                async with await connect() as stream:
                    await says(stream)
                    nursery.start_soon(drain)
                    await until(lambda: listener.transport_listener.socket.fileno() == -1)
                    await wait_all_tasks_blocked()
                    await says(stream, b"still here")
                    assert ended == []
            await trio.sleep_forever()
    assert raised.group_contains(trio.ClosedResourceError, match="stopped accepting|closed")
    assert ended == ["handler", "drain"]
