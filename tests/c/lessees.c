/* Many producers and many consumers on one mpmc ring whose messages are acknowledged, as threads of one process
 * (clones.h).
 *
 * Consumers acknowledge, give back at once or for a while, look on behind both, take too long, and die with
 * messages in their hands.  A ledger counts: each message is acknowledged once, whatever its deliveries were. */
#define _GNU_SOURCE
#include "clones.h"

#define EACH (SANITIZED ? 1500u : 8000u)
#define TABLE 8u

static struct {
    uint32_t producers;
    bool lanes; /* every third message is urgent */
    shmq_a64 acked, stale, again;
    shmq_a32 acks[MOST][EACH];
} lent;

static void *produce(void *which) {
    uint64_t me = (uint64_t)(uintptr_t)which;
    shmq_queue *q = join();
    for (uint64_t i = 0; i < EACH; i++) {
        if (lent.lanes) OK(shmq_set_priority(q, i % 3 == 0));
        OK(lab_put(q, me << 32 | i, size_of(i), SHMQ_FOREVER));
    }
    lab_end_clone(q);
    return NULL;
}

/* Dies when it has begun a lease, or ended it. */
static shmq_queue *dies(shmq_queue *q, uint64_t *seed) {
    struct shmq_record r;
    const struct shmq_block_header *h;
    struct shmq_delivery d;
    shmq_block *b = NULL;
    OK(shmq_get_begin(q));
    if (shmq_lease_begin(q, &d, &r, &b, &h) == SHMQ_OK && below(seed, 2) == 0)
        OK(shmq_lease_done(q, &d, &r, r.bytes));
    free(b);
    (void)end_life(q);
    return join();
}

static void settle(shmq_queue *q, const shmq_delivery *d, uint64_t number, uint64_t *seed) {
    uint64_t kind = below(seed, 16);
    int status = kind > 1 ? shmq_ack(q, d) : shmq_nack(q, d, kind * below(seed, 2 * (uint64_t)MS));
    if (status == SHMQ_STALE && q->pending.visibility_ns > 0) {
        (void)atomic_fetch_add(&lent.stale, 1);
        return;
    }
    OK(status);
    if (kind <= 1) return;
    CHECK_EQ(atomic_fetch_add(&lent.acks[number >> 32][(uint32_t)number], 1), 0);
    (void)atomic_fetch_add(&lent.acked, 1);
}

static void *consume(void *which) {
    uint64_t seed = (uint64_t)(uintptr_t)which + 1000;
    shmq_queue *q = join();
    shmq_message kept = {0};
    while (load_relaxed(&lent.acked) < (uint64_t)lent.producers * EACH) {
        shmq_message m;
        shmq_delivery d;
        if (clones.deaths && kept.block == NULL && below(&seed, EACH / 40) == 0) q = dies(q, &seed);
        int status = shmq_lease(q, &m, &d, shmq_deadline(20 * MS));
        if (status != SHMQ_OK) {
            CHECK(status == SHMQ_EMPTY || status == SHMQ_UNACKED_FULL || status == SHMQ_ARENA_FULL);
            shmq_message_release(&kept); /* others may want the room */
            continue;
        }
        uint64_t number = message_number(m.data, m.bytes);
        CHECK(number >> 32 < lent.producers && (uint32_t)number < EACH);
        if (d.deliveries > 1) (void)atomic_fetch_add(&lent.again, 1);
        settle(q, &d, number, &seed);
        if (m.block != NULL) CHECK_EQ(message_number(m.data, m.bytes), number); /* it looks on */
        if (below(&seed, 4) == 0) {
            shmq_message_release(&kept);
            kept = m;
        } else {
            shmq_message_release(&m);
        }
    }
    shmq_message_release(&kept);
    lab_end_clone(q);
    return NULL;
}

static void run_with(uint32_t producers, uint32_t consumers, bool blocks, bool deaths, uint64_t visibility_ns,
                     bool lanes) {
    shmq_params params = {.ring_bytes = 4096,
                          .arena_bytes = 64 * SHMQ_SMALL_PAGE,
                          .inline_bytes = 1024,
                          .first_cursor = UINT64_MAX - 100,
                          .peers = 64,
                          .kind = SHMQ_KIND_MPMC,
                          .max_unacked = TABLE,
                          .visibility_ns = visibility_ns,
                          .priority = lanes};
    memset(&lent, 0, sizeof lent);
    lent.producers = producers;
    lent.lanes = lanes;
    found_clones(&params, blocks, deaths, true);
    start_clones(producers, produce);
    start_clones(consumers, consume);
    join_clones();
    for (uint32_t p = 0; p < producers; p++)
        for (uint32_t i = 0; i < EACH; i++) CHECK_EQ(load32_relaxed(&lent.acks[p][i]), 1);
    CHECK(load_relaxed(&lent.again) > 0);
    OK(shmq_join(clones.origin, SHMQ_NO_WAIT));
    end_clones();
}

static void run(uint32_t producers, uint32_t consumers, bool blocks, bool deaths, uint64_t visibility_ns) {
    run_with(producers, consumers, blocks, deaths, visibility_ns, false);
}

TEST(two_and_two) { run(2, 2, false, false, 0); }
TEST(two_and_three_with_blocks) { run(2, 3, true, false, 0); }
TEST(overdue) { run(2, 3, true, false, 20000); }
TEST(two_lanes) { run_with(2, 3, true, false, 20000, true); }
TEST(two_lanes_and_lives_that_end) { run_with(2, 3, true, true, 0, true); }
TEST(lives_that_end) { run(2, 2, false, true, 0); }
TEST(lives_that_end_with_blocks) { run(2, 3, true, true, 0); }

int main(int argc, char **argv) { return run_tests(argc, argv); }
