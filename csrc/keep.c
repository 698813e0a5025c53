/* keep.c: the blocks of messages that are to be acknowledged, between the arena and the pending table.
 *
 * Idea: a block lives as long as an entry of the pending table names it or a process looks at it.  Who leases it says
 * so in the page's word, with the entry as its argument, and gives it back to nobody (RETURNED) once its last view is
 * dropped; the acknowledgement makes the entry name it no more.  Whoever comes second frees it.
 *
 *     page word           next step                       by            death before the step: repaired by
 *     INFLIGHT(o, c)      -> LEASED(me, e)                consumer      nothing to do
 *     LEASED(o, e)        views dropped: -> RETURNED(e)   o             reaper of o: named: -> RETURNED(e); else free
 *     RETURNED(e), named  -> LEASED(me, e)                owner of e    nothing to do: e is MOVING(o), and waits again
 *     RETURNED(e), spent  -> LOANED(me) -> FREE           who sees it   reaper of who should have seen it: the same
 *
 * The two that may come second store, then look: who drops the last view the page's word (K1), then the entry (K2);
 * who acks, or makes the entry name another block, the entry (K3), then the page's word (K4).  All four are seq_cst,
 * so one of the two sees the other's store, and the CAS to LOANED has one winner.  "Spent" is for ever: an entry
 * comes to name a block only while that is LEASED by the entry's owner.
 *
 * A message is delivered again while a process still looks at its block: where it was given back with views alive, or
 * is overdue.  That memory must not be written to by the next one's views, nor be freed under the first one's, so the
 * next one gets a copy.  (Views of such queues are read-only, so the copy is what was sent.)
 */
#include <string.h>

#include "core.h"

static uint64_t argument_of(const struct shmq_delivery *d) { return (uint64_t)d->entry + 1; }

/* K4, or K2 behind the caller's own store.  `who`: in whose name, us or the dead whose reaper we are.  A reaper that
 * attaches has no name of its own yet. */
static void free_if_spent(struct shmq_arena *arena, const struct shmq_pending *pending, uint32_t page,
                          uint64_t word, uint32_t who) {
    if (shmq_word_state(word) != SHMQ_PAGE_RETURNED || shmq_word_argument(word) == 0) return;
    if (shmq_pending_names(pending, shmq_word_argument(word) - 1,
                           shmq_handle(page, shmq_word_generation(word))))
        return;
    shmq_arena_discard(arena, page, word, who); /* death within: LOANED(who) */
}

int shmq_keep_lease(struct shmq_arena *arena, const struct shmq_delivery *d, uint64_t handle,
                    uint64_t position, uint32_t *page, uint64_t *word) {
    return shmq_arena_lease(arena, handle, position, argument_of(d), page, word);
}

static void return_block(struct shmq_arena *arena, const struct shmq_pending *pending, uint32_t page,
                         uint64_t word, uint32_t who) {
    if (shmq_arena_return(arena, page, &word)) /* K1 */
        free_if_spent(arena, pending, page, word, who);
}

void shmq_keep_release(struct shmq_arena *arena, const struct shmq_pending *pending, uint32_t page,
                       uint64_t word) {
    return_block(arena, pending, page, word, arena->owner);
}

void shmq_keep_acked(struct shmq_arena *arena, const struct shmq_pending *pending, uint64_t handle) {
    uint32_t page;
    uint64_t word;
    if (shmq_arena_look(arena, handle, &page, &word)) free_if_spent(arena, pending, page, word, arena->owner);
}

/* A private copy for this delivery.  Death within: LOANED(us) or LEASED(us) and not named, both freed; from the
 * renaming on the entry names the copy, and the old block is spent. */
static int copy_block(struct shmq_arena *arena, const struct shmq_pending *pending,
                      const struct shmq_delivery *d, uint32_t old, uint64_t old_word, uint32_t *page,
                      uint64_t *word) {
    uint64_t bytes = *(const volatile uint64_t *)&arena->headers[old].payload_bytes; /* once */
    if (!shmq_arena_holds(arena, old, old_word, bytes)) return SHMQ_CORRUPT;
    int status = shmq_arena_try_loan(arena, bytes, page, word);
    if (status != SHMQ_OK) return status;
    memcpy(shmq_arena_data(arena, *page), shmq_arena_data(arena, old), bytes);
    struct shmq_block_header *to = &arena->headers[*page], *from = &arena->headers[old];
    to->payload_bytes = bytes;
    to->codec = from->codec;
    to->flags = from->flags;
    to->meta_bytes = from->meta_bytes;
    to->producer = from->producer;
    memcpy(to->meta, from->meta, sizeof to->meta);
    if ((status = shmq_arena_keep(arena, *page, word, argument_of(d))) != SHMQ_OK) return status;
    shmq_pending_rename(pending, d, shmq_handle(*page, shmq_word_generation(*word))); /* K3 */
    return SHMQ_OK;
}

int shmq_keep_take(struct shmq_arena *arena, const struct shmq_pending *pending,
                   const struct shmq_delivery *d, uint64_t handle, uint32_t *page, uint64_t *word) {
    for (;;) {
        if (!shmq_arena_look(arena, handle, page, word) || shmq_word_argument(*word) != argument_of(d))
            return SHMQ_CORRUPT;
        if (shmq_word_state(*word) == SHMQ_PAGE_RETURNED) {
            if (shmq_arena_take_back(arena, *page, word)) return SHMQ_OK;
            continue; /* garbage: only the entry's owner, which is us, takes it back */
        }
        if (shmq_word_state(*word) != SHMQ_PAGE_LEASED) return SHMQ_CORRUPT;
        uint32_t old = *page;
        int status = copy_block(arena, pending, d, old, *word, page, word);
        if (status == SHMQ_OK) shmq_keep_acked(arena, pending, handle); /* K4: dropped meanwhile? */
        return status;
    }
}

void shmq_keep_recover(struct shmq_arena *arena, const struct shmq_pending *pending, uint32_t dead) {
    for (uint32_t page = 0; page < arena->small.pages + arena->large.pages; page++) {
        uint64_t word = load_seq_cst(&arena->words[page]);
        uint32_t state = shmq_word_state(word);
        uint64_t argument = shmq_word_argument(word);
        if (state == SHMQ_PAGE_RETURNED)
            free_if_spent(arena, pending, page, word, dead); /* the dead one's to see */
        if (state != SHMQ_PAGE_LEASED || shmq_word_owner(word) != dead || argument == 0) continue;
        if (shmq_pending_names(pending, argument - 1, shmq_handle(page, shmq_word_generation(word))))
            return_block(arena, pending, page, word, dead); /* else it is freed with what else it held */
    }
}
