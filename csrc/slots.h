/* slots.h: a ring of slots, what mpmc.c and topic.c have in common.
 *
 * Position p is slot p mod slots in lap p / slots; who meets a slot at position p compares its word's lap.
 */
#ifndef SHMQ_SLOTS_H
#define SHMQ_SLOTS_H

#include <stdbool.h>

#include "layout.h"

struct shmq_slots {
    uint8_t *slots;
    uint64_t mask; /* slots - 1 */
    uint32_t shift;
    uint32_t slot_bytes;
    uint32_t inline_bytes;
    uint32_t owner; /* ours */
    uint64_t lane;  /* 0, or SHMQ_POSITION_URGENT: in every position */
    struct shmq_cursor_line *tail, *head;
};

static inline struct shmq_slot *shmq_slot_at(const struct shmq_slots *s, uint64_t position) {
    return (struct shmq_slot *)(void *)(s->slots + (position & s->mask) * s->slot_bytes);
}
static inline uint64_t shmq_lap_of(const struct shmq_slots *s, uint64_t position) {
    return (position >> s->shift) & SHMQ_LAP_MASK;
}
static inline uint64_t shmq_word_for(const struct shmq_slots *s, uint32_t state, uint32_t owner,
                                     uint64_t position) {
    return shmq_slot_word(state, owner, shmq_lap_of(s, position));
}
/* How many laps `word` is ahead of `position`.  Laps wrap: the difference of 49 bits, with its sign. */
static inline int64_t shmq_laps_ahead(const struct shmq_slots *s, uint64_t word, uint64_t position) {
    uint64_t apart = (shmq_slot_lap(word) - shmq_lap_of(s, position)) << (64 - SHMQ_LAP_BITS);
    return (int64_t)apart / ((int64_t)1 << (64 - SHMQ_LAP_BITS));
}
/* Fails where somebody else moved it: then it is not late any more. */
static inline void shmq_move_on(struct shmq_cursor_line *hint, uint64_t position) {
    (void)cas_seq_cst(&hint->cursor, &position, position + 1); /* H1, see mpmc.c */
}

#endif
