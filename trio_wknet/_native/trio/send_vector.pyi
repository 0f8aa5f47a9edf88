import sys
from collections.abc import Iterable

from trio_wknet._native.trio.send import SendHalf

if sys.version_info >= (3, 12):
    from collections.abc import Buffer
else:
    from typing_extensions import Buffer

class VectorHalf(SendHalf):
    async def send_vectored(self, buffers: Iterable[Buffer]) -> None: ...
