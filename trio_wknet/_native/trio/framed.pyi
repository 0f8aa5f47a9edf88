from typing import final

@final
class CompiledFraming:
    def __init__(
        self,
        kind: int,
        size: int = 0,
        little_endian: bool = False,
        offset: int = 0,
        adjustment: int = 0,
        strip: int = 0,
        delimiter: bytes = b"",
        keep: bool = False,
        max_frame: int = 0,
    ) -> None: ...
