"""A client that sends without end, and reads much less than it could."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

EVERY = 0.010
TAKES = 4096
"""Bytes that it reads at a time, once in `EVERY` seconds."""
GIVES = bytes(65536)


@contextmanager
def slow_consumer(port: int) -> Iterator[None]:
    """One such client, in a thread, as long as the block runs."""
    ended = threading.Event()
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.setblocking(False)
        thread = threading.Thread(target=consume, args=(sock, ended))
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def consume(sock: socket.socket, ended: threading.Event) -> None:
    """Fill the connection, take a little, and again."""
    while not ended.wait(EVERY):
        try:
            with suppress(BlockingIOError):
                while not ended.is_set():
                    sock.send(GIVES)
            with suppress(BlockingIOError):
                sock.recv(TAKES)
        except ConnectionError:
            return  # the result of the load beside says that the server is gone
