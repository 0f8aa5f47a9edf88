"""Rates: how fast bytes may move on a connection."""

from __future__ import annotations

from typing import NamedTuple


class Rates(NamedTuple):
    """The rates of a connection, as `Conn.rate` returns them."""

    read: int | None
    """The most bytes a second that are received; None: no bound."""

    write: int | None
    """The most bytes a second that are sent; None: no bound."""
