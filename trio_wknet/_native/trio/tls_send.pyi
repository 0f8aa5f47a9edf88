import sys
from collections.abc import Iterable

from trio_wknet._native.trio.tls_receive import TLSReceive

if sys.version_info >= (3, 12):
    from collections.abc import Buffer
else:
    from typing_extensions import Buffer

class TLSSend(TLSReceive):
    def send_nowait(self, data: Buffer) -> None: ...
    async def flush(self) -> None: ...
    async def send_vectored(self, buffers: Iterable[Buffer]) -> None: ...
