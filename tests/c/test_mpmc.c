/* The slots without a segment: words placed by hand, one act, the exact words.
 *
 * Every test runs from several first cursors: 0, just below the wrap of a position's lap, and of the cursor. */
#define _GNU_SOURCE
#include "lab.h"

#define SLOTS 4u
#define SLOT_BYTES 128u
#define ME 7u
#define OTHER 9u

static struct {
    struct shmq_cursor_line tail, head;
    uint64_t before[16];
    uint8_t slots[SLOTS * SLOT_BYTES];
    uint64_t beyond[16];
} rig __attribute__((aligned(128)));
static struct shmq_slots mine, others;
static struct shmq_mpmc_side put, get, got;
static uint64_t start;

static const uint64_t starts[] = {0, 1, (SHMQ_LAP_MASK - 4) << 2, UINT64_MAX - 5};
#define FROM_EACH_START                                                                                      \
    for (size_t s_ = 0; s_ < sizeof starts / sizeof *starts && (rig_at(starts[s_]), true); s_++)

static void rig_at(uint64_t cursor) {
    memset(&rig, 0, sizeof rig);
    memset(rig.before, 0xbb, sizeof rig.before);
    memset(rig.beyond, 0xbb, sizeof rig.beyond);
    mine = (struct shmq_slots){.slots = rig.slots,
                               .mask = SLOTS - 1,
                               .shift = 2,
                               .slot_bytes = SLOT_BYTES,
                               .inline_bytes = SLOT_BYTES - 32,
                               .owner = ME,
                               .tail = &rig.tail,
                               .head = &rig.head};
    others = mine;
    others.owner = OTHER;
    start = cursor;
    put = get = got = (struct shmq_mpmc_side){0};
    shmq_mpmc_init(&mine, cursor);
}

static void check_fences(void) {
    for (size_t i = 0; i < 16; i++)
        CHECK(rig.before[i] == rig.beyond[i] && rig.before[i] == UINT64_C(0xbbbbbbbbbbbbbbbb));
}

static struct shmq_slot *slot(uint64_t position) {
    return (struct shmq_slot *)(void *)(rig.slots + (position % SLOTS) * SLOT_BYTES);
}
static uint64_t word(uint32_t state, uint32_t owner, uint64_t position) {
    return shmq_slot_word(state, owner, (position >> 2) & SHMQ_LAP_MASK);
}
static void place(uint32_t state, uint32_t owner, uint64_t position) {
    store_relaxed(&slot(position)->word, word(state, owner, position));
}
#define CHECK_SLOT(position, state, owner)                                                                   \
    CHECK_EQ(load_relaxed(&slot(position)->word), word(SHMQ_SLOT_##state, owner, position))
#define CHECK_HINTS(tail_, head_)                                                                            \
    do {                                                                                                     \
        CHECK_EQ(load_relaxed(&rig.tail.cursor), (uint64_t)(tail_));                                         \
        CHECK_EQ(load_relaxed(&rig.head.cursor), (uint64_t)(head_));                                         \
    } while (0)

static void send(const struct shmq_slots *ring, uint64_t number) {
    struct shmq_record r;
    OK(shmq_mpmc_try_reserve(ring, &put, sizeof number, 0x1234, 0, &r));
    memcpy(r.payload, &number, sizeof number);
    shmq_mpmc_commit(ring, &put);
}
static uint64_t receive(const struct shmq_slots *ring) {
    struct shmq_record r;
    uint64_t number;
    OK(shmq_mpmc_try_peek(ring, &get, &r));
    CHECK_EQ(r.bytes, sizeof number);
    memcpy(&number, r.payload, sizeof number);
    shmq_mpmc_release(ring, &get);
    return number;
}
static int peek(struct shmq_record *r) { return shmq_mpmc_try_peek(&mine, &get, r); }

TEST(a_message_through_its_states) {
    FROM_EACH_START {
        struct shmq_record r;
        CHECK_EQ(peek(&r), SHMQ_EMPTY);
        CHECK_SLOT(start, FREE, 0);
        OK(shmq_mpmc_try_reserve(&mine, &put, 5, 0x1234, 0, &r));
        CHECK_SLOT(start, WRITING, ME);
        CHECK_HINTS(start + 1, start);
        CHECK(r.payload == rig.slots + (start % SLOTS) * SLOT_BYTES + 32);
        CHECK_EQ(shmq_mpmc_try_peek(&others, &get, &r), SHMQ_EMPTY); /* nothing is visible */
        CHECK(!shmq_mpmc_unread(&mine));
        CHECK(!shmq_mpmc_drained(&mine)); /* a message is on its way */
        memcpy(slot(start) + 1, "hello", 5);
        shmq_mpmc_commit(&mine, &put);
        CHECK_SLOT(start, READY, 0);
        CHECK(shmq_mpmc_unread(&mine));
        OK(shmq_mpmc_try_peek(&others, &get, &r));
        CHECK_SLOT(start, READING, OTHER);
        CHECK_HINTS(start + 1, start + 1);
        CHECK(r.bytes == 5 && r.codec == 0x1234 && r.flags == 0 && memcmp(r.payload, "hello", 5) == 0);
        CHECK_EQ(r.position, start << 3);
        shmq_mpmc_release(&others, &get);
        CHECK_SLOT(start + SLOTS, FREE, 0);
        CHECK_EQ(peek(&r), SHMQ_EMPTY);
        CHECK(shmq_mpmc_drained(&mine));
        OK(shmq_mpmc_valid(&mine));
        check_fences();
    }
}

TEST(first_in_first_out_for_many_laps) {
    FROM_EACH_START {
        uint64_t sent = 0, seen = 0;
        for (int round = 0; round < 200; round++) {
            for (int i = 0; i <= round % 4; i++) send(round % 3 ? &mine : &others, sent++);
            while (seen < sent) CHECK_EQ(receive(round % 5 ? &mine : &others), seen++);
            OK(shmq_mpmc_valid(&mine));
        }
        CHECK_HINTS(start + sent, start + sent);
        check_fences();
    }
}

TEST(full_is_an_answer) {
    FROM_EACH_START {
        struct shmq_record r;
        for (uint64_t i = 0; i < SLOTS; i++) {
            CHECK(shmq_mpmc_room(&mine));
            send(&mine, i);
        }
        CHECK(!shmq_mpmc_room(&mine));
        CHECK_EQ(shmq_mpmc_try_reserve(&others, &put, 1, 0, 0, &r), SHMQ_FULL);
        OK(shmq_mpmc_try_peek(&others, &get, &r)); /* a slot that is being read is not free yet */
        CHECK_EQ(shmq_mpmc_try_reserve(&mine, &put, 1, 0, 0, &r), SHMQ_FULL);
        CHECK_EQ(shmq_mpmc_in_the_way(&mine, true), OTHER);
        shmq_mpmc_release(&others, &get);
        CHECK_EQ(shmq_mpmc_in_the_way(&mine, true), -1);
        send(&mine, SLOTS);
        for (uint64_t i = 1; i <= SLOTS; i++) CHECK_EQ(receive(&mine), i);
        OK(shmq_mpmc_valid(&mine));
    }
}

TEST(late_hints_are_helped_on) {
    FROM_EACH_START {
        struct shmq_record r;
        for (uint64_t i = 0; i < 3; i++) send(&mine, i);
        store_relaxed(&rig.tail.cursor, start); /* as if three producers had died behind their claims */
        CHECK(shmq_mpmc_room(&mine));
        CHECK_EQ(shmq_mpmc_claimed(&mine), start + 3);
        send(&mine, 3);
        CHECK_HINTS(start + 4, start);
        for (uint64_t i = 0; i < 4; i++) CHECK_EQ(receive(&mine), i);
        store_relaxed(&rig.head.cursor, start); /* and four consumers */
        CHECK(shmq_mpmc_unread(&mine));         /* worth a try: it moves the head */
        CHECK_EQ(peek(&r), SHMQ_EMPTY);
        CHECK_HINTS(start + 4, start + 4);
        store_relaxed(&rig.tail.cursor, start); /* behind what was taken already */
        CHECK(shmq_mpmc_room(&mine));
        send(&mine, 4);
        CHECK_EQ(receive(&mine), 4);
        OK(shmq_mpmc_valid(&mine));
    }
}

TEST(a_head_that_was_moved_back_late_catches_up) {
    FROM_EACH_START {
        struct shmq_record r;
        for (uint64_t laps = 1; laps < 9; laps++) {
            rig_at(start);
            for (uint64_t i = 0; i < laps * SLOTS + 2; i++) {
                send(&mine, i);
                if (i + 2 >= SLOTS) CHECK_EQ(receive(&mine), i + 2 - SLOTS); /* the last two wait */
            }
            store_relaxed(&rig.head.cursor, start + laps % SLOTS);
            CHECK(shmq_mpmc_unread(&mine));
            OK(shmq_mpmc_valid(&mine));
            for (uint64_t i = laps * SLOTS; i < laps * SLOTS + 2; i++) CHECK_EQ(receive(&mine), i);
            CHECK_EQ(peek(&r), SHMQ_EMPTY);
            CHECK_HINTS(start + laps * SLOTS + 2, start + laps * SLOTS + 2);
        }
    }
}

TEST(consumers_pass_one_that_is_slow) {
    FROM_EACH_START {
        struct shmq_record r;
        for (uint64_t i = 0; i < SLOTS; i++) send(&mine, i);
        OK(shmq_mpmc_try_peek(&others, &got, &r)); /* and stops */
        store_relaxed(&rig.head.cursor, start);    /* before it moved the head */
        for (uint64_t i = 1; i < SLOTS; i++) CHECK_EQ(receive(&mine), i);
        CHECK_EQ(peek(&r), SHMQ_EMPTY);
        CHECK_EQ(shmq_mpmc_try_reserve(&mine, &put, 8, 0, 0, &r), SHMQ_FULL);
        shmq_mpmc_release(&others, &got);
        send(&mine, 9);
        CHECK_EQ(receive(&mine), 9);
    }
}

TEST(what_is_put_back_is_there_again) {
    FROM_EACH_START {
        struct shmq_record r;
        for (uint64_t i = 0; i < 3; i++) send(&mine, i);
        OK(shmq_mpmc_try_peek(&others, &got, &r));
        CHECK_EQ(receive(&mine), 1);
        shmq_mpmc_unpeek(&others, &got);
        CHECK_SLOT(start, READY, 0);
        CHECK_HINTS(start + 3, start);
        CHECK_EQ(receive(&mine), 0);
        CHECK_EQ(receive(&mine), 2);
    }
}

TEST(a_put_that_is_given_up_leaves_a_tomb) {
    FROM_EACH_START {
        struct shmq_record r;
        OK(shmq_mpmc_try_reserve(&mine, &put, 8, 0, 0, &r));
        struct shmq_mpmc_side given_up = put;
        send(&others, 1);
        shmq_mpmc_abort(&mine, &given_up);
        CHECK_SLOT(start, TOMB, 0);
        CHECK(shmq_mpmc_unread(&mine));
        CHECK_EQ(receive(&mine), 1);
        CHECK_EQ(get.tombs, 1);
        CHECK_SLOT(start + SLOTS, FREE, 0);
    }
}

TEST(death_in_each_state_is_repaired) {
    FROM_EACH_START {
        struct shmq_record r;
        OK(shmq_mpmc_try_reserve(&others, &put, 8, 0, 0, &r)); /* dies writing the first */
        send(&mine, 1);
        send(&mine, 2);
        shmq_mpmc_recover(&mine, ME + 1); /* somebody else: nothing */
        CHECK_SLOT(start, WRITING, OTHER);
        CHECK_EQ(peek(&r), SHMQ_EMPTY); /* strict order: the first may still come */
        CHECK_EQ(shmq_mpmc_in_the_way(&mine, false), OTHER);
        shmq_mpmc_recover(&mine, OTHER);
        CHECK_SLOT(start, TOMB, 0);
        OK(shmq_mpmc_try_peek(&others, &get, &r)); /* dies reading the second */
        CHECK_SLOT(start + 1, READING, OTHER);
        CHECK_EQ(receive(&mine), 2);
        shmq_mpmc_recover(&mine, OTHER);
        shmq_mpmc_settle(&mine);
        CHECK_SLOT(start + 1, READY, 0);
        CHECK_EQ(slot(start + 1)->deliveries, 1);
        CHECK_HINTS(start + 3, start + 1);
        CHECK_EQ(receive(&mine), 1);
        CHECK_EQ(peek(&r), SHMQ_EMPTY);
        for (uint64_t i = 3; i < 20; i++) {
            send(&mine, i);
            CHECK_EQ(receive(&others), i);
        }
        OK(shmq_mpmc_valid(&mine));
    }
}

TEST(a_message_behind_the_head_is_found) {
    FROM_EACH_START {
        struct shmq_record r;
        for (uint64_t i = 0; i < SLOTS; i++) send(&mine, i);
        for (uint64_t i = 0; i < SLOTS; i++) CHECK_EQ(receive(&mine), i);
        place(SHMQ_SLOT_READY, 0, start + 1); /* a reaper died before it moved the head back */
        CHECK_EQ(peek(&r), SHMQ_EMPTY);
        shmq_mpmc_settle(&mine);
        CHECK_HINTS(start + 4, start + 1);
        CHECK_EQ(receive(&mine), 1);
        CHECK_EQ(peek(&r), SHMQ_EMPTY);
        CHECK_HINTS(start + 4, start + 4);

        place(SHMQ_SLOT_READY, 0, start + 1); /* and no pass comes: whoever meets it a lap later takes it */
        send(&mine, 4);
        CHECK_EQ(receive(&mine), 4);
        CHECK_HINTS(start + 5, start + 5);
        CHECK(shmq_mpmc_unread(&mine));
        CHECK_EQ(shmq_mpmc_try_reserve(&mine, &put, 8, 0, 0, &r), SHMQ_FULL);
        CHECK_EQ(receive(&mine), 1);
        CHECK_HINTS(start + 5, start + 5);
        send(&mine, 5);
        CHECK_EQ(receive(&mine), 5);

        place(SHMQ_SLOT_TOMB, 0, start + 2); /* the same for a tomb */
        CHECK_EQ(peek(&r), SHMQ_EMPTY);
        CHECK_EQ(get.tombs, 1);
        send(&mine, 6);
        CHECK_EQ(receive(&mine), 6);
        OK(shmq_mpmc_valid(&mine));
    }
}

TEST(a_settled_ring_stays_as_it_is) {
    FROM_EACH_START {
        shmq_mpmc_settle(&mine);
        CHECK_HINTS(start, start);
        for (uint64_t i = 0; i < SLOTS; i++) send(&mine, i);
        shmq_mpmc_settle(&mine);
        CHECK_HINTS(start + 4, start);
        CHECK_EQ(receive(&mine), 0);
        send(&mine, 4);
        shmq_mpmc_settle(&mine);
        CHECK_HINTS(start + 5, start + 1);
    }
}

TEST(onlookers_see_what_waits) {
    FROM_EACH_START {
        struct shmq_record r;
        CHECK_EQ(shmq_mpmc_look(&mine, 0, &r), SHMQ_EMPTY);
        for (uint64_t i = 0; i < 3; i++) send(&mine, i);
        OK(shmq_mpmc_try_peek(&others, &get, &r));
        for (uint32_t i = 0; i < 2; i++) {
            OK(shmq_mpmc_look(&mine, i, &r));
            CHECK_EQ(*r.payload, i + 1);
        }
        CHECK_EQ(shmq_mpmc_look(&mine, 2, &r), SHMQ_EMPTY);
        CHECK_EQ(shmq_mpmc_look(&mine, UINT32_MAX, &r), SHMQ_EMPTY);
        CHECK_HINTS(start + 3, start + 1);
    }
}

TEST(a_block_is_published_at_its_position_only) {
    FROM_EACH_START {
        struct shmq_record r;
        const uint64_t handle = shmq_handle(5, 77);
        send(&mine, 0);
        OK(shmq_mpmc_try_reserve(&mine, &put, 8, 0, SHMQ_RECORD_BLOCK, &r));
        store_relaxed((shmq_a64 *)(void *)r.payload, handle);
        uint64_t argument = shmq_cursor_argument(r.position);
        CHECK(!shmq_mpmc_published(&mine, argument, handle)); /* not yet */
        shmq_mpmc_commit(&mine, &put);
        CHECK(shmq_mpmc_published(&mine, argument, handle));
        CHECK(!shmq_mpmc_published(&mine, argument, handle + 1));
        uint64_t lap_later = shmq_cursor_argument(r.position + (SLOTS << 3));
        CHECK(!shmq_mpmc_published(&mine, lap_later, handle));
        CHECK_EQ(receive(&mine), 0);
        OK(shmq_mpmc_try_peek(&others, &get, &r));
        CHECK_EQ(load_relaxed((shmq_a64 *)(void *)r.payload), handle);
        CHECK(shmq_mpmc_published(&mine, argument, handle));
        CHECK_EQ(shmq_mpmc_next_read_by(&mine, ME, 0, &r), UINT64_MAX);
        CHECK_EQ(shmq_mpmc_next_read_by(&mine, OTHER, 0, &r), (start + 1) % SLOTS);
        CHECK_EQ(shmq_cursor_argument(r.position), argument);
        CHECK_EQ(shmq_mpmc_next_read_by(&mine, OTHER, (start + 1) % SLOTS + 1, &r), UINT64_MAX);
        shmq_mpmc_release(&others, &get);
        CHECK(!shmq_mpmc_published(&mine, argument, handle));
    }
}

TEST(garbage_is_bounded) {
    uint64_t seed = 1;
    for (int i = 0; i < 200000; i++) {
        struct shmq_record r;
        if (i % 50 == 0) {
            rig_at(starts[(i / 50) % 4]);
            for (uint64_t n = 0; n < below(&seed, 5); n++) send(&mine, n);
        }
        uint64_t *where[] = {(uint64_t *)&rig.tail.cursor, (uint64_t *)&rig.head.cursor,
                             (uint64_t *)&slot(below(&seed, 4))->word,
                             (uint64_t *)&slot(below(&seed, 4))->record};
        uint64_t *at = where[below(&seed, 4)];
        *at = below(&seed, 2) ? next_random(&seed) : *at ^ UINT64_C(1) << below(&seed, 64);
        if (shmq_mpmc_try_reserve(&mine, &put, 8, 0, 0, &r) == SHMQ_OK) {
            memset(r.payload, 1, 8);
            shmq_mpmc_commit(&mine, &put);
        }
        if (shmq_mpmc_try_peek(&mine, &get, &r) == SHMQ_OK) {
            CHECK(r.bytes <= mine.inline_bytes);
            shmq_mpmc_release(&mine, &get);
        }
        if (shmq_mpmc_look(&mine, 0, &r) == SHMQ_OK) CHECK(r.bytes <= mine.inline_bytes);
        (void)shmq_mpmc_room(&mine);
        (void)shmq_mpmc_unread(&mine);
        (void)shmq_mpmc_drained(&mine);
        (void)shmq_mpmc_claimed(&mine);
        (void)shmq_mpmc_valid(&mine);
        for (uint64_t n = 0; (n = shmq_mpmc_next_read_by(&mine, OTHER, n, &r)) != UINT64_MAX; n++)
            CHECK(n < SLOTS);
        shmq_mpmc_recover(&mine, OTHER);
        shmq_mpmc_settle(&mine);
        check_fences();
    }
}

int main(int argc, char **argv) { return run_tests(argc, argv); }
