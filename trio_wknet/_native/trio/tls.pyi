import ssl
import sys
from typing import Any, final

import trio

from trio_wknet._native.trio.operation import Operation

if sys.version_info >= (3, 12):
    from collections.abc import Buffer
else:
    from typing_extensions import Buffer

@final
class Turn:
    async def wait(self) -> None: ...

@final
class Target: ...

# An async method gives an Operation or a coroutine of Cython's, which is a coroutine in all
# but its type.
class TLSBase:
    @property
    def transport_stream(self) -> Any: ...
    @property
    def _ssl_object(self) -> ssl.SSLObject: ...
    @property
    def _https_compatible(self) -> bool: ...
    @property
    def _handshaken(self) -> bool: ...
    def _begin(
        self,
        transport_stream: trio.abc.Stream,
        context: ssl.SSLContext,
        server_hostname: str | bytes | None,
        server_side: bool,
        https_compatible: bool,
    ) -> None: ...
    async def _handshake(self) -> None: ...
    async def _close(self) -> None: ...
    async def _shut_down(self) -> tuple[Any, bytes]: ...
    async def _wait_writable(self) -> None: ...
    async def receive_some(self, max_bytes: int | None = None) -> bytes: ...
    async def send_all(self, data: Buffer) -> None: ...

@final
class ReceiveTLS(Operation): ...

@final
class SendTLS(Operation): ...
