/* wait.c: eventcount over a shared futex, with absolute deadlines and an asymmetric barrier.
 *
 * Idea (Dmitry Vyukov's eventcount, reduced): a waiter arms the count, looks again, then sleeps on
 * epoch; a waker that finds it armed disarms it, advances epoch and wakes everyone.
 *
 *     waiter                                  waker
 *     S0 key = epoch                          W0 publish (release store of a cursor or word)
 *     S1 armed |= FUTEX                       W1 read armed
 *        full barrier in EVERY process           0: done, no system call
 *     S2 look again: ready? done              W2 armed -> 0
 *     S3 futex_wait(epoch == key)             W3 epoch += 1, futex_wake, if it had FUTEX
 *
 * No wake-up is lost: W0 ... W1 and S1 ... S2 are a store and a load each, and one of the loads must see
 * the other side's store.  That needs a full fence on both sides.  A fence behind every put costs more
 * than the put (measured on one machine: 104 M records/s without, 16 M with it), so the waiter pays for
 * both: membarrier(GLOBAL_EXPEDITED) makes every running thread of every registered process pass a full
 * barrier between S1 and S2.  (The same idea: liburcu's and folly's asymmetric barriers.)  A process
 * that could not register fences after each publish; a waiter that may not call membarrier sleeps in
 * slices of 1 ms instead of 100 ms.  Neither is ever wrong, only slower.
 *
 * armed holds flags and not counts, so a dead waiter costs its waker one needless wake, once.  A waker
 * that dies between W0 and W3 costs the waiter the rest of one slice.  The other flag, BELLS, is for those
 * who wait in an event loop and not here: doorbell.c.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "core.h"

/* From linux/membarrier.h, which old headers lack. */
#define MEMBARRIER_QUERY 0
#define MEMBARRIER_GLOBAL_EXPEDITED (1 << 1)
#define MEMBARRIER_REGISTER_GLOBAL_EXPEDITED (1 << 2)

shmq_a32 shmq_fence_on_publish = 1; /* until registered */
const volatile uint64_t *shmq_canary;

static volatile uint64_t *canary_page;
static uint64_t lives; /* processes in our line of forks that used shmq */
static pthread_mutex_t process_lock = PTHREAD_MUTEX_INITIALIZER;

int64_t shmq_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int64_t shmq_deadline(int64_t timeout_ns) {
    int64_t now = shmq_now_ns();
    return timeout_ns < 0 || timeout_ns > INT64_MAX - now ? SHMQ_FOREVER : now + timeout_ns;
}

/* Online, not in our own mask: a process that is pinned to one CPU spins while the other works on another.
 * Where all share one CPU, the budget falls to its least by itself. */
long shmq_cpus_online(void) { return sysconf(_SC_NPROCESSORS_ONLN); }

static void lock_process(void) { pthread_mutex_lock(&process_lock); }
static void unlock_process(void) { pthread_mutex_unlock(&process_lock); }
static void unlock_child(void) {
    if (canary_page != NULL) *canary_page = 0; /* also where the kernel could not be asked to */
    pthread_mutex_unlock(&process_lock);
}
static void guard_forks(void) { (void)pthread_atfork(lock_process, unlock_process, unlock_child); }

void shmq_fork_lock(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, guard_forks);
    lock_process();
}

void shmq_fork_unlock(void) { unlock_process(); }

/* A page that the kernel empties in a forked child, however it was forked. */
uint64_t shmq_process_canary(void) {
    shmq_fork_lock();
    if (canary_page == NULL) {
        void *page = mmap(NULL, SHMQ_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (page == MAP_FAILED) {
            shmq_fork_unlock();
            return 0;
        }
        (void)madvise(page, SHMQ_PAGE, MADV_WIPEONFORK);
        canary_page = page;
        shmq_canary = canary_page;
    }
    if (*canary_page == 0) *canary_page = ++lives;
    uint64_t canary = *canary_page;
    shmq_fork_unlock();
    return canary;
}

static long membarrier(int command) { return syscall(SYS_membarrier, command, 0, 0); }

void shmq_wait_register(void) {
    /* Cheap where this process is registered already. */
    /* Relaxed: threads that publish meanwhile learned the same from their own attach. */
    store32_relaxed(&shmq_fence_on_publish, membarrier(MEMBARRIER_REGISTER_GLOBAL_EXPEDITED) != 0);
}

static long futex(shmq_a32 *word, int op, uint32_t value, const struct timespec *until) {
    return syscall(SYS_futex, word, op, value, until, NULL, FUTEX_BITSET_MATCH_ANY);
}

uint32_t shmq_eventcount_wake_slow(struct shmq_eventcount *e) {
    /* W2: seq_cst against S1.  Of several wakers one gets a flag and makes the call. */
    uint32_t armed = exchange32_seq_cst(&e->armed, 0);
    if ((armed & SHMQ_ARMED_FUTEX) == 0) return armed;
    add32_seq_cst(&e->epoch, 1); /* W3: a waiter between S2 and S3 sees another epoch and does not sleep */
    futex(&e->epoch, FUTEX_WAKE, INT_MAX, NULL);
    return armed;
}

bool shmq_barrier(void) {
    full_fence();
    return membarrier(MEMBARRIER_GLOBAL_EXPEDITED) == 0;
}

/* Doubles the waiter's budget where spinning served or would have served, else halves it.  Where the longest spin
 * was in vain, it falls to its least: where messages come just too late for it, few waits in a row are wasted. */
static void adapt(struct shmq_waiter *w, bool served) {
    int64_t budget = (int64_t)load_relaxed(&w->spin_ns);
    if (budget == 0) return; /* one CPU: whoever is waited for cannot run meanwhile */
    if (served) budget = budget * 2 < SHMQ_SPIN_MAX_NS ? budget * 2 : SHMQ_SPIN_MAX_NS;
    else if (budget == SHMQ_SPIN_MAX_NS) budget = SHMQ_SPIN_MIN_NS;
    else budget = budget / 2 > SHMQ_SPIN_MIN_NS ? budget / 2 : SHMQ_SPIN_MIN_NS;
    store_relaxed(&w->spin_ns, (uint64_t)budget); /* relaxed: a hint */
}

/* True if ready() came within the waiter's budget. */
static bool spin(const struct shmq_waiter *w, shmq_ready_fn *ready, void *context, int64_t now,
                 int64_t deadline_ns) {
    int64_t end = now + (int64_t)load_relaxed(&w->spin_ns);
    if (end > deadline_ns) end = deadline_ns;
    do {
        for (int i = 0; i < 64; i++) {
            cpu_relax();
            if (ready(context)) return true;
        }
    } while (shmq_now_ns() < end);
    return false;
}

/* After a sleep: would the longest spin have been enough?  Without this one long wait would end the spinning for
 * good where messages come a little apart (1 MiB arrays: 21 GB/s, with it 30).  A budget that is at its most was
 * just seen to fail. */
static bool spin_would_do(const struct shmq_waiter *w, int64_t waited_ns) {
    return waited_ns < SHMQ_SPIN_MAX_NS + SHMQ_WAKE_NS && load_relaxed(&w->spin_ns) < SHMQ_SPIN_MAX_NS;
}

void shmq_linger(shmq_ready_fn *enough, void *context, int64_t limit_ns, int64_t deadline_ns) {
    int64_t end = shmq_now_ns() + limit_ns;
    if (end > deadline_ns) end = deadline_ns;
    do {
        for (int i = 0; i < 64; i++) {
            if (enough(context)) return;
            cpu_relax();
        }
    } while (shmq_now_ns() < end);
}

int shmq_eventcount_wait(struct shmq_eventcount *e, struct shmq_waiter *w, shmq_ready_fn *ready,
                         void *context, int64_t deadline_ns, bool *parked) {
    *parked = false;
    if (ready(context)) return SHMQ_OK;
    if (deadline_ns <= SHMQ_NO_WAIT) return SHMQ_EMPTY;
    int64_t began = shmq_now_ns();
    if (load_relaxed(&w->spin_ns) > 0 && spin(w, ready, context, began, deadline_ns)) {
        adapt(w, true);
        return SHMQ_OK;
    }

    int64_t slice_end = shmq_now_ns();
    for (;;) {
        uint32_t key = load32_acquire(&e->epoch);        /* S0: before arming, so that W3 changes it */
        (void)or32_seq_cst(&e->armed, SHMQ_ARMED_FUTEX); /* S1: a store could take away the other flag */
        bool barrier = shmq_barrier();
        if (ready(context)) return SHMQ_OK; /* S2.  Still armed: the next waker calls once in vain. */
        if (!*parked) slice_end += barrier ? SHMQ_SLICE_NS : SHMQ_SHORT_SLICE_NS;
        *parked = true;
        int64_t until = deadline_ns < slice_end ? deadline_ns : slice_end;
        struct timespec ts = {.tv_sec = (time_t)(until / 1000000000), .tv_nsec = (long)(until % 1000000000)};
        long slept = futex(&e->epoch, FUTEX_WAIT_BITSET, key, &ts);
        bool interrupted = slept != 0 && errno == EINTR;
        int64_t now = shmq_now_ns();
        if (ready(context)) {
            adapt(w, spin_would_do(w, now - began));
            return SHMQ_OK;
        }
        if (interrupted) return SHMQ_INTERRUPTED;
        if (now < deadline_ns && now < slice_end) continue;
        adapt(w, false);
        return now >= deadline_ns ? SHMQ_EMPTY : SHMQ_NOT_READY;
    }
}
