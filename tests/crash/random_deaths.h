/* random_deaths.h: complaints, times and stops, for those who kill at random. */
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

#endif
