"""The reactor side: everything below runs, or may run, without the GIL."""

from importlib.util import find_spec

if find_spec(f"{__name__}.core") is None:
    raise ImportError(
        f"trio_wknet is not compiled for this Python in {__path__[0]}. In the folder of a clone "
        f"that is imported, and not what is installed: there, 'python -m pip install -e .' "
        f"compiles it; anywhere else an ordinary installation will do"
    )
