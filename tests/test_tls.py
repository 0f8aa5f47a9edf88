"""TLS: trio.SSLStream over our connections, against other implementations' clients."""

from __future__ import annotations

import shutil
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
from helpers import PATIENCE, content, read, read_all

import trio_wknet
from trio_wknet import Conn, Listener
from trio_wknet._engine import default_reactors

pytestmark = pytest.mark.usefixtures("nothing_left")
HOST = "127.0.0.1"
NAME = "transport.example"

CA = trustme.CA()
CERTIFICATE = CA.issue_cert(NAME)


def strictly(context: ssl.SSLContext) -> ssl.SSLContext:
    """Tell a connection that was cut off from one that has ended."""
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    return context


def server_context() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    CERTIFICATE.configure_cert(context)
    return strictly(context)


def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    CA.configure_trust(context)
    return strictly(context)


@pytest.fixture(autouse=True)
async def default(reactors: int) -> AsyncIterator[None]:
    default_reactors.set(reactors)
    with trio.fail_after(30):
        yield


async def echo(stream: Any) -> None:
    assert type(stream.transport_stream) is Conn
    async for data in stream:
        await stream.send_all(data)
    await stream.aclose()


@asynccontextmanager
async def served(
    handler: Callable[..., Any] = echo, **options: Any
) -> AsyncIterator[tuple[str, int]]:
    """The address of a server that runs meanwhile."""
    serve = partial(trio_wknet.serve_ssl_over_tcp, handler, 0, server_context(), host=HOST)
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(serve, **options))
        assert type(listener.transport_listener) is Listener
        yield listener.transport_listener.socket.getsockname()
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def told_by_server(**options: Any) -> AsyncIterator[tuple[Any, Any]]:
    """An address, and what the server found when a stream there ended."""
    send, receive = trio.open_memory_channel[Any](1)

    async def handler(stream: Any) -> None:
        try:
            await send.send(await read_all(stream))
        except trio.BrokenResourceError as exc:
            await send.send(exc)

    async with send, receive, served(handler, **options) as address:
        yield address, receive


async def connect(address: Any, context: ssl.SSLContext | None = None) -> Any:
    """A client on our transport."""
    trio.socket.set_custom_hostname_resolver(AtHost())
    context = context or client_context()
    return await trio_wknet.open_ssl_over_tcp_stream(NAME, address[1], ssl_context=context)


class AtHost(trio.abc.HostnameResolver):
    """Everything is here."""

    async def getaddrinfo(self, host: Any, port: Any, *args: Any, **kwargs: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (HOST, port))]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        raise NotImplementedError


# -- both ends, and other clients ------------------------------------------------


async def test_both_ends() -> None:
    data = content("tls", 3_000_000)
    async with served() as address, await connect(address) as stream:
        assert type(stream.transport_stream) is Conn
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, data)
            assert await read(stream, len(data)) == data
        assert stream.version() in ("TLSv1.2", "TLSv1.3")


def talk(address: Any, data: bytes) -> bytes:
    """By Python's own client, blocking: all of it there and back."""
    with socket.create_connection(address, PATIENCE) as plain:
        with client_context().wrap_socket(plain, server_hostname=NAME) as sock:
            answer = b""
            for start in range(0, len(data), 10_000):
                sock.sendall(data[start : start + 10_000])
                while len(answer) < min(start + 10_000, len(data)):
                    answer += sock.recv(65536)
            sock.unwrap()  # raises unless the server says goodbye, too
            return answer


async def test_pythons_client() -> None:
    data = content("python", 200_000)
    async with served() as address:
        assert await trio.to_thread.run_sync(talk, address, data) == data


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl")
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
async def test_openssls_client(version: str, tmp_path: Path) -> None:
    trusted = tmp_path / "ca.pem"
    CA.cert_pem.write_to_path(str(trusted))
    command = ["openssl", "s_client", "-quiet", "-no_ign_eof", version, "-servername", NAME]
    command += ["-CAfile", str(trusted), "-verify_return_error", "-verify_hostname", NAME]
    async with told_by_server() as (address, told):
        result = await trio.run_process(
            [*command, "-connect", f"{HOST}:{address[1]}"], stdin=b"hello\n", capture_stderr=True
        )
        assert await told.receive() == b"hello\n"
    assert b"verify return:1" in result.stderr


async def test_a_client_that_trusts_somebody_else() -> None:
    context = ssl.create_default_context()
    trustme.CA().configure_trust(context)
    async with told_by_server() as (address, told):
        async with await connect(address, context) as stream:
            with pytest.raises(trio.BrokenResourceError) as raised:
                await stream.do_handshake()
            assert isinstance(raised.value.__cause__, ssl.SSLCertVerificationError)
        assert isinstance(await told.receive(), trio.BrokenResourceError)


async def test_a_client_that_does_not_speak_tls() -> None:
    async with told_by_server() as (address, told):
        async with await trio_wknet.open_tcp_stream(*address) as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
            failure = await told.receive()
            assert isinstance(failure.__cause__, ssl.SSLError)


# -- the end ---------------------------------------------------------------------


class Client:
    """A TLS client by hand over a blocking socket, whose two directions end apart."""

    def __init__(self, address: Any) -> None:
        self.sock = socket.create_connection(address, PATIENCE)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = client_context().wrap_bio(self.incoming, self.outgoing, server_hostname=NAME)
        self.until_done(self.tls.do_handshake)

    def flush(self) -> None:
        if self.outgoing.pending:
            self.sock.sendall(self.outgoing.read())

    def until_done(self, call: Callable[[], Any]) -> Any:
        while True:
            try:
                result = call()
            except ssl.SSLWantReadError:
                self.flush()
                self.incoming.write(self.sock.recv(65536))
            else:
                self.flush()
                return result

    def send(self, data: bytes) -> None:
        self.tls.write(data)
        self.flush()

    def end_sending(self) -> None:
        """Say goodbye, and end TCP's direction, too."""
        with pytest.raises(ssl.SSLWantReadError):
            self.tls.unwrap()  # would wait for the server's goodbye
        self.flush()
        self.sock.shutdown(socket.SHUT_WR)

    def receive(self) -> bytes:
        data: bytes = self.until_done(lambda: self.tls.read(65536))
        return data


@asynccontextmanager
async def by_hand(address: Any) -> AsyncIterator[Client]:
    client = await trio.to_thread.run_sync(Client, address)
    with client.sock:
        yield client


async def test_half_close() -> None:
    """The client ends its direction; the server sees that, and goes on in its own."""

    async def handler(stream: Any) -> None:
        question = await read_all(stream)
        await stream.send_all(b"answer to " + question)
        await stream.aclose()

    def ask(client: Client) -> bytes:
        client.send(b"question")
        client.end_sending()
        answer = client.receive()
        client.until_done(client.tls.unwrap)  # the server's goodbye
        assert client.sock.recv(1) == b""
        return answer

    async with served(handler) as address, by_hand(address) as client:
        assert await trio.to_thread.run_sync(ask, client) == b"answer to question"


async def test_an_end_without_goodbye_is_a_truncation() -> None:
    async with told_by_server() as (address, told), by_hand(address) as client:
        client.send(b"half of a")
        client.sock.shutdown(socket.SHUT_WR)
        failure = await told.receive()
        assert isinstance(failure, trio.BrokenResourceError)
        assert isinstance(failure.__cause__, ssl.SSLEOFError)


async def test_https_compatible_takes_it_for_an_end() -> None:
    async with told_by_server(https_compatible=True) as (address, told):
        async with by_hand(address) as client:
            client.send(b"all")
            client.sock.shutdown(socket.SHUT_WR)
            assert await told.receive() == b"all"


async def test_a_reset_is_a_broken_stream() -> None:
    async with told_by_server() as (address, told), by_hand(address) as client:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sock.close()
        assert isinstance(await told.receive(), trio.BrokenResourceError)


async def test_a_server_that_cuts_the_client_off() -> None:
    async def handler(stream: Any) -> None:
        await stream.send_all(b"half of a")
        # The stream is left open: serve_listeners closes it without goodbye.

    async with served(handler) as address, await connect(address) as stream:
        assert await read(stream, 9) == b"half of a"
        with pytest.raises(trio.BrokenResourceError) as raised:
            await stream.receive_some()
        assert isinstance(raised.value.__cause__, ssl.SSLEOFError)
