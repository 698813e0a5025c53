/* peers.c: who is attached, and who is alive.
 *
 * Idea: peer i holds a write lock on byte i of the segment's object.  The lock is an OFD lock: it belongs
 * to an open file description.  The description is kept open by nothing but a mapping that a fork does
 * not copy:
 *
 *     open -> F_OFD_SETLK byte i -> mmap one page PROT_NONE -> MADV_DONTFORK -> close(fd)
 *
 * So the lock ends exactly when this process image ends: at exit, SIGKILL or exec, whichever closes the
 * mapping; not by closerange(), not by a thread's end, and a forked child does not keep it.  A stopped
 * process stays alive.  Pids play no part, so PID namespaces and reused pids do not matter.
 *
 * A fork copies descriptors, and a child would keep a lock whose description it got a copy of; so no fork may
 * fall between open and close (shmq_fork_lock).
 *
 * Reapers exclude each other on another byte, REAP_BYTE + i: while one is at work, the peer still looks dead.
 *
 * Order: the byte is locked before the slot word says LIVE, and the word says FREE before the byte is
 * unlocked.  Hence LIVE + unlocked means dead, for ever: a verdict that cannot be revoked.  Where the
 * kernel cannot be asked there is no verdict.
 *
 * Between the verdict and FREE the reaper writes down what it found in the dead one's hands; that, and the flight
 * recorder, stay in the vacant entry until a newcomer has no other left.
 *
 * Death at any line: before the word is LIVE nothing is visible and the kernel drops the lock; after it,
 * the slot is LIVE + unlocked, and a reaper repairs it.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "core.h"

static uint64_t peer_word(uint32_t state, uint64_t epoch) { return state | epoch << 8; }
static uint32_t peer_state(uint64_t word) { return (uint32_t)(word & 0xff); }
static uint64_t peer_epoch(uint64_t word) { return word >> 8; }

#define REAP_BYTE 8192u /* behind the bytes of all peers */

static int lock_byte(int fd, int command, uint32_t byte, short *type) {
    struct flock lock = {.l_type = *type, .l_whence = SEEK_SET, .l_start = (off_t)byte, .l_len = 1};
    int result = fcntl(fd, command, &lock);
    *type = lock.l_type;
    return result;
}

static bool try_lock(int fd, uint32_t byte) {
    short type = F_WRLCK;
    return lock_byte(fd, F_OFD_SETLK, byte, &type) == 0;
}

static void unlock(int fd, uint32_t byte) {
    short type = F_UNLCK;
    (void)lock_byte(fd, F_OFD_SETLK, byte, &type);
}

/* Field 22 of /proc/self/stat: with the pid it names a process for people.  0 where /proc is not there. */
static uint64_t start_ticks(void) {
    char text[1024];
    FILE *f = fopen("/proc/self/stat", "re");
    if (f == NULL) return 0;
    size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = '\0';
    char *at = strrchr(text, ')'); /* the name may hold anything */
    for (int field = 2; at != NULL && field < 22; field++) at = strchr(at + 1, ' ');
    return at == NULL ? 0 : strtoull(at + 1, NULL, 10);
}

static void introduce(struct shmq_peer *peer) {
    struct timespec now;
    /* The post-mortem of the dead one before us ends here, before anything else in the entry changes. */
    store_relaxed(&peer->verdict.life, 0);
    full_fence();
    clock_gettime(CLOCK_REALTIME, &now);
    memset(peer->comm, 0, sizeof peer->comm);
    (void)prctl(PR_GET_NAME, peer->comm);
    peer->pid = (uint32_t)getpid();
    peer->start_ticks = start_ticks();
    peer->attached_unix_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    store_relaxed(&peer->doorbell, 0);
    store32_relaxed(&peer->bells, 0);
    shmq_recorder_clear(peer);
    store32_relaxed(&peer->roles, 0);
    shmq_a64 *counters[] = {&peer->messages_put,
                            &peer->bytes_put,
                            &peer->messages_got,
                            &peer->bytes_got,
                            &peer->parks,
                            &peer->wakes,
                            &peer->reaps,
                            &peer->topic_cursor,
                            &peer->topic_missed,
                            &peer->subscription,
                            &peer->holding_since_ns,
                            &peer->unfinished};
    for (size_t i = 0; i < sizeof counters / sizeof *counters; i++) store_relaxed(counters[i], 0);
}

/* SHMQ_PEERS_FULL: this entry is another's. */
static int join_at(struct shmq_segment *s, int fd, uint32_t i, struct shmq_membership *me) {
    struct shmq_peer *peer = &s->peers[i];
    if (!try_lock(fd, i)) return SHMQ_PEERS_FULL; /* someone is just joining here */
    uint64_t word = load_acquire(&peer->word);
    if (peer_state(word) != SHMQ_PEER_FREE) { /* joined and died meanwhile: a reaper's work */
        unlock(fd, i);
        return SHMQ_PEERS_FULL;
    }
    void *pin = mmap(NULL, SHMQ_PAGE, PROT_NONE, MAP_SHARED, fd, 0);
    if (pin == MAP_FAILED) return SHMQ_SYSTEM;
    if (madvise(pin, SHMQ_PAGE, MADV_DONTFORK) != 0) {
        munmap(pin, SHMQ_PAGE);
        return SHMQ_SYSTEM;
    }
    introduce(peer);
    me->pin = pin;
    me->index = i;
    me->epoch = peer_epoch(word);
    store_release(&peer->word, peer_word(SHMQ_PEER_LIVE, me->epoch));
    return SHMQ_OK;
}

bool shmq_peers_left_dead(const struct shmq_peer *peer, uint64_t word) {
    return peer_state(word) == SHMQ_PEER_FREE && peer_epoch(word) != 0 &&
           load_acquire(&peer->verdict.life) == peer_epoch(word);
}

uint32_t shmq_peers_roster(const struct shmq_segment *s, struct shmq_process *roster, uint32_t capacity) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->geometry.peers && n < capacity; i++) {
        const struct shmq_peer *peer = &s->peers[i];
        if (peer_state(load_acquire(&peer->word)) != SHMQ_PEER_LIVE) continue;
        roster[n++] = (struct shmq_process){.pid = peer->pid, .start_ticks = peer->start_ticks};
    }
    return n;
}

/* Of the entries that the dead left, the one whose turn comes next: by the time of their verdicts, then by index.
 * *at: the last one's, then this one's.  UINT32_MAX: none is left. */
static uint32_t next_of_the_dead(const struct shmq_segment *s, uint32_t last, uint64_t *at) {
    uint32_t next = UINT32_MAX;
    uint64_t least = UINT64_MAX;
    for (uint32_t i = 0; i < s->geometry.peers; i++) {
        const struct shmq_peer *peer = &s->peers[i];
        if (!shmq_peers_left_dead(peer, load_acquire(&peer->word))) continue;
        uint64_t reaped = load_relaxed(&peer->verdict.reaped_ns);
        bool later = last == UINT32_MAX || reaped > *at || (reaped == *at && i > last);
        if (!later || reaped >= least) continue;
        least = reaped;
        next = i;
    }
    *at = least;
    return next;
}

/* A dead one's entry is taken only where no other is vacant, the oldest first: a post-mortem outlives the workers
 * that replace the dead. */
static int join(struct shmq_segment *s, int fd, struct shmq_membership *me) {
    for (uint32_t i = 0; i < s->geometry.peers; i++) {
        uint64_t word = load_acquire(&s->peers[i].word);
        if (peer_state(word) != SHMQ_PEER_FREE || shmq_peers_left_dead(&s->peers[i], word)) continue;
        int status = join_at(s, fd, i, me);
        if (status != SHMQ_PEERS_FULL) return status;
    }
    uint64_t at = 0;
    for (uint32_t i = UINT32_MAX; (i = next_of_the_dead(s, i, &at)) != UINT32_MAX;) {
        int status = join_at(s, fd, i, me);
        if (status != SHMQ_PEERS_FULL) return status;
    }
    return SHMQ_PEERS_FULL;
}

int shmq_peers_join(struct shmq_segment *s, struct shmq_membership *me) {
    shmq_fork_lock();
    int fd = shmq_segment_reopen(s);
    int status = fd < 0 ? SHMQ_SYSTEM : join(s, fd, me);
    if (fd >= 0) close(fd); /* the mapping holds the description, and with it the lock */
    shmq_fork_unlock();
    return status;
}

void shmq_peers_leave(struct shmq_segment *s, struct shmq_membership *me) {
    if (me->pin == NULL) return;
    /* Release: all we did to the segment is visible before the slot is another's. */
    store_release(&s->peers[me->index].word, peer_word(SHMQ_PEER_FREE, me->epoch + 1));
    munmap(me->pin, SHMQ_PAGE);
    me->pin = NULL;
}

/* The descriptor is checked before and after the question: if it was closed and its number reused in
 * between, the answer was about another file. */
static bool same_object(const struct shmq_segment *s) {
    struct stat st;
    return fstat(s->fd, &st) == 0 && st.st_dev == s->dev && st.st_ino == s->ino;
}

int shmq_peers_alive(const struct shmq_segment *s, uint32_t index) {
    short type = F_WRLCK;
    int fd = s->fd, temporary = -1;
    if (!same_object(s)) fd = temporary = shmq_segment_reopen(s);
    if (fd < 0) return -1;
    int asked = lock_byte(fd, F_OFD_GETLK, index, &type);
    bool sure = temporary >= 0 || same_object(s);
    if (temporary >= 0) close(temporary);
    if (asked != 0 || !sure) return -1;
    return type != F_UNLCK;
}

int shmq_peers_verdict_begin(struct shmq_segment *s, uint32_t index, uint64_t *epoch) {
    struct shmq_peer *peer = &s->peers[index];
    if (peer_state(load_relaxed(&peer->word)) != SHMQ_PEER_LIVE) return -1;
    if (shmq_peers_alive(s, index) != 0) return -1;
    shmq_fork_lock();
    /* A description of our own: if we die, the kernel lets the next reaper in. */
    int fd = shmq_segment_reopen(s);
    if (fd >= 0 && try_lock(fd, REAP_BYTE + index)) {
        /* Look again: another reaper may have just finished, and a newcomer joined.  LIVE and unlocked stays
         * so from here: only the reaper, which is us, frees the slot, and nobody joins one that is LIVE. */
        uint64_t word = load_acquire(&peer->word);
        if (peer_state(word) == SHMQ_PEER_LIVE && shmq_peers_alive(s, index) == 0) {
            *epoch = peer_epoch(word);
            return fd; /* fork lock held, until the verdict's end */
        }
    }
    if (fd >= 0) close(fd);
    shmq_fork_unlock();
    return -1;
}

/* Death before `life`: the next reaper looks again.  After it: what this one found is kept, since the next would find
 * some of it repaired. */
void shmq_peers_testify(struct shmq_segment *s, uint32_t index, uint64_t epoch,
                        const struct shmq_hands *hands, uint32_t roles) {
    struct shmq_verdict *v = &s->peers[index].verdict;
    if (load_acquire(&v->life) == epoch + 1) return;
    store_relaxed(&v->reaped_ns, (uint64_t)shmq_now_ns());
    store_relaxed(&v->held_bytes, hands->held_bytes);
    store_relaxed(&v->slot_position, hands->slot_position);
    store32_relaxed(&v->loaned, hands->loaned);
    store32_relaxed(&v->leased, hands->leased);
    store32_relaxed(&v->writing, hands->writing);
    store32_relaxed(&v->reading, hands->reading);
    store32_relaxed(&v->roles, roles);
    store32_relaxed(&v->by_pid, (uint32_t)getpid());
    store_release(&v->life, epoch + 1);
}

void shmq_peers_verdict_end(struct shmq_segment *s, uint32_t index, uint64_t epoch, int lock) {
    store_release(&s->peers[index].word, peer_word(SHMQ_PEER_FREE, epoch + 1));
    close(lock);
    shmq_fork_unlock();
}
