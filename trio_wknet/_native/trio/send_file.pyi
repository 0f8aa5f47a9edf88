import sys

from trio_wknet._native.trio.send_vector import VectorHalf

if sys.version_info >= (3, 12):
    from collections.abc import Buffer
else:
    from typing_extensions import Buffer

def pretend_cold(cold: bool) -> None: ...
def read_resident(fd: int, out: Buffer, offset: int) -> int: ...

class FileHalf(VectorHalf):
    async def _send_file(self, source: object) -> int: ...
