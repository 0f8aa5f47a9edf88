"""Each example runs, does what it says, and ends without a word at Ctrl-C."""

from __future__ import annotations

import ast
import importlib
import json
import os
import random
import re
import select
import shutil
import signal
import socket
import ssl
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
import trio
import trio.testing
import trustme
from helpers import http_connection
from websockets.sync.client import connect

import trio_wknet

ROOT = Path(__file__).parent.parent
HERE = str(Path(trio_wknet.__file__).parent.parent)  # whichever is under test
PATIENCE = 30  # seconds
SERVERS = [
    *("echo", "unix_echo", "ticker", "chat", "rpc", "upload", "proxy", "graceful", "gateway"),
    *("websocket_chat", "feed"),
]


class Example:
    """A running example, or what stands for one."""

    def __init__(self, *command: str, pass_fds: Sequence[int] = ()) -> None:
        path = os.pathsep.join(filter(None, [HERE, os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-X", "dev", *command],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,  # nothing hides from select
            pass_fds=pass_fds,
        )
        words = self.line()
        assert words.startswith("listening on "), words + self.process.communicate()[1].decode()
        self.address = ast.literal_eval(words.removeprefix("listening on "))

    def line(self) -> str:
        """The next line of its output."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        assert ready, "the example says nothing"
        return self.process.stdout.readline().decode().rstrip()

    def connect(self) -> socket.socket:
        family = socket.AF_UNIX if isinstance(self.address, str) else socket.AF_INET
        sock = socket.socket(family)
        sock.settimeout(PATIENCE)
        try:
            sock.connect(self.address)
        except OSError:
            sock.close()
            raise
        return sock

    def end(self, how: signal.Signals = signal.SIGINT) -> str:
        """Send a signal; the rest of the output, after a clean exit."""
        self.process.send_signal(how)
        return self.ended()

    def ended(self) -> str:
        output, errors = self.process.communicate(timeout=PATIENCE)
        assert errors.decode() == ""
        assert self.process.returncode == 0
        return output.decode()


@contextmanager
def started(*command: str, pass_fds: Sequence[int] = ()) -> Iterator[Example]:
    example = Example(*command, pass_fds=pass_fds)
    try:
        yield example
    finally:
        example.process.kill()
        example.process.communicate()


@contextmanager
def running(name: str, *arguments: str) -> Iterator[Example]:
    with started(str(ROOT / "examples" / f"{name}.py"), *arguments) as example:
        yield example


def tcp(port: int) -> str:
    return f"tcp://127.0.0.1:{port}"


def receive(sock: socket.socket, n: int) -> bytes:
    """Exactly `n` bytes, or fewer at the end."""
    data = b""
    while len(data) < n and (more := sock.recv(n - len(data))):
        data += more
    return data


def receive_line(sock: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n") and (more := sock.recv(1)):
        data += more
    return data


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def finish(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)


def check_echo(example: Example) -> None:
    """Also after a peer has reset its connection."""
    with example.connect() as first, example.connect() as second:
        first.sendall(b"one")
        assert receive(first, 3) == b"one"
        reset(first)
        second.sendall(b"two")
        assert receive(second, 3) == b"two"
        second.shutdown(socket.SHUT_WR)
        assert second.recv(1) == b""


def test_every_example_is_here() -> None:
    found = {path.stem for path in (ROOT / "examples").glob("*.py")}
    served = {
        "echo",
        "unix_echo",
        "ticker",
        "chat",
        "rpc",
        "upload",
        "proxy",
        "graceful",
        "gateway",
        "websocket_chat",
        "feed",
    }
    tls = {"tls_echo", "tls_listener"}
    others = {*tls, "either_transport", "behind_proxy", "systemd_echo", "ctrl_c"}
    integrations = {"anyio_echo", "fetch", "http_server", "hypercorn_app", "static", "websocket"}
    integrations |= {"metrics"}
    assert found == served | others | integrations
    # Lines: in two of them is a client, too, and ranges take some.
    at_most = {"rpc": 180, "websocket_chat": 100, "static": 140}
    for path in (ROOT / "examples").glob("*.py"):
        assert len(path.read_text().splitlines()) <= at_most.get(path.stem, 80), path


def test_the_program_in_the_readme(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 1
    tell = 'print("listening on", listener.address, flush=True)\n        await listener.serve'
    program = blocks[0].replace("5100", "0").replace("await listener.serve", tell)
    script = tmp_path / "readme.py"
    script.write_text(program)
    with started(str(script)) as example:
        check_echo(example)


def test_echo() -> None:
    with running("echo", "0") as example:
        check_echo(example)
        with example.connect() as sock:
            sock.sendall(b"there")
            assert receive(sock, 5) == b"there"
            assert example.end() == ""
            assert sock.recv(1) == b""


def test_unix_echo(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with running("unix_echo", str(path)) as example:
        assert example.address == str(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        check_echo(example)
        assert example.end() == ""
    assert not path.exists()


def test_ticker() -> None:
    with running("ticker", "0") as example:
        with example.connect() as sock:
            assert receive_line(sock).count(b":") == 2
        assert example.line() == "left: eof"
        example.end()


@pytest.fixture
def chat() -> Iterator[Example]:
    with running("chat", "0") as example:
        yield example


def join(chat: Example, name: bytes) -> socket.socket:
    sock = chat.connect()
    assert receive_line(sock) == b"* your name?\n"
    sock.sendall(name + b"\n")
    return sock


def test_chat(chat: Example) -> None:
    with join(chat, b"ann") as ann:
        with join(chat, b"bob") as bob:
            assert receive_line(ann) == b"* bob is here\n"
            bob.sendall(b"hello\r\nthere\r\n")
            assert receive_line(ann) == b"bob: hello\n"
            assert receive_line(ann) == b"bob: there\n"
            ann.sendall(b"hi\n")
            assert receive_line(bob) == b"ann: hi\n"
        assert receive_line(ann) == b"* bob has left\n"
        ann.sendall(b"x" * 5000)
        assert receive_line(ann) == b"* that line is too long\n"
        assert ann.recv(1) == b""
    assert chat.end() == ""


def test_a_chat_of_websockets() -> None:
    with running("websocket_chat", "0") as example:
        host, port = example.address
        assert example.line() == f"the page is http://{host}:{port}/"
        page = httpx.get(f"http://{host}:{port}/")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "new WebSocket" in page.text
        assert httpx.get(f"http://{host}:{port}/other").status_code == 404
        url = f"ws://{host}:{port}/chat"
        with connect(url, ping_interval=None) as ann:
            ann.send("ann")
            assert ann.recv(PATIENCE) == "* ann is here"
            with connect(url, ping_interval=None) as bob:
                bob.send("bob")
                bob.send("höre")
                for member in (ann, bob):
                    assert member.recv(PATIENCE) == "* bob is here"
                    assert member.recv(PATIENCE) == "bob: höre"
            assert ann.recv(PATIENCE) == "* bob has left"
        assert example.end() == ""


def test_a_chat_of_websockets_sends_off_who_does_not_read() -> None:
    with running("websocket_chat", "0") as example:
        host, port = example.address
        url = f"ws://{host}:{port}/chat"
        example.line()  # the page
        deaf = example.connect()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with (
            connect(url, ping_interval=None) as ann,
            connect(url, sock=deaf, ping_interval=None, max_queue=1) as bob,
        ):
            ann.send("ann")
            assert ann.recv(PATIENCE) == "* ann is here"
            bob.send("bob")
            assert ann.recv(PATIENCE) == "* bob is here"
            for _ in range(5000):
                ann.send("x" * 4000)
                if ann.recv(PATIENCE) == "* bob has left":
                    break
            else:
                pytest.fail("he is still there")
        assert example.end() == ""


def test_chat_bounds_what_a_member_says(chat: Example) -> None:
    """With the name in front of it, a line must still fit; a name is cut off."""
    with join(chat, b"ann") as ann, join(chat, b"b" * 1000) as bob:
        name = b"b" * 32
        assert receive_line(ann) == b"* %s is here\n" % name
        bob.sendall(b"x" * 990 + b"\n")
        assert receive_line(ann) == b"%s: %s\n" % (name, b"x" * 990)
        bob.sendall(b"x" * 991 + b"\n")
        assert receive_line(ann) == b"* %s has left\n" % name
        assert receive_line(bob) == b"* that line is too long\n"
        assert bob.recv(1) == b""
        with chat.connect() as half:
            assert receive_line(half) == b"* your name?\n"
            half.sendall(b"half a na")
            half.shutdown(socket.SHUT_WR)
            assert half.recv(1) == b""
        with join(chat, b"eve") as eve:
            assert receive_line(ann) == b"* eve is here\n"
            reset(eve)
        assert receive_line(ann) == b"* eve has left\n"
    assert chat.end() == ""


def test_chat_sends_off_who_does_not_read(chat: Example) -> None:
    with join(chat, b"ann") as ann, socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.settimeout(PATIENCE)
        deaf.connect(chat.address)
        deaf.sendall(b"deaf\n")
        assert receive_line(ann) == b"* deaf is here\n"
        for _ in range(2000):
            ann.sendall((b"x" * 999 + b"\n") * 50)
            if select.select([ann], [], [], 0)[0]:
                break
        assert receive_line(ann) == b"* deaf has left\n"
        with pytest.raises(ConnectionResetError):
            receive(deaf, 1 << 30)
    assert chat.end() == ""


# -- remote calls ----------------------------------------------------------------


@pytest.fixture
def rpc() -> Iterator[Example]:
    with running("rpc", "0") as example:
        yield example


def frame(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "big") + payload


def request(number: object, method: str, *params: object) -> bytes:
    return frame(json.dumps({"id": number, "method": method, "params": params}).encode())


def receive_answer(sock: socket.socket) -> Any:
    return json.loads(receive(sock, int.from_bytes(receive(sock, 4), "big")))


def answered(sock: socket.socket, sent: bytes) -> Any:
    sock.sendall(sent)
    return receive_answer(sock)


def test_rpc_answers_in_any_order(rpc: Example) -> None:
    with rpc.connect() as first, rpc.connect() as second:
        requests = [request(n, "add", n, n) for n in range(500)]
        first.sendall(request(-1, "sleep", 3600) + b"".join(requests))
        answers = [receive_answer(first) for _ in range(500)]
        assert sorted(answer["id"] for answer in answers) == list(range(500))
        assert all(answer["result"] == 2 * answer["id"] for answer in answers)
        assert answered(second, request(1, "add", 1)) == {"id": 1, "result": 1}
        assert rpc.end() == ""  # with a request that is worked on
        assert first.recv(1) == b""


@pytest.mark.parametrize(
    ("sent", "number", "error"),
    [
        (request(1, "divide", 1, 0), 1, "ZeroDivisionError: division by zero"),
        (request(2, "nothing"), 2, "KeyError: 'nothing'"),
        (request(3, "add", "x"), 3, "TypeError: unsupported operand type"),
        (request(4, "sleep", -1), 4, "ValueError: "),
        (request("x" * 65_000, "add"), None, "TypeError: "),  # does not fit into an answer
        (request(10**4000, "add", "x"), 10**4000, "TypeError: "),
        (request(None, "add", 1), None, "TypeError: "),
        (frame(b"{"), None, "JSONDecodeError: "),
        (frame(b"\xff"), None, "UnicodeDecodeError: "),
        (frame(b"[" * 60_000), None, "RecursionError: "),
        (frame(b""), None, "JSONDecodeError: "),
        (frame(b"[]"), None, "TypeError: "),
        (frame(b"{}"), None, "KeyError: 'id'"),
        (frame(b'{"id": 5}'), 5, "KeyError: 'method'"),
    ],
    ids=map(str, range(14)),
)
def test_rpc_answers_nonsense(sent: bytes, number: object, error: str, one_rpc: Example) -> None:
    """The connection goes on."""
    with one_rpc.connect() as sock:
        answer = answered(sock, sent)
        assert answer["id"] == number
        assert answer["error"].startswith(error)
        assert answered(sock, request(9, "add", 1, 2)) == {"id": 9, "result": 3}


@pytest.fixture(scope="module")
def one_rpc() -> Iterator[Example]:
    """The same for all nonsense."""
    with running("rpc", "0") as example:
        yield example
        assert example.end() == ""


def test_rpc_refuses_a_frame_that_is_too_long(one_rpc: Example) -> None:
    with one_rpc.connect() as sock:
        sock.sendall(request(1, "add", 1) + (1 << 31).to_bytes(4, "big"))
        answers = [receive_answer(sock), receive_answer(sock)]
        assert sorted(answer["id"] is None for answer in answers) == [False, True]
        assert str(1 << 31) in "".join(answer.get("error", "") for answer in answers)
        assert sock.recv(1) == b""


@pytest.mark.parametrize("left", [b"", b"\x00\x00", request(2, "add", 1)[:-1]])
@pytest.mark.parametrize("leave", [socket.socket.close, finish, reset])
def test_rpc_and_a_peer_that_is_killed(
    left: bytes, leave: Callable[[socket.socket], None], one_rpc: Example
) -> None:
    """The work for it ends, and the server goes on."""
    gone = one_rpc.connect()
    gone.sendall(request(1, "sleep", 3600) * 150 + left)
    leave(gone)
    with one_rpc.connect() as sock:
        assert answered(sock, request(1, "add", 1)) == {"id": 1, "result": 1}
    if leave is finish:
        with gone:
            assert gone.recv(1) == b""


def test_rpc_waits_for_a_peer_that_is_slow_to_take_answers(one_rpc: Example) -> None:
    """They are much more than `Limits.outbound`, and than the kernel takes."""
    method = "\N{GRINNING FACE}" * 1000  # 12 bytes of JSON each, in the error
    with one_rpc.connect() as sock:
        requests = b"".join(request(n, method) for n in range(800))
        thread = threading.Thread(target=sock.sendall, args=(requests,))
        thread.start()
        thread.join(0.3)
        answers = [receive_answer(sock) for _ in range(800)]
        thread.join()
    assert sorted(answer["id"] for answer in answers) == list(range(800))
    assert all(answer["error"].startswith("KeyError: ") for answer in answers)


def test_rpc_calls_from_the_command_line(rpc: Example) -> None:
    script = str(ROOT / "examples" / "rpc.py")
    assert run(script, tcp(rpc.address[1]), "add", "1", "2") == "3\n"
    assert rpc.end() == ""


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example as a module, for its client."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module("rpc")


async def test_rpc_client(client: ModuleType, one_rpc: Example) -> None:
    """Many calls of several clients; one that is cancelled, and one that fails."""
    address = tcp(one_rpc.address[1])
    results: dict[int, int] = {}

    async def add(rpc: Any, n: int) -> None:
        results[n] = await rpc.call("add", n, 1)

    async with client.open_rpc(address) as one, client.open_rpc(address) as two:
        async with trio.open_nursery() as slow:
            slow.start_soon(one.call, "sleep", 3600)
            await trio.testing.wait_all_tasks_blocked()
            async with trio.open_nursery() as nursery:
                for n in range(200):
                    nursery.start_soon(add, (one, two)[n % 2], n)
            slow.cancel_scope.cancel()
        assert results == {n: n + 1 for n in range(200)}
        with pytest.raises(client.CallError, match="division by zero"):
            await one.call("divide", 1, 0)
        with pytest.raises(ValueError, match="max_frame"):
            await one.call("x" * 100_000)
        assert await one.call("add", 2, 3) == 5


async def test_rpc_client_takes_no_answer_of_a_cancelled_call_for_anothers(
    client: ModuleType, one_rpc: Example
) -> None:
    async with client.open_rpc(tcp(one_rpc.address[1])) as rpc:
        for n in range(50):
            with trio.CancelScope() as scope:
                scope.cancel()
                await rpc.call("add", -1)
            assert scope.cancelled_caught
            assert await rpc.call("add", n) == n


async def test_rpc_client_when_the_server_is_killed(client: ModuleType, rpc: Example) -> None:
    async with client.open_rpc(tcp(rpc.address[1])) as one:
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                with pytest.raises(trio.BrokenResourceError):
                    await one.call("sleep", 3600)

            for _ in range(3):
                nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            rpc.process.kill()
        with pytest.raises((trio.ClosedResourceError, trio.BrokenResourceError)):
            await one.call("add", 1)


@pytest.mark.parametrize(
    "said",
    [b"nonsense", frame(b"nonsense"), frame(b"[]"), frame(b"{}"), frame(b'{"id": []}'), b"\0\0"],
)
async def test_rpc_client_and_a_server_that_answers_nonsense(
    client: ModuleType, said: bytes
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with client.open_rpc(tcp(listener.getsockname()[1])) as rpc:
            server, _ = listener.accept()
            with server:
                server.sendall(said)
                server.shutdown(socket.SHUT_WR)
                with pytest.raises((trio.ClosedResourceError, trio.BrokenResourceError)):
                    await rpc.call("add", 1)


@contextmanager
def upstream() -> Iterator[tuple[int, list[bytes]]]:
    """A server that takes everything before it answers: its port, what it took."""
    taken: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        with sock:
            sock.settimeout(PATIENCE)
            taken.append(receive(sock, 1 << 30))
            sock.sendall(b"answer " * 100_000)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            yield listener.getsockname()[1], taken
        finally:
            thread.join()


def test_proxy_forwards_both_ends_of_the_stream() -> None:
    question = b"question " * 100_000
    with upstream() as (port, taken), running("proxy", "0", tcp(port)) as example:
        with example.connect() as sock:
            sock.sendall(question)
            sock.shutdown(socket.SHUT_WR)
            assert receive(sock, 1 << 30) == b"answer " * 100_000
        assert example.end() == ""
    assert taken == [question]


def test_proxy_survives_a_reset() -> None:
    with running("echo", "0") as echo, running("proxy", "0", tcp(echo.address[1])) as example:
        check_echo(example)
        example.end()
        echo.end()


def test_proxy_without_upstream() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        with running("proxy", "0", tcp(nobody.getsockname()[1])) as example:
            # Connecting may take longer than the example needs to reset.
            with pytest.raises(ConnectionResetError), example.connect() as sock:
                sock.recv(1)
            assert example.line().startswith("upstream: ")
            example.end()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_graceful(how: signal.Signals) -> None:
    with running("graceful", "0") as example, example.connect() as idle, example.connect() as busy:
        idle.sendall(b"one\n")
        assert receive_line(idle) == b"working on one\n"
        assert receive_line(idle) == b"done with one\n"
        busy.sendall(b"two\n")
        assert receive_line(busy) == b"working on two\n"
        example.process.send_signal(how)
        assert example.line() == "draining"
        assert idle.recv(1) == b""
        assert receive_line(busy) == b"done with two\n"
        assert busy.recv(1) == b""
        # It waits until they have taken that.
        idle.close()
        busy.close()
        assert example.ended() == ""


def test_upload() -> None:
    with running("upload", "0", "0.2") as example:
        with example.connect() as sock:
            sock.sendall(b"3\nabc")
            assert receive_line(sock) == sha256(b"abc").hexdigest().encode() + b"\n"
        with example.connect() as nonsense, example.connect() as gone:
            nonsense.sendall(b"many\n")
            assert nonsense.recv(1) == b""
            gone.sendall(b"3\nab")
            gone.shutdown(socket.SHUT_WR)
            assert gone.recv(1) == b""
        with example.connect() as stalled, example.connect() as silent:
            stalled.sendall(b"3\nab")
            assert receive_line(stalled) == b"gave up: no byte for 0.2 s, 1 missing\n"
            assert silent.recv(1) == b"", "idle_timeout"
        assert example.end() == ""


def device(gateway: Example, name: bytes) -> socket.socket:
    sock = gateway.connect()
    sock.sendall(name + b"\n")
    assert receive_line(sock) == b"hello\n"
    return sock


def operator(gateway: Example) -> socket.socket:
    """The gateway's second line tells where."""
    address = ast.literal_eval(gateway.line().removeprefix("commands on "))
    return socket.create_connection(address, PATIENCE)


def test_gateway() -> None:
    with running("gateway", "0") as example, operator(example) as orders:

        def order(line: bytes) -> bytes:
            orders.sendall(line)
            return receive_line(orders)

        assert order(b"heater off\n") == b"not sent\n"
        with device(example, b"heater") as heater, device(example, b"door") as door:
            heater.sendall(b"21.")
            door.sendall(b"1\n0\n")
            assert [example.line(), example.line()] == ["door: 1.0", "door: 0.0"]
            heater.sendall(b"5\n")
            assert example.line() == "heater: 21.5"
            assert order(b"heater set 19\n") == b"sent\n"
            assert receive_line(heater) == b"set 19\n"
            reset(heater)
            assert example.line() == "heater left: reset"
            assert order(b"heater off\n") == b"not sent\n"
            assert order(b"door lock\n") == b"sent\n"
            assert receive_line(door) == b"lock\n"
            with device(example, b"heater"):
                assert order(b"heater on\n") == b"sent\n"
            assert example.line().startswith("heater left: ")
        assert example.line() == "door left: eof"
        assert example.end() == ""


@pytest.fixture(scope="module")
def one_gateway() -> Iterator[Example]:
    """The same for all who send garbage."""
    with running("gateway", "0") as example, operator(example):
        yield example
        assert example.end() == ""


@pytest.mark.parametrize("garbage", [b"\xff\n", b"x" * 5000, b"", b"no line"])
def test_gateway_sends_strangers_off(garbage: bytes, one_gateway: Example) -> None:
    with one_gateway.connect() as sock:
        sock.sendall(garbage)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
    assert one_gateway.line().startswith("a stranger left: ")


@pytest.mark.parametrize("garbage", [b"many\n", b"\n", b"\xff\n", b"1" * 5000])
def test_gateway_sends_devices_off(garbage: bytes, one_gateway: Example) -> None:
    with device(one_gateway, b"d") as sock:
        sock.sendall(garbage)
        assert sock.recv(1) == b""
        assert one_gateway.line() == "d left: closed"


def test_gateway_sends_the_silent_off() -> None:
    with running("gateway", "0", "0.5") as example, operator(example):
        with example.connect() as sock:
            assert sock.recv(1) == b""
        assert example.line() == "a stranger left: idle"
        with device(example, b"d") as sock:
            assert sock.recv(1) == b""
            assert example.line() == "d left: idle"
        assert example.end() == ""


# -- a price feed ----------------------------------------------------------------


def subscribe(feed: Example, symbol: bytes) -> socket.socket:
    sock = feed.connect()
    sock.sendall(b"subscribe %s\n" % symbol)
    return sock


def test_feed() -> None:
    with running("feed", "0", "0.001") as example, subscribe(example, b"EUR") as sock:
        prices = {receive_line(sock) for _ in range(5)}
        assert len(prices) == 5
        assert all(re.fullmatch(rb"EUR [01]\.\d{6}\n", price) for price in prices)
        sock.sendall(b"subscribe GBP\r\n")
        while receive_line(sock).startswith(b"EUR"):
            pass
        assert {receive_line(sock)[:3] for _ in range(100)} == {b"EUR", b"GBP"}
        sock.sendall(b"unsubscribe EUR\nunsubscribe GBP\n")
        while receive_line(sock) != b"EUR unsubscribed\n":
            pass
        assert receive_line(sock) == b"GBP unsubscribed\n"
        for nonsense in (b"hello\n", b"subscribe \xff\n", b"unsubscribe\n", b"\n"):
            sock.sendall(nonsense)
            assert receive_line(sock).startswith(b"say: "), "no price any more"
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
        assert example.line().endswith(" left: eof")
        assert example.end() == ""


def test_feed_and_subscribers_that_leave() -> None:
    with running("feed", "0", "0") as example:
        for leave in (reset, socket.socket.close) * 10:
            with subscribe(example, b"EUR") as sock:
                receive_line(sock)
                leave(sock)
            assert " left: " in example.line()
        with subscribe(example, b"x" * 100) as sock:
            assert sock.recv(1) == b""
        assert example.line().endswith(" left: frame too long")
        assert example.end() == ""


def test_feed_closes_who_does_not_read() -> None:
    with running("feed", "0", "0") as example, socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.settimeout(PATIENCE)
        deaf.connect(example.address)
        deaf.sendall(b"subscribe EUR\n")
        assert example.line() == f"{deaf.getsockname()} left: slow"
        with pytest.raises(ConnectionResetError):
            receive(deaf, 1 << 20)
        with subscribe(example, b"EUR") as reads:
            assert receive_line(reads).startswith(b"EUR ")
        assert " left: " in example.line()
        assert example.end() == ""


@pytest.mark.parametrize("transport", ["trio", "trio_wknet"])
def test_either_transport(transport: str) -> None:
    with running("either_transport", transport, "0") as example:
        with example.connect() as first, example.connect() as second:
            for sock in (first, second):
                assert receive_line(sock) == f"you are talking to {transport}\n".encode()
            first.sendall(b"one")
            assert receive(first, 3) == b"ONE"
            reset(first)
            second.sendall(b"two")
            assert receive(second, 3) == b"TWO"
            second.shutdown(socket.SHUT_WR)
            assert second.recv(1) == b""
        assert example.end() == ""


def issue(folder: Path) -> tuple[list[str], ssl.SSLContext]:
    """Files of a certificate and its key, and what trusts it."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    files = [str(folder / "server.pem"), str(folder / "server.key")]
    certificate.cert_chain_pems[0].write_to_path(files[0])
    certificate.private_key_pem.write_to_path(files[1])
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return files, context


@pytest.mark.parametrize("name", ["tls_echo", "tls_listener"])
def test_tls_echo(name: str, tmp_path: Path) -> None:
    files, context = issue(tmp_path)
    with running(name, *files, "0") as example:
        with example.connect() as stranger:
            stranger.sendall(b"this is no TLS" * 100)
        with context.wrap_socket(example.connect(), server_hostname="localhost") as sock:
            sock.sendall(b"hello")
            assert receive(sock, 5) == b"hello"
            sock.unwrap()  # waits for the server's goodbye
        assert example.end() == ""


def test_behind_proxy() -> None:
    with running("behind_proxy", "0") as example:
        with example.connect() as client, example.connect() as check:
            check.sendall(b"PROXY UNKNOWN\r\n")
            assert check.recv(1) == b""
            client.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.1 40000 443\r\n")
            assert receive_line(client) == b"hello 192.0.2.7, you come through port 40000\n"
        assert example.end() == ""
    with running("behind_proxy", "0", "192.0.2.0/24") as example:
        with example.connect() as stranger:
            with suppress(ConnectionError):
                assert stranger.recv(1) == b""
        example.process.send_signal(signal.SIGINT)
        _, errors = example.process.communicate(timeout=PATIENCE)
        assert b"refused a connection from ('127.0.0.1', " in errors


# Becomes what it is told to, with the descriptor as its first inherited one, as
# systemd does it.
ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="echo.socket")
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def test_systemd_echo() -> None:
    script = str(ROOT / "examples" / "systemd_echo.py")
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.set_inheritable(True)
        command = ["-c", ACTIVATE, str(sock.fileno()), "-X", "dev", script]
        early = socket.create_connection(sock.getsockname())
        for _ in range(2):  # the socket outlives it
            with started(*command, pass_fds=[sock.fileno()]) as example, early:
                assert example.address == sock.getsockname()
                early.sendall(b"early")
                assert receive(early, 5) == b"early"
                check_echo(example)
                assert example.end() == ""
            early = socket.create_connection(sock.getsockname())
        early.close()


def test_systemd_echo_without_systemd() -> None:
    script = str(ROOT / "examples" / "systemd_echo.py")
    result = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": HERE},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert result.stderr == "systemd has passed no sockets\n"
    assert result.returncode == 1


# -- other software --------------------------------------------------------------


def test_anyio_echo() -> None:
    with running("anyio_echo", "0") as example:
        check_echo(example)
        assert example.end() == ""


def ask(example: Example, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    """The answer's status and body; by Python's own client."""
    connection = http_connection(example.address)
    try:
        connection.request(method, path, body, {"Expect": "100-continue"} if body else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_hypercorn_app(how: signal.Signals) -> None:
    with running("hypercorn_app", "0") as example:
        assert ask(example, "GET", "/here") == (200, b"/here by HTTP/1.1\n")
        with example.connect() as idle:
            idle.sendall(b"GET /idle HTTP/1.1\r\nhost: x\r\n\r\n")
            while not receive_line(idle).startswith(b"/idle by"):
                pass
            example.process.send_signal(how)
            assert idle.recv(1) == b""
        assert example.ended() == ""


def test_hypercorn_app_over_tls(tmp_path: Path) -> None:
    files, context = issue(tmp_path)
    with running("hypercorn_app", "0", *files) as example:
        with httpx.Client(http2=True, verify=context) as client:
            answer = client.get(f"https://localhost:{example.address[1]}/here")
            assert answer.text == "/here by HTTP/2\n"
        assert example.end() == ""


def test_metrics() -> None:
    with running("metrics", "0", "0") as example:
        address = ast.literal_eval(example.line().removeprefix("metrics on "))
        check_echo(example)
        openmetrics = {"accept": "application/openmetrics-text; version=1.0.0"}
        for headers, end in (({}, ""), (openmetrics, "# EOF\n")):
            answer = httpx.get(f"http://127.0.0.1:{address[1]}/metrics", headers=headers)
            assert answer.text.endswith(end)
            assert 'wknet_received_bytes_total{engine="default",listener=' in answer.text
        assert httpx.get(f"http://127.0.0.1:{address[1]}/").status_code == 404
        with socket.create_connection(address) as sock:
            sock.sendall(b"GET /met")  # and no more
        assert example.end() == ""


def test_websocket() -> None:
    with running("websocket", "0") as example:
        url = f"ws://127.0.0.1:{example.address[1]}"
        with connect(url, open_timeout=PATIENCE, ping_interval=None) as websocket:
            websocket.send("hello")
            assert websocket.recv(PATIENCE) == "HELLO"
        assert example.line() == "closed: NORMAL_CLOSURE"
        script = str(ROOT / "examples" / "websocket.py")
        assert run(script, url, input="one\ntwo\n") == "ONE\nTWO\n"
        example.end()


def run(*command: str, input: str = "") -> str:
    """What a program prints that ends by itself, and cleanly."""
    path = os.pathsep.join(filter(None, [HERE, os.environ.get("PYTHONPATH")]))
    result = subprocess.run(
        [sys.executable, "-X", "dev", *command],
        env={**os.environ, "PYTHONPATH": path},
        input=input,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def test_fetch() -> None:
    with running("http_server", "0") as example, socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        ports = [example.address[1], nobody.getsockname()[1]]
        urls = [f"http://127.0.0.1:{port}/x" for port in ports]
        words = run(str(ROOT / "examples" / "fetch.py"), urls[0], urls[0], urls[1])
        assert sorted(words.splitlines()) == sorted(
            [f"{urls[0]} 200 {len('you asked for /x.')}"] * 2 + [f"{urls[1]} ConnectError"]
        )
        example.end()


@pytest.fixture
def http_server() -> Iterator[Example]:
    with running("http_server", "0") as example:
        yield example


@pytest.fixture(scope="module")
def one_http_server() -> Iterator[Example]:
    """The same for all nonsense."""
    with running("http_server", "0") as example:
        yield example
        assert example.end() == ""


def test_http_server(http_server: Example) -> None:
    body = b"x" * 300_000
    assert ask(http_server, "GET", "/here") == (200, b"you asked for /here\n")
    assert ask(http_server, "HEAD", "/here") == (200, b"")
    assert ask(http_server, "POST", "/", body) == (200, body)
    assert ask(http_server, "CONNECT", "/")[0] == 405
    connection = http_connection(http_server.address)
    connection.connect()
    first = connection.sock
    for _ in range(3):
        connection.request("PUT", "/", iter([b"one ", b"two"]))
        assert connection.getresponse().read() == b"one two"
        assert connection.sock is first
    connection.close()
    assert http_server.end() == ""


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),  # without host
        (b"HEAD / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf", b"400"),
        (b"GET / HTTP/1.1\r\nx: " + b"x" * 100_000, b"431"),
        (b"", b""),
    ],
)
def test_http_server_and_nonsense(said: bytes, status: bytes, one_http_server: Example) -> None:
    with one_http_server.connect() as sock:
        sock.sendall(said)
        sock.shutdown(socket.SHUT_WR)
        assert receive(sock, 1 << 20)[9:12] == status
    assert ask(one_http_server, "GET", "/")[0] == 200


def test_http_server_answers_who_sends_too_much(http_server: Example) -> None:
    """The answer arrives although the client goes on sending: no reset."""
    with http_server.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4000000\r\n\r\n")
        sock.sendall(bytes(4_000_000))
        answer = receive(sock, 1 << 20)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert answer.endswith(b"\r\n\r\nthat is too much\n")
    assert http_server.end() == ""


def test_http_server_and_who_resets(http_server: Example) -> None:
    for said in (b"", b"GET", b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nx"):
        sock = http_server.connect()
        sock.sendall(said)
        reset(sock)
    assert ask(http_server, "GET", "/")[0] == 200
    assert http_server.end() == ""


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_http_server_and_curl(http_server: Example) -> None:
    url = f"http://127.0.0.1:{http_server.address[1]}/"
    command = ["curl", "--silent", "--show-error", "--max-time", "20"]
    body = b"x" * 300_000
    wanted = ["--data-binary", "@-", url]
    answer = subprocess.run([*command, *wanted], input=body, capture_output=True, check=True)
    assert answer.stdout == body
    several = [*command, *[f"{url}{{one,two}}"], "--write-out", "%{num_connects} "]
    answer = subprocess.run(several, capture_output=True, check=True)
    assert answer.stdout.split()[4::5] == [b"1", b"0"]
    assert http_server.end() == ""


@pytest.mark.parametrize(
    "name", [*SERVERS, "anyio_echo", "hypercorn_app", "http_server", "websocket"]
)
def test_ctrl_c_before_anybody_connects(name: str, tmp_path: Path) -> None:
    where = str(tmp_path / "socket") if name == "unix_echo" else "0"
    with running(name, where) as example:
        example.end()


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Example, bytes]]:
    folder = tmp_path_factory.mktemp("static")
    data = random.Random(1).randbytes(3_000_000)
    (folder / "www" / "deeper").mkdir(parents=True)
    (folder / "www" / "file.bin").write_bytes(data)
    (folder / "www" / "deeper" / "a page.html").write_bytes(b"<p>")
    (folder / "www" / "empty").touch()
    (folder / "secret").write_bytes(b"not for you")
    (folder / "www" / "link").symlink_to(folder / "secret")
    with running("static", "0", str(folder / "www")) as example:
        yield example, data
        assert example.end() == ""


def test_static(static: tuple[Example, bytes]) -> None:
    """Each request on the same connection."""
    example, data = static
    connection = http_connection(example.address)
    connection.connect()
    first = connection.sock

    def get(path: str, wanted: str = "", method: str = "GET") -> tuple[int, bytes, str | None]:
        connection.request(method, path, headers={"Range": wanted} if wanted else {})
        response = connection.getresponse()
        found = response.status, response.read(), response.getheader("Content-Range")
        assert connection.sock is first
        return found

    assert get("/file.bin") == (200, data, None)
    assert get("/file.bin", method="HEAD") == (200, b"", None)
    assert get("/file.bin?now") == (200, data, None)
    assert get("/deeper/a%20page.html") == (200, b"<p>", None)
    assert get("/empty") == (200, b"", None)
    assert get("/file.bin", "bytes=5-9") == (206, data[5:10], "bytes 5-9/3000000")
    assert get("/file.bin", "bytes=2999990-") == (206, data[-10:], "bytes 2999990-2999999/3000000")
    assert get("/file.bin", "bytes=-7") == (206, data[-7:], "bytes 2999993-2999999/3000000")
    assert get("/file.bin", "bytes=1-5,7-9") == (200, data, None)  # it may be ignored
    assert get("/file.bin", "bytes=3000000-") == (416, b"", "bytes */3000000")
    for path in ("/", "/deeper", "/nothing", "/../secret", "/%2e%2e/secret", "/link", "/%00"):
        assert get(path) == (404, b"", None), path
    assert get("/file.bin", method="DELETE") == (405, b"", None)
    connection.close()


def test_static_ignores_ranges_that_it_must(static: tuple[Example, bytes]) -> None:
    """Those of HEAD, and those of a file as it was."""
    example, data = static
    connection = http_connection(example.address)
    for method, headers, body in (
        ("HEAD", {"Range": "bytes=5-9"}, b""),
        ("HEAD", {"Range": "bytes=3000000-"}, b""),
        ("GET", {"Range": "bytes=5-9", "If-Range": '"old"'}, data),
    ):
        connection.request(method, "/file.bin", headers=headers)
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, body)
    connection.close()


def test_static_and_who_waits_for_100_continue(static: tuple[Example, bytes]) -> None:
    with static[0].connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n")
        sock.sendall(b"expect: 100-continue\r\n\r\n")
        assert receive(sock, 13) == b"HTTP/1.1 100 "


# As for a file without permission, which root may read nevertheless.
REFUSE_TO_OPEN = """
import sys

def refuse(event, arguments):
    if event == "open" and str(arguments[0]).endswith("/refused"):
        raise PermissionError(13, "Permission denied")

sys.addaudithook(refuse)
"""


def test_static_and_a_file_that_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends neither the server nor the connection."""
    (tmp_path / "sitecustomize.py").write_text(REFUSE_TO_OPEN)
    (tmp_path / "refused").touch()
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    with running("static", "0", str(tmp_path)) as example:
        connection = http_connection(example.address)
        for path, status in (("/refused", 404), ("/sitecustomize.py", 200)):
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            assert response.status == status
        connection.close()
        assert example.end() == ""


def test_static_and_a_client_that_leaves(static: tuple[Example, bytes]) -> None:
    example, data = static
    with example.connect() as sock:
        sock.sendall(b"GET /file.bin HTTP/1.1\r\nhost: x\r\n\r\n")
        assert receive(sock, 20_000).startswith(b"HTTP/1.1 200 ")
    assert ask(example, "GET", "/file.bin") == (200, data)
