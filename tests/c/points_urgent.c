/* Death, and company, at every point of what is done on a queue with two lanes; see points.c.
 *
 * In the bulk lane wait 1 (a block) and 2, in the urgent one 3 (a block) and 4.  `one` acts, or the child that dies;
 * what it puts is 5.  Whatever happens, and whenever: none is lost, none comes twice, each lane keeps its order. */
#define _GNU_SOURCE
#include "points.h"

#define BLOCK_BYTES (2 * SHMQ_SMALL_PAGE + 100)
enum { BULK, URGENT, LANES, NUMBERS = 8 };

static struct {
    int fd;
    shmq_queue *one, *other, *third;
    uint32_t put[NUMBERS], got[NUMBERS]; /* how often, by number */
} world;

static struct {
    shmq_a32 finished;
    shmq_a64 noted; /* what the dead one knew that it had */
} *shared;

static int lane_of(uint64_t number) { return number >= 3 ? URGENT : BULK; } /* of the first four */

static int put_in(shmq_queue *q, int lane, uint64_t number, uint64_t bytes) {
    uint8_t message[BLOCK_BYTES]; /* its own: company may put meanwhile */
    message_write(message, number, bytes);
    OK(shmq_set_priority(q, lane));
    int status = shmq_put(q, message, bytes, SHMQ_NO_WAIT);
    OK(shmq_set_priority(q, BULK));
    if (status == SHMQ_OK) world.put[number] += 1;
    return status;
}
static int take(shmq_queue *q, uint64_t *number) {
    shmq_message m;
    shmq_delivery d;
    if (q->pending.count == 0) return lab_get(q, number, SHMQ_NO_WAIT);
    int status = shmq_lease(q, &m, &d, SHMQ_NO_WAIT);
    if (status != SHMQ_OK) return status;
    *number = message_number(m.data, m.bytes);
    OK(shmq_ack(q, &d));
    shmq_message_release(&m);
    return SHMQ_OK;
}
static bool takes(shmq_queue *q) {
    uint64_t number;
    int status = take(q, &number);
    if (status != SHMQ_OK) {
        CHECK_EQ(status, SHMQ_EMPTY);
        return false;
    }
    world.got[number] += 1;
    return true;
}

static void set_up(bool leases, uint64_t first_cursor) {
    shmq_params params = tiny;
    params.kind = SHMQ_KIND_MPMC;
    params.priority = 1;
    params.first_cursor = first_cursor;
    params.max_unacked = leases ? 4 : 0;
    memset(&world, 0, sizeof world);
    world.fd = lab_object();
    world.third = lab_create(world.fd, &params);
}
static void put_four(void) {
    OK(put_in(world.third, BULK, 1, BLOCK_BYTES));
    OK(put_in(world.third, BULK, 2, 100));
    OK(put_in(world.third, URGENT, 3, BLOCK_BYTES));
    OK(put_in(world.third, URGENT, 4, 100));
}
static void tear_down(void) {
    shmq_stats s = lab_stats(world.third);
    CHECK_EQ(s.messages_put, s.messages_got);
    CHECK_EQ(s.urgent, 0);
    CHECK(shmq_ring_untouched(&world.third->ring));
    lab_all_pages_free(world.third);
    OK(shmq_validate(world.third));
    shmq_free(world.third);
    close(world.fd);
}

/* ---- death ---- */

struct death {
    void (*before)(shmq_queue *child);
    void (*act)(shmq_queue *child);
    int puts;       /* the lane that its act puts 5 into, or LANES */
    uint64_t takes; /* the number that its act takes, or 0 */
    uint64_t points;
    bool leases;
};

/* What is left, in the order in which it comes: urgent ones, then the others. */
static void check_the_rest(const struct death *d, bool finished) {
    uint64_t number, noted = load_acquire(&shared->noted), last[LANES] = {0};
    int lane = URGENT;
    for (int status; (status = take(world.third, &number)) != SHMQ_EMPTY;) {
        OK(status);
        int of = number == 5 ? d->puts : lane_of(number);
        CHECK(number != noted && number > last[of]);     /* once, and in order */
        CHECK(of == lane || lane == URGENT);             /* no urgent one behind a bulk one ... */
        if (!d->leases || number != d->takes) lane = of; /* ... but what comes again comes first */
        last[of] = number;
        world.got[number] += 1;
    }
    if (finished) CHECK_EQ(noted, d->takes);
    /* Taken and not noted: gone, at most once; or, where it was to be acknowledged, back unless it was. */
    for (uint64_t i = 1; i <= 4; i++) CHECK(world.got[i] == 1 || i == d->takes);
    CHECK(!finished || d->puts == LANES || world.got[5] == 1);
}

/* A lease that was acked before the death is gone; the note comes behind. */
static void die_everywhere(const struct death *d) {
    static const uint64_t starts[] = {0, UINT64_C(0) - 8};
    shared = lab_shared(sizeof *shared);
    for (size_t s = 0; s < sizeof starts / sizeof *starts; s++) {
        uint64_t n = 0;
        for (bool finished = false; !finished; n++) {
            set_up(d->leases, starts[s]);
            put_four();
            memset((void *)shared, 0, sizeof *shared);
            pid_t pid = fork_child();
            if (pid == 0) {
                shmq_queue *q = lab_attach(world.fd);
                if (d->before != NULL) d->before(q);
                arm(n, die);
                d->act(q);
                if (disarm()) store32_release(&shared->finished, 1);
                die();
            }
            join_child(pid, SIGKILL);
            finished = load32_acquire(&shared->finished) != 0;
            CHECK_EQ(lab_reap(world.third), 1);
            check_the_rest(d, finished);
            tear_down();
        }
        CHECK(n > d->points);
    }
    munmap((void *)shared, sizeof *shared);
}

static void puts_inline(shmq_queue *q, int lane) { OK(put_in(q, lane, 5, 100)); }
static void puts_block(shmq_queue *q, int lane) { OK(put_in(q, lane, 5, BLOCK_BYTES)); }
static void puts_bulk(shmq_queue *q) { puts_inline(q, BULK); }
static void puts_urgent(shmq_queue *q) { puts_inline(q, URGENT); }
static void puts_bulk_block(shmq_queue *q) { puts_block(q, BULK); }
static void puts_urgent_block(shmq_queue *q) { puts_block(q, URGENT); }
static void takes_and_notes(shmq_queue *q) {
    uint64_t number;
    OK(take(q, &number));
    store_release(&shared->noted, number);
}
static void had_its_turn(shmq_queue *q) { q->get.ring.in_a_row = 16; }
static void takes_and_puts_back(shmq_queue *q) {
    struct shmq_record r;
    const struct shmq_block_header *h;
    shmq_block *b;
    OK(shmq_get_begin(q));
    OK(shmq_try_next(q, &r));
    OK(shmq_try_lease(q, &r, NULL, &b, &h));
    shmq_unlease(b, &r);
    shmq_put_back(q, NULL);
}

TEST(death_in_an_urgent_put) { die_everywhere(&(struct death){NULL, puts_urgent, URGENT, 0, 5, false}); }
TEST(death_in_a_bulk_put) { die_everywhere(&(struct death){NULL, puts_bulk, BULK, 0, 5, false}); }
TEST(death_in_an_urgent_put_of_a_block) {
    die_everywhere(&(struct death){NULL, puts_urgent_block, URGENT, 0, 15, false});
}
TEST(death_in_a_bulk_put_of_a_block) {
    die_everywhere(&(struct death){NULL, puts_bulk_block, BULK, 0, 15, false});
}
TEST(death_in_an_urgent_get) { die_everywhere(&(struct death){NULL, takes_and_notes, LANES, 3, 15, false}); }
TEST(death_in_a_bulk_get) {
    die_everywhere(&(struct death){had_its_turn, takes_and_notes, LANES, 1, 15, false});
}
TEST(death_in_an_urgent_put_back) {
    die_everywhere(&(struct death){NULL, takes_and_puts_back, LANES, 0, 15, false});
}
TEST(death_in_a_bulk_put_back) {
    die_everywhere(&(struct death){had_its_turn, takes_and_puts_back, LANES, 0, 15, false});
}
TEST(death_in_an_urgent_put_to_be_acked) {
    die_everywhere(&(struct death){NULL, puts_urgent_block, URGENT, 0, 15, true});
}
TEST(death_in_an_urgent_lease) { die_everywhere(&(struct death){NULL, takes_and_notes, LANES, 3, 30, true}); }
TEST(death_in_a_bulk_lease) {
    die_everywhere(&(struct death){had_its_turn, takes_and_notes, LANES, 1, 30, true});
}

/* ---- company ---- */

static void takes_one(void) { (void)takes(world.other); }
static void takes_all(void) {
    while (takes(world.other)) {}
}
static void puts_in_both(void) {
    (void)put_in(world.other, BULK, 6, 100);
    (void)put_in(world.other, URGENT, 7, BLOCK_BYTES);
}
static void puts_and_takes(void) {
    puts_in_both();
    takes_all();
}
static void looks_and_repairs(void) {
    OK(shmq_validate(world.other));
    CHECK_EQ(lab_reap(world.other), 0);
}
static void (*const companies[])(void) = {takes_one, takes_all, puts_in_both, puts_and_takes,
                                          looks_and_repairs};

static void one_puts(void) { puts_urgent(world.one); }
static void one_puts_a_block(void) { puts_urgent_block(world.one); }
static void one_puts_bulk(void) { puts_bulk_block(world.one); }
static void one_takes(void) { (void)takes(world.one); }
static void one_takes_in_turn(void) {
    had_its_turn(world.one);
    (void)takes(world.one);
}
static void one_takes_all(void) {
    while (takes(world.one)) {}
}
static void one_puts_back(void) {
    struct shmq_record r;
    OK(shmq_get_begin(world.one));
    int status = shmq_try_next(world.one, &r);
    if (status == SHMQ_OK) shmq_put_back(world.one, NULL);
}
static void one_looks(void) {
    shmq_stats s;
    OK(shmq_validate(world.one));
    OK(shmq_get_stats(world.one, &s));
    CHECK(s.urgent <= s.urgent_slots && s.messages_got <= s.messages_put);
    CHECK(s.urgent + s.ring_used_bytes / world.one->segment.geometry.slot_bytes ==
          s.messages_put - s.messages_got);
}

static void keep_company(void (*act)(void), bool leases, uint64_t least_points) {
    for (size_t k = 0; k < sizeof companies / sizeof *companies; k++) {
        uint64_t n = 0;
        for (bool missed = false; !missed; n++) {
            set_up(leases, UINT64_C(0) - 8);
            put_four();
            world.one = lab_attach(world.fd);
            world.other = lab_attach(world.fd);
            arm(n, companies[k]);
            act();
            missed = disarm();
            while (takes(world.third)) {}
            for (int i = 0; i < NUMBERS; i++) CHECK_EQ(world.got[i], world.put[i]);
            shmq_free(world.one);
            shmq_free(world.other);
            tear_down();
        }
        CHECK(n > least_points);
    }
}

TEST(company_during_an_urgent_put) { keep_company(one_puts, false, 5); }
TEST(company_during_an_urgent_put_of_a_block) { keep_company(one_puts_a_block, false, 15); }
TEST(company_during_a_bulk_put) { keep_company(one_puts_bulk, false, 15); }
TEST(company_during_an_urgent_get) { keep_company(one_takes, false, 15); }
TEST(company_during_a_get_in_turn) { keep_company(one_takes_in_turn, false, 15); }
TEST(company_during_gets_of_all) { keep_company(one_takes_all, false, 40); }
TEST(company_during_a_put_back) { keep_company(one_puts_back, false, 5); }
TEST(company_during_a_look) { keep_company(one_looks, false, 30); }
TEST(company_during_an_urgent_lease) { keep_company(one_takes, true, 30); }
TEST(company_during_leases_of_all) { keep_company(one_takes_all, true, 60); }

/* ---- whoever waits is woken, from either lane ---- */

static int lane;

static void puts_five(void) { OK(put_in(world.other, lane, 5, 100)); }
static void makes_room(void) {
    struct shmq_record r;
    OK(shmq_get_begin(world.other));
    OK(shmq_lanes_try_peek_in(&world.other->ring, &world.other->get.ring, (uint32_t)lane, &r));
    shmq_taken(world.other, 1, r.bytes);
}
static void takes_the_last_there_is(void) { (void)takes(world.other); }

static void one_waits(bool leases) {
    for (lane = BULK; lane < LANES; lane++) {
        uint64_t n = 0;
        for (bool missed = false; !missed; n++) {
            shmq_message m;
            shmq_delivery d;
            set_up(leases, UINT64_C(0) - 8);
            world.one = lab_attach(world.fd);
            world.other = lab_attach(world.fd);
            arm(n, puts_five);
            OK(leases ? shmq_lease(world.one, &m, &d, SHMQ_FOREVER) : shmq_get(world.one, &m, SHMQ_FOREVER));
            missed = disarm();
            CHECK_EQ(message_number(m.data, m.bytes), 5);
            if (leases) OK(shmq_ack(world.one, &d));
            shmq_message_release(&m);
            shmq_free(world.one);
            shmq_free(world.other);
            tear_down();
        }
        CHECK(n > 12);
    }
}
TEST(a_put_at_every_point_of_a_blocked_get) { one_waits(false); }
TEST(a_put_at_every_point_of_a_blocked_lease) { one_waits(true); }

TEST(room_at_every_point_of_a_blocked_put) {
    for (lane = BULK; lane < LANES; lane++) {
        uint64_t n = 0;
        for (bool missed = false; !missed; n++) {
            set_up(false, UINT64_C(0) - 8);
            world.one = lab_attach(world.fd);
            world.other = lab_attach(world.fd);
            while (put_in(world.third, lane, 1, 100) == SHMQ_OK) {}
            OK(shmq_set_priority(world.one, lane));
            arm(n, makes_room);
            OK(lab_put(world.one, 2, 100, SHMQ_FOREVER));
            missed = disarm();
            while (takes(world.third)) {}
            shmq_free(world.one);
            shmq_free(world.other);
            tear_down();
        }
        CHECK(n > 12);
    }
}

TEST(the_last_ack_at_every_point_of_a_blocked_join) {
    for (lane = BULK; lane < LANES; lane++) {
        uint64_t n = 0;
        for (bool missed = false; !missed; n++) {
            set_up(true, UINT64_C(0) - 8);
            world.one = lab_attach(world.fd);
            world.other = lab_attach(world.fd);
            OK(put_in(world.third, lane, 1, 100));
            arm(n, takes_the_last_there_is);
            OK(shmq_join(world.one, SHMQ_FOREVER));
            missed = disarm();
            shmq_free(world.one);
            shmq_free(world.other);
            tear_down();
        }
        CHECK(n > 8);
    }
}

int main(int argc, char **argv) { return run_tests(argc, argv); }
