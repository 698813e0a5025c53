/* random_deaths.h: one who kills workers at random, sees to it that they are repaired, and complains.
 *
 * The program says what a worker does, whom it kills how, and what else has to be so after a repair:
 * work(), strike(), after_repair().  Another takes the dead one's place, at once or only when a survivor has
 * repaired what it left. */
#ifndef RANDOM_DEATHS_H
#define RANDOM_DEATHS_H

#include <stdarg.h>
#include <time.h>

#include "lab.h"

enum { COMPLAINTS = 10 };
static uint64_t failures;

__attribute__((format(printf, 1, 2))) static void complain(const char *text, ...) {
    if (failures++ >= COMPLAINTS) return;
    va_list list;
    va_start(list, text);
    vfprintf(stderr, text, list);
    va_end(list);
    fputc('\n', stderr);
}

struct times {
    uint64_t n;
    int64_t *ns;
};

static void note_time(struct times *t, int64_t ns) { t->ns[t->n++] = ns; }

static int by_size(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* p50, p99 and the longest; p99 within the limit. */
static void say_times(const char *what, struct times *t, uint64_t limit_ms) {
    uint64_t before = failures;
    if (t->n == 0) return;
    qsort(t->ns, t->n, sizeof *t->ns, by_size);
    int64_t p50 = t->ns[t->n / 2], p99 = t->ns[t->n - 1 - t->n / 100], longest = t->ns[t->n - 1];
    if (p99 > (int64_t)limit_ms * MS) complain("%.1f ms (p99), %s", (double)p99 / MS, what);
    printf("%s\t%" PRIu64 " deaths; p50 %.1f, p99 %.1f, max %.1f ms\t%" PRIu64 "\n", what, t->n,
           (double)p50 / MS, (double)p99 / MS, (double)longest / MS, failures - before);
}

static void room_for(struct times *t, uint64_t n) {
    t->ns = calloc(n, sizeof *t->ns);
    CHECK(t->ns != NULL);
}

static void nap(int64_t ns) {
    const struct timespec pause = {.tv_nsec = (long)ns};
    (void)nanosleep(&pause, NULL);
}

static void stop_it(pid_t pid) {
    int status;
    CHECK_EQ(kill(pid, SIGSTOP), 0);
    CHECK_EQ(waitpid(pid, &status, WUNTRACED), pid);
    CHECK(WIFSTOPPED(status)); /* a worker whose check failed has ended */
}

/* ---- the one who kills ---- */

enum { MOST_WORKERS = 16 };
#define REPAIR_PATIENCE_NS (5000 * MS) /* then it counts as forgotten */

struct death {
    int64_t killed_ns;
    uint64_t word;  /* of its entry in the peer table */
    uint32_t index; /* UINT32_MAX: it had none */
    bool replaced;
};

static shmq_queue *q;
static int fd;
static pid_t pids[MOST_WORKERS];
static struct death deaths[MOST_WORKERS];
static bool dead[MOST_WORKERS]; /* and its repair was not seen yet */
static struct times at_once, by_survivors;
static uint64_t seed, kills;

/* The program's: a worker's life; a death, from choose_death() to replace(); a look at what it left. */
static void work(uint32_t i, uint64_t random);
static void strike(uint32_t i);
static void after_repair(uint32_t i);

static void start(uint32_t i) {
    uint64_t random = next_random(&seed);
    pids[i] = fork_child();
    if (pids[i] == 0) {
        work(i, random);
        _exit(0);
    }
    dead[i] = false;
}

/* Every second victim is stopped, and dies without a further step. */
static struct death *choose_death(uint32_t i) {
    deaths[i] = (struct death){.index = UINT32_MAX};
    if (below(&seed, 2) == 0) stop_it(pids[i]);
    return &deaths[i];
}

static void find_entry(pid_t pid, struct death *d) {
    d->index = UINT32_MAX;
    for (uint32_t i = 0; i < q->segment.geometry.peers; i++) {
        const struct shmq_peer *peer = &q->segment.peers[i];
        uint64_t word = load_acquire(&peer->word);
        if ((word & 0xff) != SHMQ_PEER_LIVE || peer->pid != (uint32_t)pid) continue;
        d->index = i;
        d->word = word;
    }
}

static int64_t kill_it(pid_t pid) {
    int64_t now = shmq_now_ns();
    CHECK_EQ(kill(pid, SIGKILL), 0);
    join_child(pid, SIGKILL);
    return now;
}

static void replace(uint32_t i) {
    struct death *d = &deaths[i];
    kills += 1;
    d->replaced = below(&seed, 2) == 0 || d->index == UINT32_MAX;
    if (d->replaced) start(i);
    dead[i] = d->index != UINT32_MAX;
}

/* The entry in the peer table is given up last: then all that it held is somebody else's, or nobody's. */
static void watch_repair(uint32_t i) {
    struct death *d = &deaths[i];
    int64_t took = shmq_now_ns() - d->killed_ns;
    bool repaired = load_acquire(&q->segment.peers[d->index].word) != d->word;
    if (!repaired && took < REPAIR_PATIENCE_NS) return;
    if (!repaired) complain("a death is not repaired after %" PRId64 " ms", took / MS);
    else note_time(d->replaced ? &at_once : &by_survivors, took);
    if (repaired) after_repair(i);
    if (d->replaced) dead[i] = false;
    else start(i);
}

static void check_workers(void) {
    int status;
    if (waitpid(-1, &status, WNOHANG) > 0) failed(__FILE__, __LINE__, "a worker has ended by itself");
    alarm(watchdog_s());
    nap(200000);
}

/* Of the first `mortals` workers. */
static void kill_many(uint32_t mortals, uint64_t wanted, uint64_t pause_ns) {
    int64_t next = shmq_now_ns();
    while (kills < wanted) {
        uint32_t i = (uint32_t)below(&seed, mortals);
        if (shmq_now_ns() >= next && !dead[i]) {
            strike(i);
            next = shmq_now_ns() + (int64_t)below(&seed, 2 * pause_ns + 1);
        }
        for (uint32_t d = 0; d < mortals; d++)
            if (dead[d]) watch_repair(d);
        check_workers();
    }
}

static void join_mortals(uint32_t mortals) {
    for (uint32_t i = 0; i < mortals; i++)
        if (!dead[i] || deaths[i].replaced) join_child(pids[i], 0);
}

/* Of a segment that is empty, when everyone else has gone. */
static void check_nobody_holds(const shmq_stats *s) {
    shmq_peer_info peers[4];
    uint32_t n;
    if (s->arena_free_bytes != s->arena_bytes)
        complain("%" PRIu64 " bytes of the arena are not free", s->arena_bytes - s->arena_free_bytes);
    OK(shmq_get_peers(q, peers, 4, &n));
    if (n != 1) complain("%" PRIu32 " entries of the peer table are taken", n - 1);
    if (shmq_validate(q) != SHMQ_OK) complain("validate says \"%s\"", shmq_status_text(shmq_validate(q)));
}

#endif
