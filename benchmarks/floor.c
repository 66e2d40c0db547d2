/* What the kernel alone takes: the least that can pass messages of QoS 0 and 1 on as they come.
 *
 * One thread, one read for each socket that is ready, one write for what it is answered, one for what each receiver
 * gets in a turn. It knows the load generator's topics ("bench/00042" to whoever subscribed to that or to "bench/+"),
 * and nothing of sessions, limits, rights or mistakes. Called with a port of the loopback. */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

enum { MOST = 16384, REST = 1024, READ = 1 << 18, ALL = 100000, NUMBER_AT = 2 + sizeof "bench/" - 1 };
struct peer {
  unsigned char rest[REST], *out;
  int rest_size, out_size, out_room, is_touched;
  unsigned short next_id;
};
static struct peer peers[MOST];
static int touched[MOST], touched_count, receivers[ALL], receiver_of_all;
static unsigned char in[REST + READ], acknowledgements[READ];

static void put(int fd, const void *data, int size) {
  if (write(fd, data, size) != size) exit(3); /* the generator never leaves that much unread */
}

static int number(const unsigned char *topic) {
  int value = 0;
  for (int i = 0; i < 5; i++) value = value * 10 + topic[NUMBER_AT + i] - '0';
  return value;
}

static void queue(int fd, const unsigned char *packet, int size) {
  struct peer *peer = &peers[fd];
  if (!peer->is_touched) { peer->is_touched = 1; touched[touched_count++] = fd; }
  if (peer->out_size + size > peer->out_room) peer->out = realloc(peer->out, peer->out_room = 2 * (peer->out_size + size));
  memcpy(peer->out + peer->out_size, packet, size);
  peer->out_size += size;
}

static void flush(void) {
  for (int i = 0; i < touched_count; i++) {
    struct peer *peer = &peers[touched[i]];
    put(touched[i], peer->out, peer->out_size);
    peer->out_size = peer->is_touched = 0;
  }
  touched_count = 0;
}

static int publish(unsigned char *packet, unsigned char *body, int size, unsigned char *acknowledgement) {
  int receiver = receiver_of_all ? receiver_of_all : receivers[number(body)], qos_1 = packet[0] & 2;
  if (qos_1) {
    unsigned char *id = body + 2 + (body[0] << 8 | body[1]);
    memcpy(acknowledgement, (unsigned char[]){0x40, 2, id[0], id[1]}, 4);
    peers[receiver].next_id = peers[receiver].next_id % 65535 + 1;
    id[0] = peers[receiver].next_id >> 8, id[1] = peers[receiver].next_id;
  }
  if (receiver) queue(receiver, packet, size);
  return qos_1 ? 4 : 0;
}

static void receive(int fd) {
  struct peer *peer = &peers[fd];
  memcpy(in, peer->rest, peer->rest_size);
  int size = read(fd, in + peer->rest_size, READ), at = 0, answer = 0;
  if (size <= 0) { close(fd); peer->rest_size = 0; return; } /* a receiver leaves when the run is over */
  size += peer->rest_size;
  while (size - at > 2) {
    int is_long = in[at + 1] >> 7, head = 2 + is_long, length = (in[at + 1] & 127) | (is_long ? in[at + 2] << 7 : 0);
    if (size - at < head + length) break;
    unsigned char *body = in + at + head;
    if (in[at] >> 4 == 1) put(fd, "\x20\x02\0\0", 4);
    if (in[at] >> 4 == 3) answer += publish(in + at, body, head + length, acknowledgements + answer);
    if (in[at] >> 4 == 8) {
      if (body[length - 2] == '+') receiver_of_all = fd; else receivers[number(body + 2)] = fd;
      put(fd, (unsigned char[]){0x90, 3, body[0], body[1], body[length - 1]}, 5);
    }
    at += head + length;
  }
  memcpy(peer->rest, in + at, peer->rest_size = size - at);
  if (answer) put(fd, acknowledgements, answer);
}

int main(int count, char **words) {
  int listening = socket(AF_INET, SOCK_STREAM, 0), poll = epoll_create1(0), on = 1;
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  address.sin_port = htons(count > 1 ? atoi(words[1]) : 0);
  if (bind(listening, (void *)&address, sizeof address) || listen(listening, 1024)) return 1;
  struct epoll_event event = {EPOLLIN, {.fd = listening}}, ready[1024];
  for (epoll_ctl(poll, EPOLL_CTL_ADD, listening, &event);; flush()) {
    int found = epoll_wait(poll, ready, 1024, -1);
    for (int i = 0; i < found; i++) {
      if (ready[i].data.fd != listening) { receive(ready[i].data.fd); continue; }
      if ((event.data.fd = accept(listening, 0, 0)) < 0 || event.data.fd >= MOST) return 2;
      setsockopt(event.data.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
      epoll_ctl(poll, EPOLL_CTL_ADD, event.data.fd, &event);
    }
  }
}
