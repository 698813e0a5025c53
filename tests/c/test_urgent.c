/* Two lanes on a segment: what overtakes what, what is full without the other, and what a death leaves in each. */
#define _GNU_SOURCE
#include "lab.h"

#define BLOCK_BYTES (2 * SHMQ_SMALL_PAGE + 100)
#define TABLE 4u
enum { BULK, URGENT };

/* A survivor that produces (peer 0), and two others.  32 slots of 128 bytes, 16 urgent ones. */
static struct {
    int fd;
    shmq_queue *survivor, *one, *other;
    uint32_t slots, urgent_slots;
} rig;

static shmq_params small(uint32_t max_unacked) {
    shmq_params params = tiny;
    params.kind = SHMQ_KIND_MPMC;
    params.inline_bytes = 96;
    params.first_cursor = UINT64_C(0) - 8;
    params.max_unacked = max_unacked;
    params.priority = 1;
    return params;
}
static void set_up_with(const shmq_params *params) {
    rig.fd = lab_object();
    rig.survivor = lab_create(rig.fd, params);
    rig.one = lab_attach(rig.fd);
    rig.other = lab_attach(rig.fd);
    rig.slots = rig.one->segment.geometry.slots;
    rig.urgent_slots = rig.one->segment.geometry.urgent_slots;
}
static void set_up(void) {
    shmq_params params = small(0);
    set_up_with(&params);
}
static void set_up_leases(void) {
    shmq_params params = small(TABLE);
    set_up_with(&params);
}
static void tear_down(void) {
    if (rig.one != NULL) shmq_free(rig.one);
    shmq_free(rig.other);
    shmq_free(rig.survivor);
    close(rig.fd);
    memset(&rig, 0, sizeof rig);
}

static int try_put(shmq_queue *q, int lane, uint64_t number, uint64_t bytes) {
    OK(shmq_set_priority(q, lane));
    int status = lab_put(q, number, bytes, SHMQ_NO_WAIT);
    OK(shmq_set_priority(q, BULK));
    return status;
}
static void put(int lane, uint64_t number) { OK(try_put(rig.survivor, lane, number, 40)); }
static void put_block(int lane, uint64_t number) { OK(try_put(rig.survivor, lane, number, BLOCK_BYTES)); }
static uint64_t get(shmq_queue *q) {
    uint64_t number;
    OK(lab_get(q, &number, SHMQ_NO_WAIT));
    return number;
}
static void expect(uint64_t number) { CHECK_EQ(get(rig.survivor), number); }
static void expect_waiting(uint64_t bulk, uint64_t urgent) {
    shmq_stats s = lab_stats(rig.survivor);
    CHECK_EQ(s.messages_put - s.messages_got, bulk + urgent);
    CHECK_EQ(s.urgent, urgent);
    CHECK_EQ(s.ring_used_bytes, bulk * 128);
}
static void expect_empty(void) {
    uint64_t number;
    CHECK_EQ(lab_get(rig.survivor, &number, SHMQ_NO_WAIT), SHMQ_EMPTY);
    expect_waiting(0, 0);
    lab_all_pages_free(rig.survivor);
    OK(shmq_validate(rig.survivor));
}
/* `one` is dead, for everyone to see, and repaired. */
static void one_dies(void) {
    shmq_queue *dead = rig.one;
    rig.one = NULL;
    lab_die(dead);
    CHECK_EQ(lab_reap(rig.survivor), 1);
    lab_bury(dead);
}

/* ---- the segment ---- */

TEST(an_eighth_of_the_slots_and_16_where_there_are_as_many) {
    static const struct {
        uint64_t ring_bytes;
        uint32_t inline_bytes, slots, urgent_slots;
    } of[] = {{4096, 2016, 2, 2},   {4096, 224, 16, 16},       {8192, 96, 64, 16},    {16384, 96, 128, 16},
              {32768, 96, 256, 32}, {1 << 20, 480, 2048, 256}, {1 << 16, 30000, 4, 4}};
    for (size_t i = 0; i < sizeof of / sizeof *of; i++) {
        shmq_params params = small(0);
        params.ring_bytes = of[i].ring_bytes;
        params.inline_bytes = of[i].inline_bytes;
        set_up_with(&params);
        const struct shmq_geometry *g = &rig.one->segment.geometry;
        CHECK_EQ(g->slots, of[i].slots);
        CHECK_EQ(g->urgent_slots, of[i].urgent_slots);
        CHECK(g->urgent_at >= g->ring_at + g->ring_bytes);
        CHECK(g->pending_at >= g->urgent_at + (uint64_t)g->urgent_slots * g->slot_bytes);
        CHECK_EQ(lab_stats(rig.one).urgent_slots, of[i].urgent_slots);
        tear_down();
    }
}

TEST(only_an_mpmc_queue_has_an_urgent_lane) {
    for (uint32_t kind = SHMQ_KIND_SPSC; kind <= SHMQ_KIND_TOPIC; kind++) {
        shmq_params params = small(0);
        params.kind = kind;
        CHECK_EQ(shmq_segment_bytes(&params) != 0, kind == SHMQ_KIND_MPMC);
        uint64_t with = shmq_segment_bytes(&params);
        params.priority = 0;
        uint64_t without = shmq_segment_bytes(&params);
        CHECK(without > 0 && with != without);
        int fd = lab_object();
        shmq_queue *q = lab_create(fd, &params);
        CHECK_EQ(shmq_set_priority(q, 1), SHMQ_INVALID);
        CHECK_EQ(shmq_set_priority(q, 0), SHMQ_INVALID);
        CHECK_EQ(lab_stats(q).urgent_slots, 0);
        shmq_free(q);
        close(fd);
    }
    CHECK_EQ(shmq_set_priority(NULL, 1), SHMQ_INVALID);
    set_up();
    shmq_close(rig.one);
    CHECK_EQ(shmq_set_priority(rig.one, 1), SHMQ_CLOSED);
    tear_down();
}

TEST(a_geometry_with_another_lane_is_refused) {
    set_up();
    struct shmq_header *h = (struct shmq_header *)(void *)rig.one->segment.base;
    for (uint32_t slots = 0; slots <= 64; slots++) {
        shmq_queue *q;
        h->geometry.urgent_slots = slots;
        int status = shmq_attach(rig.fd, &q);
        CHECK_EQ(status, slots == 16 ? SHMQ_OK : SHMQ_NOT_A_SEGMENT);
        if (status == SHMQ_OK) shmq_free(q);
    }
    tear_down();
}

TEST(a_word_that_cannot_be_is_found_in_either_lane) {
    for (int lane = BULK; lane <= URGENT; lane++) {
        set_up();
        OK(shmq_validate(rig.one));
        const struct shmq_slots *slots = shmq_lanes_slots(&rig.one->ring, (uint32_t)lane);
        shmq_a64 *word = &shmq_slot_at(slots, 3)->word;
        store_relaxed(word, load_relaxed(word) + (UINT64_C(100) << 15));
        CHECK_EQ(shmq_validate(rig.one), SHMQ_CORRUPT);
        tear_down();
    }
}

/* ---- order ---- */

TEST(urgent_messages_come_first_and_each_lane_keeps_its_order) {
    set_up();
    for (uint64_t lap = 0; lap < 3 * rig.slots; lap++) { /* over the wrap of both lanes */
        put(BULK, 1);
        put_block(BULK, 2);
        put(URGENT, 3);
        put_block(URGENT, 4);
        expect_waiting(2, 2);
        expect(3);
        put(URGENT, 5);
        expect(4);
        expect(5);
        expect(1);
        put(URGENT, 6);
        expect(6);
        expect(2);
        expect_empty();
    }
    tear_down();
}

/* A consumer's turns: after 16 urgent ones in a row a bulk one, whatever waits. */
TEST(sixteen_urgent_ones_in_a_row_then_one_of_the_others) {
    set_up();
    for (uint64_t i = 0; i < 10; i++) put(BULK, 100 + i);
    for (uint64_t i = 0; i < 8; i++) put(URGENT, i);
    uint64_t next = 0;
    for (uint64_t bulk = 0; bulk < 10; bulk++) {
        for (int i = 0; i < 16; i++) {
            put(URGENT, next + 8); /* it never runs dry */
            expect(next++);
        }
        expect(100 + bulk);
    }
    tear_down();
}

TEST(a_turn_that_finds_no_bulk_is_kept) {
    set_up();
    for (int i = 0; i < 40; i++) { /* far more than 16, and nothing else */
        put(URGENT, 1);
        expect(1);
    }
    put(BULK, 2);
    put(URGENT, 3);
    put(URGENT, 4);
    expect(2);
    expect(3);
    put(BULK, 5);
    expect(4); /* it was had: the count begins anew */
    expect(5);
    tear_down();
}

TEST(each_consumer_counts_for_itself) {
    set_up();
    put(BULK, 100);
    for (uint64_t i = 0; i < 16; i++) put(URGENT, i);
    for (uint64_t i = 0; i < 10; i++) CHECK_EQ(get(rig.one), i);
    for (uint64_t i = 10; i < 16; i++) CHECK_EQ(get(rig.other), i);
    for (uint64_t i = 16; i < 25; i++) put(URGENT, i);
    for (uint64_t i = 16; i < 22; i++) CHECK_EQ(get(rig.one), i);
    CHECK_EQ(get(rig.other), 22);
    CHECK_EQ(get(rig.one), 100);
    tear_down();
}

TEST(what_is_put_back_is_next_again_and_counts_for_nothing) {
    for (int lane = BULK; lane <= URGENT; lane++) {
        set_up();
        put(BULK, 1);
        for (uint64_t i = 0; i < 4 && lane == URGENT; i++) put(URGENT, 2 + i);
        for (int i = 0; i < 20; i++) {
            struct shmq_record r;
            OK(shmq_get_begin(rig.survivor));
            OK(shmq_try_next(rig.survivor, &r));
            CHECK_EQ((r.position & SHMQ_POSITION_URGENT) != 0, lane);
            shmq_put_back(rig.survivor, NULL);
        }
        for (uint64_t i = 0; i < 4 && lane == URGENT; i++) expect(2 + i);
        expect(1);
        expect_empty();
        tear_down();
    }
}

TEST(put_many_stays_in_its_lane) {
    set_up();
    uint8_t messages[5 * 40];
    uint64_t done;
    put(BULK, 100);
    for (uint64_t i = 0; i < 5; i++) message_write(messages + i * 40, i, 40);
    OK(shmq_set_priority(rig.one, URGENT));
    OK(shmq_put_many(rig.one, messages, 40, 5, SHMQ_NO_WAIT, &done));
    CHECK_EQ(done, 5);
    for (uint64_t i = 0; i < 5; i++) expect(i);
    expect(100);
    tear_down();
}

TEST(a_loan_goes_into_the_lane_that_it_was_lent_for) {
    for (int lane = BULK; lane <= URGENT; lane++) {
        set_up();
        shmq_block *b;
        OK(shmq_set_priority(rig.one, lane));
        OK(shmq_loan(rig.one, BLOCK_BYTES, SHMQ_NO_WAIT, &b));
        OK(shmq_set_priority(rig.one, !lane));
        message_write(b->data, 7, BLOCK_BYTES);
        OK(shmq_publish(b, NULL, SHMQ_NO_WAIT));
        expect_waiting(lane == BULK, lane == URGENT);
        OK(lab_put(rig.one, 8, 40, SHMQ_NO_WAIT)); /* the handle's own choice is as it was */
        expect_waiting(1, 1);
        expect(lane == URGENT ? 7 : 8);
        expect(lane == URGENT ? 8 : 7);
        expect_empty();
        tear_down();
    }
}

/* ---- room ---- */

TEST(a_full_lane_does_not_stop_the_other) {
    for (int lane = BULK; lane <= URGENT; lane++) {
        set_up();
        uint64_t room[] = {rig.slots, rig.urgent_slots}, n = 0;
        while (try_put(rig.survivor, lane, n, 40) == SHMQ_OK) n++;
        CHECK_EQ(n, room[lane]);
        CHECK_EQ(lab_stats(rig.survivor).full, lane == BULK);
        for (uint64_t i = 0; i < room[!lane]; i++) put(!lane, i);
        CHECK_EQ(try_put(rig.survivor, !lane, 0, 40), SHMQ_FULL);
        CHECK_EQ(try_put(rig.survivor, !lane, 0, BLOCK_BYTES), SHMQ_FULL);
        expect_waiting(room[BULK], room[URGENT]);
        OK(shmq_validate(rig.one));
        for (uint64_t i = 0; i < room[BULK] + room[URGENT]; i++) (void)get(rig.one);
        expect_empty();
        tear_down();
    }
}

TEST(the_arena_is_one) {
    set_up();
    put_block(URGENT, 1);
    uint64_t n = 2;
    while (try_put(rig.survivor, BULK, n, BLOCK_BYTES) == SHMQ_OK) n++;
    CHECK_EQ(try_put(rig.survivor, URGENT, 0, BLOCK_BYTES), SHMQ_ARENA_FULL);
    put(URGENT, n); /* in-line */
    expect(1);
    put_block(URGENT, n + 1);
    expect(n);
    expect(n + 1);
    for (uint64_t i = 2; i < n; i++) expect(i);
    expect_empty();
    tear_down();
}

#define SOON shmq_deadline(MS)

TEST(a_wait_for_room_is_one_for_its_lane) {
    for (int lane = BULK; lane <= URGENT; lane++) {
        set_up();
        while (try_put(rig.survivor, lane, 1, 40) == SHMQ_OK) {}
        CHECK_EQ(shmq_wait_put(rig.one, (uint64_t)lane, false, 40, SOON), SHMQ_EMPTY);
        OK(shmq_wait_put(rig.one, (uint64_t)!lane, false, 40, SOON));
        OK(shmq_set_priority(rig.one, lane));
        CHECK_EQ(lab_put(rig.one, 1, 40, SOON), SHMQ_FULL);
        CHECK_EQ(lab_put(rig.one, 1, BLOCK_BYTES, SOON), SHMQ_FULL);
        OK(shmq_set_priority(rig.one, !lane));
        OK(lab_put(rig.one, 1, 40, SOON));
        tear_down();
    }
}

TEST(a_wait_for_a_message_ends_with_one_in_either_lane) {
    for (int leases = 0; leases < 2; leases++) {
        for (int lane = BULK; lane <= URGENT; lane++) {
            shmq_params params = small(leases * TABLE);
            set_up_with(&params);
            CHECK_EQ(shmq_wait_get(rig.one, 0, SOON), SHMQ_EMPTY);
            put(lane, 1);
            OK(shmq_wait_get(rig.one, 0, SOON));
            tear_down();
        }
    }
}

/* ---- the end ---- */

TEST(both_lanes_are_drained_before_the_end) {
    for (int lane = BULK; lane <= URGENT; lane++) {
        uint64_t number;
        struct shmq_record r;
        set_up();
        put(BULK, 1);
        put(URGENT, 2);
        OK(shmq_put_begin(rig.one));
        rig.one->put.ring.urgent = (uint32_t)lane; /* at work when the end comes */
        OK(shmq_try_reserve(rig.one, 40, SHMQ_RAW, 0, &r));
        message_write(r.payload, 3, 40);
        OK(shmq_shutdown(rig.survivor, 0));
        CHECK_EQ(try_put(rig.survivor, lane, 9, 40), SHMQ_SHUT_DOWN);
        expect(2);
        expect(1);
        CHECK_EQ(lab_get(rig.survivor, &number, SHMQ_NO_WAIT), SHMQ_EMPTY);
        CHECK_EQ(lab_get(rig.survivor, &number, SOON), SHMQ_EMPTY);
        shmq_put_commit(rig.one, 1, 40);
        expect(3);
        CHECK_EQ(lab_get(rig.survivor, &number, SHMQ_NO_WAIT), SHMQ_SHUT_DOWN);
        CHECK_EQ(lab_get(rig.survivor, &number, SOON), SHMQ_SHUT_DOWN);
        tear_down();
    }
}

/* ---- onlookers ---- */

TEST(onlookers_see_urgent_ones_first) {
    set_up();
    for (uint64_t i = 0; i < 3; i++) put(BULK, 10 + i);
    for (uint64_t i = 0; i < 2; i++) put(URGENT, i);
    static const uint64_t due[] = {0, 1, 10, 11, 12};
    uint64_t first = UINT64_C(0) - 8;
    for (uint32_t i = 0; i < 6; i++) {
        uint8_t buffer[64];
        shmq_peeked p;
        int status = shmq_peek(rig.one, i, buffer, sizeof buffer, &p);
        CHECK_EQ(status, i < 5 ? SHMQ_OK : SHMQ_EMPTY);
        if (i == 5) break;
        CHECK_EQ(message_number(buffer, p.copied_bytes), due[i]);
        CHECK_EQ(p.position, i < 2 ? (first + i) << 3 | 4 : (first + i - 2) << 3);
    }
    tear_down();
}

TEST(who_is_at_work_is_seen_in_either_lane) {
    for (int lane = BULK; lane <= URGENT; lane++) {
        struct shmq_record r;
        shmq_peer_info peers[3];
        uint32_t n;
        set_up();
        put(lane, 1);
        OK(shmq_get_begin(rig.other));
        OK(shmq_try_next(rig.other, &r));
        rig.one->put.ring.urgent = (uint32_t)lane;
        OK(shmq_put_begin(rig.one));
        OK(shmq_try_reserve(rig.one, 40, SHMQ_RAW, 0, &r));
        CHECK_EQ(lab_stats(rig.survivor).holds_up_get, 1);
        OK(shmq_get_peers(rig.survivor, peers, 3, &n));
        CHECK_EQ(peers[1].writing, 1);
        CHECK_EQ(peers[1].slot_position, r.position);
        CHECK_EQ(peers[2].reading, 1);
        CHECK_EQ((peers[2].slot_position & 4) != 0, lane);
        shmq_taken(rig.other, 1, 40);
        shmq_put_commit(rig.one, 1, 40);
        tear_down();
    }
}

/* ---- death ---- */

TEST(what_the_dead_were_at_in_both_lanes) {
    for (int lane = BULK; lane <= URGENT; lane++) {
        struct shmq_record r;
        const struct shmq_block_header *h;
        shmq_block *b;
        set_up();
        put_block(lane, 1);
        put(lane, 2);
        OK(shmq_get_begin(rig.one));
        OK(shmq_try_next(rig.one, &r)); /* it reads 1, and has leased its block */
        OK(shmq_try_lease(rig.one, &r, NULL, &b, &h));
        free(b);
        for (int in = BULK; in <= URGENT; in++) { /* and writes in both */
            rig.one->put.ring.urgent = (uint32_t)in;
            OK(shmq_put_begin(rig.one));
            OK(shmq_try_reserve(rig.one, 40, SHMQ_RAW, 0, &r));
        }
        one_dies();
        expect(1);
        expect(2);
        expect_empty();
        tear_down();
    }
}

/* The lanes have the same cursors: at one place lies a message, at the same place of the other lane none. */
TEST(a_block_that_was_never_published_is_freed_whatever_lies_in_the_other_lane) {
    for (int lane = BULK; lane <= URGENT; lane++) {
        struct shmq_record r;
        shmq_block *b;
        set_up();
        OK(shmq_put_begin(rig.one));
        OK(shmq_try_loan(rig.one, BLOCK_BYTES, &b));
        rig.one->put.ring.urgent = (uint32_t)lane;
        OK(shmq_try_reserve(rig.one, 8, SHMQ_RAW, SHMQ_RECORD_BLOCK, &r));
        uint64_t handle = shmq_handle(b->page, shmq_word_generation(b->word));
        store_relaxed((shmq_a64 *)(void *)r.payload, handle);
        put(!lane, 1);
        /* In the other lane's slot a handle is left from a message of long ago: the very same. */
        store_relaxed(&shmq_slot_at(shmq_lanes_slots(&rig.one->ring, !lane), r.position >> 3)->handle,
                      handle);
        OK(shmq_arena_send(&rig.one->arena, b->page, &b->word, r.position));
        CHECK_EQ(shmq_word_argument(b->word) & 1, (uint64_t)lane);
        free(b);
        one_dies();
        expect(1);
        expect_empty();
        tear_down();
    }
}

TEST(a_block_that_was_published_stays_in_either_lane) {
    for (int lane = BULK; lane <= URGENT; lane++) {
        set_up();
        OK(try_put(rig.one, lane, 1, BLOCK_BYTES));
        OK(try_put(rig.one, !lane, 2, 40));
        one_dies();
        expect(lane == URGENT ? 1 : 2);
        expect(lane == URGENT ? 2 : 1);
        expect_empty();
        tear_down();
    }
}

TEST(no_message_is_left_behind_the_head_of_either_lane) {
    for (int lane = BULK; lane <= URGENT; lane++) {
        struct shmq_record r;
        set_up();
        put(lane, 1);
        put(lane, 2);
        OK(shmq_get_begin(rig.one));
        OK(shmq_try_next(rig.one, &r));
        /* READY again, and the head not moved back: its reaper died here. */
        const struct shmq_slots *slots = shmq_lanes_slots(&rig.one->ring, (uint32_t)lane);
        store_relaxed(&shmq_slot_at(slots, r.position >> 3)->word,
                      shmq_word_for(slots, SHMQ_SLOT_READY, 0, r.position >> 3));
        CHECK_EQ(lab_reap(rig.survivor), 0);
        expect(1);
        expect(2);
        tear_down();
    }
}

/* ---- leases ---- */

struct lease {
    shmq_message m;
    shmq_delivery d;
};
static uint64_t lease(shmq_queue *q, struct lease *l) {
    OK(shmq_lease(q, &l->m, &l->d, SHMQ_NO_WAIT));
    uint64_t number = message_number(l->m.data, l->m.bytes);
    shmq_message_release(&l->m);
    return number;
}
static void expect_lease(uint64_t number, uint32_t deliveries) {
    struct lease l;
    CHECK_EQ(lease(rig.survivor, &l), number);
    CHECK_EQ(l.d.deliveries, deliveries);
    OK(shmq_ack(rig.survivor, &l.d));
}
static void expect_done(void) {
    shmq_message m;
    shmq_delivery d;
    CHECK_EQ(shmq_lease(rig.survivor, &m, &d, SHMQ_NO_WAIT), SHMQ_EMPTY);
    OK(shmq_join(rig.survivor, SHMQ_NO_WAIT));
    CHECK(shmq_ring_untouched(&rig.survivor->ring));
    lab_all_pages_free(rig.survivor);
    OK(shmq_validate(rig.survivor));
}

TEST(leases_of_both_lanes) {
    struct lease l;
    for (int block = 0; block < 2; block++) {
        void (*put_it)(int, uint64_t) = block ? put_block : put;
        set_up_leases();
        put_it(BULK, 1);
        put_it(URGENT, 2);
        CHECK_EQ(shmq_join(rig.survivor, SHMQ_NO_WAIT), SHMQ_EMPTY);
        CHECK_EQ(lease(rig.one, &l), 2);
        OK(shmq_ack(rig.one, &l.d));
        CHECK_EQ(lease(rig.one, &l), 1);
        OK(shmq_nack(rig.one, &l.d, 0));
        expect_lease(1, 2);
        expect_done();
        tear_down();
    }
}

TEST(a_join_waits_for_either_lane) {
    for (int lane = BULK; lane <= URGENT; lane++) {
        set_up_leases();
        put(lane, 1);
        CHECK_EQ(shmq_join(rig.survivor, SHMQ_NO_WAIT), SHMQ_EMPTY);
        expect_lease(1, 1);
        OK(shmq_join(rig.survivor, SHMQ_NO_WAIT));
        tear_down();
    }
}

TEST(a_drain_waits_for_either_lane) {
    for (int lane = BULK; lane <= URGENT; lane++) {
        struct lease l;
        set_up_leases();
        put(lane, 1);
        CHECK_EQ(lease(rig.one, &l), 1);
        put(lane, 2);
        OK(shmq_shutdown(rig.survivor, 0));
        CHECK(!shmq_is_over(rig.one));
        expect_lease(2, 1);
        CHECK_EQ(shmq_lease(rig.survivor, &l.m, &l.d, SHMQ_NO_WAIT), SHMQ_EMPTY); /* 1 may come back */
        OK(shmq_ack(rig.one, &l.d));
        CHECK_EQ(shmq_lease(rig.survivor, &l.m, &l.d, SHMQ_NO_WAIT), SHMQ_SHUT_DOWN);
        tear_down();
    }
}

TEST(of_what_comes_again_urgent_ones_come_first) {
    set_up_leases();
    struct lease l[4];
    put(BULK, 1);
    put(BULK, 2);
    CHECK_EQ(lease(rig.one, &l[0]), 1);
    CHECK_EQ(lease(rig.one, &l[1]), 2);
    put(URGENT, 3);
    put(URGENT, 4);
    CHECK_EQ(lease(rig.one, &l[2]), 3);
    CHECK_EQ(lease(rig.one, &l[3]), 4);
    for (int i = 3; i >= 0; i--) OK(shmq_nack(rig.one, &l[i].d, 0));
    expect_lease(3, 2);
    expect_lease(4, 2);
    expect_lease(1, 2);
    expect_lease(2, 2);
    expect_done();
    tear_down();
}

/* The pending table has the message of one lane's slot, a dead consumer reads the same slot of the other. */
TEST(an_entry_of_one_lane_is_not_taken_for_the_others) {
    for (int lane = BULK; lane <= URGENT; lane++) {
        for (int block = 0; block < 2; block++) {
            struct lease l;
            struct shmq_record r;
            const struct shmq_block_header *h;
            shmq_block *b;
            shmq_delivery d;
            void (*put_it)(int, uint64_t) = block ? put_block : put;
            set_up_leases();
            put_it(lane, 1);
            CHECK_EQ(lease(rig.survivor, &l), 1);
            put_it(!lane, 2);
            OK(shmq_get_begin(rig.one));
            OK(shmq_lease_begin(rig.one, &d, &r, &b, &h));
            free(b);
            one_dies();
            expect_lease(2, 2);
            OK(shmq_ack(rig.survivor, &l.d));
            expect_done();
            tear_down();
        }
    }
}

/* ... and where it has died behind L1, the slot is spent, in the right lane. */
TEST(a_slot_whose_message_is_in_the_table_is_spent) {
    for (int lane = BULK; lane <= URGENT; lane++) {
        struct shmq_record r;
        const struct shmq_block_header *h;
        shmq_block *b;
        shmq_delivery d;
        set_up_leases();
        put(!lane, 2);
        expect_lease(2, 1);
        put(lane, 1);
        OK(shmq_get_begin(rig.one));
        OK(shmq_lease_begin(rig.one, &d, &r, &b, &h));
        const struct shmq_slot *slot = shmq_ring_slot(&rig.one->ring, &rig.one->get.ring);
        CHECK_EQ(shmq_slot_state(load_relaxed(&slot->word)), SHMQ_SLOT_READING);
        shmq_pending_fill(&rig.one->pending, &d, slot, &r, (uint64_t)shmq_now_ns());
        one_dies();
        expect_lease(1, 2);
        expect_done();
        tear_down();
    }
}

int main(int argc, char **argv) { return run_tests(argc, argv); }
