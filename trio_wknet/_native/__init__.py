"""The compiled part: two wings, and a fence between them.

base
  What both use: atomics, the kernel's interface, bits.
reactor
  The reactors' side. Runs without the GIL, on threads of its own or in-loop; knows nothing of
  Python, and cimports nothing of the other side.
trio
  Trio's side. Runs in Trio's thread with the GIL: operations that tasks await, and the bridge
  between the two sides.
public
  Classes that applications use by themselves: RingBuffer, Timer.
load
  The load generator: an epoll loop of its own.
testing
  Python faces of the structs, for tests and benchmarks.

``tests/test_layout.py`` checks which folder cimports which.
"""

from importlib.util import find_spec

if find_spec(f"{__name__}.trio.core") is None:
    raise ImportError(
        f"trio_wknet is not compiled for this Python in {__path__[0]}. Inside a clone, that "
        f"folder is imported instead of an installed package: 'python -m pip install -e .' "
        f"compiles it there; anywhere else an ordinary installation works"
    )
