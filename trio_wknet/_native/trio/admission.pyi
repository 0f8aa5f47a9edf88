from typing import final

@final
class NativeAdmission:
    def __init__(
        self,
        most: int,
        most_per_address: int,
        interval: int,
        burst: int,
        first_byte: int,
        min_rate: int,
        half_window: int,
        waits: bool,
        gated: bool,
        trusted: list[tuple[bytes, bytes]],
    ) -> None: ...
