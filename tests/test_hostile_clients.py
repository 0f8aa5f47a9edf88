"""Clients that mean harm, to an HTTP server that knows nothing of `Admission`: hypercorn, under
`install(admission=...)`. Honest clients are answered meanwhile.

slowhttptest and h2load come from Debian; ``nox -s ecosystem`` installs them.
"""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest
import trio
from helpers import installed, until
from test_hypercorn import App, Server, in_thread, served, tls

from trio_wknet import Admission
from trio_wknet._engine import default_engine

__all__ = ["tls"]

pytestmark = pytest.mark.usefixtures("nothing_left", "guarded")
HOSTILE = 60
FLOOD = 1000
FLOODER = "127.0.0.2"
ADMISSION = Admission(
    max_per_address=300,
    first_byte_time=1.0,
    min_rate=2000,
    rate_window=1.0,
    trusted=["127.0.0.9"],  # where honest clients come from
)


@pytest.fixture
def guarded(reactors: int) -> Iterator[None]:
    with installed(reactors, admission=ADMISSION):
        yield


@pytest.fixture
def app() -> App:
    return App()


def honest(server: Server) -> bytes:
    """An answer to a client that is trusted."""
    with socket.create_connection(server.address, 30, ("127.0.0.9", 0)) as sock:
        sock.sendall(b"GET /facts HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        answer = b""
        while data := sock.recv(1000):
            answer += data
        return answer


def ended() -> dict[str, int]:
    """By reason, all that the engine has ended."""
    return dict(default_engine(None).statistics().ended_by)


# -- slow ones -------------------------------------------------------------------


def attacks() -> list[object]:
    everyone = ["-c", str(HOSTILE), "-r", str(HOSTILE), "-l", "60"]
    return [
        pytest.param(["-H", "-i", "1", "-x", "8", *everyone], "/facts", id="slow headers"),
        pytest.param(
            ["-B", "-i", "1", "-x", "8", "-s", "8192", *everyone], "/wait", id="slow body"
        ),
        pytest.param(
            ["-X", "-n", "1", "-z", "16", "-w", "512", "-y", "1024", *everyone],
            "/much",
            id="slow read",
        ),
    ]


@pytest.mark.skipif(shutil.which("slowhttptest") is None, reason="there is no slowhttptest")
@pytest.mark.parametrize(("options", "path"), attacks())
async def test_slow_clients(app: App, options: list[str], path: str) -> None:
    """All are cut off while they still try, and others are answered meanwhile."""
    async with served(app) as server:
        command = ["slowhttptest", *options, "-u", f"{server.url}{path}"]
        async with trio.open_nursery() as nursery:
            run = partial(trio.run_process, command, capture_stdout=True, check=False)
            tool = await nursery.start(run)
            await until(lambda: len(default_engine(None).connections) >= HOSTILE // 2, "them")
            while tool.returncode is None and sum(ended().values()) < HOSTILE // 2:
                assert (await in_thread(honest, server)).startswith(b"HTTP/1.1 200")
            await until(lambda: sum(ended().values()) >= HOSTILE * 9 // 10, "their end")
            assert (await in_thread(honest, server)).startswith(b"HTTP/1.1 200")
            tool.terminate()


# -- many ------------------------------------------------------------------------


async def test_a_flood_from_one_address(app: App) -> None:
    """All but its share are reset, and others are answered meanwhile."""
    refused = 0

    def flood(server: Server, kept: ExitStack) -> None:
        nonlocal refused
        for _ in range(FLOOD):
            sock = kept.enter_context(socket.socket())
            sock.bind((FLOODER, 0))
            refused += sock.connect_ex(server.address) != 0

    async with served(app) as server:
        with ExitStack() as kept:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(in_thread, flood, server, kept)
                for _ in range(10):
                    assert (await in_thread(honest, server)).startswith(b"HTTP/1.1 200")
            statistics = default_engine(None).statistics
            await until(
                lambda: statistics().refused_by["max_per_address"] == FLOOD - 300, "the refusals"
            )
        assert (await in_thread(honest, server)).startswith(b"HTTP/1.1 200")


@pytest.mark.skipif(shutil.which("h2load") is None, reason="there is no h2load")
async def test_a_thousand_streams(app: App, tls: dict[str, str]) -> None:
    """Load that is allowed is not taken for harm."""
    async with served(app, **tls) as server:
        url = f"https://127.0.0.1:{server.address[1]}/facts"
        command = ["h2load", "-n1000", "-c50", "-m20", url]
        result = await trio.run_process(command, capture_stdout=True)
        found = re.search(rb"(\d+) succeeded, (\d+) failed", result.stdout)
        assert found is not None
        assert found.groups() == (b"1000", b"0")
        assert sum(ended().values()) == 0
