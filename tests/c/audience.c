/* Publishers and subscribers of one topic, as threads of one process (clones.h).
 *
 * All subscribers of a run without loss see the same order; each sees each publisher's messages in order, and what
 * it missed makes up the difference.
 */
#define _GNU_SOURCE
#include "clones.h"

#define EACH (SANITIZED ? 2500u : 10000u)
#define KEEP 3u

static struct {
    uint32_t publishers, subscribers, policy;
    shmq_a32 ready, finished;          /* subscribers that have subscribed; publishers that have ended */
    uint64_t order[MOST][MOST * EACH]; /* as each subscriber saw it */
} hall;

static shmq_queue *live_again(shmq_queue *q) {
    if (end_life(q) % 8 == 0) (void)lab_reap(clones.origin); /* entries run out */
    return join();
}

/* Dies with a slot in its hands, or a block, or both. */
static shmq_queue *die_publishing(shmq_queue *q, uint64_t *seed) {
    struct shmq_record r;
    shmq_block *b = NULL;
    OK(shmq_put_begin(q));
    if (below(seed, 2) == 0 && shmq_try_loan(q, 5000, &b) == SHMQ_OK) {
        shmq_arena_share(&q->arena, b->page, b->word);
        if (below(seed, 2) == 0 && shmq_try_reserve(q, 8, SHMQ_RAW, SHMQ_RECORD_BLOCK, &r) == SHMQ_OK)
            if (below(seed, 2) == 0) OK(shmq_arena_send(&q->arena, b->page, &b->word, r.position));
    } else {
        (void)shmq_try_reserve(q, 8, SHMQ_RAW, 0, &r);
    }
    free(b);
    return live_again(q);
}

static void *publish(void *which) {
    uint64_t me = (uint64_t)(uintptr_t)which, seed = me + 1;
    shmq_queue *q = join();
    while (load32_acquire(&hall.ready) < hall.subscribers) sched_yield();
    for (uint64_t i = 0; i < EACH; i++) {
        if (clones.deaths && below(&seed, EACH / 12) == 0) q = die_publishing(q, &seed);
        OK(lab_put(q, me << 32 | i, size_of(i), SHMQ_FOREVER));
    }
    (void)atomic_fetch_add(&hall.finished, 1);
    lab_end_clone(q);
    return NULL;
}

/* One that comes, reads a little, holds views, and dies: nobody waits for it for long. */
static void *come_and_go(void *which) {
    uint64_t seed = (uint64_t)(uintptr_t)which + 77;
    shmq_queue *q = join();
    while (load32_acquire(&hall.finished) < hall.publishers) {
        shmq_message m;
        OK(shmq_subscribe(q, (uint32_t)below(&seed, 3)));
        for (uint64_t n = below(&seed, 30); n > 0; n--) {
            int status = shmq_get(q, &m, shmq_deadline(5 * MS));
            if (status != SHMQ_OK) break;
            (void)message_number(m.data, m.bytes);
            if (m.block != NULL && n == 1) free(m.block); /* dies with the view */
            else shmq_message_release(&m);
        }
        q = live_again(q);
    }
    lab_end_clone(q);
    return NULL;
}

static void *subscribe(void *which) {
    uint64_t me = (uint64_t)(uintptr_t)which, got = 0, last[MOST] = {0}, seed = me;
    shmq_message kept[KEEP] = {{0}};
    shmq_queue *q = join();
    shmq_subscription state = {0};
    OK(shmq_subscribe(q, 0));
    (void)atomic_fetch_add(&hall.ready, 1);
    for (;;) {
        shmq_message m;
        bool over = load32_acquire(&hall.finished) == hall.publishers;
        int status = shmq_get(q, &m, over ? SHMQ_NO_WAIT : shmq_deadline(20 * MS));
        if (status == SHMQ_PEER_DEAD) continue; /* all publishers ended at once: they come again */
        if (status == SHMQ_EMPTY && over) break;
        if (status == SHMQ_EMPTY) continue;
        if (status == SHMQ_EVICTED && hall.policy == SHMQ_EVICT) {
            shmq_queue *again = join();
            for (uint32_t i = 0; i < KEEP; i++) shmq_message_release(&kept[i]);
            lab_end_clone(q);
            q = again;
            OK(shmq_subscribe(q, 0));
            continue;
        }
        OK(status);
        uint64_t number = message_number(m.data, m.bytes), from = number >> 32, sequence = (uint32_t)number;
        CHECK(from < hall.publishers && sequence < EACH);
        CHECK(sequence >= last[from]); /* in order, and none twice */
        last[from] = sequence + 1;
        hall.order[me][got++] = number;
        OK(shmq_get_subscription(q, &state));
        shmq_message *place = &kept[below(&seed, KEEP)]; /* views end in another order than they began */
        shmq_message_release(place);
        *place = m;
    }
    for (uint32_t i = 0; i < KEEP; i++) shmq_message_release(&kept[i]);
    uint64_t all = (uint64_t)hall.publishers * EACH;
    if (hall.policy == SHMQ_BLOCK) CHECK_EQ(got, all);
    if (hall.policy == SHMQ_DROP_OLDEST && !clones.deaths) CHECK_EQ(got + state.missed, all);
    lab_end_clone(q);
    return NULL;
}

static void run(uint32_t policy, uint32_t publishers, uint32_t subscribers, bool blocks, bool deaths,
                bool sleepless, uint64_t start) {
    shmq_params params = {.ring_bytes = 16 * 256,
                          .arena_bytes = 64 * SHMQ_SMALL_PAGE,
                          .inline_bytes = 224,
                          .first_cursor = start,
                          .peers = SHMQ_TOPIC_PEERS,
                          .kind = SHMQ_KIND_TOPIC,
                          .policy = policy,
                          .history = 2};
    memset(&hall, 0, sizeof hall);
    hall.publishers = publishers;
    hall.subscribers = subscribers;
    hall.policy = policy;
    found_clones(&params, blocks, deaths, sleepless);
    start_clones(subscribers, subscribe);
    start_clones(publishers, publish);
    start_clones(deaths ? 2 : 0, come_and_go);
    join_clones();
    if (policy == SHMQ_BLOCK)
        for (uint32_t s = 1; s < subscribers; s++)
            CHECK_EQ(memcmp(hall.order[0], hall.order[s], publishers * EACH * sizeof(uint64_t)), 0);
    /* What is left is the history; with nobody there, a subscription that ends gives up the rest. */
    for (int i = 0; i < 2; i++) OK(lab_put(clones.origin, 1, 16, SHMQ_FOREVER));
    shmq_queue *last = join();
    OK(shmq_subscribe(last, 0));
    lab_end_clone(last);
    end_clones();
}

#define LAP_WRAP ((SHMQ_LAP_MASK - 5) << 4)

TEST(one_and_four) { run(SHMQ_BLOCK, 1, 4, false, false, true, LAP_WRAP); }
TEST(two_and_two_asleep) { run(SHMQ_BLOCK, 2, 2, false, false, false, 0); }
TEST(two_and_three_with_blocks) { run(SHMQ_BLOCK, 2, 3, true, false, true, UINT64_MAX - 127); }
TEST(drop_oldest) { run(SHMQ_DROP_OLDEST, 2, 2, false, false, true, LAP_WRAP); }
TEST(drop_oldest_with_blocks) { run(SHMQ_DROP_OLDEST, 2, 3, true, false, true, 0); }
TEST(evict_with_blocks) { run(SHMQ_EVICT, 2, 3, true, false, true, LAP_WRAP); }
TEST(lives_that_end) { run(SHMQ_BLOCK, 2, 2, false, true, true, LAP_WRAP); }
TEST(lives_that_end_with_blocks) { run(SHMQ_BLOCK, 2, 2, true, true, true, UINT64_MAX - 127); }
TEST(lives_that_end_while_dropping) { run(SHMQ_DROP_OLDEST, 2, 2, true, true, true, 0); }

int main(int argc, char **argv) { return run_tests(argc, argv); }
