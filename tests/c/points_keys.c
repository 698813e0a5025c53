/* Death, and company, at every point of a put with a key: see points.c.
 *
 * Whatever happens before whichever access: when the dead are repaired and another puts the same key, its message is
 * there once; and the window has the last keys, and no others. */
#define _GNU_SOURCE
#include "points.h"

#define BLOCK_BYTES (2 * SHMQ_SMALL_PAGE + 100)
#define WINDOW 3u
#define THE_KEY 1000u

static struct {
    int fd;
    shmq_queue *survivor, *other;
    uint64_t bytes; /* of the message that has the key */
} rig;
static shmq_a32 *finished; /* by the one that is to die: it came to its end */

static int put_keyed(shmq_queue *q, uint64_t number, uint64_t bytes, uint64_t key, int64_t deadline_ns) {
    static uint8_t messages[2][BLOCK_BYTES]; /* the company's comes in the middle of the other */
    uint8_t *message = messages[q == rig.other];
    message_write(message, number, bytes);
    return shmq_put_keyed(q, message, bytes, key, deadline_ns);
}
static int put_the_key(shmq_queue *q, uint64_t number) {
    return put_keyed(q, number, rig.bytes, THE_KEY, SHMQ_NO_WAIT);
}

/* The window is full, and has gone round: keys 2, 3 and 4 are in it. */
static void set_up(uint64_t bytes) {
    shmq_params params = tiny;
    params.kind = SHMQ_KIND_MPMC;
    params.keys = WINDOW;
    params.first_cursor = UINT64_C(0) - 8;
    rig.bytes = bytes;
    rig.fd = lab_object();
    rig.survivor = lab_create(rig.fd, &params);
    for (uint64_t key = 1; key <= WINDOW + 1; key++) {
        uint64_t number;
        OK(put_keyed(rig.survivor, key, 16, key, SHMQ_NO_WAIT));
        OK(lab_get(rig.survivor, &number, SHMQ_NO_WAIT));
    }
}
static void tear_down(void) {
    shmq_free(rig.survivor);
    close(rig.fd);
}

/* Takes all; how many bear the key. */
static uint64_t drain(void) {
    uint64_t number, n = 0;
    int status;
    while ((status = lab_get(rig.survivor, &number, SHMQ_NO_WAIT)) == SHMQ_OK) n += number >= THE_KEY;
    CHECK_EQ(status, SHMQ_EMPTY);
    return n;
}

/* THE_KEY is in the window now, behind 3 and 4 (or `behind` others), and leaves it when it should. */
static void check_window(uint64_t behind) {
    const struct shmq_keys *k = &rig.survivor->keys;
    CHECK(shmq_keys_vacant(k));
    CHECK(shmq_keys_known(k, THE_KEY));
    for (uint64_t key = 1; key <= WINDOW + 1; key++) CHECK_EQ(shmq_keys_known(k, key), key > 2 + behind);
    for (uint64_t key = 10; key < 10 + WINDOW; key++) {
        CHECK_EQ(put_the_key(rig.survivor, 1), key + behind < 10 + WINDOW ? SHMQ_REPEAT : SHMQ_OK);
        if (key + behind >= 10 + WINDOW) break;
        OK(put_keyed(rig.survivor, key, 16, key, SHMQ_NO_WAIT));
    }
    (void)drain();
    lab_all_pages_free(rig.survivor);
    OK(shmq_validate(rig.survivor));
}

static bool join_the_dead(pid_t pid) {
    join_child(pid, SIGKILL);
    return load32_acquire(finished) != 0;
}
static void die_after(uint64_t n, void (*act)(shmq_queue *), shmq_queue *q) {
    arm(n, die);
    act(q);
    if (disarm()) store32_release(finished, 1);
    die();
}

/* ---- death ---- */

static void puts_the_key(shmq_queue *q) { OK(put_the_key(q, THE_KEY)); }

static void die_while_putting(uint64_t bytes, uint64_t least_points) {
    uint64_t n = 0;
    finished = lab_shared(sizeof *finished);
    for (bool end = false; !end; n++) {
        set_up(bytes);
        store32_release(finished, 0);
        pid_t pid = fork_child();
        if (pid == 0) die_after(n, puts_the_key, lab_attach(rig.fd));
        end = join_the_dead(pid);
        CHECK_EQ(lab_reap(rig.survivor), 1);
        int status = put_the_key(rig.survivor, THE_KEY + 1);
        CHECK(status == SHMQ_OK || status == SHMQ_REPEAT);
        CHECK(!end || status == SHMQ_REPEAT);
        CHECK_EQ(put_the_key(rig.survivor, THE_KEY + 2), SHMQ_REPEAT);
        CHECK_EQ(drain(), 1);
        check_window(0);
        tear_down();
    }
    CHECK(n > least_points);
}
TEST(death_of_a_producer_with_a_key) { die_while_putting(100, 20); }
TEST(death_of_a_producer_with_a_key_and_a_block) { die_while_putting(BLOCK_BYTES, 30); }

static void repeats_the_key(shmq_queue *q) { CHECK_EQ(put_the_key(q, THE_KEY), SHMQ_REPEAT); }
static void die_while_repeating(uint64_t bytes, uint64_t least_points) {
    uint64_t n = 0;
    finished = lab_shared(sizeof *finished);
    for (bool end = false; !end; n++) {
        set_up(bytes);
        OK(put_the_key(rig.survivor, THE_KEY));
        store32_release(finished, 0);
        pid_t pid = fork_child();
        if (pid == 0) die_after(n, repeats_the_key, lab_attach(rig.fd));
        end = join_the_dead(pid);
        CHECK_EQ(lab_reap(rig.survivor), 1);
        CHECK_EQ(drain(), 1);
        check_window(0);
        tear_down();
    }
    CHECK(n > least_points);
}
TEST(death_of_a_producer_that_repeats) { die_while_repeating(100, 8); }
TEST(death_of_a_producer_that_repeats_a_block) { die_while_repeating(BLOCK_BYTES, 4); }

/* What came of a put that found no room: nothing, whoever died over it. */
static void finds_no_room(shmq_queue *q) { CHECK_EQ(put_the_key(q, THE_KEY), SHMQ_FULL); }
TEST(death_of_a_producer_that_finds_no_room) {
    uint64_t n = 0, number;
    finished = lab_shared(sizeof *finished);
    for (bool end = false; !end; n++) {
        set_up(100);
        while (lab_put(rig.survivor, 1, 100, SHMQ_NO_WAIT) == SHMQ_OK) {}
        store32_release(finished, 0);
        pid_t pid = fork_child();
        if (pid == 0) die_after(n, finds_no_room, lab_attach(rig.fd));
        end = join_the_dead(pid);
        CHECK_EQ(lab_reap(rig.survivor), 1);
        OK(lab_get(rig.survivor, &number, SHMQ_NO_WAIT));
        OK(put_the_key(rig.survivor, THE_KEY));
        CHECK_EQ(drain(), 1);
        check_window(0);
        tear_down();
    }
    CHECK(n > 10);
}

/* -- a reaper: the remains of one that died so many accesses into its put, or so many into the repair of that -- */

static void attaches(shmq_queue *none) {
    shmq_queue *q;
    (void)none;
    OK(shmq_attach(rig.fd, &q));
}
static void die_while_repairing(uint64_t bytes) {
    finished = lab_shared(sizeof *finished);
    bool whole = false;
    for (uint64_t m = 0; !whole; m++) { /* accesses of the put */
        bool end = false;
        for (uint64_t n = m % 5; !end; n += 5) { /* ... and of its repair: of all pairs one in five */
            set_up(bytes);
            store32_release(finished, 0);
            pid_t pid = fork_child();
            if (pid == 0) die_after(m, puts_the_key, lab_attach(rig.fd));
            whole = join_the_dead(pid);
            store32_release(finished, 0);
            pid = fork_child();
            if (pid == 0) die_after(n, attaches, NULL);
            end = join_the_dead(pid);
            (void)lab_reap(rig.survivor);
            int status = put_the_key(rig.survivor, THE_KEY + 1);
            CHECK(status == SHMQ_OK || status == SHMQ_REPEAT);
            CHECK(!whole || status == SHMQ_REPEAT);
            CHECK_EQ(drain(), 1);
            check_window(0);
            tear_down();
        }
    }
}
TEST(death_of_a_reaper_of_a_turn) { die_while_repairing(100); }

/* ---- company ---- */

static int others_status;
static void other_puts_the_key(void) { others_status = put_the_key(rig.other, THE_KEY + 1); }
static void other_puts_another_key(void) {
    others_status = put_keyed(rig.other, 20, 100, 20, SHMQ_NO_WAIT);
    if (others_status == SHMQ_KEYS_BUSY) return;
    OK(others_status);
    CHECK_EQ(put_keyed(rig.other, 20, 100, 20, SHMQ_NO_WAIT), SHMQ_REPEAT);
}
static void other_looks_and_repairs(void) {
    OK(shmq_validate(rig.other));
    CHECK_EQ(lab_reap(rig.other), 0);
    shmq_free(lab_attach(rig.fd));
}

static void keep_company(uint64_t bytes, void (*company)(void), uint64_t least_points) {
    uint64_t n = 0;
    for (bool missed = false; !missed; n++) {
        set_up(bytes);
        rig.other = lab_attach(rig.fd);
        others_status = SHMQ_EMPTY;
        arm(n, company);
        int status = put_the_key(rig.survivor, THE_KEY);
        missed = disarm();
        CHECK(status == SHMQ_OK || status == SHMQ_REPEAT);
        if (company == other_puts_the_key && !missed) {
            bool beaten = others_status == SHMQ_OK;
            CHECK(beaten || others_status == SHMQ_KEYS_BUSY || others_status == SHMQ_REPEAT);
            CHECK_EQ(status, beaten ? SHMQ_REPEAT : SHMQ_OK);
        } else {
            OK(status);
        }
        bool another = company == other_puts_another_key && others_status == SHMQ_OK;
        CHECK_EQ(put_the_key(rig.other, THE_KEY + 2), SHMQ_REPEAT);
        CHECK_EQ(drain(), 1);
        shmq_free(rig.other);
        if (!another) check_window(0);
        else CHECK(shmq_keys_known(&rig.survivor->keys, THE_KEY) && shmq_keys_known(&rig.survivor->keys, 20));
        lab_all_pages_free(rig.survivor);
        tear_down();
    }
    CHECK(n > least_points);
}
TEST(company_with_the_same_key) { keep_company(100, other_puts_the_key, 20); }
TEST(company_with_the_same_key_and_a_block) { keep_company(BLOCK_BYTES, other_puts_the_key, 30); }
TEST(company_with_another_key) { keep_company(100, other_puts_another_key, 20); }
TEST(company_with_another_key_and_a_block) { keep_company(BLOCK_BYTES, other_puts_another_key, 30); }
TEST(company_that_repairs_during_a_put_with_a_key) { keep_company(100, other_looks_and_repairs, 20); }

/* Slices last an hour here: a wake-up that is lost is a hang. */
static void other_ends_its_turn(void) { shmq_key_end(rig.other); }
static void other_publishes(void) {
    struct shmq_record r;
    OK(shmq_try_reserve(rig.other, 0, SHMQ_RAW, 0, &r));
    shmq_commit(rig.other);
}
static void end_at_every_point_of_a_wait(void (*ends)(void)) {
    uint64_t n = 0;
    for (bool missed = false; !missed; n++) {
        set_up(100);
        store_relaxed(&rig.survivor->put.waiter.spin_ns, 0);
        rig.other = lab_attach(rig.fd);
        OK(shmq_put_begin(rig.other));
        OK(shmq_key_begin(rig.other, 20));
        arm(n, ends);
        OK(put_keyed(rig.survivor, THE_KEY, 100, THE_KEY, SHMQ_FOREVER));
        missed = disarm();
        shmq_free(rig.other);
        tear_down();
    }
    CHECK(n > 60); /* the spins of a try, too */
}
TEST(a_turn_given_up_at_every_point_of_a_wait_for_it) { end_at_every_point_of_a_wait(other_ends_its_turn); }
TEST(a_turn_ended_at_every_point_of_a_wait_for_it) { end_at_every_point_of_a_wait(other_publishes); }

int main(int argc, char **argv) { return run_tests(argc, argv); }
