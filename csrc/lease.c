/* lease.c: delivery at least once: lease, acknowledge, give back.
 *
 * Idea: a message is leased in two steps, with the caller's copying between them:
 *
 *     begin   new:    slot READY -> READING(me), entry VACANT -> FILLING(me), block -> LEASED(me, entry)
 *             again:  entry WAITING or overdue -> MOVING(me), block RETURNED -> LEASED(me, entry), or a copy
 *     (the caller copies what lies in-line: nobody can take it from us meanwhile)
 *     done    new:    entry filled, -> UNACKED(me) (L1); slot -> FREE for the next lap (L2)
 *             again:  entry counted, -> UNACKED(me)
 *
 * Death before L1: the slot becomes READY again.  Between L1 and L2: the entry is the truth, and the reaper frees the
 * slot (recover.c).  After that the message belongs to the entry alone.
 */
#include "core.h"

static int begin_again(shmq_queue *q, uint64_t now_ns, struct shmq_delivery *d, struct shmq_record *r,
                       shmq_block **block, const struct shmq_block_header **header) {
    int status = shmq_pending_record(&q->pending, d, q->ring.inline_bytes, r);
    if (status == SHMQ_OK && (r->flags & SHMQ_RECORD_BLOCK) != 0)
        status = shmq_try_lease(q, r, d, block, header);
    if (status == SHMQ_OK) return SHMQ_OK;
    /* No room for a copy now: later.  Death before it: MOVING(us), waits again. */
    shmq_pending_put_back(&q->pending, d, now_ns + SHMQ_SLICE_NS / 10);
    return status;
}

static int begin_new(shmq_queue *q, struct shmq_delivery *d, struct shmq_record *r, shmq_block **block,
                     const struct shmq_block_header **header) {
    if (!shmq_pending_vacant(&q->pending)) return shmq_is_over(q) ? SHMQ_SHUT_DOWN : SHMQ_UNACKED_FULL;
    int status = shmq_try_next(q, r);
    if (status == SHMQ_SHUT_DOWN && !shmq_is_over(q)) return SHMQ_EMPTY; /* what others hold may come to us */
    if (status == SHMQ_EMPTY && shmq_is_over(q)) return SHMQ_SHUT_DOWN;  /* garbage: hint and slots differ */
    if (status != SHMQ_OK) return status;
    status = shmq_pending_try_claim(&q->pending, d);
    if (status == SHMQ_OK && (r->flags & SHMQ_RECORD_BLOCK) != 0 &&
        (status = shmq_try_lease(q, r, d, block, header)) != SHMQ_OK)
        shmq_pending_give_up(&q->pending, d);
    if (status != SHMQ_OK) shmq_put_back(q, &q->get.ring.spsc);
    return status;
}

/* SHMQ_ARENA_FULL: a message is due again, and finds no room for the copy of its block; those behind it pass. */
int shmq_lease_begin(shmq_queue *q, struct shmq_delivery *d, struct shmq_record *r, shmq_block **block,
                     const struct shmq_block_header **header) {
    uint64_t now = (uint64_t)shmq_now_ns();
    *block = NULL;
    d->again = shmq_pending_try_take(&q->pending, now, d) == SHMQ_OK;
    if (!d->again) return begin_new(q, d, r, block, header);
    int status = begin_again(q, now, d, r, block, header);
    if (status != SHMQ_ARENA_FULL) return status;
    d->again = 0;
    status = begin_new(q, d, r, block, header);
    return status == SHMQ_EMPTY || status == SHMQ_UNACKED_FULL ? SHMQ_ARENA_FULL : status;
}

/* For want of memory: it is there again. */
void shmq_lease_cancel(shmq_queue *q, struct shmq_delivery *d, const struct shmq_record *r,
                       shmq_block *block) {
    if (d->again) {
        shmq_block_release(block);
        shmq_pending_put_back(&q->pending, d, 0);
        (void)shmq_wake(q, &q->control->not_empty); /* another consumer may have it */
        return;
    }
    if (block != NULL) shmq_unlease(block, r); /* first: the message must not be there before its block is */
    shmq_pending_give_up(&q->pending, d);
    shmq_put_back(q, &q->get.ring.spsc);
}

int shmq_lease_done(shmq_queue *q, struct shmq_delivery *d, const struct shmq_record *r, uint64_t bytes) {
    uint64_t now = (uint64_t)shmq_now_ns();
    d->position = r->position;
    if (d->again) {
        shmq_pending_deliver(&q->pending, d, now);
        shmq_count_got(q, bytes);
    } else {
        const struct shmq_slot *slot = shmq_ring_slot(&q->ring, &q->get.ring);
        shmq_pending_fill(&q->pending, d, slot, r, now); /* L1 */
        shmq_taken(q, 1, bytes);                         /* L2 */
    }
    /* A thread that closes the handle stores that, then looks for what is UNACKED: one of the two sees the other's
     * store, both are seq_cst. */
    if (SHMQ_LIKELY(load32_seq_cst(&q->open) != 0)) return SHMQ_OK;
    (void)shmq_pending_nack(&q->pending, d, 0);
    return SHMQ_CLOSED;
}

/* Consumers wait for it, or for room in the table; producers that join, for the last one. */
static void tell(shmq_queue *q) {
    (void)shmq_wake(q, &q->control->not_empty);
    (void)shmq_wake(q, &q->control->not_full);
}

/* A forked child that attached anew still has its parent's deliveries: they are not its own to settle. */
static int may_settle(const shmq_queue *q, const struct shmq_delivery *d) {
    int status = q == NULL || d == NULL ? SHMQ_INVALID : shmq_usable(q);
    if (status != SHMQ_OK) return status;
    if (q->observer || d->entry >= q->pending.count) return SHMQ_INVALID;
    return shmq_slot_owner(d->word) == q->pending.owner ? SHMQ_OK : SHMQ_STALE;
}

int shmq_ack(shmq_queue *q, const struct shmq_delivery *d) {
    uint64_t handle;
    int status = may_settle(q, d);
    if (status != SHMQ_OK) return status;
    status =
        shmq_pending_ack(&q->pending, d, &handle); /* K3.  Death behind it: LEASED(us), not named: freed */
    if (status != SHMQ_OK) return status;
    if (handle != SHMQ_NO_HANDLE) shmq_keep_acked(&q->arena, &q->pending, handle); /* K4 */
    tell(q);
    return SHMQ_OK;
}

int shmq_nack(shmq_queue *q, const struct shmq_delivery *d, uint64_t delay_ns) {
    int status = may_settle(q, d);
    if (status != SHMQ_OK) return status;
    uint64_t due = delay_ns == 0 ? 0 : (uint64_t)shmq_deadline((int64_t)delay_ns);
    status = shmq_pending_nack(&q->pending, d, due);
    if (status == SHMQ_OK) tell(q);
    return status;
}

/* ---- the blocking calls of the C interface ---- */

static int copy_out(shmq_queue *q, const struct shmq_record *r, shmq_block *block,
                    const struct shmq_block_header *h, shmq_message *m) {
    if (block == NULL) return shmq_copy_inline(q, r, m);
    shmq_message_of_block(block, r->codec, h, m);
    return SHMQ_OK;
}

int shmq_lease(shmq_queue *q, shmq_message *m, shmq_delivery *d, int64_t deadline_ns) {
    if (q == NULL || m == NULL || d == NULL || q->pending.count == 0) return SHMQ_INVALID;
    for (;;) {
        struct shmq_record r;
        shmq_block *block;
        const struct shmq_block_header *h;
        int status = shmq_get_begin(q);
        if (status == SHMQ_OK) status = shmq_lease_begin(q, d, &r, &block, &h);
        if (status == SHMQ_OK) {
            status = copy_out(q, &r, block, h, m);
            if (status != SHMQ_OK) {
                shmq_lease_cancel(q, d, &r, block);
                return status;
            }
            status = shmq_lease_done(q, d, &r, m->bytes);
            if (status != SHMQ_OK) shmq_message_release(m);
            return status;
        }
        bool nothing = status == SHMQ_EMPTY || status == SHMQ_UNACKED_FULL || status == SHMQ_ARENA_FULL;
        if (nothing && deadline_ns <= SHMQ_NO_WAIT && shmq_look_around(q)) continue;
        if (!nothing || deadline_ns <= SHMQ_NO_WAIT) return status;
        shmq_pin(q);
        int waited = shmq_wait_get(q, 0, deadline_ns);
        shmq_unpin(q);
        if (waited != SHMQ_OK) return waited == SHMQ_EMPTY ? status : waited;
    }
}

int shmq_join(shmq_queue *q, int64_t deadline_ns) {
    int status = q == NULL || q->pending.count == 0 || q->observer ? SHMQ_INVALID : shmq_usable(q);
    if (status != SHMQ_OK) return status;
    shmq_pin(q);
    status = shmq_wait_done(q, deadline_ns);
    shmq_unpin(q);
    return status;
}
