from collections.abc import Callable

class Point: ...

class Handed:
    count: int
    on_none: Callable[[], object] | None
    draining: bool
    def drain(self, on_none: Callable[[], object]) -> None: ...
