"""What software sends on the descriptor itself, as os.sendfile does, counts as activity."""

from __future__ import annotations

import os
import socket
import tempfile
import time

import pytest
import trio
from helpers import dial

from trio_wknet import Conn, open_engine

TIMEOUT = 0.4  # seconds
COARSE = 0.02  # seconds: the resolution of the kernel's times, and the margin for it


def write(conn: Conn) -> None:
    os.write(conn.socket.fileno(), b"x")


def sendfile(conn: Conn) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"x")
        file.flush()
        os.sendfile(conn.socket.fileno(), file.fileno(), 0, 1)


@pytest.mark.parametrize("send", [write, sendfile])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_send_on_the_descriptor_is_activity(reactors: int, host: str, send: object) -> None:
    assert callable(send)
    async with open_engine(reactors) as engine:
        url = f"tcp://[{host}]:0" if ":" in host else f"tcp://{host}:0"
        async with await engine.listen(url, idle_timeout=TIMEOUT) as listener:
            with dial(listener) as peer:
                conn = await listener.accept()
                await trio.sleep(0.6 * TIMEOUT)
                send(conn)
                sent = time.monotonic()
                await conn.wait_closed()
                assert time.monotonic() - sent >= TIMEOUT - COARSE
                assert conn.close_reason == "idle"
                assert peer.recv(10) == b"x"


async def test_a_peer_that_only_acknowledges_is_idle(reactors: int) -> None:
    """Keepalive probes and their acknowledgements are no activity."""
    async with open_engine(reactors) as engine:
        async with await engine.listen("tcp://127.0.0.1:0", idle_timeout=1.5) as listener:
            with dial(listener) as peer:
                conn = await listener.accept()
                conn.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                conn.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
                conn.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
                with trio.fail_after(60):
                    await conn.wait_closed()
                assert conn.close_reason == "idle"
                assert peer.recv(10) == b""
