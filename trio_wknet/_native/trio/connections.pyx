"""An engine's connections as a mapping from `Conn.id`: the slot map, as applications see it."""
cimport cython
from libc.stdint cimport uint32_t, uint64_t

from ..base.atomics cimport wk_u64_load
from ..reactor.slot cimport CONNECTION, Slot
from ..reactor.slot_map cimport slot_map_get
from .core cimport Core

from collections.abc import ItemsView, KeysView, Mapping, ValuesView


cdef extern from "Python.h":
    # Declared without its exception, so that it is not checked for every number.
    uint64_t PyLong_AsUnsignedLongLong(object number)
    void *PyErr_Occurred()
    void PyErr_Clear()


@cython.final
@cython.collection_type("mapping")
cdef class Connections:
    """Every connection of an engine that the application knows, by its id.

    A slot's handle, and whether it is claimed, decide. So nothing is stored here, and a
    connection pays nothing for being found.
    """
    cdef Core core

    def __cinit__(self, Core core not None):
        self.core = core

    cdef Slot *find(self, key) except? NULL:
        """The slot of an id; NULL if no connection has it."""
        cdef uint64_t handle
        cdef Slot *slot
        self.core.check()
        if not isinstance(key, int):
            hash(key)       # raises what a dict would
            return NULL
        handle = PyLong_AsUnsignedLongLong(key)
        if handle == <uint64_t>-1 and PyErr_Occurred():
            PyErr_Clear()   # negative or too large
            return NULL
        slot = slot_map_get(self.core.hub.slot_map, handle)
        if slot == NULL or not slot.claimed or slot.kind != CONNECTION:
            return NULL
        return slot

    def __repr__(self):
        state = "closed" if self.core.closed else f"{self.core.claimed} open"
        return f"<trio_wknet.Connections {state}>"

    def __len__(self):
        self.core.check()
        return self.core.claimed

    def __getitem__(self, key):
        cdef Slot *slot = self.find(key)
        if slot == NULL:
            raise KeyError(key)
        return self.core.conn_of(slot)

    def __contains__(self, key):
        return self.find(key) != NULL

    def get(self, key, default=None):
        cdef Slot *slot = self.find(key)
        return default if slot == NULL else self.core.conn_of(slot)

    def __iter__(self):
        cdef uint32_t cursor = 0
        cdef Slot *slot
        self.core.check()
        ids = []
        while len(ids) < self.core.claimed:     # does not search behind the last one
            slot = self.core.next_claimed(&cursor)
            ids.append(wk_u64_load(&slot.handle))
        return iter(ids)

    __reversed__ = None     # as Mapping has it

    def keys(self):
        self.core.check()
        return KeysView(self)

    def values(self):
        self.core.check()
        return _Values(self)

    def items(self):
        self.core.check()
        return _Items(self)

    def __eq__(self, other):
        if not isinstance(other, Mapping):
            return NotImplemented
        return dict(self.items()) == dict(other.items())


Mapping.register(Connections)


def _still_open(connections, ids):
    for id in ids:
        conn = connections.get(id)
        if conn is not None:
            yield id, conn


# Connections may go between two steps of an iteration, with an await there or
# without: making an object may collect others.
class _Values(ValuesView):
    def __iter__(self):
        return (conn for _, conn in _still_open(self._mapping, iter(self._mapping)))

    def __contains__(self, value):
        return any(conn is value or conn == value for conn in self)


class _Items(ItemsView):
    def __iter__(self):
        return _still_open(self._mapping, iter(self._mapping))
