/* handle.c: a handle's life, and what it may do: roles, shutdown, subscriptions.
 *
 * Idea: a handle is private memory around a mapped segment.  The mapping has users (the open handle, blocks, waiting
 * calls), and goes with the last of them; the struct has references, and outlives it.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "core.h"

#define OPEN_PATIENCE_NS INT64_C(1000000000)
#define SETTLE_TRIES 200 /* a millisecond each, where another process repairs what a dead holder left */

void shmq_wake_all(shmq_queue *q, struct shmq_eventcount *e) { shmq_wake_slow(&q->segment, &q->bells, e); }

/* ---- life of a handle ---- */

static void bind_structures(shmq_queue *q) {
    const struct shmq_geometry *g = &q->segment.geometry;
    uint8_t *base = q->segment.base;
    q->control = q->segment.control;
    shmq_ring_bind(&q->ring, &q->segment);
    shmq_pending_bind(&q->pending, &q->segment);
    shmq_keys_bind(&q->keys, &q->segment);
    q->arena = (struct shmq_arena){
        .words = (shmq_a64 *)(void *)(base + g->words_at),
        .headers = (struct shmq_block_header *)(void *)(base + g->blocks_at),
        .small = {.base = base + g->small_at, .page_bytes = SHMQ_SMALL_PAGE, .pages = g->small_pages},
        .large = {.base = base + g->large_at,
                  .page_bytes = SHMQ_LARGE_PAGE,
                  .first = g->small_pages,
                  .pages = g->large_pages}};
    uint64_t spin_ns = shmq_cpus_online() > 1 ? SHMQ_SPIN_MAX_NS / 2 : 0;
    store_relaxed(&q->put.waiter.spin_ns, spin_ns);
    store_relaxed(&q->get.waiter.spin_ns, spin_ns);
}

/* A topic's payloads are copied through private memory, see topic.c. */
bool shmq_prepare(shmq_queue *q) {
    if (!q->ring.is_topic) return true;
    size_t bytes = q->ring.inline_bytes;
    q->buffers = malloc(2 * bytes);
    q->put.ring.topic.buffer = q->buffers;
    q->get.ring.topic.buffer = q->buffers == NULL ? NULL : q->buffers + bytes;
    return q->buffers != NULL;
}

void shmq_settle_in(shmq_queue *q) {
    q->arena.owner = q->me.index;
    shmq_ring_join(&q->ring, q->me.index);
    q->pending.owner = q->me.index;
    q->keys.owner = q->me.index;
    q->counters = &q->segment.peers[q->me.index];
}

/* Takes over `segment`, also on failure. */
static int open_handle(struct shmq_segment *segment, bool creating, bool observer, shmq_queue **out) {
    shmq_queue *q = calloc(1, sizeof *q);
    uint64_t canary = shmq_process_canary();
    if (q != NULL) {
        q->segment = *segment;
        q->canary = canary;
        q->observer = observer;
        store_relaxed(&q->looked_ns, (uint64_t)shmq_now_ns()); /* below, or there is nobody yet */
        bind_structures(q);
    }
    if (q == NULL || canary == 0 || !shmq_prepare(q)) {
        free(q);
        shmq_segment_unmap(segment);
        return SHMQ_OUT_OF_SPACE;
    }
    if (!observer) {
        uint32_t repaired;
        shmq_wait_register();
        if (creating) shmq_ring_init(&q->ring);
        if (creating) shmq_pending_init(&q->pending);
        else (void)shmq_recover_all(&q->segment, &q->ring, &q->arena, &q->pending, UINT32_MAX, &repaired);
        int status = shmq_peers_join(&q->segment, &q->me);
        if (status != SHMQ_OK) {
            int error = errno;
            shmq_segment_unmap(&q->segment);
            free(q->buffers);
            free(q);
            errno = error;
            return status;
        }
        shmq_settle_in(q);
        shmq_note(q, SHMQ_OP_ATTACH, 0);
        if (creating) shmq_segment_ready(&q->segment);
        else shmq_bell_news(&q->segment, q->me.index); /* before we can take anybody's wake-up */
    }
    atomic_store(&q->users, 1);
    atomic_store(&q->references, 1);
    store32_release(&q->open, 1);
    *out = q;
    return SHMQ_OK;
}

int shmq_create(int fd, const shmq_params *params, shmq_queue **queue) {
    struct shmq_segment segment;
    int status = shmq_segment_create(fd, params, &segment);
    return status == SHMQ_OK ? open_handle(&segment, true, false, queue) : status;
}

int shmq_attach(int fd, shmq_queue **queue) {
    struct shmq_segment segment;
    int status = shmq_segment_attach(fd, false, &segment);
    return status == SHMQ_OK ? open_handle(&segment, false, false, queue) : status;
}

int shmq_observe(int fd, shmq_queue **queue) {
    struct shmq_segment segment;
    int status = shmq_segment_attach(fd, true, &segment);
    return status == SHMQ_OK ? open_handle(&segment, false, true, queue) : status;
}

int shmq_open(const char *name, shmq_queue **queue) {
    char path[256];
    if (name == NULL || *name == '\0' || strchr(name, '/') != NULL ||
        snprintf(path, sizeof path, "/shmq.%s", name) >= (int)sizeof path)
        return SHMQ_INVALID;
    int fd = shm_open(path, O_RDWR, 0);
    if (fd < 0) return SHMQ_SYSTEM;
    int64_t patience = shmq_deadline(OPEN_PATIENCE_NS);
    int status = shmq_attach(fd, queue);
    while (status == SHMQ_NOT_READY && shmq_now_ns() < patience) {
        const struct timespec pause = {.tv_nsec = 1000000};
        (void)nanosleep(&pause, NULL);
        status = shmq_attach(fd, queue);
    }
    int error = errno;
    close(fd);
    errno = error;
    if (status == SHMQ_OK) memcpy((*queue)->segment.name, path, sizeof path);
    return status;
}

/* The last user of the mapping leaves the segment. */
static void drop_user(shmq_queue *q) {
    if (sub32_acq_rel(&q->users, 1) != 1) return;
    /* In a forked child the slot is the parent's and the pin was not copied. */
    if (!q->observer && !shmq_is_forked(q)) {
        shmq_note(q, SHMQ_OP_DETACH, 0);
        shmq_peers_leave(&q->segment, &q->me);
    }
    shmq_segment_unmap(&q->segment);
    shmq_bells_close(&q->bells);
}

void shmq_hold_struct(shmq_queue *q) { (void)add32_relaxed(&q->references, 1); }

void shmq_release_struct(shmq_queue *q) {
    if (sub32_acq_rel(&q->references, 1) != 1) return;
    free(q->inline_copy);
    free(q->buffers);
    free(q);
}

void shmq_pin(shmq_queue *q) { (void)add32_relaxed(&q->users, 1); }
/* acq_rel, as in drop_user: whoever takes the count from 1 to 0 unmaps, and a pin never finds it at 0. */
bool shmq_try_pin(shmq_queue *q) {
    uint32_t users = load32_relaxed(&q->users);
    while (users != 0)
        if (cas32_acq_rel(&q->users, &users, users + 1)) return true;
    return false; /* the last one has unmapped the segment */
}
void shmq_unpin(shmq_queue *q) { drop_user(q); }

/* A block that is ours keeps the mapping and the struct; once published it keeps them still, for whoever looks
 * at the memory. */
void shmq_hold_block(shmq_queue *q, const shmq_block *b, uint32_t op) {
    (void)add32_relaxed(&q->users, 1);
    (void)add32_relaxed(&q->references, 1);
    uint64_t now = shmq_recorder_note(q->counters, op, b->page);
    if (add32_relaxed(&q->held, 1) == 0) store_relaxed(&q->counters->holding_since_ns, now);
}

void shmq_not_ours(shmq_block *b) {
    b->word = 0;
    (void)sub32_acq_rel(&b->queue->held, 1);
}

static void give_role(shmq_queue *q, shmq_a64 *role, struct shmq_side *side) {
    uint64_t mine = shmq_role_word(q->me.index, q->me.epoch);
    if (side->held) (void)cas_acq_rel(role, &mine, 0);
    side->held = false;
}

void shmq_close(shmq_queue *q) {
    if (q == NULL || exchange32_seq_cst(&q->open, 0) == 0) return;
    if (!q->observer && !shmq_is_forked(q)) {
        give_role(q, &q->control->roles.producer, &q->put);
        give_role(q, &q->control->roles.consumer, &q->get);
        if (q->ring.is_topic) {
            shmq_topic_unsubscribe(&q->ring.topic, q->me.index);
            (void)shmq_share_trim(&q->ring.topic, &q->arena); /* death before it: on the next reclaim */
        }
        if (q->pending.count > 0) shmq_pending_return_all(&q->pending); /* what we have not acknowledged */
        /* Threads that wait on this handle look again and find it closed. */
        shmq_wake_all(q, &q->control->not_empty);
        shmq_wake_all(q, &q->control->not_full);
    }
    drop_user(q);
}

void shmq_free(shmq_queue *q) {
    if (q == NULL) return;
    shmq_close(q);
    shmq_release_struct(q);
}

/* ---- may this call go on? ---- */

int shmq_usable(const shmq_queue *q) {
    if (SHMQ_UNLIKELY(load32_relaxed(&q->open) == 0)) return SHMQ_CLOSED;
    if (SHMQ_UNLIKELY(shmq_is_forked(q))) return SHMQ_FORKED;
    return SHMQ_OK;
}

/* On an mpmc queue anyone may, and it is noted for people.  On a topic whoever has not subscribed may publish, and
 * it is noted for PEER_DEAD (recover.c): the note (N1) before the old one's death is forgotten (N2). */
static int take_part(shmq_queue *q, bool producer) {
    if (q->ring.is_topic && (!producer || q->get.held)) return SHMQ_INVALID;
    uint32_t roles = load32_relaxed(&q->counters->roles); /* only we write it */
    store32_relaxed(&q->counters->roles, roles | (producer ? SHMQ_ROLE_PRODUCER : SHMQ_ROLE_CONSUMER));
    shmq_note(q, SHMQ_OP_ROLE, producer ? 1 : 2);
    (producer ? &q->put : &q->get)->held = true;
    if (q->ring.is_topic) {
        full_fence();
        store_release(&q->control->roles.lost_producer, 0);
    }
    return SHMQ_OK;
}

/* From nobody, or from the dead once they are reaped.  A live holder keeps its role.  SHMQ_NOT_READY: a dead
 * holder is not repaired yet, see shmq_settle_roles. */
static int claim_role(shmq_queue *q, bool producer) {
    if (q->observer) return SHMQ_INVALID;
    if (!q->ring.is_spsc) return take_part(q, producer);
    shmq_a64 *role = producer ? &q->control->roles.producer : &q->control->roles.consumer;
    struct shmq_side *side = producer ? &q->put : &q->get;
    for (;;) {
        uint64_t holder = load_acquire(role);
        if (holder == 0) {
            /* Acquire: what the last holder did to the ring is visible.  Progress: another one has it now. */
            if (!cas_acq_rel(role, &holder, shmq_role_word(q->me.index, q->me.epoch))) continue;
            side->held = true;
            shmq_note(q, SHMQ_OP_ROLE, producer ? 1 : 2);
            if (producer) store_relaxed(&q->control->roles.lost_producer, 0);
            int status = shmq_spsc_side_load(&q->ring.spsc, producer, &side->ring.spsc);
            if (status != SHMQ_OK) give_role(q, role, side);
            return status;
        }
        uint32_t owner = shmq_role_owner(holder), repaired;
        if (owner >= q->segment.geometry.peers) return SHMQ_CORRUPT;
        if (shmq_peers_alive(&q->segment, owner) != 0) return SHMQ_ROLE_TAKEN;
        (void)shmq_recover_all(&q->segment, &q->ring, &q->arena, &q->pending, q->me.index, &repaired);
        if (repaired == 0) return SHMQ_NOT_READY; /* another reaper is at it, or we have no descriptor left */
    }
}

static bool dead_holder(const shmq_queue *q, const shmq_a64 *role) {
    uint64_t holder = load_acquire(role);
    uint32_t owner = shmq_role_owner(holder);
    return holder != 0 && owner < q->segment.geometry.peers && shmq_peers_alive(&q->segment, owner) == 0;
}

int shmq_settle_roles(shmq_queue *q) {
    const struct timespec pause = {.tv_nsec = 1000000};
    uint32_t repaired;
    for (int tries = 0; tries < SETTLE_TRIES; tries++) {
        if (!dead_holder(q, &q->control->roles.producer) && !dead_holder(q, &q->control->roles.consumer))
            return SHMQ_OK;
        (void)nanosleep(&pause, NULL);
        (void)shmq_recover_all(&q->segment, &q->ring, &q->arena, &q->pending, q->me.index, &repaired);
    }
    return SHMQ_ROLE_TAKEN;
}

int shmq_put_begin(shmq_queue *q) {
    int status = shmq_usable(q);
    if (SHMQ_UNLIKELY(status != SHMQ_OK)) return status;
    if (SHMQ_UNLIKELY(load32_relaxed(&q->control->roles.lifecycle) != SHMQ_RUNNING)) return SHMQ_SHUT_DOWN;
    return SHMQ_LIKELY(q->put.held) ? SHMQ_OK : claim_role(q, true);
}

int shmq_get_begin(shmq_queue *q) {
    int status = shmq_usable(q);
    if (SHMQ_UNLIKELY(status != SHMQ_OK)) return status;
    if (SHMQ_UNLIKELY(load32_relaxed(&q->control->roles.lifecycle) == SHMQ_STOPPED)) return SHMQ_SHUT_DOWN;
    return SHMQ_LIKELY(q->get.held) ? SHMQ_OK : claim_role(q, false);
}
/* A producer's own, see lanes.c. */
int shmq_set_priority(shmq_queue *q, int urgent) {
    int status = q == NULL || q->ring.lanes != 2 ? SHMQ_INVALID : shmq_usable(q);
    if (status == SHMQ_OK) q->put.ring.urgent = urgent != 0;
    return status;
}
/* ---- the end ---- */

int shmq_shutdown(shmq_queue *q, int immediate) {
    int status = shmq_usable(q);
    if (status != SHMQ_OK || q->observer) return status != SHMQ_OK ? status : SHMQ_INVALID;
    uint32_t to = immediate ? SHMQ_STOPPED : SHMQ_DRAINING;
    uint32_t seen = load32_acquire(&q->control->roles.lifecycle);
    while (seen < to && !atomic_compare_exchange_strong(&q->control->roles.lifecycle, &seen, to)) {
    } /* L1: seq_cst.  It only grows, so a failed CAS means that it is nearer to `to`. */
    shmq_note(q, SHMQ_OP_SHUTDOWN, to);
    shmq_wake_all(q, &q->control->not_empty);
    shmq_wake_all(q, &q->control->not_full);
    return SHMQ_OK;
}

/* ---- topics ---- */

int shmq_subscribe(shmq_queue *q, uint32_t history) {
    int status = q == NULL ? SHMQ_INVALID : shmq_usable(q);
    if (status != SHMQ_OK) return status;
    if (q->observer || !q->ring.is_topic || q->put.held || q->get.held || history > q->ring.topic.history)
        return SHMQ_INVALID;
    store32_relaxed(&q->counters->roles, SHMQ_ROLE_CONSUMER);
    shmq_topic_subscribe(&q->ring.topic, &q->get.ring.topic, q->me.epoch, history);
    shmq_note(q, SHMQ_OP_SUBSCRIBE, q->get.ring.topic.cursor << 3);
    q->get.held = true;
    return SHMQ_OK;
}

int shmq_get_subscription(shmq_queue *q, shmq_subscription *out) {
    int status = q == NULL ? SHMQ_INVALID : shmq_usable(q);
    if (status != SHMQ_OK) return status;
    if (!q->ring.is_topic || !q->get.held) return SHMQ_INVALID;
    out->lag = shmq_topic_lag_of(&q->ring.topic, q->me.index);
    out->missed = load_relaxed(&q->counters->topic_missed);
    out->evicted = shmq_topic_state_of(&q->ring.topic, q->me.index) == SHMQ_WAS_EVICTED;
    out->unused = 0;
    return SHMQ_OK;
}

/* ---- repair ---- */

int shmq_reap(shmq_queue *q, uint32_t *repaired) {
    int status = shmq_usable(q);
    *repaired = 0;
    if (status != SHMQ_OK || q->observer) return status != SHMQ_OK ? status : SHMQ_INVALID;
    return shmq_recover_all(&q->segment, &q->ring, &q->arena, &q->pending, q->me.index, repaired);
}

/* ---- counts and tasks ---- */

/* Relaxed: a count, for people.  Death before it: it is one short. */
void shmq_count_dropped(shmq_queue *q, int newest) {
    struct shmq_roles *roles = &q->control->roles;
    (void)add_relaxed(newest ? &roles->dropped_newest : &roles->dropped_oldest, 1);
}

void shmq_begin_task(shmq_queue *q) {
    /* Release: before the ack, for all_done. */
    store_release(&q->counters->unfinished, load_relaxed(&q->counters->unfinished) + 1);
}

int shmq_end_task(shmq_queue *q) {
    int status = shmq_usable(q);
    if (status != SHMQ_OK) return status;
    uint64_t tasks = load_relaxed(&q->counters->unfinished);
    if (tasks == 0) return SHMQ_INVALID;
    store_release(&q->counters->unfinished, tasks - 1);
    (void)shmq_wake(q, &q->control->not_full);
    return SHMQ_OK;
}

const char *shmq_status_text(int status) {
    static const char *const texts[] = {"ok",
                                        "ring full",
                                        "arena full",
                                        "empty",
                                        "interrupted by a signal",
                                        "message too large",
                                        "handle closed",
                                        "queue shut down",
                                        "role taken by a live process",
                                        "handle inherited through fork",
                                        "segment corrupt",
                                        "not a shmq segment",
                                        "made by an incompatible build",
                                        "not ready",
                                        "wrong owner or mode",
                                        "peer table full",
                                        "out of space",
                                        "invalid argument",
                                        "system call failed",
                                        "producer dead",
                                        "subscription ended by a publisher",
                                        "delivered again meanwhile",
                                        "too many messages not acknowledged",
                                        "a repeat of a key, dropped",
                                        "another producer is putting with a key"};
    return status >= 0 && status < (int)(sizeof texts / sizeof *texts) ? texts[status] : "unknown";
}
