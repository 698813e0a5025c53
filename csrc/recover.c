/* recover.c: the order of repair.
 *
 * Idea: a reaper takes the dead peer's reaper lock, so there is one reaper per dead peer at a time; no newcomer
 * takes the slot under it, because it is not FREE; and if the reaper dies too, the kernel lets the next one in.
 * Each step below asks a structure to repair itself and may be repeated any number of times:
 *
 *   0. testimony  of what is in its hands, for people, while it is still there
 *   1. blocks  that the dead consumer had leased for a message which it had not taken yet: in flight again
 *      keys    whose turn it was, and whether its message was published: a slot that the dead still writes says no
 *   2. ring    mpmc: slots that the dead owned become messages again, or tombs; no message behind the head
 *              topic: slots become tombs, a subscription ends
 *   3. pages   what the dead held, and what it had sent but not published, becomes free; or, where it had not
 *              acknowledged it, nobody's
 *      unacked messages wait to be delivered again
 *   4. roles   spsc: are given up; only now may a successor load the cursors.  topic: was it the last publisher?
 *   5. wake    everyone looks again; and the dead one's doorbell is removed
 *   6. slot    FREE(epoch + 1), last: until here the next reaper starts at 1
 *
 * In 1 before 2 before 3 lies the promise that nothing committed is lost: a page is judged by what the ring says
 * of it, so the ring must be right first; and a message must not be there again before its block is.  The keys come
 * before the ring because it makes a tomb of the slot that they are judged by.
 */
#include "core.h"

static void give_up(shmq_a64 *role, uint32_t dead) {
    uint64_t word = load_acquire(role);
    if (word != 0 && shmq_role_owner(word) == dead) (void)cas_acq_rel(role, &word, 0);
}

/* The block of a message that the dead had peeked. */
static void resend(struct shmq_arena *arena, uint32_t dead, const struct shmq_record *record) {
    if ((record->flags & SHMQ_RECORD_BLOCK) != 0 && record->bytes == sizeof(uint64_t))
        shmq_arena_resend(arena, dead, load_relaxed((shmq_a64 *)(void *)record->payload), record->position);
}

/* Cursors of an SPSC ring, loaded before the page words are looked at, head first.  tail stands still: a dead
 * producer's role is not given away before the reaper is done; where the dead was not the producer, tail only
 * grows.  So an INFLIGHT word of the dead with its cursor outside [head, tail) was never published: had it been
 * published and passed by head, its word would have been changed before head was stored. */
struct range {
    uint64_t head, tail;
};

static bool in_range(const void *context, uint64_t argument, uint64_t handle) {
    const struct range *r = context;
    (void)handle;
    return shmq_argument_within(argument, r->head, r->tail);
}

static bool in_slot(const void *ring, uint64_t argument, uint64_t handle) {
    return shmq_lanes_published(ring, argument, handle);
}

static void recover_spsc(struct shmq_segment *s, const struct shmq_spsc *ring, struct shmq_arena *arena,
                         uint32_t dead) {
    struct shmq_roles *roles = &s->control->roles;
    uint64_t consumer = load_acquire(&roles->consumer);
    struct shmq_record record;
    if (consumer != 0 && shmq_role_owner(consumer) == dead && shmq_spsc_look(ring, 0, &record) == SHMQ_OK)
        resend(arena, dead, &record);
    struct range published;
    published.head = load_acquire(&ring->head->cursor); /* before tail, both before the words */
    published.tail = load_acquire(&ring->tail->cursor);
    shmq_arena_recover(arena, dead, in_range, &published);
    uint64_t producer = load_acquire(&roles->producer);
    if (producer != 0 && shmq_role_owner(producer) == dead) { /* for the consumer, see shmq_wait_get */
        store32_relaxed(&roles->lost_pid, s->peers[dead].pid);
        store_relaxed(&roles->lost_messages, shmq_spsc_messages(ring->tail));
        store_release(&roles->lost_producer, producer);
    }
    give_up(&roles->producer, dead);
    give_up(&roles->consumer, dead);
}

/* A producer has one slot at a time: where it died in its turn, about to publish, and none is its, that was done. */
static void recover_keys(const struct shmq_segment *s, const struct shmq_ring *ring, uint32_t dead) {
    struct shmq_hands hands = {0};
    struct shmq_keys keys;
    if (s->geometry.keys == 0) return;
    shmq_keys_bind(&keys, s);
    shmq_ring_in_hands(ring, dead, &hands);
    shmq_keys_recover(&keys, dead, hands.writing == 0);
}

static void recover_slots(const struct shmq_slots *ring, struct shmq_arena *arena,
                          const struct shmq_pending *pending, uint32_t dead) {
    struct shmq_record record;
    for (uint64_t i = 0; (i = shmq_mpmc_next_read_by(ring, dead, i, &record)) != UINT64_MAX; i++) {
        if (shmq_pending_has(pending, record.position)) shmq_mpmc_retire(ring, dead, i);
        else resend(arena, dead, &record);
    }
    shmq_mpmc_recover(ring, dead);
    shmq_mpmc_settle(ring); /* before the slot is FREE: if we die here, the next reaper does it */
}

/* Lanes in any order: they share no slot, and a message's block and entry say which lane it came from.  Pages behind
 * both: they are judged by the one as by the other. */
static void recover_mpmc(const struct shmq_ring *ring, struct shmq_arena *arena,
                         const struct shmq_pending *pending, uint32_t dead) {
    for (uint32_t i = 0; i < ring->lanes; i++) recover_slots(shmq_lanes_slots(ring, i), arena, pending, dead);
    shmq_keep_recover(arena, pending, dead);
    shmq_arena_recover(arena, dead, in_slot, ring);
    shmq_pending_recover(pending,
                         dead); /* last: until here its entries say which slots and pages are spent */
}

/* Is any live peer but the dead one a publisher? */
static bool somebody_publishes(const struct shmq_segment *s, uint32_t dead) {
    for (uint32_t i = 0; i < s->geometry.peers; i++) {
        const struct shmq_peer *p = &s->peers[i];
        if (i != dead && (load_acquire(&p->word) & 0xff) == SHMQ_PEER_LIVE &&
            (load32_relaxed(&p->roles) & SHMQ_ROLE_PRODUCER) != 0 && shmq_peers_alive(s, i) != 0)
            return true;
    }
    return false;
}

static void recover_topic(struct shmq_segment *s, const struct shmq_topic *topic, struct shmq_arena *arena,
                          uint32_t dead, uint64_t epoch) {
    struct shmq_roles *roles = &s->control->roles;
    shmq_topic_recover(topic, dead);
    shmq_share_recover(topic, arena, dead);
    if ((load32_relaxed(&s->peers[dead].roles) & SHMQ_ROLE_PRODUCER) == 0) return;
    if (!somebody_publishes(s, dead)) {
        store32_relaxed(&roles->lost_pid, s->peers[dead].pid);
        store_relaxed(&roles->lost_messages, load_acquire(&topic->slots.tail->cursor) - topic->first);
        store_release(&roles->lost_producer, shmq_role_word(dead, epoch));
        full_fence(); /* against N1, N2: one who begins to publish meanwhile is seen, or takes it back itself */
        if (!somebody_publishes(s, dead)) return;
    }
    uint64_t told = shmq_role_word(dead, epoch); /* by us, or by a reaper of the same that died here */
    (void)cas_acq_rel(&roles->lost_producer, &told, 0);
}

static void testify(struct shmq_segment *s, const struct shmq_ring *ring, const struct shmq_arena *arena,
                    uint32_t dead, uint64_t epoch) {
    const struct shmq_roles *roles = &s->control->roles;
    struct shmq_hands hands = {0};
    uint32_t had = load32_relaxed(&s->peers[dead].roles);
    if (!ring->is_spsc) shmq_ring_in_hands(ring, dead, &hands);
    else
        had = (shmq_role_owner(load_acquire(&roles->producer)) == dead ? SHMQ_ROLE_PRODUCER : 0u) |
              (shmq_role_owner(load_acquire(&roles->consumer)) == dead ? SHMQ_ROLE_CONSUMER : 0u);
    shmq_arena_in_hands(arena, dead, &hands);
    shmq_peers_testify(s, dead, epoch, &hands, had);
}

int shmq_recover_all(struct shmq_segment *s, const struct shmq_ring *ring, struct shmq_arena *arena,
                     const struct shmq_pending *pending, uint32_t myself, uint32_t *repaired) {
    *repaired = 0;
    for (uint32_t i = 0; i < s->geometry.peers; i++) {
        uint64_t epoch;
        if (i == myself) continue;
        int lock = shmq_peers_verdict_begin(s, i, &epoch);
        if (lock < 0) continue;
        testify(s, ring, arena, i, epoch);
        if (ring->is_spsc) recover_spsc(s, &ring->spsc, arena, i);
        else if (ring->is_topic) recover_topic(s, &ring->topic, arena, i, epoch);
        else {
            recover_keys(s, ring, i);
            recover_mpmc(ring, arena, pending, i);
        }
        shmq_wake_slow(s, NULL, &s->control->not_empty);
        shmq_wake_slow(s, NULL, &s->control->not_full);
        shmq_doorbell_remove(load_relaxed(&s->peers[i].doorbell)); /* again by the next reaper: nothing */
        shmq_peers_verdict_end(s, i, epoch, lock);
        if (myself != UINT32_MAX) (void)shmq_recorder_note(&s->peers[myself], SHMQ_OP_REAP, i);
        *repaired += 1;
    }
    /* Also where nobody is dead: who moved the head over a message may be stopped. */
    for (uint32_t i = 0; i < ring->lanes && !ring->is_topic; i++) shmq_mpmc_settle(shmq_lanes_slots(ring, i));
    if (pending->count > 0) shmq_pending_settle(pending);
    return SHMQ_OK;
}
