import trio

from trio_wknet._native.core import Core

class InLoopHooks(trio.abc.Instrument):
    def __init__(self, core: Core, pump: trio.lowlevel.Task) -> None: ...
    def after_io_wait(self, timeout: float) -> None: ...

class ThreadedHooks(InLoopHooks):
    def before_io_wait(self, timeout: float) -> None: ...
