/* Death, and company, at every point.
 *
 * This is built with a core whose every atomic access first calls lab_point(), and whose futex first calls
 * lab_before_sleep() (see c_build.py).  So "the process dies before its nth access to shared state" and "another
 * process does all this before the nth access" can be tried for n = 0, 1, 2, ... until the operation has no nth
 * access any more.  (As SQLite tests its crashes: at write N, for every N.)
 */
#define _GNU_SOURCE
#include "points.h"

#define BLOCK_BYTES (3 * SHMQ_SMALL_PAGE)

static const uint64_t starts[] = {0, 4096 - 8, UINT64_C(0) - 16, UINT64_C(0) - 8};
#define STARTS (sizeof starts / sizeof *starts)

/* ---- death ---- */

static struct rig {
    int fd;
    shmq_queue *survivor;
} rig;

static struct {
    shmq_a32 finished; /* the operation came to its end */
    shmq_a64 noted;    /* the last message that the dead one knew that it had */
} *shared;

struct death {
    void (*scene)(void);               /* in the survivor, before */
    void (*before)(shmq_queue *child); /* in the child, not to be interrupted */
    void (*act)(shmq_queue *child);    /* cut short at every point */
    void (*check)(bool finished);      /* in the survivor, after its reap */
    bool attaches;                     /* the act does that itself: child is NULL */
    uint64_t points;                   /* at least so many, or the hooks are not there */
};

static void expect(uint64_t number) {
    uint64_t found;
    OK(lab_get(rig.survivor, &found, SHMQ_NO_WAIT));
    CHECK_EQ(found, number);
}

/* Nothing waits, nothing is held, and everything still works. */
static void check_clean(void) {
    uint64_t number;
    CHECK_EQ(lab_get(rig.survivor, &number, SHMQ_NO_WAIT), SHMQ_EMPTY);
    for (int round = 0; round < 2; round++) {
        shmq_stats s = lab_stats(rig.survivor);
        CHECK_EQ(s.messages_put, s.messages_got);
        CHECK_EQ(s.ring_used_bytes, 0);
        lab_all_pages_free(rig.survivor);
        OK(shmq_validate(rig.survivor));
        OK(lab_put(rig.survivor, 100, 100, SHMQ_NO_WAIT));
        OK(lab_put(rig.survivor, 101, BLOCK_BYTES, SHMQ_NO_WAIT));
        expect(100);
        expect(101);
    }
}

static void die_everywhere(const struct death *d) {
    shared = lab_shared(sizeof *shared);
    for (size_t i = 0; i < STARTS; i++) {
        shmq_params params = tiny;
        params.first_cursor = starts[i];
        uint64_t n = 0;
        for (bool finished = false; !finished; n++) {
            rig.fd = lab_object();
            rig.survivor = lab_create(rig.fd, &params);
            store32_release(&shared->finished, 0);
            store_release(&shared->noted, 0);
            if (d->scene != NULL) d->scene();
            pid_t pid = fork_child();
            if (pid == 0) {
                shmq_queue *q = d->attaches ? NULL : lab_attach(rig.fd);
                if (d->before != NULL) d->before(q);
                arm(n, die);
                d->act(q);
                if (disarm()) store32_release(&shared->finished, 1);
                die();
            }
            join_child(pid, SIGKILL);
            finished = load32_acquire(&shared->finished) != 0;
            (void)lab_reap(rig.survivor);
            CHECK_EQ(lab_reap(rig.survivor), 0);
            d->check(finished);
            shmq_free(rig.survivor);
            close(rig.fd);
        }
        CHECK(n > d->points);
    }
    munmap(shared, sizeof *shared);
}

/* -- a producer: 1 and 2 are in the queue, 3 and perhaps more are on their way -- */

static void put_two(shmq_queue *q) {
    OK(lab_put(q, 1, BLOCK_BYTES, SHMQ_NO_WAIT));
    OK(lab_put(q, 2, 100, SHMQ_NO_WAIT));
}
static void put_inline(shmq_queue *q) { OK(lab_put(q, 3, 100, SHMQ_NO_WAIT)); }
static void put_block(shmq_queue *q) { OK(lab_put(q, 3, BLOCK_BYTES, SHMQ_NO_WAIT)); }
static void put_run(shmq_queue *q) {
    uint8_t run[4][40];
    uint64_t done;
    for (uint64_t i = 0; i < 4; i++) message_write(run[i], 3 + i, sizeof run[i]);
    OK(shmq_put_many(q, run, sizeof run[0], 4, SHMQ_NO_WAIT, &done));
}
static void loan_and_publish(shmq_queue *q) {
    shmq_block *b;
    OK(shmq_loan(q, BLOCK_BYTES, SHMQ_NO_WAIT, &b));
    message_write(b->data, 3, BLOCK_BYTES);
    OK(shmq_publish(b, NULL, SHMQ_NO_WAIT));
}
static void loan_and_discard(shmq_queue *q) {
    shmq_block *b;
    OK(shmq_loan(q, BLOCK_BYTES, SHMQ_NO_WAIT, &b));
    shmq_block_release(b);
}

static uint64_t received_after(uint64_t last) {
    uint64_t number, n = 0;
    while (lab_get(rig.survivor, &number, SHMQ_NO_WAIT) == SHMQ_OK) CHECK_EQ(number, last + ++n);
    return n;
}
static void check_two_and_maybe(uint64_t more, bool finished) {
    expect(1);
    expect(2);
    uint64_t n = received_after(2);
    CHECK(n == 0 || n == more); /* a run is published whole */
    CHECK(!finished || n == more);
    check_clean();
}
static void check_put_of_one(bool finished) { check_two_and_maybe(1, finished); }
static void check_put_of_four(bool finished) { check_two_and_maybe(4, finished); }
static void check_put_of_none(bool finished) { check_two_and_maybe(0, finished); }

TEST(death_of_a_producer_in_line) {
    die_everywhere(&(struct death){NULL, put_two, put_inline, check_put_of_one, false, 5});
}
TEST(death_of_a_producer_with_a_block) {
    die_everywhere(&(struct death){NULL, put_two, put_block, check_put_of_one, false, 15});
}
TEST(death_of_a_producer_of_a_run) {
    die_everywhere(&(struct death){NULL, put_two, put_run, check_put_of_four, false, 8});
}
TEST(death_of_a_producer_with_a_loan) {
    die_everywhere(&(struct death){NULL, put_two, loan_and_publish, check_put_of_one, false, 15});
}
TEST(death_of_a_producer_that_discards) {
    die_everywhere(&(struct death){NULL, put_two, loan_and_discard, check_put_of_none, false, 15});
}

static void take_over_and_put(shmq_queue *q) { OK(lab_put(q, 1, 100, SHMQ_NO_WAIT)); }
static void check_first_put(bool finished) {
    uint64_t n = received_after(0);
    CHECK(n <= 1);
    CHECK(!finished || n == 1);
    check_clean();
}
TEST(death_in_the_very_first_put) {
    die_everywhere(&(struct death){NULL, NULL, take_over_and_put, check_first_put, false, 10});
}

/* -- a consumer: 1 to 4 are in the queue, it takes the first -- */

static void put_four(void) {
    OK(lab_put(rig.survivor, 1, BLOCK_BYTES, SHMQ_NO_WAIT));
    OK(lab_put(rig.survivor, 2, 100, SHMQ_NO_WAIT));
    OK(lab_put(rig.survivor, 3, BLOCK_BYTES, SHMQ_NO_WAIT));
    OK(lab_put(rig.survivor, 4, BLOCK_BYTES, SHMQ_NO_WAIT));
}
static void get_one(shmq_queue *q) {
    shmq_message m;
    OK(shmq_get(q, &m, SHMQ_NO_WAIT));
    store_release(&shared->noted, message_number(m.data, m.bytes));
    shmq_message_release(&m);
}
static void check_get(uint64_t before, bool finished) {
    uint64_t noted = load_acquire(&shared->noted), number;
    if (finished) CHECK_EQ(noted, before + 1);
    OK(lab_get(rig.survivor, &number, SHMQ_NO_WAIT));
    /* Taken and not noted is gone: at most once.  Noted is never seen again. */
    CHECK(number == noted + 1 || (noted == before && number == before + 2));
    CHECK_EQ(received_after(number), 4 - number);
    check_clean();
}
static void check_first_get(bool finished) { check_get(0, finished); }
static void check_second_get(bool finished) { check_get(1, finished); }
static void check_third_get(bool finished) { check_get(2, finished); }
static void get_two(shmq_queue *q) {
    get_one(q);
    get_one(q);
}

TEST(death_of_a_consumer_in_its_first_get) {
    die_everywhere(&(struct death){put_four, NULL, get_one, check_first_get, false, 20});
}
TEST(death_of_a_consumer_in_line) {
    die_everywhere(&(struct death){put_four, get_one, get_one, check_second_get, false, 4});
}
TEST(death_of_a_consumer_with_a_block) {
    die_everywhere(&(struct death){put_four, get_two, get_one, check_third_get, false, 15});
}

/* -- whoever leaves -- */

static void put_get_and_hold(shmq_queue *q) {
    static shmq_message m;
    static shmq_block *b;
    OK(shmq_get(q, &m, SHMQ_NO_WAIT));
    OK(shmq_loan(q, BLOCK_BYTES, SHMQ_NO_WAIT, &b));
}
static void put_one(void) {
    OK(lab_put(rig.survivor, 1, BLOCK_BYTES, SHMQ_NO_WAIT));
    /* The child will be the producer; the survivor forgets that it was. */
    store_release(&rig.survivor->control->roles.producer, 0);
    rig.survivor->put.held = false;
}
static void leave(shmq_queue *q) { shmq_free(q); }
static void check_left(bool finished) {
    (void)finished;
    check_clean();
}
TEST(death_while_leaving) {
    die_everywhere(&(struct death){put_one, put_get_and_hold, leave, check_left, false, 6});
}

static void shut_down(shmq_queue *q) { OK(shmq_shutdown(q, 0)); }
static void check_shut_down(bool finished) {
    if (finished) {
        CHECK_EQ(lab_put(rig.survivor, 5, 100, SHMQ_NO_WAIT), SHMQ_SHUT_DOWN);
        for (uint64_t i = 1; i <= 4; i++) expect(i);
        uint64_t number;
        CHECK_EQ(lab_get(rig.survivor, &number, SHMQ_NO_WAIT), SHMQ_SHUT_DOWN);
    }
}
TEST(death_while_shutting_down) {
    die_everywhere(&(struct death){put_four, NULL, shut_down, check_shut_down, false, 2});
}

/* -- a reaper: dies over the remains of others, as it attaches -- */

static struct {
    shmq_queue *producer, *consumer;
    void *blocks[8];
    int blocks_held;
} remains;

/* A producer that died with 2 to 4 published, 5 sent but not published, and a loan; a consumer that died with
 * 1 released but held, and 2 leased but not released. */
static void two_deaths(void) {
    shmq_queue *p = remains.producer = lab_attach(rig.fd), *c = remains.consumer = lab_attach(rig.fd);
    struct shmq_record record;
    const struct shmq_block_header *header;
    shmq_message m;
    shmq_block *b;
    remains.blocks_held = 0;
    OK(lab_put(p, 1, SHMQ_SMALL_PAGE, SHMQ_NO_WAIT));
    OK(lab_put(p, 2, BLOCK_BYTES, SHMQ_NO_WAIT));
    OK(lab_put(p, 3, 100, SHMQ_NO_WAIT));
    OK(lab_put(p, 4, SHMQ_SMALL_PAGE, SHMQ_NO_WAIT));
    OK(shmq_loan(p, SHMQ_SMALL_PAGE, SHMQ_NO_WAIT, &b));
    remains.blocks[remains.blocks_held++] = b;
    OK(shmq_loan(p, BLOCK_BYTES, SHMQ_NO_WAIT, &b));
    remains.blocks[remains.blocks_held++] = b;
    OK(shmq_spsc_try_reserve(&p->ring.spsc, &p->put.ring.spsc, 8, SHMQ_RAW, SHMQ_RECORD_BLOCK, &record));
    OK(shmq_arena_send(&p->arena, b->page, &b->word, record.position));
    OK(shmq_get(c, &m, SHMQ_NO_WAIT));
    remains.blocks[remains.blocks_held++] = m.block;
    OK(shmq_try_next(c, &record));
    OK(shmq_try_lease(c, &record, NULL, &b, &header));
    remains.blocks[remains.blocks_held++] = b;
    lab_die(p);
    lab_die(c);
}
static void attach_and_reap(shmq_queue *none) {
    (void)none;
    shmq_queue *q;
    OK(shmq_attach(rig.fd, &q));
}
static void check_remains(bool finished) {
    (void)finished;
    while (remains.blocks_held > 0) free(remains.blocks[--remains.blocks_held]);
    lab_bury(remains.producer);
    lab_bury(remains.consumer);
    CHECK_EQ(lab_stats(rig.survivor).pages[SHMQ_PAGE_INFLIGHT], 2);
    for (uint64_t i = 2; i <= 4; i++) expect(i);
    check_clean();
    for (uint32_t i = 1; i < 8; i++) /* every slot can be used again */
        CHECK_EQ(rig.survivor->segment.peers[i].word & 0xff, SHMQ_PEER_FREE);
}
TEST(death_of_a_reaper) {
    die_everywhere(&(struct death){two_deaths, NULL, attach_and_reap, check_remains, true, 80});
}

/* -- the creator -- */

TEST(death_of_a_creator) {
    shmq_params params = tiny;
    params.first_cursor = UINT64_C(0) - 16;
    for (uint64_t n = 0;; n++) {
        int fd = lab_object();
        pid_t pid = fork_child();
        if (pid == 0) {
            shmq_queue *q;
            arm(n, die);
            OK(shmq_create(fd, &params, &q));
            if (disarm()) _exit(0);
            die();
        }
        int status;
        CHECK_EQ(waitpid(pid, &status, 0), pid);
        bool finished = WIFEXITED(status);
        shmq_queue *q;
        int attached = shmq_attach(fd, &q);
        CHECK(attached == SHMQ_OK || (attached == SHMQ_NOT_READY && !finished));
        if (attached == SHMQ_OK) { /* ready means ready */
            CHECK_EQ(load_relaxed(&q->control->tail.cursor), params.first_cursor);
            rig.survivor = q;
            check_clean();
            shmq_free(q);
        }
        close(fd);
        if (finished) {
            CHECK(n > 20);
            return;
        }
    }
}

/* Until it is in the table, the entry is the post-mortem of the dead one before it, or nobody's. */
TEST(death_of_a_newcomer) {
    shmq_params two = tiny;
    two.peers = 2;
    shared = lab_shared(sizeof *shared);
    uint64_t n = 0;
    for (bool finished = false; !finished; n++) {
        shmq_peer_info dead[2];
        uint32_t count;
        store32_release(&shared->finished, 0);
        rig.fd = lab_object();
        rig.survivor = lab_create(rig.fd, &two);
        pid_t first = fork_child();
        if (first == 0) {
            (void)lab_attach(rig.fd);
            die();
        }
        join_child(first, SIGKILL);
        CHECK_EQ(lab_reap(rig.survivor), 1);
        pid_t second = fork_child();
        if (second == 0) {
            arm(n, die);
            CHECK_EQ(lab_attach(rig.fd)->me.index, 1);
            if (disarm()) store32_release(&shared->finished, 1);
            die();
        }
        join_child(second, SIGKILL);
        finished = load32_acquire(&shared->finished) != 0;
        OK(shmq_get_dead(rig.survivor, dead, 2, &count));
        bool joined = lab_reap(rig.survivor) == 1;
        if (joined) CHECK_EQ(count, 1);
        if (count == 1) CHECK_EQ(dead[0].pid, joined ? second : first);
        shmq_free(rig.survivor);
        close(rig.fd);
    }
    CHECK(n > 30);
    munmap(shared, sizeof *shared);
}

/* ---- company ---- */

static struct shmq_peer recording;

/* All events, numbers `first` and following, at that second. */
static void record_all(uint64_t first, uint64_t second, uint32_t op) {
    for (uint64_t i = 0; i < SHMQ_EVENTS; i++) {
        store_release(&recording.events[i].when, second << 36 | (first + i));
        store_release(&recording.events[i].what, op | ((first + i) & 0xff) << 8);
    }
}
static void overtake(void) { record_all(256, 9, SHMQ_OP_GET); } /* the same low bits */

TEST(company_while_a_recorder_is_read) {
    bool missed = false;
    uint64_t n = 0;
    for (; !missed; n++) {
        shmq_event_info events[SHMQ_EVENTS];
        record_all(0, 1, SHMQ_OP_PUT);
        arm(n, overtake);
        uint32_t found = shmq_recorder_read(&recording, events);
        missed = disarm();
        CHECK(found >= SHMQ_EVENTS - 1);
        for (uint32_t i = 0; i < found; i++)
            CHECK_EQ(events[i].time_ns, UINT64_C(1000000000) * (events[i].op == SHMQ_OP_PUT ? 1 : 9));
    }
    CHECK(n > 3 * SHMQ_EVENTS);
}

/* A producer, a consumer, and a third peer.  Messages bear the numbers sent + 1, sent + 2, ... */
static struct {
    int fd;
    shmq_queue *producer, *consumer, *third;
    uint64_t sent, received;
    bool putting;
    shmq_message held;
    shmq_block *taken;
} trio;

static void trio_put(uint64_t bytes) {
    OK(lab_put(trio.producer, trio.sent + 1, bytes, SHMQ_NO_WAIT));
    trio.sent += 1;
}
static void trio_get(shmq_message *m) {
    OK(shmq_get(trio.consumer, m, SHMQ_NO_WAIT));
    CHECK_EQ(message_number(m->data, m->bytes), trio.received + 1);
    trio.received += 1;
}
/* Takes what is there. */
static void trio_drain(void) {
    shmq_message m;
    int status;
    while ((status = shmq_get(trio.consumer, &m, SHMQ_NO_WAIT)) == SHMQ_OK) {
        CHECK_EQ(message_number(m.data, m.bytes), trio.received + 1);
        trio.received += 1;
        shmq_message_release(&m);
    }
    CHECK_EQ(status, SHMQ_EMPTY);
}

/* Whatever the other side is in the middle of, an onlooker sees a segment without contradictions: as many
 * messages as the counters say, each of them whole. */
static void company_looks(void) {
    uint8_t buffer[BLOCK_BYTES];
    shmq_peeked p;
    shmq_peer_info peers[8];
    uint32_t n;
    uint64_t waiting = 0;
    int status;
    OK(shmq_validate(trio.third));
    shmq_stats s = lab_stats(trio.third);
    OK(shmq_get_peers(trio.third, peers, 8, &n));
    while ((status = shmq_peek(trio.third, (uint32_t)waiting, buffer, sizeof buffer, &p)) == SHMQ_OK) {
        (void)message_number(buffer, p.copied_bytes);
        waiting++;
    }
    /* A consumer in its get has leased the first message and not released it yet: that one is "taken". */
    CHECK_EQ(status, SHMQ_EMPTY);
    CHECK(waiting == 0 || s.messages_put - s.messages_got == waiting);
    CHECK(s.messages_put - s.messages_got <= trio.sent + trio.putting - trio.received);
}
static void company_gets(void) { trio_drain(); }
static void company_puts(void) {
    trio_put(100);
    trio_put(BLOCK_BYTES);
}
static void company_comes_and_goes(void) {
    shmq_queue *q = lab_attach(trio.fd);
    OK(shmq_validate(q));
    shmq_free(q);
}
static void company_reaps(void) { CHECK_EQ(lab_reap(trio.third), 0); }
static void company_wants_the_roles(void) {
    shmq_message m;
    CHECK_EQ(shmq_put(trio.third, "x", 1, SHMQ_NO_WAIT), SHMQ_ROLE_TAKEN);
    CHECK_EQ(shmq_get(trio.third, &m, SHMQ_NO_WAIT), SHMQ_ROLE_TAKEN);
}

/* Takes the pages that the other was just about to take, and keeps them. */
static void company_takes_pages(void) {
    OK(shmq_try_loan(trio.third, 2 * SHMQ_SMALL_PAGE, &trio.taken));
    memset(trio.taken->data, 0x77, 2 * SHMQ_SMALL_PAGE);
}
static void give_pages_back(void) {
    const uint8_t *memory = trio.taken != NULL ? trio.taken->data : NULL;
    for (uint64_t i = 0; memory != NULL && i < 2 * SHMQ_SMALL_PAGE; i++) CHECK_EQ(memory[i], 0x77);
    shmq_block_release(trio.taken);
}

static void act_put_inline(void) {
    trio.putting = true;
    trio_put(100);
    trio.putting = false;
}
static void act_put_block(void) {
    trio.putting = true;
    trio_put(BLOCK_BYTES);
    trio.putting = false;
}
static void act_get(void) {
    shmq_message m;
    trio_get(&m);
    shmq_message_release(&m);
}
static void act_release(void) { shmq_message_release(&trio.held); }
static void act_loan_and_discard(void) { loan_and_discard(trio.producer); }

enum act_side { PRODUCES, CONSUMES };

static void keep_company(void (*act)(void), enum act_side side, uint64_t least_points) {
    void (*const company[])(void) = {company_looks,       company_comes_and_goes,
                                     company_reaps,       company_wants_the_roles,
                                     company_takes_pages, side == PRODUCES ? company_gets : company_puts};
    for (size_t k = 0; k < sizeof company / sizeof *company; k++) {
        for (size_t i = 0; i < STARTS; i++) {
            shmq_params params = tiny;
            params.first_cursor = starts[i];
            uint64_t n = 0;
            for (bool missed = false; !missed; n++) {
                memset(&trio, 0, sizeof trio);
                trio.fd = lab_object();
                trio.producer = lab_create(trio.fd, &params);
                trio.consumer = lab_attach(trio.fd);
                trio.third = lab_attach(trio.fd);
                trio_put(BLOCK_BYTES);
                trio_put(100);
                trio_put(BLOCK_BYTES);
                trio_get(&trio.held);
                arm(n, company[k]);
                act();
                missed = disarm();
                trio_drain();
                CHECK_EQ(trio.received, trio.sent);
                shmq_message_release(&trio.held);
                give_pages_back();
                lab_all_pages_free(trio.third);
                OK(shmq_validate(trio.third));
                shmq_stats s = lab_stats(trio.third);
                CHECK_EQ(s.messages_put, trio.sent);
                CHECK_EQ(s.messages_got, trio.sent);
                shmq_free(trio.producer);
                shmq_free(trio.consumer);
                shmq_free(trio.third);
                close(trio.fd);
            }
            CHECK(n > least_points);
        }
    }
}

TEST(company_during_a_put_in_line) { keep_company(act_put_inline, PRODUCES, 5); }
TEST(company_during_a_put_of_a_block) { keep_company(act_put_block, PRODUCES, 15); }
TEST(company_during_a_get) { keep_company(act_get, CONSUMES, 5); }
TEST(company_during_a_release) { keep_company(act_release, CONSUMES, 5); }
TEST(company_during_a_loan_that_is_discarded) { keep_company(act_loan_and_discard, PRODUCES, 15); }

/* ---- sleep ---- */

static struct {
    int fd;
    shmq_queue *producer, *consumer;
    shmq_message held;
} pair;

static void pair_open(void) {
    shmq_params params = tiny;
    params.arena_bytes = SHMQ_SMALL_PAGE;
    pair.fd = lab_object();
    pair.producer = lab_create(pair.fd, &params);
    pair.consumer = lab_attach(pair.fd);
    /* Straight to sleep: spinning only adds points. */
    store_relaxed(&pair.producer->put.waiter.spin_ns, 0);
    store_relaxed(&pair.consumer->get.waiter.spin_ns, 0);
}
static void pair_close(void) {
    shmq_free(pair.producer);
    shmq_free(pair.consumer);
    close(pair.fd);
}

static void put_seven(void) { OK(lab_put(pair.producer, 7, 16, SHMQ_NO_WAIT)); }
static void put_seven_and_shut_down(void) {
    put_seven();
    OK(shmq_shutdown(pair.producer, 0));
}
static void just_shut_down(void) { OK(shmq_shutdown(pair.producer, 0)); }
static void get_anything(void) {
    uint64_t number;
    OK(lab_get(pair.consumer, &number, SHMQ_NO_WAIT));
}
static void release_held(void) { shmq_message_release(&pair.held); }

/* Whatever makes it ready comes at every point of a blocked get or put: slices last an hour here, so a wake-up
 * that is lost is a hang. */
TEST(a_put_at_every_point_of_a_blocked_get) {
    uint64_t n = 0, number = 0;
    for (bool missed = false; !missed; n++) {
        pair_open();
        arm(n, put_seven);
        OK(lab_get(pair.consumer, &number, SHMQ_FOREVER));
        CHECK_EQ(number, 7);
        missed = disarm();
        pair_close();
    }
    CHECK(n > 12);
}

TEST(a_get_at_every_point_of_a_blocked_put) {
    uint64_t n = 0;
    for (bool missed = false; !missed; n++) {
        pair_open();
        for (int i = 0; i < 3; i++) OK(lab_put(pair.producer, 1, 1024, SHMQ_NO_WAIT));
        arm(n, get_anything);
        OK(lab_put(pair.producer, 2, 1024, SHMQ_FOREVER));
        missed = disarm();
        pair_close();
    }
    CHECK(n > 12);
}

TEST(a_release_at_every_point_of_a_blocked_loan) {
    uint64_t n = 0;
    for (bool missed = false; !missed; n++) {
        shmq_block *b;
        pair_open();
        OK(lab_put(pair.producer, 1, SHMQ_SMALL_PAGE, SHMQ_NO_WAIT)); /* the only page */
        OK(shmq_get(pair.consumer, &pair.held, SHMQ_NO_WAIT));
        arm(n, release_held);
        OK(shmq_loan(pair.producer, 1, SHMQ_FOREVER, &b));
        missed = disarm();
        shmq_block_release(b);
        pair_close();
    }
    CHECK(n > 12);
}

/* Drained means drained: what was put before the shutdown is delivered, whenever it came. */
TEST(a_shutdown_at_every_point_of_a_get) {
    for (int blocking = 0; blocking < 2; blocking++) {
        uint64_t n = 0, number;
        for (bool missed = false; !missed; n++) {
            pair_open();
            arm(n, put_seven_and_shut_down);
            int status = lab_get(pair.consumer, &number, blocking ? SHMQ_FOREVER : SHMQ_NO_WAIT);
            if (blocking) CHECK_EQ(status, SHMQ_OK);
            missed = disarm();
            if (missed && !blocking) put_seven();
            if (status != SHMQ_OK) {
                CHECK_EQ(status, SHMQ_EMPTY);
                OK(lab_get(pair.consumer, &number, SHMQ_NO_WAIT));
            }
            CHECK_EQ(number, 7);
            pair_close();
        }
        CHECK(n > 5);
        n = 0;
        for (bool missed = false; !missed; n++) {
            pair_open();
            arm(n, just_shut_down);
            int status = lab_get(pair.consumer, &number, blocking ? SHMQ_FOREVER : SHMQ_NO_WAIT);
            missed = disarm();
            CHECK(status == SHMQ_SHUT_DOWN || (!blocking && status == SHMQ_EMPTY));
            pair_close();
        }
        CHECK(n > 5);
    }
}

int main(int argc, char **argv) { return run_tests(argc, argv); }
