"""TLSStream against other implementations' ends: new keys, renegotiation, truncation."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from helpers import PATIENCE, content, plain_pair, read, read_all, until
from OpenSSL import SSL
from tls_helpers import CA, CERTIFICATE, NAME, client_context, server_context
from trio.testing import wait_all_tasks_blocked

from trio_wknet import Engine, IncompleteRead, TLSListener, TLSStream

NODE, CURL = shutil.which("node"), shutil.which("curl")
needs_node = pytest.mark.skipif(NODE is None, reason="there is no node")
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl")
VERSIONS = ["tls12", "tls13"]


# -- Python's own sockets, in a thread ---------------------------------------------------


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@asynccontextmanager
async def with_peer(engine: Engine, talk: Callable[[socket.socket], None]) -> AsyncIterator[Any]:
    """A connection, whose other end a thread talks on."""
    ours, theirs = plain_pair()
    theirs.settimeout(PATIENCE)
    conn = engine.adopt(ours)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, talk, theirs)
            try:
                yield conn
            except BaseException:
                theirs.shutdown(socket.SHUT_RDWR)  # or the thread would wait on
                raise
    finally:
        theirs.close()
        conn.abort()  # type: ignore[union-attr]


def echo(sock: ssl.SSLSocket) -> None:
    while data := sock.recv(65536):
        sock.sendall(data)
    sock.unwrap().close()


async def exchange(stream: TLSStream) -> None:
    data = content("python", 300_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, data)
        assert await read(stream, len(data)) == data
    raw, behind = await stream.unwrap()
    assert behind == b""
    await raw.aclose()


async def test_pythons_server(engine: Engine, version: str) -> None:
    def talk(sock: socket.socket) -> None:
        echo(server_context(version).wrap_socket(sock, server_side=True))

    async with with_peer(engine, talk) as conn:
        await exchange(TLSStream(conn, client_context(version), server_hostname=NAME))


async def test_pythons_client(engine: Engine, version: str) -> None:
    def talk(sock: socket.socket) -> None:
        echo(client_context(version).wrap_socket(sock, server_hostname=NAME))

    async with with_peer(engine, talk) as conn:
        await exchange(TLSStream(conn, server_context(version), server_side=True))


async def test_a_server_that_nobody_vouches_for(engine: Engine, version: str) -> None:
    def talk(sock: socket.socket) -> None:
        with pytest.raises((ssl.SSLError, OSError)):
            server_context(version).wrap_socket(sock, server_side=True).recv(1)

    async with with_peer(engine, talk) as conn:
        context = ssl.create_default_context()
        stream = TLSStream(conn, context, server_hostname=NAME)
        with pytest.raises(trio.BrokenResourceError) as raised:
            await stream.send_all(b"x")
        assert isinstance(raised.value.__cause__, ssl.SSLCertVerificationError)
        await stream.aclose()


# -- renegotiation, of TLS 1.2 -----------------------------------------------------------


class Renegotiating:
    """A server that negotiates again before it answers, and waits until it may."""

    def __init__(self) -> None:
        self.may_go_on = threading.Event()
        self.renegotiations = 0

    def __call__(self, sock: socket.socket) -> None:
        sock.settimeout(None)  # pyOpenSSL takes a timeout for non-blocking
        context = SSL.Context(SSL.TLSv1_2_METHOD)
        CERTIFICATE.configure_cert(context)
        server = SSL.Connection(context, sock)
        server.set_accept_state()
        server.do_handshake()
        for _ in range(3):
            received = server.recv(1)
            server.renegotiate()
            server.do_handshake()  # asks for it
            assert self.may_go_on.wait(PATIENCE)
            server.sendall(received)
            received = server.recv(1)
            server.sendall(received)
        self.renegotiations = server.total_renegotiations()
        server.shutdown()


@pytest.mark.parametrize("direction", ["receive", "both"])
async def test_renegotiation(engine: Engine, direction: str) -> None:
    """A receive has to send; a send that comes meanwhile has to receive, and both wait for
    the same bytes."""
    server = Renegotiating()
    async with with_peer(engine, server) as conn:
        stream = TLSStream(conn, client_context("tls12"), server_hostname=NAME)
        for _ in range(3):
            server.may_go_on.clear()
            await stream.send_all(b"a")
            async with trio.open_nursery() as nursery:
                if direction == "both":
                    sent = conn.statistics().bytes_sent
                    nursery.start_soon(expect, stream, b"ab")
                    await until(lambda: conn.statistics().bytes_sent > sent)  # noqa: B023
                    await wait_all_tasks_blocked()
                    nursery.start_soon(stream.send_all, b"b")
                    await wait_all_tasks_blocked()
                    server.may_go_on.set()
                else:
                    server.may_go_on.set()
                    await expect(stream, b"a")
                    await stream.send_all(b"b")
                    await expect(stream, b"b")
        assert await read_all(stream) == b""
        await stream.aclose()
    assert server.renegotiations == 3


async def expect(stream: TLSStream, data: bytes) -> None:
    assert await read(stream, len(data)) == data


# -- OpenSSL's own programs --------------------------------------------------------------


class Program:
    """One that runs meanwhile, with what it has written so far."""

    def __init__(self, *command: str) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.written = b""

    def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def _read_until(self, text: bytes) -> bytes:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.written += line
            if text in line:
                return line
        raise AssertionError(self.written.decode())

    async def shows(self, text: bytes) -> bytes:
        """Wait for a line with this."""
        with trio.fail_after(PATIENCE):
            return await trio.to_thread.run_sync(self._read_until, text, abandon_on_cancel=True)


@asynccontextmanager
async def program(*command: str) -> AsyncIterator[Program]:
    running = Program(*command)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.communicate()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    paths = {name: str(tmp_path / name) for name in ("ca", "cert", "key")}
    CA.cert_pem.write_to_path(paths["ca"])
    CERTIFICATE.cert_chain_pems[0].write_to_path(paths["cert"])
    CERTIFICATE.private_key_pem.write_to_path(paths["key"])
    return paths


def flag(version: str) -> str:
    return {"tls12": "-tls1_2", "tls13": "-tls1_3"}[version]


@asynccontextmanager
async def s_server(engine: Engine, files: dict[str, str], version: str) -> AsyncIterator[Any]:
    """It, and a stream to it."""
    command = ["openssl", "s_server", "-accept", "127.0.0.1:0", "-naccept", "1", flag(version)]
    command += ["-cert", files["cert"], "-key", files["key"]]
    async with program(*command) as server:
        port = int((await server.shows(b"ACCEPT ")).strip().rpartition(b":")[2])
        async with await engine.connect(f"tcp://127.0.0.1:{port}") as conn:
            yield server, TLSStream(conn, client_context(version), server_hostname=NAME)


@asynccontextmanager
async def s_client(engine: Engine, files: dict[str, str], version: str) -> AsyncIterator[Any]:
    """It, and a stream from it."""
    listener = await engine.listen("tcp://127.0.0.1:0")
    host, port = listener.socket.getsockname()
    command = [
        "openssl",
        "s_client",
        "-connect",
        f"{host}:{port}",
        flag(version),
        "-servername",
        NAME,
    ]
    command += ["-CAfile", files["ca"], "-verify_return_error"]
    async with program(*command) as client, listener, await listener.accept() as conn:
        yield client, TLSStream(conn, server_context(version), server_side=True)


async def talk_to(stream: TLSStream, peer: Program, line: bytes) -> None:
    """A line each way."""
    peer.write(b"to us: " + line + b"\n")
    await expect(stream, b"to us: " + line + b"\n")
    await stream.send_all(b"from us: " + line + b"\n")
    await peer.shows(b"from us: " + line)


@needs_openssl
@pytest.mark.parametrize(
    ("version", "command"), [("tls13", b"K"), ("tls13", b"k"), ("tls12", b"r")]
)
async def test_openssls_server_wants_new_keys(
    engine: Engine, files: dict[str, str], version: str, command: bytes
) -> None:
    """As its standard input tells it to."""
    async with s_server(engine, files, version) as (server, stream):
        await stream.do_handshake()
        conn = stream.transport_stream
        for number in range(3):
            await talk_to(stream, server, b"%d" % number)
            async with trio.open_nursery() as nursery:
                received, sent = conn.statistics().bytes_received, conn.statistics().bytes_sent
                nursery.start_soon(expect, stream, b"to us: again\n")
                server.write(command + b"\n")
                await until(lambda: conn.statistics().bytes_received > received)  # noqa: B023
                if command == b"r":
                    await until(lambda: conn.statistics().bytes_sent > sent)  # noqa: B023
                server.write(b"to us: again\n")
        await stream.aclose()


@needs_openssl
@pytest.mark.parametrize("command", [b"K", b"k"])
async def test_openssls_client_wants_new_keys(
    engine: Engine, files: dict[str, str], command: bytes
) -> None:
    async with s_client(engine, files, "tls13") as (client, stream):
        await stream.do_handshake()
        await stream.send_all(b"tickets, too\n")
        await client.shows(b"tickets, too")
        for number in range(3):
            client.write(command + b"\n")
            await client.shows(b"KEYUPDATE")
            await talk_to(stream, client, b"%d" % number)
        await stream.aclose()


@needs_openssl
async def test_new_keys_where_no_task_waits(engine: Engine, files: dict[str, str]) -> None:
    async with s_client(engine, files, "tls13") as (client, stream):
        await stream.do_handshake()
        stream.send_nowait(b"tickets, too\n")
        await client.shows(b"tickets, too")
        got = bytearray()

        def all_came(size: int) -> bool:
            with suppress(trio.WouldBlock):
                got.extend(stream.receive_nowait())
            return len(got) == size

        for number in range(3):
            client.write(b"K\n")
            await client.shows(b"KEYUPDATE")
            client.write(b"to us\n")
            await until(partial(all_came, 6 * (number + 1)))
            stream.send_nowait(b"from us: %d\n" % number)
            await client.shows(b"from us: %d" % number)
        assert got == b"to us\n" * 3
        await stream.aclose()


@needs_openssl
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("end", ["goodbye", "killed"])
async def test_openssls_client_ends(
    engine: Engine, files: dict[str, str], version: str, end: str
) -> None:
    async with s_client(engine, files, version) as (client, stream):
        await stream.do_handshake()
        await stream.send_all(b"welcome\n")
        await client.shows(b"welcome")
        await talk_to(stream, client, b"last")
        if end == "goodbye":
            client.write(b"Q\n")
            assert await stream.receive_some() == b""
        else:
            client.process.kill()
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
        await stream.aclose()


# -- Node's TLS, and curl's --------------------------------------------------------------

NODES_SERVER = """
const [cert, key, version] = process.argv.slice(1);
const fs = require("fs"), tls = require("tls");
const options = {cert: fs.readFileSync(cert), key: fs.readFileSync(key)};
const versions = {minVersion: version, maxVersion: version, allowHalfOpen: true};
const server = tls.createServer({...options, ...versions}, (socket) => socket.pipe(socket));
server.listen(0, "127.0.0.1", () => console.log("port", server.address().port));
"""
NODES_CLIENT = """
const [ca, version, port, name] = process.argv.slice(1);
const fs = require("fs"), tls = require("tls");
const where = {host: "127.0.0.1", port: Number(port), servername: name};
const versions = {minVersion: version, maxVersion: version, ca: fs.readFileSync(ca)};
const socket = tls.connect({...where, ...versions});
process.stdin.pipe(socket).pipe(process.stdout);
"""


def number(version: str) -> str:
    return {"tls12": "TLSv1.2", "tls13": "TLSv1.3"}[version]


# Node takes a while to start: one form is enough.
@needs_node
@pytest.mark.parametrize("reactors", [1])
async def test_nodes_server(engine: Engine, files: dict[str, str], version: str) -> None:
    assert NODE is not None
    command = (NODE, "-e", NODES_SERVER, files["cert"], files["key"], number(version))
    async with program(*command) as server:
        port = (await server.shows(b"port ")).split()[1].decode()
        stream = await engine.connect(
            f"tls://127.0.0.1:{port}", tls=client_context(version), server_hostname=NAME
        )
        assert stream.version() == number(version)
        await exchange(stream)


@needs_node
@pytest.mark.parametrize("reactors", [1])
async def test_nodes_client(engine: Engine, files: dict[str, str], version: str) -> None:
    assert NODE is not None
    data = content("node", 300_000)

    async def echo(stream: TLSStream) -> None:
        async for piece in stream:
            await stream.send_all(piece)

    async with trio.open_nursery() as nursery:
        listener = await engine.listen("tls://127.0.0.1:0", tls=server_context(version))
        nursery.start_soon(listener.serve, echo)
        command = [NODE, "-e", NODES_CLIENT, files["ca"], number(version)]
        here = [str(listener.address[1]), NAME]
        result = await trio.run_process([*command, *here], stdin=data, capture_stdout=True)
        assert result.stdout == data
        await listener.drain()


@pytest.mark.skipif(CURL is None, reason="there is no curl")
@pytest.mark.parametrize("https_compatible", [False, True])
async def test_curl(
    engine: Engine, files: dict[str, str], version: str, https_compatible: bool
) -> None:
    """Two requests on one connection, which curl ends as it likes."""
    assert CURL is not None
    body = content("curl", 300_000)

    async def answer(stream: TLSStream) -> None:
        with suppress(IncompleteRead, trio.BrokenResourceError):
            while True:
                request = await stream.receive_until(b"\r\n\r\n")
                assert request.startswith(b"GET / HTTP/1.1\r\n")
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
                await stream.send_all(head.encode() + body)

    async with trio.open_nursery() as nursery:
        listener = TLSListener(
            await engine.listen("tcp://127.0.0.1:0"),
            server_context(version),
            https_compatible=https_compatible,
        )
        nursery.start_soon(listener.serve, answer)
        address: Any = listener.address
        there = ["--resolve", f"{NAME}:{address[1]}:127.0.0.1", "--cacert", files["ca"]]
        url = f"https://{NAME}:{address[1]}/"
        result = await trio.run_process([CURL, "-sSf", *there, url, url], capture_stdout=True)
        assert result.stdout == body * 2
        assert listener.statistics().accepted == 1
        await listener.drain()
