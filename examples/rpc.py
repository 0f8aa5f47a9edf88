"""Remote calls, JSON in frames: ``python examples/rpc.py [port]`` serves, and
``python examples/rpc.py tcp://127.0.0.1:5108 add 1 2`` calls.

A request is ``{"id": 1, "method": "add", "params": [1, 2]}``. Its answer, ``{"id": 1,
"result": 3}`` or ``{"id": 1, "error": "..."}``, may overtake the answers to earlier ones.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from operator import index
from typing import Any

import trio
from ctrl_c import run_until_ctrl_c

from trio_wknet import (
    Conn,
    FrameChannel,
    FrameTooLong,
    IncompleteRead,
    LengthPrefixed,
    open_engine,
    open_wknet_listener,
)

FRAMING = LengthPrefixed(4, max_frame=65_536)
IN_FLIGHT = 100  # requests of one connection that are worked on at a time
GONE = (trio.BrokenResourceError, trio.ClosedResourceError, IncompleteRead)


class Messages:
    """JSON messages over a connection, which any number of tasks may send."""

    def __init__(self, conn: Conn) -> None:
        self.channel: FrameChannel = conn.framed(FRAMING)
        self._slow = trio.Lock()

    async def send(self, message: dict[str, Any]) -> None:
        frame = json.dumps(message).encode()
        try:
            self.channel.send_nowait(frame)  # all frames of a turn leave together
        except trio.WouldBlock:  # the peer is slower than we are
            async with self._slow:
                await self.channel.send(frame)


async def add(*numbers: float) -> float:
    return sum(numbers)


async def divide(a: float, b: float) -> float:
    return a / b


METHODS: dict[str, Callable[..., Awaitable[Any]]] = {
    "add": add,
    "divide": divide,
    "sleep": trio.sleep,
}


async def handle(conn: Conn) -> None:
    """Serve a connection; many of its requests are worked on at the same time."""
    with conn.cancel_on_disconnect():  # a client that has left needs no answers
        async with trio.open_nursery() as nursery:
            await take_requests(Messages(conn), nursery)


async def take_requests(messages: Messages, nursery: trio.Nursery) -> None:
    places = trio.Semaphore(IN_FLIGHT)
    with suppress(*GONE):
        try:
            async for frame in messages.channel:
                await places.acquire()
                nursery.start_soon(answer, messages, frame, places)
        except FrameTooLong as exc:
            await messages.send({"id": None, "error": str(exc)})


async def answer(messages: Messages, frame: bytes, places: trio.Semaphore) -> None:
    number = None
    with suppress(*GONE):
        try:
            request = json.loads(frame)
            number = index(request["id"])  # a string may be too long for an answer
            result = await METHODS[request["method"]](*request["params"])
            await messages.send({"id": number, "result": result})
        except Exception as exc:  # ends neither the connection nor the server
            error = f"{type(exc).__name__}: {exc}"
            await messages.send({"id": number, "error": error[:1000]})
        finally:
            places.release()


class CallError(Exception):
    """The server answered a call with an error."""


@dataclass(eq=False)
class Call:
    """A call that waits for its answer. None: the connection ended first."""

    answer: dict[str, Any] | None = None
    done: trio.Event = field(default_factory=trio.Event)


class Rpc:
    """The client's end of a connection. Any number of tasks may call at the same time."""

    def __init__(self, conn: Conn) -> None:
        self._messages = Messages(conn)
        self._ids = count(1)
        self._calls: dict[int, Call] = {}

    async def call(self, method: str, *params: Any) -> Any:
        """Call a method of the server, and return its result. If it is cancelled, the other
        calls go on.

        Raises:
          CallError: the server answered with an error.
          trio.BrokenResourceError, trio.ClosedResourceError: the connection has ended.
        """
        number = next(self._ids)
        call = self._calls[number] = Call()
        try:
            await self._messages.send({"id": number, "method": method, "params": params})
            await call.done.wait()
        finally:
            del self._calls[number]
        if call.answer is None:
            raise trio.BrokenResourceError("the server has gone")
        if "error" in call.answer:
            raise CallError(call.answer["error"])
        return call.answer.get("result")

    async def take_answers(self) -> None:
        """Give each call its answer, until the connection ends."""
        with suppress(*GONE, FrameTooLong, LookupError, TypeError, ValueError):  # or nonsense
            async for frame in self._messages.channel:
                answer = json.loads(frame)
                if call := self._calls.get(answer["id"]):  # else it was cancelled
                    call.answer = answer
                    call.done.set()
        self._messages.channel.conn.abort()
        for call in self._calls.values():
            call.done.set()


@asynccontextmanager
async def open_rpc(address: str) -> AsyncIterator[Rpc]:
    """Connect to a server, for as long as the block is open."""
    async with (
        open_engine() as engine,
        await engine.connect(address) as conn,
        trio.open_nursery() as nursery,
    ):
        rpc = Rpc(conn)
        nursery.start_soon(rpc.take_answers)
        yield rpc
        nursery.cancel_scope.cancel()


async def main(where: str = "5108", method: str = "", *params: str) -> None:
    if where.startswith("tcp:"):
        async with open_rpc(where) as rpc:
            print(await rpc.call(method, *map(json.loads, params)))
    else:
        async with open_wknet_listener(f"tcp://127.0.0.1:{where}") as listener:
            print("listening on", listener.address, flush=True)
            await listener.serve(handle)


if __name__ == "__main__":
    run_until_ctrl_c(main, *sys.argv[1:])
