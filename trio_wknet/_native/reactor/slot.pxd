# The slot: one struct of the slot map, for a connection, a listener or a port of
# one. Who may touch what, and when.
#
# Kinds of access:
#   const    written before the slot is published to the other side, then read
#   lock     under `lock`, by either side. Nobody sleeps or runs Python code
#            while holding it, nor calls the kernel, but for what the allocator
#            does and a bell that does not block (wake.pyx). Under it is done at
#            most: a copy of a receive buffer; a move to a larger block, of 1 MiB
#            as a rule, of all there is where a search for a delimiter goes on
#            beyond that (ring_expect); a search of what was not searched before;
#            a copy of what send_nowait could not send. What is larger is copied in
#            pieces, and given back to the system after (ring_pin_large).
#   mail     atomics that one side writes for the other to take
#   reactor / trio   written by that side alone. Atomics among them may be read
#            by the other.
#
# Layout. 64-byte lines, each of one kind, so that neither side's own fields ever
# share a line with what the other side writes: counting bytes on one core takes
# no line away from the other. What both must write, rings and notifications, moves
# between the cores anyway when work is handed over, and stands together: an echo
# touches lines 0, 1 and 3 on both sides, 4 on the reactor's and 6 on Trio's.
# The sizes are asserted where slot_map.pyx allocates slots, on 64-byte boundaries.
# They are those of any 64-bit Linux: the one type that differs is the lock, of 40
# bytes on x86-64 and 48 on aarch64, and the first line has room for either.
#
#   line 0     identity, const, and the lock
#   line 1     lock: the rings and what is told along with them
#   line 2     const: who serves it, within which bounds
#   line 3     mail, and the one const that is read along with it
#   lines 4,5  reactor
#   line 6     trio. Not reset by whoever takes the slot, but by the Trio side when
#              it claims the connection: it may look at a slot at any time, to list
#              the connections, and must not find another thread writing there.
#
# The descriptor. The reactor side alone closes it, and only after the Trio side
# has let go (CLOSE, DROP or ABORT below) or if it never held the connection. So
# the Trio side may send on `fd` at any time before it lets go, without asking:
# the number cannot be recycled under its hands.
#
# Who receives. The reactor while `paused` is not set, which it alone sets; the Trio
# side while it is, which it alone takes back. Both under the lock, so what one has
# received and counted (`received` and its neighbours) is there for the other. When
# bytes came either may note at any time: the one time is as good as the other.
#
# The slot. Letting go is the Trio side's last touch. The reactor closes the
# descriptor (after lingering) and marks `up` with RELEASED: if `up` was not
# queued, the reactor returns the slot to the slot map once its event batch ends;
# if it was, the drain that takes the notification returns it. Either way a generation
# passes, and every handle to the old connection is void.
#
# A LISTENER's slot is reached from several reactors, those of its ports, and from the
# Trio side. Each holds a reference, counted in `users`: a port through its `listener`.
# Letting go of it is the holder's last touch, marks of `up` included; whoever lets go
# of the last one releases the slot.
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

from ..base.atomics cimport wk_u32, wk_u64
from ..base.linux cimport SPARE_OF_MUTEX, pthread_mutex_t
from .mailbox cimport Notification
from .ring cimport Ring
from .wheel cimport WheelNode

cdef enum Kind:
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
    RELEASED = 64       # whoever takes this notification returns the slot
    IDLE = 128          # its idle rule came due
    TRIM = 256          # of the beacon: the Trio side's pool has more than it needs
    SHORTAGE = 512      # of a LISTENER, and of the beacon for connections: something
                        # has begun to wait for descriptors or memory, or goes on

# Bits of `down`: what the Trio side, or the reactor that accepted, asks for.
cdef enum Command:
    ADD = 1             # start to watch the descriptor
    RESUME = 2          # there is room: read again, or accept again
    FLUSH = 4           # the outbound ring has bytes
    DETACH = 8          # forget the descriptor, leave it open
    CLOSE = 16          # flush, FIN, linger
    DROP = 32           # close at once; the kernel still sends what it holds
    ABORT = 64          # close with a reset
    WATCH = 128         # the idle rule has become stricter: look at it again

# The reactor's view of a connection, in the only order they can follow.
cdef enum State:
    NEW = 0             # not yet watched; a PORT is NEW or OPEN, then GONE
    OPEN = 1
    FLUSHING = 2        # let go; the outbound ring is on its way
    LINGERING = 3       # FIN sent: reads and discards until the peer ends
    FORGOTTEN = 4       # detached: not watched, the descriptor is the Trio side's
    GONE = 5

# Where a connection of event mode is with its callbacks (events.pyx).
#
#              QUIET     RUNNING           ASKED
#   begins     RUNNING   -                 -
#   WouldBlock -         ASKED             ASKED     of a receive that knows how much
#   takes      -         -                 RUNNING   bytes, or waits for them in vain
#   ends       -         QUIET             QUIET
cdef enum Phase:
    QUIET = 0           # none runs; the reactor tells of news
    RUNNING = 1         # one does, in the drain or as a task; news wait for its end
    ASKED = 2           # the same, and it is to be called once there is what it asked for

# In `idle_since`: no rule, but exact times are wanted, by a tracer.
cdef enum:
    EXACT = 1

cdef struct Limits:
    uint32_t inbound        # bytes: reading pauses at this mark, resumes at half
    uint32_t outbound       # bytes: send_nowait refuses past this mark
    uint32_t linger_bytes   # bytes discarded at most while closing
    uint32_t linger_ms      # milliseconds that closing may take
    uint32_t accept_queue   # connections that may wait for accept()
    # The idle timeout, as a rule (idle.pxd): the Trio side closes the connection
    # when it comes due; 0: none. Trio's to change once it claimed the connection.
    uint32_t idle

# A link in a doubly linked list of slots.
cdef struct Link:
    Link *prev
    Link *next

cdef struct Slot:
    # --- line 0. slot_map.pyx resets all up to line 6.
    wk_u64 handle           # generation << 32 | index; 0: the slot is free
    pthread_mutex_t lock
    int32_t fd
    uint16_t family
    uint8_t kind
    uint8_t pinned           # of a PORT: its reactor keeps what it accepts
    uint8_t spare_identity[SPARE_OF_MUTEX]

    # --- line 1: lock
    Ring inbound            # the reactor writes, the Trio side reads
    Ring outbound           # the Trio side writes, the reactor reads
    uint32_t rcvlowat         # a receiver waits for so many bytes; 0: nobody waits
    int32_t error           # errno that broke the connection or port; 0: none
    int32_t pending_error        # errno that the socket told of, once, ahead of bytes:
                            # while paused, or to whoever sent; stands at their end
    uint8_t ended           # the peer's FIN was read: every byte before it is in;
                            # of a LISTENER: no port is left to add to its queue
    uint8_t hung_up         # FIN or reset was seen, perhaps ahead of unread bytes
    uint8_t paused          # inbound was at its mark: the reactor does not read
    uint8_t flush_wanted    # somebody waits for FLUSHED
    uint8_t end_wanted      # somebody waits for ENDED
    # of a LISTENER
    uint8_t accept_wanted   # somebody waits for ACCEPTED
    uint8_t refusing        # closed: whatever is still accepted is dropped
    uint8_t open_ended      # `wanted` may rise byte by byte: who waits looks for something
    uint32_t waiting        # accepted and not yet taken: how many
    Slot *oldest            # linked by `chain`

    # --- line 2: const, and a LISTENER's other end of its queue (lock)
    void *reactor           # its Reactor
    Slot *listener          # of a PORT
    Limits limits
    Slot *newest
    Slot *chain             # the next in an accept queue (lock), later in the
                            # reactor's dead list
    uint64_t timeout_since  # ns: what limits.idle counts from, if nothing moved (trio)

    # --- line 3: mail; the rules of notifications stand in mailbox.pxd
    Notification completion
    Notification command
    wk_u64 idle_since       # ns: what an idle rule counts from, if nothing moved;
                            # EXACT: there is none, and 0: there never was one
    wk_u32 idle             # the idle rule that the reactor watches; 0: none
    # The Trio side sets it before its last try to send, the reactor takes it at
    # EPOLLOUT (the argument stands at on_writable in transfer.pyx).
    wk_u32 writable_wanted
    wk_u32 users            # of a LISTENER: open ports, and the Trio side
    wk_u32 ports            # of a LISTENER: ports that may still add to its queue
    uint64_t opened         # ns, const; idle rules read it along with idle_since

    # --- lines 4 and 5: reactor
    WheelNode timer         # in its wheel: idle, closing, or a port to re-arm
    uint64_t deadline       # ns: the next look while FLUSHING or LINGERING, or at what is
                            # disarmed
    Link ready              # in its list of unfinished reads, or of what is disarmed
    wk_u64 received         # statistics, here and below; while paused these three,
                            # and `noticed`, are the Trio side's
    wk_u64 receive_calls
    wk_u64 last_received    # ns
    wk_u64 flushed          # sent by the reactor, from the outbound ring
    wk_u64 flush_calls
    wk_u64 last_flushed     # ns
    wk_u64 accepted         # of a LISTENER
    wk_u32 starved          # of a LISTENER: ports that are disarmed
    wk_u32 shortage         # of a LISTENER: the errno of the last time that began,
    wk_u32 shortages        # and how many times there were
    uint32_t discarded      # bytes discarded while closing
    wk_u64 noticed          # ns: what arrived at last_received was told of by
                            # epoll; kept along with exact times only
    uint8_t state
    uint8_t draining        # the outbound ring has bytes, as far as it knows
    uint8_t shut            # FIN sent
    uint8_t disarmed        # not watched for now, for lack of descriptors or memory
    uint8_t leaving         # of a PORT: closes once it has accepted what is queued
    uint8_t acknowledged    # while LINGERING: the peer's system had all, at the last look
    uint8_t spare_reactor[2]
    uint64_t linger_until   # ns: the end of FLUSHING and LINGERING

    # --- line 6: trio
    void *owner             # its Endpoint, a borrowed reference; NULL: none
    void *server            # its EventServer, borrowed, in event mode; else NULL
    void *context           # the application's object, a reference, in event mode
    wk_u64 sent             # sent directly, by the Trio side
    wk_u64 send_calls
    wk_u64 last_sent        # ns
    uint32_t taken          # bytes taken out of the inbound ring, modulo 2**32
    uint32_t seen           # event mode: taken + unread at the last callback; taken - 1 if
                            # that asked for more
    int32_t send_error      # errno that broke sending, for good
    uint8_t claimed         # the application knows it, or may
    uint8_t eof_sent
    uint8_t queued          # the outbound ring had bytes when last looked at
    uint8_t phase           # a Phase


cdef inline uint32_t take_acceptor(Slot *listener) noexcept nogil:
    """The bits that tell whoever waits to accept, if somebody does; under the lock."""
    if not listener.accept_wanted:
        return 0
    listener.accept_wanted = False
    return ACCEPTED


cdef inline Slot *slot_of_completion(Notification *notification) noexcept nogil:
    return <Slot *>(<char *>notification - <size_t>&(<Slot *>NULL).completion)


cdef inline Slot *slot_of_command(Notification *notification) noexcept nogil:
    return <Slot *>(<char *>notification - <size_t>&(<Slot *>NULL).command)


cdef inline Slot *slot_of_ready(Link *link) noexcept nogil:
    return <Slot *>(<char *>link - <size_t>&(<Slot *>NULL).ready)
