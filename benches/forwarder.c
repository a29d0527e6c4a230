/* The yardstick of `make bench`: a bare epoll forwarder. It knows nothing, checks nothing and has one thread.
 * cc -O2 -o forwarder forwarder.c; ./forwarder LISTEN-PORT TARGET-ADDRESS TARGET-PORT */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

struct end { int fd; struct end *peer; char *rest; size_t at, left; int dead; };
static char buffer[65536];
static int ep;

static void nodelay(int fd) { int one = 1; setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); }

static void arm(struct end *e, uint32_t events) {
    struct epoll_event ev = { .events = events, .data.ptr = e };
    epoll_ctl(ep, EPOLL_CTL_MOD, e->fd, &ev);
}

/* Writes what `to` takes; the rest is kept, and `from` is not read until it is gone. */
static int put(struct end *from, struct end *to, const char *data, size_t n) {
    while (n) {
        ssize_t w = write(to->fd, data, n);
        if (w < 0 && errno == EAGAIN) {
            to->rest = malloc(n); memcpy(to->rest, data, n); to->at = 0; to->left = n;
            arm(from, 0); arm(to, EPOLLIN | EPOLLOUT);
            return 0;
        }
        if (w <= 0) return -1;
        data += w; n -= (size_t)w;
    }
    return 0;
}

static int drain(struct end *e) {
    while (e->left) {
        ssize_t w = write(e->fd, e->rest + e->at, e->left);
        if (w < 0 && errno == EAGAIN) return 0;
        if (w <= 0) return -1;
        e->at += (size_t)w; e->left -= (size_t)w;
    }
    free(e->rest); e->rest = NULL;
    arm(e, EPOLLIN); arm(e->peer, e->peer->left ? EPOLLIN | EPOLLOUT : EPOLLIN);
    return 0;
}

static void drop(struct end *e) {
    struct end *both[2] = { e, e->peer };
    for (int i = 0; i < 2; i++) { close(both[i]->fd); free(both[i]->rest); both[i]->rest = NULL; both[i]->dead = 1; }
}

int main(int argc, char **argv) {
    if (argc != 4) { fprintf(stderr, "usage: forwarder LISTEN-PORT TARGET-ADDRESS TARGET-PORT\n"); return 2; }
    signal(SIGPIPE, SIG_IGN);
    struct sockaddr_in here = { .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1])) };
    struct sockaddr_in there = { .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[3])) };
    inet_pton(AF_INET, "127.0.0.1", &here.sin_addr);
    inet_pton(AF_INET, argv[2], &there.sin_addr);
    int one = 1, l = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(l, (void *)&here, sizeof here) || listen(l, 4096)) { perror("listen"); return 1; }
    ep = epoll_create1(0);
    struct epoll_event ev = { .events = EPOLLIN, .data.ptr = NULL }, got[64];
    epoll_ctl(ep, EPOLL_CTL_ADD, l, &ev);
    for (;;) {
        int n = epoll_wait(ep, got, 64, -1);
        for (int i = 0; i < n; i++) {
            struct end *e = got[i].data.ptr;
            if (!e) {
                int c = accept4(l, NULL, NULL, SOCK_NONBLOCK), s = socket(AF_INET, SOCK_STREAM, 0);
                if (c < 0 || connect(s, (void *)&there, sizeof there)) { close(c); close(s); continue; }
                struct end *a = calloc(1, sizeof *a), *b = calloc(1, sizeof *b);
                a->fd = c; b->fd = s; a->peer = b; b->peer = a;
                nodelay(c); nodelay(s); fcntl(s, F_SETFL, O_NONBLOCK);
                struct epoll_event ea = { .events = EPOLLIN, .data.ptr = a }, eb = { .events = EPOLLIN, .data.ptr = b };
                epoll_ctl(ep, EPOLL_CTL_ADD, c, &ea); epoll_ctl(ep, EPOLL_CTL_ADD, s, &eb);
                continue;
            }
            if (e->dead) continue; /* leaked on purpose: a stale event may still point here */
            if (got[i].events & EPOLLOUT && drain(e)) { drop(e); continue; }
            if (!(got[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))) continue;
            ssize_t r = recv(e->fd, buffer, sizeof buffer, MSG_DONTWAIT);
            if (r < 0 && errno == EAGAIN) continue;
            if (r <= 0 || put(e, e->peer, buffer, (size_t)r)) drop(e);
        }
    }
}
