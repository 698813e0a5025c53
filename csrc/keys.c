/* keys.c: the window of keys, by which a put that was made before is known, whoever died over it.
 *
 * Idea: the window is the last `count` different keys, as 64-bit hashes in the order in which they were put.  A key
 * has a number; key n lies in entry n mod count until key n + count comes.  Keys of one chain name the one before, so
 * a look takes a few steps however long the window is, and nothing is ever unlinked: numbers fall along a chain, and
 * the first that is not in the window any more ends it (zlib finds its matches so, by `head` and `prev`).
 *
 * A put with a key has to look it up, publish and remember it as one, with others beside it.  So it is one producer's
 * turn at a time, for as long as one try takes; never while it waits, nor while it copies a block.  One 64-bit word,
 * state:3 | owner:12, is the truth about the turn.
 *
 *     word             next step                        by        death before the step: repaired by
 *     FREE             -> HELD(me)                      producer  nothing to do
 *     HELD(o)          known, or given up: -> FREE      o         reaper of o: -> FREE; nothing was published
 *                      slot claimed and filled:
 *                      number stored, -> PUBLISHING(o)  o         the same; the slot becomes a tomb
 *     PUBLISHING(o)    slot -> READY                    o         reaper of o: o still has a slot: -> FREE, and
 *                                                                 the slot becomes a tomb
 *                      remembered (R1 to R4), -> FREE   o         reaper of o: o has no slot: R1 to R4, -> FREE
 *
 * So what is in the window was published, and what was published is in the window, or in the turn of one who is dead:
 * then nobody puts with a key before that is repaired.  A process that is merely stopped in its turn keeps it, and
 * holds up others who put with a key, as it holds up strict order at its slot.
 *
 * R1 to R4 may be cut short and begun again, by a reaper that may die as well: the number was stored before, so who
 * repeats writes what is there already.  (Without the number a key that was half remembered, in the entry of the
 * oldest one, could pass for remembered.)  A place in the window is never spent in vain, however many die: the last
 * `count` keys means so many.
 *
 * This file neither waits nor wakes and does not know the ring: recover.c says whether the dead had a slot.
 */
#include "core.h"

#define TURN_SPINS 64 /* a turn lasts less than a microsecond */

void shmq_keys_bind(struct shmq_keys *k, const struct shmq_segment *s) {
    const struct shmq_geometry *g = &s->geometry;
    uint32_t chains = shmq_key_chains(g->keys);
    *k = (struct shmq_keys){.line = &s->control->keys,
                            .chains = (shmq_a64 *)(void *)(s->base + g->keys_at),
                            .count = g->keys,
                            .shift = 64};
    k->entries = (struct shmq_key_entry *)(void *)(k->chains + chains);
    for (; chains > 1; chains /= 2) k->shift -= 1;
}

/* Fibonacci hashing, by a multiple of 2^64 over the golden ratio: a caller's hash may be good in any of its bits. */
static shmq_a64 *chain_of(const struct shmq_keys *k, uint64_t hash) {
    return &k->chains[k->shift == 64 ? 0 : hash * UINT64_C(0x9e3779b97f4a7c15) >> k->shift];
}

static struct shmq_key_entry *entry_of(const struct shmq_keys *k, uint64_t number) {
    return &k->entries[number % k->count];
}

static uint64_t turn_of(uint32_t state, uint32_t owner) { return shmq_slot_word(state, owner, 0); }

/* In a turn exact.  Without one an entry may be another's meanwhile; but a hash that is found was published, since R2
 * comes after that.  Bounded also where garbage makes a circle of a chain. */
bool shmq_keys_known(const struct shmq_keys *k, uint64_t hash) {
    uint64_t last = load_acquire(&k->line->count), number = load_acquire(chain_of(k, hash));
    for (uint32_t n = 0; n < k->count && number - 1 < last && last - number < k->count; n++) {
        const struct shmq_key_entry *e = entry_of(k, number);
        if (load_relaxed(&e->hash) == hash) return true;
        number = load_relaxed(&e->before);
    }
    return false;
}

/* ---- a turn ---- */

static int try_hold(const struct shmq_keys *k) {
    uint64_t seen = 0;
    for (int i = 0; i < TURN_SPINS; i++, cpu_relax()) {
        seen = load_relaxed(&k->line->word);
        if (shmq_slot_state(seen) != SHMQ_KEYS_FREE) continue;
        /* T2 <- T1: acquire what was remembered in the turns before. */
        if (cas_acq_rel(&k->line->word, &seen, turn_of(SHMQ_KEYS_HELD, k->owner))) return SHMQ_OK;
    }
    return shmq_slot_state(seen) > SHMQ_KEYS_PUBLISHING ? SHMQ_CORRUPT : SHMQ_KEYS_BUSY;
}

/* Plain, because only the owner leaves a turn. */
static void end_turn(const struct shmq_keys *k) {
    store_release(&k->line->word, turn_of(SHMQ_KEYS_FREE, 0)); /* T1 -> T2 */
}

int shmq_keys_try_begin(const struct shmq_keys *k, uint64_t hash) {
    int status = try_hold(k);
    if (status != SHMQ_OK) return status;
    if (shmq_keys_known(k, hash)) {
        end_turn(k);
        return SHMQ_REPEAT;
    }
    store_relaxed(&k->line->hash, hash); /* both ordered by the word that says PUBLISHING */
    store_relaxed(&k->line->number, load_relaxed(&k->line->count) + 1);
    return SHMQ_OK;
}

void shmq_keys_give_up(const struct shmq_keys *k) { end_turn(k); }

/* Release: hash and number are there before the word; and the slot becomes READY by a release store behind it. */
void shmq_keys_publishing(const struct shmq_keys *k) {
    store_release(&k->line->word, turn_of(SHMQ_KEYS_PUBLISHING, k->owner));
}

/* By the owner, or the reaper of the owner: nobody else writes meanwhile. */
static void remember(const struct shmq_keys *k) {
    uint64_t number = load_relaxed(&k->line->number), hash = load_relaxed(&k->line->hash);
    struct shmq_key_entry *e = entry_of(k, number);
    shmq_a64 *chain = chain_of(k, hash);
    release_fence(); /* not before the slot is READY: who looks without a turn believes what it finds */
    if (load_relaxed(chain) != number)
        store_relaxed(&e->before, load_relaxed(chain)); /* R1; else R3 was done */
    store_relaxed(&e->hash, hash);                      /* R2; from R1 on the oldest key is forgotten */
    store_release(chain, number);                       /* R3 */
    store_release(&k->line->count, number);             /* R4 */
}

void shmq_keys_published(const struct shmq_keys *k) {
    remember(k);
    end_turn(k);
}

/* ---- what others ask ---- */

bool shmq_keys_vacant(const struct shmq_keys *k) {
    return shmq_slot_state(load_acquire(&k->line->word)) == SHMQ_KEYS_FREE;
}

int32_t shmq_keys_holder(const struct shmq_keys *k) {
    uint64_t word = load_acquire(&k->line->word);
    return shmq_slot_state(word) == SHMQ_KEYS_FREE ? -1 : (int32_t)shmq_slot_owner(word);
}

int shmq_keys_valid(const struct shmq_keys *k) {
    if (k->count == 0) return SHMQ_OK;
    return shmq_slot_state(load_acquire(&k->line->word)) > SHMQ_KEYS_PUBLISHING ? SHMQ_CORRUPT : SHMQ_OK;
}

/* ---- repair ---- */

void shmq_keys_recover(const struct shmq_keys *k, uint32_t dead, bool published) {
    uint64_t word = load_acquire(&k->line->word);
    if (shmq_slot_state(word) == SHMQ_KEYS_FREE || shmq_slot_owner(word) != dead) return;
    bool begun = shmq_slot_state(word) == SHMQ_KEYS_PUBLISHING && published;
    if (begun && load_relaxed(&k->line->count) != load_relaxed(&k->line->number)) remember(k);
    /* T1, by CAS: whatever the memory says, this is one step of the table.  Death before it: once more from the
     * beginning, and the slots are as they were, since they come after. */
    (void)cas_acq_rel(&k->line->word, &word, turn_of(SHMQ_KEYS_FREE, 0));
}
