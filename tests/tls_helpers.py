"""What the tests of TLS streams share: contexts, pairs of streams, what a test sees of them."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import trio
import trustme
from helpers import PLAIN, two_conns

from trio_wknet import Conn, ConnOptions, Engine, Limits, TLSStream

NAME = "stream.example"
CA = trustme.CA()
CERTIFICATE = CA.issue_cert(NAME)
VERSIONS = {"tls12": ssl.TLSVersion.TLSv1_2, "tls13": ssl.TLSVersion.TLSv1_3}


# What each stream's OpenSSL writes to.
outgoing: WeakKeyDictionary[ssl.SSLObject, ssl.MemoryBIO] = WeakKeyDictionary()


class Context(ssl.SSLContext):
    """One that lets a test see what is to be sent."""

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        wrapped = super().wrap_bio(*args, **kwargs)
        outgoing[wrapped] = args[1]
        return wrapped


def context(version: str, protocol: Any) -> Context:
    made = Context(protocol)
    made.minimum_version = made.maximum_version = VERSIONS[version]
    # A connection that was cut off is told from one that has ended.
    made.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    return made


@cache
def server_context(version: str = "tls13") -> Context:
    made = context(version, ssl.PROTOCOL_TLS_SERVER)
    CERTIFICATE.configure_cert(made)
    return made


@cache
def client_context(version: str = "tls13") -> Context:
    made = context(version, ssl.PROTOCOL_TLS_CLIENT)
    CA.configure_trust(made)
    return made


async def shake_hands(*streams: TLSStream) -> None:
    async with trio.open_nursery() as nursery:
        for stream in streams:
            nursery.start_soon(stream.do_handshake)


def over(client: Conn, server: Conn, version: str, **options: Any) -> tuple[TLSStream, TLSStream]:
    """TLS over connected connections; no handshake yet."""
    return (
        TLSStream(client, client_context(version), server_hostname=NAME, **options),
        TLSStream(server, server_context(version), server_side=True, **options),
    )


@asynccontextmanager
async def two_tls(
    engine: Engine,
    kind: str = "tcp",
    version: str = "tls13",
    *,
    limits: Limits | None = None,
    options: ConnOptions = PLAIN,
    **tls: Any,
) -> AsyncIterator[tuple[TLSStream, TLSStream]]:
    """Two streams after their handshake."""
    async with two_conns(engine, kind, limits=limits or Limits(), options=options) as conns:
        streams = over(*conns, version, **tls)
        await shake_hands(*streams)
        # Session tickets come along with the server's first record.
        await streams[1].send_all(b"hello")
        assert await streams[0].receive_some() == b"hello"
        yield streams


def records(stream: TLSStream, *plaintexts: bytes) -> bytes:
    """What a stream would send for these, a record each."""
    wire = b""
    for plaintext in plaintexts:
        stream._ssl_object.write(plaintext)
        wire += outgoing[stream._ssl_object].read()
    return wire
