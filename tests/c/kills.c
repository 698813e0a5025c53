/* SIGKILL in mid-stream: one segment lives through many deaths, and its ledger is exact after each.
 *
 *     kills producer|consumer|both KILLS SEED
 *
 * A child attaches and streams; the survivor kills it at some random moment, repairs, and counts: nothing that
 * was committed is lost, nothing arrives twice or torn, every page is back.  The two sides share a page of
 * notes outside the queue.
 *
 * A slot of the MPMC ring that its producer died in is a tomb: a position, and here a number, without a message.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>

#include "lab.h"

enum { IN_DOUBT = 64 }; /* far more than a ring of four slots holds */

static struct notes {
    shmq_a64 intended;           /* producer: number of the message that it is about to put */
    shmq_a64 put;                /* ... and of the last whose put returned */
    shmq_a64 got;                /* consumer: number of the last message whose get returned */
    shmq_a64 alive;              /* grows while the child makes progress */
    shmq_a64 in_doubt[IN_DOUBT]; /* by number: its producer died before its put returned */
} *notes;

static int fd;
static uint64_t seed;

/* The number before `number`, where only messages in doubt lie between it and `last`. */
static uint64_t before(uint64_t number, uint64_t last) {
    while (last + 1 < number && load_acquire(&notes->in_doubt[(last + 1) % IN_DOUBT]) == last + 1) last++;
    return last;
}

static void follows(uint64_t number, uint64_t *last) {
    CHECK_EQ(number, before(number, *last) + 1);
    *last = number;
}

/* Sizes that exercise the ring's end, both tiers and fragmentation. */
static uint64_t some_size(uint64_t *random) {
    uint64_t kind = below(random, 16);
    if (kind < 10) return MESSAGE_MIN + below(random, 100);
    if (kind < 12) return MESSAGE_MIN + below(random, 1024 - MESSAGE_MIN + 1);
    if (kind < 15) return MESSAGE_MIN + below(random, 6 * SHMQ_SMALL_PAGE);
    return MESSAGE_MIN + below(random, 300 << 10);
}

static void stream_out(uint64_t random) {
    shmq_queue *q = lab_attach(fd);
    for (uint64_t number = load_acquire(&notes->put) + 1;; number++) {
        uint64_t bytes = some_size(&random);
        store_release(&notes->intended, number);
        if (below(&random, 4) == 0) {
            shmq_block *b;
            OK(shmq_loan(q, bytes, SHMQ_FOREVER, &b));
            message_write(b->data, number, bytes);
            OK(shmq_publish(b, NULL, SHMQ_FOREVER));
        } else {
            OK(lab_put(q, number, bytes, SHMQ_FOREVER));
        }
        store_release(&notes->put, number);
        store_release(&notes->alive, load_relaxed(&notes->alive) + 1);
    }
}

/* Keeps up to a few messages, gives them back in any order; all of them where no other comes: the producer may be
 * waiting for their pages. */
static void stream_in(uint64_t random) {
    enum { KEEP = 4 };
    shmq_queue *q = lab_attach(fd);
    shmq_message kept[KEEP] = {{0}};
    for (uint64_t number = load_acquire(&notes->got);;) {
        shmq_message m;
        int status = shmq_get(q, &m, shmq_deadline(20 * MS));
        if (status == SHMQ_EMPTY)
            for (int i = 0; i < KEEP; i++) shmq_message_release(&kept[i]);
        if (status == SHMQ_EMPTY || status == SHMQ_PEER_DEAD) continue; /* told once: another comes */
        OK(status);
        follows(message_number(m.data, m.bytes), &number);
        store_release(&notes->got, number);
        store_release(&notes->alive, load_relaxed(&notes->alive) + 1);
        uint64_t i = below(&random, KEEP);
        shmq_message_release(&kept[i]);
        kept[i] = m;
    }
}

static pid_t start(void (*stream)(uint64_t)) {
    uint64_t child_seed = next_random(&seed);
    pid_t pid = fork_child();
    if (pid == 0) {
        stream(child_seed);
        _exit(1);
    }
    return pid;
}

/* Some messages from now, and then some instructions. */
static bool child_works(uint64_t from, uint64_t messages) {
    return load_acquire(&notes->alive) >= from + messages;
}
static void some_instructions(void) {
    for (volatile uint64_t i = below(&seed, 4000); i > 0;) i = i - 1;
}
static void kill_now(pid_t pid) {
    CHECK_EQ(kill(pid, SIGKILL), 0);
    join_child(pid, SIGKILL);
}

/* The dead one's last message is in question only as long as nobody asked the segment: it was committed, or
 * taken, and the news died with the process; or it was not.  MPMC: a tomb has a position, too. */
static void settle_put(shmq_queue *q) {
    uint64_t put = lab_stats(q).messages_put, noted = load_acquire(&notes->put);
    CHECK(put == noted || put == load_acquire(&notes->intended));
    if (put != noted && !q->ring.is_spsc) store_release(&notes->in_doubt[put % IN_DOUBT], put);
    store_release(&notes->put, put);
}
static void settle_got(shmq_queue *q) {
    uint64_t got = lab_stats(q).messages_got, noted = load_acquire(&notes->got);
    CHECK(got == noted || got == before(got, noted) + 1);
    store_release(&notes->got, got);
}

static void check_baseline(shmq_queue *q) {
    lab_all_pages_free(q);
    shmq_stats s = lab_stats(q);
    CHECK_EQ(s.messages_put, s.messages_got);
    CHECK_EQ(s.ring_used_bytes, 0);
    OK(shmq_validate(q));
}

/* The survivor consumes while the child puts, then kills it and takes the rest. */
static void kill_producers(shmq_queue *q, uint64_t kills) {
    uint64_t received = 0, number;
    for (uint64_t i = 0; i < kills; i++) {
        uint64_t from = load_acquire(&notes->alive), messages = below(&seed, 40);
        pid_t pid = start(stream_out);
        while (!child_works(from, messages)) {
            int status = lab_get(q, &number, SHMQ_NO_WAIT);
            if (status == SHMQ_OK) follows(number, &received);
            else CHECK_EQ(status, SHMQ_EMPTY);
        }
        some_instructions();
        kill_now(pid);
        uint32_t repaired = lab_reap(q);
        CHECK(repaired <= 1); /* it may have died before it attached */
        settle_put(q);
        while (lab_get(q, &number, SHMQ_NO_WAIT) == SHMQ_OK) follows(number, &received);
        received = before(load_acquire(&notes->put) + 1, received);
        CHECK_EQ(received, load_acquire(&notes->put));
        check_baseline(q);
    }
}

/* The survivor puts while the child consumes, then kills it; the next child goes on where it stopped. */
static void kill_consumers(shmq_queue *q, uint64_t kills) {
    uint64_t sent = 0, number;
    for (uint64_t i = 0; i < kills; i++) {
        uint64_t from = load_acquire(&notes->alive), messages = below(&seed, 40);
        pid_t pid = start(stream_in);
        while (!child_works(from, messages)) {
            int status = lab_put(q, sent + 1, some_size(&seed), SHMQ_NO_WAIT);
            if (status == SHMQ_OK) sent++;
            else CHECK(status == SHMQ_FULL || status == SHMQ_ARENA_FULL);
        }
        some_instructions();
        kill_now(pid);
        CHECK(lab_reap(q) <= 1);
        OK(shmq_validate(q));
        shmq_stats s = lab_stats(q); /* what it held is free, what it had not taken is in flight */
        CHECK_EQ(s.pages[SHMQ_PAGE_LEASED], 0);
        CHECK_EQ(s.pages[SHMQ_PAGE_LOANED], 0);
        CHECK_EQ(s.messages_put, sent);
        settle_got(q);
        if (i % 10 == 9) { /* now and then all is taken, and every page must be back */
            uint64_t next = load_acquire(&notes->got);
            shmq_queue *c = lab_attach(fd);
            while (lab_get(c, &number, SHMQ_NO_WAIT) == SHMQ_OK) CHECK_EQ(number, ++next);
            CHECK_EQ(next, sent);
            store_release(&notes->got, sent);
            check_baseline(c);
            shmq_free(c);
        }
    }
}

/* Both sides are children; either dies, or both at once; a third peer repairs. */
static void kill_both(shmq_queue *q, uint64_t kills) {
    pid_t producer = 0, consumer = 0;
    uint64_t number;
    for (uint64_t i = 0; i < kills; i++) {
        if (producer == 0) producer = start(stream_out);
        if (consumer == 0) consumer = start(stream_in);
        uint64_t from = load_acquire(&notes->alive), messages = below(&seed, 40);
        while (!child_works(from, messages)) sched_yield();
        some_instructions();
        uint64_t which = below(&seed, 3);
        if (which != 0) kill_now(consumer);
        if (which != 1) kill_now(producer);
        (void)lab_reap(q);
        if (which != 0) {
            consumer = 0;
            settle_got(q);
        }
        if (which != 1) {
            producer = 0;
            settle_put(q);
        }
        OK(shmq_validate(q));
    }
    if (producer != 0) kill_now(producer);
    if (consumer != 0) kill_now(consumer);
    (void)lab_reap(q);
    settle_put(q);
    settle_got(q);
    uint64_t next = load_acquire(&notes->got);
    while (lab_get(q, &number, SHMQ_NO_WAIT) == SHMQ_OK) follows(number, &next);
    CHECK_EQ(before(load_acquire(&notes->put) + 1, next), load_acquire(&notes->put));
    check_baseline(q);
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    uint64_t kills = strtoull(argv[2], NULL, 10);
    seed = strtoull(argv[3], NULL, 10) * 2 + 1;
    shmq_params params = tiny;
    params.arena_bytes = 1 << 20;
    params.first_cursor = UINT64_C(0) - 4096; /* the wrap comes within the first few messages */
    alarm(watchdog_s());
    fd = lab_object();
    notes = lab_shared(sizeof *notes);
    shmq_queue *q = lab_create(fd, &params);
    if (strcmp(argv[1], "producer") == 0) kill_producers(q, kills);
    else if (strcmp(argv[1], "consumer") == 0) kill_consumers(q, kills);
    else kill_both(q, kills);
    printf("%s: %" PRIu64 " kills, %" PRIu64 " messages\n", argv[1], kills, lab_stats(q).messages_put);
    shmq_free(q);
    return 0;
}
