from typing import final

import trio

from trio_wknet._idle import Idle
from trio_wknet._native.trio.rate import Rated

@final
class IdleScope: ...

class IdleWatch(Rated):
    def idle_scope(
        self,
        seconds: float | Idle | None = None,
        *,
        read: float | None = None,
        write: float | None = None,
    ) -> trio.CancelScope: ...
    @property
    def idle_timeout(self) -> float | Idle | None: ...
    @idle_timeout.setter
    def idle_timeout(self, seconds: float | Idle | None) -> None: ...
    def _handler_scope(self) -> trio.CancelScope: ...
    @property
    def _idle_reason(self) -> str | None: ...
    @property
    def _timed_out(self) -> bool: ...

def timeout_rules(timeout: float | Idle | None) -> tuple[int, int]: ...
def expire(scope: trio.CancelScope) -> None: ...
