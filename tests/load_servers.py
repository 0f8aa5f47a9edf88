"""Small threaded servers on loopback, for the load generator to load."""

from __future__ import annotations

import base64
import hashlib
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


def read_frame(conn: socket.socket) -> bytes:
    """A frame behind 4 bytes of length, with them."""
    header = read(conn, 4)
    return header + read(conn, int.from_bytes(header, "big"))


def read_head(conn: socket.socket) -> bytes:
    """Up to the blank line, byte by byte, so that nothing behind it is read."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += read(conn, 1)
    return head


def agreement(request: bytes) -> bytes:
    """The answer to a request to upgrade to WebSocket."""
    key = next(
        line.partition(b": ")[2]
        for line in request.split(b"\r\n")
        if line.startswith(b"Sec-WebSocket-Key:")
    )
    accept = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + base64.b64encode(accept) + b"\r\n\r\n"
    )


def read_message(conn: socket.socket) -> tuple[int, bytes]:
    """The opcode and the payload of a masked, final frame."""
    first, second = read(conn, 2)
    assert first & 0xF0 == 0x80
    assert second & 0x80
    size = second & 0x7F
    if size > 125:
        size = int.from_bytes(read(conn, {126: 2, 127: 8}[size]), "big")
    mask = read(conn, 4)
    data = read(conn, size)
    return first & 15, bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))


def write_message(opcode: int, data: bytes) -> bytes:
    """An unmasked frame with its length in the shortest form."""
    size = len(data)
    if size < 126:
        return bytes([0x80 | opcode, size]) + data
    number, marker = (2, 126) if size < 1 << 16 else (8, 127)
    return bytes([0x80 | opcode, marker]) + size.to_bytes(number, "big") + data


def echo_messages(conn: socket.socket) -> None:
    """A WebSocket server."""
    conn.sendall(agreement(read_head(conn)))
    while True:
        conn.sendall(write_message(*read_message(conn)))
