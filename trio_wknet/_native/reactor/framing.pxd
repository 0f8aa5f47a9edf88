# Where frames end: scanners of a connection's inbound ring.
#
# A scan looks at one frame at a time, the first that was not taken. It is asked by the
# reactor, each time the ring holds what was still needed (`rcvlowat`), and by the Trio side,
# which takes the frame and asks about the next one. So a frame is looked at by whoever needs
# to know, and nothing of it twice: the state says where to go on. The bytes of a frame
# whose length is known are not looked at at all.
#
# Offsets count from the ring's first unread byte, as ring_find's do; a frame begins at
# `base`, which is 0 but for a side that takes several in one visit.
#
# A frame larger than the ring may hold leaves it in pieces, for the memory it will be
# delivered in; `moved` says how much of it has. A delimiter is searched for before bytes
# are moved, and what may begin one stays.
#
# Nothing is allocated here, and nothing by what a peer announces. An announced length is
# checked where its last byte came, by sums that cannot overflow: a frame of 2**63 bytes is
# refused with 4 KiB of it in memory or none.
#
# Access (slot.pxd): `spec` and `framing` are const; the next group is of kind lock; the
# last one is the Trio side's. The Trio side links a scan to its slot, and unlinks it before
# it lets go of the slot, both under the lock, under which the reactor looks for it.
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from .ring cimport Ring

cdef enum:
    MAX_FRAME = 1 << 30             # bytes
    MAX_FRAME_HEADER = 65536        # bytes of header, of what is stripped, of a delimiter
    MAX_VARINT = 10                 # bytes
    MAX_WHOLE_FRAME = 1 << 20       # bytes of a frame that may wait in the ring to be whole

cdef enum FramingKind:
    LENGTH_PREFIXED = 1
    DELIMITED = 2
    FIXED_LENGTH = 3
    VARINT_PREFIXED = 4
    MESSAGES = 5                    # not scanned: the ring holds a WebSocket's messages

# A framing, as _framing.py has checked it.
cdef struct FramingSpec:
    uint8_t kind
    uint8_t size                    # LENGTH_PREFIXED: bytes of the length field
    uint8_t little_endian
    uint8_t keep                    # DELIMITED: the delimiter is delivered with its frame
    uint32_t offset                 # LENGTH_PREFIXED: bytes before the length field
    int32_t adjustment              # added to the length: bytes behind the field
    uint32_t strip                  # bytes at the front that are not delivered
    uint32_t max_frame              # bytes of a frame as delivered; FIXED_LENGTH: of each
    uint32_t delimiter_length
    const unsigned char *delimiter

# What a look at a frame found.
cdef enum FrameFound:
    FRAME_WAIT = 0                  # it is not whole: `needed` says what is missing
    FRAME_READY = 1
    FRAME_TOO_LONG = 2              # these two for good
    FRAME_MALFORMED = 3

cdef struct FrameCounters:
    uint64_t received               # frames
    uint64_t received_bytes         # as delivered
    uint64_t receive_batches        # visits that gave frames
    uint64_t sent
    uint64_t sent_bytes
    uint64_t send_batches

cdef struct FrameScan:
    const FramingSpec *spec
    void *framing                   # a reference to the object that has it
    # lock: the first frame that was not taken
    uint32_t total                  # bytes, all that is not delivered included; 0: unknown
    uint32_t skip                   # of these, how many at the front are not delivered,
    uint32_t tail                   # and how many at the end
    uint32_t moved                  # how many have left the ring
    uint32_t looked                 # in the ring, from its begin: no need to look again
    uint32_t needed                 # in the ring, from its begin, for a look to make sense
    uint64_t announced              # the length that was refused
    uint8_t failure                 # FRAME_TOO_LONG or FRAME_MALFORMED, from then on
    uint8_t knows_announced         # it is a length
    # trio
    uint32_t users                  # its slot, and the channels that were made for it
    uint8_t served                  # event mode: `Listener.serve_frames` receives
    uint32_t filled                 # bytes of `partial` that are written
    void *channel                   # event mode: the channel over it, borrowed; or NULL
    void *partial                   # bytes, a reference: what was moved and is delivered
    void *head                      # and what was moved and is not; or NULL
    void *hub                       # its connection's Hub, which counts `partial`
    FrameCounters counters
    # of MESSAGES (websocket.pxd), lock: what the reactor is to send by itself
    uint8_t answer_due


cdef inline uint32_t frame_payload(FrameScan *scan) noexcept nogil:
    """How many bytes of a frame that is READY are delivered."""
    return scan.total - scan.skip - scan.tail


cdef inline void frame_next(FrameScan *scan) noexcept nogil:
    """The frame was taken: the next one begins behind it."""
    scan.total = 0
    scan.moved = 0
    scan.looked = 0


cdef inline void frame_moved(FrameScan *scan, uint32_t n) noexcept nogil:
    """So many bytes of the frame have left the ring, or came past it. Under the lock,
    along with taking them out."""
    scan.moved += n
    scan.looked -= min(scan.looked, n)


cdef FrameFound frame_scan(FrameScan *scan, Ring *ring, uint32_t base) noexcept nogil
cdef uint32_t frame_least(const FramingSpec *spec, uint32_t inbound) noexcept nogil
cdef uint32_t frame_lowat(FrameScan *scan, Ring *ring, uint32_t inbound) noexcept nogil
