# The Linux calls for which Cython ships no declarations: epoll, eventfd,
# accept4, sendmsg, and the POSIX calls that go with them.
from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef extern from "<errno.h>" nogil:
    int errno
    enum:
        EAGAIN
        EBADF
        ECONNABORTED
        ECONNRESET
        EFAULT
        EHOSTUNREACH
        EINPROGRESS
        EINTR
        EINVAL
        EMFILE
        ENFILE
        ENOBUFS
        ENOMEM
        ENETUNREACH
        ENOSPC
        ENOTCONN
        ENOTSOCK
        EOPNOTSUPP
        EPIPE
        EPROTO
        ETIMEDOUT


cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    uint32_t EPOLLIN
    uint32_t EPOLLOUT
    uint32_t EPOLLPRI
    uint32_t EPOLLERR
    uint32_t EPOLLHUP
    uint32_t EPOLLRDHUP
    uint32_t EPOLLET
    enum:
        EPOLL_CTL_ADD
        EPOLL_CTL_MOD
        EPOLL_CTL_DEL
        EPOLL_CLOEXEC
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event)
    int epoll_wait(int epfd, epoll_event *events, int maxevents, int timeout)


cdef extern from "<sys/eventfd.h>" nogil:
    enum:
        EFD_CLOEXEC
        EFD_NONBLOCK
    int eventfd(unsigned int initval, int flags)


cdef extern from "<time.h>" nogil:
    struct timespec:
        int64_t tv_sec
        long tv_nsec
    enum:
        CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec *ts)


cdef extern from "<sys/timerfd.h>" nogil:
    enum:
        TFD_CLOEXEC
        TFD_NONBLOCK
        TFD_TIMER_ABSTIME
    struct itimerspec:
        timespec it_interval
        timespec it_value
    int timerfd_create(int clock, int flags)
    int timerfd_settime(int fd, int flags, const itimerspec *new, itimerspec *old)


cdef extern from "<unistd.h>" nogil:
    ssize_t read(int fd, void *buf, size_t count)
    ssize_t pread(int fd, void *buf, size_t count, int64_t offset)
    ssize_t write(int fd, const void *buf, size_t count)
    int close(int fd)
    int pipe2(int *fds, int flags)


cdef extern from *:
    """
    #include <malloc.h>
    #ifndef __GLIBC__
    #define malloc_trim(pad) 0  /* musl gives memory back by itself */
    #endif
    """
    int malloc_trim(size_t pad) nogil


cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <fcntl.h>
    """
    enum:
        F_DUPFD_CLOEXEC
        F_SETPIPE_SZ
        O_CLOEXEC
        O_NONBLOCK
        SPLICE_F_MOVE
        SPLICE_F_NONBLOCK
    int fcntl(int fd, int command, ...) nogil
    ssize_t splice(int source, void *in_at, int sink, void *out_at, size_t count,
                   unsigned int flags) nogil


cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, ...)


cdef extern from "<linux/sockios.h>" nogil:
    enum:
        SIOCOUTQ


cdef extern from "<netinet/tcp.h>" nogil:
    enum:
        TCP_INFO
    struct tcp_info:
        unsigned int tcpi_last_data_sent    # ms ago
        unsigned int tcpi_last_ack_recv     # ms ago


cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len


cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <sys/socket.h>
    #include <netinet/in.h>
    #include <netinet/tcp.h>
    """
    ctypedef unsigned int socklen_t
    struct sockaddr:
        unsigned short sa_family
    struct sockaddr_storage:
        unsigned short ss_family
    struct linger_t "linger":
        int l_onoff
        int l_linger
    struct msghdr:
        void *msg_name
        socklen_t msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    enum:
        AF_INET
        AF_INET6
        AF_UNIX
        AF_UNSPEC
        SOCK_STREAM
        SOCK_NONBLOCK
        SOCK_CLOEXEC
        SOL_SOCKET
        SO_ERROR
        SO_LINGER
        SO_PEERNAME
        IPPROTO_TCP
        TCP_NODELAY
        TCP_NOTSENT_LOWAT
        MSG_DONTWAIT
        MSG_PEEK
        MSG_NOSIGNAL
        SHUT_RDWR
        SHUT_WR
    int socket(int domain, int type, int protocol) nogil
    int connect(int fd, const sockaddr *addr, socklen_t len) nogil
    int accept4(int fd, sockaddr *addr, socklen_t *len, int flags) nogil
    ssize_t recv(int fd, void *buf, size_t len, int flags) nogil
    ssize_t send(int fd, const void *buf, size_t len, int flags) nogil
    ssize_t sendmsg(int fd, const msghdr *msg, int flags) nogil
    int shutdown(int fd, int how) nogil
    int getsockname(int fd, sockaddr *name, socklen_t *len) nogil
    int getpeername(int fd, sockaddr *name, socklen_t *len) nogil
    int getsockopt(int fd, int level, int name, void *value, socklen_t *len) nogil
    int setsockopt(int fd, int level, int name, const void *value, socklen_t len) nogil


cdef extern from "<sys/random.h>" nogil:
    ssize_t getrandom(void *buffer, size_t n, unsigned int flags)


cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    enum:
        POLLIN
        POLLOUT
    int poll(pollfd *fds, unsigned long nfds, int timeout)


cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *m, void *attr)
    int pthread_mutex_destroy(pthread_mutex_t *m)
    int pthread_mutex_lock(pthread_mutex_t *m)
    int pthread_mutex_unlock(pthread_mutex_t *m)
    ctypedef struct pthread_t:
        pass
    ctypedef struct pthread_attr_t:
        pass
    enum:
        PTHREAD_CREATE_DETACHED
    int pthread_attr_init(pthread_attr_t *attr)
    int pthread_attr_destroy(pthread_attr_t *attr)
    int pthread_attr_setdetachstate(pthread_attr_t *attr, int state)
    int pthread_create(pthread_t *thread, const pthread_attr_t *attr,
                       void *(*run)(void *) noexcept nogil, void *argument)


cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    enum:
        SIG_SETMASK
    int sigfillset(sigset_t *set)
    int pthread_sigmask(int how, const sigset_t *set, sigset_t *old)


cdef extern from "<sys/resource.h>" nogil:
    struct rlimit:
        uint64_t rlim_cur
    enum:
        RLIMIT_NOFILE
    int getrlimit(int resource, rlimit *limit)


# What a mutex leaves of 48 bytes, its size on aarch64 with glibc. It has 40 on
# every other 64-bit Linux, and with musl.
cdef extern from *:
    """
    enum { WK_SPARE_OF_MUTEX = 48 - sizeof(pthread_mutex_t) };
    """
    enum:
        SPARE_OF_MUTEX "WK_SPARE_OF_MUTEX"


cdef inline uint64_t monotonic_ns() noexcept nogil:
    """Nanoseconds of CLOCK_MONOTONIC (a vDSO read, about 20 ns)."""
    cdef timespec ts
    clock_gettime(CLOCK_MONOTONIC, &ts)
    return <uint64_t>ts.tv_sec * 1000000000 + <uint64_t>ts.tv_nsec
