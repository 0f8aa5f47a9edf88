from collections.abc import Callable
from types import TracebackType
from typing import final

import trio

from trio_wknet._native.trio.handed import Point
from trio_wknet._native.trio.idle_scopes import IdleWatch
from trio_wknet._native.trio.tls import TLSBase

@final
class IdlePoint(Point):
    def __init__(
        self,
        conn: IdleWatch | None,
        tls: TLSBase | None = None,
        holds: Callable[[], bool] | None = None,
    ) -> None: ...
    def __enter__(self) -> trio.CancelScope: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool: ...
