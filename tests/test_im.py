"""The instant-messaging service of examples/im, by clients of the standard library."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets.exceptions
import websockets.sync.client

import trio_wknet

ROOT = Path(__file__).parent.parent
HERE = Path(trio_wknet.__file__).parent.parent  # whichever is under test
PATIENCE = 30  # seconds
names = (f"user-{number}" for number in itertools.count())
rooms = (f"room-{number}" for number in itertools.count())


# --- the service --------------------------------------------------------------------------


class Service:
    """A running one."""

    pids: Sequence[int] = ()

    def __init__(self, *arguments: str, before: str = "") -> None:
        places = [str(HERE), str(ROOT), os.environ.get("PYTHONPATH")]
        path = os.pathsep.join(filter(None, places))
        self.process = subprocess.Popen(
            [sys.executable, "-X", "dev", "-m", "examples.im", "--no-browser", *arguments],
            cwd=ROOT / "examples",  # what is imported first is what is under test
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,  # nothing hides from select
        )
        if before:
            self.line(before)
        said = self.line("listening on ")
        self.address: tuple[str, int] = ast.literal_eval(said)
        self.page = self.line("the page is ")

    def line(self, before: str) -> str:
        """What it says behind some words."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        assert ready, "the service says nothing"
        words = self.process.stdout.readline().decode().rstrip()
        if not words.startswith(before):
            raise AssertionError(words + self.process.communicate()[1].decode())
        return words.removeprefix(before)

    def token(self, name: str) -> str:
        answer = httpx.get(f"{self.page}token", params={"name": name})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["token"])

    def node_of(self, client: Client) -> int:
        """The process that has the other end of its connection."""
        sock = client.sock if isinstance(client, TcpClient) else client.socket.socket
        ours, theirs = sock.getsockname(), sock.getpeername()
        inodes = {line.split()[9] for line in tcp_lines() if ends(line) == (theirs, ours)}
        for pid in self.pids:
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(FileNotFoundError):
                    if entry.readlink().name.removeprefix("socket:[").rstrip("]") in inodes:
                        return pid
        raise AssertionError("nobody has it")

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        self.ended()

    def ended(self) -> None:
        output, errors = self.process.communicate(timeout=PATIENCE)
        assert errors.decode() == ""
        assert self.process.returncode == 0, output


def tcp_lines() -> list[str]:
    return Path("/proc/net/tcp").read_text().splitlines()[1:]


def ends(line: str) -> tuple[tuple[str, int], ...]:
    """A connection's own address, and its peer's."""
    hosts_and_ports = (end.split(":") for end in line.split()[1:3])
    return tuple(
        (socket.inet_ntoa(struct.pack("=I", int(host, 16))), int(port, 16))
        for host, port in hosts_and_ports
    )


@contextmanager
def serving(*arguments: str, before: str = "") -> Iterator[Service]:
    service = Service(*arguments, before=before)
    try:
        yield service
    finally:
        service.process.terminate()  # nodes end with it
        service.process.communicate()


def arguments(folder: Path, *more: str) -> Sequence[str]:
    return ("--port=0", "--web-port=0", f"--history={folder / 'im.db'}", *more)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Most tests share one, each in rooms of its own."""
    with serving(*arguments(tmp_path_factory.mktemp("im"))) as running:
        yield running
        running.end()


# --- clients ------------------------------------------------------------------------------


class TcpClient:
    def __init__(self, address: tuple[str, int], **options: Any) -> None:
        self.sock = socket.socket()
        self.sock.settimeout(PATIENCE)
        for option, value in options.items():
            self.sock.setsockopt(socket.SOL_SOCKET, getattr(socket, option), value)
        self.sock.connect(address)

    def send_bytes(self, data: bytes) -> None:
        self.sock.sendall(struct.pack("!I", len(data)) + data)

    def send(self, **message: Any) -> None:
        self.send_bytes(json.dumps(message).encode())

    def receive(self) -> dict[str, Any]:
        (size,) = struct.unpack("!I", self._exactly(4))
        return dict(json.loads(self._exactly(size)))

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.sock.recv(size - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def is_ended(self) -> bool:
        with pytest.raises((EOFError, ConnectionResetError)):
            while True:
                self.receive()
        return True

    def close(self) -> None:
        self.sock.close()


class WebClient:
    def __init__(self, page: str) -> None:
        url = page.replace("http:", "ws:") + "socket"
        opened = websockets.sync.client.connect(url, ping_interval=None, max_queue=None)
        self.socket = opened.__enter__()  # what ends it is `close`

    def send_bytes(self, data: bytes) -> None:
        self.socket.send(data.decode(errors="replace"))

    def send(self, **message: Any) -> None:
        self.socket.send(json.dumps(message))

    def receive(self) -> dict[str, Any]:
        return dict(json.loads(self.socket.recv(PATIENCE)))

    def is_ended(self) -> bool:
        with pytest.raises(websockets.exceptions.ConnectionClosed):
            while True:
                self.socket.recv(PATIENCE)
        return True

    def close(self) -> None:
        self.socket.close_socket()  # without a goodbye


Client = TcpClient | WebClient
KINDS: dict[str, Callable[[Service], Client]] = {
    "tcp": lambda service: TcpClient(service.address),
    "web": lambda service: WebClient(service.page),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def connect(service: Service) -> Iterator[Callable[..., Client]]:
    """Clients of the service; with a name they are logged in."""
    clients = []

    def connected(kind: str = "tcp", name: str = "", after: str | None = None) -> Client:
        client = KINDS[kind](service)
        clients.append(client)
        if name:
            logged_in(client, service.token(name), after)
        return client

    yield connected
    for client in clients:
        client.close()


def logged_in(client: Client, token: str, after: str | None = None) -> list[dict[str, Any]]:
    """Log in; the private messages that came before the welcome."""
    client.send(type="login", token=token, after=after)
    return [*until(client, "welcome")][:-1]


def until(client: Client, type: str) -> Iterator[dict[str, Any]]:
    """Messages up to one of a type."""
    while True:
        message = client.receive()
        yield message
        if message["type"] == type:
            return


def next_of(client: Client, type: str) -> dict[str, Any]:
    return [*until(client, type)][-1]


def joined(client: Client, room: str, after: str | None = None) -> list[dict[str, Any]]:
    """Join; what had been said there."""
    client.send(type="join", room=room, after=after)
    return [message for message in until(client, "joined") if message["type"] == "said"]


def texts(messages: Sequence[dict[str, Any]]) -> list[str]:
    return [message["text"] for message in messages]


# --- tests --------------------------------------------------------------------------------


def test_a_room_by_tcp_and_websocket(connect: Callable[..., Client]) -> None:
    room, people = next(rooms), [next(names) for _ in range(3)]
    clients = [
        connect(kind, name) for kind, name in zip(("tcp", "tcp", "web"), people, strict=True)
    ]
    for client in clients:
        assert joined(client, room) == []
    for client, name in zip(clients, people, strict=True):
        client.send(type="say", room=room, text=f"höre \N{SNOWMAN} {name}", ref=name)
        got = [next_of(each, "said") for each in clients]
        assert got[0] == got[1] == got[2]
        assert (got[0]["from"], got[0]["ref"]) == (name, name)
        assert got[0]["text"] == f"höre \N{SNOWMAN} {name}"
    outsider = connect("web", next(names))
    outsider.send(type="say", room=room, text="let me in")
    assert outsider.receive() == {"type": "error", "why": f"you are not in {room}"}


def test_presence(connect: Callable[..., Client], kind: str) -> None:
    room, ann, bob = next(rooms), next(names), next(names)
    first = connect("tcp", ann)
    joined(first, room)
    second = connect(kind, bob)
    second.send(type="join", room=room)
    there = next_of(second, "joined")
    assert (there["who"], there["count"]) == (sorted([ann, bob]), 2)

    def told(client: Client, field: str, name: str) -> bool:
        return any(name in m.get(field, ()) for m in iter(client.receive, None))

    assert told(first, "came", bob)
    second.send(type="leave", room=room)
    assert next_of(second, "left") == {"type": "left", "room": room}
    assert told(first, "left", bob)
    joined(second, room)
    assert told(first, "came", bob)
    second.close()
    assert told(first, "left", bob)


def test_private_messages_reach_every_connection_of_both(connect: Callable[..., Client]) -> None:
    ann, bob, eve = next(names), next(names), next(names)
    phone, other = connect("web", ann), connect("tcp", eve)
    desk = connect("tcp", bob)
    desk.send(type="tell", to=ann, text="a secret", ref=1)
    assert next_of(phone, "told") | {"id": 0} == next_of(desk, "told") | {"id": 0}
    other.send(type="ping")
    assert other.receive() == {"type": "pong"}
    desk.send(type="tell", to=bob, text="a note to myself")
    assert next_of(desk, "told")["text"] == "a note to myself"
    desk.send(type="ping")
    assert desk.receive() == {"type": "pong"}  # it came once


def test_private_messages_wait_for_who_is_away(
    service: Service, connect: Callable[..., Client], kind: str
) -> None:
    ann, bob = next(names), next(names)
    sender = connect(kind, ann)
    for text in ("one", "two"):
        sender.send(type="tell", to=bob, text=text)
        next_of(sender, "told")
    token = service.token(bob)
    found = logged_in(connect(kind), token)
    assert texts(found) == ["one", "two"]
    assert texts(logged_in(connect(kind), token, found[0]["id"])) == ["two"]


def test_history_after_a_reconnect(connect: Callable[..., Client], kind: str) -> None:
    room = next(rooms)
    ann = connect(kind, next(names))
    joined(ann, room)
    for number in range(60):
        ann.send(type="say", room=room, text=f"number {number}")
    said = [next_of(ann, "said") for _ in range(60)]
    bob = connect(kind, next(names))
    assert joined(bob, room) == said[10:]  # the last 50
    bob.close()
    back = connect(kind, next(names))
    assert joined(back, room, said[56]["id"]) == said[57:]
    assert joined(back, room, said[59]["id"]) == []


def test_history_outlives_the_service(tmp_path: Path) -> None:
    with serving(*arguments(tmp_path)) as first:
        token = first.token("ann")
        with closing(TcpClient(first.address)) as ann, closing(WebClient(first.page)) as web:
            for client in (ann, web):
                logged_in(client, token)
                joined(client, "lobby")
            ann.send(type="say", room="lobby", text="before")
            said = next_of(ann, "said")
            first.end(signal.SIGINT)
            for client in (ann, web):
                assert next_of(client, "bye")["why"] == "this server ends; connect again"
                assert client.is_ended()
    with serving(*arguments(tmp_path)) as second, closing(TcpClient(second.address)) as ann:
        logged_in(ann, token)  # it is still good, and the name is still taken
        assert httpx.get(f"{second.page}token", params={"name": "ann"}).status_code == 409
        assert joined(ann, "lobby") == [said]


@pytest.mark.parametrize("token", [None, 7, "", "ann.99999999999.0", "a.b.c", "\ud800.1.2"])
def test_a_bad_token(connect: Callable[..., Client], kind: str, token: object) -> None:
    client = connect(kind)
    client.send(type="login", token=token)
    client.send(type="ping")  # is not obeyed any more
    assert client.receive() == {"type": "bye", "why": "the token is not valid"}
    assert client.is_ended()


def test_an_old_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    tokens = importlib.import_module("examples.im.tokens")
    assert tokens.name_of(b"secret", tokens.issue(b"secret", "ann")) == "ann"
    for token, why in [
        (tokens.issue(b"secret", "ann", -1), "expired"),
        (tokens.issue(b"another", "ann"), "not valid"),
        (tokens.issue(b"secret", "ann").replace("ann", "bob"), "not valid"),
    ]:
        with pytest.raises(Exception, match=why):
            tokens.name_of(b"secret", token)


GARBAGE = [b"", b"\xff\x00", b"{", b"[]", b"7", b'{"type": []}', b"[" * 5000, b'"login"']


@pytest.mark.parametrize("data", GARBAGE)
def test_garbage_ends_a_connection(connect: Callable[..., Client], kind: str, data: bytes) -> None:
    client = connect(kind, next(names))
    client.send_bytes(data)
    assert client.receive()["type"] == "bye"
    assert client.is_ended()


def test_a_frame_that_is_too_long_ends_a_connection(connect: Callable[..., Client]) -> None:
    client = connect("tcp", next(names))
    assert isinstance(client, TcpClient)
    client.sock.sendall(struct.pack("!I", 65_537))
    assert client.is_ended()


def test_who_is_not_logged_in_may_do_nothing(connect: Callable[..., Client], kind: str) -> None:
    client = connect(kind)
    client.send(type="join", room="lobby")
    assert client.receive() == {"type": "bye", "why": "log in first"}
    assert client.is_ended()


REFUSED: list[dict[str, Any]] = [
    {"type": "shout"},
    {"type": "join"},
    {"type": "join", "room": "a b"},
    {"type": "join", "room": "x" * 33},
    {"type": "join", "room": "lobby", "after": "x"},
    {"type": "join", "room": "lobby", "after": "9" * 19},
    {"type": "say", "room": "nowhere", "text": "x"},
    {"type": "leave", "room": "nowhere"},
    {"type": "tell", "to": "bob"},
    {"type": "tell", "to": "bob", "text": ""},
    {"type": "tell", "to": "bob", "text": "x" * 2001},
    {"type": "tell", "to": "bob", "text": "\ud800"},
    {"type": "tell", "to": "bob", "text": "x", "ref": [1]},
    {"type": "tell", "to": "bob", "text": "x", "ref": "\ud800"},
]


def test_what_is_refused_is_told(service: Service, connect: Callable[..., Client]) -> None:
    """And the connection goes on."""
    client = connect("web", next(names))
    for message in [*REFUSED, {"type": "login", "token": service.token(next(names))}]:
        client.send(**message)
        assert client.receive()["type"] == "error", message
    client.send(type="ping")
    assert client.receive() == {"type": "pong"}


def test_a_slow_client_is_closed_and_the_others_get_everything(
    service: Service, connect: Callable[..., Client]
) -> None:
    room, deaf_name = next(rooms), next(names)
    ann, bob = connect("tcp", next(names)), connect("web", next(names))
    deaf = TcpClient(service.address, SO_RCVBUF=4096)
    logged_in(deaf, service.token(deaf_name))
    for client in (ann, bob, deaf):
        joined(client, room)
    left, count = False, 0
    while not left:
        count += 50
        for _ in range(50):
            ann.send(type="say", room=room, text="x" * 2000)
        for client in (ann, bob):
            heard = 0
            while heard < 50:
                message = client.receive()
                heard += message["type"] == "said"
                left = left or deaf_name in message.get("left", ())
        assert count < 20_000, "it is still there"
    assert deaf.is_ended()
    deaf.close()


def test_a_hand_over_to_the_next_version(tmp_path: Path) -> None:
    """Both listen on the same ports; the first one sends its clients to the second."""
    with serving(*arguments(tmp_path, "--reuse-port")) as first:
        ports = (f"--port={first.address[1]}", f"--web-port={httpx.URL(first.page).port}")
        token = first.token("ann")
        with closing(TcpClient(first.address)) as ann, closing(WebClient(first.page)) as web:
            for client in (ann, web):
                logged_in(client, token)
                joined(client, "lobby")
            ann.send(type="say", room="lobby", text="before")
            last = next_of(ann, "said")["id"]
            with serving(*arguments(tmp_path, "--reuse-port"), *ports) as second:
                assert (second.address, second.page) == (first.address, first.page)
                first.process.send_signal(signal.SIGTERM)
                assert ann.is_ended()
                assert web.is_ended()
                first.ended()
                for kind in KINDS.values():
                    with closing(kind(second)) as again:
                        logged_in(again, token)
                        assert joined(again, "lobby", last) == []
                        again.send(type="say", room="lobby", text="after")
                        last = next_of(again, "said")["id"]
                        assert "before" in texts(joined(again, "lobby"))


REDIS = pytest.mark.skipif(
    not (shutil.which("redis-server") and importlib.util.find_spec("coredis")),
    reason="needs redis-server and coredis",
)


def on_both_nodes(nodes: Service, room: str) -> tuple[list[Client], list[str]]:
    """Clients in a room, not all of them on the same node."""
    clients: list[Client] = []
    people: list[str] = []
    where = set[int]()
    while len(where) < 2:
        client = KINDS["web" if len(clients) % 2 else "tcp"](nodes)
        people.append(next(names))
        clients.append(client)
        logged_in(client, nodes.token(people[-1]))
        joined(client, room)
        where.add(nodes.node_of(client))
    return clients, people


def wait_gone(pid: int) -> None:
    """Return when a process of the service has ended."""
    patience = time.monotonic() + PATIENCE
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < patience, f"process {pid} goes on"
        time.sleep(0.01)


@REDIS
def test_two_nodes() -> None:
    with serving("--port=0", "--web-port=0", "--nodes=2", before="Redis is ") as nodes:
        first, second = nodes.pids = [int(nodes.line(f"node {n} is process ")) for n in (1, 2)]
        clients, people = on_both_nodes(nodes, "lobby")
        try:
            for client, name in zip(clients, people, strict=True):
                client.send(type="say", room="lobby", text=f"from {name}")
                assert {next_of(each, "said")["text"] for each in clients} == {f"from {name}"}
            clients[0].send(type="tell", to=people[-1], text="a secret")
            assert next_of(clients[-1], "told")["text"] == "a secret"
            with closing(KINDS["tcp"](nodes)) as late:
                logged_in(late, nodes.token(next(names)))
                late.send(type="join", room="lobby")
                *before, there = until(late, "joined")
                assert texts([m for m in before if m["type"] == "said"]) == [
                    f"from {name}" for name in people
                ]
                known = set(there["who"])
                while not set(people) <= known:  # those who came lately are told of
                    known |= set(next_of(late, "presence")["came"])
            # The next version takes over, node by node.
            nodes.process.send_signal(signal.SIGHUP)
            for client in clients:
                assert client.is_ended()
                client.close()
            third, fourth = (int(nodes.line(f"node {n} is process ")) for n in (1, 2))
            assert len({first, second, third, fourth}) == 4
            for pid in (first, second):  # or the kernel may still give it a client
                wait_gone(pid)
            with closing(KINDS["web"](nodes)) as again:
                logged_in(again, nodes.token(next(names)))
                assert texts(joined(again, "lobby")) == [f"from {name}" for name in people]
        finally:
            for client in clients:
                client.close()
        nodes.end()


def test_the_page(service: Service) -> None:
    page = httpx.get(service.page)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "new WebSocket" in page.text
    assert httpx.get(f"{service.page}health").text == "well\n"
    assert httpx.get(f"{service.page}other").status_code == 404
    if importlib.util.find_spec("prometheus_client"):
        assert "wknet_connections" in httpx.get(f"{service.page}metrics").text
    for name in ("", "a b", "x" * 33):
        assert httpx.get(f"{service.page}token", params={"name": name}).status_code == 400


def test_the_load(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    port, web_port = service.address[1], httpx.URL(service.page).port
    assert web_port is not None
    load = importlib.import_module("examples.im.load")
    options = {"users": 10, "rooms": 2, "rate": 200, "seconds": 0.2, "warmup": 0, "text": 100}
    found = load.run(load.Load(host="127.0.0.1", port=port, web_port=web_port, **options))
    assert (found.said, found.expected, found.lost) == (40, 200, 0)
    assert found.deliveries > 0
    assert 0 < found.p50 <= found.p99
