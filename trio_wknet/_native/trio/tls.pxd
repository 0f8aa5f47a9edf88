# What a TLS stream is made of. The top of tls.pyx says why.
cimport cython
from libc.stdint cimport uint32_t

from .core cimport Latecomer
from .operation cimport Operation
from .send cimport SendHalf

cdef enum:
    RECORD = 16384              # the most bytes that one holds
    # What is encrypted at a time, so that a large message does not need its size of memory
    # in `outgoing`, which would keep it; and received at a time.
    PIECE = 4 * RECORD
    WIRE_PIECE = 4 * (RECORD + 256)

cdef enum TLSState:
    OK = 0
    BROKEN = 1
    CLOSED = 2


@cython.final
cdef class Turn:
    """A lock that is handed over in order. Taking it while it is free is no checkpoint."""
    cdef bint taken
    cdef object lot             # of tasks that wait; made when first needed

    cdef bint take(self) noexcept
    cdef void give(self) noexcept


@cython.final
cdef class Target:
    """Memory that `SSLObject.read` is to decrypt into."""
    cdef char *at
    cdef Py_ssize_t size


cdef class TLSBase(Latecomer):
    cdef object transport       # None once unwrapped
    cdef SendHalf conn          # the same, if it is one of ours
    cdef readonly object _ssl_object
    cdef readonly bint _https_compatible
    cdef object incoming        # MemoryBIO: what came, and was not decrypted yet
    cdef object outgoing        # MemoryBIO: what was encrypted, and is not sent yet
    cdef object withheld        # session tickets, to be sent along with the first record
    cdef Target target
    cdef int state              # a TLSState
    cdef bint handshaken
    cdef object handshaking     # an event, during the handshake
    cdef object receiver        # what receives, and what sends: an operation, or True
    cdef object sender
    cdef bint ending            # what sends is `unwrap`
    cdef Turn receive_turn      # to receive from the transport, and to send on it
    cdef Turn send_turn
    cdef uint32_t refills       # how often something was received, modulo 2**32
    cdef bint may_hold          # a read might find something although `incoming` is empty
    cdef bint holds_part        # of a record that did not come whole
    cdef bint has_read          # something was decrypted
    cdef object read_failure    # to be raised by the next read: there were bytes before it
    cdef bytearray unread       # what was decrypted, and is not taken yet; None: nothing
    cdef bytes searched_for     # of `unread`, from its begin: no need to look for this again
    cdef Py_ssize_t searched
    cdef bint framed            # a channel receives
    cdef bytearray held         # what `send_nowait` left for the end of the turn; None: nothing
    cdef bint is_late           # in Core.late

    cdef int ensure_thread(self) except -1
    cdef bint holds_bytes(self) except -1
    cdef int check_status(self) except -1
    cdef int ensure_handshaken(self, str call) except -1
    cdef int ensure_receiving(self, bint framed) except -1
    cdef int begin_receiving(self, object who, bint framed=*) except -1
    cdef int begin_sending(self, object who) except -1
    cdef object breaking(self, object failure)
    cdef void broke(self) noexcept
    cdef object take_outgoing(self)
    cdef bint has_to_send(self)
    cdef int feed(self, object wire) except -1
    cdef object read_some(self, Py_ssize_t most)
    cdef Py_ssize_t read_into(self, char *out, Py_ssize_t size) except -2
    cdef object encrypt(self, object data)
    cdef bytes take_unread(self, Py_ssize_t most)
    cdef int add_unread(self, object data) except -1
    cdef object receive_more(self, object max_bytes, bint framed)
    cdef object with_held(self, object data)
    cdef int send_held(self) except -1


cdef class TLSOperation(Operation):
    cdef TLSBase stream
    cdef SendHalf conn
    cdef Turn turn              # to receive, or to send, while it has it

    cdef bint take_turn(self, Turn turn) noexcept
    cdef void give_turn(self) noexcept
    cdef object pass_on(self, object coroutine)


@cython.final
cdef class ReceiveTLS(TLSOperation):
    cdef object argument
    cdef Py_ssize_t most
    cdef bint more              # than what is unread
    cdef bint framed            # for the channel

    cdef bint may_take_turn(self)
    cdef object advance(self)


@cython.final
cdef class SendTLS(TLSOperation):
    cdef object data            # not yet encrypted
    cdef Operation sending      # the connection's own send, of what was encrypted

    cdef object take_piece(self)
    cdef object advance(self, object sent)


cdef object contiguous(object data)
