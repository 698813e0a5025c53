/* SIGKILL at every instruction.
 *
 *     step [--kind spsc|mpmc|topic|lease|lanes|keys] [--wrap] [--depth D] [--parked] [--enough] [--every N]
 *          [--every-repair N] [OPERATION ...]
 *     step [--kind ...] --list
 *
 * A victim, forked and traced, runs one operation of operations.h, topics.h, leases.h, lanes.h or keyed.h; it is killed
 * after k instructions, for k = 0, 1, 2, ... until the operation has no more.  After each death a survivor that was
 * attached before repairs, and counts: what was committed at the moment of death, read from the memory as it lay, is
 * delivered, in order, whole, once; every page and slot is free again; everything works.  On a topic that is one subscriber's view of it:
 * what the victim read itself is there as before; and nobody else is subscribed.  With leases (an mpmc queue whose
 * messages are acknowledged) each message comes until it is acknowledged, as often as it says, and then no more.
 * With lanes (an mpmc queue with priority) urgent messages come first, and each lane's in order.  With keys (an mpmc
 * queue with a window of them) the survivor puts the victim's message once more: it is there once.
 *
 * All that a death leaves is the segment's memory; the kernel has dropped the locks.  So the second level (D = 2)
 * takes each different memory that the first level left, puts it back, and kills a repairer of it at every
 * instruction; the third kills the repairer of what that left.  With --parked the last level's victims are stopped
 * (SIGSTOP) instead; others put, get and hold for several laps of the ring, and then the victim goes on.
 *
 * --every N: at the first level only every Nth instruction, and those around each at which the memory changed or the
 * kernel was called; 0: only those.  --every-repair N: the same for the levels below.  --enough: an operation ends
 * when it has failed as often as is told.
 *
 * One line per operation: tab-separated figures.  Exit status 0: no failure; 77: ptrace is forbidden.
 *
 * The survivors live in this process.  A round starts from a copy of the segment's memory and of the survivors'
 * private state; their locks are real and stay.  Peers in that copy that are dead, or are to be dead, must look alive
 * while the next victim attaches, else it would repair them: an OFD lock of ours on their bytes plays that.
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <time.h>

#include "keyed.h"
#include "lanes.h"
#include "leases.h"
#include "topics.h"
#include "trace.h"

enum { SURVIVOR, HELPER, SURVIVORS };
enum { KIND_LEASE = SHMQ_KIND_TOPIC + 1, KIND_LANES, KIND_KEYS };
enum { MOST = 256, DEEPEST = 3, WATCH_S = 20, COMPLAINTS = 5, MOST_RECORDS = 8 };
#define SECOND_NUMBER 1000u /* the survivors' own messages, while a victim is stopped */

struct numbers {
    uint64_t n, of[MOST];
    uint32_t times[MOST]; /* leases: how often it will have been delivered, or was */
};

/* A segment's memory, and who was the survivors then. */
struct image {
    uint8_t *bytes;
    uint64_t hash;
    uint64_t k; /* where it was seen first */
    struct numbers committed;
};

struct images {
    struct image *of;
    uint64_t n, room;
};

static struct {
    const struct operation *operation;
    const char *kind, *start;
    uint32_t slots; /* mpmc, topic */
    bool topic;     /* the survivor publishes, the helper subscribes */
    bool leases;    /* survivors acknowledge what they get */
    bool lanes;     /* there are two */
    bool keys;      /* there is a window of keys */
    shmq_queue *peer[SURVIVORS];
    shmq_queue private[2][SURVIVORS]; /* ... as the scene left them; and for the deeper levels, after it */
    uint8_t *memory, *scratch;
    uint64_t bytes;
    uint64_t path[DEEPEST + 1]; /* where the victims died, level by level: instructions */
    uint64_t code[DEEPEST + 1]; /* ... and the address of the next one */
    int level;
    uint32_t dead;      /* in the table when the victim comes */
    bool parked, stops; /* the last level's victims are to be stopped; this level's are */
    bool enough;        /* after COMPLAINTS */
    uint64_t every, every_repair;
    int64_t patience_ns; /* leases: a deadline */
    uint32_t times;      /* ... and how often the last message was delivered */
    sigjmp_buf next_round;
} bench;

static struct {
    uint64_t points[DEEPEST + 1], kills[DEEPEST + 1], images[DEEPEST + 1], parked, failures, strays;
} figures;

/* ---- complaints ---- */

/* For addr2line: where this program's code begins and ends. */
extern const char __executable_start[], etext[];

static void died_at(const struct trace *t, uint64_t k) {
    bench.path[bench.level] = k;
    bench.code[bench.level] = t->at[k];
}

static void say_where(void) {
    uint64_t from = (uint64_t)(uintptr_t)__executable_start, to = (uint64_t)(uintptr_t)etext;
    fprintf(stderr, "%s, %s, from %s, ", bench.operation->name, bench.kind, bench.start);
    for (int i = 1; i <= bench.level; i++) {
        fprintf(stderr, "%s%s after %" PRIu64 " instructions", i > 1 ? ", its repairer " : "",
                i == bench.level && bench.stops ? "stopped" : "killed", bench.path[i]);
        if (bench.code[i] >= from && bench.code[i] < to)
            fprintf(stderr, " (code %#" PRIx64 ")", bench.code[i] - from);
    }
    fputs(": ", stderr);
}

__attribute__((format(printf, 1, 2))) _Noreturn static void complain(const char *text, ...) {
    if (figures.failures++ < COMPLAINTS) {
        va_list list;
        va_start(list, text);
        say_where();
        vfprintf(stderr, text, list);
        fputc('\n', stderr);
        va_end(list);
    }
    siglongjmp(bench.next_round, 1);
}

#define EXPECT(condition, ...)                                                                               \
    do {                                                                                                     \
        if (!(condition)) complain(__VA_ARGS__);                                                             \
    } while (0)

static void hung(int number) {
    (void)number;
    say_where();
    fputs("the survivor hangs\n", stderr);
    _exit(3);
}

/* ---- memory ---- */

static uint64_t hash_of(const uint8_t *bytes, uint64_t n) {
    uint64_t hash = UINT64_C(1469598103934665603);
    for (uint64_t at = 0; at + 8 <= n; at += 8) {
        uint64_t word;
        memcpy(&word, bytes + at, 8);
        hash = (hash ^ word) * UINT64_C(1099511628211);
        hash ^= hash >> 29;
    }
    return hash;
}

static void forget_times(const struct shmq_segment *s) {
    struct shmq_pending_entry *entries =
        (struct shmq_pending_entry *)(void *)(bench.scratch + s->geometry.pending_at - SHMQ_CONTROL_AT);
    shmq_a64 *next_due = &((struct shmq_control *)(void *)bench.scratch)->pending.next_due;
    for (uint32_t i = 0; i < TABLE; i++)
        store_relaxed(&entries[i].due_ns, time_class(load_relaxed(&entries[i].due_ns)));
    store_relaxed(next_due, time_class(load_relaxed(next_due)));
}

/* Without what differs from life to life and decides nothing. */
static uint64_t hash_memory(void) {
    const struct shmq_segment *s = &bench.peer[SURVIVOR]->segment;
    memcpy(bench.scratch, bench.memory, bench.bytes);
    for (uint32_t i = 0; i < s->geometry.peers; i++) {
        struct shmq_peer *p = (struct shmq_peer *)(void *)(bench.scratch + s->geometry.peers_at -
                                                           SHMQ_CONTROL_AT + i * sizeof *p);
        p->attached_unix_ns = p->start_ticks = 0;
        p->pid = 0;
        p->holding_since_ns = 0;
        memset(&p->event_next, 0,
               offsetof(struct shmq_peer, verdict) - offsetof(struct shmq_peer, event_next));
        p->verdict.reaped_ns = 0;
        p->verdict.by_pid = 0;
    }
    store32_relaxed(&((struct shmq_control *)(void *)bench.scratch)->roles.lost_pid, 0);
    if (bench.leases) forget_times(s);
    return hash_of(bench.scratch, bench.bytes);
}

static void restore(const uint8_t *bytes) {
    const shmq_queue *private = bench.private[bench.level > 1];
    memcpy(bench.memory, bytes, bench.bytes);
    for (int i = 0; i < SURVIVORS; i++) memcpy(bench.peer[i], &private[i], sizeof private[i]);
    if (looked.m.block != NULL) *looked.m.block = looked.block;
}
static void keep_private(int from) {
    for (int level = from; level < 2; level++)
        for (int i = 0; i < SURVIVORS; i++)
            memcpy(&bench.private[level][i], bench.peer[i], sizeof bench.private[level][i]);
}

static uint64_t peer_word(uint32_t i) { return load_acquire(&bench.peer[SURVIVOR]->segment.peers[i].word); }
static bool is_live(uint32_t i) { return (peer_word(i) & 0xff) == SHMQ_PEER_LIVE; }

static struct image *note_image(struct images *seen, uint64_t hash, uint64_t k) {
    for (uint64_t i = 0; i < seen->n; i++)
        if (seen->of[i].hash == hash) return NULL;
    if (seen->n == seen->room) {
        seen->room = seen->room != 0 ? seen->room * 2 : 64;
        seen->of = realloc(seen->of, seen->room * sizeof *seen->of);
        CHECK(seen->of != NULL);
    }
    struct image *image = &seen->of[seen->n++];
    *image = (struct image){.hash = hash, .k = k, .bytes = malloc(bench.bytes)};
    CHECK(image->bytes != NULL);
    memcpy(image->bytes, bench.memory, bench.bytes);
    return image;
}

static void forget(struct images *seen) {
    for (uint64_t i = 0; i < seen->n; i++) free(seen->of[i].bytes);
    free(seen->of);
    *seen = (struct images){0};
}

/* ---- what is committed, read from the memory as it lies ---- */

static uint64_t number_in(const struct shmq_record *record) {
    const uint8_t *from = record->payload;
    if ((record->flags & SHMQ_RECORD_BLOCK) != 0) {
        uint32_t page = shmq_handle_page(load_relaxed((shmq_a64 *)(void *)record->payload));
        EXPECT(page < PAGES, "a message names page %u", page);
        from = shmq_arena_data(&bench.peer[SURVIVOR]->arena, page);
    }
    uint64_t number;
    memcpy(&number, from, sizeof number);
    return number;
}

/* Slots that hold a message, also one that a dead consumer was reading, in the order of their positions.  On a topic
 * it stays there when it is read: what the helper has still to read. */
static void committed_in_slots(const struct shmq_slots *ring, struct numbers *numbers) {
    uint64_t positions[MOST];
    for (uint64_t i = 0; i <= ring->mask; i++) {
        struct shmq_slot *slot = (struct shmq_slot *)(void *)(ring->slots + i * ring->slot_bytes);
        uint64_t word = load_acquire(&slot->word), header = load_relaxed(&slot->record);
        uint32_t state = shmq_slot_state(word);
        if (state != SHMQ_SLOT_READY && state != SHMQ_SLOT_READING) continue;
        if (bench.leases && state == SHMQ_SLOT_READING &&
            is_in_table(bench.peer[SURVIVOR], ring, shmq_slot_lap(word), i))
            continue; /* it is there once */
        struct shmq_record record = {.flags = (uint16_t)(header >> 48)};
        record.payload = (record.flags & SHMQ_RECORD_BLOCK) != 0 ? (uint8_t *)(void *)&slot->handle
                                                                 : (uint8_t *)(void *)(slot + 1);
        uint32_t unit = 64 - SHMQ_LAP_BITS - ring->shift; /* positions so that they wrap as the laps do */
        uint64_t position = (shmq_slot_lap(word) << ring->shift | i) << unit;
        if (bench.topic && (int64_t)(position - (reader->get.ring.topic.cursor << unit)) < 0) continue;
        uint64_t at = numbers->n++;
        for (; at > 0 && (int64_t)(positions[at - 1] - position) > 0; at--) {
            positions[at] = positions[at - 1];
            numbers->of[at] = numbers->of[at - 1];
            numbers->times[at] = numbers->times[at - 1];
        }
        positions[at] = position;
        numbers->of[at] = number_in(&record);
        numbers->times[at] = load32_relaxed(&slot->deliveries) + 1 + (state == SHMQ_SLOT_READING);
    }
}

/* Entries of the pending table that have a message. */
static void committed_in_table(struct numbers *numbers) {
    const struct shmq_pending *table = &bench.peer[SURVIVOR]->pending;
    for (uint32_t i = 0; i < TABLE; i++) {
        if (shmq_slot_state(load_acquire(&table->entries[i].word)) < SHMQ_PENDING_UNACKED) continue;
        struct shmq_slot *copy = shmq_pending_copy(table, i);
        struct shmq_record record = {.flags = (uint16_t)(load_relaxed(&copy->record) >> 48)};
        record.payload = (record.flags & SHMQ_RECORD_BLOCK) != 0
                             ? (uint8_t *)(void *)&table->entries[i].handle
                             : (uint8_t *)(void *)(copy + 1);
        numbers->of[numbers->n] = number_in(&record);
        numbers->times[numbers->n++] = load32_relaxed(&copy->deliveries) + 1;
    }
}

/* With leases what comes again may come early or late; with lanes the last by number may be the first to come. */
static void sort(struct numbers *numbers) {
    for (uint64_t i = 1; i < numbers->n; i++)
        for (uint64_t at = i; at > 0 && numbers->of[at - 1] > numbers->of[at]; at--) {
            uint64_t number = numbers->of[at];
            uint32_t times = numbers->times[at];
            numbers->of[at] = numbers->of[at - 1];
            numbers->times[at] = numbers->times[at - 1];
            numbers->of[at - 1] = number;
            numbers->times[at - 1] = times;
        }
}

static struct numbers committed(void) {
    struct numbers numbers = {0};
    const struct shmq_ring *ring = &bench.peer[SURVIVOR]->ring;
    struct shmq_record record;
    if (bench.lanes) {
        struct numbers urgent = {0};
        committed_in_slots(&ring->urgent, &urgent);
        committed_in_slots(&ring->mpmc, &numbers);
        for (uint64_t i = 0; i < urgent.n; i++) {
            numbers.of[numbers.n] = urgent.of[i];
            numbers.times[numbers.n++] = urgent.times[i];
        }
    } else if (!ring->is_spsc) committed_in_slots(&ring->mpmc, &numbers);
    else
        for (; numbers.n < MOST && shmq_spsc_look(&ring->spsc, (uint32_t)numbers.n, &record) == SHMQ_OK;)
            numbers.of[numbers.n++] = number_in(&record);
    if (bench.leases) committed_in_table(&numbers);
    if (bench.leases || bench.lanes) sort(&numbers);
    return numbers;
}

static void expect_the_same(const struct numbers *found, const struct numbers *expected, const char *what) {
    for (uint64_t i = 0; i < found->n && i < expected->n; i++)
        EXPECT(found->of[i] == expected->of[i], "%s: message %" PRIu64 " where %" PRIu64 " was due", what,
               found->of[i], expected->of[i]);
    EXPECT(found->n >= expected->n, "%s: message %" PRIu64 " is lost", what, expected->of[found->n]);
    EXPECT(found->n <= expected->n, "%s: message %" PRIu64 " is there, which was not committed", what,
           found->of[expected->n]);
}

/* ---- the survivors ---- */

static bool take(shmq_queue *q, uint64_t *number, int *status) {
    shmq_message m;
    shmq_delivery d;
    *status = bench.leases ? shmq_lease(q, &m, &d, bench.patience_ns) : shmq_get(q, &m, SHMQ_NO_WAIT);
    if (*status != SHMQ_OK) return false;
    uint64_t hash = 0;
    EXPECT(m.bytes >= MESSAGE_MIN, "a message of %" PRIu64 " bytes", m.bytes);
    memcpy(number, m.data, 8);
    memcpy(&hash, (uint8_t *)m.data + 8, 8);
    EXPECT(hash == message_hash(m.data, m.bytes), "message %" PRIu64 " is torn", *number);
    if (bench.leases) {
        bench.times = d.deliveries;
        int acked = shmq_ack(q, &d);
        EXPECT(acked == SHMQ_OK, "an ack says \"%s\"", shmq_status_text(acked));
        acked = shmq_ack(q, &d);
        EXPECT(acked == SHMQ_STALE, "a second ack says \"%s\"", shmq_status_text(acked));
    }
    shmq_message_release(&m);
    return true;
}

/* The survivor puts and gets; where the helper has the role, the helper does.  Of a topic the helper gets. */
static int put_some(uint64_t number, uint64_t bytes) {
    int status = lab_put(bench.peer[SURVIVOR], number, bytes, SHMQ_NO_WAIT);
    return status == SHMQ_ROLE_TAKEN ? lab_put(bench.peer[HELPER], number, bytes, SHMQ_NO_WAIT) : status;
}
static int get_some(uint64_t *number) {
    int status;
    if (bench.topic) return take(reader, number, &status) ? SHMQ_OK : status;
    if (take(bench.peer[SURVIVOR], number, &status)) return SHMQ_OK;
    if (status == SHMQ_ROLE_TAKEN && take(bench.peer[HELPER], number, &status)) return SHMQ_OK;
    return status;
}

/* Urgent ones first, and each lane's in order; who was stopped may have kept one that comes late. */
static void expect_its_place(const struct numbers *before, uint64_t number, uint32_t *lane) {
    if (!bench.lanes || bench.leases || bench.stops) return;
    uint32_t urgent = bench.peer[SURVIVOR]->get.ring.urgent;
    EXPECT(before->n == 0 || urgent <= *lane, "urgent message %" PRIu64 " comes behind a bulk one", number);
    EXPECT(before->n == 0 || urgent < *lane || number > before->of[before->n - 1],
           "message %" PRIu64 " comes late in its lane", number);
    *lane = urgent;
}

static struct numbers drain(void) {
    struct numbers numbers = {0};
    uint32_t lane = 0;
    uint64_t number;
    int status;
    while ((status = get_some(&number)) == SHMQ_OK && numbers.n < MOST) {
        expect_its_place(&numbers, number, &lane);
        numbers.times[numbers.n] = bench.times;
        numbers.of[numbers.n++] = number;
    }
    EXPECT(status == SHMQ_EMPTY, "a get says \"%s\"", shmq_status_text(status));
    if (bench.leases || bench.lanes) sort(&numbers);
    return numbers;
}

/* With what comes only after a while. */
static struct numbers drain_patiently(void) {
    struct numbers all = {0};
    shmq_stats s;
    for (;;) {
        bench.patience_ns = SHMQ_NO_WAIT;
        EXPECT(shmq_get_stats(bench.peer[SURVIVOR], &s) == SHMQ_OK, "no statistics");
        if (s.waiting_again > 0) bench.patience_ns = shmq_deadline(1000 * MS);
        uint64_t number;
        int status = get_some(&number);
        if (status != SHMQ_OK) break;
        all.times[all.n] = bench.times;
        all.of[all.n++] = number;
    }
    bench.patience_ns = SHMQ_NO_WAIT;
    sort(&all);
    return all;
}

/* What a survivor had before somebody else got it. */
static void expect_it_is_stale(void) {
    if (looked.by == NULL) return;
    int status = shmq_ack(looked.by, &looked.d);
    EXPECT(status == SHMQ_STALE, "an ack of what came again says \"%s\"", shmq_status_text(status));
}
static void stop_looking(void) {
    if (looked.m.block == NULL || looked.m.block->word == 0) return;
    uint64_t hash;
    memcpy(&hash, (uint8_t *)looked.m.data + 8, 8);
    EXPECT(hash == message_hash(looked.m.data, looked.m.bytes), "a view was overwritten");
    shmq_block_give_back(looked.m.block);
}

/* What is kept for late subscribers is pushed out; nobody subscribes but the helper. */
static void expect_one_subscriber(void) {
    const struct shmq_topic *t = &bench.peer[SURVIVOR]->ring.topic;
    uint64_t kept = bench.operation->late ? bench.slots : HISTORY;
    for (uint64_t i = 0; i < kept; i++) {
        int status = put_some(i + 1, SHORT);
        EXPECT(status == SHMQ_OK, "a put says \"%s\"", shmq_status_text(status));
    }
    struct numbers found = drain();
    EXPECT(found.n == kept, "%" PRIu64 " of %" PRIu64 " messages", found.n, kept);
    for (uint32_t i = 0; i < PEERS; i++)
        EXPECT((shmq_topic_state_of(t, i) != SHMQ_NOT_SUBSCRIBED) == (i == HELPER),
               i == HELPER ? "the helper is not subscribed" : "peer %u is still subscribed", i);
}

static void expect_key(uint64_t key, int expected) {
    int status = put_key(bench.peer[SURVIVOR], key, key);
    EXPECT(status == expected, "a put with key %" PRIu64 " says \"%s\", not \"%s\"", key,
           shmq_status_text(status), shmq_status_text(expected));
}

/* The window is of keys 1 and 2, or of 2 and 3; the latter in the end. */
static void expect_keys(bool put) {
    bool known = shmq_keys_known(&bench.peer[SURVIVOR]->keys, NEXT_KEY);
    EXPECT(known == put, known ? "key 3 is known, and was not put" : "key 3 was put, and is not known");
    expect_key(2, SHMQ_REPEAT);
    if (!put) expect_key(1, SHMQ_REPEAT);
    expect_key(NEXT_KEY, put ? SHMQ_REPEAT : SHMQ_OK);
    expect_key(NEXT_KEY, SHMQ_REPEAT);
    expect_key(2, SHMQ_REPEAT);
    expect_key(1, SHMQ_OK);
    expect_key(2, SHMQ_OK);
    struct numbers found = drain();
    EXPECT(found.n == (put ? 2 : 3) && found.of[found.n - 1] == 2, "not the messages of the last keys");
}

static bool has_next_key(const struct numbers *due) {
    bool found = false;
    for (uint64_t i = 0; i < due->n; i++) found |= due->of[i] == NEXT_KEY;
    return found && !bench.operation->vain;
}

static void expect_all_free(void) {
    shmq_queue *q = bench.peer[SURVIVOR];
    shmq_stats s;
    if (bench.topic) expect_one_subscriber();
    EXPECT(shmq_get_stats(q, &s) == SHMQ_OK, "no statistics");
    static const char *const names[] = {"free", "loaned", "in flight", "leased", "returned", "continued"};
    for (int state = SHMQ_PAGE_LOANED; state <= SHMQ_PAGE_CONT; state++)
        EXPECT(s.pages[state] == 0, "%" PRIu64 " pages are still %s", s.pages[state], names[state]);
    EXPECT(s.ring_used_bytes == 0, "%" PRIu64 " bytes of the ring are in use", s.ring_used_bytes);
    EXPECT(s.messages_put == s.messages_got, "%" PRIu64 " messages put, %" PRIu64 " got", s.messages_put,
           s.messages_got);
    for (uint32_t i = 0; bench.leases && i < TABLE; i++) {
        uint32_t state = shmq_slot_state(load_acquire(&entry_of(q, i)->word));
        EXPECT(state == SHMQ_PENDING_VACANT, "entry %u of the table is in state %u", i, state);
    }
    int status = shmq_validate(q);
    EXPECT(status == SHMQ_OK, "validate says \"%s\"", shmq_status_text(status));
}

/* Full and empty three times, each lane: a slot is used three laps long.  Every page can be lent.  Blocks pass. */
static void expect_it_works(void) {
    uint64_t number;
    shmq_block *lent[PAGES + 1];
    for (int lap = 0; lap < (bench.lanes ? 6 : 3); lap++) {
        if (bench.lanes) OK(shmq_set_priority(bench.peer[SURVIVOR], lap < 3));
        uint64_t sent = 0, least = bench.slots != 0 ? bench.slots : 4096 / (SHORT + 8) - 1;
        int status;
        while ((status = put_some(sent + 1, SHORT)) == SHMQ_OK) sent++;
        EXPECT(status == SHMQ_FULL, "a put says \"%s\"", shmq_status_text(status));
        EXPECT(bench.topic ? sent == least : sent >= least, "lap %d: full after %" PRIu64 " messages", lap,
               sent);
        struct numbers found = drain();
        EXPECT(found.n == sent, "lap %d: %" PRIu64 " of %" PRIu64 " messages", lap, found.n, sent);
        for (uint64_t i = 0; i < sent; i++)
            EXPECT(found.of[i] == i + 1, "lap %d: out of order at %" PRIu64, lap, i);
        int put = put_some(7, BLOCK), got = get_some(&number);
        EXPECT(put == SHMQ_OK && got == SHMQ_OK && number == 7, "a block: \"%s\", \"%s\"",
               shmq_status_text(put), shmq_status_text(got));
    }
    for (int i = 0; i < PAGES; i++) {
        int status = shmq_try_loan(bench.peer[SURVIVOR], LEAST_BLOCK, &lent[i]);
        EXPECT(status == SHMQ_OK, "page %d: \"%s\"", i, shmq_status_text(status));
    }
    for (int i = 0; i < PAGES; i++) shmq_block_release(lent[i]);
    expect_all_free();
}

/* ---- after a death ---- */

/* What the dead have recorded is whole, but for the event that they died over. */
static void expect_recorder(uint32_t i) {
    const struct shmq_peer *p = &bench.peer[SURVIVOR]->segment.peers[i];
    shmq_event_info events[SHMQ_EVENTS];
    uint64_t written = load_relaxed(&p->event_next) & 0xffff, n = shmq_recorder_read(p, events);
    uint64_t due = written < SHMQ_EVENTS ? written : SHMQ_EVENTS;
    EXPECT(n + 1 >= due && n <= due + 1, "%" PRIu64 " events of peer %u, which recorded %" PRIu64, n, i,
           written);
    for (uint64_t e = 0; e < n; e++) {
        const shmq_event_info *event = &events[e], *before = &events[e > 0 ? e - 1 : 0];
        EXPECT(event->op >= SHMQ_OP_ATTACH && event->op <= SHMQ_OP_SUBSCRIBE, "an event %u", event->op);
        EXPECT(event->time_ns >= before->time_ns, "event %" PRIu64 " is older than the one before", e);
        EXPECT((event->op == SHMQ_OP_ATTACH) == (e == 0 && due < SHMQ_EVENTS), "event %" PRIu64 " is %u", e,
               event->op);
    }
}

static void expect_repair(const struct numbers *due) {
    uint32_t dead = 0, repaired;
    bool died[PEERS] = {false};
    for (uint32_t i = SURVIVORS; i < PEERS; i++) {
        dead += died[i] = is_live(i);
        if (died[i]) expect_recorder(i);
    }
    int status = shmq_reap(bench.peer[SURVIVOR], &repaired);
    EXPECT(status == SHMQ_OK && repaired == dead, "%u dead, %u repaired", dead, repaired);
    for (uint32_t i = SURVIVORS; i < PEERS; i++) {
        EXPECT(!is_live(i), "peer %u is still in the table after its repair", i);
        EXPECT(!died[i] || shmq_peers_left_dead(&bench.peer[SURVIVOR]->segment.peers[i], peer_word(i)),
               "no post-mortem of peer %u", i);
    }
    status = shmq_reap(bench.peer[HELPER], &repaired);
    EXPECT(status == SHMQ_OK && repaired == 0, "a second reap repaired %u", repaired);
    status = shmq_validate(bench.peer[SURVIVOR]);
    EXPECT(status == SHMQ_OK, "after the repair validate says \"%s\"", shmq_status_text(status));
    if (bench.path[bench.level] % 2 == 0) stop_looking();
    struct numbers found = bench.operation->delays ? drain_patiently() : drain();
    expect_the_same(&found, due, "after the repair");
    for (uint64_t i = 0; bench.leases && i < due->n; i++)
        EXPECT(found.times[i] == due->times[i], "message %" PRIu64 " came for time %u, not %u", found.of[i],
               found.times[i], due->times[i]);
    expect_it_is_stale();
    stop_looking();
    if (bench.keys) expect_keys(has_next_key(due));
    expect_all_free();
    expect_it_works();
}

/* At the first level: may the victim have left exactly this? */
static void expect_plausible(const struct numbers *before, const struct numbers *now, bool ended) {
    const struct operation *op = bench.operation;
    uint64_t first = before->n > 0 ? before->of[0] : op->read + 1;
    uint64_t last = before->n > 0 ? before->of[before->n - 1] : op->read;
    uint64_t got = load_acquire(&notes->got), put = load_acquire(&notes->put);
    uint64_t taken = bench.topic ? 0 : op->takes;
    EXPECT(got == 0 || got == (bench.topic ? op->sees : first), "the victim got message %" PRIu64, got);
    if (ended) {
        int status = (int)load32_acquire(&notes->status);
        EXPECT(status == op->status, "the victim's call says \"%s\"", shmq_status_text(status));
        EXPECT(put == op->adds && (got != 0) == (op->takes != 0), "the victim put %" PRIu64 ", got %" PRIu64,
               put, got);
    }
    for (uint64_t i = 1; i < now->n; i++)
        EXPECT(now->of[i] == now->of[i - 1] + 1, "at death %" PRIu64 " is followed by %" PRIu64,
               now->of[i - 1], now->of[i]);
    uint64_t left_first = now->n > 0 ? now->of[0] : last + 1,
             left_last = now->n > 0 ? now->of[now->n - 1] : last;
    EXPECT(left_first >= first + (got != 0 && taken > 0) && left_first <= first + taken,
           "at death the queue begins with %" PRIu64, left_first);
    EXPECT(left_last >= last + put && left_last <= last + op->adds, "at death it ends with %" PRIu64,
           left_last);
    EXPECT(bench.slots != 0 || left_last == last || left_last == last + op->adds,
           "a run is published in parts");
}

/* ---- a victim's life ---- */

static void live(const struct operation *op, int playing) {
    shmq_queue *q = NULL;
    close(playing);
    if (!op->attaches) {
        q = lab_attach(object);
        store32_release(&notes->index, q->me.index);
    }
    if (op->before != NULL) op->before(q);
    trace_mark();
    store32_release(&notes->status, (uint32_t)op->act(q));
    trace_mark();
    /* Only a victim that was stopped and goes on comes here. */
    if (op->attaches) q = hand.queue;
    shmq_message_release(&hand.taken);
    if (hand.block != NULL && op->act != publish && op->act != loan_and_publish)
        shmq_block_release(hand.block);
    if (op->act != detach) shmq_free(q);
    _exit(0);
}

/* An OFD lock on the byte of everyone who is in the table without a survivor's body. */
static int play_the_living(void) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", object);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    CHECK(fd >= 0);
    for (uint32_t i = SURVIVORS; i < PEERS; i++) {
        struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)i, .l_len = 1};
        if (is_live(i)) CHECK_EQ(fcntl(fd, F_OFD_SETLK, &lock), 0);
    }
    return fd;
}

/* A victim at its start marker. */
static pid_t start_victim(const uint8_t *bytes, const struct operation *op) {
    alarm(WATCH_S);
    restore(bytes);
    memset(notes, 0, sizeof *notes);
    store32_release(&notes->index, UINT32_MAX);
    int playing = play_the_living();
    pid_t parent = getpid(), pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || getppid() != parent) _exit(1);
        trace_me();
        live(op, playing);
    }
    enum stop stop = trace_start(pid);
    close(playing);
    if (stop != STOPPED) {
        say_where();
        fputs("the victim died before its operation\n", stderr);
        _exit(1);
    }
    if (op->meanwhile != NULL) {
        op->meanwhile(bench.peer[SURVIVOR]);
        keep_private(1);
    }
    return pid;
}

/* ---- a level: death at every instruction ---- */

/* `busy[k]`: before instruction k the memory (but for pages' contents) is another than before k - 1, or k - 1 called
 * the kernel. */
struct way {
    struct trace trace;
    struct hops hops;
    bool *busy;
};

static struct way record(const uint8_t *bytes, const struct operation *op) {
    struct way way = {0};
    pid_t pid = start_victim(bytes, op);
    uint64_t room = 1 << 17, n = bench.peer[SURVIVOR]->segment.geometry.small_at - SHMQ_CONTROL_AT;
    memcpy(bench.scratch, bench.memory, n);
    way.busy = calloc(room, 1);
    CHECK(way.busy != NULL);
    for (bool called = false;;) {
        uint64_t pc = pc_of(pid);
        bool changed = memcmp(bench.scratch, bench.memory, n) != 0;
        CHECK(way.trace.n + 1 < room);
        way.busy[way.trace.n] = changed || called;
        if (changed) memcpy(bench.scratch, bench.memory, n);
        called = trace_at_syscall(pid, pc);
        trace_note(&way.trace, pc);
        if (trace_at_trap(pid, pc)) break;
        enum stop stop = trace_go(pid, true);
        if (stop != STOPPED) {
            say_where();
            fprintf(stderr, "the victim died by itself after %" PRIu64 " instructions\n", way.trace.n);
            _exit(1);
        }
        alarm(WATCH_S);
    }
    trace_kill(pid);
    way.hops = trace_hops(&way.trace);
    return way;
}

static void forget_way(struct way *way) {
    free(way->busy);
    free(way->trace.at);
    free(way->hops.last);
}

/* The way that two records agree on.  Under single steps the clock ticks while it is read, and is read again: that
 * turn of its loop is not on the way of a victim that runs to a breakpoint. */
static struct way record_surely(const uint8_t *bytes, const struct operation *op) {
    struct way way = record(bytes, op);
    for (int tries = 0; tries < MOST_RECORDS; tries++) {
        struct way again = record(bytes, op);
        bool same = again.trace.n == way.trace.n &&
                    memcmp(again.trace.at, way.trace.at, way.trace.n * sizeof *way.trace.at) == 0;
        bool shorter = again.trace.n < way.trace.n;
        forget_way(shorter ? &way : &again);
        if (shorter) way = again;
        if (same) break;
    }
    return way;
}

static bool chosen(const struct way *way, uint64_t k, uint64_t every) {
    if (every == 1 || k == 0 || k + 1 >= way->trace.n || (every > 1 && k % every == 0)) return true;
    return way->busy[k - 1] || way->busy[k] || way->busy[k + 1];
}

/* One death, at instruction k.  Returns the image that it left, if that is new. */
static struct image *die_once(const uint8_t *bytes, const struct operation *op, const struct way *way,
                              uint64_t k, const struct numbers *due, struct images *seen) {
    struct numbers before, now;
    bool on_the_way;
    pid_t pid = start_victim(bytes, op);
    died_at(&way->trace, k);
    if (sigsetjmp(bench.next_round, 0) != 0) return NULL;
    before = committed();
    enum stop stop = trace_to(pid, &way->trace, &way->hops, k, &on_the_way);
    if (stop != STOPPED) complain("the victim died by itself");
    figures.strays += !on_the_way;
    bool ended = k + 1 == way->trace.n && on_the_way;
    trace_kill(pid);
    struct image *image = note_image(seen, hash_memory(), k);
    now = committed();
    if (image != NULL) image->committed = now;
    if (due != NULL) expect_the_same(&now, due, "in repair");
    else expect_plausible(&before, &now, ended);
    expect_repair(&now);
    return image;
}

/* ---- a victim that is stopped, and goes on ---- */

struct ledger {
    uint32_t put[4 * SECOND_NUMBER], got[4 * SECOND_NUMBER];
};

static void note_number(uint32_t *of, uint64_t number) {
    EXPECT(number > 0 && number < 4 * SECOND_NUMBER, "message %" PRIu64 " was never put", number);
    of[number] += 1;
}

/* What the others do while the victim is stopped, and keep until it has gone on. */
struct company {
    struct ledger ledger;
    shmq_message held[2];
    uint64_t next;       /* number of their next message */
    bool no_put, no_get; /* a live victim has that role, or a role is in its repair */
    bool full;           /* the ring, at the last try */
    int keyed;           /* what their own put with the victim's key said */
    uint64_t last[2];    /* topic: what came last, of the others' messages and of theirs */
};
static struct company company;

static bool company_puts(uint64_t bytes) {
    if (company.no_put) return false;
    if (bench.lanes) OK(shmq_set_priority(bench.peer[SURVIVOR], company.next % 2 == 0));
    int status = put_some(company.next, bytes);
    if (status == SHMQ_OK) note_number(company.ledger.put, company.next++);
    company.no_put = status == SHMQ_ROLE_TAKEN && bench.slots == 0;
    company.full = status == SHMQ_FULL;
    EXPECT(status == SHMQ_OK || status == SHMQ_FULL || status == SHMQ_ARENA_FULL || company.no_put,
           "a put beside it says \"%s\"", shmq_status_text(status));
    return status == SHMQ_OK;
}

static void note_got(uint64_t number) {
    note_number(company.ledger.got, number);
    uint64_t *last = &company.last[number >= SECOND_NUMBER];
    EXPECT(!bench.topic || number > *last, "message %" PRIu64 " comes after %" PRIu64, number, *last);
    *last = number;
}

static bool may_miss(int status) {
    company.no_get = status == SHMQ_ROLE_TAKEN && bench.slots == 0;
    return status == SHMQ_EMPTY || company.no_get ||
           (bench.leases && (status == SHMQ_ARENA_FULL || status == SHMQ_UNACKED_FULL));
}

static bool company_gets(void) {
    uint64_t number;
    if (company.no_get) return false;
    int status = get_some(&number);
    EXPECT(status == SHMQ_OK || may_miss(status), "a get beside it says \"%s\"", shmq_status_text(status));
    if (status == SHMQ_OK) note_got(number);
    return status == SHMQ_OK;
}

/* Takes one more message and keeps its block. */
static void company_holds(shmq_message *m) {
    if (company.no_get) return;
    shmq_delivery d;
    int status = bench.leases ? shmq_lease(bench.peer[SURVIVOR], m, &d, SHMQ_NO_WAIT)
                              : shmq_get(bench.topic ? reader : bench.peer[SURVIVOR], m, SHMQ_NO_WAIT);
    if (status == SHMQ_ROLE_TAKEN) status = shmq_get(bench.peer[HELPER], m, SHMQ_NO_WAIT);
    if (bench.leases && status == SHMQ_OK) OK(shmq_ack(bench.peer[SURVIVOR], &d));
    EXPECT(status == SHMQ_OK || may_miss(status), "a get beside it says \"%s\"", shmq_status_text(status));
    if (status == SHMQ_OK) note_got(*(const uint64_t *)m->data);
}

/* A role that a dead peer holds, in a repair that is stopped, is waited for in vain: a fifth of a second each time.
 * Once in a while is enough. */
static void spare_the_wait(const shmq_a64 *role, uint64_t k, bool *none) {
    uint64_t holder = load_acquire(role);
    *none = bench.slots == 0 && bench.dead > 0 && holder != 0 && shmq_role_owner(holder) >= SURVIVORS &&
            k % 256 != 0;
}

/* Others publish until a subscriber that is stopped, or a publisher that is stopped in its slot, is in the way; the
 * helper reads on to that slot. */
static void expect_the_stopped_in_the_way(uint32_t victim) {
    const struct shmq_topic *t = &reader->ring.topic;
    const struct shmq_topic_side *mine = &reader->get.ring.topic;
    bool gates = false, writes = false;
    shmq_stats s;
    for (uint32_t i = SURVIVORS; i < PEERS; i++) gates |= shmq_topic_state_of(t, i) == SHMQ_SUBSCRIBED;
    for (uint64_t i = 0; i <= t->slots.mask; i++) {
        uint64_t word = load_acquire(&shmq_slot_at(&t->slots, i)->word);
        if (shmq_slot_state(word) != SHMQ_SLOT_WRITING) continue;
        writes = true;
        EXPECT(i == (mine->cursor & t->slots.mask) && shmq_laps_ahead(&t->slots, word, mine->cursor) == 0,
               "a slot that is being written is not the next to be read");
    }
    EXPECT(writes || shmq_topic_drained(t, mine->cursor), "the helper does not read on");
    EXPECT(company.full == (gates || writes),
           company.full ? "full, and nobody is in the way" : "a subscriber is overtaken, or a publisher");
    OK(shmq_get_stats(reader, &s));
    bool named = victim != UINT32_MAX && bench.dead == 0 ? s.holds_up_put == (int32_t)victim
                                                         : s.holds_up_put >= SURVIVORS;
    EXPECT(!company.full || named, "full, and peer %d is said to be in the way", s.holds_up_put);
}

/* The victim's message by another: it went on before the victim, or finds it done, or waits. */
static void company_puts_the_key(void) {
    company.keyed = put_key(bench.peer[HELPER], company.next, NEXT_KEY);
    if (company.keyed == SHMQ_OK) note_number(company.ledger.put, company.next++);
    else
        EXPECT(company.keyed == SHMQ_REPEAT || company.keyed == SHMQ_KEYS_BUSY || company.keyed == SHMQ_FULL,
               "a put of its key beside it says \"%s\"", shmq_status_text(company.keyed));
}

static void others_go_on(bool victim_attached) {
    uint32_t index = load32_acquire(&notes->index), repaired;
    if (bench.keys) company_puts_the_key();
    if (victim_attached && index != UINT32_MAX && is_live(index)) {
        int alive = shmq_peers_alive(&bench.peer[SURVIVOR]->segment, index);
        EXPECT(alive == 1, "alive: %d", alive);
    }
    for (int i = 0; i < 2; i++) company_holds(&company.held[i]);
    (void)company_puts(BLOCK);
    (void)company_puts(LEAST_BLOCK);
    for (uint32_t i = 0; i < 4 * (bench.slots + 4); i++) { /* several laps */
        bool went = company_puts(SHORT);
        went |= company_gets();
        if (!went) break;
    }
    if (bench.topic) {
        while (company_gets()) {} /* it still lags behind by what there was at first */
        if (company_puts(SHORT)) (void)company_gets();
        expect_the_stopped_in_the_way(index);
    }
    int status = shmq_validate(bench.peer[HELPER]);
    EXPECT(status == SHMQ_OK, "beside it validate says \"%s\"", shmq_status_text(status));
    if (bench.slots == 0 && bench.dead > 0) return; /* it would find what it can, and wait for the rest */
    status = shmq_reap(bench.peer[HELPER], &repaired);
    EXPECT(status == SHMQ_OK, "a reap beside it says \"%s\"", shmq_status_text(status));
    EXPECT(repaired <= bench.dead, "%u were declared dead", repaired);
}

/* Every free page is overwritten: what the company holds must not be among them. */
static void others_look_at_what_they_hold(void) {
    shmq_block *lent[PAGES];
    int n = 0;
    while (n < PAGES && shmq_try_loan(bench.peer[SURVIVOR], LEAST_BLOCK, &lent[n]) == SHMQ_OK)
        memset(lent[n++]->data, 0xee, SHMQ_SMALL_PAGE);
    while (n > 0) shmq_block_release(lent[--n]);
    for (int i = 0; i < 2; i++) {
        shmq_message *m = &company.held[i];
        uint64_t hash;
        if (m->block == NULL) continue;
        memcpy(&hash, (uint8_t *)m->data + 8, 8);
        EXPECT(hash == message_hash(m->data, m->bytes), "a message that is held was overwritten");
        shmq_message_release(m);
    }
}

static void finish_killed(pid_t pid) {
    int status;
    (void)kill(pid, SIGKILL);
    while (waitpid(pid, &status, 0) == pid && !WIFSIGNALED(status) && !WIFEXITED(status)) {}
}

static void park_once(const uint8_t *bytes, const struct operation *op, const struct way *way, uint64_t k) {
    bool on_the_way;
    int status;
    pid_t pid = start_victim(bytes, op);
    died_at(&way->trace, k);
    memset(&company, 0, sizeof company);
    company.next = SECOND_NUMBER;
    spare_the_wait(&bench.peer[SURVIVOR]->control->roles.producer, k, &company.no_put);
    spare_the_wait(&bench.peer[SURVIVOR]->control->roles.consumer, k, &company.no_get);
    if (sigsetjmp(bench.next_round, 0) != 0) {
        finish_killed(pid);
        return;
    }
    struct numbers before = committed(), rest;
    for (uint64_t i = 0; i < before.n; i++) note_number(company.ledger.put, before.of[i]);
    if (trace_to(pid, &way->trace, &way->hops, k, &on_the_way) != STOPPED)
        complain("the victim died by itself");
    figures.strays += !on_the_way;
    trace_free(pid, &way->trace);
    CHECK_EQ(waitpid(pid, &status, WUNTRACED), pid);
    CHECK(WIFSTOPPED(status));
    others_go_on(!op->attaches);
    CHECK_EQ(kill(pid, SIGCONT), 0);
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0, "going on, the victim fails (status %#x)", status);
    status = (int)load32_acquire(&notes->status);
    EXPECT(status == op->status || status == SHMQ_OK || status == SHMQ_FULL || status == SHMQ_ARENA_FULL ||
               status == SHMQ_EMPTY || (status == SHMQ_ROLE_TAKEN && bench.slots == 0) ||
               (bench.leases && status == SHMQ_STALE) ||
               (bench.keys && (status == SHMQ_REPEAT || status == SHMQ_KEYS_BUSY)),
           "the victim's call says \"%s\"", shmq_status_text(status));
    uint64_t last = before.n > 0 ? before.of[before.n - 1] : op->read, got = load_acquire(&notes->got);
    for (uint64_t i = load_acquire(&notes->put); i > 0; i--) note_number(company.ledger.put, last + i);
    if (got != 0 && !bench.topic) note_number(company.ledger.got, got);
    EXPECT(!bench.topic || got == 0 || op->sees == 0 || got == op->sees, "it got message %" PRIu64, got);
    uint32_t repaired;
    EXPECT(shmq_reap(bench.peer[SURVIVOR], &repaired) == SHMQ_OK,
           "no reap"); /* an earlier peer may lie there */
    others_look_at_what_they_hold();
    stop_looking();
    rest = bench.leases ? drain_patiently() : drain();
    expect_it_is_stale();
    if (bench.keys) {
        bool before_it = has_next_key(&before), by_others = company.keyed == SHMQ_OK;
        bool by_it = load_acquire(&notes->put) != 0;
        EXPECT(before_it + by_others + by_it <= 1, "key 3 was put twice");
        EXPECT(company.keyed != SHMQ_REPEAT || before_it || by_it, "key 3 was known, and was not put");
        expect_keys(before_it || by_others || by_it);
    }
    for (uint64_t i = 0; i < rest.n; i++) note_got(rest.of[i]);
    for (uint64_t i = 1; i < 4 * SECOND_NUMBER; i++)
        EXPECT(company.ledger.put[i] == company.ledger.got[i],
               "message %" PRIu64 " was put %u times and got %u times", i, company.ledger.put[i],
               company.ledger.got[i]);
    for (uint32_t i = SURVIVORS; i < PEERS; i++) EXPECT(!is_live(i), "peer %u is still in the table", i);
    expect_all_free();
    expect_it_works();
}

/* ---- level by level ---- */

static bool goes_on(void) { return !bench.enough || figures.failures < COMPLAINTS; }

static void explore(const uint8_t *bytes, const struct operation *op, const struct numbers *due, int depth) {
    struct images seen = {0};
    int level = ++bench.level;
    struct way way = record_surely(bytes, op);
    bench.stops = bench.parked && depth == 1;
    bench.dead = 0;
    restore(bytes);
    for (uint32_t i = SURVIVORS; i < PEERS; i++) bench.dead += is_live(i);
    if (!bench.stops) figures.points[level] += way.trace.n;
    for (uint64_t k = 0; k < way.trace.n && goes_on(); k++) {
        if (!chosen(&way, k, level == 1 ? bench.every : bench.every_repair)) continue;
        if (bench.stops) {
            figures.parked += 1;
            park_once(bytes, op, &way, k);
        } else {
            figures.kills[level] += 1;
            (void)die_once(bytes, op, &way, k, due, &seen);
        }
    }
    figures.images[level] += seen.n;
    for (uint64_t i = 0; depth > 1 && i < seen.n && goes_on(); i++) {
        died_at(&way.trace, seen.of[i].k);
        explore(seen.of[i].bytes, &repair, &seen.of[i].committed, depth - 1);
    }
    forget(&seen);
    forget_way(&way);
    bench.level -= 1;
}

/* ---- scenes ---- */

static void open_bench(const struct operation *op, uint32_t kind, uint64_t first_cursor, uint64_t skipped) {
    shmq_params params = {.ring_bytes = 4096,
                          .arena_bytes = PAGES * SHMQ_SMALL_PAGE,
                          .first_cursor = first_cursor,
                          .inline_bytes = INLINE_BYTES,
                          .peers = PEERS,
                          .kind = kind > SHMQ_KIND_TOPIC ? SHMQ_KIND_MPMC : kind,
                          .history = bench.topic && !op->bare ? HISTORY : 0,
                          .max_unacked = bench.leases ? TABLE : 0,
                          .visibility_ns = bench.leases ? VISIBILITY_NS : 0,
                          .priority = bench.lanes,
                          .keys = bench.keys ? WINDOW : 0};
    object = lab_object();
    bench.peer[SURVIVOR] = lab_create(object, &params);
    bench.peer[HELPER] = lab_attach(object);
    const struct shmq_segment *s = &bench.peer[SURVIVOR]->segment;
    bench.slots = s->geometry.slots;
    bench.memory = s->base + SHMQ_CONTROL_AT;
    bench.bytes = s->geometry.total_bytes - SHMQ_CONTROL_AT;
    bench.scratch = realloc(bench.scratch, bench.bytes);
    CHECK(bench.scratch != NULL);
    reader = bench.topic ? bench.peer[HELPER] : bench.peer[SURVIVOR];
    if (bench.topic && !op->late) OK(shmq_subscribe(reader, 0));
    uint64_t number;
    int status;
    if (op->urgent) OK(shmq_set_priority(bench.peer[SURVIVOR], 1));
    for (uint64_t i = 0; i < skipped; i++) { /* to the position where the operation is to begin */
        OK(lab_put(bench.peer[SURVIVOR], 1, SHORT, SHMQ_NO_WAIT));
        if (!op->late) CHECK(take(reader, &number, &status));
    }
    if (bench.lanes) OK(shmq_set_priority(bench.peer[SURVIVOR], 0));
    bench.peer[SURVIVOR]->get.ring.in_a_row = 0;
    memset(&looked, 0, sizeof looked);
    for (int i = 0; i < SURVIVORS; i++) /* or a get would allocate it, and a restored handle forget it */
        if (bench.peer[i]->inline_copy == NULL) CHECK((bench.peer[i]->inline_copy = malloc(4096)) != NULL);
    if (skipped > 0 && !bench.topic) {
        store_release(&bench.peer[SURVIVOR]->control->roles.producer, 0);
        store_release(&bench.peer[SURVIVOR]->control->roles.consumer, 0);
        bench.peer[SURVIVOR]->put.held = bench.peer[SURVIVOR]->get.held = false;
    }
    if (op->scene != NULL) op->scene(bench.peer[SURVIVOR]);
    if (looked.m.block != NULL) looked.block = *looked.m.block;
    if (op->late) OK(shmq_subscribe(reader, 0));
    if (op->earlier != NULL) {
        pid_t pid = fork_child();
        if (pid == 0) {
            op->earlier(lab_attach(object));
            (void)kill(getpid(), SIGKILL);
        }
        join_child(pid, SIGKILL);
    }
    keep_private(0);
}

static uint8_t *copy_memory(void) {
    uint8_t *bytes = malloc(bench.bytes);
    CHECK(bytes != NULL);
    memcpy(bytes, bench.memory, bench.bytes);
    return bytes;
}

static void close_bench(uint8_t *bytes) {
    restore(bytes);
    shmq_message_release(&looked.m);
    for (int i = SURVIVORS - 1; i >= 0; i--) shmq_free(bench.peer[i]);
    close(object);
    free(bytes);
}

/* Of the line that the operation works at, how far it is when the operation begins. */
static uint64_t distance(const struct operation *op, uint32_t kind) {
    open_bench(op, kind, 0, 0);
    uint8_t *bytes = copy_memory();
    trace_kill(start_victim(bytes, op));
    const struct shmq_control *c = bench.peer[SURVIVOR]->control;
    const shmq_a64 *head =
        bench.topic ? &bench.peer[SURVIVOR]->segment.peers[SURVIVORS].topic_cursor : &c->head.cursor;
    const shmq_a64 *urgent = op->at_head ? &c->urgent_head.cursor : &c->urgent_tail.cursor;
    uint64_t cursor = load_acquire(op->urgent ? urgent : op->at_head ? head : &c->tail.cursor);
    close_bench(bytes);
    return cursor;
}

static const char *const kinds[] = {
    [SHMQ_KIND_SPSC] = "spsc", [SHMQ_KIND_MPMC] = "mpmc", [SHMQ_KIND_TOPIC] = "topic",
    [KIND_LEASE] = "lease",    [KIND_LANES] = "lanes",    [KIND_KEYS] = "keys"};

static double seconds(void) { return (double)shmq_now_ns() * 1e-9; }

static void run(const struct operation *op, uint32_t kind, bool wrap, int depth) {
    double from = seconds();
    memset(&figures, 0, sizeof figures);
    bench.operation = op;
    bench.kind = kinds[kind];
    bench.topic = kind == SHMQ_KIND_TOPIC;
    bench.lanes = kind == KIND_LANES;
    bench.keys = kind == KIND_KEYS;
    bench.leases = kind == KIND_LEASE || op->leased;
    bench.start = "zero";
    uint64_t cursor = 0, skipped = 0;
    if (wrap) { /* 8 bytes, or one slot, below the wrap */
        uint64_t unit = kind == SHMQ_KIND_SPSC ? 8 : 1, due = UINT64_C(0) - distance(op, kind) - unit;
        cursor = due & ~UINT64_C(7);
        skipped = due - cursor;
        bench.start = "the wrap";
    }
    open_bench(op, kind, cursor, skipped);
    uint8_t *bytes = copy_memory();
    bench.stops = false;
    if (!bench.parked || depth > 1 || !op->unfilled) explore(bytes, op, NULL, depth);
    close_bench(bytes);
    alarm(0);
    printf("%s\t%s\t%s", op->name, bench.kind, wrap ? "wrap" : "0");
    for (int i = 1; i <= DEEPEST; i++)
        printf("\t%" PRIu64 "\t%" PRIu64 "\t%" PRIu64, figures.points[i], figures.kills[i],
               figures.images[i]);
    printf("\t%" PRIu64 "\t%" PRIu64 "\t%" PRIu64 "\t%.2f\n", figures.parked, figures.strays,
           figures.failures, seconds() - from);
    fflush(stdout);
}

static uint32_t kind_named(const char *name) {
    uint32_t kind = KIND_KEYS;
    while (kind >= SHMQ_KIND_SPSC && strcmp(kinds[kind], name) != 0) kind--;
    return kind; /* 0: none */
}

int main(int argc, char **argv) {
    uint32_t kind = SHMQ_KIND_SPSC;
    bool wrap = false, named = false, list = false;
    int depth = 1, first = 1;
    uint64_t failures = 0;
    bench.every = bench.every_repair = 1;
    for (; first < argc && strncmp(argv[first], "--", 2) == 0; first++) {
        const char *option = argv[first];
        if (strcmp(option, "--wrap") == 0) wrap = true;
        else if (strcmp(option, "--parked") == 0) bench.parked = true;
        else if (strcmp(option, "--enough") == 0) bench.enough = true;
        else if (strcmp(option, "--list") == 0) list = true;
        else if (++first == argc) return 2;
        else if (strcmp(option, "--kind") == 0) kind = kind_named(argv[first]);
        else if (strcmp(option, "--depth") == 0) depth = atoi(argv[first]);
        else if (strcmp(option, "--every") == 0) bench.every = strtoull(argv[first], NULL, 10);
        else if (strcmp(option, "--every-repair") == 0) bench.every_repair = strtoull(argv[first], NULL, 10);
        else return 2;
    }
    if (kind == 0 || depth < 1 || depth > DEEPEST) return 2;
    const struct operation *of_kind = operations;
    size_t n = OPERATIONS;
    if (kind == SHMQ_KIND_TOPIC) of_kind = topic_operations, n = TOPIC_OPERATIONS;
    if (kind == KIND_LEASE) of_kind = lease_operations, n = LEASE_OPERATIONS;
    if (kind == KIND_LANES) of_kind = lane_operations, n = LANE_OPERATIONS;
    if (kind == KIND_KEYS) of_kind = keyed_operations, n = KEYED_OPERATIONS;
    for (size_t i = 0; list && i < n; i++) puts(of_kind[i].name);
    if (list) return 0;
    signal(SIGALRM, hung);
    trace_on_one_cpu();
    notes = lab_shared(sizeof *notes);
    for (size_t i = 0; i < n; i++) {
        bool wanted = first == argc;
        for (int a = first; a < argc; a++) wanted |= strcmp(argv[a], of_kind[i].name) == 0;
        if (!wanted) continue;
        named = true;
        run(&of_kind[i], kind, wrap, depth);
        failures += figures.failures;
    }
    return failures != 0 ? 1 : named ? 0 : 2;
}
