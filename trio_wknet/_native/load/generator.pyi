from typing import Literal, TypeAlias, TypedDict

from trio_wknet._native.load.histogram import Histogram

Phase: TypeAlias = Literal["ramp", "warmup", "measure", "drain", "done"]
Ending: TypeAlias = Literal["duration", "count", "stopped", "unreachable", "server_gone"]

class Errors(TypedDict):
    connect_refused: int
    connect_other: int
    timeout: int
    reset: int
    eof: int
    mismatch: int
    upgrade_refused: int

class Snapshot(TypedDict):
    phase: Phase
    elapsed: float
    connections: int
    messages: int
    bytes: int
    rate: int
    errors: Errors

class Figures(TypedDict):
    ended: Ending
    opened: int
    started: int
    answered: int
    unfinished: int
    messages: int
    seconds: float
    errors: Errors
    connect_errno: int

class LoadGenerator:
    def __init__(
        self,
        target: bytes,
        *,
        mode: Literal["closed", "open", "churn"],
        connections: int,
        outbound: tuple[bytes, int, int],
        inbound: tuple[bytes, int, int],
        request: bytes,
        accept: bytes,
        depth: int,
        rate: float,
        scheduled: int,
        count: int,
        verify: bool,
        warmup: float,
        duration: float,
        grace: float,
        connect_timeout: float,
        ramp_timeout: float,
        connecting: int,
        sources: tuple[bytes, ...],
    ) -> None: ...
    @property
    def latency(self) -> Histogram: ...
    def run(self) -> Figures: ...
    def stop(self) -> None: ...
    def snapshot(self) -> Snapshot: ...
