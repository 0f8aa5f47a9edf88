"""A pytest plugin: what it runs uses `trio_wknet.TLSStream` in place of `trio.SSLStream`.

It replaces the name in the module that defines it, before a test module, or
`trio.SSLListener`, takes it from there. Along with replace_transport the sockets are ours,
too; the suites' in-memory streams stay what they are. How many streams were made, and over
how many of our connections, is said at the end.
"""

from __future__ import annotations

from typing import Any

import trio._ssl

from trio_wknet import Conn, TLSStream

_streams = _over_ours = 0
_begin = TLSStream._begin


def _counting(self: TLSStream, transport_stream: Any, *args: Any) -> None:
    global _streams, _over_ours
    _streams += 1
    _over_ours += isinstance(transport_stream, Conn)
    _begin(self, transport_stream, *args)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_line(f"TLS by trio_wknet: {_streams} streams, {_over_ours} over ours")


TLSStream._begin = _counting  # type: ignore[method-assign,assignment]
trio._ssl.SSLStream = TLSStream  # type: ignore[misc]
