"""A load for the service: ``python -m examples.im.load --users 1000 --rooms 10 --rate 100``.

Users log in, each joins a room, and messages are said at a fixed rate, in all rooms in turn. What
is reported: deliveries, which are messages times those who got them; how long after its time to
be said a message was received, by one user of each room; and what did not arrive.

It is one process that only counts: a message is known by a mark that no other has, and is not
decoded. Still it may need more of a processor than the service: run it on another one.
"""

from __future__ import annotations

import argparse
import json
import re
import select
import socket
import struct
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack, suppress

import attrs

from . import tokens

MARK = b'"~'  # no header of a frame has it; few are missed that are split between two reads
SAID_AT = re.compile(rb"~(\d{10,20})")  # ns
UPGRADE = (
    b"GET /socket HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
AT_ONCE = 100  # connections that log in at the same time
PATIENCE = 60.0
ALIVE = 10.0  # seconds, after which each user shows that it is still there
PONG = b"\x8a\x80\0\0\0\0"


@attrs.frozen(kw_only=True)
class Load:
    host: str
    port: int
    web_port: int
    """0: by TCP, with the port above; else by WebSocket."""
    users: int
    rooms: int
    rate: float
    seconds: float
    warmup: float
    text: int
    secret: bytes | None = None
    """What tokens are signed with; None: the service is asked for them."""


@attrs.frozen(kw_only=True)
class Result:
    seconds: float
    said: int
    deliveries: int
    expected: int
    p50: float
    p99: float
    """Seconds."""
    lost: int
    """Connections."""


class Users:
    """All of them, in one thread."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._poll = select.epoll()
        self._opened = ExitStack()
        self._showed = time.monotonic()
        self._socks: dict[int, socket.socket] = {}
        self._rooms: list[list[socket.socket]] = [[] for _ in range(load.rooms)]
        self._watched: set[int] = set()  # one of each room, whose messages tell the time
        self.got = 0
        self.lost = 0
        self.times: list[int] = []

    # --- logging in ----------------------------------------------------------------

    def log_in(self) -> None:
        for first in range(0, self._load.users, AT_ONCE):
            numbers = range(first, min(first + AT_ONCE, self._load.users))
            new = [(number, self._connect()) for number in numbers]
            for number, sock in new:
                room = number % self._load.rooms
                self._send(sock, type="login", token=self._token(number))
                self._send(sock, type="join", room=f"load-{room}")
            for number, sock in new:
                self._receive_until(sock, b'"joined"')
                self._add(number % self._load.rooms, sock)
            self.listen(0)

    def _connect(self) -> socket.socket:
        load = self._load
        address = (load.host, load.web_port or load.port)
        sock = self._opened.enter_context(socket.create_connection(address, PATIENCE))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if load.web_port:
            sock.sendall(UPGRADE)
            self._receive_until(sock, b"\r\n\r\n")
        return sock

    def _token(self, number: int) -> str:
        name = f"load-{time.time_ns()}-{number}"[-32:]
        if self._load.secret is not None:
            return tokens.issue(self._load.secret, name)
        url = f"http://{self._load.host}:{self._load.web_port}/token?name={name}"
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            return str(json.load(answer)["token"])

    def _receive_until(self, sock: socket.socket, mark: bytes) -> None:
        said = b""
        while mark not in said:
            more = sock.recv(65_536)
            if not more:
                raise SystemExit(f"the service has refused a user: {said[-300:]!r}")
            said += more

    def _add(self, room: int, sock: socket.socket) -> None:
        sock.setblocking(False)
        if not self._rooms[room]:
            self._watched.add(sock.fileno())
        self._rooms[room].append(sock)
        self._socks[sock.fileno()] = sock
        self._poll.register(sock, select.EPOLLIN)

    def _send(self, sock: socket.socket, **message: object) -> None:
        data = json.dumps(message).encode()
        if not self._load.web_port:
            head = struct.pack("!I", len(data))
        elif len(data) < 126:
            head = struct.pack("!BBI", 0x81, 0x80 | len(data), 0)  # a mask of zeros
        else:
            head = struct.pack("!BBHI", 0x81, 0xFE, len(data), 0)
        sock.sendall(head + data)

    def close(self) -> None:
        self._opened.close()
        self._poll.close()

    # --- talking -------------------------------------------------------------------

    def talk(self, seconds: float) -> int:
        """Say messages at the rate; how many."""
        begin, count = time.monotonic(), round(seconds * self._load.rate)
        for number in range(count):
            due = begin + number / self._load.rate
            while (wait := due - time.monotonic()) > 0:
                self.listen(wait)
            self._say(number % self._load.rooms, int(due * 1e9))
            if not number % 16:  # also when it is behind
                self.listen(0)
        return count

    def _say(self, room: int, due: int) -> None:
        text = f"~{due} ".ljust(self._load.text, "x")
        with suppress(OSError):  # it takes no more, or is gone: this message is missing
            self._send(self._rooms[room][-1], type="say", room=f"load-{room}", text=text)

    def _stay(self) -> None:
        """Say a word, so that the service does not take a user for one who is gone."""
        self._showed = time.monotonic()
        for sock in self._socks.values():
            with suppress(OSError):
                if self._load.web_port:
                    sock.sendall(PONG)
                else:
                    self._send(sock, type="ping")

    def listen(self, seconds: float) -> None:
        if time.monotonic() > self._showed + ALIVE:
            self._stay()
        for fd, _ in self._poll.poll(seconds):
            try:
                data = self._socks[fd].recv(262_144)
            except ConnectionResetError:
                data = b""
            if not data:
                self._poll.unregister(fd)
                self.lost += 1
                continue
            self.got += data.count(MARK)
            if fd in self._watched:
                now = time.monotonic_ns()
                self.times += [now - int(at) for at in SAID_AT.findall(data)]

    def drain(self, expected: int) -> None:
        """What is still on its way, for as long as something comes."""
        until, before = time.monotonic() + 1, self.got
        while self.got < expected and time.monotonic() < until:
            self.listen(0.1)
            if self.got > before:
                until, before = time.monotonic() + 1, self.got


def run(load: Load, note: Callable[[int], object] = lambda got: None) -> Result:
    """Put the load on a service. `note` is called at both ends of what is measured, with how
    many deliveries there were."""
    users = Users(load)
    try:
        return measure(load, users, note)
    finally:
        users.close()


def measure(load: Load, users: Users, note: Callable[[int], object]) -> Result:
    users.log_in()
    users.talk(load.warmup)
    users.times.clear()
    note(users.got)
    before, began = users.got, time.monotonic()
    said = users.talk(load.seconds)
    deliveries, took = users.got - before, time.monotonic() - began
    note(users.got)
    users.drain(before + said * (load.users // load.rooms))
    times = sorted(users.times) or [0]
    return Result(
        seconds=took,
        said=said,
        deliveries=deliveries,
        expected=said * (load.users // load.rooms),
        p50=times[len(times) // 2] / 1e9,
        p99=times[len(times) * 99 // 100] / 1e9,
        lost=users.lost,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.im.load", description="Talk.")
    parser.add_argument("--host", default="127.0.0.1", help="default 127.0.0.1")
    parser.add_argument("--port", type=int, default=5222, help="for TCP; default 5222")
    parser.add_argument("--web-port", type=int, default=8080, help="for WebSocket; default 8080")
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--rooms", type=int, default=10)
    parser.add_argument("--rate", type=float, default=100, help="messages a second, in all rooms")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--warmup", type=float, default=2, help="seconds before")
    parser.add_argument("--text", type=int, default=100, help="characters of a message")
    load = Load(**vars(parser.parse_args()))
    result = run(load)
    print(
        f"{load.users} users in {load.rooms} rooms, {result.said / result.seconds:,.0f} messages/s"
    )
    print(f"{result.deliveries / result.seconds:,.0f} deliveries/s of {result.expected:,}")
    print(f"latency p50 {result.p50 * 1e3:.1f} ms, p99 {result.p99 * 1e3:.1f} ms")
    if result.lost:
        print(f"{result.lost} connections were lost")


if __name__ == "__main__":
    main()
