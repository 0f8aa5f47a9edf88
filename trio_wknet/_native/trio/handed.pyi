from collections.abc import Callable

class Handed:
    count: int
    on_none: Callable[[], object] | None
