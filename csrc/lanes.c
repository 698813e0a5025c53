/* lanes.c: two mpmc rings as one, so that control messages overtake bulk.
 *
 * Idea: a queue with priority has a second ring of slots, the urgent lane, beside the one that every queue has.  A
 * producer names the lane of a message; consumers know nothing of it, and look into the urgent lane first.
 *
 *   1. Each lane is an mpmc ring by itself: its slots, its tail, its head.  The lanes share no word, so the table of
 *      mpmc.c holds for each alone, and so does its repair; what they share (arena, pending table, eventcounts) was
 *      shared by all slots before.
 *   2. The lanes have the same cursors.  What names a message elsewhere names its lane, too: SHMQ_POSITION_URGENT in a
 *      position, hence the lowest bit of a page word's argument.
 *   3. A consumer that took SHMQ_URGENT_RUN urgent messages in a row looks into the bulk lane first, until it has
 *      taken one there.  So with an urgent lane that never runs dry each consumer still takes one bulk message in
 *      SHMQ_URGENT_RUN + 1: neither lane starves.  The count is the consumer's own memory: with it dies only a turn.
 *
 *   4. What is delivered again (pending.c) comes before both, urgent ones first: it is older than what is in a lane.
 *
 * FIFO holds in each lane as in mpmc.c, and not between them.  A look that finds both lanes empty is two looks: a
 * message that comes into the first meanwhile is found by the next look, or its wake-up (W1 -> S1) leads to one.
 */
#include "core.h"

#define SHMQ_URGENT_RUN 16u

/* ---- producer: `urgent` is set before, and stays until the commit ---- */

int shmq_lanes_try_reserve(const struct shmq_ring *ring, struct shmq_ring_side *producer, uint32_t bytes,
                           uint16_t codec, uint16_t flags, struct shmq_record *record) {
    return shmq_mpmc_try_reserve(shmq_lanes_slots(ring, producer->urgent), &producer->mpmc, bytes, codec,
                                 flags, record);
}

void shmq_lanes_commit(const struct shmq_ring *ring, struct shmq_ring_side *producer) {
    shmq_mpmc_commit(shmq_lanes_slots(ring, producer->urgent), &producer->mpmc);
}

void shmq_lanes_abort(const struct shmq_ring *ring, struct shmq_ring_side *producer) {
    shmq_mpmc_abort(shmq_lanes_slots(ring, producer->urgent), &producer->mpmc);
}

/* ---- consumer: `urgent` is where it peeked ---- */

int shmq_lanes_try_peek_in(const struct shmq_ring *ring, struct shmq_ring_side *consumer, uint32_t urgent,
                           struct shmq_record *record) {
    int status = shmq_mpmc_try_peek(shmq_lanes_slots(ring, urgent), &consumer->mpmc, record);
    if (status == SHMQ_OK) consumer->urgent = urgent; /* death before: our slot's word says READING */
    return status;
}

int shmq_lanes_try_peek(const struct shmq_ring *ring, struct shmq_ring_side *consumer,
                        struct shmq_record *record) {
    uint32_t first = consumer->in_a_row < SHMQ_URGENT_RUN; /* 1: the urgent lane */
    int status = shmq_lanes_try_peek_in(ring, consumer, first, record);
    return status == SHMQ_EMPTY ? shmq_lanes_try_peek_in(ring, consumer, !first, record) : status;
}

/* What is put back was not taken, and is not counted. */
void shmq_lanes_release(const struct shmq_ring *ring, struct shmq_ring_side *consumer) {
    consumer->in_a_row = consumer->urgent != 0 ? consumer->in_a_row + 1 : 0;
    shmq_mpmc_release(shmq_lanes_slots(ring, consumer->urgent), &consumer->mpmc);
}

void shmq_lanes_unpeek(const struct shmq_ring *ring, struct shmq_ring_side *consumer) {
    shmq_mpmc_unpeek(shmq_lanes_slots(ring, consumer->urgent), &consumer->mpmc);
}

/* ---- for onlookers and reapers: nothing here writes ---- */

/* In the order of a consumer that has just taken a bulk message, but for its turns. */
int shmq_lanes_look(const struct shmq_ring *ring, uint32_t index, struct shmq_record *record) {
    uint64_t before = ring->lanes == 2 ? shmq_mpmc_waiting(&ring->urgent) : 0;
    if (index < before) return shmq_mpmc_look(&ring->urgent, index, record);
    return shmq_mpmc_look(&ring->mpmc, index - (uint32_t)before, record);
}

bool shmq_lanes_published(const struct shmq_ring *ring, uint64_t argument, uint64_t handle) {
    return shmq_mpmc_published(shmq_lanes_slots(ring, argument & 1), argument, handle);
}
