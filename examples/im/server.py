"""The service's listeners, their limits, and their end: what trio_wknet does for it.

Two listeners share an engine: one takes frames by TCP, the other WebSockets, and the page. Both
are served by callbacks, so a quiet client costs no task and no buffer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, cast

import attrs
import trio

from trio_wknet import (
    Admission,
    Engine,
    FrameChannel,
    Idle,
    Limits,
    Listener,
    Shutdown,
    WebSocket,
    WebSocketListener,
    WebSocketOptions,
    drain_on_signal,
    open_engine,
    systemd_sockets,
)

from .hub import Hub
from .protocol import FRAMING, MOST
from .session import Session, complain
from .store import Store
from .web import SOCKET, Web, metrics_of

# A client is closed that has not read the last 256 KiB of what was said to it, or says nothing for
# a minute: by TCP it has to send pings, and a WebSocket is sent some, which its browser answers.
LIMITS = Limits(outbound=262_144, linger_time=5)
IDLE = 60  # seconds
OPTIONS = WebSocketOptions(max_message=MOST, ping_interval=IDLE / 3, ping_timeout=IDLE / 3)
ADMISSION = Admission(max_connections=100_000, accept_rate=5000, first_byte_time=10)
GRACE = 10  # seconds, at the end
PARTING = 100  # clients that are sent away at a time, so that they do not return all at once

log = logging.getLogger("im")


@attrs.frozen(kw_only=True)
class Settings:
    host: str = "127.0.0.1"
    port: int = 5222
    web_port: int = 8080
    reuse_port: bool = False
    """Share the ports, with other workers, or with the next version."""
    limits: Limits = LIMITS


class Server:
    def __init__(self, hub: Hub, web: Web) -> None:
        self._hub = hub
        self._web = web
        self._sessions: set[Session] = set()

    # --- listeners -----------------------------------------------------------------

    async def open(self, engine: Engine, settings: Settings) -> tuple[Listener, WebSocketListener]:
        """Listen on the sockets that systemd passed, or open them."""
        passed = dict(systemd_sockets())
        if passed:
            adopt = partial(engine.adopt, admission=ADMISSION, limits=settings.limits)
            tcp, web = (cast("Listener", adopt(passed[name])) for name in ("tcp", "web"))
            return tcp, WebSocketListener(web, options=OPTIONS, path=SOCKET)
        listen: Any = partial(
            engine.listen,
            reuse_port=settings.reuse_port,
            admission=ADMISSION,
            limits=settings.limits,
        )
        return (
            await listen(f"tcp://{settings.host}:{settings.port}"),
            await listen(f"ws://{settings.host}:{settings.web_port}{SOCKET}", websocket=OPTIONS),
        )

    async def serve(self, tcp: Listener, web: WebSocketListener) -> None:
        """Until both are drained."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._serve_frames, tcp)
            nursery.start_soon(self._serve_messages, web)

    async def _serve_frames(self, listener: Listener) -> None:
        await listener.serve_frames(
            FRAMING,
            lambda channel, frames: session_of(channel).take(frames),
            on_connect=self._begin,
            on_close=self._end,
            on_error=complain,
        )

    async def _serve_messages(self, listener: WebSocketListener) -> None:
        await listener.serve_messages(
            lambda websocket, messages: session_of(websocket).take(messages),
            on_connect=self._begin,
            on_close=lambda websocket, code, reason: self._end(websocket, reason),
            on_error=complain,
            on_request=self._web.answer,
        )

    # --- sessions --------------------------------------------------------------------

    def _begin(self, member: FrameChannel | WebSocket) -> None:
        member.conn.idle_timeout = Idle(read=IDLE)  # however much it is sent
        member.conn.context = session = Session(self._hub, member)
        self._sessions.add(session)

    def _end(self, member: FrameChannel | WebSocket, reason: str) -> None:
        session = session_of(member)
        log.info("%s left: %s", session.name or member.conn.remote_address, reason)
        self._sessions.discard(session)
        session.end()

    async def part(self, shutdown: Shutdown) -> None:
        """Once a signal has come, send all clients away, to whoever listens now."""
        await shutdown.wait()
        while self._sessions:
            for session in [*self._sessions][:PARTING]:
                self._sessions.discard(session)
                session.say_goodbye("this server ends; connect again")
            await trio.sleep(0.01)


def session_of(member: FrameChannel | WebSocket) -> Session:
    return cast("Session", member.conn.context)


async def run(
    settings: Settings,
    open_store: Callable[..., AbstractAsyncContextManager[Store]],
    *,
    task_status: trio.TaskStatus[tuple[Any, Any]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until a signal comes, and everything that was said is kept."""
    async with (
        drain_on_signal(grace=GRACE) as shutdown,
        open_engine() as engine,
        open_store(engine=engine) as store,
        trio.open_nursery() as nursery,
    ):
        hub = Hub(store, await store.secret())
        server = Server(hub, Web(hub, metrics_of(engine)))
        tcp, web = await server.open(engine, settings)
        shutdown.add(tcp, web)
        nursery.start_soon(server.part, shutdown)
        nursery.start_soon(hub.keep_telling)
        async with trio.open_nursery() as delivery:
            delivery.start_soon(hub.deliver)
            task_status.started((tcp.address, web.address))
            await server.serve(tcp, web)
            hub.no_more()
        await hub.tell_changes()  # to those on other nodes
        nursery.cancel_scope.cancel()
