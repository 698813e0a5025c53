/* workers.h: processes that put what comes to them, hold views for a while, and note what they do; see random_deaths.h.
 *
 * A message is number = life << 16 | sequence, where a life is one of a worker's that puts.  It notes what it is
 * about to put, and what it has put: at any moment of its death the first is an upper bound, the second a lower one.
 * A put that fails puts nothing. */
#ifndef WORKERS_H
#define WORKERS_H

#include "random_deaths.h"

enum { BATCH = 8, KEEP = 4, SEQUENCES = 1 << 16 };
#define INLINE_BYTES 480u
#define PATIENCE_NS (50 * MS) /* of a put or get: then it lets go of what it keeps */

struct life {
    shmq_a64 intended, put; /* sequences: the last that may have been put; the last whose put returned */
};

/* What all workers tell, outside the segment. */
static struct lives {
    shmq_a64 begun;
    shmq_a32 ending; /* what they do */
    struct life life[];
} *lives;
static uint64_t most_lives;

static size_t bytes_of_lives(void) { return sizeof *lives + most_lives * sizeof(struct life); }

static void open_lives(uint64_t wanted) {
    most_lives = 2 * wanted + 4096; /* a life ends with its worker, or after SEQUENCES messages */
    lives = lab_shared(bytes_of_lives());
}

static bool over(void) { return load32_relaxed(&lives->ending) != 0; }

struct worker {
    shmq_queue *q;
    uint64_t random, life, sequence; /* sequence: the last that was put */
    uint64_t seldom;                 /* once in so many times it dawdles for long */
    shmq_message kept[KEEP];
};

/* Mostly not at all, sometimes for some microseconds, seldom for longer. */
static void dawdle(struct worker *w) {
    uint64_t kind = below(&w->random, w->seldom);
    if (kind == 0) nap((int64_t)below(&w->random, 2000000));
    else if (kind < 8)
        for (volatile uint64_t i = below(&w->random, 4000); i > 0;) i = i - 1;
}

/* ---- views ---- */

static void let_go(shmq_message *m) {
    if (m->block != NULL) (void)message_number(m->data, m->bytes); /* nobody wrote over a held view */
    shmq_message_release(m);
}
static void let_all_go(struct worker *w) {
    for (uint64_t i = 0; i < KEEP; i++) let_go(&w->kept[i]);
}
static void keep(struct worker *w, const shmq_message *m) {
    shmq_message *place = &w->kept[below(&w->random, KEEP)];
    let_go(place);
    *place = *m;
}

/* ---- puts ---- */

static void begin_life(struct worker *w) {
    w->life = atomic_fetch_add(&lives->begun, 1);
    CHECK(w->life < most_lives);
    w->sequence = 0;
}
static uint64_t next_number(const struct worker *w) { return w->life << 16 | (w->sequence + 1); }
static void intend(const struct worker *w, uint64_t messages) {
    store_release(&lives->life[w->life].intended, w->sequence + messages);
}
static void have_put(struct worker *w, uint64_t messages) {
    w->sequence += messages;
    store_release(&lives->life[w->life].put, w->sequence);
    intend(w, 0);
}

/* Full: what we keep may be in our own way. */
static bool went_well(struct worker *w, int status) {
    if (status == SHMQ_OK) return true;
    CHECK(status == SHMQ_FULL || status == SHMQ_ARENA_FULL);
    let_all_go(w);
    return false;
}

static uint64_t some_inline_size(struct worker *w) {
    return MESSAGE_MIN + below(&w->random, INLINE_BYTES - MESSAGE_MIN + 1);
}
static uint64_t some_size(struct worker *w) {
    uint64_t kind = below(&w->random, 8);
    if (kind < 5) return some_inline_size(w);
    return MESSAGE_MIN + below(&w->random, (kind == 5 ? 6 : 1) * SHMQ_SMALL_PAGE);
}

static void put_one(struct worker *w) {
    intend(w, 1);
    int status = lab_put(w->q, next_number(w), some_size(w), shmq_deadline(PATIENCE_NS));
    have_put(w, went_well(w, status));
}

static void put_many(struct worker *w) {
    uint8_t messages[BATCH * INLINE_BYTES];
    uint64_t n = 1 + below(&w->random, BATCH), done;
    uint64_t each = some_inline_size(w);
    for (uint64_t i = 0; i < n; i++) message_write(messages + i * each, next_number(w) + i, each);
    intend(w, n);
    (void)went_well(w, shmq_put_many(w->q, messages, each, n, shmq_deadline(PATIENCE_NS), &done));
    have_put(w, done);
}

/* Takes its time between the claim of the slot and the commit. */
static void put_slowly(struct worker *w) {
    struct shmq_record record;
    uint32_t bytes = (uint32_t)some_inline_size(w);
    intend(w, 1);
    OK(shmq_put_begin(w->q));
    bool reserved = went_well(w, shmq_try_reserve(w->q, bytes, SHMQ_RAW, 0, &record));
    if (reserved) {
        dawdle(w);
        message_write(record.payload, next_number(w), bytes);
        shmq_put_commit(w->q, 1, bytes);
    }
    have_put(w, reserved);
}

static void put_loan(struct worker *w, bool discard) {
    shmq_block *b;
    if (!went_well(w, shmq_loan(w->q, some_size(w), shmq_deadline(PATIENCE_NS), &b))) return;
    message_write(b->data, next_number(w), b->bytes);
    dawdle(w);
    intend(w, !discard);
    bool published = !discard && went_well(w, shmq_publish(b, NULL, shmq_deadline(PATIENCE_NS)));
    have_put(w, published);
    if (!published) shmq_block_release(b);
}

static void put_something(struct worker *w) {
    if (w->sequence + BATCH >= SEQUENCES) begin_life(w);
    switch (below(&w->random, 8)) {
    case 0: put_loan(w, true); break;
    case 1: put_loan(w, false); break;
    case 2: put_many(w); break;
    case 3: put_slowly(w); break;
    default: put_one(w);
    }
}

#endif
