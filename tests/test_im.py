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
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
import trio
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

    def __init__(self, *arguments: str, nodes: int = 0) -> None:
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
        self.pids: dict[str, int] = {}
        if nodes:
            self.started("Redis")
            self.redis = self.line("Redis is ")
            for number in range(nodes):
                self.started(f"node {number + 1}")
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

    def started(self, name: str, after: str = "") -> None:
        """Wait until a process has, perhaps after it ended."""
        if after:
            assert self.line(f"{name} has ended: ") == after
        self.pids[name] = int(self.line(f"{name} is process "))

    def node_of(self, client: Client) -> int:
        """The process that has the other end of its connection."""
        sock = client.sock if isinstance(client, TcpClient) else client.socket.socket
        ours, theirs = sock.getsockname(), sock.getpeername()
        inodes = {line.split()[9] for line in tcp_lines() if ends(line) == (theirs, ours)}
        for pid in self.pids.values():
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
        # It may have waited for Redis.
        said = [line for line in errors.decode().splitlines() if not line.startswith("WARNING:im:")]
        assert not said, said
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
def serving(*arguments: str, nodes: int = 0) -> Iterator[Service]:
    service = Service(*arguments, nodes=nodes)
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
            logged_in(client, name, after)
        return client

    yield connected
    for client in clients:
        client.close()


def token(name: str) -> str:
    return f"the-secret-of-{name}"


def logged_in(client: Client, name: str, after: str | None = None) -> list[dict[str, Any]]:
    """Log in; the private messages that came before the welcome."""
    client.send(type="login", name=name, token=token(name), after=after)
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


def everybody_is_in(client: Client, room: str, *expected: str) -> None:
    """Wait until these are in a room, by the last word of each node."""
    parts: dict[str, list[str]] = {}
    patience = time.monotonic() + PATIENCE
    while sorted(itertools.chain(*parts.values())) != sorted(expected):
        assert time.monotonic() < patience, parts
        said = next_of(client, "presence")
        if said["room"] == room:
            assert said["count"] == len(said["who"])
            parts[said["node"]] = said["who"]


def test_presence(connect: Callable[..., Client], kind: str) -> None:
    room, ann, bob = next(rooms), next(names), next(names)
    first = connect("tcp", ann)
    joined(first, room)
    everybody_is_in(first, room, ann)
    second = connect(kind, bob)
    joined(second, room)
    everybody_is_in(second, room, ann, bob)
    everybody_is_in(first, room, ann, bob)
    joined(second, room)  # as after a gap
    second.send(type="leave", room=room)
    assert next_of(second, "left") == {"type": "left", "room": room}
    everybody_is_in(first, room, ann)
    joined(second, room)
    everybody_is_in(first, room, ann, bob)
    second.close()
    everybody_is_in(first, room, ann)


def test_private_messages_reach_every_connection_of_both(connect: Callable[..., Client]) -> None:
    ann, bob, eve = next(names), next(names), next(names)
    phone, other = connect("web", ann), connect("tcp", eve)
    desk = connect("tcp", bob)
    desk.send(type="tell", to=ann, text="a secret", ref="1")
    assert next_of(phone, "told") | {"id": 0} == next_of(desk, "told") | {"id": 0}
    other.send(type="ping")
    assert other.receive() == {"type": "pong"}
    desk.send(type="tell", to=bob, text="a note to myself")
    assert next_of(desk, "told")["text"] == "a note to myself"
    desk.send(type="ping")
    assert desk.receive() == {"type": "pong"}  # it came once


def test_private_messages_wait_for_who_is_away(connect: Callable[..., Client], kind: str) -> None:
    ann, bob = next(names), next(names)
    sender = connect(kind, ann)
    for text in ("one", "two"):
        sender.send(type="tell", to=bob, text=text)
        next_of(sender, "told")
    found = logged_in(connect(kind), bob)
    assert texts(found) == ["one", "two"]
    assert texts(logged_in(connect(kind), bob, found[0]["id"])) == ["two"]


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


def test_history_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    store = importlib.import_module("examples.im.store")
    monkeypatch.setattr(store, "KEPT", 3)

    async def main() -> list[str]:
        async with trio_wknet.open_engine(0) as engine:
            async with store.open_local(str(tmp_path / "im.db"), engine) as kept:
                for number in range(5):
                    await kept.append([("room:a", f'{{"text":{number}}}')] * 2)
                    await kept.append([("room:b", "{}")])
                return list(await kept.since("room:a", "7"))

    found = [json.loads(text) for text in trio.run(main)]
    assert [(one["id"], one["text"]) for one in found] == [("8", 3), ("9", 4), ("10", 4)]


@contextmanager
def at_both_doors(service: Service, name: str) -> Iterator[list[Client]]:
    """Clients by TCP and by WebSocket of one who is in the lobby."""
    with ExitStack() as stack:
        clients = [stack.enter_context(closing(kind(service))) for kind in KINDS.values()]
        for client in clients:
            logged_in(client, name)
            joined(client, "lobby")
        yield clients


def test_history_outlives_the_service(tmp_path: Path) -> None:
    with (
        serving(*arguments(tmp_path)) as first,
        at_both_doors(first, "ann") as clients,
    ):
        clients[0].send(type="say", room="lobby", text="before")
        said = next_of(clients[0], "said")
        first.process.send_signal(signal.SIGINT)
        for client in clients:
            assert next_of(client, "bye")["why"] == "this server ends; connect again"
            assert client.is_ended()
            client.close()
        first.ended()
    with serving(*arguments(tmp_path)) as second, closing(TcpClient(second.address)) as ann:
        ann.send(type="login", name="ann", token="x" * 16)  # the name is still taken
        assert ann.receive() == {"type": "bye", "why": "this name is taken"}
        with closing(TcpClient(second.address)) as ann:
            logged_in(ann, "ann")
            assert joined(ann, "lobby") == [said]


def test_a_name_that_is_taken(connect: Callable[..., Client], kind: str) -> None:
    ann, bob = next(names), next(names)
    connect("tcp", ann)
    client = connect(kind)
    client.send(type="login", name=ann, token=token(bob))
    client.send(type="ping")  # is not obeyed any more
    assert client.receive() == {"type": "bye", "why": "this name is taken"}
    assert client.is_ended()


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
    {"type": "login", "token": "x" * 16},
    {"type": "login", "name": "ann", "token": "short"},
    {"type": "login", "name": "ann", "token": 7},
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


def test_what_is_refused_is_told(connect: Callable[..., Client]) -> None:
    """And the connection goes on."""
    client = connect("web", next(names))
    for message in REFUSED:
        client.send(**message)
        assert client.receive()["type"] == "error", message
    client.send(type="ping")
    assert client.receive() == {"type": "pong"}


def test_a_slow_client_is_closed_and_the_others_get_everything(
    service: Service, connect: Callable[..., Client]
) -> None:
    room, deaf_name = next(rooms), next(names)
    who = [next(names), next(names), deaf_name]
    ann, bob = connect("tcp", who[0]), connect("web", who[1])
    deaf = TcpClient(service.address, SO_RCVBUF=4096)
    logged_in(deaf, deaf_name)
    for client in (ann, bob, deaf):
        joined(client, room)
    everybody_is_in(ann, room, *who)
    there, count = True, 0
    while there:
        count += 50
        for _ in range(50):
            ann.send(type="say", room=room, text="x" * 2000)
        for client in (ann, bob):
            heard = 0
            while heard < 50:
                message = client.receive()
                heard += message["type"] == "said"
                there = there and deaf_name in message.get("who", who)
        assert count < 20_000, "it is still there"
    assert deaf.is_ended()
    deaf.close()


def test_a_hand_over_to_the_next_version(tmp_path: Path) -> None:
    """Both listen on the same ports; the first one sends its clients to the second."""
    with (
        serving(*arguments(tmp_path, "--reuse-port")) as first,
        at_both_doors(first, "ann") as clients,
    ):
        ports = (f"--port={first.address[1]}", f"--web-port={httpx.URL(first.page).port}")
        clients[0].send(type="say", room="lobby", text="before")
        last = next_of(clients[0], "said")["id"]
        with serving(*arguments(tmp_path, "--reuse-port"), *ports) as second:
            assert (second.address, second.page) == (first.address, first.page)
            first.process.send_signal(signal.SIGTERM)
            for client in clients:
                assert client.is_ended()
                client.close()
            first.ended()
            with at_both_doors(second, "ann") as clients:
                for again in clients:
                    assert joined(again, "lobby", last) == []
                clients[1].send(type="say", room="lobby", text="after")
                assert {next_of(each, "said")["text"] for each in clients} == {"after"}
                assert texts(joined(again, "lobby")) == ["before", "after"]


REDIS = pytest.mark.skipif(
    not (shutil.which("redis-server") and importlib.util.find_spec("coredis")),
    reason="needs redis-server and coredis",
)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two, with a Redis of their own. A node that is silent for two seconds is forgotten."""
    options = arguments(tmp_path_factory.mktemp("nodes"), "--nodes=2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IM_PRESENCE", "2")
        with serving(*options, nodes=2) as running:
            yield running
            running.end(signal.SIGINT)
            for pid in running.pids.values():
                wait_gone(pid)


def wait_gone(pid: int) -> None:
    """Return when a process of the service has ended."""
    patience = time.monotonic() + PATIENCE
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < patience, f"process {pid} goes on"
        time.sleep(0.01)


class Member(Thread):
    """One who is in a room of a node, says something all the time, and hears everything."""

    def __init__(self, nodes: Service, room: str) -> None:
        super().__init__(daemon=True)
        self.room, self.name = room, next(names)
        self.client = TcpClient(nodes.address)
        logged_in(self.client, self.name)
        joined(self.client, room)
        self.node = nodes.node_of(self.client)
        self.heard: list[dict[str, Any]] = []
        self.last = ""  # id that it has got
        self.acknowledged: list[str] = []  # ids of what it has said
        self.silent = False
        self.start()

    def run(self) -> None:
        """Talk: the next word when the last one was heard, or some others."""
        self.say()
        with suppress(EOFError, OSError):
            while True:
                message = self.client.receive()
                self.heard.append(message)
                if message["type"] == "said":
                    self.last = message["id"]
                    if message["from"] == self.name:
                        self.acknowledged.append(message["id"])
                        time.sleep(0.01)
                        self.say()

    def say(self) -> None:
        if not self.silent:
            self.client.send(type="say", room=self.room, text="x")

    def wait(self, condition: Callable[[], object], why: str) -> None:
        patience = time.monotonic() + PATIENCE
        while not condition():
            assert self.is_alive(), f"it was disconnected: {self.heard[-3:]}"
            assert time.monotonic() < patience, why
            time.sleep(0.005)

    def wait_further(self, count: int = 10) -> None:
        """Until it has got through as many times more."""
        goal = len(self.acknowledged) + count
        self.wait(lambda: len(self.acknowledged) >= goal, "nothing gets through")

    def count(self, type: str) -> int:
        return sum(message["type"] == type for message in self.heard)

    def end(self) -> None:
        """It is cut off when it hears no more."""
        self.silent = True
        with suppress(OSError):
            self.client.sock.shutdown(socket.SHUT_RDWR)
        self.join(PATIENCE)
        assert not self.is_alive()
        self.client.close()


@pytest.fixture
def members(nodes: Service) -> Iterator[Callable[[str], list[Member]]]:
    """Some on each node, in a room, who talk."""
    there: list[Member] = []

    def enter(room: str) -> list[Member]:
        while len({member.node for member in there}) < 2 or len(there) < 4:
            there.append(Member(nodes, room))
        return there

    yield enter
    for member in there:
        member.end()


def all_are_kept(nodes: Service, room: str, members: Sequence[Member]) -> bool:
    """Whether Redis has all that was acknowledged, unless it is too old."""
    from coredis.connection import TCPLocation

    from trio_wknet.contrib.redis._connection import ask

    acknowledged = {id for member in members for id in member.acknowledged}
    url = httpx.URL(nodes.redis)
    location, name = TCPLocation(url.host, url.port or 0), f"im:log:room:{room}"
    answer = trio.run(ask, location, {}, b"XRANGE", name, "-", "+")
    kept = [str(id, "ascii") for id, _ in answer]
    oldest = number(kept[0]) if len(kept) >= 1000 else []  # it may have been trimmed
    return not {id for id in acknowledged if number(id) >= oldest}.difference(kept)


def number(id: str) -> list[int]:
    return [int(part) for part in id.split("-")]


@REDIS
def test_redis_is_killed_under_load(nodes: Service, members: Callable[[str], list[Member]]) -> None:
    room = next(rooms)
    talking = members(room)
    for member in talking:
        member.wait_further()
    os.kill(nodes.pids["Redis"], signal.SIGKILL)
    nodes.started("Redis", after="-9; again in 0.1 s")
    for member in talking:  # nobody is disconnected, and all are told
        member.wait(lambda: member.count("gap"), "it is not told of the gap")  # noqa: B023
        member.wait_further()
    assert all_are_kept(nodes, room, talking)
    with closing(TcpClient(nodes.address)) as late:
        logged_in(late, next(names))
        assert len(joined(late, room)) >= 50  # with what is said meanwhile


@REDIS
def test_a_node_is_killed(nodes: Service, members: Callable[[str], list[Member]]) -> None:
    room = next(rooms)
    talking = members(room)
    dying = nodes.pids["node 2"]
    survivors = [member for member in talking if member.node != dying]
    lost = {member.name for member in talking} - {member.name for member in survivors}
    for member in talking:
        member.wait_further()
    os.kill(dying, signal.SIGKILL)
    nodes.started("node 2", after="-9; again in 0.1 s")
    for member in survivors:
        member.wait_further()
    with closing(TcpClient(nodes.address)) as witness:
        logged_in(witness, next(names))
        there, patience = lost, time.monotonic() + PATIENCE
        while there & lost:  # they are not believed to be there for long
            assert time.monotonic() < patience, there
            witness.send(type="join", room=room)
            said = [*until(witness, "joined")]
            there = {name for message in said for name in message.get("who", ())}
        survivors[0].wait_further()
        assert {member.name for member in survivors} <= there


@REDIS
def test_a_node_is_drained_under_load(
    nodes: Service, members: Callable[[str], list[Member]]
) -> None:
    room = next(rooms)
    talking = members(room)
    for member in talking:
        member.wait_further()
    ending = nodes.pids["node 1"]
    os.kill(ending, signal.SIGTERM)
    nodes.started("node 1", after="0; again in 0.1 s")
    for member in talking:
        if member.node == ending:
            member.join(PATIENCE)
            assert not member.is_alive()
            assert member.heard[-1] == {"type": "bye", "why": "this server ends; connect again"}
            with closing(TcpClient(nodes.address)) as again:
                logged_in(again, member.name)
                for message in joined(again, room, member.last):
                    assert number(message["id"]) > number(member.last)
        else:
            member.wait_further()
    assert all_are_kept(nodes, room, talking)


def test_what_dies_again_and_again_is_started_more_slowly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT)
    module = importlib.import_module("examples.im.nodes")
    monkeypatch.setattr(module, "PAUSE", 0.001)
    monkeypatch.setattr(module, "LONGEST", 0.003)
    said = ""

    async def main() -> None:
        nonlocal said
        command = ["sh", "-c", "echo it listens; exit 3"]
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                scope = await nursery.start(module.keep_running, "it", command, b"listens")
                while said.count("ended") < 4:
                    await trio.sleep(0.001)
                    said += capsys.readouterr().out
                scope.cancel()

    trio.run(main)
    lines = [line for line in said.splitlines() if "ended" in line]
    pauses = [0.001, 0.002, 0.003, 0.003]
    assert lines[:4] == [f"it has ended: 3; again in {pause} s" for pause in pauses]


@REDIS
def test_two_nodes_and_the_next_version(nodes: Service) -> None:
    room, clients, people = next(rooms), list[Client](), list[str]()
    with ExitStack() as stack:
        while len({nodes.node_of(client) for client in clients}) < 2 or len(clients) < 3:
            kind = "web" if len(clients) % 2 else "tcp"
            clients.append(stack.enter_context(closing(KINDS[kind](nodes))))
            people.append(next(names))
            logged_in(clients[-1], people[-1])
            joined(clients[-1], room)
        for client, name in zip(clients, people, strict=True):
            client.send(type="say", room=room, text=f"from {name}")
            assert {next_of(each, "said")["text"] for each in clients} == {f"from {name}"}
        clients[0].send(type="tell", to=people[-1], text="a secret")
        assert next_of(clients[-1], "told")["text"] == "a secret"
        everybody_is_in(clients[0], room, *people)
        # The next version takes over, node by node.
        before = dict(nodes.pids)
        nodes.process.send_signal(signal.SIGHUP)
        for place in (1, 2):
            nodes.started(f"node {place}")
        for client in clients:
            assert next_of(client, "bye")
            assert client.is_ended()
            client.close()
        for place in (1, 2):  # or the kernel may still give it a client
            wait_gone(before[f"node {place}"])
        again = stack.enter_context(closing(KINDS["web"](nodes)))
        logged_in(again, people[0])
        assert texts(joined(again, room)) == [f"from {name}" for name in people]


def test_the_page(service: Service) -> None:
    page = httpx.get(service.page)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "new WebSocket" in page.text
    assert httpx.get(f"{service.page}health").text == "well\n"
    assert httpx.get(f"{service.page}other").status_code == 404
    if importlib.util.find_spec("prometheus_client"):
        assert "wknet_connections" in httpx.get(f"{service.page}metrics").text


def test_the_load(service: Service, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.syspath_prepend(ROOT)
    module = importlib.import_module("examples.im.load")
    web_port = httpx.URL(service.page).port if kind == "web" else 0
    where = {"host": "127.0.0.1", "port": service.address[1], "web_port": web_port}
    load = module.Load(**where, users=10, rooms=2, text=100, processes=1)
    with module.crowd(load) as pipes:
        found = module.talk(load, pipes, rate=200, seconds=0.2, warmup=0)
    assert found.said == 200
    assert found.expected == 1000
    assert found.lost == 0
    assert found.arrived == 1
    assert 0 < found.p50 <= found.p99
