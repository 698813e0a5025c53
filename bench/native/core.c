/* shmq's C core between two pinned processes, a handle each: no Python in it.
 *
 *   core KIND rate N A B            one way, 64-byte messages, one call each
 *   core KIND batch N A B           the same with shmq_put_many, 64 messages a call
 *   core KIND pingpong N A B        there and back over two queues, both sides spinning
 *   core KIND parked N GAP_US A B   the same with GAP_US of idleness before each hop (both hops summed)
 *   core KIND verify N A B          untimed: every byte of N messages is compared on arrival
 *   core mpmc crowd N P C A B       one way, P producers and C consumers, one queue, a process each
 *
 * KIND is spsc or mpmc; A and B are core numbers. Each prints one JSON line. The verbs mirror those of floors.c. */
#include "crowd.h"

#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <string.h>

#include "shmq.h"

enum { BATCH = 64 };

static uint32_t kind;

/* What the sides tell each other outside the queues. */
struct meeting {
    atomic_uint created;  /* queues that side A has made */
    atomic_uint attached; /* 1 when side B has attached to all of them */
    atomic_ullong received; /* messages that side B has taken */
};

struct sides {
    struct meeting *meeting;
    shmq_queue *there, *back; /* A -> B, B -> A */
    pid_t pid;                /* 0 on side B */
};

static void check(int status, const char *what)
{
    if (status != SHMQ_OK) {
        fprintf(stderr, "%s: %s\n", what, shmq_status_text(status));
        exit(1);
    }
}

/* A shared-memory object without a name: it is unlinked before anybody else could see it. */
static int nameless(int which)
{
    char name[64];
    snprintf(name, sizeof name, "/shmq.bench-core-%ld-%d", (long)getpid(), which);
    int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (fd < 0 || shm_unlink(name) != 0)
        die("shm_open");
    return fd;
}

static shmq_params parameters(void)
{
    return (shmq_params){
        .ring_bytes = 1 << 20, .arena_bytes = 4 << 20, .inline_bytes = kind == SHMQ_KIND_MPMC ? 96 : 8192,
        .peers = 2 + MEMBERS, .kind = kind};
}

/* Each side opens handles of its own after the fork, as two programs would. */
static struct sides meet(int core_a, int core_b)
{
    const shmq_params params = parameters();
    struct sides sides = {.meeting = shared_memory(sizeof *sides.meeting)};
    int fds[2] = {nameless(0), nameless(1)};
    shmq_queue **queues[2] = {&sides.there, &sides.back};
    sides.pid = fork_side_b(core_a, core_b);
    for (unsigned i = 0; i < 2; i++) {
        if (sides.pid != 0) {
            check(shmq_create(fds[i], &params, queues[i]), "shmq_create");
            atomic_fetch_add(&sides.meeting->created, 1);
        } else {
            while (atomic_load(&sides.meeting->created) <= i)
                relax();
            check(shmq_attach(fds[i], queues[i]), "shmq_attach");
        }
        close(fds[i]);
    }
    if (sides.pid == 0)
        atomic_store(&sides.meeting->attached, 1);
    while (atomic_load(&sides.meeting->attached) == 0)
        relax();
    return sides;
}

static void part(const struct sides *sides)
{
    shmq_free(sides->there);
    shmq_free(sides->back);
    if (sides->pid == 0)
        _exit(0);
    join_side_b(sides->pid);
}

static void put(shmq_queue *queue, const void *data)
{
    check(shmq_put(queue, data, MESSAGE_BYTES, SHMQ_FOREVER), "shmq_put");
}

static void get(shmq_queue *queue)
{
    shmq_message message;
    check(shmq_get(queue, &message, SHMQ_FOREVER), "shmq_get");
    shmq_message_release(&message);
}

static void send_run(shmq_queue *queue, const unsigned char *data, uint64_t count, uint64_t each_call)
{
    uint64_t done = 0;
    for (uint64_t i = 0; i < count; i += each_call) {
        if (each_call == 1)
            put(queue, data);
        else
            check(shmq_put_many(queue, data, MESSAGE_BYTES, each_call, SHMQ_FOREVER, &done),
                  "shmq_put_many");
    }
}

static void receive_run(const struct sides *sides, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        get(sides->there);
    atomic_fetch_add(&sides->meeting->received, count);
}

static void await_received(const struct sides *sides, uint64_t count)
{
    while (atomic_load_explicit(&sides->meeting->received, memory_order_acquire) < count)
        relax();
}

/* From before the first put to after the last get, in a second stretch; the first one warms up. */
static void rate(uint64_t count, uint64_t each_call, int core_a, int core_b)
{
    static unsigned char data[BATCH * MESSAGE_BYTES];
    memset(data, 0x5a, sizeof data);
    uint64_t warm = 64 * BATCH;
    count = count / BATCH * BATCH;
    struct sides sides = meet(core_a, core_b);
    if (sides.pid == 0) {
        receive_run(&sides, warm);
        receive_run(&sides, count);
        part(&sides);
    }
    send_run(sides.there, data, warm, each_call);
    await_received(&sides, warm);
    uint64_t start_ns = now_ns();
    send_run(sides.there, data, count, each_call);
    await_received(&sides, warm + count);
    uint64_t elapsed_ns = now_ns() - start_ns;
    part(&sides);
    printf("{\"rate_m_per_s\": %.3f}\n", (double)count * 1e3 / (double)elapsed_ns);
}

static void pingpong(uint64_t count, int core_a, int core_b)
{
    unsigned char data[MESSAGE_BYTES] = {0};
    uint64_t warm = count / 10 + 1, start_ns = 0;
    struct sides sides = meet(core_a, core_b);
    if (sides.pid == 0) {
        for (uint64_t i = 0; i < warm + count; i++) {
            get(sides.there);
            put(sides.back, data);
        }
        part(&sides);
    }
    for (uint64_t i = 0; i < warm + count; i++) {
        if (i == warm)
            start_ns = now_ns();
        put(sides.there, data);
        get(sides.back);
    }
    double ns = (double)(now_ns() - start_ns) / (double)count;
    part(&sides);
    printf("{\"ns\": %.2f}\n", ns);
}

static void parked(uint64_t count, unsigned gap_us, int core_a, int core_b)
{
    unsigned char data[MESSAGE_BYTES] = {0};
    struct hop *there = shared_memory(count * sizeof *there);
    struct hop *back = shared_memory(count * sizeof *back);
    struct sides sides = meet(core_a, core_b);
    if (sides.pid == 0) {
        for (uint64_t i = 0; i < count; i++) {
            get(sides.there);
            there[i].got_ns = now_ns();
            idle(gap_us);
            back[i].sent_ns = now_ns();
            put(sides.back, data);
        }
        part(&sides);
    }
    for (uint64_t i = 0; i < count; i++) {
        idle(gap_us);
        there[i].sent_ns = now_ns();
        put(sides.there, data);
        get(sides.back);
        back[i].got_ns = now_ns();
    }
    part(&sides);
    print_round_trips(there, back, count);
}

static void stamp(unsigned char *data, uint64_t number)
{
    for (unsigned i = 0; i < MESSAGE_BYTES / sizeof number; i++)
        memcpy(data + i * sizeof number, &number, sizeof number);
}

/* One by one and in batches by turns, so that both ways in are checked. */
static void verify(uint64_t count, int core_a, int core_b)
{
    unsigned char data[BATCH * MESSAGE_BYTES], expected[MESSAGE_BYTES];
    uint64_t done = 0;
    count = (count / (2 * BATCH) + 1) * 2 * BATCH;
    struct sides sides = meet(core_a, core_b);
    if (sides.pid == 0) {
        for (uint64_t i = 0; i < count; i++) {
            shmq_message message;
            check(shmq_get(sides.there, &message, SHMQ_FOREVER), "shmq_get");
            stamp(expected, i);
            if (message.bytes != MESSAGE_BYTES || memcmp(message.data, expected, MESSAGE_BYTES)) {
                fprintf(stderr, "message %llu arrived altered\n", (unsigned long long)i);
                _exit(1);
            }
            shmq_message_release(&message);
        }
        part(&sides);
    }
    for (uint64_t i = 0; i < count; i += BATCH) {
        for (unsigned k = 0; k < BATCH; k++)
            stamp(data + k * MESSAGE_BYTES, i + k);
        if (i / BATCH % 2 == 0)
            check(shmq_put_many(sides.there, data, MESSAGE_BYTES, BATCH, SHMQ_FOREVER, &done),
                  "shmq_put_many");
        else
            for (unsigned k = 0; k < BATCH; k++)
                put(sides.there, data + k * MESSAGE_BYTES);
    }
    part(&sides);
    printf("{\"verified\": %llu}\n", (unsigned long long)count);
}

static void *crowd_join(void *object)
{
    shmq_queue *queue;
    check(shmq_attach(*(int *)object, &queue), "shmq_attach");
    return queue;
}

static void crowd_put(void *queue, const unsigned char *message)
{
    put(queue, message);
}

static void crowd_get(void *queue, unsigned char *message)
{
    shmq_message got;
    check(shmq_get(queue, &got, SHMQ_FOREVER), "shmq_get");
    memcpy(message, got.data, sizeof(uint64_t)); /* shmq_get has copied all of it */
    shmq_message_release(&got);
}

static void crowd_leave(void *queue)
{
    shmq_free(queue);
}

static void crowd(uint64_t count, const int *members, int core_a, int core_b)
{
    static const struct channel channel = {crowd_join, crowd_put, crowd_get, crowd_leave};
    const shmq_params params = parameters();
    shmq_queue *origin;
    int fd = nameless(0);
    check(shmq_create(fd, &params, &origin), "shmq_create");
    run_crowd(&channel, &fd, count, members, core_a, core_b);
    shmq_free(origin);
}

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "";
    kind = strcmp(name, "mpmc") == 0 ? SHMQ_KIND_MPMC : strcmp(name, "spsc") == 0 ? SHMQ_KIND_SPSC : 0;
    argv++, argc--; /* the verbs count from here */
    const char *verb = argc > 1 ? argv[1] : "";
    uint64_t count = argc > 2 ? strtoull(argv[2], NULL, 10) : 0;
    int more = strcmp(verb, "parked") == 0 ? 1 : strcmp(verb, "crowd") == 0 ? 2 : 0; /* arguments */
    if (kind == 0 || count == 0 || count > UINT_MAX || argc != 5 + more) {
        fprintf(stderr, "usage: core KIND VERB N ... (see the head of core.c)\n");
        return 2;
    }
    int core_a = atoi(argv[3 + more]), core_b = atoi(argv[4 + more]);
    if (strcmp(verb, "rate") == 0)
        rate(count, 1, core_a, core_b);
    else if (strcmp(verb, "batch") == 0)
        rate(count, BATCH, core_a, core_b);
    else if (strcmp(verb, "pingpong") == 0)
        pingpong(count, core_a, core_b);
    else if (more == 2)
        crowd(count, (int[]){atoi(argv[3]), atoi(argv[4])}, core_a, core_b);
    else if (more == 1)
        parked(count, (unsigned)atoi(argv[3]), core_a, core_b);
    else if (strcmp(verb, "verify") == 0)
        verify(count, core_a, core_b);
    else {
        fprintf(stderr, "unknown verb: %s\n", verb);
        return 2;
    }
    return 0;
}
