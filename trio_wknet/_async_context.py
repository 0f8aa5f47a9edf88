"""What `open_engine` and `open_wknet_listener` return: only for ``async with``.

``with``, ``await``, or using the result directly are easy mistakes, and
Python's own error does not say what to write instead. So these errors do.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from types import TracebackType

    from typing_extensions import ParamSpec

    P = ParamSpec("P")

T = TypeVar("T")


class _Opening(AbstractAsyncContextManager[T]):
    def __init__(self, inner: AbstractAsyncContextManager[T], name: str) -> None:
        self._inner = inner
        self._name = name

    async def __aenter__(self) -> T:
        return await self._inner.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return await self._inner.__aexit__(kind, value, traceback)

    def _advice(self) -> str:
        return f"write 'async with {self._name}(...) as {self._name.rpartition('_')[2]}:'"

    def __enter__(self) -> NoReturn:
        raise TypeError(f"{self._name} is not for 'with': {self._advice()}")

    def __exit__(self, *_: object) -> None: ...

    def __await__(self) -> NoReturn:
        raise TypeError(f"{self._name} is not for 'await': {self._advice()}")

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{self._name}(...) has no {name!r} yet: {self._advice()}")


def for_async_with(
    opening: Callable[P, AsyncIterator[T]],
) -> Callable[P, AbstractAsyncContextManager[T]]:
    """Like `contextlib.asynccontextmanager`."""
    make = asynccontextmanager(opening)

    @wraps(opening)
    def opened(*args: Any, **options: Any) -> AbstractAsyncContextManager[T]:
        return _Opening(make(*args, **options), opening.__name__)

    return opened
