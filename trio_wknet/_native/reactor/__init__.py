"""The reactors' side: sockets, rings, timeouts, and the loop that turns them.

Everything here runs, or may run, without the GIL, on a reactor's thread or, in-loop, on Trio's.
It may use `base`, and nothing of `trio`; slot.pxd says who may touch which field.
"""
