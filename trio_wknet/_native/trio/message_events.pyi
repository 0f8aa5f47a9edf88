from collections.abc import Awaitable, Callable

import trio

from trio_wknet._conn import Conn
from trio_wknet._native.trio.events import EventServer
from trio_wknet._native.trio.listen import NativeListener
from trio_wknet._websocket.channel import WebSocket

class MessageServer(EventServer):
    def __init__(
        self,
        listener: NativeListener,
        nursery: trio.Nursery,
        shake: Callable[[Conn], Awaitable[object] | None],
        watch: Callable[[], object],
        handshake_time: float,
        make_websocket: Callable[[], WebSocket],
        on_messages: Callable[[WebSocket, list[str | bytes]], Awaitable[object] | None],
        on_close: Callable[[WebSocket, int, str], Awaitable[object] | None] | None,
        on_error: Callable[[WebSocket, Exception], object] | None,
        tell: Callable[[], object],
    ) -> None: ...
    def _end_handshake(self, conn: Conn) -> None: ...
    def _begin_messages(self, conn: Conn) -> None: ...
    def _close_late(self) -> float | None: ...
