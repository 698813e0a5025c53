/* A waker dies between the store that made something available and the wake-up behind it, again and again.
 *
 *     wakes [--kind spsc|mpmc] DEATHS SEED LIMIT_MS
 *
 * A waiter sleeps on its futex.  A waker of its own attaches, sees that the waiter sleeps, does the one store and
 * kills itself.  The waiter has to go on when its slice ends, with no further sleep, and 99 of 100 within LIMIT_MS
 * (where the machine is busy with other things, some are late).  Three scenes:
 *
 *     message    a producer commits; the consumer sleeps at an empty ring
 *     slot       a consumer releases; the producer sleeps at a full ring
 *     page       a consumer frees a block; the producer sleeps at a full arena
 *
 * Most of the time they sleep, so LANES of these run side by side, each over a segment of its own.  One line of the
 * summary for each scene. */
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>

#include "lab.h"

enum { LANES = 12, SCENES = 3, WAITER = 1 };
enum scene { MESSAGE, SLOT, PAGE };
/* Four of these fill a ring of 4 KiB, of either kind. */
#define SHORT (1024u - SHMQ_RECORD_HEADER)
#define SHORT_SLOT (1024u - (uint32_t)sizeof(struct shmq_slot))
#define LONG 5000u

static struct lane {
    shmq_a64 went_on;    /* how often the waiter went on ... */
    shmq_a64 went_on_ns; /* ... when it last did ... */
    shmq_a64 slept;      /* ... and how often it had slept by then */
    shmq_a64 died_ns;    /* when the waker was about to do the store ... */
    shmq_a64 slept_then; /* ... and how often the waiter had slept, not counting this one */
    shmq_a64 goes;       /* told to the waker: the waiter sleeps */
    shmq_a32 asleep;     /* the waker's own look at the end: it still does */
} *lanes;

static struct times {
    shmq_a64 n, slept_again;
    int64_t ns[];
} *times[SCENES];

static uint32_t kind;
static uint64_t limit_ms, deaths;

static void nap(int64_t ns) {
    const struct timespec pause = {.tv_nsec = (long)ns};
    (void)nanosleep(&pause, NULL);
}

static uint32_t short_bytes(void) { return kind == SHMQ_KIND_MPMC ? SHORT_SLOT : SHORT; }

/* ---- the waiter ---- */

static void went_on(const shmq_queue *q, struct lane *lane) {
    store_release(&lane->slept, load_relaxed(&q->counters->parks));
    store_release(&lane->went_on_ns, (uint64_t)shmq_now_ns());
    store_release(&lane->went_on, load_relaxed(&lane->went_on) + 1);
}

static void keep_getting(shmq_queue *q, struct lane *lane) {
    for (uint64_t number;;) {
        int status = lab_get(q, &number, SHMQ_FOREVER);
        if (status == SHMQ_PEER_DEAD) continue; /* told once; a successor comes */
        OK(status);
        went_on(q, lane);
    }
}

static void keep_putting(shmq_queue *q, struct lane *lane, uint64_t bytes) {
    for (uint64_t number = 1;; number++) {
        OK(lab_put(q, number, bytes, SHMQ_FOREVER));
        went_on(q, lane);
    }
}

static pid_t start_waiter(int fd, struct lane *lane, enum scene scene) {
    pid_t pid = fork_child();
    if (pid != 0) return pid;
    alarm(0); /* it has its parent's watchdog, and dies with it */
    shmq_queue *q = lab_attach(fd);
    store_relaxed(&q->put.waiter.spin_ns, 0);
    store_relaxed(&q->get.waiter.spin_ns, 0);
    if (scene == MESSAGE) keep_getting(q, lane);
    keep_putting(q, lane, scene == SLOT ? short_bytes() : LONG);
    _exit(1);
}

/* In the futex call, as the kernel says; where it does not say, asleep will do: it sleeps nowhere else. */
static bool sleeps(pid_t pid) {
    char path[64], text[512] = "";
    snprintf(path, sizeof path, "/proc/%d/syscall", (int)pid);
    FILE *f = fopen(path, "re");
    if (f != NULL) {
        size_t n = fread(text, 1, sizeof text - 1, f);
        fclose(f);
        text[n] = '\0';
        if (n > 0) return strtol(text, NULL, 10) == SYS_futex;
    }
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    f = fopen(path, "re");
    CHECK(f != NULL);
    size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = '\0';
    const char *state = strrchr(text, ')');
    return state != NULL && strncmp(state, ") S", 3) == 0;
}

/* ---- the waker ---- */

static void do_the_store(shmq_queue *q, struct lane *lane, enum scene scene, const struct shmq_record *record,
                         const shmq_message *taken) {
    if (scene == MESSAGE) message_write(record->payload, 1, record->bytes);
    store_release(&lane->died_ns, (uint64_t)shmq_now_ns());
    store_release(&lane->slept_then, load_relaxed(&q->segment.peers[WAITER].parks));
    if (scene == MESSAGE) shmq_ring_commit(&q->ring, &q->put.ring);
    if (scene == SLOT) shmq_ring_release(&q->ring, &q->get.ring);
    if (scene == PAGE) OK(shmq_arena_free(&q->arena, taken->block->page, taken->block->word));
    (void)syscall(SYS_kill, getpid(), SIGKILL);
}

/* Up to the last step but one; then it waits for its moment. */
static void wake_half(int fd, struct lane *lane, enum scene scene, pid_t waiter, uint64_t random) {
    shmq_queue *q = lab_attach(fd);
    const struct shmq_eventcount *e = scene == MESSAGE ? &q->control->not_empty : &q->control->not_full;
    struct shmq_record record = {0};
    shmq_message taken = {0};
    int status = scene == MESSAGE ? shmq_put_begin(q) : shmq_get_begin(q);
    if (status == SHMQ_NOT_READY) { /* its predecessor is just being repaired */
        OK(shmq_settle_roles(q));
        status = scene == MESSAGE ? shmq_put_begin(q) : shmq_get_begin(q);
    }
    OK(status);
    if (scene == MESSAGE)
        OK(shmq_ring_try_reserve(&q->ring, &q->put.ring, short_bytes(), SHMQ_RAW, 0, &record));
    if (scene == SLOT) OK(shmq_try_next(q, &record));
    if (scene == PAGE) OK(shmq_get(q, &taken, SHMQ_FOREVER));
    while (load_acquire(&lane->goes) == 0) nap(100000);
    nap((int64_t)below(&random, 50000000)); /* anywhere in a slice */
    while (load32_acquire(&e->armed) == 0 || !sleeps(waiter)) nap(50000);
    store32_release(&lane->asleep, 1);
    do_the_store(q, lane, scene, &record, &taken);
}

/* ---- a lane ---- */

static void await_sleep(const shmq_queue *q, enum scene scene, pid_t waiter) {
    const struct shmq_eventcount *e = scene == MESSAGE ? &q->control->not_empty : &q->control->not_full;
    while (load32_acquire(&e->armed) == 0 || !sleeps(waiter)) nap(200000);
}

static void note(enum scene scene, const struct lane *lane) {
    struct times *t = times[scene];
    t->ns[atomic_fetch_add(&t->n, 1)] =
        (int64_t)load_acquire(&lane->went_on_ns) - (int64_t)load_acquire(&lane->died_ns);
    uint64_t sleeps = load_acquire(&lane->slept) - load_acquire(&lane->slept_then);
    (void)atomic_fetch_add(&t->slept_again, sleeps > 1);
}

static void one_death(const shmq_queue *q, int fd, struct lane *lane, enum scene scene, pid_t waiter,
                      uint64_t random) {
    store_release(&lane->goes, 0);
    store32_release(&lane->asleep, 0);
    await_sleep(q, scene, waiter);
    uint64_t before = load_acquire(&lane->went_on);
    pid_t waker = fork_child();
    if (waker == 0) {
        wake_half(fd, lane, scene, waiter, random);
        _exit(1);
    }
    store_release(&lane->goes, 1);
    join_child(waker, SIGKILL);
    int64_t died = (int64_t)load_acquire(&lane->died_ns), forgotten_ns = 4 * (int64_t)limit_ms * MS;
    while (load_acquire(&lane->went_on) == before) {
        if (shmq_now_ns() - died > forgotten_ns) failed(__FILE__, __LINE__, "a wake-up was lost");
        nap(500000);
    }
    CHECK_EQ(load32_acquire(&lane->asleep), 1);
    note(scene, lane);
}

static void run_lane(struct lane *lane, enum scene scene, uint64_t n, uint64_t random) {
    shmq_params params = {.ring_bytes = 4096,
                          .arena_bytes = SHMQ_SMALL_PAGE,
                          .inline_bytes = short_bytes(),
                          .peers = 8,
                          .kind = kind};
    int fd = lab_object();
    shmq_queue *q = lab_create(fd, &params);
    pid_t waiter = start_waiter(fd, lane, scene);
    for (uint64_t i = 0; i < n; i++) {
        alarm(watchdog_s());
        one_death(q, fd, lane, scene, waiter, next_random(&random));
    }
    CHECK_EQ(kill(waiter, SIGKILL), 0);
    join_child(waiter, SIGKILL);
    (void)lab_reap(q);
    OK(shmq_validate(q));
    shmq_free(q);
}

/* ---- all of them ---- */

static int by_size(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static uint64_t say(enum scene scene, uint64_t failed_lanes) {
    static const char *const what[] = {"killed between commit and wake, a consumer sleeps",
                                       "killed between release and wake, a producer sleeps at a full ring",
                                       "killed between free and wake, a producer sleeps at a full arena"};
    struct times *t = times[scene];
    uint64_t n = load_relaxed(&t->n), again = load_relaxed(&t->slept_again), failures = failed_lanes + again;
    qsort(t->ns, n, sizeof *t->ns, by_size);
    const int64_t none = 0, *ns = n == 0 ? &none : t->ns, last = n == 0 ? 0 : (int64_t)n - 1;
    double p50 = (double)ns[last / 2] / MS, p99 = (double)ns[last - last / 100] / MS;
    if (again > 0) fprintf(stderr, "%" PRIu64 " waiters slept again, over what they waited for\n", again);
    if (p99 > (double)limit_ms) {
        fprintf(stderr, "a waiter goes on after %.0f ms (p99)\n", p99);
        failures += 1;
    }
    printf("%s: %s\t%" PRIu64 " deaths; it goes on after p50 %.0f, p99 %.0f, max %.0f ms\t%" PRIu64 "\n",
           kind == SHMQ_KIND_MPMC ? "mpmc" : "spsc", what[scene], n, p50, p99, (double)ns[last] / MS,
           failures);
    return failures;
}

int main(int argc, char **argv) {
    int at = 1;
    kind = SHMQ_KIND_SPSC;
    if (argc > 2 && strcmp(argv[1], "--kind") == 0) {
        kind = strcmp(argv[2], "mpmc") == 0 ? SHMQ_KIND_MPMC : SHMQ_KIND_SPSC;
        at = 3;
    }
    if (argc - at != 3) return 2;
    deaths = strtoull(argv[at], NULL, 10);
    uint64_t seed = strtoull(argv[at + 1], NULL, 10) * 2 + 1, failures[SCENES] = {0}, all = 0;
    limit_ms = strtoull(argv[at + 2], NULL, 10);
    pid_t pids[LANES];
    lanes = lab_shared(LANES * sizeof *lanes);
    for (int s = 0; s < SCENES; s++)
        times[s] = lab_shared(sizeof *times[s] + (deaths + LANES) * sizeof(int64_t));
    for (uint64_t i = 0; i < LANES; i++) {
        enum scene scene = (enum scene)(i % SCENES);
        uint64_t sharing = LANES / SCENES, n = (deaths + sharing - 1 - i / SCENES) / sharing;
        uint64_t random = next_random(&seed);
        if ((pids[i] = fork_child()) != 0) continue;
        run_lane(&lanes[i], scene, n, random);
        _exit(0);
    }
    for (int i = 0; i < LANES; i++) {
        int status;
        CHECK_EQ(waitpid(pids[i], &status, 0), pids[i]);
        failures[i % SCENES] += !WIFEXITED(status) || WEXITSTATUS(status) != 0;
    }
    for (int s = 0; s < SCENES; s++) all += say((enum scene)s, failures[s]);
    return all != 0;
}
