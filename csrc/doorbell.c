/* doorbell.c: wake-ups of event loops.
 *
 * Idea: who waits in an event loop cannot sleep on a futex, but its loop polls descriptors.  So each loop of a process
 * has a FIFO, shared by all its handles; a waker writes one byte into it.  It is rung on the armed edge only: a
 * peer's entry says what it wants to hear of, and whoever clears that bit writes the byte.
 *
 *     waiter                                  waker
 *     B0 doorbell = number of the FIFO        W0 publish
 *     B1 bells |= what it waits for           W1 read armed: 0: done, no system call
 *     B2 armed |= BELLS                       W2 armed -> 0; had it BELLS?
 *        full fence here                      W4 for each live peer: bells &= ~it; had it the bit?
 *     B3 look again: ready? disarm            W5 write a byte into the FIFO named by its doorbell
 *     B4 poll, for a short slice at most
 *        full barrier in EVERY process
 *     B5 look again; then poll
 *
 * No wake-up is lost: W1 and B5 are as W1 and S2 in wait.c.  Who exchanges armed finds in W4 the bits of
 * all who set BELLS before, since B1 comes before B2.  The barrier interrupts other processors, the waker's
 * among them (two of them doubled a round trip), so it does not stand before B3: between B2 and B5 a
 * message can stay unheard of, if its waker did W0 and W1 within the moment in which B2 and B3 were done
 * and W0 was still in a store buffer.  That costs a short slice.  Mostly a ring comes sooner, and the
 * barrier is never needed.
 *
 *     bells, armed                 what it means                        who goes on
 *     0                            does not wait; or a byte is on its   -
 *                                  way, or in the FIFO
 *     set, BELLS set               waits                                the next waker
 *     set, BELLS clear             a waker is between W2 and W4         it; died there: the slice
 *     clear, no byte yet           a waker is between W4 and W5         it; died there: the slice
 *     set, the waiter dead         rung in vain once; the FIFO goes     its reaper
 *                                  with the entry
 *
 * While our bit is set, somebody rings for whatever is published: as long as BELLS is set, the next waker;
 * and once it is not, whoever took it, and what is published without a ring before that one rings us is
 * there when we look then.  So a loop that was rung for another queue need not arm this one anew.  It does
 * at the end of a slice: that waker may be dead.
 *
 * The slice: who waits looks again after SHMQ_SLICE_NS at the latest, as sleepers do (wait.c), because the dead do not
 * ring, and arms anew.  A bell is a hint for the time before that, so no failure of W5 is an error.  A loop that the
 * kernel tells of the death of each peer (pidfds) may make its slices longer; so that it knows its peers, a newcomer
 * rings all bells (shmq_bell_news).
 *
 * The FIFOs lie beside the segments, in /dev/shm/shmq-doorbells-UID of mode 0700: visible where those are,
 * and to nobody else.  Both ends open one for reading and writing: a waker then neither waits for a reader,
 * nor meets a FIFO without one (ENXIO, SIGPIPE), and a loop never reads the end of file.  A pipe that is
 * full has been rung.
 *
 * What a killed process leaves is removed by whoever repairs its entry; and, where nobody is left on its segments, by
 * the next process that makes a doorbell: a FIFO that nobody has open is dead.  So that a new one is never taken for
 * dead, it gets its name when it is open already.  The directory goes with the last of them.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core.h"

#define DOORBELL_TRIES 100 /* others remove the directory, or a FIFO that is not open yet, meanwhile */
#define DOORBELL_OPEN (O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW)
#define DOORBELL_DIGITS 16

static void doorbell_directory(char path[64]) {
    snprintf(path, 64, "/dev/shm/shmq-doorbells-%u", (unsigned)geteuid());
}

static void doorbell_path(char path[96], uint64_t number) {
    char directory[64];
    doorbell_directory(directory);
    snprintf(path, 96, "%s/%016" PRIx64, directory, number);
}

/* ---- our own ---- */

/* The directory, made if need be. */
static int open_directory(int *directory) {
    char path[64];
    struct stat st;
    doorbell_directory(path);
    if (mkdir(path, 0700) != 0 && errno != EEXIST) return SHMQ_SYSTEM;
    *directory = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (*directory < 0) {
        if (errno == ENOENT) return SHMQ_LOOK_AGAIN;
        return errno == ELOOP || errno == ENOTDIR || errno == EACCES ? SHMQ_WRONG_OWNER : SHMQ_SYSTEM;
    }
    if (fstat(*directory, &st) == 0 && st.st_uid == geteuid() && (st.st_mode & 0777) == 0700) return SHMQ_OK;
    close(*directory);
    return SHMQ_WRONG_OWNER;
}

static bool is_unheard(int directory, const char *name) {
    if (strspn(name, "0123456789abcdef.") != strlen(name) || strlen(name) < DOORBELL_DIGITS) return false;
    int fd = openat(directory, name, O_WRONLY | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW);
    if (fd >= 0) close(fd);
    return fd < 0 && errno == ENXIO;
}

static void sweep_bells(int directory) {
    int again = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *names = again < 0 ? NULL : fdopendir(again);
    if (names == NULL) {
        if (again >= 0) close(again);
        return;
    }
    for (struct dirent *e; (e = readdir(names)) != NULL;)
        if (is_unheard(directory, e->d_name)) (void)unlinkat(directory, e->d_name, 0);
    closedir(names);
}

/* Death here leaves a FIFO that nobody has open: swept.  SHMQ_LOOK_AGAIN: it was swept under us. */
static int make_fifo(int directory, uint64_t number, int *fd) {
    char made[24]; /* a dot, then the name */
    const char *name = made + 1;
    snprintf(made, sizeof made, ".%016" PRIx64, number);
    if (mkfifoat(directory, made, 0600) != 0)
        return errno == ENOENT || errno == EEXIST ? SHMQ_LOOK_AGAIN : SHMQ_SYSTEM;
    *fd = openat(directory, made, DOORBELL_OPEN);
    if (*fd >= 0 && renameat(directory, made, directory, name) == 0) return SHMQ_OK;
    int error = errno;
    if (*fd >= 0) close(*fd);
    (void)unlinkat(directory, made, 0);
    errno = error;
    return error == ENOENT ? SHMQ_LOOK_AGAIN : SHMQ_SYSTEM;
}

int shmq_doorbell_open(uint64_t *number, int *fd) {
    int status = SHMQ_LOOK_AGAIN;
    for (int tries = 0; status == SHMQ_LOOK_AGAIN && tries < DOORBELL_TRIES; tries++) {
        int directory;
        if (getrandom(number, sizeof *number, 0) != sizeof *number) return SHMQ_SYSTEM;
        if (*number == 0) continue;
        if ((status = open_directory(&directory)) != SHMQ_OK) continue;
        sweep_bells(directory);
        status = make_fifo(directory, *number, fd);
        int error = errno;
        close(directory);
        errno = error;
    }
    return status == SHMQ_LOOK_AGAIN ? SHMQ_SYSTEM : status;
}

void shmq_doorbell_remove(uint64_t number) {
    char path[96];
    if (number == 0) return;
    doorbell_path(path, number);
    (void)unlink(path);
    doorbell_directory(path);
    (void)rmdir(path); /* unless there are others */
}

/* After a closerange() the descriptor may be another file by now. */
static bool is_doorbell(int fd) {
    struct stat st, shm;
    return fstat(fd, &st) == 0 && S_ISFIFO(st.st_mode) && stat("/dev/shm", &shm) == 0 &&
           st.st_dev == shm.st_dev;
}

void shmq_doorbell_close(uint64_t number, int fd) {
    if (is_doorbell(fd)) close(fd);
    shmq_doorbell_remove(number);
}

/* ---- to wait ---- */

static uint32_t bell_of(const struct shmq_segment *s, const struct shmq_eventcount *e) {
    return e == &s->control->not_empty ? SHMQ_BELL_NOT_EMPTY : SHMQ_BELL_NOT_FULL;
}

bool shmq_bell_arm(const struct shmq_segment *s, uint32_t myself, struct shmq_eventcount *e, uint64_t number,
                   enum shmq_arming how) {
    struct shmq_peer *p = &s->peers[myself];
    uint32_t bell = bell_of(s, e), end = load32_relaxed(&e->bells_end);
    /* relaxed: only we set them; whoever clears the bit rings, and then we look again */
    bool raised = (load32_relaxed(&p->bells) & bell) != 0 && load_relaxed(&p->doorbell) == number;
    if (raised && how == SHMQ_ARM) return false;
    store_relaxed(&p->doorbell, number); /* B0: B1 is a release */
    while (end <= myself && !cas32_acq_rel(&e->bells_end, &end, myself + 1)) {
    } /* It only grows, so a failed CAS means that there is less left to do. */
    (void)or32_seq_cst(&p->bells, bell);                        /* B1 -> W4 */
    uint32_t armed = or32_seq_cst(&e->armed, SHMQ_ARMED_BELLS); /* B2 -> W2 */
    full_fence();
    return !raised || (armed & SHMQ_ARMED_BELLS) == 0;
}

void shmq_bell_disarm(const struct shmq_segment *s, uint32_t myself, const struct shmq_eventcount *e) {
    /* armed stays: it may be another's, too. */
    (void)and32_seq_cst(&s->peers[myself].bells, ~bell_of(s, e));
}

/* ---- to ring ---- */

static bool still_kept(const struct shmq_bell_kept *b) {
    struct stat st;
    return b->number != 0 && fstat(b->fd, &st) == 0 && st.st_dev == b->dev && st.st_ino == b->ino;
}

static void stop_keeping(struct shmq_bell_kept *b) {
    if (still_kept(b)) close(b->fd); /* else someone closed it, and the number may be another file's */
    b->number = 0;
}

static void keep_bell(struct shmq_bell_kept *b, uint64_t number) {
    char path[96];
    struct stat st;
    doorbell_path(path, number);
    b->fd = open(path, DOORBELL_OPEN);
    if (b->fd < 0) return;
    if (fstat(b->fd, &st) != 0 || !S_ISFIFO(st.st_mode) || st.st_uid != geteuid()) {
        close(b->fd);
        return;
    }
    b->number = number;
    b->dev = st.st_dev;
    b->ino = st.st_ino;
}

static void ring_one(struct shmq_bell_kept *b, uint64_t number) {
    if (number == 0) return;
    if (b->number != number || !still_kept(b)) {
        stop_keeping(b);
        keep_bell(b, number);
    }
    if (b->number == number && write(b->fd, "", 1) < 0) return; /* EAGAIN: it is full of bytes already */
}

static void ring_all(const struct shmq_segment *s, struct shmq_bells *bells, struct shmq_eventcount *e) {
    uint32_t bell = bell_of(s, e), end = load32_relaxed(&e->bells_end); /* as of B2 at least, by W2 */
    if (end > s->geometry.peers) end = s->geometry.peers;
    for (uint32_t i = 0; i < end; i++) {
        struct shmq_peer *p = &s->peers[i];
        if ((load32_relaxed(&p->bells) & bell) == 0)
            continue; /* relaxed: B1 came before B2, and W2 saw that */
        if ((load_acquire(&p->word) & 0xff) != SHMQ_PEER_LIVE) continue;
        if ((and32_seq_cst(&p->bells, ~bell) & bell) == 0) continue; /* W4: another waker rings it */
        ring_one(&bells->kept[i % SHMQ_BELLS_KEPT], load_relaxed(&p->doorbell)); /* W5 */
    }
}

void shmq_wake_slow(const struct shmq_segment *s, struct shmq_bells *bells, struct shmq_eventcount *e) {
    if ((shmq_eventcount_wake_slow(e) & SHMQ_ARMED_BELLS) == 0) return;
    int error = errno; /* what we ring for may have failed with one */
    if (bells != NULL) {
        pthread_mutex_lock(&bells->lock); /* held for calls that do not block */
        ring_all(s, bells, e);
        pthread_mutex_unlock(&bells->lock);
    } else {
        struct shmq_bells none = {0};
        ring_all(s, &none, e);
        shmq_bells_close(&none);
    }
    errno = error;
}

/* A newcomer: loops want to hear of its death, see shmq_peers_roster.  The bits stay, so with us nobody's wake-up is
 * lost.  A loop that is not rung had not stored its doorbell (B0) when we looked, so it sees `joined` when it looks
 * behind its fence; and our entry is LIVE by then. */
void shmq_bell_news(const struct shmq_segment *s, uint32_t myself) {
    (void)add32_seq_cst(&s->control->roles.joined, 1);
    full_fence();
    uint32_t end = load32_relaxed(&s->control->not_full.bells_end);
    uint32_t at_gets = load32_relaxed(&s->control->not_empty.bells_end);
    if (at_gets > end) end = at_gets;
    for (uint32_t i = 0; i < end && i < s->geometry.peers; i++) {
        struct shmq_bell_kept bell = {0};
        if (i == myself || (load_acquire(&s->peers[i].word) & 0xff) != SHMQ_PEER_LIVE) continue;
        ring_one(&bell, load_relaxed(&s->peers[i].doorbell));
        stop_keeping(&bell);
    }
}

void shmq_bells_close(struct shmq_bells *bells) {
    for (uint32_t i = 0; i < SHMQ_BELLS_KEPT; i++) stop_keeping(&bells->kept[i]);
}
