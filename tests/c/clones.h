/* clones.h: threads of one process that act as processes of their own, for speed and for the race detector: their
 * handles share one mapping (lab_clone), end as a death leaves them, and come again.
 *
 * Every message is number = who put it << 32 | sequence.
 */
#ifndef CLONES_H
#define CLONES_H

#include <pthread.h>
#include <sched.h>

#include "lab.h"

#define MOST 4u /* of each sort */

static struct {
    int fd;
    shmq_queue *origin;
    bool blocks, deaths, sleepless;
    shmq_a64 deaths_seen;
    pthread_t threads[3 * MOST];
    uint32_t started;
} clones;

static void found_clones(const shmq_params *params, bool blocks, bool deaths, bool sleepless) {
    memset(&clones, 0, sizeof clones);
    clones.fd = lab_object();
    clones.origin = lab_create(clones.fd, params);
    clones.blocks = blocks;
    clones.deaths = deaths;
    clones.sleepless = sleepless;
}

static void start_clones(uint32_t n, void *(*live)(void *)) {
    for (uintptr_t i = 0; i < n; i++)
        CHECK_EQ(pthread_create(&clones.threads[clones.started++], NULL, live, (void *)i), 0);
}

static void join_clones(void) {
    while (clones.started > 0) CHECK_EQ(pthread_join(clones.threads[--clones.started], NULL), 0);
    (void)lab_reap(clones.origin);
}

/* All is read: nothing is left. */
static void end_clones(void) {
    lab_all_pages_free(clones.origin);
    OK(shmq_validate(clones.origin));
    if (clones.deaths) CHECK(load_relaxed(&clones.deaths_seen) > 10);
    shmq_free(clones.origin);
    close(clones.fd);
}

/* ---- one of them ---- */

static uint64_t size_of(uint64_t number) {
    static const uint64_t sizes[] = {16, 100, 1000, 2000, 24, SHMQ_SMALL_PAGE, 40, 3 * SHMQ_SMALL_PAGE};
    return clones.blocks ? sizes[number % 8] : 16 + number % 200;
}

static shmq_queue *join(void) {
    shmq_queue *q = lab_clone(clones.origin);
    if (!clones.sleepless) {
        store_relaxed(&q->put.waiter.spin_ns, 0);
        store_relaxed(&q->get.waiter.spin_ns, 0);
    }
    return q;
}

/* The end of a process, as far as the others can see: whoever waits next repairs.  Returns how many there were. */
static uint64_t end_life(shmq_queue *q) {
    lab_die(q);
    close(q->segment.fd);
    free(q->inline_copy);
    free(q->buffers);
    free(q);
    return atomic_fetch_add(&clones.deaths_seen, 1);
}

#endif
