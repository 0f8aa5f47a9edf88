"""TLS that begins on a connection: `Conn.start_tls`, and `Engine.connect` with TLS."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
import trio
from helpers import read_all, tcp_address, until
from test_threads import CONN
from tls_helpers import CA, NAME, client_context, server_context
from trio.testing import wait_all_tasks_blocked

from trio_wknet import Conn, Delimited, Engine, TLSStream
from trio_wknet._tls_conn import TLSConn

LOCAL = "tcp://127.0.0.1:0"


async def start_both(client: Conn, server: Conn) -> tuple[TLSStream, TLSStream]:
    streams: dict[str, TLSStream] = {}

    async def start(name: str, conn: Conn, context: ssl.SSLContext, **options: Any) -> None:
        streams[name] = await conn.start_tls(context, **options)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(start, "client", client, client_context(), server_hostname=NAME))
        nursery.start_soon(partial(start, "server", server, server_context(), server_side=True))
    return streams["client"], streams["server"]


async def say(sender: TLSStream, receiver: TLSStream, data: bytes) -> None:
    await sender.send_all(data)
    assert await receiver.receive_some() == data


async def test_both_ends(pair: tuple[Conn, Conn]) -> None:
    client, server = pair
    ends = await start_both(client, server)
    assert [end.transport_stream for end in ends] == [client, server]
    assert isinstance(client, Conn)
    assert isinstance(client, trio.SocketStream)
    assert ends[1].server_hostname is None
    assert ends[0].server_hostname == NAME
    await say(*ends, b"hello")
    await say(*ends[::-1], b"you too")
    for end in ends:
        await end.aclose()
    assert client.close_reason in ("closed", "eof")


@pytest.mark.parametrize("tls_client", [0, 1], ids=["from-the-client", "from-the-server"])
async def test_bytes_that_came_before(pair: tuple[Conn, Conn], tls_client: int) -> None:
    """The client of TLS begins before the other end has read the line ahead of it."""
    first, second = pair[tls_client], pair[1 - tls_client]
    started = []

    async def begin() -> None:
        first.send_nowait(b"STARTTLS\r\n")
        started.append(await first.start_tls(client_context(), server_hostname=NAME))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(begin)
        await until(lambda: second.statistics().buffered_inbound > 10)
        assert await second.receive_until(b"\r\n") == b"STARTTLS"
        server = await second.start_tls(server_context(), server_side=True)
    await say(started[0], server, b"hello")
    await say(server, started[0], b"you too")


async def test_an_unencrypted_command_is_no_encrypted_one(pair: tuple[Conn, Conn]) -> None:
    client, server = pair
    await client.send_all(b"STARTTLS\r\nRSET\r\nDATA\r\n")
    await until(lambda: server.statistics().buffered_inbound == 22)
    assert await server.receive_until(b"\r\n") == b"STARTTLS"
    with pytest.raises(trio.BrokenResourceError) as caught:
        await server.start_tls(server_context(), server_side=True)
    assert isinstance(caught.value.__cause__, ssl.SSLError)
    assert server.close_reason == "closed"
    with suppress(trio.BrokenResourceError):
        assert b"STARTTLS" not in await read_all(client)


# --- what the connection may still do ---------------------------------------------------

TAKEN = {
    "detach", "discard", "flush", "framed", "peek", "receive_exactly", "receive_exactly_nowait",
    "receive_into", "receive_nowait", "receive_some", "receive_until", "receive_until_nowait",
    "send_all", "send_eof", "send_file", "send_nowait", "send_vectored", "start_tls",
    "wait_send_all_might_not_block", "__anext__",
}  # fmt: skip


async def finish(call: Callable[[Conn], Any], conn: Conn) -> None:
    result = call(conn)
    if hasattr(result, "send"):
        await result


async def test_what_the_connection_refuses(pair: tuple[Conn, Conn]) -> None:
    client, server = pair
    ends = await start_both(client, server)
    for name in TAKEN:
        call = CONN[name]
        assert call is not None
        with pytest.raises(trio.BusyResourceError, match="use the TLSStream"):
            await finish(call, client)
    await say(*ends, b"hello")  # nothing was disturbed


async def test_what_the_connection_still_does(pair: tuple[Conn, Conn]) -> None:
    client, server = pair
    ends = await start_both(client, server)
    ending = {"abort", "aclose", "close_nowait", "wait_closed", "cancel_on_disconnect"}
    for name in (
        set(CONN) - TAKEN - ending - {"__aexit__", "idle_point", "idle_scope", "idle_timeout"}
    ):
        call = CONN[name]
        if call is not None and not (name.endswith("sockopt") and client.socket.family == 1):
            await finish(call, client)
    assert client.remote_address == server.local_address
    assert client.statistics().bytes_sent > 0
    client.idle_timeout = 60
    with client.idle_scope(60), client.cancel_on_disconnect():
        await say(*ends, b"hello")
    await client.aclose()
    await server.wait_closed()
    with pytest.raises(trio.ClosedResourceError):
        await client.receive_some()
    with pytest.raises(trio.BrokenResourceError):  # there was no goodbye
        await ends[1].receive_some()


async def test_groups_have_no_member_with_tls(engine: Engine, pair: tuple[Conn, Conn]) -> None:
    """Their broadcasts would go out unencrypted."""
    client, server = pair
    groups = [engine.group(), engine.group()]
    for group in groups:
        group.add(client)
    ends = await start_both(client, server)
    for group in groups:
        assert len(group) == 0
        assert client not in group
        with pytest.raises(trio.BusyResourceError, match="member must be a connection without TLS"):
            group.add(client)
        group.discard(client)
        await group.broadcast_nowait(b"not to it").wait()
    await say(*ends, b"hello")


async def test_unwrap_gives_it_back(pair: tuple[Conn, Conn]) -> None:
    ends = await start_both(*pair)
    back: list[Any] = []

    async def unwrap(end: TLSStream) -> None:
        back.append(await end.unwrap())

    async with trio.open_nursery() as nursery:
        for end in ends:
            nursery.start_soon(unwrap, end)
    assert {conn for conn, _ in back} == set(pair)
    assert [rest for _, rest in back] == [b"", b""]
    client, server = pair
    assert type(client) is type(server) is Conn
    await client.send_all(b"plain")
    assert await server.receive_some() == b"plain"
    await say(*await start_both(*pair), b"TLS again")


# --- who else uses it -------------------------------------------------------------------


async def is_refused(conn: Conn, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        await conn.start_tls(server_context(), server_side=True)
    assert type(conn) is Conn


async def test_while_another_task_uses_it(pair: tuple[Conn, Conn]) -> None:
    client, server = pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.receive_some)
        await wait_all_tasks_blocked()
        await is_refused(server, trio.BusyResourceError, "another task is receiving")
        nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.send_all, bytes(1 << 24))
        await wait_all_tasks_blocked(0.01)
        await is_refused(server, trio.BusyResourceError, "another task is sending")
        nursery.cancel_scope.cancel()
    channel = client.framed(Delimited(b"\n", max_frame=100))
    await is_refused(client, trio.BusyResourceError, "frames are received by the channel")
    channel.unframe()
    with client.peek():
        with pytest.raises(BufferError):
            await client.start_tls(server_context(), server_side=True)
    await client.send_eof()
    await is_refused(client, trio.ClosedResourceError, "EOF")
    await client.aclose()
    await is_refused(client, trio.ClosedResourceError, "already closed")


async def test_in_event_mode(engine: Engine) -> None:
    refused = []

    async def on_connect(conn: Conn) -> None:
        with pytest.raises(trio.BusyResourceError, match="serve_events"):
            await conn.start_tls(server_context(), server_side=True)
        refused.append(conn)

    async with trio.open_nursery() as nursery:
        listener = await engine.listen(LOCAL)
        serve = partial(listener.serve_events, lambda conn: None, on_connect=on_connect)
        nursery.start_soon(serve)
        conn = await engine.connect("tcp://{}:{}".format(*tcp_address(listener)))
        await until(lambda: refused)
        await conn.aclose()
        nursery.cancel_scope.cancel()


# --- how it fails -----------------------------------------------------------------------


async def test_the_peer_learns_why(pair: tuple[Conn, Conn]) -> None:
    client, server = pair
    untrusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    causes: list[Any] = []

    async def fail(conn: Conn, *args: Any, **options: Any) -> None:
        with pytest.raises(trio.BrokenResourceError) as caught:
            stream = await conn.start_tls(*args, **options)
            await stream.receive_some()  # in TLS 1.3 a server is done before its client is
        causes.append(caught.value.__cause__)
        await conn.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(fail, client, untrusting, server_hostname=NAME))
        nursery.start_soon(partial(fail, server, server_context(), server_side=True))
    assert isinstance(causes[0], ssl.SSLCertVerificationError)
    assert "ALERT_UNKNOWN_CA" in str(causes[1])
    assert client.close_reason is not None


async def test_cancelled(pair: tuple[Conn, Conn]) -> None:
    client, server = pair
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(client.start_tls, client_context(), server_hostname=NAME))
            await until(lambda: server.statistics().buffered_inbound > 0)
            scope.cancel()
    assert scope.cancelled_caught
    assert client.id is None
    await read_all(server)


async def test_arguments(pair: tuple[Conn, Conn]) -> None:
    conn: Any = pair[0]
    start = conn.start_tls
    with pytest.raises(TypeError, match=r"context must be an ssl\.SSLContext, not None"):
        await start(None)
    with pytest.raises(ValueError, match="context must be a context for a client"):
        await start(server_context(), server_hostname=NAME)
    with pytest.raises(ValueError, match="context must be a context for a server"):
        await start(client_context(), server_side=True)
    with pytest.raises(ValueError, match="server_hostname must be given"):
        await start(client_context())
    with pytest.raises(TypeError, match="server_hostname must be a string"):
        await start(client_context(), server_hostname=1)
    with pytest.raises(ValueError, match="server_hostname must be None"):
        await start(server_context(), server_side=True, server_hostname=NAME)
    assert type(conn) is Conn
    conn.send_nowait(b"still plain")
    assert await pair[1].receive_some() == b"still plain"


# --- connecting -------------------------------------------------------------------------


@asynccontextmanager
async def tls_server(engine: Engine) -> AsyncIterator[str]:
    """The address of an echo server with TLS."""

    async def handler(conn: Conn) -> None:
        with suppress(trio.BrokenResourceError):
            stream = await conn.start_tls(server_context(), server_side=True)
            async for data in stream:
                await stream.send_all(data)
            await stream.aclose()

    async with trio.open_nursery() as nursery:
        listener = await nursery.start((await engine.listen(LOCAL)).serve, handler)
        yield "tls://{}:{}".format(*tcp_address(listener))
        nursery.cancel_scope.cancel()


async def test_connect(engine: Engine) -> None:
    async with tls_server(engine) as address:
        async with await engine.connect(
            address, tls=client_context(), server_hostname=NAME
        ) as stream:
            assert type(stream) is TLSStream
            assert type(stream.transport_stream) is TLSConn
            assert stream.version() == "TLSv1.3"  # it is done
            await stream.send_all(b"hello")
            assert await stream.receive_some() == b"hello"
        for context in (client_context(), ssl.create_default_context()):
            with pytest.raises(trio.BrokenResourceError, match="certificate verify failed") as got:
                await engine.connect(address, tls=context)  # its name is the address
            assert isinstance(got.value.__cause__, ssl.SSLCertVerificationError)
        await until(lambda: len(engine.connections) == 0)


async def test_connect_to_an_address_with_a_certificate(engine: Engine) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    CA.issue_cert("127.0.0.1").configure_cert(context)
    async with await engine.listen(LOCAL) as listener:
        address = "tls://{}:{}".format(*tcp_address(listener))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_one, listener, context)
            async with await engine.connect(address, tls=client_context()) as stream:
                assert stream.server_hostname == "127.0.0.1"


async def serve_one(listener: Any, context: ssl.SSLContext) -> None:
    async with await listener.accept() as conn:
        await (await conn.start_tls(context, server_side=True)).aclose()


async def test_connect_to_a_server_that_is_silent(engine: Engine) -> None:
    async with await engine.listen(LOCAL) as listener:
        address = "tls://{}:{}".format(*tcp_address(listener))
        with trio.move_on_after(0.01) as scope:
            await engine.connect(address, tls=client_context(), server_hostname=NAME)
        assert scope.cancelled_caught
        assert len(engine.connections) == 0


async def test_arguments_of_connect(engine: Engine) -> None:
    connect: Any = engine.connect
    context = client_context()
    with pytest.raises(ValueError, match="tls must be given for 'tls://127"):
        await connect("tls://127.0.0.1:1")
    for address in ("tcp://127.0.0.1:1", "unix:///nowhere"):
        with pytest.raises(ValueError, match=r"tls must be None unless .* 'tls://'"):
            await connect(address, tls=context)
        with pytest.raises(ValueError, match="server_hostname must be None without tls"):
            await connect(address, server_hostname=NAME)
    with pytest.raises(TypeError, match=r"tls must be an ssl\.SSLContext, not True"):
        await connect("tls://127.0.0.1:1", tls=True)
    with pytest.raises(ValueError, match="tls must be a context for a client"):
        await connect("tls://127.0.0.1:1", tls=server_context())
    with pytest.raises(TypeError, match="server_hostname"):
        await connect("tls://127.0.0.1:1", tls=context, server_hostname=3)
