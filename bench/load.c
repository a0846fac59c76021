/*
 * The client of the benchmarks: many connections of mutual TLS 1.3 out of one thread, so that the client costs
 * less than whatever it measures.
 *
 *   load <IPv6 address> <port> <certificate.pem> <key.pem> <connections> <milliseconds> <path> <mode>
 *
 *   requests    each connection asks for <path> again and again; the time begins, and {"ready":true} is printed,
 *               when all are connected
 *   reconnect   each request has a connection, and a full handshake, of its own
 *   handshake   connections are closed when the server's first ticket came: it has checked the client then
 *   hold        opens the connections, asks once on each, and keeps them until stdin ends
 *   stall       opens the connections, asks once on each, reads nothing of the answer, and keeps them until stdin ends
 *
 * Offers TLS_AES_128_GCM_SHA256 and X25519 alone and never resumes. Ends with one line of JSON on stdout: times in
 * microseconds, from the request (or from connect) to the last byte. Every answer but 200, and every
 * connection that ends early, counts as an error and is printed as such.
 *
 * cc -O2 -o load load.c -lssl -lcrypto
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum mode { REQUESTS, RECONNECT, HANDSHAKE, HOLD, STALL };
enum state { SHAKING, WRITING, HEAD, BODY, IDLE, STALLED };

struct connection {
  int fd;
  SSL *ssl;
  enum state state;
  int ticket;
  size_t written, head_length;
  long long left;
  double begun;
  char head[8192];
};

#define BUCKETS 2000000 /* of a microsecond: what took longer than two seconds counts as two */

static struct sockaddr_in6 address;
static SSL_CTX *context;
static char request[4096];
static size_t request_length;
static enum mode mode;
static int poller;
static unsigned *times;
static long long done, bytes, errors, opened;
static int stopping;
static char buffer[262144];

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static int on_ticket(SSL *ssl, SSL_SESSION *session) {
  (void)session;
  ((struct connection *)SSL_get_app_data(ssl))->ticket = 1;
  return 0;
}

static void open_connection(struct connection *c) {
  int one = 1;
  /* Closed by a reset, so that a hundred thousand connections do not use up the ports. */
  struct linger hard = {1, 0};
  c->fd = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (c->fd < 0) fail("socket");
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
  c->begun = now();
  if (connect(c->fd, (struct sockaddr *)&address, sizeof address) < 0 && errno != EINPROGRESS) fail("connect");
  c->ssl = SSL_new(context);
  SSL_set_fd(c->ssl, c->fd);
  SSL_set_app_data(c->ssl, c);
  SSL_set_connect_state(c->ssl);
  c->state = SHAKING;
  c->ticket = 0;
  c->written = c->head_length = 0;
  struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = c};
  if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event) < 0) fail("epoll_ctl");
}

static void close_connection(struct connection *c) {
  SSL_free(c->ssl);
  close(c->fd);
}

static void reopen(struct connection *c) {
  close_connection(c);
  if (!stopping) open_connection(c);
}

static void broken(struct connection *c) {
  errors++;
  if (errors > 10000) {
    fprintf(stderr, "more than 10,000 connections failed\n");
    exit(1);
  }
  reopen(c);
}

static void count(struct connection *c) {
  double took = now() - c->begun;
  times[took >= BUCKETS ? BUCKETS - 1 : (int)took]++;
  done++;
}

static void begin_request(struct connection *c) {
  if (mode == REQUESTS) c->begun = now();
  c->state = WRITING;
  c->written = c->head_length = 0;
}

static void answered(struct connection *c) {
  count(c);
  if (mode == RECONNECT) reopen(c);
  else if (mode == HOLD) c->state = IDLE;
  else begin_request(c);
}

/* Takes in one piece of the answer's head. Returns 0 where the connection was given up. */
static int take_head(struct connection *c, int got) {
  if (c->head_length + got >= sizeof c->head) return broken(c), 0;
  memcpy(c->head + c->head_length, buffer, got);
  c->head_length += got;
  c->head[c->head_length] = 0;
  char *end = strstr(c->head, "\r\n\r\n");
  if (end == NULL) return 1;
  char *length = strcasestr(c->head, "\r\ncontent-length:");
  if (strncmp(c->head, "HTTP/1.1 200", 12) != 0 || length == NULL || length > end) {
    if (errors == 0) fprintf(stderr, "%.*s\n", (int)(end - c->head), c->head);
    return broken(c), 0;
  }
  long long rest = c->head_length - (end + 4 - c->head);
  c->left = atoll(length + 17) - rest;
  bytes += rest;
  c->state = BODY;
  return 1;
}

static void run(struct connection *c) {
  for (;;) {
    int got = -1;
    switch (c->state) {
      case SHAKING:
        got = SSL_do_handshake(c->ssl);
        if (got == 1) {
          opened++;
          if (mode == HANDSHAKE) c->state = IDLE;
          else begin_request(c);
          continue;
        }
        break;
      case WRITING:
        got = SSL_write(c->ssl, request + c->written, request_length - c->written);
        if (got > 0) {
          c->written += got;
          if (c->written == request_length) {
            c->state = mode == STALL ? STALLED : HEAD;
            if (mode == STALL) count(c);
          }
          continue;
        }
        break;
      case HEAD:
        got = SSL_read(c->ssl, buffer, 4096);
        if (got > 0) {
          if (!take_head(c, got)) return;
          if (c->state == BODY && c->left == 0) {
            answered(c);
            if (mode == RECONNECT) return;
          }
          continue;
        }
        break;
      case BODY:
        got = SSL_read(c->ssl, buffer, c->left < (long long)sizeof buffer ? c->left : (long long)sizeof buffer);
        if (got > 0) {
          bytes += got;
          c->left -= got;
          if (c->left == 0) {
            answered(c);
            if (mode == RECONNECT) return;
          }
          continue;
        }
        break;
      case STALLED:
        return;
      case IDLE:
        got = SSL_read(c->ssl, buffer, sizeof buffer);
        if (mode == HANDSHAKE && c->ticket) {
          count(c);
          reopen(c);
          return;
        }
        if (got > 0) continue;
        break;
    }
    int why = SSL_get_error(c->ssl, got);
    if (why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE) return;
    broken(c);
    return;
  }
}

static double percentile(double part) {
  long long rank = (long long)(done * part), seen = 0;
  for (int at = 0; at < BUCKETS; at++) if ((seen += times[at]) > rank) return at;
  return 0;
}

int main(int count_of_arguments, char **arguments) {
  if (count_of_arguments != 9) {
    fprintf(stderr, "load <address> <port> <certificate> <key> <connections> <milliseconds> <path> requests|reconnect|handshake|hold|stall\n");
    return 2;
  }
  const char *names[] = {"requests", "reconnect", "handshake", "hold", "stall"};
  int known = 0;
  for (int at = 0; at < 5; at++) if (strcmp(arguments[8], names[at]) == 0) mode = at, known = 1;
  address.sin6_family = AF_INET6;
  address.sin6_port = htons(atoi(arguments[2]));
  if (!known || inet_pton(AF_INET6, arguments[1], &address.sin6_addr) != 1) return 2;
  int connections = atoi(arguments[5]);
  double limit = atof(arguments[6]) * 1e3;
  request_length = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: [::1]:%s\r\nAccept: application/json\r\n\r\n", arguments[7], arguments[2]);
  if (request_length >= sizeof request) return 2;

  signal(SIGPIPE, SIG_IGN);
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  context = SSL_CTX_new(TLS_client_method());
  SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION);
  SSL_CTX_set_verify(context, SSL_VERIFY_NONE, NULL);
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
  SSL_CTX_sess_set_new_cb(context, on_ticket);
  if (SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256") != 1 || SSL_CTX_set1_groups_list(context, "X25519") != 1 ||
      SSL_CTX_use_certificate_chain_file(context, arguments[3]) != 1 || SSL_CTX_use_PrivateKey_file(context, arguments[4], SSL_FILETYPE_PEM) != 1) {
    fprintf(stderr, "key or certificate cannot be used\n");
    return 2;
  }
  times = calloc(BUCKETS, sizeof *times);
  poller = epoll_create1(0);
  struct connection *all = calloc(connections, sizeof *all);
  if (times == NULL || poller < 0 || all == NULL) fail("start");

  struct epoll_event events[256];
  int holds = mode == HOLD || mode == STALL;
  double from = now();
  int started = 0, announced = 0;
  if (holds) {
    struct epoll_event input = {.events = EPOLLIN, .data.ptr = NULL};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, 0, &input) < 0) fail("stdin");
  }
  for (;;) {
    /* Connections that are held are opened a few at a time: no listener's backlog has to hold them all. */
    int most = holds ? (int)(done + errors) + 32 : connections;
    while (started < connections && started < most) open_connection(&all[started++]);
    if (holds && !announced && done + errors >= connections) {
      printf("{\"held\":%lld,\"errors\":%lld,\"seconds\":%.3f}\n", done, errors, (now() - from) / 1e6);
      fflush(stdout);
      announced = 1;
    }
    if (mode == REQUESTS && !announced && opened >= connections) {
      /* What it took to connect counts for nothing. */
      memset(times, 0, BUCKETS * sizeof *times);
      done = bytes = 0;
      from = now();
      announced = 1;
      printf("{\"ready\":true}\n");
      fflush(stdout);
    }
    double left = (mode == REQUESTS && !announced ? 60e6 : limit) - (now() - from);
    if (!holds && left <= 0) break;
    int found = epoll_wait(poller, events, 256, holds ? -1 : (int)(left / 1e3) + 1);
    int input_ended = 0;
    for (int at = 0; at < found; at++) {
      if (events[at].data.ptr == NULL) input_ended = 1;
      else run(events[at].data.ptr);
    }
    if (input_ended) break;
  }
  double seconds = (now() - from) / 1e6;
  stopping = 1;
  struct rusage used;
  getrusage(RUSAGE_SELF, &used);
  double cpu = used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
  if (!holds) printf("{\"done\":%lld,\"seconds\":%.4f,\"bytes\":%lld,\"errors\":%lld,\"opened\":%lld,\"p50\":%.0f,\"p99\":%.0f,\"cpu\":%.3f}\n", done, seconds, bytes, errors, opened, percentile(0.5), percentile(0.99), cpu);
  return 0;
}
