/* segment.c: geometry, mapping, and the ready-last handshake.
 *
 * Idea: the creator reserves every byte first (posix_fallocate, so that a small /dev/shm is an error
 * here and not a SIGBUS in someone's memcpy), builds everything, and stores the magic last.  Whoever
 * attaches sees the magic, checks it all against the file's size, and keeps a private copy of the
 * geometry: a geometry that is changed later is never looked at again.
 *
 * Offsets are a function of a few sizes.  An attacher computes them again and compares, so there is
 * one place that knows the layout and no offset is ever believed.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "core.h"

#define RING_MIN (UINT64_C(4) << 10)
#define RING_MAX (UINT64_C(1) << 30)
#define SHMQ_MAX_PENDING (UINT32_C(1) << 20)
#define RESERVE_CHUNK (UINT64_C(16) << 20) /* short enough to finish between two signals */
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

static uint64_t round_up(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }

static bool is_power_of_two(uint64_t n) { return n != 0 && (n & (n - 1)) == 0; }

static bool spsc_ok(const struct shmq_geometry *g) {
    return is_power_of_two(g->ring_bytes) && g->first_cursor % 8 == 0 && g->slots == 0 &&
           g->slot_bytes == 0 && g->inline_bytes >= 8 && g->inline_bytes <= g->ring_bytes / 4;
}

static bool slots_ok(const struct shmq_geometry *g) {
    return is_power_of_two(g->slots) && g->slots >= 2 && g->slot_bytes % SHMQ_LINE == 0 &&
           g->slot_bytes > 0 && g->ring_bytes == (uint64_t)g->slots * g->slot_bytes &&
           g->inline_bytes == g->slot_bytes - sizeof(struct shmq_slot);
}

/* An eighth of the ring's, but 16 where the ring has as many. */
static uint32_t urgent_slots(const struct shmq_geometry *g) {
    uint32_t least = g->slots < 16 ? g->slots : 16;
    return g->slots / 8 > least ? g->slots / 8 : least;
}

/* Fills in every offset from the sizes.  False if a size is out of its range. */
static bool layout(uint32_t kind, struct shmq_geometry *g) {
    uint64_t pages = (uint64_t)g->small_pages + g->large_pages;
    if (kind < SHMQ_KIND_SPSC || kind > SHMQ_KIND_TOPIC) return false;
    if (!(kind == SHMQ_KIND_SPSC ? spsc_ok(g) : slots_ok(g))) return false;
    if (kind == SHMQ_KIND_TOPIC ? g->peers > SHMQ_TOPIC_PEERS || g->history > g->slots / 2 : g->history != 0)
        return false;
    if (g->keys > SHMQ_MAX_KEYS || (g->keys != 0 && kind != SHMQ_KIND_MPMC)) return false;
    if (g->pending > SHMQ_MAX_PENDING || g->unused != 0 ||
        (g->pending == 0 ? g->max_deliveries != 0 || g->visibility_ns != 0 : kind != SHMQ_KIND_MPMC))
        return false;
    if (g->urgent_slots != 0 && (kind != SHMQ_KIND_MPMC || g->urgent_slots != urgent_slots(g))) return false;
    if (g->ring_bytes < RING_MIN || g->ring_bytes > RING_MAX || g->peers < 1 || g->peers > SHMQ_MAX_PEERS ||
        pages > SHMQ_MAX_PAGES)
        return false;
    g->peers_at = SHMQ_CONTROL_AT + sizeof(struct shmq_control);
    g->ring_at = round_up(g->peers_at + g->peers * sizeof(struct shmq_peer), SHMQ_PAGE);
    g->urgent_at = round_up(g->ring_at + g->ring_bytes, SHMQ_PAGE);
    g->pending_at = round_up(g->urgent_at + (uint64_t)g->urgent_slots * g->slot_bytes, SHMQ_PAGE);
    g->copies_at = round_up(g->pending_at + g->pending * sizeof(struct shmq_pending_entry), SHMQ_LINE);
    g->keys_at = round_up(g->copies_at + (uint64_t)g->pending * g->slot_bytes, SHMQ_LINE);
    g->words_at = round_up(g->keys_at + shmq_key_chains(g->keys) * sizeof(shmq_a64) +
                               g->keys * sizeof(struct shmq_key_entry),
                           SHMQ_PAGE);
    g->blocks_at = round_up(g->words_at + pages * sizeof(shmq_a64), SHMQ_LINE);
    g->small_at = round_up(g->blocks_at + pages * sizeof(struct shmq_block_header), SHMQ_PAGE);
    g->large_at = round_up(g->small_at + (uint64_t)g->small_pages * SHMQ_SMALL_PAGE,
                           g->large_pages > 0 ? SHMQ_LARGE_PAGE : SHMQ_PAGE);
    g->total_bytes = g->large_at + (uint64_t)g->large_pages * SHMQ_LARGE_PAGE;
    return true;
}

/* Sizes from what the user asked for. */
static bool plan(const shmq_params *p, struct shmq_geometry *g) {
    memset(g, 0, sizeof *g);
    if (p->ring_bytes > RING_MAX || p->arena_bytes > (uint64_t)SHMQ_MAX_PAGES * SHMQ_SMALL_PAGE) return false;
    uint64_t asked = p->ring_bytes > RING_MIN ? p->ring_bytes : RING_MIN;
    g->first_cursor = p->first_cursor & ~UINT64_C(7);
    if (p->policy > SHMQ_EVICT || (p->policy != 0 && p->kind != SHMQ_KIND_TOPIC)) return false;
    g->history = p->history;
    g->pending = p->max_unacked;
    g->max_deliveries = p->max_deliveries;
    g->visibility_ns = p->visibility_ns;
    g->keys = p->keys;
    if (p->kind != SHMQ_KIND_SPSC) {
        if (p->inline_bytes > RING_MAX) return false;
        g->slot_bytes = (uint32_t)round_up(sizeof(struct shmq_slot) + p->inline_bytes, SHMQ_LINE);
        for (g->slots = 2; (uint64_t)g->slots * g->slot_bytes < asked;) g->slots *= 2;
        g->inline_bytes = g->slot_bytes - (uint32_t)sizeof(struct shmq_slot);
        g->ring_bytes = (uint64_t)g->slots * g->slot_bytes;
        if (p->priority != 0) g->urgent_slots = urgent_slots(g);
    } else {
        if (p->priority != 0) return false;
        for (g->ring_bytes = RING_MIN; g->ring_bytes < asked;) g->ring_bytes *= 2;
        g->inline_bytes = p->inline_bytes;
    }
    g->peers = p->peers;
    if (p->arena_bytes < 2 * SHMQ_LARGE_PAGE) {
        g->small_pages = (uint32_t)(round_up(p->arena_bytes, SHMQ_SMALL_PAGE) / SHMQ_SMALL_PAGE);
    } else {
        uint64_t small = p->arena_bytes / 4;
        if (small > (UINT64_C(64) << 20)) small = UINT64_C(64) << 20;
        g->small_pages = (uint32_t)(round_up(small, SHMQ_SMALL_PAGE) / SHMQ_SMALL_PAGE);
        g->large_pages = (uint32_t)(round_up(p->arena_bytes, SHMQ_LARGE_PAGE) / SHMQ_LARGE_PAGE);
    }
    return layout(p->kind, g);
}

uint64_t shmq_segment_bytes(const shmq_params *params) {
    struct shmq_geometry g;
    return plan(params, &g) ? g.total_bytes : 0;
}

/* posix_fallocate in pieces: the kernel undoes an interrupted call, so under a storm of signals one
 * large call would never end. */
static int reserve(int fd, uint64_t bytes) {
    for (uint64_t at = 0; at < bytes;) {
        uint64_t n = bytes - at < RESERVE_CHUNK ? bytes - at : RESERVE_CHUNK;
        int error = posix_fallocate(fd, (off_t)at, (off_t)n);
        if (error == EINTR) continue;
        if (error == ENOSPC || error == ENOMEM || error == EFBIG) return SHMQ_OUT_OF_SPACE;
        if (error != 0) {
            errno = error;
            return SHMQ_SYSTEM;
        }
        at += n;
    }
    return SHMQ_OK;
}

/* Fault the pages in now, in bulk: a first touch costs 30 times as much.  All memory is reserved, so
 * the plain touch for older kernels cannot fail either. */
static void populate(uint8_t *base, uint64_t bytes) {
    for (uint64_t at = 0; at < bytes;) {
        uint64_t n = bytes - at < RESERVE_CHUNK ? bytes - at : RESERVE_CHUNK;
        if (madvise(base + at, n, MADV_POPULATE_WRITE) == 0) {
            at += n;
        } else if (errno != EINTR && errno != EAGAIN) {
            for (; at < bytes; at += SHMQ_PAGE) (void)*(volatile uint8_t *)(base + at);
        }
    }
}

/* Maps at a 2 MiB aligned address, so that large pages can be huge pages. */
static int map(struct shmq_segment *s, int fd, uint64_t bytes, uint64_t large_at, bool read_only) {
    uint64_t span = bytes + SHMQ_LARGE_PAGE;
    uint8_t *hole = mmap(NULL, span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (hole == MAP_FAILED) return errno == ENOMEM ? SHMQ_OUT_OF_SPACE : SHMQ_SYSTEM;
    uint8_t *at = (uint8_t *)(uintptr_t)round_up((uintptr_t)hole, SHMQ_LARGE_PAGE);
    int protection = read_only ? PROT_READ : PROT_READ | PROT_WRITE;
    if (mmap(at, bytes, protection, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
        int error = errno;
        munmap(hole, span);
        errno = error;
        return error == ENOMEM ? SHMQ_OUT_OF_SPACE : SHMQ_SYSTEM;
    }
    uint64_t mapped = round_up(bytes, (uint64_t)sysconf(_SC_PAGESIZE)); /* 4 to 64 KiB */
    if (at > hole) munmap(hole, (size_t)(at - hole));
    if (at + mapped < hole + span) munmap(at + mapped, (size_t)(hole + span - (at + mapped)));
    /* Both are wishes: no huge pages and a dump of gigabytes are not errors. */
    if (large_at < bytes) (void)madvise(at + large_at, bytes - large_at, MADV_HUGEPAGE);
    (void)madvise(at, bytes, MADV_DONTDUMP);
    if (!read_only) populate(at, bytes);
    s->base = at;
    return SHMQ_OK;
}

static void point_into(struct shmq_segment *s, const struct stat *st) {
    s->control = (struct shmq_control *)(void *)(s->base + SHMQ_CONTROL_AT);
    s->peers = (struct shmq_peer *)(void *)(s->base + s->geometry.peers_at);
    s->dev = st->st_dev;
    s->ino = st->st_ino;
}

static int own_descriptor(int fd) { return fcntl(fd, F_DUPFD_CLOEXEC, 3); }

/* Only a plain file of this user that nobody else can open is believed. */
static int check_file(const struct stat *st) {
    if (!S_ISREG(st->st_mode)) return SHMQ_NOT_A_SEGMENT;
    if (st->st_uid != geteuid() || (st->st_mode & 077) != 0) return SHMQ_WRONG_OWNER;
    return SHMQ_OK;
}

int shmq_segment_create(int fd, const shmq_params *params, struct shmq_segment *s) {
    struct stat st;
    memset(s, 0, sizeof *s);
    s->fd = -1;
    if (!plan(params, &s->geometry)) return SHMQ_INVALID;
    if (fstat(fd, &st) != 0) return SHMQ_SYSTEM;
    int status = check_file(&st);
    if (status != SHMQ_OK) return status;
    if (st.st_size != 0) return SHMQ_INVALID; /* never build over something */
    if (ftruncate(fd, (off_t)s->geometry.total_bytes) != 0)
        return errno == EFBIG || errno == EINVAL ? SHMQ_OUT_OF_SPACE : SHMQ_SYSTEM;
    status = reserve(fd, s->geometry.total_bytes);
    if (status != SHMQ_OK) return status;
    status = map(s, fd, s->geometry.total_bytes, s->geometry.large_at, false);
    if (status != SHMQ_OK) return status;
    if ((s->fd = own_descriptor(fd)) < 0) {
        shmq_segment_unmap(s);
        return SHMQ_SYSTEM;
    }
    s->kind = params->kind;
    s->policy = params->policy;

    struct shmq_header *h = (struct shmq_header *)(void *)s->base;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    h->fingerprint = SHMQ_FINGERPRINT;
    h->kind = s->kind;
    h->flags = s->policy;
    h->created_unix_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    h->creator_pid = (uint32_t)getpid();
    h->creator_uid = (uint32_t)geteuid();
    h->geometry = s->geometry;
    if (getrandom(h->uuid, sizeof h->uuid, 0) != sizeof h->uuid) {
        shmq_segment_unmap(s);
        return SHMQ_SYSTEM;
    }
    point_into(s, &st);
    return SHMQ_OK;
}

/* Death before this line leaves a segment without a magic: attachers say NOT_READY, `shmq rm` removes
 * it.  After it, everything is there. */
void shmq_segment_ready(struct shmq_segment *s) {
    struct shmq_header *h = (struct shmq_header *)(void *)s->base;
    store_release(&h->magic, SHMQ_MAGIC); /* H1 -> H2: all of the segment before the magic */
}

int shmq_segment_attach(int fd, bool read_only, struct shmq_segment *s) {
    struct stat st;
    memset(s, 0, sizeof *s);
    s->fd = -1;
    if (fstat(fd, &st) != 0) return SHMQ_SYSTEM;
    int status = check_file(&st);
    if (status != SHMQ_OK) return status;
    if (st.st_size == 0) return SHMQ_NOT_READY;
    if (st.st_size < (off_t)(SHMQ_CONTROL_AT + sizeof(struct shmq_control))) return SHMQ_NOT_A_SEGMENT;

    struct shmq_header *h = mmap(NULL, SHMQ_CONTROL_AT, PROT_READ, MAP_SHARED, fd, 0);
    if (h == MAP_FAILED) return SHMQ_SYSTEM;
    uint64_t magic = load_acquire(&h->magic); /* H2 */
    struct shmq_header copy;
    memcpy(&copy, (const void *)h, sizeof copy); /* read once; only this copy is checked and used */
    munmap(h, SHMQ_CONTROL_AT);
    if (magic == 0) return SHMQ_NOT_READY;
    if (magic != SHMQ_MAGIC) return SHMQ_NOT_A_SEGMENT;
    if (copy.fingerprint != SHMQ_FINGERPRINT || copy.kind < SHMQ_KIND_SPSC || copy.kind > SHMQ_KIND_TOPIC ||
        copy.flags > (copy.kind == SHMQ_KIND_TOPIC ? SHMQ_EVICT : 0))
        return SHMQ_ABI_MISMATCH;
    s->geometry = copy.geometry;
    if (!layout(copy.kind, &s->geometry) || memcmp(&s->geometry, &copy.geometry, sizeof copy.geometry) != 0)
        return SHMQ_NOT_A_SEGMENT;
    if ((uint64_t)st.st_size < s->geometry.total_bytes) return SHMQ_NOT_A_SEGMENT; /* truncated */

    status = map(s, fd, s->geometry.total_bytes, s->geometry.large_at, read_only);
    if (status != SHMQ_OK) return status;
    if ((s->fd = own_descriptor(fd)) < 0) {
        shmq_segment_unmap(s);
        return SHMQ_SYSTEM;
    }
    s->kind = copy.kind;
    s->policy = copy.flags;
    point_into(s, &st);
    return SHMQ_OK;
}

static bool is_ours(const struct shmq_segment *s, int fd) {
    struct stat st;
    return fd >= 0 && fstat(fd, &st) == 0 && st.st_dev == s->dev && st.st_ino == s->ino;
}

void shmq_segment_unmap(struct shmq_segment *s) {
    if (s->base != NULL) munmap(s->base, round_up(s->geometry.total_bytes, SHMQ_PAGE));
    s->base = NULL;
    /* After a closerange() the number may belong to someone else: close only what is ours. */
    if (s->ino != 0 ? is_ours(s, s->fd) : s->fd >= 0) close(s->fd);
    s->fd = -1;
}

/* A new description, not a dup: locks belong to descriptions.  Our descriptor may be closed, or be
 * another file by now (daemons call closerange), so look before using it; then try the name. */
int shmq_segment_reopen(const struct shmq_segment *s) {
    char path[64];
    int fd = -1;
    if (is_ours(s, s->fd)) {
        snprintf(path, sizeof path, "/proc/self/fd/%d", s->fd);
        fd = open(path, O_RDWR | O_CLOEXEC);
    }
    if (!is_ours(s, fd) && s->name[0] != '\0') {
        if (fd >= 0) close(fd);
        fd = shm_open(s->name, O_RDWR, 0);
    }
    if (is_ours(s, fd)) return fd;
    if (fd >= 0) close(fd);
    return -1;
}
