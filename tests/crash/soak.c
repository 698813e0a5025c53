/* Workers of an mpmc queue are killed at random moments, for as long as one likes, and the ledger is exact.
 *
 *     soak KILLS PAUSE_MS SEED LIMIT_MS
 *
 * Three producers, three consumers and three workers that are both put, put_many, loan, publish, discard, get,
 * get_many, hold views and let them go.  Now and then one is killed; another takes its place, at once or only when
 * a survivor has repaired what it left.  Every second victim is stopped first, and dies without a further step.
 *
 * The ledger lies outside the queue.  A message is number = life << 16 | sequence, where a life is one of a
 * producer's.  A producer notes what it is about to put, and what it has put; a consumer notes the name of each
 * message before it lets go of its slot.  So at the end
 *     - what was put came once, or was in the hands of a consumer that died when it had let go of the slot;
 *     - nothing came twice, torn, or without having been meant to be put;
 *     - each consumer saw each life in order, apart from what was delivered again.
 *
 * A message that is kept as a view is looked at once more when it is let go.  LIMIT_MS: of 100 deaths 99 have to
 * be repaired by then.  Lines of the summary go to standard output, complaints to standard error. */
#define _GNU_SOURCE
#include "random_deaths.h"

enum { PRODUCERS = 3, CONSUMERS = 3, BOTH = 3, WORKERS = PRODUCERS + CONSUMERS + BOTH };
enum { BATCH = 8, KEEP = 4, SEQUENCES = 1 << 16, HELD = 128 };
#define INLINE_BYTES 480u
#define PATIENCE_NS (50 * MS)             /* of a put or get: then it lets go of what it keeps */
#define REPAIR_PATIENCE_NS (5000 * MS)    /* then it counts as forgotten */
#define WAS_IN_DEAD_HANDS ((uint8_t)0x80) /* in the ledger's bytes; the rest counts how often it came */

/* A message between the look at its name and the note that it came. */
struct hand {
    shmq_a64 number, position; /* number 0: none */
};

struct life {
    shmq_a64 intended, put; /* sequences: the last that may have been put; the last whose put returned */
};

/* What the workers tell, outside the queue. */
static struct notes {
    shmq_a64 lives, taken, again;
    shmq_a32 ending;
    struct hand hands[WORKERS][BATCH];
    struct life life[];
} *notes;
static _Atomic uint8_t *ledger; /* a byte a message */
static uint64_t most_lives;
static int fd;

static _Atomic uint8_t *entry_of(uint64_t number) {
    CHECK(number >> 16 < most_lives);
    return &ledger[number];
}

/* ---- a worker ---- */

struct worker {
    shmq_queue *q;
    struct hand *hands;
    uint64_t random, life, sequence; /* sequence: the last that was put */
    shmq_message kept[KEEP];
    uint32_t *seen; /* by life: the last sequence */
    bool puts, gets;
};

/* Mostly not at all, sometimes for some microseconds, seldom for longer. */
static void dawdle(struct worker *w) {
    uint64_t kind = below(&w->random, 32);
    if (kind == 0) nap((int64_t)below(&w->random, 2000000));
    else if (kind < 8)
        for (volatile uint64_t i = below(&w->random, 4000); i > 0;) i = i - 1;
}

static void let_go(struct worker *w, uint64_t i) {
    shmq_message *m = &w->kept[i];
    if (m->data != NULL)
        (void)message_number(m->data, m->bytes); /* still whole: nobody wrote over a held view */
    shmq_message_release(m);
}
static void let_all_go(struct worker *w) {
    for (uint64_t i = 0; i < KEEP; i++) let_go(w, i);
}

static void begin_life(struct worker *w) {
    w->life = atomic_fetch_add(&notes->lives, 1);
    CHECK(w->life < most_lives);
    w->sequence = 0;
}
static uint64_t number_of(const struct worker *w, uint64_t sequence) { return w->life << 16 | sequence; }
static void intend(const struct worker *w, uint64_t messages) {
    store_release(&notes->life[w->life].intended, w->sequence + messages);
}
static void have_put(struct worker *w, uint64_t messages) {
    w->sequence += messages;
    store_release(&notes->life[w->life].put, w->sequence);
}

/* SHMQ_FULL and the like: what we keep may be in our own way. */
static bool went_well(struct worker *w, int status) {
    if (status == SHMQ_OK) return true;
    CHECK(status == SHMQ_FULL || status == SHMQ_ARENA_FULL || status == SHMQ_EMPTY);
    let_all_go(w);
    return false;
}

static uint64_t some_size(struct worker *w) {
    uint64_t kind = below(&w->random, 8);
    if (kind < 5) return MESSAGE_MIN + below(&w->random, INLINE_BYTES - MESSAGE_MIN + 1);
    return MESSAGE_MIN + below(&w->random, (kind == 5 ? 6 : 1) * SHMQ_SMALL_PAGE);
}

static void put_one(struct worker *w) {
    intend(w, 1);
    int status = lab_put(w->q, number_of(w, w->sequence + 1), some_size(w), shmq_deadline(PATIENCE_NS));
    if (went_well(w, status)) have_put(w, 1);
}

static void put_many(struct worker *w) {
    uint8_t messages[BATCH * INLINE_BYTES];
    uint64_t n = 1 + below(&w->random, BATCH), done;
    uint64_t each = MESSAGE_MIN + below(&w->random, INLINE_BYTES - MESSAGE_MIN + 1);
    for (uint64_t i = 0; i < n; i++)
        message_write(messages + i * each, number_of(w, w->sequence + 1 + i), each);
    intend(w, n);
    (void)went_well(w, shmq_put_many(w->q, messages, each, n, shmq_deadline(PATIENCE_NS), &done));
    have_put(w, done);
}

/* Takes its time between the claim of the slot and the commit. */
static void put_slowly(struct worker *w) {
    struct shmq_record record;
    uint32_t bytes = MESSAGE_MIN + (uint32_t)below(&w->random, INLINE_BYTES - MESSAGE_MIN + 1);
    intend(w, 1);
    OK(shmq_put_begin(w->q));
    int status = shmq_ring_try_reserve(&w->q->ring, &w->q->put.ring, bytes, SHMQ_RAW, 0, &record);
    if (!went_well(w, status)) return;
    dawdle(w);
    message_write(record.payload, number_of(w, w->sequence + 1), bytes);
    shmq_put_commit(w->q, 1, bytes);
    have_put(w, 1);
}

static void put_loan(struct worker *w, bool discard) {
    shmq_block *b;
    if (!went_well(w, shmq_loan(w->q, some_size(w), shmq_deadline(PATIENCE_NS), &b))) return;
    message_write(b->data, number_of(w, w->sequence + 1), b->bytes);
    dawdle(w);
    intend(w, 1);
    if (!discard && went_well(w, shmq_publish(b, NULL, shmq_deadline(PATIENCE_NS)))) have_put(w, 1);
    else shmq_block_release(b);
}

static void put_something(struct worker *w) {
    if (w->sequence + BATCH >= SEQUENCES) begin_life(w);
    switch (below(&w->random, 8)) {
    case 0: put_loan(w, true); break;
    case 1: put_loan(w, false); break;
    case 2: put_many(w); break;
    case 3: put_slowly(w); break;
    default: put_one(w);
    }
}

/* Before it is taken: what it is called, and whether it was in other hands. */
static uint64_t name_of(const shmq_queue *q, const struct shmq_record *record, bool *again) {
    const struct shmq_slots *ring = &q->ring.mpmc;
    const uint8_t *slot = ring->slots + ((record->position >> 3) & ring->mask) * ring->slot_bytes;
    const uint8_t *data = record->payload;
    uint64_t number;
    if ((record->flags & SHMQ_RECORD_BLOCK) != 0)
        data =
            shmq_arena_data(&q->arena, shmq_handle_page(load_relaxed((shmq_a64 *)(void *)record->payload)));
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
    uint64_t number = name_of(w->q, &record, again);
    store_release(&hand->position, record.position >> 3);
    store_release(&hand->number, number);
    memset(m, 0, sizeof *m);
    dawdle(w);
    if ((record.flags & SHMQ_RECORD_BLOCK) != 0) {
        OK(shmq_try_lease(w->q, &record, &m->block, &header));
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

static void have_got(struct worker *w, struct hand *hand, bool again) {
    uint64_t number = load_relaxed(&hand->number), life = number >> 16;
    uint32_t sequence = (uint32_t)number & (SEQUENCES - 1);
    if ((atomic_fetch_add(entry_of(number), 1) & ~WAS_IN_DEAD_HANDS) != 0) {
        fprintf(stderr, "message %" PRIu32 " of life %" PRIu64 " came twice\n", sequence, life);
        _exit(1);
    }
    store_release(&hand->number, 0);
    (void)atomic_fetch_add(&notes->taken, 1);
    (void)atomic_fetch_add(&notes->again, again);
    if (!again) CHECK(sequence > w->seen[life]); /* the messages of one producer keep their order */
    if (sequence > w->seen[life]) w->seen[life] = sequence;
}

static void keep(struct worker *w, const shmq_message *m) {
    uint64_t i = below(&w->random, KEEP);
    let_go(w, i);
    w->kept[i] = *m;
}

/* One, or a batch of what is there: noted when all are taken, as get_many returns. */
static void get_something(struct worker *w) {
    uint64_t n = below(&w->random, 4) == 0 ? 1 + below(&w->random, BATCH) : 1, got = 0;
    bool again[BATCH];
    shmq_message messages[BATCH];
    int64_t deadline = shmq_deadline(PATIENCE_NS);
    while (got < n) {
        int status = take(w, &w->hands[got], &messages[got], &again[got], got == 0 ? deadline : SHMQ_NO_WAIT);
        if (!went_well(w, status)) break;
        got += 1;
    }
    for (uint64_t i = 0; i < got; i++) {
        have_got(w, &w->hands[i], again[i]);
        keep(w, &messages[i]);
    }
}

static void work(uint32_t index, uint64_t seed) {
    struct worker w = {.q = lab_attach(fd), .hands = notes->hands[index], .random = seed};
    w.puts = index < PRODUCERS || index >= PRODUCERS + CONSUMERS;
    w.gets = index >= PRODUCERS;
    w.seen = calloc(most_lives, sizeof *w.seen);
    CHECK(w.seen != NULL);
    begin_life(&w);
    while (load32_relaxed(&notes->ending) == 0) {
        alarm(watchdog_s());
        if (w.puts && (!w.gets || below(&w.random, 2) == 0)) put_something(&w);
        else get_something(&w);
        dawdle(&w);
    }
    let_all_go(&w);
    shmq_free(w.q);
    _exit(0);
}

/* ---- the one who kills ---- */

struct death {
    int64_t killed_ns;
    uint64_t word;  /* of its entry in the peer table */
    uint32_t index; /* UINT32_MAX: it had none */
    bool replaced;
    uint32_t held; /* words that said it was the owner */
    struct {
        const shmq_a64 *at;
        uint64_t word;
    } holds[HELD];
};

static shmq_queue *q;
static pid_t pids[WORKERS];
static struct death deaths[WORKERS];
static bool dead[WORKERS];
static struct times at_once, by_survivors;
static uint64_t seed, kills, holders_of_pages, holders_of_slots, consumer_deaths;

static void start(uint32_t i) {
    for (int h = 0; h < BATCH; h++) store_release(&notes->hands[i][h].number, 0);
    uint64_t child_seed = next_random(&seed);
    pids[i] = fork_child();
    if (pids[i] == 0) work(i, child_seed);
    dead[i] = false;
}

static void find_entry(pid_t pid, struct death *d) {
    d->index = UINT32_MAX;
    for (uint32_t i = 0; i < q->segment.geometry.peers; i++) {
        const struct shmq_peer *peer = &q->segment.peers[i];
        uint64_t word = load_acquire(&peer->word);
        if ((word & 0xff) != SHMQ_PEER_LIVE || peer->pid != (uint32_t)pid) continue;
        d->index = i;
        d->word = word;
    }
}

static void add_hold(struct death *d, const shmq_a64 *at, uint64_t word) {
    if (d->held == HELD) return;
    d->holds[d->held].at = at;
    d->holds[d->held++].word = word;
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
static void look_at_holds(struct death *d) {
    const struct shmq_slots *ring = &q->ring.mpmc;
    uint32_t pages = q->arena.small.pages + q->arena.large.pages;
    for (uint32_t page = 0; page < pages; page++) {
        uint64_t word = load_acquire(&q->arena.words[page]);
        if (is_held_page(page, word, d->index)) add_hold(d, &q->arena.words[page], word);
    }
    uint32_t before = d->held;
    for (uint64_t i = 0; i <= ring->mask; i++) {
        const struct shmq_slot *slot = (const void *)(ring->slots + i * ring->slot_bytes);
        uint64_t word = load_acquire(&slot->word);
        uint32_t state = shmq_slot_state(word);
        bool owned = state == SHMQ_SLOT_WRITING || state == SHMQ_SLOT_READING;
        if (owned && shmq_slot_owner(word) == d->index) add_hold(d, &slot->word, word);
    }
    if (load_acquire(&q->segment.peers[d->index].word) !=
        d->word) { /* repaired meanwhile: it proves nothing */
        d->held = 0;
        return;
    }
    holders_of_pages += before > 0;
    holders_of_slots += d->held > before;
}

static bool still_reads(const struct death *d, uint64_t position) {
    const struct shmq_slots *ring = &q->ring.mpmc;
    uint64_t lap = (position >> ring->shift) & SHMQ_LAP_MASK;
    for (uint32_t i = 0; i < d->held; i++)
        if ((const uint8_t *)d->holds[i].at == ring->slots + (position & ring->mask) * ring->slot_bytes &&
            d->holds[i].word == shmq_slot_word(SHMQ_SLOT_READING, d->index, lap))
            return true;
    return false;
}

/* These may have gone with it.  One whose slot it still held has to come to another. */
static void collect_hands(uint32_t i, const struct death *d) {
    for (int h = 0; h < BATCH; h++) {
        uint64_t number = load_acquire(&notes->hands[i][h].number);
        if (number != 0 && !still_reads(d, load_acquire(&notes->hands[i][h].position)))
            (void)atomic_fetch_or(entry_of(number), WAS_IN_DEAD_HANDS);
    }
}

static void strike(uint32_t i) {
    struct death *d = &deaths[i];
    memset(d, 0, sizeof *d);
    if (below(&seed, 2) == 0) stop_it(pids[i]);
    find_entry(pids[i], d);
    d->killed_ns = shmq_now_ns();
    CHECK_EQ(kill(pids[i], SIGKILL), 0);
    join_child(pids[i], SIGKILL);
    if (d->index == UINT32_MAX) find_entry(pids[i], d); /* it had just come */
    if (d->index != UINT32_MAX) look_at_holds(d);
    collect_hands(i, d);
    kills += 1;
    consumer_deaths += i >= PRODUCERS;
    d->replaced = below(&seed, 2) == 0 || d->index == UINT32_MAX;
    if (d->replaced) start(i);
    dead[i] = d->index != UINT32_MAX; /* until its repair was seen */
}

/* The entry in the peer table is given up last: then all that it held is somebody else's, or nobody's. */
static void watch_repair(uint32_t i) {
    struct death *d = &deaths[i];
    int64_t took = shmq_now_ns() - d->killed_ns;
    bool repaired = load_acquire(&q->segment.peers[d->index].word) != d->word;
    if (!repaired && took < REPAIR_PATIENCE_NS) return;
    if (!repaired) complain("a death is not repaired after %" PRId64 " ms", took / MS);
    else note_time(d->replaced ? &at_once : &by_survivors, took);
    for (uint32_t h = 0; repaired && h < d->held; h++)
        if (load_acquire(d->holds[h].at) == d->holds[h].word)
            complain("the dead still hold %#" PRIx64 " after their repair", d->holds[h].word);
    if (d->replaced) dead[i] = false;
    else start(i);
}

static void kill_many(uint64_t wanted, uint64_t pause_ns) {
    int64_t next = shmq_now_ns();
    while (kills < wanted) {
        uint32_t i = (uint32_t)below(&seed, WORKERS);
        if (shmq_now_ns() >= next && !dead[i]) {
            strike(i);
            next = shmq_now_ns() + (int64_t)below(&seed, 2 * pause_ns + 1);
        }
        for (uint32_t d = 0; d < WORKERS; d++)
            if (dead[d]) watch_repair(d);
        int status;
        pid_t pid = waitpid(-1, &status, WNOHANG);
        if (pid > 0) failed(__FILE__, __LINE__, "a worker has ended by itself");
        alarm(watchdog_s());
        nap(200000);
    }
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
    shmq_peer_info peers[4];
    uint32_t n;
    shmq_stats s = lab_stats(q);
    if (s.arena_free_bytes != s.arena_bytes)
        complain("%" PRIu64 " bytes of the arena are not free", s.arena_bytes - s.arena_free_bytes);
    if (s.ring_used_bytes != 0) complain("%" PRIu64 " bytes of the ring are in use", s.ring_used_bytes);
    OK(shmq_get_peers(q, peers, 4, &n));
    if (n != 1) complain("%" PRIu32 " entries of the peer table are taken", n - 1);
    if (shmq_validate(q) != SHMQ_OK) complain("validate says \"%s\"", shmq_status_text(shmq_validate(q)));
}

static uint8_t times_it_came(uint64_t life, uint64_t sequence) {
    return *entry_of(life << 16 | sequence) & (uint8_t)~WAS_IN_DEAD_HANDS;
}

/* The last sequence that was surely published: its put returned, or it came. */
static uint64_t last_published(uint64_t life, uint64_t intended) {
    uint64_t last = load_acquire(&notes->life[life].put);
    for (uint64_t sequence = last + 1; sequence <= intended; sequence++)
        if (times_it_came(life, sequence) > 0) last = sequence;
    return last;
}

/* Returns how many messages went with their consumers. */
static uint64_t check_life(uint64_t life) {
    uint64_t intended = load_acquire(&notes->life[life].intended), gone = 0;
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
    uint64_t gone = 0, lives = load_acquire(&notes->lives);
    for (uint64_t life = 0; life < lives; life++) gone += check_life(life);
    return gone;
}

static void open_ledger(uint64_t wanted) {
    most_lives = 2 * wanted + 4096; /* a life ends with its worker, or after SEQUENCES messages */
    notes = lab_shared(sizeof *notes + most_lives * sizeof(struct life));
    /* Untouched pages take no memory. */
    ledger = mmap(NULL, most_lives * SEQUENCES, PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(ledger != MAP_FAILED);
    at_once.ns = calloc(wanted + WORKERS, sizeof(int64_t));
    by_survivors.ns = calloc(wanted + WORKERS, sizeof(int64_t));
    CHECK(at_once.ns != NULL && by_survivors.ns != NULL);
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
    kill_many(wanted, strtoull(argv[2], NULL, 10) * (uint64_t)MS);
    store32_release(&notes->ending, 1);
    for (uint32_t i = 0; i < WORKERS; i++)
        if (!dead[i] || deaths[i].replaced) join_child(pids[i], 0);
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
