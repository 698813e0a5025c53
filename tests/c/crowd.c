/* Many producers and many consumers on one mpmc ring, as threads of one process (clones.h).
 *
 * A ledger counts how often each message came; each consumer sees each producer's messages in order, unless lives
 * end: what the dead had peeked may come late.
 */
#define _GNU_SOURCE
#include "clones.h"

#define EACH (SANITIZED ? 3000u : 10000u)

static struct {
    uint32_t producers, consumers;
    shmq_a64 put[MOST], taken; /* messages that were put by each producer; taken by all */
    shmq_a32 came[MOST][EACH];
} crowd;

static void *produce(void *which) {
    uint64_t me = (uint64_t)(uintptr_t)which, seed = me + 1;
    shmq_queue *q = join();
    for (uint64_t i = 0; i < EACH; i++) {
        if (clones.deaths &&
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
            (void)end_life(q);
            q = join();
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
        if (clones.deaths &&
            below(&seed, EACH / 40) == 0) { /* dies with a message in its hands: another gets it */
            struct shmq_record r;
            const struct shmq_block_header *h;
            shmq_block *b = NULL;
            OK(shmq_get_begin(q));
            if (shmq_try_next(q, &r) == SHMQ_OK && (r.flags & SHMQ_RECORD_BLOCK) != 0 && below(&seed, 2) == 0)
                OK(shmq_try_lease(q, &r, NULL, &b, &h));
            free(b);
            (void)end_life(q);
            q = join();
        }
        int status = lab_get(q, &number, shmq_deadline(20 * MS));
        if (status == SHMQ_EMPTY) continue;
        OK(status);
        uint64_t producer = number >> 32, sequence = (uint32_t)number;
        CHECK(producer < crowd.producers && sequence < EACH);
        CHECK_EQ(atomic_fetch_add(&crowd.came[producer][sequence], 1), 0); /* none comes twice */
        if (!clones.deaths) CHECK(sequence >= last[producer]);
        last[producer] = sequence + 1;
        (void)atomic_fetch_add(&crowd.taken, 1);
    }
    lab_end_clone(q);
    return NULL;
}

static void run(uint32_t producers, uint32_t consumers, bool blocks, bool deaths, bool sleepless,
                uint64_t start) {
    shmq_params params = {.ring_bytes = 4096,
                          .arena_bytes = 64 * SHMQ_SMALL_PAGE,
                          .inline_bytes = 1024,
                          .first_cursor = start,
                          .peers = 64,
                          .kind = SHMQ_KIND_MPMC};
    memset(&crowd, 0, sizeof crowd);
    crowd.producers = producers;
    crowd.consumers = consumers;
    found_clones(&params, blocks, deaths, sleepless);
    start_clones(producers, produce);
    start_clones(consumers, consume);
    join_clones();
    for (uint32_t p = 0; p < producers; p++)
        for (uint32_t i = 0; i < EACH; i++) CHECK_EQ(load32_relaxed(&crowd.came[p][i]), 1); /* each came */
    uint64_t number;
    CHECK_EQ(lab_get(clones.origin, &number, SHMQ_NO_WAIT), SHMQ_EMPTY);
    end_clones();
}

#define LAP_WRAP ((SHMQ_LAP_MASK - 5) << 2)

TEST(two_and_two) { run(2, 2, false, false, true, LAP_WRAP); }
TEST(two_and_two_asleep) { run(2, 2, false, false, false, 0); }
TEST(two_and_two_with_blocks) { run(2, 2, true, false, true, UINT64_MAX - 100); }
TEST(one_and_four) { run(1, 4, true, false, true, 0); }
TEST(four_and_one) { run(4, 1, true, false, false, 0); }
TEST(lives_that_end) { run(2, 2, false, true, true, LAP_WRAP); }
TEST(lives_that_end_with_blocks) { run(3, 3, true, true, true, UINT64_MAX - 100); }

int main(int argc, char **argv) { return run_tests(argc, argv); }
