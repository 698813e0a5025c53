/* Workers of an mpmc queue are killed at random moments, for as long as one likes, and the ledger is exact.
 *
 *     soak KILLS PAUSE_MS SEED LIMIT_MS
 *
 * Three producers, three consumers and three workers that are both put, put_many, loan, publish, discard, get,
 * get_many, hold views and let them go.  Now and then one is killed; another takes its place, at once or only when
 * a survivor has repaired what it left.  Every second victim is stopped first, and dies without a further step.
 *
 * The ledger lies outside the queue.  A producer notes what it is about to put, and what it has put (workers.h); a
 * consumer notes the name of each message before it lets go of its slot.  So at the end
 *     - what was put came once, or was in the hands of a consumer that died when it had let go of the slot;
 *     - nothing came twice, torn, or without having been meant to be put;
 *     - each consumer saw each life in order, apart from what was delivered again.
 *
 * A message that is kept as a view is looked at once more when it is let go.  LIMIT_MS: of 100 deaths 99 have to
 * be repaired by then.  Lines of the summary go to standard output, complaints to standard error. */
#define _GNU_SOURCE
#include "workers.h"

enum { PRODUCERS = 3, CONSUMERS = 3, BOTH = 3, WORKERS = PRODUCERS + CONSUMERS + BOTH, HELD = 128 };
#define WAS_IN_DEAD_HANDS ((uint8_t)0x80) /* in the ledger's bytes; the rest counts how often it came */

/* A message between the look at its name and the note that it came. */
struct hand {
    shmq_a64 number, position; /* number 0: none */
};

/* What the consumers tell, outside the queue. */
static struct notes {
    shmq_a64 taken, again;
    struct hand hands[WORKERS][BATCH];
} *notes;
static _Atomic uint8_t *ledger; /* a byte a message */

static _Atomic uint8_t *entry_of(uint64_t number) {
    CHECK(number >> 16 < most_lives);
    return &ledger[number];
}

/* ---- a worker ---- */

struct consumer {
    struct worker w;
    struct hand *hands;
    uint32_t *seen; /* by life: the last sequence */
};

/* Before it is taken: what it is called, and whether it was in other hands. */
static uint64_t name_of(const struct worker *w, const struct shmq_record *record, bool *again) {
    const struct shmq_slots *ring = &w->q->ring.mpmc;
    const uint8_t *slot = ring->slots + ((record->position >> 3) & ring->mask) * ring->slot_bytes;
    const uint8_t *data = record->payload;
    uint64_t number;
    if ((record->flags & SHMQ_RECORD_BLOCK) != 0)
        data = shmq_arena_data(&w->q->arena,
                               shmq_handle_page(load_relaxed((shmq_a64 *)(void *)record->payload)));
    memcpy(&number, data, sizeof number);
    *again = load32_relaxed(&((const struct shmq_slot *)(const void *)slot)->deliveries) > 0;
    return number;
}

/* The steps of a get, as the Python handle takes them, with the name noted before the slot is let go. */
static int take(struct worker *w, struct hand *hand, shmq_message *m, bool *again, int64_t deadline_ns) {
    struct shmq_record record;
    const struct shmq_block_header *header;
    static uint8_t copy[INLINE_BYTES];
    int status;
    while (OK(shmq_get_begin(w->q)), (status = shmq_try_next(w->q, &record)) != SHMQ_OK) {
        if (status != SHMQ_EMPTY || deadline_ns == SHMQ_NO_WAIT) return status;
        status = shmq_wait_get(w->q, 0, deadline_ns);
        if (status != SHMQ_OK) return status;
    }
    uint64_t number = name_of(w, &record, again);
    store_release(&hand->position, record.position >> 3);
    store_release(&hand->number, number);
    memset(m, 0, sizeof *m);
    dawdle(w);
    if ((record.flags & SHMQ_RECORD_BLOCK) != 0) {
        OK(shmq_try_lease(w->q, &record, NULL, &m->block, &header));
        m->data = m->block->data;
        m->bytes = m->block->bytes;
    } else {
        m->data = memcpy(copy, record.payload, record.bytes);
        m->bytes = record.bytes;
    }
    CHECK_EQ(message_number(m->data, m->bytes), number);
    shmq_taken(w->q, 1, m->bytes);
    if (m->block == NULL) m->data = NULL; /* the copy is the next one's */
    return SHMQ_OK;
}

static void have_got(struct consumer *c, struct hand *hand, bool again) {
    uint64_t number = load_relaxed(&hand->number), life = number >> 16;
    uint32_t sequence = (uint32_t)number & (SEQUENCES - 1);
    if ((atomic_fetch_add(entry_of(number), 1) & ~WAS_IN_DEAD_HANDS) != 0) {
        fprintf(stderr, "message %" PRIu32 " of life %" PRIu64 " came twice\n", sequence, life);
        _exit(1);
    }
    store_release(&hand->number, 0);
    (void)atomic_fetch_add(&notes->taken, 1);
    (void)atomic_fetch_add(&notes->again, again);
    if (!again) CHECK(sequence > c->seen[life]); /* the messages of one producer keep their order */
    if (sequence > c->seen[life]) c->seen[life] = sequence;
}

/* One, or a batch of what is there: noted when all are taken, as get_many returns. */
static void get_something(struct consumer *c) {
    struct worker *w = &c->w;
    uint64_t n = below(&w->random, 4) == 0 ? 1 + below(&w->random, BATCH) : 1, got = 0;
    bool again[BATCH];
    shmq_message messages[BATCH];
    int64_t deadline = shmq_deadline(PATIENCE_NS);
    int status = SHMQ_OK;
    while (got < n && status == SHMQ_OK) {
        status = take(w, &c->hands[got], &messages[got], &again[got], got == 0 ? deadline : SHMQ_NO_WAIT);
        got += status == SHMQ_OK;
    }
    CHECK(status == SHMQ_OK || status == SHMQ_EMPTY);
    if (status == SHMQ_EMPTY) let_all_go(w); /* what we keep may be in the producers' way */
    for (uint64_t i = 0; i < got; i++) {
        have_got(c, &c->hands[i], again[i]);
        keep(w, &messages[i]);
    }
}

static void work(uint32_t index, uint64_t random) {
    struct consumer c = {.w = {.q = lab_attach(fd), .random = random, .seldom = 32}};
    bool puts = index < PRODUCERS || index >= PRODUCERS + CONSUMERS, gets = index >= PRODUCERS;
    c.hands = notes->hands[index];
    c.seen = calloc(most_lives, sizeof *c.seen);
    CHECK(c.seen != NULL);
    begin_life(&c.w);
    while (!over()) {
        alarm(watchdog_s());
        if (puts && (!gets || below(&c.w.random, 2) == 0)) put_something(&c.w);
        else get_something(&c);
        dawdle(&c.w);
    }
    let_all_go(&c.w);
    shmq_free(c.w.q);
}

/* ---- the one who kills ---- */

/* Words that said of a dead one that it was the owner. */
static struct holds {
    uint32_t n;
    struct {
        const shmq_a64 *at;
        uint64_t word;
    } of[HELD];
} holds[WORKERS];
static uint64_t holders_of_pages, holders_of_slots, consumer_deaths;

static void add_hold(struct holds *h, const shmq_a64 *at, uint64_t word) {
    if (h->n == HELD) return;
    h->of[h->n].at = at;
    h->of[h->n++].word = word;
}

static bool is_held_page(uint32_t page, uint64_t word, uint32_t owner) {
    uint32_t state = shmq_word_state(word);
    if (shmq_word_owner(word) != owner) return false;
    if (state == SHMQ_PAGE_INFLIGHT)
        return !shmq_mpmc_published(&q->ring.mpmc, shmq_word_argument(word),
                                    shmq_handle(page, shmq_word_generation(word)));
    return state == SHMQ_PAGE_LOANED || state == SHMQ_PAGE_LEASED;
}

/* Of a process that is stopped, or dead and not repaired. */
static void look_at_holds(const struct death *d, struct holds *h) {
    const struct shmq_slots *ring = &q->ring.mpmc;
    uint32_t pages = q->arena.small.pages + q->arena.large.pages;
    for (uint32_t page = 0; page < pages; page++) {
        uint64_t word = load_acquire(&q->arena.words[page]);
        if (is_held_page(page, word, d->index)) add_hold(h, &q->arena.words[page], word);
    }
    uint32_t before = h->n;
    for (uint64_t i = 0; i <= ring->mask; i++) {
        const struct shmq_slot *slot = (const void *)(ring->slots + i * ring->slot_bytes);
        uint64_t word = load_acquire(&slot->word);
        uint32_t state = shmq_slot_state(word);
        bool owned = state == SHMQ_SLOT_WRITING || state == SHMQ_SLOT_READING;
        if (owned && shmq_slot_owner(word) == d->index) add_hold(h, &slot->word, word);
    }
    if (load_acquire(&q->segment.peers[d->index].word) !=
        d->word) { /* repaired meanwhile: it proves nothing */
        h->n = 0;
        return;
    }
    holders_of_pages += before > 0;
    holders_of_slots += h->n > before;
}

static bool still_reads(uint32_t i, uint64_t position) {
    const struct holds *h = &holds[i];
    const struct shmq_slots *ring = &q->ring.mpmc;
    uint64_t lap = (position >> ring->shift) & SHMQ_LAP_MASK;
    for (uint32_t n = 0; n < h->n; n++)
        if ((const uint8_t *)h->of[n].at == ring->slots + (position & ring->mask) * ring->slot_bytes &&
            h->of[n].word == shmq_slot_word(SHMQ_SLOT_READING, deaths[i].index, lap))
            return true;
    return false;
}

/* These may have gone with it.  One whose slot it still held has to come to another. */
static void collect_hands(uint32_t i) {
    for (int n = 0; n < BATCH; n++) {
        struct hand *hand = &notes->hands[i][n];
        uint64_t number = load_acquire(&hand->number);
        if (number != 0 && !still_reads(i, load_acquire(&hand->position)))
            (void)atomic_fetch_or(entry_of(number), WAS_IN_DEAD_HANDS);
        store_release(&hand->number, 0); /* for the next one */
    }
}

static void strike(uint32_t i) {
    struct death *d = choose_death(i);
    find_entry(pids[i], d);
    d->killed_ns = kill_it(pids[i]);
    if (d->index == UINT32_MAX) find_entry(pids[i], d); /* it had just come */
    holds[i].n = 0;
    if (d->index != UINT32_MAX) look_at_holds(d, &holds[i]);
    collect_hands(i);
    consumer_deaths += i >= PRODUCERS;
    replace(i);
}

static void after_repair(uint32_t i) {
    for (uint32_t n = 0; n < holds[i].n; n++)
        if (load_acquire(holds[i].of[n].at) == holds[i].of[n].word)
            complain("the dead still hold %#" PRIx64 " after their repair", holds[i].of[n].word);
}

/* ---- the end ---- */

static void drain(void) {
    uint64_t number;
    int status;
    while ((status = lab_get(q, &number, SHMQ_NO_WAIT)) == SHMQ_OK) {
        (void)atomic_fetch_add(entry_of(number), 1);
        (void)atomic_fetch_add(&notes->taken, 1);
    }
    CHECK_EQ(status, SHMQ_EMPTY);
}

static void check_baseline(void) {
    shmq_stats s = lab_stats(q);
    if (s.ring_used_bytes != 0) complain("%" PRIu64 " bytes of the ring are in use", s.ring_used_bytes);
    check_nobody_holds(&s);
}

static uint8_t times_it_came(uint64_t life, uint64_t sequence) {
    return *entry_of(life << 16 | sequence) & (uint8_t)~WAS_IN_DEAD_HANDS;
}

/* The last sequence that was surely published: its put returned, or it came. */
static uint64_t last_published(uint64_t life, uint64_t intended) {
    uint64_t last = load_acquire(&lives->life[life].put);
    for (uint64_t sequence = last + 1; sequence <= intended; sequence++)
        if (times_it_came(life, sequence) > 0) last = sequence;
    return last;
}

/* Returns how many messages went with their consumers. */
static uint64_t check_life(uint64_t life) {
    uint64_t intended = load_acquire(&lives->life[life].intended), gone = 0;
    uint64_t published = last_published(life, intended);
    for (uint64_t sequence = 1; sequence < SEQUENCES; sequence++) {
        uint8_t came = times_it_came(life, sequence);
        if (sequence > intended && came == 0) break;
        if (sequence > intended) complain("message %" PRIu64 " was never put, and came", sequence);
        if (came > 1) complain("message %" PRIu64 " of life %" PRIu64 " came twice", sequence, life);
        if (sequence > published || came > 0) continue;
        if (*entry_of(life << 16 | sequence) == 0)
            complain("message %" PRIu64 " of life %" PRIu64 " is lost", sequence, life);
        gone += 1;
    }
    return gone;
}

static uint64_t check_ledger(void) {
    uint64_t gone = 0, begun = load_acquire(&lives->begun);
    for (uint64_t life = 0; life < begun; life++) gone += check_life(life);
    return gone;
}

static void open_ledger(uint64_t wanted) {
    open_lives(wanted);
    notes = lab_shared(sizeof *notes);
    /* Untouched pages take no memory. */
    ledger = mmap(NULL, most_lives * SEQUENCES, PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(ledger != MAP_FAILED);
    room_for(&at_once, wanted + WORKERS);
    room_for(&by_survivors, wanted + WORKERS);
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    uint64_t wanted = strtoull(argv[1], NULL, 10), limit_ms = strtoull(argv[4], NULL, 10);
    seed = strtoull(argv[3], NULL, 10) * 2 + 1;
    shmq_params params = {.ring_bytes = 16 * 512,
                          .arena_bytes = 3 << 20,
                          .inline_bytes = INLINE_BYTES,
                          .first_cursor = UINT64_C(0) - 1000,
                          .peers = 4 * WORKERS,
                          .kind = SHMQ_KIND_MPMC};
    fd = lab_object();
    open_ledger(wanted);
    q = lab_create(fd, &params);
    for (uint32_t i = 0; i < WORKERS; i++) start(i);
    kill_many(WORKERS, wanted, strtoull(argv[2], NULL, 10) * (uint64_t)MS);
    store32_release(&lives->ending, 1);
    join_mortals(WORKERS);
    (void)lab_reap(q);
    drain();
    check_baseline();
    uint64_t gone = check_ledger();
    printf("mpmc: SIGKILL of random workers of %d, at random moments\t%" PRIu64 " kills (%" PRIu64
           " of consumers; %" PRIu64 " held pages, %" PRIu64 " a slot); %" PRIu64 " messages, %" PRIu64
           " delivered again, %" PRIu64 " gone with a consumer\t%" PRIu64 "\n",
           WORKERS, kills, consumer_deaths, holders_of_pages, holders_of_slots, load_relaxed(&notes->taken),
           load_relaxed(&notes->again), gone, failures);
    say_times("death to repair, replaced at once", &at_once, limit_ms);
    say_times("death to repair, no newcomer", &by_survivors, limit_ms);
    shmq_free(q);
    return failures != 0;
}
