# WebSocket on the reactor (RFC 6455): frames become messages before Trio hears of them.
#
# A connection that speaks WebSocket has a decoder between what is received and the inbound
# ring. The ring holds messages then, not the peer's bytes:
#
#   record = RECORD_HEADER bytes (a Record) + the message, unmasked
#
# A record is a whole message: its fragments are joined as they come. The last one may be of a
# message that is not whole yet; `whole` counts the others, and the Trio side takes no more
# than these. Text is known to be UTF-8 when it is whole.
#
# Control frames never enter the ring. A ping's payload waits in the decoder for the reactor to
# send the pong (answer.pyx), between two messages of whoever sends; of several pings that wait
# the last is answered (5.5.3). A pong is compared with the pings that were sent: one confirms
# all that were sent before it, and what was never asked for is ignored. A close frame, or
# input that the protocol forbids, is the end (`over`): the ring keeps the messages before it,
# and what comes behind it is discarded.
#
# Memory. A message is refused at the header of the frame that makes it too large. It grows
# with what has come: a block is at most AHEAD times as large as that, up to MAX_AHEAD bytes,
# and twice as large beyond. An empty fragment takes none, and the number of fragments is
# bounded. A message that is not whole lifts the mark of inbound bytes while it is the ring's
# first (transfer.pyx), since nobody could take anything; else the mark is what it always is,
# except that a receive, once begun, may pass it: a frame of 2 bytes becomes a record of 8, so
# by up to four times a receive.
#
# Closing. `goodbye` is set, under the lock, before our close frame is queued: by the decoder
# for the answer to the peer's, or for an error, and by the Trio side for its own. Whoever sends
# data has to look at it while the sending side is held (sender.pxd), or in the visit to the
# lock in which a message is queued. So nothing follows a close frame.
#
# Access (slot.pxd): the role and the bounds are const; all else is of kind lock, but for what
# is said to be otherwise. The decoder's memory begins with a FrameScan, as which the slot knows
# it, and the rules for linking are the same.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from ..base.atomics cimport wk_u32, wk_u32_load_relaxed
from ..base.utf8 cimport wk_utf8
from .framing cimport MESSAGES, FrameScan
from .pool cimport Pool
from .ring cimport Ring
from .slot cimport Slot
from .wheel cimport NEVER

cdef enum:
    RECORD_HEADER = 8           # bytes
    MAX_MESSAGE = 1 << 29       # bytes
    MAX_CONTROL = 125           # bytes of a control frame's payload
    MAX_HEADER = 14             # bytes
    MAX_ANSWER = 6 + MAX_CONTROL
    COMPRESSED = 0x40           # beside an opcode, RSV1 (RFC 7692)

cdef enum Opcode:
    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSING = 8
    PING = 9
    PONG = 10

# What the reactor is to send; the close frame is the last. Bits of `answer_due`.
cdef enum Due:
    PONG_DUE = 1
    PING_DUE = 2
    CLOSE_DUE = 4
    KEEP_ALIVE_DUE = 8          # a ping of the reactor's own

# Why nothing more is decoded.
cdef enum Over:
    NOT_OVER = 0
    CLOSED_BY_PEER = 1
    FAILED = 2                  # the peer has done what the protocol forbids

cdef enum CloseCode:
    GOING_AWAY = 1001
    NO_CODE = 1005              # the peer's close frame was empty
    PROTOCOL_ERROR = 1002
    BAD_TEXT = 1007
    TOO_BIG = 1009
    INTERNAL_ERROR = 1011

cdef struct Record:
    uint32_t size               # of the message; not known while it is not whole
    uint8_t kind                # TEXT or BINARY
    uint8_t compressed
    uint16_t spare

# A ping of ours that the peer has not answered. Trio allocates and frees it.
cdef struct Ping:
    Ping *next
    uint64_t number
    uint8_t sent
    uint8_t size
    unsigned char payload[MAX_CONTROL]

cdef struct Decoder:
    FrameScan scan              # of kind MESSAGES
    # const
    uint32_t max_message        # bytes
    uint32_t max_fragments
    uint8_t client              # our role: a client masks, and its peer does not
    uint8_t may_compress        # it was negotiated
    # lock: the frame that is being read
    uint8_t header_size         # bytes of its header that came in pieces
    unsigned char header[MAX_HEADER]
    uint8_t in_payload
    uint8_t opcode
    uint8_t final
    uint32_t left               # bytes of its payload still to come
    uint32_t done               # and those that came
    unsigned char key[4]
    uint8_t control_size
    unsigned char control[MAX_CONTROL]
    # lock: the message that is not whole
    uint8_t kind                # TEXT or BINARY; 0: there is none
    uint8_t compressed
    uint8_t opened              # its record has begun, and is the ring's last
    uint32_t size
    uint32_t fragments
    wk_utf8 utf8
    # lock: what came of it
    uint32_t whole              # records
    uint8_t discards            # the Trio side closes: messages are dropped
    uint8_t over
    uint16_t close_code         # of the peer's close frame, or what it was refused with
    uint8_t reason_size
    unsigned char reason[MAX_CONTROL]
    # lock: what to send
    uint8_t answering           # the reactor is sending what is due
    wk_u32 goodbye              # our close frame is sent, or will be, and nothing after it.
                                # Set under the lock
    uint8_t pong_size
    unsigned char pong[MAX_CONTROL]
    uint8_t goodbye_size
    unsigned char goodbye_payload[MAX_CONTROL]
    Ping *pings                 # the first of a list, in order
    uint64_t confirmed          # the number of the last ping that the peer has answered
    uint64_t pings_answered     # statistics
    # lock: keep-alive (keep_alive.pyx)
    uint32_t ping_ms            # without bytes from the peer, and then it is sent a ping;
                                # 0: never
    uint32_t pong_ms            # without bytes after that ping, and then it has gone
    uint64_t silent_since       # ns: counts from here, or from the last byte received
    uint64_t pinged             # ns: when it was sent that ping; 0: it was not
    uint64_t received           # bytes, at that time
    # trio
    void *observer              # an Observer, borrowed: whom CONTROL is for; or NULL
    void *agreed                # what the handshake agreed on, a reference; or NULL
    uint64_t pings_sent
    uint8_t begun_here          # our close frame was the first, and the Trio side's


cdef inline uint64_t keep_alive_due(Decoder *ws, uint64_t received,
                                    uint64_t last_received) noexcept nogil:
    """When keep-alive has something to do (ns), if no more bytes come; under the lock."""
    if not ws.ping_ms or ws.over or wk_u32_load_relaxed(&ws.goodbye):
        return NEVER
    if ws.pinged and received == ws.received:
        return ws.pinged + <uint64_t>ws.pong_ms * 1000000
    return max(ws.silent_since, last_received) + <uint64_t>ws.ping_ms * 1000000


cdef inline Decoder *decoder_of(Slot *slot) noexcept nogil:
    """Under the lock, or in Trio's thread; NULL if the connection speaks no WebSocket."""
    cdef FrameScan *scan = slot.by_kind.scan
    if scan == NULL or scan.spec.kind != MESSAGES:
        return NULL
    return <Decoder *>scan


cdef uint32_t decoder_feed(Decoder *ws, Ring *ring, Pool *pool, const unsigned char *data,
                           uint32_t n, bint *news, bint *no_memory) noexcept nogil
cdef void decoder_fail(Decoder *ws, Ring *ring, Pool *pool, CloseCode code,
                       const char *reason) noexcept nogil
cdef bint decoder_say_goodbye(Decoder *ws, uint32_t code, const void *reason,
                              size_t size) noexcept nogil
cdef void decoder_discard(Decoder *ws, Ring *ring, Pool *pool) noexcept nogil
cdef uint32_t decoder_answer(Decoder *ws, unsigned char *out, const unsigned char *key,
                             Due *what, uint64_t *number) noexcept nogil
cdef void decoder_answered(Decoder *ws, Due what, uint64_t number) noexcept nogil
cdef uint32_t put_header(unsigned char *out, uint8_t opcode, uint64_t size,
                         const unsigned char *key) noexcept nogil
cdef bint is_close_code(uint32_t code) noexcept nogil
