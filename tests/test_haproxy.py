"""Behind a real haproxy: what it says of its clients, and workers that are restarted
under load. `nox -s haproxy` runs this; where haproxy is not installed it is left out."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from helpers import PATIENCE, read, read_all

import trio_wknet
from trio_wknet import Conn, Engine

if shutil.which("haproxy") is None:
    pytest.skip("haproxy is not installed", allow_module_level=True)

# What fails is not tried again: nothing is smoothed over.
CONFIGURATION = """
global
    nbthread 1
    maxconn 1000
defaults
    mode tcp
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    retries 0
    no option redispatch
listen front
    bind fd@{front}
    unique-id-format %[uuid()]
    option tcp-check
    tcp-check connect default linger
    tcp-check send hello
    tcp-check expect string hello
    server workers {server}
"""


@contextmanager
def haproxy(server: str, folder: Path) -> Iterator[tuple[str, int]]:
    """Have haproxy forward to a server, as its configuration names it; where to."""
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as front:
        file = folder / "haproxy.cfg"
        file.write_text(CONFIGURATION.format(front=front.fileno(), server=server))
        command = ["haproxy", "-db", "-f", str(file)]
        with subprocess.Popen(
            command, pass_fds=[front.fileno()], stderr=subprocess.DEVNULL
        ) as process:
            try:
                yield front.getsockname()
            finally:
                process.kill()


# -- what it says ----------------------------------------------------------------------


async def through(front: tuple[str, int], listener: Any) -> tuple[Conn, trio.SocketStream]:
    stream = await trio.open_tcp_stream(*front)
    await stream.send_all(b"hello")
    conn = await listener.accept()
    assert await read(conn, 5) == b"hello"
    return conn, stream


@pytest.mark.parametrize("how", ["send-proxy", "send-proxy-v2"])
async def test_the_clients_addresses(engine: Engine, tmp_path: Path, how: str) -> None:
    listener = await engine.listen("tcp://127.0.0.1:0", proxy_protocol=["127.0.0.0/8"])
    with haproxy(f"127.0.0.1:{listener.address[1]} {how}", tmp_path) as front:
        conn, stream = await through(front, listener)
        async with conn, stream, listener:
            assert conn.remote_address == stream.socket.getsockname()
            assert conn.socket.getpeername() != conn.remote_address
            assert conn.proxy_header is not None
            assert conn.proxy_header.destination == front
            assert conn.proxy_header.version == (1 if how == "send-proxy" else 2)


async def test_over_a_unix_socket(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "worker"
    listener = await engine.listen(f"unix://{path}", proxy_protocol=["unix:"])
    with haproxy(f"unix@{path} send-proxy-v2", tmp_path) as front:
        conn, stream = await through(front, listener)
        async with conn, stream, listener:
            assert conn.remote_address == stream.socket.getsockname()


async def test_values_and_their_checksum(engine: Engine, tmp_path: Path) -> None:
    listener = await engine.listen("tcp://127.0.0.1:0", proxy_protocol=["127.0.0.1"])
    server = f"127.0.0.1:{listener.address[1]} send-proxy-v2 proxy-v2-options unique-id,crc32c"
    with haproxy(server, tmp_path) as front:
        conn, stream = await through(front, listener)
        async with conn, stream, listener:
            assert conn.proxy_header is not None
            values = dict(conn.proxy_header.tlvs)
            assert str(uuid.UUID(values[5].decode())) == values[5].decode()
            assert len(values[3]) == 4


async def test_health_checks(engine: Engine, tmp_path: Path) -> None:
    """Are haproxy's own connections, and say so."""
    listener = await engine.listen("tcp://127.0.0.1:0", proxy_protocol=["127.0.0.1"])
    server = f"127.0.0.1:{listener.address[1]} send-proxy-v2 check inter 50ms"
    with haproxy(server, tmp_path):
        async with listener:
            for _ in range(2):
                async with await listener.accept() as conn:
                    assert conn.proxy_header is not None
                    assert conn.proxy_header.source is None
                    assert conn.remote_address == conn.socket.getpeername()
                    await conn.send_all(await read(conn, 5))
                    assert await read_all(conn) == b"", "it was content"


# -- a rolling restart -----------------------------------------------------------------


class Worker:
    """A worker process."""

    def __init__(self, port: int, reactors: int) -> None:
        script = Path(__file__).with_name("haproxy_worker.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(port), str(reactors)],
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        assert ready, "the worker does not start"
        assert self.process.stdout.readline() == "ready\n"

    def stop(self) -> dict[str, int]:
        """Have it drain; what it says of itself."""
        self.process.send_signal(signal.SIGTERM)
        output, _ = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0
        return dict(json.loads(output))

    def kill(self) -> None:
        with self.process:
            self.process.kill()


def environment() -> dict[str, str]:
    # Whichever trio_wknet is under test is theirs, too.
    return {**os.environ, "PYTHONPATH": str(Path(trio_wknet.__file__).parent.parent)}


@contextmanager
def load(front: tuple[str, int], seconds: float) -> Iterator[subprocess.Popen[str]]:
    """A client that connects anew for every message."""
    command = ["-m", "trio_wknet", "bench", *map(str, front), "--json", "--churn", "--verify"]
    options = ["--connections", "16", "--warmup", "0", "--duration", str(seconds)]
    with subprocess.Popen(
        [sys.executable, *command, *options], env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("reactors", [0, 1, 2])
def test_a_rolling_restart_fails_no_request(reactors: int, tmp_path: Path, long: bool) -> None:
    """Two workers share a port, and take turns to be restarted, under load."""
    with ExitStack() as stack:
        # Keeps the port for them; it does not listen.
        place = stack.enter_context(socket.socket())
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]

        def start() -> Worker:
            worker = Worker(port, reactors)
            stack.callback(worker.kill)
            return worker

        workers = [start(), start()]
        front = stack.enter_context(haproxy(f"127.0.0.1:{port} send-proxy-v2", tmp_path))
        client = stack.enter_context(load(front, 120 if long else 1.5))
        reports = []
        while client.poll() is None:
            # The one that is left has all to itself for a moment.
            reports.append(workers.pop(0).stop())
            workers.append(start())
        result = json.loads(client.communicate()[0])
        reports += [worker.stop() for worker in workers]
    print(len(reports) - 2, "restarts", result, reports)
    assert sum(result["errors"].values()) == 0
    assert sum(report["refused"] for report in reports) == 0
    assert sum(report["served"] for report in reports) >= result["messages"] > 0
