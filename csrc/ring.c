/* ring.c: a ring of either kind, behind one set of verbs.
 *
 * Idea: who puts and who gets need not know the kind.  Each verb is one branch that the processor predicts, and
 * the call below it.  What only one kind knows (roles, laps) stays in its file and in recover.c.
 *
 *     put: try_reserve, fill the record's payload, commit         (abort: it was never there)
 *     get: try_peek, read the record's payload, release           (unpeek: it is still there)
 *
 * An SPSC side may reserve, or peek, a run of records before it commits, or releases, all with one store; an MPMC
 * side holds one slot at a time.
 */
#include "core.h"

void shmq_ring_bind(struct shmq_ring *ring, const struct shmq_segment *s) {
    const struct shmq_geometry *g = &s->geometry;
    struct shmq_cursor_line *tail = &s->control->tail, *head = &s->control->head;
    ring->is_mpmc = s->kind == SHMQ_KIND_MPMC;
    ring->inline_bytes = g->inline_bytes;
    ring->first_cursor = g->first_cursor;
    uint32_t shift = 0;
    while (ring->is_mpmc && UINT32_C(1) << shift < g->slots) shift++;
    if (ring->is_mpmc)
        ring->mpmc = (struct shmq_mpmc){.slots = s->base + g->ring_at,
                                        .mask = g->slots - 1,
                                        .shift = shift,
                                        .slot_bytes = g->slot_bytes,
                                        .inline_bytes = g->inline_bytes,
                                        .tail = tail,
                                        .head = head};
    else
        ring->spsc = (struct shmq_spsc){.records = s->base + g->ring_at,
                                        .capacity = g->ring_bytes,
                                        .inline_bytes = g->inline_bytes,
                                        .tail = tail,
                                        .head = head};
}

void shmq_ring_init(struct shmq_ring *ring) {
    if (ring->is_mpmc) shmq_mpmc_init(&ring->mpmc, ring->first_cursor);
    else shmq_spsc_init(&ring->spsc, ring->first_cursor);
}

int shmq_ring_valid(const struct shmq_ring *ring) {
    return ring->is_mpmc ? shmq_mpmc_valid(&ring->mpmc) : shmq_spsc_valid(&ring->spsc);
}

int shmq_ring_try_reserve(const struct shmq_ring *ring, struct shmq_ring_side *producer, uint32_t bytes,
                          uint16_t codec, uint16_t flags, struct shmq_record *record) {
    if (ring->is_mpmc)
        return shmq_mpmc_try_reserve(&ring->mpmc, &producer->mpmc, bytes, codec, flags, record);
    return shmq_spsc_try_reserve(&ring->spsc, &producer->spsc, bytes, codec, flags, record);
}

void shmq_ring_commit(const struct shmq_ring *ring, struct shmq_ring_side *producer) {
    if (ring->is_mpmc) shmq_mpmc_commit(&ring->mpmc, &producer->mpmc);
    else shmq_spsc_commit(&ring->spsc, &producer->spsc);
}

void shmq_ring_abort(const struct shmq_ring *ring, struct shmq_ring_side *producer,
                     const struct shmq_spsc_side *before) {
    if (ring->is_mpmc) shmq_mpmc_abort(&ring->mpmc, &producer->mpmc);
    else shmq_spsc_abort(&producer->spsc, before);
}

int shmq_ring_try_peek(const struct shmq_ring *ring, struct shmq_ring_side *consumer,
                       struct shmq_record *record) {
    if (ring->is_mpmc) return shmq_mpmc_try_peek(&ring->mpmc, &consumer->mpmc, record);
    return shmq_spsc_try_peek(&ring->spsc, &consumer->spsc, record);
}

void shmq_ring_release(const struct shmq_ring *ring, struct shmq_ring_side *consumer) {
    if (ring->is_mpmc) shmq_mpmc_release(&ring->mpmc, &consumer->mpmc);
    else shmq_spsc_release(&ring->spsc, &consumer->spsc);
}

void shmq_ring_unpeek(const struct shmq_ring *ring, struct shmq_ring_side *consumer,
                      const struct shmq_spsc_side *before) {
    if (ring->is_mpmc) shmq_mpmc_unpeek(&ring->mpmc, &consumer->mpmc);
    else consumer->spsc = *before;
}

bool shmq_ring_room(const struct shmq_ring *ring, uint64_t cursor, uint32_t bytes) {
    return ring->is_mpmc ? shmq_mpmc_room(&ring->mpmc) : shmq_spsc_room(&ring->spsc, cursor, bytes);
}

bool shmq_ring_unread(const struct shmq_ring *ring, uint64_t cursor) {
    return ring->is_mpmc ? shmq_mpmc_unread(&ring->mpmc) : shmq_spsc_unread(&ring->spsc, cursor);
}

bool shmq_ring_roomy(const struct shmq_ring *ring, uint64_t cursor) {
    return ring->is_mpmc ? shmq_mpmc_roomy(&ring->mpmc) : shmq_spsc_roomy(&ring->spsc, cursor);
}

bool shmq_ring_drained(const struct shmq_ring *ring) {
    return ring->is_mpmc ? shmq_mpmc_drained(&ring->mpmc) : true;
}

int shmq_ring_look(const struct shmq_ring *ring, uint32_t index, struct shmq_record *record) {
    return ring->is_mpmc ? shmq_mpmc_look(&ring->mpmc, index, record)
                         : shmq_spsc_look(&ring->spsc, index, record);
}

void shmq_ring_measure(const struct shmq_ring *ring, shmq_stats *s) {
    if (ring->is_mpmc) {
        const struct shmq_mpmc *m = &ring->mpmc;
        uint64_t head = load_acquire(&m->head->cursor); /* before put: put is then never smaller */
        s->messages_put = shmq_mpmc_claimed(m) - ring->first_cursor;
        s->messages_got = head - ring->first_cursor;
        if (s->messages_got > s->messages_put) s->messages_got = s->messages_put; /* garbage */
        uint64_t waiting = s->messages_put - s->messages_got;
        if (waiting > m->mask + 1) waiting = m->mask + 1; /* a head that was moved back late */
        s->messages_got = s->messages_put - waiting;
        s->ring_bytes = (m->mask + 1) * m->slot_bytes;
        s->ring_used_bytes = waiting * m->slot_bytes;
        s->full = !shmq_mpmc_room(m);
        s->holds_up_put = shmq_mpmc_in_the_way(m, true);
        s->holds_up_get = shmq_mpmc_in_the_way(m, false);
        return;
    }
    s->holds_up_put = s->holds_up_get = -1;
    const struct shmq_spsc *r = &ring->spsc;
    /* got before put: put is then never smaller. */
    uint64_t head = load_acquire(&r->head->cursor);
    s->messages_got = shmq_spsc_messages(r->head);
    s->messages_put = shmq_spsc_messages(r->tail);
    uint64_t tail = load_acquire(&r->tail->cursor), used = tail - head;
    s->ring_bytes = r->capacity;
    s->ring_used_bytes = used <= r->capacity ? used : r->capacity;
    s->full = !shmq_spsc_room(r, tail, r->inline_bytes);
}
