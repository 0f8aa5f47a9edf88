"""Whatever of the public surface is touched after an engine's end raises, or answers from
what was kept. It is gone through by name, so what is added is looked at, too."""

from __future__ import annotations

import inspect
import socket
import ssl
import sys
from collections.abc import Awaitable
from contextlib import AbstractContextManager, suppress
from io import BytesIO
from typing import Any

import pytest
import trio
from helpers import dial, until
from trio.testing import wait_all_tasks_blocked

from trio_wknet import Conn, Delimited, Listener, Trace, open_engine
from trio_wknet._sockets.facade import stand_in

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

pytestmark = pytest.mark.usefixtures("nothing_left")
LOCAL = "tcp://127.0.0.1:0"
CLIENT_CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
CLIENT_CONTEXT.check_hostname = False

# What to call things with, by the names of their parameters.
ARGUMENTS: dict[str, Any] = {
    "file": BytesIO(b"x"),
    "address": LOCAL,
    "default": None,
    "buffer": bytearray(10),
    "buffers": [b"data"],
    "buflen": None,
    "context": CLIENT_CONTEXT,
    "data": b"data",
    "delimiter": b"\n",
    "framing": Delimited(b"\n", max_frame=100),
    "frames": [b"data"],
    "handler": Conn.receive_some,
    "inheritable": False,
    "key": 1,
    "level": socket.SOL_SOCKET,
    "max_bytes": 1,
    "member": None,
    "n": 1,
    "on_data": Conn.receive_nowait,
    "on_frames": print,
    "option": socket.SO_KEEPALIVE,
    "optname": socket.SO_KEEPALIVE,
    "other": {},
    "read": None,
    "seconds": 1.0,
    "sock": None,
    "value": 1,
    "write": None,
}
EXPECTED: tuple[type[BaseException], ...] = (
    BaseExceptionGroup,  # of serving
    trio.ClosedResourceError,
    trio.BrokenResourceError,
    trio.WouldBlock,
    AttributeError,
    RuntimeError,
    TypeError,
    ValueError,
    OSError,
    StopAsyncIteration,
)


def surface(thing: Any) -> list[str]:
    own = isinstance(thing, socket.socket | trio.socket.SocketType)  # not its base's
    return [
        name
        for name in (vars(type(thing)) if own else dir(thing))
        if not name.startswith("__") or name in ("__aiter__", "__iter__", "__len__", "__repr__")
    ]


def arguments(function: Any) -> list[Any]:
    """For each parameter that has no default. An unknown name fails the test: say above
    what it is to be."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of a compiled method without a signature
        return []
    needed = [
        it
        for it in parameters
        if it.default is it.empty and it.kind in (it.POSITIONAL_ONLY, it.POSITIONAL_OR_KEYWORD)
    ]
    return [ARGUMENTS[it.name] for it in needed]


def is_public(name: str) -> bool:
    return not name.startswith("_") or name.startswith("__")


async def finish(result: Any) -> None:
    if isinstance(result, AbstractContextManager):
        with result:
            pass
    elif inspect.isawaitable(result) or hasattr(result, "send"):
        with trio.fail_after(10):
            await result
    elif hasattr(result, "__next__"):
        list(result)
    elif hasattr(result, "__anext__"):
        with trio.fail_after(10):
            await result.__anext__()


async def touch(thing: Any) -> list[str]:
    """Use all of it; the names of what there is."""
    names = [name for name in surface(thing) if is_public(name)]
    for name in names:
        with suppress(*EXPECTED):
            found = getattr(thing, name)
            if callable(found) and not isinstance(found, type):
                await finish(found(*arguments(found)))
        for value in (1, None):
            with suppress(*EXPECTED):
                if isinstance(getattr(type(thing), name, None), property | type(Conn.context)):
                    setattr(thing, name, value)
    return names


OPERATIONS = (
    *("receive_some", "receive_into", "receive_exactly", "receive_until"),
    *("send_all", "send_file", "flush", "wait_send_all_might_not_block", "send_eof", "detach"),
    *(
        "start_tls",
        "wait_closed",
        "aclose",
        "accept",
        "serve",
        "serve_events",
        "serve_frames",
        "drain",
    ),
)


def begin(*things: Any) -> list[Awaitable[Any]]:
    """Operations that are made before the end, to be awaited after it."""
    return [
        getattr(thing, name)(*arguments(getattr(thing, name)))
        for thing in things
        for name in OPERATIONS
        if hasattr(thing, name)
    ]


@pytest.mark.parametrize("events", [False, True], ids=["streams", "events"])
async def test_everything(reactors: int, events: bool) -> None:
    served: list[Conn] = []

    async def serve(listener: Listener) -> None:
        with suppress(*EXPECTED):
            await listener.serve_events(lambda conn: None, on_connect=served.append)

    async def hold(conn: Conn) -> None:
        """Leave scopes after the end."""
        with (
            conn.cancel_on_disconnect(),
            conn.idle_scope(5),
            conn.idle_point(),
            trio.CancelScope(shield=True),
        ):
            await over.wait()

    over = trio.Event()
    async with trio.open_nursery() as nursery:
        async with open_engine(reactors) as engine:
            listener = await engine.listen(LOCAL)
            free = await engine.listen(LOCAL)
            with dial(listener) as client:
                if events:
                    nursery.start_soon(serve, listener)
                    await until(lambda: served)
                    conn = served.pop()
                else:
                    conn = await listener.accept()
                client.send(b"unread")
                await until(lambda: conn.statistics().buffered_inbound == 6)
                things = [
                    conn,
                    conn.socket,
                    stand_in(conn.socket),
                    listener,
                    free,
                    free.socket,
                    engine,
                    engine.group(),
                    engine.groups.join("room", conn),
                    engine.groups,
                    engine.connections,
                    engine.connections.keys(),
                    engine.connections.values(),
                    engine.connections.items(),
                ]
                views = [iter(engine.connections.values()), iter(engine.connections.items())]
                begun = begin(conn, free)
                nursery.start_soon(hold, conn)
                await wait_all_tasks_blocked()
        over.set()
        for view in views:
            with pytest.raises(RuntimeError, match="closed"):
                next(view)
        for operation in begun:
            with suppress(*EXPECTED):
                await finish(operation)
        for thing in things:
            assert await touch(thing)
            assert repr(thing)
        assert conn.close_reason in ("engine closed", "eof")
        assert conn.statistics().buffered_inbound == 6
        core = engine._core
        for call in (core.fileno, core.still, core.unfinished, core.ensure_usable):
            with pytest.raises(RuntimeError, match="closed"):
                call()
        with pytest.raises(RuntimeError, match="closed"):
            core.quiet(lambda: None)
        with pytest.raises(RuntimeError, match="closed"):
            core.run(0)
        core.stop()
        core.close()
        engine._bridge._hooks.before_io_wait(1.0)
        engine._bridge._hooks.after_io_wait(0.0)


async def test_a_handler_under_a_trace(reactors: int) -> None:
    """It was in the middle of a message when its engine ended."""

    received: list[bytes] = []
    go = trio.Event()

    async def handler(conn: Conn) -> None:
        received.append(await conn.receive_some())
        await go.wait()

    with Trace() as trace:
        async with trio.open_nursery() as nursery:
            async with open_engine(reactors) as engine:
                ours, theirs = socket.socketpair()
                conn = engine.adopt(ours)
                assert isinstance(conn, Conn)
                nursery.start_soon(handler, conn)
                await wait_all_tasks_blocked()
                with theirs:
                    theirs.send(b"x")
                    await until(lambda: received)
            go.set()
    assert len(trace.to_json()["traceEvents"]) > 0
