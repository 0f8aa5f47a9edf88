import trio

from trio_wknet._native.send import SendHalf

class IdleScopes(SendHalf):
    def idle_scope(
        self,
        seconds: float | None = None,
        *,
        read: float | None = None,
        write: float | None = None,
    ) -> trio.CancelScope: ...
