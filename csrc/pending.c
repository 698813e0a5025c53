/* pending.c: messages that were delivered and are not acknowledged yet, and those that wait to be delivered again.
 *
 * Idea (Redis Streams' pending entries list, where anyone may die at any instruction): a consumer that leases a
 * message moves it out of the ring into an entry of this table, so that those behind it can pass.  An entry has one
 * 64-bit word, state:3 | owner:12 | serial:49, which is the truth about it.
 *
 *     word                next step                       by          death before the step: repaired by
 *     VACANT(s)           -> FILLING(me, s)               consumer    nothing to do
 *     FILLING(o, s)       filled, -> UNACKED(o, s)        o           reaper of o: -> VACANT(s + 1); the ring's slot
 *                                                                     is still READING(o), and READY again
 *     UNACKED(o, s)       slot given back to the ring     o           reaper of o: the slot is spent, see recover.c
 *                         acked, -> VACANT(s + 1)         o           reaper of o: -> MOVING(o), due now, -> WAITING
 *                         nacked, -> MOVING(o, s)         o           the same
 *                         overdue, -> MOVING(me, s + 1)   consumer    the same; the one before learns it at its ack
 *     MOVING(o, s)        due set, -> WAITING(s)          o           reaper of o: due now, -> WAITING(s)
 *                         counted, -> UNACKED(o, s)       o           the same
 *     WAITING(s)          -> MOVING(me, s + 1)            consumer    nothing to do
 *     next_due too late   -> lowered                      anyone      whoever ends a repair pass, see settle
 *
 * Only the owner leaves an owned state; or the one reaper that holds the proof of its death (peers.c); or, where the
 * queue has a visibility timeout, a consumer that takes an overdue UNACKED away.  Each delivery has a serial of its
 * own, so an acknowledgement that comes after that changes nothing and says so.
 *
 * next_due is a hint that may be too early (then somebody looks in vain) but not too late: who looks takes it away
 * (D1), looks at all entries (D2), and puts back the least that it saw; who lets a message wait stores the word (D3)
 * before it looks at the hint, and perhaps lowers it (D4).  All four are seq_cst.  Where D4 came before D1, D2 sees
 * the word; where after, the hint is right.  Who died between D1 and the putting back is made good for by settle,
 * which every repair pass ends with.
 *
 * This file does not wait and knows neither ring nor arena: a position and a block's handle are opaque numbers here.
 */
#include <string.h>

#include "core.h"

static uint64_t word_of(uint32_t state, uint32_t owner, uint64_t serial) {
    return shmq_slot_word(state, owner, serial);
}
static uint64_t serial_of(uint64_t word) { return shmq_slot_lap(word); }

void shmq_pending_bind(struct shmq_pending *p, const struct shmq_segment *s) {
    const struct shmq_geometry *g = &s->geometry;
    *p = (struct shmq_pending){.entries = (struct shmq_pending_entry *)(void *)(s->base + g->pending_at),
                               .copies = s->base + g->copies_at,
                               .next_due = &s->control->pending.next_due,
                               .count = g->pending,
                               .slot_bytes = g->slot_bytes,
                               .visibility_ns = g->visibility_ns,
                               .max_deliveries = g->max_deliveries};
}

void shmq_pending_init(const struct shmq_pending *p) { store_relaxed(p->next_due, SHMQ_NEVER); }

struct shmq_slot *shmq_pending_copy(const struct shmq_pending *p, uint32_t entry) {
    return (struct shmq_slot *)(void *)(p->copies + (uint64_t)entry * p->slot_bytes);
}

/* Progress: a CAS fails only because another one lowered it. */
static void lower(const struct shmq_pending *p, uint64_t due_ns) {
    uint64_t seen = load_seq_cst(p->next_due); /* D4, also where it finds nothing to do: behind D3 */
    while (due_ns < seen && !cas_seq_cst(p->next_due, &seen, due_ns)) {}
}

static uint64_t overdue_at(const struct shmq_pending *p, uint64_t now_ns) {
    return p->visibility_ns == 0 ? SHMQ_NEVER : now_ns + p->visibility_ns;
}

/* ---- a message that comes out of the ring ---- */

static uint32_t next_vacant(const struct shmq_pending *p) {
    uint32_t from = load32_relaxed(&p->hint);
    for (uint32_t n = 0; n < p->count; n++) {
        uint32_t i = (from + n) % p->count;
        if (shmq_slot_state(load_relaxed(&p->entries[i].word)) == SHMQ_PENDING_VACANT) return i;
    }
    return UINT32_MAX;
}

bool shmq_pending_vacant(const struct shmq_pending *p) { return next_vacant(p) != UINT32_MAX; }

int shmq_pending_try_claim(struct shmq_pending *p, struct shmq_delivery *d) {
    for (uint32_t i; (i = next_vacant(p)) != UINT32_MAX;) {
        shmq_a64 *word = &p->entries[i].word;
        uint64_t seen = load_relaxed(word);
        if (shmq_slot_state(seen) != SHMQ_PENDING_VACANT) continue;
        /* Acquire: the last one of this entry is done with it.  A failed CAS: another consumer has it. */
        if (!cas_acq_rel(word, &seen, word_of(SHMQ_PENDING_FILLING, p->owner, serial_of(seen)))) continue;
        d->entry = i;
        d->word = word_of(SHMQ_PENDING_FILLING, p->owner, serial_of(seen));
        store32_relaxed(&p->hint, i + 1); /* relaxed: where to look first */
        return SHMQ_OK;
    }
    return SHMQ_UNACKED_FULL;
}

void shmq_pending_give_up(const struct shmq_pending *p, const struct shmq_delivery *d) {
    store_release(&p->entries[d->entry].word, word_of(SHMQ_PENDING_VACANT, 0, serial_of(d->word) + 1));
}

/* Delivered from the store of the word on.  A store, because only the owner leaves FILLING; seq_cst, see
 * shmq_lease_done. */
void shmq_pending_fill(const struct shmq_pending *p, struct shmq_delivery *d, const struct shmq_slot *slot,
                       const struct shmq_record *r, uint64_t now_ns) {
    struct shmq_pending_entry *e = &p->entries[d->entry];
    struct shmq_slot *copy = shmq_pending_copy(p, d->entry);
    bool in_block = (r->flags & SHMQ_RECORD_BLOCK) != 0;
    uint64_t due = overdue_at(p, now_ns);
    d->deliveries = load32_relaxed(&slot->deliveries) + 1;
    store_relaxed(&copy->record, shmq_record_pack(r->bytes, r->codec, r->flags));
    store32_relaxed(&copy->deliveries, d->deliveries);
    store32_relaxed(&copy->producer, load32_relaxed(&slot->producer));
    if (!in_block && r->bytes > 0) memcpy(copy + 1, r->payload, r->bytes);
    store_relaxed(&e->handle, in_block ? load_relaxed(&slot->handle) : SHMQ_NO_HANDLE);
    store_relaxed(&e->position, r->position);
    store_relaxed(&e->due_ns, due);
    d->word = word_of(SHMQ_PENDING_UNACKED, p->owner, serial_of(d->word));
    store_seq_cst(&e->word, d->word);
    lower(p, due);
}

/* ---- a message that is delivered again ---- */

/* By lane, urgent ones first, and by age. */
static bool comes_before(uint64_t a, uint64_t b) {
    return ((a ^ b) & SHMQ_POSITION_URGENT) != 0 ? (a & SHMQ_POSITION_URGENT) != 0 : (int64_t)(a - b) < 0;
}

/* The oldest message among those that are due, or UINT32_MAX.  *least: when the next of the others is. */
static uint32_t oldest_due(const struct shmq_pending *p, uint64_t now_ns, uint64_t *word, uint64_t *least) {
    uint32_t oldest = UINT32_MAX;
    uint64_t position = 0, due_of_oldest = 0;
    *least = SHMQ_NEVER;
    for (uint32_t i = 0; i < p->count; i++) {
        struct shmq_pending_entry *e = &p->entries[i];
        uint64_t w = load_seq_cst(&e->word); /* D2 */
        uint32_t state = shmq_slot_state(w);
        if (state != SHMQ_PENDING_WAITING && state != SHMQ_PENDING_UNACKED) continue;
        uint64_t due = load_relaxed(&e->due_ns), at = load_relaxed(&e->position);
        if (due <= now_ns && (oldest == UINT32_MAX || comes_before(at, position))) {
            if (oldest != UINT32_MAX && due_of_oldest < *least) *least = due_of_oldest;
            oldest = i;
            *word = w;
            position = at;
            due_of_oldest = due;
        } else if (due < *least) {
            *least = due;
        }
    }
    return oldest;
}

int shmq_pending_try_take(const struct shmq_pending *p, uint64_t now_ns, struct shmq_delivery *d) {
    for (;;) {
        if (SHMQ_LIKELY(load_relaxed(p->next_due) > now_ns)) return SHMQ_EMPTY;
        uint64_t word = 0, least;
        (void)exchange_seq_cst(p->next_due, SHMQ_NEVER); /* D1.  Death behind it: see settle. */
        uint32_t i = oldest_due(p, now_ns, &word, &least);
        uint64_t mine = word_of(SHMQ_PENDING_MOVING, p->owner, serial_of(word) + 1);
        /* Acquire: what the last owner wrote.  A failed CAS: acked, or another consumer has it. */
        bool taken = i != UINT32_MAX && cas_acq_rel(&p->entries[i].word, &word, mine);
        lower(p, least);
        if (i == UINT32_MAX) return SHMQ_EMPTY;
        if (!taken) continue;
        struct shmq_slot *copy = shmq_pending_copy(p, i);
        d->entry = i;
        d->word = mine;
        d->deliveries = load32_relaxed(&copy->deliveries) + 1;
        return SHMQ_OK;
    }
}

int shmq_pending_record(const struct shmq_pending *p, const struct shmq_delivery *d, uint32_t inline_bytes,
                        struct shmq_record *r) {
    struct shmq_slot *copy = shmq_pending_copy(p, d->entry);
    uint64_t header = load_relaxed(&copy->record); /* once */
    r->bytes = (uint32_t)header;
    r->codec = (uint16_t)(header >> 32);
    r->flags = (uint16_t)(header >> 48);
    r->position = load_relaxed(&p->entries[d->entry].position);
    r->payload = (r->flags & SHMQ_RECORD_BLOCK) != 0 ? (uint8_t *)(void *)&p->entries[d->entry].handle
                                                     : (uint8_t *)(void *)(copy + 1);
    return r->bytes <= inline_bytes ? SHMQ_OK : SHMQ_CORRUPT;
}

/* Its block was copied, because a living process still looks at the old one.  seq_cst, see keep.c. */
void shmq_pending_rename(const struct shmq_pending *p, const struct shmq_delivery *d, uint64_t handle) {
    store_seq_cst(&p->entries[d->entry].handle, handle);
}

/* MOVING(me) -> UNACKED(me): delivered, and counted. */
void shmq_pending_deliver(const struct shmq_pending *p, struct shmq_delivery *d, uint64_t now_ns) {
    struct shmq_pending_entry *e = &p->entries[d->entry];
    uint64_t due = overdue_at(p, now_ns);
    store32_relaxed(&shmq_pending_copy(p, d->entry)->deliveries, d->deliveries);
    store_relaxed(&e->due_ns, due);
    d->word = word_of(SHMQ_PENDING_UNACKED, p->owner, serial_of(d->word));
    store_seq_cst(&e->word, d->word);
    lower(p, due);
}

/* MOVING(o) -> WAITING, by o or the reaper of o. */
static void let_wait(const struct shmq_pending *p, uint32_t entry, uint64_t moving, uint64_t due_ns) {
    struct shmq_pending_entry *e = &p->entries[entry];
    store_relaxed(&e->due_ns, due_ns);
    (void)cas_seq_cst(&e->word, &moving, word_of(SHMQ_PENDING_WAITING, 0, serial_of(moving))); /* D3 */
    lower(p, due_ns);
}

/* MOVING(me) -> WAITING: it could not be delivered after all. */
void shmq_pending_put_back(const struct shmq_pending *p, const struct shmq_delivery *d, uint64_t due_ns) {
    let_wait(p, d->entry, d->word, due_ns);
}

/* ---- acknowledgement: any thread of the owner ---- */

int shmq_pending_ack(const struct shmq_pending *p, const struct shmq_delivery *d, uint64_t *handle) {
    struct shmq_pending_entry *e = &p->entries[d->entry];
    uint64_t seen = d->word;
    *handle = load_relaxed(&e->handle); /* ours if the CAS succeeds: who changes it changes the word first */
    return cas_seq_cst(&e->word, &seen, word_of(SHMQ_PENDING_VACANT, 0, serial_of(seen) + 1)) ? SHMQ_OK
                                                                                              : SHMQ_STALE;
}

int shmq_pending_nack(const struct shmq_pending *p, const struct shmq_delivery *d, uint64_t due_ns) {
    uint64_t seen = d->word, moving = word_of(SHMQ_PENDING_MOVING, p->owner, serial_of(d->word));
    /* MOVING first: once the word is not ours any more, due_ns is another's. */
    if (!cas_acq_rel(&p->entries[d->entry].word, &seen, moving)) return SHMQ_STALE;
    let_wait(p, d->entry, moving, due_ns);
    return SHMQ_OK;
}

/* What `owner` has not acknowledged waits again.  Of a dead one also what it was at work in. */
static void take_away(const struct shmq_pending *p, uint32_t owner, bool is_dead) {
    for (uint32_t i = 0; i < p->count; i++) {
        uint64_t w = load_seq_cst(&p->entries[i].word), moving; /* seq_cst: see shmq_lease_done */
        uint32_t state = shmq_slot_state(w);
        if (state == SHMQ_PENDING_VACANT || state == SHMQ_PENDING_WAITING || shmq_slot_owner(w) != owner)
            continue;
        moving = word_of(SHMQ_PENDING_MOVING, owner, serial_of(w));
        if (state == SHMQ_PENDING_FILLING && is_dead) {
            (void)cas_acq_rel(&p->entries[i].word, &w, word_of(SHMQ_PENDING_VACANT, 0, serial_of(w) + 1));
        } else if ((state == SHMQ_PENDING_MOVING && is_dead) ||
                   (state == SHMQ_PENDING_UNACKED && cas_acq_rel(&p->entries[i].word, &w, moving))) {
            let_wait(p, i, moving,
                     0); /* a failed CAS: acked, or it was overdue and another consumer has it */
        }
    }
}

void shmq_pending_return_all(const struct shmq_pending *p) { take_away(p, p->owner, false); }

/* ---- what others ask ---- */

bool shmq_pending_names(const struct shmq_pending *p, uint64_t entry, uint64_t handle) {
    if (entry >= p->count) return false;
    const struct shmq_pending_entry *e = &p->entries[entry];
    uint64_t word = load_seq_cst(&e->word);
    for (;;) {
        uint64_t named = load_seq_cst(&e->handle), again = load_seq_cst(&e->word);
        uint32_t state = shmq_slot_state(word);
        /* Progress: the word changes only because another one went on. */
        if (again == word) return state >= SHMQ_PENDING_UNACKED && named == handle;
        word = again;
    }
}

/* Whoever's it is by now: it may have been overdue before its slot was given back. */
bool shmq_pending_has(const struct shmq_pending *p, uint64_t position) {
    for (uint32_t i = 0; i < p->count; i++) {
        uint64_t w = load_acquire(&p->entries[i].word);
        if (shmq_slot_state(w) >= SHMQ_PENDING_UNACKED && load_relaxed(&p->entries[i].position) == position)
            return true;
    }
    return false;
}

void shmq_pending_count(const struct shmq_pending *p, uint64_t *unacked, uint64_t *waiting) {
    *unacked = *waiting = 0;
    for (uint32_t i = 0; i < p->count; i++) {
        uint32_t state = shmq_slot_state(load_acquire(&p->entries[i].word));
        *unacked += state == SHMQ_PENDING_UNACKED || state == SHMQ_PENDING_MOVING;
        *waiting += state == SHMQ_PENDING_WAITING;
    }
}

uint32_t shmq_pending_unacked_by(const struct shmq_pending *p, uint32_t owner) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->count; i++) {
        uint64_t w = load_acquire(&p->entries[i].word);
        n += shmq_slot_state(w) == SHMQ_PENDING_UNACKED && shmq_slot_owner(w) == owner;
    }
    return n;
}

bool shmq_pending_others_hold(const struct shmq_pending *p) {
    uint64_t unacked, waiting;
    shmq_pending_count(p, &unacked, &waiting);
    return waiting > 0 ||
           unacked > shmq_pending_unacked_by(p, p->owner); /* FILLING: it is still in its slot */
}

int shmq_pending_valid(const struct shmq_pending *p) {
    for (uint32_t i = 0; i < p->count; i++)
        if (shmq_slot_state(load_acquire(&p->entries[i].word)) > SHMQ_PENDING_MOVING) return SHMQ_CORRUPT;
    return SHMQ_OK;
}

/* ---- repair ---- */

void shmq_pending_recover(const struct shmq_pending *p, uint32_t dead) { take_away(p, dead, true); }

void shmq_pending_settle(const struct shmq_pending *p) {
    uint64_t least = SHMQ_NEVER;
    for (uint32_t i = 0; i < p->count; i++) {
        uint32_t state = shmq_slot_state(load_seq_cst(&p->entries[i].word)); /* D2 */
        uint64_t due = load_relaxed(&p->entries[i].due_ns);
        bool comes_back = state == SHMQ_PENDING_WAITING || state == SHMQ_PENDING_UNACKED;
        if (comes_back && due < least) least = due;
    }
    lower(p, least);
}
