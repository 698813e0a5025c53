/* shmq.h: the public C interface of shmq, its manual, and (between the markers) the cffi cdef.
 *
 * shmq passes messages and tensors between processes of one host through shared memory.
 *
 *     shmq_queue *q;                                    shmq_queue *q;
 *     shmq_open("prefill", &q);                         shmq_open("prefill", &q);
 *     shmq_block *b;                                    shmq_message m;
 *     shmq_loan(q, bytes, SHMQ_FOREVER, &b);            shmq_get(q, &m, SHMQ_FOREVER);
 *     fill(b->data);                                    use(m.data, m.bytes);
 *     shmq_publish(b, &tensor, SHMQ_FOREVER);           shmq_message_release(&m);
 *     shmq_close(q);                                    shmq_close(q);
 *
 * Build: cc -O2 -flto worker.c DIR/[the .c files] -IDIR -pthread, where DIR is what `shmq include` prints;
 * -flto lets the compiler see a put as one function.
 *
 * Results.  Every function returns an enum shmq_status; results go through the last pointers.
 * SHMQ_OK is 0.  SHMQ_FULL, SHMQ_ARENA_FULL, SHMQ_EMPTY and SHMQ_REPEAT are answers, not errors.
 *
 * Deadlines.  `deadline_ns` is an absolute CLOCK_MONOTONIC time (see shmq_deadline): retries never
 * stretch it.  SHMQ_NO_WAIT tries once, SHMQ_FOREVER has no end.  A call that a signal interrupted
 * returns SHMQ_INTERRUPTED and has changed nothing (shmq_put_many: see *done): handle the signal, call again.
 *
 * Kinds.  SHMQ_KIND_MPMC: any number of producers and consumers; the messages of one producer keep their
 * order.  SHMQ_KIND_SPSC: one of each at a time.  SHMQ_KIND_TOPIC: any number of publishers, and each
 * subscriber gets every message (shmq_subscribe).  shmq_open takes what is there.
 *
 * Threads.  One thread at a time per handle and side (put side, get side).  Other threads open handles of
 * their own.  shmq_block_release may be called from any thread.  (The Python package makes its handles safe for threads itself.)
 *
 * Processes.  What a dead process left is repaired by whoever attaches, waits or takes over: nothing that was
 * published is lost, nothing half-written is seen.  On an SPSC queue the first put claims the producer's role,
 * the first get the consumer's; a second live holder is refused (SHMQ_ROLE_TAKEN).  After fork() the child's
 * handle answers SHMQ_FORKED; open a new one there.
 *
 * Trust.  Who can write the segment (same user, mode 0600) can spoil its content; what is read from it
 * is checked before it is used as an index or length, so the answer is then SHMQ_CORRUPT or wrong data
 * within the message's own bounds.
 */
#ifndef SHMQ_H
#define SHMQ_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* cdef-begin */

enum shmq_status {
    SHMQ_OK = 0,
    SHMQ_FULL = 1,       /* no room in the ring now */
    SHMQ_ARENA_FULL = 2, /* no free run of pages that is long enough now */
    SHMQ_EMPTY = 3,
    SHMQ_INTERRUPTED = 4,    /* by a signal; nothing changed */
    SHMQ_TOO_LARGE = 5,      /* will never fit: see shmq_stats.largest_message_bytes */
    SHMQ_CLOSED = 6,         /* this handle was closed */
    SHMQ_SHUT_DOWN = 7,      /* the queue was shut down; on the get side: and is drained */
    SHMQ_ROLE_TAKEN = 8,     /* a live process has this role */
    SHMQ_FORKED = 9,         /* this handle was made before a fork(), by the parent */
    SHMQ_CORRUPT = 10,       /* the segment's content contradicts itself */
    SHMQ_NOT_A_SEGMENT = 11, /* not made by shmq, or truncated */
    SHMQ_ABI_MISMATCH = 12,  /* made by an incompatible build */
    SHMQ_NOT_READY = 13,     /* its creator has not finished, or died before it had */
    SHMQ_WRONG_OWNER = 14,   /* another user's, or open to other users */
    SHMQ_PEERS_FULL = 15,    /* every entry of the peer table is in use */
    SHMQ_OUT_OF_SPACE = 16,  /* /dev/shm or memory is too small for it */
    SHMQ_INVALID = 17,       /* an argument is out of its range */
    SHMQ_SYSTEM = 18,        /* a system call failed: errno says why */
    SHMQ_PEER_DEAD = 19, /* every producer of an spsc queue or topic is gone, the last by death, and what they
                                put is drained; a wait says so once, the next one waits for a successor */
    SHMQ_EVICTED = 20,   /* this subscription was too slow, and was ended by a publisher */
    SHMQ_STALE = 21,     /* the message was delivered again meanwhile; nothing changed */
    SHMQ_UNACKED_FULL = 22, /* max_unacked messages are not acked, or wait to be delivered again */
    SHMQ_REPEAT = 23,       /* this key is in the window: the message was dropped */
    SHMQ_KEYS_BUSY = 24     /* another producer is in the middle of a put with a key: stopped, or dead */
};

/* How a payload is encoded.  The C side moves payloads and never decodes them. */
enum shmq_codec {
    SHMQ_RAW = 0, /* bytes as they are */
    SHMQ_MSGPACK = 1,
    SHMQ_TENSOR = 2,   /* one array; its header is a struct shmq_tensor */
    SHMQ_ENVELOPE = 3, /* msgpack with arrays beside it */
    SHMQ_PICKLE = 4    /* never decoded unless the receiver asked for it */
};

/* clang-format off */
enum shmq_dtype {
    SHMQ_BOOL = 1,
    SHMQ_INT8 = 2, SHMQ_INT16 = 3, SHMQ_INT32 = 4, SHMQ_INT64 = 5,
    SHMQ_UINT8 = 6, SHMQ_UINT16 = 7, SHMQ_UINT32 = 8, SHMQ_UINT64 = 9,
    SHMQ_FLOAT16 = 10, SHMQ_FLOAT32 = 11, SHMQ_FLOAT64 = 12,
    SHMQ_COMPLEX64 = 13, SHMQ_COMPLEX128 = 14,
    SHMQ_BFLOAT16 = 15,
    SHMQ_FLOAT8_E4M3FN = 16, SHMQ_FLOAT8_E5M2 = 17,
    SHMQ_FLOAT8_E4M3FNUZ = 18, SHMQ_FLOAT8_E5M2FNUZ = 19, SHMQ_FLOAT8_E8M0FNU = 20
};
/* clang-format on */

enum shmq_tensor_flags {
    SHMQ_FROM_TORCH = 1, /* the sender's object was a torch tensor */
    SHMQ_IS_SCALAR = 2   /* the sender's object was a numpy scalar */
};

/* Header of a SHMQ_TENSOR message.  The data is dense, in order 'C' (last axis fastest) or 'F'. */
typedef struct shmq_tensor {
    uint8_t dtype;   /* enum shmq_dtype */
    uint8_t order;   /* 'C' or 'F' */
    uint8_t ndim;    /* 0..11 */
    uint8_t flags;   /* enum shmq_tensor_flags */
    uint32_t unused; /* 0 */
    uint64_t shape[11];
} shmq_tensor;

/* What a peer did, as its flight recorder has it, and what `cursor` is then. */
enum shmq_op {
    SHMQ_OP_ATTACH = 1,    /* 0 */
    SHMQ_OP_DETACH = 2,    /* 0 */
    SHMQ_OP_ROLE = 3,      /* 1: first put, it is a producer; 2: first get, a consumer */
    SHMQ_OP_PUT = 4,       /* position of the message, as in shmq_peeked */
    SHMQ_OP_PUT_MANY = 5,  /* ... of the last one of the batch */
    SHMQ_OP_PUBLISH = 6,   /* ... of a message that lies in a block */
    SHMQ_OP_GET = 7,       /* ... of the message that it took */
    SHMQ_OP_GET_MANY = 8,  /* ... of the last one of the batch */
    SHMQ_OP_LOAN = 9,      /* first page of the block */
    SHMQ_OP_LEASE = 10,    /* ... of the block of the message that it takes next */
    SHMQ_OP_RELEASE = 11,  /* ... of the loan that it discarded, or the lease that it ended */
    SHMQ_OP_WAIT_PUT = 12, /* it began to wait for room; bytes that it wants */
    SHMQ_OP_WAIT_GET = 13, /* it began to wait for a message; 0 */
    SHMQ_OP_REAP = 14,     /* index of the dead peer that it repaired */
    SHMQ_OP_SHUTDOWN = 15, /* 1: no more puts; 2: at once */
    SHMQ_OP_SUBSCRIBE = 16 /* position of the first message that it may get */
};

typedef struct shmq_queue shmq_queue;

/* A run of arena pages that this process holds: a loan (being written, then published) or a lease
 * (received).  `data` is page-aligned and stays readable until shmq_block_release. */
typedef struct shmq_block {
    void *data;
    uint64_t bytes; /* payload */
    uint64_t word;  /* the page word that says we hold it; 0 once it is someone else's */
    shmq_queue *queue;
    uint32_t page;
    uint32_t urgent; /* a loan: 1, what it is going to be published as, see shmq_set_priority */
} shmq_block;

/* A received message.  block == NULL: it lay in the ring, and `data` is a copy in the handle that the
 * next shmq_get on this handle overwrites. */
typedef struct shmq_message {
    void *data;
    uint64_t bytes;
    shmq_block *block;
    uint16_t codec; /* enum shmq_codec */
    uint16_t unused;
    uint32_t meta_bytes;
    shmq_tensor tensor; /* if codec is SHMQ_TENSOR */
} shmq_message;

/* One delivery of a message that is to be acknowledged. */
typedef struct shmq_delivery {
    uint64_t word;     /* its entry's word: names this delivery and no other */
    uint64_t position; /* the message's, the same each time: names it in this segment */
    uint32_t entry;    /* of the pending table */
    uint32_t
        deliveries; /* 1: the first.  Above max_deliveries: do not work on it again, put it aside and ack */
    uint32_t again; /* this handle took it from the pending table, not from the ring */
    uint32_t unused;
} shmq_delivery;

enum shmq_kind {
    SHMQ_KIND_SPSC = 1, /* one producer and one consumer at a time: a ring of bytes */
    SHMQ_KIND_MPMC = 2, /* any number of both: a ring of slots */
    SHMQ_KIND_TOPIC = 3 /* any number of publishers; each subscriber gets every message */
};

/* What a publisher does that meets the oldest message before a subscriber has taken it. */
enum shmq_policy {
    SHMQ_BLOCK = 0,       /* waits */
    SHMQ_DROP_OLDEST = 1, /* writes over it; the subscriber learns how many it missed */
    SHMQ_EVICT = 2        /* ends the subscription: its next get says SHMQ_EVICTED */
};

typedef struct shmq_params {
    uint64_t ring_bytes;   /* rounded up to a power of two (mpmc: of slots), 4 KiB .. 1 GiB */
    uint64_t arena_bytes;  /* >= 4 MiB: the large pages, and a quarter of it as small pages */
    uint64_t first_cursor; /* 0; tests start near the wrap */
    uint32_t inline_bytes; /* longest in-line payload: spsc at most ring_bytes / 4; mpmc: fixes the size of a
                              slot, 32 bytes more, rounded up to 128 */
    uint32_t peers;        /* handles that may be attached at once, 1 .. 4095; topic: 1 .. 51 */
    uint32_t kind;         /* enum shmq_kind */
    uint32_t policy;       /* topic: enum shmq_policy; else 0 */
    uint32_t history;      /* topic: messages kept for late subscribers, at most half of the slots; else 0 */
    uint32_t
        max_unacked; /* mpmc: 0, or the messages that may be leased and not acked, or wait to be delivered
                              again, at a time; then every message is acked (shmq_lease), at most 1 Mi */
    uint64_t
        visibility_ns; /* with max_unacked: what is not acked for so long is delivered again; 0: only once
                                its consumer died or gave it back */
    uint32_t max_deliveries; /* with max_unacked: see shmq_delivery; 0: no limit */
    uint32_t keys;           /* mpmc: how many keys are remembered, see shmq_put_keyed; at most 65,536 */
    uint32_t priority;       /* mpmc: 1, with an urgent lane, see shmq_set_priority; else 0 */
    uint32_t unused;
} shmq_params;

typedef struct shmq_stats {
    uint64_t messages_put,
        messages_got; /* mpmc, topic: positions, also of who died before its message was there */
    uint64_t ring_bytes, ring_used_bytes;
    uint64_t arena_bytes, arena_free_bytes, largest_free_bytes;
    uint64_t largest_message_bytes;
    uint64_t pages[6]; /* by state: free, loaned, inflight, leased, returned, cont */
    uint64_t created_unix_ns, total_bytes;
    uint64_t dropped_oldest, dropped_newest; /* by producers that were told to, for want of room */
    uint64_t unacked, waiting_again;         /* at_least_once: leased and not acked; to be delivered again */
    uint64_t visibility_ns;
    uint64_t repeats;      /* puts with a key that were dropped */
    uint32_t keys;         /* how many keys are remembered; 0: none */
    int32_t holds_up_keys; /* peer that is putting with a key, or -1 */
    uint32_t max_unacked, max_deliveries;
    uint32_t inline_bytes, peers, kind, lifecycle, creator_pid, creator_uid;
    uint32_t full;                         /* 1: a payload of inline_bytes finds no room in the ring */
    uint32_t policy, history, subscribers; /* topic */
    int32_t producer, consumer;            /* spsc: index of the peer that has the role, or -1 */
    uint64_t lost_messages;                /* spsc, topic: put by all up to one that died in its role, and */
    uint32_t lost_pid, lost;               /* its pid; lost: 1 if nobody has taken its place */
    uint32_t urgent,
        urgent_slots; /* priority: of the messages that wait, those in the urgent lane; its slots */
    int32_t holds_up_put, holds_up_get; /* mpmc: peer at work in the very slot that is next, or -1; topic: the
                                           slowest subscriber where it keeps the ring full */
    uint8_t uuid[16];
} shmq_stats;

/* One event of a flight recorder.  Times are CLOCK_MONOTONIC, as of the kernel's last tick (1 to 10 ms). */
typedef struct shmq_event_info {
    uint64_t time_ns;
    uint64_t cursor; /* its low 48 bits */
    uint32_t op;     /* enum shmq_op */
    uint32_t
        is_early; /* 1: of a run of puts and gets within a tick, for which the clock was not read each time: it
                          came at this time or later, before the next event whose is_early is 0 */
} shmq_event_info;

typedef struct shmq_peer_info {
    uint64_t epoch, attached_unix_ns, start_ticks;
    uint64_t messages_put, bytes_put, messages_got, bytes_got, parks, wakes;
    uint64_t held_bytes;       /* arena pages it has loaned or leased */
    uint64_t holding_since_ns; /* CLOCK_MONOTONIC: it has held a block, one or another, since then; or 0 */
    uint64_t slot_position;    /* mpmc: of a slot in its hands, if it has one */
    uint64_t reaped_ns;   /* of the dead: when they were found dead, CLOCK_MONOTONIC; 0: not repaired yet */
    shmq_event_info last; /* its last event; op 0: none */
    uint32_t index, pid;
    uint32_t loaned, leased;   /* blocks */
    uint32_t writing, reading; /* mpmc: slots it is at work in */
    uint32_t reaped_by_pid;
    int32_t alive; /* 1, 0, or -1 where the kernel could not be asked */
    int32_t is_producer, is_consumer;
    uint64_t lag, missed; /* topic, a subscriber: messages before it; that it missed so far */
    int32_t evicted;
    char comm[16];
} shmq_peer_info;

typedef struct shmq_peeked {
    uint64_t position; /* cursor of its record; 4 more in the urgent lane */
    uint64_t bytes;
    uint16_t codec;
    uint16_t in_block;
    uint32_t copied_bytes; /* of the payload, in the caller's buffer */
    uint32_t meta_bytes;
    uint32_t unused;
    shmq_tensor tensor;
} shmq_peeked;

/* ---- life of a handle ---- */

/* Makes a segment in `fd`, an empty shared-memory object that only this user can open, and attaches.
 * Reserves all its memory first: SHMQ_OUT_OF_SPACE instead of SIGBUS later.  The caller removes the
 * name where this fails.  The handle keeps a descriptor of its own; close `fd`. */
int shmq_create(int fd, const shmq_params *params, shmq_queue **queue);
/* Bytes that shmq_create would reserve; 0 where a parameter is out of its range. */
uint64_t shmq_segment_bytes(const shmq_params *params);
/* Attaches to the segment in `fd`.  SHMQ_NOT_READY: try again soon. */
int shmq_attach(int fd, shmq_queue **queue);
/* The same for a look only: takes no entry in the peer table, maps read-only; put and get are refused. */
int shmq_observe(int fd, shmq_queue **queue);
/* shm_open("/shmq.NAME") + shmq_attach, waiting up to a second for a creator to finish. */
int shmq_open(const char *name, shmq_queue **queue);
/* Ends the use of a handle and gives up its roles.  Blocks that are still held stay readable; the
 * memory is unmapped when the last one is released. */
void shmq_close(shmq_queue *queue);
/* shmq_close, and frees the handle itself once no block needs it.  No call on it may be in progress.  `queue`
 * may be NULL. */
void shmq_free(shmq_queue *queue);

/* ---- messages ---- */

/* Copies a payload in and publishes it: one copy.  Longer than inline_bytes: into a block. */
int shmq_put(shmq_queue *queue, const void *data, uint64_t bytes, int64_t deadline_ns);
/* The same, on a queue with shmq_params.keys = N, unless `key` is one of the last N that were put: then SHMQ_REPEAT, and
 * nothing is put.  So a put whose outcome is not known, because its process died, is made again by whoever comes next,
 * and the message is there once.  `key` is a hash of what names the message, 64 good bits of the caller's: two messages
 * whose keys collide are one.  0 counts as 1.  A message that a consumer took, and lost, was put. */
int shmq_put_keyed(shmq_queue *queue, const void *data, uint64_t bytes, uint64_t key, int64_t deadline_ns);
/* shmq_put for one dense array. */
int shmq_put_tensor(shmq_queue *queue, const void *data, uint64_t bytes, const shmq_tensor *tensor,
                    int64_t deadline_ns);
/* Puts `count` payloads of `each` bytes that lie one after the other, published by as few stores as
 * fit; waits until all are in.  *done says how many are. */
int shmq_put_many(shmq_queue *queue, const void *data, uint64_t each, uint64_t count, int64_t deadline_ns,
                  uint64_t *done);
/* Takes the next message.  Release it with shmq_message_release. */
int shmq_get(shmq_queue *queue, shmq_message *message, int64_t deadline_ns);
void shmq_message_release(shmq_message *message);

/* On a queue with max_unacked, where it takes the place of shmq_get: takes the next message, which is delivered again,
 * to this consumer or another, unless it is acked before this handle ends or its process dies.  Do not write to a
 * block's memory: it may be delivered again.  Release the message in any case.  Where the deadline passes:
 * SHMQ_UNACKED_FULL, there is no room for another unacked one; SHMQ_ARENA_FULL, there is none for a copy of a message
 * that is due again while a process still looks at its block. */
int shmq_lease(shmq_queue *queue, shmq_message *message, shmq_delivery *delivery, int64_t deadline_ns);
/* The message is done.  SHMQ_STALE: it was delivered again meanwhile, and is another's. */
int shmq_ack(shmq_queue *queue, const shmq_delivery *delivery);
/* Gives it back: it is delivered again after `delay_ns`. */
int shmq_nack(shmq_queue *queue, const shmq_delivery *delivery, uint64_t delay_ns);
/* Waits until every message that was put is acked. */
int shmq_join(shmq_queue *queue, int64_t deadline_ns);

/* On a queue with `priority`: what this handle puts and lends from now on is urgent, or (0, as at first) is not.
 * Consumers take what is urgent first; but after 16 urgent messages in a row one of the others, if one waits.  Each
 * lane keeps its own order, and has room of its own in the ring; the arena is one.  SHMQ_INVALID: there is no lane. */
int shmq_set_priority(shmq_queue *queue, int urgent);

/* Lends `bytes` of shared memory to write a payload in place: no copy. */
int shmq_loan(shmq_queue *queue, uint64_t bytes, int64_t deadline_ns, shmq_block **block);
/* Publishes a loan and releases it.  `tensor` may be NULL: raw bytes.  On failure the loan is still
 * the caller's. */
int shmq_publish(shmq_block *block, const shmq_tensor *tensor, int64_t deadline_ns);
/* Gives a block back: a lease ends, an unpublished loan is discarded.  Any thread. */
void shmq_block_release(shmq_block *block);

/* Refuses further puts.  Gets go on until the queue is empty, or stop at once where `immediate`. */
int shmq_shutdown(shmq_queue *queue, int immediate);

/* Makes this handle a subscriber of the topic: from now on shmq_get returns each message that is published
 * after this call, in one order for all, and before them up to `history` of the last ones that the topic keeps.
 * A handle either publishes or subscribes, once; it ends with shmq_close.  On a block message's lease the
 * memory is shared with other subscribers: do not write there. */
int shmq_subscribe(shmq_queue *queue, uint32_t history);

typedef struct shmq_subscription {
    uint64_t lag;    /* messages before this subscriber */
    uint64_t missed; /* that it would have got, and that were written over first (SHMQ_DROP_OLDEST) */
    uint32_t evicted;
    uint32_t unused;
} shmq_subscription;
int shmq_get_subscription(shmq_queue *queue, shmq_subscription *subscription);

/* ---- looking ---- */

/* These are snapshots: each figure is right at some moment during the call. */
int shmq_get_stats(shmq_queue *queue, shmq_stats *stats);
int shmq_get_peers(shmq_queue *queue, shmq_peer_info *peers, uint32_t capacity, uint32_t *count);
/* The dead, also those that are repaired, while their entries of the peer table are not needed again.  What they held
 * is what the repair found. */
int shmq_get_dead(shmq_queue *queue, shmq_peer_info *peers, uint32_t capacity, uint32_t *count);
/* The flight recorder of a peer, alive or dead: its last operations, oldest first, SHMQ_EVENTS_MAX at most. */
int shmq_get_events(shmq_queue *queue, uint32_t index, shmq_event_info *events, uint32_t capacity,
                    uint32_t *count);
#define SHMQ_EVENTS_MAX 32
/* Copies up to `capacity` bytes of the message `index` places behind the head, without taking it.  A
 * consumer that is at work may take it meanwhile: then SHMQ_EMPTY, or bytes that are no longer it. */
int shmq_peek(shmq_queue *queue, uint32_t index, void *buffer, uint32_t capacity, shmq_peeked *peeked);
/* Checks every invariant of the segment that can be checked while others work on it. */
int shmq_validate(shmq_queue *queue);
/* Repairs what dead peers left behind.  Any peer may call it at any time; *repaired counts them. */
int shmq_reap(shmq_queue *queue, uint32_t *repaired);

/* Absolute deadline `timeout_ns` from now; negative: SHMQ_FOREVER. */
int64_t shmq_deadline(int64_t timeout_ns);
const char *shmq_status_text(int status);

/* cdef-end */

#define SHMQ_FOREVER INT64_MAX
#define SHMQ_NO_WAIT INT64_C(0)

#ifdef __cplusplus
}
#endif
#endif
