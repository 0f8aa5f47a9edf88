"""Scenarios for the checker of interleavings (interleave.c): where the two sides meet, in the
functions that they really run. What is written here is only who calls what, and what has to
come of it: a wait that nobody ends, or a failed assertion, is a fault.

The scenario's own code is the Trio side, and may be Python; reactors and peers are fibers.
A thread that would sleep in epoll waits for its descriptor to become ready (`il_wait`). The
kernel's state is the kernel's: real sockets, real eventfds.
"""
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset

from trio_wknet._native.base.atomics cimport (
    wk_u32_add, wk_u32_load, wk_u32_store, wk_u64_load, wk_u64_load_relaxed,
)
from trio_wknet._native.reactor.slot cimport FLUSHED, READABLE, WATCH, WRITABLE, Slot
from trio_wknet._native.trio.core cimport Core, deliver, woke
from trio_wknet._native.trio.idle_scopes cimport IdleWatch
from trio_wknet._native.base.linux cimport (
    MSG_DONTWAIT, MSG_NOSIGNAL, POLLIN, iovec, poll, pollfd, recv, send,
)
from trio_wknet._native.trio.listen cimport NativeListener
from trio_wknet._native.reactor.mailbox cimport Notification, mailbox_take, mailbox_waiting
from trio_wknet._native.reactor.pool cimport Block, Pool, pool_drop, pool_take, pool_trim
from trio_wknet._native.reactor.hub cimport Hub, Job, Reactor, has_more, notify
from trio_wknet._native.reactor.reactor cimport publish, reactor_turn
from trio_wknet._native.trio.receive cimport ENOUGH
from trio_wknet._native.reactor.ring cimport ring_len
from trio_wknet._native.reactor.send cimport ACCEPTED, send_message
from trio_wknet._native.reactor.wake cimport reactor_give, reactor_post, eventfd_clear
from trio_wknet._native.reactor.wheel cimport wheel_next
from trio_wknet._native.trio.group cimport Broadcasting, Members
from trio_wknet._native.trio.send cimport Sending
from trio_wknet._native.trio.websocket_send cimport WebSocketSend

import socket

from trio_wknet import Limits

cdef extern from *:
    """
    typedef int (*il_condition)(void *);
    void il_name(void *base, size_t size, const char *name);
    void il_watch(void *base, size_t size, void *life);
    void il_wait(il_condition ready, void *argument);
    void il_add(void (*body)(void *), void *argument);
    void il_prepare(void);
    void il_begin(void);
    void il_end(void);
    void il_fail(const char *why);
    int il_failed(void);
    char *il_report(void);
    void il_by_chance(uint64_t seed, int learn);
    void il_depth_first(int departures_at_most);
    int il_next(void);
    void il_forget(void);
    """
    ctypedef int (*il_condition)(void *) noexcept nogil
    void il_name(void *base, size_t size, const char *name) noexcept nogil
    void il_watch(void *base, size_t size, void *life) noexcept nogil
    void il_wait(il_condition ready, void *argument) noexcept nogil
    void il_add(void (*body)(void *) noexcept nogil, void *argument) noexcept nogil
    void il_prepare() noexcept nogil
    void il_begin() noexcept nogil
    void il_end() noexcept nogil
    void il_fail(const char *why) noexcept nogil
    int il_failed() noexcept nogil
    char *il_report() noexcept nogil
    void il_by_chance(uint64_t seed, int learn) noexcept nogil
    void il_depth_first(int departures_at_most) noexcept nogil
    int il_next() noexcept nogil
    void il_forget() noexcept nogil


# --- waiting, as the system would have it ------------------------------------------

cdef int _is_ready(int fd) noexcept nogil:
    cdef pollfd one
    one.fd = fd
    one.events = POLLIN
    return poll(&one, 1, 0) > 0


cdef int reactor_has_news(void *argument) noexcept nogil:
    cdef Reactor *reactor = <Reactor *>argument
    return (over or has_more(reactor) or _is_ready(reactor.epfd)
            or wheel_next(reactor.wheel) <= reactor.hub.virtual_now)


cdef int trio_is_woken(void *argument) noexcept nogil:
    return _is_ready((<Hub *>argument).wakefd)


cdef int is_done(void *argument) noexcept nogil:
    """What was asked of a reactor, about a slot."""
    return wk_u32_load(&(<Slot *>argument).command.bits) == 0


# --- threads -----------------------------------------------------------------------

cdef int over = False       # the scenario's end: reactors stop


cdef void reactor_thread(void *argument) noexcept nogil:
    """As reactor_run, but for where it sleeps."""
    cdef Reactor *reactor = <Reactor *>argument
    while True:
        il_wait(reactor_has_news, reactor)
        if over:
            return
        reactor_turn(reactor, 0)


cdef struct Reader:
    int fd
    uint32_t wanted


cdef int peer_has_bytes(void *argument) noexcept nogil:
    return _is_ready((<Reader *>argument).fd)


cdef int peer_has_all(void *argument) noexcept nogil:
    return (<Reader *>argument).wanted == 0


cdef void peer_reads(void *argument) noexcept nogil:
    cdef Reader *reader = <Reader *>argument
    cdef char data[4096]
    cdef ssize_t n
    while reader.wanted:
        il_wait(peer_has_bytes, reader)
        n = recv(reader.fd, data, sizeof(data), MSG_DONTWAIT)
        if n > 0:
            reader.wanted -= <uint32_t>n


cdef struct Listener:
    int fd
    uint32_t skipped        # bytes, before the first message
    uint32_t expected
    uint32_t n
    char data[8192]


cdef int peer_hears(void *argument) noexcept nogil:
    return _is_ready((<Listener *>argument).fd)


cdef int peer_heard_all(void *argument) noexcept nogil:
    cdef Listener *listener = <Listener *>argument
    return listener.n == listener.expected


cdef void peer_listens(void *argument) noexcept nogil:
    """As peer_reads, and keeps it."""
    cdef Listener *listener = <Listener *>argument
    cdef char nothing[4096]
    cdef ssize_t n
    while listener.n < listener.expected:
        il_wait(peer_hears, listener)
        if listener.skipped:
            n = recv(listener.fd, nothing, min(listener.skipped, sizeof(nothing)), MSG_DONTWAIT)
            listener.skipped -= <uint32_t>max(n, <ssize_t>0)
        else:
            n = recv(listener.fd, listener.data + listener.n, sizeof(listener.data) - listener.n,
                     MSG_DONTWAIT)
            listener.n += <uint32_t>max(n, <ssize_t>0)


cdef struct Writer:
    int fd
    int pieces
    uint32_t size


cdef void peer_writes(void *argument) noexcept nogil:
    """In pieces, with whatever happens in between. (Other fibers go on at what is shared;
    this one has nothing of that, and so waits for what is true already.)"""
    cdef Writer *writer = <Writer *>argument
    cdef char data[4096]
    cdef int i
    for i in range(writer.pieces):
        il_wait(always, NULL)
        send(writer.fd, data, writer.size, MSG_DONTWAIT | MSG_NOSIGNAL)


cdef int always(void *argument) noexcept nogil:
    return True


cdef struct News:
    Reactor *reactor
    Slot *slot
    uint32_t bits


cdef void tells(void *argument) noexcept nogil:
    """The end of a reactor's turn that had news."""
    cdef News *news = <News *>argument
    notify(news.reactor, news.slot, news.bits)
    publish(news.reactor)


cdef void asks(void *argument) noexcept nogil:
    """A finalizer in another thread."""
    reactor_post(<Slot *>argument, WATCH)


cdef void time_passes(void *argument) noexcept nogil:
    """While others are anywhere: time enough for WAITED bytes, three times."""
    cdef Hub *hub = <Hub *>argument
    cdef int i
    for i in range(3):
        il_wait(always, NULL)
        hub.virtual_now += 100000000


cdef struct Gift:
    Block *blocks[2]
    Pool *mine


cdef void gives_back(void *argument) noexcept nogil:
    cdef Gift *gift = <Gift *>argument
    pool_drop(gift.blocks[0], gift.mine)
    pool_drop(gift.blocks[1], gift.mine)


# --- scenarios -----------------------------------------------------------------------

cdef class Witness(IdleWatch):
    """A connection that remembers what it was told."""
    cdef uint32_t told

    cdef void completed(self, uint32_t bits) noexcept:
        self.told |= bits
        IdleWatch.completed(self, bits)

    cdef uint32_t unsent(self) noexcept:
        return ring_len(&self.slot.outbound)


cdef class Scenario:
    """One core, whose reactors have no threads, and a run of the scenario at a time."""
    reactors = 1
    cdef Core core
    cdef Hub *hub
    cdef Witness conn
    cdef object peer
    cdef Reader reader
    cdef Writer writer

    def __init__(self):
        self.core = Core(self.reactors, False, Witness)
        self.hub = self.core.hub
        # Time stands still: a run must not depend on how long the one before it took.
        self.hub.virtual = True

    def run(self):
        """One run."""
        global over
        over = False
        il_prepare()
        self.set_up()
        il_begin()
        self.trio_side()
        over = True
        il_end()
        if not il_failed():
            self.tear_down()

    cdef set_up(self):
        pass

    cdef trio_side(self):
        pass

    cdef tear_down(self):
        if self.conn is not None:
            self.conn._drop()
            self.conn = None
            self.peer.close()
        self.settle()

    # --- what scenarios share --------------------------------------------------------

    cdef connect(self, limits):
        """A connection, watched by its reactor, with little room in the kernel."""
        ours, self.peer = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        ours.setblocking(False)
        self.peer.setblocking(False)
        self.conn = Witness()
        self.conn._adopt(self.core, ours, ours.fileno(), socket.AF_UNIX, limits)
        self.settle()
        il_name(self.conn.slot, sizeof(Slot), b"slot")

    cdef void add_reactors(self) noexcept:
        cdef uint32_t i
        for i in range(self.hub.count):
            il_name(self.hub.reactors[i], sizeof(Reactor), b"reactor")
            il_add(reactor_thread, self.hub.reactors[i])
        il_name(self.hub, sizeof(Hub), b"hub")

    cdef void settle(self) noexcept:
        """Everything that is left to do, without anybody in between."""
        cdef uint32_t i, rounds
        for rounds in range(3):
            for i in range(self.hub.count):
                reactor_turn(self.hub.reactors[i], 0)
            self.take_mail()
        eventfd_clear(self.hub.wakefd)

    cdef void take_mail(self) noexcept:
        """The drain."""
        cdef Notification *notification = mailbox_take(&self.hub.completions)
        cdef Notification *following
        while notification != NULL:
            following = notification.next
            if wk_u32_load(&notification.bits) == 0:
                il_fail(b"a notification came without bits")
            deliver(self.core, notification)
            notification = following

    cdef void sleep(self) noexcept:
        """What Trio's loop does when no task can run."""
        self.core.before_wait(1.0)
        il_wait(trio_is_woken, self.hub)
        self.core.still()
        woke(self.core, True)
        self.take_mail()

    cdef void sleep_until(self, uint32_t bits) noexcept:
        """Until the connection was told that; with the look before, as a task parks in
        the step in which it looked."""
        self.conn.told = 0
        while not self.conn.told & bits and not il_failed():
            self.sleep()

    cdef carry_out(self, Sending operation):
        """A task that awaits this."""
        operation.take_turn()
        while not operation.attempt() and not il_failed():
            self.sleep_until(WRITABLE | FLUSHED)
        operation.close()

    cdef drain_peer(self):
        """How many bytes the peer finds, and takes out."""
        cdef uint32_t n = 0
        try:
            while True:
                n += len(self.peer.recv(65536))
        except BlockingIOError:
            return n


cdef class Sleep(Scenario):
    """Trio goes to sleep, twice, while two reactors have news for it."""
    reactors = 2
    cdef News news[2]

    cdef set_up(self):
        cdef int i
        self.connect(Limits())
        il_name(self.hub, sizeof(Hub), b"hub")
        for i in range(2):
            self.news[i].reactor = self.hub.reactors[i]
            self.news[i].slot = self.conn.slot
            self.news[i].bits = WRITABLE if i else READABLE
            il_add(tells, &self.news[i])

    cdef trio_side(self):
        self.conn.told = 0
        while self.conn.told != READABLE | WRITABLE and not il_failed():
            self.sleep()


cdef class Commands(Scenario):
    """The Trio side and a finalizer ask for things, while the reactor goes to sleep."""
    cdef Witness other
    cdef object peers

    cdef set_up(self):
        self.connect(Limits())
        self.other, self.peers = self.conn, self.peer
        self.connect(Limits())
        self.add_reactors()
        il_add(asks, self.other.slot)

    cdef trio_side(self):
        reactor_post(self.conn.slot, WATCH)
        reactor_post(self.other.slot, WATCH)
        il_wait(is_done, self.conn.slot)
        # The other's notification may stand behind this one in what the reactor has taken.
        reactor_post(self.conn.slot, WATCH)
        il_wait(is_done, self.conn.slot)
        il_wait(is_done, self.other.slot)

    cdef tear_down(self):
        self.other._drop()
        self.other = None
        self.peers.close()
        Scenario.tear_down(self)


cdef class Queue(Scenario):
    """Bytes are added to the outbound ring while the reactor empties it."""

    cdef set_up(self):
        cdef uint32_t sent = 0
        self.connect(Limits())
        while self.conn.unsent() == 0:
            self.conn.send_nowait(bytes(500))
            sent += 500
        self.settle()
        # The kernel has room again, as the reactor is about to hear.
        self.reader.fd = self.peer.fileno()
        self.reader.wanted = sent + 100 - self.drain_peer()
        self.add_reactors()
        il_add(peer_reads, &self.reader)

    cdef trio_side(self):
        self.conn.send_nowait(bytes(100))
        il_wait(peer_has_all, &self.reader)


cdef class Flush(Queue):
    """So they are, and somebody waits until all are sent."""

    cdef trio_side(self):
        self.conn.send_nowait(bytes(100))
        self.carry_out(self.conn.flush())
        il_wait(peer_has_all, &self.reader)


cdef class Push(Scenario):
    """A sender waits for the kernel to take more, which a peer reads."""

    cdef set_up(self):
        cdef Py_ssize_t n
        cdef char data[1000]
        self.connect(Limits())
        self.reader.wanted = 3000
        while True:
            n = self.conn.push(data, 1000, True)
            self.reader.wanted += <uint32_t>n
            if n < 1000:
                break
        # That has asked for a wake; here nobody has yet.
        wk_u32_store(&self.conn.slot.writable_wanted, 0)
        self.reader.fd = self.peer.fileno()
        self.add_reactors()
        il_add(peer_reads, &self.reader)

    cdef trio_side(self):
        cdef char data[3000]
        cdef Py_ssize_t left = 3000
        while left and not il_failed():
            left -= self.conn.push(data, left, True)
            if left:
                self.sleep_until(WRITABLE)
        il_wait(peer_has_all, &self.reader)


cdef enum:
    RATE = 1000         # bytes a second
    WAITED = 100        # bytes, which take two waits


cdef class Rated(Scenario):
    """A sender waits for its rate, while the wheel ends a wait of one before it."""

    def time(self):
        return self.hub.virtual_now / 1e9

    cdef set_up(self):
        self.core.clock = self.time
        self.connect(Limits())
        self.conn.rate(write=RATE)
        self.conn.send_nowait(bytes(RATE))
        self.conn.push(b"x", 1, True)
        self.settle()
        wk_u32_store(&self.conn.slot.writable_wanted, 0)
        self.reader.fd = self.peer.fileno()
        self.reader.wanted = WAITED
        self.drain_peer()
        self.add_reactors()
        il_add(time_passes, self.hub)
        il_add(peer_reads, &self.reader)

    cdef trio_side(self):
        cdef char data[WAITED]
        cdef Py_ssize_t left = WAITED
        while left and not il_failed():
            left -= self.conn.push(data, left, True)
            if left:
                self.sleep_until(WRITABLE)
        il_wait(peer_has_all, &self.reader)


cdef enum:
    SIZE = 400          # bytes of a message, all alike
    PIECE = 100         # what fills the kernel


cdef struct Message:
    Job job
    Slot *slot
    char data[SIZE]


cdef void sends(Reactor *reactor, Job *job) noexcept nogil:
    cdef Message *message = <Message *>job
    cdef iovec span
    span.iov_base = message.data
    span.iov_len = SIZE
    if send_message(reactor, message.slot, &span, 1, 1 << 30) != ACCEPTED:
        il_fail(b"a reactor's message was refused")


def _fault_in(heard, expected):
    """What is wrong with what the peer heard; None if every message is whole, and each side's
    are in order."""
    letters = heard[::SIZE]
    if heard != b"".join([bytes([letter]) * SIZE for letter in letters]):
        return b"a message was torn"
    if sorted(letters) != sorted(expected):
        return b"a message was lost, or doubled"
    for side in (b"RS", b"ABC"):
        if [it for it in letters if it in side] != [it for it in expected if it in side]:
            return b"a message was overtaken"
    return None


cdef class TwoSenders(Scenario):
    """The reactor has two messages to send, while the Trio side sends one that goes at once,
    and two that are corked up to the end of the turn."""
    cdef Message messages[2]
    cdef Listener listener

    cdef set_up(self):
        self.connect(Limits())
        self.make_ready(self.fill(), 5)

    cdef uint32_t fill(self):
        """How many bytes the kernel holds already."""
        return 0

    cdef make_ready(self, uint32_t filled, int expected):
        self.core.corks.open = True
        # Each run is to go as the one before.
        self.core.corks.turn = 0
        pool_trim(self.hub.pool)
        pool_trim(self.hub.reactors[0].pool)
        self.listener.fd = self.peer.fileno()
        self.listener.skipped = filled
        self.listener.expected = expected * SIZE
        self.listener.n = 0
        self.give_messages()
        self.add_reactors()
        il_add(peer_listens, &self.listener)

    cdef give_messages(self):
        cdef int i
        for i in range(2):
            self.messages[i].job.run = sends
            self.messages[i].slot = self.conn.slot
            memset(self.messages[i].data, b"RS"[i], SIZE)
            reactor_give(self.hub.reactors[0], &self.messages[i].job)

    cdef trio_side(self):
        for message in [b"A" * SIZE, b"B" * SIZE, b"C" * SIZE]:
            self.conn.send_nowait(message)
        self.core.end_turn()
        self.hear_all()

    cdef hear_all(self):
        """See that every message is whole, and each side's in order."""
        il_wait(peer_heard_all, &self.listener)
        if il_failed():
            return
        fault = _fault_in(self.listener.data[:self.listener.n], self.expected())
        if fault:
            il_fail(fault)

    cdef bytes expected(self):
        return b"ABCRS"


cdef uint32_t _fill(Witness conn):
    """Until the kernel takes no more; how many bytes it took."""
    cdef uint32_t filled = 0
    cdef Py_ssize_t n
    cdef char data[PIECE]
    memset(data, 0, sizeof(data))
    while True:
        n = conn.push(data, PIECE, True)
        filled += <uint32_t>n
        if n < PIECE:
            break
    wk_u32_store(&conn.slot.writable_wanted, 0)
    return filled


cdef class TwoSendersFull(TwoSenders):
    """The same where the kernel takes a part of a message, and then no more until the peer has
    read."""

    cdef uint32_t fill(self):
        return _fill(self.conn)


cdef class SendBetween(TwoSendersFull):
    """A task sends, and has to wait for its turn, or for the kernel; another task's message
    goes behind."""

    cdef trio_side(self):
        self.conn.send_nowait(b"A" * SIZE)
        cdef Sending operation = self.conn.send_all(b"B" * SIZE)
        operation.take_turn()
        done = operation.attempt()
        self.conn.send_nowait(b"C" * SIZE)
        while not done and not il_failed():
            self.sleep_until(WRITABLE | FLUSHED)
            done = operation.attempt()
        operation.close()
        self.core.end_turn()
        self.hear_all()


cdef class CancelledSend(TwoSendersFull):
    """A task that waits for its turn is cancelled: about when the turn is handed over."""

    cdef set_up(self):
        self.connect(Limits())
        self.make_ready(self.fill(), 4)

    cdef trio_side(self):
        self.conn.send_nowait(b"A" * SIZE)
        cdef Sending operation = self.conn.send_all(b"B" * SIZE)
        operation.take_turn()
        operation.acquire()
        operation.close()
        self.conn.send_nowait(b"C" * SIZE)
        self.core.end_turn()
        self.hear_all()

    cdef bytes expected(self):
        return b"ACRS"


cdef class Broadcasts(TwoSenders):
    """Two broadcasts, and behind each a message of the Trio side's, which must not overtake it,
    whether the reactor has come to this member or not."""
    cdef Members group
    cdef int done

    cdef set_up(self):
        self.connect(Limits())
        self.group = Members()
        self.group._begin(self.core, 1 << 20, int, None)
        self.group._join(self.conn)
        self.done = 0
        self.make_ready(self.fill(), 4)

    cdef give_messages(self):
        pass                    # they come from the Trio side

    def one_done(self):
        self.done += 1

    cdef trio_side(self):
        for broadcast, message in [(b"R", b"A"), (b"S", b"B")]:
            self.group._start(Broadcasting(), broadcast * SIZE, (), False, self.one_done)
            self.conn.send_nowait(message * SIZE)
        self.core.end_turn()
        il_wait(peer_heard_all, &self.listener)
        while self.done < 2 and not il_failed():
            self.sleep()
        wanted = b"R" * SIZE + b"A" * SIZE + b"S" * SIZE + b"B" * SIZE
        if not il_failed() and self.listener.data[:self.listener.n] != wanted:
            il_fail(b"a message was lost, doubled, torn or overtaken")

    cdef tear_down(self):
        self.group = None
        Scenario.tear_down(self)


cdef class BroadcastsFull(Broadcasts):
    """The same where the kernel is full."""

    cdef uint32_t fill(self):
        return _fill(self.conn)


cdef enum:
    PAYLOAD = 100       # bytes of a ping
    CONTROL_SIZE = 2 + PAYLOAD


cdef void peer_pings(void *argument) noexcept nogil:
    """Two pings, masked with zeros, with whatever happens in between."""
    cdef unsigned char ping[CONTROL_SIZE + 4]
    cdef int i
    memset(ping, 0, sizeof(ping))
    ping[0] = 0x89
    ping[1] = 0x80 | PAYLOAD
    for i in range(2):
        memset(ping + 6, b"PQ"[i], PAYLOAD)
        il_wait(always, NULL)
        send((<Writer *>argument).fd, ping, sizeof(ping), MSG_DONTWAIT | MSG_NOSIGNAL)


cdef int heard_last_pong(void *argument) noexcept nogil:
    cdef Listener *listener = <Listener *>argument
    return (listener.n >= CONTROL_SIZE
            and <unsigned char>listener.data[listener.n - CONTROL_SIZE] == 0x8A
            and listener.data[listener.n - 1] == b"Q")


cdef void peer_awaits_pong(void *argument) noexcept nogil:
    cdef Listener *listener = <Listener *>argument
    cdef char nothing[4096]
    cdef ssize_t n
    while not heard_last_pong(listener):
        il_wait(peer_hears, listener)
        if listener.skipped:
            n = recv(listener.fd, nothing, min(listener.skipped, sizeof(nothing)), MSG_DONTWAIT)
            listener.skipped -= <uint32_t>max(n, <ssize_t>0)
        else:
            n = recv(listener.fd, listener.data + listener.n, sizeof(listener.data) - listener.n,
                     MSG_DONTWAIT)
            listener.n += <uint32_t>max(n, <ssize_t>0)


cdef class Pongs(TwoSendersFull):
    """A WebSocket's peer pings twice while a task sends: there is room for one pong behind its
    message, and the other one waits in the decoder for whoever makes room."""
    cdef WebSocketSend ws

    cdef set_up(self):
        self.connect(Limits(outbound=1))
        pool_trim(self.hub.pool)
        pool_trim(self.hub.reactors[0].pool)
        self.ws = WebSocketSend.__new__(WebSocketSend)
        self.ws._begin(self.conn, False, 1000, 10, b"", None, None)
        self.listener.skipped = self.fill()
        self.listener.fd = self.peer.fileno()
        self.listener.n = 0
        self.writer.fd = self.peer.fileno()
        self.add_reactors()
        il_add(peer_pings, &self.writer)
        il_add(peer_awaits_pong, &self.listener)

    cdef trio_side(self):
        self.carry_out(self.conn.send_all(b"B" * SIZE))
        il_wait(heard_last_pong, &self.listener)
        if il_failed():
            return
        heard = self.listener.data[:self.listener.n]
        head = b"\x8a" + bytes([PAYLOAD])
        rest = heard.replace(head + b"P" * PAYLOAD, b"").replace(head + b"Q" * PAYLOAD, b"")
        if rest != b"B" * SIZE or heard.count(b"B" * SIZE) != 1:
            il_fail(b"a message was torn")

    cdef tear_down(self):
        self.ws = None
        Scenario.tear_down(self)


cdef class Receive(Scenario):
    """Bytes come, while somebody takes them and the reactor pauses and goes on."""

    cdef set_up(self):
        self.connect(Limits(inbound=100))
        self.writer.fd = self.peer.fileno()
        self.writer.pieces = 3
        self.writer.size = 100
        self.add_reactors()
        il_add(peer_writes, &self.writer)

    cdef trio_side(self):
        cdef uint32_t left = 300
        while left and not il_failed():
            data = self.conn.take_some(1 << 20, True)
            if data is None:
                self.sleep_until(READABLE)
            else:
                left -= len(data)


cdef class ReceiveAll(Receive):
    """The same, for somebody who waits for more than the mark."""

    cdef trio_side(self):
        cdef uint32_t available
        while self.conn.look(250, &available) != ENOUGH and not il_failed():
            self.sleep_until(READABLE)


cdef class Release(Scenario):
    """A connection is let go of while it has news: its slot is given back once."""
    cdef uint32_t slots

    cdef set_up(self):
        self.connect(Limits())
        self.conn.take_some(1, True)
        self.peer.send(b"news")
        self.slots = wk_u32_load(&self.hub.slot_map.count)
        il_watch(self.conn.slot, sizeof(Slot), &self.conn.slot.handle)
        self.add_reactors()

    cdef trio_side(self):
        self.core.requeue(self.conn.slot, WRITABLE)
        self.conn._drop()
        self.take_mail()

    cdef tear_down(self):
        Scenario.tear_down(self)
        if wk_u32_load(&self.hub.slot_map.count) != self.slots - 1:
            il_fail(b"the slot was not given back once")


cdef class CloseListener(Scenario):
    """A listener with a port at each of two reactors is closed."""
    reactors = 2
    cdef NativeListener listener
    cdef uint32_t slots

    cdef listen(self, int ports, limits):
        socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(ports)]
        names = [sock.getsockname() for sock in socks]
        for sock in socks:
            sock.setblocking(False)
        self.slots = wk_u32_load(&self.hub.slot_map.count)
        self.listener = NativeListener()
        taken = [(sock, sock.fileno(), socket.AF_INET) for sock in socks]
        self.listener._listen(self.core, taken, limits, True, (0, 0), None)
        self.settle()
        return names

    cdef set_up(self):
        self.listen(2, Limits())
        il_name(self.listener.slot, sizeof(Slot), b"listener")
        il_watch(self.listener.slot, sizeof(Slot), &self.listener.slot.handle)
        self.add_reactors()

    cdef trio_side(self):
        self.listener._close()
        self.take_mail()

    cdef tear_down(self):
        self.listener._close()
        self.listener = None
        Scenario.tear_down(self)
        if wk_u32_load(&self.hub.slot_map.count) != self.slots:
            il_fail(b"a slot was not given back")


cdef class Accept(CloseListener):
    """Connections are accepted one by one, and the port pauses in between."""
    reactors = 1
    cdef object clients

    cdef set_up(self):
        (name,) = self.listen(1, Limits(accept_queue=1))
        self.clients = [socket.create_connection(name) for _ in range(3)]
        self.add_reactors()

    cdef trio_side(self):
        cdef int left = 3
        while left and not il_failed():
            conns = self.listener.take(1)
            if not conns:
                self.sleep()
            for conn in conns:
                conn._drop()
                left -= 1

    cdef tear_down(self):
        for client in self.clients:
            client.close()
        CloseListener.tear_down(self)


cdef class Quiet(Scenario):
    """Somebody asks to be told of the last connection's end, which is about now."""

    cdef set_up(self):
        self.connect(Limits())
        wk_u32_store(&self.hub.quiet_wanted, 0)
        self.add_reactors()

    cdef trio_side(self):
        told = []
        self.conn._drop()
        if not self.core.quiet(lambda: told.append(True)):
            while not told and not il_failed():
                self.sleep()


cdef class Blocks(Scenario):
    """A reactor gives blocks back to the Trio side's pool, which takes some: one of them
    both sides let go of."""
    cdef Gift gift

    cdef set_up(self):
        cdef Pool *pool = self.hub.pool
        self.gift.blocks[0] = pool_take(pool, 600)
        self.gift.blocks[1] = pool_take(pool, 600)
        wk_u32_add(&self.gift.blocks[0].refs, 1)
        self.gift.mine = self.hub.reactors[0].pool
        il_add(gives_back, &self.gift)

    cdef trio_side(self):
        cdef Pool *pool = self.hub.pool
        cdef Block *one = pool_take(pool, 600)
        pool_drop(self.gift.blocks[0], pool)
        cdef Block *other = pool_take(pool, 600)
        if one == other:
            il_fail(b"a block was given out twice")
        pool_drop(one, pool)
        pool_drop(other, pool)

    cdef tear_down(self):
        cdef Pool *pool = self.hub.pool
        pool_trim(pool)
        if wk_u64_load_relaxed(&pool.live) or wk_u64_load_relaxed(&pool.kept):
            il_fail(b"the pool has lost count")


SCENARIOS = [
    Sleep, Commands, Queue, Flush, Push, Rated, TwoSenders, TwoSendersFull, SendBetween,
    CancelledSend, Broadcasts, BroadcastsFull, Pongs, Receive, ReceiveAll, Release, CloseListener,
    Accept, Quiet, Blocks,
]


# --- exploring -----------------------------------------------------------------------

cdef str _report():
    cdef char *text
    if not il_failed():
        return None
    text = il_report()
    try:
        return text.decode()
    finally:
        free(text)


def explore(scenario, int departures, int most, int learn=100):
    """Run a scenario in every interleaving with at most so many departures from the plain
    course, but `most` runs at most, and then as many by chance.

    Returns (runs in order, runs by chance, whether those in order were all, why a run
    failed or None).
    """
    cdef int ordered = 0
    cdef int random = 0
    cdef bint complete = False
    il_forget()
    it = scenario()
    while random < learn and not il_failed():
        il_by_chance(random, True)
        it.run()
        random += 1
    il_depth_first(departures)
    while not il_failed() and ordered < most and not complete:
        it.run()
        ordered += 1
        complete = not il_next()
    while not il_failed() and random < learn + most:
        il_by_chance(random, False)
        it.run()
        random += 1
    return ordered, random, complete, _report()
