from typing import SupportsIndex

from trio_wknet._native.trio.receive import ReceiveHalf

class Views(ReceiveHalf):
    def peek(self, max_bytes: SupportsIndex | None = None) -> memoryview: ...
    def discard(self, n: SupportsIndex) -> None: ...
