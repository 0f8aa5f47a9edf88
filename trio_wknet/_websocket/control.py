"""What a program may put into control frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sys

    if sys.version_info >= (3, 12):
        from collections.abc import Buffer
    else:
        from typing_extensions import Buffer

MAX_PAYLOAD = 125  # bytes of a control frame


def control_payload(payload: Buffer) -> bytes:
    """The payload of a ping.

    Raises:
      TypeError, ValueError: if it cannot be one.
    """
    try:
        data = bytes(memoryview(payload))
    except TypeError:
        raise TypeError(f"payload must be bytes-like, not {payload!r}") from None
    if len(data) > MAX_PAYLOAD:
        raise ValueError(f"payload must have at most {MAX_PAYLOAD} bytes, not {len(data)}")
    return data


def close_reason(code: int, reason: str) -> bytes:
    """The reason's bytes, if a close frame may hold it and the code.

    Raises:
      TypeError, ValueError: if it may not; the message names the argument.
    """
    if isinstance(code, bool) or not isinstance(code, int):
        raise TypeError(f"code must be an integer, not {code!r}")
    if code not in (*range(1000, 1004), *range(1007, 1015)) and not 3000 <= code < 5000:
        raise ValueError(f"code must be 1000 to 1003, 1007 to 1014, or 3000 to 4999, not {code}")
    if not isinstance(reason, str):
        raise TypeError(f"reason must be a str, not {reason!r}")
    data = reason.encode()
    if len(data) > MAX_PAYLOAD - 2:
        raise ValueError(f"reason must have at most {MAX_PAYLOAD - 2} bytes, not {len(data)}")
    return data
