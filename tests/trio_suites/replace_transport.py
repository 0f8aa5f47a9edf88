"""A pytest plugin: what it runs is run over `trio_wknet.install`.

``pytest -p replace_transport --pyargs trio._tests.test_ssl`` runs a suite that Trio
ships, as it is. The environment variable WKNET_REACTORS says in which form (0:
in-loop). How many streams came from the reactors is said at the end.
"""

from __future__ import annotations

import os
from typing import Any

import trio_wknet
from trio_wknet._engine import Engine

_streams = 0
_adopt_stream = Engine._adopt_stream


def _counting(*args: Any) -> Any:
    global _streams
    _streams += 1
    return _adopt_stream(*args)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_line(f"replaced by trio_wknet: {_streams} streams")


Engine._adopt_stream = _counting  # type: ignore[method-assign]
trio_wknet.install(reactors=int(os.environ.get("WKNET_REACTORS", "0")))
