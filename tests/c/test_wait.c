/* The eventcount: exact words, deadlines, signals.  (Lost wake-ups: see wakes.c.) */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include "lab.h"

static struct shmq_eventcount event;
static shmq_a32 ready_now;
static bool ready(void *unused) {
    (void)unused;
    return load32_acquire(&ready_now) != 0;
}
static void reset(void) {
    memset(&event, 0, sizeof event);
    store32_release(&ready_now, 0);
}
static int wait_until(int64_t deadline_ns, bool *parked) {
    struct shmq_waiter waiter = {0};
    return shmq_eventcount_wait(&event, &waiter, ready, NULL, deadline_ns, parked);
}

TEST(a_wake_with_nobody_armed_writes_nothing) {
    reset();
    CHECK(!shmq_eventcount_armed(&event));
    CHECK_EQ(load32_relaxed(&event.epoch), 0);
    CHECK_EQ(load32_relaxed(&event.armed), 0);
    CHECK_EQ(shmq_eventcount_wake_slow(&event), 0);
    CHECK_EQ(load32_relaxed(&event.epoch), 0);
}

TEST(a_wake_disarms_and_advances_the_epoch) {
    reset();
    store32_relaxed(&event.armed, 1);
    store32_relaxed(&event.epoch, UINT32_MAX); /* it may wrap */
    CHECK(shmq_eventcount_armed(&event));
    CHECK_EQ(shmq_eventcount_wake_slow(&event), SHMQ_ARMED_FUTEX);
    CHECK_EQ(load32_relaxed(&event.epoch), 0);
    CHECK_EQ(load32_relaxed(&event.armed), 0);
    CHECK(!shmq_eventcount_armed(&event));
    CHECK_EQ(load32_relaxed(&event.epoch), 0);
}

TEST(what_is_ready_is_not_waited_for) {
    bool parked;
    reset();
    store32_release(&ready_now, 1);
    OK(wait_until(SHMQ_NO_WAIT, &parked));
    CHECK(!parked);
    OK(wait_until(SHMQ_FOREVER, &parked));
    CHECK(!parked);
    CHECK_EQ(load32_relaxed(&event.armed), 0);
}

TEST(a_try_does_not_wait) {
    bool parked;
    reset();
    CHECK_EQ(wait_until(SHMQ_NO_WAIT, &parked), SHMQ_EMPTY);
    CHECK(!parked);
    CHECK_EQ(wait_until(-1, &parked), SHMQ_EMPTY);
    CHECK_EQ(load32_relaxed(&event.armed), 0);
}

TEST(a_deadline_is_kept_and_not_cut) {
    for (int64_t timeout = -5 * MS; timeout <= 20 * MS; timeout += 5 * MS) {
        bool parked;
        reset();
        int64_t deadline = shmq_now_ns() + timeout;
        CHECK_EQ(wait_until(deadline, &parked), SHMQ_EMPTY);
        CHECK(shmq_now_ns() >= deadline);
        CHECK(parked);
        CHECK_EQ(load32_relaxed(&event.armed), 1);
    }
}

TEST(a_slice_ends_long_waits) {
    bool parked;
    reset();
    int64_t start = shmq_now_ns();
    CHECK_EQ(wait_until(SHMQ_FOREVER, &parked), SHMQ_NOT_READY);
    CHECK(shmq_now_ns() - start >= SHMQ_SHORT_SLICE_NS);
    CHECK(parked);
}

TEST(deadlines_do_not_overflow) {
    CHECK_EQ(shmq_deadline(-1), SHMQ_FOREVER);
    CHECK_EQ(shmq_deadline(INT64_MIN), SHMQ_FOREVER);
    CHECK_EQ(shmq_deadline(INT64_MAX), SHMQ_FOREVER);
    int64_t now = shmq_now_ns();
    CHECK(shmq_deadline(0) >= now);
    CHECK(shmq_deadline(1000) - now >= 1000);
}

TEST(the_spin_budget_falls_where_nothing_comes) {
    struct shmq_waiter waiter = {0};
    bool parked;
    reset();
    store_relaxed(&waiter.spin_ns, SHMQ_SPIN_MAX_NS - 1);
    for (int i = 0; i < 20; i++)
        CHECK_EQ(shmq_eventcount_wait(&event, &waiter, ready, NULL, shmq_deadline(1), &parked), SHMQ_EMPTY);
    CHECK_EQ(load_relaxed(&waiter.spin_ns), SHMQ_SPIN_MIN_NS);
}

/* Not while it spins, nor at the look behind arming, but when the sleep is over. */
static bool ready_after_sleep(void *looks) {
    return load32_relaxed(&event.armed) != 0 && ++*(int *)looks == 2;
}

/* One wait that ends with its sleep, `sleep_ns` from now; returns the budget that it leaves. */
static uint64_t budget_after_sleep(struct shmq_waiter *waiter, int64_t sleep_ns) {
    bool parked;
    int looks = 0;
    reset();
    OK(shmq_eventcount_wait(&event, waiter, ready_after_sleep, &looks, shmq_deadline(sleep_ns), &parked));
    CHECK(parked);
    return load_relaxed(&waiter->spin_ns);
}

TEST(the_spin_budget_grows_where_spinning_would_do) {
    struct shmq_waiter waiter = {0};
    store_relaxed(&waiter.spin_ns, SHMQ_SPIN_MIN_NS);
    int waits = 1; /* mostly five; more where we lose the processor meanwhile */
    while (budget_after_sleep(&waiter, 1) < SHMQ_SPIN_MAX_NS) CHECK(waits++ < 10000);
    CHECK(waits >= 5);
    CHECK_EQ(budget_after_sleep(&waiter, 1), SHMQ_SPIN_MIN_NS); /* the longest was in vain */
    store_relaxed(&waiter.spin_ns, 8 * SHMQ_SPIN_MIN_NS);
    CHECK_EQ(budget_after_sleep(&waiter, MS), 4 * SHMQ_SPIN_MIN_NS); /* much too late for any */
    store_relaxed(&waiter.spin_ns, 0);
    CHECK_EQ(budget_after_sleep(&waiter, 1), 0); /* one CPU */
}

/* ---- signals ---- */

static void on_signal(int number) { (void)number; }

struct storm {
    pthread_t target;
    shmq_a32 stop;
};
/* Signals without end: the first that hits the sleeper must end its sleep. */
static void *send_signals(void *argument) {
    struct storm *storm = argument;
    while (load32_acquire(&storm->stop) == 0) {
        pthread_kill(storm->target, SIGUSR1);
        sched_yield();
    }
    return NULL;
}

static struct storm *start_storm(pthread_t *thread, int flags) {
    static struct storm storm;
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = flags};
    CHECK_EQ(sigaction(SIGUSR1, &action, NULL), 0);
    storm.target = pthread_self();
    store32_release(&storm.stop, 0);
    CHECK_EQ(pthread_create(thread, NULL, send_signals, &storm), 0);
    return &storm;
}

TEST(a_signal_interrupts_a_wait) {
    static const int flags[] = {0, SA_RESTART};
    for (int i = 0; i < 2; i++) {
        pthread_t thread;
        bool parked;
        reset();
        struct storm *storm = start_storm(&thread, flags[i]);
        int status;
        do status = wait_until(SHMQ_FOREVER, &parked);
        while (status == SHMQ_NOT_READY); /* a slice that no signal hit */
        CHECK_EQ(status, SHMQ_INTERRUPTED);
        store32_release(&storm->stop, 1);
        pthread_join(thread, NULL);
    }
}

TEST(interruptions_do_not_stretch_the_deadline) {
    pthread_t thread;
    bool parked;
    reset();
    struct storm *storm = start_storm(&thread, 0);
    int64_t deadline = shmq_deadline(50 * MS);
    int status;
    uint64_t interruptions = 0;
    do {
        status = wait_until(deadline, &parked);
        if (status == SHMQ_INTERRUPTED) interruptions++;
        else CHECK_EQ(status, SHMQ_EMPTY);
    } while (status != SHMQ_EMPTY);
    CHECK(shmq_now_ns() >= deadline);
    CHECK(interruptions > 0);
    store32_release(&storm->stop, 1);
    pthread_join(thread, NULL);
}

/* A message that came with the signal is not held back by it. */
TEST(what_is_ready_wins_over_the_signal) {
    pthread_t thread;
    int fd = lab_object();
    shmq_queue *q = lab_create(fd, &tiny);
    struct storm *storm = start_storm(&thread, 0);
    uint64_t interrupted = 0;
    for (uint64_t i = 0; i < 200; i++) {
        uint64_t number;
        int status = lab_get(q, &number, shmq_deadline(MS));
        CHECK(status == SHMQ_EMPTY || status == SHMQ_INTERRUPTED);
        interrupted += status == SHMQ_INTERRUPTED;
        OK(lab_put(q, i, 16, SHMQ_FOREVER));
        OK(lab_get(q, &number, SHMQ_FOREVER));
        CHECK_EQ(number, i);
    }
    store32_release(&storm->stop, 1);
    pthread_join(thread, NULL);
    CHECK(interrupted > 0);
    shmq_free(q);
    close(fd);
}

int main(int argc, char **argv) { return run_tests(argc, argv); }
