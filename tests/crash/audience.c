/* Publishers and subscribers of a topic are killed at random moments, and everyone else sees every message.
 *
 *     audience KILLS PAUSE_MS SEED LIMIT_MS GATES
 *
 * Three publishers and three visitors (subscribers that come, read for a while with views in their hands, and leave)
 * are killed now and then; another takes the place, at once or only when a survivor has repaired what was left.
 * Every second victim is stopped first.  Three subscribers stay from the beginning to the end.
 *
 * A publisher notes what it is about to publish, and what it has published (workers.h).  Whoever reads a message
 * writes its number on a board, at its position; and where it passed over a position, that nothing was there.  So
 * with policy block
 *     - all saw the same order, and nobody missed a message or saw one twice: the board would contradict itself
 *     - each life's messages come one after the other, from the first that was begun after the subscription
 *     - what was published is on the board; what is there had been meant
 * With drop_oldest a quarter as many are killed: what one of those who stay got and missed is what was published, but
 * for messages whose publisher died in the call.
 *
 * GATES times a subscriber that holds up a full ring is killed: of 100 times 99 the publisher goes on within
 * LIMIT_MS.  Lines of the summary go to standard output, complaints to standard error. */
#define _GNU_SOURCE
#include "workers.h"

enum { PUBLISHERS = 3, VISITORS = 3, MORTALS = PUBLISHERS + VISITORS, STAYERS = 3 };
enum { HISTORY = 3, VISIT = 200 };
#define BOARD (UINT64_C(1) << 26) /* positions */
#define NOTHING UINT64_MAX        /* on the board: there is no message */
#define FIRST (UINT64_C(0) - 1000)

/* What the workers tell, outside the topic. */
static struct notes {
    shmq_a64 visits;
    shmq_a32 staying, draining;
    struct {
        shmq_a64 got, missed, end;
    } stayer[STAYERS];
    shmq_a64 puts; /* while one holds them up */
    shmq_a64 round;
} *notes;
static shmq_a64 *board;
static uint32_t policy;

static const char *policy_name(void) { return policy == SHMQ_BLOCK ? "block" : "drop_oldest"; }

__attribute__((format(printf, 1, 2))) _Noreturn static void give_up(const char *text, ...) {
    va_list list;
    va_start(list, text);
    vfprintf(stderr, text, list);
    va_end(list);
    fputc('\n', stderr);
    _exit(1);
}

/* ---- publisher ---- */

static void be_publisher(struct worker *w) {
    w->q = lab_attach(fd);
    begin_life(w);
    while (!over()) {
        alarm(watchdog_s());
        put_something(w);
        dawdle(w);
    }
    shmq_free(w->q);
}

/* ---- subscriber ---- */

struct reader {
    struct worker w;
    uint64_t next, got;     /* next: position up to which it has written on the board */
    uint64_t *seen, *begun; /* by life: the last sequence; what may have been published when it subscribed */
};

static void write_on_board(uint64_t position, uint64_t number) {
    uint64_t there = 0;
    CHECK(position - FIRST < BOARD);
    if (cas_acq_rel(&board[position - FIRST], &there, number) || there == number) return;
    if (there == NOTHING || number == NOTHING) give_up("a message was missed by a subscriber");
    give_up("one subscriber has message %#" PRIx64 " where another has %#" PRIx64, number, there);
}

static void passed_over(struct reader *r, uint64_t to) {
    for (; policy == SHMQ_BLOCK && r->next != to; r->next++) write_on_board(r->next, NOTHING);
    r->next = to;
}

static void subscribe(struct reader *r, uint32_t history) {
    r->w.q = lab_attach(fd);
    OK(shmq_subscribe(r->w.q, history));
    uint64_t begun = load_acquire(&lives->begun);
    memset(r->seen, 0, most_lives * sizeof *r->seen);
    memset(r->begun, 0, most_lives * sizeof *r->begun);
    for (uint64_t i = 0; i < begun; i++) r->begun[i] = load_acquire(&lives->life[i].intended);
    r->next = r->w.q->get.ring.topic.joined;
    r->got = 0;
}

static void note(struct reader *r, uint64_t number) {
    uint64_t position = r->w.q->get.ring.topic.cursor - 1, life = number >> 16;
    uint64_t sequence = number & (SEQUENCES - 1);
    CHECK(life < most_lives);
    write_on_board(position, number);
    if ((int64_t)(position - r->w.q->get.ring.topic.joined) < 0) return; /* history has gaps */
    if ((int64_t)(position - r->next) < 0) give_up("position %" PRIu64 " came twice", position - FIRST);
    passed_over(r, position);
    r->next = position + 1;
    r->got += 1;
    uint64_t seen = r->seen[life];
    bool good = policy == SHMQ_DROP_OLDEST ? sequence > seen
                : seen > 0                 ? sequence == seen + 1
                                           : sequence <= r->begun[life] + 1;
    if (!good)
        give_up("message %" PRIu64 " of life %" PRIu64 " follows %" PRIu64 " (%" PRIu64 " at first)",
                sequence, life, seen, r->begun[life]);
    r->seen[life] = sequence;
}

/* False: there is none. */
static bool get_something(struct reader *r, int64_t deadline_ns) {
    shmq_message m;
    int status = shmq_get(r->w.q, &m, deadline_ns);
    if (status == SHMQ_EMPTY || status == SHMQ_PEER_DEAD) {
        let_all_go(&r->w); /* what we keep may be in the publishers' way */
        return false;
    }
    OK(status);
    note(r, message_number(m.data, m.bytes));
    keep(&r->w, &m);
    dawdle(&r->w);
    return true;
}

static void prepare(struct reader *r) {
    r->seen = calloc(most_lives, sizeof *r->seen);
    r->begun = calloc(most_lives, sizeof *r->begun);
    CHECK(r->seen != NULL && r->begun != NULL);
}

static void be_visitor(struct reader *r) {
    prepare(r);
    while (!over()) {
        alarm(watchdog_s());
        subscribe(r, (uint32_t)below(&r->w.random, HISTORY + 1));
        (void)atomic_fetch_add(&notes->visits, 1);
        for (uint64_t n = below(&r->w.random, VISIT); n > 0 && !over(); n--)
            (void)get_something(r, shmq_deadline(PATIENCE_NS));
        if (below(&r->w.random, 2) == 0) let_all_go(&r->w); /* or views end after the subscription */
        shmq_close(r->w.q);
        let_all_go(&r->w);
        shmq_free(r->w.q);
    }
}

static void be_stayer(struct reader *r, uint32_t index) {
    prepare(r);
    subscribe(r, 0);
    (void)atomic_fetch_add(&notes->staying, 1);
    for (bool last = false;;) {
        alarm(watchdog_s());
        bool some = get_something(r, last ? SHMQ_NO_WAIT : shmq_deadline(PATIENCE_NS));
        if (last && !some) break;
        last = load32_acquire(&notes->draining) != 0;
    }
    passed_over(r, r->w.q->get.ring.topic.cursor);
    shmq_subscription s;
    OK(shmq_get_subscription(r->w.q, &s));
    store_release(&notes->stayer[index].got, r->got);
    store_release(&notes->stayer[index].missed, s.missed);
    store_release(&notes->stayer[index].end, r->next);
    shmq_free(r->w.q);
}

/* ---- the one who kills ---- */

static uint64_t publisher_deaths;
static struct times gates;

static void work(uint32_t i, uint64_t random) {
    struct reader r = {.w = {.random = random, .seldom = 64}};
    if (i < PUBLISHERS) be_publisher(&r.w);
    else if (i < MORTALS) be_visitor(&r);
    else be_stayer(&r, i - MORTALS);
}

static void strike(uint32_t i) {
    struct death *d = choose_death(i);
    d->killed_ns = kill_it(pids[i]);
    find_entry(pids[i], d); /* not before: a visitor takes another with each visit */
    publisher_deaths += i < PUBLISHERS;
    replace(i);
}

static void after_repair(uint32_t i) { (void)i; /* what it held is seen at the end */ }

/* ---- the end ---- */

/* Nobody is there: what is kept is the history, and goes with messages that have no block. */
static void check_baseline(void) {
    for (int i = 0; i < HISTORY; i++) OK(lab_put(q, 1, MESSAGE_MIN, SHMQ_NO_WAIT));
    shmq_stats s = lab_stats(q);
    if (s.subscribers != 0) complain("%" PRIu32 " are still subscribed", s.subscribers);
    check_nobody_holds(&s);
}

/* Everything that was published is there; returns how much. */
static uint64_t check_board(uint64_t end) {
    uint64_t messages = 0, begun = load_acquire(&lives->begun);
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
    for (uint64_t life = 0; life < begun; life++) {
        uint64_t published = load_acquire(&lives->life[life].put);
        if (last[life] < published)
            complain("message %" PRIu64 " of life %" PRIu64 " is lost", published, life);
        if (last[life] > load_acquire(&lives->life[life].intended))
            complain("message %" PRIu64 " of life %" PRIu64 " was never put", last[life], life);
    }
    free(last);
    return messages;
}

/* With drop_oldest.  A position that is neither got nor missed was a dead publisher's: each leaves one at most. */
static void check_sums(uint64_t end) {
    uint64_t published = 0, intended = 0;
    for (uint64_t life = 0; life < load_acquire(&lives->begun); life++) {
        published += load_acquire(&lives->life[life].put);
        intended += load_acquire(&lives->life[life].intended);
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
    memset(notes, 0, sizeof *notes);
    memset(lives, 0, bytes_of_lives());
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
    kill_many(MORTALS, wanted, pause_ns);
    store32_release(&lives->ending, 1);
    join_mortals(MORTALS);
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
    for (uint64_t n = 1; !over(); n++) {
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
    while (!over()) {
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
    int64_t killed_ns = kill_it(pid), now = killed_ns;
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
    store32_release(&lives->ending, 1);
    join_child(publisher, 0);
    join_child(reader, 0);
    (void)lab_reap(q);
    close_topic();
}

int main(int argc, char **argv) {
    if (argc != 6) return 2;
    uint64_t wanted = strtoull(argv[1], NULL, 10), limit_ms = strtoull(argv[4], NULL, 10);
    uint64_t pause_ns = strtoull(argv[2], NULL, 10) * (uint64_t)MS, rounds = strtoull(argv[5], NULL, 10);
    seed = strtoull(argv[3], NULL, 10) * 2 + 1;
    open_lives(wanted);
    notes = lab_shared(sizeof *notes);
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
