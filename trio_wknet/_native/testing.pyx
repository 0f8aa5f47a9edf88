"""Python faces of the structs that the two sides are made of. Tests and benchmarks use them,
nothing else does."""
cimport cython
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memset
from libc.string cimport memcpy

from .base.atomics cimport (
    wk_u32, wk_u32_load, wk_u64, wk_u64_add, wk_u64_exchange, wk_u64_load,
    wk_u64_load_relaxed,
)
from .base.files cimport wk_all_cached
from .base.linux cimport iovec
from .base.memory cimport (
    SITES, memory_asked, memory_live, memory_refuse, memory_refused, memory_watch,
)
from .base.memory cimport (
    FOR_BLOCKS, FOR_BROADCASTS, FOR_CORKS, FOR_HANDLES, FOR_LOAD, FOR_MESSAGES, FOR_NAMES, FOR_PAGE,
    FOR_PINGS, FOR_PIPES, FOR_PLACES, FOR_RATES, FOR_RELAYS, FOR_SCANS, FOR_SETUP, FOR_SLOTS,
    FOR_SPANS, FOR_TIMERS, Site,
)
from .base.utf8 cimport wk_utf8, wk_utf8_check
from .reactor.admission cimport (
    ADMITTED, Peer, Place, Reason, admission_enter, admission_give_back, admission_leave,
    admission_name, admission_reserve, admission_wait_no_more, peer_of_bytes, place_free,
    place_new, place_prepare,
)
from .reactor.handles cimport (
    ADDED, NOWHERE, HandleSet, handles_add, handles_copy, handles_discard, handles_find,
    handles_free,
)
from .reactor.hub cimport Job, Reactor
from .reactor.framing cimport (
    DELIMITED, FIXED_LENGTH, FRAME_MALFORMED, FRAME_READY, FRAME_TOO_LONG, FRAME_WAIT,
    LENGTH_PREFIXED, MESSAGES, VARINT_PREFIXED, FrameFound, FrameScan, FramingSpec, frame_lowat,
    frame_moved, frame_next, frame_scan,
)
from .reactor.mailbox cimport (
    Batch, Notification, Mailbox, batch_add, batch_send, notification_mark, notification_take,
    mailbox_push, mailbox_take, mailbox_waiting,
)
from .reactor.measure cimport size_bucket, time_bucket
from .reactor.pool cimport (
    Block, Pool, pool_drop, pool_free, pool_new, pool_settled, pool_take, pool_trim,
    pool_trim_idle,
)
from .reactor.send cimport ACCEPTED, CLOSED, FULL, Sent, send_message
from .reactor.ring cimport (
    Ring, ring_adopt, ring_at, ring_clear, ring_copy, ring_discard, ring_len, ring_write,
)
from .reactor.slot cimport Slot
from .reactor.slot_map cimport (
    SLABS, SLAB_SLOTS, SlotMap, slot_map_each, slot_map_free, slot_map_get, slot_map_new,
    slot_map_return, slot_map_take,
)
from .reactor.wake cimport reactor_give
from .reactor.websocket cimport (
    CLOSE_DUE, MAX_ANSWER, PING_DUE, RECORD_HEADER, Decoder, Due, Ping, Record, decoder_answer,
    decoder_answered, decoder_feed,
)
from .reactor.wheel cimport (
    MAX_NODES, MAX_SLOTS, Wheel, WheelNode, wheel_add, wheel_free, wheel_linked, wheel_new,
    wheel_next, wheel_remove, wheel_take, wheel_turn,
)
from .trio.admission cimport NativeAdmission
from .trio.core cimport Core, Endpoint
from .trio.failure_log cimport FailureLog
from .trio.spin cimport (
    SpinPolicy, spin_policy_wants, spin_policy_hear, spin_policy_new, spin_policy_note,
)
from .trio.text cimport text_of

from array import array


cdef class NotificationBox:
    """A mailbox with a Python face, for tests: `count` notifications, by number."""
    cdef Mailbox _box
    cdef Notification *_notifications
    cdef Batch _batch
    cdef int _count

    def __cinit__(self, int count):
        self._notifications = <Notification *>calloc(count, sizeof(Notification))
        if self._notifications == NULL:
            raise MemoryError
        self._count = count

    def __dealloc__(self):
        free(self._notifications)

    cdef Notification *_notification(self, int number) except NULL:
        if not 0 <= number < self._count:
            raise IndexError(number)
        return &self._notifications[number]

    def post(self, int number, uint32_t bits):
        """Add bits to a notification and queue it if need be, as one sender."""
        cdef Notification *notification = self._notification(number)
        cdef bint queued
        with nogil:
            queued = notification_mark(notification, bits)
            if queued:
                mailbox_push(&self._box, notification, notification)
        return queued

    def post_many(self, int number, uint32_t bits, int times):
        """The same so many times, letting nobody in between by the GIL; returns
        how often the notification was queued."""
        cdef Notification *notification = self._notification(number)
        cdef int i, queued = 0
        with nogil:
            for i in range(times):
                if notification_mark(notification, bits):
                    mailbox_push(&self._box, notification, notification)
                    queued += 1
        return queued

    def gather(self, int number, uint32_t bits):
        """The same, but into the batch that `send` sends."""
        cdef Notification *notification = self._notification(number)
        if notification_mark(notification, bits):
            batch_add(&self._batch, notification)

    def send(self):
        return batch_send(&self._batch, &self._box)

    def waiting(self):
        return mailbox_waiting(&self._box)

    def take(self):
        """All (number, bits), oldest notification first."""
        cdef Notification *notification = mailbox_take(&self._box)
        cdef Notification *following
        taken = []
        while notification != NULL:
            following = notification.next
            taken.append((notification - self._notifications, notification_take(notification)))
            notification = following
        return taken


cdef void _count_telling(void *told) noexcept nogil:
    (<int *>told)[0] += 1


# The garbage collector would clear `_blocks` before __dealloc__ needs it; it holds
# numbers only, so no cycle goes through it.
@cython.no_gc
cdef class BlockPool:
    """A pool with a Python face, for tests: blocks are known by a number.

    Args:
      keep_at_most: bytes that may wait for reuse.
      maps: whether large blocks have pages of their own.
    """
    cdef Pool *_pool
    cdef dict _blocks
    cdef int _next
    cdef readonly int told      # how often the watcher was

    def __cinit__(self, uint64_t keep_at_most, bint maps=False):
        self._pool = pool_new(keep_at_most)
        if self._pool == NULL:
            raise MemoryError
        self._pool.maps = maps
        self._pool.on_excess = _count_telling
        self._pool.watcher = &self.told
        self._blocks = {}

    def take(self, uint32_t size):
        """Take a block of at least `size` bytes; returns its number."""
        cdef Block *block = pool_take(self._pool, size)
        if block == NULL:
            raise MemoryError
        self._next += 1
        self._blocks[self._next] = <size_t>block
        return self._next

    def capacity(self, number):
        return (<Block *><size_t>self._blocks[number]).capacity

    def address(self, number):
        return self._blocks[number]

    def give(self, number, bint foreign=False):
        """Give a block back, as the owner or as another thread does."""
        cdef Block *block = <Block *><size_t>self._blocks.pop(number)
        pool_drop(block, NULL if foreign else self._pool)

    def trim(self):
        pool_trim(self._pool)

    def trim_idle(self):
        pool_trim_idle(self._pool)

    def settled(self):
        """Whether there is nothing to give back; then the next excess is told of."""
        return pool_settled(self._pool)

    def forget_released(self):
        """As a watcher does that has trimmed the allocator's heap."""
        return wk_u64_exchange(&self._pool.released, 0)

    def counts(self):
        """Bytes kept, bytes in use, blocks taken, blocks allocated."""
        return (wk_u64_load_relaxed(&self._pool.kept),
                wk_u64_load_relaxed(&self._pool.live),
                wk_u64_load_relaxed(&self._pool.taken),
                wk_u64_load_relaxed(&self._pool.allocated))

    def __dealloc__(self):
        if self._pool == NULL:
            return
        for address in self._blocks.values():
            pool_drop(<Block *><size_t>address, self._pool)
        pool_free(self._pool)


# Each by its name in memory.pxd.
MEMORY_SITES = {
    "blocks": FOR_BLOCKS, "slots": FOR_SLOTS, "setup": FOR_SETUP, "places": FOR_PLACES,
    "handles": FOR_HANDLES, "broadcasts": FOR_BROADCASTS, "relays": FOR_RELAYS,
    "pipes": FOR_PIPES, "page": FOR_PAGE, "scans": FOR_SCANS, "pings": FOR_PINGS,
    "corks": FOR_CORKS, "spans": FOR_SPANS, "names": FOR_NAMES, "timers": FOR_TIMERS,
    "messages": FOR_MESSAGES, "load": FOR_LOAD, "rates": FOR_RATES,
}
assert sorted(MEMORY_SITES.values()) == list(range(SITES))


def watch_memory(bint watched):
    """Count what is taken and given back at the door for memory, from 0; or no more."""
    memory_watch(watched)


def refuse_memory(sites, uint32_t first=1, uint32_t count=0xffffffff, uint32_t one_in=1):
    """Refuse requests of these sites, in any thread: from the `first` one on so many, or one in
    so many of them. Without sites: none any more."""
    cdef uint64_t bits = 0
    for site in sites:
        bits |= <uint64_t>1 << <int>MEMORY_SITES[site]
    memory_refuse(bits, first, min(first + <uint64_t>count - 1, <uint64_t>0xffffffff), one_in)


def memory_counts():
    """How many (requests, refusals) there were of the plan's sites, since it was made."""
    return memory_asked(), memory_refused()


def memory_in_use():
    """By site: how many were taken and not given back since the watch began."""
    return {name: <int32_t>memory_live(<Site><int>site) for name, site in MEMORY_SITES.items()}


def fill_slabs(Core core not None):
    """Take every slot for which an engine has memory; their handles."""
    cdef SlotMap *slot_map = core.hub.slot_map
    cdef Slot *slot
    handles = []
    while wk_u32_load(&slot_map.count) < slot_map.slab_count * SLAB_SLOTS:
        slot = slot_map_take(slot_map)
        handles.append(wk_u64_load(&slot.handle))
    return handles


def return_slots(Core core not None, list handles):
    """Give them back."""
    for handle in handles:
        slot_map_return(core.hub.slot_map, slot_map_get(core.hub.slot_map, handle))


cdef class SlotTable:
    """The slot map with a Python face, for tests.

    Args:
      generation: what every slab counts on from.
    """
    cdef SlotMap *_map

    def __cinit__(self, uint32_t generation=0):
        cdef uint32_t i
        self._map = slot_map_new()
        if self._map == NULL:
            raise MemoryError
        for i in range(SLABS if generation else 0):
            self._map.slabs[i].generation = generation

    def __dealloc__(self):
        if self._map != NULL:
            slot_map_free(self._map)

    def __len__(self):
        return wk_u32_load(&self._map.count)

    @property
    def warm(self):
        """The numbers of the slabs that have memory."""
        return [i for i in range(self._map.slab_count)
                if wk_u32_load(&self._map.slabs[i].warm)]

    def add(self, int fd):
        """Take a slot for a pretended descriptor; returns its handle."""
        cdef Slot *slot = slot_map_take(self._map)
        if slot == NULL:
            raise MemoryError
        slot.fd = fd
        return wk_u64_load(&slot.handle)

    def get(self, uint64_t handle):
        """The descriptor behind a handle, or None for a stale one."""
        cdef Slot *slot = slot_map_get(self._map, handle)
        return None if slot == NULL else slot.fd

    def remove(self, uint64_t handle):
        """Return the slot; False for a stale handle, which changes nothing."""
        cdef Slot *slot = slot_map_get(self._map, handle)
        if slot == NULL:
            return False
        slot_map_return(self._map, slot)
        return True

    def each(self):
        """The handles in use."""
        cdef uint32_t cursor = 0
        cdef Slot *slot = slot_map_each(self._map, &cursor)
        handles = []
        while slot != NULL:
            handles.append(wk_u64_load(&slot.handle))
            slot = slot_map_each(self._map, &cursor)
        return handles

    def count_found(self, list handles):
        """How many of these handles mean something; looked up without the GIL."""
        cdef uint64_t[::1] numbers = array("Q", handles)
        cdef Py_ssize_t i
        cdef Py_ssize_t found = 0
        with nogil:
            for i in range(numbers.shape[0]):
                found += slot_map_get(self._map, numbers[i]) != NULL
        return found

    def swell(self, Py_ssize_t count):
        """Take so many slots and return them, first taken first, without the GIL."""
        cdef Slot *oldest = NULL
        cdef Slot *newest = NULL
        cdef Slot *slot
        with nogil:
            while count > 0:
                count -= 1
                slot = slot_map_take(self._map)
                if slot == NULL:
                    break
                if newest == NULL:
                    oldest = slot
                else:
                    newest.chain = slot
                newest = slot
            while oldest != NULL:
                slot = oldest
                oldest = slot.chain
                slot_map_return(self._map, slot)


cdef struct Member:
    WheelNode node
    uint64_t due


cdef WheelNode *_member_node(void *owner, uint32_t index) noexcept nogil:
    return &(<Member *>owner)[index].node


cdef uint64_t _member_due(void *owner, uint32_t index) noexcept nogil:
    return (<Member *>owner)[index].due


cdef class Handles:
    """A set of handles with a Python face, for tests."""
    cdef HandleSet _handles

    def __dealloc__(self):
        handles_free(&self._handles)

    def __len__(self):
        return self._handles.count

    @property
    def room(self):
        return self._handles.room

    def __contains__(self, uint64_t handle):
        return handles_find(&self._handles, handle) != NOWHERE

    def add(self, uint64_t handle):
        """Whether it was not there."""
        return handles_add(&self._handles, handle) == ADDED

    def discard(self, uint64_t handle):
        """Whether it was there."""
        return handles_discard(&self._handles, handle)

    def copied(self):
        """What a copy has, as a list."""
        cdef HandleSet copy
        if not handles_copy(&copy, &self._handles):
            raise MemoryError
        found = [copy.places[i] for i in range(copy.room) if copy.places[i] != 0]
        handles_free(&copy)
        return found


cdef class NodeWheel:
    """The wheel with a Python face and some nodes, for tests and benchmarks."""
    cdef Wheel *_wheel
    cdef Member *_members
    cdef uint32_t _size

    def __cinit__(self, uint64_t tick_ns, uint32_t slots, uint64_t now_ns, uint32_t size):
        if tick_ns < 1 or not 2 <= slots <= MAX_SLOTS or size > <uint32_t>MAX_NODES:
            raise ValueError("out of range")
        self._size = size
        self._members = <Member *>calloc(max(size, 1), sizeof(Member))
        self._wheel = wheel_new(tick_ns, slots, now_ns, self._members, _member_node, _member_due)
        if self._members == NULL or self._wheel == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self._wheel != NULL:
            wheel_free(self._wheel)
        free(self._members)

    cdef Member *_member(self, uint32_t index) except NULL:
        if index >= self._size:
            raise IndexError(index)
        return &self._members[index]

    def __len__(self):
        return self._wheel.count

    @property
    def visits(self):
        """How many nodes turning has looked at so far."""
        return self._wheel.visits

    def linked(self, uint32_t index):
        return wheel_linked(&self._member(index).node)

    def postpone(self, uint32_t index, uint64_t due):
        """Change when a node is due without telling the wheel."""
        self._member(index).due = due

    def add(self, uint32_t index, uint64_t due):
        self._member(index).due = due
        wheel_add(self._wheel, index)

    def remove(self, uint32_t index):
        self._member(index)
        wheel_remove(self._wheel, index)

    def next(self):
        return wheel_next(self._wheel)

    def turn(self, uint64_t now_ns):
        wheel_turn(self._wheel, now_ns)

    def take(self):
        """The index of a node that is due, or None."""
        cdef uint32_t index
        return index if wheel_take(self._wheel, &index) else None


cdef struct SenderCounts:
    wk_u64 given
    wk_u64 accepted
    wk_u64 refused
    wk_u64 closed


cdef struct SendJob:
    Job job
    SenderCounts *counts
    uint64_t handle
    uint32_t limit
    uint32_t size
    uint32_t first          # bytes in the first of two pieces
    char data[1]


cdef void _run_send(Reactor *reactor, Job *job) noexcept nogil:
    cdef SendJob *it = <SendJob *>job
    cdef Slot *slot = slot_map_get(reactor.hub.slot_map, it.handle)
    cdef Sent outcome = CLOSED
    cdef iovec spans[2]
    spans[0].iov_base = it.data
    spans[0].iov_len = it.first
    spans[1].iov_base = it.data + it.first
    spans[1].iov_len = it.size - it.first
    if slot != NULL:
        outcome = send_message(reactor, slot, spans, 2, it.limit)
    if outcome == ACCEPTED:
        wk_u64_add(&it.counts.accepted, 1)
    elif outcome == FULL:
        wk_u64_add(&it.counts.refused, 1)
    else:
        wk_u64_add(&it.counts.closed, 1)
    free(it)


cdef class ReactorSender:
    """Has a connection's reactor send messages of its own on it, for tests.

    Args:
      conn: the connection, which stays usable as ever.
    """
    cdef SenderCounts *_counts
    cdef Endpoint _conn
    cdef uint64_t _handle
    cdef Reactor *_reactor

    def __cinit__(self, Endpoint conn not None):
        self._counts = <SenderCounts *>calloc(1, sizeof(SenderCounts))
        if self._counts == NULL:
            raise MemoryError
        self._conn = conn
        self._handle = wk_u64_load(&conn.slot.handle)
        self._reactor = <Reactor *>conn.slot.reactor

    def send(self, bytes data not None, uint32_t limit=1 << 30):
        """Give the reactor a message, of two bytes or more, to send in its next turn."""
        cdef SendJob *it = <SendJob *>calloc(1, sizeof(SendJob) + len(data))
        if it == NULL:
            raise MemoryError
        it.job.run = _run_send
        it.counts = self._counts
        it.handle = self._handle
        it.limit = limit
        it.size = <uint32_t>len(data)
        it.first = it.size // 3
        memcpy(it.data, <const char *>data, len(data))
        wk_u64_add(&self._counts.given, 1)
        reactor_give(self._reactor, &it.job)

    def counts(self):
        """How many were (accepted, refused because too much was unsent, refused because the
        connection has ended), and how many are still to be looked at."""
        accepted = wk_u64_load(&self._counts.accepted)
        refused = wk_u64_load(&self._counts.refused)
        closed = wk_u64_load(&self._counts.closed)
        return accepted, refused, closed, (
            wk_u64_load(&self._counts.given) - accepted - refused - closed
        )

    def __dealloc__(self):
        if self._counts != NULL and wk_u64_load(&self._counts.given) == (
            wk_u64_load(&self._counts.accepted) + wk_u64_load(&self._counts.refused)
            + wk_u64_load(&self._counts.closed)
        ):
            free(self._counts)      # else a reactor has a job yet, in a test that failed


cdef class SpinTrial:
    """A Python face, for tests. Whoever is heard is a number."""
    cdef SpinPolicy _policy

    def __cinit__(self):
        spin_policy_new(&self._policy)

    def hear(self, size_t whom):
        spin_policy_hear(&self._policy, <void *>whom)

    def goes_on(self):
        return spin_policy_wants(&self._policy)

    def note(self, bint found):
        spin_policy_note(&self._policy, found)


def searches_kept(Core core not None):
    """How many connections have a search that goes on (receive_sized.pyx)."""
    return len(core.searches)


def take_line_at(FailureLog log not None, int level, uint64_t now):
    """As `take_line`, at a time in nanoseconds."""
    return log.take_line_at(level, now)


# --- frames ------------------------------------------------------------------------

cdef enum:
    FUZZ_BYTES = 200


cdef struct Fuzz:
    uint64_t random
    FramingSpec spec
    unsigned char delimiter[3]
    unsigned char *stream       # of its own size: a sanitizer sees a byte too much
    uint32_t size
    uint32_t fed
    uint32_t at                 # where the first frame that was not taken begins
    uint32_t frames
    Pool *pool
    Ring ring
    FrameScan scan


cdef inline uint32_t _below(Fuzz *fuzz, uint32_t n) noexcept nogil:
    """A number below `n`, by xorshift."""
    fuzz.random ^= fuzz.random << 13
    fuzz.random ^= fuzz.random >> 7
    fuzz.random ^= fuzz.random << 17
    return <uint32_t>((fuzz.random >> 20) % n)


cdef FrameFound _model_length(Fuzz *fuzz, uint64_t length, uint32_t header, uint32_t strip,
                              uint32_t *total, uint32_t *skip) noexcept nogil:
    if length > 1000000:
        return FRAME_TOO_LONG
    if <int>length + fuzz.spec.adjustment < 0:
        return FRAME_MALFORMED
    total[0] = header + <uint32_t>(<int>length + fuzz.spec.adjustment)
    skip[0] = strip
    if total[0] > fuzz.spec.max_frame + strip:
        return FRAME_TOO_LONG
    return FRAME_READY if fuzz.fed - fuzz.at >= total[0] else FRAME_WAIT


cdef FrameFound _model(Fuzz *fuzz, uint32_t *total, uint32_t *skip,
                       uint32_t *tail) noexcept nogil:
    """The first frame of what was fed, found the plain way: from its begin, each time."""
    cdef FramingSpec *spec = &fuzz.spec
    cdef const unsigned char *data = fuzz.stream + fuzz.at
    cdef uint32_t n = fuzz.fed - fuzz.at
    cdef uint64_t length = 0
    cdef uint32_t i, j, kept
    skip[0] = 0
    tail[0] = 0
    if spec.kind == FIXED_LENGTH:
        total[0] = spec.max_frame
        return FRAME_READY if n >= total[0] else FRAME_WAIT
    if spec.kind == LENGTH_PREFIXED:
        if n < spec.offset + spec.size:
            return FRAME_WAIT
        for i in range(spec.size):
            j = spec.size - 1 - i if spec.little_endian else i
            length = length << 8 | data[spec.offset + j]
        return _model_length(fuzz, length, spec.offset + spec.size, spec.strip, total, skip)
    if spec.kind == VARINT_PREFIXED:
        for i in range(n):
            if i == 9 and data[i] > 1:
                return FRAME_MALFORMED
            length |= <uint64_t>(data[i] & 127) << (7 * i)
            if data[i] < 128:
                return _model_length(fuzz, length, i + 1, i + 1, total, skip)
        return FRAME_WAIT
    kept = spec.delimiter_length if spec.keep else 0
    i = 0
    while i + spec.delimiter_length <= n:
        if i + kept > spec.max_frame:
            return FRAME_TOO_LONG
        if memcmp(data + i, spec.delimiter, spec.delimiter_length) == 0:
            total[0] = i + spec.delimiter_length
            tail[0] = spec.delimiter_length - kept
            return FRAME_READY
        i += 1
    return FRAME_TOO_LONG if i + kept > spec.max_frame else FRAME_WAIT


cdef void _fuzz_begin(Fuzz *fuzz) noexcept nogil:
    """Draw a framing, a stream, and where in its block, and in its counting, the ring is."""
    cdef FramingSpec *spec = &fuzz.spec
    cdef uint32_t i, most
    memset(spec, 0, sizeof(FramingSpec))
    spec.kind = 1 + _below(fuzz, 4)
    spec.max_frame = 1 + _below(fuzz, 60)
    if spec.kind == LENGTH_PREFIXED:
        spec.size = 1 << _below(fuzz, 4) if _below(fuzz, 5) else 3
        spec.little_endian = _below(fuzz, 2)
        spec.offset = _below(fuzz, 4)
        spec.adjustment = <int>_below(fuzz, 9) - 4
        most = spec.offset + spec.size + <uint32_t>max(spec.adjustment, 0)
        spec.strip = _below(fuzz, most + 1)
    elif spec.kind == DELIMITED:
        spec.delimiter_length = 1 + _below(fuzz, 3)
        spec.delimiter = fuzz.delimiter
        for i in range(spec.delimiter_length):
            fuzz.delimiter[i] = 97 + <unsigned char>_below(fuzz, 2)
        spec.keep = _below(fuzz, 2)
        spec.max_frame += spec.delimiter_length
    for i in range(fuzz.size):
        if spec.kind == DELIMITED:
            fuzz.stream[i] = 97 + <unsigned char>_below(fuzz, 2 if _below(fuzz, 3) else 3)
        elif _below(fuzz, 12) == 0:
            fuzz.stream[i] = <unsigned char>_below(fuzz, 256)
        else:
            fuzz.stream[i] = <unsigned char>_below(fuzz, 12) * <unsigned char>_below(fuzz, 2)
    memset(&fuzz.scan, 0, sizeof(FrameScan))
    fuzz.scan.spec = spec
    fuzz.fed = 0
    fuzz.at = 0


cdef bint _fuzz_take(Fuzz *fuzz, uint32_t base) noexcept nogil:
    """The scan says READY: whether the frame is what the model says."""
    cdef uint32_t total = 0
    cdef uint32_t skip = 0
    cdef uint32_t tail = 0
    cdef uint32_t i
    if _model(fuzz, &total, &skip, &tail) != FRAME_READY:
        return False
    if fuzz.scan.total != total or fuzz.scan.skip != skip or fuzz.scan.tail != tail:
        return False
    for i in range(fuzz.scan.moved, total):
        if ring_at(&fuzz.ring, base + i - fuzz.scan.moved) != fuzz.stream[fuzz.at + i]:
            return False
    fuzz.at += total
    fuzz.frames += 1
    return True


cdef bint _fuzz_look(Fuzz *fuzz, FrameFound *found) noexcept nogil:
    """Take all whole frames, one by one or several, and sometimes a part of the next."""
    cdef FrameScan *scan = &fuzz.scan
    cdef uint32_t base = 0
    cdef uint32_t n
    found[0] = frame_scan(scan, &fuzz.ring, 0)
    while found[0] == FRAME_READY:
        if not _fuzz_take(fuzz, base):
            return False
        base += scan.total - scan.moved
        frame_next(scan)
        if _below(fuzz, 2):
            ring_discard(&fuzz.ring, fuzz.pool, base)
            base = 0
        found[0] = frame_scan(scan, &fuzz.ring, base)
    ring_discard(&fuzz.ring, fuzz.pool, base)
    if found[0] == FRAME_WAIT and _below(fuzz, 4) == 0:
        n = ring_len(&fuzz.ring)
        if fuzz.spec.kind == DELIMITED:
            n = min(n, scan.looked)
        elif scan.total == 0:
            n = 0
        ring_discard(&fuzz.ring, fuzz.pool, n)
        frame_moved(scan, n)
        found[0] = frame_scan(scan, &fuzz.ring, 0)
    return True


cdef bint _fuzz_step(Fuzz *fuzz) noexcept nogil:
    """Feed a piece, and compare what is found."""
    cdef FrameFound found = FRAME_WAIT
    cdef FrameFound expected
    cdef uint32_t total = 0
    cdef uint32_t skip = 0
    cdef uint32_t tail = 0
    cdef uint32_t held
    cdef uint32_t n = min(fuzz.size - fuzz.fed, 1 + _below(fuzz, 9 if _below(fuzz, 3) else 90))
    if fuzz.ring.block == NULL:
        ring_adopt(&fuzz.ring, pool_take(fuzz.pool, 512), 0)
        fuzz.ring.head = 0 - _below(fuzz, 700)
        fuzz.ring.tail = fuzz.ring.head
    ring_write(&fuzz.ring, fuzz.pool, fuzz.stream + fuzz.fed, n)
    fuzz.fed += n
    if not _fuzz_look(fuzz, &found):
        return False
    expected = _model(fuzz, &total, &skip, &tail)
    if found != expected:
        return False
    held = ring_len(&fuzz.ring)
    if found != FRAME_WAIT:
        return frame_lowat(&fuzz.scan, &fuzz.ring, 65536) == 0
    # It must be looked at again, but not before more has come, nor after its last byte.
    if fuzz.scan.needed <= held or frame_lowat(&fuzz.scan, &fuzz.ring, 1 << 20) <= held:
        return False
    return total == 0 or fuzz.scan.needed <= total - fuzz.scan.moved


cdef bint _fuzz_one(Fuzz *fuzz) noexcept nogil:
    cdef bint right = True
    fuzz.size = 1 + _below(fuzz, FUZZ_BYTES)
    fuzz.stream = <unsigned char *>calloc(1, fuzz.size)
    if fuzz.stream == NULL:
        return False
    _fuzz_begin(fuzz)
    while right and fuzz.fed < fuzz.size:
        right = _fuzz_step(fuzz)
    ring_clear(&fuzz.ring, fuzz.pool)
    free(fuzz.stream)
    return right


def fuzz_frames(uint64_t first, uint64_t count):
    """Divide random streams by random framings, in random pieces, and compare with a model.
    Returns how many frames there were. Raises AssertionError with the number of a stream
    that went wrong."""
    cdef Fuzz fuzz
    cdef uint64_t number
    cdef bint right = True
    memset(&fuzz, 0, sizeof(Fuzz))
    fuzz.pool = pool_new(1 << 20)
    if fuzz.pool == NULL:
        raise MemoryError
    number = first
    with nogil:
        while right and number < first + count:
            fuzz.random = (number + 1) * <uint64_t>0x9E3779B97F4A7C15
            right = _fuzz_one(&fuzz)
            number += 1
    pool_free(fuzz.pool)
    if not right:
        raise AssertionError(f"stream {number - 1}")
    return fuzz.frames


# --- WebSocket -----------------------------------------------------------------------


cdef class MessageDecoder:
    """A WebSocket's decoder with a Python face, for tests: what the reactor does under the
    lock, and what it would send.

    Args:
      client: whether the role is a client's.
      max_message: bytes.
      max_fragments: of a message.
      may_compress: whether the first reserved bit was negotiated.
    """
    cdef Pool *_pool
    cdef Ring _ring
    cdef Decoder _ws
    cdef FramingSpec _spec
    cdef Ping _pings[8]

    def __cinit__(self, bint client=False, uint32_t max_message=1 << 20,
                  uint32_t max_fragments=1 << 20, bint may_compress=False):
        self._spec.kind = MESSAGES
        self._ws.scan.spec = &self._spec
        self._ws.client = client
        self._ws.max_message = max_message
        self._ws.max_fragments = max_fragments
        self._ws.may_compress = may_compress
        self._pool = pool_new(1 << 20)
        if self._pool == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self._pool != NULL:
            ring_clear(&self._ring, self._pool)
            pool_free(self._pool)

    def feed(self, bytes data not None):
        """Decode bytes, which stand alone: a sanitizer sees a byte too much."""
        cdef uint32_t n = <uint32_t>len(data)
        cdef uint32_t at = 0
        cdef bint news = False
        cdef bint no_memory = False
        cdef unsigned char *copy = <unsigned char *>calloc(1, n + (n == 0))
        if copy == NULL:
            raise MemoryError
        memcpy(copy, <const char *>data, n)
        while at < n and not no_memory:
            at += decoder_feed(&self._ws, &self._ring, self._pool, copy + at, n - at, &news,
                               &no_memory)
        free(copy)
        if no_memory:
            raise MemoryError
        return news

    def ping(self, int which, bytes payload not None):
        """Have a ping sent, number `which` of 8, from 1 on."""
        cdef Ping *ping = &self._pings[which - 1]
        ping.number = which
        ping.size = <unsigned char>len(payload)
        memcpy(ping.payload, <const char *>payload, len(payload))
        ping.next = NULL
        if which == 1:
            self._ws.pings = ping
        else:
            self._pings[which - 2].next = ping
        self._ws.scan.answer_due |= PING_DUE

    def take(self):
        """All whole messages: (kind, whether it is compressed, bytes)."""
        cdef Record record
        messages = []
        while self._ws.whole:
            ring_copy(&self._ring, &record, RECORD_HEADER, 0)
            message = bytearray(record.size)
            ring_copy(&self._ring, <char *>message, record.size, RECORD_HEADER)
            ring_discard(&self._ring, self._pool, RECORD_HEADER + record.size)
            self._ws.whole -= 1
            messages.append((record.kind, bool(record.compressed), bytes(message)))
        return messages

    def answers(self):
        """The frames that are due, which are sent."""
        cdef unsigned char frame[MAX_ANSWER]
        cdef unsigned char *key = b"\x01\x02\x03\x04"
        cdef Due what = CLOSE_DUE
        cdef uint64_t number = 0
        cdef uint32_t n
        frames = []
        while True:
            n = decoder_answer(&self._ws, frame, key, &what, &number)
            if n == 0:
                return frames
            decoder_answered(&self._ws, what, number)
            frames.append(frame[:n])

    @property
    def over(self):
        """(why, code, reason), or None."""
        if not self._ws.over:
            return None
        return self._ws.over, self._ws.close_code, self._ws.reason[:self._ws.reason_size]

    @property
    def confirmed(self):
        """The number of the last ping that was answered."""
        return self._ws.confirmed

    @property
    def held(self):
        """Bytes in the ring, and of its block."""
        cdef uint32_t capacity = 0
        if self._ring.block != NULL:
            capacity = self._ring.block.capacity
        return ring_len(&self._ring), capacity


# Random streams of frames, decoded at once and in pieces.

cdef enum:
    STREAM_BYTES = 700


cdef struct Decoded:
    Decoder ws
    Ring ring
    uint64_t digest             # of all messages
    uint32_t messages


cdef struct MessageFuzz:
    Fuzz chance                 # whose numbers are drawn
    Pool *pool
    FramingSpec spec
    unsigned char *stream
    uint32_t size
    bint inside                 # a message in fragments
    uint64_t messages


cdef void _put_random_frame(MessageFuzz *fuzz, bint client) noexcept nogil:
    """Add a frame to the stream, which is right in most of the cases, if there is room."""
    cdef unsigned char *out = fuzz.stream + fuzz.size
    cdef unsigned char *opcodes = b"\x81\x82\x81\x82\x01\x02\x89\x8a"
    cdef unsigned char *inside = b"\x80\x00\x00\x00\x89\x8a\x80\x80"
    cdef unsigned char *others = b"\x88\x00\x80\x03\x09\x01\x81\x88"
    cdef uint32_t length = _below(&fuzz.chance, 9 if _below(&fuzz.chance, 5) else 140)
    cdef bint masked = not client
    cdef uint32_t i, at = 2
    if fuzz.size + length + 16 > STREAM_BYTES:
        return
    if _below(&fuzz.chance, 40) == 0:
        masked = not masked
    out[0] = (inside if fuzz.inside else opcodes)[_below(&fuzz.chance, 8)]
    if _below(&fuzz.chance, 30) == 0:
        out[0] = others[_below(&fuzz.chance, 8)]
    if out[0] & 0x0F < 3:
        fuzz.inside = out[0] & 0x80 == 0
    if _below(&fuzz.chance, 50) == 0:
        out[0] |= <unsigned char>_below(&fuzz.chance, 8) << 4
    out[1] = <unsigned char>min(length, <uint32_t>126)
    if length >= 126:
        out[2] = 0
        out[3] = <unsigned char>length
        at = 4
    if masked:
        out[1] |= 0x80
        for i in range(4):
            out[at + i] = <unsigned char>_below(&fuzz.chance, 256) if _below(&fuzz.chance, 3) else 0
        at += 4
    for i in range(length):
        out[at + i] = <unsigned char>_below(&fuzz.chance, 128)
        if masked:
            out[at + i] ^= out[at - 4 + i % 4]
    if out[0] & 0x0F == 8 and length > 1:
        out[at] = 3 ^ (out[at - 4] if masked else 0)
        out[at + 1] = 0xE8 ^ (out[at - 3] if masked else 0)
    fuzz.size += at + length


cdef bint _take_all(MessageFuzz *fuzz, Decoded *it) noexcept nogil:
    """Take what is whole into the digest. False if the ring holds what it should not."""
    cdef Record record
    cdef uint32_t i
    while it.ws.whole:
        ring_copy(&it.ring, &record, RECORD_HEADER, 0)
        if record.size > ring_len(&it.ring) - RECORD_HEADER:
            return False
        it.digest = (it.digest ^ record.kind) * <uint64_t>0x100000001B3
        it.digest = (it.digest ^ record.size) * <uint64_t>0x100000001B3
        for i in range(record.size):
            it.digest = (it.digest ^ ring_at(&it.ring, RECORD_HEADER + i)) * <uint64_t>0x100000001B3
        ring_discard(&it.ring, fuzz.pool, RECORD_HEADER + record.size)
        it.ws.whole -= 1
        it.messages += 1
    return ring_len(&it.ring) == (RECORD_HEADER + it.ws.size if it.ws.opened else 0)


cdef bint _feed_piece(MessageFuzz *fuzz, Decoded *it, uint32_t at, uint32_t n) noexcept nogil:
    """Feed some bytes, in memory of their own size: a sanitizer sees a byte too much."""
    cdef unsigned char *piece = <unsigned char *>calloc(1, n)
    cdef bint news = False
    cdef bint no_memory = False
    cdef uint32_t done = 0
    if piece == NULL:
        return False
    memcpy(piece, fuzz.stream + at, n)
    if it.ring.block == NULL and _below(&fuzz.chance, 2):       # so that records wrap
        ring_adopt(&it.ring, pool_take(fuzz.pool, 512), 0)
        it.ring.head = 0 - _below(&fuzz.chance, 700)
        it.ring.tail = it.ring.head
    while done < n and not no_memory:
        done += decoder_feed(&it.ws, &it.ring, fuzz.pool, piece + done, n - done, &news,
                             &no_memory)
    free(piece)
    if ring_len(&it.ring) == 0:
        ring_clear(&it.ring, fuzz.pool)
    return not no_memory


cdef void _begin_decoded(MessageFuzz *fuzz, Decoded *it, uint32_t drawn) noexcept nogil:
    memset(it, 0, sizeof(Decoded))
    it.ws.scan.spec = &fuzz.spec
    it.ws.client = drawn & 1
    it.ws.may_compress = drawn & 2
    it.ws.max_message = 1000 if drawn & 4 else 60
    it.ws.max_fragments = 1000 if drawn & 8 else 3


cdef bint _fuzz_decoder(MessageFuzz *fuzz) noexcept nogil:
    cdef Decoded whole, parts
    cdef uint32_t drawn = _below(&fuzz.chance, 16)
    cdef uint32_t at = 0
    cdef uint32_t n, i
    cdef bint right = True
    fuzz.size = 0
    fuzz.inside = False
    for i in range(1 + _below(&fuzz.chance, 12)):
        _put_random_frame(fuzz, drawn & 1)
    if fuzz.size == 0:
        return True
    for i in range(_below(&fuzz.chance, 2)):
        fuzz.stream[_below(&fuzz.chance, fuzz.size)] = <unsigned char>_below(&fuzz.chance, 256)
    _begin_decoded(fuzz, &whole, drawn)
    _begin_decoded(fuzz, &parts, drawn)
    right = _feed_piece(fuzz, &whole, 0, fuzz.size) and _take_all(fuzz, &whole)
    while right and at < fuzz.size:
        n = min(fuzz.size - at, 1 + _below(&fuzz.chance, 7 if _below(&fuzz.chance, 3) else 200))
        right = _feed_piece(fuzz, &parts, at, n)
        if right and _below(&fuzz.chance, 3):
            right = _take_all(fuzz, &parts)
        at += n
    right = right and _take_all(fuzz, &parts)
    fuzz.messages += whole.messages
    ring_clear(&whole.ring, fuzz.pool)
    ring_clear(&parts.ring, fuzz.pool)
    return right and (
        whole.digest == parts.digest and whole.messages == parts.messages
        and whole.ws.over == parts.ws.over and whole.ws.close_code == parts.ws.close_code
        and whole.ws.scan.answer_due == parts.ws.scan.answer_due
        and whole.ws.pong_size == parts.ws.pong_size
        and memcmp(whole.ws.pong, parts.ws.pong, whole.ws.pong_size) == 0
        and whole.ws.kind == parts.ws.kind
    )


def fuzz_messages(uint64_t first, uint64_t count):
    """Decode random streams of frames, mostly right ones, at once and in random pieces, and
    compare what comes of both. Returns how many messages there were. Raises AssertionError
    with the number of a stream that went wrong."""
    cdef MessageFuzz fuzz
    cdef uint64_t number = first
    cdef bint right = True
    memset(&fuzz, 0, sizeof(MessageFuzz))
    fuzz.spec.kind = MESSAGES
    fuzz.pool = pool_new(1 << 20)
    fuzz.stream = <unsigned char *>calloc(1, STREAM_BYTES)
    try:
        if fuzz.pool == NULL or fuzz.stream == NULL:
            raise MemoryError
        with nogil:
            while right and number < first + count:
                fuzz.chance.random = (number + 1) * <uint64_t>0x9E3779B97F4A7C15
                right = _fuzz_decoder(&fuzz)
                number += 1
    finally:
        free(fuzz.stream)
        if fuzz.pool != NULL:
            pool_free(fuzz.pool)
    if not right:
        raise AssertionError(f"stream {number - 1}")
    return fuzz.messages


def text_in(list pieces) -> str | None:
    """The text that these pieces of bytes make, each checked when it comes; None if they make
    none."""
    cdef wk_utf8 state
    cdef bytes piece, whole = b"".join(pieces)
    memset(&state, 0, sizeof(state))
    for piece in pieces:
        if not wk_utf8_check(&state, <const unsigned char *><const char *>piece, len(piece)):
            return None
    return None if state.missing else text_of(whole, len(whole))


@cython.no_gc
cdef class Door:
    """Admission with a Python face, for tests: connections are known by a number.

    Args:
      native: whose.
    """
    cdef NativeAdmission _native
    cdef dict _places
    cdef int _next
    cdef wk_u32 _waiting

    def __cinit__(self, NativeAdmission native not None):
        self._native = native
        self._places = {}

    def __dealloc__(self):
        for number in list(self._places):
            self.leave(number)

    @property
    def count(self):
        return self._native.table.count

    @property
    def addresses(self):
        return self._native.table.addresses

    @property
    def waiting(self):
        """Ports that wait for room."""
        return wk_u32_load(&self._waiting)

    def reserve(self, uint64_t now):
        """True if there is a place; else a port waits, and this is the time until which, or
        None."""
        cdef uint64_t again = 0
        if admission_reserve(self._native.table, now, &self._waiting, &again):
            return True
        return None if again == <uint64_t>-1 else again

    def give_back(self):
        return admission_give_back(self._native.table)

    def wait_no_more(self):
        admission_wait_no_more(self._native.table, &self._waiting)

    def enter(self, bytes address, uint64_t now):
        """(the connection's number or None, the reason, whether a port waits for the place)"""
        cdef Place *place = place_new()
        cdef Peer peer
        cdef bint room = False
        if place == NULL or not place_prepare(place, self._native.table):
            place_free(place)
            raise MemoryError
        if address is not None:
            peer_of_bytes(address, &peer)
        cdef Reason reason = admission_enter(
            self._native.table, place, NULL if address is None else &peer, now, &room
        )
        if reason != ADMITTED:
            place_free(place)
            return None, reason, room
        self._next += 1
        self._places[self._next] = <size_t>place
        return self._next, reason, room

    def name(self, int number, bytes address):
        """(the reason, whether a port waits for the place)"""
        cdef Peer peer
        cdef bint room = False
        peer_of_bytes(address, &peer)
        reason = admission_name(<Place *><size_t>self._places[number], &peer, &room)
        return reason, room

    def leave(self, int number):
        """Whether a port waits for the place."""
        return admission_leave(<Place *><size_t>self._places.pop(number))


def all_cached(int fd, int64_t offset, int64_t count):
    """Whether a part of a file is in the page cache; False also where the kernel cannot say."""
    return wk_all_cached(fd, offset, count)


# --- what an engine measures --------------------------------------------------------


def bucket_of_time(uint64_t ns):
    return time_bucket(ns)


def bucket_of_size(uint64_t n):
    return size_bucket(n)


def has_posted(Core core):
    """Whether completions wait whose time was noted, or in-loop, where that is not done."""
    return core.hub.in_loop or wk_u64_load(&core.hub.measures.posted_at) != 0
