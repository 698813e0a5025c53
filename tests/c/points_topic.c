/* Death, and company, at every point of what publishers and subscribers do (see points.c). */
#define _GNU_SOURCE
#include "points.h"

enum { SLOTS = 16, SHORT = 40, BLOCK = SHMQ_SMALL_PAGE + 100, PAGES = 16, HISTORY = 2 };

static const uint64_t starts[] = {0, (SHMQ_LAP_MASK - 1) << 4, UINT64_MAX - 31};
#define STARTS (sizeof starts / sizeof *starts)

/* The publisher and the subscriber that survive, and the subscriber or publisher that something happens to. */
static struct rig {
    int fd;
    shmq_queue *out, *in;
    shmq_queue *other;
    uint64_t next, due; /* numbers: of the next message, and of the next that `in` has to get */
} rig;

static struct {
    shmq_a32 finished;
    shmq_a64 put; /* messages whose publish returned */
} *shared;

static shmq_message held;
static shmq_block *loan;

static void open_rig(uint64_t start, uint32_t policy) {
    shmq_params params = {.ring_bytes = SLOTS * 256,
                          .arena_bytes = PAGES * SHMQ_SMALL_PAGE,
                          .inline_bytes = 224,
                          .first_cursor = start,
                          .peers = 8,
                          .kind = SHMQ_KIND_TOPIC,
                          .policy = policy,
                          .history = HISTORY};
    memset(&rig, 0, sizeof rig);
    rig.fd = lab_object();
    rig.out = lab_create(rig.fd, &params);
    rig.in = lab_attach(rig.fd);
    OK(shmq_subscribe(rig.in, 0));
    rig.next = rig.due = 1;
}

static void close_rig(void) {
    shmq_free(rig.out);
    shmq_free(rig.in);
    close(rig.fd);
}

static void publish(uint64_t bytes) {
    OK(lab_put(rig.out, rig.next, bytes, SHMQ_NO_WAIT));
    rig.next += 1;
}
static void gets_one(void) {
    uint64_t number;
    OK(lab_get(rig.in, &number, SHMQ_NO_WAIT));
    CHECK_EQ(number, rig.due);
    rig.due += 1;
}
static void catch_up(void) {
    while (rig.due < rig.next) gets_one();
    uint64_t number;
    CHECK_EQ(lab_get(rig.in, &number, SHMQ_NO_WAIT), SHMQ_EMPTY);
}

/* Nothing is held but the history, everything works for two laps, and then nothing is held at all. */
static void check_clean(void) {
    catch_up();
    OK(shmq_validate(rig.out));
    for (uint64_t i = 0; i < 2 * SLOTS; i++) {
        publish(i % 3 == 0 ? BLOCK : SHORT);
        gets_one();
    }
    for (int i = 0; i < HISTORY; i++) publish(SHORT);
    catch_up();
    lab_all_pages_free(rig.out);
    CHECK_EQ(lab_stats(rig.out).subscribers, 1);
    OK(shmq_validate(rig.out));
}

/* ---- death ---- */

struct death {
    void (*scene)(void);           /* before the child comes */
    bool subscribes;               /* the child does, before or in the act */
    void (*before)(shmq_queue *q); /* in the child, not to be interrupted */
    void (*act)(shmq_queue *q);    /* cut short at every point */
    uint64_t puts;                 /* messages that the act publishes */
    uint64_t points;               /* at least so many, or the hooks are not there */
};

static void child_lives(const struct death *d, uint64_t n) {
    shmq_queue *q = lab_attach(rig.fd);
    if (d->subscribes) OK(shmq_subscribe(q, HISTORY));
    if (d->before != NULL) d->before(q);
    arm(n, die);
    d->act(q);
    if (disarm()) store32_release(&shared->finished, 1);
    die();
}

static void die_everywhere(const struct death *d) {
    shared = lab_shared(sizeof *shared);
    for (size_t i = 0; i < STARTS; i++) {
        uint64_t n = 0;
        for (bool finished = false; !finished; n++) {
            open_rig(starts[i], SHMQ_BLOCK);
            store32_release(&shared->finished, 0);
            store_release(&shared->put, 0);
            if (d->scene != NULL) d->scene();
            pid_t pid = fork_child();
            if (pid == 0) child_lives(d, n);
            join_child(pid, SIGKILL);
            finished = load32_acquire(&shared->finished) != 0;
            CHECK(lab_reap(rig.out) <= 1); /* it may have left */
            CHECK_EQ(lab_reap(rig.out), 0);
            uint64_t number, put = 0;
            for (; rig.due < rig.next; put++) gets_one(); /* the scene's */
            for (put = 0; lab_get(rig.in, &number, SHMQ_NO_WAIT) == SHMQ_OK; put++)
                CHECK_EQ(number, 1000 + put); /* the dead one's: each one or none, in order */
            CHECK(put >= load_acquire(&shared->put) && put <= d->puts);
            CHECK(!finished || put == d->puts);
            check_clean();
            close_rig();
        }
        CHECK(n > d->points);
    }
    munmap(shared, sizeof *shared);
}

static void scene_two_blocks(void) {
    publish(BLOCK);
    publish(SHORT);
    publish(BLOCK);
    gets_one();
}
static void put(shmq_queue *q, uint64_t bytes) {
    uint64_t number = 1000 + load_relaxed(&shared->put);
    OK(lab_put(q, number, bytes, SHMQ_NO_WAIT));
    store_release(&shared->put, number - 999);
}
static void act_put_in_line(shmq_queue *q) { put(q, SHORT); }
static void act_put_block(shmq_queue *q) { put(q, BLOCK); }
static void act_put_three(shmq_queue *q) { /* the history's blocks go meanwhile */
    put(q, BLOCK);
    put(q, SHORT);
    put(q, BLOCK);
}
static void act_loan_and_discard(shmq_queue *q) {
    OK(shmq_loan(q, BLOCK, SHMQ_NO_WAIT, &loan));
    shmq_block_release(loan);
}
static void act_subscribe(shmq_queue *q) { OK(shmq_subscribe(q, HISTORY)); }
static void act_get(shmq_queue *q) {
    OK(shmq_get(q, &held, SHMQ_NO_WAIT));
    (void)message_number(held.data, held.bytes);
}
static void act_release(shmq_queue *q) {
    (void)q;
    shmq_message_release(&held);
}
static void act_get_and_release(shmq_queue *q) {
    act_get(q);
    act_release(q);
}
static void act_leave(shmq_queue *q) { shmq_free(q); }
static void before_last_to_read(shmq_queue *q) { /* of the newest block, once everyone else has */
    act_get_and_release(q);
    act_get(q);
}

TEST(death_of_a_publisher_in_line) {
    die_everywhere(&(struct death){scene_two_blocks, false, NULL, act_put_in_line, 1, 8});
}
TEST(death_of_a_publisher_with_blocks) {
    die_everywhere(&(struct death){scene_two_blocks, false, NULL, act_put_block, 1, 15});
    die_everywhere(&(struct death){scene_two_blocks, false, act_put_three, act_put_three, 6, 30});
}
TEST(death_of_a_publisher_that_discards) {
    die_everywhere(&(struct death){scene_two_blocks, false, act_put_in_line, act_loan_and_discard, 1, 8});
}
TEST(death_while_subscribing) {
    die_everywhere(&(struct death){scene_two_blocks, false, NULL, act_subscribe, 0, 8});
}
TEST(death_in_a_get) {
    die_everywhere(&(struct death){scene_two_blocks, true, NULL, act_get, 0, 8});
    die_everywhere(&(struct death){scene_two_blocks, true, act_get_and_release, act_get, 0, 8});
}
TEST(death_with_a_view) {
    die_everywhere(&(struct death){scene_two_blocks, true, before_last_to_read, act_release, 0, 8});
}
TEST(death_while_leaving) {
    die_everywhere(&(struct death){scene_two_blocks, true, act_get_and_release, act_leave, 0, 5});
}

/* ---- death of a reaper ---- */

static void act_reap(shmq_queue *q) {
    uint32_t repaired;
    OK(shmq_reap(q, &repaired));
}
static void dead_reader(void) {
    scene_two_blocks();
    pid_t pid = fork_child();
    if (pid == 0) {
        shmq_queue *q = lab_attach(rig.fd);
        OK(shmq_subscribe(q, HISTORY));
        act_get_and_release(q);
        act_get(q);
        die();
    }
    join_child(pid, SIGKILL);
}
static void dead_publisher(void) {
    pid_t pid = fork_child();
    if (pid == 0) {
        struct shmq_record record;
        shmq_block *b;
        shmq_queue *q = lab_attach(rig.fd);
        OK(shmq_loan(q, BLOCK, SHMQ_NO_WAIT, &b));
        OK(shmq_loan(q, BLOCK, SHMQ_NO_WAIT, &loan));
        shmq_arena_share(&q->arena, b->page, b->word);
        OK(shmq_try_reserve(q, 8, SHMQ_RAW, SHMQ_RECORD_BLOCK, &record));
        OK(shmq_arena_send(&q->arena, b->page, &b->word, record.position));
        die();
    }
    join_child(pid, SIGKILL);
    publish(BLOCK);
}

static void reapers_die(void (*scene)(void)) {
    shared = lab_shared(sizeof *shared);
    for (size_t i = 0; i < STARTS; i++) {
        uint64_t n = 0;
        for (bool finished = false; !finished; n++) {
            open_rig(starts[i], SHMQ_BLOCK);
            store32_release(&shared->finished, 0);
            int go[2]; /* the reaper comes first: whoever attaches repairs */
            CHECK_EQ(pipe(go), 0);
            pid_t pid = fork_child();
            if (pid == 0) {
                char byte;
                shmq_queue *q = lab_attach(rig.fd);
                CHECK_EQ(read(go[0], &byte, 1), 1);
                arm(n, die);
                act_reap(q);
                if (disarm()) store32_release(&shared->finished, 1);
                die();
            }
            shmq_peer_info peers[8];
            uint32_t count = 0;
            while (count < 3) OK(shmq_get_peers(rig.out, peers, 8, &count)); /* it is there */
            scene();
            CHECK_EQ(write(go[1], "g", 1), 1);
            join_child(pid, SIGKILL);
            close(go[0]);
            close(go[1]);
            finished = load32_acquire(&shared->finished) != 0;
            CHECK(lab_reap(rig.out) >= 1);
            check_clean();
            close_rig();
        }
        CHECK(n > 30);
    }
    munmap(shared, sizeof *shared);
}

TEST(death_of_a_reaper_of_a_reader) { reapers_die(dead_reader); }
TEST(death_of_a_reaper_of_a_publisher) { reapers_die(dead_publisher); }

/* ---- company ---- */

static void publish_a_ring(void) {
    for (int i = 0; i < SLOTS; i++) publish(i % 4 == 0 ? BLOCK : SHORT);
}
static void publish_three(void) {
    for (int i = 0; i < 3; i++) publish(i == 1 ? BLOCK : SHORT);
}
static void all_read(void) {
    while (rig.due < rig.next) gets_one();
}

static uint64_t last_seen;
static void other_gets(void) {
    shmq_message m;
    int status = shmq_get(rig.other, &m, SHMQ_NO_WAIT);
    if (status == SHMQ_EMPTY) return;
    OK(status);
    uint64_t number = message_number(m.data, m.bytes); /* whole */
    shmq_subscription s;
    OK(shmq_get_subscription(rig.other, &s));
    CHECK(number > last_seen && number < rig.next);
    last_seen = number;
    shmq_message_release(&m);
}
static void other_subscribes(void) { OK(shmq_subscribe(rig.other, HISTORY)); }

static void keep_company(uint32_t policy, bool subscribed, void (*scene)(void), void (*act)(void),
                         void (*meanwhile)(void), uint64_t least) {
    for (size_t i = 0; i < STARTS; i++) {
        bool over = false;
        uint64_t n = 0;
        for (; !over; n++) {
            open_rig(starts[i], policy);
            rig.other = lab_attach(rig.fd);
            last_seen = 0;
            if (subscribed) other_subscribes();
            if (scene != NULL) scene();
            arm(n, meanwhile);
            act();
            over = disarm();
            (void)lab_reap(rig.out);
            for (uint64_t tries = 0; !over && tries < 3 * SLOTS; tries++) other_gets();
            CHECK(over || last_seen + 1 == rig.next); /* up to the last */
            shmq_free(rig.other);
            if (policy == SHMQ_BLOCK) {
                check_clean();
            } else { /* `in` may have missed some */
                uint64_t number;
                while (lab_get(rig.in, &number, SHMQ_NO_WAIT) == SHMQ_OK) CHECK(number < rig.next);
                rig.due = rig.next;
                check_clean();
            }
            close_rig();
        }
        CHECK(n > least);
    }
}

static void one_short(void) { publish(SHORT); }
static void one_block(void) { publish(BLOCK); }
static void block_and_short(void) {
    publish(BLOCK);
    publish(SHORT);
}

TEST(a_ring_is_published_at_every_point_of_a_get) {
    keep_company(SHMQ_DROP_OLDEST, true, one_short, other_gets, publish_a_ring, 8);
    keep_company(SHMQ_DROP_OLDEST, true, one_block, other_gets, publish_a_ring, 12);
}
TEST(others_read_at_every_point_of_a_get) {
    keep_company(SHMQ_BLOCK, true, block_and_short, other_gets, all_read, 12);
}
TEST(a_newcomer_at_every_point_of_a_publish) {
    keep_company(SHMQ_BLOCK, false, block_and_short, one_block, other_subscribes, 12);
}
TEST(publishes_at_every_point_of_a_subscribe) {
    keep_company(SHMQ_BLOCK, false, block_and_short, other_subscribes, publish_three, 5);
    keep_company(SHMQ_DROP_OLDEST, false, block_and_short, other_subscribes, publish_a_ring, 5);
}

int main(int argc, char **argv) { return run_tests(argc, argv); }
