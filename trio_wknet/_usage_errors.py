"""Errors for easy mistakes, which say what to write instead.

For example what `open_engine` and `open_wknet_listener` return is only for ``async with``.
With ``with``, with ``await``, or where the result is used directly, Python's own error would
not say so; these do.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import wraps
from types import CoroutineType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from types import TracebackType

    from typing_extensions import ParamSpec

    P = ParamSpec("P")

T = TypeVar("T")


def require_callable(**functions: object) -> None:
    """Refuse what is not a function, above all the coroutine that calling one returned."""
    for name, function in functions.items():
        if inspect.iscoroutine(function):
            function.close()  # it will never be awaited
            called = function.__name__
            raise TypeError(
                f"{name} must be a function, not the coroutine that it returns: "
                f"write {called}, not {called}()"
            )
        if not callable(function):
            raise TypeError(f"{name} must be callable, not {function!r}")


def call_handler(handler: Callable[[Any], Awaitable[T]], conn: object) -> Awaitable[T]:
    """Call a handler, and return what must be awaited."""
    given = handler(conn)
    if type(given) is CoroutineType or inspect.isawaitable(given):
        return given
    if inspect.isasyncgen(given):
        raise TypeError(f"handler must not contain 'yield', as {handler!r} does")
    raise TypeError(
        f"handler must be an async function, with 'async def', but {handler!r} is not: "
        f"it returned {given!r}"
    )


def one_address(function: Callable[P, T]) -> Callable[P, T]:
    """Refuse ``connect("localhost", 80)``: an address is one string. For a method that is a
    coroutine function, and for a function that is not."""
    if not inspect.iscoroutinefunction(function):

        @wraps(function)
        def checked(*args: Any, **options: Any) -> Any:
            check_one_address(args)
            return function(*args, **options)

        return checked

    @wraps(function)
    async def checked_method(*args: Any, **options: Any) -> Any:
        check_one_address(args[1:])
        return await function(*args, **options)

    return checked_method  # type: ignore[return-value]


def check_one_address(given: tuple[object, ...]) -> None:
    if len(given) > 1:
        raise TypeError(
            f"address must be one argument, not {len(given)}{as_tcp(*given[:2])}; "
            f"options must be keyword arguments"
        )


def as_tcp(host: object, port: object) -> str:
    """How to write an address that was given as a host and a port, if it was."""
    if isinstance(port, bool) or not isinstance(port, int):
        return ""
    if isinstance(host, str) and "://" not in host:
        return f": write 'tcp://{f'[{host}]' if ':' in host else host}:{port}'"
    return ""


class GivenWhenOpened:
    """An attribute that only says where it belongs: a setting of a listener that is given
    when it is opened, and cannot be changed."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type | None = None) -> GivenWhenOpened:
        if instance is not None:
            self._refuse()
        return self

    def __set__(self, instance: object, value: object) -> NoReturn:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise AttributeError(
            f"{self._name} is set when a listener is opened, and cannot be changed: "
            f"open_wknet_listener(address, {self._name}=...)"
        )


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
