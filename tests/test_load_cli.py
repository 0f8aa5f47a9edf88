"""`python -m trio_wknet bench`."""

from __future__ import annotations

import importlib.metadata
import json
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

import trio_wknet
from trio_wknet import __main__
from trio_wknet._cli.bench import bench


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(1 << 16):
            self.request.sendall(data)


class Greeter(socketserver.BaseRequestHandler):
    """Takes what comes, and never answers."""

    def handle(self) -> None:
        self.request.recv(1)


class EchoServer(socketserver.ThreadingTCPServer):
    request_queue_size = 64


@pytest.fixture
def port() -> Iterator[str]:
    with EchoServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield str(server.server_address[1])
        server.shutdown()
        thread.join()


@pytest.fixture
def deaf_port() -> Iterator[str]:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield str(unused.getsockname()[1])


def test_json_from_a_process_of_its_own(port: str) -> None:
    command = [sys.executable, "-m", "trio_wknet", "bench", "127.0.0.1", port]
    done = subprocess.run(
        [*command, "--json", "--count", "100", "--connections", "4", "--verify"],
        capture_output=True,
        check=True,
    )
    figures = json.loads(done.stdout)
    assert done.stderr == b""
    assert (figures["ended"], figures["answered"], figures["ok"]) == ("count", 100, True)
    assert (figures["latency"]["count"], figures["options"]["mode"]) == (100, "closed")


def test_the_librarys_own_form_of_an_address(port: str) -> None:
    arguments = ["--count", "10", "--connections", "2", "--json"]
    result = CliRunner().invoke(bench, [f"tcp://127.0.0.1:{port}", *arguments])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert (figures["answered"], figures["options"]["port"]) == (10, int(port))


def test_messages_of_a_protocol(port: str) -> None:
    arguments = ["127.0.0.1", port, "--count", "10", "--connections", "2", "--verify"]
    framed = CliRunner().invoke(bench, [*arguments, "--protocol", "length-prefixed"])
    assert framed.exit_code == 0, framed.output
    assert "2 x 1 x 64 bytes, length-prefixed" in framed.stdout
    refused = CliRunner().invoke(bench, [*arguments, "--protocol", "websocket"])
    assert refused.exit_code == 1
    assert "could not be reached: 2 upgrade refused" in refused.stderr


def test_an_address_with_two_ports(port: str) -> None:
    result = CliRunner().invoke(bench, [f"tcp://127.0.0.1:{port}", "80"])
    assert result.exit_code == 2
    assert "has a port already, so PORT must not be 80" in result.stderr


def test_ctrl_c_is_exit_code_130() -> None:
    with EchoServer(("127.0.0.1", 0), Greeter) as server:
        address = f"tcp://127.0.0.1:{server.server_address[1]}"
        command = [
            sys.executable,
            "-m",
            "trio_wknet",
            "bench",
            address,
            "--duration",
            "60",
            "--connections",
            "2",
        ]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
            server.handle_request()  # it is running: it has connected
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=20)
    assert (process.returncode, stderr.split()) == (130, [b"Aborted!"])


def test_the_version() -> None:
    command = [sys.executable, "-m", "trio_wknet", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == trio_wknet.__version__
    assert importlib.metadata.version("trio-wknet") == trio_wknet.__version__


def test_the_table(port: str) -> None:
    result = CliRunner().invoke(bench, ["127.0.0.1", port, "--count", "10", "--churn"])
    assert result.exit_code == 0
    assert "connections/s" in result.stdout
    assert "latency p999" in result.stdout
    assert "count" in result.stdout
    assert result.stderr == ""


def test_the_bar_is_for_terminals_and_on_stderr(port: str) -> None:
    arguments = ["127.0.0.1", port, "--duration", "0.3", "--warmup", "0", "--json"]
    result = CliRunner(env={"FORCE_COLOR": "1"}).invoke(bench, arguments)
    assert json.loads(result.stdout)["ok"]
    assert "done" in result.stderr
    assert "msg/s" in result.stderr


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_refused_port_is_exit_code_1(deaf_port: str, more: list[str]) -> None:
    result = CliRunner().invoke(bench, ["127.0.0.1", deaf_port, "--connections", "3", *more])
    assert result.exit_code == 1
    assert "could not be reached: 3 connect refused" in result.stderr
    if more:
        assert json.loads(result.stdout)["errors"]["connect_refused"] == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["127.0.0.1"], "port: host '127.0.0.1' goes with a port"),
        (["unix:///s", "80"], "port: host 'unix:///s' goes with no port"),
        (["127.0.0.1", "80", "--size", "0"], "size must be from 1"),
        (["127.0.0.1", "80", "--size", "big"], "'big' is not a valid integer"),
        (["127.0.0.1", "80", "--protocol", "http"], "'http' is not one of 'raw', 'length-pre"),
        (["127.0.0.1", "80", "--churn", "--rate", "5"], "rate: churn has no rate"),
        (["192.0.2.1", "80", "--sources", "2"], "sources: only a server on 127.0.0.0/8"),
        ([], "Missing argument 'ADDRESS'"),
    ],
)
def test_bad_usage_is_exit_code_2(arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(bench, arguments)
    assert result.exit_code == 2
    assert says in result.stderr


def test_an_unknown_host_is_exit_code_1() -> None:
    result = CliRunner().invoke(bench, ["no such host.invalid", "80"])
    assert result.exit_code == 1
    assert "'no such host.invalid'" in result.stderr


@pytest.mark.parametrize("absent", ["click", "rich"])
def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, absent: str) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == absent or name == "trio_wknet._cli.bench":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(SystemExit, match=rf"needs {absent}.*: pip install 'trio-wknet\[cli\]'"):
        __main__.main()
