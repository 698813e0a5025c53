/* The arena without a segment: words placed by hand, one act, the exact words.
 *
 * arena.c never touches the pages themselves, so the tiers here have addresses and no memory. */
#define _GNU_SOURCE
#include "lab.h"

#define SMALL 100u
#define LARGE 10u
#define PAGES (SMALL + LARGE)
#define ME 7u
#define OTHER 9u
#define KIB UINT64_C(1024)
#define S SHMQ_SMALL_PAGE
#define L SHMQ_LARGE_PAGE

static struct {
    uint64_t before[64]; /* nobody may touch it */
    shmq_a64 words[PAGES];
    uint64_t beyond[64];
    struct shmq_block_header headers[PAGES];
} rig;
static struct shmq_arena arena;

static void rig_with(uint32_t small, uint32_t large) {
    memset(&rig, 0, sizeof rig);
    memset(rig.before, 0xbb, sizeof rig.before);
    memset(rig.beyond, 0xbb, sizeof rig.beyond);
    arena = (struct shmq_arena){
        .words = rig.words,
        .headers = rig.headers,
        .small = {.base = (uint8_t *)(uintptr_t)(UINT64_C(1) << 40), .page_bytes = S, .pages = small},
        .large = {.base = (uint8_t *)(uintptr_t)(UINT64_C(1) << 41),
                  .page_bytes = L,
                  .first = small,
                  .pages = large},
        .owner = ME};
}

static uint64_t held_bytes(uint32_t owner) {
    struct shmq_hands hands = {0};
    shmq_arena_in_hands(&arena, owner, &hands);
    CHECK_EQ(hands.writing + hands.reading, 0);
    CHECK_EQ(hands.loaned + hands.leased > 0, hands.held_bytes > 0);
    return hands.held_bytes;
}

static uint64_t published[2]; /* a byte ring's cursors, as recover.c has them */
static bool is_published(const void *range, uint64_t argument, uint64_t handle) {
    (void)handle;
    return shmq_argument_within(argument, ((const uint64_t *)range)[0], ((const uint64_t *)range)[1]);
}
static void recover(uint32_t dead, uint64_t head, uint64_t tail) {
    published[0] = head;
    published[1] = tail;
    shmq_arena_recover(&arena, dead, is_published, published);
}

/* A message that is taken just when it is asked for. */
static uint64_t taken_handle, taken_word;
static bool is_taken_meanwhile(const void *range, uint64_t argument, uint64_t handle) {
    uint32_t page;
    struct shmq_arena other = arena;
    (void)range;
    other.owner = OTHER;
    CHECK_EQ(handle, taken_handle);
    OK(shmq_arena_lease(&other, handle, argument << 2, 0, &page, &taken_word));
    return false;
}

static void check_fences(void) {
    for (size_t i = 0; i < 64; i++) {
        CHECK_EQ(rig.before[i], UINT64_C(0xbbbbbbbbbbbbbbbb));
        CHECK_EQ(rig.beyond[i], UINT64_C(0xbbbbbbbbbbbbbbbb));
    }
}

/* The word by its bits, not by the header's own helper. */
static uint64_t word(uint64_t state, uint64_t owner, uint64_t generation, uint64_t argument) {
    return state | owner << 4 | generation << 16 | argument << 28;
}
static uint64_t at(uint32_t page) { return load_relaxed(&rig.words[page]); }
static void set(uint32_t page, uint64_t w) { store_relaxed(&rig.words[page], w); }
static void set_block(uint32_t page, uint32_t pages, uint64_t first) {
    set(page, first);
    for (uint32_t i = 1; i < pages; i++)
        set(page + i, word(SHMQ_PAGE_CONT, 0, shmq_word_generation(first), page));
}
static uint32_t free_pages(void) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < PAGES; i++) n += shmq_word_state(at(i)) == SHMQ_PAGE_FREE;
    return n;
}

/* ---- the words ---- */

TEST(a_block_goes_through_its_states) {
    rig_with(SMALL, LARGE);
    uint32_t page;
    uint64_t w;
    set(0, word(SHMQ_PAGE_LOANED, OTHER, 3, 0)); /* someone else's, so that ours starts at page 1 */
    set(1, word(SHMQ_PAGE_FREE, 0, 0x123, 0));   /* pages that had been used before */
    set(2, word(SHMQ_PAGE_FREE, 0, 0xfff, 0));
    OK(shmq_arena_try_loan(&arena, 3 * S, &page, &w));
    CHECK_EQ(page, 1);
    CHECK_EQ(w, UINT64_C(0x01240071)); /* LOANED by 7, generation 0x124 */
    CHECK_EQ(at(1), w);
    CHECK_EQ(at(2), UINT64_C(0x11240005)); /* CONT of page 1 */
    CHECK_EQ(at(3), UINT64_C(0x11240005));
    CHECK_EQ(at(4), 0);

    uint64_t position = UINT64_C(0xfffffffffffffff8);
    OK(shmq_arena_send(&arena, page, &w, position));
    CHECK_EQ(w, UINT64_C(0xffffffffe1240072)); /* INFLIGHT, argument: the position >> 2, its low 36 bits */
    CHECK_EQ(at(1), w);

    uint64_t handle = shmq_handle(page, 0x124);
    CHECK_EQ(handle, UINT64_C(0x124000001));
    arena.owner = OTHER;
    OK(shmq_arena_lease(&arena, handle, position, 0, &page, &w));
    CHECK_EQ(page, 1);
    CHECK_EQ(w, UINT64_C(0x01240093)); /* LEASED by 9 */
    CHECK_EQ(at(1), w);
    CHECK_EQ(at(2), UINT64_C(0x11240005));

    OK(shmq_arena_free(&arena, page, w));
    for (uint32_t i = 1; i < 4; i++) CHECK_EQ(at(i), UINT64_C(0x01240000)); /* FREE, generation kept */
    CHECK_EQ(at(0), word(SHMQ_PAGE_LOANED, OTHER, 3, 0));
    CHECK_EQ(shmq_arena_free(&arena, page, w), SHMQ_CORRUPT); /* again: it is not ours any more */
}

TEST(a_generation_comes_back_after_4096_lives) {
    rig_with(1, 0);
    for (uint32_t life = 1; life <= 4097; life++) {
        uint32_t page;
        uint64_t w;
        OK(shmq_arena_try_loan(&arena, 1, &page, &w));
        CHECK_EQ(shmq_word_generation(w), life & 0xfff);
        OK(shmq_arena_free(&arena, page, w));
    }
}

TEST(data_lies_in_its_tier) {
    rig_with(SMALL, LARGE);
    CHECK(shmq_arena_data(&arena, 0) == arena.small.base);
    CHECK(shmq_arena_data(&arena, SMALL - 1) == arena.small.base + (SMALL - 1) * (uint64_t)S);
    CHECK(shmq_arena_data(&arena, SMALL) == arena.large.base);
    CHECK(shmq_arena_data(&arena, PAGES - 1) == arena.large.base + (LARGE - 1) * (uint64_t)L);
    CHECK_EQ(shmq_arena_largest(&arena), LARGE * (uint64_t)L);
}

/* ---- sizes ---- */

TEST(sizes_around_every_limit) {
    static const struct {
        uint64_t bytes;
        uint32_t page, pages; /* expected in the empty arena */
    } sizes[] = {
        {0, 0, 1},
        {1, 0, 1},
        {S - 1, 0, 1},
        {S, 0, 1},
        {S + 1, 0, 2},
        {2 * S, 0, 2},
        {L / 4 - 1, 0, 32},
        {L / 4, 0, 32},
        {L / 4 + 1, SMALL, 1}, /* from here on the large pages come first */
        {L, SMALL, 1},
        {L + 1, SMALL, 2},
        {LARGE * (uint64_t)L, SMALL, LARGE},
    };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        uint32_t page;
        uint64_t w;
        rig_with(SMALL, LARGE);
        CHECK(shmq_arena_room(&arena, sizes[i].bytes));
        OK(shmq_arena_try_loan(&arena, sizes[i].bytes, &page, &w));
        CHECK_EQ(page, sizes[i].page);
        CHECK_EQ(free_pages(), PAGES - sizes[i].pages);
        CHECK(shmq_arena_holds(&arena, page, w, sizes[i].bytes));
        uint64_t capacity = sizes[i].pages * (page < SMALL ? (uint64_t)S : (uint64_t)L);
        CHECK(shmq_arena_holds(&arena, page, w, capacity));
        CHECK(!shmq_arena_holds(&arena, page, w, capacity + 1));
        CHECK_EQ(held_bytes(ME), capacity);
        CHECK_EQ(held_bytes(OTHER), 0);
        OK(shmq_arena_valid(&arena));
        OK(shmq_arena_free(&arena, page, w));
        CHECK_EQ(free_pages(), PAGES);
    }
}

/* No size may wrap around: not a loan's, and not the one in a block header that someone spoiled. */
TEST(sizes_that_never_fit) {
    static const uint64_t sizes[] = {
        LARGE * (uint64_t)L + 1, UINT64_C(1) << 32,  UINT64_C(1) << 63,  UINT64_MAX - L - S,
        UINT64_MAX - L + 1,      UINT64_MAX - L + 2, UINT64_MAX - S + 1, UINT64_MAX - S + 2,
        UINT64_MAX - 1,          UINT64_MAX};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (uint32_t taken = 0; taken < 3; taken++) {
            uint32_t page;
            uint64_t w;
            rig_with(SMALL, LARGE);
            if (taken > 0) OK(shmq_arena_try_loan(&arena, S, &page, &w));
            if (taken > 1) set(SMALL - 1, word(SHMQ_PAGE_LOANED, OTHER, 1, 0));
            uint32_t before = free_pages();
            CHECK(!shmq_arena_room(&arena, sizes[i]));
            CHECK_EQ(shmq_arena_try_loan(&arena, sizes[i], &page, &w), SHMQ_TOO_LARGE);
            CHECK_EQ(free_pages(), before);
            for (uint32_t p = 0; p < PAGES; p += SMALL / 2)
                CHECK(!shmq_arena_holds(&arena, p, word(SHMQ_PAGE_LOANED, ME, 0, 0), sizes[i]));
            check_fences();
        }
    }
}

TEST(an_arena_without_pages) {
    rig_with(0, 0);
    uint32_t page;
    uint64_t w;
    for (uint64_t bytes = 0; bytes < 3 * S; bytes += S) {
        CHECK_EQ(shmq_arena_try_loan(&arena, bytes, &page, &w), SHMQ_TOO_LARGE);
        CHECK(!shmq_arena_room(&arena, bytes));
    }
    CHECK_EQ(shmq_arena_lease(&arena, 0, 0, 0, &page, &w), SHMQ_CORRUPT);
    CHECK_EQ(shmq_arena_largest(&arena), 0);
    OK(shmq_arena_valid(&arena));
    recover(ME, 0, 0);
    shmq_arena_resend(&arena, ME, 0, 0);
    check_fences();
}

/* ---- fullness and fragmentation ---- */

TEST(the_other_tier_is_the_second_choice) {
    rig_with(4, 2);
    uint32_t page;
    uint64_t w;
    for (uint32_t i = 0; i < 4; i++) OK(shmq_arena_try_loan(&arena, 1, &page, &w));
    CHECK_EQ(page, 3);
    OK(shmq_arena_try_loan(&arena, 1, &page, &w)); /* small pages are gone */
    CHECK_EQ(page, 4);
    OK(shmq_arena_try_loan(&arena, L, &page, &w));
    CHECK_EQ(page, 5);
    CHECK_EQ(shmq_arena_try_loan(&arena, 0, &page, &w), SHMQ_ARENA_FULL);
    CHECK(!shmq_arena_room(&arena, 0));
    CHECK_EQ(shmq_arena_try_loan(&arena, 2 * L + 1, &page, &w), SHMQ_TOO_LARGE);

    rig_with(SMALL, 1); /* a large payload among small pages where no large one is free */
    OK(shmq_arena_try_loan(&arena, L, &page, &w));
    CHECK_EQ(page, SMALL);
    OK(shmq_arena_try_loan(&arena, 65 * S, &page, &w));
    CHECK_EQ(page, 0);
    CHECK_EQ(free_pages(), PAGES - 1 - 65);
}

TEST(free_pages_in_small_pieces_are_no_room) {
    rig_with(SMALL, 0);
    for (uint32_t i = 0; i < SMALL; i += 2) set(i, word(SHMQ_PAGE_LEASED, OTHER, 1, 0));
    uint32_t page;
    uint64_t w;
    CHECK_EQ(shmq_arena_try_loan(&arena, S + 1, &page, &w), SHMQ_ARENA_FULL);
    CHECK(!shmq_arena_room(&arena, S + 1));
    CHECK_EQ(free_pages(), SMALL / 2 + LARGE);
    OK(shmq_arena_free(&arena, SMALL - 2, at(SMALL - 2))); /* the last hole is of three pages now */
    CHECK(shmq_arena_room(&arena, 3 * S));
    CHECK(!shmq_arena_room(&arena, 3 * S + 1));
    OK(shmq_arena_try_loan(&arena, 3 * S, &page, &w));
    CHECK_EQ(page, SMALL - 3);
}

/* Every hole of n pages at every place is found, wherever the last search ended. */
TEST(every_hole_is_found) {
    for (uint32_t n = 1; n <= 70; n += 23) {
        for (uint32_t hole = 0; hole + n <= SMALL; hole++) {
            for (uint32_t hint = 0; hint <= SMALL; hint += 20) {
                rig_with(SMALL, 0);
                for (uint32_t i = 0; i < SMALL; i++)
                    if (i < hole || i >= hole + n) set(i, word(SHMQ_PAGE_LEASED, OTHER, 1, 0));
                arena.small.hint = hint;
                uint32_t page;
                uint64_t w;
                CHECK_EQ(shmq_arena_try_loan(&arena, (n + 1) * (uint64_t)S, &page, &w), SHMQ_ARENA_FULL);
                OK(shmq_arena_try_loan(&arena, n * (uint64_t)S, &page, &w));
                CHECK_EQ(page, hole);
                CHECK_EQ(shmq_arena_try_loan(&arena, 0, &page, &w), SHMQ_ARENA_FULL);
            }
        }
    }
    check_fences();
}

/* A run of one tier never continues into the other. */
TEST(a_block_stays_in_its_tier) {
    rig_with(4, 4);
    set(0, word(SHMQ_PAGE_LEASED, OTHER, 1, 0));
    set(1, word(SHMQ_PAGE_LEASED, OTHER, 1, 0));
    uint32_t page;
    uint64_t w;
    OK(shmq_arena_try_loan(&arena, 3 * S, &page, &w)); /* two small pages are left */
    CHECK_EQ(page, 4);
    /* CONT words behind the tier's end that look as if they belonged to it */
    set_block(2, 2, word(SHMQ_PAGE_LOANED, ME, 5, 0));
    set(4, word(SHMQ_PAGE_CONT, 0, 5, 2));
    CHECK_EQ(held_bytes(ME), 2 * S);
    CHECK(!shmq_arena_holds(&arena, 2, at(2), 2 * S + 1));
    CHECK_EQ(shmq_arena_valid(&arena), SHMQ_CORRUPT);
    OK(shmq_arena_free(&arena, 2, at(2)));
    CHECK_EQ(at(4), word(SHMQ_PAGE_CONT, 0, 5, 2));
}

/* ---- handles that lie ---- */

TEST(a_handle_must_name_this_very_block) {
    uint64_t position = 4096;
    uint64_t inflight = word(SHMQ_PAGE_INFLIGHT, OTHER, 5, position >> 2);
    static const uint32_t pages[] = {PAGES, PAGES + 1, 0xffffff};
    uint32_t page;
    uint64_t w;
    rig_with(SMALL, LARGE);
    set(3, inflight);
    for (size_t i = 0; i < sizeof pages / sizeof *pages; i++)
        CHECK_EQ(shmq_arena_lease(&arena, shmq_handle(pages[i], 5), position, 0, &page, &w), SHMQ_CORRUPT);
    CHECK_EQ(shmq_arena_lease(&arena, shmq_handle(2, 5), position, 0, &page, &w), SHMQ_CORRUPT);
    CHECK_EQ(shmq_arena_lease(&arena, shmq_handle(3, 4), position, 0, &page, &w), SHMQ_CORRUPT);
    CHECK_EQ(shmq_arena_lease(&arena, shmq_handle(3, 5), position + 8, 0, &page, &w), SHMQ_CORRUPT);
    CHECK_EQ(at(3), inflight);
    for (uint64_t state = 0; state < 8; state++) {
        if (state == SHMQ_PAGE_INFLIGHT) continue;
        set(3, word(state, OTHER, 5, position >> 2));
        CHECK_EQ(shmq_arena_lease(&arena, shmq_handle(3, 5), position, 0, &page, &w), SHMQ_CORRUPT);
        CHECK_EQ(at(3), word(state, OTHER, 5, position >> 2));
    }
    set(3, inflight);
    OK(shmq_arena_lease(&arena, shmq_handle(3, 5), position, 0, &page, &w));
    CHECK_EQ(shmq_arena_lease(&arena, shmq_handle(3, 5), position, 0, &page, &w), SHMQ_CORRUPT); /* twice */
    check_fences();
}

TEST(only_the_exact_word_is_changed) {
    rig_with(SMALL, LARGE);
    uint64_t mine = word(SHMQ_PAGE_LOANED, ME, 5, 0), w = mine;
    set_block(3, 2, word(SHMQ_PAGE_LOANED, ME, 6, 0)); /* the same page in its next life */
    CHECK_EQ(shmq_arena_send(&arena, 3, &w, 64), SHMQ_CORRUPT);
    CHECK_EQ(w, mine);
    CHECK_EQ(shmq_arena_free(&arena, 3, mine), SHMQ_CORRUPT);
    CHECK_EQ(at(3), word(SHMQ_PAGE_LOANED, ME, 6, 0));
    CHECK_EQ(at(4), word(SHMQ_PAGE_CONT, 0, 6, 3));
}

TEST(valid_sees_what_is_wrong) {
    static const struct {
        uint64_t first, second;
        int status;
    } cases[] = {
        {0x050001, 0x00050005 | 3ull << 28, SHMQ_OK},      /* LOANED, CONT of page 3 */
        {0x050003, 0x00050005 | 3ull << 28, SHMQ_OK},      /* LEASED */
        {0x050000, 0x00050005 | 3ull << 28, SHMQ_CORRUPT}, /* the first page is FREE */
        {0x060001, 0x00050005 | 3ull << 28, SHMQ_CORRUPT}, /* another generation */
        {0x050001, 0x00050005 | 4ull << 28, SHMQ_CORRUPT}, /* its own first page */
        {0x050001, 0x00050005 | 5ull << 28, SHMQ_CORRUPT}, /* one behind it */
        {0x050001, 0x00050005 | 0xfffffffffull << 28, SHMQ_CORRUPT},
        {0x050006, 0, SHMQ_CORRUPT}, /* no such state */
        {0x050007, 0, SHMQ_CORRUPT},
        {0x00050005 | 2ull << 28, 0x00050005 | 3ull << 28, SHMQ_CORRUPT}, /* CONT of a CONT */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        rig_with(SMALL, LARGE);
        set(3, cases[i].first);
        set(4, cases[i].second);
        CHECK_EQ(shmq_arena_valid(&arena), cases[i].status);
    }
}

TEST(counts_by_state) {
    rig_with(8, 4);
    set_block(1, 2, word(SHMQ_PAGE_LOANED, ME, 1, 0));
    set_block(3, 1, word(SHMQ_PAGE_INFLIGHT, ME, 1, 8));
    set_block(9, 3, word(SHMQ_PAGE_LEASED, OTHER, 1, 0));
    shmq_stats s = {0};
    shmq_arena_count(&arena, &s);
    static const uint64_t expected[6] = {6, 1, 1, 1, 0, 3};
    for (int i = 0; i < 6; i++) CHECK_EQ(s.pages[i], expected[i]);
    CHECK_EQ(s.arena_bytes, 8 * (uint64_t)S + 4 * (uint64_t)L);
    CHECK_EQ(s.arena_free_bytes, 5 * (uint64_t)S + L);
    CHECK_EQ(s.largest_free_bytes, L);
    CHECK_EQ(held_bytes(ME), 2 * (uint64_t)S); /* not what is in flight */
    CHECK_EQ(held_bytes(OTHER), 3 * (uint64_t)L);
}

/* ---- what the dead leave ---- */

/* A claim cut short after each of its steps, and a release cut short after each of its. */
TEST(half_claimed_and_half_freed_runs) {
    for (uint32_t pages = 1; pages <= 5; pages++) {
        for (uint32_t claimed = 1; claimed <= pages; claimed++) {
            for (uint32_t leased = 0; leased < 2; leased++) {
                rig_with(SMALL, LARGE);
                uint64_t first = word(leased ? SHMQ_PAGE_LEASED : SHMQ_PAGE_LOANED, ME, 5, 0);
                set_block(10, claimed, first); /* claimed upwards, or freed downwards, to here */
                set_block(9, 1, word(SHMQ_PAGE_LOANED, OTHER, 5, 0));
                set_block(10 + pages, 2, word(SHMQ_PAGE_LEASED, OTHER, 5, 0));
                OK(shmq_arena_valid(&arena));
                recover(ME, 0, 0);
                OK(shmq_arena_valid(&arena));
                CHECK_EQ(free_pages(), PAGES - 3);
                CHECK_EQ(at(9), word(SHMQ_PAGE_LOANED, OTHER, 5, 0));
                CHECK_EQ(at(10 + pages), word(SHMQ_PAGE_LEASED, OTHER, 5, 0));
                recover(ME, 0, 0); /* again: nothing */
                CHECK_EQ(free_pages(), PAGES - 3);
            }
        }
    }
}

/* INFLIGHT of the dead: published (head <= cursor < tail) stays, unpublished goes; also across the wrap. */
TEST(in_flight_blocks_stay_if_their_record_was_published) {
    static const uint64_t heads[] = {0, 4096, UINT64_C(1) << 39, (UINT64_C(1) << 39) - 64, UINT64_C(0) - 64};
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
        uint64_t head = heads[i], tail = head + 128;
        for (uint64_t cursor = head - 32; cursor != tail + 32; cursor += 8) {
            bool published = cursor - head < 128;
            rig_with(SMALL, LARGE);
            uint64_t argument = cursor >> 2 & ((UINT64_C(1) << 36) - 1);
            uint64_t w = word(SHMQ_PAGE_INFLIGHT, ME, 5, argument);
            set_block(4, 3, w);
            set_block(20, 1, word(SHMQ_PAGE_INFLIGHT, OTHER, 5, argument));
            recover(ME, head, tail);
            CHECK_EQ(at(4), published ? w : word(SHMQ_PAGE_FREE, 0, 5, 0));
            CHECK_EQ(free_pages(), PAGES - (published ? 4 : 1));
        }
        rig_with(SMALL, LARGE); /* an empty ring publishes nothing */
        set(4, word(SHMQ_PAGE_INFLIGHT, ME, 5, head >> 2 & ((UINT64_C(1) << 36) - 1)));
        recover(ME, head, head);
        CHECK_EQ(free_pages(), PAGES);
    }
}

/* Once it had been committed, a message is never freed: not by the reaper of its producer, who died before,
 * and not by the one of the consumer, who died with it. */
TEST(a_committed_block_is_never_freed) {
    rig_with(SMALL, LARGE);
    uint64_t committed = word(SHMQ_PAGE_INFLIGHT, ME, 5, 8) | 8;
    set_block(4, 2, committed);
    recover(ME, 64, 128);
    recover(ME, 4096, 8192);
    CHECK_EQ(at(4), committed);
    CHECK_EQ(at(5), word(SHMQ_PAGE_CONT, 0, 5, 4));
}

TEST(resend_puts_the_lease_of_the_dead_back_in_flight) {
    uint64_t position = UINT64_C(0) - 16;
    uint64_t leased = word(SHMQ_PAGE_LEASED, ME, 5, 0);
    static const uint32_t pages[] = {PAGES, 0xffffff, 5};
    rig_with(SMALL, LARGE);
    set_block(4, 2, leased);
    for (size_t i = 0; i < sizeof pages / sizeof *pages; i++) /* not this block */
        shmq_arena_resend(&arena, ME, shmq_handle(pages[i], 5), position);
    shmq_arena_resend(&arena, ME, shmq_handle(4, 4), position);    /* an earlier life */
    shmq_arena_resend(&arena, OTHER, shmq_handle(4, 5), position); /* another's lease */
    CHECK_EQ(at(4), leased);
    shmq_arena_resend(&arena, ME, shmq_handle(4, 5), position);
    uint64_t again = word(SHMQ_PAGE_INFLIGHT, ME, 5, position >> 2 & ((UINT64_C(1) << 36) - 1)) | 8;
    CHECK_EQ(at(4), again);
    CHECK_EQ(at(5), word(SHMQ_PAGE_CONT, 0, 5, 4));
    shmq_arena_resend(&arena, ME, shmq_handle(4, 5), position); /* the next reaper, who repeats it */
    CHECK_EQ(at(4), again);

    uint32_t page;
    uint64_t w;
    arena.owner = OTHER;
    OK(shmq_arena_lease(&arena, shmq_handle(4, 5), position, 0, &page, &w));
    CHECK_EQ(at(4), word(SHMQ_PAGE_LEASED, OTHER, 5, 0)); /* an ordinary lease: not committed any more */
    check_fences();
}

/* ---- the model ---- */

/* Random loans, releases and deaths of two owners against an array that says whose each page is. */
TEST(behaves_like_an_array_of_owners) {
    enum { BLOCKS = 64 };
    struct {
        uint64_t word;
        uint32_t page, pages, owner;
    } held[BLOCKS];
    uint32_t n = 0, owners[PAGES] = {0};
    uint64_t random = 42;
    rig_with(SMALL, LARGE);
    for (int step = 0; step < 100000; step++) {
        uint64_t what = below(&random, 100);
        arena.owner = below(&random, 2) == 0 ? ME : OTHER;
        if (what < 50 && n < BLOCKS) {
            uint64_t bytes =
                below(&random, 3) == 0 ? below(&random, 3 * (uint64_t)L) : below(&random, 12 * S);
            uint32_t page;
            uint64_t w;
            bool room = shmq_arena_room(&arena, bytes);
            int status = shmq_arena_try_loan(&arena, bytes, &page, &w);
            CHECK_EQ(status, room ? SHMQ_OK : SHMQ_ARENA_FULL);
            if (status != SHMQ_OK) continue;
            uint64_t each = page < SMALL ? S : L;
            uint32_t pages = bytes == 0 ? 1 : (uint32_t)((bytes + each - 1) / each);
            for (uint32_t i = 0; i < pages; i++) {
                CHECK_EQ(owners[page + i], 0);
                owners[page + i] = arena.owner;
            }
            held[n].word = w;
            held[n].page = page;
            held[n].pages = pages;
            held[n++].owner = arena.owner;
        } else if (what < 98 && n > 0) {
            uint32_t i = (uint32_t)below(&random, n);
            OK(shmq_arena_free(&arena, held[i].page, held[i].word));
            for (uint32_t k = 0; k < held[i].pages; k++) owners[held[i].page + k] = 0;
            held[i] = held[--n];
        } else if (what == 99) {
            recover(arena.owner, 0, 0);
            for (uint32_t i = 0; i < PAGES; i++)
                if (owners[i] == arena.owner) owners[i] = 0;
            for (uint32_t i = n; i-- > 0;)
                if (held[i].owner == arena.owner) held[i] = held[--n];
        }
        for (uint32_t i = 0; i < PAGES; i++)
            CHECK_EQ(shmq_word_state(at(i)) == SHMQ_PAGE_FREE, owners[i] == 0);
        OK(shmq_arena_valid(&arena));
    }
    check_fences();
}

TEST(a_block_that_is_taken_beside_its_repair_stays_whole) {
    uint32_t page;
    uint64_t word;
    rig_with(SMALL, LARGE);
    OK(shmq_arena_try_loan(&arena, 3 * S, &page, &word));
    OK(shmq_arena_send(&arena, page, &word, 64));
    taken_handle = shmq_handle(page, shmq_word_generation(word));
    shmq_arena_recover(&arena, ME, is_taken_meanwhile, NULL);
    CHECK_EQ(load_relaxed(&rig.words[page]), taken_word);
    CHECK(shmq_arena_holds(&arena, page, taken_word, 3 * S));
    OK(shmq_arena_valid(&arena));
}

int main(int argc, char **argv) { return run_tests(argc, argv); }
