# The names of both ends of a connection: what getsockname and getpeername return. They
# are read only when the application asks for them, and once more when it lets go of
# the connection: the descriptor is closed soon after, and the application may want to log
# the peer's address. That takes 0.9 us of the 200 and more that a connection costs from
# accept to close. Keeping them from the start would cost every idle connection 56 bytes.
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

from ..base.linux cimport (
    SOL_SOCKET, SO_PEERNAME, getpeername, getsockname, getsockopt, sockaddr, socklen_t,
)
from ..base.memory cimport FOR_NAMES, memory_take

cdef enum:
    MAX_NAME = 128     # bytes: sockaddr_storage, which holds any of them
    INET_NAME = 16      # sockaddr_in
    INET6_NAME = 28     # sockaddr_in6

cdef struct Name:
    uint8_t size
    uint8_t bytes[MAX_NAME]


cdef inline void ask_local(int fd, Name *name) noexcept nogil:
    cdef socklen_t size = MAX_NAME
    if getsockname(fd, <sockaddr *>name.bytes, &size) < 0:
        size = 0
    name.size = <uint8_t>size


cdef inline void ask_remote(int fd, Name *name) noexcept nogil:
    """The peer's name, also after a reset: then getpeername fails, while
    SO_PEERNAME still works. It must be given the exact size, or less."""
    cdef socklen_t size = MAX_NAME
    if getpeername(fd, <sockaddr *>name.bytes, &size) == 0:
        name.size = <uint8_t>size
        return
    size = INET6_NAME
    if getsockopt(fd, SOL_SOCKET, SO_PEERNAME, name.bytes, &size) < 0:
        size = INET_NAME
        if getsockopt(fd, SOL_SOCKET, SO_PEERNAME, name.bytes, &size) < 0:
            size = 0
    name.size = <uint8_t>size


cdef inline uint8_t *keep_names(int fd) noexcept nogil:
    """Both names, to be released by `free`: each a byte with its size, and the name. NULL if
    there is no memory; then the addresses raise ENOTCONN."""
    cdef Name local, remote
    cdef uint8_t *kept
    ask_local(fd, &local)
    ask_remote(fd, &remote)
    kept = <uint8_t *>memory_take(FOR_NAMES, 2 + local.size + remote.size)
    if kept != NULL:
        memcpy(kept, &local, 1 + local.size)
        memcpy(kept + 1 + local.size, &remote, 1 + remote.size)
    return kept
