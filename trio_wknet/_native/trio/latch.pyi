from typing import final

from trio_wknet._native.trio.core import Core, Undone
from trio_wknet._native.trio.operation import Operation

@final
class WaitLatch(Operation): ...

# An async method gives an Operation, which is a coroutine in all but its type.
@final
class Latch(Undone):
    is_set: bool
    def __init__(self, core: Core) -> None: ...
    def set(self) -> None: ...
    async def wait(self, shielded: bool = False) -> None: ...
