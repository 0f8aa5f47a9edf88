"""Summing what is open, when somebody asks: a visit to each connection.

It takes the lock of each for a moment (0.1 us for one whose memory is in the cache), runs no
Python code, and so sees one state of the Trio side. It goes by the slot map, so that nothing is
kept for it: a connection of event mode need not have an object.
"""
from cpython.object cimport PyObject
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from ..base.atomics cimport wk_u64_load_relaxed
from ..base.linux cimport pthread_mutex_lock, pthread_mutex_unlock
from ..reactor.ring cimport ring_len
from ..reactor.slot cimport Slot
from .core cimport Core, Endpoint, Server
from .listen cimport NativeListener
from .stream cimport Stream
from .totals cimport Sums, Totals, sums_add_messages

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(PyObject *object)


def tally(Core core not None):
    """Sum what the open connections of an engine have come to, in the totals of each of its
    listeners and in its own."""
    cdef list listeners = find_listeners(core)
    cdef uint32_t cursor = 0
    cdef uint32_t left = core.claimed
    cdef Slot *slot
    for listener in listeners:
        memset(&(<NativeListener>listener).totals.live, 0, sizeof(Sums))
    memset(&core.totals.live, 0, sizeof(Sums))
    while left > 0:
        slot = core.next_claimed(&cursor)
        _add(core, slot)
        left -= 1


def accepted(Core core not None):
    """How many connections the listeners of an engine have accepted."""
    cdef uint64_t count = core.totals.accepted
    for listener in find_listeners(core):
        count += wk_u64_load_relaxed(&(<NativeListener>listener).slot.tally.accepted)
    return count


def open_listeners(Core core not None):
    """An engine's open listeners, the oldest first."""
    return find_listeners(core)


cdef list find_listeners(Core core):
    cdef list found = []
    cdef Endpoint endpoint
    cdef void *at = core.endpoints
    core.check()
    while at != NULL:
        endpoint = <Endpoint>at if Py_REFCNT(<PyObject *>at) > 0 else None
        if isinstance(endpoint, NativeListener) and not (<NativeListener>endpoint).closing:
            found.append(endpoint)
        at = (<Endpoint>at).following
    found.reverse()         # the newest is the list's first
    return found


def conns_with_objects(Core core not None):
    """The open connections that an object stands for. In event mode a quiet one has none."""
    cdef list found = []
    cdef uint32_t cursor = 0
    cdef uint32_t left = core.claimed
    cdef Slot *slot
    core.check()
    while left > 0:
        slot = core.next_claimed(&cursor)
        left -= 1
        if slot.owner != NULL and Py_REFCNT(<PyObject *>slot.owner) > 0:
            found.append(<Stream>slot.owner)
    return found


cdef void _add(Core core, Slot *slot) noexcept:
    cdef Totals totals = _totals_of(core, slot)
    cdef Sums sums
    memset(&sums, 0, sizeof(Sums))
    # As Stream.count does.
    pthread_mutex_lock(&slot.lock)
    sums.unread = ring_len(&slot.inbound)
    sums.unsent = ring_len(&slot.outbound)
    sums.sent = wk_u64_load_relaxed(&slot.sent) + wk_u64_load_relaxed(&slot.flushed)
    pthread_mutex_unlock(&slot.lock)
    sums.received = wk_u64_load_relaxed(&slot.received)
    if slot.by_kind.scan != NULL:
        sums_add_messages(&sums, slot.by_kind.scan)
    _sum_up(&core.totals.live, &sums)
    if totals is not core.totals:
        _sum_up(&totals.live, &sums)


cdef void _sum_up(Sums *into, const Sums *sums) noexcept:
    into.received += sums.received
    into.sent += sums.sent
    into.messages_received += sums.messages_received
    into.messages_sent += sums.messages_sent
    into.unread += sums.unread
    into.unsent += sums.unsent


cdef Totals _totals_of(Core core, Slot *slot):
    """The totals that a connection counts in. Without an object, in event mode, its server knows;
    an object that another thread is freeing counts as gone (`Core.owner_of`)."""
    if slot.server != NULL:
        return (<Server>slot.server).totals
    if slot.owner == NULL or Py_REFCNT(<PyObject *>slot.owner) == 0:
        return core.totals
    return (<Stream>slot.owner).totals()
