import sys
from collections.abc import Iterable

from trio_wknet._native.trio.websocket import WebSocketReceive

if sys.version_info >= (3, 12):
    from collections.abc import Buffer
else:
    from typing_extensions import Buffer

class WebSocketSend(WebSocketReceive):
    async def send(self, message: str | Buffer) -> None: ...
    async def send_many(self, messages: Iterable[str | Buffer]) -> None: ...
    def send_nowait(self, message: str | Buffer) -> None: ...
    def send_many_nowait(self, messages: Iterable[str | Buffer]) -> None: ...
