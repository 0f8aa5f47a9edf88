/* The load of TLS, which is not what holds a server up: TLS 1.3 with AES-GCM.
 *
 *     tls_load PORT CONNECTIONS SIZE IN_FLIGHT    messages, some of them in flight on each
 *     tls_load PORT CONNECTIONS SIZE 0            one message on each, then silence
 *     tls_load PORT CONNECTIONS 0 0               full handshakes, some at a time
 *
 * A fifth argument is the message: SIZE are the bytes of an answer then.
 *
 * One thread, edge triggered. What one event makes due leaves in one send. It says 0 once each
 * connection was answered, for each line of standard input how many messages were answered, or
 * handshakes done, so far, and ends when standard input does. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { EVENTS = 256, BUFFER = 1 << 18, AT_A_TIME = 64 };

struct conn {
    int fd;
    SSL *ssl;
    BIO *in, *out;
    size_t got;
    int began, answered;
};

static int epoll, port, connections, size, length, in_flight, begun, answered;
static struct conn *all;
static long count;
static char buffer[BUFFER], *message;
static SSL_CTX *context;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void say(long number) {
    printf("{\"answer\": %ld}\n", number);
    fflush(stdout);
}

static void flush(struct conn *conn) {
    char *data;
    long unsent;
    while ((unsent = BIO_get_mem_data(conn->out, &data)) > 0) {
        ssize_t sent = send(conn->fd, data, unsent, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) return;
        if (sent < 0 && size > 0) fail("send");
        if (sent < 0 || sent == unsent) /* it was closed: receiving will say so */
            (void)BIO_reset(conn->out);
        else
            for (ssize_t n; sent > 0; sent -= n)
                n = BIO_read(conn->out, buffer, sent < BUFFER ? sent : BUFFER);
    }
}

static void begin(struct conn *conn) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = conn};
    int one = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    memset(conn, 0, sizeof *conn);
    conn->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (conn->fd < 0 || connect(conn->fd, (struct sockaddr *)&address, sizeof address) != 0)
        fail("connect");
    setsockopt(conn->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(conn->fd, F_SETFL, O_NONBLOCK);
    conn->ssl = SSL_new(context);
    conn->in = BIO_new(BIO_s_mem());
    conn->out = BIO_new(BIO_s_mem());
    SSL_set_bio(conn->ssl, conn->in, conn->out);
    SSL_set_connect_state(conn->ssl);
    SSL_do_handshake(conn->ssl);
    flush(conn);
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, conn->fd, &event) != 0) fail("epoll_ctl");
}

/* Without TIME_WAIT: the ports would run out. The server has closed it before. */
static void end(struct conn *conn) {
    struct linger at_once = {.l_onoff = 1};
    setsockopt(conn->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(conn->fd);
    SSL_free(conn->ssl);
}

static void ask(struct conn *conn, long messages) {
    for (; messages > 0; messages--)
        if (SSL_write(conn->ssl, message, length) != length) fail("SSL_write");
}

static void handshake(struct conn *conn) {
    if (SSL_do_handshake(conn->ssl) != 1) {
        if (SSL_get_error(conn->ssl, -1) != SSL_ERROR_WANT_READ) fail("handshake");
        return;
    }
    conn->began = 1;
    if (size > 0) {
        ask(conn, in_flight > 0 ? in_flight : 1);
    } else {
        count++;
        SSL_shutdown(conn->ssl);
    }
}

static void take(struct conn *conn) {
    int got;
    long whole;
    while ((got = SSL_read(conn->ssl, buffer, BUFFER)) > 0) {
        conn->got += got;
        whole = conn->got / size;
        conn->got %= size;
        count += whole;
        if (whole > 0 && !conn->answered) {
            conn->answered = 1;
            if (++answered == connections) say(0);
            if (begun < connections) begin(&all[begun++]);
        }
        if (in_flight > 0) ask(conn, whole);
    }
}

static void go_on(struct conn *conn) {
    ssize_t got;
    flush(conn);
    while ((got = recv(conn->fd, buffer, BUFFER, 0)) > 0) {
        BIO_write(conn->in, buffer, got);
        if (!conn->began) handshake(conn);
        if (conn->began && size > 0) take(conn);
        flush(conn);
    }
    if (got < 0 && errno == EAGAIN) return;
    if (size > 0 || !conn->began) fail("the server has closed a connection");
    end(conn);
    begin(conn);
}

static void answer(void) {
    if (read(STDIN_FILENO, buffer, BUFFER) <= 0) exit(0);
    say(count);
}

int main(int argc, char **argv) {
    struct epoll_event events[EVENTS], input = {.events = EPOLLIN};
    if (argc != 5 && argc != 6) return 2;
    port = atoi(argv[1]);
    connections = atoi(argv[2]);
    size = atoi(argv[3]);
    in_flight = atoi(argv[4]);
    message = argc == 6 ? argv[5] : calloc(size + 1, 1);
    length = argc == 6 ? (int)strlen(message) : size;
    context = SSL_CTX_new(TLS_client_method());
    all = calloc(connections, sizeof *all);
    if (message == NULL || context == NULL || all == NULL) fail("no memory");
    SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION);
    SSL_CTX_set_ciphersuites(context, "TLS_AES_256_GCM_SHA384");
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    if ((epoll = epoll_create1(EPOLL_CLOEXEC)) < 0) fail("epoll_create1");
    epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &input);
    while (begun < connections && (size == 0 || begun < AT_A_TIME)) begin(&all[begun++]);
    if (size == 0) say(0);
    for (;;) {
        int ready = epoll_wait(epoll, events, EVENTS, -1);
        if (ready < 0 && errno != EINTR) fail("epoll_wait");
        for (int i = 0; i < ready; i++)
            if (events[i].data.ptr == NULL)
                answer();
            else
                go_on(events[i].data.ptr);
    }
}
