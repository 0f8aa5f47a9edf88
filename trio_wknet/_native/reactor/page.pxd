# The page that `trio-wknet top` reads: shared memory of one engine, written by its reactors and
# by its watch thread (trio/page.pyx), read by another process.
#
# All of it is words of 64 bits and bytes, so the layout is the same for any compiler;
# _top/layout.py has it for the reader, and VERSION changes with it.
#
# Each record has one writer, and a `sequence`: odd while it is written, and another number
# afterwards. A reader that finds it odd, or changed after it has copied the record, reads again.
# The writers never read what they have written, so a reader that writes into the page disturbs
# nobody but other readers. Readers write `beat` and `asked`.
#
# What a pass over the slots may read, in the thread of a reactor. It looks at slots of other
# reactors, too, and those may be given to a connection meanwhile. It loads the handle first
# (acquire), and then `reactor`; it goes on only if that is its own and the state is one of an
# open descriptor. Only this thread stores such a state in a slot of its own, and it stores GONE
# before the slot is returned. So a slot that another thread takes just then shows GONE, or
# the NEW and the NULL of its reset, and is passed over; a descriptor that is asked for its
# address cannot be closed meanwhile. Both sides of that are atomic (base/shared.pxd): the reset,
# the store of `reactor`, which follows that of `kind`, and these loads. And so is `claimed`, which
# the Trio side stores behind the fields that it resets.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ..base.atomics cimport wk_u32, wk_u64
from .hub cimport Job, Reactor
from .measure cimport TIME_BUCKETS

cdef enum:
    PAGE_MAGIC = 0x544E574F54504F54
    PAGE_VERSION = 1
    PAGE_NAME = 64          # bytes
    LOOP_AT = 512           # where the records begin
    TEXT_AT = 4096
    TEXT_SIZE = 65536
    SECTIONS_AT = TEXT_AT + TEXT_SIZE
    SECTION = 8192
    MAX_PORTS = 16
    RANKED = 16             # connections of each ranking
    MAX_ROWS = 48
    ADDRESS = 40            # a byte with the size, and the name, cut off

cdef struct PageHeader:
    uint64_t magic
    uint64_t version
    uint64_t size
    uint64_t pid
    uint64_t reactors       # 0: in-loop
    uint64_t opened         # ns
    wk_u64 beat             # readers change it while they watch
    wk_u64 asked            # readers change it to ask for the tasks
    wk_u64 answered         # the `asked` whose answer is in the text
    wk_u64 text_size
    wk_u64 closed           # the engine is closed
    uint8_t name[PAGE_NAME]

cdef struct LoopRecord:
    wk_u64 sequence
    uint64_t written_at     # ns, here and below, of the monotonic clock
    uint64_t asleep
    uint64_t running_since
    uint64_t posted_at
    uint64_t busy
    uint64_t batches
    uint64_t completions
    uint64_t lag
    uint64_t longest_lag
    uint64_t total_lag
    uint64_t wakes
    uint64_t unwatched
    uint64_t lags[TIME_BUCKETS]

cdef struct PortRow:
    uint64_t listener
    uint64_t accepted
    uint64_t waiting
    uint8_t address[ADDRESS]

cdef struct ConnRow:
    uint64_t id
    uint64_t received
    uint64_t sent
    uint64_t inbound        # bytes that the program has not taken
    uint64_t outbound       # bytes that the kernel has not taken
    uint64_t opened
    uint64_t moved_at
    uint64_t moved          # bytes in both directions since the pass before
    uint64_t moved_in       # ns between the two passes
    uint64_t state          # State, and 256 if reading pauses, 512 if the peer has finished
    uint64_t ranks          # bits: 1 << Ranking
    uint8_t address[ADDRESS]

cdef enum Ranking:
    BUSIEST = 0
    LARGEST = 1
    SLOWEST = 2
    RANKINGS = 3

cdef struct ReactorRecord:
    wk_u64 sequence
    uint64_t written_at
    uint64_t connections
    uint64_t turns
    uint64_t events
    uint64_t busy
    uint64_t pool_kept
    uint64_t pool_in_use
    uint64_t passed_at      # when the pass ended that the rows are of
    uint64_t inbound        # all together, in that pass
    uint64_t outbound
    uint64_t ports
    uint64_t rows
    uint64_t spare[3]
    PortRow port[MAX_PORTS]
    ConnRow row[MAX_ROWS]

# What the last pass saw of a slot.
cdef struct Seen:
    uint64_t handle
    uint64_t bytes

cdef struct Ranked:
    uint64_t handle
    uint64_t key
    uint64_t moved

# A reactor's writer. All but `pending` belongs to its thread.
cdef struct PageWriter:
    Job job
    wk_u32 pending          # the job is given, and not done
    ReactorRecord *record
    Seen *seen
    uint32_t seen_size
    uint32_t cursor         # of the pass
    uint64_t began_at       # this pass, and the one before
    uint64_t began_before
    uint64_t inbound
    uint64_t outbound
    uint32_t ports
    uint32_t count[RANKINGS]
    Ranked best[RANKINGS][RANKED]
    PortRow port[MAX_PORTS]

cdef void page_write_reactor(Reactor *reactor, Job *job) noexcept nogil
