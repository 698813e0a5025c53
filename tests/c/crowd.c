/* Many producers and many consumers on one mpmc ring, as threads of one process (clones.h).
 *
 * A ledger counts how often each message came; each consumer sees each producer's messages in order, unless lives
 * end: what the dead had peeked may come late.  With two lanes every third message is urgent, and order is a lane's.
 */
#define _GNU_SOURCE
#include "clones.h"

#define EACH (SANITIZED ? 3000u : 10000u)

static struct {
    uint32_t producers, consumers;
    bool lanes;
    shmq_a64 put[MOST], taken; /* messages that were put by each producer; taken by all */
    shmq_a32 came[MOST][EACH];
} crowd;

static void *produce(void *which) {
    uint64_t me = (uint64_t)(uintptr_t)which, seed = me + 1;
    shmq_queue *q = join();
    for (uint64_t i = 0; i < EACH; i++) {
        if (crowd.lanes) OK(shmq_set_priority(q, i % 3 == 0));
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
        if (crowd.lanes) OK(shmq_set_priority(q, i % 3 == 0)); /* it may be another life's */
        OK(lab_put(q, me << 32 | i, size_of(i), SHMQ_FOREVER));
        store_relaxed(&crowd.put[me], i + 1);
    }
    lab_end_clone(q);
    return NULL;
}

static void *consume(void *which) {
    uint64_t last[2][MOST] = {{0}}, seed = (uint64_t)(uintptr_t)which + 1000;
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
        bool urgent = crowd.lanes && sequence % 3 == 0;
        CHECK_EQ(q->get.ring.urgent, urgent);
        if (!clones.deaths) CHECK(sequence >= last[urgent][producer]);
        last[urgent][producer] = sequence + 1;
        (void)atomic_fetch_add(&crowd.taken, 1);
    }
    lab_end_clone(q);
    return NULL;
}

static void run_with(uint32_t producers, uint32_t consumers, bool blocks, bool deaths, bool sleepless,
                     uint64_t start, bool lanes) {
    shmq_params params = {.ring_bytes = 4096,
                          .arena_bytes = 64 * SHMQ_SMALL_PAGE,
                          .inline_bytes = 1024,
                          .first_cursor = start,
                          .peers = 64,
                          .kind = SHMQ_KIND_MPMC,
                          .priority = lanes};
    memset(&crowd, 0, sizeof crowd);
    crowd.producers = producers;
    crowd.consumers = consumers;
    crowd.lanes = lanes;
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

static void run(uint32_t producers, uint32_t consumers, bool blocks, bool deaths, bool sleepless,
                uint64_t start) {
    run_with(producers, consumers, blocks, deaths, sleepless, start, false);
}

#define LAP_WRAP ((SHMQ_LAP_MASK - 5) << 2)

TEST(two_and_two) { run(2, 2, false, false, true, LAP_WRAP); }
TEST(two_and_two_asleep) { run(2, 2, false, false, false, 0); }
TEST(two_and_two_with_blocks) { run(2, 2, true, false, true, UINT64_MAX - 100); }
TEST(one_and_four) { run(1, 4, true, false, true, 0); }
TEST(four_and_one) { run(4, 1, true, false, false, 0); }
TEST(two_lanes) { run_with(2, 2, false, false, true, LAP_WRAP, true); }
TEST(two_lanes_asleep) { run_with(2, 2, false, false, false, UINT64_MAX - 100, true); }
TEST(two_lanes_with_blocks) { run_with(3, 3, true, false, true, 0, true); }
TEST(two_lanes_and_lives_that_end) { run_with(3, 3, true, true, true, LAP_WRAP, true); }
TEST(lives_that_end) { run(2, 2, false, true, true, LAP_WRAP); }
TEST(lives_that_end_with_blocks) { run(3, 3, true, true, true, UINT64_MAX - 100); }

int main(int argc, char **argv) { return run_tests(argc, argv); }
