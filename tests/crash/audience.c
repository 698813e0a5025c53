/* Publishers and subscribers of a topic are killed at random moments, and everyone else sees every message.
 *
 *     audience KILLS PAUSE_MS SEED LIMIT_MS GATES
 *
 * Three publishers and three visitors (subscribers that come, read for a while with views in their hands, and leave)
 * are killed now and then; another takes the place, at once or only when a survivor has repaired what was left.
 * Every second victim is stopped first.  Three subscribers stay from the beginning to the end.
 *
 * A message is number = life << 16 | sequence, where a life is one of a publisher's.  A publisher notes what it is
 * about to publish, and what it has published.  Whoever reads a message writes its number on a board, at its
 * position; and where it passed over a position, that nothing was there.  So with policy block
 *     - all saw the same order, and nobody missed a message or saw one twice: the board would contradict itself
 *     - each life's messages come one after the other, from the first that was begun after the subscription
 *     - what was published is on the board; what is there had been meant
 * With drop_oldest a quarter as many are killed: what one of those who stay got and missed is what was published, but
 * for messages whose publisher died in the call.
 *
 * GATES times a subscriber that holds up a full ring is killed: of 100 times 99 the publisher goes on within
 * LIMIT_MS.  Lines of the summary go to standard output, complaints to standard error. */
#define _GNU_SOURCE
#include "random_deaths.h"

enum { PUBLISHERS = 3, VISITORS = 3, MORTALS = PUBLISHERS + VISITORS, STAYERS = 3 };
enum { BATCH = 8, KEEP = 4, SEQUENCES = 1 << 16, HISTORY = 3, VISIT = 200 };
#define INLINE_BYTES 480u
#define BOARD (UINT64_C(1) << 26)      /* positions */
#define NOTHING UINT64_MAX             /* on the board: there is no message */
#define PATIENCE_NS (50 * MS)          /* of a call: then it lets go of what it keeps */
#define REPAIR_PATIENCE_NS (5000 * MS) /* then it counts as forgotten */
#define FIRST (UINT64_C(0) - 1000)

struct life {
    shmq_a64 intended, published; /* sequences: the last that may have been, and that surely was */
};

/* What the workers tell, outside the topic. */
static struct notes {
    shmq_a64 lives, visits;
    shmq_a32 staying, ending, draining;
    struct {
        shmq_a64 got, missed, end;
    } stayer[STAYERS];
    shmq_a64 puts; /* while one holds them up */
    shmq_a64 round;
    struct life life[];
} *notes;
static shmq_a64 *board;
static uint64_t most_lives;
static uint32_t policy;
static int fd;

static const char *policy_name(void) { return policy == SHMQ_BLOCK ? "block" : "drop_oldest"; }

__attribute__((format(printf, 1, 2))) _Noreturn static void give_up(const char *text, ...) {
    va_list list;
    va_start(list, text);
    vfprintf(stderr, text, list);
    va_end(list);
    fputc('\n', stderr);
    _exit(1);
}

/* ---- a worker ---- */

struct worker {
    shmq_queue *q;
    uint64_t random;
    shmq_message kept[KEEP];
    uint64_t life, sequence; /* publisher: the last that it published */
    uint64_t next;           /* subscriber: position up to which it has written on the board */
    uint64_t *seen,
        *begun; /* ... by life: the last sequence; what may have been published when it subscribed */
    uint64_t got;
};

/* Mostly not at all, sometimes for some microseconds, seldom for longer. */
static void dawdle(struct worker *w) {
    uint64_t kind = below(&w->random, 64);
    if (kind == 0) nap((int64_t)below(&w->random, 2000000));
    else if (kind < 8)
        for (volatile uint64_t i = below(&w->random, 4000); i > 0;) i = i - 1;
}

static void let_go(shmq_message *m) {
    if (m->data != NULL && m->block != NULL)
        (void)message_number(m->data, m->bytes); /* still whole: nobody wrote over a held view */
    shmq_message_release(m);
}
static void let_all_go(struct worker *w) {
    for (uint64_t i = 0; i < KEEP; i++) let_go(&w->kept[i]);
}

/* ---- publisher ---- */

static void begin_life(struct worker *w) {
    w->life = atomic_fetch_add(&notes->lives, 1);
    CHECK(w->life < most_lives);
    w->sequence = 0;
}
static uint64_t next_number(const struct worker *w) { return w->life << 16 | (w->sequence + 1); }
static void intend(const struct worker *w, uint64_t messages) {
    store_release(&notes->life[w->life].intended, w->sequence + messages);
}
static void have_published(struct worker *w, uint64_t messages) {
    w->sequence += messages;
    store_release(&notes->life[w->life].published, w->sequence);
    intend(w, 0);
}
static bool went_well(int status) {
    CHECK(status == SHMQ_OK || status == SHMQ_FULL || status == SHMQ_ARENA_FULL);
    return status == SHMQ_OK;
}

static uint64_t some_size(struct worker *w) {
    uint64_t kind = below(&w->random, 8);
    if (kind < 5) return MESSAGE_MIN + below(&w->random, INLINE_BYTES - MESSAGE_MIN + 1);
    return MESSAGE_MIN + below(&w->random, (kind == 5 ? 6 : 1) * SHMQ_SMALL_PAGE);
}

static void put_one(struct worker *w) {
    intend(w, 1);
    int status = lab_put(w->q, next_number(w), some_size(w), shmq_deadline(PATIENCE_NS));
    have_published(w, went_well(status));
}

static void put_many(struct worker *w) {
    uint8_t messages[BATCH * INLINE_BYTES];
    uint64_t n = 1 + below(&w->random, BATCH), done;
    uint64_t each = MESSAGE_MIN + below(&w->random, INLINE_BYTES - MESSAGE_MIN + 1);
    for (uint64_t i = 0; i < n; i++) message_write(messages + i * each, next_number(w) + i, each);
    intend(w, n);
    (void)went_well(shmq_put_many(w->q, messages, each, n, shmq_deadline(PATIENCE_NS), &done));
    have_published(w, done);
}

/* Takes its time between the claim of the slot and the commit. */
static void put_slowly(struct worker *w) {
    struct shmq_record record;
    uint32_t bytes = MESSAGE_MIN + (uint32_t)below(&w->random, INLINE_BYTES - MESSAGE_MIN + 1);
    intend(w, 1);
    OK(shmq_put_begin(w->q));
    bool reserved = went_well(shmq_try_reserve(w->q, bytes, SHMQ_RAW, 0, &record));
    if (reserved) {
        dawdle(w);
        message_write(record.payload, next_number(w), bytes);
        shmq_put_commit(w->q, 1, bytes);
    }
    have_published(w, reserved);
}

static void put_loan(struct worker *w, bool discard) {
    shmq_block *b;
    if (!went_well(shmq_loan(w->q, some_size(w), shmq_deadline(PATIENCE_NS), &b))) return;
    message_write(b->data, next_number(w), b->bytes);
    dawdle(w);
    intend(w, !discard);
    bool published = !discard && went_well(shmq_publish(b, NULL, shmq_deadline(PATIENCE_NS)));
    have_published(w, published);
    if (!published) shmq_block_release(b);
}

static void publish_something(struct worker *w) {
    if (w->sequence + BATCH >= SEQUENCES) begin_life(w);
    switch (below(&w->random, 8)) {
    case 0: put_loan(w, true); break;
    case 1: put_loan(w, false); break;
    case 2: put_many(w); break;
    case 3: put_slowly(w); break;
    default: put_one(w);
    }
}

static void be_publisher(struct worker *w) {
    w->q = lab_attach(fd);
    begin_life(w);
    while (load32_relaxed(&notes->ending) == 0) {
        alarm(watchdog_s());
        publish_something(w);
        dawdle(w);
    }
    shmq_free(w->q);
}

/* ---- subscriber ---- */

static void write_on_board(uint64_t position, uint64_t number) {
    uint64_t there = 0;
    CHECK(position - FIRST < BOARD);
    if (cas_acq_rel(&board[position - FIRST], &there, number) || there == number) return;
    if (there == NOTHING || number == NOTHING) give_up("a message was missed by a subscriber");
    give_up("one subscriber has message %#" PRIx64 " where another has %#" PRIx64, number, there);
}

static void passed_over(struct worker *w, uint64_t to) {
    for (; policy == SHMQ_BLOCK && w->next != to; w->next++) write_on_board(w->next, NOTHING);
    w->next = to;
}

static void subscribe(struct worker *w, uint32_t history) {
    w->q = lab_attach(fd);
    OK(shmq_subscribe(w->q, history));
    uint64_t lives = load_acquire(&notes->lives);
    memset(w->seen, 0, most_lives * sizeof *w->seen);
    memset(w->begun, 0, most_lives * sizeof *w->begun);
    for (uint64_t i = 0; i < lives; i++) w->begun[i] = load_acquire(&notes->life[i].intended);
    w->next = w->q->get.ring.topic.joined;
    w->got = 0;
}

static void note(struct worker *w, uint64_t number) {
    uint64_t position = w->q->get.ring.topic.cursor - 1, life = number >> 16;
    uint64_t sequence = number & (SEQUENCES - 1);
    CHECK(life < most_lives);
    write_on_board(position, number);
    if ((int64_t)(position - w->q->get.ring.topic.joined) < 0) return; /* history has gaps */
    if ((int64_t)(position - w->next) < 0) give_up("position %" PRIu64 " came twice", position - FIRST);
    passed_over(w, position);
    w->next = position + 1;
    w->got += 1;
    uint64_t seen = w->seen[life];
    bool good = policy == SHMQ_DROP_OLDEST ? sequence > seen
                : seen > 0                 ? sequence == seen + 1
                                           : sequence <= w->begun[life] + 1;
    if (!good)
        give_up("message %" PRIu64 " of life %" PRIu64 " follows %" PRIu64 " (%" PRIu64 " at first)",
                sequence, life, seen, w->begun[life]);
    w->seen[life] = sequence;
}

/* False: there is none. */
static bool get_something(struct worker *w, int64_t deadline_ns) {
    shmq_message m;
    int status = shmq_get(w->q, &m, deadline_ns);
    if (status == SHMQ_EMPTY || status == SHMQ_PEER_DEAD) {
        let_all_go(w); /* what we keep may be in the publishers' way */
        return false;
    }
    OK(status);
    note(w, message_number(m.data, m.bytes));
    shmq_message *place = &w->kept[below(&w->random, KEEP)];
    let_go(place);
    *place = m;
    dawdle(w);
    return true;
}

static void prepare(struct worker *w) {
    w->seen = calloc(most_lives, sizeof *w->seen);
    w->begun = calloc(most_lives, sizeof *w->begun);
    CHECK(w->seen != NULL && w->begun != NULL);
}

static void be_visitor(struct worker *w) {
    prepare(w);
    while (load32_relaxed(&notes->ending) == 0) {
        alarm(watchdog_s());
        subscribe(w, (uint32_t)below(&w->random, HISTORY + 1));
        (void)atomic_fetch_add(&notes->visits, 1);
        for (uint64_t n = below(&w->random, VISIT); n > 0 && load32_relaxed(&notes->ending) == 0; n--)
            (void)get_something(w, shmq_deadline(PATIENCE_NS));
        if (below(&w->random, 2) == 0) let_all_go(w); /* or views end after the subscription */
        shmq_close(w->q);
        let_all_go(w);
        shmq_free(w->q);
    }
}

static void be_stayer(struct worker *w, uint32_t index) {
    prepare(w);
    subscribe(w, 0);
    (void)atomic_fetch_add(&notes->staying, 1);
    for (bool last = false;;) {
        alarm(watchdog_s());
        bool some = get_something(w, last ? SHMQ_NO_WAIT : shmq_deadline(PATIENCE_NS));
        if (last && !some) break;
        last = load32_acquire(&notes->draining) != 0;
    }
    passed_over(w, w->q->get.ring.topic.cursor);
    shmq_subscription s;
    OK(shmq_get_subscription(w->q, &s));
    store_release(&notes->stayer[index].got, w->got);
    store_release(&notes->stayer[index].missed, s.missed);
    store_release(&notes->stayer[index].end, w->next);
    shmq_free(w->q);
}

/* ---- the one who kills ---- */

struct death {
    int64_t killed_ns;
    uint64_t word;  /* of its entry in the peer table */
    uint32_t index; /* UINT32_MAX: it had none */
    bool replaced;
};

static shmq_queue *q;
static pid_t pids[MORTALS + STAYERS];
static struct death deaths[MORTALS];
static bool dead[MORTALS];
static struct times at_once, by_survivors, gates;
static uint64_t seed, kills, publisher_deaths;

static void start(uint32_t i) {
    struct worker w = {.random = next_random(&seed)};
    pids[i] = fork_child();
    if (pids[i] == 0) {
        if (i < PUBLISHERS) be_publisher(&w);
        else if (i < MORTALS) be_visitor(&w);
        else be_stayer(&w, i - MORTALS);
        _exit(0);
    }
    if (i < MORTALS) dead[i] = false;
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

static void strike(uint32_t i) {
    struct death *d = &deaths[i];
    memset(d, 0, sizeof *d);
    if (below(&seed, 2) == 0) stop_it(pids[i]);
    d->killed_ns = shmq_now_ns();
    CHECK_EQ(kill(pids[i], SIGKILL), 0);
    join_child(pids[i], SIGKILL);
    find_entry(pids[i], d);
    kills += 1;
    publisher_deaths += i < PUBLISHERS;
    d->replaced = below(&seed, 2) == 0 || d->index == UINT32_MAX;
    if (d->replaced) start(i);
    dead[i] = d->index != UINT32_MAX; /* until its repair was seen */
}

static void watch_repair(uint32_t i) {
    struct death *d = &deaths[i];
    int64_t took = shmq_now_ns() - d->killed_ns;
    bool repaired = load_acquire(&q->segment.peers[d->index].word) != d->word;
    if (!repaired && took < REPAIR_PATIENCE_NS) return;
    if (!repaired) complain("a death is not repaired after %" PRId64 " ms", took / MS);
    else note_time(d->replaced ? &at_once : &by_survivors, took);
    if (d->replaced) dead[i] = false;
    else start(i);
}

static void check_workers(void) {
    int status;
    if (waitpid(-1, &status, WNOHANG) > 0) failed(__FILE__, __LINE__, "a worker has ended by itself");
    alarm(watchdog_s());
    nap(200000);
}

static void kill_many(uint64_t wanted, uint64_t pause_ns) {
    int64_t next = shmq_now_ns();
    while (kills < wanted) {
        uint32_t i = (uint32_t)below(&seed, MORTALS);
        if (shmq_now_ns() >= next && !dead[i]) {
            strike(i);
            next = shmq_now_ns() + (int64_t)below(&seed, 2 * pause_ns + 1);
        }
        for (uint32_t d = 0; d < MORTALS; d++)
            if (dead[d]) watch_repair(d);
        check_workers();
    }
}

/* ---- the end ---- */

/* Nobody is there: what is kept is the history, and goes with messages that have no block. */
static void check_baseline(void) {
    shmq_peer_info peers[4];
    uint32_t n;
    for (int i = 0; i < HISTORY; i++) OK(lab_put(q, 1, MESSAGE_MIN, SHMQ_NO_WAIT));
    shmq_stats s = lab_stats(q);
    if (s.arena_free_bytes != s.arena_bytes)
        complain("%" PRIu64 " bytes of the arena are not free", s.arena_bytes - s.arena_free_bytes);
    if (s.subscribers != 0) complain("%" PRIu32 " are still subscribed", s.subscribers);
    OK(shmq_get_peers(q, peers, 4, &n));
    if (n != 1) complain("%" PRIu32 " entries of the peer table are taken", n - 1);
    if (shmq_validate(q) != SHMQ_OK) complain("validate says \"%s\"", shmq_status_text(shmq_validate(q)));
}

/* Everything that was published is there; returns how much. */
static uint64_t check_board(uint64_t end) {
    uint64_t messages = 0, lives = load_acquire(&notes->lives);
    uint64_t *last = calloc(most_lives, sizeof *last);
    CHECK(last != NULL);
    for (uint64_t at = 0; at < end - FIRST; at++) {
        uint64_t number = load_relaxed(&board[at]);
        if (number == 0) complain("nobody has seen position %" PRIu64, at);
        if (number == 0 || number == NOTHING) continue;
        uint64_t life = number >> 16, sequence = number & (SEQUENCES - 1);
        if (sequence != last[life] + 1)
            complain("message %" PRIu64 " of life %" PRIu64 " follows %" PRIu64, sequence, life, last[life]);
        last[life] = sequence;
        messages += 1;
    }
    for (uint64_t life = 0; life < lives; life++) {
        uint64_t published = load_acquire(&notes->life[life].published);
        if (last[life] < published)
            complain("message %" PRIu64 " of life %" PRIu64 " is lost", published, life);
        if (last[life] > load_acquire(&notes->life[life].intended))
            complain("message %" PRIu64 " of life %" PRIu64 " was never put", last[life], life);
    }
    free(last);
    return messages;
}

/* With drop_oldest.  A position that is neither got nor missed was a dead publisher's: each leaves one at most. */
static void check_sums(uint64_t end) {
    uint64_t published = 0, intended = 0;
    for (uint64_t life = 0; life < load_acquire(&notes->lives); life++) {
        published += load_acquire(&notes->life[life].published);
        intended += load_acquire(&notes->life[life].intended);
    }
    for (uint32_t i = 0; i < STAYERS; i++) {
        uint64_t sum = load_acquire(&notes->stayer[i].got) + load_acquire(&notes->stayer[i].missed);
        if (sum < published || sum > intended || sum > end - FIRST || end - FIRST - sum > publisher_deaths)
            complain("got and missed are %" PRIu64 ": published %" PRIu64 " to %" PRIu64 ", at %" PRIu64
                     " positions",
                     sum, published, intended, end - FIRST);
    }
}

static shmq_params params = {.ring_bytes = 16 * 512,
                             .arena_bytes = 3 << 20,
                             .inline_bytes = INLINE_BYTES,
                             .first_cursor = FIRST,
                             .peers = 4 * (MORTALS + STAYERS),
                             .kind = SHMQ_KIND_TOPIC,
                             .history = HISTORY};

static void open_topic(uint32_t with_policy) {
    params.policy = policy = with_policy;
    memset(notes, 0, sizeof *notes + most_lives * sizeof(struct life));
    fd = lab_object();
    q = lab_create(fd, &params);
}

static void close_topic(void) {
    check_baseline();
    shmq_free(q);
    close(fd);
}

static void run(uint32_t with_policy, uint64_t wanted, uint64_t pause_ns) {
    uint64_t before = failures;
    open_topic(with_policy);
    board = mmap(NULL, BOARD * sizeof *board, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0); /* untouched pages take no memory */
    CHECK(board != MAP_FAILED);
    kills = publisher_deaths = 0;
    for (uint32_t i = MORTALS; i < MORTALS + STAYERS; i++) start(i);
    while (load32_acquire(&notes->staying) < STAYERS) check_workers();
    for (uint32_t i = 0; i < MORTALS; i++) start(i);
    kill_many(wanted, pause_ns);
    store32_release(&notes->ending, 1);
    for (uint32_t i = 0; i < MORTALS; i++)
        if (!dead[i] || deaths[i].replaced) join_child(pids[i], 0);
    (void)lab_reap(q);
    store32_release(&notes->draining, 1);
    for (uint32_t i = MORTALS; i < MORTALS + STAYERS; i++) join_child(pids[i], 0);
    uint64_t end = load_acquire(&q->control->tail.cursor), missed = 0;
    for (uint32_t i = 0; i < STAYERS; i++) {
        missed += load_acquire(&notes->stayer[i].missed);
        if (load_acquire(&notes->stayer[i].end) != end) complain("a subscriber does not come to the end");
    }
    uint64_t messages = end - FIRST;
    if (policy == SHMQ_BLOCK) messages = check_board(end);
    else check_sums(end);
    close_topic();
    munmap(board, BOARD * sizeof *board);
    printf("topic, %s: SIGKILL of random publishers and subscribers of %d, at random moments\t%" PRIu64
           " kills (%" PRIu64 " of publishers); %" PRIu64 " messages; %" PRIu64
           " visits; %d subscribers that stay missed %" PRIu64 " in all\t%" PRIu64 "\n",
           policy_name(), MORTALS + STAYERS, kills, publisher_deaths, messages, load_relaxed(&notes->visits),
           STAYERS, missed, failures - before);
}

/* ---- one that holds up the others ---- */

static void publish_on(void) {
    shmq_queue *p = lab_attach(fd);
    for (uint64_t n = 1; load32_acquire(&notes->ending) == 0; n++) {
        alarm(watchdog_s());
        OK(lab_put(p, n, n % 4 == 0 ? INLINE_BYTES + 100 : MESSAGE_MIN, SHMQ_FOREVER));
        store_release(&notes->puts, n);
        nap(50000);
    }
    shmq_free(p);
    _exit(0);
}

static void read_on(void) {
    shmq_queue *s = lab_attach(fd);
    uint64_t number;
    OK(shmq_subscribe(s, 0));
    while (load32_acquire(&notes->ending) == 0) {
        alarm(watchdog_s());
        int status = lab_get(s, &number, shmq_deadline(1000 * MS)); /* many slices */
        CHECK(status == SHMQ_OK || status == SHMQ_EMPTY);
    }
    shmq_free(s);
    _exit(0);
}

/* Every second one with a view in its hands. */
static void hold_up(uint64_t round) {
    shmq_queue *s = lab_attach(fd);
    shmq_message m = {0};
    OK(shmq_subscribe(s, 0));
    while (round % 2 == 0 && m.block == NULL) {
        shmq_message_release(&m);
        OK(shmq_get(s, &m, SHMQ_FOREVER));
    }
    store_release(&notes->round, round);
    for (;;) pause();
}

static bool is_full_because_of(uint32_t index) {
    shmq_stats s = lab_stats(q);
    return s.full != 0 && s.holds_up_put == (int32_t)index;
}

static void gate_once(uint64_t round) {
    struct death d;
    pid_t pid = fork_child();
    if (pid == 0) hold_up(round);
    while (load_acquire(&notes->round) != round) check_workers();
    find_entry(pid, &d);
    while (!is_full_because_of(d.index)) check_workers();
    nap((int64_t)below(&seed, 120 * MS)); /* anywhere in a wait's slice */
    uint64_t puts = load_acquire(&notes->puts);
    int64_t killed_ns = shmq_now_ns(), now = killed_ns;
    CHECK_EQ(kill(pid, SIGKILL), 0);
    join_child(pid, SIGKILL);
    /* One put may have returned, and not been counted, when the ring was found full. */
    while (load_acquire(&notes->puts) < puts + 2 && (now = shmq_now_ns()) - killed_ns < REPAIR_PATIENCE_NS)
        nap(50000);
    if (now - killed_ns >= REPAIR_PATIENCE_NS) failed(__FILE__, __LINE__, "the publisher does not go on");
    note_time(&gates, now - killed_ns);
}

static void run_gates(uint64_t rounds) {
    open_topic(SHMQ_BLOCK);
    pid_t reader = fork_child();
    if (reader == 0) read_on();
    pid_t publisher = fork_child();
    if (publisher == 0) publish_on();
    for (uint64_t round = 1; round <= rounds; round++) gate_once(round);
    store32_release(&notes->ending, 1);
    join_child(publisher, 0);
    join_child(reader, 0);
    (void)lab_reap(q);
    close_topic();
}

static void room_for(struct times *t, uint64_t n) {
    t->ns = calloc(n, sizeof *t->ns);
    CHECK(t->ns != NULL);
}

int main(int argc, char **argv) {
    if (argc != 6) return 2;
    uint64_t wanted = strtoull(argv[1], NULL, 10), limit_ms = strtoull(argv[4], NULL, 10);
    uint64_t pause_ns = strtoull(argv[2], NULL, 10) * (uint64_t)MS, rounds = strtoull(argv[5], NULL, 10);
    seed = strtoull(argv[3], NULL, 10) * 2 + 1;
    most_lives = 2 * wanted + 4096; /* a life ends with its worker, or after SEQUENCES messages */
    notes = lab_shared(sizeof *notes + most_lives * sizeof(struct life));
    room_for(&at_once, 2 * wanted + MORTALS);
    room_for(&by_survivors, 2 * wanted + MORTALS);
    room_for(&gates, rounds + 1);
    run(SHMQ_BLOCK, wanted, pause_ns);
    run(SHMQ_DROP_OLDEST, wanted / 4, pause_ns);
    say_times("topic: death to repair, replaced at once", &at_once, limit_ms);
    say_times("topic: death to repair, no newcomer", &by_survivors, limit_ms);
    run_gates(rounds);
    say_times("topic: death of a subscriber that holds up a full ring, until the publisher goes on", &gates,
              limit_ms);
    return failures != 0;
}
