/* Who refuses every connection, the yardstick: what the kernel alone takes for it.
 *
 *     refuse
 *
 * It says its port, and resets what it accepts, until its standard input ends. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

static void refuse_all(int listener) {
    struct linger reset = {1, 0};
    struct sockaddr_storage peer;
    for (;;) {
        socklen_t length = sizeof(peer);
        int fd = accept4(listener, (struct sockaddr *)&peer, &length, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
        close(fd);
    }
}

int main(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof(address);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (bind(listener, (struct sockaddr *)&address, length) || listen(listener, 65535) ||
        getsockname(listener, (struct sockaddr *)&address, &length))
        return 1;
    printf("{\"answer\": %d}\n", ntohs(address.sin_port));
    fflush(stdout);
    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    event.data.fd = listener;
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    event.events = EPOLLHUP;
    event.data.fd = 0;
    epoll_ctl(epoll, EPOLL_CTL_ADD, 0, &event);
    for (;;) {
        if (epoll_wait(epoll, &event, 1, -1) == 1 && event.data.fd == 0)
            return 0;
        refuse_all(listener);
    }
}
