"""Small threaded servers on loopback, for the load generator to load."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from trio_wknet._load.options import LoadOptions
from trio_wknet._load.run import LoadProgress, LoadResult, run_load

Handler = Callable[[socket.socket], None]

# Bounds that only a broken run reaches: the tests end by count, or by what servers do.
PATIENT: dict[str, Any] = {"duration": 60.0, "warmup": 0.0, "grace": 60.0}


class Server:
    """Runs `handle` in a thread for each connection, until the listener closes."""

    def __init__(self, listener: socket.socket, handle: Handler) -> None:
        self.listener = listener
        self.handle = handle
        self.peers: list[Any] = []
        self.threads = [threading.Thread(target=self.accept)]
        self.threads[0].start()

    def accept(self) -> None:
        while True:
            try:
                conn, peer = self.listener.accept()
            except OSError:
                return
            self.peers.append(peer)
            self.threads.append(threading.Thread(target=self.serve, args=(conn,)))
            self.threads[-1].start()

    def serve(self, conn: socket.socket) -> None:
        with conn, suppress(ConnectionError, EOFError):
            self.handle(conn)

    def load(
        self, *, on_progress: Callable[[LoadProgress], object] | None = None, **options: Any
    ) -> LoadResult:
        return run_load(self.options(**options), on_progress=on_progress)

    def options(self, **options: Any) -> LoadOptions:
        address = self.listener.getsockname()
        target = (f"unix://{address}",) if isinstance(address, str) else address[:2]
        return LoadOptions(*target, **{**PATIENT, **options})


@contextmanager
def serving(
    handle: Handler, family: int = socket.AF_INET, address: Any = ("127.0.0.1", 0)
) -> Iterator[Server]:
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.bind(address)
        listener.listen(1024)
        server = Server(listener, handle)
        try:
            yield server
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for thread in server.threads:
                thread.join()


def read(conn: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes."""
    data = b""
    while len(data) < size:
        more = conn.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def echo(conn: socket.socket) -> None:
    while data := conn.recv(1 << 16):
        conn.sendall(data)
