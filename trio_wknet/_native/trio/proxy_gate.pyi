from typing import final

from trio_wknet._native.trio.core import Server
from trio_wknet._proxy.trust import Trusted

@final
class ProxyGate(Server):
    refused: int
    def __init__(self, trusted: Trusted, seconds: float) -> None: ...
