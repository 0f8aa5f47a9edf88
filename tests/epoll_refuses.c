/* Lets epoll refuse what the reactors add, as it does at fs.epoll.max_user_watches. To
 * be preloaded. Trio's own calls (EPOLLONESHOT) are let through. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <sys/epoll.h>

int refusal = 0; /* the errno; 0: nothing is refused */

int epoll_ctl(int epfd, int operation, int fd, struct epoll_event *event)
{
    static int (*real)(int, int, int, struct epoll_event *);
    int error = refusal;
    if (error && operation == EPOLL_CTL_ADD && !(event->events & EPOLLONESHOT)) {
        errno = error;
        return -1;
    }
    if (!real)
        real = (int (*)(int, int, int, struct epoll_event *))dlsym(RTLD_NEXT, "epoll_ctl");
    return real(epfd, operation, fd, event);
}
