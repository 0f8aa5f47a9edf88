"""Trio's side: what tasks await, and the bridge that brings them what reactors report.

Everything here runs in Trio's thread and holds the GIL, unless a function says otherwise. It may
use `reactor` and `base`; slot.pxd says which fields of a slot it may touch.
"""
