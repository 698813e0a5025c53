/* lanes.h: what is done on a queue with two lanes, cut short; see operations.h.
 *
 * Messages are numbered in the order in which they are taken; what an act puts is the last by number, whichever its
 * lane.  Some operations are of a queue whose messages are acknowledged, too, see leases.h.
 */
#ifndef LANES_H
#define LANES_H

#include "leases.h"

static void into_lane(shmq_queue *q, int urgent, void (*put)(shmq_queue *, uint64_t), uint64_t number) {
    OK(shmq_set_priority(q, urgent));
    put(q, number);
    OK(shmq_set_priority(q, 0));
}
static void put_least(shmq_queue *q, uint64_t number) { put_small_blocks(q, number, number); }

/* ---- a producer: 1 waits in the urgent lane, 2 in the other, 3 is on its way ---- */

static void one_in_each(shmq_queue *q) {
    into_lane(q, 1, put_least, 1);
    into_lane(q, 0, put_short, 2);
}
static void ready_in_bulk(shmq_queue *q) {
    one_in_each(q);
    message_write(hand.message, 3, SHORT);
}
static void ready_in_bulk_block(shmq_queue *q) {
    one_in_each(q);
    message_write(hand.message, 3, LEAST_BLOCK);
}
static void ready_urgent(shmq_queue *q) {
    ready_in_bulk(q);
    OK(shmq_set_priority(q, 1));
}
static void ready_urgent_block(shmq_queue *q) {
    ready_in_bulk_block(q);
    OK(shmq_set_priority(q, 1));
}
static void ready_urgent_run(shmq_queue *q) {
    one_in_each(q);
    for (uint64_t i = 0; i < RUN; i++) message_write(hand.message + i * SHORT, 3 + i, SHORT);
    OK(shmq_set_priority(q, 1));
}
static void ready_to_publish_urgent(shmq_queue *q) {
    one_in_each(q);
    OK(shmq_set_priority(q, 1));
    OK(shmq_loan(q, BLOCK, SHMQ_NO_WAIT, &hand.block));
    OK(shmq_set_priority(q, 0));
    message_write(hand.block->data, 3, BLOCK);
}
static void fill_the_urgent_lane(shmq_queue *q) {
    OK(shmq_set_priority(q, 1));
    fill_the_ring(q);
}

/* ---- a consumer: 1 and 2 wait in the urgent lane, 3 and 4 in the other ---- */

static void two_in_each(shmq_queue *q) {
    into_lane(q, 1, put_long, 1);
    into_lane(q, 1, put_short, 2);
    into_lane(q, 0, put_long, 3);
    into_lane(q, 0, put_short, 4);
}
/* ... the other way round, and it is the others' turn. */
static void two_in_each_bulk_first(shmq_queue *q) {
    into_lane(q, 0, put_long, 1);
    into_lane(q, 0, put_short, 2);
    into_lane(q, 1, put_long, 3);
    into_lane(q, 1, put_short, 4);
}
static void has_had_its_run(shmq_queue *q) { q->get.ring.in_a_row = 16; }
static void urgent_given_back(shmq_queue *q) {
    into_lane(q, 1, put_least, 1);
    into_lane(q, 0, put_least, 2);
    given_back(q, false);
}
static void urgent_given_back_and_looked_at(shmq_queue *q) {
    into_lane(q, 1, put_least, 1);
    into_lane(q, 0, put_least, 2);
    given_back(q, true);
}
static void least_in_each(shmq_queue *q) {
    into_lane(q, 1, put_least, 1);
    into_lane(q, 0, put_least, 2);
}
static void short_in_each(shmq_queue *q) {
    into_lane(q, 1, put_short, 1);
    into_lane(q, 0, put_short, 2);
}
static void least_in_each_bulk_first(shmq_queue *q) {
    into_lane(q, 0, put_least, 1);
    into_lane(q, 1, put_least, 2);
}

/* ---- who is dead ---- */

/* Takes the next message as far as its block. */
static void begin_to_take(shmq_queue *q) {
    const struct shmq_block_header *header;
    struct shmq_record record;
    shmq_block *b;
    OK(shmq_get_begin(q));
    OK(shmq_try_next(q, &record));
    if ((record.flags & SHMQ_RECORD_BLOCK) != 0) OK(shmq_try_lease(q, &record, NULL, &b, &header));
}
/* Sends a block, and does not publish it. */
static void begin_to_put(shmq_queue *q, uint32_t urgent) {
    struct shmq_record record;
    shmq_block *b;
    OK(shmq_loan(q, LEAST_BLOCK, SHMQ_NO_WAIT, &b));
    q->put.ring.urgent = urgent;
    OK(shmq_try_reserve(q, sizeof(uint64_t), SHMQ_RAW, SHMQ_RECORD_BLOCK, &record));
    store_release((shmq_a64 *)(void *)record.payload, shmq_handle(b->page, shmq_word_generation(b->word)));
    OK(shmq_arena_send(&q->arena, b->page, &b->word, record.position));
}
/* It reads and writes in both lanes. */
static void have_both_in_hand(shmq_queue *q) {
    into_lane(q, 1, put_least, 1);
    into_lane(q, 1, put_short, 2);
    into_lane(q, 0, put_least, 3);
    into_lane(q, 0, put_short, 4);
    begin_to_take(q);
    has_had_its_run(q);
    begin_to_take(q);
    begin_to_put(q, 1);
    begin_to_put(q, 0);
}
/* 1 is leased, 2 in its entry and still in its slot, 3 on its way, from the other lane's slot of the same number as
 * that of 1; 4 waits. */
static void have_leases_of_both(shmq_queue *q) {
    const struct shmq_block_header *header;
    struct shmq_record record;
    shmq_message m;
    shmq_delivery d;
    shmq_block *b;
    into_lane(q, 1, put_least, 1);
    into_lane(q, 1, put_short, 2);
    into_lane(q, 0, put_least, 3);
    into_lane(q, 0, put_short, 4);
    lease_into(q, &m, &d);
    OK(shmq_lease_begin(q, &d, &record, &b, &header));
    shmq_pending_fill(&q->pending, &d, shmq_ring_slot(&q->ring, &q->get.ring), &record,
                      (uint64_t)shmq_now_ns());
    has_had_its_run(q);
    OK(shmq_lease_begin(q, &d, &record, &b, &header));
}

static const struct operation lane_operations[] = {
    {"put urgent in-line", .before = ready_urgent, .act = put_inline, .adds = 1, .urgent = true},
    {"put urgent block", .before = ready_urgent_block, .act = put_block, .adds = 1, .urgent = true},
    {"put beside urgent", .before = ready_in_bulk, .act = put_inline, .adds = 1},
    {"put block beside urgent", .before = ready_in_bulk_block, .act = put_block, .adds = 1},
    {"put_many urgent", .before = ready_urgent_run, .act = put_run, .adds = RUN, .urgent = true},
    {"publish urgent", .before = ready_to_publish_urgent, .act = publish, .adds = 1, .urgent = true},
    {"put urgent, lane full", .before = fill_the_urgent_lane, .act = put_inline_late, .status = SHMQ_FULL,
     .urgent = true},
    {"get urgent in-line", two_in_each, .before = get_one, .act = get, .takes = 1, .at_head = true,
     .urgent = true},
    {"get urgent block", two_in_each, .act = get, .takes = 1, .at_head = true, .urgent = true},
    {"get behind urgent", two_in_each, .before = get_two, .act = get, .takes = 1, .at_head = true},
    {"get in turn", two_in_each_bulk_first, .before = has_had_its_run, .act = get, .takes = 1,
     .at_head = true},
    {"get urgent, give back", two_in_each, .act = get_and_give_back, .at_head = true, .urgent = true},
    {"get, both empty", one_waits, .before = get_and_release, .act = get_late, .status = SHMQ_EMPTY,
     .at_head = true, .urgent = true},
    {"attach, repair both", .earlier = have_both_in_hand, .act = attach, .attaches = true},
    {"reap both", .earlier = have_both_in_hand, .act = reap},
    {"lease urgent in-line", short_in_each, .act = lease_one, .at_head = true, .urgent = true,
     .leased = true},
    {"lease urgent block", least_in_each, .act = lease_one, .at_head = true, .urgent = true, .leased = true},
    {"lease urgent, ack", least_in_each, .act = lease_and_ack, .takes = 1, .at_head = true, .urgent = true,
     .leased = true},
    {"lease in turn", least_in_each_bulk_first, .before = has_had_its_run, .act = lease_one, .at_head = true,
     .leased = true},
    {"lease urgent again", urgent_given_back, .act = lease_one, .at_head = true, .urgent = true,
     .leased = true},
    {"lease urgent again copy", urgent_given_back_and_looked_at, .act = lease_one, .at_head = true,
     .urgent = true, .leased = true},
    {"reap lessee of both", .earlier = have_leases_of_both, .act = reap, .leased = true},
};
#define LANE_OPERATIONS (sizeof lane_operations / sizeof *lane_operations)

#endif
