"""Sockets that systemd has opened: socket activation, sd_listen_fds(3)."""

from __future__ import annotations

import os
import socket

_FIRST = 3  # SD_LISTEN_FDS_START
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


def systemd_sockets() -> list[tuple[str, socket.socket]]:
    """The sockets that systemd passed to this process, each with its name: for
    `Engine.adopt`. Not a checkpoint.

    The name is what the socket unit's ``FileDescriptorName`` says, by default that of
    the unit. The list is empty if the process was started otherwise, or if this was
    called before: the variables that tell are taken out of `os.environ`, so that
    children do not take these sockets for theirs, nor do they inherit them.

    Whoever gets a socket closes it, or has it adopted.

    Raises:
      ValueError: the variables do not make sense.
      OSError: one of the descriptors is not an open socket. The others are closed.
    """
    pid, count, names = (os.environ.get(name) for name in _VARIABLES)
    if pid is None or count is None:
        return []
    if not pid.isdecimal() or not count.isdecimal():
        raise ValueError(f"LISTEN_PID and LISTEN_FDS must be numbers, not {pid!r} and {count!r}")
    if int(pid) != os.getpid():
        return []  # they are for a parent of ours
    for name in _VARIABLES:
        os.environ.pop(name, None)
    found = _sockets(range(_FIRST, _FIRST + int(count)))
    called = names.split(":") if names else []
    called += ["unknown"] * (len(found) - len(called))
    return list(zip(called, found, strict=False))


def _sockets(descriptors: range) -> list[socket.socket]:
    found: list[socket.socket] = []
    try:
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
            found.append(socket.socket(fileno=descriptor))
    except OSError as exc:
        for sock in found:
            sock.close()
        words = f"descriptor {descriptor}, passed by LISTEN_FDS, is no socket: {exc.strerror}"
        raise OSError(exc.errno, words) from exc
    return found
