/* The pending table without a segment: words placed by hand, one act, the exact words.  Time is a number here. */
#define _GNU_SOURCE
#include "lab.h"

#define ENTRIES 4u
#define SLOT_BYTES 128u
#define ME 7u
#define OTHER 9u
#define NOBODY 0u
#define SERIAL (SHMQ_LAP_MASK - 1) /* serials wrap */

static struct {
    uint64_t before[16];
    struct shmq_pending_entry entries[ENTRIES];
    uint8_t copies[ENTRIES * SLOT_BYTES];
    uint64_t beyond[16];
    shmq_a64 next_due;
    struct shmq_slot slot; /* of the ring, with a payload behind it */
    uint8_t payload[SLOT_BYTES - sizeof(struct shmq_slot)];
} rig __attribute__((aligned(128)));
static struct shmq_pending mine, others;
static struct shmq_delivery d, second;

static void set_up(uint64_t visibility_ns) {
    memset(&rig, 0, sizeof rig);
    memset(rig.before, 0xbb, sizeof rig.before);
    memset(rig.beyond, 0xbb, sizeof rig.beyond);
    memset(&mine, 0, sizeof mine);
    mine.entries = rig.entries;
    mine.copies = rig.copies;
    mine.next_due = &rig.next_due;
    mine.visibility_ns = visibility_ns;
    mine.count = ENTRIES;
    mine.slot_bytes = SLOT_BYTES;
    mine.owner = ME;
    others = mine;
    others.owner = OTHER;
    for (uint32_t i = 0; i < ENTRIES; i++)
        store_relaxed(&rig.entries[i].word, shmq_slot_word(SHMQ_PENDING_VACANT, 0, SERIAL));
    shmq_pending_init(&mine);
    memset(&d, 0, sizeof d);
    memset(&second, 0, sizeof second);
}

static void check_fences(void) {
    for (size_t i = 0; i < 16; i++)
        CHECK(rig.before[i] == rig.beyond[i] && rig.before[i] == UINT64_C(0xbbbbbbbbbbbbbbbb));
}

static uint64_t word(uint32_t state, uint32_t owner, uint64_t serial) {
    return (uint64_t)state | (uint64_t)owner << 3 | serial << 15;
}
#define CHECK_ENTRY(i, state, owner, serial)                                                                 \
    CHECK_EQ(load_relaxed(&rig.entries[i].word), word(SHMQ_PENDING_##state, owner, serial))
#define CHECK_NEXT_DUE(ns) CHECK_EQ(load_relaxed(&rig.next_due), (uint64_t)(ns))

/* An entry as somebody left it. */
static void place(uint32_t i, uint32_t state, uint32_t owner, uint64_t due_ns, uint64_t position) {
    struct shmq_pending_entry *e = &rig.entries[i];
    store_relaxed(&e->word, word(state, owner, SERIAL));
    store_relaxed(&e->due_ns, due_ns);
    store_relaxed(&e->position, position);
    store_relaxed(&e->handle, 100 + i);
}

/* Out of the ring: leased by `p`, at time `now`. */
static void lease(struct shmq_pending *p, struct shmq_delivery *to, uint64_t position, uint64_t now) {
    struct shmq_record r = {.payload = rig.payload, .bytes = 5, .codec = 0x1234, .position = position};
    memcpy(rig.payload, "hello", 5);
    OK(shmq_pending_try_claim(p, to));
    shmq_pending_fill(p, to, &rig.slot, &r, now);
}

TEST(a_message_through_its_states) {
    set_up(0);
    uint64_t handle;
    struct shmq_record r = {.payload = rig.payload, .bytes = 5, .codec = 0x1234, .position = 24};
    memcpy(rig.payload, "hello", 5);
    store32_relaxed(&rig.slot.deliveries, 3); /* three consumers died before they had it */
    store32_relaxed(&rig.slot.producer, 11);
    OK(shmq_pending_try_claim(&mine, &d));
    CHECK_EQ(d.entry, 0);
    CHECK_ENTRY(0, FILLING, ME, SERIAL);
    shmq_pending_fill(&mine, &d, &rig.slot, &r, 1000);
    CHECK_ENTRY(0, UNACKED, ME, SERIAL);
    CHECK_EQ(d.word, load_relaxed(&rig.entries[0].word));
    CHECK_EQ(d.deliveries, 4);
    CHECK_EQ(load_relaxed(&rig.entries[0].due_ns), SHMQ_NEVER);
    CHECK_EQ(load_relaxed(&rig.entries[0].position), 24);
    CHECK_EQ(load_relaxed(&rig.entries[0].handle), SHMQ_NO_HANDLE);
    struct shmq_slot *copy = shmq_pending_copy(&mine, 0);
    CHECK_EQ(load32_relaxed(&copy->deliveries), 4);
    CHECK_EQ(load32_relaxed(&copy->producer), 11);
    CHECK(memcmp(copy + 1, "hello", 5) == 0);
    CHECK_NEXT_DUE(SHMQ_NEVER);
    OK(shmq_pending_ack(&mine, &d, &handle));
    CHECK_EQ(handle, SHMQ_NO_HANDLE);
    CHECK_ENTRY(0, VACANT, 0, SHMQ_LAP_MASK);
    CHECK_EQ(shmq_pending_ack(&mine, &d, &handle), SHMQ_STALE); /* once */
    CHECK_EQ(shmq_pending_nack(&mine, &d, 0), SHMQ_STALE);
    CHECK_ENTRY(0, VACANT, 0, SHMQ_LAP_MASK);
    check_fences();
}

TEST(a_block_is_named_by_its_handle) {
    set_up(0);
    uint64_t handle;
    struct shmq_record r = {.bytes = 8, .codec = 2, .flags = SHMQ_RECORD_BLOCK, .position = 8};
    store_relaxed(&rig.slot.handle, 77);
    OK(shmq_pending_try_claim(&mine, &d));
    CHECK(!shmq_pending_names(&mine, 0, 0)); /* not while it is being filled */
    shmq_pending_fill(&mine, &d, &rig.slot, &r, 0);
    CHECK(shmq_pending_names(&mine, 0, 77));
    CHECK(!shmq_pending_names(&mine, 0, 78));
    CHECK(!shmq_pending_names(&mine, 1, 77));
    CHECK(!shmq_pending_names(&mine, ENTRIES, 77));
    CHECK(!shmq_pending_names(&mine, UINT64_MAX, 77));
    OK(shmq_pending_nack(&mine, &d, 0));
    CHECK(shmq_pending_names(&mine, 0, 77));
    OK(shmq_pending_try_take(&others, 1, &second));
    CHECK(shmq_pending_names(&mine, 0, 77));
    struct shmq_record again;
    OK(shmq_pending_record(&others, &second, 96, &again));
    CHECK(again.bytes == 8 && again.codec == 2 && again.flags == SHMQ_RECORD_BLOCK && again.position == 8);
    CHECK_EQ(load_relaxed((shmq_a64 *)(void *)again.payload), 77);
    shmq_pending_rename(&others, &second, 99);
    CHECK(!shmq_pending_names(&mine, 0, 77) && shmq_pending_names(&mine, 0, 99));
    CHECK_EQ(load_relaxed((shmq_a64 *)(void *)again.payload), 99);
    shmq_pending_deliver(&others, &second, 0);
    OK(shmq_pending_ack(&others, &second, &handle));
    CHECK_EQ(handle, 99);
    CHECK(!shmq_pending_names(&mine, 0, 99));
}

TEST(an_entry_that_was_not_filled_is_given_up) {
    set_up(0);
    OK(shmq_pending_try_claim(&mine, &d));
    shmq_pending_give_up(&mine, &d);
    CHECK_ENTRY(0, VACANT, 0, SHMQ_LAP_MASK);
    CHECK_EQ(shmq_pending_nack(&mine, &d, 0), SHMQ_STALE);
}

TEST(a_full_table) {
    set_up(0);
    struct shmq_delivery all[ENTRIES];
    uint64_t handle;
    for (uint32_t i = 0; i < ENTRIES; i++) {
        CHECK(shmq_pending_vacant(&mine));
        lease(&mine, &all[i], i * 8, 0);
        CHECK_EQ(all[i].entry, i);
    }
    CHECK(!shmq_pending_vacant(&mine));
    CHECK_EQ(shmq_pending_try_claim(&mine, &d), SHMQ_UNACKED_FULL);
    OK(shmq_pending_ack(&mine, &all[2], &handle));
    OK(shmq_pending_try_claim(&others, &d));
    CHECK_EQ(d.entry, 2);
    CHECK_ENTRY(2, FILLING, OTHER, SHMQ_LAP_MASK);
    CHECK_EQ(shmq_pending_ack(&mine, &all[2], &handle), SHMQ_STALE); /* another's by now */
    CHECK_ENTRY(2, FILLING, OTHER, SHMQ_LAP_MASK);
    store32_relaxed(&mine.hint, UINT32_MAX); /* garbage: a hint */
    CHECK_EQ(shmq_pending_try_claim(&mine, &d), SHMQ_UNACKED_FULL);
    check_fences();
}

TEST(given_back_and_delivered_again) {
    set_up(0);
    uint64_t handle;
    struct shmq_record r;
    lease(&mine, &d, 16, 0);
    OK(shmq_pending_nack(&mine, &d, 0));
    CHECK_ENTRY(0, WAITING, NOBODY, SERIAL);
    CHECK_NEXT_DUE(0);
    CHECK_EQ(shmq_pending_ack(&mine, &d, &handle), SHMQ_STALE);
    CHECK_EQ(shmq_pending_nack(&mine, &d, 0), SHMQ_STALE);
    OK(shmq_pending_try_take(&others, 5, &second));
    CHECK_ENTRY(0, MOVING, OTHER, SHMQ_LAP_MASK);
    CHECK_NEXT_DUE(SHMQ_NEVER);
    CHECK_EQ(second.entry, 0);
    CHECK_EQ(second.deliveries, 2);
    OK(shmq_pending_record(&others, &second, 96, &r));
    CHECK(r.bytes == 5 && r.codec == 0x1234 && r.flags == 0 && memcmp(r.payload, "hello", 5) == 0);
    CHECK_EQ(r.position, 16);
    CHECK_EQ(shmq_pending_record(&others, &second, 4, &r), SHMQ_CORRUPT); /* longer than a slot */
    CHECK_EQ(shmq_pending_try_take(&mine, 5, &d), SHMQ_EMPTY);            /* nobody else gets it */
    shmq_pending_deliver(&others, &second, 5);
    CHECK_ENTRY(0, UNACKED, OTHER, SHMQ_LAP_MASK);
    CHECK_EQ(shmq_pending_ack(&mine, &d, &handle), SHMQ_STALE);
    OK(shmq_pending_ack(&others, &second, &handle));
    CHECK_ENTRY(0, VACANT, 0, 0);
}

TEST(deliveries_are_counted_when_they_are_made) {
    set_up(0);
    lease(&mine, &d, 16, 0);
    for (uint32_t n = 2; n < 5; n++) {
        OK(shmq_pending_nack(&mine, &d, 0));
        OK(shmq_pending_try_take(&mine, 1, &d));
        CHECK_EQ(d.deliveries, n);
        shmq_pending_put_back(&mine, &d, 0); /* not delivered after all */
        CHECK_ENTRY(0, WAITING, NOBODY, load_relaxed(&rig.entries[0].word) >> 15);
        OK(shmq_pending_try_take(&mine, 1, &d));
        CHECK_EQ(d.deliveries, n);
        shmq_pending_deliver(&mine, &d, 1);
    }
}

TEST(a_delay) {
    set_up(0);
    lease(&mine, &d, 16, 0);
    OK(shmq_pending_nack(&mine, &d, 1000));
    CHECK_NEXT_DUE(1000);
    CHECK_EQ(shmq_pending_try_take(&mine, 999, &d), SHMQ_EMPTY);
    CHECK_NEXT_DUE(1000);
    store_relaxed(&rig.next_due, 0); /* too early: somebody looks in vain */
    CHECK_EQ(shmq_pending_try_take(&mine, 999, &d), SHMQ_EMPTY);
    CHECK_NEXT_DUE(1000);
    OK(shmq_pending_try_take(&mine, 1000, &d));
    CHECK_NEXT_DUE(SHMQ_NEVER);
}

TEST(the_oldest_that_is_due_comes_first) {
    set_up(0);
    const uint64_t oldest = UINT64_C(0) - 16; /* positions wrap */
    place(0, SHMQ_PENDING_WAITING, 0, 0, oldest + 16);
    place(1, SHMQ_PENDING_WAITING, 0, 50, oldest); /* older, not due yet */
    place(2, SHMQ_PENDING_WAITING, 0, 7, oldest + 8);
    place(3, SHMQ_PENDING_WAITING, 0, 9, oldest + 24);
    store_relaxed(&rig.next_due, 0);
    OK(shmq_pending_try_take(&mine, 10, &d));
    CHECK_EQ(d.entry, 2);
    CHECK_NEXT_DUE(0);
    OK(shmq_pending_try_take(&mine, 10, &d));
    CHECK_EQ(d.entry, 0);
    CHECK_NEXT_DUE(9);
    OK(shmq_pending_try_take(&mine, 10, &d));
    CHECK_EQ(d.entry, 3);
    CHECK_NEXT_DUE(50);
    CHECK_EQ(shmq_pending_try_take(&mine, 10, &d), SHMQ_EMPTY);
    OK(shmq_pending_try_take(&mine, 50, &d));
    CHECK_EQ(d.entry, 1);
    CHECK_NEXT_DUE(SHMQ_NEVER);
}

TEST(what_is_overdue_is_taken_away) {
    set_up(50);
    uint64_t handle;
    lease(&mine, &d, 16, 100);
    CHECK_EQ(load_relaxed(&rig.entries[0].due_ns), 150);
    CHECK_NEXT_DUE(150);
    CHECK_EQ(shmq_pending_try_take(&others, 149, &second), SHMQ_EMPTY);
    OK(shmq_pending_try_take(&others, 150, &second));
    CHECK_ENTRY(0, MOVING, OTHER, SHMQ_LAP_MASK);
    CHECK_EQ(shmq_pending_ack(&mine, &d, &handle), SHMQ_STALE);
    CHECK_EQ(shmq_pending_nack(&mine, &d, 0), SHMQ_STALE);
    CHECK_ENTRY(0, MOVING, OTHER, SHMQ_LAP_MASK);
    shmq_pending_deliver(&others, &second, 160);
    CHECK_EQ(load_relaxed(&rig.entries[0].due_ns), 210);
    CHECK_NEXT_DUE(210);
    CHECK_EQ(shmq_pending_nack(&mine, &d, 5), SHMQ_STALE);
    CHECK_EQ(load_relaxed(&rig.entries[0].due_ns), 210); /* another's */
    OK(shmq_pending_try_take(&others, 210, &d));         /* its own */
    CHECK_EQ(shmq_pending_ack(&others, &second, &handle), SHMQ_STALE);
    CHECK_EQ(d.deliveries, 3);
}

TEST(death_in_each_state_is_repaired) {
    set_up(0);
    for (int twice = 0; twice < 2; twice++) {
        place(0, SHMQ_PENDING_FILLING, OTHER, 1, 0);
        place(1, SHMQ_PENDING_UNACKED, OTHER, 1, 8);
        place(2, SHMQ_PENDING_MOVING, OTHER, 1, 16);
        place(3, SHMQ_PENDING_WAITING, 0, 33, 24);
        shmq_pending_recover(&mine, ME); /* somebody else: nothing */
        CHECK_ENTRY(0, FILLING, OTHER, SERIAL);
        CHECK_ENTRY(1, UNACKED, OTHER, SERIAL);
        CHECK_ENTRY(2, MOVING, OTHER, SERIAL);
        store_relaxed(&rig.next_due, SHMQ_NEVER);
        for (int passes = 0; passes <= twice; passes++) shmq_pending_recover(&mine, OTHER);
        CHECK_ENTRY(0, VACANT, 0, SHMQ_LAP_MASK);
        CHECK_ENTRY(1, WAITING, NOBODY, SERIAL);
        CHECK_ENTRY(2, WAITING, NOBODY, SERIAL);
        CHECK_ENTRY(3, WAITING, NOBODY, SERIAL);
        CHECK_EQ(load_relaxed(&rig.entries[1].due_ns), 0);
        CHECK_EQ(load_relaxed(&rig.entries[2].due_ns), 0);
        CHECK_EQ(load_relaxed(&rig.entries[3].due_ns), 33); /* a delay is kept */
        CHECK_NEXT_DUE(0);
    }
    shmq_pending_recover(&mine, 0); /* the words of nobody bear owner 0 */
    CHECK_ENTRY(0, VACANT, 0, SHMQ_LAP_MASK);
    CHECK_ENTRY(3, WAITING, NOBODY, SERIAL);
}

TEST(who_leaves_gives_back_what_it_has_not_acknowledged) {
    set_up(0);
    place(0, SHMQ_PENDING_FILLING, ME, 1, 0);
    place(1, SHMQ_PENDING_UNACKED, ME, 1, 8);
    place(2, SHMQ_PENDING_MOVING, ME, 1, 16); /* another thread of ours is at it */
    place(3, SHMQ_PENDING_UNACKED, OTHER, 1, 24);
    shmq_pending_return_all(&mine);
    CHECK_ENTRY(0, FILLING, ME, SERIAL);
    CHECK_ENTRY(1, WAITING, NOBODY, SERIAL);
    CHECK_ENTRY(2, MOVING, ME, SERIAL);
    CHECK_ENTRY(3, UNACKED, OTHER, SERIAL);
    CHECK_NEXT_DUE(0);
}

/* Whoever took the hint away died before it had put it back. */
TEST(a_repair_pass_settles_the_hint) {
    set_up(50);
    place(0, SHMQ_PENDING_WAITING, 0, 70, 0);
    place(1, SHMQ_PENDING_UNACKED, OTHER, 60, 8);
    place(2, SHMQ_PENDING_MOVING, OTHER, 5, 16);
    place(3, SHMQ_PENDING_FILLING, OTHER, 6, 24);
    CHECK_EQ(shmq_pending_try_take(&mine, 100, &d), SHMQ_EMPTY);
    shmq_pending_settle(&mine);
    CHECK_NEXT_DUE(60);
    OK(shmq_pending_try_take(&mine, 100, &d));
    CHECK_EQ(d.entry, 0);
    store_relaxed(&rig.next_due, 3);
    shmq_pending_settle(&mine); /* only ever down */
    CHECK_NEXT_DUE(3);
}

TEST(who_holds_a_position) {
    static const bool holds[] = {false, false, true, true, true};
    for (uint32_t state = SHMQ_PENDING_VACANT; state <= SHMQ_PENDING_MOVING; state++) {
        set_up(0);
        place(2, state, state == SHMQ_PENDING_WAITING ? 0 : OTHER, 0, 4096);
        CHECK_EQ(shmq_pending_has(&mine, 4096), holds[state]);
        CHECK(!shmq_pending_has(&mine, 4104));
    }
}

TEST(onlookers_count) {
    set_up(0);
    uint64_t unacked, waiting;
    CHECK(!shmq_pending_others_hold(&mine));
    place(0, SHMQ_PENDING_UNACKED, ME, SHMQ_NEVER, 0);
    place(1, SHMQ_PENDING_UNACKED, ME, SHMQ_NEVER, 8);
    CHECK(!shmq_pending_others_hold(&mine)); /* what I hold comes back to nobody but for my own doing */
    CHECK(shmq_pending_others_hold(&others));
    place(2, SHMQ_PENDING_MOVING, OTHER, 0, 16);
    CHECK(shmq_pending_others_hold(&mine));
    place(3, SHMQ_PENDING_WAITING, 0, 0, 24);
    shmq_pending_count(&mine, &unacked, &waiting);
    CHECK_EQ(unacked, 3);
    CHECK_EQ(waiting, 1);
    CHECK_EQ(shmq_pending_unacked_by(&mine, ME), 2);
    CHECK_EQ(shmq_pending_unacked_by(&mine, OTHER), 0);
    place(2, SHMQ_PENDING_VACANT, 0, 0, 0);
    CHECK(shmq_pending_others_hold(&mine));
    OK(shmq_pending_valid(&mine));
    store_relaxed(&rig.entries[1].word, 5);
    CHECK_EQ(shmq_pending_valid(&mine), SHMQ_CORRUPT);
}

TEST(garbage_is_bounded) {
    uint64_t seed = 1;
    for (int i = 0; i < 100000; i++) {
        if (i % 50 == 0) set_up(below(&seed, 2) * 50);
        struct shmq_pending_entry *e = &rig.entries[below(&seed, ENTRIES)];
        struct shmq_slot *copy = shmq_pending_copy(&mine, (uint32_t)below(&seed, ENTRIES));
        shmq_a64 *where[] = {&e->word, &e->due_ns, &e->position, &e->handle, &copy->record, &rig.next_due};
        shmq_a64 *at = where[below(&seed, 6)];
        uint64_t handle, was = load_relaxed(at), now = below(&seed, 1000);
        struct shmq_record r;
        store_relaxed(at, below(&seed, 2) ? next_random(&seed) : was ^ UINT64_C(1) << below(&seed, 64));
        if (shmq_pending_try_take(&mine, now, &d) == SHMQ_OK) {
            CHECK(d.entry < ENTRIES);
            if (shmq_pending_record(&mine, &d, SLOT_BYTES - 32, &r) == SHMQ_OK) CHECK(r.bytes <= 96);
            if (below(&seed, 2)) shmq_pending_deliver(&mine, &d, now);
            else shmq_pending_put_back(&mine, &d, now + 5);
        }
        if (shmq_pending_try_claim(&mine, &second) == SHMQ_OK) {
            CHECK(second.entry < ENTRIES);
            if (below(&seed, 2)) shmq_pending_give_up(&mine, &second);
            else shmq_pending_fill(&mine, &second, &rig.slot, &(struct shmq_record){.position = now}, now);
        }
        (void)shmq_pending_ack(&mine, &second, &handle);
        (void)shmq_pending_nack(&mine, &d, now);
        (void)shmq_pending_names(&mine, below(&seed, 5), handle);
        (void)shmq_pending_has(&mine, now);
        (void)shmq_pending_others_hold(&mine);
        (void)shmq_pending_valid(&mine);
        shmq_pending_recover(&mine, OTHER);
        shmq_pending_settle(&mine);
        check_fences();
    }
}

int main(int argc, char **argv) { return run_tests(argc, argv); }
