# The slot: one struct of the slot map, for a connection, a listener or a port (a
# listening socket). Who may touch what, and when.
#
# Kinds of access:
#   const    written before the slot is published to the other side, then read
#   lock     under `lock`, by either side. The holder neither sleeps nor runs Python
#            code, and does not call the kernel, except through the allocator and
#            to write an eventfd, which does not block (wake.pyx). The longest work
#            under the lock is: a copy of a receive buffer; the decoding of one, of up
#            to 1024 frames of WebSocket; a copy of 16 KiB of small frames or messages
#            into 256 objects; a move to a larger block,
#            normally of 1 MiB at most, of everything if a search for a delimiter
#            continues beyond that (ring_expect); a search of bytes that were not
#            searched before; a copy of what send_nowait could not send. Larger
#            amounts are copied in pieces, and returned to the system after the lock
#            is released (ring_pin_large).
#   mail     atomics that one side writes for the other to take
#   reactor / trio   written by that side alone. Atomics among them may be read
#            by the other.
#
# Layout. 64-byte cache lines, each of one kind, so that neither side's own fields ever
# share a line with what the other side writes: counting bytes on one core takes
# no line away from the other. What both sides must write, rings and notifications, moves
# between the cores anyway when work is handed over, and is kept together: an echo
# touches lines 0, 1 and 3 on both sides, 4 on the reactor's and 6 on Trio's.
# The sizes are asserted where slot_map.pyx allocates slots, on 64-byte boundaries.
# They are the same on any 64-bit Linux: the one type that differs is the lock, of 40
# bytes on x86-64 and 48 on aarch64, and the first line has room for either.
#
#   line 0     identity, const, and the lock
#   line 1     lock: the rings and what changes along with them
#   line 2     const: its reactor and its limits
#   line 3     mail, and the one const that is read along with it
#   lines 4,5  reactor
#   line 6     trio. It is reset when the Trio side claims the connection, not when the
#              slot is taken: the Trio side may look at a slot at any time, to list
#              the connections, and no other thread may write there then.
#
# The descriptor. Only the reactor side closes it, and only after the Trio side
# has let go (CLOSE, DROP or ABORT below), or if it never held the connection. So
# the number cannot be recycled while the Trio side holds the connection.
#
# Who sends. Either side, in turns: sender.pxd.
#
# Who receives. The reactor, while `paused` is not set, which only the reactor sets; the
# Trio side, while it is set, which only the Trio side clears. Both do so under the lock, so
# what one side has received and counted (`received` and its neighbours) is visible to the
# other. Either may note at any time when bytes came: one time is as good as the other.
#
# The slot. Letting go is the Trio side's last touch. The reactor closes the
# descriptor (after lingering) and marks `completion` with RELEASED. If `completion` was
# not queued, the reactor returns the slot to the slot map once its event batch ends;
# if it was, the drain that takes the notification returns it. Either way the generation
# changes, and every handle to the old connection is void.
#
# A LISTENER's slot is reached from several reactors, those of its ports, and from the
# Trio side. Each holds a reference, counted in `users`: a port through its `listener`.
# Dropping the reference is the holder's last touch, marks of `completion` included; whoever
# drops the last one releases the slot.
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

from ..base.atomics cimport wk_ptr, wk_u32, wk_u64
from ..base.linux cimport SPARE_OF_MUTEX, pthread_mutex_t
from .admission cimport Admission, Place
from .framing cimport FrameScan
from .mailbox cimport Notification
from .ring cimport Ring
from .wheel cimport WheelNode

cdef enum Kind:
    CONNECTION = 1
    LISTENER = 2        # a queue of accepted connections; has no descriptor
    PORT = 3            # a listening socket that feeds a LISTENER

# Bits of `completion`: what the reactor reports to the Trio side.
cdef enum Completion:
    READABLE = 1        # bytes, the end, or an error, for a task that waits to receive
    WRITABLE = 2        # the socket takes bytes again, or is broken
    FLUSHED = 4         # what was ahead is sent, or will never be
    ENDED = 8           # the peer finished sending, or the connection broke
    ACCEPTED = 16       # connections wait for accept(), or a port failed
    DETACHED = 32       # the reactor has forgotten the descriptor
    RELEASED = 64       # the drain that takes this notification returns the slot
    IDLE = 128          # its idle rule came due
    TRIM = 256          # of the beacon: the Trio side's pool has more than it needs
    SHORTAGE = 512      # of a LISTENER, and of the beacon for connections: something
                        # has begun to wait for descriptors or memory, or goes on
    CONTROL = 1024      # of a WebSocket: a ping was answered, or nothing more will come
    BROADCAST = 2048    # of the beacon: broadcasts are done
    RELIEVE = 4096      # of the beacon: connections are to be ended, for the budget

# Bits of `command`: what the Trio side, or the reactor that accepted, asks for.
cdef enum Command:
    ADD = 1             # start to watch the descriptor
    RESUME = 2          # there is room: read again, or accept again
    FLUSH = 4           # the outbound ring has bytes
    DETACH = 8          # forget the descriptor, leave it open
    CLOSE = 16          # flush, FIN, linger
    DROP = 32           # close at once; the kernel still sends what it holds
    ABORT = 64          # close with a reset
    WATCH = 128         # the idle rule has become stricter: look at it again
    ANSWER = 256        # of a WebSocket: control frames are due to be sent
    DIVERT = 512        # what its bytes are diverted to has something to do
    SHED = 1024         # it was ended, for the budget: drop what it holds
    RATE = 2048         # its rates have changed: what waits for them is to look again

# The reactor's view of a connection (`state`). Rules:
#   - Only its reactor changes it; Core.close does after the reactors were joined.
#   - It only ever increases: no transition leads back.
#   - Until the Trio side lets go it is NEW, OPEN or FORGOTTEN. CLOSE, DROP and ABORT are
#     that side's last command.
#   - In GONE the descriptor is closed, or was taken by `detach`; the slot is released.
#
#   from        event                                            to         by
#   ----------  -----------------------------------------------  ---------  -------------------
#   (taken)     the slot map resets the slot                     NEW        slot_map_take
#   NEW         ADD, or accepted here, and epoll watches it, or  OPEN       watch
#               refuses for good
#   NEW         the same, and epoll has no memory: tried again   NEW        watch, retry
#   NEW, OPEN   CLOSE                                            FLUSHING   close_gracefully
#   NEW, OPEN   DETACH                                           FORGOTTEN  forget
#   NEW, OPEN   DROP, ABORT                                      GONE       close_now, reset
#   FLUSHING    the outbound ring is empty: FIN                  LINGERING  _finish
#   FLUSHING,   the time or the bytes of lingering are used up,  GONE       on_closing_event
#   LINGERING   or the socket has an error
#   LINGERING   the peer finished                                GONE       on_closing_event
#   LINGERING   two looks in a row after the peer's kernel       GONE       on_closing_timeout
#               has acknowledged everything
#   FORGOTTEN   DROP, CLOSE, ABORT                               GONE       close_now
#   any         the engine closes                                GONE       Core.close
#
# A PORT is NEW, OPEN once epoll watches it (_arm), and GONE when it is closed (close_port,
# after it has accepted what is queued). A LISTENER has no descriptor and no state: its slot
# is released with the last of its `users`.
cdef enum State:
    NEW = 0             # not yet watched by epoll
    OPEN = 1
    FLUSHING = 2        # let go; the outbound ring is being sent
    LINGERING = 3       # FIN sent: reads and discards until the peer finishes
    FORGOTTEN = 4       # detached: not watched, the descriptor is the Trio side's
    GONE = 5

# Event mode: where a connection is with its callbacks (`phase`); events.pyx has the
# transitions. Outside of event mode it stays QUIET.
cdef enum Phase:
    QUIET = 0           # no callback runs; the reactor wakes the server for news
    RUNNING = 1         # one runs, in the drain or as a task; news wait for its end
    ASKED = 2           # the same, and a receive in it asked for more than there was: it is
                        # called again once there is enough

# In `idle_since`: no rule, but exact times are wanted, by a tracer.
cdef enum:
    EXACT = 1

cdef struct Limits:
    uint32_t inbound        # bytes: reading pauses at this mark, resumes at half
    uint32_t outbound       # bytes: send_nowait refuses past this mark
    uint32_t linger_bytes   # bytes discarded at most while closing
    uint32_t linger_ms      # milliseconds that closing may take
    # The idle timeout, as rules (idle.pxd): the Trio side closes the connection when one
    # comes due; 0: none. Trio's to change once it claimed the connection.
    uint32_t idle           # of both directions together, or of reading alone
    uint32_t idle_write     # of writing alone

cdef struct Slot

# What takes over the bytes of a CONNECTION for a time: a relay (relay.pxd). Its functions are
# called by the slot's reactor.
cdef struct Diversion:
    # Act on events of epoll, or look again (0). False: it is over, and the caller goes on as
    # if it were not there.
    bint (*act)(void *reactor, Slot *slot, uint32_t events) noexcept nogil
    # The Trio side has let go of the connection.
    void (*leave)(Slot *slot) noexcept nogil

# Where what a slot receives goes on to.
cdef union Beyond:
    Slot *listener          # of a PORT
    Diversion *diversion    # of a CONNECTION; NULL: nowhere but to its own ring

# What only one kind of slot has, in the same place.
cdef union OfKind:
    Slot *oldest            # of a LISTENER: linked by `chain`
    FrameScan *scan         # of a CONNECTION: where its frames end (framing.pxd), while
                            # it is framed, or its WebSocket's decoder (websocket.pxd);
                            # else NULL. The Trio side sets it.

# The same of line 2.
cdef union AtDoor:
    Slot *newest            # of a LISTENER: the other end of its queue (lock)
    Admission *admission    # of a PORT: who may come in; NULL: anybody
    Place *place            # of a CONNECTION: its place there, until it is closed (reactor);
                            # NULL: it does not count

# The same of line 2, again.
cdef union Waiting:
    uint32_t accept_queue   # of a LISTENER and a PORT: connections that may wait for accept()
    uint64_t timeout_since  # of a CONNECTION, ns: what limits.idle counts from, if nothing
                            # moved (trio)

# The same of line 5.
cdef union Tally:
    wk_u64 accepted         # of a LISTENER
    uint64_t write_since    # of a CONNECTION, ns: what limits.idle_write counts from, likewise
                            # (trio: it is set where a timeout begins, not by what moves)

# The same of line 5, again.
cdef struct Shortage:
    wk_u32 starved          # ports that are disarmed
    wk_u32 error            # the errno of the last shortage

cdef union Scarce:
    Shortage listener
    wk_ptr rate             # of a CONNECTION: its Rate (bucket.pxd), which the Trio side sets
                            # once; NULL: it has none

# The same of line 0.
cdef union Mark:
    uint8_t pinned          # of a PORT: its reactor keeps what it accepts
    uint8_t rated           # of a CONNECTION: it has a Rate (lock, but for the Trio side, which
                            # writes it)

# Mail that only one kind of slot has, likewise.
cdef struct ListenerMail:
    wk_u32 users            # open ports, and the Trio side
    wk_u32 ports            # those that may still add to its queue

cdef struct Sending:
    wk_u32 owner            # who may send: sender.pxd
    uint32_t ahead          # lock: bytes of the outbound ring that go before whoever
                            # waits for FLUSHED

cdef union ByKind:
    ListenerMail listener
    Sending sending         # of a CONNECTION

# A link in a doubly linked list of slots.
cdef struct Link:
    Link *prev
    Link *next

cdef struct Slot:
    # --- line 0. slot_map.pyx resets all up to line 6.
    wk_u64 handle           # generation << 32 | index; 0: the slot is free
    pthread_mutex_t lock
    int32_t fd
    uint8_t family
    uint8_t over_budget     # lock, but for the Trio side, which writes it: the budget has ended it
    uint8_t kind
    Mark mark
    uint8_t spare_identity[SPARE_OF_MUTEX]

    # --- line 1: lock
    Ring inbound            # the reactor writes, the Trio side reads
    Ring outbound           # either side adds messages; who takes them: sender.pxd
    uint32_t rcvlowat       # a receiver waits for this number of bytes; 0: none waits
    int32_t error           # errno that broke the connection or port; 0: none
    int32_t pending_error   # errno that the socket reported, once, ahead of unread bytes:
                            # while paused, or to a sender; becomes `error` at their end
    uint8_t ended           # the peer's FIN was read: every byte before it is in the ring;
                            # of a LISTENER: no port is left to add to its queue
    uint8_t hung_up         # FIN or reset was seen, perhaps ahead of unread bytes
    uint8_t paused          # inbound was at its mark: the reactor does not read
    uint8_t flush_wanted    # a task waits for FLUSHED: TELL or HAND_OVER (sender.pxd)
    uint8_t end_wanted      # a task or a server waits for ENDED
    # of a LISTENER
    uint8_t accept_wanted   # a task or a server waits for ACCEPTED
    uint8_t refusing        # closed: whatever is still accepted is dropped; of a CONNECTION:
                            # a broadcast ends it for being slow, nothing more is sent
    uint8_t open_ended      # `rcvlowat` may rise byte by byte: the receiver searches
    uint32_t waiting        # the number of connections accepted and not yet taken
    OfKind by_kind

    # --- line 2: const, and what `beyond`, `door` and `waiting_for` say
    void *reactor           # its Reactor
    Beyond beyond           # const, or its reactor's
    Limits limits
    AtDoor door
    Slot *chain             # the next in an accept queue (lock), later in the
                            # reactor's dead list
    Waiting waiting_for

    # --- line 3: mail; mailbox.pxd has the rules of notifications
    Notification completion
    Notification command
    wk_u64 idle_since       # ns: what an idle rule counts from, if nothing moved;
                            # EXACT: there is none, and 0: there never was one
    wk_u32 idle             # the idle rule that the reactor watches; 0: none
    # The Trio side sets it before its last try to send, the reactor takes it at
    # EPOLLOUT (on_writable in transfer.pyx has the argument).
    wk_u32 writable_wanted
    ByKind mail
    uint64_t opened         # ns, const; idle rules read it along with idle_since

    # --- lines 4 and 5: reactor
    WheelNode timer         # in its wheel: idle, closing, or a port to re-arm
    uint64_t deadline       # ns: the next look while FLUSHING, LINGERING or disarmed
    Link ready              # in a list of its reactor's: of unfinished reads, of the disarmed, of
                            # what the budget holds back, or of what is leaving (budget.pxd)
    wk_u64 received         # statistics, here and below; while paused these three,
                            # and `noticed`, belong to the Trio side
    wk_u64 receive_calls
    wk_u64 last_received    # ns
    wk_u64 flushed          # sent by the reactor, from the outbound ring
    wk_u64 flush_calls
    wk_u64 last_flushed     # ns
    Tally tally
    Scarce scarce
    wk_u32 shortages        # of a LISTENER: the number of shortages
    uint32_t discarded      # bytes discarded while closing
    wk_u64 noticed          # ns: when epoll reported what arrived at last_received;
                            # kept along with exact times only
    uint8_t state           # see State
    uint8_t draining        # the outbound ring has bytes, as far as the reactor knows
    uint8_t shut            # FIN sent
    uint8_t disarmed        # not watched for now, for lack of descriptors or memory
    uint8_t leaving         # of a PORT: closes once it has accepted what is queued
    uint8_t acknowledged    # while LINGERING: the peer's kernel had all, at the last look
    uint8_t keeps_alive     # it speaks WebSocket, with pings at intervals
    uint8_t held            # of a PORT: not watched for now, because there is no room (places.pyx)
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
    uint8_t claimed         # the application knows the connection, or may
    uint8_t corked          # its sends wait for the turn's end (cork.pyx)
    uint8_t sent_in         # the turn in which send_nowait last sent, modulo 256
    uint8_t phase           # event mode: see Phase


cdef inline uint32_t take_acceptor(Slot *listener) noexcept nogil:
    """The bits that wake whoever waits to accept, if anyone does; under the lock."""
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
