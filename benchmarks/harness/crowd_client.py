"""Many connections of one process, for a server that shall have them:
``python crowd_client.py PORT SOURCE``, then questions and answers (`worker.py`).

All come from one local address, SOURCE, so that several such processes do not share
one set of ports. Between questions they are not watched: a connection that is held
costs this end its socket and nothing else.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from statistics import median
from typing import Any

from harness.answers import answer_all
from trio_wknet._load.target import reserve_descriptors

HOST = "127.0.0.1"
CONNECTING = 128
"""Connects under way at once."""
PATIENCE = 30.0
"""Seconds in which something must happen while something is waited for."""
# From <linux/in.h>: the port is chosen by connect(), which knows the other end.
IP_BIND_ADDRESS_NO_PORT = 24


class Crowd:
    """The connections, by descriptor."""

    def __init__(self, port: int, source: str) -> None:
        self._port = port
        self._source = source
        self._socks: dict[int, socket.socket] = {}
        self._sent: dict[int, float] = {}  # when it last did, or was connected

    def connect(self, count: int) -> dict[str, Any]:
        """Open a number of further connections."""
        reserve_descriptors(count)
        began = time.monotonic()
        pending: dict[int, socket.socket] = {}
        with watching({}) as poller:
            for _ in range(count):
                if len(pending) == CONNECTING:
                    self._finish(poller, pending)
                sock = self._start()
                pending[sock.fileno()] = sock
                poller.register(sock, select.EPOLLOUT)
            while pending:
                self._finish(poller, pending)
        return {"seconds": time.monotonic() - began}

    def _start(self) -> socket.socket:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((self._source, 0))
        sock.connect_ex((HOST, self._port))
        return sock

    def _finish(self, poller: select.epoll, pending: dict[int, socket.socket]) -> None:
        for fd, _ in wait(poller, "connected"):
            poller.unregister(fd)
            sock = pending.pop(fd)
            if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(code, f"connect from {self._source}: {os.strerror(code)}")
            self._socks[fd] = sock
            self._sent[fd] = time.monotonic()

    def echo(self, size: int) -> dict[str, Any]:
        """Send one message on every connection, and wait until all are back."""
        began = time.monotonic()
        try:
            self._echo(bytes(size))
        except ConnectionError:
            raise ConnectionError("the server closed a connection that is still needed") from None
        return {"seconds": time.monotonic() - began}

    def _echo(self, message: bytes) -> None:
        missing = dict.fromkeys(self._socks, len(message))
        with watching(self._socks) as poller:
            for fd, sock in self._socks.items():
                self._sent[fd] = time.monotonic()
                sock.sendall(message)
            while missing:
                for fd, _ in wait(poller, "answered"):
                    missing[fd] -= self._receive(fd)
                    if not missing[fd]:
                        del missing[fd]

    def _receive(self, fd: int) -> int:
        data = self._socks[fd].recv(1 << 16)
        if not data:
            raise ConnectionResetError
        return len(data)

    def wait_closed(self, timeout: float) -> dict[str, Any]:
        """Wait until the server has closed them all, and say how many seconds after it last
        sent something each was closed."""
        until, after = time.monotonic() + timeout, []
        with watching(self._socks) as poller:
            while self._socks and time.monotonic() < until:
                for fd, _ in poller.poll(until - time.monotonic()):
                    if self._socks[fd].recv(1 << 16):
                        continue
                    after.append(time.monotonic() - self._sent.pop(fd))
                    self._socks.pop(fd).close()
        if self._socks:
            raise TimeoutError(f"{len(self._socks)} connections are open after {timeout:g} s")
        return {"first": min(after), "median": median(after), "last": max(after)}

    def close(self) -> dict[str, Any]:
        """Close them all from here."""
        while self._socks:
            self._socks.popitem()[1].close()
        self._sent.clear()
        return {}


@contextmanager
def watching(socks: dict[int, socket.socket]) -> Iterator[select.epoll]:
    """Wait for input on these, in this block."""
    with select.epoll() as poller:
        for fd in socks:
            poller.register(fd, select.EPOLLIN)
        yield poller


def wait(poller: select.epoll, what: str) -> list[tuple[int, int]]:
    """What is ready."""
    ready = poller.poll(PATIENCE)
    if not ready:
        raise TimeoutError(f"no connection was {what} in {PATIENCE:g} s")
    return ready


def main(port: str, source: str) -> None:
    crowd = Crowd(int(port), source)
    answers: dict[str, Callable[..., object]] = {
        "connect": crowd.connect,
        "echo": crowd.echo,
        "wait_closed": crowd.wait_closed,
        "close": crowd.close,
    }
    asked: SimpleQueue[str] = SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            asked.put(line)
        os._exit(0)  # the parent process is gone, whatever this process is at

    threading.Thread(target=listen, daemon=True).start()
    answer_all(iter(asked.get, ""), answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
