/* topics.h: what publishers and subscribers do, cut short; see operations.h.
 *
 * A handle either publishes or subscribes.  So of the survivors one publishes, and the other, `reader`, subscribes
 * before the scene; the victim may be either.  The policy is to block: what `reader` has not read is there.
 *
 * A scene has a fifth part here, between the victim's two:
 *
 *     meanwhile    the survivors', while the victim stands before its act
 */
#ifndef TOPICS_H
#define TOPICS_H

#include "operations.h"

enum { HISTORY = 4 };

static void reads(uint64_t messages) {
    for (uint64_t number; messages > 0; messages--) OK(lab_get(reader, &number, SHMQ_NO_WAIT));
}
static void put_shorts(shmq_queue *q, uint64_t first, uint64_t last) {
    for (uint64_t number = first; number <= last; number++) put_short(q, number);
}

/* ---- a publisher ---- */

/* History 0, and nobody is there: what lies in the slot that is next holds its block still. */
static void one_lap(shmq_queue *q) {
    put_long(q, 1);
    put_shorts(q, 2, q->segment.geometry.slots);
}
static void ready_to_put_next_lap(shmq_queue *q) {
    message_write(hand.message, q->segment.geometry.slots + 1, SHORT);
}
/* The next message puts the block out of the history. */
static void four_read(shmq_queue *q) {
    put_long(q, 1);
    put_shorts(q, 2, HISTORY);
    reads(HISTORY);
}
static void ready_to_put_fifth(shmq_queue *q) {
    (void)q;
    message_write(hand.message, HISTORY + 1, SHORT);
}
/* The history has all pages. */
static void two_read(shmq_queue *q) {
    put_long(q, 1);
    put_long(q, 2);
    reads(2);
}
static void ready_to_put_third(shmq_queue *q) {
    (void)q;
    message_write(hand.message, 3, LEAST_BLOCK);
}

/* ---- a subscriber ---- */

static void see_one(shmq_queue *q) { OK(shmq_subscribe(q, 1)); }
static void see_four(shmq_queue *q) { OK(shmq_subscribe(q, HISTORY)); }
static void see_the_rest(shmq_queue *q) { OK(shmq_subscribe(q, 0)); }
static void see_one_and_get_it(shmq_queue *q) {
    see_one(q);
    get_and_release(q);
}
static void see_one_and_hold_it(shmq_queue *q) {
    see_one(q);
    get_one(q);
}
static void see_four_and_hold_one(shmq_queue *q) {
    see_four(q);
    get_one(q);
}
static void see_four_and_get_two(shmq_queue *q) {
    see_four(q);
    get_two(q);
}
static void one_block(shmq_queue *q) { put_long(q, 1); }
static int subscribe(shmq_queue *q) { return shmq_subscribe(q, HISTORY); }

/* It is read, and out of the history: whoever still has it is its last reader. */
static void block_expires(shmq_queue *q) {
    put_shorts(q, 2, HISTORY + 1);
    reads(HISTORY + 1);
}
static void others_read_first(shmq_queue *q) {
    put_long(q, 1);
    put_short(q, 2);
    reads(2);
}

/* ---- who is dead ---- */

static void hold_two_views(shmq_queue *q) {
    see_four_and_hold_one(q);
    get_and_release(q);
    get_one(q);
}
/* A loan, and a block that is sent: its slot is claimed, and no message is there yet. */
static void publish_a_half(shmq_queue *q) {
    struct shmq_record record;
    shmq_block *b;
    OK(shmq_loan(q, LEAST_BLOCK, SHMQ_NO_WAIT, &hand.block));
    OK(shmq_loan(q, BLOCK, SHMQ_NO_WAIT, &b));
    OK(shmq_try_reserve(q, 8, SHMQ_RAW, SHMQ_RECORD_BLOCK, &record));
    shmq_arena_share(&q->arena, b->page, b->word);
    OK(shmq_arena_send(&q->arena, b->page, &b->word, record.position));
}
static void all_read_and_four_more(shmq_queue *q) {
    put_shorts(q, 5, 4 + HISTORY);
    reads(4 + HISTORY);
}

static const struct operation topic_operations[] = {
    {"publish in-line", .before = ready_to_put, .act = put_inline, .adds = 1},
    {"first publish", .before = ready_to_put_first, .act = put_inline, .adds = 1},
    {"publish block", .before = ready_to_put_block, .act = put_block, .adds = 1},
    {"publish_many", .before = ready_to_put_many, .act = put_run, .adds = RUN},
    {"loan, publish", .before = ready_to_loan, .act = loan_and_publish, .adds = 1, .unfilled = true},
    {"publish loan", .before = ready_to_publish, .act = publish, .adds = 1},
    {"loan, discard", .before = ready_to_loan, .act = loan_and_discard},
    {"publish, ring full", .before = fill_the_ring, .act = put_inline_late, .status = SHMQ_FULL},
    {"publish, arena full", .before = fill_the_arena, .act = put_block_late, .status = SHMQ_ARENA_FULL},
    {"publish over a block", one_lap, .before = ready_to_put_next_lap, .act = put_inline, .adds = 1,
     .read = 16, .bare = true, .late = true},
    {"publish, expire", four_read, .before = ready_to_put_fifth, .act = put_inline, .adds = 1,
     .read = HISTORY},
    {"publish, reclaim", two_read, .before = ready_to_put_third, .act = put_block, .adds = 1, .read = 2},
    {"subscribe", four_wait, .act = subscribe},
    {"get in-line", four_wait, .before = see_four_and_hold_one, .act = get, .takes = 1, .sees = 2,
     .at_head = true},
    {"first get", four_wait, .before = see_four, .act = get, .takes = 1, .sees = 1, .at_head = true},
    {"get block", four_wait, .before = see_four_and_get_two, .act = get, .takes = 1, .sees = 3,
     .at_head = true},
    {"get, last reader", .before = see_the_rest, .meanwhile = others_read_first, .act = get, .takes = 1,
     .sees = 1, .read = 2, .bare = true, .at_head = true},
    {"get, give back", four_wait, .before = see_four_and_get_two, .act = get_and_give_back, .at_head = true},
    {"get, empty", one_waits, .before = see_one_and_get_it, .act = get_late, .status = SHMQ_EMPTY,
     .at_head = true},
    {"release", four_wait, .before = see_four_and_hold_one, .act = release, .at_head = true},
    {"release, last reader", one_block, .before = see_one_and_hold_it, .meanwhile = block_expires,
     .act = release, .read = HISTORY + 1, .at_head = true},
    {"attach", four_wait, .act = attach, .attaches = true},
    {"attach, repair reader", four_wait, .earlier = hold_two_views, .act = attach, .attaches = true},
    {"attach, repair publisher", two_wait, .earlier = publish_a_half, .act = attach, .attaches = true},
    {"detach", .before = two_wait, .act = detach},
    {"detach, holding", four_wait, .before = see_four_and_hold_one, .act = detach, .at_head = true},
    {"reap reader", four_wait, .earlier = hold_two_views, .act = reap},
    {"reap last reader", four_wait, .earlier = hold_two_views, .meanwhile = all_read_and_four_more,
     .act = reap, .read = 4 + HISTORY},
    {"reap publisher", two_wait, .earlier = publish_a_half, .act = reap},
};
#define TOPIC_OPERATIONS (sizeof topic_operations / sizeof *topic_operations)

#endif
