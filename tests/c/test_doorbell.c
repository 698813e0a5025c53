/* Doorbells: exact words and bytes; the FIFO's life; who rings, how often, and what a death costs. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>

#include "lab.h"

enum { A, B, HANDLES };

static struct rig {
    int object, bell;
    uint64_t number;
    shmq_queue *of[HANDLES];
} rig;

static void rig_open(void) {
    rig.object = lab_object();
    rig.of[A] = lab_create(rig.object, &tiny);
    rig.of[B] = lab_attach(rig.object);
    OK(shmq_doorbell_open(&rig.number, &rig.bell));
}

static void rig_close(void) {
    shmq_doorbell_close(rig.number, rig.bell);
    for (int i = 0; i < HANDLES; i++) shmq_free(rig.of[i]);
    close(rig.object);
}

static void path_of(char path[96], uint64_t number) {
    snprintf(path, 96, "/dev/shm/shmq-doorbells-%u/%016" PRIx64, (unsigned)geteuid(), number);
}

static bool exists(uint64_t number) {
    char path[96];
    struct stat st;
    path_of(path, number);
    return lstat(path, &st) == 0;
}

static uint64_t rings(int fd) {
    char bytes[64];
    ssize_t n = read(fd, bytes, sizeof bytes);
    if (n < 0) CHECK_EQ(errno, EAGAIN);
    return n < 0 ? 0 : (uint64_t)n;
}

static int descriptors(void) {
    DIR *names = opendir("/proc/self/fd");
    int n = 0;
    CHECK(names != NULL);
    while (readdir(names) != NULL) n++;
    closedir(names);
    return n;
}

static int arm_get(shmq_queue *q) {
    return shmq_arm_get(q, shmq_ring_cursor(&q->ring, &q->get.ring), rig.number, SHMQ_ARM);
}
static int arm_put(shmq_queue *q) {
    return shmq_arm_put(q, q->put.ring.spsc.cursor, false, 1024, rig.number, SHMQ_ARM);
}
static struct shmq_eventcount *not_empty(void) { return &rig.of[A]->control->not_empty; }
static struct shmq_peer *entry(int handle) { return rig.of[handle]->counters; }

/* ---- the FIFO ---- */

TEST(a_fifo_that_nobody_else_may_open) {
    char path[96];
    struct stat st, opened;
    uint64_t number;
    int fd;
    OK(shmq_doorbell_open(&number, &fd));
    CHECK(number != 0);
    path_of(path, number);
    CHECK_EQ(lstat(path, &st), 0);
    CHECK_EQ(fstat(fd, &opened), 0);
    CHECK(S_ISFIFO(st.st_mode) && st.st_ino == opened.st_ino);
    CHECK_EQ(st.st_mode & 0777, 0600);
    *strrchr(path, '/') = '\0';
    CHECK_EQ(lstat(path, &st), 0);
    CHECK(S_ISDIR(st.st_mode));
    CHECK_EQ(st.st_mode & 0777, 0700);
    struct pollfd poll_me = {.fd = fd, .events = POLLIN};
    CHECK_EQ(poll(&poll_me, 1, 0), 0); /* neither a byte nor the end */
    CHECK_EQ(rings(fd), 0);
    CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    shmq_doorbell_close(number, fd);
    CHECK(!exists(number));
    CHECK_EQ(fcntl(fd, F_GETFD), -1);
}

TEST(closing_leaves_another_file_alone) {
    uint64_t number;
    int fd, other[2];
    OK(shmq_doorbell_open(&number, &fd));
    close(fd); /* someone's closerange() */
    CHECK_EQ(pipe(other), 0);
    CHECK_EQ(dup2(other[0], fd), fd);
    shmq_doorbell_close(number, fd);
    CHECK(fcntl(fd, F_GETFD) >= 0);
    CHECK(!exists(number));
    close(other[0]);
    close(other[1]);
    if (fd != other[0]) close(fd);
}

TEST(what_a_killed_process_left_is_swept_by_the_next) {
    shmq_a64 *left = lab_shared(sizeof *left);
    pid_t pid = fork_child();
    if (pid == 0) {
        uint64_t number;
        int fd;
        OK(shmq_doorbell_open(&number, &fd));
        store_release(left, number);
        raise(SIGKILL);
    }
    join_child(pid, SIGKILL);
    CHECK(exists(load_acquire(left)));
    uint64_t mine, another;
    int fd, second;
    OK(shmq_doorbell_open(&mine, &fd));
    CHECK(!exists(load_acquire(left)));
    OK(shmq_doorbell_open(&another, &second));
    CHECK(exists(mine)); /* who lives is not swept */
    shmq_doorbell_close(another, second);
    shmq_doorbell_close(mine, fd);
    munmap(left, sizeof *left);
}

/* Makers and removers beside each other: the directory comes and goes. */
static void *make_and_remove(void *unused) {
    for (int i = 0; i < 300; i++) {
        uint64_t number;
        int fd;
        OK(shmq_doorbell_open(&number, &fd));
        CHECK(exists(number));
        CHECK_EQ(write(fd, "", 1), 1);
        CHECK_EQ(rings(fd), 1);
        shmq_doorbell_close(number, fd);
    }
    return unused;
}

TEST(makers_and_removers_are_in_nobodys_way) {
    pthread_t threads[3];
    for (int i = 0; i < 3; i++) CHECK_EQ(pthread_create(&threads[i], NULL, make_and_remove, NULL), 0);
    for (int i = 0; i < 3; i++) pthread_join(threads[i], NULL);
}

/* ---- words ---- */

TEST(arming_sets_its_bits_and_a_ring_clears_them) {
    rig_open();
    CHECK_EQ(arm_get(rig.of[B]), SHMQ_NOT_READY);
    CHECK_EQ(load32_relaxed(&not_empty()->armed), SHMQ_ARMED_BELLS);
    CHECK_EQ(load32_relaxed(&not_empty()->bells_end), rig.of[B]->me.index + 1);
    CHECK_EQ(load32_relaxed(&entry(B)->bells), SHMQ_BELL_NOT_EMPTY);
    CHECK_EQ(load_relaxed(&entry(B)->doorbell), rig.number);
    CHECK_EQ(rings(rig.bell), 0);
    OK(lab_put(rig.of[A], 1, 64, SHMQ_NO_WAIT));
    CHECK_EQ(load32_relaxed(&not_empty()->armed), 0);
    CHECK_EQ(load32_relaxed(&not_empty()->epoch), 0); /* nobody sleeps on the futex */
    CHECK_EQ(load32_relaxed(&entry(B)->bells), 0);
    CHECK_EQ(rings(rig.bell), 1);
    OK(lab_put(rig.of[A], 2, 64, SHMQ_NO_WAIT)); /* not armed again */
    CHECK_EQ(rings(rig.bell), 0);
    rig_close();
}

/* A waker took the flag and died before it rang: at the end of the slice it is set again. */
TEST(only_a_slice_arms_anew) {
    rig_open();
    CHECK_EQ(arm_get(rig.of[B]), SHMQ_NOT_READY);
    store32_relaxed(&not_empty()->armed, 0);
    CHECK_EQ(arm_get(rig.of[B]), SHMQ_EMPTY);
    CHECK_EQ(load32_relaxed(&not_empty()->armed), 0); /* that waker is about to ring */
    uint64_t cursor = shmq_ring_cursor(&rig.of[B]->ring, &rig.of[B]->get.ring);
    CHECK_EQ(shmq_arm_get(rig.of[B], cursor, rig.number, SHMQ_ARM_AGAIN), SHMQ_NOT_READY);
    CHECK_EQ(load32_relaxed(&not_empty()->armed), SHMQ_ARMED_BELLS);
    CHECK_EQ(shmq_arm_get(rig.of[B], cursor, rig.number, SHMQ_ARM_AGAIN), SHMQ_EMPTY);
    store32_relaxed(&not_empty()->armed, 0);
    CHECK_EQ(shmq_arm_get(rig.of[B], cursor, rig.number + 1, SHMQ_ARM), SHMQ_NOT_READY); /* another loop's */
    CHECK_EQ(load32_relaxed(&not_empty()->armed), SHMQ_ARMED_BELLS);
    rig_close();
}

TEST(what_is_there_needs_no_bell) {
    rig_open();
    OK(lab_put(rig.of[A], 1, 64, SHMQ_NO_WAIT));
    OK(arm_get(rig.of[B]));
    CHECK_EQ(load32_relaxed(&not_empty()->armed), 0);
    CHECK_EQ(load32_relaxed(&entry(B)->bells), 0);
    rig_close();
}

/* What moves rings for those only who wait for it. */
TEST(each_side_has_its_bell) {
    uint64_t number;
    rig_open();
    for (int i = 0; i < 3; i++) OK(lab_put(rig.of[A], 1, 1024, SHMQ_NO_WAIT));
    while (lab_put(rig.of[A], 1, 600, SHMQ_NO_WAIT) == SHMQ_OK) continue;
    CHECK_EQ(arm_put(rig.of[A]), SHMQ_NOT_READY);
    CHECK_EQ(load32_relaxed(&entry(A)->bells), SHMQ_BELL_NOT_FULL);
    (void)or32_seq_cst(&not_empty()->armed, SHMQ_ARMED_BELLS);
    shmq_put_done(rig.of[A], 0, 0); /* a waker of the other side */
    CHECK_EQ(rings(rig.bell), 0);
    OK(lab_get(rig.of[B], &number, SHMQ_NO_WAIT));
    CHECK_EQ(rings(rig.bell), 1);
    CHECK_EQ(load32_relaxed(&entry(A)->bells), 0);
    rig_close();
}

TEST(sleepers_and_loops_wait_side_by_side) {
    rig_open();
    (void)or32_seq_cst(&not_empty()->armed, SHMQ_ARMED_FUTEX);
    CHECK_EQ(arm_get(rig.of[B]), SHMQ_NOT_READY);
    CHECK_EQ(load32_relaxed(&not_empty()->armed), SHMQ_ARMED_FUTEX | SHMQ_ARMED_BELLS);
    OK(lab_put(rig.of[A], 1, 64, SHMQ_NO_WAIT));
    CHECK_EQ(load32_relaxed(&not_empty()->epoch), 1);
    CHECK_EQ(rings(rig.bell), 1);
    rig_close();
}

TEST(a_handle_that_cannot_go_on_is_not_armed) {
    rig_open();
    OK(shmq_shutdown(rig.of[A], 0));
    OK(arm_get(rig.of[B])); /* the try says why */
    OK(arm_put(rig.of[B]));
    pid_t pid = fork_child();
    if (pid == 0) {
        OK(arm_get(rig.of[B]));
        _exit(0);
    }
    join_child(pid, 0);
    CHECK_EQ(load32_relaxed(&not_empty()->armed), 0);
    shmq_close(rig.of[B]);
    CHECK_EQ(shmq_usable(rig.of[B]), SHMQ_CLOSED);
    rig_close();
}

TEST(shutdown_and_close_ring) {
    rig_open();
    CHECK_EQ(arm_get(rig.of[B]), SHMQ_NOT_READY);
    OK(shmq_shutdown(rig.of[A], 0));
    CHECK_EQ(rings(rig.bell), 1);
    rig_close();
    rig_open();
    CHECK_EQ(arm_get(rig.of[B]), SHMQ_NOT_READY);
    shmq_close(rig.of[B]);
    CHECK_EQ(rings(rig.bell), 1);
    rig_close();
}

/* A waker that died left it so, and then its owner left. */
TEST(a_newcomer_inherits_no_bell) {
    rig_open();
    uint32_t index = rig.of[B]->me.index;
    struct shmq_peer *p = entry(B);
    store32_relaxed(&p->bells, SHMQ_BELL_NOT_EMPTY | SHMQ_BELL_NOT_FULL);
    store_relaxed(&p->doorbell, rig.number);
    shmq_free(rig.of[B]);
    rig.of[B] = lab_attach(rig.object);
    CHECK_EQ(rig.of[B]->me.index, index);
    CHECK_EQ(load32_relaxed(&entry(B)->bells), 0);
    CHECK_EQ(load_relaxed(&entry(B)->doorbell), 0);
    rig_close();
}

/* ---- ringing ---- */

TEST(a_bell_is_kept_open_and_closed_with_the_handle) {
    rig_open();
    int before = descriptors();
    for (int i = 0; i < 3; i++) {
        uint64_t number;
        CHECK_EQ(arm_get(rig.of[B]), SHMQ_NOT_READY);
        OK(lab_put(rig.of[A], 1, 64, SHMQ_NO_WAIT));
        CHECK_EQ(rings(rig.bell), 1);
        OK(lab_get(rig.of[B], &number, SHMQ_NO_WAIT));
        CHECK_EQ(descriptors(), before + 1);
    }
    shmq_close(rig.of[A]);
    CHECK_EQ(descriptors(), before - 1); /* the segment's, too */
    rig_close();
}

/* A loop that ended, a name that is gone, a descriptor that was closed under us: nothing fails, nothing leaks. */
TEST(a_bell_that_cannot_be_rung_is_passed_over) {
    char path[96];
    rig_open();
    path_of(path, rig.number);
    int before = descriptors();
    CHECK_EQ(arm_get(rig.of[B]), SHMQ_NOT_READY);
    CHECK_EQ(unlink(path), 0);
    OK(lab_put(rig.of[A], 1, 64, SHMQ_NO_WAIT));
    CHECK_EQ(rings(rig.bell), 0);
    CHECK_EQ(descriptors(), before);
    int file = open(path, O_CREAT | O_EXCL | O_RDWR, 0600); /* no FIFO: not written to */
    CHECK(file >= 0);
    uint64_t number;
    OK(lab_get(rig.of[B], &number, SHMQ_NO_WAIT));
    CHECK_EQ(arm_get(rig.of[B]), SHMQ_NOT_READY);
    OK(lab_put(rig.of[A], 1, 64, SHMQ_NO_WAIT));
    CHECK_EQ(lseek(file, 0, SEEK_END), 0);
    close(file);
    CHECK_EQ(descriptors(), before);
    rig_close();
}

TEST(a_descriptor_that_became_another_file_is_not_written_to) {
    int pipes[2];
    uint64_t number;
    rig_open();
    CHECK_EQ(arm_get(rig.of[B]), SHMQ_NOT_READY);
    OK(lab_put(rig.of[A], 1, 64, SHMQ_NO_WAIT));
    CHECK_EQ(rings(rig.bell), 1);
    OK(lab_get(rig.of[B], &number, SHMQ_NO_WAIT));
    struct shmq_bell_kept *kept = &rig.of[A]->bells.kept[rig.of[B]->me.index];
    CHECK_EQ(kept->number, rig.number);
    CHECK_EQ(pipe(pipes), 0);
    CHECK_EQ(fcntl(pipes[0], F_SETFL, O_NONBLOCK), 0);
    CHECK_EQ(dup2(pipes[1], kept->fd), kept->fd);
    CHECK_EQ(arm_get(rig.of[B]), SHMQ_NOT_READY);
    OK(lab_put(rig.of[A], 1, 64, SHMQ_NO_WAIT));
    CHECK_EQ(rings(rig.bell), 1);
    CHECK_EQ(rings(pipes[0]), 0);
    close(pipes[0]);
    close(pipes[1]);
    rig_close();
}

TEST(a_full_bell_blocks_nobody) {
    static const char bytes[65536];
    rig_open();
    while (write(rig.bell, bytes, sizeof bytes) > 0) continue;
    CHECK_EQ(errno, EAGAIN);
    CHECK_EQ(arm_get(rig.of[B]), SHMQ_NOT_READY);
    OK(lab_put(rig.of[A], 1, 64, SHMQ_NO_WAIT));
    CHECK_EQ(load32_relaxed(&entry(B)->bells), 0);
    rig_close();
}

/* ---- deaths ---- */

TEST(the_dead_block_nobody_and_their_fifo_is_removed) {
    shmq_a64 *left = lab_shared(sizeof *left);
    int object = lab_object();
    shmq_queue *q = lab_create(object, &tiny);
    pid_t pid = fork_child();
    if (pid == 0) {
        int fd;
        uint64_t number;
        shmq_queue *mine = lab_attach(object);
        OK(shmq_doorbell_open(&number, &fd));
        CHECK_EQ(shmq_arm_get(mine, shmq_ring_cursor(&mine->ring, &mine->get.ring), number, SHMQ_ARM),
                 SHMQ_NOT_READY);
        store_release(left, number);
        raise(SIGKILL);
    }
    join_child(pid, SIGKILL);
    CHECK(exists(load_acquire(left)));
    OK(lab_put(q, 1, 64, SHMQ_NO_WAIT)); /* its bell is still armed */
    OK(lab_put(q, 2, 64, SHMQ_NO_WAIT));
    CHECK_EQ(lab_reap(q), 1);
    CHECK(!exists(load_acquire(left)));
    CHECK_EQ(lab_reap(q), 0);
    shmq_free(q);
    close(object);
    munmap(left, sizeof *left);
}

TEST(a_repair_rings) {
    rig_open();
    shmq_queue *third = lab_attach(rig.object);
    OK(lab_put(third, 1, 64, SHMQ_NO_WAIT));
    uint64_t number;
    OK(lab_get(rig.of[B], &number, SHMQ_NO_WAIT));
    CHECK_EQ(arm_get(rig.of[B]), SHMQ_NOT_READY);
    lab_die(third);
    CHECK_EQ(lab_reap(rig.of[A]), 1);
    CHECK_EQ(rings(rig.bell), 1);
    if (tiny.kind == SHMQ_KIND_SPSC) { /* what it rings for: its producer is dead */
        OK(arm_get(rig.of[B]));
        CHECK_EQ(
            shmq_wait_get(rig.of[B], shmq_ring_cursor(&rig.of[B]->ring, &rig.of[B]->get.ring), SHMQ_NO_WAIT),
            SHMQ_PEER_DEAD);
        CHECK_EQ(arm_get(rig.of[B]), SHMQ_NOT_READY); /* said once */
    }
    lab_bury(third);
    rig_close();
}

/* Loops hear of it, and then of its death by other means; nobody's wake-up is taken away. */
TEST(a_newcomer_rings_all_that_have_a_bell) {
    rig_open();
    uint32_t joined = load32_relaxed(&rig.of[A]->control->roles.joined);
    CHECK_EQ(arm_get(rig.of[B]), SHMQ_NOT_READY);
    struct shmq_process roster[4];
    CHECK_EQ(shmq_peers_roster(&rig.of[B]->segment, roster, 4), 2);
    shmq_queue *third = lab_attach(rig.object);
    CHECK_EQ(rings(rig.bell), 1);
    CHECK_EQ(load32_relaxed(&third->control->roles.joined), joined + 1);
    CHECK_EQ(load32_relaxed(&not_empty()->armed), SHMQ_ARMED_BELLS);
    CHECK_EQ(load32_relaxed(&entry(B)->bells), SHMQ_BELL_NOT_EMPTY);
    CHECK_EQ(shmq_peers_roster(&rig.of[B]->segment, roster, 4), 3);
    CHECK_EQ(roster[2].pid, (uint64_t)getpid());
    CHECK_EQ(roster[2].start_ticks, rig.of[B]->segment.peers[third->me.index].start_ticks);
    CHECK_EQ(shmq_peers_roster(&rig.of[B]->segment, roster, 2), 2);
    shmq_free(third);
    CHECK_EQ(shmq_peers_roster(&rig.of[B]->segment, roster, 4), 2);
    OK(lab_put(rig.of[A], 1, 64, SHMQ_NO_WAIT));
    CHECK_EQ(rings(rig.bell), 1);
    rig_close();
}

/* ---- threads ---- */

enum { THREADS = 3, ROUNDS = 1000 };

static shmq_a32 enough;

static void *wake_often(void *unused) {
    while (load32_relaxed(&enough) == 0) shmq_wake_slow(&rig.of[A]->segment, &rig.of[A]->bells, not_empty());
    return unused;
}

/* Any thread may ring; of those that wake at the same time one does. */
TEST(threads_ring_at_the_same_time) {
    pthread_t threads[THREADS];
    uint64_t armed = 0, rung = 0;
    rig_open();
    for (int i = 0; i < THREADS; i++) CHECK_EQ(pthread_create(&threads[i], NULL, wake_often, NULL), 0);
    while (armed < ROUNDS) {
        armed += arm_get(rig.of[B]) == SHMQ_NOT_READY; /* else it is still to be rung */
        rung += rings(rig.bell);
    }
    store32_relaxed(&enough, 1);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    shmq_wake_slow(&rig.of[A]->segment, &rig.of[A]->bells, not_empty());
    rung += rings(rig.bell);
    CHECK_EQ(rung, armed);
    rig_close();
}

int main(int argc, char **argv) { return run_tests(argc, argv); }
