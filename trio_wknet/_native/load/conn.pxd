# The load generator's data, and what may be done with one of its connections.
#
# One thread owns all of it while a run lasts. Only what is an atomic may be
# touched from elsewhere: the live counters, and the flag that asks for the end.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ..base.atomics cimport wk_u32, wk_u64
from ..base.linux cimport sockaddr_storage, socklen_t
from .histogram cimport histogram_t


cdef enum Mode:
    CLOSED_LOOP  # a new message when one has come back
    OPEN_LOOP  # messages by the clock
    CHURN  # connect, one message there and back, close

cdef enum Phase:
    RAMP
    WARMUP
    MEASURE
    DRAIN
    DONE

cdef enum State:
    IDLE  # in the stack of slots to connect
    CONNECTING
    UPGRADING  # waits for the answer to the request that comes before messages
    OPEN
    GONE

cdef enum Fault:
    REFUSED
    CONNECT_OTHER
    TIMEOUT
    RESET
    END_OF_FILE
    MISMATCH
    UPGRADE_REFUSED
    FAULTS

cdef enum:
    WINDOW = 262144  # the most bytes of one recv or send
    MAX_HEAD = 8192  # the longest answer to the request


# What all connections send, or what they expect back: a pattern over and over, in
# which each connection begins at a place of its own. trio_wknet/_load/protocol.py
# makes it such that bytes that are lost, doubled, swapped or sent to another
# connection differ.
cdef struct Stream:
    const uint8_t *pattern  # WINDOW bytes follow any place of the first period
    uint64_t period  # bytes
    uint64_t stride  # bytes from where a connection begins to where the next one does
    uint64_t message  # bytes of a message, headers included


cdef struct Conn:
    int fd
    uint32_t generation
    uint32_t state
    uint64_t since  # when its connect began, ns
    uint64_t due  # messages it was given so far
    uint64_t answered  # messages that came back whole
    uint64_t sent  # bytes the kernel took; while UPGRADING, of the request
    uint64_t received  # bytes that came back
    uint64_t next_out  # where in the outbound pattern the next byte to send is
    uint64_t next_in  # where in the inbound pattern the next byte to come is


cdef struct Plan:
    int mode
    int verify
    uint32_t connections
    uint32_t connecting  # connects under way at once, at most
    uint32_t depth  # messages on their way on one connection, at most
    Stream outbound
    Stream inbound
    const char *request  # sent first, if there is one
    uint64_t request_length
    const char *accept  # what the head of the answer must contain
    uint64_t accept_length
    uint64_t count  # messages in the whole run, 0 for no bound
    uint64_t scheduled  # open loop: messages in warmup and duration
    double period  # open loop: ns from one message to the next
    uint64_t warmup  # the rest in ns
    uint64_t duration
    uint64_t grace
    uint64_t connect_timeout
    uint64_t ramp_timeout
    sockaddr_storage target
    socklen_t target_length
    sockaddr_storage *sources  # local addresses to take turns with
    socklen_t source_length
    uint32_t source_count


cdef struct Load:
    Plan plan
    Conn *conns
    uint64_t *starts  # closed loop: when message m of slot c began, at c*depth + m%depth
    uint32_t *idle
    uint32_t idle_count
    uint32_t connecting
    uint32_t next_source
    uint8_t *inbox
    int epoll
    int connect_errno  # of the first CONNECT_OTHER
    # Messages. started == answered + lost + on their way
    uint64_t started
    uint64_t lost
    uint64_t answered_before  # when the measured window opened
    uint64_t measured  # answered inside the window
    uint64_t failures  # churn: transactions that failed since the last that did not
    # The clock, in ns of CLOCK_MONOTONIC.
    uint64_t ramp_end  # by then at the latest
    uint64_t origin  # traffic begins
    uint64_t opens_at  # the measured window; an edge not reached yet is -1
    uint64_t closes_at
    uint64_t counted_from  # when it was opened in fact
    uint64_t window  # and how long it was
    uint64_t grace_end
    uint64_t blocked_since  # a unix connect found the backlog full, or 0
    histogram_t *latency
    # Live, for any thread to read.
    wk_u32 phase
    wk_u64 began
    wk_u64 answered
    wk_u64 bytes
    wk_u64 connected
    wk_u64 opened
    wk_u64 rate
    wk_u64 faults[FAULTS]
    wk_u32 stopping


cdef int begin_connect(Load *load, Conn *conn, uint64_t now) noexcept nogil
cdef void on_event(Load *load, uint64_t handle, uint32_t events) noexcept nogil
cdef void pump(Load *load, Conn *conn, uint64_t now) noexcept nogil
cdef void fail_conn(Load *load, Conn *conn, int fault) noexcept nogil
