/* The flight recorder, and what a reaper says of the dead: events placed by hand, lives that are lived, deaths. */
#define _GNU_SOURCE
#include <pthread.h>
#include <time.h>

#include "lab.h"

#define SECOND UINT64_C(1000000000)

static struct shmq_peer peer;

static void place(uint64_t number, uint64_t second, uint32_t op, bool early, uint64_t cursor) {
    struct shmq_event *e = &peer.events[number % SHMQ_EVENTS];
    store_relaxed(&e->when, second << 36 | (number & 0xffff));
    store_relaxed(&e->what, op | (early ? 0x80u : 0u) | (number & 0xff) << 8 | cursor << 16);
}

static uint32_t read_all(shmq_event_info *events) { return shmq_recorder_read(&peer, events); }

static void empty(void) { memset(&peer, 0, sizeof peer); }

/* ---- by hand ---- */

TEST(an_event_is_two_words) {
    shmq_event_info events[SHMQ_EVENTS];
    empty();
    CHECK_EQ(read_all(events), 0);
    uint64_t now = shmq_recorder_note(&peer, SHMQ_OP_LOAN, 77), when = load_relaxed(&peer.events[0].when);
    struct timespec resolution;
    clock_getres(CLOCK_MONOTONIC_COARSE, &resolution);
    CHECK((uint64_t)shmq_now_ns() - now < 10 * SECOND);
    CHECK_EQ(when & 0xffff, 0);
    CHECK_EQ((when >> 36) * SECOND + ((when >> 16 & 0xfffff) << 10), now);
    CHECK_EQ(load_relaxed(&peer.events[0].what), SHMQ_OP_LOAN | 77u << 16);
    CHECK_EQ(load_relaxed(&peer.event_next) & 0xffff, 1);
    (void)shmq_recorder_note(&peer, SHMQ_OP_RELEASE, UINT64_MAX);
    CHECK_EQ(load_relaxed(&peer.events[1].what), UINT64_MAX << 16 | 1u << 8 | SHMQ_OP_RELEASE);
    CHECK_EQ(read_all(events), 2);
    CHECK_EQ(events[0].op, SHMQ_OP_LOAN);
    CHECK_EQ(events[0].cursor, 77);
    CHECK_EQ(events[0].time_ns, now);
    CHECK_EQ(events[1].op, SHMQ_OP_RELEASE);
    CHECK_EQ(events[1].cursor, UINT64_MAX >> 16);
}

TEST(the_last_events_stay) {
    shmq_event_info events[SHMQ_EVENTS];
    const uint64_t starts[] = {0, 7, 0xffff - 40}; /* numbers wrap at 16 bits */
    for (size_t i = 0; i < sizeof starts / sizeof *starts; i++) {
        empty();
        store_relaxed(&peer.event_next, starts[i]);
        store_relaxed(&peer.event_run, 7);
        for (uint64_t n = 0; n < 100; n++) shmq_recorder_note_often(&peer, SHMQ_OP_PUT, n);
        CHECK_EQ(read_all(events), SHMQ_EVENTS);
        for (uint64_t e = 0; e < SHMQ_EVENTS; e++) CHECK_EQ(events[e].cursor, 100 - SHMQ_EVENTS + e);
    }
}

TEST(within_a_tick_the_numbers_tell) {
    shmq_event_info events[SHMQ_EVENTS];
    empty();
    for (uint64_t n = 0; n < SHMQ_EVENTS; n++) place(0xfff0 + n, 5, SHMQ_OP_PUT, false, n);
    CHECK_EQ(read_all(events), SHMQ_EVENTS);
    for (uint64_t e = 0; e < SHMQ_EVENTS; e++) CHECK_EQ(events[e].cursor, e);
    place(0xfff3, 4, SHMQ_OP_PUT, false, 3); /* a thread that was stopped in the middle: time is first */
    CHECK_EQ(read_all(events), SHMQ_EVENTS);
    CHECK_EQ(events[0].cursor, 3);
    CHECK_EQ(events[1].cursor, 0);
}

TEST(half_an_event_is_none) {
    shmq_event_info events[SHMQ_EVENTS];
    empty();
    for (uint64_t n = 0; n < SHMQ_EVENTS; n++) place(n, 1, SHMQ_OP_PUT, false, n);
    store_relaxed(&peer.events[4].when,
                  UINT64_C(2) << 36 | (4 + SHMQ_EVENTS)); /* the first of its two stores */
    CHECK_EQ(read_all(events), SHMQ_EVENTS - 1);
    for (uint64_t e = 0; e < SHMQ_EVENTS - 1; e++) CHECK(events[e].cursor != 4);
    place(4 + SHMQ_EVENTS, 2, SHMQ_OP_GET, false, 99);
    CHECK_EQ(read_all(events), SHMQ_EVENTS);
    CHECK_EQ(events[SHMQ_EVENTS - 1].cursor, 99);
    store_relaxed(&peer.events[6].when, UINT64_C(2) << 36 | 7); /* garbage: another place's number */
    store_relaxed(&peer.events[6].what, SHMQ_OP_GET | 7u << 8);
    CHECK_EQ(read_all(events), SHMQ_EVENTS - 1);
}

/* ---- the clock ---- */

TEST(an_early_event_says_so) {
    shmq_event_info events[SHMQ_EVENTS];
    empty();
    place(0, 5, SHMQ_OP_GET, false, 0);
    place(1, 5, SHMQ_OP_GET, true, 1);
    place(2, 5, SHMQ_OP_GET, true, 2);
    CHECK_EQ(read_all(events), 3);
    CHECK_EQ(events[0].is_early, 0);
    CHECK(events[1].is_early && events[2].is_early); /* nobody looked at the clock since */
    place(3, 6, SHMQ_OP_LOAN, false, 3);
    CHECK_EQ(read_all(events), 4);
    CHECK(events[1].is_early && events[2].is_early); /* somewhere between 5 and 6 */
    place(3, 5, SHMQ_OP_LOAN, false, 3);
    CHECK_EQ(read_all(events), 4);
    CHECK(!events[1].is_early && !events[2].is_early); /* 5 it was */
}

TEST(a_fast_run_reads_the_clock_at_times) {
    shmq_event_info events[SHMQ_EVENTS];
    empty();
    store_relaxed(&peer.event_next, UINT64_C(5) << 36 | 6); /* two more without */
    store_relaxed(&peer.event_run, 7);
    for (uint64_t n = 0; n < 3; n++) shmq_recorder_note_often(&peer, SHMQ_OP_GET, n);
    CHECK_EQ(read_all(events), 3);
    CHECK_EQ(events[0].time_ns, 5 * SECOND);
    CHECK_EQ(events[1].time_ns, 5 * SECOND);
    CHECK(events[0].is_early && events[1].is_early && !events[2].is_early);
    CHECK(events[2].time_ns > 5 * SECOND);
    CHECK_EQ(load_relaxed(&peer.event_run), 0); /* another tick: the run is over */
    uint64_t most = 0;
    for (int n = 0; n < 10000; n++) {
        shmq_recorder_note_often(&peer, SHMQ_OP_GET, 0);
        if (load_relaxed(&peer.event_run) > most) most = load_relaxed(&peer.event_run);
    }
    CHECK_EQ(most, 7);
    (void)shmq_recorder_note(&peer, SHMQ_OP_LOAN, 0);
    CHECK_EQ(load_relaxed(&peer.event_run), 0); /* whatever else it does ends the run */
    CHECK_EQ(read_all(events), SHMQ_EVENTS);
    CHECK_EQ(events[SHMQ_EVENTS - 1].is_early, 0);
}

/* The carry of a number into the time shows in no event. */
TEST(where_the_number_wraps_the_clock_is_read) {
    shmq_event_info events[SHMQ_EVENTS];
    empty();
    store_relaxed(&peer.event_next, UINT64_C(5) << 36 | 0xffff);
    store_relaxed(&peer.event_run, 7);
    shmq_recorder_note_often(&peer, SHMQ_OP_GET, 1);
    shmq_recorder_note_often(&peer, SHMQ_OP_GET, 2);
    CHECK_EQ(read_all(events), 2);
    CHECK_EQ(events[0].time_ns, 5 * SECOND);
    CHECK(events[1].time_ns > 6 * SECOND && !events[1].is_early);
    store_relaxed(&peer.event_next, UINT64_C(5) << 36 | 0xffff);
    uint64_t before = (uint64_t)shmq_now_ns();
    (void)shmq_recorder_note(&peer, SHMQ_OP_LOAN, 3);
    (void)shmq_recorder_note(&peer, SHMQ_OP_LOAN, 4);
    CHECK_EQ(read_all(events), 2);
    CHECK_EQ(events[1].cursor, 4);
    CHECK(events[1].time_ns > before - SECOND && events[1].time_ns < before + 60 * SECOND);
}

TEST(a_wait_in_slices_is_one_wait) {
    shmq_event_info events[SHMQ_EVENTS];
    empty();
    for (int i = 0; i < 3; i++) shmq_recorder_note_once(&peer, SHMQ_OP_WAIT_GET, 0);
    CHECK_EQ(load_relaxed(&peer.event_next) & 0xffff, 1);
    store_relaxed(&peer.event_run, 7);
    shmq_recorder_note_once(&peer, SHMQ_OP_WAIT_GET, 0);
    CHECK_EQ(load_relaxed(&peer.event_run), 0); /* what comes behind it reads the clock */
    shmq_recorder_note_often(&peer, SHMQ_OP_GET, 8);
    shmq_recorder_note_once(&peer, SHMQ_OP_WAIT_GET, 0);
    CHECK_EQ(read_all(events), 3);
    CHECK_EQ(events[1].op, SHMQ_OP_GET);
    CHECK_EQ(events[1].is_early, 0);
    CHECK_EQ(events[2].op, SHMQ_OP_WAIT_GET);
}

/* ---- threads of one handle ---- */

static shmq_a32 recording_on;

static void *record_puts(void *none) {
    for (uint64_t n = 1; load32_relaxed(&recording_on) != 0; n++)
        shmq_recorder_note_often(&peer, SHMQ_OP_PUT, n << 8 | SHMQ_OP_PUT);
    return none;
}
static void *record_releases(void *none) {
    for (uint64_t n = 1; load32_relaxed(&recording_on) != 0; n++)
        (void)shmq_recorder_note(&peer, SHMQ_OP_RELEASE, n << 8 | SHMQ_OP_RELEASE);
    return none;
}

TEST(threads_may_lose_events_and_invent_none) {
    pthread_t threads[2];
    shmq_event_info events[SHMQ_EVENTS];
    uint64_t seen[16] = {0}, began = shmq_recorder_note(&peer, SHMQ_OP_ATTACH, 0);
    empty();
    store32_relaxed(&recording_on, 1);
    CHECK_EQ(pthread_create(&threads[0], NULL, record_puts, NULL), 0);
    CHECK_EQ(pthread_create(&threads[1], NULL, record_releases, NULL), 0);
    for (int looks = 0; looks < 20000 || seen[SHMQ_OP_PUT] == 0 || seen[SHMQ_OP_RELEASE] == 0; looks++) {
        uint32_t n = read_all(events);
        for (uint32_t i = 0; i < n; i++) {
            CHECK(events[i].op == SHMQ_OP_PUT || events[i].op == SHMQ_OP_RELEASE);
            CHECK_EQ(events[i].cursor & 0xff, events[i].op);
            CHECK(events[i].time_ns >= began && events[i].time_ns <= (uint64_t)shmq_now_ns() + SECOND);
            CHECK(i == 0 || events[i].time_ns >= events[i - 1].time_ns);
            seen[events[i].op] += 1;
        }
    }
    store32_relaxed(&recording_on, 0);
    for (int i = 0; i < 2; i++) CHECK_EQ(pthread_join(threads[i], NULL), 0);
}

/* ---- lives ---- */

static const uint32_t kinds[] = {SHMQ_KIND_SPSC, SHMQ_KIND_MPMC};
#define FOR_BOTH_KINDS(kind) for (size_t k_ = 0, kind = kinds[0]; k_ < 2; kind = kinds[++k_ & 1])

static shmq_queue *create(int fd, uint32_t kind, uint32_t peers) {
    shmq_params params = tiny;
    params.kind = kind;
    params.peers = peers;
    if (kind == SHMQ_KIND_MPMC) params.inline_bytes = 96;
    return lab_create(fd, &params);
}

struct expected {
    uint32_t op;
    uint64_t cursor;
};

static void check_events(shmq_queue *q, uint32_t index, const struct expected *expected, uint32_t n) {
    shmq_event_info events[SHMQ_EVENTS_MAX];
    uint32_t found;
    OK(shmq_get_events(q, index, events, SHMQ_EVENTS_MAX, &found));
    for (uint32_t i = 0; i < found && i < n; i++) {
        CHECK_EQ(events[i].op, expected[i].op);
        CHECK_EQ(events[i].cursor, expected[i].cursor);
    }
    CHECK_EQ(found, n);
}
#define CHECK_EVENTS(q, index, ...)                                                                          \
    check_events(q, index, (const struct expected[]){__VA_ARGS__},                                           \
                 sizeof((const struct expected[]){__VA_ARGS__}) / sizeof(struct expected))

TEST(a_life_is_recorded) {
    FOR_BOTH_KINDS(kind) {
        int fd = lab_object();
        shmq_queue *q = create(fd, (uint32_t)kind, 8), *other = lab_attach(fd);
        uint64_t step = kind == SHMQ_KIND_MPMC ? 8 : 40, number, done; /* of a message of 32 bytes */
        uint64_t size = kind == SHMQ_KIND_MPMC ? 8 : 16;               /* of one in a block */
        shmq_message m;
        shmq_block *b;
        uint8_t two[2][32];
        OK(lab_put(q, 1, 32, SHMQ_NO_WAIT));
        OK(lab_put(q, 2, 32, SHMQ_NO_WAIT));
        OK(lab_put(q, 3, 2000, SHMQ_NO_WAIT)); /* a block: loan, publish */
        for (uint64_t i = 0; i < 2; i++) message_write(two[i], 4 + i, 32);
        OK(shmq_put_many(q, two, 32, 2, SHMQ_NO_WAIT, &done));
        OK(shmq_loan(q, 100, SHMQ_NO_WAIT, &b));
        shmq_block_release(b);
        OK(lab_get(q, &number, SHMQ_NO_WAIT));
        OK(lab_get(q, &number, SHMQ_NO_WAIT));
        OK(shmq_get(q, &m, SHMQ_NO_WAIT));
        shmq_message_release(&m);
        OK(lab_get(q, &number, SHMQ_NO_WAIT));
        OK(lab_get(q, &number, SHMQ_NO_WAIT));
        CHECK_EQ(lab_get(q, &number, 1), SHMQ_EMPTY);
        CHECK_EQ(lab_get(q, &number, 1), SHMQ_EMPTY);
        OK(shmq_shutdown(q, 0));
        CHECK_EVENTS(other, 0, {SHMQ_OP_ATTACH, 0}, {SHMQ_OP_ROLE, 1}, {SHMQ_OP_PUT, 0}, {SHMQ_OP_PUT, step},
                     {SHMQ_OP_LOAN, 0}, {SHMQ_OP_PUBLISH, 2 * step}, {SHMQ_OP_PUT_MANY, 3 * step + size},
                     {SHMQ_OP_LOAN, 1}, {SHMQ_OP_RELEASE, 1}, {SHMQ_OP_ROLE, 2}, {SHMQ_OP_GET, 0},
                     {SHMQ_OP_GET, step}, {SHMQ_OP_LEASE, 0}, {SHMQ_OP_GET, 2 * step}, {SHMQ_OP_RELEASE, 0},
                     {SHMQ_OP_GET, 2 * step + size}, {SHMQ_OP_GET, 3 * step + size}, {SHMQ_OP_WAIT_GET, 0},
                     {SHMQ_OP_SHUTDOWN, 1});
        shmq_event_info last[2];
        uint32_t n;
        OK(shmq_get_events(other, 0, last, 2, &n)); /* too little room: the last ones */
        CHECK_EQ(n, 2);
        CHECK_EQ(last[1].op, SHMQ_OP_SHUTDOWN);
        CHECK_EQ(shmq_get_events(other, 8, last, 2, &n), SHMQ_INVALID);
        shmq_free(q);
        CHECK_EQ(load_relaxed(&other->segment.peers[0].events[19].what) & 0xff, SHMQ_OP_DETACH);
        shmq_free(other);
        close(fd);
    }
}

static shmq_peer_info peer_of(shmq_queue *q, uint32_t index) {
    shmq_peer_info peers[8];
    uint32_t n;
    OK(shmq_get_peers(q, peers, 8, &n));
    for (uint32_t i = 0; i < n; i++)
        if (peers[i].index == index) return peers[i];
    failed(__FILE__, __LINE__, "no such peer");
}

TEST(what_the_living_hold_and_since_when) {
    int fd = lab_object();
    shmq_queue *q = create(fd, SHMQ_KIND_MPMC, 8);
    shmq_block *first, *second;
    struct shmq_record record;
    CHECK_EQ(peer_of(q, 0).holding_since_ns, 0);
    CHECK_EQ(peer_of(q, 0).last.op, SHMQ_OP_ATTACH);
    OK(shmq_loan(q, 100, SHMQ_NO_WAIT, &first));
    uint64_t since = peer_of(q, 0).holding_since_ns;
    CHECK((uint64_t)shmq_now_ns() - since < 10 * SECOND);
    CHECK_EQ(since, peer_of(q, 0).last.time_ns);
    store_relaxed(&q->counters->holding_since_ns, since - SECOND); /* a second passes */
    OK(shmq_loan(q, 100, SHMQ_NO_WAIT, &second));
    shmq_block_release(first); /* one or another */
    shmq_peer_info holder = peer_of(q, 0);
    CHECK_EQ(holder.holding_since_ns, since - SECOND);
    CHECK_EQ(holder.loaned, 1);
    CHECK_EQ(holder.leased, 0);
    CHECK_EQ(holder.held_bytes, SHMQ_SMALL_PAGE);
    shmq_block_release(second);
    CHECK_EQ(peer_of(q, 0).holding_since_ns, 0);
    OK(lab_put(q, 1, 32, SHMQ_NO_WAIT));
    OK(shmq_put_begin(q));
    OK(shmq_ring_try_reserve(&q->ring, &q->put.ring, 8, SHMQ_RAW, 0, &record));
    CHECK_EQ(peer_of(q, 0).writing, 1);
    CHECK_EQ(peer_of(q, 0).slot_position, 8);
    shmq_ring_commit(&q->ring, &q->put.ring);
    CHECK_EQ(peer_of(q, 0).writing, 0);
    shmq_free(q);
    close(fd);
}

/* ---- deaths ---- */

static uint32_t the_dead(shmq_queue *q, shmq_peer_info dead[8]) {
    uint32_t n;
    OK(shmq_get_dead(q, dead, 8, &n));
    return n;
}

/* A loan, a lease, and a message that it is taking. */
static shmq_queue *busy_peer(int fd, shmq_block **loan, shmq_message *m) {
    struct shmq_record record;
    shmq_queue *q = lab_attach(fd);
    OK(lab_put(q, 1, 2000, SHMQ_NO_WAIT));
    OK(lab_put(q, 2, 2000, SHMQ_NO_WAIT));
    OK(shmq_get(q, m, SHMQ_NO_WAIT));
    OK(shmq_loan(q, SHMQ_SMALL_PAGE + 1, SHMQ_NO_WAIT, loan));
    OK(shmq_try_next(q, &record));
    return q;
}

static void bury(shmq_queue *q, shmq_block *loan, shmq_message *m) {
    free(loan);
    free(m->block);
    lab_bury(q);
}

static void check_post_mortem(const shmq_peer_info *p, uint32_t kind) {
    CHECK_EQ(p->index, 1);
    CHECK_EQ(p->epoch, 0);
    CHECK_EQ(p->alive, 0);
    CHECK_EQ(p->pid, getpid());
    CHECK_EQ(p->loaned, 1);
    CHECK_EQ(p->leased, 1);
    CHECK_EQ(p->held_bytes, 3 * SHMQ_SMALL_PAGE);
    CHECK_EQ(p->reading, kind == SHMQ_KIND_MPMC);
    CHECK_EQ(p->writing, 0);
    CHECK_EQ(p->slot_position, kind == SHMQ_KIND_MPMC ? 8 : 0);
    CHECK_EQ(p->messages_put, 2);
    CHECK_EQ(p->messages_got, 1);
    CHECK(p->is_producer && p->is_consumer);
    CHECK_EQ(p->last.op, SHMQ_OP_LOAN);
}

TEST(the_dead_tell_what_they_held) {
    FOR_BOTH_KINDS(kind) {
        int fd = lab_object();
        shmq_queue *q = create(fd, (uint32_t)kind, 8);
        shmq_peer_info dead[8];
        shmq_block *loan;
        shmq_message m;
        CHECK_EQ(the_dead(q, dead), 0);
        shmq_queue *victim = busy_peer(fd, &loan, &m);
        CHECK_EQ(the_dead(q, dead), 0);
        lab_die(victim);
        CHECK_EQ(the_dead(q, dead), 1); /* nobody has repaired it yet */
        check_post_mortem(&dead[0], (uint32_t)kind);
        CHECK_EQ(dead[0].reaped_ns, 0);
        uint64_t before = (uint64_t)shmq_now_ns();
        CHECK_EQ(lab_reap(q), 1);
        CHECK_EQ(the_dead(q, dead), 1);
        check_post_mortem(&dead[0], (uint32_t)kind);
        CHECK(dead[0].reaped_ns >= before && dead[0].reaped_ns <= (uint64_t)shmq_now_ns());
        CHECK_EQ(dead[0].reaped_by_pid, getpid());
        const struct expected expected[] = {
            {SHMQ_OP_ATTACH, 0},  {SHMQ_OP_ROLE, 1},  {SHMQ_OP_LOAN, 0},
            {SHMQ_OP_PUBLISH, 0}, {SHMQ_OP_LOAN, 1},  {SHMQ_OP_PUBLISH, kind == SHMQ_KIND_MPMC ? 8 : 16},
            {SHMQ_OP_ROLE, 2},    {SHMQ_OP_LEASE, 0}, {SHMQ_OP_GET, 0},
            {SHMQ_OP_LOAN, 2}};
        check_events(q, 1, expected, 10);
        CHECK_EQ(peer_of(q, 0).last.op, SHMQ_OP_REAP);
        CHECK_EQ(peer_of(q, 0).last.cursor, 1);
        bury(victim, loan, &m);
        shmq_free(q);
        close(fd);
    }
}

/* The next reaper finds some of it repaired: the first one's word stands. */
TEST(a_dead_reaper_s_testimony_stands) {
    int fd = lab_object();
    shmq_queue *q = create(fd, SHMQ_KIND_MPMC, 8);
    shmq_peer_info dead[8];
    shmq_block *loan;
    shmq_message m;
    shmq_queue *victim = busy_peer(fd, &loan, &m);
    lab_die(victim);
    pid_t pid = fork_child();
    if (pid == 0) { /* as shmq_recover_all does, up to the pages */
        uint64_t epoch;
        struct shmq_hands hands = {0};
        int lock = shmq_peers_verdict_begin(&q->segment, 1, &epoch);
        CHECK(lock >= 0);
        shmq_mpmc_in_hands(&q->ring.mpmc, 1, &hands);
        shmq_arena_in_hands(&q->arena, 1, &hands);
        shmq_peers_testify(&q->segment, 1, epoch, &hands, SHMQ_ROLE_PRODUCER | SHMQ_ROLE_CONSUMER);
        shmq_mpmc_recover(&q->ring.mpmc, 1);
        _exit(0);
    }
    join_child(pid, 0);
    CHECK_EQ(lab_reap(q), 1);
    CHECK_EQ(the_dead(q, dead), 1);
    check_post_mortem(&dead[0], SHMQ_KIND_MPMC);
    CHECK_EQ(dead[0].reaped_by_pid, pid);
    bury(victim, loan, &m);
    shmq_free(q);
    close(fd);
}

TEST(a_post_mortem_outlives_the_newcomers) {
    int fd = lab_object();
    shmq_queue *q[8] = {create(fd, SHMQ_KIND_MPMC, 5)};
    shmq_peer_info dead[8];
    for (uint32_t i = 1; i < 5; i++) q[i] = lab_attach(fd);
    const uint32_t order[] = {3, 1, 2};
    for (int i = 0; i < 3; i++) {
        lab_die(q[order[i]]);
        lab_bury(q[order[i]]);
        CHECK_EQ(lab_reap(q[0]), 1);
        while ((uint64_t)shmq_now_ns() == load_relaxed(&q[0]->segment.peers[order[i]].verdict.reaped_ns)) {}
    }
    CHECK_EQ(the_dead(q[0], dead), 3);
    shmq_free(q[4]); /* left, not dead */
    CHECK_EQ(the_dead(q[0], dead), 3);
    for (int round = 0; round < 3; round++) {
        q[4] = lab_attach(fd);
        CHECK_EQ(q[4]->me.index, 4);
        CHECK_EQ(the_dead(q[0], dead), 3);
        if (round < 2) shmq_free(q[4]);
    }
    for (int i = 0; i < 3; i++) { /* no other is vacant: who died first, goes first */
        q[order[i]] = lab_attach(fd);
        CHECK_EQ(q[order[i]]->me.index, order[i]);
        CHECK_EQ(q[order[i]]->me.epoch, 1);
        CHECK_EVENTS(q[0], order[i], {SHMQ_OP_ATTACH, 0});
        CHECK_EQ(the_dead(q[0], dead), (uint32_t)(2 - i));
    }
    shmq_queue *more;
    CHECK_EQ(shmq_attach(fd, &more), SHMQ_PEERS_FULL);
    shmq_free(q[2]);
    CHECK_EQ(the_dead(q[0], dead), 0); /* it left */
    for (int i = 0; i < 5; i++)
        if (i != 2) shmq_free(q[i]);
    close(fd);
}

/* Two with one time: each gets its turn; a locked one is passed over. */
TEST(the_dead_of_one_moment_take_turns) {
    int fd = lab_object();
    shmq_queue *q = create(fd, SHMQ_KIND_MPMC, 3), *a = lab_attach(fd), *b = lab_attach(fd), *c, *d;
    lab_die(a);
    lab_die(b);
    CHECK_EQ(lab_reap(q), 2);
    lab_bury(a);
    lab_bury(b);
    for (uint32_t i = 1; i < 3; i++) store_relaxed(&q->segment.peers[i].verdict.reaped_ns, 7);
    int other = shmq_segment_reopen(&q->segment);
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 1, .l_len = 1};
    CHECK_EQ(fcntl(other, F_OFD_SETLK, &lock), 0); /* somebody is just joining there */
    c = lab_attach(fd);
    CHECK_EQ(c->me.index, 2);
    CHECK_EQ(shmq_attach(fd, &d), SHMQ_PEERS_FULL);
    close(other);
    d = lab_attach(fd);
    CHECK_EQ(d->me.index, 1);
    shmq_free(c);
    shmq_free(d);
    shmq_free(q);
    close(fd);
}

int main(int argc, char **argv) { return run_tests(argc, argv); }
