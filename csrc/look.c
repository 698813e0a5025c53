/* look.c: read-only snapshots of a segment: statistics, peers, messages that wait.
 *
 * Idea: whoever looks takes nothing, holds nothing and believes nothing.  Each figure is right at some moment
 * during the call; figures that belong together are read in the order that keeps them plausible.
 */
#include <string.h>

#include "core.h"

static int32_t role_holder(const shmq_queue *q, const shmq_a64 *role) {
    uint64_t word = load_acquire(role);
    uint32_t owner = shmq_role_owner(word);
    return word == 0 || owner >= q->segment.geometry.peers ? -1 : (int32_t)owner;
}

int shmq_get_stats(shmq_queue *q, shmq_stats *s) {
    int status = shmq_usable(q);
    if (status != SHMQ_OK) return status;
    const struct shmq_header *h = shmq_segment_header(&q->segment);
    memset(s, 0, sizeof *s);
    shmq_ring_measure(&q->ring, s);
    shmq_arena_count(&q->arena, s);
    uint64_t largest = shmq_arena_largest(&q->arena);
    s->largest_message_bytes = largest > q->ring.inline_bytes ? largest : q->ring.inline_bytes;
    s->created_unix_ns = h->created_unix_ns;
    s->creator_pid = h->creator_pid;
    s->creator_uid = h->creator_uid;
    memcpy(s->uuid, h->uuid, sizeof s->uuid);
    s->total_bytes = q->segment.geometry.total_bytes;
    s->inline_bytes = q->ring.inline_bytes;
    s->peers = q->segment.geometry.peers;
    s->kind = q->segment.kind;
    s->lifecycle = load32_acquire(&q->control->roles.lifecycle);
    s->producer = role_holder(q, &q->control->roles.producer);
    s->consumer = role_holder(q, &q->control->roles.consumer);
    s->lost = s->producer < 0 && load_acquire(&q->control->roles.lost_producer) != 0;
    s->lost_messages = load_relaxed(&q->control->roles.lost_messages);
    s->lost_pid = load32_relaxed(&q->control->roles.lost_pid);
    return SHMQ_OK;
}

int shmq_get_peers(shmq_queue *q, shmq_peer_info *out, uint32_t capacity, uint32_t *n) {
    int status = shmq_usable(q);
    if (status != SHMQ_OK) return status;
    int32_t producer = role_holder(q, &q->control->roles.producer);
    int32_t consumer = role_holder(q, &q->control->roles.consumer);
    *n = 0;
    for (uint32_t i = 0; i < q->segment.geometry.peers && *n < capacity; i++) {
        const struct shmq_peer *p = &q->segment.peers[i];
        uint64_t word = load_acquire(&p->word);
        if ((word & 0xff) != SHMQ_PEER_LIVE) continue;
        shmq_peer_info *o = &out[(*n)++];
        memset(o, 0, sizeof *o);
        o->index = i;
        o->epoch = word >> 8;
        o->pid = p->pid;
        o->start_ticks = p->start_ticks;
        o->attached_unix_ns = p->attached_unix_ns;
        o->messages_put = load_relaxed(&p->messages_put);
        o->bytes_put = load_relaxed(&p->bytes_put);
        o->messages_got = load_relaxed(&p->messages_got);
        o->bytes_got = load_relaxed(&p->bytes_got);
        o->parks = load_relaxed(&p->parks);
        o->wakes = load_relaxed(&p->wakes);
        o->held_bytes = shmq_arena_held_bytes(&q->arena, i);
        o->alive = !q->observer && i == q->me.index ? 1 : shmq_peers_alive(&q->segment, i);
        uint32_t roles = q->ring.is_spsc ? 0 : load32_relaxed(&p->roles);
        o->is_producer = producer == (int32_t)i || (roles & SHMQ_ROLE_PRODUCER) != 0;
        o->is_consumer = consumer == (int32_t)i || (roles & SHMQ_ROLE_CONSUMER) != 0;
        memcpy(o->comm, p->comm, sizeof o->comm - 1);
        if (!q->ring.is_topic) continue;
        uint32_t subscribed = shmq_topic_state_of(&q->ring.topic, i);
        o->evicted = subscribed == SHMQ_WAS_EVICTED;
        o->lag = subscribed == SHMQ_SUBSCRIBED ? shmq_topic_lag_of(&q->ring.topic, i) : 0;
        o->missed = load_relaxed(&p->topic_missed);
    }
    return SHMQ_OK;
}

int shmq_peek(shmq_queue *q, uint32_t index, void *buffer, uint32_t capacity, shmq_peeked *out) {
    int status = shmq_usable(q);
    struct shmq_record record;
    if (status == SHMQ_OK) status = shmq_ring_look(&q->ring, index, &record);
    if (status != SHMQ_OK) return status;
    memset(out, 0, sizeof *out);
    const uint8_t *from = record.payload;
    out->position = record.position;
    out->codec = record.codec;
    out->bytes = record.bytes;
    if ((record.flags & SHMQ_RECORD_BLOCK) != 0) {
        if (record.bytes != sizeof(uint64_t)) return SHMQ_CORRUPT;
        uint64_t handle = load_relaxed((shmq_a64 *)(void *)record.payload);
        uint32_t page = shmq_handle_page(handle);
        if (page >= q->arena.small.pages + q->arena.large.pages) return SHMQ_CORRUPT;
        uint64_t word = load_acquire(&q->arena.words[page]);
        const struct shmq_block_header *h = &q->arena.headers[page];
        out->in_block = 1;
        out->bytes = *(const volatile uint64_t *)&h->payload_bytes;
        if (shmq_word_state(word) != SHMQ_PAGE_INFLIGHT ||
            shmq_word_generation(word) != shmq_handle_generation(handle) ||
            !shmq_arena_holds(&q->arena, page, word, out->bytes))
            return SHMQ_EMPTY; /* taken meanwhile */
        from = shmq_arena_data(&q->arena, page);
        out->meta_bytes = h->meta_bytes == sizeof out->tensor ? (uint32_t)sizeof out->tensor : 0;
        memcpy(&out->tensor, h->meta, out->meta_bytes);
    } else if (record.codec == SHMQ_TENSOR && record.bytes >= sizeof out->tensor) {
        out->meta_bytes = sizeof out->tensor;
        memcpy(&out->tensor, from, sizeof out->tensor);
        from += sizeof out->tensor;
        out->bytes -= sizeof out->tensor;
    }
    out->copied_bytes = out->bytes < capacity ? (uint32_t)out->bytes : capacity;
    if (out->copied_bytes > 0) memcpy(buffer, from, out->copied_bytes);
    return SHMQ_OK;
}

int shmq_validate(shmq_queue *q) {
    int status = shmq_usable(q);
    if (status == SHMQ_OK) status = shmq_ring_valid(&q->ring);
    return status == SHMQ_OK ? shmq_arena_valid(&q->arena) : status;
}
