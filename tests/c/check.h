/* check.h: a test is a function, a check says what it found.
 *
 *     TEST(adds) { CHECK_EQ(1 + 1, 2); }
 *
 *     program            runs every test          program NAME ...    runs these
 *     program --list     prints their names
 *
 * The first failed check ends the process with status 1; so does it in a forked child, whose parent looks at
 * the status (join_child).  A test that hangs is killed by SIGALRM after WATCHDOG_S seconds.
 */
#ifndef CHECK_H
#define CHECK_H

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define WATCHDOG_S 60u /* the environment's WATCHDOG_S replaces it */
#define MAX_TESTS 128

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

struct test {
    const char *name;
    void (*run)(void);
};
static struct test tests[MAX_TESTS];
static size_t tests_known;

static inline void add_test(const char *name, void (*run)(void)) {
    if (tests_known == MAX_TESTS) abort();
    tests[tests_known++] = (struct test){name, run};
}

/* Constructors run in the order of the file. */
#define TEST(name)                                                                                           \
    static void name(void);                                                                                  \
    __attribute__((constructor)) static void add_##name(void) { add_test(#name, name); }                     \
    static void name(void)

_Noreturn static inline void failed(const char *file, int line, const char *text) {
    fprintf(stderr, "%s:%d: %s\n", file, line, text);
    fflush(stderr);
    _exit(1);
}

#define CHECK(condition)                                                                                     \
    do {                                                                                                     \
        if (!(condition)) failed(__FILE__, __LINE__, "not true: " #condition);                               \
    } while (0)

#define CHECK_EQ(found, expected)                                                                            \
    check_eq(__FILE__, __LINE__, #found, (uint64_t)(found), (uint64_t)(expected))
static inline void check_eq(const char *file, int line, const char *what, uint64_t found, uint64_t expected) {
    if (found == expected) return;
    fprintf(stderr, "%s:%d: %s is %" PRIu64 " (%#" PRIx64 "), expected %" PRIu64 " (%#" PRIx64 ")\n", file,
            line, what, found, found, expected, expected);
    fflush(stderr);
    _exit(1);
}

static inline unsigned watchdog_s(void) {
    const char *text = getenv("WATCHDOG_S");
    return text != NULL ? (unsigned)atoi(text) : WATCHDOG_S;
}

/* fork() whose child has a watchdog of its own and does not outlive its parent. */
static inline pid_t fork_child(void) {
    pid_t parent = getpid(), pid = fork();
    if (pid < 0) failed(__FILE__, __LINE__, "fork failed");
    if (pid == 0) {
        alarm(watchdog_s());
        if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || getppid() != parent) _exit(1);
    }
    return pid;
}

/* Ends a child's turn: the parent sees whether its checks held. */
static inline void join_child(pid_t pid, int signal_expected) {
    int status;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    if (signal_expected != 0) {
        CHECK(WIFSIGNALED(status));
        CHECK_EQ(WTERMSIG(status), signal_expected);
    } else {
        CHECK(WIFEXITED(status));
        CHECK_EQ(WEXITSTATUS(status), 0);
    }
}

static inline int run_tests(int argc, char **argv) {
    for (size_t i = 0; i < tests_known; i++) {
        int wanted = argc < 2;
        for (int a = 1; a < argc; a++) wanted |= strcmp(argv[a], tests[i].name) == 0;
        if (argc == 2 && strcmp(argv[1], "--list") == 0) {
            puts(tests[i].name);
        } else if (wanted) {
            printf("%s\n", tests[i].name);
            fflush(stdout); /* the last line names the test that hangs or crashes */
            alarm(watchdog_s());
            tests[i].run();
        }
    }
    return 0;
}

/* A small generator with a seed: failures can be repeated.  (Marsaglia, xorshift64*.) */
static inline uint64_t next_random(uint64_t *state) {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * UINT64_C(2685821657736338717);
}
static inline uint64_t below(uint64_t *state, uint64_t n) { return next_random(state) % n; }

#endif
