/* Repair: states that the dead leave, made by hand, and what the survivors find after one reap. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>

#include "lab.h"

#define PRODUCER 1u
#define CONSUMER 2u
#define BLOCK_BYTES (3 * SHMQ_SMALL_PAGE)

static const uint64_t starts[] = {0, 4096 - 16, 4096 - 8, UINT64_C(0) - 16, UINT64_C(0) - 8};
#define STARTS (sizeof starts / sizeof *starts)

/* A survivor that takes no part (peer 0), a producer (1) and a consumer (2). */
static struct {
    int fd;
    shmq_queue *survivor, *producer, *consumer;
} rig;

static void set_up(uint64_t first_cursor) {
    shmq_params params = tiny;
    params.first_cursor = first_cursor;
    rig.fd = lab_object();
    rig.survivor = lab_create(rig.fd, &params);
    rig.producer = lab_attach(rig.fd);
    rig.consumer = lab_attach(rig.fd);
    OK(shmq_put_begin(rig.producer));
    OK(shmq_get_begin(rig.consumer));
}

static void bury(shmq_queue **q) {
    lab_bury(*q);
    *q = NULL;
}

/* A consumer, perhaps a new one, receives exactly first ... last; then nothing is left of anything. */
static void drain(uint64_t first, uint64_t last) {
    shmq_queue *q = rig.consumer != NULL ? rig.consumer : rig.survivor;
    uint64_t number;
    for (uint64_t i = first; i <= last; i++) {
        OK(lab_get(q, &number, SHMQ_NO_WAIT));
        CHECK_EQ(number, i);
    }
    CHECK_EQ(lab_get(q, &number, SHMQ_NO_WAIT), SHMQ_EMPTY);
    shmq_stats s = lab_stats(q);
    CHECK_EQ(s.messages_put, s.messages_got);
    CHECK_EQ(s.ring_used_bytes, 0);
    lab_all_pages_free(q);
    OK(shmq_validate(q));
}

static void tear_down(void) {
    shmq_free(rig.producer);
    shmq_free(rig.consumer);
    shmq_free(rig.survivor);
    close(rig.fd);
    memset(&rig, 0, sizeof rig);
}

static uint64_t word_of(uint32_t page) { return load_acquire(&rig.survivor->arena.words[page]); }
static uint64_t role(bool producer) {
    struct shmq_roles *r = &rig.survivor->control->roles;
    return load_acquire(producer ? &r->producer : &r->consumer);
}

TEST(roles_and_slot_are_given_up_last) {
    set_up(0);
    CHECK_EQ(role(true), PRODUCER + 1);
    CHECK_EQ(role(false), CONSUMER + 1);
    lab_die(rig.producer);
    lab_die(rig.consumer);
    store32_relaxed(&rig.survivor->control->not_empty.armed, 1);
    store32_relaxed(&rig.survivor->control->not_full.armed, 1);
    CHECK_EQ(lab_reap(rig.survivor), 2);
    CHECK_EQ(role(true), 0);
    CHECK_EQ(role(false), 0);
    CHECK_EQ(load_acquire(&rig.survivor->segment.peers[PRODUCER].word), 1 << 8);
    CHECK_EQ(load32_relaxed(&rig.survivor->control->not_empty.epoch), 1); /* everyone looks again */
    CHECK_EQ(load32_relaxed(&rig.survivor->control->not_full.epoch), 1);
    CHECK_EQ(load32_relaxed(&rig.survivor->control->not_empty.armed), 0);
    bury(&rig.producer);
    bury(&rig.consumer);
    rig.producer = lab_attach(rig.fd);
    OK(lab_put(rig.producer, 1, 16, SHMQ_NO_WAIT));
    CHECK_EQ(rig.producer->me.index, 3); /* the dead one keeps its post-mortem */
    CHECK_EQ(role(true), 3 + 1);
    drain(1, 1);
    tear_down();
}

TEST(the_living_keep_their_roles_and_blocks) {
    set_up(0);
    shmq_block *loan;
    shmq_message lease;
    OK(shmq_loan(rig.producer, BLOCK_BYTES, SHMQ_NO_WAIT, &loan));
    OK(lab_put(rig.producer, 1, BLOCK_BYTES, SHMQ_NO_WAIT));
    OK(lab_put(rig.producer, 2, BLOCK_BYTES, SHMQ_NO_WAIT));
    OK(shmq_get(rig.consumer, &lease, SHMQ_NO_WAIT));
    shmq_queue *bystander = lab_attach(rig.fd);
    lab_die(bystander);
    uint64_t before[3] = {loan->word, lease.block->word, word_of(6)};
    CHECK_EQ(lab_reap(rig.survivor), 1);
    CHECK_EQ(word_of(0), before[0]);
    CHECK_EQ(word_of(3), before[1]);
    CHECK_EQ(word_of(6), before[2]);
    CHECK_EQ(role(true), PRODUCER + 1);
    CHECK_EQ(role(false), CONSUMER + 1);
    lab_bury(bystander);
    shmq_block_release(loan);
    shmq_message_release(&lease);
    drain(2, 2);
    tear_down();
}

TEST(loans_of_the_dead_become_free) {
    for (uint32_t claimed = 1; claimed <= 3; claimed++) { /* it may have died while it claimed them */
        set_up(0);
        shmq_block *b;
        OK(shmq_loan(rig.producer, BLOCK_BYTES, SHMQ_NO_WAIT, &b));
        for (uint32_t i = claimed; i < 3; i++) store_relaxed(&rig.survivor->arena.words[b->page + i], 0);
        lab_die(rig.producer);
        CHECK_EQ(lab_reap(rig.survivor), 1);
        lab_all_pages_free(rig.survivor);
        free(b);
        bury(&rig.producer);
        OK(lab_put(rig.survivor, 1, BLOCK_BYTES, SHMQ_NO_WAIT));
        drain(1, 1);
        tear_down();
    }
}

/* The steps of a publish, the death after each, and what the next ones find. */
TEST(a_message_is_published_whole_or_not_at_all) {
    enum { RESERVED, SENT, COMMITTED, STEPS };
    for (size_t i = 0; i < STARTS; i++) {
        for (int step = RESERVED; step < STEPS; step++) {
            set_up(starts[i]);
            OK(lab_put(rig.producer, 1, BLOCK_BYTES, SHMQ_NO_WAIT));
            OK(lab_put(rig.producer, 2, 100, SHMQ_NO_WAIT));
            shmq_block *b;
            struct shmq_record record;
            OK(shmq_loan(rig.producer, BLOCK_BYTES, SHMQ_NO_WAIT, &b));
            message_write(b->data, 3, BLOCK_BYTES);
            OK(shmq_spsc_try_reserve(&rig.producer->ring.spsc, &rig.producer->put.ring.spsc, 8, SHMQ_RAW,
                                     SHMQ_RECORD_BLOCK, &record));
            rig.producer->arena.headers[b->page].payload_bytes = BLOCK_BYTES;
            uint64_t handle = shmq_handle(b->page, shmq_word_generation(b->word));
            memcpy(record.payload, &handle, sizeof handle);
            if (step >= SENT) OK(shmq_arena_send(&rig.producer->arena, b->page, &b->word, record.position));
            if (step >= COMMITTED) shmq_spsc_commit(&rig.producer->ring.spsc, &rig.producer->put.ring.spsc);
            lab_die(rig.producer);
            CHECK_EQ(lab_reap(rig.survivor), 1);
            CHECK_EQ(lab_reap(rig.survivor), 0);
            CHECK_EQ(lab_stats(rig.survivor).pages[SHMQ_PAGE_INFLIGHT], step == COMMITTED ? 2 : 1);
            free(b);
            bury(&rig.producer);
            uint64_t next = step == COMMITTED ? 4 : 3; /* its successor goes on at that very place */
            OK(lab_put(rig.survivor, next, BLOCK_BYTES, SHMQ_NO_WAIT));
            OK(lab_put(rig.survivor, next + 1, 16, SHMQ_NO_WAIT));
            drain(1, next + 1);
            tear_down();
        }
    }
}

/* The steps of a get. */
TEST(a_message_is_taken_whole_or_delivered_again) {
    enum { PEEKED, LEASED, RELEASED, STEPS };
    for (size_t i = 0; i < STARTS; i++) {
        for (int step = PEEKED; step < STEPS; step++) {
            set_up(starts[i]);
            OK(lab_put(rig.producer, 1, BLOCK_BYTES, SHMQ_NO_WAIT));
            OK(lab_put(rig.producer, 2, BLOCK_BYTES, SHMQ_NO_WAIT));
            struct shmq_record record;
            const struct shmq_block_header *header;
            shmq_block *b = NULL;
            OK(shmq_try_next(rig.consumer, &record));
            if (step >= LEASED) OK(shmq_try_lease(rig.consumer, &record, NULL, &b, &header));
            if (step >= RELEASED) shmq_taken(rig.consumer, 1, b->bytes);
            uint32_t page = step >= LEASED ? b->page : 0;
            uint64_t leased = word_of(page);
            lab_die(rig.consumer);
            CHECK_EQ(lab_reap(rig.survivor), 1);
            if (step == LEASED) /* INFLIGHT at the same place, and marked: it may never be freed now */
                CHECK_EQ(word_of(page), shmq_word(SHMQ_PAGE_INFLIGHT, CONSUMER, shmq_word_generation(leased),
                                                  shmq_cursor_argument(record.position)) |
                                            SHMQ_WORD_COMMITTED);
            CHECK_EQ(lab_reap(rig.survivor), 0);
            free(b);
            bury(&rig.consumer);
            drain(step == RELEASED ? 2 : 1, 2);
            tear_down();
        }
    }
}

/* Whoever is given a message again may die of it, too. */
TEST(redelivery_survives_any_number_of_deaths) {
    set_up(UINT64_C(0) - 8);
    OK(lab_put(rig.producer, 1, BLOCK_BYTES, SHMQ_NO_WAIT));
    for (int death = 0; death < 5; death++) {
        struct shmq_record record;
        const struct shmq_block_header *header;
        shmq_block *b;
        OK(shmq_get_begin(rig.consumer));
        OK(shmq_try_next(rig.consumer, &record));
        OK(shmq_try_lease(rig.consumer, &record, NULL, &b, &header));
        CHECK_EQ(word_of(b->page) & SHMQ_WORD_COMMITTED, 0);
        lab_die(rig.consumer);
        CHECK_EQ(lab_reap(rig.survivor), 1);
        free(b);
        bury(&rig.consumer);
        rig.consumer = lab_attach(rig.fd);
    }
    lab_die(rig.producer); /* its message stays, too */
    CHECK_EQ(lab_reap(rig.survivor), 1);
    bury(&rig.producer);
    drain(1, 1);
    tear_down();
}

/* The way back in the same process, for want of memory. */
TEST(an_unleased_message_is_the_next_one_again) {
    for (size_t i = 0; i < STARTS; i++) {
        for (int dies = 0; dies < 2; dies++) {
            set_up(starts[i]);
            OK(lab_put(rig.producer, 1, BLOCK_BYTES, SHMQ_NO_WAIT));
            struct shmq_spsc_side before = rig.consumer->get.ring.spsc;
            struct shmq_record record;
            const struct shmq_block_header *header;
            shmq_block *b;
            OK(shmq_try_next(rig.consumer, &record));
            OK(shmq_try_lease(rig.consumer, &record, NULL, &b, &header));
            shmq_unlease(b, &record);
            rig.consumer->get.ring.spsc = before;
            if (dies) {
                lab_die(rig.consumer);
                CHECK_EQ(lab_reap(rig.survivor), 1);
                bury(&rig.consumer);
            }
            drain(1, 1);
            tear_down();
        }
    }
}

TEST(one_process_in_both_roles) {
    set_up(0);
    shmq_close(rig.producer);
    shmq_close(rig.consumer);
    shmq_queue *both = lab_attach(rig.fd);
    OK(lab_put(both, 1, BLOCK_BYTES, SHMQ_NO_WAIT));
    OK(lab_put(both, 2, BLOCK_BYTES, SHMQ_NO_WAIT));
    struct shmq_record record;
    const struct shmq_block_header *header;
    shmq_block *b, *loan;
    OK(shmq_get_begin(both));
    OK(shmq_try_next(both, &record));
    OK(shmq_try_lease(both, &record, NULL, &b, &header));
    OK(shmq_loan(both, 1, SHMQ_NO_WAIT, &loan));
    lab_die(both);
    CHECK_EQ(lab_reap(rig.survivor), 1);
    free(b);
    free(loan);
    lab_bury(both);
    shmq_free(rig.consumer);
    rig.consumer = NULL;
    drain(1, 2);
    tear_down();
}

/* The sender left in good order; the next one in its slot dies.  The sender's message is not the dead's. */
TEST(what_an_earlier_life_sent_is_not_freed_with_a_later_one) {
    set_up(0);
    OK(lab_put(rig.producer, 1, BLOCK_BYTES, SHMQ_NO_WAIT));
    shmq_free(rig.producer);
    rig.producer = lab_attach(rig.fd);
    CHECK_EQ(rig.producer->me.index, PRODUCER);
    lab_die(rig.producer);
    CHECK_EQ(lab_reap(rig.survivor), 1);
    bury(&rig.producer);
    drain(1, 1);
    tear_down();
}

TEST(the_next_put_and_get_take_over_by_themselves) {
    set_up(0);
    OK(lab_put(rig.producer, 1, BLOCK_BYTES, SHMQ_NO_WAIT));
    CHECK_EQ(lab_put(rig.survivor, 2, 16, SHMQ_NO_WAIT), SHMQ_ROLE_TAKEN);
    uint64_t number;
    CHECK_EQ(lab_get(rig.survivor, &number, SHMQ_NO_WAIT), SHMQ_ROLE_TAKEN);
    lab_die(rig.producer);
    lab_die(rig.consumer);
    OK(lab_put(rig.survivor, 2, 16, SHMQ_NO_WAIT));
    bury(&rig.producer);
    bury(&rig.consumer);
    drain(1, 2);
    tear_down();
}

/* A blocked call looks at the peers when its slice or its deadline is over. */
TEST(a_waiting_producer_reaps_whoever_holds_the_pages) {
    set_up(0);
    OK(lab_put(rig.producer, 1, 16 * SHMQ_SMALL_PAGE, SHMQ_NO_WAIT)); /* all pages */
    shmq_message m;
    OK(shmq_get(rig.consumer, &m, SHMQ_NO_WAIT));
    CHECK_EQ(lab_put(rig.producer, 2, BLOCK_BYTES, SHMQ_NO_WAIT), SHMQ_ARENA_FULL);
    CHECK_EQ(lab_put(rig.producer, 2, BLOCK_BYTES, shmq_deadline(5 * MS)), SHMQ_ARENA_FULL);
    lab_die(rig.consumer);
    OK(lab_put(rig.producer, 2, BLOCK_BYTES, SHMQ_FOREVER));
    CHECK_EQ(load_relaxed(&rig.producer->counters->reaps), 1);
    free(m.block);
    bury(&rig.consumer);
    drain(2, 2);
    tear_down();
}

/* A role word that names nobody that could hold it. */
TEST(a_role_of_nobody) {
    set_up(0);
    shmq_close(rig.producer);
    store_relaxed(&rig.survivor->control->roles.producer, 99);
    CHECK_EQ(lab_put(rig.survivor, 1, 16, SHMQ_NO_WAIT), SHMQ_CORRUPT);
    store_relaxed(&rig.survivor->control->roles.producer, UINT64_C(1) << 16);
    CHECK_EQ(lab_put(rig.survivor, 1, 16, SHMQ_NO_WAIT), SHMQ_CORRUPT);
    CHECK_EQ(lab_stats(rig.survivor).producer, (uint64_t)-1);
    store_relaxed(&rig.survivor->control->roles.producer, 0);
    OK(lab_put(rig.survivor, 1, 16, SHMQ_NO_WAIT));
    drain(1, 1);
    tear_down();
}

/* ---- who looks, and when ---- */

/* Puts one message when the consumer is about to sleep, and probably does. */
static void *put_when_armed(void *unused) {
    while (load32_acquire(&rig.survivor->control->not_empty.armed) == 0) sched_yield();
    for (volatile int i = 0; i < 100000;) i = i + 1;
    OK(lab_put(rig.producer, 1, 100, SHMQ_NO_WAIT));
    return unused;
}

/* Gets until a get has slept, and was woken by a message. */
static void get_asleep(void) {
    shmq_queue *q = rig.consumer;
    uint64_t number, parks = load_relaxed(&q->counters->parks);
    store_relaxed(&q->get.waiter.spin_ns, 0);
    while (load_relaxed(&q->counters->parks) == parks) {
        pthread_t thread;
        store32_relaxed(&q->control->not_empty.armed, 0);
        CHECK_EQ(pthread_create(&thread, NULL, put_when_armed, NULL), 0);
        OK(lab_get(q, &number, SHMQ_FOREVER));
        CHECK_EQ(pthread_join(thread, NULL), 0);
    }
}

/* No wait lasts a slice where messages come all the time; what the dead hold comes back all the same. */
TEST(a_consumer_that_is_woken_looks_at_the_peers_once_a_slice) {
    set_up(0);
    shmq_queue *holder = lab_attach(rig.fd);
    shmq_block *b;
    OK(shmq_try_loan(holder, BLOCK_BYTES, &b));
    lab_die(holder);
    store_relaxed(&rig.consumer->looked_ns, (uint64_t)shmq_now_ns() + (uint64_t)(WATCHDOG_S * 1000 * MS));
    get_asleep();
    CHECK_EQ(lab_stats(rig.survivor).pages[SHMQ_PAGE_LOANED], 1); /* not yet: it has only just looked */
    store_relaxed(&rig.consumer->looked_ns, (uint64_t)(shmq_now_ns() - SHMQ_SLICE_NS));
    get_asleep();
    lab_all_pages_free(rig.survivor);
    CHECK_EQ(load_relaxed(&rig.consumer->counters->reaps), 1);
    CHECK((int64_t)load_relaxed(&rig.consumer->looked_ns) <= shmq_now_ns());
    CHECK_EQ(lab_reap(rig.survivor), 0);
    free(b);
    lab_bury(holder);
    tear_down();
}

int main(int argc, char **argv) { return run_tests(argc, argv); }
