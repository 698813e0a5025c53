/* Who is attached, and who is alive: one byte lock a peer, which ends with the address space. */
#define _GNU_SOURCE
#include "family.h"

TEST(a_newcomer_takes_the_first_vacant_slot) {
    int fd = lab_object();
    shmq_queue *q[4] = {lab_create(fd, &tiny)};
    for (uint32_t i = 1; i < 4; i++) q[i] = lab_attach(fd);
    for (uint32_t i = 0; i < 4; i++) {
        CHECK_EQ(q[i]->me.index, i);
        CHECK_EQ(peer_word(q[0], i), live(0));
        CHECK_EQ(q[0]->segment.peers[i].pid, getpid());
        CHECK(q[0]->segment.peers[i].start_ticks > 0);
    }
    shmq_free(q[1]);
    CHECK_EQ(peer_word(q[0], 1), vacant(1));
    CHECK_EQ(shmq_peers_alive(&q[0]->segment, 1), 0); /* not locked: the next one may come */
    store_relaxed(&q[0]->segment.peers[1].messages_put, 99);
    q[1] = lab_attach(fd);
    CHECK_EQ(q[1]->me.index, 1);
    CHECK_EQ(q[1]->me.epoch, 1);
    CHECK_EQ(peer_word(q[0], 1), live(1));
    CHECK_EQ(load_relaxed(&q[0]->segment.peers[1].messages_put), 0);
    for (uint32_t i = 0; i < 4; i++) shmq_free(q[i]);
    close(fd);
}

TEST(a_full_table_refuses_and_a_death_makes_room) {
    int fd = lab_object();
    shmq_queue *q[8], *more;
    q[0] = lab_create(fd, &tiny);
    for (int i = 1; i < 8; i++) q[i] = lab_attach(fd);
    CHECK_EQ(shmq_attach(fd, &more), SHMQ_PEERS_FULL);
    OK(shmq_observe(fd, &more)); /* onlookers need no slot */
    shmq_free(more);
    lab_die(q[5]);
    more = lab_attach(fd);
    CHECK_EQ(more->me.index, 5);
    CHECK_EQ(more->me.epoch, 1);
    shmq_free(more);
    lab_bury(q[5]);
    for (int i = 0; i < 8; i++)
        if (i != 5) shmq_free(q[i]);
    close(fd);
}

TEST(sigkill_is_death) {
    struct family f = with_child(NULL);
    check_alive(&f);
    kill_child(&f);
    check_dead(&f);
    end_family(&f);
}

TEST(exit_without_close_is_death) {
    struct family f = with_child(NULL);
    tell(f.to_child[1]);
    join_child(f.child, 0);
    check_dead(&f);
    end_family(&f);
}

/* Timeouts are no verdicts: a stopped process wakes up some day and goes on writing. */
TEST(a_stopped_process_is_alive) {
    struct family f = with_child(NULL);
    int status;
    CHECK_EQ(kill(f.child, SIGSTOP), 0);
    CHECK_EQ(waitpid(f.child, &status, WUNTRACED), f.child);
    CHECK(WIFSTOPPED(status));
    check_alive(&f);
    kill_child(&f);
    check_dead(&f);
    end_family(&f);
}

TEST(a_daemon_that_closes_every_descriptor_is_alive) {
    struct family f = with_child(close_everything);
    check_alive(&f);
    kill_child(&f);
    check_dead(&f);
    end_family(&f);
}

TEST(a_forked_child_does_not_keep_its_parent_alive) {
    struct family f = with_child(fork_a_survivor);
    kill_child(&f);
    check_dead(&f);
    tell(f.to_child[1]);
    await(f.from_child[0]); /* it answers: it was alive all the time */
    end_family(&f);
}

TEST(exec_is_death) {
    struct family f = with_child(before_its_exec);
    check_alive(&f);
    let_it_exec(&f);
    CHECK_EQ(kill(f.child, 0), 0);
    check_dead(&f);
    kill_child(&f);
    end_family(&f);
}

/* What its children do is their affair. */
TEST(a_forked_childs_end_leaves_its_parent_alive) {
    struct family f = with_child(fork_and_wait);
    check_alive(&f);
    kill_child(&f);
    check_dead(&f);
    end_family(&f);
}

TEST(a_forked_childs_exec_leaves_its_parent_alive) {
    struct family f = with_child(fork_exec_and_wait);
    check_alive(&f);
    kill_child(&f);
    check_dead(&f);
    end_family(&f);
}

/* posix_spawn: the child runs in the parent's memory until it execs. */
TEST(a_spawned_program_leaves_its_parent_alive) {
    struct family f = with_child(spawn_and_wait);
    check_alive(&f);
    kill_child(&f);
    check_dead(&f);
    end_family(&f);
}

/* A lock of the other kind would be gone with the first close of any descriptor of the file. */
TEST(another_descriptor_that_is_closed_leaves_it_alive) {
    struct family f = with_child(open_and_close_the_object);
    check_alive(&f);
    kill_child(&f);
    check_dead(&f);
    end_family(&f);
}

TEST(the_end_of_the_thread_that_attached_is_not_death) {
    struct family f = with_child_by(attach_in_a_thread, NULL);
    check_alive(&f);
    kill_child(&f);
    check_dead(&f);
    end_family(&f);
}

/* Where the kernel cannot be asked about this very object there is no verdict. */
TEST(a_descriptor_that_became_another_file_gives_no_verdict) {
    struct family f = with_child(NULL);
    kill_child(&f);
    int other = lab_object();
    int fd = fcntl(f.parent->segment.fd, F_DUPFD_CLOEXEC, 3);
    CHECK_EQ(dup2(other, f.parent->segment.fd), f.parent->segment.fd);
    CHECK_EQ(shmq_peers_alive(&f.parent->segment, 1), (uint64_t)-1);
    CHECK_EQ(lab_reap(f.parent), 0);
    CHECK_EQ(dup2(fd, f.parent->segment.fd), f.parent->segment.fd);
    check_dead(&f);
    close(other);
    close(fd);
    end_family(&f);
}

/* A child begins to repair peer 1 and dies over it when it is told to. */
static pid_t start_reaper(struct family *f) {
    pid_t pid = fork_child();
    if (pid == 0) {
        uint64_t epoch;
        CHECK(shmq_peers_verdict_begin(&f->parent->segment, 1, &epoch) >= 0);
        CHECK_EQ(epoch, 0);
        tell(f->from_child[1]);
        await(f->to_child[0]);
        _exit(0);
    }
    await(f->from_child[0]);
    return pid;
}

TEST(one_reaper_at_a_time) {
    struct family f = with_child(NULL);
    struct shmq_segment *s = &f.parent->segment;
    uint64_t epoch;
    CHECK_EQ(shmq_peers_verdict_begin(s, 0, &epoch), (uint64_t)-1); /* alive: ourselves */
    CHECK_EQ(shmq_peers_verdict_begin(s, 1, &epoch), (uint64_t)-1); /* alive */
    CHECK_EQ(shmq_peers_verdict_begin(s, 2, &epoch), (uint64_t)-1); /* vacant */
    kill_child(&f);
    pid_t reaper = start_reaper(&f);
    CHECK_EQ(shmq_peers_verdict_begin(s, 1, &epoch), (uint64_t)-1);
    CHECK_EQ(lab_reap(f.parent), 0);
    shmq_queue *newcomer = lab_attach(f.fd); /* does not wait, and does not take the slot */
    CHECK_EQ(newcomer->me.index, 2);
    tell(f.to_child[1]);
    join_child(reaper, 0);
    CHECK_EQ(lab_reap(f.parent), 1); /* the next one starts over */
    CHECK_EQ(peer_word(f.parent, 1), vacant(1));
    CHECK_EQ(lab_reap(f.parent), 0);
    shmq_queue *successor = lab_attach(f.fd);
    CHECK_EQ(successor->me.index, 3); /* a post-mortem stays while others are vacant: test_recorder.c */
    shmq_free(successor);
    shmq_free(newcomer);
    end_family(&f);
}

TEST(a_handle_inherited_through_fork_is_refused) {
    int fd = lab_object();
    shmq_queue *q = lab_create(fd, &tiny);
    shmq_block *b;
    OK(shmq_loan(q, 100, SHMQ_NO_WAIT, &b));
    pid_t pid = fork_child();
    if (pid == 0) {
        shmq_message m;
        shmq_stats s;
        CHECK_EQ(shmq_put(q, "x", 1, SHMQ_NO_WAIT), SHMQ_FORKED);
        CHECK_EQ(shmq_get(q, &m, SHMQ_NO_WAIT), SHMQ_FORKED);
        CHECK_EQ(shmq_get_stats(q, &s), SHMQ_FORKED);
        CHECK_EQ(shmq_publish(b, NULL, SHMQ_NO_WAIT), SHMQ_FORKED);
        shmq_block_release(b); /* the parent's block stays the parent's */
        shmq_free(q);
        q = lab_attach(fd);
        CHECK_EQ(q->me.index, 1);
        CHECK_EQ(lab_put(q, 1, 16, SHMQ_NO_WAIT), SHMQ_ROLE_TAKEN);
        shmq_free(q);
        _exit(0);
    }
    join_child(pid, 0);
    CHECK_EQ(lab_stats(q).pages[SHMQ_PAGE_LOANED], 1);
    CHECK_EQ(peer_word(q, 0), live(0));
    OK(shmq_publish(b, NULL, SHMQ_NO_WAIT));
    shmq_free(q);
    close(fd);
}

int main(int argc, char **argv) { return run_tests(argc, argv); }
