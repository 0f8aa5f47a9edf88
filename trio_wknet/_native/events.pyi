from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import trio

from trio_wknet._conn import Conn
from trio_wknet._native.core import Server
from trio_wknet._native.listen import NativeListener

class EventServer(Server):
    accepting: bool
    open: int
    def __init__(
        self,
        listener: NativeListener,
        nursery: trio.Nursery,
        on_data: Callable[[Conn], Awaitable[object] | None],
        on_connect: Callable[[Conn], Awaitable[object] | None] | None,
        on_close: Callable[[Conn, str], Awaitable[object] | None] | None,
        on_error: Callable[[Conn, Exception], object] | None,
        tell: Callable[[], object],
    ) -> None: ...
    def _start(self) -> None: ...
    def _stop(self, running: bool) -> None: ...
    def _callback_done(self, conn: Conn) -> None: ...
    def _reported(self, conn: Conn, exception: BaseException) -> bool: ...
    def _settled(self, conn: Conn, exception: BaseException) -> bool: ...
    def _set_running(self, conn: Conn, scope: trio.CancelScope | None) -> None: ...
    def _bury(self) -> None: ...
    def _count_down(self) -> None: ...
