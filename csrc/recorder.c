/* recorder.c: the flight recorder: what a peer did last, to be read after its death.
 *
 * Idea: each entry of the peer table has a ring of its peer's last operations.  Event n lies in place n mod 32, and
 * both of its words bear n:
 *
 *     when = n:16 | time:48        what = op:7 | early:1 | n:8 | cursor:48
 *
 * So an entry is whole if its numbers agree, whoever reads it, at whatever instruction the writer died; no order
 * between an entry and the count has to be relied on.  No CAS and no fence: this runs behind each put and each get.
 * Threads of a handle that record at the same moment may lose events to each other; what is read was recorded.  (If
 * both took the same number, one entry may have the time of the one and the op of the other: true of that moment.)
 *
 * The clock is CLOCK_MONOTONIC_COARSE, which the kernel moves on at each tick: 4 ms where HZ is 250.  The fine one costs
 * as much as a put, and even this one a fifth of it.  So a peer that puts and gets many times a tick reads it at every
 * eighth only; the events in between bear the last time that was read, and say so (early).  Whoever reads them knows
 * better where the next time that was read is the same.  A pause in such a run shows at most seven events too early;
 * behind a wait, and for all but puts and gets, the clock is read.
 *
 * Nothing here decides anything: repair and liveness never look at an event.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <time.h>

#include "core.h"

_Static_assert((SHMQ_EVENTS & (SHMQ_EVENTS - 1)) == 0 && SHMQ_EVENTS < 256,
               "an entry and the one that it replaces differ in the low 8 bits of their numbers");
_Static_assert(SHMQ_EVENTS == SHMQ_EVENTS_MAX, "what the public header says");

#define SECOND_BITS 28 /* eight years of them; then 20 bits of 1024 ns each: no division */
#define NUMBER_BITS 16
#define NUMBER_MASK UINT64_C(0xffff)
#define MOST_EARLY 7u

/* As `when` has it, with number 0. */
static uint64_t read_clock(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (uint64_t)now.tv_sec << (64 - SECOND_BITS) | (uint64_t)now.tv_nsec >> 10 << NUMBER_BITS;
}

static uint64_t to_ns(uint64_t when) {
    uint64_t part = when << SECOND_BITS >> (SECOND_BITS + NUMBER_BITS) << 10;
    return (when >> (64 - SECOND_BITS)) * 1000000000u + part;
}

/* Where the number wraps, its carry spoils the time in event_next; number 0 looks at the clock. */
uint64_t shmq_recorder_note(struct shmq_peer *peer, uint32_t op, uint64_t cursor) {
    uint64_t time = read_clock(), number = load_relaxed(&peer->event_next) & NUMBER_MASK;
    store_relaxed(&peer->event_run, 0);
    shmq_recorder_write(peer, time | number, cursor << 16 | op);
    return to_ns(time);
}

void shmq_recorder_note_run(struct shmq_peer *peer, uint32_t op, uint64_t cursor) {
    uint64_t time = read_clock(), next = load_relaxed(&peer->event_next);
    uint64_t run = 2 * load_relaxed(&peer->event_run) + 1;
    run = time != (next & ~NUMBER_MASK) ? 0 : run < MOST_EARLY ? run : MOST_EARLY;
    store_relaxed(&peer->event_run, run);
    shmq_recorder_write(peer, time | (next & NUMBER_MASK), cursor << 16 | op);
}

void shmq_recorder_note_once(struct shmq_peer *peer, uint32_t op, uint64_t cursor) {
    uint64_t last = load_relaxed(&peer->event_next) - 1;
    if ((load_relaxed(&peer->events[last % SHMQ_EVENTS].what) & 0xff) != op)
        (void)shmq_recorder_note(peer, op, cursor);
    else store_relaxed(&peer->event_run, 0);
}

void shmq_recorder_clear(struct shmq_peer *peer) {
    for (uint32_t i = 0; i < SHMQ_EVENTS; i++) store_relaxed(&peer->events[i].what, 0);
    store_relaxed(&peer->event_next, 0);
    store_relaxed(&peer->event_run, 0);
}

/* ---- reading ---- */

struct numbered {
    shmq_event_info event;
    uint16_t number;
};

/* False where the place is empty or half written. */
static bool read_event(const struct shmq_event *from, uint32_t place, struct numbered *e) {
    uint64_t when = load_acquire(&from->when), what = load_acquire(&from->what);
    if (load_acquire(&from->when) != when) return false; /* a later event has come in between */
    e->number = (uint16_t)when;
    e->event = (shmq_event_info){.time_ns = to_ns(when),
                                 .cursor = what >> 16,
                                 .op = (uint32_t)(what & (SHMQ_EVENT_EARLY - 1)),
                                 .is_early = (what & SHMQ_EVENT_EARLY) != 0};
    return e->event.op != 0 && e->number % SHMQ_EVENTS == place && (when & 0xff) == (what >> 8 & 0xff);
}

/* By time; within one tick of the clock by number, which wraps. */
static bool is_before(const struct numbered *a, const struct numbered *b) {
    if (a->event.time_ns != b->event.time_ns) return a->event.time_ns < b->event.time_ns;
    return (int16_t)(uint16_t)(a->number - b->number) < 0;
}

uint32_t shmq_recorder_read(const struct shmq_peer *peer, shmq_event_info *out) {
    struct numbered sorted[SHMQ_EVENTS];
    uint32_t n = 0;
    for (uint32_t place = 0; place < SHMQ_EVENTS; place++) {
        struct numbered e;
        if (!read_event(&peer->events[place], place, &e)) continue;
        uint32_t at = n++;
        for (; at > 0 && is_before(&e, &sorted[at - 1]); at--) sorted[at] = sorted[at - 1];
        sorted[at] = e;
    }
    for (uint32_t i = n; i-- > 0;) {
        out[i] = sorted[i].event;
        /* Between two reads of the clock in one tick there is no other tick. */
        if (i + 1 < n && !out[i + 1].is_early && out[i + 1].time_ns == out[i].time_ns) out[i].is_early = 0;
    }
    return n;
}
