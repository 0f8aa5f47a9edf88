"""A load for the service: ``python -m examples.im.load --users 1000 --rooms 10 --rate 100``.

Users log in, some at a time, and each joins a room. When all are there, messages are said at a
fixed rate, in all rooms in turn. What is reported: deliveries, which are messages times those who
got them; how long after its time to be said a message was received, by some users of each room;
and what did not arrive.

A process only counts what its users get: a message is known by a mark that no other has, and is
not decoded. Several share the users, so that what is measured is the service.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import secrets
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

import attrs

MARK = b'"~'  # no header of a frame has it; few are missed that are split between two reads
SAID_AT = re.compile(rb"~(\d{10,20})")  # ns
UPGRADE = (
    b"GET /socket HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
AT_ONCE = 30  # users of a process that log in at the same time
PATIENCE = 60.0  # seconds in which one more of them has to succeed
ALIVE = 10.0  # seconds, after which each user shows that it is still there
QUIET = 1.0  # seconds without a message, after which no more is waited for
LEFT = 3.0  # seconds for what is still on its way at the end
PONG = b"\x8a\x80\0\0\0\0"


@attrs.frozen(kw_only=True)
class Load:
    host: str
    port: int
    web_port: int
    """0: by TCP, with the port above; else by WebSocket."""
    users: int
    rooms: int
    text: int
    processes: int


@attrs.frozen(kw_only=True)
class Talk:
    """What is said when: the times are those of `time.monotonic`."""

    begin: float
    measured: float
    end: float
    rate: float


@attrs.frozen(kw_only=True)
class Heard:
    said: int
    deliveries: int
    arrived: int
    """With those that came after the end."""
    times: list[int]
    behind: float
    """Seconds, the latest that a message was said after its time."""
    lost: int


@attrs.frozen(kw_only=True)
class Result:
    """Of what was measured."""

    said: float
    """Messages a second."""
    deliveries: float
    """A second."""
    expected: float
    arrived: float
    """Of what was expected, with what came after the end."""
    p50: float
    p99: float
    """Seconds."""
    lost: int
    """Connections."""
    behind: float
    """Seconds that the load itself was behind, at most."""
    used: float
    """What the meter has gone on by."""


class Users:
    """Those of one process."""

    def __init__(self, load: Load, share: int) -> None:
        self._load = load
        self._share = share
        self._poll = select.epoll()
        self._opened = ExitStack()
        self._showed = time.monotonic()
        self._socks: dict[int, socket.socket] = {}
        self._new: dict[int, tuple[int, bytes]] = {}  # who logs in, and what was heard
        self._rooms: list[list[int]] = [[] for _ in range(load.rooms)]
        self._watched: set[int] = set()  # one of each room, whose messages tell the time
        self._unsent: dict[int, bytes] = {}
        self.got = 0
        self.lost = 0
        self.times: list[int] = []

    def close(self) -> None:
        self._opened.close()
        self._poll.close()

    # --- logging in ----------------------------------------------------------------

    def log_in(self) -> None:
        """A user of ours has a number that is our share of all."""
        todo = iter(range(self._share, self._load.users, self._load.processes))
        more, until, missing = True, time.monotonic() + PATIENCE, 0
        while more or self._new:
            while more and len(self._new) < AT_ONCE:
                number = next(todo, None)
                more = number is not None
                if number is not None:
                    self._connect(number)
            self.listen(0.1)
            if self.lost or time.monotonic() > until:
                raise SystemExit(f"the service has refused users: {[*self._new.values()][:3]!r}")
            if missing != len(self._socks):
                missing, until = len(self._socks), time.monotonic() + PATIENCE

    def _connect(self, number: int) -> None:
        load = self._load
        address = (load.host, load.web_port or load.port)
        sock = self._opened.enter_context(socket.create_connection(address, PATIENCE))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        self._socks[sock.fileno()] = sock
        self._new[sock.fileno()] = number, b""
        self._poll.register(sock, select.EPOLLIN)
        if load.web_port:
            sock.sendall(UPGRADE)
        else:
            self._introduce(sock, number)

    def _introduce(self, sock: socket.socket, number: int) -> None:
        name, token = f"load-{os.getpid()}-{secrets.token_hex(4)}-{number}", secrets.token_hex()
        sock.sendall(self._framed(type="login", name=name, token=token))
        sock.sendall(self._framed(type="join", room=self._room(number)))

    def _room(self, number: int) -> str:
        return f"load-{number // self._load.processes % self._load.rooms}"

    def _hear_new(self, fd: int, data: bytes) -> None:
        number, heard = self._new[fd]
        if b"\r\n\r\n" in data and not heard:
            self._introduce(self._socks[fd], number)
        self._new[fd] = number, heard + data
        if b'"joined"' in heard + data:
            del self._new[fd]
            room = self._rooms[number // self._load.processes % self._load.rooms]
            if not room:
                self._watched.add(fd)
            room.append(fd)

    def _framed(self, **message: object) -> bytes:
        data = json.dumps(message).encode()
        if not self._load.web_port:
            head = struct.pack("!I", len(data))
        elif len(data) < 126:
            head = struct.pack("!BBI", 0x81, 0x80 | len(data), 0)  # a mask of zeros
        else:
            head = struct.pack("!BBHI", 0x81, 0xFE, len(data), 0)
        return head + data

    # --- talking -------------------------------------------------------------------

    def talk(self, talk: Talk) -> Heard:
        """Say our share of the messages, each at its time."""
        number, said, behind, before = self._share, 0, 0.0, -1
        while (due := talk.begin + number / talk.rate) < talk.end:
            if before < 0 and due >= talk.measured:
                self._listen_until(talk.measured)
                self.times.clear()
                before, said, behind = self.got, 0, 0.0
            self._listen_until(due)
            behind = max(behind, time.monotonic() - due)
            said += self._say(number // self._load.processes, int(due * 1e9))
            number += self._load.processes
            if not said % 16:  # also when it is behind
                self.listen(0)
        self._listen_until(talk.end)
        after = self.got
        self._listen_to_the_rest()
        counts = {"said": said, "deliveries": after - before, "arrived": self.got - before}
        return Heard(**counts, times=self.times, behind=behind, lost=self.lost)

    def _say(self, number: int, due: int) -> bool:
        """Whether it could be said: not by who is not listened to."""
        room = number % self._load.rooms
        members = self._rooms[room]
        fd = members[number // self._load.rooms % len(members)]
        text = f"~{due} ".ljust(self._load.text, "x")
        message = self._framed(type="say", room=f"load-{room}", text=text)
        return fd in self._socks and self._send(fd, message)

    def _send(self, fd: int, message: bytes) -> bool:
        """All of it, some of it perhaps later; or nothing, to who does not take the last one."""
        waits = self._unsent.pop(fd, b"")
        sent = 0
        with suppress(OSError):
            sent = self._socks[fd].send(waits or message)
        if waits[sent:]:
            self._unsent[fd] = waits[sent:]
            return False
        if waits:
            return self._send(fd, message)
        if 0 < sent < len(message):
            self._unsent[fd] = message[sent:]
        return sent > 0

    def _listen_until(self, due: float) -> None:
        while (wait := due - time.monotonic()) > 0:
            self.listen(wait)

    def _listen_to_the_rest(self) -> None:
        end, quiet, before = time.monotonic() + LEFT, time.monotonic() + QUIET, self.got
        while time.monotonic() < min(end, quiet):
            self.listen(0.1)
            if self.got > before:
                quiet, before = time.monotonic() + QUIET, self.got

    def listen(self, seconds: float) -> None:
        if time.monotonic() > self._showed + ALIVE:
            self._show()
        for fd, _ in self._poll.poll(seconds):
            try:
                data = self._socks[fd].recv(16_384)
            except ConnectionError:
                data = b""
            if not data:
                self._poll.unregister(fd)
                del self._socks[fd]
                self.lost += 1
            elif fd in self._new:
                self._hear_new(fd, data)
            else:
                self.got += data.count(MARK)
                if fd in self._watched:
                    now = time.monotonic_ns()
                    self.times += [now - int(at) for at in SAID_AT.findall(data)]

    def _show(self) -> None:
        """Say a word, so that the service does not take a user for one who is gone."""
        self._showed = time.monotonic()
        word = PONG if self._load.web_port else self._framed(type="ping")
        for fd in self._socks:
            if fd not in self._new:
                self._send(fd, word)


# --- several processes --------------------------------------------------------------


def be_users(load: Load, share: int, orders: Connection) -> None:
    """Log in, and talk as often as is asked for, until there are no more orders."""
    users = Users(load, share)
    try:
        users.log_in()
        orders.send(True)
        with suppress(EOFError):
            while True:
                while not orders.poll():
                    users.listen(0.05)
                orders.send(users.talk(orders.recv()))
    finally:
        users.close()


@contextmanager
def crowd(load: Load) -> Iterator[list[Connection]]:
    """Users who have all logged in: where each process of them takes its orders."""
    context = multiprocessing.get_context("spawn")
    started, pipes = [], []
    try:
        for share in range(load.processes):
            ours, theirs = context.Pipe()
            process: Any = context.Process(target=be_users, args=(load, share, theirs))
            process.start()
            theirs.close()
            started.append(process)
            pipes.append(ours)
        for pipe in pipes:
            try:
                pipe.recv()
            except EOFError:
                raise SystemExit("users could not log in") from None
        yield pipes
    finally:
        for pipe in pipes:
            pipe.close()
        for process in started:
            process.join()


def talk(
    load: Load,
    pipes: list[Connection],
    *,
    rate: float,
    seconds: float,
    warmup: float,
    meter: Callable[[], float] = time.process_time,
) -> Result:
    """Have messages said.

    Args:
      meter: what is read when measuring begins and ends.
    """
    begin = time.monotonic() + 0.2
    order = Talk(begin=begin, measured=begin + warmup, end=begin + warmup + seconds, rate=rate)
    for pipe in pipes:
        pipe.send(order)
    time.sleep(order.measured - time.monotonic())
    at_first = meter()
    time.sleep(order.end - time.monotonic())
    used = meter() - at_first
    heard: list[Heard] = [pipe.recv() for pipe in pipes]
    times = sorted(time for one in heard for time in one.times) or [0]
    said = sum(one.said for one in heard)
    expected = said * load.users / load.rooms
    return Result(
        said=said / seconds,
        deliveries=sum(one.deliveries for one in heard) / seconds,
        expected=expected / seconds,
        arrived=min(1.0, sum(one.arrived for one in heard) / max(1, expected)),
        p50=times[len(times) // 2] / 1e9,
        p99=times[len(times) * 99 // 100] / 1e9,
        lost=sum(one.lost for one in heard),
        behind=max(one.behind for one in heard),
        used=used,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.im.load", description="Talk.")
    parser.add_argument("--host", default="127.0.0.1", help="default 127.0.0.1")
    parser.add_argument("--port", type=int, default=5222, help="for TCP; default 5222")
    parser.add_argument("--web-port", type=int, default=8080, help="for WebSocket; default 8080")
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--rooms", type=int, default=10)
    parser.add_argument("--text", type=int, default=100, help="characters of a message")
    parser.add_argument("--processes", type=int, default=2, help="that are the users")
    parser.add_argument("--rate", type=float, default=100, help="messages a second, in all rooms")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--warmup", type=float, default=2, help="seconds before")
    options = vars(parser.parse_args())
    talking = {name: options.pop(name) for name in ("rate", "seconds", "warmup")}
    load = Load(**options)
    with crowd(load) as pipes:
        print(f"{load.users} users are in {load.rooms} rooms", flush=True)
        result = talk(load, pipes, **talking)
    print(f"{result.said:,.0f} messages/s, {result.deliveries:,.0f} deliveries/s")
    print(f"{result.arrived:.1%} have arrived; p50 {result.p50 * 1e3:.1f} ms, ", end="")
    print(f"p99 {result.p99 * 1e3:.1f} ms")
    print(f"the load was {result.behind * 1e3:.1f} ms behind at most; {result.lost} lost")


if __name__ == "__main__":
    main()
