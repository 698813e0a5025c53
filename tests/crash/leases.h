/* leases.h: what consumers of messages that are to be acknowledged do, cut short; see operations.h.
 *
 * In the end each message is acknowledged: by the victim, or else by a survivor.  What is "committed" lies in the
 * ring or in the pending table.  A message stays leased for an hour, unless a scene makes it overdue.
 *
 * A survivor may look at a block throughout, in `looked`: its delivery is stale in the end, and what it sees is
 * whole.
 */
#ifndef LEASES_H
#define LEASES_H

#include "operations.h"

enum { TABLE = 8 };
#define VISIBILITY_NS UINT64_C(3600000000000)
#define DELAY_NS UINT64_C(1000000)

/* A survivor's lease, and the block as the scene left it: a round that drops the view does not end the block. */
static struct {
    shmq_queue *by;
    shmq_message m;
    shmq_delivery d;
    shmq_block block;
} looked;

static void put_small_blocks(shmq_queue *q, uint64_t first, uint64_t last) {
    for (uint64_t i = first; i <= last; i++) OK(lab_put(q, i, LEAST_BLOCK, SHMQ_NO_WAIT));
}

/* ---- the table, as it lies ---- */

static struct shmq_pending_entry *entry_of(const shmq_queue *q, uint32_t i) { return &q->pending.entries[i]; }

/* Everything that is unacknowledged is overdue from now on. */
static void make_overdue(shmq_queue *q) {
    for (uint32_t i = 0; i < TABLE; i++)
        if (shmq_slot_state(load_acquire(&entry_of(q, i)->word)) == SHMQ_PENDING_UNACKED)
            store_relaxed(&entry_of(q, i)->due_ns, 0);
    store_relaxed(q->pending.next_due, 0);
}

/* Is the message of this slot one that an entry has?  Positions without the bits that a word has not. */
static bool is_in_table(const shmq_queue *q, const struct shmq_slots *ring, uint64_t lap, uint64_t index) {
    uint64_t bits = (UINT64_C(1) << (SHMQ_LAP_BITS + ring->shift)) - 1;
    for (uint32_t i = 0; i < TABLE; i++)
        if (shmq_slot_state(load_acquire(&entry_of(q, i)->word)) >= SHMQ_PENDING_UNACKED &&
            (load_relaxed(&entry_of(q, i)->position) & SHMQ_POSITION_URGENT) == ring->lane &&
            (load_relaxed(&entry_of(q, i)->position) >> 3 & bits) == (lap << ring->shift | index))
            return true;
    return false;
}

/* Times are the hour's or the clock's, and differ from life to life. */
static uint64_t time_class(uint64_t due_ns) { return due_ns == 0 || due_ns == SHMQ_NEVER ? due_ns : 1; }

/* ---- the survivors' scenes ---- */

static void lease_into(shmq_queue *q, shmq_message *m, shmq_delivery *d) {
    OK(shmq_lease(q, m, d, SHMQ_NO_WAIT));
}
static void short_first(shmq_queue *q) {
    put_short(q, 1);
    put_small_blocks(q, 2, 2);
    put_short(q, 3);
}
static void block_first(shmq_queue *q) {
    put_small_blocks(q, 1, 1);
    put_short(q, 2);
}
static void three_blocks(shmq_queue *q) {
    put_short(q, 1);
    put_small_blocks(q, 2, 3);
}
static void given_back(shmq_queue *q, bool and_looks_on) {
    looked.by = q;
    lease_into(q, &looked.m, &looked.d);
    if (!and_looks_on) shmq_message_release(&looked.m);
    OK(shmq_nack(q, &looked.d, 0));
}
static void short_given_back(shmq_queue *q) {
    short_first(q);
    given_back(q, false);
}
static void block_given_back(shmq_queue *q) {
    block_first(q);
    given_back(q, false);
}
static void block_given_back_and_looked_at(shmq_queue *q) {
    block_first(q);
    given_back(q, true);
}
static void held_for_long(shmq_queue *q, bool looks_on) {
    looked.by = q;
    lease_into(q, &looked.m, &looked.d);
    if (!looks_on) shmq_message_release(&looked.m);
    make_overdue(q);
}
static void short_held_for_long(shmq_queue *q) {
    short_first(q);
    held_for_long(q, false);
}
static void block_held_for_long(shmq_queue *q) {
    block_first(q);
    held_for_long(q, false);
}
static void block_looked_at_for_long(shmq_queue *q) {
    block_first(q);
    held_for_long(q, true);
}
/* Meanwhile: what the victim has is overdue, and a survivor's, which acknowledges it. */
static void took_it(shmq_queue *q) {
    shmq_message m;
    shmq_delivery d;
    make_overdue(q);
    lease_into(q, &m, &d);
    CHECK_EQ(d.deliveries, 2);
    OK(shmq_ack(q, &d));
    shmq_message_release(&m);
}
/* ... which holds it still: nobody but the victim's reaper knows of it. */
static void is_overdue(shmq_queue *q) { make_overdue(q); }

/* ---- the victim ---- */

static shmq_delivery has[TABLE]; /* what the victim has leased */

static void has_first(shmq_queue *q) { lease_into(q, &hand.taken, &has[0]); }
static void had_first(shmq_queue *q) {
    has_first(q);
    shmq_message_release(&hand.taken);
}
static void has_acked_first(shmq_queue *q) {
    has_first(q);
    OK(shmq_ack(q, &has[0]));
}
static void has_three(shmq_queue *q) {
    for (int i = 0; i < 3; i++) {
        shmq_message_release(&hand.taken);
        lease_into(q, &hand.taken, &has[i]);
    }
}

static int lease_one(shmq_queue *q) { return shmq_lease(q, &hand.taken, &has[0], SHMQ_NO_WAIT); }
static int lease_late(shmq_queue *q) { return shmq_lease(q, &hand.taken, &has[0], PASSED); }
static int ack_one(shmq_queue *q) {
    int status = shmq_ack(q, &has[0]);
    if (status == SHMQ_OK) store_release(&notes->got, 1);
    return status;
}
static int lease_and_ack(shmq_queue *q) {
    int status = lease_one(q);
    if (status != SHMQ_OK) return status;
    uint64_t number = *(const uint64_t *)hand.taken.data;
    status = shmq_ack(q, &has[0]);
    if (status == SHMQ_OK) store_release(&notes->got, number);
    shmq_message_release(&hand.taken);
    return status;
}
static int nack_one(shmq_queue *q) { return shmq_nack(q, &has[0], 0); }
static int nack_for_a_while(shmq_queue *q) { return shmq_nack(q, &has[0], DELAY_NS); }
static int close_it(shmq_queue *q) {
    shmq_close(q);
    return SHMQ_OK;
}
static int call_off(shmq_queue *q) {
    const struct shmq_block_header *header;
    struct shmq_record record;
    shmq_block *b;
    int status = shmq_get_begin(q);
    if (status == SHMQ_OK) status = shmq_lease_begin(q, &has[0], &record, &b, &header);
    if (status == SHMQ_OK) shmq_lease_cancel(q, &has[0], &record, b);
    return status;
}
static int join_late(shmq_queue *q) { return shmq_join(q, PASSED); }

/* ---- who is dead ---- */

/* Of six messages the first two are acknowledged: one is looked at; of the other the last view was dropped, and nobody
 * saw yet that it is spent.  The third is leased, the fourth too, and looked at; the fifth is in its entry, and still
 * in its slot; the sixth on its way. */
static void have_some_of_all(shmq_queue *q) {
    const struct shmq_block_header *header;
    struct shmq_record record;
    shmq_message m;
    shmq_delivery d;
    shmq_block *b;
    uint64_t handle;
    put_small_blocks(q, 1, 2);
    put_short(q, 3);
    put_small_blocks(q, 4, 4);
    put_short(q, 5);
    put_small_blocks(q, 6, 6);
    lease_into(q, &m, &d);
    OK(shmq_ack(q, &d));
    lease_into(q, &m, &d);
    CHECK(shmq_arena_return(&q->arena, m.block->page, &m.block->word));
    OK(shmq_pending_ack(&q->pending, &d, &handle));
    lease_into(q, &m, &d);
    lease_into(q, &m, &d);
    OK(shmq_lease_begin(q, &d, &record, &b, &header));
    shmq_pending_fill(&q->pending, &d, shmq_slot_at(&q->ring.mpmc, q->get.ring.mpmc.position), &record,
                      (uint64_t)shmq_now_ns());
    OK(shmq_lease_begin(q, &d, &record, &b, &header));
}
/* What it has is delivered again, and given back, when it dies. */
static void have_some_again(shmq_queue *q) {
    shmq_delivery d[3];
    shmq_message m;
    put_small_blocks(q, 1, 2);
    put_short(q, 3);
    for (int i = 0; i < 3; i++) lease_into(q, &m, &d[i]);
    for (int i = 0; i < 3; i++) OK(shmq_nack(q, &d[i], i == 2 ? DELAY_NS : 0));
    lease_into(q, &m, &d[0]); /* a copy: it looks on */
    OK(shmq_pending_try_take(&q->pending, 1, &d[1]));
}

/* at_head is left out: positions of the ring matter as they do on an mpmc queue. */
static const struct operation lease_operations[] = {
    {"lease in-line", short_first, .act = lease_one, .at_head = true},
    {"lease block", block_first, .act = lease_one, .at_head = true},
    {"lease, ack", block_first, .act = lease_and_ack, .takes = 1, .at_head = true},
    {"lease, call off", block_first, .act = call_off, .at_head = true},
    {"lease, empty", one_waits, .before = has_acked_first, .act = lease_late, .status = SHMQ_EMPTY,
     .at_head = true},
    {"lease again in-line", short_given_back, .act = lease_one, .at_head = true},
    {"lease again block", block_given_back, .act = lease_one, .at_head = true},
    {"lease again copy", block_given_back_and_looked_at, .act = lease_one, .at_head = true},
    {"lease again, call off", block_given_back_and_looked_at, .act = call_off, .at_head = true},
    {"lease overdue in-line", short_held_for_long, .act = lease_one, .at_head = true},
    {"lease overdue block", block_held_for_long, .act = lease_one, .at_head = true},
    {"lease overdue copy", block_looked_at_for_long, .act = lease_one, .at_head = true},
    {"ack in-line", short_first, .before = has_first, .act = ack_one, .takes = 1, .at_head = true},
    {"ack block", block_first, .before = has_first, .act = ack_one, .takes = 1, .at_head = true},
    {"ack, dropped", block_first, .before = had_first, .act = ack_one, .takes = 1, .at_head = true},
    {"ack, overdue", block_first, .before = has_first, .meanwhile = is_overdue, .act = ack_one, .takes = 1,
     .at_head = true},
    {"ack, stale", block_first, .before = has_first, .meanwhile = took_it, .act = ack_one,
     .status = SHMQ_STALE, .at_head = true},
    {"drop", block_first, .before = has_first, .act = release, .at_head = true},
    {"drop, acked", block_first, .before = has_acked_first, .act = release, .at_head = true},
    {"drop, overdue", block_first, .before = has_first, .meanwhile = is_overdue, .act = release,
     .at_head = true},
    {"drop, stale", block_first, .before = has_first, .meanwhile = took_it, .act = release, .at_head = true},
    {"nack in-line", short_first, .before = has_first, .act = nack_one, .at_head = true},
    {"nack block", block_first, .before = has_first, .act = nack_one, .at_head = true},
    {"nack, delay", short_first, .before = has_first, .act = nack_for_a_while, .at_head = true,
     .delays = true},
    {"close", three_blocks, .before = has_three, .act = close_it, .at_head = true},
    {"join, late", one_waits, .act = join_late, .status = SHMQ_EMPTY, .at_head = true},
    {"attach, repair lessee", .earlier = have_some_of_all, .act = attach, .attaches = true},
    {"reap lessee", .earlier = have_some_of_all, .act = reap},
    {"reap lessee again", .earlier = have_some_again, .act = reap, .delays = true},
};
#define LEASE_OPERATIONS (sizeof lease_operations / sizeof *lease_operations)

#endif
