/* Something happens before every access to shared state of a wait in an event loop, and of its waker.
 *
 * Slices last an hour here, so a ring that is lost is a hang, unless the test plays the slice itself. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>

#include "points.h"

static const uint32_t kinds[] = {SHMQ_KIND_SPSC, SHMQ_KIND_MPMC};
#define KINDS (sizeof kinds / sizeof *kinds)
#define BYTES 900u

static struct scene {
    int object, bell;
    uint64_t number;
    shmq_queue *producer, *consumer;
} scene;

static void scene_open(uint32_t kind) {
    shmq_params params = tiny;
    params.kind = kind;
    scene.object = lab_object();
    scene.producer = lab_create(scene.object, &params);
    scene.consumer = lab_attach(scene.object);
    OK(shmq_doorbell_open(&scene.number, &scene.bell));
}

static void scene_close(void) {
    shmq_doorbell_close(scene.number, scene.bell);
    shmq_free(scene.producer);
    shmq_free(scene.consumer);
    close(scene.object);
}

static uint64_t rings(void) {
    char bytes[64];
    ssize_t n = read(scene.bell, bytes, sizeof bytes);
    return n < 0 ? 0 : (uint64_t)n;
}

static void put_seven(void) { OK(lab_put(scene.producer, 7, BYTES, SHMQ_NO_WAIT)); }
static void get_one(void) {
    uint64_t number;
    OK(lab_get(scene.consumer, &number, SHMQ_NO_WAIT));
}

/* What a task does between two polls.  SHMQ_EMPTY: it is armed. */
static int turn_at(shmq_queue *q, uint64_t *number, enum shmq_arming how) {
    for (;;) {
        int status = lab_get(q, number, SHMQ_NO_WAIT);
        if (status != SHMQ_EMPTY) return status;
        uint64_t cursor = shmq_ring_cursor(&q->ring, &q->get.ring);
        (void)shmq_wait_get(q, cursor, SHMQ_NO_WAIT); /* SHMQ_PEER_DEAD is said once */
        if (shmq_arm_get(q, cursor, scene.number, how) != SHMQ_OK) return SHMQ_EMPTY;
    }
}

static int turn(shmq_queue *q, uint64_t *number) { return turn_at(q, number, SHMQ_ARM); }

static void wait_for_the_bell(void) {
    struct pollfd poll_me = {.fd = scene.bell, .events = POLLIN};
    lab_before_sleep();
    CHECK_EQ(poll(&poll_me, 1, -1), 1);
    CHECK(rings() > 0);
}

TEST(a_put_at_every_point_of_a_get_that_waits_in_a_loop) {
    for (size_t k = 0; k < KINDS; k++) {
        uint64_t n = 0, number = 0;
        for (bool missed = false; !missed; n++) {
            scene_open(kinds[k]);
            arm(n, put_seven);
            while (turn(scene.consumer, &number) == SHMQ_EMPTY) wait_for_the_bell();
            CHECK_EQ(number, 7);
            missed = disarm();
            scene_close();
        }
        CHECK(n > 12);
    }
}

TEST(a_get_at_every_point_of_a_put_that_waits_in_a_loop) {
    for (size_t k = 0; k < KINDS; k++) {
        uint64_t n = 0;
        for (bool missed = false; !missed; n++) {
            scene_open(kinds[k]);
            shmq_queue *p = scene.producer;
            while (lab_put(p, 1, BYTES, SHMQ_NO_WAIT) == SHMQ_OK) continue;
            arm(n, get_one);
            while (lab_put(p, 2, BYTES, SHMQ_NO_WAIT) != SHMQ_OK)
                if (shmq_arm_put(p, p->put.ring.spsc.cursor, false, BYTES, scene.number, SHMQ_ARM) != SHMQ_OK)
                    wait_for_the_bell();
            missed = disarm();
            scene_close();
        }
        CHECK(n > 12);
    }
}

/* In a child: a put that is killed before its nth access to shared state.  False: it has no so many. */
static bool killed_put(uint64_t n) {
    pid_t pid = fork_child();
    if (pid == 0) {
        shmq_queue *q = lab_attach(scene.object);
        (void)rings(); /* the newcomer's */
        arm(n, die);
        OK(lab_put(q, 7, BYTES, SHMQ_NO_WAIT));
        _exit(disarm() ? 0 : 1);
    }
    int status;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK(WIFSIGNALED(status) ? WTERMSIG(status) == SIGKILL : WEXITSTATUS(status) == 0);
    return WIFSIGNALED(status);
}

static shmq_queue *newcomer;
static void join(void) { newcomer = lab_attach(scene.object); }

static uint32_t seen_joined, seen_there;
static void begin_to_wait(void) {
    uint64_t number;
    CHECK_EQ(turn(scene.consumer, &number), SHMQ_EMPTY);
    struct shmq_process roster[8];
    seen_joined = load32_relaxed(&scene.consumer->control->roles.joined);
    seen_there = shmq_peers_roster(&scene.consumer->segment, roster, 8);
}
static void expect_to_know_the_newcomer(void) {
    bool seen = seen_joined == load32_relaxed(&newcomer->control->roles.joined);
    CHECK(seen ? seen_there == 3 : rings() > 0);
}

/* Whoever looks at `joined` behind its arming has seen the newcomer, or is rung. */
TEST(a_newcomer_at_every_point_of_a_get_that_waits_in_a_loop) {
    uint64_t n = 0;
    for (bool missed = false; !missed; n++) {
        scene_open(SHMQ_KIND_MPMC);
        newcomer = NULL;
        arm(n, join);
        begin_to_wait();
        missed = disarm();
        if (newcomer == NULL) join();
        expect_to_know_the_newcomer();
        shmq_free(newcomer);
        scene_close();
    }
    CHECK(n > 4);
}

TEST(a_get_that_waits_in_a_loop_at_every_point_of_a_newcomer) {
    uint64_t n = 0;
    for (bool missed = false; !missed; n++) {
        scene_open(SHMQ_KIND_MPMC);
        arm(n, begin_to_wait);
        join();
        missed = disarm();
        if (missed) begin_to_wait();
        expect_to_know_the_newcomer();
        shmq_free(newcomer);
        scene_close();
    }
    CHECK(n > 4);
}

/* Whatever a waker had done when it died: when the slice ends, the waiter has the message, or is armed again, and
 * the next one rings. */
TEST(death_of_a_waker_costs_a_slice) {
    for (size_t k = 0; k < KINDS; k++) {
        uint64_t n = 0, unheard = 0;
        for (bool killed = true; killed; n++) {
            uint64_t number = 0;
            scene_open(kinds[k]);
            CHECK_EQ(turn(scene.consumer, &number), SHMQ_EMPTY);
            killed = killed_put(n);
            bool is_there = shmq_ring_unread(
                &scene.consumer->ring, shmq_ring_cursor(&scene.consumer->ring, &scene.consumer->get.ring));
            bool rung = rings() > 0;
            CHECK(killed || (is_there && rung));
            unheard += is_there && !rung;
            shmq_look_now(scene.consumer); /* the slice */
            if (turn_at(scene.consumer, &number, SHMQ_ARM_AGAIN) == SHMQ_EMPTY) {
                CHECK(!is_there);
                (void)rings(); /* the repair's */
                CHECK_EQ(turn(scene.consumer, &number), SHMQ_EMPTY);
                put_seven();
                CHECK_EQ(rings(), 1);
                OK(turn(scene.consumer, &number));
            }
            CHECK_EQ(number, 7);
            scene_close();
        }
        CHECK(n > 12);
        CHECK(unheard >= 4); /* between the commit and the byte: armed twice, a bell, the doorbell */
    }
}

static void arm_in_a_child(uint64_t n, bool *killed) {
    pid_t pid = fork_child();
    if (pid == 0) {
        uint64_t number;
        int fd;
        shmq_queue *q = lab_attach(scene.object);
        OK(shmq_doorbell_open(&number, &fd));
        (void)rings(); /* the newcomer's */
        arm(n, die);
        CHECK_EQ(shmq_arm_get(q, shmq_ring_cursor(&q->ring, &q->get.ring), number, SHMQ_ARM), SHMQ_NOT_READY);
        CHECK(disarm());
        shmq_doorbell_close(number, fd);
        _exit(0);
    }
    int status;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    *killed = WIFSIGNALED(status);
}

/* One that dies while it arms takes nobody's wake-up away. */
TEST(death_of_a_waiter_while_it_arms) {
    for (int order = 0; order < 2; order++) {
        uint64_t n = 0, number = 0;
        for (bool killed = true; killed; n++) {
            scene_open(SHMQ_KIND_MPMC);
            if (order == 0) CHECK_EQ(turn(scene.consumer, &number), SHMQ_EMPTY);
            arm_in_a_child(n, &killed);
            if (order == 1) CHECK_EQ(turn(scene.consumer, &number), SHMQ_EMPTY);
            put_seven();
            CHECK_EQ(rings(), 1);
            OK(turn(scene.consumer, &number));
            CHECK_EQ(lab_reap(scene.producer), 1);
            scene_close();
        }
        CHECK(n > 6);
    }
}

int main(int argc, char **argv) { return run_tests(argc, argv); }
