/* layout.h: THE ABI.  Every structure that lies in a segment, drawn and asserted.
 *
 * A segment is one POSIX shared-memory object.  It holds offsets and fixed-width integers only:
 * no pointers, no bool, no long, no pthread types.  All integers have the machine's byte order
 * (the magic would read differently on a machine of the other one).
 *
 *   0                  +---------------------------+
 *                      | header          4 KiB     |  written once by the creator, magic LAST
 *   SHMQ_CONTROL_AT    +---------------------------+
 *                      | control         9 x 128 B |  one line per writer, see shmq_control
 *   peers_at           +---------------------------+
 *                      | peer table                |  peers x 1 KiB, slot i belongs to peer i
 *   ring_at            +---------------------------+  (page aligned)
 *                      | ring                      |  spsc: ring_bytes of records
 *                      |                           |  mpmc, topic: slots x slot_bytes of slots
 *   urgent_at          +---------------------------+  (page aligned)
 *                      | urgent lane               |  priority: urgent_slots x slot_bytes of slots
 *   pending_at         +---------------------------+  (page aligned)
 *                      | pending table             |  at_least_once: pending x 32 B, then (at copies_at)
 *                      |                           |  pending x slot_bytes, copies of slots
 *   keys_at            +---------------------------+
 *                      | window of keys            |  one cursor a chain, then keys x 16 B, see keys.c
 *   words_at           +---------------------------+  (page aligned)
 *                      | page words                |  one 64-bit word a page: the truth about it
 *   blocks_at          +---------------------------+
 *                      | block headers             |  128 B a page; the one of a block's first page counts
 *   small_at           +---------------------------+  (page aligned)
 *                      | arena, small pages        |  16 KiB each
 *   large_at           +---------------------------+  (2 MiB aligned)
 *                      | arena, large pages        |  2 MiB each
 *   total_bytes        +---------------------------+
 *
 * Block headers lie beside the pages, not in them: a tensor of 2^n bytes then takes exactly 2^n bytes
 * of pages and starts page-aligned, and the pages can be huge ones.
 *
 * Who may write what, and when, is said at each structure.  "Owner" is a peer's index.
 */
#ifndef SHMQ_LAYOUT_H
#define SHMQ_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

#include "atomics.h"

#define SHMQ_ABI_VERSION 2u
#define SHMQ_MAGIC UINT64_C(0x313042514d485300) /* the bytes "\0SHMQB01" on a little-endian machine */

#define SHMQ_LINE 128u /* two 64-byte lines: adjacent-line prefetchers pull pairs */
#define SHMQ_CONTROL_AT 4096u
#define SHMQ_PAGE 4096u
#define SHMQ_SMALL_PAGE (16u << 10)
#define SHMQ_LARGE_PAGE (2u << 20)
#define SHMQ_MAX_PEERS 4095u      /* an owner has 12 bits */
#define SHMQ_MAX_PAGES (1u << 24) /* a page index in a handle has 24 bits */
#define SHMQ_META_BYTES 96u
#define SHMQ_TOPIC_PEERS 51u /* one bit for each in a block's `readers` */

/* ---- header: immutable once magic is set ------------------------------------------------- */

struct shmq_geometry {
    uint64_t total_bytes;
    uint64_t peers_at, ring_at, pending_at, copies_at, keys_at, words_at, blocks_at, small_at, large_at;
    uint64_t urgent_at;
    uint64_t ring_bytes;    /* spsc: a power of two; mpmc, topic: slots * slot_bytes */
    uint64_t visibility_ns; /* at_least_once: what is not acked for so long is delivered again; 0: never */
    uint64_t first_cursor;  /* where both cursors start: 0, or near the wrap in tests */
    uint32_t peers;         /* entries of the peer table */
    uint32_t slots;         /* mpmc, topic: a power of two; spsc: 0 */
    uint32_t slot_bytes;    /* mpmc, topic: stride of a slot; spsc: 0 */
    uint32_t inline_bytes;  /* longest payload that may lie in a record or slot */
    uint32_t small_pages, large_pages;
    uint32_t max_deliveries; /* at_least_once: then the dead-letter queue; 0: no limit */
    uint32_t history;        /* topic: messages that are kept for late subscribers */
    uint32_t pending;        /* at_least_once: entries of the pending table; else 0 */
    uint32_t keys;           /* mpmc: how many keys are remembered; 0: none */
    uint32_t urgent_slots;   /* priority: a power of two; else 0 */
    uint32_t unused;
};

struct shmq_header {
    shmq_a64 magic;       /* stored last, release; load acquire before anything else is read */
    uint64_t fingerprint; /* SHMQ_FINGERPRINT of the creator's build */
    uint32_t kind;        /* enum shmq_kind, see shmq.h */
    uint32_t flags;       /* topic: enum shmq_policy; else 0 */
    uint8_t uuid[16];     /* this segment and no other of the same name */
    uint64_t created_unix_ns;
    uint32_t creator_pid; /* for people only */
    uint32_t creator_uid;
    struct shmq_geometry geometry;
};

/* ---- control: one line per writer --------------------------------------------------------- */

/* A cursor and the number of messages that passed it.  The count cannot be stored in one step with
 * the cursor, so two entries alternate, each naming the cursor that it is valid at: after a death
 * between the two stores the entry whose `at` equals `cursor` is still there. */
struct shmq_cursor_line {
    shmq_a64 cursor;
    struct {
        shmq_a64 messages;
        shmq_a64 at;
    } tally[2];
    uint8_t unused[SHMQ_LINE - 40];
};

/* epoch is the futex word; armed says that someone may wait, and how (see wait.c and doorbell.c). */
enum shmq_armed { SHMQ_ARMED_FUTEX = 1, SHMQ_ARMED_BELLS = 2 };
struct shmq_eventcount {
    shmq_a32 epoch;     /* any waker, by RMW */
    shmq_a32 armed;     /* enum shmq_armed: waiters set their bit, a waker exchanges 0 */
    shmq_a32 bells_end; /* no peer from here on has ever armed its doorbell here; only ever grows */
    uint8_t unused[SHMQ_LINE - 12];
};

struct shmq_roles {
    shmq_a64 producer; /* 0, or shmq_role_word(owner, epoch); by CAS, spsc only */
    shmq_a64 consumer;
    shmq_a32 lifecycle; /* enum shmq_lifecycle, only ever grows */
    /* The last producer, if it died in its role; by its reaper, role word last.  A successor stores 0 there. */
    shmq_a32 lost_pid;
    shmq_a64 lost_messages;
    shmq_a64 lost_producer;
    shmq_a64 joins;           /* topic: subscriptions so far; publishers look whether it has changed */
    shmq_a32 subscribers_end; /* topic: no peer from here on has ever subscribed; only ever grows */
    shmq_a32 joined;          /* how often a peer has; wraps.  Event loops look whether it has changed */
    shmq_a64 dropped_oldest;  /* by producers that found no room, from what waited */
    shmq_a64 dropped_newest;  /* ... and were to put */
    uint8_t unused[SHMQ_LINE - 72];
};

enum shmq_lifecycle { SHMQ_RUNNING = 0, SHMQ_DRAINING = 1, SHMQ_STOPPED = 2 };

struct shmq_pending_line {
    shmq_a64 next_due; /* a hint, see pending.c */
    uint8_t unused[SHMQ_LINE - 8];
};

/* By whose turn it is, but for repeats. */
struct shmq_keys_line {
    shmq_a64 word;    /* enum shmq_keys_state, and the owner: whose turn it is, see keys.c */
    shmq_a64 hash;    /* what is put in this turn ... */
    shmq_a64 number;  /* ... and what number it is going to have */
    shmq_a64 count;   /* keys so far: the last one's number.  Never wraps */
    shmq_a64 repeats; /* puts that were dropped; any producer */
    uint8_t unused[SHMQ_LINE - 40];
};

struct shmq_control {
    /* writer: the producer, the consumer; mpmc: whoever helps; topic: publishers, both */
    struct shmq_cursor_line tail, head;
    struct shmq_eventcount not_empty; /* consumers sleep here */
    struct shmq_eventcount not_full;  /* producers sleep here, for ring and arena alike */
    struct shmq_roles roles;
    struct shmq_pending_line pending;                 /* consumers, of an at_least_once queue */
    struct shmq_cursor_line urgent_tail, urgent_head; /* priority: as tail and head */
    struct shmq_keys_line keys;                       /* producers that put with a key */
};

/* ---- peer table ---------------------------------------------------------------------------- */

/* word = state:8 | epoch:56.  FREE -> LIVE by whoever holds the slot's byte lock; LIVE -> FREE(epoch+1)
 * by the owner on detach or by the one reaper, after a completed scan. */
enum shmq_role { SHMQ_ROLE_PRODUCER = 1, SHMQ_ROLE_CONSUMER = 2 };

enum shmq_subscribed { SHMQ_NOT_SUBSCRIBED = 0, SHMQ_SUBSCRIBED = 1, SHMQ_WAS_EVICTED = 2 };

/* What moves, where a peer wants its doorbell rung. */
enum shmq_bell { SHMQ_BELL_NOT_EMPTY = 1, SHMQ_BELL_NOT_FULL = 2 };

enum shmq_peer_state { SHMQ_PEER_FREE = 0, SHMQ_PEER_LIVE = 1 };

/* One entry of the flight recorder.  Both words bear the event's number, so that a reader knows an entry that is
 * half written, see recorder.c.  op: enum shmq_op, see shmq.h. */
#define SHMQ_EVENTS 32u
#define SHMQ_EVENT_EARLY 0x80u
struct shmq_event {
    shmq_a64 when; /* number:16 | 1024 ns:20 | seconds:28, of CLOCK_MONOTONIC */
    shmq_a64 what; /* op:7 | early:1 | number:8 | cursor:48, its low bits */
};

/* What a reaper found in a dead peer's hands before it repaired anything; it survives until the entry is another's.
 * By the one reaper, `life` last.  For people: nothing is decided by it, but which entry a newcomer takes. */
struct shmq_verdict {
    shmq_a64 life;             /* the dead one's epoch + 1, which the vacant entry's word bears, too */
    shmq_a64 reaped_ns;        /* CLOCK_MONOTONIC */
    shmq_a64 held_bytes;       /* arena pages, loaned and leased */
    shmq_a64 slot_position;    /* of a slot in its hands */
    shmq_a32 loaned, leased;   /* blocks */
    shmq_a32 writing, reading; /* mpmc: slots */
    shmq_a32 roles;            /* enum shmq_role bits */
    shmq_a32 by_pid;
};

struct shmq_peer {
    shmq_a64 word; /* lock the byte before this is written */
    uint64_t attached_unix_ns;
    uint32_t pid;         /* for people only, never a verdict: may be of another PID namespace */
    shmq_a32 roles;       /* enum shmq_role bits: what it has done so far; spsc: see shmq_roles */
    uint64_t start_ticks; /* field 22 of /proc/pid/stat: tells a reused pid */
    shmq_a64 doorbell;    /* names the FIFO of an event loop; 0: none; by the owner */
    char comm[16];
    shmq_a32 bells; /* enum shmq_bell: the owner sets a bit, whoever clears it rings; see doorbell.c */
    uint8_t unused1[SHMQ_LINE - 60];

    shmq_a64 messages_put, bytes_put, messages_got, bytes_got; /* writer: the owner */
    shmq_a64 parks, wakes, reaps;
    shmq_a64 holding_since_ns; /* CLOCK_MONOTONIC: it has held one block or another since then, if it does */
    shmq_a64 unfinished; /* at_least_once: messages got, and acked, whose task is not done; by the owner */
    uint8_t unused2[SHMQ_LINE - 72];

    shmq_a64 topic_cursor; /* topic: this subscriber's next message; by the owner */
    shmq_a64 topic_missed; /* by the owner */
    shmq_a64 subscription; /* enum shmq_subscribed | epoch << 8; by the owner; a publisher evicts by CAS */
    uint8_t unused3[SHMQ_LINE - 24];

    shmq_a64
        event_next; /* flight recorder: number of the next event:16 | time as of the last look at the clock:48 */
    shmq_a64
        event_run; /* 0, 1, 3 or 7: a look at the clock at each event whose number has none of these bits */
    struct shmq_event events[SHMQ_EVENTS];
    struct shmq_verdict verdict;
    uint64_t unused5[7];
};

/* ---- ring: spsc records -------------------------------------------------------------------- */

/* One 64-bit header, then the payload, padded to 8.  Loaded once, then decoded from the copy:
 * length:32 | codec:16 | flags:16. */
#define SHMQ_RECORD_HEADER 8u
enum shmq_record_flags {
    SHMQ_RECORD_PAD = 1,   /* no message: skip length bytes, the ring's end is near */
    SHMQ_RECORD_BLOCK = 2, /* the payload is one 64-bit block handle: page:24 | generation:12 */
};

static inline uint64_t shmq_record_pack(uint32_t bytes, uint16_t codec, uint16_t flags) {
    return (uint64_t)bytes | (uint64_t)codec << 32 | (uint64_t)flags << 48;
}

/* ---- ring: mpmc and topic slots ------------------------------------------------------------ */

/* word = state:3 | owner:12 | lap:49, see mpmc.c and topic.c.  Laps wrap. */
enum shmq_slot_state {
    SHMQ_SLOT_FREE = 0,
    SHMQ_SLOT_WRITING = 1,
    SHMQ_SLOT_READY = 2,
    SHMQ_SLOT_READING = 3,
    SHMQ_SLOT_TOMB = 4,
};

#define SHMQ_LAP_BITS 49
#define SHMQ_LAP_MASK ((UINT64_C(1) << SHMQ_LAP_BITS) - 1)

/* A record's position is its cursor in a ring of bytes, or that of its slot << 3.  Which lane a slot is of, its
 * position says too: two lanes have the same cursors. */
#define SHMQ_POSITION_URGENT UINT64_C(4)

static inline uint64_t shmq_slot_word(uint32_t state, uint32_t owner, uint64_t lap) {
    return (uint64_t)(state & 7u) | (uint64_t)(owner & 0xfffu) << 3 | lap << 15;
}
static inline uint32_t shmq_slot_state(uint64_t w) { return (uint32_t)(w & 7u); }
static inline uint32_t shmq_slot_owner(uint64_t w) { return (uint32_t)(w >> 3) & 0xfffu; }
static inline uint64_t shmq_slot_lap(uint64_t w) { return w >> 15; }

struct shmq_slot {
    shmq_a64 word;
    shmq_a64 record; /* as an spsc record's header */
    shmq_a64 handle; /* block handle where the record says so */
    shmq_a32 deliveries;
    shmq_a32 producer; /* owner that wrote it, for people */
    /* in-line payload follows, up to slot_bytes - 32 */
};

/* ---- pending table: at_least_once ------------------------------------------------------------ */

/* word = state:3 | owner:12 | serial:49, see pending.c. */
enum shmq_pending_state {
    SHMQ_PENDING_VACANT = 0,
    SHMQ_PENDING_FILLING = 1,
    SHMQ_PENDING_UNACKED = 2, /* from here on the entry names its message's block */
    SHMQ_PENDING_WAITING = 3,
    SHMQ_PENDING_MOVING = 4,
};

#define SHMQ_NEVER UINT64_MAX
#define SHMQ_NO_HANDLE UINT64_MAX

/* Words close together, because who looks for a message looks at all; the copy of entry i lies at
 * copies_at + i * slot_bytes: a struct shmq_slot without its word and its handle. */
struct shmq_pending_entry {
    shmq_a64 word;
    shmq_a64 due_ns;   /* CLOCK_MONOTONIC: WAITING until then, or overdue from then on */
    shmq_a64 position; /* that it had in the ring */
    shmq_a64 handle;   /* of its block, or SHMQ_NO_HANDLE */
};

/* ---- window of keys -------------------------------------------------------------------------- */

/* word = state:3 | owner:12, see keys.c. */
enum shmq_keys_state { SHMQ_KEYS_FREE = 0, SHMQ_KEYS_HELD = 1, SHMQ_KEYS_PUBLISHING = 2 };

#define SHMQ_MAX_KEYS (UINT32_C(1) << 16)

/* Key number n, counted from 1, lies in entry n mod keys. */
struct shmq_key_entry {
    shmq_a64 hash;
    shmq_a64 before; /* number of the key before it in its chain; 0: none */
};

/* As many chains as keys, rounded up to a power of two. */
static inline uint32_t shmq_key_chains(uint32_t keys) {
    uint32_t chains = keys > 0;
    while (chains < keys) chains *= 2;
    return chains;
}

/* ---- arena ---------------------------------------------------------------------------------- */

/* A page's word.  Changed by CAS only, by the process that the current word allows:
 *
 *   bits 0-2 state | 3 committed | 4-15 owner | 16-27 generation | 28-63 argument
 *
 *   FREE       nobody's; any peer may take it
 *   LOANED     owner writes into it                   owner dead: free
 *   INFLIGHT   argument = position of the record      owner dead and no committed record at that
 *              that names it (>> 2, low 36 bits)      position: free
 *              topic: shared, see readers             the same, while the ring holds it
 *   LEASED     owner reads it                         owner dead: free, or INFLIGHT again if its
 *              at_least_once: argument = 1 + entry    record is still at the head, or RETURNED if
 *              of the pending table                   that entry names it
 *   RETURNED   nobody reads it, and the entry of the  free once the entry names it no more
 *              same argument names it
 *   CONT       argument = first page of its block     follows that page; same generation
 *
 * The committed bit: this message had been READY once, so it may be returned but never freed. */
enum shmq_page_state {
    SHMQ_PAGE_FREE = 0,
    SHMQ_PAGE_LOANED = 1,
    SHMQ_PAGE_INFLIGHT = 2,
    SHMQ_PAGE_LEASED = 3,
    SHMQ_PAGE_RETURNED = 4,
    SHMQ_PAGE_CONT = 5,
};

#define SHMQ_WORD_COMMITTED UINT64_C(8)
#define SHMQ_ARGUMENT_BITS 36

static inline uint64_t shmq_word(uint32_t state, uint32_t owner, uint32_t generation, uint64_t argument) {
    return (uint64_t)(state & 7u) | (uint64_t)(owner & 0xfffu) << 4 | (uint64_t)(generation & 0xfffu) << 16 |
           argument << (64 - SHMQ_ARGUMENT_BITS);
}
static inline uint32_t shmq_word_state(uint64_t w) { return (uint32_t)(w & 7u); }
static inline uint32_t shmq_word_owner(uint64_t w) { return (uint32_t)(w >> 4) & 0xfffu; }
static inline uint32_t shmq_word_generation(uint64_t w) { return (uint32_t)(w >> 16) & 0xfffu; }
static inline uint64_t shmq_word_argument(uint64_t w) { return w >> (64 - SHMQ_ARGUMENT_BITS); }
/* A position as a word's argument: its lowest bit is the lane.  36 bits of 4-byte units: a ring is far smaller. */
static inline uint64_t shmq_cursor_argument(uint64_t cursor) {
    return (cursor >> 2) & ((UINT64_C(1) << SHMQ_ARGUMENT_BITS) - 1);
}
/* Does it mean a cursor in [head, tail)? */
static inline bool shmq_argument_within(uint64_t argument, uint64_t head, uint64_t tail) {
    const uint64_t mask = (UINT64_C(1) << SHMQ_ARGUMENT_BITS) - 1;
    uint64_t from = shmq_cursor_argument(head);
    return ((argument - from) & mask) < ((shmq_cursor_argument(tail) - from) & mask);
}

static inline uint64_t shmq_handle(uint32_t page, uint32_t generation) {
    return (uint64_t)page | (uint64_t)(generation & 0xfffu) << 24;
}
static inline uint32_t shmq_handle_page(uint64_t h) { return (uint32_t)(h & 0xffffffu); }
static inline uint32_t shmq_handle_generation(uint64_t h) { return (uint32_t)(h >> 24) & 0xfffu; }

static inline uint64_t shmq_role_word(uint32_t owner, uint64_t epoch) {
    return (uint64_t)(owner + 1) | epoch << 16; /* never 0 */
}
static inline uint32_t shmq_role_owner(uint64_t w) { return (uint32_t)(w & 0xffffu) - 1u; }

/* Who holds a topic's block while its word says INFLIGHT: generation:12 | ring:1 | a bit for each peer:51.  Only
 * who holds a block can hand it on: a peer sets its own bit only where the ring's is set, and never again after
 * the ring's was cleared.  The last to hold it makes the page word LEASED by itself, and frees the block. */
#define SHMQ_HELD_BY_RING (UINT64_C(1) << 51)
#define SHMQ_HOLDERS_MASK ((UINT64_C(1) << 52) - 1)
static inline uint64_t shmq_readers(uint32_t generation, uint64_t holders) {
    return (uint64_t)(generation & 0xfffu) << 52 | holders;
}
static inline uint32_t shmq_readers_generation(uint64_t readers) { return (uint32_t)(readers >> 52); }

/* Written by the owner of the block while it is LOANED, read by whoever holds it LEASED. */
struct shmq_block_header {
    uint64_t payload_bytes;
    uint16_t codec;
    uint16_t flags;
    uint32_t meta_bytes;           /* <= SHMQ_META_BYTES */
    uint32_t deliveries;           /* at_least_once */
    uint32_t producer;             /* owner that wrote it, for people */
    shmq_a64 readers;              /* topic: who holds the block, see shmq_readers */
    uint8_t meta[SHMQ_META_BYTES]; /* the codec's own header, e.g. struct shmq_tensor */
};

/* ---- the drawing, asserted ------------------------------------------------------------------ */

#define SHMQ_ASSERT_AT(type, field, at)                                                                      \
    _Static_assert(offsetof(struct type, field) == (at), #type "." #field " moved")

_Static_assert(sizeof(struct shmq_geometry) == 160, "geometry");
SHMQ_ASSERT_AT(shmq_header, fingerprint, 8);
SHMQ_ASSERT_AT(shmq_header, kind, 16);
SHMQ_ASSERT_AT(shmq_header, uuid, 24);
SHMQ_ASSERT_AT(shmq_header, created_unix_ns, 40);
SHMQ_ASSERT_AT(shmq_header, geometry, 56);
_Static_assert(sizeof(struct shmq_header) <= SHMQ_CONTROL_AT, "header");
_Static_assert(sizeof(struct shmq_cursor_line) == SHMQ_LINE, "cursor line");
_Static_assert(sizeof(struct shmq_eventcount) == SHMQ_LINE, "eventcount");
SHMQ_ASSERT_AT(shmq_control, head, 1 * SHMQ_LINE);
SHMQ_ASSERT_AT(shmq_control, not_empty, 2 * SHMQ_LINE);
SHMQ_ASSERT_AT(shmq_control, not_full, 3 * SHMQ_LINE);
SHMQ_ASSERT_AT(shmq_control, roles, 4 * SHMQ_LINE);
SHMQ_ASSERT_AT(shmq_control, pending, 5 * SHMQ_LINE);
SHMQ_ASSERT_AT(shmq_control, urgent_tail, 6 * SHMQ_LINE);
SHMQ_ASSERT_AT(shmq_control, urgent_head, 7 * SHMQ_LINE);
_Static_assert(sizeof(struct shmq_pending_entry) == 32, "pending entry");
SHMQ_ASSERT_AT(shmq_control, keys, 8 * SHMQ_LINE);
_Static_assert(sizeof(struct shmq_key_entry) == 16, "key entry");
_Static_assert(sizeof(struct shmq_control) == 9 * SHMQ_LINE, "control");
SHMQ_ASSERT_AT(shmq_eventcount, bells_end, 8);
SHMQ_ASSERT_AT(shmq_peer, doorbell, 32);
SHMQ_ASSERT_AT(shmq_peer, bells, 56);
SHMQ_ASSERT_AT(shmq_peer, messages_put, 1 * SHMQ_LINE);
SHMQ_ASSERT_AT(shmq_peer, topic_cursor, 2 * SHMQ_LINE);
SHMQ_ASSERT_AT(shmq_peer, event_next, 3 * SHMQ_LINE);
SHMQ_ASSERT_AT(shmq_peer, events, 400);
SHMQ_ASSERT_AT(shmq_peer, verdict, 912);
_Static_assert(sizeof(struct shmq_peer) == 1024, "peer");
_Static_assert(sizeof(struct shmq_slot) == 32, "slot");
SHMQ_ASSERT_AT(shmq_block_header, meta, 32);
_Static_assert(sizeof(struct shmq_block_header) == 128, "block header");

/* Two builds that disagree about any of these sizes refuse each other's segments. */
#define SHMQ_FINGERPRINT                                                                                     \
    ((uint64_t)SHMQ_ABI_VERSION << 48 ^ (uint64_t)sizeof(struct shmq_header) << 40 ^                         \
     (uint64_t)sizeof(struct shmq_control) << 28 ^ (uint64_t)sizeof(struct shmq_peer) << 16 ^                \
     (uint64_t)sizeof(struct shmq_block_header) << 8 ^ (uint64_t)sizeof(struct shmq_slot))

#endif
