# The slot: one struct of the matrix, for a connection, a listener or a port of
# one. Who may touch what, and when.
#
# Four kinds of access:
#   const    written before the slot is published to the other side, then read
#   lock     under `lock`, by either side. Nobody sleeps, calls the kernel or
#            runs Python code while holding it; the longest thing done under it
#            is one copy of at most a receive buffer.
#   reactor / trio   that side's own, touched by nobody else
#
# The descriptor. The reactor side alone closes it, and only after the Trio side
# has let go (CLOSE, DROP or ABORT below) or if it never held the connection. So
# the Trio side may send on `fd` at any time before it lets go, without asking:
# the number cannot be recycled under its hands.
#
# The slot. Letting go is the Trio side's last touch. The reactor closes the
# descriptor (after lingering) and marks `up` with RELEASED: if `up` was not
# queued, the reactor returns the slot to the matrix once its event batch ends;
# if it was, the drain that takes the letter returns it. Either way a generation
# passes, and every handle to the old connection is void.
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from trio_wknet._native.atomics cimport wk_u32, wk_u64
from trio_wknet._native.linux cimport pthread_mutex_t
from trio_wknet._native.mailbox cimport Letter
from trio_wknet._native.ring cimport Ring

cdef enum Kind:
    FREE = 0
    CONNECTION = 1
    LISTENER = 2        # a queue of accepted connections; has no descriptor
    PORT = 3            # a listening socket that feeds a LISTENER

# Bits of `up`: what the reactor tells the Trio side.
cdef enum Completion:
    READABLE = 1        # bytes, the end, or an error, for whoever waits to receive
    WRITABLE = 2        # the socket takes bytes again, or is broken
    FLUSHED = 4         # the outbound ring is empty, or will never be sent
    ENDED = 8           # the peer finished sending, or the connection broke
    ACCEPTED = 16       # connections wait for accept(), or a port failed
    DETACHED = 32       # the reactor has forgotten the descriptor
    RELEASED = 64       # whoever takes this letter returns the slot

# Bits of `down`: what the Trio side, or the reactor that accepted, asks for.
cdef enum Command:
    ADD = 1             # start to watch the descriptor
    RESUME = 2          # there is room: read again, or accept again
    FLUSH = 4           # the outbound ring has bytes
    DETACH = 8          # forget the descriptor, leave it open
    CLOSE = 16          # flush, FIN, linger
    DROP = 32           # close at once; the kernel still sends what it holds
    ABORT = 64          # close with a reset

# The reactor's view of a connection, in the only order they can follow.
cdef enum State:
    NEW = 0             # not yet watched
    OPEN = 1
    FLUSHING = 2        # let go; the outbound ring is on its way
    LINGERING = 3       # FIN sent: reads and discards until the peer ends
    FORGOTTEN = 4       # detached: not watched, the descriptor is the Trio side's
    GONE = 5

cdef struct Limits:
    uint32_t inbound        # bytes: reading pauses at this mark, resumes at half
    uint32_t outbound       # bytes: send_nowait refuses past this mark
    uint32_t linger_bytes   # bytes discarded at most while closing
    uint32_t linger_ms      # milliseconds that closing may take
    uint32_t accept_queue   # connections that may wait for accept()

# A link in a doubly linked list of slots.
cdef struct Link:
    Link *prev
    Link *next
    Slot *slot

cdef struct Slot:
    # These two outlive the connection; matrix.pyx resets all that follows them.
    wk_u64 handle           # generation << 32 | index
    pthread_mutex_t lock

    # const
    void *reactor           # its Reactor
    Slot *listener          # of a PORT
    bint keeps              # of a PORT: its reactor keeps what it accepts
    int32_t fd
    int32_t family
    uint8_t kind
    Limits limits
    uint64_t opened         # ns, monotonic

    # mail; the rules stand in mailbox.pxd
    Letter up
    Letter down

    # lock
    Ring inbound            # the reactor writes, the Trio side reads
    Ring outbound           # the Trio side writes, the reactor reads
    uint32_t wanted         # a receiver waits for so many bytes; 0: nobody waits
    int32_t error           # errno that broke the connection or port; 0: none
    int32_t foretold        # errno that epoll told of while paused, ahead of bytes
    bint ended              # the peer's FIN was read: every byte before it is in;
                            # of a LISTENER: no port is left to add to its queue
    bint hung_up            # FIN or reset was seen, perhaps ahead of unread bytes
    bint paused             # inbound is at its mark: the reactor does not read
    bint flush_wanted       # somebody waits for FLUSHED
    bint end_wanted         # somebody waits for ENDED
    # of a LISTENER
    Slot *oldest            # accepted and not yet taken, linked by `chain`
    Slot *newest
    uint32_t waiting        # how many
    bint accept_wanted      # somebody waits for ACCEPTED
    bint refusing           # closed: whatever is still accepted is dropped

    # The Trio side sets it before its last try to send, the reactor takes it at
    # EPOLLOUT (the argument stands at on_writable in transfer.pyx).
    wk_u32 writable_wanted
    wk_u32 users            # of a LISTENER: open ports, and the Trio side

    # reactor
    uint8_t state
    bint draining           # the outbound ring has bytes, as far as it knows
    bint shut               # FIN sent
    bint disarmed           # of a PORT: not watched for now
    uint32_t discarded      # bytes discarded while closing
    uint64_t deadline       # ns, while FLUSHING or LINGERING
    Link ready              # in the reactor's list of unfinished reads
    Link timed              # in its list of closing connections, or of ports
    Slot *chain             # in an accept queue, later in the dead list

    # statistics: each has one writer (sent_*: the Trio side), anyone reads
    wk_u64 received
    wk_u64 receive_calls
    wk_u64 last_received    # ns
    wk_u64 flushed          # sent by the reactor, from the outbound ring
    wk_u64 flush_calls
    wk_u64 last_flushed
    wk_u64 sent             # sent by the Trio side, directly
    wk_u64 send_calls
    wk_u64 last_sent
    wk_u64 accepted         # of a LISTENER
    wk_u32 starved          # of a LISTENER: ports disarmed for lack of descriptors

    # trio
    void *owner             # its Endpoint, a borrowed reference; NULL: none
