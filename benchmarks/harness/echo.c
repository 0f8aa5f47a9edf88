/* A plain echo server, the yardstick: what epoll and the system calls alone cost.
 *
 *     echo PORT    (0: a free one)
 *
 * One thread, level triggered, one recv and one send for each event. It speaks as
 * servers.py does: says its port as a line of JSON, and ends when standard input does.
 * A connection whose peer does not read is not read from, either. TCP_NODELAY is set. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { EVENTS = 512, RECEIVE = 65536, BACKLOG = 65535 };

struct conn {
    int fd;
    char *unsent; /* NULL: nothing is */
    size_t start, end;
};

static int epoll;
static char buffer[RECEIVE];
static struct conn listener, input = {.fd = STDIN_FILENO};

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void watch(struct conn *conn, int operation, unsigned events) {
    struct epoll_event event = {.events = events, .data.ptr = conn};
    if (epoll_ctl(epoll, operation, conn->fd, &event) != 0) fail("epoll_ctl");
}

static void part(struct conn *conn) {
    close(conn->fd);
    free(conn->unsent);
    free(conn);
}

static void welcome(void) {
    int fd, one = 1;
    while ((fd = accept4(listener.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct conn *conn = calloc(1, sizeof *conn);
        if (conn == NULL) fail("calloc");
        conn->fd = fd;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        watch(conn, EPOLL_CTL_ADD, EPOLLIN);
    }
    if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) fail("accept4");
}

/* How many bytes the kernel took, or -1 if the connection is no more. */
static ssize_t give(struct conn *conn, const char *bytes, size_t length) {
    ssize_t sent = send(conn->fd, bytes, length, MSG_NOSIGNAL);
    return sent >= 0 ? sent : errno == EAGAIN || errno == EINTR ? 0 : -1;
}

static void keep(struct conn *conn, const char *bytes, size_t length) {
    conn->unsent = malloc(length);
    if (conn->unsent == NULL) fail("malloc");
    memcpy(conn->unsent, bytes, length);
    conn->start = 0;
    conn->end = length;
    watch(conn, EPOLL_CTL_MOD, EPOLLOUT);
}

static void echo(struct conn *conn) {
    ssize_t got = recv(conn->fd, buffer, sizeof buffer, 0), sent;
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0 || (sent = give(conn, buffer, got)) < 0)
        part(conn);
    else if (sent < got)
        keep(conn, buffer + sent, got - sent);
}

static void go_on(struct conn *conn) {
    ssize_t sent = give(conn, conn->unsent + conn->start, conn->end - conn->start);
    if (sent < 0) {
        part(conn);
        return;
    }
    conn->start += sent;
    if (conn->start < conn->end) return;
    free(conn->unsent);
    conn->unsent = NULL;
    watch(conn, EPOLL_CTL_MOD, EPOLLIN);
}

static void end_with_input(void) {
    if (read(STDIN_FILENO, buffer, sizeof buffer) <= 0) exit(0);
}

static void serve(struct conn *conn) {
    if (conn == &listener)
        welcome();
    else if (conn == &input)
        end_with_input();
    else if (conn->unsent != NULL)
        go_on(conn);
    else
        echo(conn);
}

static void listen_on(unsigned short port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    socklen_t length = sizeof address;
    int one = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listener.fd < 0) fail("socket");
    setsockopt(listener.fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener.fd, (struct sockaddr *)&address, sizeof address) != 0) fail("bind");
    if (listen(listener.fd, BACKLOG) != 0) fail("listen");
    getsockname(listener.fd, (struct sockaddr *)&address, &length);
    printf("{\"answer\": %d}\n", ntohs(address.sin_port));
    fflush(stdout);
}

int main(int argc, char **argv) {
    struct epoll_event events[EVENTS];
    if ((epoll = epoll_create1(EPOLL_CLOEXEC)) < 0) fail("epoll_create1");
    listen_on(argc > 1 ? atoi(argv[1]) : 0);
    watch(&listener, EPOLL_CTL_ADD, EPOLLIN);
    watch(&input, EPOLL_CTL_ADD, EPOLLIN);
    for (;;) {
        int ready = epoll_wait(epoll, events, EVENTS, -1);
        if (ready < 0 && errno != EINTR) fail("epoll_wait");
        for (int i = 0; i < ready; i++) serve(events[i].data.ptr);
    }
}
