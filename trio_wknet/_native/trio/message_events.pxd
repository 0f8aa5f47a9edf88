from ..reactor.slot cimport Slot
from ..reactor.websocket cimport Decoder
from .events cimport EventServer
from .stream cimport Stream
from .websocket cimport WebSocketReceive


cdef class MessageServer(EventServer):
    cdef object on_messages
    cdef object make_websocket  # called without arguments, gives a WebSocket over nothing
    cdef object watch           # called to have a task run that ends late handshakes
    cdef double handshake_time  # seconds
    cdef dict deadlines         # of handshakes, by handle, the first one first
    cdef WebSocketReceive spare_websocket   # that nobody has, nor its connection's object

    cdef WebSocketReceive borrow_websocket(self, Slot *slot)
    cdef void give_back(self, WebSocketReceive websocket) noexcept
    cdef WebSocketReceive websocket_of(self, Stream conn)
    cdef void begin_handshake(self, Slot *slot) except *
    cdef void end_messages(self, Stream conn, object failure) noexcept
    cdef void say_goodbye(self, Slot *slot, int code) noexcept


cdef Decoder *decoder_of_conn(Stream conn) noexcept
