/* trace.h: a child that is stopped before any instruction that one likes.
 *
 * Idea: one child is single-stepped through the operation from its start marker to its end, and the address of
 * every instruction is written down.  A later child, which does the same, is brought before instruction k in hops:
 * from where it stands, a breakpoint goes to the furthest instruction up to k whose address does not come earlier
 * on the way.  So a hop passes straight code and library calls at full speed and a loop once a turn; k single
 * steps would cost k stops.  Where the child does not come by (it read another pid or time than the first), the
 * way is not the one that was written down; the caller is told, and the child stands where it stands.
 *
 * The child calls trace_me() and, just before the operation, trace_mark(); after it, trace_mark() again.
 */
#ifndef TRACE_H
#define TRACE_H

#include <elf.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>

#include "check.h"

#if defined(__x86_64__)
#define TRAP_ASM "int3"
#define TRAP_CODE UINT64_C(0xcc)
#define TRAP_MASK UINT64_C(0xff)
#define TRAP_LENGTH 1u /* the program counter stands behind it */
#define NOP_CODE UINT64_C(0x90)
#define SYSCALL_CODE UINT64_C(0x050f)
#define SYSCALL_MASK UINT64_C(0xffff)
#define PC(registers) (registers).rip
#elif defined(__aarch64__)
#define TRAP_ASM "brk #0"
#define TRAP_CODE UINT64_C(0xd4200000)
#define TRAP_MASK UINT64_C(0xffffffff)
#define TRAP_LENGTH 0u /* the program counter stands on it */
#define NOP_CODE UINT64_C(0xd503201f)
#define SYSCALL_CODE UINT64_C(0xd4000001)
#define SYSCALL_MASK UINT64_C(0xffffffff)
#define PC(registers) (registers).pc
#else
#error "no breakpoint known for this machine"
#endif

#define NO_PTRACE 77 /* exit status of a child that may not be traced, and of the program then */

/* A way: at[0] is the first instruction, at[n - 1] the end marker. */
struct trace {
    uint64_t *at;
    uint64_t n, room;
};

enum stop { STOPPED, ENDED, CRASHED };

static inline void trace_me(void) {
    if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0) _exit(NO_PTRACE);
}

#define trace_mark() __asm__ volatile(TRAP_ASM ::: "memory")

static inline struct user_regs_struct registers_of(pid_t pid) {
    struct user_regs_struct registers;
    struct iovec io = {.iov_base = &registers, .iov_len = sizeof registers};
    CHECK_EQ(ptrace(PTRACE_GETREGSET, pid, (void *)NT_PRSTATUS, &io), 0);
    return registers;
}
static inline uint64_t pc_of(pid_t pid) { return PC(registers_of(pid)); }
static inline void set_pc(pid_t pid, uint64_t pc) {
    struct user_regs_struct registers = registers_of(pid);
    struct iovec io = {.iov_base = &registers, .iov_len = sizeof registers};
    PC(registers) = pc;
    CHECK_EQ(ptrace(PTRACE_SETREGSET, pid, (void *)NT_PRSTATUS, &io), 0);
}
static inline uint64_t code_at(pid_t pid, uint64_t at) {
    errno = 0;
    uint64_t code = (uint64_t)ptrace(PTRACE_PEEKTEXT, pid, (void *)(uintptr_t)at, NULL);
    CHECK_EQ(errno, 0);
    return code;
}
static inline void set_code(pid_t pid, uint64_t at, uint64_t code) {
    CHECK_EQ(ptrace(PTRACE_POKETEXT, pid, (void *)(uintptr_t)at, (void *)(uintptr_t)code), 0);
}

/* Lets it go on, to the next trap. */
static inline enum stop trace_go(pid_t pid, bool step) {
    int status;
    CHECK_EQ(ptrace(step ? PTRACE_SINGLESTEP : PTRACE_CONT, pid, NULL, NULL), 0);
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    if (WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP) return STOPPED;
    if (!WIFSTOPPED(status)) return ENDED;
    kill(pid, SIGKILL);
    (void)waitpid(pid, &status, 0);
    return CRASHED;
}

/* Waits for the child's start marker. */
static inline enum stop trace_start(pid_t pid) {
    int status;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    if (WIFEXITED(status) && WEXITSTATUS(status) == NO_PTRACE) {
        puts("ptrace is forbidden here: nothing was tried");
        fflush(stdout);
        _exit(NO_PTRACE);
    }
    if (!WIFSTOPPED(status)) return ENDED;
    CHECK_EQ(ptrace(PTRACE_SETOPTIONS, pid, NULL, (void *)PTRACE_O_EXITKILL), 0);
    if (WSTOPSIG(status) != SIGTRAP) {
        kill(pid, SIGKILL);
        (void)waitpid(pid, &status, 0);
        return CRASHED;
    }
    if (TRAP_LENGTH == 0) set_pc(pid, pc_of(pid) + 4);
    return STOPPED;
}

/* True where it stands at a marker. */
static inline bool trace_at_trap(pid_t pid, uint64_t pc) {
    return (code_at(pid, pc) & TRAP_MASK) == TRAP_CODE;
}
static inline bool trace_at_syscall(pid_t pid, uint64_t pc) {
    return (code_at(pid, pc) & SYSCALL_MASK) == SYSCALL_CODE;
}

static inline void trace_note(struct trace *t, uint64_t pc) {
    if (t->n == t->room) {
        t->room = t->room != 0 ? t->room * 2 : 4096;
        t->at = realloc(t->at, t->room * sizeof *t->at);
        CHECK(t->at != NULL);
    }
    t->at[t->n++] = pc;
}

struct hops {
    uint64_t *last; /* of each instruction: where its address came last before, plus 1; 0: never */
};

struct by_address {
    uint64_t at, i;
};
static int compare_addresses(const void *a, const void *b) {
    const struct by_address *x = a, *y = b;
    if (x->at != y->at) return x->at < y->at ? -1 : 1;
    return x->i < y->i ? -1 : x->i > y->i;
}

static inline struct hops trace_hops(const struct trace *t) {
    struct hops h = {.last = calloc(t->n + 1, sizeof *h.last)};
    struct by_address *sorted = calloc(t->n + 1, sizeof *sorted);
    CHECK(h.last != NULL && sorted != NULL);
    for (uint64_t i = 0; i < t->n; i++) sorted[i] = (struct by_address){t->at[i], i};
    qsort(sorted, t->n, sizeof *sorted, compare_addresses);
    for (uint64_t i = 1; i < t->n; i++)
        if (sorted[i].at == sorted[i - 1].at) h.last[sorted[i].i] = sorted[i - 1].i + 1;
    free(sorted);
    return h;
}

/* Brings the child, which stands before instruction 0, before instruction k.  *on_the_way: it came by there. */
static inline enum stop trace_to(pid_t pid, const struct trace *t, const struct hops *h, uint64_t k,
                                 bool *on_the_way) {
    *on_the_way = true;
    for (uint64_t from = 0; from < k;) {
        uint64_t to = k;
        while (to > from + 1 && h->last[to] > from) to--; /* its address comes in [from, to) already */
        enum stop stop;
        if (to == from + 1) {
            stop = trace_go(pid, true);
        } else {
            uint64_t code = code_at(pid, t->at[to]);
            set_code(pid, t->at[to], (code & ~TRAP_MASK) | TRAP_CODE);
            stop = trace_go(pid, false);
            if (stop != STOPPED) return stop;
            uint64_t pc = pc_of(pid) - TRAP_LENGTH;
            set_code(pid, t->at[to], code);
            if (pc != t->at[to]) { /* at the end marker: it took another way */
                *on_the_way = false;
                return STOPPED;
            }
            set_pc(pid, pc);
        }
        if (stop != STOPPED) return stop;
        from = to;
    }
    *on_the_way = pc_of(pid) == t->at[k];
    return STOPPED;
}

/* Lets a child that stands somewhere on its way go, stopped by SIGSTOP; nothing traps it any more. */
static inline void trace_free(pid_t pid, const struct trace *t) {
    uint64_t marker = t->at[t->n - 1];
    set_code(pid, marker, (code_at(pid, marker) & ~TRAP_MASK) | NOP_CODE);
    CHECK_EQ(ptrace(PTRACE_DETACH, pid, NULL, (void *)SIGSTOP), 0);
}

static inline void trace_kill(pid_t pid) {
    int status;
    CHECK_EQ(kill(pid, SIGKILL), 0);
    CHECK_EQ(waitpid(pid, &status, 0), pid);
}

/* Child and tracer take turns: on one processor that costs least. */
static inline void trace_on_one_cpu(void) {
    cpu_set_t cpus, one;
    if (sched_getaffinity(0, sizeof cpus, &cpus) != 0) return;
    int here = sched_getcpu();
    CPU_ZERO(&one);
    if (here >= 0 && CPU_ISSET(here, &cpus)) {
        CPU_SET(here, &one);
        (void)sched_setaffinity(0, sizeof one, &one);
    }
}

#endif
