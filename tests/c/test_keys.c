/* The window of keys: words placed by hand, one act, the exact words; then on a segment, with deaths. */
#define _GNU_SOURCE
#include "lab.h"

#define MOST 16u
#define ME 7u
#define OTHER 9u

static struct {
    uint64_t before[16];
    shmq_a64 chains[MOST];
    struct shmq_key_entry entries[MOST];
    uint64_t beyond[16];
    struct shmq_keys_line line;
} rig __attribute__((aligned(128)));
static struct shmq_keys mine, others;

static void set_up(uint32_t count) {
    memset(&rig, 0, sizeof rig);
    memset(rig.before, 0xbb, sizeof rig.before);
    memset(rig.beyond, 0xbb, sizeof rig.beyond);
    mine = (struct shmq_keys){.line = &rig.line,
                              .chains = rig.chains,
                              .entries = rig.entries,
                              .count = count,
                              .shift = 64,
                              .owner = ME};
    for (uint32_t chains = shmq_key_chains(count); chains > 1; chains /= 2) mine.shift -= 1;
    others = mine;
    others.owner = OTHER;
}

static void check_fences(void) {
    for (size_t i = 0; i < 16; i++)
        CHECK(rig.before[i] == rig.beyond[i] && rig.before[i] == UINT64_C(0xbbbbbbbbbbbbbbbb));
}

static uint64_t turn(uint32_t state, uint32_t owner) { return (uint64_t)state | (uint64_t)owner << 3; }
#define CHECK_TURN(state, owner) CHECK_EQ(load_relaxed(&rig.line.word), turn(SHMQ_KEYS_##state, owner))

static int put(uint64_t hash) {
    int status = shmq_keys_try_begin(&mine, hash);
    if (status != SHMQ_OK) return status;
    shmq_keys_publishing(&mine);
    shmq_keys_published(&mine);
    return SHMQ_OK;
}

/* Hashes of one and the same chain, none twice. */
static uint64_t in_chain(uint64_t i) {
    uint64_t hash = 1;
    for (uint64_t found = 0;; hash++) {
        if (mine.shift < 64 && hash * UINT64_C(0x9e3779b97f4a7c15) >> mine.shift != 0) continue;
        if (found++ == i) return hash;
    }
}

/* ---- the window ---- */

TEST(nothing_is_known_at_first) {
    set_up(3);
    for (uint64_t hash = 0; hash < 100; hash++) CHECK(!shmq_keys_known(&mine, hash));
    CHECK(shmq_keys_vacant(&mine));
    CHECK_EQ((uint64_t)shmq_keys_holder(&mine), (uint64_t)-1);
}

TEST(a_turn_word_by_word) {
    set_up(4);
    OK(shmq_keys_try_begin(&mine, 77));
    CHECK_TURN(HELD, ME);
    CHECK(!shmq_keys_vacant(&mine));
    CHECK_EQ(shmq_keys_holder(&mine), ME);
    CHECK_EQ(load_relaxed(&rig.line.hash), 77);
    CHECK_EQ(load_relaxed(&rig.line.number), 1);
    CHECK_EQ(load_relaxed(&rig.line.count), 0);
    shmq_keys_publishing(&mine);
    CHECK_TURN(PUBLISHING, ME);
    CHECK_EQ(load_relaxed(&rig.line.count), 0);
    CHECK(!shmq_keys_known(&mine, 77));
    shmq_keys_published(&mine);
    CHECK_TURN(FREE, 0);
    CHECK_EQ(load_relaxed(&rig.line.count), 1);
    CHECK_EQ(load_relaxed(&rig.entries[1].hash), 77);
    CHECK_EQ(load_relaxed(&rig.entries[1].before), 0);
    CHECK(shmq_keys_known(&mine, 77));
    CHECK_EQ(put(77), SHMQ_REPEAT);
    CHECK_TURN(FREE, 0);
    CHECK_EQ(load_relaxed(&rig.line.count), 1);
    check_fences();
}

TEST(what_is_given_up_is_not_known) {
    set_up(4);
    OK(shmq_keys_try_begin(&mine, 77));
    shmq_keys_give_up(&mine);
    CHECK_TURN(FREE, 0);
    CHECK(!shmq_keys_known(&mine, 77));
    OK(put(77));
    CHECK(shmq_keys_known(&mine, 77));
}

TEST(one_at_a_time) {
    set_up(4);
    OK(shmq_keys_try_begin(&others, 1));
    CHECK_EQ(shmq_keys_try_begin(&mine, 2), SHMQ_KEYS_BUSY);
    CHECK_EQ(shmq_keys_try_begin(&others, 3), SHMQ_KEYS_BUSY);
    CHECK_TURN(HELD, OTHER);
    CHECK_EQ(load_relaxed(&rig.line.hash), 1);
    shmq_keys_publishing(&others);
    CHECK_EQ(shmq_keys_try_begin(&mine, 2), SHMQ_KEYS_BUSY);
    shmq_keys_published(&others);
    OK(put(2));
    store_relaxed(&rig.line.word, turn(SHMQ_KEYS_PUBLISHING + 1, OTHER));
    CHECK_EQ(shmq_keys_try_begin(&mine, 2), SHMQ_CORRUPT);
    CHECK_EQ(shmq_keys_valid(&mine), SHMQ_CORRUPT);
}

/* Against a list: the last `count` different keys, and no other, whatever the chains. */
static void against_a_list(uint32_t count, uint64_t keys, bool one_chain) {
    uint64_t list[4096], n = 0, seed = count * 1000 + keys;
    uint64_t hashes[64];
    set_up(count);
    for (uint64_t i = 0; i < keys; i++) hashes[i] = one_chain ? in_chain(i) : next_random(&seed);
    for (int i = 0; i < 2000; i++) {
        uint64_t hash = hashes[below(&seed, keys)];
        bool known = false;
        for (uint64_t k = n > count ? n - count : 0; k < n; k++) known |= list[k] == hash;
        CHECK_EQ(shmq_keys_known(&mine, hash), known);
        CHECK_EQ(put(hash), known ? SHMQ_REPEAT : SHMQ_OK);
        if (!known) list[n++] = hash;
        CHECK_EQ(load_relaxed(&rig.line.count), n);
    }
    CHECK(n > count);
    check_fences();
}
TEST(the_last_n_keys_are_known_and_no_others) {
    for (uint32_t count = 1; count <= MOST; count++)
        for (uint64_t keys = count + 1; keys <= 2 * count + 2; keys++) {
            against_a_list(count, keys, false);
            against_a_list(count, keys, true);
        }
}

TEST(a_window_that_began_long_ago) {
    set_up(4);
    store_relaxed(&rig.line.count, UINT64_MAX - 8); /* it never comes so far; nothing breaks there */
    for (uint64_t hash = 1; hash <= 6; hash++) OK(put(hash));
    for (uint64_t hash = 1; hash <= 6; hash++) CHECK_EQ(shmq_keys_known(&mine, hash), hash > 2);
}

/* ---- the dead ---- */

/* Of what R1 to R4 (keys.c) do, the first `steps`, for the key that OTHER is about to publish. */
static void remember_in_part(int steps) {
    uint64_t number = load_relaxed(&rig.line.number), hash = load_relaxed(&rig.line.hash);
    struct shmq_key_entry *e = &rig.entries[number % mine.count];
    shmq_a64 *chain = &rig.chains[mine.shift == 64 ? 0 : hash * UINT64_C(0x9e3779b97f4a7c15) >> mine.shift];
    if (steps > 0) store_relaxed(&e->before, load_relaxed(chain));
    if (steps > 1) store_relaxed(&e->hash, hash);
    if (steps > 2) store_relaxed(chain, number);
    if (steps > 3) store_relaxed(&rig.line.count, number);
}

TEST(a_death_before_publishing_is_forgotten) {
    set_up(2);
    OK(put(1));
    OK(put(2));
    for (int state = SHMQ_KEYS_HELD; state <= SHMQ_KEYS_PUBLISHING; state++) {
        OK(shmq_keys_try_begin(&others, 3));
        if (state == SHMQ_KEYS_PUBLISHING) shmq_keys_publishing(&others);
        shmq_keys_recover(&mine, OTHER, false);
        CHECK_TURN(FREE, 0);
        CHECK(shmq_keys_known(&mine, 1) && shmq_keys_known(&mine, 2) && !shmq_keys_known(&mine, 3));
    }
    /* HELD: whatever is said of the ring, it had not come to publish. */
    OK(shmq_keys_try_begin(&others, 3));
    shmq_keys_recover(&mine, OTHER, true);
    CHECK_TURN(FREE, 0);
    CHECK(shmq_keys_known(&mine, 1) && !shmq_keys_known(&mine, 3));
}

/* However far it came, and its first reaper: exactly once, in its place, and the window stays exact. */
static void a_death_behind_publishing(uint32_t count, bool one_chain, int steps) {
    set_up(count);
    for (uint64_t i = 0; i < count + 2; i++) OK(put(one_chain ? in_chain(i) : 100 + i));
    uint64_t hash = one_chain ? in_chain(count + 2) : 100 + count + 2;
    OK(shmq_keys_try_begin(&others, hash));
    shmq_keys_publishing(&others);
    remember_in_part(steps);
    shmq_keys_recover(&mine, OTHER, true);
    CHECK_TURN(FREE, 0);
    CHECK_EQ(load_relaxed(&rig.line.count), count + 3);
    CHECK_EQ(put(hash), SHMQ_REPEAT);
    for (uint64_t i = 0; i <= count + 2; i++)
        CHECK_EQ(shmq_keys_known(&mine, one_chain ? in_chain(i) : 100 + i), i > 2);
    for (uint64_t i = 0; i < count; i++) {
        CHECK(shmq_keys_known(&mine, hash));
        OK(put(one_chain ? in_chain(count + 3 + i) : 100 + count + 3 + i));
    }
    CHECK(!shmq_keys_known(&mine, hash));
    check_fences();
}
TEST(a_death_behind_publishing_is_made_good_for) {
    for (uint32_t count = 1; count <= 5; count++)
        for (int steps = 0; steps <= 4; steps++) {
            a_death_behind_publishing(count, false, steps);
            a_death_behind_publishing(count, true, steps);
        }
}

TEST(another_s_turn_is_left_alone) {
    set_up(4);
    shmq_keys_recover(&mine, 0, true); /* FREE bears owner 0 */
    CHECK_TURN(FREE, 0);
    CHECK_EQ(load_relaxed(&rig.line.count), 0);
    OK(shmq_keys_try_begin(&others, 3));
    shmq_keys_publishing(&others);
    shmq_keys_recover(&mine, ME, true);
    CHECK_TURN(PUBLISHING, OTHER);
    CHECK_EQ(load_relaxed(&rig.line.count), 0);
}

TEST(garbage_ends) {
    uint64_t seed = 5;
    for (int round = 0; round < 2000; round++) {
        set_up(1 + (uint32_t)below(&seed, MOST));
        for (uint64_t i = 0; i < 5; i++) OK(put(next_random(&seed)));
        for (uint32_t i = 0; i < mine.count; i++) { /* circles, and numbers near the count */
            if (below(&seed, 2) == 0) store_relaxed(&rig.entries[i].before, below(&seed, 8));
            if (below(&seed, 8) == 0) store_relaxed(&rig.chains[i], next_random(&seed));
        }
        if (below(&seed, 4) == 0) store_relaxed(&rig.line.count, next_random(&seed));
        (void)put(next_random(&seed));
        OK(shmq_keys_try_begin(&others, 1));
        shmq_keys_publishing(&others);
        store_relaxed(&rig.line.number, next_random(&seed));
        shmq_keys_recover(&mine, OTHER, true);
        check_fences();
    }
}

/* ---- on a segment ---- */

#define BLOCK_BYTES (3 * SHMQ_SMALL_PAGE)

static struct {
    int fd;
    shmq_queue *survivor, *victim;
} pair;

static void open_pair(uint32_t keys) {
    shmq_params params = tiny;
    params.kind = SHMQ_KIND_MPMC;
    params.keys = keys;
    params.first_cursor = UINT64_C(0) - 8;
    pair.fd = lab_object();
    pair.survivor = lab_create(pair.fd, &params);
    pair.victim = lab_attach(pair.fd);
}
static void close_pair(void) {
    shmq_free(pair.victim);
    shmq_free(pair.survivor);
    close(pair.fd);
}
static int put_keyed(shmq_queue *q, uint64_t number, uint64_t bytes, uint64_t key) {
    static uint8_t message[BLOCK_BYTES];
    message_write(message, number, bytes);
    return shmq_put_keyed(q, message, bytes, key, SHMQ_NO_WAIT);
}
static void expect(uint64_t number) {
    uint64_t found;
    OK(lab_get(pair.survivor, &found, SHMQ_NO_WAIT));
    CHECK_EQ(found, number);
}
static void expect_nothing(void) {
    uint64_t found;
    CHECK_EQ(lab_get(pair.survivor, &found, SHMQ_NO_WAIT), SHMQ_EMPTY);
    lab_all_pages_free(pair.survivor);
    OK(shmq_validate(pair.survivor));
}

TEST(a_repeat_is_dropped_and_counted) {
    open_pair(2);
    for (uint64_t bytes = 100; bytes <= BLOCK_BYTES; bytes += BLOCK_BYTES - 100) {
        OK(put_keyed(pair.survivor, 1, bytes, 5));
        CHECK_EQ(put_keyed(pair.victim, 2, bytes, 5), SHMQ_REPEAT);
        expect(1);
        CHECK_EQ(put_keyed(pair.victim, 3, bytes, 5), SHMQ_REPEAT); /* also when it was taken */
        OK(lab_put(pair.survivor, 4, bytes, SHMQ_NO_WAIT));         /* without a key, as ever */
        expect(4);
        OK(put_keyed(pair.victim, 5, bytes, 0)); /* 0 counts as 1 */
        CHECK_EQ(put_keyed(pair.victim, 6, bytes, 1), SHMQ_REPEAT);
        expect(5);
        OK(put_keyed(pair.victim, 7, bytes, 6)); /* 5 leaves the window */
        expect(7);
        expect_nothing();
        CHECK_EQ(put_keyed(pair.victim, 8, bytes, 1), SHMQ_REPEAT);
        OK(put_keyed(pair.victim, 9, bytes, 7)); /* and 1 */
        expect(9);
    }
    shmq_stats s = lab_stats(pair.survivor);
    CHECK_EQ(s.repeats, 8);
    CHECK_EQ(s.keys, 2);
    CHECK_EQ((uint64_t)s.holds_up_keys, (uint64_t)-1);
    close_pair();
}

TEST(where_there_is_no_window) {
    open_pair(0);
    CHECK_EQ(put_keyed(pair.survivor, 1, 100, 5), SHMQ_INVALID);
    CHECK_EQ(put_keyed(pair.survivor, 1, BLOCK_BYTES, 5), SHMQ_INVALID);
    expect_nothing();
    close_pair();
    shmq_params params = tiny;
    params.keys = 1;
    params.kind = SHMQ_KIND_SPSC;
    CHECK_EQ(shmq_segment_bytes(&params), 0);
    params.kind = SHMQ_KIND_TOPIC;
    CHECK_EQ(shmq_segment_bytes(&params), 0);
    params.kind = SHMQ_KIND_MPMC;
    CHECK(shmq_segment_bytes(&params) > 0);
    params.keys = SHMQ_MAX_KEYS;
    CHECK(shmq_segment_bytes(&params) > 0);
    params.keys = SHMQ_MAX_KEYS + 1;
    CHECK_EQ(shmq_segment_bytes(&params), 0);
}

/* What was not put is not remembered. */
TEST(a_put_that_finds_no_room_may_come_again) {
    open_pair(8);
    uint64_t n = 0, number;
    while (put_keyed(pair.victim, n + 1, 100, n + 1) == SHMQ_OK) n++;
    CHECK_EQ(put_keyed(pair.victim, n + 1, 100, n + 1), SHMQ_FULL);
    CHECK_EQ(put_keyed(pair.victim, n + 1, BLOCK_BYTES, n + 1), SHMQ_FULL);
    CHECK_EQ(put_keyed(pair.victim, n + 1, 100, n), SHMQ_REPEAT); /* a full ring is no reason to wait */
    OK(lab_get(pair.survivor, &number, SHMQ_NO_WAIT));
    OK(put_keyed(pair.victim, n + 1, 100, n + 1));
    CHECK_EQ(put_keyed(pair.victim, n + 1, 100, n + 1), SHMQ_REPEAT);
    for (uint64_t i = 2; i <= n + 1; i++) expect(i);
    expect_nothing();
    shmq_block *all;
    OK(shmq_loan(pair.survivor, 16 * SHMQ_SMALL_PAGE, SHMQ_NO_WAIT, &all));
    CHECK_EQ(put_keyed(pair.victim, 50, BLOCK_BYTES, 50), SHMQ_ARENA_FULL);
    CHECK_EQ(put_keyed(pair.victim, 50, BLOCK_BYTES, n), SHMQ_REPEAT); /* and it takes no pages */
    shmq_block_release(all);
    OK(put_keyed(pair.victim, 50, BLOCK_BYTES, 50));
    expect(50);
    expect_nothing();
    close_pair();
}

/* The same for a block that was copied while another put its key: the loser frees it. */
TEST(who_comes_second_with_a_block_frees_it) {
    open_pair(8);
    shmq_block *b;
    OK(shmq_loan(pair.victim, BLOCK_BYTES, SHMQ_NO_WAIT, &b));
    CHECK(!shmq_key_known(pair.victim, 5));
    OK(put_keyed(pair.survivor, 1, 100, 5));
    CHECK_EQ(shmq_key_begin(pair.victim, 5), SHMQ_REPEAT);
    shmq_block_release(b);
    expect(1);
    expect_nothing();
    close_pair();
}

/* The victim dies in its turn, so far: */
enum stage { BEGUN, RESERVED, ABOUT_TO_PUBLISH, PUBLISHED, STAGES };
static void die_at(enum stage stage, uint64_t key) {
    shmq_queue *v = pair.victim;
    struct shmq_record r;
    OK(shmq_put_begin(v));
    OK(shmq_key_begin(v, key));
    if (stage >= RESERVED) {
        OK(shmq_try_reserve(v, MESSAGE_MIN, SHMQ_RAW, 0, &r));
        message_write(r.payload, 1, MESSAGE_MIN);
    }
    if (stage >= ABOUT_TO_PUBLISH) shmq_keys_publishing(&v->keys);
    if (stage >= PUBLISHED) shmq_ring_commit(&v->ring, &v->put.ring);
    lab_die(v);
}

TEST(a_death_in_a_turn) {
    for (enum stage stage = BEGUN; stage < STAGES; stage++) {
        open_pair(4);
        OK(put_keyed(pair.victim, 7, 100, 77));
        expect(7);
        die_at(stage, 5);
        CHECK_EQ(lab_stats(pair.survivor).holds_up_keys, pair.victim->me.index);
        CHECK_EQ(put_keyed(pair.survivor, 2, 100, 6), SHMQ_KEYS_BUSY);
        OK(lab_put(pair.survivor, 3, 100, SHMQ_NO_WAIT)); /* without a key, others go on */
        CHECK_EQ(lab_reap(pair.survivor), 1);
        CHECK_EQ(put_keyed(pair.survivor, 1, 100, 5), stage == PUBLISHED ? SHMQ_REPEAT : SHMQ_OK);
        CHECK_EQ(put_keyed(pair.survivor, 1, 100, 5), SHMQ_REPEAT);
        CHECK_EQ(put_keyed(pair.survivor, 1, 100, 77), SHMQ_REPEAT);
        if (stage == PUBLISHED) expect(1);
        expect(3);
        if (stage != PUBLISHED) expect(1);
        expect_nothing();
        lab_bury(pair.victim);
        shmq_free(pair.survivor);
        close(pair.fd);
    }
}

/* What the dead published is remembered also where it was taken, and its slot is in use again. */
TEST(a_death_in_a_turn_that_others_have_passed_by) {
    open_pair(4);
    die_at(PUBLISHED, 5);
    expect(1);
    for (uint64_t i = 0; i < 50; i++) {
        OK(lab_put(pair.survivor, 100 + i, 100, SHMQ_NO_WAIT));
        expect(100 + i);
    }
    CHECK_EQ(lab_reap(pair.survivor), 1);
    CHECK_EQ(put_keyed(pair.survivor, 1, 100, 5), SHMQ_REPEAT);
    expect_nothing();
    lab_bury(pair.victim);
    shmq_free(pair.survivor);
    close(pair.fd);
}

/* The next wait repairs, and goes on. */
TEST(who_waits_for_the_turn_of_the_dead_gets_it) {
    static uint8_t message[100];
    open_pair(4);
    die_at(ABOUT_TO_PUBLISH, 5);
    message_write(message, 2, sizeof message);
    OK(shmq_put_keyed(pair.survivor, message, sizeof message, 5, shmq_deadline(60000 * MS)));
    CHECK(lab_stats(pair.survivor).holds_up_keys < 0);
    expect(2);
    expect_nothing();
    lab_bury(pair.victim);
    shmq_free(pair.survivor);
    close(pair.fd);
}

TEST(who_waits_for_the_turn_of_the_living_waits_until_the_deadline) {
    static uint8_t message[100];
    open_pair(4);
    OK(shmq_put_begin(pair.victim));
    OK(shmq_key_begin(pair.victim, 5));
    message_write(message, 2, sizeof message);
    CHECK_EQ(shmq_put_keyed(pair.survivor, message, sizeof message, 6, shmq_deadline(5 * MS)),
             SHMQ_KEYS_BUSY);
    shmq_key_end(pair.victim);
    OK(shmq_put_keyed(pair.survivor, message, sizeof message, 6, shmq_deadline(5 * MS)));
    expect(2);
    expect_nothing();
    close_pair();
}

TEST(whoever_ends_a_turn_wakes) {
    open_pair(4);
    shmq_a32 *armed = &pair.survivor->control->not_full.armed;
    for (int how = 0; how < 3; how++) {
        struct shmq_record r;
        OK(shmq_put_begin(pair.victim));
        if (how < 2) OK(shmq_key_begin(pair.victim, 5 + (uint64_t)how));
        store32_relaxed(armed, SHMQ_ARMED_FUTEX);
        if (how == 0) shmq_key_end(pair.victim);
        if (how == 1) {
            OK(shmq_try_reserve(pair.victim, 0, SHMQ_RAW, 0, &r));
            shmq_commit(pair.victim);
        }
        if (how == 2) CHECK_EQ(shmq_key_begin(pair.victim, 6), SHMQ_REPEAT);
        CHECK_EQ(load32_relaxed(armed), 0);
        CHECK_EQ(pair.victim->put.key, 0);
    }
    close_pair();
}

TEST(nothing_is_put_or_dropped_where_nothing_may_be_put) {
    open_pair(4);
    OK(put_keyed(pair.victim, 1, 100, 5));
    OK(shmq_shutdown(pair.survivor, 0));
    CHECK_EQ(put_keyed(pair.victim, 1, 100, 5), SHMQ_SHUT_DOWN);
    CHECK_EQ(put_keyed(pair.victim, 1, BLOCK_BYTES, 5), SHMQ_SHUT_DOWN);
    shmq_close(pair.victim);
    CHECK_EQ(put_keyed(pair.victim, 1, BLOCK_BYTES, 5), SHMQ_CLOSED);
    close_pair();
}

int main(int argc, char **argv) { return run_tests(argc, argv); }
