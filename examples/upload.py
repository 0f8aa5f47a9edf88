"""Takes uploads, as long as they move: ``python examples/upload.py [port [seconds]]``.

A client sends a line with the size, and then that number of bytes; it gets their SHA-256.
"""

import sys
from contextlib import suppress
from functools import partial
from hashlib import sha256

import trio
from ctrl_c import run_until_ctrl_c

from trio_wknet import Conn, DelimiterNotFound, IncompleteRead, open_wknet_listener

GONE = (trio.BrokenResourceError, IncompleteRead)  # the peer
NONSENSE = (DelimiterNotFound, ValueError)  # no line, or no number


async def take(conn: Conn, stalled: float) -> None:
    left = int(await conn.receive_until(b"\n", 20))
    digest = sha256()
    with conn.idle_scope(stalled) as scope:
        while left and (data := await conn.receive_some(min(left, 65536))):
            digest.update(data)
            left -= len(data)
    if scope.cancelled_caught:
        await conn.send_all(f"gave up: no byte for {stalled} s, {left} missing\n".encode())
    elif not left:
        await conn.send_all(digest.hexdigest().encode() + b"\n")


async def upload(conn: Conn, stalled: float) -> None:
    with suppress(*GONE, *NONSENSE):
        await take(conn, stalled)


async def main(port: str = "5105", seconds: str = "10") -> None:
    address, stalled = f"tcp://127.0.0.1:{port}", float(seconds)
    async with open_wknet_listener(address, idle_timeout=6 * stalled) as listener:
        print("listening on", listener.address, flush=True)
        await listener.serve(partial(upload, stalled=stalled))


if __name__ == "__main__":
    run_until_ctrl_c(main, *sys.argv[1:])
