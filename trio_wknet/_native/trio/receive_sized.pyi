import sys
from typing import SupportsIndex, final

from trio_wknet._native.trio.views import Views

if sys.version_info >= (3, 12):
    from collections.abc import Buffer
else:
    from typing_extensions import Buffer

@final
class Search: ...

# An async method gives an Operation, which is a coroutine in all but its type.
class ReceiveSized(Views):
    async def receive_into(self, buffer: Buffer) -> int: ...
    async def receive_exactly(self, n: SupportsIndex) -> bytes: ...
    async def receive_until(
        self, delimiter: bytes | bytearray | memoryview, max_bytes: SupportsIndex | None = None
    ) -> bytes: ...
    def receive_exactly_nowait(self, n: SupportsIndex) -> bytes: ...
    def receive_until_nowait(
        self, delimiter: bytes | bytearray | memoryview, max_bytes: SupportsIndex | None = None
    ) -> bytes: ...
