/* One message to many, the yardstick: what the system calls alone cost.
 *
 *     broadcast COUNT SIZE
 *
 * It says its port, accepts COUNT connections, and then, for each line of standard input, sends
 * SIZE bytes to one after the other, and says when it began and how many seconds that took. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
    if (argc != 3)
        return 2;
    int count = atoi(argv[1]), size = atoi(argv[2]), one = 1;
    int *fds = calloc(count, sizeof(int));
    char *message = calloc(size, 1), *line = NULL;
    size_t room = 0;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof(address);
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&address, length) || listen(listener, 65535) ||
        getsockname(listener, (struct sockaddr *)&address, &length))
        return 1;
    printf("{\"answer\": %d}\n", ntohs(address.sin_port));
    fflush(stdout);
    for (int i = 0; i < count; i++) {
        fds[i] = accept(listener, NULL, NULL);
        if (fds[i] < 0)
            return 1;
        setsockopt(fds[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    }
    while (getline(&line, &room, stdin) > 0) {
        double began = now();
        for (int i = 0; i < count; i++)
            if (send(fds[i], message, size, MSG_DONTWAIT | MSG_NOSIGNAL) != size)
                return 1;
        printf("{\"answer\": [%.9f, %.9f]}\n", began, now() - began);
        fflush(stdout);
    }
    return 0;
}
