"""The service's listeners, their limits, and their end: what trio_wknet does for it.

Two listeners share an engine: one takes frames by TCP, the other WebSockets, and the page. Both
are served by callbacks, so a quiet client costs no task and no buffer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

import trio

import trio_wknet
from trio_wknet import FrameTooLong, Idle, IncompleteRead, MalformedFrame

from .hub import Hub
from .protocol import FRAMING, MOST
from .session import GONE, Session
from .web import pages

# A client is closed that has not read the last 256 KiB of what was said to it, or says nothing for
# a minute: by TCP it has to send pings, and a WebSocket is sent some, which its browser answers.
LIMITS = trio_wknet.Limits(outbound=262_144, linger_time=5)
IDLE = 60  # seconds
OPTIONS = trio_wknet.WebSocketOptions(max_message=MOST, ping_interval=20, ping_timeout=20)
ADMISSION = trio_wknet.Admission(max_connections=100_000, accept_rate=5000, first_byte_time=10)
GRACE = 10  # seconds, at the end
PARTING = 100  # clients that are sent away at a time, so that they do not return all at once
PEERS_FAULT = (*GONE, FrameTooLong, IncompleteRead, MalformedFrame)

log = logging.getLogger("im")


async def run(
    open_store: Callable[..., AbstractAsyncContextManager[Any]],
    host: str,
    port: int,
    web_port: int,
    reuse_port: bool = False,
    *,
    task_status: trio.TaskStatus[tuple[Any, Any]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until a signal comes, and everything that was said is kept.

    Args:
      reuse_port: share the ports, with other workers, or with the next version.
      task_status: is started with the addresses for TCP and for the page.
    """
    async with (
        trio_wknet.drain_on_signal(grace=GRACE) as shutdown,
        trio_wknet.open_engine() as engine,
        open_store(engine=engine) as store,
        trio.open_nursery() as nursery,
    ):
        hub = Hub(store)
        options: Any = {"reuse_port": reuse_port, "admission": ADMISSION, "limits": LIMITS}
        tcp = await engine.listen(f"tcp://{host}:{port}", **options)
        web = await engine.listen(f"ws://{host}:{web_port}/socket", websocket=OPTIONS, **options)
        shutdown.add(tcp, web)
        nursery.start_soon(send_away, engine, shutdown)
        nursery.start_soon(hub.keep_telling)
        async with trio.open_nursery() as delivery:
            delivery.start_soon(hub.deliver)
            task_status.started((tcp.address, web.address))
            await serve(hub, engine, tcp, web)
            hub.no_more()
        await hub.tell_changes()  # to those on other nodes
        nursery.cancel_scope.cancel()


async def serve(hub: Hub, engine: trio_wknet.Engine, tcp: Any, web: Any) -> None:
    """Until both listeners are drained."""

    def begin(member: Any) -> None:
        member.conn.idle_timeout = Idle(read=IDLE)  # however much it is sent
        member.conn.context = Session(hub, member)

    def take(member: Any, messages: Any) -> Any:
        return member.conn.context.take(messages)

    def end(member: Any, *why: object) -> None:
        session = member.conn.context
        log.info("%s left: %s", session.name or member.conn.remote_address, why[-1])
        session.end()

    callbacks: Any = {"on_connect": begin, "on_close": end, "on_error": complain}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(tcp.serve_frames, FRAMING, take, **callbacks))
        nursery.start_soon(partial(web.serve_messages, take, on_request=pages(engine), **callbacks))


def complain(member: Any, exc: Exception) -> None:
    """What a peer does wrong ends its connection. So does a fault of ours, which is logged."""
    if not isinstance(exc, PEERS_FAULT):
        log.error("a client's connection is closed", exc_info=exc)


async def send_away(engine: trio_wknet.Engine, shutdown: trio_wknet.Shutdown) -> None:
    """Once a signal has come, part from all clients: they connect to whoever listens now."""
    await shutdown.wait()
    for number, conn in enumerate(list(engine.connections.values())):
        if session := conn.context:
            session.part("this server ends; connect again")
        if number % PARTING == PARTING - 1:
            await trio.sleep(0.01)
