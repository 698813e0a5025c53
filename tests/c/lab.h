/* lab.h: segments, handles and their deaths, for the C tests.
 *
 * Segments are memfds, so nothing can be left behind in /dev/shm; a child finds them through the inherited
 * descriptor.  lab_die() acts out a death inside one process: the kernel drops the byte lock, everything else
 * stays as it lies.
 */
#ifndef LAB_H
#define LAB_H

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "check.h"
#include "core.h"

#define OK(call) CHECK_EQ((call), SHMQ_OK)
#define MS INT64_C(1000000)

/* LAB_KIND=mpmc (or topic, where the program can) in the environment: the same over another kind of ring. */
static inline uint32_t lab_kind(void) {
    const char *kind = getenv("LAB_KIND");
    if (kind == NULL || strcmp(kind, "spsc") == 0) return SHMQ_KIND_SPSC;
    return strcmp(kind, "mpmc") == 0 ? SHMQ_KIND_MPMC : SHMQ_KIND_TOPIC;
}

/* 4 KiB of ring (or four slots), 16 small pages. */
static shmq_params tiny = {
    .ring_bytes = 4096, .arena_bytes = 16 * SHMQ_SMALL_PAGE, .inline_bytes = 1024, .peers = 8};
__attribute__((constructor)) static void lab_choose_kind(void) { tiny.kind = lab_kind(); }

static inline int lab_object(void) {
    int fd = memfd_create("shmq-lab", MFD_CLOEXEC);
    CHECK(fd >= 0);
    CHECK_EQ(fchmod(fd, 0600), 0);
    return fd;
}

static inline shmq_queue *lab_create(int fd, const shmq_params *params) {
    shmq_queue *q;
    OK(shmq_create(fd, params, &q));
    return q;
}

static inline shmq_queue *lab_attach(int fd) {
    shmq_queue *q;
    OK(shmq_attach(fd, &q));
    return q;
}

/* The kernel's edge between a lock that is gone and whoever asks for it, for the race detector (c_build.py). */
static shmq_a32 lab_locks_gone;
void lab_saw_a_lock(void);
void lab_saw_a_lock(void) { (void)load32_acquire(&lab_locks_gone); }

/* From here on the handle's process is dead, as far as anyone else can see. */
static inline void lab_die(shmq_queue *q) {
    (void)sub32_acq_rel(&lab_locks_gone, 1);
    CHECK_EQ(munmap(q->me.pin, SHMQ_PAGE), 0);
    q->me.pin = NULL;
    q->put.held = q->get.held = false;
}

/* The private memory of a handle that died.  Blocks that it held have been freed by the caller. */
static inline void lab_bury(shmq_queue *q) {
    shmq_segment_unmap(&q->segment);
    free(q->inline_copy);
    free(q->buffers);
    free(q);
}

/* A second handle on the first one's mapping: a race detector knows memory by its address. */
static inline shmq_queue *lab_clone(const shmq_queue *q) {
    shmq_queue *c = calloc(1, sizeof *c);
    CHECK(c != NULL);
    c->segment = q->segment;
    c->control = q->control;
    c->ring = q->ring;
    c->arena = q->arena;
    c->pending = q->pending;
    c->keys = q->keys;
    c->canary = q->canary;
    store_relaxed(&c->put.waiter.spin_ns, load_relaxed(&q->put.waiter.spin_ns));
    store_relaxed(&c->get.waiter.spin_ns, load_relaxed(&q->get.waiter.spin_ns));
    CHECK(shmq_prepare(c));
    c->segment.fd = fcntl(q->segment.fd, F_DUPFD_CLOEXEC, 3);
    CHECK(c->segment.fd >= 0);
    OK(shmq_peers_join(&c->segment, &c->me));
    shmq_settle_in(c);
    atomic_store(&c->users, 1);
    atomic_store(&c->references, 1);
    store32_release(&c->open, 1);
    return c;
}

static inline void lab_end_clone(shmq_queue *c) {
    shmq_pin(c); /* the mapping is the original's */
    shmq_close(c);
    shmq_peers_leave(&c->segment, &c->me);
    close(c->segment.fd);
    free(c->inline_copy);
    free(c->buffers);
    free(c);
}

static inline uint32_t lab_reap(shmq_queue *q) {
    uint32_t repaired;
    OK(shmq_reap(q, &repaired));
    return repaired;
}

static inline shmq_stats lab_stats(shmq_queue *q) {
    shmq_stats s;
    OK(shmq_get_stats(q, &s));
    return s;
}

static inline void lab_all_pages_free(shmq_queue *q) {
    shmq_stats s = lab_stats(q);
    for (int state = SHMQ_PAGE_LOANED; state <= SHMQ_PAGE_CONT; state++) CHECK_EQ(s.pages[state], 0);
    CHECK_EQ(s.arena_free_bytes, s.arena_bytes);
}

/* Memory that a child shares with its parent: what they tell each other outside the queue. */
static inline void *lab_shared(size_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    return p;
}

/* ---- messages that say whether they are whole ----
 *
 * u64 number | u64 hash over number, size and filling | filling, a function of the number */

#define MESSAGE_MIN 16u

static inline uint64_t message_hash(const uint8_t *message, uint64_t bytes) {
    uint64_t hash = UINT64_C(1469598103934665603) ^ bytes; /* FNV-1a, by words */
    for (uint64_t at = 0; at + 8 <= bytes; at += 8) {
        uint64_t word;
        memcpy(&word, message + at, 8);
        if (at != 8) hash = (hash ^ word) * UINT64_C(1099511628211);
    }
    for (uint64_t at = bytes & ~UINT64_C(7); at < bytes; at++)
        hash = (hash ^ message[at]) * UINT64_C(1099511628211);
    return hash;
}

static inline void message_write(uint8_t *to, uint64_t number, uint64_t bytes) {
    for (uint64_t at = MESSAGE_MIN; at < bytes; at++) to[at] = (uint8_t)(number * 31 + at);
    memcpy(to, &number, 8);
    uint64_t hash = message_hash(to, bytes);
    memcpy(to + 8, &hash, 8);
}

/* Its number; ends the test if it is not what message_write wrote. */
#define message_number(data, bytes) message_number_at(__FILE__, __LINE__, data, bytes)
static inline uint64_t message_number_at(const char *file, int line, const uint8_t *message, uint64_t bytes) {
    uint64_t number, hash;
    if (bytes < MESSAGE_MIN) failed(file, line, "a message that is too short");
    memcpy(&number, message, 8);
    memcpy(&hash, message + 8, 8);
    if (hash != message_hash(message, bytes)) failed(file, line, "a torn message");
    return number;
}

#define LAB_MESSAGE_MAX (1u << 20)

static inline int lab_put(shmq_queue *q, uint64_t number, uint64_t bytes, int64_t deadline_ns) {
    static _Thread_local uint8_t message[LAB_MESSAGE_MAX];
    CHECK(bytes >= MESSAGE_MIN && bytes <= sizeof message);
    message_write(message, number, bytes);
    return shmq_put(q, message, bytes, deadline_ns);
}

static inline int lab_get(shmq_queue *q, uint64_t *number, int64_t deadline_ns) {
    shmq_message m;
    int status = shmq_get(q, &m, deadline_ns);
    if (status != SHMQ_OK) return status;
    *number = message_number(m.data, m.bytes);
    shmq_message_release(&m);
    return SHMQ_OK;
}

#endif
