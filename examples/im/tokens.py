"""Tokens: who a client is, signed by the service, so that no node has to ask anybody."""

from __future__ import annotations

import hmac
import time
from hashlib import sha256

from .protocol import Misbehaved

LIFE = 30 * 86_400  # seconds; a client gets a new one whenever it logs in


def issue(secret: bytes, name: str, life: float = LIFE) -> str:
    said = f"{name}.{int(time.time() + life)}"
    return f"{said}.{_sign(secret, said)}"


def name_of(secret: bytes, token: object) -> str:
    """The name that a valid token is for.

    Raises:
      Misbehaved: it is not valid.
    """
    said, _, signature = str(token).rpartition(".")
    if not hmac.compare_digest(_encode(_sign(secret, said)), _encode(signature)):
        raise Misbehaved("the token is not valid")
    name, _, end = said.rpartition(".")
    if int(end) < time.time():
        raise Misbehaved("the token has expired")
    return name


def _sign(secret: bytes, said: str) -> str:
    return hmac.new(secret, _encode(said), sha256).hexdigest()


def _encode(text: str) -> bytes:
    return text.encode(errors="replace")  # of what anybody sends
