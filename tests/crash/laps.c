/* Across the wrap, again and again: every round starts five laps below it.
 *
 *     laps [--kind spsc|mpmc] OPERATIONS ROUNDS SEED
 *
 * mpmc: two producers and two consumers, processes all, over a ring of eight slots; rounds take turns between the wrap
 * of the lap number, which a slot's word holds in 49 bits, and the one of the cursors, at 2^64.  spsc: one of each,
 * the cursors of both below 2^64.  OPERATIONS, of puts and gets together, are spread over the rounds.
 *
 * A message is number = producer << 32 | sequence.  Each comes once, whole, and in order; after each round the ring is
 * empty, every page free, and the cursors stand where the count of the messages says.  One line of the summary. */
#define _GNU_SOURCE
#include <sched.h>

#include "lab.h"

enum { MOST = 2, LAPS_BELOW = 5, BATCH = 3 };
#define RING_BYTES 4096u
#define SLOTS 8u
#define INLINE_BYTES (RING_BYTES / SLOTS - (uint32_t)sizeof(struct shmq_slot))
#define PATIENCE_NS (20 * MS)

static uint32_t kind;
static int fd;
static uint64_t each, sides; /* messages of a producer in a round; producers, and consumers */
static shmq_a64 *taken;
static _Atomic uint8_t *came;

static void put_some(uint64_t me, uint64_t random) {
    uint8_t messages[BATCH * 64];
    shmq_queue *q = lab_attach(fd);
    for (uint64_t i = 0, done = 1; i < each; i += done) {
        uint64_t how = below(&random, 64), left = each - i, bytes = MESSAGE_MIN + below(&random, 48);
        done = 1;
        if (how == 0) { /* in a block */
            OK(lab_put(q, me << 32 | i, 2000, SHMQ_FOREVER));
        } else if (how < 8) {
            uint64_t n = left < BATCH ? left : BATCH;
            for (uint64_t m = 0; m < n; m++) message_write(messages + m * bytes, me << 32 | (i + m), bytes);
            OK(shmq_put_many(q, messages, bytes, n, SHMQ_FOREVER, &done));
        } else {
            OK(lab_put(q, me << 32 | i, bytes, SHMQ_FOREVER));
        }
    }
    shmq_free(q);
}

static void get_some(void) {
    uint64_t next[MOST] = {0}, number, all = sides * each;
    shmq_queue *q = lab_attach(fd);
    while (load_relaxed(taken) < all) {
        int status = lab_get(q, &number, shmq_deadline(PATIENCE_NS));
        if (status == SHMQ_EMPTY || status == SHMQ_PEER_DEAD) continue;
        OK(status);
        uint64_t producer = number >> 32, sequence = (uint32_t)number;
        CHECK(producer < sides && sequence < each);
        CHECK(sequence >= next[producer]);
        next[producer] = sequence + 1;
        CHECK_EQ(atomic_fetch_add(&came[producer * each + sequence], 1), 0);
        (void)atomic_fetch_add(taken, 1);
    }
    shmq_free(q);
}

static pid_t start(bool puts, uint64_t me, uint64_t random) {
    pid_t pid = fork_child();
    if (pid != 0) return pid;
    if (puts) put_some(me, random);
    else get_some();
    _exit(0);
}

static uint64_t five_laps_below(uint64_t round) {
    if (kind == SHMQ_KIND_SPSC) return UINT64_C(0) - LAPS_BELOW * RING_BYTES;
    return (round % 2 == 0 ? (SHMQ_LAP_MASK + 1) * SLOTS : 0) - LAPS_BELOW * SLOTS;
}

static void check_end(shmq_queue *q, uint64_t first) {
    shmq_stats s = lab_stats(q);
    CHECK_EQ(s.messages_put, sides * each);
    CHECK_EQ(s.messages_got, sides * each);
    CHECK_EQ(s.ring_used_bytes, 0);
    CHECK_EQ(load_relaxed(&q->control->head.cursor), load_relaxed(&q->control->tail.cursor));
    if (kind == SHMQ_KIND_MPMC) CHECK_EQ(load_relaxed(&q->control->tail.cursor), first + sides * each);
    else CHECK(load_relaxed(&q->control->tail.cursor) < first); /* it has wrapped */
    lab_all_pages_free(q);
    OK(shmq_validate(q));
    for (uint64_t i = 0; i < sides * each; i++) CHECK_EQ(came[i], 1);
}

static void run_round(uint64_t round, uint64_t *seed) {
    shmq_params params = {.ring_bytes = RING_BYTES,
                          .arena_bytes = 8 * SHMQ_SMALL_PAGE,
                          .inline_bytes = INLINE_BYTES,
                          .first_cursor = five_laps_below(round),
                          .peers = 8,
                          .kind = kind};
    pid_t pids[2 * MOST];
    alarm(watchdog_s());
    fd = lab_object();
    shmq_queue *q = lab_create(fd, &params);
    if (kind == SHMQ_KIND_MPMC) CHECK_EQ(q->segment.geometry.slots, SLOTS);
    CHECK_EQ(q->ring.first_cursor, params.first_cursor);
    store_relaxed(taken, 0);
    memset((void *)came, 0, sides * each);
    for (uint64_t i = 0; i < 2 * sides; i++) pids[i] = start(i < sides, i, next_random(seed));
    for (uint64_t i = 0; i < 2 * sides; i++) join_child(pids[i], 0);
    check_end(q, params.first_cursor);
    shmq_free(q);
    close(fd);
}

int main(int argc, char **argv) {
    int at = 1;
    kind = SHMQ_KIND_SPSC;
    if (argc > 2 && strcmp(argv[1], "--kind") == 0) {
        kind = strcmp(argv[2], "mpmc") == 0 ? SHMQ_KIND_MPMC : SHMQ_KIND_SPSC;
        at = 3;
    }
    if (argc - at != 3) return 2;
    uint64_t operations = strtoull(argv[at], NULL, 10), rounds = strtoull(argv[at + 1], NULL, 10);
    uint64_t seed = strtoull(argv[at + 2], NULL, 10) * 2 + 1;
    sides = kind == SHMQ_KIND_MPMC ? MOST : 1;
    each = (operations + 2 * sides * rounds - 1) / (2 * sides * rounds);
    taken = lab_shared(sizeof *taken);
    came = lab_shared(sides * each);
    for (uint64_t round = 0; round < rounds; round++) run_round(round, &seed);
    printf("%s, from five laps below the wrap\t%" PRIu64 " operations, %" PRIu64
           " times across the wrap\t0\n",
           kind == SHMQ_KIND_MPMC ? "mpmc: two producers, two consumers" : "spsc: one producer, one consumer",
           2 * sides * each * rounds, rounds);
    return 0;
}
