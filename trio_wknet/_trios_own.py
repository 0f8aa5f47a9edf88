"""Trio's own streams, also where `run` or `install` has replaced them."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

wanted: ContextVar[bool] = ContextVar("trio_wknet wants Trio's own", default=False)


@contextmanager
def trios_own() -> Iterator[None]:
    """In this task, inside the block, Trio's functions give Trio's streams."""
    token = wanted.set(True)
    try:
        yield
    finally:
        wanted.reset(token)
