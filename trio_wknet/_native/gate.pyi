from typing import final

from trio_wknet._native.core import Server
from trio_wknet._trusted import Trusted

@final
class Gate(Server):
    refused: int
    def __init__(self, trusted: Trusted, seconds: float) -> None: ...
