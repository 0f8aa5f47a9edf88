"""Telling an application that messages may be missing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal, TypeAlias

import attrs
import trio

logger = logging.getLogger("trio_wknet.contrib.redis")

Reason = Literal["disconnected", "moved", "refused", "dropped", "overflow"]


@attrs.frozen(kw_only=True, eq=False)
class Gap:
    """Messages may be missing. ``on_gap`` and ``on_resume`` of `open_cluster` get it."""

    reason: Reason
    """``"disconnected"``: a server of the broker cannot be reached, or does not answer.
    ``"moved"``: a Redis Cluster moves the group to another server. ``"refused"``: the broker does
    not permit the subscription. ``"dropped"``: too much waited to be published, and other nodes
    miss messages of this one. ``"overflow"``: broadcasts in progress hold ``max_pending`` bytes,
    and members here miss messages of other nodes."""
    detail: str
    """What happened, in words."""
    began: float
    """When it was found, by `trio.current_time`."""


OnGap: TypeAlias = Callable[[str | None, Gap], object]


class Gaps:
    """Those that are not over: one at most for each key, and one for all of them (None)."""

    def __init__(self, on_gap: OnGap | None, on_resume: OnGap | None) -> None:
        self._on_gap = on_gap
        self._on_resume = on_resume
        self._open: dict[tuple[str | None, Reason], Gap] = {}
        self.count = 0

    def begin(self, key: str | None, reason: Reason, detail: str) -> None:
        """Tell of one, unless it was."""
        if (key, reason) not in self._open:
            gap = Gap(reason=reason, detail=detail, began=trio.current_time())
            self._open[key, reason] = gap
            self.count += 1
            self._tell(self._on_gap, key, gap)

    def end(self, key: str | None, *reasons: Reason) -> None:
        """Tell that it is over, if there is one."""
        for reason in reasons:
            gap = self._open.pop((key, reason), None)
            if gap is not None:
                self._tell(self._on_resume, key, gap)

    def forget(self, key: str) -> None:
        """Nobody is here any more who could miss anything."""
        for reason in ("disconnected", "moved", "refused", "overflow"):
            self._open.pop((key, reason), None)

    def _tell(self, callback: OnGap | None, key: str | None, gap: Gap) -> None:
        # Called from where nothing may be raised: while a broker's answers are read.
        try:
            if callback is not None:
                callback(key, gap)
        except Exception:
            logger.exception("on_gap or on_resume failed")
