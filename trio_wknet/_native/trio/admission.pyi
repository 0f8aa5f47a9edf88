from typing import final

@final
class NativeAdmission:
    def __init__(
        self,
        most: int,
        most_per_address: int,
        interval: int,
        burst: int,
        waits: bool,
        gated: bool,
        trusted: list[tuple[bytes, bytes]],
    ) -> None: ...
