from collections.abc import Awaitable, Callable

import trio

from trio_wknet._frame_channel import FrameChannel
from trio_wknet._framing import Framing
from trio_wknet._native.trio.events import EventServer
from trio_wknet._native.trio.framed import CompiledFraming
from trio_wknet._native.trio.listen import NativeListener

class FrameServer(EventServer):
    def __init__(
        self,
        listener: NativeListener,
        nursery: trio.Nursery,
        framing: Framing,
        compiled: CompiledFraming,
        make_channel: Callable[[], FrameChannel],
        on_frames: Callable[[FrameChannel, list[bytes]], Awaitable[object] | None],
        on_connect: Callable[[FrameChannel], Awaitable[object] | None] | None,
        on_close: Callable[[FrameChannel, str], Awaitable[object] | None] | None,
        on_error: Callable[[FrameChannel, Exception], object] | None,
        tell: Callable[[], object],
    ) -> None: ...
