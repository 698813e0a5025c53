/* core.h: internal prototypes, grouped by file, in the order of the floors.
 *
 *     look.c      read-only snapshots
 *     lease.c     delivery at least once
 *     shmq.c      waits, and the blocking calls
 *     message.c   puts, loans and gets that only try, and wake
 *     handle.c    a handle's life, its roles
 *     recover.c   the order of repair
 *     ring.c      a ring of any kind
 *     share.c | keep.c | lanes.c     the blocks of a topic; of what is to be acknowledged; two mpmc rings as one
 *     spsc.c | mpmc.c | topic.c | arena.c | pending.c | keys.c    the structures; none knows another, none waits
 *     doorbell.c                               wake-ups of event loops
 *     peers.c     who is attached, who is alive
 *     recorder.c  the flight recorder: a peer's last operations
 *     wait.c      eventcount, futex, deadlines
 *     segment.c   geometry, map, ready-last handshake
 *
 * A file calls only files below it; tests/test_house.py holds this.
 */
#ifndef SHMQ_CORE_H
#define SHMQ_CORE_H

#include <pthread.h>
#include <stdbool.h>
#include <sys/types.h>

#include "layout.h"
#include "shmq.h"
#include "slots.h"

#define SHMQ_LIKELY(x) __builtin_expect(!!(x), 1)
#define SHMQ_UNLIKELY(x) __builtin_expect(!!(x), 0)
/* For what would be inlined into a path that seldom needs it, and would make it slow. */
#define SHMQ_APART __attribute__((noinline))

/* A status that never leaves the core: something was in the way, and is not any more. */
#define SHMQ_LOOK_AGAIN (-1)

/* ---- segment.c ---- */

/* A mapped segment.  `geometry` is a checked private copy: the shared one is not read again. */
struct shmq_segment {
    uint8_t *base;
    struct shmq_control *control;
    struct shmq_peer *peers;
    struct shmq_geometry geometry;
    uint32_t kind, policy;
    int fd; /* ours; may have been closed behind our back, see shmq_segment_reopen */
    dev_t dev;
    ino_t ino;
    char name[256]; /* as shm_open takes it, or "" */
};

int shmq_segment_create(int fd, const shmq_params *params, struct shmq_segment *segment);
void shmq_segment_ready(struct shmq_segment *segment);
int shmq_segment_attach(int fd, bool read_only, struct shmq_segment *segment);
void shmq_segment_unmap(struct shmq_segment *segment);
/* A fresh open file description of the segment's object, or -1. */
int shmq_segment_reopen(const struct shmq_segment *segment);
static inline const struct shmq_header *shmq_segment_header(const struct shmq_segment *s) {
    return (const struct shmq_header *)(const void *)s->base;
}

/* ---- wait.c ---- */

#define SHMQ_SLICE_NS INT64_C(100000000)     /* longest sleep without a look at the peers */
#define SHMQ_SHORT_SLICE_NS INT64_C(1000000) /* the same where membarrier is not to be had */
#define SHMQ_SPIN_MIN_NS INT64_C(2000)
#define SHMQ_SPIN_MAX_NS INT64_C(50000)
#define SHMQ_WAKE_NS INT64_C(50000) /* about what a wake-up takes on a virtual machine */

struct shmq_waiter {
    shmq_a64 spin_ns; /* adapts between the two bounds; 0: one CPU only.  Any thread that waits */
};

int64_t shmq_now_ns(void);
/* Once per attach: this process takes part in the asymmetric barrier. */
void shmq_wait_register(void);
extern shmq_a32 shmq_fence_on_publish; /* this process could not register: it fences itself */
long shmq_cpus_online(void);
/* No fork of this process falls between the two: a child would keep copies of descriptors, and their locks. */
void shmq_fork_lock(void);
void shmq_fork_unlock(void);
/* True while the process has not forked since `canary` was read. */
uint64_t shmq_process_canary(void);
extern const volatile uint64_t *shmq_canary;

/* Wakes who sleeps here; returns what was armed: for SHMQ_ARMED_BELLS see shmq_wake_slow. */
uint32_t shmq_eventcount_wake_slow(struct shmq_eventcount *e);

/* To be asked after the store that made something available.  No system call, no fence and no write. */
static inline bool shmq_eventcount_armed(const struct shmq_eventcount *e) {
    /* W1 -> S1: our store must be visible before we read armed.  The sleeper's membarrier does
     * that for us between its arming and its second look (wait.c); here it only must not be
     * reordered by the compiler.  A process outside the membarrier fences. */
    compiler_barrier();
    if (SHMQ_UNLIKELY(load32_relaxed(&shmq_fence_on_publish) != 0)) full_fence();
    return SHMQ_UNLIKELY(load32_relaxed(&e->armed) != 0);
}

/* What a waiter needs between announcing itself and looking again: a full barrier in every process.  False: in this one
 * only, so that a waker may not see it: look again in SHMQ_SHORT_SLICE_NS. */
bool shmq_barrier(void);

typedef bool shmq_ready_fn(void *context);
/* Spins until enough(context), at most `limit_ns`. */
void shmq_linger(shmq_ready_fn *enough, void *context, int64_t limit_ns, int64_t deadline_ns);
/* Spins, then sleeps until ready(context), the deadline (SHMQ_EMPTY), a signal (SHMQ_INTERRUPTED) or
 * the end of a slice (SHMQ_NOT_READY: look at the peers, then call again).  *parked: it slept. */
int shmq_eventcount_wait(struct shmq_eventcount *e, struct shmq_waiter *waiter, shmq_ready_fn *ready,
                         void *context, int64_t deadline_ns, bool *parked);

/* ---- recorder.c ---- */

/* In its own entry, by the peer: what it has just done, or begins to wait for.  Returns the time, CLOCK_MONOTONIC, as
 * of the last tick. */
uint64_t shmq_recorder_note(struct shmq_peer *peer, uint32_t op, uint64_t cursor);
void shmq_recorder_note_run(struct shmq_peer *peer, uint32_t op, uint64_t cursor);

/* Death, or a reader, between any two of the stores: the numbers of this entry disagree. */
static inline void shmq_recorder_write(struct shmq_peer *peer, uint64_t when, uint64_t what) {
    struct shmq_event *e = &peer->events[when % SHMQ_EVENTS];
    store_release(&e->when, when);
    store_release(&e->what, what | (when & 0xff) << 8);
    store_relaxed(&peer->event_next, when + 1);
}

/* The same for what may come a million times a second: the clock is not read at each. */
static inline void shmq_recorder_note_often(struct shmq_peer *peer, uint32_t op, uint64_t cursor) {
    uint64_t next = load_relaxed(&peer->event_next);
    if (SHMQ_UNLIKELY((next & load_relaxed(&peer->event_run)) == 0)) shmq_recorder_note_run(peer, op, cursor);
    else shmq_recorder_write(peer, next, cursor << 16 | SHMQ_EVENT_EARLY | op);
}

/* The same where its last event is another operation: a wait in slices is one wait. */
void shmq_recorder_note_once(struct shmq_peer *peer, uint32_t op, uint64_t cursor);
/* The whole events in an entry, oldest first; returns how many of SHMQ_EVENTS. */
uint32_t shmq_recorder_read(const struct shmq_peer *peer, shmq_event_info *events);
void shmq_recorder_clear(struct shmq_peer *peer);

/* ---- peers.c ---- */

/* A peer slot that this process holds, through a lock that dies with the address space. */
struct shmq_membership {
    void *pin; /* the PROT_NONE mapping that keeps the lock's file description alive */
    uint32_t index;
    uint64_t epoch;
};

int shmq_peers_join(struct shmq_segment *segment, struct shmq_membership *me);
void shmq_peers_leave(struct shmq_segment *segment, struct shmq_membership *me);
/* 1 alive, 0 dead, -1 not known (never a death verdict). */
int shmq_peers_alive(const struct shmq_segment *segment, uint32_t index);
/* Takes the reaper's lock for a dead LIVE peer.  Returns the descriptor that holds it, or -1: not dead, or
 * someone else is at it.  No fork until the end.  Finish with shmq_peers_verdict_end. */
int shmq_peers_verdict_begin(struct shmq_segment *segment, uint32_t index, uint64_t *epoch);
void shmq_peers_verdict_end(struct shmq_segment *segment, uint32_t index, uint64_t epoch, int lock);

/* What a peer has in its hands. */
struct shmq_hands {
    uint64_t held_bytes, slot_position;
    uint32_t loaned, leased, writing, reading;
};
/* Between the two: what the dead one had, written before anything is repaired. */
void shmq_peers_testify(struct shmq_segment *segment, uint32_t index, uint64_t epoch,
                        const struct shmq_hands *hands, uint32_t roles);
/* True where the entry is vacant because its peer died, and nobody has come since. */
bool shmq_peers_left_dead(const struct shmq_peer *peer, uint64_t word);
/* A process: others that get its pid have another start time. */
struct shmq_process {
    uint64_t pid, start_ticks;
};
/* Who is there, or was when it died.  Hints where to look sooner, never a verdict. */
uint32_t shmq_peers_roster(const struct shmq_segment *segment, struct shmq_process *roster,
                           uint32_t capacity);

/* ---- doorbell.c ---- */

#define SHMQ_BELLS_KEPT 8u

/* FIFOs of others that a handle keeps open, by peer index modulo their number; number 0: none. */
struct shmq_bells {
    pthread_mutex_t lock; /* all zero is an open one; any thread of the process may ring */
    struct shmq_bell_kept {
        uint64_t number;
        dev_t dev;
        ino_t ino;
        int fd;
    } kept[SHMQ_BELLS_KEPT];
};

/* Makes a FIFO of our own: its number, and a descriptor to poll and to read from.  SHMQ_WRONG_OWNER: the directory
 * is not ours alone. */
int shmq_doorbell_open(uint64_t *number, int *fd);
/* Closes it, if `fd` is still it, and removes its name. */
void shmq_doorbell_close(uint64_t number, int fd);
/* ... of another process, which is dead. */
void shmq_doorbell_remove(uint64_t number);
/* How a wait in an event loop looks. */
enum shmq_arming {
    SHMQ_ARM,        /* at first, and after a ring */
    SHMQ_ARM_AGAIN,  /* at the end of a slice: whoever was about to ring may be dead */
    SHMQ_ARM_SURELY, /* when a short slice has passed without a ring: with a barrier */
};
/* From now on the next waker of `e` rings `number`, once.  Then look again.  False: it was so before. */
bool shmq_bell_arm(const struct shmq_segment *segment, uint32_t myself, struct shmq_eventcount *e,
                   uint64_t number, enum shmq_arming how);
/* Not any more: there was no need to wait. */
void shmq_bell_disarm(const struct shmq_segment *segment, uint32_t myself, const struct shmq_eventcount *e);
/* Wakes everyone who waits at `e`, asleep or in an event loop.  `bells` may be NULL. */
void shmq_wake_slow(const struct shmq_segment *segment, struct shmq_bells *bells, struct shmq_eventcount *e);
void shmq_bell_news(const struct shmq_segment *segment, uint32_t myself); /* we have joined */
void shmq_bells_close(struct shmq_bells *bells); /* once no thread can ring any more */

/* ---- spsc.c ---- */

struct shmq_spsc {
    uint8_t *records;
    uint64_t capacity; /* a power of two */
    uint32_t inline_bytes;
    struct shmq_cursor_line *tail, *head;
};

/* One side's private state.  `cursor` is the truth that the shared line repeats. */
struct shmq_spsc_side {
    uint64_t cursor;   /* published tail, or released head */
    uint64_t ahead;    /* producer: end of what is reserved; consumer: end of what is peeked */
    uint64_t far_seen; /* the other side's cursor when we last looked */
    uint64_t messages; /* that passed `ahead` */
    uint64_t position; /* of the record reserved or peeked last */
    uint32_t flip;     /* which tally entry was written last */
};

struct shmq_record {
    uint8_t *payload;
    uint32_t bytes;
    uint16_t codec;
    uint16_t flags;
    uint64_t position; /* its cursor */
};

void shmq_spsc_init(struct shmq_spsc *ring, uint64_t first_cursor);
int shmq_spsc_valid(const struct shmq_spsc *ring);
int shmq_spsc_side_load(const struct shmq_spsc *ring, bool producer, struct shmq_spsc_side *side);
int shmq_spsc_try_reserve(const struct shmq_spsc *ring, struct shmq_spsc_side *producer, uint32_t bytes,
                          uint16_t codec, uint16_t flags, struct shmq_record *record);
void shmq_spsc_commit(const struct shmq_spsc *ring, struct shmq_spsc_side *producer);
void shmq_spsc_abort(struct shmq_spsc_side *producer, const struct shmq_spsc_side *before);
int shmq_spsc_try_peek(const struct shmq_spsc *ring, struct shmq_spsc_side *consumer,
                       struct shmq_record *record);
void shmq_spsc_release(const struct shmq_spsc *ring, struct shmq_spsc_side *consumer);
/* For waits, which may run beside other threads of this process: `cursor` is our own as it was. */
bool shmq_spsc_room(const struct shmq_spsc *ring, uint64_t cursor, uint32_t bytes);
bool shmq_spsc_unread(const struct shmq_spsc *ring, uint64_t cursor);
bool shmq_spsc_roomy(const struct shmq_spsc *ring, uint64_t cursor); /* a quarter of the ring is free */
/* For onlookers: the message `index` places behind the head, read without taking it. */
int shmq_spsc_look(const struct shmq_spsc *ring, uint32_t index, struct shmq_record *record);
/* Messages that passed a cursor line; exact for a side that stands still, else of some moment during the call. */
uint64_t shmq_spsc_messages(const struct shmq_cursor_line *line);

/* ---- mpmc.c ---- */

/* One side's private state: the slot that it owns between reserve and commit, or peek and release. */
struct shmq_mpmc_side {
    uint64_t position;
    uint64_t tombs; /* that this consumer has cleared away: room for producers */
};

void shmq_mpmc_init(struct shmq_slots *ring, uint64_t first_cursor);
int shmq_mpmc_valid(const struct shmq_slots *ring);
int shmq_mpmc_try_reserve(const struct shmq_slots *ring, struct shmq_mpmc_side *producer, uint32_t bytes,
                          uint16_t codec, uint16_t flags, struct shmq_record *record);
void shmq_mpmc_commit(const struct shmq_slots *ring, struct shmq_mpmc_side *producer);
void shmq_mpmc_abort(const struct shmq_slots *ring, struct shmq_mpmc_side *producer);
int shmq_mpmc_try_peek(const struct shmq_slots *ring, struct shmq_mpmc_side *consumer,
                       struct shmq_record *record);
void shmq_mpmc_release(const struct shmq_slots *ring, struct shmq_mpmc_side *consumer);
void shmq_mpmc_unpeek(const struct shmq_slots *ring, struct shmq_mpmc_side *consumer);
/* Hints for waits: does another try make sense? */
bool shmq_mpmc_room(const struct shmq_slots *ring);
bool shmq_mpmc_unread(const struct shmq_slots *ring);
bool shmq_mpmc_roomy(const struct shmq_slots *ring); /* a quarter of the ring is free */
/* No message waits, and none is being written at the head. */
bool shmq_mpmc_drained(const struct shmq_slots *ring);
uint64_t shmq_mpmc_waiting(const struct shmq_slots *ring); /* messages, as shmq_mpmc_look counts them */
int shmq_mpmc_look(const struct shmq_slots *ring, uint32_t index, struct shmq_record *record);
uint64_t shmq_mpmc_claimed(const struct shmq_slots *ring);
bool shmq_mpmc_untouched(const struct shmq_slots *ring); /* no message in it, nor one on its way in or out */
/* Adds the slots that `owner` writes or reads; also of a topic. */
void shmq_mpmc_in_hands(const struct shmq_slots *ring, uint32_t owner, struct shmq_hands *hands);
/* Who owns the slot at the tail, or head, or -1. */
int32_t shmq_mpmc_in_the_way(const struct shmq_slots *ring, bool of_producers);
/* The first slot, from index `from` on, that a dead consumer was reading; UINT64_MAX: none. */
uint64_t shmq_mpmc_next_read_by(const struct shmq_slots *ring, uint32_t dead, uint64_t from,
                                struct shmq_record *record);
/* Gives that slot to the next lap: its message is elsewhere. */
void shmq_mpmc_retire(const struct shmq_slots *ring, uint32_t dead, uint64_t index);
/* Takes every slot out of the dead owner's hands. */
void shmq_mpmc_recover(const struct shmq_slots *ring, uint32_t dead);
/* Ends every repair pass: no message is left behind the head. */
void shmq_mpmc_settle(const struct shmq_slots *ring);
/* Is there a message at the position of a page word's argument that names this block? */
bool shmq_mpmc_published(const struct shmq_slots *ring, uint64_t argument, uint64_t handle);

/* ---- topic.c ---- */

struct shmq_topic {
    struct shmq_slots slots; /* head: blocks were given up as far as here, perhaps further */
    struct shmq_roles *roles;
    struct shmq_peer *peers;
    uint64_t first; /* where the tail began */
    uint32_t peer_count;
    uint32_t policy;
    uint32_t history;
};

/* A publisher's, or a subscriber's, private state. */
struct shmq_topic_side {
    uint8_t *buffer;   /* inline_bytes: a payload on its way in or out */
    uint64_t position; /* publisher: of the slot that it owns, or (SHMQ_LOOK_AGAIN) would like to; subscriber:
                             of the message that it peeked */
    uint64_t header;   /* ... what it is going to be */
    bool cleared;      /* ... and the message that was there holds no block any more */
    uint64_t gate;     /* publisher: no subscriber was behind this */
    uint64_t joins;    /* ... when it had this value */
    uint64_t cursor;   /* subscriber: its next message */
    uint64_t joined;   /* ... where it joined; what came before is history */
    uint64_t missed;   /* ... and how many it did not get since */
    uint64_t passed_over; /* ... and moved past without reading: room for publishers */
};

int shmq_topic_valid(const struct shmq_topic *topic);
/* SHMQ_LOOK_AGAIN: the message that the slot still has holds a block, see shmq_share_clear. */
SHMQ_APART int shmq_topic_try_reserve(const struct shmq_topic *topic, struct shmq_topic_side *publisher,
                                      uint32_t bytes, uint16_t codec, uint16_t flags,
                                      struct shmq_record *record);
SHMQ_APART void shmq_topic_commit(const struct shmq_topic *topic, struct shmq_topic_side *publisher);
void shmq_topic_abort(const struct shmq_topic *topic, struct shmq_topic_side *publisher);
bool shmq_topic_room(const struct shmq_topic *topic);
bool shmq_topic_roomy(const struct shmq_topic *topic);
void shmq_topic_subscribe(const struct shmq_topic *topic, struct shmq_topic_side *subscriber, uint64_t epoch,
                          uint32_t history);
void shmq_topic_unsubscribe(const struct shmq_topic *topic, uint32_t peer);
/* Its payload is a copy, in the subscriber's buffer. */
SHMQ_APART int shmq_topic_try_peek(const struct shmq_topic *topic, struct shmq_topic_side *subscriber,
                                   struct shmq_record *record);
void shmq_topic_release(const struct shmq_topic *topic, struct shmq_topic_side *subscriber);
/* The message's block is gone: it is missed.  SHMQ_CORRUPT where that cannot be. */
int shmq_topic_skip(const struct shmq_topic *topic, struct shmq_topic_side *subscriber);
bool shmq_topic_unread(const struct shmq_topic *topic, uint64_t cursor);
bool shmq_topic_drained(const struct shmq_topic *topic, uint64_t cursor);
/* Does the message at `position` lie in a block? */
bool shmq_topic_names(const struct shmq_topic *topic, uint64_t position, uint64_t *handle);
uint64_t shmq_topic_position_of(const struct shmq_topic *topic, uint64_t argument); /* of a page word */
/* The oldest position that a subscriber, or (if asked) the history, still needs. */
uint64_t shmq_topic_needed_from(const struct shmq_topic *topic, bool by_history);
/* The next message before `end` that lies in a block, from the head on. */
bool shmq_topic_next_spent(const struct shmq_topic *topic, uint64_t end, uint64_t *position);
void shmq_topic_pass(const struct shmq_topic *topic,
                     uint64_t position); /* its block is given up: the head moves */
/* Ends the subscriptions that are more than `behind` behind `tail`. */
bool shmq_topic_evict(const struct shmq_topic *topic, uint64_t tail, uint64_t behind);
/* How far the slowest subscriber is behind the tail, and who that is, or 0 and -1. */
uint64_t shmq_topic_lag(const struct shmq_topic *topic, int32_t *who);
uint64_t shmq_topic_lag_of(const struct shmq_topic *topic, uint32_t peer);
uint32_t shmq_topic_state_of(const struct shmq_topic *topic, uint32_t peer); /* enum shmq_subscribed */
int shmq_topic_look(const struct shmq_topic *topic, uint32_t index, struct shmq_record *record);
int32_t shmq_topic_in_the_way(const struct shmq_topic *topic);
void shmq_topic_recover(const struct shmq_topic *topic, uint32_t dead);

/* ---- arena.c ---- */

struct shmq_tier {
    uint8_t *base;
    uint64_t page_bytes;
    uint32_t first, pages; /* its pages are words [first, first + pages) */
    shmq_a32 hint;         /* where the last search ended; either side's thread */
};

struct shmq_arena {
    shmq_a64 *words;
    struct shmq_block_header *headers;
    struct shmq_tier small, large;
    uint32_t owner;
};

int shmq_arena_try_loan(struct shmq_arena *arena, uint64_t bytes, uint32_t *page, uint64_t *word);
bool shmq_arena_room(struct shmq_arena *arena, uint64_t bytes);
/* LOANED(us) -> INFLIGHT(position).  The record's room is reserved before: publishing cannot fail. */
int shmq_arena_send(struct shmq_arena *arena, uint32_t page, uint64_t *word, uint64_t position);
/* INFLIGHT(position) -> LEASED(us, argument), after checking that the handle names this very block. */
int shmq_arena_lease(struct shmq_arena *arena, uint64_t handle, uint64_t position, uint64_t argument,
                     uint32_t *page, uint64_t *word);
/* Blocks that an entry of the pending table names, see keep.c; `argument` is 1 + that entry.
 * LOANED(us) -> LEASED(us, argument). */
int shmq_arena_keep(struct shmq_arena *arena, uint32_t page, uint64_t *word, uint64_t argument);
/* The word of the block that `handle` names; false where that is gone. */
bool shmq_arena_look(const struct shmq_arena *arena, uint64_t handle, uint32_t *page, uint64_t *word);
bool shmq_arena_return(struct shmq_arena *arena, uint32_t page, uint64_t *word); /* LEASED -> RETURNED */
bool shmq_arena_take_back(struct shmq_arena *arena, uint32_t page,
                          uint64_t *word); /* RETURNED -> LEASED(us) */
/* RETURNED -> LOANED(owner) -> FREE, unless another one does it.  `owner`: us, or the dead whom we repair. */
void shmq_arena_discard(struct shmq_arena *arena, uint32_t page, uint64_t word, uint32_t owner);
/* Frees the whole block whose first page's word is `word`. */
int shmq_arena_free(struct shmq_arena *arena, uint32_t page, uint64_t word);
/* Shared blocks, see share.c.  The ring holds it from here on: before shmq_arena_send. */
void shmq_arena_share(struct shmq_arena *arena, uint32_t page, uint64_t word);
/* Takes a hold of our own; SHMQ_EMPTY where the ring has none, or we have one.  Then look whether the message still
 * names the block; if not, let go. */
int shmq_arena_hold(struct shmq_arena *arena, uint64_t handle, uint32_t *page);
/* Ends our hold, and the ring's too if told; frees the block where nobody is left. */
void shmq_arena_let_go(struct shmq_arena *arena, uint32_t page, bool and_the_ring);
bool shmq_arena_is_shared(const struct shmq_arena *arena, uint64_t handle); /* the ring holds it */
void shmq_arena_recover_readers(struct shmq_arena *arena, uint32_t dead);
uint8_t *shmq_arena_data(const struct shmq_arena *arena, uint32_t page);
uint64_t shmq_arena_largest(const struct shmq_arena *arena);
int shmq_arena_valid(const struct shmq_arena *arena);
/* True if `bytes` from the start of `page` lie within that block. */
bool shmq_arena_holds(const struct shmq_arena *arena, uint32_t page, uint64_t word, uint64_t bytes);
void shmq_arena_count(const struct shmq_arena *arena, shmq_stats *stats);
/* Adds the blocks that `owner` has loaned or leased. */
void shmq_arena_in_hands(const struct shmq_arena *arena, uint32_t owner, struct shmq_hands *hands);
/* Puts the dead owner's block back in flight if the record at `position` still names it. */
void shmq_arena_resend(struct shmq_arena *arena, uint32_t dead, uint64_t handle, uint64_t position);
/* Frees what a dead owner held; keeps its INFLIGHT blocks whose message is published: it says so. */
typedef bool shmq_published_fn(const void *ring, uint64_t argument, uint64_t handle);
void shmq_arena_recover(struct shmq_arena *arena, uint32_t dead, shmq_published_fn *published,
                        const void *ring);

/* ---- pending.c ---- */

struct shmq_pending {
    struct shmq_pending_entry *entries;
    uint8_t *copies;
    shmq_a64 *next_due;
    uint64_t visibility_ns;
    uint32_t count; /* 0: messages of this queue are not acknowledged */
    uint32_t slot_bytes;
    uint32_t max_deliveries;
    uint32_t owner; /* ours */
    shmq_a32 hint;  /* where the last search for a vacant entry ended; any thread */
};

void shmq_pending_bind(struct shmq_pending *pending, const struct shmq_segment *segment);
void shmq_pending_init(const struct shmq_pending *pending);
int shmq_pending_valid(const struct shmq_pending *pending);
struct shmq_slot *shmq_pending_copy(const struct shmq_pending *pending, uint32_t entry);
/* A message out of the ring: claim, then fill, which delivers it, or give up. */
bool shmq_pending_vacant(const struct shmq_pending *pending); /* a hint */
int shmq_pending_try_claim(struct shmq_pending *pending, struct shmq_delivery *delivery);
void shmq_pending_give_up(const struct shmq_pending *pending, const struct shmq_delivery *delivery);
void shmq_pending_fill(const struct shmq_pending *pending, struct shmq_delivery *delivery,
                       const struct shmq_slot *slot, const struct shmq_record *record, uint64_t now_ns);
/* One that is due again: take, then deliver, or put back. */
int shmq_pending_try_take(const struct shmq_pending *pending, uint64_t now_ns,
                          struct shmq_delivery *delivery);
int shmq_pending_record(const struct shmq_pending *pending, const struct shmq_delivery *delivery,
                        uint32_t inline_bytes, struct shmq_record *record);
void shmq_pending_rename(const struct shmq_pending *pending, const struct shmq_delivery *delivery,
                         uint64_t handle);
void shmq_pending_deliver(const struct shmq_pending *pending, struct shmq_delivery *delivery,
                          uint64_t now_ns);
void shmq_pending_put_back(const struct shmq_pending *pending, const struct shmq_delivery *delivery,
                           uint64_t due_ns);
/* SHMQ_STALE: it was delivered again meanwhile.  *handle: of the block that is named no more. */
int shmq_pending_ack(const struct shmq_pending *pending, const struct shmq_delivery *delivery,
                     uint64_t *handle);
int shmq_pending_nack(const struct shmq_pending *pending, const struct shmq_delivery *delivery,
                      uint64_t due_ns);
void shmq_pending_return_all(const struct shmq_pending *pending); /* ours, that are unacked */
bool shmq_pending_names(const struct shmq_pending *pending, uint64_t entry, uint64_t handle);
bool shmq_pending_has(const struct shmq_pending *pending, uint64_t position);
void shmq_pending_count(const struct shmq_pending *pending, uint64_t *unacked, uint64_t *waiting);
uint32_t shmq_pending_unacked_by(const struct shmq_pending *pending, uint32_t owner);
bool shmq_pending_others_hold(const struct shmq_pending *pending); /* a message that may come back to us */
void shmq_pending_recover(const struct shmq_pending *pending, uint32_t dead);
void shmq_pending_settle(const struct shmq_pending *pending); /* ends every repair pass */

/* ---- keys.c ---- */

struct shmq_keys {
    struct shmq_keys_line *line;
    shmq_a64 *chains; /* of each the newest key's number */
    struct shmq_key_entry *entries;
    uint32_t count; /* entries; 0: no put of this queue has a key */
    uint32_t shift; /* of a mixed hash, for the number of its chain */
    uint32_t owner; /* ours */
};

void shmq_keys_bind(struct shmq_keys *keys, const struct shmq_segment *segment);
int shmq_keys_valid(const struct shmq_keys *keys);
/* Is it in the window?  Without a turn: a yes is sure, a no is not. */
bool shmq_keys_known(const struct shmq_keys *keys, uint64_t hash);
/* Takes the turn; SHMQ_KEYS_BUSY: it is another's; SHMQ_REPEAT: known, and nothing was taken. */
int shmq_keys_try_begin(const struct shmq_keys *keys, uint64_t hash);
/* Around the store that publishes: before, and after, which ends the turn. */
void shmq_keys_publishing(const struct shmq_keys *keys);
void shmq_keys_published(const struct shmq_keys *keys);
void shmq_keys_give_up(const struct shmq_keys *keys);   /* nothing was published */
bool shmq_keys_vacant(const struct shmq_keys *keys);    /* it is nobody's turn */
int32_t shmq_keys_holder(const struct shmq_keys *keys); /* whose turn it is, or -1 */
/* `published`: no slot of the ring is the dead one's to write. */
void shmq_keys_recover(const struct shmq_keys *keys, uint32_t dead, bool published);

/* ---- keep.c ---- */

/* The block of a message out of the ring; of one that is delivered again. */
int shmq_keep_lease(struct shmq_arena *arena, const struct shmq_delivery *delivery, uint64_t handle,
                    uint64_t position, uint32_t *page, uint64_t *word);
int shmq_keep_take(struct shmq_arena *arena, const struct shmq_pending *pending,
                   const struct shmq_delivery *delivery, uint64_t handle, uint32_t *page, uint64_t *word);
/* Our last view is dropped; the entry that named it was vacated. */
void shmq_keep_release(struct shmq_arena *arena, const struct shmq_pending *pending, uint32_t page,
                       uint64_t word);
void shmq_keep_acked(struct shmq_arena *arena, const struct shmq_pending *pending, uint64_t handle);
void shmq_keep_recover(struct shmq_arena *arena, const struct shmq_pending *pending, uint32_t dead);

/* ---- share.c ---- */

/* Before a publisher claims the slot that it was told of by SHMQ_LOOK_AGAIN. */
SHMQ_APART void shmq_share_clear(const struct shmq_topic *topic, struct shmq_topic_side *publisher,
                                 struct shmq_arena *arena);
/* After each message: what has left the history. */
SHMQ_APART void shmq_share_expire(const struct shmq_topic *topic, const struct shmq_topic_side *publisher,
                                  struct shmq_arena *arena);
/* Gives up blocks that nobody needs any more.  True if there were any. */
bool shmq_share_trim(const struct shmq_topic *topic, struct shmq_arena *arena);
/* For want of memory: gives up one block, or evicts, as the policy has it.  False: nothing can be done. */
bool shmq_share_reclaim(const struct shmq_topic *topic, struct shmq_arena *arena);
/* For waits: would it?  Holds nothing, so that it may run beside other threads of this process. */
bool shmq_share_reclaimable(const struct shmq_topic *topic, const struct shmq_arena *arena);
/* SHMQ_LOOK_AGAIN: the message is gone. */
int shmq_share_lease(struct shmq_arena *arena, uint64_t handle, uint64_t position, uint32_t *page,
                     uint64_t *word);
void shmq_share_release(const struct shmq_topic *topic, struct shmq_arena *arena, uint32_t page,
                        uint64_t word);
void shmq_share_recover(const struct shmq_topic *topic, struct shmq_arena *arena, uint32_t dead);

/* ---- lanes.c ---- */

/* A ring of any kind, see ring.c; and what one side of it keeps to itself. */
struct shmq_ring {
    bool is_spsc, is_topic; /* neither: mpmc */
    bool is_apart;          /* a topic, or mpmc with two lanes */
    uint32_t lanes;         /* of slots: 1 or 2; spsc: 0 */
    uint32_t inline_bytes;
    uint64_t first_cursor;
    struct shmq_spsc spsc;
    struct shmq_slots mpmc, urgent; /* mpmc: the bulk lane is the only one, or the second */
    struct shmq_topic topic;
};

struct shmq_ring_side {
    uint32_t urgent;   /* the lane: in which it reserves, set before; or in which it peeked */
    uint32_t in_a_row; /* consumer: urgent messages, since it took one that was not */
    struct shmq_spsc_side spsc;
    struct shmq_mpmc_side mpmc;
    struct shmq_topic_side topic;
};

static inline const struct shmq_slots *shmq_lanes_slots(const struct shmq_ring *ring, uint32_t urgent) {
    return SHMQ_UNLIKELY(urgent != 0) && ring->lanes == 2 ? &ring->urgent : &ring->mpmc;
}

SHMQ_APART int shmq_lanes_try_reserve(const struct shmq_ring *ring, struct shmq_ring_side *producer,
                                      uint32_t bytes, uint16_t codec, uint16_t flags,
                                      struct shmq_record *record);
SHMQ_APART void shmq_lanes_commit(const struct shmq_ring *ring, struct shmq_ring_side *producer);
SHMQ_APART void shmq_lanes_abort(const struct shmq_ring *ring, struct shmq_ring_side *producer);
SHMQ_APART int shmq_lanes_try_peek(const struct shmq_ring *ring, struct shmq_ring_side *consumer,
                                   struct shmq_record *record);
/* The same in one lane only. */
int shmq_lanes_try_peek_in(const struct shmq_ring *ring, struct shmq_ring_side *consumer, uint32_t urgent,
                           struct shmq_record *record);
SHMQ_APART void shmq_lanes_release(const struct shmq_ring *ring, struct shmq_ring_side *consumer);
SHMQ_APART void shmq_lanes_unpeek(const struct shmq_ring *ring, struct shmq_ring_side *consumer);
int shmq_lanes_look(const struct shmq_ring *ring, uint32_t index, struct shmq_record *record);
/* Is there a message at the position of a page word's argument that names this block? */
bool shmq_lanes_published(const struct shmq_ring *ring, uint64_t argument, uint64_t handle);

/* ---- ring.c ---- */

void shmq_ring_bind(struct shmq_ring *ring, const struct shmq_segment *segment);
void shmq_ring_init(struct shmq_ring *ring);
void shmq_ring_join(struct shmq_ring *ring, uint32_t owner); /* our index, once we have it */
int shmq_ring_valid(const struct shmq_ring *ring);
int shmq_ring_try_reserve(const struct shmq_ring *ring, struct shmq_ring_side *producer, uint32_t bytes,
                          uint16_t codec, uint16_t flags, struct shmq_record *record);
void shmq_ring_commit(const struct shmq_ring *ring, struct shmq_ring_side *producer);
void shmq_ring_abort(const struct shmq_ring *ring, struct shmq_ring_side *producer,
                     const struct shmq_spsc_side *before);
int shmq_ring_try_peek(const struct shmq_ring *ring, struct shmq_ring_side *consumer,
                       struct shmq_record *record);
void shmq_ring_release(const struct shmq_ring *ring, struct shmq_ring_side *consumer);
void shmq_ring_unpeek(const struct shmq_ring *ring, struct shmq_ring_side *consumer,
                      const struct shmq_spsc_side *before);
/* Where the consumer stands: for waits, see shmq_spsc_unread. */
uint64_t shmq_ring_cursor(const struct shmq_ring *ring, const struct shmq_ring_side *side);
/* `wish`: see shmq_ring_wish. */
bool shmq_ring_room(const struct shmq_ring *ring, uint64_t wish, uint32_t bytes);
bool shmq_ring_unread(const struct shmq_ring *ring, uint64_t cursor);
bool shmq_ring_roomy(const struct shmq_ring *ring, uint64_t wish);
bool shmq_ring_drained(const struct shmq_ring *ring, uint64_t cursor);
/* mpmc, at_least_once: */
bool shmq_ring_untouched(const struct shmq_ring *ring);
const struct shmq_slot *shmq_ring_slot(const struct shmq_ring *ring, const struct shmq_ring_side *consumer);
void shmq_ring_in_hands(const struct shmq_ring *ring, uint32_t owner,
                        struct shmq_hands *hands); /* slots only */
int shmq_ring_look(const struct shmq_ring *ring, uint32_t index, struct shmq_record *record);
void shmq_ring_measure(const struct shmq_ring *ring, shmq_stats *stats); /* fills in what it knows */
/* Where the record lies that a side reserved or peeked last. */
static inline uint64_t shmq_ring_position(const struct shmq_ring *ring, const struct shmq_ring_side *side) {
    if (ring->is_spsc) return side->spsc.position;
    if (SHMQ_LIKELY(!ring->is_apart)) return side->mpmc.position << 3;
    return (ring->is_topic ? side->topic.position : side->mpmc.position) << 3 |
           (side->urgent != 0 ? SHMQ_POSITION_URGENT : 0);
}
/* What a wait of a producer has to know as of now: where it stands in a ring of bytes, or which lane it is for. */
static inline uint64_t shmq_ring_wish(const struct shmq_ring *ring, const struct shmq_ring_side *producer,
                                      uint32_t urgent) {
    return ring->is_spsc ? producer->spsc.cursor : urgent;
}

/* ---- recover.c ---- */

int shmq_recover_all(struct shmq_segment *segment, const struct shmq_ring *ring, struct shmq_arena *arena,
                     const struct shmq_pending *pending, uint32_t myself, uint32_t *repaired);

/* ---- handle.c ---- */

struct shmq_side {
    struct shmq_ring_side ring;
    struct shmq_waiter waiter;
    bool held;    /* we have this role */
    uint64_t key; /* put: the key that we put, while it is our turn; else 0 */
};

/* One handle.  Private memory; only the counters that `counters` points to are shared. */
struct shmq_queue {
    shmq_a32 open; /* other threads may close while one waits */
    bool observer;
    bool builds_arrays;         /* the Python binding's: take returns plain arrays as such */
    uint64_t canary;            /* differs from *shmq_canary after a fork */
    struct shmq_peer *counters; /* our own entry */
    struct shmq_control *control;
    struct shmq_side put, get;
    struct shmq_ring ring;
    struct shmq_arena arena;
    struct shmq_pending pending;
    struct shmq_keys keys;
    struct shmq_segment segment;
    struct shmq_membership me;
    shmq_a32 users;       /* of the mapping: the open handle, blocks, waiting calls */
    shmq_a32 references;  /* to this struct: the handle, blocks */
    shmq_a64 looked_ns;   /* when a wait last looked at the peers; relaxed: a hint */
    shmq_a64 told_of;     /* role word of a dead producer that shmq_wait_get has reported */
    shmq_a32 held;        /* blocks that are ours: loans and leases */
    uint8_t *inline_copy; /* shmq_get's buffer for in-line payloads */
    uint8_t *buffers;     /* topic: both sides' */
    struct shmq_bells bells;
};

bool shmq_prepare(shmq_queue *q);   /* memory of its own */
void shmq_settle_in(shmq_queue *q); /* once it has its index */

void shmq_hold_struct(shmq_queue *q); /* keeps the struct, not the mapping */
void shmq_release_struct(shmq_queue *q);
/* Keeps the segment mapped through a wait, also if another thread closes the handle meanwhile. */
void shmq_pin(shmq_queue *q);
/* The same where the handle may be closed meanwhile, by a signal handler or another thread: false, if it is. */
bool shmq_try_pin(shmq_queue *q);
void shmq_unpin(shmq_queue *q);
/* A block that is ours keeps mapping and struct, until it is released; and it is ours no more. */
void shmq_hold_block(shmq_queue *q, const shmq_block *block, uint32_t op);
void shmq_not_ours(shmq_block *block);

int shmq_usable(const shmq_queue *q); /* open, and not inherited through a fork */
static inline bool shmq_is_forked(const shmq_queue *q) { return q->canary != *shmq_canary; }
int shmq_put_begin(shmq_queue *q); /* may this handle put now?  Claims the role. */
int shmq_get_begin(shmq_queue *q);
/* After SHMQ_NOT_READY from one of these: waits up to 200 ms for the repair of a dead holder; SHMQ_ROLE_TAKEN
 * where it does not come. */
int shmq_settle_roles(shmq_queue *q);

SHMQ_APART void shmq_wake_all(shmq_queue *q,
                              struct shmq_eventcount *eventcount); /* without a look at armed */
/* To be called after the store that made something available.  No system call, no fence and no write where nobody
 * waits.  Returns true if it woke. */
static inline bool shmq_wake(shmq_queue *q, struct shmq_eventcount *e) {
    if (SHMQ_LIKELY(!shmq_eventcount_armed(e))) return false;
    shmq_wake_all(q, e);
    return true;
}
/* In the flight recorder.  Behind the operation: a death before it leaves what the reaper finds in our hands. */
static inline void shmq_note(shmq_queue *q, uint32_t op, uint64_t cursor) {
    (void)shmq_recorder_note(q->counters, op, cursor);
}
static inline void shmq_count(shmq_a64 *counter, uint64_t n) {
    store_relaxed(counter, load_relaxed(counter) + n); /* this peer writes; its threads may lose a count */
}

void shmq_count_dropped(shmq_queue *q, int newest); /* for want of room */
/* Tasks of this handle's owner, one thread at a time: of messages that were acked when they were got. */
void shmq_begin_task(shmq_queue *q);
int shmq_end_task(shmq_queue *q); /* SHMQ_INVALID: there is none */

/* ---- message.c ---- */

/* The steps of a put or get, which the Python glue drives itself.
 * shmq_ring_try_reserve, and what has to be given up before: */
int shmq_try_reserve(shmq_queue *q, uint32_t bytes, uint16_t codec, uint16_t flags,
                     struct shmq_record *record);
int shmq_try_put_inline(shmq_queue *q, uint16_t codec, const void *meta, uint32_t meta_bytes,
                        const void *data, uint32_t bytes);
/* A turn of a put with `key`, 0: none; SHMQ_REPEAT, SHMQ_KEYS_BUSY, or it is ours until the commit, or the end.  No wait
 * and none of a user's code between: others wait. */
SHMQ_APART int shmq_key_begin_turn(shmq_queue *q, uint64_t key);
SHMQ_APART void shmq_key_give_up(shmq_queue *q);
static inline int shmq_key_begin(shmq_queue *q, uint64_t key) {
    return SHMQ_LIKELY(key == 0) ? SHMQ_OK : shmq_key_begin_turn(q, key);
}
static inline void shmq_key_end(shmq_queue *q) {
    if (SHMQ_UNLIKELY(q->put.key != 0)) shmq_key_give_up(q);
}
/* A look without a turn, before a payload is copied: true, and counted, where it would be for nothing. */
bool shmq_key_known(shmq_queue *q, uint64_t key);
int shmq_try_loan(shmq_queue *q, uint64_t bytes, shmq_block **block);
int shmq_try_publish(shmq_block *block, uint16_t codec, const void *meta, uint32_t meta_bytes,
                     uint64_t bytes);
void shmq_commit(shmq_queue *q);                                        /* publishes what was reserved */
void shmq_put_commit(shmq_queue *q, uint64_t messages, uint64_t bytes); /* ... wakes and counts */
void shmq_put_done(shmq_queue *q, uint64_t messages, uint64_t bytes);   /* wakes and counts, after commits */
/* Ends the hold on the pages, not the right to look at the memory. */
void shmq_block_give_back(shmq_block *block);
int shmq_try_next(shmq_queue *q, struct shmq_record *record); /* peeks; in-line or block */
/* SHMQ_LOOK_AGAIN: the message is gone, look at the next one (topic). */
int shmq_try_lease(shmq_queue *q, const struct shmq_record *record, const struct shmq_delivery *delivery,
                   shmq_block **block, const struct shmq_block_header **header);
void shmq_unlease(shmq_block *block, const struct shmq_record *record);
/* What was peeked is the next message again; `before`: our spsc side as it was. */
void shmq_put_back(shmq_queue *q, const struct shmq_spsc_side *before);
void shmq_taken(shmq_queue *q, uint64_t messages, uint64_t bytes); /* releases what was peeked */
void shmq_count_got(shmq_queue *q, uint64_t bytes);
bool shmq_spin_get(shmq_queue *q); /* about a microsecond, no system call */
/* at_least_once, draining: there is no message any more, and none that may come to us. */
bool shmq_is_over(const shmq_queue *q);

/* ---- shmq.c ---- */

/* What a put waits for. */
enum shmq_lacking { SHMQ_LACKS_ROOM = 0, SHMQ_LACKS_PAGES = 1, SHMQ_LACKS_TURN = 2 };
/* Wait until a record, or a block, with a payload of `bytes` seems to fit, or nobody else to put with a key; or a
 * message to be there.  `cursor` and `wish`: see shmq_ring_cursor and shmq_ring_wish.  SHMQ_OK: try again; SHMQ_EMPTY:
 * the deadline passed. */
int shmq_wait_put(shmq_queue *q, uint64_t wish, enum shmq_lacking lacks, uint64_t bytes, int64_t deadline_ns);
int shmq_wait_get(shmq_queue *q, uint64_t cursor, int64_t deadline_ns);
int shmq_wait_done(shmq_queue *q, int64_t deadline_ns); /* every message is acked, every task done */
/* The same for who waits in an event loop.  SHMQ_OK: try again.  Else `doorbell` is going to be rung, and meanwhile, at
 * the end of each slice, call shmq_look_now and this with SHMQ_ARM_AGAIN.  SHMQ_NOT_READY: it may be that this came
 * too late for a waker; a short slice later, if nothing was rung, call it with SHMQ_ARM_SURELY. */
int shmq_arm_put(shmq_queue *q, uint64_t wish, enum shmq_lacking lacks, uint64_t bytes, uint64_t doorbell,
                 enum shmq_arming how);
int shmq_arm_get(shmq_queue *q, uint64_t cursor, uint64_t doorbell, enum shmq_arming how);
/* Looks at the peers, repairs what the dead left, and wakes whom it concerns. */
void shmq_look_now(shmq_queue *q);
/* For who never waits: at most once a slice, looks at the peers and repairs.  True if that makes another try worth
 * while. */
bool shmq_look_around(shmq_queue *q);
/* What a record holds, as shmq_get returns it. */
int shmq_copy_inline(shmq_queue *q, const struct shmq_record *record, shmq_message *message);
void shmq_message_of_block(shmq_block *block, uint16_t codec, const struct shmq_block_header *header,
                           shmq_message *message);

/* ---- lease.c ---- */

/* The steps of shmq_lease: begin, copy what lies in-line, done.  SHMQ_CLOSED from the last: it was given back. */
int shmq_lease_begin(shmq_queue *q, struct shmq_delivery *delivery, struct shmq_record *record,
                     shmq_block **block, const struct shmq_block_header **header);
void shmq_lease_cancel(shmq_queue *q, struct shmq_delivery *delivery, const struct shmq_record *record,
                       shmq_block *block);
int shmq_lease_done(shmq_queue *q, struct shmq_delivery *delivery, const struct shmq_record *record,
                    uint64_t bytes);

#endif
