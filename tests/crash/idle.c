/* What waiting costs: consumers sleep in a get for which no message comes, beside a live producer.
 *
 *     idle WAIT_MS LIMIT
 *
 * One consumer on a queue of each kind, all at once, each in a process of its own; LIMIT is the most processor
 * time that each may take, in hundredths of a per cent of a core.  One line of the summary. */
#define _GNU_SOURCE
#include <sys/resource.h>

#include "lab.h"

enum { KINDS = 3, PROCESSOR_TIME_UNIT = 10000 };
static const char *const names[KINDS] = {"spsc", "mpmc", "topic"};
static const uint32_t kinds[KINDS] = {SHMQ_KIND_SPSC, SHMQ_KIND_MPMC, SHMQ_KIND_TOPIC};

static int64_t used_ns(void) {
    struct rusage r;
    CHECK_EQ(getrusage(RUSAGE_SELF, &r), 0);
    return (r.ru_utime.tv_sec + r.ru_stime.tv_sec) * 1000 * MS +
           (r.ru_utime.tv_usec + r.ru_stime.tv_usec) * (MS / 1000);
}

/* In a child: takes the one message, then waits in vain; its share of a core goes to *share. */
static void wait_in_vain(int fd, int64_t wait_ns, shmq_a64 *attached, shmq_a64 *share) {
    shmq_queue *q = lab_attach(fd);
    shmq_message m;
    if (q->ring.is_topic) OK(shmq_subscribe(q, 0));
    store_release(attached, 1);
    OK(shmq_get(q, &m, SHMQ_FOREVER));
    shmq_message_release(&m);
    int64_t used = used_ns(), began = shmq_now_ns();
    CHECK_EQ(shmq_get(q, &m, began + wait_ns), SHMQ_EMPTY);
    int64_t waited = shmq_now_ns() - began;
    CHECK(waited >= wait_ns);
    store_release(share, (uint64_t)((used_ns() - used) * PROCESSOR_TIME_UNIT / waited) + 1);
    shmq_free(q);
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    int64_t wait_ns = strtoll(argv[1], NULL, 10) * MS;
    uint64_t limit = strtoull(argv[2], NULL, 10), failures = 0;
    shmq_a64 *attached = lab_shared(KINDS * sizeof *attached), *share = lab_shared(KINDS * sizeof *share);
    shmq_queue *producers[KINDS];
    pid_t pids[KINDS];
    alarm(watchdog_s());
    for (int i = 0; i < KINDS; i++) {
        shmq_params params = tiny;
        params.kind = kinds[i];
        int fd = lab_object();
        producers[i] = lab_create(fd, &params);
        if ((pids[i] = fork_child()) == 0) {
            wait_in_vain(fd, wait_ns, &attached[i], &share[i]);
            _exit(0);
        }
        while (load_acquire(&attached[i]) == 0) cpu_relax();
        OK(shmq_put(producers[i], "it has begun", 12, SHMQ_FOREVER));
        close(fd);
    }
    printf("consumers that wait in vain for %.1f s, share of a core\t", (double)wait_ns / (1000 * MS));
    for (int i = 0; i < KINDS; i++) {
        join_child(pids[i], 0);
        uint64_t hundredths = load_acquire(&share[i]);
        printf("%s%s %.2f %%", i == 0 ? "" : ", ", names[i], (double)hundredths / 100);
        if (hundredths > limit) {
            fprintf(stderr, "%s: a waiting consumer takes %.2f %% of a core\n", names[i],
                    (double)hundredths / 100);
            failures++;
        }
        shmq_free(producers[i]);
    }
    printf("\t%" PRIu64 "\n", failures);
    return failures != 0;
}
