"""Writing a reactor's record of the page, as a job in its thread. page.pxd has the rules.

A pass over the slots finds the busiest, largest and slowest connections. It is done in steps of
STEP slots, one for each job: about half a millisecond in five times a second, and only while
somebody watches. So with 100 000 slots a pass takes five seconds, and the lists are as old; up
to STEP slots they are new each time.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from ..base.atomics cimport (
    wk_fence, wk_u32_load_relaxed, wk_u32_store, wk_u64_load, wk_u64_load_relaxed, wk_u64_store,
    wk_u64_store_relaxed,
)
from ..base.linux cimport (
    getpeername, getsockname, monotonic_ns, pthread_mutex_lock, pthread_mutex_unlock, sockaddr,
    socklen_t,
)
from ..base.memory cimport FOR_PAGE, memory_resize
from ..base.shared cimport wk_byte_load, wk_place_load
from .hub cimport Job, Reactor
from .ring cimport ring_len
from .slot cimport CONNECTION, FLUSHING, LINGERING, OPEN, PORT, Slot
from .slot_map cimport slot_map_get, slot_map_step

cdef enum:
    STEP = 4096
    MAX_NAME = 128

ctypedef int (*Asker)(int fd, sockaddr *name, socklen_t *size) noexcept nogil


cdef void page_write_reactor(Reactor *reactor, Job *job) noexcept nogil:
    cdef PageWriter *writer = <PageWriter *>job         # its first field
    cdef ReactorRecord *record = writer.record
    cdef bint whole = _step(reactor, writer)
    wk_u64_store_relaxed(&record.sequence, wk_u64_load_relaxed(&record.sequence) + 1)
    wk_fence()
    if whole:
        _write_pass(reactor, writer)
    record.connections = wk_u32_load_relaxed(&reactor.connections)
    record.turns = wk_u64_load_relaxed(&reactor.turns)
    record.events = wk_u64_load_relaxed(&reactor.events_seen)
    record.busy = wk_u64_load_relaxed(&reactor.busy)
    record.pool_kept = wk_u64_load_relaxed(&reactor.pool.kept)
    record.pool_in_use = wk_u64_load_relaxed(&reactor.pool.live)
    record.written_at = monotonic_ns()
    wk_u64_store(&record.sequence, wk_u64_load_relaxed(&record.sequence) + 1)
    if whole:
        _begin_pass(writer)
    wk_u32_store(&writer.pending, 0)


cdef void _begin_pass(PageWriter *writer) noexcept nogil:
    writer.began_before = writer.began_at
    writer.began_at = 0
    writer.cursor = 0
    writer.inbound = 0
    writer.outbound = 0
    writer.ports = 0
    memset(writer.count, 0, sizeof(writer.count))


cdef bint _step(Reactor *reactor, PageWriter *writer) noexcept nogil:
    """Look at the next slots; whether they were the last."""
    cdef Slot *slot
    cdef uint8_t kind
    cdef int i
    if writer.began_at == 0:
        writer.began_at = monotonic_ns()
    for i in range(<int>STEP):
        slot = slot_map_step(reactor.hub.slot_map, &writer.cursor)
        if slot == NULL:
            return True
        if wk_u64_load(&slot.handle) == 0 or wk_place_load(&slot.reactor) != <void *>reactor:
            continue
        kind = wk_byte_load(&slot.kind)
        if kind == CONNECTION and _has_socket(slot):
            _rank(writer, slot)
        elif kind == PORT and wk_byte_load(&slot.state) == OPEN and writer.ports < MAX_PORTS:
            _note_port(&writer.port[writer.ports], slot)
            writer.ports += 1
    return False


cdef inline bint _has_socket(Slot *slot) noexcept nogil:
    cdef uint8_t state = wk_byte_load(&slot.state)
    return state == OPEN or state == FLUSHING or state == LINGERING


cdef inline uint64_t _sent(Slot *slot) noexcept nogil:
    """The Trio side resets its count when it claims the connection, not before."""
    cdef uint64_t sent = wk_u64_load_relaxed(&slot.flushed)
    return sent + wk_u64_load_relaxed(&slot.sent) if wk_byte_load(&slot.claimed) else sent


cdef inline uint64_t _moved_at(Slot *slot) noexcept nogil:
    cdef uint64_t at = max(slot.opened, wk_u64_load_relaxed(&slot.last_received),
                           wk_u64_load_relaxed(&slot.last_flushed))
    return max(at, wk_u64_load_relaxed(&slot.last_sent)) if wk_byte_load(&slot.claimed) else at


cdef void _rank(PageWriter *writer, Slot *slot) noexcept nogil:
    cdef uint64_t handle = wk_u64_load_relaxed(&slot.handle)
    cdef uint64_t bytes = wk_u64_load_relaxed(&slot.received) + _sent(slot)
    cdef uint64_t moved = _moved(writer, handle, bytes)
    cdef uint64_t inbound, outbound, at
    pthread_mutex_lock(&slot.lock)
    inbound = ring_len(&slot.inbound)
    outbound = ring_len(&slot.outbound)
    pthread_mutex_unlock(&slot.lock)
    writer.inbound += inbound
    writer.outbound += outbound
    _enter(writer, BUSIEST, handle, moved, moved)
    _enter(writer, LARGEST, handle, inbound + outbound, moved)
    at = _moved_at(slot)
    if (inbound or outbound) and writer.began_at > at:
        _enter(writer, SLOWEST, handle, writer.began_at - at, moved)


cdef uint64_t _moved(PageWriter *writer, uint64_t handle, uint64_t bytes) noexcept nogil:
    """Bytes since the pass before; 0 if that did not see it, or without memory."""
    cdef uint32_t index = <uint32_t>handle
    cdef uint32_t size = max(2 * writer.seen_size, (index | 1023) + 1)
    cdef uint64_t moved = 0
    cdef Seen *seen
    if index >= writer.seen_size:
        seen = <Seen *>memory_resize(FOR_PAGE, writer.seen, size * sizeof(Seen))
        if seen == NULL:
            return 0
        memset(&seen[writer.seen_size], 0, (size - writer.seen_size) * sizeof(Seen))
        writer.seen = seen
        writer.seen_size = size
    seen = &writer.seen[index]
    if seen.handle == handle and bytes > seen.bytes:
        moved = bytes - seen.bytes
    seen.handle = handle
    seen.bytes = bytes
    return moved


cdef void _enter(
    PageWriter *writer, Ranking which, uint64_t handle, uint64_t key, uint64_t moved
) noexcept nogil:
    """Keep it if it is among the first of a ranking; sorted, the first with the largest key."""
    cdef Ranked *best = writer.best[<int>which]
    cdef uint32_t at = writer.count[<int>which]
    if key == 0 or (at == RANKED and key <= best[at - 1].key):
        return
    if at < RANKED:
        writer.count[<int>which] += 1
    else:
        at -= 1
    while at > 0 and best[at - 1].key < key:
        best[at] = best[at - 1]
        at -= 1
    best[at].handle = handle
    best[at].key = key
    best[at].moved = moved


cdef void _name(uint8_t *to, int fd, Asker ask) noexcept nogil:
    cdef uint8_t name[MAX_NAME]
    cdef socklen_t size = MAX_NAME
    memset(to, 0, ADDRESS)
    if ask(fd, <sockaddr *>name, &size) == 0:
        to[0] = <uint8_t>min(size, <socklen_t>(ADDRESS - 1))
        memcpy(to + 1, name, to[0])


cdef void _note_port(PortRow *row, Slot *slot) noexcept nogil:
    """An open port holds its listener."""
    cdef Slot *listener = slot.beyond.listener
    row.listener = wk_u64_load_relaxed(&listener.handle)
    row.accepted = wk_u64_load_relaxed(&listener.tally.accepted)
    pthread_mutex_lock(&listener.lock)
    row.waiting = listener.waiting
    pthread_mutex_unlock(&listener.lock)
    _name(row.address, slot.fd, <Asker>getsockname)


# --- at the end of a pass ----------------------------------------------------------------


cdef void _write_pass(Reactor *reactor, PageWriter *writer) noexcept nogil:
    cdef ReactorRecord *record = writer.record
    cdef uint32_t which, i
    record.passed_at = monotonic_ns()
    record.inbound = writer.inbound
    record.outbound = writer.outbound
    record.ports = writer.ports
    memcpy(record.port, writer.port, sizeof(record.port))
    record.rows = 0
    for which in range(<uint32_t>RANKINGS):
        for i in range(writer.count[which]):
            _add(reactor, writer, &writer.best[which][i], which)


cdef void _add(
    Reactor *reactor, PageWriter *writer, Ranked *ranked, uint32_t which
) noexcept nogil:
    """Add a row, or mark the one that another ranking has added."""
    cdef ReactorRecord *record = writer.record
    cdef Slot *slot
    cdef uint64_t i
    for i in range(record.rows):
        if record.row[i].id == ranked.handle:
            record.row[i].ranks |= 1 << which
            return
    # It may have been closed since, by this thread.
    slot = slot_map_get(reactor.hub.slot_map, ranked.handle)
    if slot == NULL or not _has_socket(slot):
        return
    _fill(&record.row[record.rows], slot)
    record.row[record.rows].moved = ranked.moved
    record.row[record.rows].moved_in = (
        writer.began_at - writer.began_before if writer.began_before else 0)
    record.row[record.rows].ranks = 1 << which
    record.rows += 1


cdef void _fill(ConnRow *row, Slot *slot) noexcept nogil:
    row.id = wk_u64_load_relaxed(&slot.handle)
    row.received = wk_u64_load_relaxed(&slot.received)
    row.sent = _sent(slot)
    row.opened = slot.opened
    row.moved_at = _moved_at(slot)
    row.state = slot.state
    pthread_mutex_lock(&slot.lock)
    row.inbound = ring_len(&slot.inbound)
    row.outbound = ring_len(&slot.outbound)
    row.state |= 256 if slot.paused else 0
    row.state |= 512 if slot.ended or slot.hung_up else 0
    pthread_mutex_unlock(&slot.lock)
    _name(row.address, slot.fd, <Asker>getpeername)
