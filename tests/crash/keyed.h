/* keyed.h: what producers that put with a key do, cut short; see operations.h.
 *
 * Messages 1 and 2 were put with keys 1 and 2, which fill the window; the victim puts message 3 with key 3, or a
 * repeat.  In the end message 3 is there once, whoever had to put it again, and the window has the last two keys.
 */
#ifndef KEYED_H
#define KEYED_H

#include "operations.h"

enum { WINDOW = 2, NEXT_KEY = 3 };

static int put_key(shmq_queue *q, uint64_t number, uint64_t key) {
    uint8_t message[SHORT];
    message_write(message, number, sizeof message);
    return shmq_put_keyed(q, message, sizeof message, key, SHMQ_NO_WAIT);
}

/* ---- the survivors' scenes ---- */

static void two_keys(shmq_queue *q) {
    uint8_t block[LEAST_BLOCK];
    message_write(block, 2, sizeof block);
    OK(put_key(q, 1, 1));
    OK(shmq_put_keyed(q, block, sizeof block, 2, SHMQ_NO_WAIT));
}
static void two_keys_in_a_full_ring(shmq_queue *q) {
    two_keys(q);
    for (uint64_t number = 3; lab_put(q, number, SHORT, SHMQ_NO_WAIT) == SHMQ_OK;) number++;
}

/* ---- the victim ---- */

static void ready_with_a_key(shmq_queue *q) {
    (void)q;
    message_write(hand.message, 3, SHORT);
}
static void ready_with_a_key_in_vain(shmq_queue *q) {
    message_write(hand.message, q->segment.geometry.slots + 1, SHORT);
}
static void ready_with_a_key_and_a_block(shmq_queue *q) {
    (void)q;
    message_write(hand.message, 3, LEAST_BLOCK);
}
static int put_with_a_key(shmq_queue *q) {
    return did_put(shmq_put_keyed(q, hand.message, SHORT, NEXT_KEY, SHMQ_NO_WAIT));
}
static int put_block_with_a_key(shmq_queue *q) {
    return did_put(shmq_put_keyed(q, hand.message, LEAST_BLOCK, NEXT_KEY, SHMQ_NO_WAIT));
}
static int put_with_a_key_late(shmq_queue *q) {
    return did_put(shmq_put_keyed(q, hand.message, SHORT, NEXT_KEY, PASSED));
}
static int put_a_repeat(shmq_queue *q) {
    return did_put(shmq_put_keyed(q, hand.message, SHORT, 2, SHMQ_NO_WAIT));
}
static int put_a_repeated_block(shmq_queue *q) {
    return did_put(shmq_put_keyed(q, hand.message, LEAST_BLOCK, 2, SHMQ_NO_WAIT));
}

/* ---- who is dead: in its turn, so far ---- */

static void about_to_publish(shmq_queue *q) {
    struct shmq_record record;
    OK(shmq_put_begin(q));
    OK(shmq_key_begin(q, NEXT_KEY));
    OK(shmq_try_reserve(q, SHORT, SHMQ_RAW, 0, &record));
    message_write(record.payload, 3, SHORT);
    shmq_keys_publishing(&q->keys);
}
static void has_published(shmq_queue *q) {
    about_to_publish(q);
    shmq_ring_commit(&q->ring, &q->put.ring);
}
/* In the entry of key 1, which the window has still. */
static void has_half_remembered(shmq_queue *q) {
    has_published(q);
    store_relaxed(&q->keys.entries[load_relaxed(&q->keys.line->number) % WINDOW].hash, NEXT_KEY);
}

static const struct operation keyed_operations[] = {
    {"put with a key", two_keys, .before = ready_with_a_key, .act = put_with_a_key, .adds = 1},
    {"put block with a key", two_keys, .before = ready_with_a_key_and_a_block, .act = put_block_with_a_key,
     .adds = 1},
    {"put a repeat", two_keys, .before = ready_with_a_key, .act = put_a_repeat, .status = SHMQ_REPEAT},
    {"put a repeated block", two_keys, .before = ready_with_a_key_and_a_block, .act = put_a_repeated_block,
     .status = SHMQ_REPEAT},
    {"put with a key, ring full", two_keys_in_a_full_ring, .before = ready_with_a_key_in_vain,
     .act = put_with_a_key_late, .status = SHMQ_FULL, .vain = true},
    {"put with a key, busy", two_keys, .earlier = has_published, .before = ready_with_a_key,
     .act = put_with_a_key_late, .status = SHMQ_KEYS_BUSY},
    {"reap a turn", two_keys, .earlier = has_published, .act = reap},
    {"reap a turn before it", two_keys, .earlier = about_to_publish, .act = reap},
    {"reap a turn in its midst", two_keys, .earlier = has_half_remembered, .act = reap},
    {"attach, repair a turn", two_keys, .earlier = has_published, .act = attach, .attaches = true},
};
#define KEYED_OPERATIONS (sizeof keyed_operations / sizeof *keyed_operations)

#endif
