/* No false verdict: what is alive is never declared dead, whatever it does, and what is dead is.
 *
 *     alive [--kind spsc|mpmc] ASK_MS
 *
 * Each scene is a family: a child attaches, puts, holds a loan and then does something that is not its death, or is.
 * All live side by side; for ASK_MS each parent asks, reaps, and tries to take what is the child's.  Then the child is
 * killed, and its parent has to say so, and to get back what it held.
 *
 * Two peers of the same pid, in two PID namespaces, need a privilege: where it is missing the line says so.  Lines of
 * the summary go to standard output. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <time.h>

#include "family.h"

enum { COMPLAINTS = 10 };
static uint64_t failures, verdicts;
static const char *scene_name;

__attribute__((format(printf, 1, 2))) static void complain(const char *text, ...) {
    if (failures++ >= COMPLAINTS) return;
    va_list list;
    va_start(list, text);
    fprintf(stderr, "%s: ", scene_name);
    vfprintf(stderr, text, list);
    va_end(list);
    fputc('\n', stderr);
}

static void nap(int64_t ns) {
    const struct timespec pause = {.tv_nsec = (long)ns};
    (void)nanosleep(&pause, NULL);
}

/* ---- what the child does, and what the parent does to it ---- */

static void *stay(void *forever) {
    while (forever != NULL) nap(100 * MS);
    return NULL;
}

/* The first thread ends, another lives: to /proc that process is a zombie. */
static void end_the_first_thread(struct family *f, shmq_queue *q) {
    (void)q;
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, stay, f), 0);
    tell(f->from_child[1]);
    pthread_exit(NULL);
}

static void stop(struct family *f) {
    int status;
    CHECK_EQ(kill(f->child, SIGSTOP), 0);
    CHECK_EQ(waitpid(f->child, &status, WUNTRACED), f->child);
    CHECK(WIFSTOPPED(status));
}

static const struct scene {
    const char *name;
    shmq_queue *(*attach)(int fd);
    void (*more)(struct family *f, shmq_queue *q);
    void (*then)(struct family *f); /* the parent, before it asks */
} scenes[] = {
    {"it waits", lab_attach, NULL, NULL},
    {"it closes every descriptor", lab_attach, close_everything, NULL},
    {"it opens and closes the object", lab_attach, open_and_close_the_object, NULL},
    {"its child ends", lab_attach, fork_and_wait, NULL},
    {"its child execs", lab_attach, fork_exec_and_wait, NULL},
    {"it spawns a program", lab_attach, spawn_and_wait, NULL},
    {"the thread that attached ends", attach_in_a_thread, NULL, NULL},
    {"its first thread ends", lab_attach, end_the_first_thread, NULL},
    {"it is stopped", lab_attach, NULL, stop},
    {"its child survives it", lab_attach, fork_a_survivor, NULL},
};
enum { SCENES = sizeof scenes / sizeof *scenes };

/* ---- asking ---- */

/* The scene's child has put one message and holds one loan, of a page. */
static const struct scene *current;
static void put_hold_and(struct family *f, shmq_queue *q) {
    shmq_block *b;
    OK(lab_put(q, 1, 100, SHMQ_NO_WAIT));
    OK(shmq_loan(q, 100, SHMQ_NO_WAIT, &b));
    if (current->more != NULL) current->more(f, q);
}

static void ask_of_the_living(struct family *f) {
    verdicts += 1;
    if (shmq_peers_alive(&f->parent->segment, 1) != 1) complain("it is alive, and is not said to be");
    if (lab_reap(f->parent) != 0) complain("it is alive, and was reaped");
    if (peer_word(f->parent, 1) != live(0)) complain("it is alive, and lost its entry");
    if (lab_stats(f->parent).pages[SHMQ_PAGE_LOANED] != 1) complain("it is alive, and lost its loan");
    if (tiny.kind == SHMQ_KIND_SPSC && lab_put(f->parent, 2, 100, SHMQ_NO_WAIT) != SHMQ_ROLE_TAKEN)
        complain("it is alive, and lost its role");
}

static void ask_of_the_dead(struct family *f) {
    verdicts += 1;
    if (shmq_peers_alive(&f->parent->segment, 1) != 0) complain("it is dead, and is not said to be");
    if (lab_reap(f->parent) != 1) complain("it is dead, and is not reaped");
    if (peer_word(f->parent, 1) != vacant(1)) complain("it is dead, and keeps its entry");
    if (lab_stats(f->parent).pages[SHMQ_PAGE_LOANED] != 0) complain("it is dead, and keeps its loan");
    if (lab_put(f->parent, 2, 100, SHMQ_NO_WAIT) != SHMQ_OK) complain("it is dead, and keeps its role");
}

static void say(const char *what) {
    printf("%s: %s\t%" PRIu64 " verdicts\t%" PRIu64 "\n", tiny.kind == SHMQ_KIND_MPMC ? "mpmc" : "spsc", what,
           verdicts, failures);
    fflush(stdout);
}

static uint64_t live_side_by_side(int64_t ask_ns) {
    struct family families[SCENES];
    failures = verdicts = 0;
    for (int i = 0; i < SCENES; i++) {
        current = &scenes[i];
        families[i] = with_child_by(current->attach, put_hold_and);
        if (current->then != NULL) current->then(&families[i]);
    }
    for (int64_t end = shmq_now_ns() + ask_ns; shmq_now_ns() < end && failures == 0; nap(MS))
        for (int i = 0; i < SCENES; i++) {
            scene_name = scenes[i].name;
            ask_of_the_living(&families[i]);
        }
    say("alive after closerange, fork, exec of a child, spawn, end of a thread, while stopped");
    uint64_t before = failures;
    failures = verdicts = 0;
    for (int i = 0; i < SCENES; i++) {
        scene_name = scenes[i].name;
        kill_child(&families[i]);
        ask_of_the_dead(&families[i]);
        if (scenes[i].more == fork_a_survivor) { /* it was alive all the time: it answers */
            tell(families[i].to_child[1]);
            await(families[i].from_child[0]);
        }
        end_family(&families[i]);
    }
    return before;
}

static void exec_in_place(void) {
    scene_name = "it execs";
    current = &(const struct scene){.more = before_its_exec};
    struct family f = with_child(put_hold_and);
    ask_of_the_living(&f);
    let_it_exec(&f);
    CHECK_EQ(kill(f.child, 0), 0);
    ask_of_the_dead(&f);
    kill_child(&f);
    end_family(&f);
}

/* ---- PID namespaces ---- */

struct inside {
    int error;  /* errno of unshare or fork, or 0 */
    pid_t init; /* as it is called out here */
};

static void write_text(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return;
    CHECK(write(fd, text, strlen(text)) >= 0);
    close(fd);
}

static bool enter_namespaces(int flags, struct inside *inside) {
    char map[64];
    snprintf(map, sizeof map, "%d %d 1", (int)geteuid(),
             (int)geteuid()); /* it must own the segment there, too */
    inside->error = unshare(flags) == 0 ? 0 : errno;
    if (inside->error != 0) return false;
    if ((flags & CLONE_NEWUSER) != 0) write_text("/proc/self/uid_map", map);
    return true;
}

/* Pid 1 of a PID namespace of its own attaches, holds, and waits to be killed. */
static _Noreturn void be_init(struct family *f) {
    alarm(watchdog_s());
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    CHECK_EQ(getpid(), 1);
    shmq_queue *q = lab_attach(f->fd);
    shmq_block *b;
    OK(shmq_try_loan(q, 100, &b));   /* spsc: no role is asked for */
    for (uint32_t i = 0; i < 3; i++) /* it sees the others as they see it */
        if (i < q->me.index) CHECK_EQ(shmq_peers_alive(&q->segment, i), 1);
    CHECK_EQ(lab_reap(q), 0);
    tell(f->from_child[1]);
    await(f->to_child[0]);
    _exit(0);
}

static pid_t start_namespace(struct family *f, int flags, struct inside *inside) {
    pid_t pid = fork_child();
    if (pid != 0) {
        await(f->from_child[0]);
        return pid;
    }
    pid_t init = enter_namespaces(flags, inside) ? fork() : -1;
    if (init == 0) be_init(f);
    if (init < 0) {
        if (inside->error == 0) inside->error = errno;
        tell(f->from_child[1]);
        _exit(0);
    }
    inside->init = init; /* after the fork: the two share this page */
    join_child(init, SIGKILL);
    _exit(0);
}

static void end_namespace(const volatile struct inside *inside, pid_t pid) {
    while (inside->init == 0) sched_yield();
    CHECK_EQ(kill(inside->init, SIGKILL), 0);
    join_child(pid, 0);
}

static void check_two_inits(struct family *f, const pid_t *pids, const struct inside *inside) {
    struct shmq_segment *s = &f->parent->segment;
    for (uint32_t i = 1; i <= 2; i++) {
        if (s->peers[i].pid != 1) complain("peer %" PRIu32 " is not pid 1", i);
        if (shmq_peers_alive(s, i) != 1)
            complain("pid 1 of namespace %" PRIu32 " is not said to be alive", i);
    }
    if (lab_reap(f->parent) != 0) complain("both are alive, and one was reaped");
    end_namespace(&inside[0], pids[0]);
    if (shmq_peers_alive(s, 1) != 0) complain("the first is dead, and is not said to be");
    if (shmq_peers_alive(s, 2) != 1) complain("the second is alive, and is not said to be");
    if (lab_reap(f->parent) != 1) complain("one is dead, and is not reaped");
    if (peer_word(f->parent, 1) != vacant(1) || peer_word(f->parent, 2) != live(0)) complain("the wrong one");
    if (lab_stats(f->parent).pages[SHMQ_PAGE_LOANED] != 1) complain("a loan of the wrong one");
    end_namespace(&inside[1], pids[1]);
    if (lab_reap(f->parent) != 1) complain("the second is dead, and is not reaped");
    verdicts += 7;
}

static uint64_t two_pid_namespaces(const char *name, int flags) {
    struct family f = found_family();
    struct inside *inside = lab_shared(2 * sizeof *inside);
    pid_t pids[2] = {0};
    char what[128];
    failures = verdicts = 0;
    scene_name = name;
    for (int i = 0; i < 2 && (i == 0 || inside[0].error == 0); i++)
        pids[i] = start_namespace(&f, flags, &inside[i]);
    int error = inside[0].error != 0 ? inside[0].error : inside[1].error;
    if (error == 0) {
        check_two_inits(&f, pids, inside);
        snprintf(what, sizeof what, "pid 1 of two %s, one killed", name);
    } else {
        if (inside[0].error == 0) end_namespace(&inside[0], pids[0]);
        else join_child(pids[0], 0);
        if (pids[1] > 0) join_child(pids[1], 0);
        snprintf(what, sizeof what, "skipped: may not make %s here (%s)", name, strerror(error));
    }
    say(what);
    munmap(inside, 2 * sizeof *inside);
    end_family(&f);
    return failures;
}

int main(int argc, char **argv) {
    int at = 1;
    if (argc > 2 && strcmp(argv[1], "--kind") == 0) {
        tiny.kind = strcmp(argv[2], "mpmc") == 0 ? SHMQ_KIND_MPMC : SHMQ_KIND_SPSC;
        at = 3;
    }
    if (argc - at != 1) return 2;
    signal(SIGPIPE, SIG_IGN);
    alarm(watchdog_s());
    uint64_t all = live_side_by_side(strtol(argv[at], NULL, 10) * MS);
    exec_in_place();
    say("dead after SIGKILL, also where a forked child lives on, and after exec in its place");
    all += failures;
    if (all != 0) return 1; /* processes that are wrongly dead would be waited for in vain */
    all += two_pid_namespaces("PID namespaces", CLONE_NEWPID);
    all += two_pid_namespaces("PID and user namespaces", CLONE_NEWUSER | CLONE_NEWPID);
    return all != 0;
}
