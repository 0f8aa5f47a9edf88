from types import EllipsisType

from trio_wknet._native.trio.send_file import FileHalf
from trio_wknet._rates import Rates

class Rated(FileHalf):
    def rate(
        self,
        *,
        read: float | EllipsisType | None = ...,
        write: float | EllipsisType | None = ...,
    ) -> Rates: ...
