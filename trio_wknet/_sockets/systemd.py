"""Sockets from systemd: socket activation, sd_listen_fds(3)."""

from __future__ import annotations

import os
import socket

_FIRST = 3  # SD_LISTEN_FDS_START
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


def systemd_sockets() -> list[tuple[str, socket.socket]]:
    """Return the sockets that systemd passed to this process, for `Engine.adopt`. Not a
    checkpoint.

    It removes the variables that announce them from `os.environ`, so that child processes
    do not use them, and makes the sockets non-inheritable. A second call returns an empty
    list.

    Returns:
      A list of names and sockets. The name is the socket unit's ``FileDescriptorName``, by
      default that of the unit. The caller closes each socket, or has it adopted. The list
      is empty if the process was not started by systemd with sockets.

    Raises:
      ValueError: if the variables are malformed.
      OSError: if one of the descriptors is not an open socket. The others are closed.
    """
    pid, count, names = (os.environ.get(name) for name in _VARIABLES)
    if pid is None or count is None:
        return []
    if not pid.isdecimal() or not count.isdecimal():
        raise ValueError(f"LISTEN_PID and LISTEN_FDS must be numbers, not {pid!r} and {count!r}")
    if int(pid) != os.getpid():
        return []  # they are for a parent process
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
        words = f"descriptor {descriptor}, passed by LISTEN_FDS, is not a socket: {exc.strerror}"
        raise OSError(exc.errno, words) from exc
    return found
