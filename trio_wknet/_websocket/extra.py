"""The extra that WebSockets need. Without it the package can be imported all the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType


def opening() -> ModuleType:
    """The module that opens WebSockets, which imports h11.

    Raises:
      ImportError: if that is not installed.
    """
    try:
        from trio_wknet._websocket import opening
    except ModuleNotFoundError as exc:
        if exc.name != "h11":
            raise
        raise ImportError(
            "WebSockets need h11: python -m pip install 'trio-wknet[websocket]'"
        ) from None
    return opening


def events() -> ModuleType:
    """The module of event mode, likewise.

    Raises:
      ImportError: if h11 is not installed.
    """
    opening()
    from trio_wknet._websocket import events

    return events
