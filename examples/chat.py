"""A chat server for netcat: ``python examples/chat.py [port]``.

A client says its name first; every further line goes to all the others.
"""

from __future__ import annotations

import sys

import trio
from ctrl_c import run_until_ctrl_c

from trio_wknet import Conn, DelimiterNotFound, IncompleteRead, Limits, open_wknet_listener

LINE = 1024  # bytes that a line may have
SILENCE = 600  # seconds that a member may say nothing
LIMITS = Limits(inbound=16 * LINE, outbound=256 * LINE)

members: dict[Conn, bytes] = {}


def tell(conn: Conn, text: bytes) -> None:
    """Send a line to one member, without waiting."""
    try:
        conn.send_nowait(text + b"\n")
    except trio.WouldBlock:
        conn.abort()  # has not read the last 256 lines
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # its own handler learns of it, too


def tell_others(conn: Conn, text: bytes) -> None:
    for member in list(members):
        if member is not conn:
            tell(member, text)


async def hear(conn: Conn) -> bytes:
    """The next line of a member."""
    with trio.fail_after(SILENCE):
        return (await conn.receive_until(b"\n", max_bytes=LINE)).rstrip(b"\r")


async def converse(conn: Conn) -> None:
    tell(conn, b"* your name?")
    name = members[conn] = await hear(conn)
    tell_others(conn, b"* %s is here" % name)
    while True:
        tell_others(conn, b"%s: %s" % (name, await hear(conn)))


async def chat(conn: Conn) -> None:
    try:
        await converse(conn)
    except (IncompleteRead, trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # left, or was aborted above
    except DelimiterNotFound:
        tell(conn, b"* that line is too long")
    except trio.TooSlowError:
        tell(conn, b"* nothing heard for too long")
    finally:
        name = members.pop(conn, b"")
        if name:
            tell_others(conn, b"* %s has left" % name)


async def main(port: int = 5101) -> None:
    async with open_wknet_listener(f"tcp://127.0.0.1:{port}", limits=LIMITS) as listener:
        print("listening on", listener.address, flush=True)
        await listener.serve(chat)


if __name__ == "__main__":
    run_until_ctrl_c(main, *map(int, sys.argv[1:]))
