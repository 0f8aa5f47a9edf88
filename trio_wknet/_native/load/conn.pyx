"""One connection of the load generator: connect, send, receive, judge, close.

A descriptor is registered once, edge triggered and for both directions, and is
never modified after that: a message costs one `send` and one `recv`, and its
share of an `epoll_wait`. Two facts make that right. A send that the kernel took
only in part arms the edge for its continuation. A `recv` that gave less than
was asked for has emptied the socket, and what comes later is an edge again; only
after a hang-up is it repeated, because then the end itself is to be read.

Where a protocol begins with a request (WebSocket's upgrade), a connection counts as
open when the answer has come. The answer's head is peeked at until it is complete,
and only the head is then taken out of the socket: bytes behind it are read, and
judged, like any others.

Closing is always an orderly `close` with nothing left unread, also in churn.
SO_LINGER 0 would spare the TIME_WAIT, but the RST it sends is an error to the
server under test, and can overtake the answer. TIME_WAIT is lifted otherwise:
see `sources` in trio_wknet/_load/run.py.
"""
from libc.errno cimport ECONNREFUSED
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcmp

from ..base.atomics cimport (
    wk_u32_load_relaxed, wk_u64_bump, wk_u64_load_relaxed, wk_u64_store_relaxed,
)
from ..base.linux cimport (
    EAGAIN, EINPROGRESS, EINTR, EPOLL_CTL_ADD, EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT,
    EPOLLRDHUP, IPPROTO_TCP, MSG_NOSIGNAL, SO_ERROR, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM,
    SOL_SOCKET, TCP_NODELAY, AF_UNIX, close, connect, epoll_ctl, epoll_event, errno, getsockopt,
    monotonic_ns, recv, send, setsockopt, sockaddr, sockaddr_storage, socket, socklen_t,
)
from .histogram cimport histogram_record


cdef extern from "<netinet/in.h>" nogil:
    enum:
        IPPROTO_IP
        IP_BIND_ADDRESS_NO_PORT
    int bind(int fd, const sockaddr *addr, socklen_t len)

cdef extern from "<sys/socket.h>" nogil:
    enum:
        MSG_PEEK

# An extension of GNU's, which Python.h turns on.
cdef extern from "<string.h>" nogil:
    void *memmem(const void *hay, size_t hay_length, const void *needle, size_t needle_length)


# -- Connecting ----------------------------------------------------------------


cdef int begin_connect(Load *load, Conn *conn, uint64_t now) noexcept nogil:
    """Start to connect an idle slot; 0 when a unix backlog is full: try again later."""
    cdef int fd = socket(
        load.plan.target.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    cdef int problem
    conn.fd = fd
    conn.state = CONNECTING
    conn.since = now
    conn.due = conn.answered = conn.sent = conn.received = 0
    load.connecting += 1
    if load.plan.mode == CHURN:
        conn.due = 1
        load.started += 1
    problem = reach(load, fd, slot_of(load, conn) | <uint64_t>conn.generation << 32)
    if problem == EAGAIN and load.plan.target.ss_family == AF_UNIX:
        take_back(load, conn)
        return 0
    if problem != 0:
        fail_connect(load, conn, problem)
    return 1


cdef int reach(Load *load, int fd, uint64_t handle) noexcept nogil:
    """Set up, connect and register a new socket; 0 or what errno says."""
    cdef epoll_event event
    cdef int one = 1
    if fd < 0 or choose_source(load, fd) != 0:
        return errno
    if load.plan.target.ss_family != AF_UNIX:
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))
    if connect(fd, <sockaddr *>&load.plan.target, load.plan.target_length) != 0:
        if errno != EINPROGRESS:
            return errno
    event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET
    event.data.u64 = handle
    return errno if epoll_ctl(load.epoll, EPOLL_CTL_ADD, fd, &event) != 0 else 0


cdef int choose_source(Load *load, int fd) noexcept nogil:
    """Bind to the next local address; its port is chosen by connect, not here."""
    cdef int one = 1
    cdef sockaddr_storage *source
    if load.plan.source_count == 0:
        return 0
    source = &load.plan.sources[load.next_source % load.plan.source_count]
    load.next_source += 1
    # Without this option bind reserves a port for all destinations at once.
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof(one))
    return bind(fd, <sockaddr *>source, load.plan.source_length)


cdef void take_back(Load *load, Conn *conn) noexcept nogil:
    """Undo a connect that never began: the slot is idle again, nothing is counted."""
    load.started -= conn.due
    conn.due = 0
    load.connecting -= 1
    close(conn.fd)
    make_idle(load, conn)


cdef void fail_connect(Load *load, Conn *conn, int problem) noexcept nogil:
    if problem != ECONNREFUSED and load.connect_errno == 0:
        load.connect_errno = problem
    fail_conn(load, conn, REFUSED if problem == ECONNREFUSED else CONNECT_OTHER)


cdef bint finish_connect(Load *load, Conn *conn, uint32_t events) noexcept nogil:
    """Whether the connection is established now."""
    cdef int problem = 0
    cdef socklen_t length = sizeof(problem)
    if events & EPOLLERR:
        getsockopt(conn.fd, SOL_SOCKET, SO_ERROR, &problem, &length)
        if problem != 0:
            fail_connect(load, conn, problem)
            return False
    if not events & EPOLLOUT:
        return False
    if load.plan.request_length:
        conn.state = UPGRADING
    else:
        open_conn(load, conn)
    return True


cdef void open_conn(Load *load, Conn *conn) noexcept nogil:
    """From now on messages go out and come back."""
    conn.state = OPEN
    conn.sent = 0
    conn.next_out = slot_of(load, conn) * load.plan.outbound.stride % load.plan.outbound.period
    conn.next_in = slot_of(load, conn) * load.plan.inbound.stride % load.plan.inbound.period
    load.connecting -= 1
    wk_u64_bump(&load.connected, 1)
    wk_u64_bump(&load.opened, 1)


# -- The request before messages -----------------------------------------------


cdef bint finish_upgrade(Load *load, Conn *conn, bint ending) noexcept nogil:
    """Send what is left of the request and look for its answer; whether it is open now."""
    cdef ssize_t got
    cdef uint64_t head
    if not send_request(load, conn):
        return False
    got = recv(conn.fd, load.inbox, MAX_HEAD, MSG_PEEK)
    if got < 0 and errno in (EAGAIN, EINTR) and not ending:
        return False
    if got <= 0:
        fail_conn(load, conn, END_OF_FILE if got == 0 else RESET)
        return False
    head = head_length(load.inbox, <uint64_t>got)
    if head == 0 and got < MAX_HEAD:
        if ending:
            fail_conn(load, conn, END_OF_FILE)
        return False
    if head == 0 or not is_accepted(load, head):
        fail_conn(load, conn, UPGRADE_REFUSED)
        return False
    recv(conn.fd, load.inbox, head, 0)
    open_conn(load, conn)
    return True


cdef bint send_request(Load *load, Conn *conn) noexcept nogil:
    """Whether the kernel has all of it."""
    cdef ssize_t taken
    while conn.sent < load.plan.request_length:
        taken = send(conn.fd, load.plan.request + conn.sent,
                     load.plan.request_length - conn.sent, MSG_NOSIGNAL)
        if taken >= 0:
            conn.sent += <uint64_t>taken
        elif errno == EAGAIN:
            return False
        elif errno != EINTR:
            fail_conn(load, conn, RESET)
            return False
    return True


cdef uint64_t head_length(const uint8_t *data, uint64_t length) noexcept nogil:
    """Bytes up to the end of the blank line, 0 if that has not come."""
    cdef const uint8_t *end = <const uint8_t *>memmem(data, length, b"\r\n\r\n", 4)
    return 0 if end == NULL else <uint64_t>(end - data) + 4


cdef bint is_accepted(Load *load, uint64_t head) noexcept nogil:
    if head < 13 or memcmp(load.inbox, b"HTTP/1.1 101 ", 13) != 0:
        return False
    return memmem(load.inbox, head, load.plan.accept, load.plan.accept_length) != NULL


# -- Parting -------------------------------------------------------------------


cdef void fail_conn(Load *load, Conn *conn, int fault) noexcept nogil:
    """Count a connection that failed, and with it what it had not answered."""
    wk_u64_bump(&load.faults[fault], 1)
    load.lost += conn.due - conn.answered
    load.failures += 1
    close_conn(load, conn)


cdef void close_conn(Load *load, Conn *conn) noexcept nogil:
    """Close. In churn the slot is for the next transaction, else it stays empty."""
    if conn.state == OPEN:
        wk_u64_store_relaxed(&load.connected, wk_u64_load_relaxed(&load.connected) - 1)
    elif conn.state in (CONNECTING, UPGRADING):
        load.connecting -= 1
    if conn.fd >= 0:
        close(conn.fd)
    conn.generation += 1
    if load.plan.mode == CHURN:
        make_idle(load, conn)
    else:
        conn.fd = -1
        conn.state = GONE


cdef void make_idle(Load *load, Conn *conn) noexcept nogil:
    conn.fd = -1
    conn.state = IDLE
    load.idle[load.idle_count] = <uint32_t>slot_of(load, conn)
    load.idle_count += 1


cdef inline uint64_t slot_of(Load *load, Conn *conn) noexcept nogil:
    return <uint64_t>(conn - load.conns)


# -- Messages out --------------------------------------------------------------


cdef void pump(Load *load, Conn *conn, uint64_t now) noexcept nogil:
    """Send all that is due on an open connection, in as few calls as can be."""
    cdef uint64_t target, length
    cdef ssize_t taken
    if load.plan.mode == CLOSED_LOOP:
        refill(load, conn, now)
    target = min(conn.due, conn.answered + load.plan.depth) * load.plan.outbound.message
    while conn.sent < target:
        length = min(target - conn.sent, <uint64_t>WINDOW)
        taken = send(
            conn.fd, load.plan.outbound.pattern + conn.next_out, length, MSG_NOSIGNAL)
        if taken >= 0:
            conn.sent += <uint64_t>taken
            step(&conn.next_out, <uint64_t>taken, load.plan.outbound.period)
        elif errno == EAGAIN:
            return
        elif errno != EINTR:
            fail_conn(load, conn, RESET)
            return


cdef void refill(Load *load, Conn *conn, uint64_t now) noexcept nogil:
    """Closed loop: give the connection new messages for those that came back."""
    cdef uint32_t phase = wk_u32_load_relaxed(&load.phase)
    cdef uint64_t base = slot_of(load, conn) * load.plan.depth
    if phase != WARMUP and phase != MEASURE:
        return
    while conn.due < conn.answered + load.plan.depth:
        if load.plan.count and load.started >= load.plan.count:
            return
        load.starts[base + conn.due % load.plan.depth] = now
        conn.due += 1
        load.started += 1


cdef inline void step(uint64_t *place, uint64_t length, uint64_t period) noexcept nogil:
    """Go on by some bytes in a pattern. Mostly they do not reach its end: no division."""
    place[0] += length
    if place[0] >= period:
        place[0] %= period


# -- Messages back -------------------------------------------------------------


cdef bint receive(Load *load, Conn *conn, bint ending) noexcept nogil:
    """Read all there is; False when the connection is no more."""
    cdef ssize_t got
    while True:
        got = recv(conn.fd, load.inbox, WINDOW, 0)
        if got > 0:
            if not take(load, conn, <uint64_t>got):
                return False
            if got < WINDOW and not ending:
                return True
        elif got < 0 and errno == EAGAIN:
            return True
        elif got == 0 or errno != EINTR:
            fail_conn(load, conn, END_OF_FILE if got == 0 else RESET)
            return False


cdef bint take(Load *load, Conn *conn, uint64_t length) noexcept nogil:
    """Judge and count bytes that came; False when the connection is no more."""
    cdef uint64_t now, whole
    if not is_echo(load, conn, length):
        fail_conn(load, conn, MISMATCH)
        return False
    now = monotonic_ns()
    conn.received += length
    step(&conn.next_in, length, load.plan.inbound.period)
    wk_u64_bump(&load.bytes, length)
    whole = conn.received / load.plan.inbound.message
    wk_u64_bump(&load.answered, whole - conn.answered)
    while conn.answered < whole:
        record(load, now, start_of(load, conn))
        conn.answered += 1
    if load.plan.mode == CHURN and whole == 1:
        load.failures = 0
        close_conn(load, conn)
        return False
    return True


cdef bint is_echo(Load *load, Conn *conn, uint64_t length) noexcept nogil:
    if conn.received + length > owed(load, conn):
        return False
    if not load.plan.verify:
        return True
    return memcmp(load.inbox, load.plan.inbound.pattern + conn.next_in, length) == 0


cdef inline uint64_t owed(Load *load, Conn *conn) noexcept nogil:
    """The most bytes that can have come back by now."""
    cdef uint64_t there = load.plan.outbound.message
    cdef uint64_t back = load.plan.inbound.message
    if there == back:
        return conn.sent
    return conn.sent / there * back + min(conn.sent % there, back)


cdef inline uint64_t start_of(Load *load, Conn *conn) noexcept nogil:
    """When the message that is answered next began; in open loop, when it should have."""
    cdef uint64_t slot = slot_of(load, conn)
    cdef uint64_t message
    if load.plan.mode == CHURN:
        return conn.since
    if load.plan.mode == CLOSED_LOOP:
        return load.starts[slot * load.plan.depth + conn.answered % load.plan.depth]
    message = conn.answered * load.plan.connections + slot
    return load.origin + <uint64_t>(<double>message * load.plan.period)


cdef inline void record(Load *load, uint64_t now, uint64_t start) noexcept nogil:
    """Keep the latency of a message that began inside the measured window."""
    if load.opens_at <= start < load.closes_at:
        histogram_record(load.latency, now - start)


cdef void on_event(Load *load, uint64_t handle, uint32_t events) noexcept nogil:
    """What epoll reported about one connection, all of it."""
    cdef Conn *conn = &load.conns[<uint32_t>handle]
    cdef bint ending = events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)
    if conn.generation != <uint32_t>(handle >> 32):
        return
    if conn.state == CONNECTING and not finish_connect(load, conn, events):
        return
    if conn.state == UPGRADING and not finish_upgrade(load, conn, ending):
        return
    if events & EPOLLIN or ending:
        if not receive(load, conn, ending):
            return
    pump(load, conn, monotonic_ns())
