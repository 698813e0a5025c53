/* share.c: the blocks of a topic, which the ring and many readers hold together.
 *
 * Idea: arena.c knows who holds a block, topic.c which message names it; here the two are brought together.  The
 * ring holds a block from its publication on.  Its hold ends as soon as every subscriber has taken the message
 * and it is older than the history; at the latest before its slot is claimed for the next lap (which then need not
 * look back: hence a block that the ring holds always has a message that names it, or an owner who died before it
 * published).
 *
 * Whoever ends the ring's hold takes a hold of its own first.  Held, the block cannot begin another life, so its
 * page word, which has the position of the message that it was published with, says whose it is.  Without it a
 * process that was stopped in between could end the hold on another message's block, many lives later.  A look at
 * the slot would not do: the slot keeps its handle when the block is given up, and generations come round, within
 * one lap where the ring is long.
 */
#include "core.h"

int shmq_share_lease(struct shmq_arena *a, uint64_t handle, uint64_t position, uint32_t *page,
                     uint64_t *word) {
    int status = shmq_arena_hold(a, handle, page);
    if (status != SHMQ_OK) return status == SHMQ_EMPTY ? SHMQ_LOOK_AGAIN : status;
    /* Held by us, it cannot begin another life; so this says whose it is. */
    *word = load_acquire(&a->words[*page]);
    if (shmq_word_state(*word) == SHMQ_PAGE_INFLIGHT &&
        shmq_word_generation(*word) == shmq_handle_generation(handle) &&
        shmq_word_argument(*word) == shmq_cursor_argument(position))
        return SHMQ_OK;
    shmq_arena_let_go(a, *page, false);
    return SHMQ_LOOK_AGAIN;
}

/* True if we ended the ring's hold on the block of the message at `position`. */
static bool drop(const struct shmq_topic *t, struct shmq_arena *a, uint64_t position) {
    uint64_t handle, word;
    uint32_t page;
    if (!shmq_topic_names(t, position, &handle)) return false;
    /* Not to be had: the ring holds it no more; or it is a lease of our own, whose end will do this. */
    if (shmq_share_lease(a, handle, position << 3, &page, &word) != SHMQ_OK) return false;
    /* Death here: a hold in our name, and the message as before. */
    shmq_arena_let_go(a, page, true);
    return true;
}

void shmq_share_clear(const struct shmq_topic *t, struct shmq_topic_side *publisher, struct shmq_arena *a) {
    (void)drop(t, a, publisher->position - (t->slots.mask + 1)); /* what the slot still has */
    publisher->cleared = true;
}

/* Does the ring hold the block of the message at `position`?  Once it does not, it never will again. */
static bool is_kept(const struct shmq_topic *t, const struct shmq_arena *a, uint64_t position) {
    uint64_t handle;
    if (!shmq_topic_names(t, position, &handle) || !shmq_arena_is_shared(a, handle)) return false;
    uint64_t word = load_acquire(&a->words[shmq_handle_page(handle)]);
    return shmq_word_argument(word) == shmq_cursor_argument(position << 3);
}

/* The oldest message before `end` whose block the ring holds.  The head moves past what comes before it. */
static bool next_kept(const struct shmq_topic *t, const struct shmq_arena *a, uint64_t end,
                      uint64_t *position) {
    for (; shmq_topic_next_spent(t, end, position); shmq_topic_pass(t, *position))
        if (is_kept(t, a, *position)) return true;
    return false;
}

/* The head stays behind a block until the ring does not hold it: whoever dies in between leaves it in sight. */
static bool give_up_blocks(const struct shmq_topic *t, struct shmq_arena *a, uint64_t end, bool only_one) {
    bool any = false;
    for (uint64_t at; !(any && only_one) && next_kept(t, a, end, &at);) {
        if (drop(t, a, at)) any = true;
        else if (is_kept(t, a, at)) break; /* a lease of our own */
    }
    return any;
}

bool shmq_share_trim(const struct shmq_topic *t, struct shmq_arena *a) {
    return give_up_blocks(t, a, shmq_topic_needed_from(t, true), false);
}

/* What is kept for late subscribers goes first, then, as the policy has it, what has not been read. */
static uint64_t end_of_spent(const struct shmq_topic *t) {
    return t->policy == SHMQ_DROP_OLDEST ? load_acquire(&t->slots.tail->cursor)
                                         : shmq_topic_needed_from(t, false);
}

/* With policy SHMQ_EVICT: is it the slowest subscriber that the oldest block is kept for?  How far behind is it? */
static bool is_held_up(const struct shmq_topic *t, const struct shmq_arena *a, uint64_t *tail,
                       uint64_t *behind) {
    uint64_t at;
    int32_t who;
    *tail = load_acquire(&t->slots.tail->cursor);
    *behind = shmq_topic_lag(t, &who);
    return t->policy == SHMQ_EVICT && *behind > 0 && next_kept(t, a, *tail, &at);
}

bool shmq_share_reclaimable(const struct shmq_topic *t, const struct shmq_arena *a) {
    uint64_t at, tail, behind;
    return next_kept(t, a, end_of_spent(t), &at) || is_held_up(t, a, &tail, &behind);
}

bool shmq_share_reclaim(const struct shmq_topic *t, struct shmq_arena *a) {
    uint64_t tail, behind;
    if (give_up_blocks(t, a, end_of_spent(t), true)) return true;
    return is_held_up(t, a, &tail, &behind) && shmq_topic_evict(t, tail, behind - 1);
}

void shmq_share_expire(const struct shmq_topic *t, const struct shmq_topic_side *publisher,
                       struct shmq_arena *a) {
    uint64_t old = publisher->position - t->history, handle;
    if (!shmq_topic_names(t, old, &handle)) return;
    if ((int64_t)(shmq_topic_needed_from(t, true) - old) > 0) (void)drop(t, a, old);
}

void shmq_share_release(const struct shmq_topic *t, struct shmq_arena *a, uint32_t page, uint64_t word) {
    uint64_t position = shmq_topic_position_of(t, shmq_word_argument(word));
    /* Of two who leave at once, one must see that the other has read it: our cursor before our look. */
    full_fence();
    bool spent = (int64_t)(shmq_topic_needed_from(t, true) - position) > 0;
    shmq_arena_let_go(a, page, spent);
}

struct shared {
    const struct shmq_topic *topic;
    const struct shmq_arena *arena;
};

/* A block whose owner died.  Where the ring does not hold it, it is its readers' (it was published once).  Where it
 * does and no message names it, it was never published: the hold ends before the slot goes on, so it is looked at
 * again behind the slot. */
static bool is_published(const void *context, uint64_t argument, uint64_t handle) {
    const struct shared *s = context;
    uint64_t named;
    if (!shmq_arena_is_shared(s->arena, handle)) return true;
    if (shmq_topic_names(s->topic, shmq_topic_position_of(s->topic, argument), &named) && named == handle)
        return true;
    return !shmq_arena_is_shared(s->arena, handle);
}

void shmq_share_recover(const struct shmq_topic *t, struct shmq_arena *a, uint32_t dead) {
    const struct shared context = {t, a};
    struct shmq_arena hands = *a;
    hands.owner = dead; /* a hold that we take dies with us as the dead's: the next reaper ends it */
    shmq_arena_recover_readers(a, dead);
    shmq_arena_recover(a, dead, is_published, &context);
    (void)shmq_share_trim(t, &hands);
}
