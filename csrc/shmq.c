/* shmq.c: waits, and the blocking calls of the C interface.
 *
 * Idea: what is below only tries.  A blocking call is
 *
 *     loop: try -> done?  else wait until it seems possible -> loop
 *
 * once for puts and once for gets.  Whoever waits looks after the dead, each SHMQ_SLICE_NS.
 */
#include <stdlib.h>
#include <string.h>

#include "core.h"

#define GATHER_NS INT64_C(100000)

/* ---- wait ---- */

struct need {
    shmq_queue *q;
    uint64_t cursor; /* or wish */
    uint64_t bytes;
    enum shmq_lacking lacks;
    uint64_t next_due; /* at_least_once: when a message is due again, as of the wait's begin */
};

static bool not_running(const shmq_queue *q) {
    return load32_relaxed(&q->open) == 0 || load32_relaxed(&q->control->roles.lifecycle) != SHMQ_RUNNING;
}
static bool put_ready(void *context) {
    const struct need *need = context;
    shmq_queue *q = need->q;
    if (not_running(q)) return true;
    if (need->lacks == SHMQ_LACKS_ROOM) return shmq_ring_room(&q->ring, need->cursor, (uint32_t)need->bytes);
    if (need->lacks == SHMQ_LACKS_TURN) return shmq_keys_vacant(&q->keys);
    return shmq_arena_room(&q->arena, need->bytes) ||
           (q->ring.is_topic && shmq_share_reclaimable(&q->ring.topic, &q->arena));
}
static bool put_roomy(void *context) {
    const struct need *need = context;
    return not_running(need->q) || shmq_ring_roomy(&need->q->ring, need->cursor);
}
/* The word of a producer that died, if nobody has come since and this handle was not told yet; else 0. */
static uint64_t lost_producer(const shmq_queue *q) {
    const struct shmq_roles *roles = &q->control->roles;
    if ((!q->ring.is_spsc && !q->ring.is_topic) || load_acquire(&roles->producer) != 0) return 0;
    uint64_t lost = load_acquire(&roles->lost_producer);
    return lost != load_relaxed(&q->told_of) ? lost : 0;
}

/* Is a message due again, or is one due earlier than this wait reckons with? */
static bool due_again(const struct need *need) {
    uint64_t due = load_relaxed(need->q->pending.next_due);
    return due < need->next_due || (due != SHMQ_NEVER && due <= (uint64_t)shmq_now_ns());
}

static bool lease_ready(const struct need *need) {
    const shmq_queue *q = need->q;
    if (due_again(need) || load32_relaxed(&q->open) == 0 ||
        load32_relaxed(&q->control->roles.lifecycle) == SHMQ_STOPPED)
        return true;
    return (shmq_ring_unread(&q->ring, need->cursor) && shmq_pending_vacant(&q->pending)) || shmq_is_over(q);
}

static bool get_ready(void *context) {
    const struct need *need = context;
    shmq_queue *q = need->q;
    if (q->pending.count > 0) return lease_ready(need);
    if (lost_producer(q) != 0 || shmq_ring_unread(&q->ring, need->cursor)) return true;
    if (SHMQ_LIKELY(!not_running(q))) return false;
    /* Draining, and a producer is at work: its message is still to come, or it is dead. */
    bool to_come = load32_relaxed(&q->open) != 0 &&
                   load32_relaxed(&q->control->roles.lifecycle) == SHMQ_DRAINING &&
                   !shmq_ring_drained(&q->ring, need->cursor);
    return !to_come;
}

/* Where messages come all the time no wait lasts a slice, and yet somebody may be dead. */
static bool look_is_due(const shmq_queue *q) {
    return shmq_now_ns() - (int64_t)load_relaxed(&q->looked_ns) >= SHMQ_SLICE_NS;
}

/* How many dead it found. */
static uint32_t look_for_the_dead(shmq_queue *q) {
    uint32_t repaired;
    (void)shmq_recover_all(&q->segment, &q->ring, &q->arena, &q->pending, q->me.index, &repaired);
    if (repaired > 0) shmq_count(&q->counters->reaps, repaired);
    store_relaxed(&q->looked_ns, (uint64_t)shmq_now_ns());
    return repaired;
}

bool shmq_look_around(shmq_queue *q) { return look_is_due(q) && look_for_the_dead(q) > 0; }

static int wait_until(shmq_queue *q, struct shmq_eventcount *e, struct shmq_waiter *waiter,
                      shmq_ready_fn *ready, void *context, int64_t deadline_ns) {
    for (;;) {
        bool parked;
        int status = shmq_eventcount_wait(e, waiter, ready, context, deadline_ns, &parked);
        if (parked) shmq_count(&q->counters->parks, 1);
        if (parked && status == SHMQ_OK && look_is_due(q)) (void)look_for_the_dead(q);
        /* A slice or the deadline has passed: what we wait for may be in the hands of the dead. */
        if (status == SHMQ_NOT_READY || (status == SHMQ_EMPTY && parked)) {
            (void)look_for_the_dead(q);
            if (ready(context)) return SHMQ_OK;
        }
        if (status != SHMQ_NOT_READY) return status;
    }
}

/* Who waits has just tried.  In a segment with garbage "seems possible" may stay true and each try fail: then the
 * deadline ends it. */
static bool too_late(int64_t deadline_ns) {
    return deadline_ns > SHMQ_NO_WAIT && deadline_ns != SHMQ_FOREVER && shmq_now_ns() >= deadline_ns;
}

int shmq_wait_put(shmq_queue *q, uint64_t wish, enum shmq_lacking lacks, uint64_t bytes,
                  int64_t deadline_ns) {
    struct need need = {.q = q, .cursor = wish, .bytes = bytes, .lacks = lacks};
    shmq_recorder_note_once(q->counters, SHMQ_OP_WAIT_PUT, bytes);
    if (too_late(deadline_ns)) return SHMQ_EMPTY;
    /* A producer that takes each slot as it falls free meets the consumer at every one: let some gather. */
    if (lacks == SHMQ_LACKS_ROOM && load_relaxed(&q->put.waiter.spin_ns) > 0)
        shmq_linger(put_roomy, &need, GATHER_NS, deadline_ns);
    return wait_until(q, &q->control->not_full, &q->put.waiter, put_ready, &need, deadline_ns);
}

int shmq_wait_get(shmq_queue *q, uint64_t cursor, int64_t deadline_ns) {
    struct need need = {.q = q, .cursor = cursor, .next_due = SHMQ_NEVER};
    int64_t until = deadline_ns;
    shmq_recorder_note_once(q->counters, SHMQ_OP_WAIT_GET, 0);
    if (too_late(deadline_ns)) return SHMQ_EMPTY;
    if (q->pending.count > 0) {
        need.next_due = load_relaxed(q->pending.next_due);
        if (need.next_due < (uint64_t)deadline_ns) until = (int64_t)need.next_due;
    }
    int status = wait_until(q, &q->control->not_empty, &q->get.waiter, get_ready, &need, until);
    if (status == SHMQ_EMPTY && until < deadline_ns) status = SHMQ_OK; /* it is due */
    uint64_t lost = lost_producer(q);
    /* Before the last look: what the dead had put was published before its role was given up. */
    if (lost == 0 || status == SHMQ_INTERRUPTED || not_running(q) || shmq_ring_unread(&q->ring, cursor))
        return status;
    store_relaxed(&q->told_of, lost); /* relaxed: only threads of this handle care, and either may be told */
    return SHMQ_PEER_DEAD;
}

/* The ring, the table, the tasks: a message goes that way, and is seen in the next before it leaves the one.  A peer
 * that died took its tasks with it. */
static bool nothing_to_do(const shmq_queue *q) {
    uint64_t unacked, waiting;
    if (!shmq_ring_untouched(&q->ring)) return false;
    shmq_pending_count(&q->pending, &unacked, &waiting);
    if (unacked + waiting != 0) return false;
    for (uint32_t i = 0; i < q->segment.geometry.peers; i++) {
        const struct shmq_peer *peer = &q->segment.peers[i];
        bool lives = (load_acquire(&peer->word) & 0xff) == SHMQ_PEER_LIVE;
        if (lives && load_acquire(&peer->unfinished) != 0) return false;
    }
    return true;
}

static uint64_t tails(const shmq_queue *q) {
    return load_acquire(&q->control->tail.cursor) + load_acquire(&q->control->urgent_tail.cursor);
}

/* A message that is put behind the scan, by one who acks his only then, has moved a tail before it was there. */
static bool all_done(const shmq_queue *q) {
    uint64_t before = tails(q);
    if (!nothing_to_do(q)) return false;
    full_fence(); /* what was looked at, then the tails: whoever acked behind a put is seen with that put */
    return tails(q) == before;
}

static bool done_ready(void *context) {
    const struct need *need = context;
    return load32_relaxed(&need->q->open) == 0 || all_done(need->q);
}

int shmq_wait_done(shmq_queue *q, int64_t deadline_ns) {
    struct need need = {.q = q};
    int status = wait_until(q, &q->control->not_full, &q->put.waiter, done_ready, &need, deadline_ns);
    return status == SHMQ_OK && load32_relaxed(&q->open) == 0 ? SHMQ_CLOSED : status;
}

/* Death behind the arming: whoever wakes rings in vain, once. */
static int arm(shmq_queue *q, struct shmq_eventcount *e, shmq_ready_fn *ready, struct need *need, uint32_t op,
               uint64_t doorbell, enum shmq_arming how) {
    if (shmq_usable(q) != SHMQ_OK || ready(need)) return SHMQ_OK;
    bool news = shmq_bell_arm(&q->segment, q->me.index, e, doorbell, how);
    bool sure = how == SHMQ_ARM_SURELY ? shmq_barrier() : !news;
    if ((news || how == SHMQ_ARM_SURELY) && ready(need)) {
        shmq_bell_disarm(&q->segment, q->me.index, e);
        return SHMQ_OK;
    }
    if (news) {
        shmq_recorder_note_once(q->counters, op, need->bytes);
        shmq_count(&q->counters->parks, 1);
    }
    return sure ? SHMQ_EMPTY : SHMQ_NOT_READY;
}

int shmq_arm_put(shmq_queue *q, uint64_t wish, enum shmq_lacking lacks, uint64_t bytes, uint64_t doorbell,
                 enum shmq_arming how) {
    struct need need = {.q = q, .cursor = wish, .bytes = bytes, .lacks = lacks};
    return arm(q, &q->control->not_full, put_ready, &need, SHMQ_OP_WAIT_PUT, doorbell, how);
}

int shmq_arm_get(shmq_queue *q, uint64_t cursor, uint64_t doorbell, enum shmq_arming how) {
    struct need need = {.q = q, .cursor = cursor, .next_due = SHMQ_NEVER};
    if (q->pending.count > 0) need.next_due = load_relaxed(q->pending.next_due);
    return arm(q, &q->control->not_empty, get_ready, &need, SHMQ_OP_WAIT_GET, doorbell, how);
}

void shmq_look_now(shmq_queue *q) {
    if (shmq_usable(q) == SHMQ_OK) (void)look_for_the_dead(q);
}

/* A failed try becomes a wait.  SHMQ_OK: try again. */
static int wait_after(shmq_queue *q, uint32_t urgent, int tried, uint32_t record_bytes, uint64_t block_bytes,
                      int64_t deadline_ns) {
    if (tried != SHMQ_FULL && tried != SHMQ_ARENA_FULL && tried != SHMQ_KEYS_BUSY) return tried;
    if (deadline_ns <= SHMQ_NO_WAIT) return shmq_look_around(q) ? SHMQ_OK : tried;
    shmq_pin(q);
    enum shmq_lacking lacks = tried == SHMQ_ARENA_FULL  ? SHMQ_LACKS_PAGES
                              : tried == SHMQ_KEYS_BUSY ? SHMQ_LACKS_TURN
                                                        : SHMQ_LACKS_ROOM;
    int status = shmq_wait_put(q, shmq_ring_wish(&q->ring, &q->put.ring, urgent), lacks,
                               lacks == SHMQ_LACKS_PAGES ? block_bytes : record_bytes, deadline_ns);
    shmq_unpin(q);
    return status == SHMQ_EMPTY ? tried : status;
}

/* ---- the blocking calls of the C interface ---- */

static int may_put(shmq_queue *q) {
    int status = shmq_put_begin(q);
    if (SHMQ_LIKELY(status != SHMQ_NOT_READY)) return status;
    status = shmq_settle_roles(q);
    return status == SHMQ_OK ? shmq_put_begin(q) : status;
}
static int may_get(shmq_queue *q) {
    int status = shmq_get_begin(q);
    if (SHMQ_LIKELY(status != SHMQ_NOT_READY)) return status;
    status = shmq_settle_roles(q);
    return status == SHMQ_OK ? shmq_get_begin(q) : status;
}

static int put_inline(shmq_queue *q, uint64_t key, uint16_t codec, const void *meta, uint32_t meta_bytes,
                      const void *data, uint32_t bytes, int64_t deadline_ns) {
    for (;;) {
        int status = may_put(q);
        if (status == SHMQ_OK) status = shmq_key_begin(q, key);
        if (status == SHMQ_OK) status = shmq_try_put_inline(q, codec, meta, meta_bytes, data, bytes);
        shmq_key_end(q);
        if (status != SHMQ_OK)
            status = wait_after(q, q->put.ring.urgent, status, meta_bytes + bytes, 0, deadline_ns);
        else return SHMQ_OK;
        if (status != SHMQ_OK) return status;
    }
}

int shmq_loan(shmq_queue *q, uint64_t bytes, int64_t deadline_ns, shmq_block **block) {
    for (;;) {
        int status = may_put(q);
        if (status == SHMQ_OK) status = shmq_try_loan(q, bytes, block);
        if (status == SHMQ_OK) return SHMQ_OK;
        status = wait_after(q, q->put.ring.urgent, status, 0, bytes, deadline_ns);
        if (status != SHMQ_OK) return status;
    }
}

static int publish_as(shmq_block *b, uint64_t key, uint16_t codec, const void *meta, uint32_t meta_bytes,
                      int64_t deadline_ns) {
    for (;;) {
        int status = may_put(b->queue);
        if (status == SHMQ_OK) status = shmq_key_begin(b->queue, key);
        if (status == SHMQ_OK) status = shmq_try_publish(b, codec, meta, meta_bytes, b->bytes);
        shmq_key_end(b->queue);
        if (status == SHMQ_OK) return SHMQ_OK;
        status = wait_after(b->queue, b->urgent, status, sizeof(uint64_t), 0, deadline_ns);
        if (status != SHMQ_OK) return status;
    }
}

static int put_block(shmq_queue *q, uint64_t key, uint16_t codec, const void *meta, uint32_t meta_bytes,
                     const void *data, uint64_t bytes, int64_t deadline_ns) {
    shmq_block *b;
    int status = shmq_loan(q, bytes, deadline_ns, &b);
    if (status != SHMQ_OK) return status;
    if (bytes > 0) memcpy(b->data, data, bytes);
    status = publish_as(b, key, codec, meta, meta_bytes, deadline_ns);
    shmq_block_release(b);
    return status;
}

int shmq_put(shmq_queue *q, const void *data, uint64_t bytes, int64_t deadline_ns) {
    if (q == NULL || (data == NULL && bytes > 0)) return SHMQ_INVALID;
    if (bytes <= q->ring.inline_bytes)
        return put_inline(q, 0, SHMQ_RAW, NULL, 0, data, (uint32_t)bytes, deadline_ns);
    return put_block(q, 0, SHMQ_RAW, NULL, 0, data, bytes, deadline_ns);
}

int shmq_put_keyed(shmq_queue *q, const void *data, uint64_t bytes, uint64_t key, int64_t deadline_ns) {
    if (q == NULL || (data == NULL && bytes > 0) || q->keys.count == 0) return SHMQ_INVALID;
    if (key == 0) key = 1;
    if (bytes <= q->ring.inline_bytes)
        return put_inline(q, key, SHMQ_RAW, NULL, 0, data, (uint32_t)bytes, deadline_ns);
    int status = may_put(q);
    if (status != SHMQ_OK) return status;
    if (shmq_key_known(q, key)) return SHMQ_REPEAT;
    return put_block(q, key, SHMQ_RAW, NULL, 0, data, bytes, deadline_ns);
}

static bool tensor_ok(const shmq_tensor *t) {
    return t->ndim <= 11 && (t->order == 'C' || t->order == 'F') && t->dtype >= SHMQ_BOOL &&
           t->dtype <= SHMQ_FLOAT8_E8M0FNU;
}

int shmq_put_tensor(shmq_queue *q, const void *data, uint64_t bytes, const shmq_tensor *tensor,
                    int64_t deadline_ns) {
    if (q == NULL || tensor == NULL || !tensor_ok(tensor) || (data == NULL && bytes > 0)) return SHMQ_INVALID;
    if (bytes + sizeof *tensor <= q->ring.inline_bytes && bytes < 1024)
        return put_inline(q, 0, SHMQ_TENSOR, tensor, sizeof *tensor, data, (uint32_t)bytes, deadline_ns);
    return put_block(q, 0, SHMQ_TENSOR, tensor, sizeof *tensor, data, bytes, deadline_ns);
}

int shmq_put_many(shmq_queue *q, const void *data, uint64_t each, uint64_t n, int64_t deadline_ns,
                  uint64_t *done) {
    const uint8_t *from = data;
    *done = 0;
    if (q == NULL || (data == NULL && each > 0)) return SHMQ_INVALID;
    if (each > q->ring.inline_bytes) return SHMQ_TOO_LARGE;
    while (*done < n) {
        uint64_t run = 0;
        int status = may_put(q);
        while (status == SHMQ_OK && *done + run < n) {
            struct shmq_record record;
            status = shmq_try_reserve(q, (uint32_t)each, SHMQ_RAW, 0, &record);
            if (status != SHMQ_OK) break;
            if (each > 0) memcpy(record.payload, from + (*done + run) * each, each);
            if (!q->ring.is_spsc) shmq_commit(q); /* a slot at a time */
            run += 1;
        }
        if (run > 0 && q->ring.is_spsc) shmq_commit(q);
        if (run > 0) shmq_put_done(q, run, run * each);
        *done += run;
        if (status != SHMQ_OK)
            status = wait_after(q, q->put.ring.urgent, status, (uint32_t)each, 0, deadline_ns);
        if (status != SHMQ_OK) return status;
    }
    return SHMQ_OK;
}

int shmq_publish(shmq_block *b, const shmq_tensor *tensor, int64_t deadline_ns) {
    if (b == NULL || (tensor != NULL && !tensor_ok(tensor))) return SHMQ_INVALID;
    int status = tensor == NULL ? publish_as(b, 0, SHMQ_RAW, NULL, 0, deadline_ns)
                                : publish_as(b, 0, SHMQ_TENSOR, tensor, sizeof *tensor, deadline_ns);
    if (status == SHMQ_OK) shmq_block_release(b);
    return status;
}

void shmq_message_of_block(shmq_block *block, uint16_t codec, const struct shmq_block_header *h,
                           shmq_message *m) {
    m->block = block;
    m->codec = codec;
    m->unused = 0;
    m->data = block->data;
    m->bytes = block->bytes;
    m->meta_bytes = h->meta_bytes == sizeof m->tensor ? (uint32_t)sizeof m->tensor : 0;
    memcpy(&m->tensor, h->meta, m->meta_bytes);
}

int shmq_copy_inline(shmq_queue *q, const struct shmq_record *record, shmq_message *m) {
    m->block = NULL;
    m->codec = record->codec;
    m->unused = 0;
    if (q->inline_copy == NULL && (q->inline_copy = malloc(q->ring.inline_bytes)) == NULL)
        return SHMQ_OUT_OF_SPACE;
    m->meta_bytes =
        record->codec == SHMQ_TENSOR && record->bytes >= sizeof m->tensor ? (uint32_t)sizeof m->tensor : 0;
    memcpy(&m->tensor, record->payload, m->meta_bytes);
    m->bytes = record->bytes - m->meta_bytes;
    m->data = q->inline_copy;
    memcpy(m->data, record->payload + m->meta_bytes, m->bytes);
    return SHMQ_OK;
}

static int receive(shmq_queue *q, const struct shmq_record *record, shmq_message *m) {
    shmq_block *block;
    const struct shmq_block_header *h;
    if ((record->flags & SHMQ_RECORD_BLOCK) == 0) return shmq_copy_inline(q, record, m);
    int status = shmq_try_lease(q, record, NULL, &block, &h);
    if (status == SHMQ_OK) shmq_message_of_block(block, record->codec, h, m);
    return status;
}

int shmq_get(shmq_queue *q, shmq_message *m, int64_t deadline_ns) {
    if (q == NULL || m == NULL || q->pending.count > 0) return SHMQ_INVALID;
    for (;;) {
        struct shmq_record record;
        int status = may_get(q);
        struct shmq_spsc_side before = q->get.ring.spsc;
        if (status == SHMQ_OK) status = shmq_try_next(q, &record);
        if (status == SHMQ_OK) {
            status = receive(q, &record, m);
            if (status == SHMQ_LOOK_AGAIN) continue;
            if (status == SHMQ_OK) shmq_taken(q, 1, m->bytes);
            else shmq_put_back(q, &before); /* not taken: it is still there */
            return status;
        }
        if (status == SHMQ_EMPTY && deadline_ns <= SHMQ_NO_WAIT && shmq_look_around(q)) continue;
        if (status != SHMQ_EMPTY || deadline_ns <= SHMQ_NO_WAIT) return status;
        shmq_pin(q);
        status = shmq_wait_get(q, shmq_ring_cursor(&q->ring, &q->get.ring), deadline_ns);
        shmq_unpin(q);
        if (status != SHMQ_OK) return status;
    }
}

void shmq_message_release(shmq_message *m) {
    if (m == NULL) return;
    shmq_block_release(m->block);
    m->block = NULL;
    m->data = NULL;
}
