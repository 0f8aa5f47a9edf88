"""WebSockets over TLS: ``wss://``, for listeners and clients."""

from __future__ import annotations

import ssl
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
from helpers import until
from tls_helpers import CA, client_context, server_context

from trio_wknet import (
    ConnectionClosed,
    Engine,
    HandshakeRejected,
    PerMessageDeflate,
    Response,
    StreamWebSocket,
    TLSListener,
    WebSocketListener,
    WebSocketOptions,
    open_websocket,
    open_wknet_listener,
)

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

HERE = "wss://127.0.0.1:0"


def context() -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    CERTIFICATE.configure_cert(made)
    return made


CERTIFICATE = CA.issue_cert("127.0.0.1")


async def echo(websocket: StreamWebSocket) -> None:
    async for message in websocket:
        await websocket.send(message)


@asynccontextmanager
async def served(
    engine: Engine,
    handler: Callable[[StreamWebSocket], Any] = echo,
    *,
    address: str = HERE,
    on_request: Any = None,
    **options: Any,
) -> AsyncIterator[tuple[WebSocketListener, str]]:
    async with trio.open_nursery() as nursery:
        listener: Any = await engine.listen(address, tls=context(), **options)
        assert type(listener) is WebSocketListener
        assert type(listener.listener) is TLSListener

        async def serve() -> None:
            await listener.serve(handler, on_request=on_request)

        nursery.start_soon(serve)
        yield listener, "wss://{}:{}".format(*listener.address[:2])
        nursery.cancel_scope.cancel()


async def test_messages(engine: Engine) -> None:
    options = WebSocketOptions(compression=PerMessageDeflate())
    async with (
        served(engine, websocket=options) as (listener, url),
        open_websocket(
            f"{url}/chat?a=1", tls=client_context(), engine=engine, options=options
        ) as client,
    ):
        assert type(client) is StreamWebSocket
        assert client.request.target == "/chat?a=1"
        for message in ("text", b"binary", "long " * 10_000):
            await client.send(message)
            assert await client.receive() == message
        await client.ping()
        assert listener.statistics().handlers == 1
    assert (client.close_code, client.close_reason) == (1000, "")


async def test_paths_and_pages(engine: Engine) -> None:
    """Refusals and pages come over TLS, too."""

    def on_request(request: Any) -> Response | None:
        return Response(200, b"well") if request.path == "/health" else None

    async with served(engine, address=f"{HERE}/chat", on_request=on_request) as (_, url):
        for path, status in (("/health", 200), ("/elsewhere", 404)):
            with pytest.raises(HandshakeRejected) as caught:
                async with open_websocket(url + path, tls=client_context(), engine=engine):
                    pass
            assert caught.value.status == status
        async with open_websocket(f"{url}/chat", tls=client_context(), engine=engine) as client:
            await client.send("hello")
            assert await client.receive() == "hello"


async def test_with_options_over_tls(engine: Engine) -> None:
    """An address may begin with ``tls://`` as well, as it may with ``tcp://``."""
    address = "tls://127.0.0.1:0"
    async with (
        served(engine, address=address, websocket=WebSocketOptions()) as (_, url),
        open_websocket(url, tls=client_context(), engine=engine) as client,
    ):
        await client.send("hello")
        assert await client.receive() == "hello"


async def test_the_clients_default_context(engine: Engine) -> None:
    """It trusts what the system trusts, which is not the tests' authority."""
    async with served(engine) as (listener, url):
        with pytest.raises(trio.BrokenResourceError) as caught:
            async with open_websocket(url, engine=engine):
                pass
        assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
        await until(lambda: listener.statistics().failed_handshakes == 1)
        await until(lambda: len(engine.connections) == 0)


@pytest.mark.parametrize(("how", "code"), [("raises", 1011), ("cancelled", 1001)])
async def test_the_peer_learns_how_it_ended(engine: Engine, how: str, code: int) -> None:
    async def handler(websocket: StreamWebSocket) -> None:
        await websocket.receive()
        if how == "raises":
            raise KeyError
        nursery.cancel_scope.cancel()
        await trio.sleep_forever()

    listener: Any = await engine.listen(HERE, tls=context())
    url = "wss://{}:{}".format(*listener.address[:2])
    found: list[ConnectionClosed] = []

    async def client() -> None:
        with trio.CancelScope(shield=True):
            async with open_websocket(url, tls=client_context(), engine=engine) as websocket:
                await websocket.send("go")
                with pytest.raises(ConnectionClosed) as caught:
                    await websocket.receive()
                found.append(caught.value)

    with suppress(BaseExceptionGroup):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client)
            nursery.start_soon(listener.serve, handler)
    assert [closed.code for closed in found] == [code]


async def test_the_peers_end_is_no_end_of_serving(engine: Engine) -> None:
    """Neither if it goes without a word, nor if the handler has closed."""

    async def handler(websocket: StreamWebSocket) -> None:
        await websocket.send(await websocket.receive())
        await websocket.receive()

    async with served(engine, handler) as (listener, url):
        for goodbye in (True, False):
            async with open_websocket(url, tls=client_context(), engine=engine) as client:
                await client.send("hello")
                assert await client.receive() == "hello"
                if not goodbye:
                    await trio.aclose_forcefully(client.stream)
        await until(lambda: listener.statistics().handlers == 0)
        async with open_websocket(url, tls=client_context(), engine=engine) as client:
            await client.send("still served")
            assert await client.receive() == "still served"


async def test_serve_messages_is_refused(engine: Engine) -> None:
    listener: Any = await engine.listen(HERE, tls=context())
    with pytest.raises(RuntimeError, match=r"serve_messages\(\) cannot serve TLS.* use serve\(\)"):
        await listener.serve_messages(lambda websocket, messages: None)
    await listener.aclose()


async def test_open_wknet_listener(engine: Engine) -> None:
    listening: Any = open_wknet_listener(HERE, tls=context(), engine=engine)
    async with listening as listener, trio.open_nursery() as nursery:
        assert type(listener) is WebSocketListener
        nursery.start_soon(listener.serve, echo)
        url = "wss://{}:{}".format(*listener.address[:2])
        async with open_websocket(url, tls=client_context(), engine=engine) as client:
            await client.send("hello")
            assert await client.receive() == "hello"
        await listener.drain()


async def test_arguments(engine: Engine) -> None:
    opening: Any = open_websocket
    for url, options, kind, match in (
        ("ws://127.0.0.1:1", {"tls": client_context()}, ValueError, "tls must be None unless url"),
        ("wss://127.0.0.1:1", {"tls": 1}, TypeError, "tls must be an ssl"),
        (
            "wss://127.0.0.1:1",
            {"tls": server_context()},
            ValueError,
            "tls must be a context for a c",
        ),
        ("https://127.0.0.1:1", {}, ValueError, "url must start with 'ws://' or 'wss://'"),
    ):
        with pytest.raises(kind, match=match):
            async with opening(url, engine=engine, **options):
                pass
    with pytest.raises(ValueError, match="must not have a query"):
        await engine.listen(f"{HERE}/?a", tls=context())
    make: Any = WebSocketListener
    with pytest.raises(TypeError, match="listener must be a Listener or a TLSListener"):
        make(None)
