/* arena.c: blocks of shared pages, each page with one word that is the truth about it.
 *
 * Idea: a block is a run of pages of one tier.  Its first page's word says in which state the block is and
 * whose it is; the words behind it say CONT(first page, generation).  Every change is one CAS from an exact
 * value, so whoever lost a race, or woke up too late, changes nothing.
 *
 *     state               next step                     by            death before the step: repaired by
 *     FREE                -> LOANED(me), then CONTs     anyone        nothing to do
 *     LOANED(o), k CONTs  -> more CONTs | INFLIGHT      o             reaper frees the CONTs found, then it
 *     INFLIGHT(o, c)      record published; -> LEASED   consumer      reaper of o: no record at c, so free
 *     LEASED(o)           -> CONTs to FREE, then FREE   o             reaper: record still at the head? back
 *                                                                     to INFLIGHT, else free
 *     CONT(h, g)          -> FREE                       owner of h    with h
 *
 * A topic's block has many readers.  While it is INFLIGHT, its header says who holds it: the ring, and peers.
 *
 *     {ring, peers}       -> {ring, peers, me}          anyone        reaper lets go in its name
 *     {.., me}            -> without me (or the ring)   me            the same
 *     {me} alone          page word -> LEASED(me), free me            the same; LEASED(o) as above
 *
 * Nobody can come where the ring's hold is gone, so {me} stays {me} until it is freed: at every instruction a
 * block is held by somebody who lives, or in whose name a reaper can act.
 *
 * Claiming goes upwards from the first page, freeing downwards to it.  So at every instruction the CONTs of
 * a block are an unbroken run behind a first page that is not FREE, and "count CONT(h, g) behind h" finds
 * them all.  No length needs to be stored, hence none can be wrong.
 *
 * Searching is first fit within a window at the start of the tier (memory that was freed last is the warmest
 * and lies there), then next fit, then the whole tier before it says full.
 *
 * This file does not wait and does not know the rings; a record's position is an opaque number here.
 */
#include <string.h>

#include "core.h"

#define WINDOW_PAGES 64u

static const struct shmq_tier *tier_of(const struct shmq_arena *a, uint32_t page) {
    return page < a->large.first ? &a->small : &a->large;
}
static uint32_t pages_for(const struct shmq_tier *t, uint64_t bytes) {
    uint64_t pages = bytes / t->page_bytes + (bytes % t->page_bytes != 0 || bytes == 0); /* no overflow */
    return pages > t->pages ? UINT32_MAX : (uint32_t)pages;
}
static bool is_free(uint64_t word) { return shmq_word_state(word) == SHMQ_PAGE_FREE; }

uint8_t *shmq_arena_data(const struct shmq_arena *a, uint32_t page) {
    const struct shmq_tier *t = tier_of(a, page);
    return t->base + (uint64_t)(page - t->first) * t->page_bytes;
}

uint64_t shmq_arena_largest(const struct shmq_arena *a) {
    uint64_t small = a->small.pages * a->small.page_bytes, large = a->large.pages * a->large.page_bytes;
    return small > large ? small : large;
}

/* Pages behind `page` that belong to the block whose first page is `page`. */
static uint32_t run_behind(const struct shmq_arena *a, uint32_t page, uint32_t generation) {
    const struct shmq_tier *t = tier_of(a, page);
    uint64_t cont = shmq_word(SHMQ_PAGE_CONT, 0, generation, page);
    uint32_t n = 0;
    while (page + n + 1 < t->first + t->pages && load_acquire(&a->words[page + n + 1]) == cont) n++;
    return n;
}

bool shmq_arena_holds(const struct shmq_arena *a, uint32_t page, uint64_t word, uint64_t bytes) {
    const struct shmq_tier *t = tier_of(a, page);
    uint32_t pages = pages_for(t, bytes);
    if (pages == 1) return true;
    if (pages > t->first + t->pages - page) return false;
    /* The run is unbroken (see above), so its last page answers for all. */
    return load_acquire(&a->words[page + pages - 1]) ==
           shmq_word(SHMQ_PAGE_CONT, 0, shmq_word_generation(word), page);
}

/* First page of `n` free ones in [from, to), or UINT32_MAX.  A hint: only the CAS decides. */
static uint32_t find_run(const struct shmq_arena *a, uint32_t from, uint32_t to, uint32_t n) {
    uint32_t found = 0;
    for (uint32_t page = from; page < to; page++) {
        found = is_free(load_relaxed(&a->words[page])) ? found + 1 : 0;
        if (found == n) return page + 1 - n;
    }
    return UINT32_MAX;
}

/* Claims exactly [page, page + n).  Someone else may take one of them first: then all go back. */
static bool claim_run(struct shmq_arena *a, uint32_t page, uint32_t n, uint64_t *word) {
    uint64_t seen = load_relaxed(&a->words[page]);
    if (!is_free(seen)) return false;
    uint32_t generation = (shmq_word_generation(seen) + 1) & 0xfffu;
    uint64_t head = shmq_word(SHMQ_PAGE_LOANED, a->owner, generation, 0);
    /* A1 <- A2: acquire the page after the last reader's release of it. */
    if (!cas_acq_rel(&a->words[page], &seen, head)) return false;
    for (uint32_t i = 1; i < n; i++) {
        uint64_t cont = shmq_word(SHMQ_PAGE_CONT, 0, generation, page);
        seen = load_relaxed(&a->words[page + i]);
        if (is_free(seen) && cas_acq_rel(&a->words[page + i], &seen, cont)) continue;
        (void)shmq_arena_free(a, page, head);
        return false;
    }
    *word = head;
    return true;
}

static bool try_tier(struct shmq_arena *a, struct shmq_tier *t, uint32_t n, uint32_t *page, uint64_t *word) {
    uint32_t end = t->first + t->pages;
    uint64_t reach = WINDOW_PAGES + 4 * (uint64_t)n;
    uint32_t window = t->first + (t->pages < reach ? t->pages : (uint32_t)reach);
    const uint32_t searches[3][2] = {
        {t->first, window}, {t->first + load32_relaxed(&t->hint), end}, {t->first, end}};
    for (int i = 0; i < 3; i++) {
        for (uint32_t from = searches[i][0];;) {
            uint32_t at = find_run(a, from, searches[i][1], n);
            if (at == UINT32_MAX) break;
            if (claim_run(a, at, n, word)) {
                if (i > 0) store32_relaxed(&t->hint, at + n - t->first);
                *page = at;
                return true;
            }
            from = at + 1; /* lost a race; progress: the winner has the page */
        }
    }
    return false;
}

/* Payloads up to a quarter of a large page look among the small pages first, larger ones among the large;
 * the other tier is the second choice. */
int shmq_arena_try_loan(struct shmq_arena *a, uint64_t bytes, uint32_t *page, uint64_t *word) {
    bool small_first = bytes <= a->large.page_bytes / 4;
    struct shmq_tier *order[2] = {small_first ? &a->small : &a->large, small_first ? &a->large : &a->small};
    bool ever = false;
    for (int i = 0; i < 2; i++) {
        uint32_t n = pages_for(order[i], bytes);
        if (n == UINT32_MAX) continue;
        ever = true;
        if (try_tier(a, order[i], n, page, word)) return SHMQ_OK;
    }
    return ever ? SHMQ_ARENA_FULL : SHMQ_TOO_LARGE;
}

bool shmq_arena_room(struct shmq_arena *a, uint64_t bytes) {
    struct shmq_tier *tiers[2] = {&a->small, &a->large};
    for (int i = 0; i < 2; i++) {
        uint32_t n = pages_for(tiers[i], bytes);
        if (n != UINT32_MAX &&
            find_run(a, tiers[i]->first, tiers[i]->first + tiers[i]->pages, n) != UINT32_MAX)
            return true;
    }
    return false;
}

static int change(struct shmq_arena *a, uint32_t page, uint64_t *word, uint64_t to) {
    uint64_t seen = *word;
    if (SHMQ_UNLIKELY(!cas_acq_rel(&a->words[page], &seen, to))) return SHMQ_CORRUPT;
    *word = to;
    return SHMQ_OK;
}

/* After this a reaper looks at the ring to learn whether the block is a message (P1 follows). */
int shmq_arena_send(struct shmq_arena *a, uint32_t page, uint64_t *word, uint64_t position) {
    return change(
        a, page, word,
        shmq_word(SHMQ_PAGE_INFLIGHT, a->owner, shmq_word_generation(*word), shmq_cursor_argument(position)));
}

int shmq_arena_lease(struct shmq_arena *a, uint64_t handle, uint64_t position, uint64_t argument,
                     uint32_t *page, uint64_t *word) {
    uint32_t at = shmq_handle_page(handle);
    if (at >= a->small.pages + a->large.pages) return SHMQ_CORRUPT;
    uint64_t seen = load_acquire(&a->words[at]);
    if (shmq_word_state(seen) != SHMQ_PAGE_INFLIGHT ||
        shmq_word_generation(seen) != shmq_handle_generation(handle) ||
        shmq_word_argument(seen) != shmq_cursor_argument(position))
        return SHMQ_CORRUPT;
    *page = at;
    *word = seen;
    return change(a, at, word, shmq_word(SHMQ_PAGE_LEASED, a->owner, shmq_word_generation(seen), argument));
}

/* ---- blocks that an entry of the pending table names, see keep.c ---- */

static uint64_t with_state(uint64_t word, uint32_t state, uint32_t owner) {
    return shmq_word(state, owner, shmq_word_generation(word), shmq_word_argument(word));
}

int shmq_arena_keep(struct shmq_arena *a, uint32_t page, uint64_t *word, uint64_t argument) {
    return change(a, page, word,
                  shmq_word(SHMQ_PAGE_LEASED, a->owner, shmq_word_generation(*word), argument));
}

bool shmq_arena_look(const struct shmq_arena *a, uint64_t handle, uint32_t *page, uint64_t *word) {
    *page = shmq_handle_page(handle);
    if (*page >= a->small.pages + a->large.pages) return false;
    *word = load_seq_cst(&a->words[*page]); /* K4 */
    return shmq_word_generation(*word) == shmq_handle_generation(handle);
}

bool shmq_arena_return(struct shmq_arena *a, uint32_t page, uint64_t *word) {
    uint64_t to = with_state(*word, SHMQ_PAGE_RETURNED, 0);
    if (!cas_seq_cst(&a->words[page], word, to)) return false; /* K1 */
    *word = to;
    return true;
}

bool shmq_arena_take_back(struct shmq_arena *a, uint32_t page, uint64_t *word) {
    uint64_t to = with_state(*word, SHMQ_PAGE_LEASED, a->owner);
    if (!cas_acq_rel(&a->words[page], word, to)) return false;
    *word = to;
    return true;
}

void shmq_arena_discard(struct shmq_arena *a, uint32_t page, uint64_t word, uint32_t owner) {
    uint64_t its = shmq_word(SHMQ_PAGE_LOANED, owner, shmq_word_generation(word), 0);
    if (cas_acq_rel(&a->words[page], &word, its)) (void)shmq_arena_free(a, page, its);
}

/* ---- shared blocks ---- */

void shmq_arena_share(struct shmq_arena *a, uint32_t page, uint64_t word) {
    store_relaxed(&a->headers[page].readers, /* relaxed: ours while LOANED; ordered by the slot's P1 */
                  shmq_readers(shmq_word_generation(word), SHMQ_HELD_BY_RING));
}

int shmq_arena_hold(struct shmq_arena *a, uint64_t handle, uint32_t *page) {
    uint32_t at = shmq_handle_page(handle);
    if (at >= a->small.pages + a->large.pages) return SHMQ_CORRUPT;
    shmq_a64 *readers = &a->headers[at].readers;
    uint64_t mine = UINT64_C(1) << a->owner, seen = load_acquire(readers);
    *page = at;
    do {
        if (shmq_readers_generation(seen) != shmq_handle_generation(handle) ||
            (seen & SHMQ_HELD_BY_RING) == 0 || (seen & mine) != 0)
            return SHMQ_EMPTY;
        /* Progress: a CAS fails only because another reader came or left. */
    } while (!cas_acq_rel(readers, &seen, seen | mine));
    return SHMQ_OK;
}

bool shmq_arena_is_shared(const struct shmq_arena *a, uint64_t handle) {
    uint32_t at = shmq_handle_page(handle);
    if (at >= a->small.pages + a->large.pages) return false;
    uint64_t seen = load_acquire(&a->headers[at].readers);
    return shmq_readers_generation(seen) == shmq_handle_generation(handle) && (seen & SHMQ_HELD_BY_RING) != 0;
}

void shmq_arena_let_go(struct shmq_arena *a, uint32_t page, bool and_the_ring) {
    shmq_a64 *readers = &a->headers[page].readers;
    uint64_t mine = UINT64_C(1) << a->owner, seen = load_acquire(readers);
    for (;;) {
        uint64_t left = seen & ~(mine | (and_the_ring ? SHMQ_HELD_BY_RING : 0));
        if ((seen & mine) == 0) return;
        if ((left & SHMQ_HOLDERS_MASK) == 0) {
            if ((seen & SHMQ_HELD_BY_RING) == 0) break; /* we alone, and nobody can come */
            left = seen & ~SHMQ_HELD_BY_RING;
            if (cas_acq_rel(readers, &seen, left)) break; /* death from here on: {dead} alone, see above */
        } else if (cas_acq_rel(readers, &seen, left)) {
            return; /* release: what we read of the block came before its next life */
        }
    }
    uint64_t word = load_acquire(&a->words[page]);
    if (shmq_word_state(word) != SHMQ_PAGE_INFLIGHT) return; /* garbage */
    if (change(a, page, &word, shmq_word(SHMQ_PAGE_LEASED, a->owner, shmq_word_generation(word), 0)) ==
        SHMQ_OK)
        (void)shmq_arena_free(a, page, word);
}

int shmq_arena_free(struct shmq_arena *a, uint32_t page, uint64_t word) {
    uint64_t cont = shmq_word(SHMQ_PAGE_CONT, 0, shmq_word_generation(word), page);
    uint64_t freed = shmq_word(SHMQ_PAGE_FREE, 0, shmq_word_generation(word), 0);
    for (uint32_t n = run_behind(a, page, shmq_word_generation(word)); n > 0; n--) {
        uint64_t seen = cont;
        (void)cas_acq_rel(&a->words[page + n], &seen, freed); /* A2 */
    }
    /* Death before this line: the first page still says whose block it was.  After it: all is free. */
    return cas_acq_rel(&a->words[page], &word, freed) ? SHMQ_OK : SHMQ_CORRUPT;
}

/* ---- counting ---- */

/* Is this peer one of the readers of the block whose first page's word is `word`? */
static bool holds(const struct shmq_arena *a, uint32_t page, uint64_t word, uint32_t owner) {
    uint64_t readers = load_acquire(&a->headers[page].readers);
    return owner < SHMQ_TOPIC_PEERS && shmq_readers_generation(readers) == shmq_word_generation(word) &&
           (readers >> owner & 1) != 0;
}

void shmq_arena_count(const struct shmq_arena *a, shmq_stats *stats) {
    const struct shmq_tier *tiers[2] = {&a->small, &a->large};
    for (int i = 0; i < 2; i++) {
        const struct shmq_tier *t = tiers[i];
        uint64_t run = 0;
        stats->arena_bytes += t->pages * t->page_bytes;
        for (uint32_t page = t->first; page < t->first + t->pages; page++) {
            uint32_t state = shmq_word_state(load_relaxed(&a->words[page]));
            if (state < 6) stats->pages[state] += 1;
            run = state == SHMQ_PAGE_FREE ? run + t->page_bytes : 0;
            if (state == SHMQ_PAGE_FREE) stats->arena_free_bytes += t->page_bytes;
            if (run > stats->largest_free_bytes) stats->largest_free_bytes = run;
        }
    }
}

void shmq_arena_in_hands(const struct shmq_arena *a, uint32_t owner, struct shmq_hands *hands) {
    for (uint32_t page = 0; page < a->small.pages + a->large.pages; page++) {
        uint64_t w = load_relaxed(&a->words[page]);
        uint32_t state = shmq_word_state(w);
        bool own = (state == SHMQ_PAGE_LOANED || state == SHMQ_PAGE_LEASED) && shmq_word_owner(w) == owner;
        if (!own && (state != SHMQ_PAGE_INFLIGHT || !holds(a, page, w, owner))) continue;
        uint64_t pages = 1 + (uint64_t)run_behind(a, page, shmq_word_generation(w));
        hands->held_bytes += pages * tier_of(a, page)->page_bytes;
        *(state == SHMQ_PAGE_LOANED ? &hands->loaned : &hands->leased) += 1;
    }
}

/* Every CONT lies behind a first page that is not FREE.  Looks twice before it complains, because
 * others work on the words meanwhile. */
int shmq_arena_valid(const struct shmq_arena *a) {
    for (uint32_t page = 0; page < a->small.pages + a->large.pages; page++) {
        for (int tries = 0;; tries++) {
            uint64_t w = load_acquire(&a->words[page]);
            uint32_t state = shmq_word_state(w);
            bool good = state <= SHMQ_PAGE_CONT;
            if (state == SHMQ_PAGE_CONT) {
                uint64_t first = shmq_word_argument(w);
                good = first < page && tier_of(a, (uint32_t)first) == tier_of(a, page);
                if (good) {
                    uint64_t f = load_acquire(&a->words[first]);
                    uint32_t s = shmq_word_state(f);
                    good = s != SHMQ_PAGE_FREE && s != SHMQ_PAGE_CONT &&
                           shmq_word_generation(f) == shmq_word_generation(w);
                }
            }
            if (good) break;
            if (tries == 1000) return SHMQ_CORRUPT;
        }
    }
    return SHMQ_OK;
}

/* ---- repair: called with the dead owner's reaper lock held ---- */

void shmq_arena_resend(struct shmq_arena *a, uint32_t dead, uint64_t handle, uint64_t position) {
    uint32_t page = shmq_handle_page(handle);
    if (page >= a->small.pages + a->large.pages) return;
    uint64_t w = load_acquire(&a->words[page]);
    if (shmq_word_state(w) != SHMQ_PAGE_LEASED || shmq_word_owner(w) != dead ||
        shmq_word_generation(w) != shmq_handle_generation(handle))
        return;
    /* Death here or after: the next reaper finds either the lease or the repaired word. */
    uint64_t again =
        shmq_word(SHMQ_PAGE_INFLIGHT, dead, shmq_word_generation(w), shmq_cursor_argument(position)) |
        SHMQ_WORD_COMMITTED;
    (void)cas_acq_rel(&a->words[page], &w, again);
}

/* The dead may also have held a block that is not in flight yet: one that came round to the generation of a message
 * that is gone, by a hold that it had no time to check. */
void shmq_arena_recover_readers(struct shmq_arena *a, uint32_t dead) {
    struct shmq_arena hands = *a;
    uint64_t its = UINT64_C(1) << dead;
    hands.owner = dead;
    for (uint32_t page = 0; page < a->small.pages + a->large.pages; page++) {
        for (;;) {
            uint64_t readers = load_acquire(&a->headers[page].readers), w = load_acquire(&a->words[page]);
            if (shmq_word_state(w) == SHMQ_PAGE_INFLIGHT && holds(a, page, w, dead)) {
                shmq_arena_let_go(&hands, page, false);
                break;
            }
            if ((readers & its) == 0 || (readers & SHMQ_HELD_BY_RING) == 0)
                break; /* nothing, or a former life's */
            /* Progress: a CAS fails only because another reader came or left, or the block got its next life. */
            if (cas_acq_rel(&a->headers[page].readers, &readers, readers & ~its)) break;
        }
    }
}

void shmq_arena_recover(struct shmq_arena *a, uint32_t dead, shmq_published_fn *published, const void *ring) {
    for (uint32_t page = 0; page < a->small.pages + a->large.pages; page++) {
        uint64_t w = load_acquire(&a->words[page]);
        uint32_t state = shmq_word_state(w);
        if (shmq_word_owner(w) != dead) continue;
        bool orphan = state == SHMQ_PAGE_LOANED || state == SHMQ_PAGE_LEASED;
        if (state == SHMQ_PAGE_INFLIGHT && (w & SHMQ_WORD_COMMITTED) == 0)
            /* Where the ring does not name it any more, a consumer may just have taken it; but it changes the
             * word before it lets go of the ring.  So the word is looked at again, behind the ring. */
            orphan = !published(ring, shmq_word_argument(w), shmq_handle(page, shmq_word_generation(w))) &&
                     load_acquire(&a->words[page]) == w;
        if (orphan) (void)shmq_arena_free(a, page, w);
    }
}
