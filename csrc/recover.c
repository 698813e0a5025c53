/* recover.c: the order of repair.
 *
 * Idea: a reaper takes the dead peer's reaper lock, so there is one reaper per dead peer at a time; no newcomer
 * takes the slot under it, because it is not FREE; and if the reaper dies too, the kernel lets the next one in.  Each step below asks
 * a structure to repair itself and may be repeated any number of times:
 *
 *   1. ring    the dead consumer's record that is still at the head gets its block back in flight
 *   2. pages   what the dead held, and what it had sent but not published, becomes free
 *   3. roles   are given up: only now may a successor load the cursors
 *   4. wake    everyone looks again
 *   5. slot    FREE(epoch + 1), last: until here the next reaper starts at 1
 *
 * In step 1 before 2 lies the promise that nothing committed is lost.
 */
#include "core.h"

static void give_up(shmq_a64 *role, uint32_t dead) {
    uint64_t word = load_acquire(role);
    if (word != 0 && shmq_role_owner(word) == dead) (void)cas_acq_rel(role, &word, 0);
}

static void recover_one(struct shmq_segment *s, const struct shmq_spsc *ring, struct shmq_arena *arena,
                        uint32_t dead) {
    struct shmq_control *c = s->control;
    uint64_t consumer = load_acquire(&c->roles.consumer);
    struct shmq_record record;
    if (consumer != 0 && shmq_role_owner(consumer) == dead && shmq_spsc_look(ring, 0, &record) == SHMQ_OK &&
        (record.flags & SHMQ_RECORD_BLOCK) != 0 && record.bytes == sizeof(uint64_t))
        shmq_arena_resend(arena, dead, load_relaxed((shmq_a64 *)(void *)record.payload), record.position);
    uint64_t head = load_acquire(&ring->head->cursor); /* before tail, both before the words */
    uint64_t tail = load_acquire(&ring->tail->cursor);
    shmq_arena_recover(arena, dead, head, tail);
    give_up(&c->roles.producer, dead);
    give_up(&c->roles.consumer, dead);
    shmq_eventcount_wake_slow(&c->not_empty);
    shmq_eventcount_wake_slow(&c->not_full);
}

int shmq_recover_all(struct shmq_segment *s, const struct shmq_spsc *ring, struct shmq_arena *arena,
                     uint32_t myself, uint32_t *repaired) {
    *repaired = 0;
    for (uint32_t i = 0; i < s->geometry.peers; i++) {
        uint64_t epoch;
        if (i == myself) continue;
        int lock = shmq_peers_verdict_begin(s, i, &epoch);
        if (lock < 0) continue;
        recover_one(s, ring, arena, i);
        shmq_peers_verdict_end(s, i, epoch, lock);
        *repaired += 1;
    }
    return SHMQ_OK;
}
