/* Several producers and consumers of one channel, a process each, in turn on two cores.
 *
 * All of them count: what the consumers took must be what the producers put, or nothing is reported. Nobody
 * polls while the others work: the parent sleeps in reads of a pipe. */
#ifndef BENCH_CROWD_H
#define BENCH_CROWD_H

#include "pair.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

enum { MESSAGE_BYTES = 64, MEMBERS = 8, WARM_UP = 4096 };
static const uint64_t LAST = UINT64_MAX; /* instead of a number: a consumer's round is over */

/* How a contestant does it. A message starts with its number. */
struct channel {
    void *(*join)(void *object);
    void (*put)(void *self, const unsigned char *message);
    void (*get)(void *self, unsigned char *message);
    void (*leave)(void *self);
};

struct crowd {
    int done[2];              /* a pipe: a byte from each member and round */
    atomic_ullong taken, sum; /* of numbers */
};

static inline void tell(const int *pipe)
{
    if (write(pipe[1], "", 1) != 1)
        die("write");
}

static inline void await(const int *pipe, unsigned members)
{
    for (char byte; members > 0; members--)
        if (read(pipe[0], &byte, 1) != 1)
            die("read");
}

static inline void put_numbers(const struct channel *channel, void *self, uint64_t count)
{
    unsigned char message[MESSAGE_BYTES] = {0};
    for (uint64_t i = 0; i < count; i++) {
        memcpy(message, &i, sizeof i);
        channel->put(self, message);
    }
}

static inline void take_numbers(const struct channel *channel, void *self, struct crowd *crowd)
{
    unsigned char message[MESSAGE_BYTES];
    uint64_t taken = 0, sum = 0;
    for (;;) {
        uint64_t number;
        channel->get(self, message);
        memcpy(&number, message, sizeof number);
        if (number == LAST)
            break;
        taken += 1;
        sum += number;
    }
    atomic_fetch_add(&crowd->taken, taken);
    atomic_fetch_add(&crowd->sum, sum);
}

/* One round to warm up, one that counts. A member's pipe of commands is its own: nobody takes another's byte. */
static inline void member(const struct channel *channel, void *object, struct crowd *crowd, const int *go,
                          const uint64_t *each)
{
    void *self = channel->join(object);
    tell(crowd->done);
    for (int round = 0; round < 2; round++) {
        await(go, 1);
        if (each != NULL)
            put_numbers(channel, self, each[round]);
        else
            take_numbers(channel, self, crowd);
        tell(crowd->done);
    }
    channel->leave(self);
    _exit(0);
}

/* `members`: producers, consumers. */
static inline void run_crowd(const struct channel *channel, void *object, uint64_t count, const int *members,
                             int core_a, int core_b)
{
    unsigned producers = (unsigned)members[0], all = producers + (unsigned)members[1];
    if (members[0] < 1 || members[1] < 1 || all > MEMBERS) {
        fprintf(stderr, "at least one of each, at most %d\n", MEMBERS);
        exit(2);
    }
    struct crowd *crowd = shared_memory(sizeof *crowd);
    int go[MEMBERS][2];
    pid_t pids[MEMBERS];
    uint64_t each[2] = {WARM_UP, count / producers + 1}, elapsed_ns = 0, expected = 0, sum = 0;
    if (pipe(crowd->done) != 0)
        die("pipe");
    for (unsigned i = 0; i < all; i++) {
        if (pipe(go[i]) != 0)
            die("pipe");
        /* Producer 0 and consumer 1 on one core, producer 1 and consumer 0 on the other. */
        bool consumes = i >= producers;
        int core = ((consumes ? i - producers + 1 : i) & 1) == 0 ? core_a : core_b;
        pids[i] = fork_side_b(-1, core);
        if (pids[i] == 0)
            member(channel, object, crowd, go[i], consumes ? NULL : each);
    }
    void *self = channel->join(object);
    await(crowd->done, all);
    for (int round = 0; round < 2; round++) {
        uint64_t start_ns = now_ns();
        for (unsigned i = 0; i < all; i++)
            tell(go[i]);
        await(crowd->done, producers);
        unsigned char last[MESSAGE_BYTES];
        memcpy(last, &LAST, sizeof LAST);
        for (unsigned i = producers; i < all; i++)
            channel->put(self, last);
        await(crowd->done, all - producers);
        elapsed_ns = now_ns() - start_ns;
        expected += producers * each[round];
        sum += producers * (each[round] * (each[round] - 1) / 2);
    }
    channel->leave(self);
    for (unsigned i = 0; i < all; i++)
        join_side_b(pids[i]);
    if (crowd->taken != expected || crowd->sum != sum) {
        fprintf(stderr, "%llu messages taken, not %llu, or others\n", (unsigned long long)crowd->taken,
                (unsigned long long)expected);
        exit(1);
    }
    printf("{\"rate_m_per_s\": %.3f}\n", (double)(producers * each[1]) * 1e3 / (double)elapsed_ns);
}

#endif
