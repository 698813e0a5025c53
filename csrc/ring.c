/* ring.c: a ring of any kind, behind one set of verbs.
 *
 * Idea: who puts and who gets need not know the kind.  Each verb is a branch or two that the processor predicts,
 * and the call below it.  What only one kind knows (roles, laps, subscribers) stays in its file and in recover.c.
 *
 *     put: try_reserve, fill the record's payload, commit         (abort: it was never there)
 *     get: try_peek, read the record's payload, release           (unpeek: it is still there)
 *
 * An SPSC side may reserve, or peek, a run of records before it commits, or releases, all with one store; the
 * others hold one slot at a time.
 */
#include "core.h"

/* The same slots elsewhere, fewer of them. */
static void bind_urgent(struct shmq_slots *urgent, const struct shmq_slots *bulk,
                        const struct shmq_segment *s) {
    if (s->geometry.urgent_slots == 0) return;
    *urgent = *bulk;
    urgent->slots = s->base + s->geometry.urgent_at;
    urgent->mask = s->geometry.urgent_slots - 1;
    for (urgent->shift = 0; UINT32_C(1) << urgent->shift < s->geometry.urgent_slots;) urgent->shift++;
    urgent->tail = &s->control->urgent_tail;
    urgent->head = &s->control->urgent_head;
    urgent->lane = SHMQ_POSITION_URGENT;
}

void shmq_ring_bind(struct shmq_ring *ring, const struct shmq_segment *s) {
    const struct shmq_geometry *g = &s->geometry;
    struct shmq_cursor_line *tail = &s->control->tail, *head = &s->control->head;
    ring->is_spsc = s->kind == SHMQ_KIND_SPSC;
    ring->is_topic = s->kind == SHMQ_KIND_TOPIC;
    ring->inline_bytes = g->inline_bytes;
    ring->first_cursor = g->first_cursor;
    if (ring->is_spsc) {
        ring->spsc = (struct shmq_spsc){.records = s->base + g->ring_at,
                                        .capacity = g->ring_bytes,
                                        .inline_bytes = g->inline_bytes,
                                        .tail = tail,
                                        .head = head};
        return;
    }
    uint32_t shift = 0;
    while (UINT32_C(1) << shift < g->slots) shift++;
    ring->mpmc = (struct shmq_slots){.slots = s->base + g->ring_at,
                                     .mask = g->slots - 1,
                                     .shift = shift,
                                     .slot_bytes = g->slot_bytes,
                                     .inline_bytes = g->inline_bytes,
                                     .tail = tail,
                                     .head = head};
    ring->lanes = g->urgent_slots != 0 ? 2 : 1;
    ring->is_apart = ring->is_topic || ring->lanes == 2;
    bind_urgent(&ring->urgent, &ring->mpmc, s);
    ring->topic = (struct shmq_topic){.slots = ring->mpmc,
                                      .roles = &s->control->roles,
                                      .peers = s->peers,
                                      .first = g->first_cursor,
                                      .peer_count = g->peers,
                                      .policy = s->policy,
                                      .history = g->history};
}

void shmq_ring_join(struct shmq_ring *ring, uint32_t owner) {
    ring->mpmc.owner = ring->urgent.owner = ring->topic.slots.owner = owner;
}

void shmq_ring_init(struct shmq_ring *ring) {
    if (ring->is_spsc) shmq_spsc_init(&ring->spsc, ring->first_cursor);
    else shmq_mpmc_init(&ring->mpmc, ring->first_cursor); /* a topic's slots begin the same way */
    if (ring->lanes == 2) shmq_mpmc_init(&ring->urgent, ring->first_cursor);
}

int shmq_ring_valid(const struct shmq_ring *ring) {
    if (ring->is_spsc) return shmq_spsc_valid(&ring->spsc);
    if (ring->is_topic) return shmq_topic_valid(&ring->topic);
    int status = shmq_mpmc_valid(&ring->mpmc);
    return status == SHMQ_OK && ring->lanes == 2 ? shmq_mpmc_valid(&ring->urgent) : status;
}

int shmq_ring_try_reserve(const struct shmq_ring *ring, struct shmq_ring_side *producer, uint32_t bytes,
                          uint16_t codec, uint16_t flags, struct shmq_record *record) {
    if (ring->is_spsc)
        return shmq_spsc_try_reserve(&ring->spsc, &producer->spsc, bytes, codec, flags, record);
    if (SHMQ_UNLIKELY(ring->is_apart))
        return ring->is_topic
                   ? shmq_topic_try_reserve(&ring->topic, &producer->topic, bytes, codec, flags, record)
                   : shmq_lanes_try_reserve(ring, producer, bytes, codec, flags, record);
    return shmq_mpmc_try_reserve(&ring->mpmc, &producer->mpmc, bytes, codec, flags, record);
}

void shmq_ring_commit(const struct shmq_ring *ring, struct shmq_ring_side *producer) {
    if (ring->is_spsc) shmq_spsc_commit(&ring->spsc, &producer->spsc);
    else if (SHMQ_LIKELY(!ring->is_apart)) shmq_mpmc_commit(&ring->mpmc, &producer->mpmc);
    else if (ring->is_topic) shmq_topic_commit(&ring->topic, &producer->topic);
    else shmq_lanes_commit(ring, producer);
}

void shmq_ring_abort(const struct shmq_ring *ring, struct shmq_ring_side *producer,
                     const struct shmq_spsc_side *before) {
    if (ring->is_spsc) shmq_spsc_abort(&producer->spsc, before);
    else if (!ring->is_apart) shmq_mpmc_abort(&ring->mpmc, &producer->mpmc);
    else if (ring->is_topic) shmq_topic_abort(&ring->topic, &producer->topic);
    else shmq_lanes_abort(ring, producer);
}

int shmq_ring_try_peek(const struct shmq_ring *ring, struct shmq_ring_side *consumer,
                       struct shmq_record *record) {
    if (ring->is_spsc) return shmq_spsc_try_peek(&ring->spsc, &consumer->spsc, record);
    if (SHMQ_UNLIKELY(ring->is_apart))
        return ring->is_topic ? shmq_topic_try_peek(&ring->topic, &consumer->topic, record)
                              : shmq_lanes_try_peek(ring, consumer, record);
    return shmq_mpmc_try_peek(&ring->mpmc, &consumer->mpmc, record);
}

void shmq_ring_release(const struct shmq_ring *ring, struct shmq_ring_side *consumer) {
    if (ring->is_spsc) shmq_spsc_release(&ring->spsc, &consumer->spsc);
    else if (SHMQ_LIKELY(!ring->is_apart)) shmq_mpmc_release(&ring->mpmc, &consumer->mpmc);
    else if (ring->is_topic) shmq_topic_release(&ring->topic, &consumer->topic);
    else shmq_lanes_release(ring, consumer);
}

void shmq_ring_unpeek(const struct shmq_ring *ring, struct shmq_ring_side *consumer,
                      const struct shmq_spsc_side *before) {
    if (ring->is_spsc) consumer->spsc = *before;
    else if (!ring->is_apart) shmq_mpmc_unpeek(&ring->mpmc, &consumer->mpmc);
    else if (!ring->is_topic) shmq_lanes_unpeek(ring, consumer); /* topic: nothing was taken */
}

uint64_t shmq_ring_cursor(const struct shmq_ring *ring, const struct shmq_ring_side *side) {
    return ring->is_topic ? side->topic.cursor : side->spsc.cursor;
}

bool shmq_ring_room(const struct shmq_ring *ring, uint64_t wish, uint32_t bytes) {
    if (ring->is_spsc) return shmq_spsc_room(&ring->spsc, wish, bytes);
    return ring->is_topic ? shmq_topic_room(&ring->topic) : shmq_mpmc_room(shmq_lanes_slots(ring, wish != 0));
}

bool shmq_ring_unread(const struct shmq_ring *ring, uint64_t cursor) {
    if (ring->is_spsc) return shmq_spsc_unread(&ring->spsc, cursor);
    if (ring->is_topic) return shmq_topic_unread(&ring->topic, cursor);
    return shmq_mpmc_unread(&ring->mpmc) || (ring->lanes == 2 && shmq_mpmc_unread(&ring->urgent));
}

bool shmq_ring_roomy(const struct shmq_ring *ring, uint64_t wish) {
    if (ring->is_spsc) return shmq_spsc_roomy(&ring->spsc, wish);
    return ring->is_topic ? shmq_topic_roomy(&ring->topic)
                          : shmq_mpmc_roomy(shmq_lanes_slots(ring, wish != 0));
}

bool shmq_ring_drained(const struct shmq_ring *ring, uint64_t cursor) {
    if (ring->is_spsc) return true;
    if (ring->is_topic) return shmq_topic_drained(&ring->topic, cursor);
    return shmq_mpmc_drained(&ring->mpmc) && (ring->lanes == 1 || shmq_mpmc_drained(&ring->urgent));
}

bool shmq_ring_untouched(const struct shmq_ring *ring) {
    return shmq_mpmc_untouched(&ring->mpmc) && (ring->lanes == 1 || shmq_mpmc_untouched(&ring->urgent));
}

const struct shmq_slot *shmq_ring_slot(const struct shmq_ring *ring, const struct shmq_ring_side *consumer) {
    return shmq_slot_at(shmq_lanes_slots(ring, consumer->urgent), consumer->mpmc.position);
}

void shmq_ring_in_hands(const struct shmq_ring *ring, uint32_t owner, struct shmq_hands *hands) {
    for (uint32_t i = 0; i < ring->lanes; i++) shmq_mpmc_in_hands(shmq_lanes_slots(ring, i), owner, hands);
}

int shmq_ring_look(const struct shmq_ring *ring, uint32_t index, struct shmq_record *record) {
    if (ring->is_spsc) return shmq_spsc_look(&ring->spsc, index, record);
    return ring->is_topic ? shmq_topic_look(&ring->topic, index, record)
                          : shmq_lanes_look(ring, index, record);
}

static void measure_spsc(const struct shmq_spsc *r, shmq_stats *s) {
    s->holds_up_put = s->holds_up_get = -1;
    /* got before put: put is then never smaller. */
    uint64_t head = load_acquire(&r->head->cursor);
    s->messages_got = shmq_spsc_messages(r->head);
    s->messages_put = shmq_spsc_messages(r->tail);
    uint64_t tail = load_acquire(&r->tail->cursor), used = tail - head;
    s->ring_bytes = r->capacity;
    s->ring_used_bytes = used <= r->capacity ? used : r->capacity;
    s->full = !shmq_spsc_room(r, tail, r->inline_bytes);
}

/* Adds one lane's messages; returns how many of them wait. */
static uint64_t measure_lane(const struct shmq_slots *m, uint64_t first_cursor, shmq_stats *s) {
    uint64_t head = load_acquire(&m->head->cursor); /* before put: put is then never smaller */
    uint64_t put = shmq_mpmc_claimed(m) - first_cursor, got = head - first_cursor;
    uint64_t waiting = put > got ? put - got : 0;     /* garbage */
    if (waiting > m->mask + 1) waiting = m->mask + 1; /* a head that was moved back late */
    s->messages_put += put;
    s->messages_got += put - waiting;
    return waiting;
}

static void measure_mpmc(const struct shmq_ring *ring, shmq_stats *s) {
    const struct shmq_slots *m = &ring->mpmc;
    s->ring_used_bytes = measure_lane(m, ring->first_cursor, s) * m->slot_bytes;
    s->full = !shmq_mpmc_room(m);
    s->holds_up_put = shmq_mpmc_in_the_way(m, true);
    s->holds_up_get = shmq_mpmc_in_the_way(m, false);
    if (ring->lanes == 1) return;
    s->urgent = (uint32_t)measure_lane(&ring->urgent, ring->first_cursor, s);
    s->urgent_slots = (uint32_t)ring->urgent.mask + 1;
    int32_t put = shmq_mpmc_in_the_way(&ring->urgent, true), get = shmq_mpmc_in_the_way(&ring->urgent, false);
    if (put >= 0) s->holds_up_put = put;
    if (get >= 0) s->holds_up_get = get;
}

/* Got is what every subscriber has. */
static void measure_topic(const struct shmq_ring *ring, shmq_stats *s) {
    const struct shmq_topic *t = &ring->topic;
    int32_t who;
    s->messages_put = load_acquire(&t->slots.tail->cursor) - t->first;
    uint64_t behind = shmq_topic_lag(t, &who);
    if (behind > t->slots.mask + 1) behind = t->slots.mask + 1; /* of one that is being overtaken */
    s->messages_got = s->messages_put - (behind < s->messages_put ? behind : s->messages_put);
    s->ring_used_bytes = behind * t->slots.slot_bytes;
    s->full = !shmq_topic_room(t);
    s->holds_up_put = shmq_topic_in_the_way(t);
    s->holds_up_get = -1;
    s->policy = t->policy;
    s->history = t->history;
    for (uint32_t i = 0; i < t->peer_count; i++)
        s->subscribers += shmq_topic_state_of(t, i) == SHMQ_SUBSCRIBED;
}

void shmq_ring_measure(const struct shmq_ring *ring, shmq_stats *s) {
    if (ring->is_spsc) {
        measure_spsc(&ring->spsc, s);
        return;
    }
    s->ring_bytes = (ring->mpmc.mask + 1) * ring->mpmc.slot_bytes;
    if (ring->is_topic) measure_topic(ring, s);
    else measure_mpmc(ring, s);
}
