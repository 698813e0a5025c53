/* operations.h: what is cut short, and the scene that it is cut short in.
 *
 * Messages bear the numbers 1, 2, 3, ... in the order in which they are put.  A scene is set in four parts, each
 * left out where it is NULL:
 *
 *     scene     the survivor's: it is never interrupted
 *     earlier   another peer does this and is killed then, so that the victim meets the remains
 *     before    the victim's, not interrupted
 *     act       the victim's, killed (or stopped) at every instruction.  Returns the status of its last call.
 */
#ifndef OPERATIONS_H
#define OPERATIONS_H

#include "lab.h"

enum { INLINE_BYTES = 224, SHORT = 40, BLOCK = 2 * SHMQ_SMALL_PAGE + 100, LEAST_BLOCK = INLINE_BYTES + 16 };
enum { PAGES = 6, PEERS = 8, RUN = 4 };
#define PASSED                                                                                               \
    INT64_C(1) /* a deadline that has passed, but not SHMQ_NO_WAIT: the call goes as far as a wait */

/* What the victim tells the survivor outside the queue. */
static struct notes {
    shmq_a32 status;
    shmq_a64 put; /* messages that its act put */
    shmq_a64 got; /* number of the message that its act took; 0: none */
    shmq_a32 index;
} *notes;

struct operation {
    const char *name;
    void (*scene)(shmq_queue *survivor);
    void (*earlier)(shmq_queue *q);
    void (*before)(shmq_queue *victim);
    void (*meanwhile)(shmq_queue *survivor); /* topics.h */
    int (*act)(shmq_queue *victim);
    int status;     /* of an act that came to its end */
    uint64_t adds;  /* messages that it puts */
    uint64_t takes; /* ... and takes */
    bool attaches;  /* the act does that itself: its victim is NULL */
    bool at_head;   /* it works at the head, so that is to be at the wrap */
    bool unfilled;  /* its message lies in pages that are free: it must not be stopped while others go on */
    bool delays;    /* a message may come only after a while, leases.h */
    bool urgent;    /* lanes.h: the lane that it works in, of which the wrap is to be near */
    bool leased;    /* lanes.h: messages are acknowledged */
    bool vain;      /* its key is never put, keyed.h */
    /* Topics only, where what the victim takes is still there for others: */
    uint64_t sees; /* number of the message that it takes */
    uint64_t read; /* messages that `reader` has read before the act */
    bool bare;     /* the topic keeps no history ... */
    bool late;     /* ... and nobody has subscribed when the scene is set */
};

static int object;         /* the segment's descriptor */
static shmq_queue *reader; /* topic: the survivor that subscribes */

/* What a victim holds between the parts of its scene. */
static struct {
    uint8_t message[LEAST_BLOCK > RUN *SHORT ? LEAST_BLOCK : RUN *SHORT];
    shmq_message taken;
    shmq_block *block;
    shmq_queue *queue;
} hand;

static void put_short(shmq_queue *q, uint64_t number) { OK(lab_put(q, number, SHORT, SHMQ_NO_WAIT)); }
static void put_long(shmq_queue *q, uint64_t number) { OK(lab_put(q, number, BLOCK, SHMQ_NO_WAIT)); }

/* ---- a producer: 1 and 2 wait, 3 and perhaps more are on their way ---- */

static void two_wait(shmq_queue *q) {
    OK(lab_put(q, 1, LEAST_BLOCK, SHMQ_NO_WAIT));
    put_short(q, 2);
}
static void ready_to_put(shmq_queue *q) {
    two_wait(q);
    message_write(hand.message, 3, SHORT);
}
static void ready_to_put_first(shmq_queue *q) {
    (void)q;
    message_write(hand.message, 1, SHORT);
}
static void ready_to_put_block(shmq_queue *q) {
    two_wait(q);
    message_write(hand.message, 3, LEAST_BLOCK);
}
static void ready_to_put_many(shmq_queue *q) {
    two_wait(q);
    for (uint64_t i = 0; i < RUN; i++) message_write(hand.message + i * SHORT, 3 + i, SHORT);
}
/* The pages that the act will be lent bear its message already: filling them would be thousands of steps. */
static void ready_to_loan(shmq_queue *q) {
    shmq_block *b;
    two_wait(q);
    OK(shmq_loan(q, BLOCK, SHMQ_NO_WAIT, &b));
    message_write(b->data, 3, BLOCK);
    shmq_block_release(b);
}
static void ready_to_publish(shmq_queue *q) {
    two_wait(q);
    OK(shmq_loan(q, BLOCK, SHMQ_NO_WAIT, &hand.block));
    message_write(hand.block->data, 3, BLOCK);
}
static void fill_the_ring(shmq_queue *q) {
    uint64_t number = 1;
    while (lab_put(q, number, SHORT, SHMQ_NO_WAIT) == SHMQ_OK) number++;
    message_write(hand.message, number, SHORT);
}
static void fill_the_arena(shmq_queue *q) {
    OK(lab_put(q, 1, PAGES / 2 * SHMQ_SMALL_PAGE, SHMQ_NO_WAIT));
    OK(lab_put(q, 2, PAGES / 2 * SHMQ_SMALL_PAGE, SHMQ_NO_WAIT));
    message_write(hand.message, 3, LEAST_BLOCK);
}

static int did_put(int status) {
    if (status == SHMQ_OK) store_release(&notes->put, 1);
    return status;
}
static int put_inline(shmq_queue *q) { return did_put(shmq_put(q, hand.message, SHORT, SHMQ_NO_WAIT)); }
static int put_block(shmq_queue *q) { return did_put(shmq_put(q, hand.message, LEAST_BLOCK, SHMQ_NO_WAIT)); }
static int put_inline_late(shmq_queue *q) { return did_put(shmq_put(q, hand.message, SHORT, PASSED)); }
static int put_block_late(shmq_queue *q) { return did_put(shmq_put(q, hand.message, LEAST_BLOCK, PASSED)); }
static int put_run(shmq_queue *q) {
    uint64_t done;
    int status = shmq_put_many(q, hand.message, SHORT, RUN, SHMQ_NO_WAIT, &done);
    store_release(&notes->put, done);
    return status;
}
static int publish(shmq_queue *q) {
    (void)q;
    return did_put(shmq_publish(hand.block, NULL, SHMQ_NO_WAIT));
}
static int loan_and_publish(shmq_queue *q) {
    int status = shmq_loan(q, BLOCK, SHMQ_NO_WAIT, &hand.block);
    return status == SHMQ_OK ? publish(q) : status;
}
static int loan_and_discard(shmq_queue *q) {
    shmq_block *b;
    int status = shmq_loan(q, BLOCK, SHMQ_NO_WAIT, &b);
    if (status == SHMQ_OK) shmq_block_release(b);
    return status;
}

/* ---- a consumer: 1 to 4 wait, blocks and in-line in turn ---- */

static void four_wait(shmq_queue *q) {
    put_long(q, 1);
    put_short(q, 2);
    put_long(q, 3);
    put_short(q, 4);
}
static void get_one(shmq_queue *q) {
    OK(shmq_get(q, &hand.taken, SHMQ_NO_WAIT));
    (void)message_number(hand.taken.data, hand.taken.bytes);
}
static void get_two(shmq_queue *q) {
    get_one(q);
    shmq_message_release(&hand.taken);
    get_one(q);
}
static void get_and_release(shmq_queue *q) {
    get_one(q);
    shmq_message_release(&hand.taken);
}
static void one_waits(shmq_queue *q) { put_short(q, 1); }

static int get_until(shmq_queue *q, int64_t deadline_ns) {
    shmq_message m;
    int status = shmq_get(q, &m, deadline_ns);
    if (status != SHMQ_OK) return status;
    store_release(&notes->got, *(const uint64_t *)m.data);
    shmq_message_release(&m);
    return SHMQ_OK;
}
static int get(shmq_queue *q) { return get_until(q, SHMQ_NO_WAIT); }
static int get_late(shmq_queue *q) { return get_until(q, PASSED); }
/* What a caller does that finds no memory for a message which it has leased: the message is there again. */
static int get_and_give_back(shmq_queue *q) {
    const struct shmq_block_header *header;
    struct shmq_record record;
    shmq_block *b;
    int status = shmq_get_begin(q);
    struct shmq_spsc_side before = q->get.ring.spsc;
    if (status == SHMQ_OK) status = shmq_try_next(q, &record);
    if (status == SHMQ_OK && (record.flags & SHMQ_RECORD_BLOCK) != 0) {
        status = shmq_try_lease(q, &record, NULL, &b, &header);
        if (status == SHMQ_OK) shmq_unlease(b, &record);
    }
    if (status != SHMQ_OK) return status;
    shmq_put_back(q, &before);
    return SHMQ_OK;
}
static int release(shmq_queue *q) {
    (void)q;
    shmq_message_release(&hand.taken);
    return SHMQ_OK;
}

/* ---- whoever comes, leaves or repairs ---- */

/* One peer as producer and consumer, with a loan, a lease and messages under way. */
static void have_a_bit_of_everything(shmq_queue *q) {
    put_long(q, 1);
    OK(lab_put(q, 2, SHMQ_SMALL_PAGE + 100, SHMQ_NO_WAIT));
    put_short(q, 3);
    get_one(q);
    OK(shmq_loan(q, LEAST_BLOCK, SHMQ_NO_WAIT, &hand.block));
}
static void put_and_get(shmq_queue *q) {
    OK(lab_put(q, 1, LEAST_BLOCK, SHMQ_NO_WAIT));
    put_short(q, 2);
    put_short(q, 3);
    get_and_release(q);
}
static int attach(shmq_queue *none) {
    (void)none;
    return shmq_attach(object, &hand.queue);
}
static int detach(shmq_queue *q) {
    shmq_free(q);
    return SHMQ_OK;
}
static int reap(shmq_queue *q) {
    uint32_t repaired;
    return shmq_reap(q, &repaired);
}

static const struct operation operations[] = {
    {"put in-line", .before = ready_to_put, .act = put_inline, .adds = 1},
    {"first put", .before = ready_to_put_first, .act = put_inline, .adds = 1},
    {"put block", .before = ready_to_put_block, .act = put_block, .adds = 1},
    {"put_many", .before = ready_to_put_many, .act = put_run, .adds = RUN},
    {"loan, publish", .before = ready_to_loan, .act = loan_and_publish, .adds = 1, .unfilled = true},
    {"publish", .before = ready_to_publish, .act = publish, .adds = 1},
    {"loan, discard", .before = ready_to_loan, .act = loan_and_discard},
    {"put, ring full", .before = fill_the_ring, .act = put_inline_late, .status = SHMQ_FULL},
    {"put, arena full", .before = fill_the_arena, .act = put_block_late, .status = SHMQ_ARENA_FULL},
    {"get in-line", four_wait, .before = get_one, .act = get, .takes = 1, .at_head = true},
    {"first get", four_wait, .act = get, .takes = 1, .at_head = true},
    {"get block", four_wait, .before = get_two, .act = get, .takes = 1, .at_head = true},
    {"get, give back", four_wait, .before = get_two, .act = get_and_give_back, .at_head = true},
    {"release", four_wait, .before = get_one, .act = release, .at_head = true},
    {"get, empty", one_waits, .before = get_and_release, .act = get_late, .status = SHMQ_EMPTY,
     .at_head = true},
    {"attach", four_wait, .act = attach, .attaches = true},
    {"attach, repair", .earlier = have_a_bit_of_everything, .act = attach, .attaches = true},
    {"detach", .before = put_and_get, .act = detach},
    {"detach, holding", .before = have_a_bit_of_everything, .act = detach},
    {"reap", .earlier = have_a_bit_of_everything, .act = reap},
};
#define OPERATIONS (sizeof operations / sizeof *operations)

/* What a repairer does, at the second level: there is no scene but what the dead left. */
static const struct operation repair = {"repair", .act = reap};

#endif
