/* Leases on a segment: what is delivered, acknowledged, given back, and what a death leaves after each step. */
#define _GNU_SOURCE
#include <sched.h>

#include "lab.h"

#define BLOCK_BYTES (2 * SHMQ_SMALL_PAGE + 100)
#define TABLE 4u

/* A survivor that produces (peer 0) and two consumers. */
static struct {
    int fd;
    shmq_queue *survivor, *one, *other;
} rig;
static struct lease {
    shmq_message m;
    shmq_delivery d;
} first, second;

static void set_up(uint64_t visibility_ns) {
    shmq_params params = tiny;
    params.kind = SHMQ_KIND_MPMC;
    params.first_cursor = UINT64_C(0) - 16;
    params.max_unacked = TABLE;
    params.visibility_ns = visibility_ns;
    rig.fd = lab_object();
    rig.survivor = lab_create(rig.fd, &params);
    rig.one = lab_attach(rig.fd);
    rig.other = lab_attach(rig.fd);
}
static void tear_down(void) {
    shmq_free(rig.one);
    shmq_free(rig.other);
    shmq_free(rig.survivor);
    close(rig.fd);
    memset(&rig, 0, sizeof rig);
}

static void put(uint64_t number, uint64_t bytes) { OK(lab_put(rig.survivor, number, bytes, SHMQ_NO_WAIT)); }
static uint64_t lease_until(shmq_queue *q, struct lease *l, int64_t deadline_ns) {
    OK(shmq_lease(q, &l->m, &l->d, deadline_ns));
    return message_number(l->m.data, l->m.bytes);
}
static uint64_t lease(shmq_queue *q, struct lease *l) { return lease_until(q, l, SHMQ_NO_WAIT); }
static int try_lease(shmq_queue *q) { return shmq_lease(q, &second.m, &second.d, SHMQ_NO_WAIT); }
static void drop(struct lease *l) { shmq_message_release(&l->m); }
/* `q` gets exactly this, for the nth time, and is done with it. */
static void expect(shmq_queue *q, uint64_t number, uint32_t deliveries) {
    struct lease l;
    CHECK_EQ(lease(q, &l), number);
    CHECK_EQ(l.d.deliveries, deliveries);
    OK(shmq_ack(q, &l.d));
    drop(&l);
}
static void expect_counts(uint64_t unacked, uint64_t waiting) {
    shmq_stats s = lab_stats(rig.survivor);
    CHECK_EQ(s.unacked, unacked);
    CHECK_EQ(s.waiting_again, waiting);
}
/* Nothing is left of anything. */
static void check_clean(shmq_queue *q) {
    CHECK_EQ(try_lease(q), SHMQ_EMPTY);
    expect_counts(0, 0);
    lab_all_pages_free(rig.survivor);
    OK(shmq_validate(rig.survivor));
    OK(shmq_join(rig.survivor, SHMQ_NO_WAIT));
    CHECK(shmq_mpmc_untouched(&rig.survivor->ring.mpmc));
    for (uint32_t i = 0; i < TABLE; i++)
        CHECK_EQ(shmq_slot_state(load_relaxed(&q->pending.entries[i].word)), SHMQ_PENDING_VACANT);
}
static const uint64_t sizes[] = {16, 100, 1120, 1121, BLOCK_BYTES}; /* in-line up to 1120 */
#define SIZES (sizeof sizes / sizeof *sizes)

/* ---- the living ---- */

TEST(every_size_is_leased_in_order_and_acknowledged) {
    set_up(0);
    for (int lap = 0; lap < 3; lap++) {
        for (uint64_t i = 0; i < 3; i++) put(i, sizes[(i + (uint64_t)lap) % SIZES]);
        for (uint64_t i = 0; i < 3; i++) {
            CHECK_EQ(lease(rig.one, &first), i);
            CHECK_EQ(first.d.deliveries, 1);
            expect_counts(1, 0);
            CHECK_EQ(shmq_join(rig.survivor, SHMQ_NO_WAIT), SHMQ_EMPTY);
            if (lap == 1) drop(&first);
            OK(shmq_ack(rig.one, &first.d));
            CHECK_EQ(shmq_ack(rig.one, &first.d), SHMQ_STALE);
            if (lap != 1) drop(&first);
        }
        check_clean(rig.one);
    }
    tear_down();
}

TEST(who_gives_it_back_has_it_no_more) {
    for (size_t i = 0; i < SIZES; i++) {
        set_up(0);
        put(1, sizes[i]);
        put(2, 16);
        CHECK_EQ(lease(rig.one, &first), 1);
        drop(&first);
        OK(shmq_nack(rig.one, &first.d, 0));
        expect_counts(0, 1);
        CHECK_EQ(shmq_join(rig.survivor, SHMQ_NO_WAIT), SHMQ_EMPTY);
        CHECK_EQ(lease(rig.other, &second), 1); /* before what was never delivered */
        CHECK_EQ(second.d.deliveries, 2);
        CHECK_EQ(shmq_ack(rig.one, &first.d), SHMQ_STALE);
        CHECK_EQ(shmq_nack(rig.one, &first.d, 0), SHMQ_STALE);
        expect(rig.one, 2, 1);
        OK(shmq_ack(rig.other, &second.d));
        drop(&second);
        check_clean(rig.one);
        tear_down();
    }
}

TEST(a_delay_is_kept_and_no_longer_waited_for_than_it_takes) {
    set_up(0);
    put(1, 16);
    CHECK_EQ(lease(rig.one, &first), 1);
    int64_t from = shmq_now_ns();
    OK(shmq_nack(rig.one, &first.d, 30 * (uint64_t)MS));
    CHECK_EQ(try_lease(rig.one), SHMQ_EMPTY);
    CHECK_EQ(lease_until(rig.other, &second, SHMQ_FOREVER), 1);
    CHECK(shmq_now_ns() - from >= 30 * MS);
    OK(shmq_ack(rig.other, &second.d));
    check_clean(rig.one);
    tear_down();
}

TEST(what_is_overdue_is_delivered_again) {
    for (size_t i = 0; i < SIZES; i++) {
        set_up((uint64_t)MS);
        put(1, sizes[i]);
        CHECK_EQ(lease(rig.one, &first), 1);
        CHECK_EQ(lease_until(rig.other, &second, SHMQ_FOREVER), 1);
        CHECK_EQ(second.d.deliveries, 2);
        CHECK(second.m.block == NULL || second.m.data != first.m.data); /* a copy: `one` still looks at it */
        CHECK_EQ(shmq_ack(rig.one, &first.d), SHMQ_STALE);
        OK(shmq_ack(rig.other, &second.d));
        drop(&first);
        drop(&second);
        check_clean(rig.one);
        tear_down();
    }
}

TEST(a_view_outlives_what_it_was_a_view_of) {
    set_up(0);
    CHECK_EQ(rig.one->ring.inline_bytes, 1120);
    put(1, BLOCK_BYTES);
    CHECK_EQ(lease(rig.one, &first), 1);
    OK(shmq_nack(rig.one, &first.d, 0)); /* and goes on looking */
    CHECK_EQ(lease(rig.one, &second), 1);
    CHECK(second.m.data != first.m.data);
    OK(shmq_ack(rig.one, &second.d));
    drop(&second);
    put(2, BLOCK_BYTES); /* in the copy's pages */
    CHECK_EQ(message_number(first.m.data, first.m.bytes), 1);
    drop(&first);
    expect(rig.other, 2, 1);
    check_clean(rig.one);
    tear_down();
}

TEST(a_full_table_keeps_the_rest_in_the_ring) {
    set_up(0);
    struct lease held[TABLE];
    for (uint64_t i = 0; i < TABLE; i++) put(i, 16);
    for (uint64_t i = 0; i < TABLE; i++) CHECK_EQ(lease(rig.one, &held[i]), i);
    CHECK_EQ(try_lease(rig.other), SHMQ_UNACKED_FULL);
    put(TABLE, 16);
    CHECK_EQ(try_lease(rig.other), SHMQ_UNACKED_FULL);
    CHECK_EQ(shmq_lease(rig.other, &second.m, &second.d, shmq_deadline(2 * MS)), SHMQ_UNACKED_FULL);
    OK(shmq_nack(rig.one, &held[1].d, 0));
    expect(rig.other, 1, 2); /* what is to come again has its place */
    expect(rig.other, TABLE, 1);
    for (uint64_t i = 0; i < TABLE; i++)
        CHECK_EQ(shmq_ack(rig.one, &held[i].d), i == 1 ? SHMQ_STALE : SHMQ_OK);
    check_clean(rig.one);
    tear_down();
}

TEST(a_closed_handle_gives_everything_back) {
    set_up(0);
    put(1, BLOCK_BYTES);
    put(2, BLOCK_BYTES);
    put(3, 100);
    CHECK_EQ(lease(rig.one, &first), 1); /* its view lives on */
    for (uint64_t i = 2; i <= 3; i++) {
        CHECK_EQ(lease(rig.one, &second), i);
        drop(&second);
    }
    shmq_close(rig.one);
    expect_counts(0, 3);
    CHECK_EQ(lease(rig.other, &second), 1);
    CHECK_EQ(second.d.deliveries, 2);
    CHECK(second.m.data != first.m.data);
    CHECK_EQ(shmq_ack(rig.one, &first.d), SHMQ_CLOSED);
    OK(shmq_ack(rig.other, &second.d));
    drop(&second);
    expect(rig.other, 2, 2);
    expect(rig.other, 3, 2);
    CHECK_EQ(message_number(first.m.data, first.m.bytes), 1);
    drop(&first);
    check_clean(rig.other);
    tear_down();
}

/* Closed by another thread, between the two steps of a lease. */
TEST(a_lease_that_ends_behind_the_close_is_given_back) {
    for (int again = 0; again < 2; again++) {
        set_up(0);
        put(1, 100);
        if (again) {
            CHECK_EQ(lease(rig.one, &first), 1);
            OK(shmq_nack(rig.one, &first.d, 0));
        }
        struct shmq_record r;
        const struct shmq_block_header *h;
        shmq_block *b;
        OK(shmq_get_begin(rig.one));
        OK(shmq_lease_begin(rig.one, &first.d, &r, &b, &h));
        shmq_pin(rig.one);
        shmq_close(rig.one);
        CHECK_EQ(shmq_lease_done(rig.one, &first.d, &r, r.bytes), SHMQ_CLOSED);
        expect_counts(0, 1);
        expect(rig.other, 1, again ? 3 : 2);
        shmq_unpin(rig.one);
        check_clean(rig.other);
        tear_down();
    }
}

/* What others hold may come to it; what it holds itself may not. */
TEST(a_drain_is_over_when_nobody_else_holds_a_message) {
    set_up(0);
    put(1, 100);
    CHECK_EQ(lease(rig.one, &first), 1);
    OK(shmq_shutdown(rig.survivor, 0));
    CHECK_EQ(try_lease(rig.other), SHMQ_EMPTY);
    CHECK_EQ(try_lease(rig.one), SHMQ_SHUT_DOWN);
    OK(shmq_nack(rig.one, &first.d, 0));
    expect(rig.other, 1, 2);
    CHECK_EQ(try_lease(rig.other), SHMQ_SHUT_DOWN);
    tear_down();
}

/* Between the steps of a lease the message is still in its slot. */
TEST(a_drain_waits_for_what_others_are_about_to_hold) {
    set_up(0);
    put(1, 100);
    struct shmq_record r;
    const struct shmq_block_header *h;
    shmq_block *b;
    OK(shmq_get_begin(rig.one));
    OK(shmq_lease_begin(rig.one, &first.d, &r, &b, &h));
    OK(shmq_shutdown(rig.survivor, 0));
    CHECK_EQ(try_lease(rig.other), SHMQ_EMPTY);
    shmq_lease_cancel(rig.one, &first.d, &r, b);
    expect(rig.other, 1, 1);
    CHECK_EQ(try_lease(rig.other), SHMQ_SHUT_DOWN);
    tear_down();
}

TEST(a_full_table_in_a_drain) {
    set_up(0);
    struct lease held[TABLE];
    for (uint64_t i = 0; i < TABLE; i++) put(i, 16);
    for (uint64_t i = 0; i < TABLE; i++) CHECK_EQ(lease(rig.one, &held[i]), i);
    put(TABLE, 16);
    OK(shmq_shutdown(rig.survivor, 0));
    uint64_t parks = load_relaxed(&rig.other->counters->parks);
    /* It sleeps until then. */
    CHECK_EQ(shmq_lease(rig.other, &second.m, &second.d, shmq_deadline(5 * MS)), SHMQ_UNACKED_FULL);
    CHECK(load_relaxed(&rig.other->counters->parks) > parks);
    OK(shmq_ack(rig.one, &held[0].d));
    CHECK_EQ(lease(rig.one, &held[0]), TABLE);
    /* Full again, and nothing comes any more: to it there is nothing to wait for. */
    CHECK_EQ(shmq_lease(rig.one, &second.m, &second.d, SHMQ_FOREVER), SHMQ_SHUT_DOWN);
    CHECK_EQ(try_lease(rig.other), SHMQ_UNACKED_FULL);
    for (uint64_t i = 0; i < TABLE; i++) OK(shmq_ack(rig.one, &held[i].d));
    CHECK_EQ(try_lease(rig.other), SHMQ_SHUT_DOWN);
    tear_down();
}

TEST(who_finds_no_room_for_a_copy_lets_others_pass) {
    set_up(0);
    put(1, BLOCK_BYTES);
    CHECK_EQ(lease(rig.one, &first), 1);
    shmq_block *b;
    OK(shmq_loan(rig.survivor, 11 * SHMQ_SMALL_PAGE, SHMQ_NO_WAIT, &b));
    put(2, 16);
    OK(shmq_nack(rig.one, &first.d, 0));
    expect(rig.other, 2, 1);
    while (try_lease(rig.other) == SHMQ_EMPTY) sched_yield(); /* until it is due again */
    CHECK_EQ(shmq_lease(rig.other, &second.m, &second.d, shmq_deadline(20 * MS)), SHMQ_ARENA_FULL);
    drop(&first);
    CHECK_EQ(lease_until(rig.other, &second, SHMQ_FOREVER), 1);
    CHECK_EQ(second.d.deliveries, 2); /* those that failed were none */
    OK(shmq_ack(rig.other, &second.d));
    drop(&second);
    shmq_block_release(b);
    check_clean(rig.one);
    tear_down();
}

TEST(a_lease_is_called_off) {
    for (size_t i = 0; i < SIZES; i++) {
        set_up(0);
        put(1, sizes[i]);
        for (uint32_t deliveries = 1; deliveries < 4; deliveries++) {
            struct shmq_record r;
            const struct shmq_block_header *h;
            shmq_block *b;
            OK(shmq_get_begin(rig.one));
            OK(shmq_lease_begin(rig.one, &first.d, &r, &b, &h));
            CHECK_EQ(first.d.again, deliveries > 1);
            store32_relaxed(&rig.one->control->not_empty.armed, 1);
            shmq_lease_cancel(rig.one, &first.d, &r, b);
            CHECK_EQ(load32_relaxed(&rig.one->control->not_empty.armed), 0); /* who waits looks again */
            CHECK_EQ(lease(rig.other, &second), 1);
            CHECK_EQ(second.d.deliveries, deliveries);
            drop(&second);
            OK(shmq_nack(rig.other, &second.d, 0));
        }
        expect(rig.one, 1, 4);
        check_clean(rig.one);
        tear_down();
    }
}

/* ---- who may not ---- */

/* As a forked child does that attached anew: it has its parent's deliveries, and is another peer. */
TEST(a_delivery_is_settled_by_who_got_it) {
    set_up(0);
    put(1, BLOCK_BYTES);
    CHECK_EQ(lease(rig.one, &first), 1);
    CHECK_EQ(shmq_ack(rig.other, &first.d), SHMQ_STALE);
    CHECK_EQ(shmq_nack(rig.other, &first.d, 0), SHMQ_STALE);
    expect_counts(1, 0);
    OK(shmq_ack(rig.one, &first.d));
    drop(&first);
    check_clean(rig.one);
    tear_down();
}

TEST(invalid_calls) {
    set_up(0);
    shmq_params params = tiny;
    shmq_queue *observer, *plain = lab_create(lab_object(), &params);
    OK(shmq_observe(rig.fd, &observer));
    put(1, 16);
    CHECK_EQ(lease(rig.one, &first), 1);
    struct shmq_delivery out = first.d;
    out.entry = TABLE;
    uint64_t number;
    CHECK_EQ(lab_get(rig.one, &number, SHMQ_NO_WAIT), SHMQ_INVALID);
    CHECK_EQ(try_lease(plain), SHMQ_INVALID);
    CHECK_EQ(try_lease(NULL), SHMQ_INVALID);
    CHECK_EQ(try_lease(observer), SHMQ_INVALID);
    CHECK_EQ(shmq_ack(observer, &first.d), SHMQ_INVALID);
    CHECK_EQ(shmq_nack(observer, &first.d, 0), SHMQ_INVALID);
    CHECK_EQ(shmq_join(observer, SHMQ_NO_WAIT), SHMQ_INVALID);
    CHECK_EQ(shmq_join(plain, SHMQ_NO_WAIT), SHMQ_INVALID);
    CHECK_EQ(shmq_ack(plain, &first.d), SHMQ_INVALID);
    CHECK_EQ(shmq_ack(rig.one, NULL), SHMQ_INVALID);
    CHECK_EQ(shmq_nack(NULL, &first.d, 0), SHMQ_INVALID);
    CHECK_EQ(shmq_ack(rig.one, &out), SHMQ_INVALID);
    CHECK_EQ(shmq_nack(rig.one, &out, 0), SHMQ_INVALID);
    OK(shmq_ack(rig.one, &first.d));
    store_relaxed(&rig.one->pending.entries[2].word, 6);
    CHECK_EQ(shmq_validate(rig.one), SHMQ_CORRUPT);
    shmq_free(plain);
    shmq_free(observer);
    tear_down();
}

/* ---- the dead ---- */

/* The steps of a first delivery; then the death of its consumer. */
TEST(death_at_each_step_of_a_lease) {
    enum { PEEKED, BEGUN, FILLED, DONE, ACKED, STEPS };
    for (size_t i = 0; i < SIZES; i++) {
        for (int step = PEEKED; step < STEPS; step++) {
            set_up(0);
            put(1, sizes[i]);
            put(2, 16);
            struct shmq_record r;
            const struct shmq_block_header *h;
            shmq_block *b = NULL;
            uint64_t handle;
            OK(shmq_get_begin(rig.one));
            if (step == PEEKED) OK(shmq_try_next(rig.one, &r));
            else OK(shmq_lease_begin(rig.one, &first.d, &r, &b, &h));
            const struct shmq_slot *slot = shmq_slot_at(&rig.one->ring.mpmc, rig.one->get.ring.mpmc.position);
            if (step == FILLED) shmq_pending_fill(&rig.one->pending, &first.d, slot, &r, 0);
            if (step >= DONE) OK(shmq_lease_done(rig.one, &first.d, &r, r.bytes));
            if (step == ACKED) OK(shmq_pending_ack(&rig.one->pending, &first.d, &handle));
            free(b);
            lab_die(rig.one);
            CHECK_EQ(lab_reap(rig.survivor), 1);
            CHECK_EQ(lab_reap(rig.survivor), 0);
            lab_bury(rig.one);
            rig.one = NULL;
            expect_counts(0, step == FILLED || step == DONE);
            if (step < ACKED) expect(rig.other, 1, 2);
            expect(rig.other, 2, 1);
            check_clean(rig.other);
            tear_down();
        }
    }
}

/* The steps of a second delivery, of a block that nobody looks at (or the survivor does, then it is copied). */
TEST(death_at_each_step_of_a_second_delivery) {
    enum { TAKEN, BEGUN, DONE, GIVEN_BACK, STEPS };
    for (size_t i = 0; i < SIZES; i++) {
        for (int step = TAKEN; step < STEPS; step++) {
            for (int looked_at = 0; looked_at < 2; looked_at++) {
                set_up(0);
                put(1, sizes[i]);
                CHECK_EQ(lease(rig.other, &second), 1);
                if (!looked_at) drop(&second);
                OK(shmq_nack(rig.other, &second.d, 0));
                struct shmq_record r;
                const struct shmq_block_header *h;
                shmq_block *b = NULL;
                OK(shmq_get_begin(rig.one));
                if (step == TAKEN) OK(shmq_pending_try_take(&rig.one->pending, 1, &first.d));
                else OK(shmq_lease_begin(rig.one, &first.d, &r, &b, &h));
                if (step >= DONE) OK(shmq_lease_done(rig.one, &first.d, &r, r.bytes));
                if (step == GIVEN_BACK) OK(shmq_nack(rig.one, &first.d, 0));
                free(b);
                lab_die(rig.one);
                CHECK_EQ(lab_reap(rig.survivor), 1);
                lab_bury(rig.one);
                rig.one = NULL;
                expect_counts(0, 1);
                expect(rig.other, 1, step >= DONE ? 3 : 2);
                drop(&second);
                check_clean(rig.other);
                tear_down();
            }
        }
    }
}

/* A consumer is stopped when it has filled its entry and before it has given back the slot; the message is overdue,
 * and is another's when it dies.  It is there once. */
TEST(a_slot_whose_message_was_overdue_is_spent) {
    enum { TAKEN, DELIVERED, GIVEN_BACK, STEPS };
    for (size_t i = 0; i < SIZES; i++) {
        for (int step = TAKEN; step < STEPS; step++) {
            set_up((uint64_t)MS);
            put(1, sizes[i]);
            struct shmq_record r, again;
            const struct shmq_block_header *h;
            shmq_block *b = NULL, *copy = NULL;
            OK(shmq_get_begin(rig.one));
            OK(shmq_get_begin(rig.other));
            OK(shmq_lease_begin(rig.one, &first.d, &r, &b, &h));
            const struct shmq_slot *slot = shmq_slot_at(&rig.one->ring.mpmc, rig.one->get.ring.mpmc.position);
            shmq_pending_fill(&rig.one->pending, &first.d, slot, &r, 0); /* long ago */
            if (step == TAKEN) OK(shmq_pending_try_take(&rig.other->pending, 2 * (uint64_t)MS, &second.d));
            else OK(shmq_lease_begin(rig.other, &second.d, &again, &copy, &h));
            if (step == DELIVERED) OK(shmq_lease_done(rig.other, &second.d, &again, again.bytes));
            if (step == GIVEN_BACK) shmq_lease_cancel(rig.other, &second.d, &again, copy);
            free(b);
            lab_die(rig.one);
            CHECK_EQ(lab_reap(rig.survivor), 1);
            lab_bury(rig.one);
            rig.one = NULL;
            CHECK(shmq_mpmc_untouched(&rig.survivor->ring.mpmc));
            if (step == TAKEN) shmq_pending_put_back(&rig.other->pending, &second.d, 0);
            if (step == DELIVERED) {
                OK(shmq_ack(rig.other, &second.d));
                shmq_block_release(copy);
            } else {
                expect(rig.other, 1, 2);
            }
            check_clean(rig.other);
            tear_down();
        }
    }
}

/* Whoever waits finds the dead, and has at once what they had not acknowledged. */
TEST(who_waits_gets_what_the_dead_had) {
    set_up(0);
    put(1, BLOCK_BYTES);
    CHECK_EQ(lease(rig.one, &first), 1);
    lab_die(rig.one);
    CHECK_EQ(lease_until(rig.other, &second, SHMQ_FOREVER), 1);
    CHECK_EQ(second.d.deliveries, 2);
    OK(shmq_ack(rig.other, &second.d));
    drop(&second);
    free(first.m.block);
    lab_bury(rig.one);
    rig.one = NULL;
    check_clean(rig.other);
    tear_down();
}

/* Where nobody waits, but for who only tries. */
TEST(a_hint_that_somebody_died_with_is_found_again) {
    set_up(0);
    put(1, 16);
    CHECK_EQ(lease(rig.one, &first), 1);
    OK(shmq_nack(rig.one, &first.d, 0));
    store_relaxed(rig.one->pending.next_due, SHMQ_NEVER); /* it is taken away (D1), and its taker dies */
    CHECK_EQ(try_lease(rig.other), SHMQ_EMPTY);
    store_relaxed(&rig.other->looked_ns, (uint64_t)(shmq_now_ns() - SHMQ_SLICE_NS));
    CHECK_EQ(try_lease(rig.other), SHMQ_EMPTY); /* this one looked around */
    expect(rig.other, 1, 2);
    store_relaxed(rig.one->pending.next_due, SHMQ_NEVER);
    check_clean(rig.other);
    tear_down();
}

/* The head is a lap too far.  The slots say that the queue is empty, and over; it is not waited for ever. */
TEST(a_deadline_ends_the_wait_whatever_the_memory_says) {
    set_up(0);
    shmq_a64 *head = &rig.one->control->head.cursor;
    store_relaxed(head, load_relaxed(head) + rig.one->ring.mpmc.mask + 1);
    CHECK_EQ(shmq_lease(rig.one, &first.m, &first.d, shmq_deadline(MS)), SHMQ_EMPTY);
    OK(shmq_shutdown(rig.survivor, 0));
    CHECK_EQ(shmq_lease(rig.one, &first.m, &first.d, SHMQ_FOREVER), SHMQ_SHUT_DOWN);
    tear_down();
}

/* A wait that finds what it waits for, and a try that does not, time and again. */
TEST(who_waits_has_tried_and_looks_at_the_clock) {
    set_up(0);
    put(1, 16);
    CHECK_EQ(shmq_wait_get(rig.one, 0, 1), SHMQ_EMPTY);
    CHECK_EQ(shmq_wait_put(rig.survivor, 0, false, 16, 1), SHMQ_EMPTY);
    CHECK_EQ(shmq_wait_get(rig.one, 0, SHMQ_NO_WAIT), SHMQ_OK); /* a look */
    expect(rig.one, 1, 1);
    check_clean(rig.other);
    tear_down();
}

int main(int argc, char **argv) { return run_tests(argc, argv); }
