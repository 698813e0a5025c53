/* family.h: a parent and a child that attaches as peer 1, and what such a child may do that is not its death. */
#ifndef FAMILY_H
#define FAMILY_H

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>

#include "lab.h"

extern char **environ;

static inline uint64_t peer_word(const shmq_queue *q, uint32_t i) {
    return load_acquire(&q->segment.peers[i].word);
}
static inline uint64_t live(uint64_t epoch) { return 1 | epoch << 8; }
static inline uint64_t vacant(uint64_t epoch) { return 0 | epoch << 8; }

struct family {
    int fd, from_child[2], to_child[2];
    shmq_queue *parent;
    pid_t child;
};

static inline void await(int pipe_end) {
    char c;
    CHECK_EQ(read(pipe_end, &c, 1), 1);
}
static inline void tell(int pipe_end) { CHECK_EQ(write(pipe_end, "", 1), 1); }

static inline struct family found_family(void) {
    struct family f = {.fd = lab_object()};
    CHECK_EQ(pipe2(f.from_child, O_CLOEXEC), 0);
    CHECK_EQ(pipe2(f.to_child, O_CLOEXEC), 0);
    f.parent = lab_create(f.fd, &tiny);
    return f;
}

/* A child that attaches, does `more`, says so, and waits to be killed or told to end. */
static inline struct family with_child_by(shmq_queue *(*attach)(int),
                                          void (*more)(struct family *, shmq_queue *)) {
    struct family f = found_family();
    if ((f.child = fork_child()) == 0) {
        static shmq_queue *q; /* where the leak detector of a grandchild that ends by exit() finds it */
        q = attach(f.fd);
        if (more != NULL) more(&f, q);
        tell(f.from_child[1]);
        await(f.to_child[0]);
        _exit(0);
    }
    await(f.from_child[0]);
    return f;
}
static inline struct family with_child(void (*more)(struct family *, shmq_queue *)) {
    return with_child_by(lab_attach, more);
}

static inline void end_family(struct family *f) {
    shmq_free(f->parent);
    close(f->fd);
    for (int i = 0; i < 2; i++) {
        if (f->from_child[i] >= 0) close(f->from_child[i]);
        close(f->to_child[i]);
    }
}

static inline void kill_child(struct family *f) {
    CHECK_EQ(kill(f->child, SIGKILL), 0);
    join_child(f->child, SIGKILL);
}

/* Dead for everyone to see, and repaired by the next reap. */
static inline void check_dead(struct family *f) {
    CHECK_EQ(shmq_peers_alive(&f->parent->segment, 1), 0);
    CHECK_EQ(peer_word(f->parent, 1), live(0));
    CHECK_EQ(lab_reap(f->parent), 1);
    CHECK_EQ(peer_word(f->parent, 1), vacant(1));
    CHECK_EQ(lab_reap(f->parent), 0);
}

static inline void check_alive(struct family *f) {
    CHECK_EQ(shmq_peers_alive(&f->parent->segment, 1), 1);
    CHECK_EQ(lab_reap(f->parent), 0);
    CHECK_EQ(peer_word(f->parent, 1), live(0));
}

/* ---- what a child may do ---- */

static inline void close_everything(struct family *f, shmq_queue *q) {
    (void)q;
    for (int fd = 3; fd < 1024; fd++)
        if (fd != f->from_child[1] && fd != f->to_child[0]) close(fd);
}

/* It outlives its parent, and answers when it is told to. */
static inline void fork_a_survivor(struct family *f, shmq_queue *q) {
    (void)q;
    pid_t pid = fork(); /* not fork_child(), which would die with its parent */
    CHECK(pid >= 0);
    if (pid == 0) {
        alarm(watchdog_s());
        await(f->to_child[0]);
        tell(f->from_child[1]);
        _exit(0);
    }
}

static inline void fork_and_wait(struct family *f, shmq_queue *q) {
    (void)f;
    (void)q;
    pid_t pid = fork_child();
    if (pid == 0) exit(0); /* with all that is done at the end of a process */
    join_child(pid, 0);
}

static inline void fork_exec_and_wait(struct family *f, shmq_queue *q) {
    (void)f;
    (void)q;
    pid_t pid = fork_child();
    if (pid == 0) {
        execlp("true", "true", (char *)NULL);
        _exit(127);
    }
    join_child(pid, 0);
}

static inline void spawn_and_wait(struct family *f, shmq_queue *q) {
    (void)f;
    (void)q;
    pid_t pid;
    char name[] = "true", *arguments[] = {name, NULL};
    CHECK_EQ(posix_spawnp(&pid, "true", NULL, NULL, arguments, environ), 0);
    join_child(pid, 0);
}

static inline void open_and_close_the_object(struct family *f, shmq_queue *q) {
    int fd = shmq_segment_reopen(&q->segment);
    CHECK(fd >= 0);
    close(fd);
    close(fcntl(f->fd, F_DUPFD_CLOEXEC, 3));
}

/* Becomes another program when it is told to (let_it_exec). */
static inline void before_its_exec(struct family *f, shmq_queue *q) {
    (void)q;
    tell(f->from_child[1]);
    await(f->to_child[0]);
    dup2(f->to_child[0], 0);
    execlp("cat", "cat", (char *)NULL); /* reads until it is killed */
    _exit(127);
}
static inline void let_it_exec(struct family *f) {
    tell(f->to_child[1]);
    /* The exec closes the child's write end, which is then the last: end of file. */
    close(f->from_child[1]);
    f->from_child[1] = -1;
    char c;
    CHECK_EQ(read(f->from_child[0], &c, 1), 0);
    while (shmq_peers_alive(&f->parent->segment, 1) != 0)
        sched_yield(); /* the kernel unmaps a little later */
}

static inline void *attach_thread(void *fd) { return lab_attach(*(int *)fd); }
static inline shmq_queue *attach_in_a_thread(int fd) {
    pthread_t thread;
    void *q;
    CHECK_EQ(pthread_create(&thread, NULL, attach_thread, &fd), 0);
    CHECK_EQ(pthread_join(thread, &q), 0);
    return q;
}

#endif
