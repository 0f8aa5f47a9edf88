from collections.abc import Callable

from trio_wknet._native.trio.totals import Totals

class Point: ...

class Handed:
    totals: Totals
    def __init__(self, totals: Totals) -> None: ...
    count: int
    on_none: Callable[[], object] | None
    draining: bool
    def drain(self, on_none: Callable[[], object]) -> None: ...
