/* mpmc.c: the multi-producer multi-consumer ring of slots, where anyone may die at any instruction.
 *
 * Idea (Dmitry Vyukov's bounded MPMC queue, 1024cores, with the owner's name in the word): each slot has one
 * 64-bit word, state:3 | owner:12 | lap:49, and that word is the truth about the slot.
 *   1. A producer claims the slot at the tail by CAS, then moves the tail on; it fills the slot, and one release
 *      store of the word makes the message READY.
 *   2. A consumer claims the slot at the head by CAS, then moves the head on; it reads the slot, and one release
 *      store of the word gives it to the next lap.
 *   3. tail and head are hints: whoever finds one late moves it on (by CAS from exactly what it saw), and both
 *      can be computed from the words.
 * Vyukov's tickets (advance the tail first) have no name on them: a death behind the ticket wedges the ring.
 *
 * Position p is slot p mod slots in lap p / slots.  Who meets a slot at position p compares laps:
 *
 *     word                next step                 by        death before the step: repaired by
 *     FREE(lap)           -> WRITING(me, lap)       producer  nothing to do
 *     WRITING(o, lap)     filled, -> READY(lap)     o         reaper of o: -> TOMB(lap); nothing was published
 *                         given up, -> TOMB(lap)    o         the same
 *     READY(lap)          -> READING(me, lap)       consumer  nothing to do
 *     READING(o, lap)     read, -> FREE(lap + 1)    o         reaper of o: its block back in flight, then
 *                         given up, -> READY(lap)   o         -> READY(lap), then head back to it
 *     TOMB(lap)           -> FREE(lap + 1)          consumer  nothing to do
 *     tail, head late     -> moved on               anyone    whoever comes next moves it
 *     head beyond a READY -> moved back             who put it back; else whoever ends a repair pass, which any
 *                                                   waiting peer makes every 100 ms; or who comes a lap later
 *     head moved back late   -> moved on, by laps  consumer  whoever comes next, see catch_up
 *
 * The table is total: five states, two hints that may stand too far back or (the head) ahead, and each row's death
 * has a name.  Only the owner leaves an owned state, or the one reaper that holds the proof of its death (peers.c);
 * a process that is merely stopped keeps what it owns, and holds up strict order at that slot until it goes on.
 *
 * How a message could come to lie behind the head, with nobody looking there: a reaper makes it READY again and
 * dies before it moves the head back; or a consumer sees the slot taken, sleeps, and moves the head on when the
 * message is there again.  So a consumer that moved the head over a taken slot looks at the slot once more, every
 * repair pass ends with a look behind the head, and a READY slot of an earlier lap is taken by whoever meets it.
 * Both store, then look: the one READY (B1), then the head (B2); the other the head (H1), then the slot (H2).  All
 * four are seq_cst, so one of the two sees the other's store and moves the head back.
 *
 * FIFO: a producer's positions only grow, since it moves the tail beyond each slot that it claimed before it
 * looks for the next.  A message that is delivered again may come late.
 */
#include <string.h>

#include "core.h"

void shmq_mpmc_init(struct shmq_slots *ring, uint64_t first_cursor) {
    for (uint64_t i = 0; i <= ring->mask; i++) {
        uint64_t position = first_cursor + ((i - first_cursor) & ring->mask); /* the first with this slot */
        store_relaxed(&shmq_slot_at(ring, i)->word, shmq_word_for(ring, SHMQ_SLOT_FREE, 0, position));
    }
    store_relaxed(&ring->tail->cursor, first_cursor);
    store_relaxed(&ring->head->cursor, first_cursor);
}

/* The head stands `ahead` laps behind its slot's word: that position was taken and given back.  More than one lap
 * where somebody looked, was stopped, and moved the head back to a message that others have long taken (move_back).
 * Then it jumps, but not beyond the oldest message that can still wait: the slots hold one lap. */
static void catch_up(const struct shmq_slots *ring, uint64_t at, uint64_t ahead) {
    uint64_t to = at + 1 + (ahead > 2 ? (ahead - 2) * (ring->mask + 1) : 0);
    (void)cas_acq_rel(&ring->head->cursor, &at, to);
}

/* Progress: a CAS fails only because the head was moved, and it is moved back only for a message. */
static void move_back(struct shmq_cursor_line *head, uint64_t position) {
    uint64_t seen = load_seq_cst(&head->cursor); /* B2 */
    while ((int64_t)(seen - position) > 0 && !cas_acq_rel(&head->cursor, &seen, position)) {}
}

/* ---- producer ---- */

int shmq_mpmc_try_reserve(const struct shmq_slots *ring, struct shmq_mpmc_side *producer, uint32_t bytes,
                          uint16_t codec, uint16_t flags, struct shmq_record *record) {
    for (;;) {
        uint64_t at = load_acquire(&ring->tail->cursor);
        struct shmq_slot *slot = shmq_slot_at(ring, at);
        uint64_t word = load_acquire(&slot->word); /* F2 <- F1: the last reader is done */
        int64_t ahead = shmq_laps_ahead(ring, word, at);
        if (SHMQ_LIKELY(ahead == 0 && shmq_slot_state(word) == SHMQ_SLOT_FREE)) {
            /* A failed CAS: another producer has it, and the word will say so. */
            if (SHMQ_UNLIKELY(!cas_acq_rel(&slot->word, &word,
                                           shmq_word_for(ring, SHMQ_SLOT_WRITING, ring->owner, at))))
                continue;
            shmq_move_on(ring->tail, at); /* death before it: the next producer does it */
            producer->position = at;
            store32_relaxed(&slot->producer, ring->owner); /* all three ordered by P1 */
            store32_relaxed(&slot->deliveries, 0);
            store_relaxed(&slot->record, shmq_record_pack(bytes, codec, flags));
            record->payload = (flags & SHMQ_RECORD_BLOCK) != 0 ? (uint8_t *)(void *)&slot->handle
                                                               : (uint8_t *)(void *)(slot + 1);
            record->bytes = bytes;
            record->codec = codec;
            record->flags = flags;
            record->position = at << 3 | ring->lane; /* in the unit of a byte ring, as page words have it */
            return SHMQ_OK;
        }
        if (ahead < 0) return ahead == -1 ? SHMQ_FULL : SHMQ_CORRUPT;
        if (ahead > 1 && load_acquire(&ring->tail->cursor) == at) return SHMQ_CORRUPT;
        shmq_move_on(ring->tail, at); /* claimed by another, who has not moved the tail yet */
    }
}

/* The message is there from this store on.  Plain, because only the owner leaves WRITING. */
void shmq_mpmc_commit(const struct shmq_slots *ring, struct shmq_mpmc_side *producer) {
    store_release(&shmq_slot_at(ring, producer->position)->word, /* P1 -> C1 */
                  shmq_word_for(ring, SHMQ_SLOT_READY, 0, producer->position));
}

/* The position is spent: who was behind may have claimed the next one already. */
void shmq_mpmc_abort(const struct shmq_slots *ring, struct shmq_mpmc_side *producer) {
    store_release(&shmq_slot_at(ring, producer->position)->word,
                  shmq_word_for(ring, SHMQ_SLOT_TOMB, 0, producer->position));
}

bool shmq_mpmc_room(const struct shmq_slots *ring) {
    uint64_t at = load_acquire(&ring->tail->cursor);
    return shmq_laps_ahead(ring, load_acquire(&shmq_slot_at(ring, at)->word), at) >= 0;
}

bool shmq_mpmc_roomy(const struct shmq_slots *ring) {
    uint64_t at = load_acquire(&ring->tail->cursor) + ring->mask / 4;
    return shmq_laps_ahead(ring, load_acquire(&shmq_slot_at(ring, at)->word), at) >= 0;
}

/* ---- consumer ---- */

static int decode_slot(const struct shmq_slots *ring, struct shmq_slot *slot, uint64_t position,
                       struct shmq_record *record) {
    uint64_t header = load_relaxed(&slot->record); /* once; ordered by C1 */
    record->bytes = (uint32_t)header;
    record->codec = (uint16_t)(header >> 32);
    record->flags = (uint16_t)(header >> 48);
    record->position = position << 3 | ring->lane;
    record->payload = (record->flags & SHMQ_RECORD_BLOCK) != 0 ? (uint8_t *)(void *)&slot->handle
                                                               : (uint8_t *)(void *)(slot + 1);
    return record->bytes <= ring->inline_bytes ? SHMQ_OK : SHMQ_CORRUPT;
}

/* True where the slot is ours now. */
static bool claim_slot(const struct shmq_slots *ring, struct shmq_mpmc_side *consumer, struct shmq_slot *slot,
                       uint64_t word, uint64_t position) {
    uint64_t mine = shmq_word_for(ring, SHMQ_SLOT_READING, ring->owner, position);
    if (!cas_acq_rel(&slot->word, &word, mine)) return false; /* C1: acquire what the producer wrote */
    consumer->position = position;
    return true;
}

int shmq_mpmc_try_peek(const struct shmq_slots *ring, struct shmq_mpmc_side *consumer,
                       struct shmq_record *record) {
    for (uint64_t late = 0;;) {
        uint64_t at = load_acquire(&ring->head->cursor);
        struct shmq_slot *slot = shmq_slot_at(ring, at);
        uint64_t word = load_acquire(&slot->word);
        uint32_t state = shmq_slot_state(word);
        int64_t ahead = shmq_laps_ahead(ring, word, at);
        if (ahead < -1 || state > SHMQ_SLOT_TOMB) return SHMQ_CORRUPT;
        if (ahead > 0) {
            if (ahead > 1 && late++ > 4 * ring->mask) return SHMQ_CORRUPT; /* words at odds with each other */
            catch_up(ring, at, (uint64_t)ahead);
            continue;
        }
        uint64_t position = at + (uint64_t)ahead * (ring->mask + 1); /* -1: a message of an earlier lap */
        switch (state) {
        case SHMQ_SLOT_READY:
            if (!claim_slot(ring, consumer, slot, word, position))
                continue; /* another has it, see its word */
            if (ahead == 0) shmq_move_on(ring->head, at);
            if (SHMQ_LIKELY(decode_slot(ring, slot, position, record) == SHMQ_OK)) return SHMQ_OK;
            shmq_mpmc_unpeek(ring, consumer);
            return SHMQ_CORRUPT;
        case SHMQ_SLOT_TOMB:
            /* A failed CAS: another consumer did it. */
            if (cas_acq_rel(&slot->word, &word,
                            shmq_word_for(ring, SHMQ_SLOT_FREE, 0, position + ring->mask + 1)))
                consumer->tombs += 1;
            continue;
        case SHMQ_SLOT_READING:
            if (ahead < 0) return SHMQ_EMPTY; /* a slow consumer holds up its slot */
            shmq_move_on(ring->head, at);
            /* It may have been put back meanwhile, and we moved over it. */
            if (load_seq_cst(&slot->word) == shmq_word_for(ring, SHMQ_SLOT_READY, 0, at)) /* H2 */
                move_back(ring->head, at);
            continue;
        default: /* FREE, WRITING: not there yet */ return SHMQ_EMPTY;
        }
    }
}

/* Plain, because only the owner leaves READING. */
void shmq_mpmc_release(const struct shmq_slots *ring, struct shmq_mpmc_side *consumer) {
    store_release(&shmq_slot_at(ring, consumer->position)->word, /* F1 -> F2 */
                  shmq_word_for(ring, SHMQ_SLOT_FREE, 0, consumer->position + ring->mask + 1));
}

/* For want of memory: the message is there again.  Death between the two: see the head of this file. */
void shmq_mpmc_unpeek(const struct shmq_slots *ring, struct shmq_mpmc_side *consumer) {
    store_seq_cst(&shmq_slot_at(ring, consumer->position)->word, /* B1 */
                  shmq_word_for(ring, SHMQ_SLOT_READY, 0, consumer->position));
    move_back(ring->head, consumer->position);
}

/* True if trying again makes sense. */
bool shmq_mpmc_unread(const struct shmq_slots *ring) {
    uint64_t at = load_acquire(&ring->head->cursor);
    uint64_t word = load_acquire(&shmq_slot_at(ring, at)->word);
    int64_t ahead = shmq_laps_ahead(ring, word, at);
    uint32_t state = shmq_slot_state(word);
    return ahead > 0 || state == SHMQ_SLOT_READY || state == SHMQ_SLOT_TOMB ||
           (state == SHMQ_SLOT_READING && ahead == 0);
}

bool shmq_mpmc_drained(const struct shmq_slots *ring) {
    uint64_t at = load_acquire(&ring->head->cursor);
    uint64_t word = load_acquire(&shmq_slot_at(ring, at)->word);
    int64_t ahead = shmq_laps_ahead(ring, word, at);
    return (ahead == 0 && shmq_slot_state(word) == SHMQ_SLOT_FREE) ||
           (ahead < 0 && shmq_slot_state(word) == SHMQ_SLOT_READING);
}

/* ---- for onlookers: nothing here writes ---- */

bool shmq_mpmc_untouched(const struct shmq_slots *ring) {
    for (uint64_t i = 0; i <= ring->mask; i++) {
        uint32_t state = shmq_slot_state(load_acquire(&shmq_slot_at(ring, i)->word));
        if (state != SHMQ_SLOT_FREE && state != SHMQ_SLOT_TOMB) return false;
    }
    return true;
}

/* Of a word near the head, the whole position. */
static uint64_t position_of(const struct shmq_slots *ring, uint64_t index, uint64_t word, uint64_t near) {
    uint64_t here = near - ((near - index) & ring->mask); /* of this slot, at or before `near` */
    return here + (uint64_t)shmq_laps_ahead(ring, word, here) * (ring->mask + 1);
}

/* The tail as the words have it. */
uint64_t shmq_mpmc_claimed(const struct shmq_slots *ring) {
    uint64_t at = load_acquire(&ring->tail->cursor);
    for (uint64_t i = 0; i <= ring->mask; i++, at++) {
        uint64_t word = load_acquire(&shmq_slot_at(ring, at)->word);
        int64_t ahead = shmq_laps_ahead(ring, word, at);
        if (ahead < 0 || (ahead == 0 && shmq_slot_state(word) == SHMQ_SLOT_FREE)) break;
    }
    return at;
}

int shmq_mpmc_look(const struct shmq_slots *ring, uint32_t index, struct shmq_record *record) {
    uint64_t at = load_acquire(&ring->head->cursor);
    for (uint64_t i = 0; i <= ring->mask; i++, at++) {
        struct shmq_slot *slot = shmq_slot_at(ring, at);
        uint64_t word = load_acquire(&slot->word);
        if (word != shmq_word_for(ring, SHMQ_SLOT_READY, 0, at) || index-- > 0) continue;
        int status = decode_slot(ring, slot, at, record);
        if (status == SHMQ_OK || load_acquire(&slot->word) == word) return status;
        return SHMQ_EMPTY; /* overtaken */
    }
    return SHMQ_EMPTY;
}

uint64_t shmq_mpmc_waiting(const struct shmq_slots *ring) {
    uint64_t at = load_acquire(&ring->head->cursor), n = 0;
    for (uint64_t i = 0; i <= ring->mask; i++, at++)
        n += load_acquire(&shmq_slot_at(ring, at)->word) == shmq_word_for(ring, SHMQ_SLOT_READY, 0, at);
    return n;
}

int32_t shmq_mpmc_in_the_way(const struct shmq_slots *ring, bool of_producers) {
    const struct shmq_cursor_line *hint = of_producers ? ring->tail : ring->head;
    uint64_t word = load_acquire(&shmq_slot_at(ring, load_acquire(&hint->cursor))->word);
    uint32_t state = shmq_slot_state(word);
    bool owned = state == SHMQ_SLOT_WRITING || state == SHMQ_SLOT_READING;
    return owned ? (int32_t)shmq_slot_owner(word) : -1;
}

void shmq_mpmc_in_hands(const struct shmq_slots *ring, uint32_t owner, struct shmq_hands *hands) {
    uint64_t head = load_acquire(&ring->head->cursor);
    for (uint64_t i = 0; i <= ring->mask; i++) {
        uint64_t word = load_acquire(&shmq_slot_at(ring, i)->word);
        uint32_t state = shmq_slot_state(word);
        if ((state != SHMQ_SLOT_WRITING && state != SHMQ_SLOT_READING) || shmq_slot_owner(word) != owner)
            continue;
        *(state == SHMQ_SLOT_WRITING ? &hands->writing : &hands->reading) += 1;
        hands->slot_position = position_of(ring, i, word, head) << 3 | ring->lane;
    }
}

/* Between tail - slots and tail each slot is in the lap of its position, or FREE in the next.  A tail that is
 * late by a few leaves some one lap further.  Looks again while others are at work. */
int shmq_mpmc_valid(const struct shmq_slots *ring) {
    for (uint64_t i = 0; i <= ring->mask; i++) {
        for (int tries = 0;; tries++) {
            uint64_t tail = load_acquire(&ring->tail->cursor);
            uint64_t position = tail - 1 - ((tail - 1 - i) & ring->mask);
            uint64_t word = load_acquire(&shmq_slot_at(ring, i)->word);
            int64_t ahead = shmq_laps_ahead(ring, word, position);
            if (shmq_slot_state(word) <= SHMQ_SLOT_TOMB && ahead >= 0 && ahead <= 2) break;
            if (tries == 1000) return SHMQ_CORRUPT;
        }
    }
    return SHMQ_OK; /* where the head stands proves nothing: it may be moved back late, see catch_up */
}

/* ---- repair ---- */

bool shmq_mpmc_published(const struct shmq_slots *ring, uint64_t argument, uint64_t handle) {
    uint64_t at = argument >> 1; /* without the lane */
    struct shmq_slot *slot = shmq_slot_at(ring, at);
    uint64_t word = load_acquire(&slot->word);
    uint32_t state = shmq_slot_state(word);
    uint64_t low = shmq_slot_lap(word) << ring->shift | (at & ring->mask);
    return (state == SHMQ_SLOT_READY || state == SHMQ_SLOT_READING) &&
           shmq_cursor_argument(low << 3 | ring->lane) == argument &&
           load_acquire(&slot->handle) == handle; /* N2 <- N1: before the page's word is looked at again */
}

uint64_t shmq_mpmc_next_read_by(const struct shmq_slots *ring, uint32_t dead, uint64_t from,
                                struct shmq_record *record) {
    for (uint64_t i = from; i <= ring->mask; i++) {
        struct shmq_slot *slot = shmq_slot_at(ring, i);
        uint64_t word = load_acquire(&slot->word);
        if (shmq_slot_state(word) != SHMQ_SLOT_READING || shmq_slot_owner(word) != dead) continue;
        uint64_t position = position_of(ring, i, word, load_acquire(&ring->head->cursor));
        if (decode_slot(ring, slot, position, record) != SHMQ_OK) record->flags = 0;
        return i;
    }
    return UINT64_MAX;
}

/* Its message lives on in the pending table: the slot is spent. */
void shmq_mpmc_retire(const struct shmq_slots *ring, uint32_t dead, uint64_t index) {
    struct shmq_slot *slot = shmq_slot_at(ring, index);
    uint64_t word = load_acquire(&slot->word);
    if (shmq_slot_state(word) == SHMQ_SLOT_READING && shmq_slot_owner(word) == dead)
        (void)cas_acq_rel(&slot->word, &word,
                          shmq_slot_word(SHMQ_SLOT_FREE, 0, shmq_slot_lap(word) + 1)); /* F1 -> F2 */
}

void shmq_mpmc_recover(const struct shmq_slots *ring, uint32_t dead) {
    for (uint64_t i = 0; i <= ring->mask; i++) {
        struct shmq_slot *slot = shmq_slot_at(ring, i);
        uint64_t word = load_acquire(&slot->word);
        uint32_t state = shmq_slot_state(word);
        if (shmq_slot_owner(word) != dead) continue;
        /* By CAS: whatever the memory says, this is exactly one step of the table. */
        if (state == SHMQ_SLOT_WRITING) {
            (void)cas_acq_rel(&slot->word, &word, shmq_slot_word(SHMQ_SLOT_TOMB, 0, shmq_slot_lap(word)));
        } else if (state == SHMQ_SLOT_READING) {
            store32_relaxed(&slot->deliveries, load32_relaxed(&slot->deliveries) + 1);
            (void)cas_seq_cst(&slot->word, &word,
                              shmq_slot_word(SHMQ_SLOT_READY, 0, shmq_slot_lap(word))); /* B1 */
        }
    }
}

/* The word wins over the hint.  Death in here: the next pass does it. */
void shmq_mpmc_settle(const struct shmq_slots *ring) {
    uint64_t head = load_seq_cst(&ring->head->cursor), least = head; /* B2 */
    for (uint64_t i = 0; i <= ring->mask; i++) {
        uint64_t word = load_acquire(&shmq_slot_at(ring, i)->word);
        if (shmq_slot_state(word) != SHMQ_SLOT_READY) continue;
        uint64_t position = position_of(ring, i, word, head);
        if ((int64_t)(position - least) < 0) least = position;
    }
    if (least != head) move_back(ring->head, least);
}
