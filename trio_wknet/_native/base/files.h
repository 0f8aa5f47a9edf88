/* Reading from files without waiting for a disk, and sending from them, or a pipe, to a socket.

   64-bit only, where an offset is one register. */
#ifndef TRIO_WKNET_FILES_H
#define TRIO_WKNET_FILES_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#ifndef RWF_NOWAIT
#define RWF_NOWAIT 8
#endif

/* Read what is in memory. Fails with EAGAIN where a disk would have to be waited for, and
   with EOPNOTSUPP where the file system cannot tell. By number, since musl before 1.2.5 has no
   function for it. */
static inline ssize_t wk_read_resident(int fd, void *out, size_t n, int64_t offset)
{
    struct iovec span = {out, n};
    return syscall(SYS_preadv2, fd, &span, 1, (long)offset, 0L, RWF_NOWAIT);
}

/* Whether all of a span of a file, which does not reach beyond its end, is in the page cache or on
   its way there. 0 also where the kernel has no cachestat (before 6.5), or does not say it of
   files that are somebody else's. By number, which is the same everywhere, as C libraries have
   no function for it. */
static inline int wk_all_cached(int fd, int64_t offset, int64_t n)
{
    uint64_t span[2] = {(uint64_t)offset, (uint64_t)n};
    uint64_t found[5]; /* struct cachestat; the first counts pages that are in the cache */
    int64_t page = sysconf(_SC_PAGESIZE);
    if (syscall(451L, fd, span, found, 0) != 0)
        return 0;
    return found[0] == (uint64_t)((offset + n - 1) / page - offset / page + 1);
}

/* Whether a file is in a file system without a disk: tmpfs (as a memfd is), ramfs, hugetlbfs. */
static inline int wk_in_memory(int fd)
{
    struct statfs of;
    if (fstatfs(fd, &of) != 0)
        return 0;
    return (uint32_t)of.f_type == 0x01021994u || (uint32_t)of.f_type == 0x858458f6u
           || (uint32_t)of.f_type == 0x958458f6u;
}

/* The size, or -1. */
static inline int64_t wk_file_size(int fd)
{
    struct stat of;
    return fstat(fd, &of) == 0 ? (int64_t)of.st_size : -1;
}

/* Calls on sockets that have no flag against SIGPIPE, unlike send. The signal is sent to this
   thread, also if a part was sent before the connection was found broken: it is blocked
   meanwhile, and taken, unless it waited already. */
struct wk_sigpipe {
    sigset_t only, blocked, pending;
};

static inline void wk_sigpipe_block(struct wk_sigpipe *guard)
{
    sigemptyset(&guard->only);
    sigaddset(&guard->only, SIGPIPE);
    sigemptyset(&guard->pending);
    pthread_sigmask(SIG_BLOCK, &guard->only, &guard->blocked);
    if (sigismember(&guard->blocked, SIGPIPE))
        sigpending(&guard->pending);
}

static inline void wk_sigpipe_take(struct wk_sigpipe *guard)
{
    static const struct timespec at_once;
    int error = errno;
    if (!sigismember(&guard->pending, SIGPIPE))
        while (sigtimedwait(&guard->only, NULL, &at_once) < 0 && errno == EINTR)
            ;
    errno = error;
}

static inline void wk_sigpipe_restore(struct wk_sigpipe *guard)
{
    int error = errno;
    pthread_sigmask(SIG_SETMASK, &guard->blocked, NULL);
    errno = error;
}

static inline ssize_t wk_sendfile(int sock, int fd, int64_t offset, size_t n)
{
    struct wk_sigpipe guard;
    off_t at = offset;
    ssize_t sent;
    wk_sigpipe_block(&guard);
    sent = sendfile(sock, fd, &at, n);
    if (sent < (ssize_t)n)
        wk_sigpipe_take(&guard);
    wk_sigpipe_restore(&guard);
    return sent;
}

static inline ssize_t wk_splice_to_socket(int pipe, int sock, size_t n)
{
    struct wk_sigpipe guard;
    ssize_t sent;
    wk_sigpipe_block(&guard);
    sent = splice(pipe, NULL, sock, NULL, n, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    if (sent < (ssize_t)n)
        wk_sigpipe_take(&guard);
    wk_sigpipe_restore(&guard);
    return sent;
}

#endif
