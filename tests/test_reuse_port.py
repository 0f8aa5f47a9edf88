"""Several listeners on one port: one of them stops, and nobody notices."""

from __future__ import annotations

import os
import socket

import trio
import trio.testing
from helpers import echo, tcp_address

from trio_wknet import Engine

LOCAL = "tcp://127.0.0.1:0"


async def test_who_comes_while_one_closes_goes_to_the_others(engine: Engine) -> None:
    """The kernel goes on to give a listening socket its share until it is closed. What
    it would give it after the last accept must find the others instead. Copies of the
    descriptors keep the sockets open here, in just that state."""
    one = await engine.listen(LOCAL, reuse_port=True)
    _, port = tcp_address(one)
    copies = [os.dup(fd) for fd in one._fds]
    client = trio.socket.socket()
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(one.serve, echo)
            with socket.create_connection(("127.0.0.1", port)) as early:
                nursery.start_soon(one.drain)
                early.send(b"early")
                early.shutdown(socket.SHUT_WR)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.connect, ("127.0.0.1", port))
            await trio.testing.wait_all_tasks_blocked()
            other = await engine.listen(f"tcp://127.0.0.1:{port}", reuse_port=True)
            while copies:
                os.close(copies.pop())
        async with other, trio.open_nursery() as nursery:
            nursery.start_soon(other.serve, echo)
            await client.send(b"hello")
            assert await client.recv(5) == b"hello"
            nursery.cancel_scope.cancel()
    finally:
        client.close()
        for copy in copies:
            os.close(copy)


async def test_connections_are_not_filtered(engine: Engine) -> None:
    """What was accepted inherits the filter of the listening socket."""
    async with await engine.listen(LOCAL, reuse_port=True) as listener:
        async with trio.open_nursery() as nursery:
            await nursery.start(listener.serve, echo)
            with socket.create_connection(tcp_address(listener)) as sock:
                nursery.start_soon(listener.drain)
                conn = trio.SocketStream(trio.socket.from_stdlib_socket(sock.dup()))
                async with conn:
                    for n in range(3):
                        await conn.send_all(bytes(100_000))
                        size = 0
                        while size < 100_000:
                            size += len(await conn.receive_some())
                        assert listener.statistics().handlers == 1, n
