/* atomics.h: C11 atomics whose names carry the memory order.
 *
 * Idea: a reader of the rings should see the order at the call, not in a third argument.
 * Each use in the rings says which edge it is an end of ("P1 -> C1").  There is no wrapper for a
 * full fence on the fast path: publishing and then looking for sleepers is ordered by the sleeper
 * (see wait.c, the asymmetric barrier), so that a put does not drain its store buffer.
 *
 * Everything here works between processes: the types are lock-free, or the build stops.
 */
#ifndef SHMQ_ATOMICS_H
#define SHMQ_ATOMICS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

_Static_assert(ATOMIC_INT_LOCK_FREE == 2, "32-bit atomics must be lock-free to be shared");
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "64-bit atomics must be lock-free to be shared");
_Static_assert(sizeof(_Atomic uint64_t) == 8 && sizeof(_Atomic uint32_t) == 4,
               "atomics must have the size of their value: they are part of the ABI");

typedef _Atomic uint64_t shmq_a64;
typedef _Atomic uint32_t shmq_a32;

static inline uint64_t load_relaxed(const shmq_a64 *p) {
    return atomic_load_explicit(p, memory_order_relaxed);
}
static inline uint64_t load_acquire(const shmq_a64 *p) {
    return atomic_load_explicit(p, memory_order_acquire);
}
static inline void store_relaxed(shmq_a64 *p, uint64_t v) {
    atomic_store_explicit(p, v, memory_order_relaxed);
}
static inline void store_release(shmq_a64 *p, uint64_t v) {
    atomic_store_explicit(p, v, memory_order_release);
}
/* On failure *expected holds what was found. */
static inline bool cas_acq_rel(shmq_a64 *p, uint64_t *expected, uint64_t desired) {
    return atomic_compare_exchange_strong_explicit(p, expected, desired, memory_order_acq_rel,
                                                   memory_order_acquire);
}

static inline uint64_t add_relaxed(shmq_a64 *p, uint64_t v) {
    return atomic_fetch_add_explicit(p, v, memory_order_relaxed);
}
static inline uint64_t add_seq_cst(shmq_a64 *p, uint64_t v) {
    return atomic_fetch_add_explicit(p, v, memory_order_seq_cst);
}

/* Two processes that each store and then look at the other's word: with all four of them seq_cst, one of them sees
 * the other's store.  An acquire may become ARM's ldapr, which can overtake an earlier release. */
static inline uint64_t load_seq_cst(const shmq_a64 *p) {
    return atomic_load_explicit(p, memory_order_seq_cst);
}
static inline void store_seq_cst(shmq_a64 *p, uint64_t v) {
    atomic_store_explicit(p, v, memory_order_seq_cst);
}
static inline bool cas_seq_cst(shmq_a64 *p, uint64_t *expected, uint64_t desired) {
    return atomic_compare_exchange_strong_explicit(p, expected, desired, memory_order_seq_cst,
                                                   memory_order_seq_cst);
}

static inline uint64_t exchange_seq_cst(shmq_a64 *p, uint64_t v) {
    return atomic_exchange_explicit(p, v, memory_order_seq_cst);
}

static inline uint32_t load32_relaxed(const shmq_a32 *p) {
    return atomic_load_explicit(p, memory_order_relaxed);
}
static inline uint32_t load32_acquire(const shmq_a32 *p) {
    return atomic_load_explicit(p, memory_order_acquire);
}
static inline void store32_relaxed(shmq_a32 *p, uint32_t v) {
    atomic_store_explicit(p, v, memory_order_relaxed);
}
static inline void store32_release(shmq_a32 *p, uint32_t v) {
    atomic_store_explicit(p, v, memory_order_release);
}
static inline bool cas32_acq_rel(shmq_a32 *p, uint32_t *expected, uint32_t desired) {
    return atomic_compare_exchange_strong_explicit(p, expected, desired, memory_order_acq_rel,
                                                   memory_order_acquire);
}
static inline uint32_t load32_seq_cst(const shmq_a32 *p) {
    return atomic_load_explicit(p, memory_order_seq_cst);
}
static inline uint32_t exchange32_seq_cst(shmq_a32 *p, uint32_t v) {
    return atomic_exchange_explicit(p, v, memory_order_seq_cst);
}
static inline uint32_t add32_seq_cst(shmq_a32 *p, uint32_t v) {
    return atomic_fetch_add_explicit(p, v, memory_order_seq_cst);
}
static inline uint32_t add32_relaxed(shmq_a32 *p, uint32_t v) {
    return atomic_fetch_add_explicit(p, v, memory_order_relaxed);
}
static inline uint32_t or32_seq_cst(shmq_a32 *p, uint32_t bits) {
    return atomic_fetch_or_explicit(p, bits, memory_order_seq_cst);
}
static inline uint32_t and32_seq_cst(shmq_a32 *p, uint32_t bits) {
    return atomic_fetch_and_explicit(p, bits, memory_order_seq_cst);
}
static inline uint32_t sub32_acq_rel(shmq_a32 *p, uint32_t v) {
    return atomic_fetch_sub_explicit(p, v, memory_order_acq_rel);
}

/* Keeps the compiler, not the CPU, from reordering: the light half of the asymmetric barrier. */
static inline void compiler_barrier(void) { atomic_signal_fence(memory_order_seq_cst); }
/* The full fence, for processes that the kernel's membarrier cannot reach. */
static inline void full_fence(void) { atomic_thread_fence(memory_order_seq_cst); }
/* The two halves of a seqlock: what follows stays behind the word that says "being written", and what came before
 * was read before the word is read again.  No instruction on x86. */
static inline void release_fence(void) { atomic_thread_fence(memory_order_release); }
static inline void acquire_fence(void) { atomic_thread_fence(memory_order_acquire); }

/* Tells the CPU that this is a spin loop.  A hint: an empty body is correct. */
static inline void cpu_relax(void) {
#if defined(__x86_64__)
    __asm__ __volatile__("pause");
#elif defined(__aarch64__)
    __asm__ __volatile__("isb");
#endif
}

#endif
