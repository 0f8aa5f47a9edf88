import sys
from collections.abc import Iterable

from trio_wknet._native.trio.frames import Frames

if sys.version_info >= (3, 12):
    from collections.abc import Buffer
else:
    from typing_extensions import Buffer

class FrameSend(Frames):
    async def send(self, value: Buffer) -> None: ...
    async def send_many(self, frames: Iterable[Buffer]) -> None: ...
    def send_nowait(self, value: Buffer) -> None: ...
    def send_many_nowait(self, frames: Iterable[Buffer]) -> None: ...
