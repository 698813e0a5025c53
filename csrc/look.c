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
    s->dropped_oldest = load_relaxed(&q->control->roles.dropped_oldest);
    s->dropped_newest = load_relaxed(&q->control->roles.dropped_newest);
    s->keys = q->keys.count;
    s->repeats = load_relaxed(&q->control->keys.repeats);
    s->holds_up_keys = shmq_keys_holder(&q->keys);
    s->max_unacked = q->pending.count;
    s->max_deliveries = q->pending.max_deliveries;
    s->visibility_ns = q->pending.visibility_ns;
    shmq_pending_count(&q->pending, &s->unacked, &s->waiting_again);
    s->lifecycle = load32_acquire(&q->control->roles.lifecycle);
    s->producer = role_holder(q, &q->control->roles.producer);
    s->consumer = role_holder(q, &q->control->roles.consumer);
    s->lost = s->producer < 0 && load_acquire(&q->control->roles.lost_producer) != 0;
    s->lost_messages = load_relaxed(&q->control->roles.lost_messages);
    s->lost_pid = load32_relaxed(&q->control->roles.lost_pid);
    return SHMQ_OK;
}

/* What both the living and the dead have in their entry. */
static void describe_peer(const struct shmq_peer *p, shmq_peer_info *o) {
    shmq_event_info events[SHMQ_EVENTS];
    uint32_t n = shmq_recorder_read(p, events);
    if (n > 0) o->last = events[n - 1];
    o->pid = p->pid;
    o->start_ticks = p->start_ticks;
    o->attached_unix_ns = p->attached_unix_ns;
    o->messages_put = load_relaxed(&p->messages_put);
    o->bytes_put = load_relaxed(&p->bytes_put);
    o->messages_got = load_relaxed(&p->messages_got);
    o->bytes_got = load_relaxed(&p->bytes_got);
    o->parks = load_relaxed(&p->parks);
    o->wakes = load_relaxed(&p->wakes);
    o->holding_since_ns = o->loaned + o->leased > 0 ? load_relaxed(&p->holding_since_ns) : 0;
    memcpy(o->comm, p->comm, sizeof o->comm - 1);
}

static void note_hands(const struct shmq_hands *hands, uint32_t roles, shmq_peer_info *o) {
    o->held_bytes = hands->held_bytes;
    o->loaned = hands->loaned;
    o->leased = hands->leased;
    o->writing = hands->writing;
    o->reading = hands->reading;
    o->slot_position = hands->slot_position;
    o->is_producer = (roles & SHMQ_ROLE_PRODUCER) != 0;
    o->is_consumer = (roles & SHMQ_ROLE_CONSUMER) != 0;
}

/* Of an entry that is in use: by the living, or by the dead until they are repaired. */
static void look_at_live(const shmq_queue *q, uint32_t i, shmq_peer_info *o) {
    const struct shmq_peer *p = &q->segment.peers[i];
    struct shmq_hands hands = {0};
    uint32_t roles = load32_relaxed(&p->roles);
    if (!q->ring.is_spsc) shmq_ring_in_hands(&q->ring, i, &hands);
    else
        roles = (role_holder(q, &q->control->roles.producer) == (int32_t)i ? SHMQ_ROLE_PRODUCER : 0u) |
                (role_holder(q, &q->control->roles.consumer) == (int32_t)i ? SHMQ_ROLE_CONSUMER : 0u);
    shmq_arena_in_hands(&q->arena, i, &hands);
    note_hands(&hands, roles, o);
    describe_peer(p, o);
    o->alive = !q->observer && i == q->me.index ? 1 : shmq_peers_alive(&q->segment, i);
    if (!q->ring.is_topic) return;
    uint32_t subscribed = shmq_topic_state_of(&q->ring.topic, i);
    o->evicted = subscribed == SHMQ_WAS_EVICTED;
    o->lag = subscribed == SHMQ_SUBSCRIBED ? shmq_topic_lag_of(&q->ring.topic, i) : 0;
    o->missed = load_relaxed(&p->topic_missed);
}

static void look_at_dead(const struct shmq_peer *p, shmq_peer_info *o) {
    const struct shmq_verdict *v = &p->verdict;
    struct shmq_hands hands = {.held_bytes = load_relaxed(&v->held_bytes),
                               .slot_position = load_relaxed(&v->slot_position),
                               .loaned = load32_relaxed(&v->loaned),
                               .leased = load32_relaxed(&v->leased),
                               .writing = load32_relaxed(&v->writing),
                               .reading = load32_relaxed(&v->reading)};
    note_hands(&hands, load32_relaxed(&v->roles), o);
    describe_peer(p, o);
    o->reaped_ns = load_relaxed(&v->reaped_ns);
    o->reaped_by_pid = load32_relaxed(&v->by_pid);
    o->epoch -= 1; /* the word has moved on */
}

/* True where the entry is one of those that are asked for. */
static bool look_at_entry(const shmq_queue *q, uint32_t i, bool dead, shmq_peer_info *o) {
    const struct shmq_peer *p = &q->segment.peers[i];
    uint64_t word = load_acquire(&p->word);
    bool in_use = (word & 0xff) == SHMQ_PEER_LIVE;
    memset(o, 0, sizeof *o);
    o->index = i;
    o->epoch = word >> 8;
    if (in_use) {
        if (dead && shmq_peers_alive(&q->segment, i) != 0) return false;
        look_at_live(q, i, o);
    } else {
        if (!dead || !shmq_peers_left_dead(p, word)) return false;
        look_at_dead(p, o);
    }
    return load_acquire(&p->word) == word || in_use; /* else a newcomer came while we looked */
}

static int look_at_peers(shmq_queue *q, bool dead, shmq_peer_info *out, uint32_t capacity, uint32_t *n) {
    int status = shmq_usable(q);
    if (status != SHMQ_OK) return status;
    *n = 0;
    for (uint32_t i = 0; i < q->segment.geometry.peers && *n < capacity; i++)
        if (look_at_entry(q, i, dead, &out[*n])) *n += 1;
    return SHMQ_OK;
}

int shmq_get_peers(shmq_queue *q, shmq_peer_info *out, uint32_t capacity, uint32_t *n) {
    return look_at_peers(q, false, out, capacity, n);
}

int shmq_get_dead(shmq_queue *q, shmq_peer_info *out, uint32_t capacity, uint32_t *n) {
    return look_at_peers(q, true, out, capacity, n);
}

int shmq_get_events(shmq_queue *q, uint32_t index, shmq_event_info *out, uint32_t capacity, uint32_t *n) {
    shmq_event_info events[SHMQ_EVENTS];
    int status = shmq_usable(q);
    if (status != SHMQ_OK) return status;
    if (index >= q->segment.geometry.peers) return SHMQ_INVALID;
    uint32_t found = shmq_recorder_read(&q->segment.peers[index], events);
    *n = found < capacity ? found : capacity;
    if (*n > 0) memcpy(out, events + (found - *n), *n * sizeof *out);
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
            shmq_word_argument(word) != shmq_cursor_argument(record.position) ||
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
    if (status == SHMQ_OK) status = shmq_pending_valid(&q->pending);
    if (status == SHMQ_OK) status = shmq_keys_valid(&q->keys);
    return status == SHMQ_OK ? shmq_arena_valid(&q->arena) : status;
}
