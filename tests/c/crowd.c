/* Many producers and many consumers on one mpmc ring, as threads of one process, for speed and for the race
 * detector: handles share one mapping (lab_clone).
 *
 * Every message is number = producer << 32 | sequence.  A ledger counts how often each one came; each consumer
 * sees each producer's messages in order, unless lives end: what the dead had peeked may come late.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>

#include "lab.h"

#define MOST 4u
#define EACH (SANITIZED ? 3000u : 20000u)

static struct {
    int fd;
    shmq_queue *origin;
    uint32_t producers, consumers;
    bool blocks, deaths;
    shmq_a32 sleepless;
    shmq_a64 put[MOST], taken; /* messages that were put by each producer; taken by all */
    shmq_a32 came[MOST][EACH];
    shmq_a64 deaths_seen;
} crowd;

static uint64_t size_of(uint64_t number) {
    static const uint64_t sizes[] = {16, 100, 1000, 2000, 24, SHMQ_SMALL_PAGE, 40, 3 * SHMQ_SMALL_PAGE};
    return crowd.blocks ? sizes[number % 8] : 16 + number % 200;
}

static shmq_queue *join(void) {
    shmq_queue *q = lab_clone(crowd.origin);
    if (load32_relaxed(&crowd.sleepless) == 0) {
        store_relaxed(&q->put.waiter.spin_ns, 0);
        store_relaxed(&q->get.waiter.spin_ns, 0);
    }
    return q;
}

/* The end of a process, as far as the others can see: whoever waits next repairs. */
static shmq_queue *end_life(shmq_queue *q) {
    lab_die(q);
    close(q->segment.fd);
    free(q->inline_copy);
    free(q);
    (void)atomic_fetch_add(&crowd.deaths_seen, 1);
    return join();
}

static void *produce(void *which) {
    uint64_t me = (uint64_t)(uintptr_t)which, seed = me + 1;
    shmq_queue *q = join();
    for (uint64_t i = 0; i < EACH; i++) {
        if (crowd.deaths &&
            below(&seed, EACH / 40) == 0) { /* dies with a slot in its hands, or a block, or both */
            struct shmq_record r;
            shmq_block *b = NULL;
            OK(shmq_put_begin(q));
            if (below(&seed, 2) == 0 && shmq_try_loan(q, 5000, &b) == SHMQ_OK) {
                if (below(&seed, 2) == 0 && shmq_ring_try_reserve(&q->ring, &q->put.ring, 8, SHMQ_RAW,
                                                                  SHMQ_RECORD_BLOCK, &r) == SHMQ_OK) {
                    store_relaxed((shmq_a64 *)(void *)r.payload,
                                  shmq_handle(b->page, shmq_word_generation(b->word)));
                    if (below(&seed, 2) == 0) OK(shmq_arena_send(&q->arena, b->page, &b->word, r.position));
                }
            } else {
                (void)shmq_ring_try_reserve(&q->ring, &q->put.ring, 8, SHMQ_RAW, 0, &r);
            }
            free(b);
            q = end_life(q);
        }
        OK(lab_put(q, me << 32 | i, size_of(i), SHMQ_FOREVER));
        store_relaxed(&crowd.put[me], i + 1);
    }
    lab_end_clone(q);
    return NULL;
}

static void *consume(void *which) {
    uint64_t last[MOST] = {0}, seed = (uint64_t)(uintptr_t)which + 1000;
    shmq_queue *q = join();
    while (load_relaxed(&crowd.taken) < (uint64_t)crowd.producers * EACH) {
        uint64_t number;
        if (crowd.deaths &&
            below(&seed, EACH / 40) == 0) { /* dies with a message in its hands: another gets it */
            struct shmq_record r;
            const struct shmq_block_header *h;
            shmq_block *b = NULL;
            OK(shmq_get_begin(q));
            if (shmq_try_next(q, &r) == SHMQ_OK && (r.flags & SHMQ_RECORD_BLOCK) != 0 && below(&seed, 2) == 0)
                OK(shmq_try_lease(q, &r, &b, &h));
            free(b);
            q = end_life(q);
        }
        int status = lab_get(q, &number, shmq_deadline(20 * MS));
        if (status == SHMQ_EMPTY) continue;
        OK(status);
        uint64_t producer = number >> 32, sequence = (uint32_t)number;
        CHECK(producer < crowd.producers && sequence < EACH);
        CHECK_EQ(atomic_fetch_add(&crowd.came[producer][sequence], 1), 0); /* none comes twice */
        if (!crowd.deaths) CHECK(sequence >= last[producer]);
        last[producer] = sequence + 1;
        (void)atomic_fetch_add(&crowd.taken, 1);
    }
    lab_end_clone(q);
    return NULL;
}

static void run(uint32_t producers, uint32_t consumers, bool blocks, bool deaths, uint32_t spin,
                uint64_t start) {
    shmq_params params = {.ring_bytes = 4096,
                          .arena_bytes = 64 * SHMQ_SMALL_PAGE,
                          .inline_bytes = 1024,
                          .first_cursor = start,
                          .peers = 64,
                          .kind = SHMQ_KIND_MPMC};
    pthread_t threads[2 * MOST];
    memset(&crowd, 0, sizeof crowd);
    crowd.fd = lab_object();
    crowd.origin = lab_create(crowd.fd, &params);
    crowd.producers = producers;
    crowd.consumers = consumers;
    crowd.blocks = blocks;
    crowd.deaths = deaths;
    store32_relaxed(&crowd.sleepless, spin);
    for (uintptr_t i = 0; i < producers; i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, produce, (void *)i), 0);
    for (uintptr_t i = 0; i < consumers; i++)
        CHECK_EQ(pthread_create(&threads[producers + i], NULL, consume, (void *)i), 0);
    for (uint32_t i = 0; i < producers + consumers; i++) CHECK_EQ(pthread_join(threads[i], NULL), 0);
    for (uint32_t p = 0; p < producers; p++)
        for (uint32_t i = 0; i < EACH; i++) CHECK_EQ(load32_relaxed(&crowd.came[p][i]), 1); /* each came */
    uint64_t number;
    (void)lab_reap(crowd.origin);
    CHECK_EQ(lab_get(crowd.origin, &number, SHMQ_NO_WAIT), SHMQ_EMPTY);
    lab_all_pages_free(crowd.origin);
    OK(shmq_validate(crowd.origin));
    if (deaths) CHECK(load_relaxed(&crowd.deaths_seen) > 10);
    shmq_free(crowd.origin);
    close(crowd.fd);
}

#define LAP_WRAP ((SHMQ_LAP_MASK - 5) << 2)

TEST(two_and_two) { run(2, 2, false, false, 1, LAP_WRAP); }
TEST(two_and_two_asleep) { run(2, 2, false, false, 0, 0); }
TEST(two_and_two_with_blocks) { run(2, 2, true, false, 1, UINT64_MAX - 100); }
TEST(one_and_four) { run(1, 4, true, false, 1, 0); }
TEST(four_and_one) { run(4, 1, true, false, 0, 0); }
TEST(lives_that_end) { run(2, 2, false, true, 1, LAP_WRAP); }
TEST(lives_that_end_with_blocks) { run(3, 3, true, true, 1, UINT64_MAX - 100); }

int main(int argc, char **argv) { return run_tests(argc, argv); }
