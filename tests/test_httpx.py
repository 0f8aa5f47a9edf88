"""httpx over `trio_wknet.install`, against a server of the standard library's."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import hypercorn.trio
import pytest
import trio
import trustme
from helpers import PATIENCE, content, until
from hypercorn.config import Config

from trio_wknet import TLSStream
from trio_wknet._engine import default_engine
from trio_wknet._sockets.facade import SocketFacade

pytestmark = pytest.mark.usefixtures("nothing_left", "install")
HOST = "127.0.0.1"
CA = trustme.CA()
CERTIFICATE = CA.issue_cert("localhost")
BODY = content("httpx", 300_000)


class Handler(BaseHTTPRequestHandler):
    """Keeps connections open, and says which one a request came on."""

    protocol_version = "HTTP/1.1"
    timeout = PATIENCE
    server: Server

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1
        self.number = self.server.connections

    def do_GET(self) -> None:
        if self.path == "/wait":
            self.server.release.wait(PATIENCE)
        body = BODY if self.path == "/body" else b"on connection %d" % self.number
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        half, reset = self.path.startswith("/half"), self.path.endswith("-reset")
        self.wfile.write(body[: len(body) // 2] if half else body)
        if self.path.startswith("/leave"):
            self.server.release.wait(PATIENCE)
        if reset:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = half or reset or self.path == "/leave"

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 100  # else the kernel lets some of many wait for a second

    def __init__(self, context: ssl.SSLContext | None) -> None:
        super().__init__((HOST, 0), Handler)
        self.connections = 0
        self.release = threading.Event()
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True)
        scheme, host = ("http", HOST) if context is None else ("https", "localhost")
        self.url = f"{scheme}://{host}:{self.server_address[1]}"

    def shutdown_request(self, request: Any) -> None:
        self.close_request(request)  # without FIN before a reset

    def handle_error(self, *args: Any) -> None:
        pass  # a client that is gone


@contextmanager
def running(context: ssl.SSLContext | None = None) -> Iterator[Server]:
    server = Server(context)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.release.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    with running() as server:
        yield server


@pytest.fixture
async def client(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    with trio.fail_after(30):
        # To load the authorities that nobody asks for is slow.
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE, verify=False) as client:
            yield client


def connection(response: httpx.Response) -> int:
    return int(response.text.removeprefix("on connection "))


def sock(response: httpx.Response) -> Any:
    return response.extensions["network_stream"].get_extra_info("socket")


def stream_of(response: httpx.Response) -> Any:
    return response.extensions["network_stream"]._stream


# -- the pool --------------------------------------------------------------------


async def test_a_connection_is_used_again(client: httpx.AsyncClient) -> None:
    for _ in range(3):
        response = await client.get("/")
        assert connection(response) == 1
        assert isinstance(sock(response), SocketFacade)
        assert not sock(response).is_readable()
    stream = response.extensions["network_stream"]
    assert stream.get_extra_info("server_addr") == sock(response).getpeername()
    assert stream.get_extra_info("client_addr") == sock(response).getsockname()


@pytest.mark.parametrize("path", ["/leave", "/leave-reset"])
async def test_a_pooled_connection_that_the_server_closed(
    path: str, server: Server, client: httpx.AsyncClient
) -> None:
    """httpx asks whether it is readable: it is, and is not used again."""
    response = await client.get(path)
    assert connection(response) == 1
    assert not sock(response).is_readable()
    server.release.set()
    await until(sock(response).is_readable, "the end")
    assert connection(await client.get("/")) == 2
    assert len(default_engine(None).connections) == 1


async def test_many_at_once(client: httpx.AsyncClient) -> None:
    async def ask() -> None:
        assert (await client.get("/body")).content == BODY
        assert (await client.post("/", content=BODY)).content == BODY

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask)


async def test_closing_the_client_closes_its_connections(server: Server) -> None:
    async with httpx.AsyncClient() as client:
        await client.get(server.url)
        assert len(default_engine(None).connections) == 1
    assert len(default_engine(None).connections) == 0


# -- errors ----------------------------------------------------------------------


async def test_nobody_listens() -> None:
    with socket.socket() as nobody:
        nobody.bind((HOST, 0))
        async with httpx.AsyncClient() as client:
            with pytest.raises(httpx.ConnectError):
                await client.get(f"http://{HOST}:{nobody.getsockname()[1]}")


@pytest.mark.parametrize(
    ("path", "error"), [("/half", httpx.RemoteProtocolError), ("/half-reset", httpx.ReadError)]
)
async def test_half_an_answer(path: str, error: type[Exception], client: httpx.AsyncClient) -> None:
    with pytest.raises(error):
        await client.get(path)
    assert (await client.get("/body")).content == BODY


async def test_a_timeout(client: httpx.AsyncClient, server: Server) -> None:
    assert connection(await client.get("/")) == 1
    with pytest.raises(httpx.ReadTimeout):
        await client.get("/wait", timeout=httpx.Timeout(PATIENCE, read=0.001))
    server.release.set()
    assert connection(await client.get("/")) == 2  # not that one


async def test_a_cancelled_download(client: httpx.AsyncClient) -> None:
    with trio.CancelScope() as scope:
        async with client.stream("GET", "/body") as response:
            async for _ in response.aiter_raw(1000):
                scope.cancel()
    assert scope.cancelled_caught
    assert (await client.get("/body")).content == BODY


# -- TLS -------------------------------------------------------------------------


def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The server's, and the client's."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    CERTIFICATE.configure_cert(server)
    client = ssl.create_default_context()
    CA.configure_trust(client)
    return server, client


async def test_https() -> None:
    ours, theirs = contexts()
    with running(ours) as server:
        async with httpx.AsyncClient(verify=theirs, base_url=server.url) as client:
            for _ in range(3):
                response = await client.post("/", content=BODY)
                assert response.content == BODY
                assert type(stream_of(response)) is TLSStream
            response = await client.get("/leave")
            assert connection(response) == 1
            assert isinstance(sock(response), SocketFacade)
            server.release.set()
            await until(sock(response).is_readable, "the end")
            assert connection(await client.get("/")) == 2
        async with httpx.AsyncClient() as stranger:
            with pytest.raises(httpx.ConnectError):
                await stranger.get(server.url)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Sends back what it is sent."""
    if scope["type"] == "lifespan":
        for _ in ("startup", "shutdown"):
            await send({"type": (await receive())["type"] + ".complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    more = True
    while more:
        event = await receive()
        more = event["more_body"]
        body = {"type": "http.response.body", "body": event["body"], "more_body": more}
        await send(body)


async def test_http2_with_hypercorn(tmp_path: Any) -> None:
    """Both ends on reactors, and all requests at once on one connection."""
    files = [str(tmp_path / name) for name in ("server.pem", "server.key")]
    CERTIFICATE.cert_chain_pems[0].write_to_path(files[0])
    CERTIFICATE.private_key_pem.write_to_path(files[1])
    config = Config.from_mapping(
        bind=f"{HOST}:0", errorlog=None, certfile=files[0], keyfile=files[1]
    )
    stop = trio.Event()

    async def ask(client: httpx.AsyncClient, number: int) -> None:
        data = content(number, 100_000)
        response = await client.post("/", content=data)
        assert response.http_version == "HTTP/2"
        assert response.content == data
        assert type(stream_of(response)) is TLSStream

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            serve = partial(hypercorn.trio.serve, app, config, shutdown_trigger=stop.wait)
            (bind,) = await nursery.start(serve)
            url = bind.replace(HOST, "localhost")
            context = contexts()[1]
            async with httpx.AsyncClient(http2=True, verify=context, base_url=url) as client:
                await ask(client, 0)
                async with trio.open_nursery() as requests:
                    for number in range(1, 10):
                        requests.start_soon(ask, client, number)
                assert len(default_engine(None).connections) == 2
            stop.set()
