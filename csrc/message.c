/* message.c: puts, loans and gets that only try, each with its wake-up behind it.
 *
 * The path of a message:
 *
 *     put: reserve (ring) [-> block: loan, fill, send (arena)] -> commit (ring) -> wake
 *     get: peek (ring)    [-> block: lease (arena)]            -> release (ring) -> wake
 *
 * A block is reachable from a shared word at every instruction: LOANED by us, then INFLIGHT at the position of
 * the reserved record, and only then is the record published; LEASED by us, and only then is it released.
 */
#include <stdlib.h>
#include <string.h>

#include "core.h"

#define TAKE_SPINS 40 /* about a microsecond */

/* ---- put ---- */

int shmq_try_reserve(shmq_queue *q, uint32_t bytes, uint16_t codec, uint16_t flags,
                     struct shmq_record *record) {
    for (;;) {
        int status = shmq_ring_try_reserve(&q->ring, &q->put.ring, bytes, codec, flags, record);
        if (SHMQ_LIKELY(status != SHMQ_LOOK_AGAIN)) return status;
        shmq_share_clear(&q->ring.topic, &q->put.ring.topic, &q->arena);
    }
}

/* A message that has a key, or that pushes another one out of a topic's history. */
static SHMQ_APART void commit_and_more(shmq_queue *q) {
    if (q->put.key != 0) shmq_keys_publishing(&q->keys);
    shmq_ring_commit(&q->ring, &q->put.ring);
    if (q->put.key != 0) { /* death before it: the reaper sees that no slot is ours, and remembers the key */
        shmq_keys_published(&q->keys);
        q->put.key = 0;
        (void)shmq_wake(q, &q->control->not_full); /* whoever waits for its turn */
    }
    if (q->ring.topic.history != 0) /* death between: its block goes with its slot */
        shmq_share_expire(&q->ring.topic, &q->put.ring.topic, &q->arena);
}

void shmq_commit(shmq_queue *q) {
    if (SHMQ_UNLIKELY((q->put.key | q->ring.topic.history) != 0)) commit_and_more(q);
    else shmq_ring_commit(&q->ring, &q->put.ring);
}

/* ---- a key ---- */

static void count_repeat(shmq_queue *q) { (void)add_relaxed(&q->control->keys.repeats, 1); /* for people */ }

int shmq_key_begin_turn(shmq_queue *q, uint64_t key) {
    if (q->keys.count == 0) return SHMQ_INVALID;
    int status = shmq_keys_try_begin(&q->keys, key);
    if (status == SHMQ_OK) q->put.key = key;
    if (status != SHMQ_REPEAT) return status;
    count_repeat(q);
    (void)shmq_wake(q, &q->control->not_full); /* it was our turn for a moment */
    return status;
}

void shmq_key_give_up(shmq_queue *q) {
    q->put.key = 0;
    shmq_keys_give_up(&q->keys);
    (void)shmq_wake(q, &q->control->not_full);
}

bool shmq_key_known(shmq_queue *q, uint64_t key) {
    if (SHMQ_LIKELY(key == 0) || q->keys.count == 0 || !shmq_keys_known(&q->keys, key)) return false;
    count_repeat(q);
    return true;
}

static void put_done(shmq_queue *q, uint32_t op, uint64_t messages, uint64_t bytes) {
    if (SHMQ_UNLIKELY(shmq_wake(q, &q->control->not_empty))) shmq_count(&q->counters->wakes, 1);
    shmq_count(&q->counters->messages_put, messages);
    shmq_count(&q->counters->bytes_put, bytes);
    shmq_recorder_note_often(q->counters, op, shmq_ring_position(&q->ring, &q->put.ring));
}

static void put_commit(shmq_queue *q, uint32_t op, uint64_t messages, uint64_t bytes) {
    shmq_commit(q);
    put_done(q, op, messages, bytes);
}

void shmq_put_commit(shmq_queue *q, uint64_t messages, uint64_t bytes) {
    put_commit(q, SHMQ_OP_PUT, messages, bytes);
}

void shmq_put_done(shmq_queue *q, uint64_t messages, uint64_t bytes) {
    put_done(q, messages == 1 ? SHMQ_OP_PUT : SHMQ_OP_PUT_MANY, messages, bytes);
}

int shmq_try_put_inline(shmq_queue *q, uint16_t codec, const void *meta, uint32_t meta_bytes,
                        const void *data, uint32_t bytes) {
    struct shmq_record record;
    int status = shmq_try_reserve(q, meta_bytes + bytes, codec, 0, &record);
    if (SHMQ_UNLIKELY(status != SHMQ_OK)) return status;
    if (meta_bytes > 0) memcpy(record.payload, meta, meta_bytes);
    if (bytes > 0) memcpy(record.payload + meta_bytes, data, bytes);
    shmq_put_commit(q, 1, meta_bytes + bytes);
    return SHMQ_OK;
}

int shmq_try_loan(shmq_queue *q, uint64_t bytes, shmq_block **block) {
    shmq_block *b = malloc(sizeof *b);
    if (b == NULL) return SHMQ_OUT_OF_SPACE;
    /* Death behind this line: LOANED(us), the reaper frees it. */
    int status = shmq_arena_try_loan(&q->arena, bytes, &b->page, &b->word);
    while (status == SHMQ_ARENA_FULL && q->ring.is_topic && shmq_share_reclaim(&q->ring.topic, &q->arena))
        status = shmq_arena_try_loan(&q->arena, bytes, &b->page, &b->word);
    if (status != SHMQ_OK) {
        free(b);
        return status;
    }
    b->data = shmq_arena_data(&q->arena, b->page);
    b->bytes = bytes;
    b->queue = q;
    b->urgent = q->put.ring.urgent;
    shmq_hold_block(q, b, SHMQ_OP_LOAN);
    *block = b;
    return SHMQ_OK;
}

static int try_publish(shmq_block *b, uint16_t codec, const void *meta, uint32_t meta_bytes, uint64_t bytes) {
    shmq_queue *q = b->queue;
    struct shmq_spsc_side before = q->put.ring.spsc;
    struct shmq_record record;
    if (b->word == 0 || meta_bytes > SHMQ_META_BYTES || !shmq_arena_holds(&q->arena, b->page, b->word, bytes))
        return SHMQ_INVALID;
    int status = shmq_try_reserve(q, sizeof(uint64_t), codec, SHMQ_RECORD_BLOCK, &record);
    if (status != SHMQ_OK) return status;
    struct shmq_block_header *h = &q->arena.headers[b->page];
    h->payload_bytes = bytes;
    h->codec = codec;
    h->flags = 0;
    h->meta_bytes = meta_bytes;
    h->deliveries = 0;
    h->producer = q->me.index;
    if (meta_bytes > 0) memcpy(h->meta, meta, meta_bytes);
    /* N1 -> N2: who finds this handle in a slot finds the pages as the slot's last reader left them. */
    store_release((shmq_a64 *)(void *)record.payload, shmq_handle(b->page, shmq_word_generation(b->word)));
    if (q->ring.is_topic) shmq_arena_share(&q->arena, b->page, b->word);
    /* Death before: LOANED, freed.  Death between this and the commit: INFLIGHT at a position that was never
     * published, freed.  Death after the commit: the message is delivered. */
    status = shmq_arena_send(&q->arena, b->page, &b->word, record.position);
    if (status != SHMQ_OK) {
        shmq_ring_abort(&q->ring, &q->put.ring, &before);
        return status;
    }
    shmq_not_ours(b); /* the ring's now; what is left of the loan is the right to look at the memory */
    put_commit(q, SHMQ_OP_PUBLISH, 1, bytes);
    return SHMQ_OK;
}

/* Into the lane that it was lent for. */
int shmq_try_publish(shmq_block *b, uint16_t codec, const void *meta, uint32_t meta_bytes, uint64_t bytes) {
    struct shmq_ring_side *side = &b->queue->put.ring;
    uint32_t before = side->urgent;
    side->urgent = b->urgent;
    int status = try_publish(b, codec, meta, meta_bytes, bytes);
    side->urgent = before;
    return status;
}

void shmq_block_give_back(shmq_block *b) {
    shmq_queue *q = b->queue;
    if (b->word == 0) return;
    if (!shmq_is_forked(q)) { /* a forked child's copy of a block owns nothing */
        if (shmq_word_state(b->word) == SHMQ_PAGE_INFLIGHT) /* a subscriber's */
            shmq_share_release(&q->ring.topic, &q->arena, b->page, b->word);
        else if (shmq_word_argument(b->word) != 0) /* a message's that is, or was, to be acknowledged */
            shmq_keep_release(&q->arena, &q->pending, b->page, b->word);
        else (void)shmq_arena_free(&q->arena, b->page, b->word);
        (void)shmq_wake(q, &q->control->not_full); /* not counted: any thread may be here */
        shmq_note(q, SHMQ_OP_RELEASE, b->page);
    }
    shmq_not_ours(b);
}

void shmq_block_release(shmq_block *b) {
    if (b == NULL) return;
    shmq_queue *q = b->queue;
    shmq_block_give_back(b);
    free(b);
    shmq_unpin(q);
    shmq_release_struct(q);
}

/* ---- get ---- */

int shmq_try_next(shmq_queue *q, struct shmq_record *record) {
    int status = shmq_ring_try_peek(&q->ring, &q->get.ring, record);
    if (status == SHMQ_EMPTY && load32_acquire(&q->control->roles.lifecycle) != SHMQ_RUNNING) {
        /* L2 <- L1: what was put before the shutdown is visible now. */
        status = shmq_ring_try_peek(&q->ring, &q->get.ring, record);
        if (status == SHMQ_EMPTY && shmq_ring_drained(&q->ring, shmq_ring_cursor(&q->ring, &q->get.ring)))
            status = SHMQ_SHUT_DOWN;
    }
    if (SHMQ_UNLIKELY((q->get.ring.mpmc.tombs | q->get.ring.topic.passed_over) != 0)) {
        if (q->ring.is_topic) (void)shmq_share_trim(&q->ring.topic, &q->arena);
        q->get.ring.mpmc.tombs = q->get.ring.topic.passed_over = 0;
        (void)shmq_wake(q, &q->control->not_full); /* room that no message left behind */
    }
    return status;
}

static int lease(shmq_queue *q, uint64_t handle, uint64_t position, shmq_block *b) {
    if (!q->ring.is_topic) return shmq_arena_lease(&q->arena, handle, position, 0, &b->page, &b->word);
    int status = shmq_share_lease(&q->arena, handle, position, &b->page, &b->word);
    return status == SHMQ_LOOK_AGAIN ? shmq_topic_skip(&q->ring.topic, &q->get.ring.topic) : status;
}

/* `d`: of a message that is to be acknowledged, for the first time or again; or NULL. */
static int lease_of(shmq_queue *q, const struct shmq_record *record, const struct shmq_delivery *d,
                    shmq_block *b) {
    if (record->bytes != sizeof(uint64_t)) return SHMQ_CORRUPT; /* a shorter one may end with the mapping */
    uint64_t handle = load_relaxed((shmq_a64 *)(void *)record->payload);
    if (d == NULL) return lease(q, handle, record->position, b);
    return d->again ? shmq_keep_take(&q->arena, &q->pending, d, handle, &b->page, &b->word)
                    : shmq_keep_lease(&q->arena, d, handle, record->position, &b->page, &b->word);
}

/* Leases the block that a peeked record names; the caller then calls shmq_taken, or shmq_lease_done. */
int shmq_try_lease(shmq_queue *q, const struct shmq_record *record, const struct shmq_delivery *d,
                   shmq_block **block, const struct shmq_block_header **header) {
    shmq_block *b = malloc(sizeof *b);
    if (b == NULL) return SHMQ_OUT_OF_SPACE;
    int status = lease_of(q, record, d, b);
    /* Death here: LEASED(us) and still at the head; the reaper puts it back in flight.  Topic: a hold in our name,
     * which the reaper ends. */
    if (status == SHMQ_OK) {
        struct shmq_block_header *h = &q->arena.headers[b->page];
        b->bytes = *(volatile uint64_t *)&h->payload_bytes; /* once: it is checked, then used */
        if (!shmq_arena_holds(&q->arena, b->page, b->word, b->bytes)) {
            status = SHMQ_CORRUPT;
            if (q->ring.is_topic) shmq_arena_let_go(&q->arena, b->page, false);
        }
        *header = h;
    }
    if (status != SHMQ_OK) {
        free(b);
        return status;
    }
    b->data = shmq_arena_data(&q->arena, b->page);
    b->queue = q;
    b->urgent = 0;
    shmq_hold_block(q, b, SHMQ_OP_LEASE);
    *block = b;
    return SHMQ_OK;
}

/* The way back, for want of memory: the record is still the next one. */
void shmq_unlease(shmq_block *b, const struct shmq_record *record) {
    shmq_queue *q = b->queue;
    if (!q->ring.is_topic && shmq_arena_send(&q->arena, b->page, &b->word, record->position) == SHMQ_OK)
        shmq_not_ours(b);
    shmq_block_release(b);
}

void shmq_put_back(shmq_queue *q, const struct shmq_spsc_side *before) {
    shmq_ring_unpeek(&q->ring, &q->get.ring, before);
    (void)shmq_wake(q, &q->control->not_empty); /* another consumer may have it */
}

void shmq_count_got(shmq_queue *q, uint64_t bytes) {
    shmq_count(&q->counters->messages_got, 1);
    shmq_count(&q->counters->bytes_got, bytes);
}

void shmq_taken(shmq_queue *q, uint64_t messages, uint64_t bytes) {
    shmq_ring_release(&q->ring, &q->get.ring);
    if (SHMQ_UNLIKELY(shmq_wake(q, &q->control->not_full))) shmq_count(&q->counters->wakes, 1);
    shmq_count(&q->counters->messages_got, messages);
    shmq_count(&q->counters->bytes_got, bytes);
    shmq_recorder_note_often(q->counters, messages == 1 ? SHMQ_OP_GET : SHMQ_OP_GET_MANY,
                             shmq_ring_position(&q->ring, &q->get.ring));
}

bool shmq_spin_get(shmq_queue *q) {
    if (load_relaxed(&q->get.waiter.spin_ns) == 0) return false;
    for (int i = 0; i < TAKE_SPINS; i++) {
        if (shmq_ring_unread(&q->ring, shmq_ring_cursor(&q->ring, &q->get.ring))) return true;
        cpu_relax();
    }
    return false;
}

/* The ring first: a message goes from there to the table, and comes back to no slot that it has left. */
bool shmq_is_over(const shmq_queue *q) {
    return load32_relaxed(&q->control->roles.lifecycle) == SHMQ_DRAINING && shmq_ring_untouched(&q->ring) &&
           !shmq_pending_others_hold(&q->pending);
}
