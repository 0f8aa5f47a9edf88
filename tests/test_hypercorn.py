"""hypercorn over `trio_wknet.install`: an ASGI application, and real clients."""

from __future__ import annotations

import http.client
import json
import logging
import os
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import hypercorn.trio
import pytest
import trio
import trustme
from helpers import PATIENCE, content, http_connection, until
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from websockets.sync.client import connect

import trio_wknet
from trio_wknet._engine import default_engine

pytestmark = pytest.mark.usefixtures("nothing_left", "install")
HOST = "127.0.0.1"
NAME = "transport.example"
CA = trustme.CA()
CERTIFICATE = CA.issue_cert(NAME)
CHUNK = 65536
MUCH = 4_000_000  # bytes: more than the buffers between a server and its client take


class App:
    """An ASGI application that tells what it sees."""

    def __init__(self) -> None:
        self.asked = trio.Event()  # for /wait
        self.may_answer = trio.Event()
        self.disconnected = trio.Event()  # while it sent /much

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for _ in ("startup", "shutdown"):
                await send({"type": (await receive())["type"] + ".complete"})
            return
        if scope["type"] == "websocket":
            await self.talk(receive, send)
            return
        answer = {"/facts": self.facts, "/echo": self.echo, "/wait": self.wait, "/much": self.much}
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await answer[scope["path"]](scope, receive, partial(self.send, send))
        await send({"type": "http.response.body", "body": b""})

    async def talk(self, receive: Any, send: Any) -> None:
        await receive()  # that somebody wants to
        await send({"type": "websocket.accept"})
        while (event := await receive())["type"] != "websocket.disconnect":
            await send({**event, "type": "websocket.send"})
        self.disconnected.set()

    async def send(self, send: Any, data: bytes) -> None:
        await send({"type": "http.response.body", "body": data, "more_body": True})

    async def facts(self, scope: Any, receive: Any, send: Any) -> None:
        facts = {name: scope[name] for name in ("client", "server", "http_version")}
        here = len(default_engine(None).connections)
        await send(json.dumps({**facts, "connections": here}).encode())

    async def echo(self, scope: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            event = await receive()
            if event["type"] == "http.disconnect":
                self.disconnected.set()
                return
            await send(event["body"])
            more = event["more_body"]

    async def wait(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked.set()
        await self.may_answer.wait()
        await send(b"at last")

    async def much(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()  # the request
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.cancel_on_disconnect, receive, nursery.cancel_scope)
            data = content("much", MUCH)
            for start in range(0, MUCH, CHUNK):
                await send(data[start : start + CHUNK])
            nursery.cancel_scope.cancel()

    async def cancel_on_disconnect(self, receive: Any, scope: trio.CancelScope) -> None:
        if (await receive())["type"] == "http.disconnect":
            self.disconnected.set()
            scope.cancel()


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def tls(tmp_path: Path) -> dict[str, str]:
    """Settings of a server with a certificate."""
    certificate, key = tmp_path / "server.pem", tmp_path / "server.key"
    CERTIFICATE.cert_chain_pems[0].write_to_path(str(certificate))
    CERTIFICATE.private_key_pem.write_to_path(str(key))
    CA.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return {"certfile": str(certificate), "keyfile": str(key)}


class Server:
    """Where a server is, and its end."""

    def __init__(self) -> None:
        self.stop = trio.Event()
        self.stopped = trio.Event()

    async def serve(self, app: App, config: Config, *, task_status: Any) -> None:
        await hypercorn.trio.serve(
            app, config, shutdown_trigger=self.stop.wait, task_status=task_status
        )
        self.stopped.set()

    def found_at(self, bind: str) -> None:
        parts = urlsplit(bind.replace("unix:", ""))
        name = NAME if parts.scheme == "https" else HOST
        self.url = f"{parts.scheme}://{name}:{parts.port}"
        self.address: Any = (HOST, parts.port)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, PATIENCE)

    def facts(self) -> Any:
        """By Python's own client."""
        connection = http_connection(self.address)
        try:
            connection.request("GET", "/facts")
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()


@asynccontextmanager
async def served(app: App, **settings: Any) -> AsyncIterator[Server]:
    """A server that runs meanwhile, and has nothing to complain of."""
    problems: list[str] = []
    log = logging.Logger("hypercorn of this test", logging.WARNING)
    log.addHandler(Complaints(problems))
    config = Config.from_mapping(**{"bind": f"{HOST}:0", "errorlog": log, **settings})
    server = Server()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            server.found_at(*await nursery.start(server.serve, app, config))
            yield server
            server.stop.set()
    assert problems == []


class Complaints(logging.Handler):
    def __init__(self, problems: list[str]) -> None:
        super().__init__()
        self.problems = problems

    def emit(self, record: logging.LogRecord) -> None:
        self.problems.append(self.format(record))


in_thread = trio.to_thread.run_sync


# -- HTTP/1.1 --------------------------------------------------------------------


async def test_several_requests_on_one_connection(app: App) -> None:
    def ask(server: Server) -> None:
        connection = http_connection(server.address)
        connection.connect()
        client = list(connection.sock.getsockname())
        for _ in range(3):
            connection.request("GET", "/facts")
            facts = json.loads(connection.getresponse().read())
            assert facts == {
                "client": client,
                "server": list(server.address),
                "http_version": "1.1",
                "connections": 1,
            }
        connection.close()

    async with served(app) as server:
        await in_thread(ask, server)


@pytest.mark.parametrize("framing", ["content-length", "chunked"])
async def test_bodies_in_both_directions(framing: str, app: App) -> None:
    data = content(framing, 1_000_000)
    pieces = [data[start : start + 70_000] for start in range(0, len(data), 70_000)]

    def ask(server: Server) -> bytes:
        connection = http_connection(server.address)
        try:
            body: Any = data if framing == "content-length" else iter(pieces)
            connection.request("POST", "/echo", body)
            return connection.getresponse().read()
        finally:
            connection.close()

    async with served(app) as server:
        assert await in_thread(ask, server) == data


async def test_websockets(app: App) -> None:
    def talk(url: str) -> None:
        with connect(url, open_timeout=PATIENCE, ping_interval=None) as websocket:
            for message in ("text", content("websocket", 300_000), ""):
                websocket.send(message)
                assert websocket.recv(PATIENCE) == message

    async with served(app) as server:
        await in_thread(talk, server.url.replace("http", "ws"))
        await app.disconnected.wait()


async def test_on_a_unix_socket(app: App, tmp_path: Path) -> None:
    def ask() -> bytes:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(tmp_path / "socket"))
            sock.sendall(b"GET /facts HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            return all_of(sock)

    async with served(app, bind=f"unix:{tmp_path}/socket"):
        assert b'"connections": 1' in await in_thread(ask)


CURL = shutil.which("curl")


async def curl(*arguments: str, data: bytes = b"") -> bytes:
    command = ["curl", "--silent", "--show-error", "--fail", "--max-time", "20", *arguments]
    result = await trio.run_process(command, stdin=data, capture_stdout=True)
    return result.stdout


@pytest.mark.skipif(CURL is None, reason="there is no curl")
async def test_curl(app: App) -> None:
    data = content("curl", 300_000)
    async with served(app) as server:
        answer = await curl("--data-binary", "@-", f"{server.url}/echo", data=data)
        assert answer == data


# -- HTTP/2 ----------------------------------------------------------------------


def trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    CA.configure_trust(context)
    return context


class Here(httpx.BaseTransport):
    """Every name is this machine's; the certificate's name stays in the request."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.inner = httpx.HTTPTransport(http2=True, verify=context)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.extensions["sni_hostname"] = request.url.host
        request.url = request.url.copy_with(host=HOST)
        return self.inner.handle_request(request)

    def close(self) -> None:
        self.inner.close()


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What hypercorn is given to serve."""
    seen: list[Any] = []
    init = TCPServer.__init__

    def remembering(self: TCPServer, *args: Any) -> None:
        seen.append(args[-1])
        init(self, *args)

    monkeypatch.setattr(TCPServer, "__init__", remembering)
    return seen


async def test_http2_over_tls(app: App, tls: dict[str, str], streams: list[Any]) -> None:
    data = content("h2", 300_000)

    def ask(server: Server) -> None:
        with httpx.Client(transport=Here(trusting()), timeout=PATIENCE) as client:
            response = client.get(f"{server.url}/facts")
            assert response.http_version == "HTTP/2"
            assert response.json()["http_version"] == "2"
            for _ in range(3):
                assert client.post(f"{server.url}/echo", content=data).content == data
            assert client.get(f"{server.url}/facts").json()["connections"] == 1

    async with served(app, **tls) as server:
        await in_thread(ask, server)
    assert [type(it) for it in streams] == [trio_wknet.TLSStream]


def curl_speaks(protocol: str) -> bool:
    if CURL is None:
        return False
    version = subprocess.run([CURL, "--version"], capture_output=True, text=True, check=True)
    return protocol in version.stdout.split()


@pytest.mark.skipif(not curl_speaks("HTTP2"), reason="there is no curl with HTTP/2")
@pytest.mark.parametrize("version", ["http1.1", "http2"])
async def test_curl_over_tls(version: str, app: App, tls: dict[str, str], tmp_path: Path) -> None:
    async with served(app, **tls) as server:
        there = ["--resolve", f"{NAME}:{server.address[1]}:{HOST}"]
        trusted = ["--cacert", str(tmp_path / "ca.pem")]
        url = f"{server.url}/much"
        both = ["--parallel", url, url, "--output", "one", "--output", "two"]
        with trio.fail_after(PATIENCE):
            facts = await curl(f"--{version}", *there, *trusted, f"{server.url}/facts")
            assert json.loads(facts)["http_version"] == version[4:]
            where = ["--output-dir", str(tmp_path)]
            await curl(f"--{version}", *there, *trusted, *where, *both)
        for name in ("one", "two"):
            assert (tmp_path / name).read_bytes() == content("much", MUCH)


# -- load ------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("wrk") is None, reason="there is no wrk")
async def test_wrk(app: App) -> None:
    async with served(app) as server:
        command = ["wrk", "-t1", "-c64", "-d1s", f"{server.url}/facts"]
        result = await trio.run_process(command, capture_stdout=True)
        assert b"requests in" in result.stdout
        assert b"Socket errors" not in result.stdout
        assert b"Non-2xx" not in result.stdout


@pytest.mark.skipif(shutil.which("h2load") is None, reason="there is no h2load")
async def test_h2load(app: App, tls: dict[str, str]) -> None:
    async with served(app, **tls) as server:
        url = f"https://{HOST}:{server.address[1]}/facts"
        command = ["h2load", "-n400", "-c8", "-m10", url]
        result = await trio.run_process(command, capture_stdout=True)
        assert b"400 succeeded, 0 failed, 0 errored, 0 timeout" in result.stdout


# -- the end ---------------------------------------------------------------------


def all_of(sock: socket.socket) -> bytes:
    data = b""
    while more := sock.recv(65536):
        data += more
    return data


def refused(address: Any) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(address) != 0


async def test_graceful_shutdown(app: App) -> None:
    """Idle connections are closed, and a request under way is answered."""
    async with served(app, keep_alive_timeout=30, graceful_timeout=30) as server:
        with server.connect() as idle, server.connect() as busy:
            await in_thread(idle.sendall, b"GET /facts HTTP/1.1\r\nhost: x\r\n\r\n")
            assert b"200" in await in_thread(idle.recv, 100)
            await in_thread(busy.sendall, b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n")
            await app.asked.wait()
            server.stop.set()
            await in_thread(all_of, idle)
            assert await in_thread(refused, server.address)
            assert not server.stopped.is_set()
            app.may_answer.set()
            answer = await in_thread(all_of, busy)
            assert answer.endswith(b"7\r\nat last\r\n0\r\n\r\n")
            await server.stopped.wait()


async def test_who_does_not_end_is_cut_off(app: App) -> None:
    async with served(app, graceful_timeout=0.01) as server:
        with server.connect() as sock:
            await in_thread(sock.sendall, b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n")
            await app.asked.wait()
            server.stop.set()
            await server.stopped.wait()
            answer = await in_thread(all_of, sock)
            assert not answer.endswith(b"0\r\n\r\n")


# -- bad clients -----------------------------------------------------------------


class Patience:
    """Hypercorn's, with clients that ask for nothing, also those that are gone: it is over
    when a test says so, instead of after some milliseconds, which a busy machine takes."""

    def __init__(self) -> None:
        self.over = trio.Event()

    def ends(self) -> None:
        """For those that wait now, not for who comes later."""
        self.over.set()
        self.over = trio.Event()

    async def is_lost(self) -> None:
        """Return when every connection has ended."""
        await self.ends_until(lambda: len(default_engine(None).connections) == 0)

    async def ends_until(self, condition: Callable[[], bool]) -> None:
        def holds() -> bool:
            self.ends()
            return condition()

        await until(holds, "the end of the others")


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> Patience:
    patience = Patience()

    async def wait(self: TCPServer) -> None:
        await patience.over.wait()
        with trio.CancelScope(shield=True):
            await self._initiate_server_close()

    monkeypatch.setattr(TCPServer, "_idle_timeout", wait)
    return patience


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def test_a_client_that_resets_while_it_is_answered(app: App, patience: Patience) -> None:
    async with served(app) as server:
        with server.connect() as sock:
            await in_thread(sock.sendall, b"GET /much HTTP/1.1\r\nhost: x\r\n\r\n")
            assert await in_thread(sock.recv, 1000)
            reset(sock)
        await app.disconnected.wait()
        await patience.is_lost()
        assert (await in_thread(server.facts))["connections"] == 1
        await patience.is_lost()


async def test_a_client_that_resets_while_it_asks(app: App, patience: Patience) -> None:
    async with served(app) as server:
        with server.connect() as sock:
            request = b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n"
            await in_thread(sock.sendall, request + b"half")
            assert await in_thread(sock.recv, 1000)
            reset(sock)
        await app.disconnected.wait()
        await patience.is_lost()
        assert (await in_thread(server.facts))["connections"] == 1
        await patience.is_lost()


@pytest.mark.parametrize("said", [b"", b"GET /fac", b"nonsense\r\n\r\n"])
async def test_a_client_that_leaves_before_it_has_asked(
    said: bytes, app: App, patience: Patience
) -> None:
    hears_the_end = trio.Event()

    async def hear(sock: socket.socket) -> None:
        await in_thread(all_of, sock)
        hears_the_end.set()

    async with served(app) as server:
        with server.connect() as sock:
            await in_thread(sock.sendall, said)
            sock.shutdown(socket.SHUT_WR)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(hear, sock)
                await patience.ends_until(hears_the_end.is_set)
        await patience.is_lost()
        assert (await in_thread(server.facts))["connections"] == 1
        await patience.is_lost()


async def test_a_slow_client_gets_everything_and_holds_nobody_up(app: App) -> None:
    def ask(sock: socket.socket) -> http.client.HTTPResponse:
        sock.connect(server.address)
        sock.sendall(b"GET /much HTTP/1.1\r\nhost: x\r\n\r\n")
        response = http.client.HTTPResponse(sock)
        response.begin()
        return response

    async with served(app) as server:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.settimeout(PATIENCE)
            with await in_thread(ask, sock) as response:
                data = await in_thread(response.read, 1000)
                for _ in range(3):
                    assert (await in_thread(server.facts))["connections"] >= 2
                    data += await in_thread(response.read, 1000)
                data += await in_thread(response.read)
                assert data == content("much", MUCH)
        assert not app.disconnected.is_set()


# -- its command line ------------------------------------------------------------

MODULE = """
import trio_wknet
from trio_wknet._engine import default_engine

trio_wknet.install(reactors=REACTORS)

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for _ in ("startup", "shutdown"):
            await send({"type": (await receive())["type"] + ".complete"})
        return
    here = b"%d" % len(default_engine(None).connections)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": here})
"""


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


@contextmanager
def hypercorns_command_line(*arguments: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "hypercorn", "--worker-class", "trio", *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(trio_wknet.__file__).parent.parent)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize("reactors", [1])
async def test_the_command_line(reactors: int, tmp_path: Path) -> None:
    """Two processes accept from one socket."""
    (tmp_path / "module.py").write_text(MODULE.replace("REACTORS", str(reactors)))
    with socket.create_server((HOST, 0)) as sock:
        here = ["--workers", "2", "--bind", f"fd://{sock.fileno()}", "module:app"]
        options = {"pass_fds": [sock.fileno()], "cwd": tmp_path}
        with hypercorns_command_line(*here, **options) as process:
            for _ in range(20):
                connection = http_connection(sock.getsockname())
                connection.request("GET", "/")
                assert int(connection.getresponse().read()) >= 1
                connection.close()
            # It starts its workers first.
            await until(lambda: catches(process.pid, signal.SIGTERM), "a handler")
            process.terminate()
            _, errors = process.communicate(timeout=PATIENCE)
            assert "Traceback" not in errors
            assert process.returncode == 0
