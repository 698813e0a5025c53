/* topic.c: the broadcast ring of slots: every subscriber reads every message, and anyone may die at any
 * instruction.
 *
 * Idea: publishers work as the producers of mpmc.c do, one 64-bit word per slot being the truth; but a message is
 * not taken.  It stays until a publisher claims its slot in the next lap, and each subscriber has a cursor of its
 * own, in its entry of the peer table (as in the LMAX Disruptor, whose gating sequences these are).  What keeps a
 * publisher from a slot is the slowest of these cursors, or nothing, as the topic's policy says.
 *
 *     word                next step                 by          death before the step: repaired by
 *     FREE(lap)           -> WRITING(me, lap)       publisher   nothing to do (first lap only)
 *     WRITING(o, lap)     filled, -> READY(lap)     o           reaper of o: -> TOMB(lap); nothing was published
 *                         given up, -> TOMB(lap)    o           the same
 *     READY(lap)          -> WRITING(me, lap + 1)   publisher   nothing to do: its block was given up before, see
 *                                                               share.c, by anyone
 *     TOMB(lap)           -> WRITING(me, lap + 1)   publisher   nothing to do
 *     tail late           -> moved on               anyone      whoever comes next moves it
 *     head late           -> moved on               anyone      the same: no block is held by the ring before it
 *     cursor of s         -> + 1                    s           reaper of s ends the subscription
 *     subscription of s   -> none                   s           the same
 *                         -> evicted                publisher   the next publisher; s cannot read meanwhile
 *
 * Reading without taking is a seqlock: the word, the content, the word again.  A slot is private to a publisher
 * from its claim on, so a subscriber that was overtaken sees another word and drops what it copied.  With policy
 * SHMQ_BLOCK it is not overtaken.
 *
 * Gates.  A publisher keeps the slowest cursor that it saw and looks at the subscribers again once that is a ring
 * behind, or when somebody has joined.  A newcomer announces its cursor, then counts itself (joins), then reads
 * the tail (J1, J2) and begins at most half a ring behind it; a publisher reads the tail, then joins (G1, G2).
 * One of the two sees the other: either the publisher looks again, or the tail that it read is no further than
 * the newcomer's, and the slot it claims is a whole ring behind that.
 *
 * Order is the same for all, since positions are.  A publisher's positions only grow (see mpmc.c).
 */
#include <string.h>

#include "core.h"

/* ---- words of a slot's payload: both sides by relaxed atomics, because they may race ---- */

static void store_words(shmq_a64 *to, const uint8_t *from, uint32_t bytes) {
    uint64_t word;
    for (; bytes >= sizeof word; bytes -= (uint32_t)sizeof word, from += sizeof word) {
        memcpy(&word, from, sizeof word);
        store_relaxed(to++, word);
    }
    if (bytes == 0) return;
    word = 0;
    memcpy(&word, from, bytes);
    store_relaxed(to, word); /* slots end at a multiple of 8 */
}

static void load_words(uint8_t *to, const shmq_a64 *from, uint32_t bytes) {
    uint64_t word;
    for (; bytes >= sizeof word; bytes -= (uint32_t)sizeof word, to += sizeof word) {
        word = load_relaxed(from++);
        memcpy(to, &word, sizeof word);
    }
    if (bytes == 0) return;
    word = load_relaxed(from);
    memcpy(to, &word, bytes);
}

static shmq_a64 *payload_of(struct shmq_slot *slot, uint16_t flags) {
    return (flags & SHMQ_RECORD_BLOCK) != 0 ? &slot->handle : (shmq_a64 *)(void *)(slot + 1);
}

/* ---- subscribers ---- */

static uint64_t subscription_word(uint32_t state, uint64_t epoch) { return state | epoch << 8; }
static uint32_t subscription_state(uint64_t word) { return (uint32_t)(word & 0xff); }

static uint32_t subscribers_end(const struct shmq_topic *t) {
    uint32_t end = load32_acquire(&t->roles->subscribers_end);
    return end <= t->peer_count ? end : t->peer_count;
}

/* How far the slowest subscriber is behind `tail`, and its index; 0 and -1 where nobody is. */
static uint64_t most_behind(const struct shmq_topic *t, uint64_t tail, int32_t *who) {
    uint64_t most = 0;
    *who = -1;
    for (uint32_t i = 0, end = subscribers_end(t); i < end; i++) {
        const struct shmq_peer *p = &t->peers[i];
        /* behind G1, G2 */
        if (subscription_state(load_seq_cst(&p->subscription)) != SHMQ_SUBSCRIBED) continue;
        int64_t behind = (int64_t)(tail - load_seq_cst(&p->topic_cursor)); /* acquire: it has read that far */
        if (behind <= 0 || (uint64_t)behind <= most) continue;
        most = (uint64_t)behind;
        *who = (int32_t)i;
    }
    return most;
}

uint64_t shmq_topic_lag(const struct shmq_topic *t, int32_t *who) {
    return most_behind(t, load_acquire(&t->slots.tail->cursor), who);
}

uint64_t shmq_topic_lag_of(const struct shmq_topic *t, uint32_t peer) {
    int64_t behind =
        (int64_t)(load_acquire(&t->slots.tail->cursor) - load_acquire(&t->peers[peer].topic_cursor));
    return behind > 0 ? (uint64_t)behind : 0;
}

uint32_t shmq_topic_state_of(const struct shmq_topic *t, uint32_t peer) {
    return subscription_state(load_acquire(&t->peers[peer].subscription));
}

/* Ends each subscription that is more than `behind` behind.  By CAS from exactly what was seen: neither a new life
 * of the peer's entry nor one that has left is touched. */
bool shmq_topic_evict(const struct shmq_topic *t, uint64_t tail, uint64_t behind) {
    bool any = false;
    for (uint32_t i = 0, end = subscribers_end(t); i < end; i++) {
        struct shmq_peer *p = &t->peers[i];
        uint64_t word = load_acquire(&p->subscription);
        if (subscription_state(word) != SHMQ_SUBSCRIBED) continue;
        if ((int64_t)(tail - load_acquire(&p->topic_cursor)) <= (int64_t)behind) continue;
        if (cas_acq_rel(&p->subscription, &word, subscription_word(SHMQ_WAS_EVICTED, word >> 8))) any = true;
    }
    return any;
}

void shmq_topic_subscribe(const struct shmq_topic *t, struct shmq_topic_side *s, uint64_t epoch,
                          uint32_t history) {
    struct shmq_peer *me = &t->peers[t->slots.owner];
    uint32_t end = load32_acquire(&t->roles->subscribers_end);
    while (end <= t->slots.owner && !cas32_acq_rel(&t->roles->subscribers_end, &end, t->slots.owner + 1)) {
    } /* it only grows */
    uint64_t tail = load_acquire(&t->slots.tail->cursor);
    store_relaxed(&me->topic_cursor, tail - (t->slots.mask + 1) / 2); /* the least that it will be */
    /* Death from here on: SUBSCRIBED, with a cursor that stands still; the reaper ends it. */
    store_release(&me->subscription, subscription_word(SHMQ_SUBSCRIBED, epoch));
    (void)add_seq_cst(&t->roles->joins, 1);      /* J1 */
    tail = load_seq_cst(&t->slots.tail->cursor); /* J2 */
    uint64_t all = tail - t->first;              /* ever published */
    uint64_t kept = history < all ? history : all;
    s->joined = tail;
    s->cursor = tail - kept;
    s->missed = 0;
    store_release(&me->topic_cursor, s->cursor);
}

void shmq_topic_unsubscribe(const struct shmq_topic *t, uint32_t peer) {
    store_release(&t->peers[peer].subscription, SHMQ_NOT_SUBSCRIBED);
}

/* ---- publisher ---- */

/* May position `at` be claimed, as far as subscribers are concerned? */
static bool gate_is_open(const struct shmq_topic *t, struct shmq_topic_side *p, uint64_t at) {
    uint64_t mask = t->slots.mask;
    int32_t who;
    if (t->policy == SHMQ_DROP_OLDEST) return true;
    uint64_t joins = load_seq_cst(&t->roles->joins); /* G2 */
    if (SHMQ_LIKELY(joins == p->joins && at - p->gate <= mask)) return true;
    p->joins = joins;
    p->gate = at - most_behind(t, at, &who);
    if (at - p->gate <= mask) return true;
    if (t->policy != SHMQ_EVICT) return false;
    (void)shmq_topic_evict(t, at, mask);
    p->gate = at - most_behind(t, at, &who);
    return at - p->gate <= mask;
}

int shmq_topic_try_reserve(const struct shmq_topic *t, struct shmq_topic_side *p, uint32_t bytes,
                           uint16_t codec, uint16_t flags, struct shmq_record *record) {
    const struct shmq_slots *s = &t->slots;
    for (;;) {
        uint64_t at = load_seq_cst(&s->tail->cursor); /* G1 */
        struct shmq_slot *slot = shmq_slot_at(s, at);
        uint64_t word = load_acquire(&slot->word);
        uint32_t state = shmq_slot_state(word);
        int64_t ahead = shmq_laps_ahead(s, word, at);
        bool spent = ahead == -1 && (state == SHMQ_SLOT_READY || state == SHMQ_SLOT_TOMB);
        if (SHMQ_LIKELY(spent || (ahead == 0 && state == SHMQ_SLOT_FREE))) {
            if (SHMQ_UNLIKELY(!gate_is_open(t, p, at))) return SHMQ_FULL;
            bool has_block = (load_relaxed(&slot->record) >> 48 & SHMQ_RECORD_BLOCK) != 0;
            if (spent && state == SHMQ_SLOT_READY && has_block && (!p->cleared || p->position != at)) {
                p->position = at;
                return SHMQ_LOOK_AGAIN; /* its block must be given up first */
            }
            if (SHMQ_UNLIKELY(
                    !cas_acq_rel(&slot->word, &word, shmq_word_for(s, SHMQ_SLOT_WRITING, s->owner, at))))
                continue;              /* another publisher has it, and the word will say so */
            shmq_move_on(s->tail, at); /* death before it: the next publisher does it */
            p->position = at;
            p->cleared = false;
            p->header = shmq_record_pack(bytes, codec, flags);
            record->payload = p->buffer;
            record->bytes = bytes;
            record->codec = codec;
            record->flags = flags;
            record->position = at << 3; /* in the unit of a byte ring, as page words have it */
            return SHMQ_OK;
        }
        if (ahead < 0) /* held up by a publisher a lap behind */
            return ahead == -1 && state == SHMQ_SLOT_WRITING ? SHMQ_FULL : SHMQ_CORRUPT;
        if (ahead > 1 && load_acquire(&s->tail->cursor) == at) return SHMQ_CORRUPT;
        shmq_move_on(s->tail, at); /* claimed by another, who has not moved the tail yet */
    }
}

/* The message is there from the last store on.  Plain, because only the owner leaves WRITING. */
void shmq_topic_commit(const struct shmq_topic *t, struct shmq_topic_side *p) {
    struct shmq_slot *slot = shmq_slot_at(&t->slots, p->position);
    release_fence(); /* Q1 -> Q2: whoever reads any of this finds the word changed when it looks again */
    store32_relaxed(&slot->producer, t->slots.owner);
    store_relaxed(&slot->record, p->header);
    store_words(payload_of(slot, (uint16_t)(p->header >> 48)), p->buffer, (uint32_t)p->header);
    store_release(&slot->word, shmq_word_for(&t->slots, SHMQ_SLOT_READY, 0, p->position)); /* P1 -> C1 */
}

void shmq_topic_abort(const struct shmq_topic *t, struct shmq_topic_side *p) {
    store_release(&shmq_slot_at(&t->slots, p->position)->word,
                  shmq_word_for(&t->slots, SHMQ_SLOT_TOMB, 0, p->position));
}

/* How much room there is: the positions that could be claimed now, at most a ring. */
static uint64_t room(const struct shmq_topic *t) {
    int32_t who;
    uint64_t at = load_acquire(&t->slots.tail->cursor), slots = t->slots.mask + 1;
    uint64_t word = load_acquire(&shmq_slot_at(&t->slots, at)->word);
    if (shmq_laps_ahead(&t->slots, word, at) < 0 && shmq_slot_state(word) == SHMQ_SLOT_WRITING) return 0;
    if (t->policy != SHMQ_BLOCK) return slots;
    uint64_t behind = most_behind(t, at, &who);
    return behind < slots ? slots - behind : 0;
}

bool shmq_topic_room(const struct shmq_topic *t) { return room(t) > 0; }
bool shmq_topic_roomy(const struct shmq_topic *t) { return room(t) > t->slots.mask / 4; }

/* ---- subscriber ---- */

static void advance(const struct shmq_topic *t, struct shmq_topic_side *s, uint64_t to) {
    s->cursor = to;
    store_release(&t->peers[t->slots.owner].topic_cursor, to); /* R1 -> G2: we have read what came before */
}

static void miss(const struct shmq_topic *t, struct shmq_topic_side *s, uint64_t to) {
    uint64_t from = (int64_t)(s->cursor - s->joined) > 0 ? s->cursor : s->joined;
    if ((int64_t)(to - from) > 0) s->missed += to - from; /* what came before it joined is not missed */
    store_relaxed(&t->peers[t->slots.owner].topic_missed, s->missed);
    s->passed_over += 1;
    advance(t, s, to);
}

/* A publisher was here before us.  An eighth of a ring further on we are out of its way for a while. */
static int overtaken(const struct shmq_topic *t, struct shmq_topic_side *s) {
    if (shmq_topic_state_of(t, t->slots.owner) == SHMQ_WAS_EVICTED) return SHMQ_EVICTED;
    if (t->policy != SHMQ_DROP_OLDEST) return SHMQ_CORRUPT;
    uint64_t slots = t->slots.mask + 1, oldest = load_acquire(&t->slots.tail->cursor) - slots;
    uint64_t to = oldest + slots / 8;
    if ((int64_t)(oldest - s->cursor) < 0) return SHMQ_CORRUPT; /* no publisher was here */
    miss(t, s, (int64_t)(to - s->cursor) > 0 ? to : s->cursor + 1);
    return SHMQ_OK;
}

/* History may go, and what is not read in time, unless publishers wait. */
int shmq_topic_skip(const struct shmq_topic *t, struct shmq_topic_side *s) {
    if (t->policy == SHMQ_BLOCK && (int64_t)(s->cursor - s->joined) >= 0) return SHMQ_CORRUPT;
    miss(t, s, s->cursor + 1);
    return SHMQ_LOOK_AGAIN;
}

int shmq_topic_try_peek(const struct shmq_topic *t, struct shmq_topic_side *s, struct shmq_record *record) {
    if (SHMQ_UNLIKELY(shmq_topic_state_of(t, t->slots.owner) != SHMQ_SUBSCRIBED))
        return shmq_topic_state_of(t, t->slots.owner) == SHMQ_WAS_EVICTED ? SHMQ_EVICTED : SHMQ_INVALID;
    for (;;) {
        uint64_t at = s->cursor;
        struct shmq_slot *slot = shmq_slot_at(&t->slots, at);
        uint64_t word = load_acquire(&slot->word); /* C1 <- P1 */
        int64_t ahead = shmq_laps_ahead(&t->slots, word, at);
        uint32_t state = shmq_slot_state(word);
        if (ahead > 0) {
            int status = overtaken(t, s);
            if (status != SHMQ_OK) return status;
            continue;
        }
        if (ahead < 0) return ahead == -1 ? SHMQ_EMPTY : SHMQ_CORRUPT;
        if (state == SHMQ_SLOT_TOMB) {
            advance(t, s, at + 1);
            s->passed_over += 1;
            continue;
        }
        if (state != SHMQ_SLOT_READY)
            return state == SHMQ_SLOT_FREE || state == SHMQ_SLOT_WRITING ? SHMQ_EMPTY : SHMQ_CORRUPT;
        uint64_t header = load_relaxed(&slot->record);
        record->bytes = (uint32_t)header;
        record->codec = (uint16_t)(header >> 32);
        record->flags = (uint16_t)(header >> 48);
        bool is_block = (record->flags & SHMQ_RECORD_BLOCK) != 0;
        bool good = is_block ? record->bytes == sizeof(uint64_t) : record->bytes <= t->slots.inline_bytes;
        if (good) load_words(s->buffer, payload_of(slot, record->flags), record->bytes);
        acquire_fence(); /* Q2 <- Q1 */
        if (load_relaxed(&slot->word) != word) continue;
        if (!good) return SHMQ_CORRUPT;
        record->position = at << 3;
        record->payload = s->buffer;
        s->position = at;
        return SHMQ_OK;
    }
}

void shmq_topic_release(const struct shmq_topic *t, struct shmq_topic_side *s) {
    advance(t, s, s->cursor + 1);
}

/* True if trying again makes sense.  `cursor` is ours as it was. */
bool shmq_topic_unread(const struct shmq_topic *t, uint64_t cursor) {
    uint64_t word = load_acquire(&shmq_slot_at(&t->slots, cursor)->word);
    int64_t ahead = shmq_laps_ahead(&t->slots, word, cursor);
    uint32_t state = shmq_slot_state(word);
    return ahead > 0 || (ahead == 0 && (state == SHMQ_SLOT_READY || state == SHMQ_SLOT_TOMB)) ||
           shmq_topic_state_of(t, t->slots.owner) != SHMQ_SUBSCRIBED;
}

/* Nothing that has begun is still to come: the next slot is unclaimed.  The tail may be late. */
bool shmq_topic_drained(const struct shmq_topic *t, uint64_t cursor) {
    uint64_t word = load_acquire(&shmq_slot_at(&t->slots, cursor)->word);
    int64_t ahead = shmq_laps_ahead(&t->slots, word, cursor);
    return ahead < 0 || (ahead == 0 && shmq_slot_state(word) == SHMQ_SLOT_FREE);
}

/* ---- messages as holders of blocks ---- */

bool shmq_topic_names(const struct shmq_topic *t, uint64_t position, uint64_t *handle) {
    struct shmq_slot *slot = shmq_slot_at(&t->slots, position);
    uint64_t ready = shmq_word_for(&t->slots, SHMQ_SLOT_READY, 0, position);
    if (load_acquire(&slot->word) != ready) return false;
    bool is_block = (load_relaxed(&slot->record) >> 48 & SHMQ_RECORD_BLOCK) != 0;
    *handle = load_relaxed(&slot->handle);
    acquire_fence();
    return is_block && load_relaxed(&slot->word) == ready;
}

uint64_t shmq_topic_position_of(const struct shmq_topic *t, uint64_t argument) {
    uint64_t tail = load_acquire(&t->slots.tail->cursor);
    /* An argument's lowest bit is a lane.  At or before the tail: */
    return tail - ((tail - (argument >> 1)) & (UINT64_MAX >> (65 - SHMQ_ARGUMENT_BITS)));
}

uint64_t shmq_topic_needed_from(const struct shmq_topic *t, bool by_history) {
    int32_t who;
    uint64_t tail = load_seq_cst(&t->slots.tail->cursor); /* before the subscribers, see Gates above */
    uint64_t behind = most_behind(t, tail, &who);
    if (by_history && behind < t->history) behind = t->history;
    return tail - behind;
}

bool shmq_topic_next_spent(const struct shmq_topic *t, uint64_t end, uint64_t *position) {
    struct shmq_cursor_line *hint = t->slots.head;
    for (;;) {
        uint64_t tail = load_acquire(&t->slots.tail->cursor), at = load_acquire(&hint->cursor);
        uint64_t oldest = tail - (t->slots.mask + 1);
        if ((int64_t)(oldest - at) > 0) { /* what lies before was written over */
            (void)cas_acq_rel(&hint->cursor, &at, oldest);
            continue;
        }
        if ((int64_t)(end - at) <= 0) return false;
        uint64_t word = load_acquire(&shmq_slot_at(&t->slots, at)->word), handle;
        if (shmq_laps_ahead(&t->slots, word, at) <= 0 && shmq_slot_state(word) == SHMQ_SLOT_WRITING)
            return false;
        *position = at;
        if (shmq_topic_names(t, at, &handle)) return true;
        shmq_move_on(hint, at);
    }
}

void shmq_topic_pass(const struct shmq_topic *t, uint64_t position) { shmq_move_on(t->slots.head, position); }

/* ---- for onlookers: nothing here writes ---- */

int shmq_topic_look(const struct shmq_topic *t, uint32_t index, struct shmq_record *record) {
    int32_t who;
    uint64_t tail = load_acquire(&t->slots.tail->cursor), waiting = most_behind(t, tail, &who);
    if (waiting < t->history) waiting = t->history;
    if (waiting > tail - t->first) waiting = tail - t->first;
    if (waiting > t->slots.mask + 1) waiting = t->slots.mask + 1;
    for (uint64_t at = tail - waiting; at != tail; at++) {
        struct shmq_slot *slot = shmq_slot_at(&t->slots, at);
        uint64_t word = load_acquire(&slot->word);
        if (word != shmq_word_for(&t->slots, SHMQ_SLOT_READY, 0, at) || index-- > 0) continue;
        uint64_t header = load_relaxed(&slot->record);
        record->bytes = (uint32_t)header;
        record->codec = (uint16_t)(header >> 32);
        record->flags = (uint16_t)(header >> 48);
        record->position = at << 3;
        record->payload = (uint8_t *)(void *)payload_of(slot, record->flags);
        acquire_fence();                                          /* Q2 <- Q1 */
        if (load_relaxed(&slot->word) != word) return SHMQ_EMPTY; /* overtaken */
        return record->bytes <= t->slots.inline_bytes ? SHMQ_OK : SHMQ_CORRUPT;
    }
    return SHMQ_EMPTY;
}

int32_t shmq_topic_in_the_way(const struct shmq_topic *t) {
    int32_t who;
    uint64_t at = load_acquire(&t->slots.tail->cursor);
    uint64_t word = load_acquire(&shmq_slot_at(&t->slots, at)->word);
    if (shmq_slot_state(word) == SHMQ_SLOT_WRITING) return (int32_t)shmq_slot_owner(word);
    bool gated = t->policy == SHMQ_BLOCK && most_behind(t, at, &who) > t->slots.mask;
    return gated ? who : -1;
}

/* Each slot is in the lap of the last position before the tail that it can have, or FREE in the next (first lap);
 * a tail that is late by a few leaves some one lap further.  Looks again while others are at work. */
int shmq_topic_valid(const struct shmq_topic *t) {
    for (uint64_t i = 0; i <= t->slots.mask; i++) {
        for (int tries = 0;; tries++) {
            uint64_t tail = load_acquire(&t->slots.tail->cursor);
            uint64_t position = tail - 1 - ((tail - 1 - i) & t->slots.mask);
            uint64_t word = load_acquire(&shmq_slot_at(&t->slots, i)->word);
            int64_t ahead = shmq_laps_ahead(&t->slots, word, position);
            uint32_t state = shmq_slot_state(word);
            if (state <= SHMQ_SLOT_TOMB && state != SHMQ_SLOT_READING && ahead >= 0 && ahead <= 1) break;
            if (tries == 1000) return SHMQ_CORRUPT;
        }
    }
    return SHMQ_OK;
}

/* ---- repair ---- */

void shmq_topic_recover(const struct shmq_topic *t, uint32_t dead) {
    for (uint64_t i = 0; i <= t->slots.mask; i++) {
        struct shmq_slot *slot = shmq_slot_at(&t->slots, i);
        uint64_t word = load_acquire(&slot->word);
        if (shmq_slot_state(word) != SHMQ_SLOT_WRITING || shmq_slot_owner(word) != dead) continue;
        /* By CAS: whatever the memory says, this is exactly one step of the table. */
        (void)cas_acq_rel(&slot->word, &word, shmq_slot_word(SHMQ_SLOT_TOMB, 0, shmq_slot_lap(word)));
    }
    shmq_topic_unsubscribe(t, dead);
    /* What it claimed counts now, also for what has left the history. */
    uint64_t at = load_acquire(&t->slots.tail->cursor);
    uint64_t word = load_acquire(&shmq_slot_at(&t->slots, at)->word);
    if (shmq_laps_ahead(&t->slots, word, at) == 0 && shmq_slot_state(word) == SHMQ_SLOT_TOMB)
        shmq_move_on(t->slots.tail, at);
}
