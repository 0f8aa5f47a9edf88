"""A gateway for devices, in event mode: ``python examples/gateway.py [port [seconds]]``.

A device says its name, then readings, a number on each line; one that is silent for so
long is sent off. Who connects to the second port commands: ``NAME WHAT TO DO``.
"""

import sys
from contextlib import suppress
from functools import partial
from types import SimpleNamespace

import trio
from ctrl_c import run_until_ctrl_c

from trio_wknet import Conn, DelimiterNotFound, Engine, IncompleteRead, open_engine

LINE = 200  # bytes that a line may have
PEERS_FAULT = (trio.BrokenResourceError, DelimiterNotFound, IncompleteRead, ValueError)
say = partial(print, flush=True)
ids: dict[str, int | None] = {}  # of connections, by the device's name


async def log_in(conn: Conn) -> None:  # on_connect: a task, until it returns
    name = (await conn.receive_until(b"\n", LINE)).decode().strip()
    conn.context = SimpleNamespace(name=name, id=conn.id)
    ids[name] = conn.id
    conn.send_nowait(b"hello\n")


def take(conn: Conn) -> None:  # on_data: no task
    with suppress(trio.WouldBlock):  # no whole line is left
        while True:
            reading = float(conn.receive_until_nowait(b"\n", LINE))
            say(f"{conn.context.name}: {reading}")


def leave(conn: Conn, reason: str) -> None:
    name = conn.context.name if conn.context else "a stranger"
    if conn.context and ids.get(name) == conn.context.id:  # else it has come back before
        del ids[name]
    say(f"{name} left: {reason}")


def complain(conn: Conn, exc: Exception) -> None:  # on_error: the connection is closed
    if not isinstance(exc, PEERS_FAULT):
        raise exc


def tell(device: Conn | None, what: str) -> bytes:
    with suppress(trio.BrokenResourceError, trio.WouldBlock):  # it went, or does not read
        if device:
            device.send_nowait(f"{what}\n".encode())
            return b"sent\n"
    return b"not sent\n"


async def command(engine: Engine, conn: Conn) -> None:  # an ordinary handler
    with suppress(*PEERS_FAULT):
        while True:
            name, _, what = (await conn.receive_until(b"\n", LINE)).decode().partition(" ")
            await conn.send_all(tell(engine.connections.get(ids.get(name) or 0), what))


async def main(port: str = "5106", seconds: str = "60") -> None:
    async with open_engine() as engine, trio.open_nursery() as nursery:
        devices = await engine.listen(f"tcp://127.0.0.1:{port}", idle_timeout=float(seconds))
        operators = await engine.listen("tcp://127.0.0.1:0")
        say("listening on", devices.address)
        say("commands on", operators.address)
        nursery.start_soon(operators.serve, partial(command, engine))
        await devices.serve_events(take, on_connect=log_in, on_close=leave, on_error=complain)


if __name__ == "__main__":
    run_until_ctrl_c(main, *sys.argv[1:])
