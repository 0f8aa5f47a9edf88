from typing import Any

class FrameParts:
    @property
    def conn(self) -> Any: ...
    @property
    def framing(self) -> Any: ...
