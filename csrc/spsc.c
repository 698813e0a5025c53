/* spsc.c: the single-producer single-consumer byte ring.
 *
 * Idea (Lamport's queue with cached far cursors, as in FastForward, MCRingBuffer and rigtorp's SPSCQueue,
 * over variable-size records as in Aeron's spsc_rb):
 *   1. the producer writes a record behind the published tail, where nobody looks;
 *   2. one release store of tail makes it, or a whole run of them, visible;
 *   3. the consumer reads at head and gives the room back with one release store of head.
 * Each side loads the other's cursor only when the copy that it saw last says full or empty.
 *
 * A record never wraps.  Where the end of the ring is too near, a pad record fills it.  Since a record
 * is at most a quarter of the ring (+ 8), record and pad always fit into an empty ring.
 *
 *     0 <= tail - head <= capacity         both are multiples of 8, free-running, never masked but to index
 *
 * This file does not wait, does not know the arena, and does not believe the other side: the far cursor
 * and every record header are loaded once, checked, and used from the copy.  A side's own cursor lives in
 * private memory; the shared line only repeats it.
 *
 * Death: a producer that dies before its store of tail has published nothing; its bytes are overwritten by
 * the next one.  A consumer that dies before its store of head has taken nothing; the record is there
 * for the next one.  A dead side leaves exactly its cursor line, which its successor loads.
 */
#include <string.h>

#include "core.h"

#define NO_CURSOR 1u /* cursors are multiples of 8: an entry that was never used matches none */

static uint64_t record_bytes(uint32_t payload) {
    return (SHMQ_RECORD_HEADER + (uint64_t)payload + 7) & ~UINT64_C(7);
}
static shmq_a64 *header_at(const struct shmq_spsc *ring, uint64_t cursor) {
    return (shmq_a64 *)(void *)(ring->records + (cursor & (ring->capacity - 1)));
}
static uint64_t to_end(const struct shmq_spsc *ring, uint64_t cursor) {
    return ring->capacity - (cursor & (ring->capacity - 1));
}
static bool plausible(const struct shmq_spsc *ring, uint64_t tail, uint64_t head) {
    return tail - head <= ring->capacity && ((tail | head) & 7) == 0;
}

void shmq_spsc_init(struct shmq_spsc *ring, uint64_t first_cursor) {
    struct shmq_cursor_line *lines[] = {ring->tail, ring->head};
    for (int i = 0; i < 2; i++) {
        store_relaxed(&lines[i]->tally[0].at, NO_CURSOR);
        store_relaxed(&lines[i]->tally[1].at, first_cursor);
        store_relaxed(&lines[i]->cursor, first_cursor);
    }
}

/* Only a pair of cursors between which nobody moved says something. */
int shmq_spsc_valid(const struct shmq_spsc *ring) {
    for (int tries = 0; tries < 1000; tries++) {
        uint64_t head = load_acquire(&ring->head->cursor);
        uint64_t tail = load_acquire(&ring->tail->cursor);
        if (plausible(ring, tail, head)) return SHMQ_OK;
        if (load_acquire(&ring->head->cursor) == head) return SHMQ_CORRUPT;
    }
    return SHMQ_OK; /* the consumer is at work all the time: it checks each record itself */
}

uint64_t shmq_spsc_messages(const struct shmq_cursor_line *line) {
    for (int tries = 0; tries < 64; tries++) {
        uint64_t cursor = load_acquire(&line->cursor);
        for (int i = 0; i < 2; i++) {
            uint64_t at = load_acquire(&line->tally[i].at); /* T2 <- T1: then the count is its own */
            uint64_t messages = load_acquire(&line->tally[i].messages); /* before the second look */
            if (at == cursor && load_acquire(&line->tally[i].at) == at &&
                load_acquire(&line->cursor) == cursor)
                return messages;
        }
    }
    /* Garbage, or a side that is faster than we are: the later entry, so that a count never goes back. */
    uint64_t apart = load_relaxed(&line->tally[1].at) - load_relaxed(&line->tally[0].at);
    return load_relaxed(&line->tally[(int64_t)apart > 0 ? 1 : 0].messages);
}

/* Takes over a side: from nobody, or from the dead after the reaper's pass. */
int shmq_spsc_side_load(const struct shmq_spsc *ring, bool producer, struct shmq_spsc_side *side) {
    struct shmq_cursor_line *near = producer ? ring->tail : ring->head;
    struct shmq_cursor_line *far = producer ? ring->head : ring->tail;
    side->cursor = load_acquire(&near->cursor);
    side->ahead = side->cursor;
    side->far_seen = load_acquire(&far->cursor);
    side->messages = shmq_spsc_messages(near);
    side->flip = load_relaxed(&near->tally[1].at) == side->cursor ? 1 : 0;
    uint64_t tail = producer ? side->cursor : side->far_seen;
    uint64_t head = producer ? side->far_seen : side->cursor;
    return plausible(ring, tail, head) ? SHMQ_OK : SHMQ_CORRUPT;
}

/* The tally entry that is not in use gets the new pair; then the cursor makes it, and all that was
 * written before, visible.  Death between any two of the three stores: the old pair still matches. */
static void publish(struct shmq_cursor_line *line, struct shmq_spsc_side *side) {
    side->flip ^= 1;
    store_release(&line->tally[side->flip].messages, side->messages); /* T0: after the last cursor */
    store_release(&line->tally[side->flip].at, side->ahead);          /* T1 */
    side->cursor = side->ahead;
    store_release(&line->cursor, side->cursor); /* P1 -> C1 (tail), C2 -> P2 (head) */
}

static int refresh_far(const struct shmq_spsc *ring, const struct shmq_cursor_line *far,
                       struct shmq_spsc_side *side, bool producer) {
    uint64_t seen = load_acquire(&far->cursor); /* C1 or P2 */
    if (SHMQ_UNLIKELY(producer ? !plausible(ring, side->cursor, seen) : !plausible(ring, seen, side->cursor)))
        return SHMQ_CORRUPT;
    side->far_seen = seen;
    return SHMQ_OK;
}

bool shmq_spsc_room(const struct shmq_spsc *ring, uint64_t cursor, uint32_t bytes) {
    uint64_t size = record_bytes(bytes), end = to_end(ring, cursor);
    uint64_t need = size > end ? end + size : size;
    uint64_t used = cursor - load_acquire(&ring->head->cursor);
    /* More than a ring: `cursor` is old, other threads of ours have put since.  Worth another try. */
    return used > ring->capacity || used + need <= ring->capacity;
}

bool shmq_spsc_roomy(const struct shmq_spsc *ring, uint64_t cursor) {
    return cursor - load_acquire(&ring->head->cursor) <= ring->capacity / 4 * 3;
}

/* Writes a record's header behind what is reserved already.  The caller fills record->payload, may
 * reserve more, then commits all with one store.  Nothing is visible before that. */
int shmq_spsc_try_reserve(const struct shmq_spsc *ring, struct shmq_spsc_side *producer, uint32_t bytes,
                          uint16_t codec, uint16_t flags, struct shmq_record *record) {
    uint64_t size = record_bytes(bytes), end = to_end(ring, producer->ahead);
    uint64_t need = size > end ? end + size : size;
    if (SHMQ_UNLIKELY(producer->ahead + need - producer->far_seen > ring->capacity)) {
        int status = refresh_far(ring, ring->head, producer, true);
        if (status != SHMQ_OK) return status;
        if (producer->ahead + need - producer->far_seen > ring->capacity) return SHMQ_FULL;
    }
    if (SHMQ_UNLIKELY(size > end)) {
        /* end >= 8, because cursors and capacity are multiples of 8. */
        store_relaxed(header_at(ring, producer->ahead),
                      shmq_record_pack((uint32_t)(end - SHMQ_RECORD_HEADER), 0, SHMQ_RECORD_PAD));
        producer->ahead += end;
    }
    /* Relaxed: ordered by the release store of tail. */
    store_relaxed(header_at(ring, producer->ahead), shmq_record_pack(bytes, codec, flags));
    record->payload = (uint8_t *)(void *)header_at(ring, producer->ahead) + SHMQ_RECORD_HEADER;
    record->bytes = bytes;
    record->codec = codec;
    record->flags = flags;
    record->position = producer->position = producer->ahead;
    producer->ahead += size;
    producer->messages += 1;
    return SHMQ_OK;
}

void shmq_spsc_commit(const struct shmq_spsc *ring, struct shmq_spsc_side *producer) {
    publish(ring->tail, producer);
}

void shmq_spsc_abort(struct shmq_spsc_side *producer, const struct shmq_spsc_side *before) {
    producer->ahead = before->ahead;
    producer->messages = before->messages;
}

/* Decodes the record at `cursor`, of which `unread` bytes are published.  *next: where it ends. */
static int decode(const struct shmq_spsc *ring, uint64_t cursor, uint64_t unread, struct shmq_record *record,
                  uint64_t *next) {
    uint64_t header = load_relaxed(header_at(ring, cursor)); /* once; ordered by C1 */
    record->bytes = (uint32_t)header;
    record->codec = (uint16_t)(header >> 32);
    record->flags = (uint16_t)(header >> 48);
    record->position = cursor;
    record->payload = (uint8_t *)(void *)header_at(ring, cursor) + SHMQ_RECORD_HEADER;
    uint64_t size = record_bytes(record->bytes), end = to_end(ring, cursor);
    if (SHMQ_UNLIKELY(size > end || size > unread)) return SHMQ_CORRUPT;
    *next = cursor + size;
    return SHMQ_OK;
}

/* The next record that was not peeked yet; in place, valid until release.  Peeking a run and releasing
 * it whole is one store. */
int shmq_spsc_try_peek(const struct shmq_spsc *ring, struct shmq_spsc_side *consumer,
                       struct shmq_record *record) {
    uint64_t at = consumer->ahead, next;
    if (at == consumer->far_seen) {
        int status = refresh_far(ring, ring->tail, consumer, false);
        if (SHMQ_UNLIKELY(status != SHMQ_OK)) return status;
        if (at == consumer->far_seen) return SHMQ_EMPTY;
    }
    int status = decode(ring, at, consumer->far_seen - at, record, &next);
    if (SHMQ_UNLIKELY(status == SHMQ_OK && (record->flags & SHMQ_RECORD_PAD) != 0)) {
        /* A pad is published with the record behind it: it is never the last, nor followed by another. */
        at = next;
        status = at == consumer->far_seen ? SHMQ_CORRUPT
                                          : decode(ring, at, consumer->far_seen - at, record, &next);
        if (status == SHMQ_OK && (record->flags & SHMQ_RECORD_PAD) != 0) status = SHMQ_CORRUPT;
    }
    if (SHMQ_UNLIKELY(status != SHMQ_OK)) return status;
    if (SHMQ_UNLIKELY(record->bytes > ring->inline_bytes)) return SHMQ_CORRUPT;
    consumer->ahead = next;
    consumer->position = at;
    consumer->messages += 1;
    return SHMQ_OK;
}

void shmq_spsc_release(const struct shmq_spsc *ring, struct shmq_spsc_side *consumer) {
    publish(ring->head, consumer);
}

bool shmq_spsc_unread(const struct shmq_spsc *ring, uint64_t cursor) {
    return load_acquire(&ring->tail->cursor) != cursor;
}

int shmq_spsc_look(const struct shmq_spsc *ring, uint32_t index, struct shmq_record *record) {
    struct shmq_spsc_side onlooker = {.cursor = load_acquire(&ring->head->cursor)};
    onlooker.ahead = onlooker.cursor;
    onlooker.far_seen = load_acquire(&ring->tail->cursor);
    int status = plausible(ring, onlooker.far_seen, onlooker.cursor) ? SHMQ_OK : SHMQ_CORRUPT;
    for (uint32_t i = 0; status == SHMQ_OK; i++) {
        status = shmq_spsc_try_peek(ring, &onlooker, record);
        if (i == index) break;
    }
    /* What looks broken was overtaken, if the consumer moved meanwhile. */
    if (status == SHMQ_CORRUPT) full_fence(); /* what was read of records, before the head is read again */
    bool overtaken = status == SHMQ_CORRUPT && load_acquire(&ring->head->cursor) != onlooker.cursor;
    return overtaken ? SHMQ_EMPTY : status;
}
