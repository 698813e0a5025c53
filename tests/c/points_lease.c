/* Company at every point of a lease: another peer does all that it does before the nth access, for n = 0, 1, 2, ...
 *
 * Messages 1 (a block), 2 (in-line) and 3 (a block) are put.  `one` acts, `other` is the company; whatever they
 * do, and whenever, each message is acknowledged once in the end, none is torn, and no page is left. */
#define _GNU_SOURCE
#include "points.h"

#define BLOCK_BYTES (2 * SHMQ_SMALL_PAGE + 100)
#define MESSAGES 3u

struct lease {
    shmq_message m;
    shmq_delivery d;
    uint64_t number; /* 0: none */
};
static struct {
    int fd;
    shmq_queue *one, *other, *third;
    struct lease ones, others[MESSAGES + 1];
    uint32_t others_have;
    bool overdue; /* the company finds everything overdue */
    uint32_t acks[MESSAGES + 1];
} world;

static void look_at(const struct lease *l) {
    if (l->m.block != NULL) CHECK_EQ(message_number(l->m.data, l->m.bytes), l->number);
}
static void drop(struct lease *l) {
    look_at(l);
    shmq_message_release(&l->m);
}
static void ack(shmq_queue *q, struct lease *l) {
    int status = shmq_ack(q, &l->d);
    CHECK(status == SHMQ_OK || status == SHMQ_STALE || status == SHMQ_CLOSED);
    if (status == SHMQ_OK) world.acks[l->number] += 1;
}
static int lease(shmq_queue *q, struct lease *l) {
    int status = shmq_lease(q, &l->m, &l->d, SHMQ_NO_WAIT);
    l->number = status == SHMQ_OK ? message_number(l->m.data, l->m.bytes) : 0;
    return status;
}

/* ---- the company ---- */

static void make_everything_due(void) {
    struct shmq_pending *p = &world.third->pending;
    for (uint32_t i = 0; i < p->count; i++) {
        uint32_t state = shmq_slot_state(load_acquire(&p->entries[i].word));
        if (state == SHMQ_PENDING_UNACKED || state == SHMQ_PENDING_WAITING)
            store_relaxed(&p->entries[i].due_ns, 0);
    }
    store_relaxed(p->next_due, 0);
}
static bool take_one(void) {
    if (world.others_have > MESSAGES) return false;
    return lease(world.other, &world.others[world.others_have]) == SHMQ_OK;
}
static void takes_one_and_acks(void) {
    if (world.overdue) make_everything_due();
    if (take_one()) ack(world.other, &world.others[world.others_have++]); /* and goes on looking */
}
static void takes_one_and_gives_it_back(void) {
    if (world.overdue) make_everything_due();
    if (take_one()) (void)shmq_nack(world.other, &world.others[world.others_have++].d, 0);
}
static void drops_its_views(void) {
    for (uint32_t i = 0; i < world.others_have; i++) drop(&world.others[i]);
}
static void acks_what_it_has(void) {
    for (uint32_t i = 0; i < world.others_have; i++) ack(world.other, &world.others[i]);
}
static void looks_and_repairs(void) {
    OK(shmq_validate(world.third));
    CHECK_EQ(lab_reap(world.third), 0);
    shmq_queue *q = lab_attach(world.fd);
    shmq_free(q);
}
static void (*const companies[])(void) = {takes_one_and_acks, takes_one_and_gives_it_back, drops_its_views,
                                          acks_what_it_has, looks_and_repairs};

/* ---- the scenes ---- */

static void nothing_was_leased(void) {}
static void one_has_the_first(void) { OK(lease(world.one, &world.ones)); }
static void one_had_a_look(void) {
    one_has_the_first();
    drop(&world.ones);
}
static void one_has_acked(void) {
    one_has_the_first();
    ack(world.one, &world.ones);
}
static void other_gave_it_back(void) {
    takes_one_and_gives_it_back();
    drops_its_views();
}
static void other_gave_it_back_and_looks_on(void) { takes_one_and_gives_it_back(); }
static void other_has_it_for_long(void) {
    CHECK(take_one());
    world.others_have += 1;
    make_everything_due();
}

/* ---- the acts ---- */

static void leases(void) { (void)lease(world.one, &world.ones); }
static void acks(void) { ack(world.one, &world.ones); }
static void drops(void) { drop(&world.ones); }
static void gives_back(void) { (void)shmq_nack(world.one, &world.ones.d, 0); }
static void closes(void) { shmq_close(world.one); }
static void calls_off(void) {
    struct shmq_record r;
    const struct shmq_block_header *h;
    shmq_block *b;
    struct shmq_delivery d;
    OK(shmq_get_begin(world.one));
    if (shmq_lease_begin(world.one, &d, &r, &b, &h) == SHMQ_OK) shmq_lease_cancel(world.one, &d, &r, b);
}

static void set_up(void) {
    shmq_params params = tiny;
    params.kind = SHMQ_KIND_MPMC;
    params.max_unacked = MESSAGES + 2;
    params.visibility_ns = UINT64_C(3600000000000); /* make_everything_due brings it on */
    memset(&world.ones, 0, sizeof world - offsetof(__typeof__(world), ones));
    world.fd = lab_object();
    world.one = lab_create(world.fd, &params);
    world.other = lab_attach(world.fd);
    world.third = lab_attach(world.fd);
    OK(lab_put(world.third, 1, BLOCK_BYTES, SHMQ_NO_WAIT));
    OK(lab_put(world.third, 2, 100, SHMQ_NO_WAIT));
    OK(lab_put(world.third, 3, BLOCK_BYTES, SHMQ_NO_WAIT));
}

/* Everyone acks what it has, or has no more; the third takes the rest. */
static void end(void) {
    struct lease l = {0};
    acks_what_it_has();
    if (world.ones.number != 0) ack(world.one, &world.ones);
    drops_its_views();
    drop(&world.ones);
    int status;
    while (make_everything_due(), (status = lease(world.third, &l)) == SHMQ_OK) {
        ack(world.third, &l);
        drop(&l);
    }
    CHECK_EQ(status, SHMQ_EMPTY);
    for (uint64_t i = 1; i <= MESSAGES; i++) CHECK_EQ(world.acks[i], 1);
    lab_all_pages_free(world.third);
    OK(shmq_validate(world.third));
    OK(shmq_join(world.third, SHMQ_NO_WAIT));
    shmq_free(world.one);
    shmq_free(world.other);
    shmq_free(world.third);
    close(world.fd);
}

static void keep_company(void (*scene)(void), void (*act)(void), uint64_t least_points) {
    for (size_t k = 0; k < 2 * sizeof companies / sizeof *companies; k++) {
        uint64_t n = 0;
        for (bool missed = false; !missed; n++) {
            set_up();
            scene();
            world.overdue = k % 2 == 0;
            arm(n, companies[k / 2]);
            act();
            missed = disarm();
            end();
        }
        CHECK(n > least_points);
    }
}

TEST(company_during_a_first_lease) { keep_company(nothing_was_leased, leases, 40); }
TEST(company_during_a_second_lease) { keep_company(other_gave_it_back, leases, 30); }
TEST(company_during_a_copy) { keep_company(other_gave_it_back_and_looks_on, leases, 30); }
TEST(company_while_what_is_overdue_is_taken) { keep_company(other_has_it_for_long, leases, 30); }
TEST(company_during_an_ack) { keep_company(one_has_the_first, acks, 3); }
TEST(company_during_an_ack_that_frees) { keep_company(one_had_a_look, acks, 5); }
TEST(company_while_a_view_is_dropped) { keep_company(one_has_the_first, drops, 5); }
TEST(company_while_the_last_view_is_dropped) { keep_company(one_has_acked, drops, 5); }
TEST(company_while_it_is_given_back) { keep_company(one_had_a_look, gives_back, 5); }
TEST(company_while_it_is_given_back_and_looked_at) { keep_company(one_has_the_first, gives_back, 5); }
TEST(company_during_a_close) { keep_company(one_has_the_first, closes, 10); }
TEST(company_while_a_lease_is_called_off) { keep_company(nothing_was_leased, calls_off, 30); }
TEST(company_while_a_second_lease_is_called_off) { keep_company(other_gave_it_back, calls_off, 20); }

int main(int argc, char **argv) { return run_tests(argc, argv); }
