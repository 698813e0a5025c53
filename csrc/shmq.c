/* shmq.c: handles, argument checks, try + wake, try + wait.
 *
 * Idea: the structures below only try.  Here a try gets its wake-up behind it, and a blocking call is
 *
 *     loop: try -> done?  else wait until it seems possible -> loop
 *
 * once for puts and once for gets.  The path of a message:
 *
 *     put: reserve (ring) [-> block: loan, fill, send (arena)] -> commit (ring) -> wake
 *     get: peek (ring)    [-> block: lease (arena)]            -> release (ring) -> wake
 *
 * A block is reachable from a shared word at every instruction: LOANED by us, then INFLIGHT at the position of
 * the reserved record, and only then is the record published; LEASED by us, and only then is it released.
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
#define GATHER_NS INT64_C(100000)
#define TAKE_SPINS 40    /* about a microsecond */
#define SETTLE_TRIES 200 /* a millisecond each, where another process repairs what a dead holder left */

/* In the flight recorder.  Behind the operation: a death before it leaves what the reaper finds in our hands. */
static void note(shmq_queue *q, uint32_t op, uint64_t cursor) {
    (void)shmq_recorder_note(q->counters, op, cursor);
}

/* ---- wake ---- */

static SHMQ_APART void wake_slow(shmq_queue *q, struct shmq_eventcount *e) {
    shmq_wake_slow(&q->segment, &q->bells, e);
}

/* To be called after the store that made something available.  No system call, no fence and no write where nobody
 * waits.  Returns true if it woke. */
static inline bool wake(shmq_queue *q, struct shmq_eventcount *e) {
    if (SHMQ_LIKELY(!shmq_eventcount_armed(e))) return false;
    wake_slow(q, e);
    return true;
}

void shmq_tell(shmq_queue *q, struct shmq_eventcount *e) { (void)wake(q, e); }

/* ---- life of a handle ---- */

static void bind_structures(shmq_queue *q) {
    const struct shmq_geometry *g = &q->segment.geometry;
    uint8_t *base = q->segment.base;
    q->control = q->segment.control;
    shmq_ring_bind(&q->ring, &q->segment);
    shmq_pending_bind(&q->pending, &q->segment);
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
        note(q, SHMQ_OP_ATTACH, 0);
        if (creating) shmq_segment_ready(&q->segment);
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

static bool is_forked(const shmq_queue *q) { return q->canary != *shmq_canary; }

/* The last user of the mapping leaves the segment. */
static void drop_user(shmq_queue *q) {
    if (sub32_acq_rel(&q->users, 1) != 1) return;
    /* In a forked child the slot is the parent's and the pin was not copied. */
    if (!q->observer && !is_forked(q)) {
        note(q, SHMQ_OP_DETACH, 0);
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
static void hold_block(shmq_queue *q, const shmq_block *b, uint32_t op) {
    (void)add32_relaxed(&q->users, 1);
    (void)add32_relaxed(&q->references, 1);
    uint64_t now = shmq_recorder_note(q->counters, op, b->page);
    if (add32_relaxed(&q->held, 1) == 0) store_relaxed(&q->counters->holding_since_ns, now);
}

static void not_ours(shmq_block *b) {
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
    if (!q->observer && !is_forked(q)) {
        give_role(q, &q->control->roles.producer, &q->put);
        give_role(q, &q->control->roles.consumer, &q->get);
        if (q->ring.is_topic) {
            shmq_topic_unsubscribe(&q->ring.topic, q->me.index);
            (void)shmq_share_trim(&q->ring.topic, &q->arena); /* death before it: on the next reclaim */
        }
        if (q->pending.count > 0) shmq_pending_return_all(&q->pending); /* what we have not acknowledged */
        /* Threads that wait on this handle look again and find it closed. */
        wake_slow(q, &q->control->not_empty);
        wake_slow(q, &q->control->not_full);
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
    if (SHMQ_UNLIKELY(is_forked(q))) return SHMQ_FORKED;
    return SHMQ_OK;
}

/* On an mpmc queue anyone may, and it is noted for people.  On a topic whoever has not subscribed may publish, and
 * it is noted for PEER_DEAD (recover.c): the note (N1) before the old one's death is forgotten (N2). */
static int take_part(shmq_queue *q, bool producer) {
    if (q->ring.is_topic && (!producer || q->get.held)) return SHMQ_INVALID;
    uint32_t roles = load32_relaxed(&q->counters->roles); /* only we write it */
    store32_relaxed(&q->counters->roles, roles | (producer ? SHMQ_ROLE_PRODUCER : SHMQ_ROLE_CONSUMER));
    note(q, SHMQ_OP_ROLE, producer ? 1 : 2);
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
            note(q, SHMQ_OP_ROLE, producer ? 1 : 2);
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

/* ---- put ---- */

static void count(shmq_a64 *counter, uint64_t n) {
    store_relaxed(counter, load_relaxed(counter) + n); /* this peer writes; its threads may lose a count */
}

int shmq_try_reserve(shmq_queue *q, uint32_t bytes, uint16_t codec, uint16_t flags,
                     struct shmq_record *record) {
    for (;;) {
        int status = shmq_ring_try_reserve(&q->ring, &q->put.ring, bytes, codec, flags, record);
        if (SHMQ_LIKELY(status != SHMQ_LOOK_AGAIN)) return status;
        shmq_share_clear(&q->ring.topic, &q->put.ring.topic, &q->arena);
    }
}

void shmq_commit(shmq_queue *q) {
    shmq_ring_commit(&q->ring, &q->put.ring);
    if (SHMQ_UNLIKELY(q->ring.topic.history != 0)) /* death between: its block goes with its slot */
        shmq_share_expire(&q->ring.topic, &q->put.ring.topic, &q->arena);
}

static void put_done(shmq_queue *q, uint32_t op, uint64_t messages, uint64_t bytes) {
    if (SHMQ_UNLIKELY(wake(q, &q->control->not_empty))) count(&q->counters->wakes, 1);
    count(&q->counters->messages_put, messages);
    count(&q->counters->bytes_put, bytes);
    shmq_recorder_note_often(q->counters, op, shmq_ring_position(&q->ring, &q->put.ring));
}

static void put_commit(shmq_queue *q, uint32_t op, uint64_t messages, uint64_t bytes) {
    shmq_commit(q);
    put_done(q, op, messages, bytes);
}

void shmq_put_commit(shmq_queue *q, uint64_t messages, uint64_t bytes) {
    put_commit(q, SHMQ_OP_PUT, messages, bytes);
}

void shmq_put_done(shmq_queue *q, uint64_t messages, uint64_t bytes) {
    put_done(q, messages == 1 ? SHMQ_OP_PUT : SHMQ_OP_PUT_MANY, messages, bytes);
}

int shmq_try_put_inline(shmq_queue *q, uint16_t codec, const void *meta, uint32_t meta_bytes,
                        const void *data, uint32_t bytes) {
    struct shmq_record record;
    int status = shmq_try_reserve(q, meta_bytes + bytes, codec, 0, &record);
    if (SHMQ_UNLIKELY(status != SHMQ_OK)) return status;
    if (meta_bytes > 0) memcpy(record.payload, meta, meta_bytes);
    if (bytes > 0) memcpy(record.payload + meta_bytes, data, bytes);
    shmq_put_commit(q, 1, meta_bytes + bytes);
    return SHMQ_OK;
}

int shmq_try_loan(shmq_queue *q, uint64_t bytes, shmq_block **block) {
    shmq_block *b = malloc(sizeof *b);
    if (b == NULL) return SHMQ_OUT_OF_SPACE;
    /* Death behind this line: LOANED(us), the reaper frees it. */
    int status = shmq_arena_try_loan(&q->arena, bytes, &b->page, &b->word);
    while (status == SHMQ_ARENA_FULL && q->ring.is_topic && shmq_share_reclaim(&q->ring.topic, &q->arena))
        status = shmq_arena_try_loan(&q->arena, bytes, &b->page, &b->word);
    if (status != SHMQ_OK) {
        free(b);
        return status;
    }
    b->data = shmq_arena_data(&q->arena, b->page);
    b->bytes = bytes;
    b->queue = q;
    b->unused = 0;
    hold_block(q, b, SHMQ_OP_LOAN);
    *block = b;
    return SHMQ_OK;
}

int shmq_try_publish(shmq_block *b, uint16_t codec, const void *meta, uint32_t meta_bytes, uint64_t bytes) {
    shmq_queue *q = b->queue;
    struct shmq_spsc_side before = q->put.ring.spsc;
    struct shmq_record record;
    if (b->word == 0 || meta_bytes > SHMQ_META_BYTES || !shmq_arena_holds(&q->arena, b->page, b->word, bytes))
        return SHMQ_INVALID;
    int status = shmq_try_reserve(q, sizeof(uint64_t), codec, SHMQ_RECORD_BLOCK, &record);
    if (status != SHMQ_OK) return status;
    struct shmq_block_header *h = &q->arena.headers[b->page];
    h->payload_bytes = bytes;
    h->codec = codec;
    h->flags = 0;
    h->meta_bytes = meta_bytes;
    h->deliveries = 0;
    h->producer = q->me.index;
    if (meta_bytes > 0) memcpy(h->meta, meta, meta_bytes);
    /* N1 -> N2: who finds this handle in a slot finds the pages as the slot's last reader left them. */
    store_release((shmq_a64 *)(void *)record.payload, shmq_handle(b->page, shmq_word_generation(b->word)));
    if (q->ring.is_topic) shmq_arena_share(&q->arena, b->page, b->word);
    /* Death before: LOANED, freed.  Death between this and the commit: INFLIGHT at a position that was never
     * published, freed.  Death after the commit: the message is delivered. */
    status = shmq_arena_send(&q->arena, b->page, &b->word, record.position);
    if (status != SHMQ_OK) {
        shmq_ring_abort(&q->ring, &q->put.ring, &before);
        return status;
    }
    not_ours(b); /* the ring's now; what is left of the loan is the right to look at the memory */
    put_commit(q, SHMQ_OP_PUBLISH, 1, bytes);
    return SHMQ_OK;
}

void shmq_block_give_back(shmq_block *b) {
    shmq_queue *q = b->queue;
    if (b->word == 0) return;
    if (!is_forked(q)) { /* a forked child's copy of a block owns nothing */
        if (shmq_word_state(b->word) == SHMQ_PAGE_INFLIGHT) /* a subscriber's */
            shmq_share_release(&q->ring.topic, &q->arena, b->page, b->word);
        else if (shmq_word_argument(b->word) != 0) /* a message's that is, or was, to be acknowledged */
            shmq_keep_release(&q->arena, &q->pending, b->page, b->word);
        else (void)shmq_arena_free(&q->arena, b->page, b->word);
        (void)wake(q, &q->control->not_full); /* not counted: any thread may be here */
        note(q, SHMQ_OP_RELEASE, b->page);
    }
    not_ours(b);
}

void shmq_block_release(shmq_block *b) {
    if (b == NULL) return;
    shmq_queue *q = b->queue;
    shmq_block_give_back(b);
    free(b);
    drop_user(q);
    shmq_release_struct(q);
}

/* ---- get ---- */

int shmq_try_next(shmq_queue *q, struct shmq_record *record) {
    int status = shmq_ring_try_peek(&q->ring, &q->get.ring, record);
    if (status == SHMQ_EMPTY && load32_acquire(&q->control->roles.lifecycle) != SHMQ_RUNNING) {
        /* L2 <- L1: what was put before the shutdown is visible now. */
        status = shmq_ring_try_peek(&q->ring, &q->get.ring, record);
        if (status == SHMQ_EMPTY && shmq_ring_drained(&q->ring, shmq_ring_cursor(&q->ring, &q->get.ring)))
            status = SHMQ_SHUT_DOWN;
    }
    if (SHMQ_UNLIKELY((q->get.ring.mpmc.tombs | q->get.ring.topic.passed_over) != 0)) {
        if (q->ring.is_topic) (void)shmq_share_trim(&q->ring.topic, &q->arena);
        q->get.ring.mpmc.tombs = q->get.ring.topic.passed_over = 0;
        (void)wake(q, &q->control->not_full); /* room that no message left behind */
    }
    return status;
}

static int lease(shmq_queue *q, uint64_t handle, uint64_t position, shmq_block *b) {
    if (!q->ring.is_topic) return shmq_arena_lease(&q->arena, handle, position, 0, &b->page, &b->word);
    int status = shmq_share_lease(&q->arena, handle, position, &b->page, &b->word);
    return status == SHMQ_LOOK_AGAIN ? shmq_topic_skip(&q->ring.topic, &q->get.ring.topic) : status;
}

/* `d`: of a message that is to be acknowledged, for the first time or again; or NULL. */
static int lease_of(shmq_queue *q, const struct shmq_record *record, const struct shmq_delivery *d,
                    shmq_block *b) {
    if (record->bytes != sizeof(uint64_t)) return SHMQ_CORRUPT; /* a shorter one may end with the mapping */
    uint64_t handle = load_relaxed((shmq_a64 *)(void *)record->payload);
    if (d == NULL) return lease(q, handle, record->position, b);
    return d->again ? shmq_keep_take(&q->arena, &q->pending, d, handle, &b->page, &b->word)
                    : shmq_keep_lease(&q->arena, d, handle, record->position, &b->page, &b->word);
}

/* Leases the block that a peeked record names; the caller then calls shmq_taken, or shmq_lease_done. */
int shmq_try_lease(shmq_queue *q, const struct shmq_record *record, const struct shmq_delivery *d,
                   shmq_block **block, const struct shmq_block_header **header) {
    shmq_block *b = malloc(sizeof *b);
    if (b == NULL) return SHMQ_OUT_OF_SPACE;
    int status = lease_of(q, record, d, b);
    /* Death here: LEASED(us) and still at the head; the reaper puts it back in flight.  Topic: a hold in our name,
     * which the reaper ends. */
    if (status == SHMQ_OK) {
        struct shmq_block_header *h = &q->arena.headers[b->page];
        b->bytes = *(volatile uint64_t *)&h->payload_bytes; /* once: it is checked, then used */
        if (!shmq_arena_holds(&q->arena, b->page, b->word, b->bytes)) {
            status = SHMQ_CORRUPT;
            if (q->ring.is_topic) shmq_arena_let_go(&q->arena, b->page, false);
        }
        *header = h;
    }
    if (status != SHMQ_OK) {
        free(b);
        return status;
    }
    b->data = shmq_arena_data(&q->arena, b->page);
    b->queue = q;
    b->unused = 0;
    hold_block(q, b, SHMQ_OP_LEASE);
    *block = b;
    return SHMQ_OK;
}

/* The way back, for want of memory: the record is still the next one. */
void shmq_unlease(shmq_block *b, const struct shmq_record *record) {
    shmq_queue *q = b->queue;
    if (!q->ring.is_topic && shmq_arena_send(&q->arena, b->page, &b->word, record->position) == SHMQ_OK)
        not_ours(b);
    shmq_block_release(b);
}

void shmq_put_back(shmq_queue *q, const struct shmq_spsc_side *before) {
    shmq_ring_unpeek(&q->ring, &q->get.ring, before);
    (void)wake(q, &q->control->not_empty); /* another consumer may have it */
}

void shmq_count_got(shmq_queue *q, uint64_t bytes) {
    count(&q->counters->messages_got, 1);
    count(&q->counters->bytes_got, bytes);
}

void shmq_taken(shmq_queue *q, uint64_t messages, uint64_t bytes) {
    shmq_ring_release(&q->ring, &q->get.ring);
    if (SHMQ_UNLIKELY(wake(q, &q->control->not_full))) count(&q->counters->wakes, 1);
    count(&q->counters->messages_got, messages);
    count(&q->counters->bytes_got, bytes);
    shmq_recorder_note_often(q->counters, messages == 1 ? SHMQ_OP_GET : SHMQ_OP_GET_MANY,
                             shmq_ring_position(&q->ring, &q->get.ring));
}

bool shmq_spin_get(shmq_queue *q) {
    if (load_relaxed(&q->get.waiter.spin_ns) == 0) return false;
    for (int i = 0; i < TAKE_SPINS; i++) {
        if (shmq_ring_unread(&q->ring, shmq_ring_cursor(&q->ring, &q->get.ring))) return true;
        cpu_relax();
    }
    return false;
}

/* ---- wait ---- */

struct need {
    shmq_queue *q;
    uint64_t cursor;
    uint64_t bytes;
    bool for_block;
    uint64_t next_due; /* at_least_once: when a message is due again, as of the wait's begin */
};

static bool not_running(const shmq_queue *q) {
    return load32_relaxed(&q->open) == 0 || load32_relaxed(&q->control->roles.lifecycle) != SHMQ_RUNNING;
}
static bool put_ready(void *context) {
    const struct need *need = context;
    shmq_queue *q = need->q;
    if (not_running(q)) return true;
    if (!need->for_block) return shmq_ring_room(&q->ring, need->cursor, (uint32_t)need->bytes);
    return shmq_arena_room(&q->arena, need->bytes) ||
           (q->ring.is_topic && shmq_share_reclaimable(&q->ring.topic, &q->arena));
}
static bool put_roomy(void *context) {
    const struct need *need = context;
    return not_running(need->q) || shmq_ring_roomy(&need->q->ring, need->cursor);
}
/* The word of a producer that died, if nobody has come since and this handle was not told yet; else 0. */
static uint64_t lost_producer(const shmq_queue *q) {
    const struct shmq_roles *roles = &q->control->roles;
    if ((!q->ring.is_spsc && !q->ring.is_topic) || load_acquire(&roles->producer) != 0) return 0;
    uint64_t lost = load_acquire(&roles->lost_producer);
    return lost != load_relaxed(&q->told_of) ? lost : 0;
}

/* Is a message due again, or is one due earlier than this wait reckons with? */
static bool due_again(const struct need *need) {
    uint64_t due = load_relaxed(need->q->pending.next_due);
    return due < need->next_due || (due != SHMQ_NEVER && due <= (uint64_t)shmq_now_ns());
}

/* The ring first: a message goes from there to the table, and comes back to no slot that it has left. */
bool shmq_is_over(const shmq_queue *q) {
    return load32_relaxed(&q->control->roles.lifecycle) == SHMQ_DRAINING &&
           shmq_mpmc_untouched(&q->ring.mpmc) && !shmq_pending_others_hold(&q->pending);
}

static bool lease_ready(const struct need *need) {
    const shmq_queue *q = need->q;
    if (due_again(need) || load32_relaxed(&q->open) == 0 ||
        load32_relaxed(&q->control->roles.lifecycle) == SHMQ_STOPPED)
        return true;
    return (shmq_ring_unread(&q->ring, need->cursor) && shmq_pending_vacant(&q->pending)) || shmq_is_over(q);
}

static bool get_ready(void *context) {
    const struct need *need = context;
    shmq_queue *q = need->q;
    if (q->pending.count > 0) return lease_ready(need);
    if (lost_producer(q) != 0 || shmq_ring_unread(&q->ring, need->cursor)) return true;
    if (SHMQ_LIKELY(!not_running(q))) return false;
    /* Draining, and a producer is at work: its message is still to come, or it is dead. */
    bool to_come = load32_relaxed(&q->open) != 0 &&
                   load32_relaxed(&q->control->roles.lifecycle) == SHMQ_DRAINING &&
                   !shmq_ring_drained(&q->ring, need->cursor);
    return !to_come;
}

/* Where messages come all the time no wait lasts a slice, and yet somebody may be dead. */
static bool look_is_due(const shmq_queue *q) {
    return shmq_now_ns() - (int64_t)load_relaxed(&q->looked_ns) >= SHMQ_SLICE_NS;
}

/* How many dead it found. */
static uint32_t look_for_the_dead(shmq_queue *q) {
    uint32_t repaired;
    (void)shmq_recover_all(&q->segment, &q->ring, &q->arena, &q->pending, q->me.index, &repaired);
    if (repaired > 0) count(&q->counters->reaps, repaired);
    store_relaxed(&q->looked_ns, (uint64_t)shmq_now_ns());
    return repaired;
}

bool shmq_look_around(shmq_queue *q) { return look_is_due(q) && look_for_the_dead(q) > 0; }

static int wait_until(shmq_queue *q, struct shmq_eventcount *e, struct shmq_waiter *waiter,
                      shmq_ready_fn *ready, void *context, int64_t deadline_ns) {
    for (;;) {
        bool parked;
        int status = shmq_eventcount_wait(e, waiter, ready, context, deadline_ns, &parked);
        if (parked) count(&q->counters->parks, 1);
        if (parked && status == SHMQ_OK && look_is_due(q)) (void)look_for_the_dead(q);
        /* A slice or the deadline has passed: what we wait for may be in the hands of the dead. */
        if (status == SHMQ_NOT_READY || (status == SHMQ_EMPTY && parked)) {
            (void)look_for_the_dead(q);
            if (ready(context)) return SHMQ_OK;
        }
        if (status != SHMQ_NOT_READY) return status;
    }
}

int shmq_wait_put(shmq_queue *q, uint64_t cursor, bool for_block, uint64_t bytes, int64_t deadline_ns) {
    struct need need = {.q = q, .cursor = cursor, .bytes = bytes, .for_block = for_block};
    shmq_recorder_note_once(q->counters, SHMQ_OP_WAIT_PUT, bytes);
    /* A producer that takes each slot as it falls free meets the consumer at every one: let some gather. */
    if (!for_block && load_relaxed(&q->put.waiter.spin_ns) > 0)
        shmq_linger(put_roomy, &need, GATHER_NS, deadline_ns);
    return wait_until(q, &q->control->not_full, &q->put.waiter, put_ready, &need, deadline_ns);
}

int shmq_wait_get(shmq_queue *q, uint64_t cursor, int64_t deadline_ns) {
    struct need need = {.q = q, .cursor = cursor, .next_due = SHMQ_NEVER};
    int64_t until = deadline_ns;
    shmq_recorder_note_once(q->counters, SHMQ_OP_WAIT_GET, 0);
    if (q->pending.count > 0) {
        need.next_due = load_relaxed(q->pending.next_due);
        if (need.next_due < (uint64_t)deadline_ns) until = (int64_t)need.next_due;
    }
    int status = wait_until(q, &q->control->not_empty, &q->get.waiter, get_ready, &need, until);
    if (status == SHMQ_EMPTY && until < deadline_ns) status = SHMQ_OK; /* it is due */
    uint64_t lost = lost_producer(q);
    /* Before the last look: what the dead had put was published before its role was given up. */
    if (lost == 0 || status == SHMQ_INTERRUPTED || not_running(q) || shmq_ring_unread(&q->ring, cursor))
        return status;
    store_relaxed(&q->told_of, lost); /* relaxed: only threads of this handle care, and either may be told */
    return SHMQ_PEER_DEAD;
}

/* The ring, the table, the tasks: a message goes that way, and is seen in the next before it leaves the one.  A peer
 * that died took its tasks with it. */
static bool all_done(const shmq_queue *q) {
    uint64_t unacked, waiting;
    if (!shmq_mpmc_untouched(&q->ring.mpmc)) return false;
    shmq_pending_count(&q->pending, &unacked, &waiting);
    if (unacked + waiting != 0) return false;
    for (uint32_t i = 0; i < q->segment.geometry.peers; i++) {
        const struct shmq_peer *peer = &q->segment.peers[i];
        bool lives = (load_acquire(&peer->word) & 0xff) == SHMQ_PEER_LIVE;
        if (lives && load_acquire(&peer->unfinished) != 0) return false;
    }
    return true;
}

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
    (void)wake(q, &q->control->not_full);
    return SHMQ_OK;
}

static bool done_ready(void *context) {
    const struct need *need = context;
    return load32_relaxed(&need->q->open) == 0 || all_done(need->q);
}

int shmq_wait_done(shmq_queue *q, int64_t deadline_ns) {
    struct need need = {.q = q};
    int status = wait_until(q, &q->control->not_full, &q->put.waiter, done_ready, &need, deadline_ns);
    return status == SHMQ_OK && load32_relaxed(&q->open) == 0 ? SHMQ_CLOSED : status;
}

/* Death behind the arming: whoever wakes rings in vain, once. */
static int arm(shmq_queue *q, struct shmq_eventcount *e, shmq_ready_fn *ready, struct need *need, uint32_t op,
               uint64_t doorbell, enum shmq_arming how) {
    if (shmq_usable(q) != SHMQ_OK || ready(need)) return SHMQ_OK;
    bool news = shmq_bell_arm(&q->segment, q->me.index, e, doorbell, how);
    bool sure = how == SHMQ_ARM_SURELY ? shmq_barrier() : !news;
    if ((news || how == SHMQ_ARM_SURELY) && ready(need)) {
        shmq_bell_disarm(&q->segment, q->me.index, e);
        return SHMQ_OK;
    }
    if (news) {
        shmq_recorder_note_once(q->counters, op, need->bytes);
        count(&q->counters->parks, 1);
    }
    return sure ? SHMQ_EMPTY : SHMQ_NOT_READY;
}

int shmq_arm_put(shmq_queue *q, uint64_t cursor, bool for_block, uint64_t bytes, uint64_t doorbell,
                 enum shmq_arming how) {
    struct need need = {.q = q, .cursor = cursor, .bytes = bytes, .for_block = for_block};
    return arm(q, &q->control->not_full, put_ready, &need, SHMQ_OP_WAIT_PUT, doorbell, how);
}

int shmq_arm_get(shmq_queue *q, uint64_t cursor, uint64_t doorbell, enum shmq_arming how) {
    struct need need = {.q = q, .cursor = cursor, .next_due = SHMQ_NEVER};
    if (q->pending.count > 0) need.next_due = load_relaxed(q->pending.next_due);
    return arm(q, &q->control->not_empty, get_ready, &need, SHMQ_OP_WAIT_GET, doorbell, how);
}

void shmq_look_now(shmq_queue *q) {
    if (shmq_usable(q) == SHMQ_OK) (void)look_for_the_dead(q);
}

/* A failed try becomes a wait.  SHMQ_OK: try again. */
static int wait_after(shmq_queue *q, int tried, uint32_t record_bytes, uint64_t block_bytes,
                      int64_t deadline_ns) {
    if (tried != SHMQ_FULL && tried != SHMQ_ARENA_FULL) return tried;
    if (deadline_ns <= SHMQ_NO_WAIT) return shmq_look_around(q) ? SHMQ_OK : tried;
    shmq_pin(q);
    bool for_block = tried == SHMQ_ARENA_FULL;
    int status = shmq_wait_put(q, q->put.ring.spsc.cursor, for_block, for_block ? block_bytes : record_bytes,
                               deadline_ns);
    shmq_unpin(q);
    return status == SHMQ_EMPTY ? tried : status;
}

/* ---- the blocking calls of the C interface ---- */

static int may_put(shmq_queue *q) {
    int status = shmq_put_begin(q);
    if (SHMQ_LIKELY(status != SHMQ_NOT_READY)) return status;
    status = shmq_settle_roles(q);
    return status == SHMQ_OK ? shmq_put_begin(q) : status;
}
static int may_get(shmq_queue *q) {
    int status = shmq_get_begin(q);
    if (SHMQ_LIKELY(status != SHMQ_NOT_READY)) return status;
    status = shmq_settle_roles(q);
    return status == SHMQ_OK ? shmq_get_begin(q) : status;
}

static int put_inline(shmq_queue *q, uint16_t codec, const void *meta, uint32_t meta_bytes, const void *data,
                      uint32_t bytes, int64_t deadline_ns) {
    for (;;) {
        int status = may_put(q);
        if (status == SHMQ_OK) status = shmq_try_put_inline(q, codec, meta, meta_bytes, data, bytes);
        if (status != SHMQ_OK) status = wait_after(q, status, meta_bytes + bytes, 0, deadline_ns);
        else return SHMQ_OK;
        if (status != SHMQ_OK) return status;
    }
}

int shmq_loan(shmq_queue *q, uint64_t bytes, int64_t deadline_ns, shmq_block **block) {
    for (;;) {
        int status = may_put(q);
        if (status == SHMQ_OK) status = shmq_try_loan(q, bytes, block);
        if (status == SHMQ_OK) return SHMQ_OK;
        status = wait_after(q, status, 0, bytes, deadline_ns);
        if (status != SHMQ_OK) return status;
    }
}

static int publish_as(shmq_block *b, uint16_t codec, const void *meta, uint32_t meta_bytes,
                      int64_t deadline_ns) {
    for (;;) {
        int status = may_put(b->queue);
        if (status == SHMQ_OK) status = shmq_try_publish(b, codec, meta, meta_bytes, b->bytes);
        if (status == SHMQ_OK) return SHMQ_OK;
        status = wait_after(b->queue, status, sizeof(uint64_t), 0, deadline_ns);
        if (status != SHMQ_OK) return status;
    }
}

static int put_block(shmq_queue *q, uint16_t codec, const void *meta, uint32_t meta_bytes, const void *data,
                     uint64_t bytes, int64_t deadline_ns) {
    shmq_block *b;
    int status = shmq_loan(q, bytes, deadline_ns, &b);
    if (status != SHMQ_OK) return status;
    if (bytes > 0) memcpy(b->data, data, bytes);
    status = publish_as(b, codec, meta, meta_bytes, deadline_ns);
    shmq_block_release(b);
    return status;
}

int shmq_put(shmq_queue *q, const void *data, uint64_t bytes, int64_t deadline_ns) {
    if (q == NULL || (data == NULL && bytes > 0)) return SHMQ_INVALID;
    if (bytes <= q->ring.inline_bytes)
        return put_inline(q, SHMQ_RAW, NULL, 0, data, (uint32_t)bytes, deadline_ns);
    return put_block(q, SHMQ_RAW, NULL, 0, data, bytes, deadline_ns);
}

static bool tensor_ok(const shmq_tensor *t) {
    return t->ndim <= 11 && (t->order == 'C' || t->order == 'F') && t->dtype >= SHMQ_BOOL &&
           t->dtype <= SHMQ_FLOAT8_E8M0FNU;
}

int shmq_put_tensor(shmq_queue *q, const void *data, uint64_t bytes, const shmq_tensor *tensor,
                    int64_t deadline_ns) {
    if (q == NULL || tensor == NULL || !tensor_ok(tensor) || (data == NULL && bytes > 0)) return SHMQ_INVALID;
    if (bytes + sizeof *tensor <= q->ring.inline_bytes && bytes < 1024)
        return put_inline(q, SHMQ_TENSOR, tensor, sizeof *tensor, data, (uint32_t)bytes, deadline_ns);
    return put_block(q, SHMQ_TENSOR, tensor, sizeof *tensor, data, bytes, deadline_ns);
}

int shmq_put_many(shmq_queue *q, const void *data, uint64_t each, uint64_t n, int64_t deadline_ns,
                  uint64_t *done) {
    const uint8_t *from = data;
    *done = 0;
    if (q == NULL || (data == NULL && each > 0)) return SHMQ_INVALID;
    if (each > q->ring.inline_bytes) return SHMQ_TOO_LARGE;
    while (*done < n) {
        uint64_t run = 0;
        int status = may_put(q);
        while (status == SHMQ_OK && *done + run < n) {
            struct shmq_record record;
            status = shmq_try_reserve(q, (uint32_t)each, SHMQ_RAW, 0, &record);
            if (status != SHMQ_OK) break;
            if (each > 0) memcpy(record.payload, from + (*done + run) * each, each);
            if (!q->ring.is_spsc) shmq_commit(q); /* a slot at a time */
            run += 1;
        }
        if (run > 0 && q->ring.is_spsc) shmq_commit(q);
        if (run > 0) shmq_put_done(q, run, run * each);
        *done += run;
        if (status != SHMQ_OK) status = wait_after(q, status, (uint32_t)each, 0, deadline_ns);
        if (status != SHMQ_OK) return status;
    }
    return SHMQ_OK;
}

int shmq_publish(shmq_block *b, const shmq_tensor *tensor, int64_t deadline_ns) {
    if (b == NULL || (tensor != NULL && !tensor_ok(tensor))) return SHMQ_INVALID;
    int status = tensor == NULL ? publish_as(b, SHMQ_RAW, NULL, 0, deadline_ns)
                                : publish_as(b, SHMQ_TENSOR, tensor, sizeof *tensor, deadline_ns);
    if (status == SHMQ_OK) shmq_block_release(b);
    return status;
}

void shmq_message_of_block(shmq_block *block, uint16_t codec, const struct shmq_block_header *h,
                           shmq_message *m) {
    m->block = block;
    m->codec = codec;
    m->unused = 0;
    m->data = block->data;
    m->bytes = block->bytes;
    m->meta_bytes = h->meta_bytes == sizeof m->tensor ? (uint32_t)sizeof m->tensor : 0;
    memcpy(&m->tensor, h->meta, m->meta_bytes);
}

int shmq_copy_inline(shmq_queue *q, const struct shmq_record *record, shmq_message *m) {
    m->block = NULL;
    m->codec = record->codec;
    m->unused = 0;
    if (q->inline_copy == NULL && (q->inline_copy = malloc(q->ring.inline_bytes)) == NULL)
        return SHMQ_OUT_OF_SPACE;
    m->meta_bytes =
        record->codec == SHMQ_TENSOR && record->bytes >= sizeof m->tensor ? (uint32_t)sizeof m->tensor : 0;
    memcpy(&m->tensor, record->payload, m->meta_bytes);
    m->bytes = record->bytes - m->meta_bytes;
    m->data = q->inline_copy;
    memcpy(m->data, record->payload + m->meta_bytes, m->bytes);
    return SHMQ_OK;
}

static int receive(shmq_queue *q, const struct shmq_record *record, shmq_message *m) {
    shmq_block *block;
    const struct shmq_block_header *h;
    if ((record->flags & SHMQ_RECORD_BLOCK) == 0) return shmq_copy_inline(q, record, m);
    int status = shmq_try_lease(q, record, NULL, &block, &h);
    if (status == SHMQ_OK) shmq_message_of_block(block, record->codec, h, m);
    return status;
}

int shmq_get(shmq_queue *q, shmq_message *m, int64_t deadline_ns) {
    if (q == NULL || m == NULL || q->pending.count > 0) return SHMQ_INVALID;
    for (;;) {
        struct shmq_record record;
        int status = may_get(q);
        struct shmq_spsc_side before = q->get.ring.spsc;
        if (status == SHMQ_OK) status = shmq_try_next(q, &record);
        if (status == SHMQ_OK) {
            status = receive(q, &record, m);
            if (status == SHMQ_LOOK_AGAIN) continue;
            if (status == SHMQ_OK) shmq_taken(q, 1, m->bytes);
            else shmq_put_back(q, &before); /* not taken: it is still there */
            return status;
        }
        if (status == SHMQ_EMPTY && deadline_ns <= SHMQ_NO_WAIT && shmq_look_around(q)) continue;
        if (status != SHMQ_EMPTY || deadline_ns <= SHMQ_NO_WAIT) return status;
        shmq_pin(q);
        status = shmq_wait_get(q, shmq_ring_cursor(&q->ring, &q->get.ring), deadline_ns);
        shmq_unpin(q);
        if (status != SHMQ_OK) return status;
    }
}

void shmq_message_release(shmq_message *m) {
    if (m == NULL) return;
    shmq_block_release(m->block);
    m->block = NULL;
    m->data = NULL;
}

int shmq_shutdown(shmq_queue *q, int immediate) {
    int status = shmq_usable(q);
    if (status != SHMQ_OK || q->observer) return status != SHMQ_OK ? status : SHMQ_INVALID;
    uint32_t to = immediate ? SHMQ_STOPPED : SHMQ_DRAINING;
    uint32_t seen = load32_acquire(&q->control->roles.lifecycle);
    while (seen < to && !atomic_compare_exchange_strong(&q->control->roles.lifecycle, &seen, to)) {
    } /* L1: seq_cst.  It only grows, so a failed CAS means that it is nearer to `to`. */
    note(q, SHMQ_OP_SHUTDOWN, to);
    wake_slow(q, &q->control->not_empty);
    wake_slow(q, &q->control->not_full);
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
    note(q, SHMQ_OP_SUBSCRIBE, q->get.ring.topic.cursor << 3);
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
                                        "too many messages not acknowledged"};
    return status >= 0 && status < (int)(sizeof texts / sizeof *texts) ? texts[status] : "unknown";
}
