/* Producers that put the same messages under the same keys, each in an order of its own, and die in their turns; as
 * threads of one process (clones.h).  Consumers take them: each message came once, whoever had to put it again.
 *
 * number = key - 1: whoever puts it, it is the same message. */
#define _GNU_SOURCE
#include "clones.h"

#define KEYS (SANITIZED ? 2000u : 8000u)

static struct {
    uint32_t producers;
    shmq_a64 taken, repeats;
    shmq_a32 done; /* producers that have put all */
    shmq_a32 came[8000];
} rivals;

/* In its turn, so far as chance has it: before its message is there, or behind that. */
static void die_in_a_turn(shmq_queue *q, uint64_t number, uint64_t *seed) {
    struct shmq_record r;
    uint64_t stage = below(seed, 4);
    OK(shmq_put_begin(q));
    int status = shmq_key_begin(q, number + 1);
    CHECK(status == SHMQ_OK || status == SHMQ_REPEAT || status == SHMQ_KEYS_BUSY);
    if (status == SHMQ_OK && stage > 0 &&
        shmq_ring_try_reserve(&q->ring, &q->put.ring, MESSAGE_MIN, SHMQ_RAW, 0, &r) == SHMQ_OK) {
        message_write(r.payload, number, MESSAGE_MIN);
        if (stage > 1) shmq_keys_publishing(&q->keys);
        if (stage > 2) shmq_ring_commit(&q->ring, &q->put.ring);
    }
    (void)end_life(q);
}

static void *produce(void *which) {
    uint64_t me = (uint64_t)(uintptr_t)which, seed = me + 1, stride = 2 * below(&seed, KEYS / 2) + 1;
    uint8_t *message = malloc(3 * SHMQ_SMALL_PAGE);
    CHECK(message != NULL);
    while (KEYS % stride == 0 || stride % 5 == 0) stride += 2; /* 2000 and 8000 have the factors 2 and 5 */
    shmq_queue *q = join();
    for (uint64_t i = 0, number = me * (KEYS / MOST); i < KEYS; i++, number = (number + stride) % KEYS) {
        if (clones.deaths && below(&seed, KEYS / 40) == 0) {
            die_in_a_turn(q, number, &seed);
            q = join();
        }
        message_write(message, number, size_of(number));
        int status = shmq_put_keyed(q, message, size_of(number), number + 1, SHMQ_FOREVER);
        CHECK(status == SHMQ_OK || status == SHMQ_REPEAT);
        if (status == SHMQ_REPEAT) (void)atomic_fetch_add(&rivals.repeats, 1);
    }
    (void)add32_seq_cst(&rivals.done, 1);
    lab_end_clone(q);
    free(message);
    return NULL;
}

static void *consume(void *which) {
    (void)which;
    shmq_queue *q = join();
    for (;;) {
        bool over = load32_seq_cst(&rivals.done) == rivals.producers; /* before the look */
        uint64_t number;
        int status = lab_get(q, &number, over ? SHMQ_NO_WAIT : shmq_deadline(20 * MS));
        if (status == SHMQ_EMPTY && over) break;
        if (status == SHMQ_EMPTY) continue;
        OK(status);
        CHECK(number < KEYS);
        CHECK_EQ(atomic_fetch_add(&rivals.came[number], 1), 0); /* none comes twice */
        (void)atomic_fetch_add(&rivals.taken, 1);
    }
    lab_end_clone(q);
    return NULL;
}

static void run(uint32_t producers, uint32_t consumers, bool blocks, bool deaths, bool sleepless) {
    shmq_params params = {.ring_bytes = 4096,
                          .arena_bytes = 64 * SHMQ_SMALL_PAGE,
                          .inline_bytes = 1024,
                          .peers = 512, /* the dead are repaired by whoever waits */
                          .kind = SHMQ_KIND_MPMC,
                          .keys = KEYS};
    memset(&rivals, 0, sizeof rivals);
    rivals.producers = producers;
    found_clones(&params, blocks, deaths, sleepless);
    start_clones(producers, produce);
    start_clones(consumers, consume);
    join_clones();
    CHECK_EQ(load_relaxed(&rivals.taken), KEYS);
    CHECK(load_relaxed(&rivals.repeats) >= (uint64_t)(producers - 1) * KEYS);
    CHECK_EQ(load_relaxed(&clones.origin->control->keys.count),
             KEYS); /* a key, a place: none was spent in vain */
    CHECK(shmq_keys_vacant(&clones.origin->keys));
    end_clones();
}

TEST(two_rivals) { run(2, 1, false, false, true); }
TEST(two_rivals_asleep) { run(2, 2, true, false, false); }
TEST(four_rivals_with_blocks) { run(4, 1, true, false, true); }
TEST(rivals_whose_lives_end) { run(4, 2, false, true, true); }
TEST(rivals_whose_lives_end_with_blocks) { run(3, 2, true, true, true); }

int main(int argc, char **argv) { return run_tests(argc, argv); }
