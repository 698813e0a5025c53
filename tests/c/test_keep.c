/* Blocks that are to be acknowledged: words placed by hand, one act, the exact words. */
#define _GNU_SOURCE
#include "lab.h"

#define PAGES 12u
#define ENTRIES 4u
#define SLOT_BYTES 128u
#define ME 7u
#define OTHER 9u
#define DEAD 11u
#define BYTES (2 * SHMQ_SMALL_PAGE + 100) /* three pages */

static uint8_t pages[PAGES * SHMQ_SMALL_PAGE];
static struct {
    shmq_a64 words[PAGES];
    struct shmq_block_header headers[PAGES];
    struct shmq_pending_entry entries[ENTRIES];
    uint8_t copies[ENTRIES * SLOT_BYTES];
    shmq_a64 next_due;
    struct shmq_slot slot;
} rig __attribute__((aligned(128)));
/* The same memory, as three peers see it. */
static struct peer {
    struct shmq_arena arena;
    struct shmq_pending pending;
    struct shmq_delivery d;
    uint32_t page;
    uint64_t word;
} mine, others, deads;

static void set_up_peer(struct peer *p, uint32_t owner) {
    memset(p, 0, sizeof *p);
    p->arena.words = rig.words;
    p->arena.headers = rig.headers;
    p->arena.small.base = pages;
    p->arena.small.page_bytes = SHMQ_SMALL_PAGE;
    p->arena.small.pages = PAGES;
    p->arena.large.page_bytes = SHMQ_LARGE_PAGE;
    p->arena.large.first = PAGES;
    p->pending.entries = rig.entries;
    p->pending.copies = rig.copies;
    p->pending.next_due = &rig.next_due;
    p->pending.count = ENTRIES;
    p->pending.slot_bytes = SLOT_BYTES;
    p->arena.owner = p->pending.owner = owner;
}
static void set_up(void) {
    memset(&rig, 0, sizeof rig);
    set_up_peer(&mine, ME);
    set_up_peer(&others, OTHER);
    set_up_peer(&deads, DEAD);
    shmq_pending_init(&mine.pending);
}

static uint64_t at(uint32_t page) { return load_relaxed(&rig.words[page]); }
static uint64_t handle_of(const struct peer *p) {
    return shmq_handle(p->page, shmq_word_generation(p->word));
}
static uint64_t state(uint32_t state, uint32_t owner, uint32_t generation, uint64_t argument) {
    return (uint64_t)state | (uint64_t)owner << 4 | (uint64_t)generation << 16 | argument << 28;
}
static uint32_t free_pages(void) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < PAGES; i++) n += shmq_word_state(at(i)) == SHMQ_PAGE_FREE;
    return n;
}

/* A block of three pages that `p` leased out of the ring, and that its entry names. */
static void lease(struct peer *p, uint64_t number) {
    struct shmq_record r = {.bytes = 8, .flags = SHMQ_RECORD_BLOCK, .position = number << 3};
    OK(shmq_arena_try_loan(&p->arena, BYTES, &p->page, &p->word));
    message_write(shmq_arena_data(&p->arena, p->page), number, BYTES);
    struct shmq_block_header *h = &rig.headers[p->page];
    h->payload_bytes = BYTES;
    h->codec = 3;
    h->meta_bytes = 5;
    h->producer = 21;
    memcpy(h->meta, "meta", 5);
    OK(shmq_arena_send(&p->arena, p->page, &p->word, r.position));
    OK(shmq_pending_try_claim(&p->pending, &p->d));
    OK(shmq_keep_lease(&p->arena, &p->d, handle_of(p), r.position, &p->page, &p->word));
    store_relaxed(&rig.slot.handle, handle_of(p));
    shmq_pending_fill(&p->pending, &p->d, &rig.slot, &r, 0);
}
static void drop(struct peer *p) { shmq_keep_release(&p->arena, &p->pending, p->page, p->word); }
static void ack(struct peer *p) {
    uint64_t handle;
    OK(shmq_pending_ack(&p->pending, &p->d, &handle));
    shmq_keep_acked(&p->arena, &p->pending, handle);
}
static void nack(struct peer *p) { OK(shmq_pending_nack(&p->pending, &p->d, 0)); }
/* What is due again, to `p`. */
static int take(struct peer *p) {
    struct shmq_record r;
    OK(shmq_pending_try_take(&p->pending, 1, &p->d));
    OK(shmq_pending_record(&p->pending, &p->d, 96, &r));
    uint64_t handle = load_relaxed((shmq_a64 *)(void *)r.payload);
    return shmq_keep_take(&p->arena, &p->pending, &p->d, handle, &p->page, &p->word);
}
static void deliver(struct peer *p) { shmq_pending_deliver(&p->pending, &p->d, 1); }
static void check_message(const struct peer *p, uint64_t number) {
    const struct shmq_block_header *h = &rig.headers[p->page];
    CHECK_EQ(h->payload_bytes, BYTES);
    CHECK(h->codec == 3 && h->meta_bytes == 5 && h->producer == 21 && memcmp(h->meta, "meta", 5) == 0);
    CHECK_EQ(message_number(shmq_arena_data(&p->arena, p->page), BYTES), number);
}

TEST(views_dropped_then_acknowledged) {
    set_up();
    lease(&mine, 1);
    CHECK_EQ(at(0), state(SHMQ_PAGE_LEASED, ME, 1, 1));
    CHECK_EQ(at(1), state(SHMQ_PAGE_CONT, 0, 1, 0));
    drop(&mine);
    CHECK_EQ(at(0), state(SHMQ_PAGE_RETURNED, 0, 1, 1));
    CHECK_EQ(at(1), state(SHMQ_PAGE_CONT, 0, 1, 0));
    OK(shmq_arena_valid(&mine.arena));
    ack(&mine);
    CHECK_EQ(free_pages(), PAGES);
    CHECK_EQ(at(0), state(SHMQ_PAGE_FREE, 0, 1, 0));
}

TEST(acknowledged_then_views_dropped) {
    set_up();
    lease(&mine, 1);
    ack(&mine);
    CHECK_EQ(at(0), state(SHMQ_PAGE_LEASED, ME, 1, 1)); /* still looked at */
    lease(&others, 2);                                  /* the same entry names another block */
    CHECK_EQ(others.d.entry, 0);
    drop(&mine);
    CHECK_EQ(free_pages(), PAGES - 3);
    CHECK_EQ(shmq_word_state(at(0)), SHMQ_PAGE_FREE);
}

TEST(a_returned_block_is_taken_back) {
    set_up();
    lease(&mine, 1);
    drop(&mine);
    nack(&mine);
    CHECK_EQ(at(0), state(SHMQ_PAGE_RETURNED, 0, 1, 1));
    OK(take(&others));
    CHECK_EQ(others.page, 0);
    CHECK_EQ(at(0), state(SHMQ_PAGE_LEASED, OTHER, 1, 1));
    CHECK_EQ(at(0), others.word);
    check_message(&others, 1);
    deliver(&others);
    ack(&others);
    drop(&others);
    CHECK_EQ(free_pages(), PAGES);
}

/* Four orders in which the first view, the copy's view and the copy's ack may end. */
TEST(a_block_that_is_looked_at_is_copied) {
    for (int order = 0; order < 4; order++) {
        set_up();
        lease(&mine, 1);
        nack(&mine);
        OK(take(&others));
        CHECK(others.page != mine.page);
        check_message(&others, 1);
        check_message(&mine, 1);
        CHECK_EQ(at(mine.page), mine.word); /* as it was */
        CHECK(shmq_pending_names(&mine.pending, 0, handle_of(&others)));
        CHECK_EQ(at(others.page), state(SHMQ_PAGE_LEASED, OTHER, 1, 1));
        deliver(&others);
        if (order == 0) drop(&mine);
        if (order == 0) CHECK_EQ(free_pages(), PAGES - 3);
        if (order >= 2) drop(&others);
        if (order == 1) drop(&mine);
        ack(&others);
        if (order < 2) drop(&others);
        CHECK_EQ(free_pages(), order < 2 ? PAGES : PAGES - 3);
        if (order >= 2) drop(&mine);
        CHECK_EQ(free_pages(), PAGES);
        OK(shmq_arena_valid(&mine.arena));
    }
}

TEST(a_copy_of_a_copy) {
    set_up();
    lease(&mine, 1);
    nack(&mine);
    OK(take(&others));
    shmq_pending_put_back(&others.pending, &others.d, 0);
    OK(take(&deads)); /* the copy is looked at as well */
    CHECK(deads.page != others.page && deads.page != mine.page);
    check_message(&deads, 1);
    deliver(&deads);
    drop(&others);
    drop(&mine);
    CHECK_EQ(free_pages(), PAGES - 3);
    ack(&deads);
    drop(&deads);
    CHECK_EQ(free_pages(), PAGES);
}

TEST(no_room_for_a_copy) {
    set_up();
    uint32_t page;
    uint64_t word;
    lease(&mine, 1);
    OK(shmq_arena_try_loan(&mine.arena, (PAGES - 5) * SHMQ_SMALL_PAGE, &page, &word));
    nack(&mine);
    CHECK_EQ(take(&others), SHMQ_ARENA_FULL);
    CHECK_EQ(free_pages(), 2);
    CHECK(shmq_pending_names(&mine.pending, 0, handle_of(&mine)));
    shmq_pending_put_back(&others.pending, &others.d, 0);
    drop(&mine);
    OK(take(&others)); /* itself, now */
    CHECK_EQ(others.page, mine.page);
}

TEST(what_cannot_be_so_is_corrupt) {
    set_up();
    lease(&mine, 1);
    nack(&mine);
    OK(shmq_pending_try_take(&others.pending, 1, &others.d));
    uint64_t good = at(0), handle = handle_of(&mine);
    struct {
        uint64_t handle, word;
    } bad[] = {
        {shmq_handle(0, 2), good},                     /* another life */
        {shmq_handle(1, 1), good},                     /* not the first page */
        {shmq_handle(PAGES, 1), good},                 /* not a page */
        {handle, state(SHMQ_PAGE_LEASED, ME, 1, 2)},   /* another entry's */
        {handle, state(SHMQ_PAGE_LEASED, ME, 1, 0)},   /* of no entry */
        {handle, state(SHMQ_PAGE_RETURNED, 0, 1, 3)},  /* another entry's */
        {handle, state(SHMQ_PAGE_INFLIGHT, ME, 1, 1)}, /* in the ring */
        {handle, state(SHMQ_PAGE_FREE, 0, 1, 1)},      /* nobody's */
        {handle, state(SHMQ_PAGE_CONT, 0, 1, 1)},      /* of another block */
        {handle, good},                                /* longer than it is, below */
    };
    size_t n = sizeof bad / sizeof *bad;
    for (size_t i = 0; i < n; i++) {
        store_relaxed(&rig.words[0], bad[i].word);
        rig.headers[0].payload_bytes = i + 1 == n ? 4 * SHMQ_SMALL_PAGE : BYTES;
        CHECK_EQ(shmq_keep_take(&others.arena, &others.pending, &others.d, bad[i].handle, &others.page,
                                &others.word),
                 SHMQ_CORRUPT);
        CHECK_EQ(at(0), bad[i].word);
    }
    rig.headers[0].payload_bytes = UINT64_MAX;
    CHECK_EQ(shmq_keep_take(&others.arena, &others.pending, &others.d, handle, &others.page, &others.word),
             SHMQ_CORRUPT);
}

/* ---- repair ---- */

static bool nothing(const void *ring, uint64_t argument, uint64_t handle) {
    (void)ring, (void)argument, (void)handle;
    return false;
}
static void reap(void) {
    shmq_keep_recover(&mine.arena, &mine.pending, DEAD);
    shmq_arena_recover(&mine.arena, DEAD, nothing, NULL);
    shmq_pending_recover(&mine.pending, DEAD);
}

TEST(the_dead_keep_nothing_and_nothing_that_is_named_is_freed) {
    set_up();
    lease(&deads, 1); /* unacknowledged, looked at */
    uint32_t first = deads.page;
    lease(&deads, 2); /* acknowledged, looked at */
    ack(&deads);
    lease(&mine, 3); /* a living one's */
    uint64_t word = mine.word;
    reap();
    reap();
    CHECK_EQ(at(first), state(SHMQ_PAGE_RETURNED, 0, 1, 1));
    CHECK_EQ(at(mine.page), word);
    CHECK_EQ(free_pages(), PAGES - 6);
    OK(take(&others));
    CHECK_EQ(others.page, first);
    check_message(&others, 1);
}

TEST(an_entry_that_is_another_s_by_now_still_names_the_block_of_the_dead) {
    set_up();
    lease(&deads, 1);
    mine.pending.visibility_ns = 1;
    store_relaxed(&rig.entries[0].due_ns, 0); /* overdue */
    store_relaxed(&rig.next_due, 0);
    OK(shmq_pending_try_take(&others.pending, 1, &others.d));
    reap();
    CHECK_EQ(at(0), state(SHMQ_PAGE_RETURNED, 0, 1, 1));
    OK(shmq_keep_take(&others.arena, &others.pending, &others.d, handle_of(&deads), &others.page,
                      &others.word));
    CHECK_EQ(others.page, 0);
}

/* Between K1 and K2, or K3 and K4: nobody else looks. */
TEST(whoever_should_have_seen_it_is_dead) {
    set_up();
    lease(&deads, 1);
    CHECK(shmq_arena_return(&deads.arena, deads.page, &deads.word)); /* K1 of its last view */
    uint64_t handle;
    OK(shmq_pending_ack(&deads.pending, &deads.d, &handle)); /* K3 of its ack */
    lease(&mine, 2);
    drop(&mine);
    uint64_t named = at(mine.page);
    reap();
    CHECK_EQ(shmq_word_state(at(deads.page)), SHMQ_PAGE_FREE);
    CHECK_EQ(at(mine.page), named); /* not spent */
    CHECK_EQ(free_pages(), PAGES - 3);
}

TEST(a_copy_that_was_not_named_yet_is_freed_and_one_that_was_is_not) {
    for (int named = 0; named < 2; named++) {
        set_up();
        lease(&mine, 1);
        nack(&mine);
        OK(shmq_pending_try_take(&deads.pending, 1, &deads.d));
        OK(shmq_arena_try_loan(&deads.arena, BYTES, &deads.page, &deads.word));
        OK(shmq_arena_keep(&deads.arena, deads.page, &deads.word, 1));
        if (named) shmq_pending_rename(&deads.pending, &deads.d, handle_of(&deads));
        reap();
        CHECK_EQ(at(deads.page), named ? state(SHMQ_PAGE_RETURNED, 0, 1, 1) : state(SHMQ_PAGE_FREE, 0, 1, 0));
        drop(&mine);
        CHECK_EQ(at(mine.page), named ? state(SHMQ_PAGE_FREE, 0, 1, 0) : state(SHMQ_PAGE_RETURNED, 0, 1, 1));
        CHECK_EQ(free_pages(), PAGES - 3);
    }
}

TEST(a_block_is_freed_once) {
    set_up();
    lease(&mine, 1);
    ack(&mine);
    uint64_t returned = mine.word;
    CHECK(shmq_arena_return(&mine.arena, mine.page, &returned)); /* two see it now */
    shmq_arena_discard(&others.arena, mine.page, returned, OTHER);
    CHECK_EQ(free_pages(), PAGES);
    lease(&others, 2); /* the same pages, another life */
    CHECK_EQ(others.page, mine.page);
    uint64_t word = at(others.page);
    shmq_arena_discard(&mine.arena, mine.page, returned, ME);
    shmq_keep_acked(&mine.arena, &mine.pending, handle_of(&mine));
    shmq_keep_release(&mine.arena, &mine.pending, mine.page, mine.word);
    CHECK_EQ(at(others.page), word);
    CHECK_EQ(free_pages(), PAGES - 3);
}

int main(int argc, char **argv) { return run_tests(argc, argv); }
