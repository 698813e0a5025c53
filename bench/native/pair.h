/* Two pinned processes, one clock, one result line: what every C measurement here starts from.
 *
 * A program forks once. The child is side B on core_b, the parent is side A on core_a and prints the
 * result as one JSON line. Cores below zero mean "do not pin". CLOCK_MONOTONIC is one clock for all
 * processes of a host, so a time stamped on one side may be subtracted on the other. */
#ifndef BENCH_PAIR_H
#define BENCH_PAIR_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static inline uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

static inline void die(const char *what)
{
    perror(what);
    exit(1);
}

/* Best effort: a container may forbid it; the harness reports separately whether pinning works. */
static inline void pin(int core)
{
    if (core < 0)
        return;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((size_t)core, &set);
    (void)sched_setaffinity(0, sizeof set, &set);
}

/* Memory that both sides see after the fork, touched before any clock starts. */
static inline void *shared_memory(size_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (memory == MAP_FAILED)
        die("mmap");
    return memory;
}

/* 0 in the child (side B), its pid in the parent (side A). The child dies with its parent. */
static inline pid_t fork_side_b(int core_a, int core_b)
{
    pid_t pid = fork();
    if (pid < 0)
        die("fork");
    if (pid == 0)
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    pin(pid == 0 ? core_b : core_a);
    return pid;
}

static inline void join_side_b(pid_t pid)
{
    int status = 0;
    if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        fprintf(stderr, "side B failed (wait status %d)\n", status);
        exit(1);
    }
}

static inline int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static inline void idle(unsigned gap_us)
{
    struct timespec gap = {.tv_sec = gap_us / 1000000, .tv_nsec = (long)(gap_us % 1000000) * 1000};
    if (gap_us != 0)
        nanosleep(&gap, NULL);
}

/* Nearest-rank quantile; sorts the samples in place. */
static inline uint64_t quantile(uint64_t *samples, size_t count, double q)
{
    qsort(samples, count, sizeof *samples, by_value);
    return samples[(size_t)(q * (double)(count - 1) + 0.5)];
}

/* One hop: from before the sender's call to after the receiver's return, each stamped on its side. */
struct hop {
    uint64_t sent_ns, got_ns;
};

/* Nanoseconds; sorts them. */
static inline void print_quantiles(uint64_t *samples, size_t count)
{
    printf("{\"p50\": %llu, \"p99\": %llu, \"p99.9\": %llu}\n",
           (unsigned long long)quantile(samples, count, 0.50),
           (unsigned long long)quantile(samples, count, 0.99),
           (unsigned long long)quantile(samples, count, 0.999));
}

static inline void print_hops(const struct hop *hops, size_t count)
{
    uint64_t *times = malloc(count * sizeof *times);
    if (times == NULL)
        die("malloc");
    for (size_t i = 0; i < count; i++)
        times[i] = hops[i].got_ns - hops[i].sent_ns;
    print_quantiles(times, count);
    free(times);
}

/* Nanoseconds. A round trip is its two hops; whatever the sides did between them is left out. */
static inline void print_round_trips(const struct hop *there, const struct hop *back, size_t count)
{
    uint64_t *trips = malloc(count * sizeof *trips);
    if (trips == NULL)
        die("malloc");
    for (size_t i = 0; i < count; i++)
        trips[i] = there[i].got_ns - there[i].sent_ns + back[i].got_ns - back[i].sent_ns;
    print_quantiles(trips, count);
    free(trips);
}

#endif
