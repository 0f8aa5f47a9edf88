"""A server that hits the limit on its address space, under load of another process: each client
is answered rightly, or sees that it is not, and when the load is gone all are served."""

from __future__ import annotations

import subprocess
import sys
from hashlib import sha256

import trio
from helpers import content, read_all

SIZE = 1 << 18
CLIENTS = 32

SERVER = """
import resource, sys, trio, trio_wknet
from hashlib import sha256
from trio_wknet import Limits

MIB = 1 << 20
ROOM = 4 * MIB      # for 32 clients, with a quarter of 1 MiB each, twice

def keep_small_blocks():
    # Trio itself does not survive without a few bytes. It gets these: the address space of
    # arenas which are nearly empty. What fails is large.
    pieces = [bytes(size) for size in (40, 90, 200, 400) for _ in range(10_000)]
    return pieces[::100]

async def main():
    kept = keep_small_blocks()
    go = trio.Event()

    async def handler(conn):
        try:
            size = int.from_bytes(await conn.receive_exactly(4), "big")
            data = await conn.receive_exactly(size)
            if data == b"go":
                go.set()
            await go.wait()
            await conn.send_all(sha256(data).digest())
        except (MemoryError, trio.BrokenResourceError):
            pass    # the client sees an end without an answer

    async with trio_wknet.open_engine(2) as engine:
        limits = Limits(inbound=MIB)
        listener = await engine.listen("tcp://127.0.0.1:0", limits=limits)
        async with listener, trio.open_nursery() as nursery:
            await nursery.start(listener.serve, handler)
            with open("/proc/self/statm") as file:
                now = int(file.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (now + ROOM, now + ROOM))
            print(listener.address[1], end="", flush=True)
            await trio.lowlevel.wait_readable(sys.stdin.fileno())
            nursery.cancel_scope.cancel()
    print("closed", flush=True)

trio.run(main)
"""


async def ask(port: int, data: bytes) -> bytes:
    """The answer, or nothing."""
    try:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(len(data).to_bytes(4, "big") + data)
            return await stream.receive_some(100)
    except trio.BrokenResourceError:
        return b""


async def test_the_limit_of_the_address_space() -> None:
    small = [content(("small", number), 100) for number in range(10)]
    large = [content(number, SIZE) for number in range(CLIENTS)]
    answers: dict[bytes, bytes] = {}

    async def client(port: int, message: bytes) -> None:
        answers[message] = await ask(port, message)

    with trio.fail_after(30):
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        port = int(await process.stdout.receive_some(100))
        async with trio.open_nursery() as nursery:
            for message in small + large:
                nursery.start_soon(client, port, message)
            # Those for whom there is no memory; the others wait for a word.
            while len(answers) < CLIENTS // 3:  # noqa: ASYNC110
                await trio.sleep(0.001)
            assert set(answers.values()) == {b""}
            assert await ask(port, b"go") == sha256(b"go").digest()
        assert {message for message in answers if answers[message]} >= set(small)
        for message, answer in answers.items():
            assert answer in (b"", sha256(message).digest())
        # What pools keep for reuse is given back in a second or two, without any load.
        for message in large[:5]:
            while await ask(port, message) != sha256(message).digest():  # noqa: ASYNC110
                await trio.sleep(0.01)
        await process.stdin.aclose()
        assert await read_all(process.stdout) == b"closed\n"
        assert await process.wait() == 0
        await process.stdout.aclose()
