import sys
from typing import NoReturn, final

if sys.version_info >= (3, 12):
    from collections.abc import Buffer
else:
    from typing_extensions import Buffer

class Lender: ...

@final
class Lease(Buffer):
    def __init__(self) -> NoReturn: ...
