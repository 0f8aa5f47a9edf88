import sys
from collections.abc import Callable, Iterable

from trio_wknet._conn import Conn
from trio_wknet._frame_channel import FrameChannel
from trio_wknet._native.trio.core import Audience, Core
from trio_wknet._websocket.channel import WebSocket

if sys.version_info >= (3, 12):
    from collections.abc import Buffer
else:
    from typing_extensions import Buffer

class Form: ...

class Broadcasting:
    def _is_done(self) -> bool: ...
    def _counts(self) -> tuple[int, int, int, int]: ...

class Members(Audience):
    def __len__(self) -> int: ...
    @property
    def pending(self) -> int: ...
    def _begin(
        self,
        core: Core,
        max_pending: int,
        on_room: Callable[[], object],
        on_empty: Callable[[], object] | None,
    ) -> None: ...
    def _join(self, member: Conn | FrameChannel | WebSocket) -> None: ...
    def _leave(self, member: Conn | FrameChannel | WebSocket) -> None: ...
    def _has(self, member: Conn | FrameChannel | WebSocket) -> bool: ...
    def _handles(self) -> list[int]: ...
    def _start(
        self,
        broadcast: Broadcasting,
        data: str | Buffer,
        exclude: Iterable[Conn | FrameChannel | WebSocket],
        closes_slow: bool,
        on_done: Callable[[], object],
    ) -> None: ...
