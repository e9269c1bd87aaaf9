/*
 * An upstream that streams pieces, and clients that count them behind a proxy. One process, one thread.
 *
 *   sse PORT KEY
 *
 * The upstream listens on 127.0.0.1:PORT. A request with `Bearer KEY` gets a chunked text/event-stream, each piece in a write of
 * its own. Any other request gets 401. A request whose body names `stream-NNNNNN` opens the stream of that number, which goes on
 * for as long as its client wants. Any other stream has three pieces, `[DONE]` and the end.
 *
 * The clients take orders from stdin, one per line, and reply with one line of JSON on stdout. FILE holds a whole request. The
 * digits in its `stream-000000` are replaced.
 *
 *   probe PORT MILLISECONDS FILE      one request after the other on one connection: microseconds to the first event and to the end
 *   open PORT STREAMS MILLISECONDS FILE   open streams and wait until each has its first piece
 *   run WINDOW MILLISECONDS           count the pieces that arrive. At most WINDOW pieces of a stream are on their way at once;
 *                                     0: as many as the sockets take
 *   close                             close all streams, and wait until the upstream sees them closed
 *
 * Both ends are one process, so it knows when a piece has arrived, and then sends the next one, as in a closed loop of requests.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_STREAMS 20000
#define MAX_REQUEST 65536
#define MAX_SAMPLES 4000000
#define CONNECTING_AT_ONCE 64
#define DATA                                                                                                              \
    "data: {\"id\":\"chatcmpl-Bq3tXw8YkLm2Np5RsVz7\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,"         \
    "\"model\":\"gpt-4o-mini\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" one more piece of it\"},"               \
    "\"finish_reason\":null}]}\n\n"
#define CHUNK_END "\r\n"
#define LAST "data: [DONE]\n\n"

static const char HEAD[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
                           "Transfer-Encoding: chunked\r\n\r\n";
static const char REFUSAL[] = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n";

enum kind { LISTENER, COMMANDS, UPSTREAM, STREAM, PROBE };

struct conn {
    enum kind kind;
    int fd;
    int id;           /* number of its stream; -1 for none */
    int blocked;      /* the socket takes no more at the moment */
    size_t offset;    /* bytes written of a piece that was written in part */
    char *request;    /* upstream: the bytes received */
    size_t length;
    int status;       /* client: 0 until the status line has come */
    char line[16];
    size_t line_length;
    char last;        /* last byte, to find the empty line that ends an event */
    struct conn *next_dead;
};

struct stream {
    struct conn *client, *upstream;
    long sent, received;
};

static int poller;
static struct conn *dead;
static struct stream streams[MAX_STREAMS];
static int stream_count;
static int window = -1; /* -1 sends nothing after a stream's first piece */
static long pieces_received, streams_open, streams_failed, upstream_streams;
static char piece[1024], first[2048], rest[4096];
static size_t piece_length, first_length, rest_length;
static char authorization[512];
static char *request_text;
static size_t request_length, request_digits;
static char buffer[1 << 18];

static struct {
    struct conn *conn;
    int active, failed, event, chunked;
    double began;
    long length; /* bytes of the body still to come; -1 if unknown */
    char head[8192];
    size_t head_length;
    char tail[5];
    float *firsts, *totals;
    long count, first_count;
    int port;
} probe;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static struct conn *watch(enum kind kind, int fd) {
    struct conn *c = calloc(1, sizeof *c);
    c->kind = kind;
    c->fd = fd;
    c->id = -1;
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e);
    return c;
}

static void want(struct conn *c, uint32_t events) {
    struct epoll_event e = {.events = events, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e);
}

/* Events of this turn may still point to it, so its memory is freed at the end of the turn. */
static void discard(struct conn *c) {
    if (c->fd < 0) return;
    close(c->fd);
    c->fd = -1;
    if (c->kind == UPSTREAM && c->id >= 0) {
        streams[c->id].upstream = NULL;
        upstream_streams--;
    }
    c->next_dead = dead;
    dead = c;
}

/* The upstream. */

static void put(struct conn *c, const char *data, size_t length) {
    if (write(c->fd, data, length) != (ssize_t)length) discard(c); /* an empty socket buffer takes it whole */
}

/* Send one piece. Returns 0 if the socket takes no more. */
static int send_piece(struct stream *s) {
    struct conn *c = s->upstream;
    if (c == NULL || c->blocked) return 0;
    ssize_t n = write(c->fd, piece + c->offset, piece_length - c->offset);
    if (n < 0) {
        if (errno != EAGAIN) {
            discard(c);
            return 0;
        }
        n = 0;
    }
    c->offset += n;
    if (c->offset < piece_length) {
        c->blocked = 1;
        want(c, EPOLLIN | EPOLLOUT);
        return 0;
    }
    c->offset = 0;
    s->sent++;
    return 1;
}

static void refill(struct stream *s) {
    while (window > 0 && s->sent - s->received < window && send_piece(s)) {}
}

static void respond(struct conn *c) {
    c->request[c->length] = 0;
    c->length = 0;
    if (strstr(c->request, authorization) == NULL) {
        put(c, REFUSAL, sizeof REFUSAL - 1);
        return;
    }
    char *name = strstr(c->request, "stream-");
    int id = name == NULL ? -1 : atoi(name + 7);
    if (id >= 0 && id < stream_count && streams[id].upstream == NULL) {
        c->id = id;
        streams[id].upstream = c;
        streams[id].sent = 1;
        upstream_streams++;
        put(c, first, first_length);
    } else {
        put(c, first, first_length);
        if (c->fd >= 0) put(c, rest, rest_length);
    }
}

/* Return whether a whole request has come. */
static int complete(struct conn *c) {
    c->request[c->length] = 0;
    char *end = strstr(c->request, "\r\n\r\n");
    if (end == NULL) return 0;
    size_t head = end + 4 - c->request;
    *end = 0;
    char *length = strcasestr(c->request, "\ncontent-length:");
    char *chunked = strcasestr(c->request, "\ntransfer-encoding:");
    *end = '\r';
    if (length != NULL) return c->length >= head + strtoul(length + 16, NULL, 10);
    if (chunked != NULL) return c->length >= head + 5 && memcmp(c->request + c->length - 5, "0\r\n\r\n", 5) == 0;
    return 1;
}

static void on_upstream(struct conn *c, uint32_t events) {
    if (events & EPOLLOUT) {
        c->blocked = 0;
        want(c, EPOLLIN);
        if (c->id >= 0 && window == 0) send_piece(&streams[c->id]);
        if (c->fd >= 0 && c->id >= 0) refill(&streams[c->id]);
    }
    if (c->fd < 0 || !(events & (EPOLLIN | EPOLLHUP | EPOLLERR))) return;
    if (c->request == NULL) c->request = malloc(MAX_REQUEST + 1);
    ssize_t n = read(c->fd, c->request + c->length, MAX_REQUEST - c->length);
    if (n <= 0) {
        if (n == 0 || errno != EAGAIN) discard(c);
        return;
    }
    c->length += n;
    if (c->id < 0 && complete(c)) respond(c);
}

static void on_listener(struct conn *c) {
    for (int i = 0; i < 64; i++) {
        int fd = accept4(c->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) return;
        int one = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        watch(UPSTREAM, fd);
    }
}

/* The clients. */

static struct conn *dial(enum kind kind, int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0) {
        if (fd >= 0) close(fd);
        return NULL;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    return watch(kind, fd);
}

static int count_events(struct conn *c, const char *data, ssize_t n) {
    int events = 0;
    const char *at = data, *end = data + n;
    while ((at = memchr(at, '\n', end - at)) != NULL) {
        events += (at == data ? c->last : at[-1]) == '\n';
        at++;
    }
    c->last = data[n - 1];
    return events;
}

static void fail_stream(struct conn *c) {
    struct stream *s = &streams[c->id];
    if (s->received) streams_open--;
    streams_failed++;
    s->client = NULL;
    discard(c);
}

static void on_stream(struct conn *c) {
    ssize_t n = read(c->fd, buffer, sizeof buffer);
    if (n <= 0) {
        if (n == 0 || errno != EAGAIN) fail_stream(c);
        return;
    }
    if (!c->status) {
        for (ssize_t i = 0; i < n && c->line_length < 12; i++) c->line[c->line_length++] = buffer[i];
        if (c->line_length < 12) return;
        c->status = atoi(c->line + 9);
        if (c->status != 200) {
            fail_stream(c);
            return;
        }
    }
    int events = count_events(c, buffer, n);
    if (!events) return;
    struct stream *s = &streams[c->id];
    if (!s->received) streams_open++;
    s->received += events;
    pieces_received += events;
    if (window > 0) refill(s);
}

static void send_probe(void) {
    if (probe.conn == NULL) {
        probe.conn = dial(PROBE, probe.port);
        if (probe.conn == NULL) {
            probe.failed = 1;
            return;
        }
    }
    probe.event = probe.chunked = 0;
    probe.length = -1;
    probe.head_length = 0;
    memset(probe.tail, 0, sizeof probe.tail);
    probe.conn->last = 0;
    probe.active = 1;
    probe.began = now();
    if (write(probe.conn->fd, request_text, request_length) != (ssize_t)request_length) probe.failed = 1;
}

static void on_probe(struct conn *c) {
    ssize_t n = read(c->fd, buffer, sizeof buffer);
    if (n <= 0) {
        if (n < 0 && errno == EAGAIN) return;
        discard(c);
        probe.conn = NULL;
        if (probe.active) probe.failed = 1;
        return;
    }
    double took = now() - probe.began;
    char *body = buffer;
    ssize_t body_length = n;
    if (probe.length < 0 && !probe.chunked) {
        size_t before = probe.head_length, room = sizeof probe.head - 1 - before, taken = (size_t)n < room ? (size_t)n : room;
        memcpy(probe.head + before, buffer, taken);
        probe.head_length += taken;
        probe.head[probe.head_length] = 0;
        char *end = strstr(probe.head, "\r\n\r\n");
        if (end == NULL) return;
        *end = 0;
        char *length = strcasestr(probe.head, "\ncontent-length:");
        if (length != NULL) probe.length = strtol(length + 16, NULL, 10);
        else probe.chunked = 1;
        if (atoi(probe.head + 9) != 200) probe.failed = 1;
        size_t consumed = end + 4 - probe.head - before;
        body += consumed;
        body_length -= consumed;
    }
    if (body_length <= 0) return;
    if (!probe.event && count_events(c, body, body_length)) {
        probe.event = 1;
        if (probe.first_count < MAX_SAMPLES) probe.firsts[probe.first_count++] = took * 1e6;
    }
    int done;
    if (probe.length >= 0) {
        probe.length -= body_length;
        done = probe.length <= 0;
    } else {
        size_t size = body_length < 5 ? body_length : 5;
        memmove(probe.tail, probe.tail + size, 5 - size);
        memcpy(probe.tail + 5 - size, body + body_length - size, size);
        done = memcmp(probe.tail, "0\r\n\r\n", 5) == 0;
    }
    if (done) {
        probe.active = 0;
        if (probe.count < MAX_SAMPLES) probe.totals[probe.count++] = took * 1e6;
    }
}

/* The loop. */

static int line_ready;

static void turn(int timeout) {
    static struct epoll_event events[512];
    int n = epoll_wait(poller, events, 512, timeout);
    for (int i = 0; i < n; i++) {
        struct conn *c = events[i].data.ptr;
        if (c->fd < 0) continue;
        switch (c->kind) {
            case LISTENER: on_listener(c); break;
            case COMMANDS: line_ready = 1; break;
            case UPSTREAM: on_upstream(c, events[i].events); break;
            case STREAM: on_stream(c); break;
            case PROBE: on_probe(c); break;
        }
    }
    while (dead != NULL) {
        struct conn *c = dead;
        dead = c->next_dead;
        free(c->request);
        free(c);
    }
}

static void load_request(const char *path) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        perror(path);
        exit(2);
    }
    free(request_text);
    request_text = calloc(1, MAX_REQUEST + 1);
    request_length = fread(request_text, 1, MAX_REQUEST, file);
    fclose(file);
    char *name = strstr(request_text, "stream-000000");
    request_digits = name == NULL ? 0 : name + 7 - request_text;
}

static int ascending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double rank(float *samples, long count, double share) { return count ? samples[(long)(share * (count - 1))] : 0; }

static void command_probe(int port, double seconds, const char *path) {
    load_request(path);
    probe.port = port;
    probe.failed = probe.active = 0;
    probe.count = probe.first_count = 0;
    double end = now() + seconds;
    while (!probe.failed && now() < end) {
        send_probe();
        double limit = now() + 10;
        while (probe.active && !probe.failed && now() < limit) turn(1000);
        if (probe.active) probe.failed = 1;
    }
    if (probe.conn != NULL) discard(probe.conn);
    probe.conn = NULL;
    turn(0);
    qsort(probe.totals, probe.count, sizeof(float), ascending);
    qsort(probe.firsts, probe.first_count, sizeof(float), ascending);
    printf("{\"count\": %ld, \"failed\": %s, \"total_p50\": %.1f, \"total_p99\": %.1f, \"first_p50\": %.1f, \"first_p99\": %.1f}\n",
           probe.count, probe.failed ? "true" : "false", rank(probe.totals, probe.count, 0.5), rank(probe.totals, probe.count, 0.99),
           rank(probe.firsts, probe.first_count, 0.5), rank(probe.firsts, probe.first_count, 0.99));
}

static void command_open(int port, int count, double seconds, const char *path) {
    load_request(path);
    window = -1;
    stream_count = count;
    streams_open = streams_failed = 0;
    memset(streams, 0, sizeof streams);
    double began = now(), end = began + seconds;
    int begun = 0;
    while (streams_open + streams_failed < count && now() < end) {
        while (begun < count && begun - streams_open - streams_failed < CONNECTING_AT_ONCE) {
            char digits[16];
            struct conn *c = dial(STREAM, port);
            if (c == NULL) {
                streams_failed++;
                begun++;
                continue;
            }
            c->id = begun;
            streams[begun++].client = c;
            snprintf(digits, sizeof digits, "%06d", c->id);
            memcpy(request_text + request_digits, digits, 6);
            if (write(c->fd, request_text, request_length) != (ssize_t)request_length) fail_stream(c);
        }
        turn(10);
    }
    printf("{\"asked\": %d, \"open\": %ld, \"failed\": %ld, \"seconds\": %.3f}\n", count, streams_open, streams_failed, now() - began);
}

static void command_run(int pieces_on_their_way, double seconds) {
    window = pieces_on_their_way;
    long open_before = streams_open;
    double began = now(), end = began + seconds, time;
    pieces_received = 0;
    if (window > 0)
        for (int i = 0; i < stream_count; i++) refill(&streams[i]);
    while ((time = now()) < end) {
        int sent = 0;
        if (window == 0)
            for (int i = 0; i < stream_count; i++) sent += send_piece(&streams[i]);
        turn(sent ? 0 : 10);
    }
    printf("{\"pieces\": %ld, \"seconds\": %.4f, \"lost\": %ld}\n", pieces_received, time - began, open_before - streams_open);
    window = -1;
}

static void command_close(void) {
    window = -1;
    for (int i = 0; i < stream_count; i++)
        if (streams[i].client != NULL) {
            discard(streams[i].client);
            streams[i].client = NULL;
        }
    double began = now(), end = began + 2;
    while (upstream_streams > 0 && now() < end) turn(10);
    double seconds = now() - began;
    long lingering = upstream_streams;
    for (int i = 0; i < stream_count; i++)
        if (streams[i].upstream != NULL) discard(streams[i].upstream);
    turn(0);
    stream_count = 0;
    printf("{\"seconds\": %.4f, \"lingering\": %ld}\n", seconds, lingering);
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: sse PORT KEY\n");
        return 2;
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    setvbuf(stdout, NULL, _IOLBF, 0);
    snprintf(authorization, sizeof authorization, "Bearer %s\r\n", argv[2]);
    piece_length = snprintf(piece, sizeof piece, "%zx\r\n%s%s", sizeof DATA - 1, DATA, CHUNK_END);
    first_length = snprintf(first, sizeof first, "%s%s", HEAD, piece);
    rest_length = snprintf(rest, sizeof rest, "%s%s%zx\r\n%s%s0\r\n\r\n", piece, piece, sizeof LAST - 1, LAST, CHUNK_END);
    probe.firsts = malloc(MAX_SAMPLES * sizeof(float));
    probe.totals = malloc(MAX_SAMPLES * sizeof(float));

    poller = epoll_create1(EPOLL_CLOEXEC);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, 4096) < 0) {
        perror("listen");
        return 1;
    }
    watch(LISTENER, fd);
    watch(COMMANDS, 0);

    /* One line of stdin at a time: the benchmark waits for the reply before its next order. */
    char line[4096], path[3072];
    for (;;) {
        int a, b, c;
        turn(1000);
        if (!line_ready) continue;
        line_ready = 0;
        if (fgets(line, sizeof line, stdin) == NULL) return 0;
        if (sscanf(line, "probe %d %d %3071s", &a, &b, path) == 3) command_probe(a, b / 1e3, path);
        else if (sscanf(line, "open %d %d %d %3071s", &a, &b, &c, path) == 4 && b <= MAX_STREAMS) command_open(a, b, c / 1e3, path);
        else if (sscanf(line, "run %d %d", &a, &b) == 2) command_run(a, b / 1e3);
        else if (strncmp(line, "close", 5) == 0) command_close();
        else printf("{\"error\": \"unknown command\"}\n");
    }
}
