/* No wake-up is lost.  Built with slices of an hour: a lost one is a hang, and the watchdog ends it. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>

#include "lab.h"

#define RACES 5000u
#define ROUNDS 4000u
#define SLEEPERS 3u
#define PATIENCE 10000u

_Static_assert(SHMQ_SLICE_NS > INT64_C(1000000000000), "build this with long slices");

struct side {
    struct shmq_eventcount event;
    shmq_a64 count;
    uint8_t pad[SHMQ_LINE - 8];
};
struct table {
    struct side sides[1], start[2], answers;
};

struct wish {
    shmq_a64 *count;
    uint64_t at_least;
};
static bool come_true(void *context) {
    const struct wish *wish = context;
    return load_acquire(wish->count) >= wish->at_least;
}

static void await(struct side *side, uint64_t at_least, uint64_t *parks) {
    struct shmq_waiter waiter = {0}; /* no spinning: straight into the race */
    struct wish wish = {&side->count, at_least};
    bool parked;
    OK(shmq_eventcount_wait(&side->event, &waiter, come_true, &wish, SHMQ_FOREVER, &parked));
    *parks += parked;
}

static void wake(struct shmq_eventcount *e) {
    if (shmq_eventcount_armed(e)) (void)shmq_eventcount_wake_slow(e);
}

static void publish(struct side *side, uint64_t count) {
    store_release(&side->count, count);
    wake(&side->event);
}

static void dawdle(uint64_t *random, uint64_t at_most) {
    for (volatile uint64_t i = below(random, at_most); i > 0;) i = i - 1;
}

/* Both start at the same moment; one publishes, some hundred steps later or sooner, while the other goes to
 * sleep.  Every order of their steps comes up, and so does a store that is still in its buffer. */
static void race(struct table *t, uint64_t me) {
    uint64_t random = me + 1, parks = 0;
    shmq_wait_register();
    for (uint64_t round = 1; round <= RACES; round++) {
        store_release(&t->start[me].count, round);
        for (uint64_t spins = 1; load_acquire(&t->start[1 - me].count) < round; spins++) {
            cpu_relax();
            if (spins % PATIENCE == 0) sched_yield(); /* the other one has no processor */
        }
        dawdle(&random, below(&random, 16) == 0 ? 50000 : 100); /* so that some do fall asleep */
        /* Where there are fewer processors than work, chance alone might not send anybody to sleep. */
        if (me == round % 2 && round % 64 < 2)
            while (!shmq_eventcount_armed(&t->sides[0].event)) sched_yield();
        if (me == round % 2) publish(&t->sides[0], round);
        else await(&t->sides[0], round, &parks);
    }
    CHECK(parks > 0);
}

static void *race_second(void *table) {
    race(table, 1);
    return NULL;
}

static struct table *table;

TEST(between_threads) {
    pthread_t other;
    table = lab_shared(sizeof *table);
    CHECK_EQ(pthread_create(&other, NULL, race_second, table), 0);
    race(table, 0);
    pthread_join(other, NULL);
    munmap(table, sizeof *table);
}

TEST(between_processes) {
    table = lab_shared(sizeof *table);
    pid_t pid = fork_child();
    if (pid == 0) {
        race(table, 1);
        _exit(0);
    }
    race(table, 0);
    join_child(pid, 0);
    munmap(table, sizeof *table);
}

/* One wake is for everyone who sleeps, including whoever arms while it is under way. */
static void *sleep_often(void *context) {
    uint64_t random = *(uint64_t *)context, parks = 0;
    for (uint64_t round = 1; round <= ROUNDS; round++) {
        await(&table->sides[0], round, &parks);
        dawdle(&random, 1000);
        atomic_fetch_add(&table->answers.count, 1);
        wake(&table->answers.event);
    }
    return NULL;
}

TEST(one_waker_many_sleepers) {
    pthread_t threads[SLEEPERS];
    uint64_t seeds[SLEEPERS] = {1, 2, 3}, parks = 0;
    table = lab_shared(sizeof *table);
    shmq_wait_register();
    for (size_t i = 0; i < SLEEPERS; i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, sleep_often, &seeds[i]), 0);
    for (uint64_t round = 1; round <= ROUNDS; round++) {
        publish(&table->sides[0], round);
        await(&table->answers, round * SLEEPERS, &parks);
    }
    for (size_t i = 0; i < SLEEPERS; i++) pthread_join(threads[i], NULL);
    munmap(table, sizeof *table);
}

/* A queue of one record, both sides blocking: every put and every get has to wake the other. */
static void *put_all(void *queue) {
    for (uint64_t i = 0; i < 2 * ROUNDS; i++) OK(lab_put(queue, i, 1024, SHMQ_FOREVER));
    return NULL;
}

static void exchange(bool blocks) {
    shmq_params params = tiny;
    if (blocks) params.arena_bytes = SHMQ_SMALL_PAGE; /* one page: the producer waits for its release */
    if (blocks) params.inline_bytes = 8;
    int fd = lab_object();
    shmq_queue *q = lab_create(fd, &params), *p = lab_attach(fd);
    store_relaxed(&p->put.waiter.spin_ns, 0);
    store_relaxed(&q->get.waiter.spin_ns, 0);
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, put_all, p), 0);
    for (uint64_t i = 0; i < 2 * ROUNDS; i++) {
        uint64_t number;
        OK(lab_get(q, &number, SHMQ_FOREVER));
        CHECK_EQ(number, i);
    }
    pthread_join(thread, NULL);
    CHECK(load_relaxed(&q->counters->parks) + load_relaxed(&p->counters->parks) > 0);
    shmq_free(p);
    shmq_free(q);
    close(fd);
}

TEST(inline_messages_through_a_full_ring) { exchange(false); }
TEST(blocks_through_an_arena_of_one_page) { exchange(true); }

/* Another handle shuts the queue down while this one sleeps. */
static void *shut_it_down(void *queue) {
    OK(shmq_shutdown(queue, 0));
    return NULL;
}
TEST(a_shutdown_wakes) {
    for (int i = 0; i < 400; i++) {
        int fd = lab_object();
        shmq_queue *q = lab_create(fd, &tiny), *other = lab_attach(fd);
        pthread_t thread;
        shmq_message m;
        store_relaxed(&q->get.waiter.spin_ns, 0);
        CHECK_EQ(pthread_create(&thread, NULL, shut_it_down, other), 0);
        CHECK_EQ(shmq_get(q, &m, SHMQ_FOREVER), SHMQ_SHUT_DOWN);
        pthread_join(thread, NULL);
        shmq_free(q);
        shmq_free(other);
        close(fd);
    }
}

/* ---- leases ---- */

#define TABLE 4u

static struct {
    shmq_queue *putter, *holder, *waiter;
    shmq_message held[TABLE], got;
    shmq_delivery deliveries[TABLE], delivery;
    void (*act)(void);
} lent;

static void ack_one(void) { OK(shmq_ack(lent.holder, &lent.deliveries[0])); }
static void give_one_back(void) { OK(shmq_nack(lent.holder, &lent.deliveries[0], 0)); }
static void give_one_back_for_a_while(void) { OK(shmq_nack(lent.holder, &lent.deliveries[0], MS)); }
static void close_holder(void) { shmq_close(lent.holder); }

static void *act_when_armed(void *event) {
    while (load32_acquire(&((struct shmq_eventcount *)event)->armed) == 0) sched_yield();
    lent.act();
    return NULL;
}
static int lease(shmq_queue *q, shmq_message *m, shmq_delivery *d) {
    int status = shmq_lease(q, m, d, SHMQ_FOREVER);
    if (status == SHMQ_OK) shmq_message_release(m);
    return status;
}
static int wait_for_one(void) { return lease(lent.waiter, &lent.got, &lent.delivery); }
static int wait_for_all(void) { return shmq_join(lent.waiter, SHMQ_FOREVER); }

/* The holder has leased so many; as soon as somebody else waits for something, it acts. */
static void wait_for_the_holder(uint64_t leased, bool and_one_more, bool draining, void (*act)(void),
                                int (*wait)(void), int status) {
    for (int round = 0; round < 50; round++) {
        shmq_params params = tiny;
        params.kind = SHMQ_KIND_MPMC;
        params.max_unacked = TABLE;
        int fd = lab_object();
        lent.putter = lab_create(fd, &params);
        lent.holder = lab_attach(fd);
        lent.waiter = lab_attach(fd);
        if (round % 2 == 0) store_relaxed(&lent.waiter->get.waiter.spin_ns, 0);
        for (uint64_t i = 0; i < leased; i++) {
            OK(lab_put(lent.putter, i, 16, SHMQ_NO_WAIT));
            OK(lease(lent.holder, &lent.held[i], &lent.deliveries[i]));
        }
        if (and_one_more) OK(lab_put(lent.putter, leased, 16, SHMQ_NO_WAIT));
        if (draining) OK(shmq_shutdown(lent.putter, 0));
        struct shmq_control *c = lent.waiter->control;
        struct shmq_eventcount *event = wait == wait_for_all ? &c->not_full : &c->not_empty;
        store32_relaxed(&event->armed, 0);
        pthread_t thread;
        lent.act = act;
        CHECK_EQ(pthread_create(&thread, NULL, act_when_armed, event), 0);
        CHECK_EQ(wait(), status);
        CHECK_EQ(pthread_join(thread, NULL), 0);
        shmq_free(lent.putter);
        shmq_free(lent.holder);
        shmq_free(lent.waiter);
        close(fd);
    }
}

TEST(an_ack_wakes_who_waits_for_room_in_the_table) {
    wait_for_the_holder(TABLE, true, false, ack_one, wait_for_one, SHMQ_OK);
}
TEST(the_last_ack_wakes_who_joins) { wait_for_the_holder(1, false, false, ack_one, wait_for_all, SHMQ_OK); }
TEST(what_is_given_back_wakes) {
    wait_for_the_holder(1, false, false, give_one_back, wait_for_one, SHMQ_OK);
    wait_for_the_holder(1, false, false, give_one_back_for_a_while, wait_for_one, SHMQ_OK);
    wait_for_the_holder(1, false, false, close_holder, wait_for_one, SHMQ_OK);
}
TEST(the_last_ack_ends_a_drain) {
    wait_for_the_holder(2, false, true, give_one_back, wait_for_one, SHMQ_OK);
    wait_for_the_holder(1, false, true, ack_one, wait_for_one, SHMQ_SHUT_DOWN);
}

int main(int argc, char **argv) { return run_tests(argc, argv); }
