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
    jobs: int
    sent: int
    queued: int
    skipped: int
    closed: int

class Members(Audience):
    count: int
    pending: int
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
