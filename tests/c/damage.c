/* Something writes garbage into a live segment.
 *
 *     damage MUTATIONS SEED
 *
 * After each mutation the attached handles put, get, loan, look, repair and leave, and newcomers attach.
 * Allowed: any status, and wrong data within a message's own bounds.  Not allowed: a crash (the worker runs in a
 * child; its parent says after which mutation it died), a hang (watchdog), a message that is longer than the
 * segment's memory.
 */
#define _GNU_SOURCE
#include <signal.h>

#include "lab.h"

#define MUTATIONS_PER_SEGMENT 16
#define BUFFER_BYTES (64u << 10)

#define LAST_STATUS SHMQ_KEYS_BUSY

enum place { HEADER, CONTROL, PEERS, RECORDS, WORDS, HEADERS, ENTRIES, COPIES, LANE, TURN, KEYS, PLACES };
static const char *const place_names[] = {"header",      "control",       "peers",   "records",
                                          "words",       "block headers", "entries", "copies",
                                          "urgent lane", "turn",          "keys"};

static struct last {
    shmq_a64 number, offset, before, after;
    shmq_a32 place;
    uint64_t statuses[LAST_STATUS + 1]; /* what the calls answered */
} *last;                                /* shared with the parent, which tells it */

static uint64_t seed;

static int note(int status) {
    CHECK(status >= 0 && status <= LAST_STATUS);
    last->statuses[status] += 1;
    return status;
}

/* A word that makes trouble: one bit off, near a limit, a copy from elsewhere, or anything. */
static uint64_t some_word(const uint8_t *base, uint64_t before, uint64_t bytes) {
    static const uint64_t favourites[] = {0,
                                          1,
                                          7,
                                          8,
                                          UINT64_MAX,
                                          UINT64_MAX - 7,
                                          UINT64_C(1) << 63,
                                          UINT32_MAX,
                                          SHMQ_SMALL_PAGE,
                                          SHMQ_SMALL_PAGE + 1};
    switch (below(&seed, 6)) {
    case 0:
    case 1: return before ^ UINT64_C(1) << below(&seed, 64);
    case 2: return favourites[below(&seed, sizeof favourites / sizeof *favourites)];
    case 3: return before + (below(&seed, 2) == 0 ? 8 : UINT64_C(0) - 8) * below(&seed, 600);
    case 4: {
        uint64_t other;
        memcpy(&other, base + below(&seed, bytes / 8) * 8, 8);
        return other;
    }
    default: return next_random(&seed);
    }
}

static void mutate(const shmq_queue *q, uint64_t number) {
    const struct shmq_geometry *g = &q->segment.geometry;
    uint64_t pages = g->small_pages + g->large_pages, from = 0, bytes = 0;
    enum place place = (enum place)below(&seed, pages > 0 ? ENTRIES : WORDS);
    if (g->pending > 0 && below(&seed, 2) == 0) place = below(&seed, 3) > 0 ? ENTRIES : COPIES;
    if (g->urgent_slots > 0 && below(&seed, 4) == 0) place = LANE;
    if (g->keys > 0 && below(&seed, 2) == 0) place = below(&seed, 2) > 0 ? TURN : KEYS;
    switch (place) {
    case TURN: from = SHMQ_CONTROL_AT + offsetof(struct shmq_control, keys), bytes = 40; break;
    case KEYS: from = g->keys_at, bytes = g->keys * (8 + sizeof(struct shmq_key_entry)); break;
    case ENTRIES: from = g->pending_at, bytes = g->pending * sizeof(struct shmq_pending_entry); break;
    case COPIES: from = g->copies_at, bytes = g->pending * g->slot_bytes; break;
    case LANE: from = g->urgent_at, bytes = (uint64_t)g->urgent_slots * g->slot_bytes; break;
    case HEADER: bytes = sizeof(struct shmq_header); break;
    case CONTROL: from = SHMQ_CONTROL_AT, bytes = 8 * SHMQ_LINE; break;
    case PEERS:
        from = g->peers_at + below(&seed, 4) * sizeof(struct shmq_peer), bytes = 64;
        if (q->ring.is_topic && below(&seed, 2) == 0) from += 2 * SHMQ_LINE; /* cursor and subscription */
        break;
    case RECORDS: from = g->ring_at, bytes = g->ring_bytes; break;
    case WORDS: from = g->words_at, bytes = pages * 8; break;
    default: from = g->blocks_at, bytes = pages * sizeof(struct shmq_block_header); break;
    }
    uint64_t offset = from + below(&seed, bytes / 8) * 8;
    if (place == RECORDS && below(&seed, 2) == 0) /* the record that is read next */
        offset = from + (load_relaxed(&q->control->head.cursor) & (g->ring_bytes - 1) & ~UINT64_C(7));
    if (place == LANE && below(&seed, 2) == 0) /* a slot's first words, not its payload */
        offset = from + below(&seed, g->urgent_slots) * g->slot_bytes + below(&seed, 4) * 8;
    if (place == HEADERS && below(&seed, 2) == 0)
        offset = from + below(&seed, 8) * sizeof(struct shmq_block_header);
    shmq_a64 *word = (shmq_a64 *)(void *)(q->segment.base + offset);
    uint64_t before = load_relaxed(word), after = some_word(q->segment.base, before, g->total_bytes);
    store_relaxed(&last->number, number);
    store_relaxed(&last->offset, offset);
    store_relaxed(&last->before, before);
    store_relaxed(&last->after, after);
    store32_relaxed(&last->place, (uint32_t)place);
    store_relaxed(word, after);
}

static uint64_t touch(const void *data, uint64_t bytes) {
    uint64_t sum = 0;
    for (uint64_t i = 0; i < bytes; i++) sum += ((const uint8_t *)data)[i];
    return sum;
}
static volatile uint64_t sink;

static void look_at(shmq_queue *q) {
    static uint8_t buffer[BUFFER_BYTES];
    shmq_stats s;
    shmq_peer_info peers[8];
    shmq_peeked p;
    uint32_t n;
    if (note(shmq_get_stats(q, &s)) == SHMQ_OK) CHECK(s.ring_used_bytes <= s.ring_bytes);
    if (note(shmq_get_peers(q, peers, 8, &n)) == SHMQ_OK) CHECK(n <= 8);
    for (uint32_t i = 0; i < 3; i++) {
        if (note(shmq_peek(q, i, buffer, sizeof buffer, &p)) != SHMQ_OK) break;
        CHECK(p.copied_bytes <= sizeof buffer);
        sink = touch(buffer, p.copied_bytes);
    }
    (void)note(shmq_validate(q));
}

/* What a queue with leases is asked to do: take, look, settle in every way, and perhaps keep for later. */
static int lease(shmq_queue *q, shmq_message *m, int64_t deadline_ns) {
    static shmq_delivery kept;
    shmq_delivery d;
    int status = note(shmq_lease(q, m, &d, deadline_ns));
    if (status != SHMQ_OK) return status;
    switch (below(&seed, 6)) {
    case 0: kept = d; break;
    case 1: (void)note(shmq_nack(q, &d, below(&seed, 2) * (uint64_t)MS / 10)); break;
    case 2: (void)note(shmq_ack(q, &kept)); /* fall through */
    default: (void)note(shmq_ack(q, &d));
    }
    return SHMQ_OK;
}
static int get(shmq_queue *q, shmq_message *m, int64_t deadline_ns) {
    return q->pending.count > 0 ? lease(q, m, deadline_ns) : note(shmq_get(q, m, deadline_ns));
}

/* With a key where there is a window: one of a few, so that some are repeats. */
static int put(shmq_queue *q, uint64_t number, uint64_t bytes, int64_t deadline_ns) {
    static uint8_t message[LAB_MESSAGE_MAX];
    if (q->keys.count == 0 || below(&seed, 3) == 0) return note(lab_put(q, number, bytes, deadline_ns));
    message_write(message, number, bytes);
    return note(shmq_put_keyed(q, message, bytes, below(&seed, 6), deadline_ns));
}

/* Somebody in the middle of a put with a key dies; the next who repairs believes whatever is there by then. */
static void die_in_a_turn(int fd) {
    shmq_queue *q;
    struct shmq_record r;
    if (note(shmq_attach(fd, &q)) != SHMQ_OK) return;
    if (note(shmq_put_begin(q)) == SHMQ_OK && note(shmq_key_begin(q, 1 + below(&seed, 6))) == SHMQ_OK) {
        if (below(&seed, 2) == 0) shmq_keys_publishing(&q->keys);
        else if (note(shmq_try_reserve(q, 0, SHMQ_RAW, 0, &r)) == SHMQ_OK && below(&seed, 2) == 0)
            shmq_keys_publishing(&q->keys);
    }
    lab_die(q);
    lab_bury(q);
}

static void newcomer(int fd) {
    shmq_queue *q;
    if (note(shmq_attach(fd, &q)) == SHMQ_OK) {
        shmq_message m;
        look_at(q);
        if (q->ring.is_topic && below(&seed, 2) == 0) {
            (void)note(shmq_subscribe(q, 2));
            if (note(shmq_get(q, &m, SHMQ_NO_WAIT)) == SHMQ_OK) shmq_message_release(&m);
        }
        if (q->pending.count > 0) {
            if (get(q, &m, SHMQ_NO_WAIT) == SHMQ_OK) shmq_message_release(&m);
            (void)note(shmq_join(q, SHMQ_NO_WAIT));
        }
        (void)put(q, 1, 16, SHMQ_NO_WAIT);
        shmq_free(q);
    }
    if (note(shmq_observe(fd, &q)) == SHMQ_OK) {
        look_at(q);
        shmq_free(q);
    }
}

static void work(const shmq_params *params, uint64_t first, uint64_t mutations) {
    uint64_t capacity = params->arena_bytes;
    int fd = lab_object();
    shmq_queue *p = lab_create(fd, params), *c = lab_attach(fd);
    void *behind = p->segment.base + ((p->segment.geometry.total_bytes + 4095) & ~UINT64_C(4095));
    /* Whoever reads beyond the end should notice. */
    void *guard = mmap(behind, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    shmq_message held = {0};
    if (c->ring.is_topic) OK(shmq_subscribe(c, 0));
    for (uint64_t i = 0; i < mutations; i++) {
        uint64_t bytes = below(&seed, 3) == 0 ? 16 + below(&seed, capacity / 4 + 1) : 16 + below(&seed, 300);
        uint32_t repaired;
        shmq_block *b;
        shmq_message m;
        if (params->priority != 0) OK(shmq_set_priority(p, below(&seed, 2) == 0));
        (void)note(lab_put(p, i, bytes, SHMQ_NO_WAIT)); /* so that there is something to spoil */
        (void)note(lab_put(p, i, 20, SHMQ_NO_WAIT));
        mutate(p, first + i);
        if (params->priority != 0) OK(shmq_set_priority(p, below(&seed, 2) == 0));
        (void)put(p, i, 100, below(&seed, 50) == 0 ? shmq_deadline(MS / 10) : SHMQ_NO_WAIT);
        (void)put(p, i, bytes, SHMQ_NO_WAIT);
        if (p->keys.count > 0 && below(&seed, 8) == 0) die_in_a_turn(fd);
        if (note(shmq_loan(p, bytes, SHMQ_NO_WAIT, &b)) == SHMQ_OK) {
            memset(b->data, 1, b->bytes);
            if (below(&seed, 2) == 0 || note(shmq_publish(b, NULL, SHMQ_NO_WAIT)) != SHMQ_OK)
                shmq_block_release(b);
        }
        look_at(c);
        for (int k = 0; k < 4; k++) {
            int64_t deadline = below(&seed, 50) == 0 ? shmq_deadline(MS / 10) : SHMQ_NO_WAIT;
            if (get(c, &m, deadline) != SHMQ_OK) break;
            /* A slot is a whole one: what fits in-line may be more than was asked for. */
            CHECK(m.bytes <= capacity || m.bytes <= c->ring.inline_bytes);
            sink = touch(m.data, m.bytes);
            if (k == 1 && m.block != NULL) {
                shmq_message_release(&held);
                held = m;
            } else {
                shmq_message_release(&m);
            }
        }
        if (below(&seed, 4) == 0) (void)note(shmq_reap(c, &repaired));
        if (below(&seed, 8) == 0) newcomer(fd);
        if (below(&seed, 64) == 0) (void)note(shmq_shutdown(p, (int)below(&seed, 2)));
    }
    shmq_message_release(&held);
    if (guard == behind) munmap(guard, 4096);
    shmq_free(p);
    shmq_free(c);
    newcomer(fd);
    close(fd);
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    uint64_t mutations = strtoull(argv[1], NULL, 10);
    seed = strtoull(argv[2], NULL, 10) * 2 + 1;
    last = lab_shared(sizeof *last);
    pid_t pid = fork_child();
    if (pid == 0) {
        for (uint64_t i = 0; i < mutations; i += MUTATIONS_PER_SEGMENT) {
            shmq_params params = tiny;
            params.first_cursor = below(&seed, 2) == 0 ? 0 : UINT64_C(0) - 64;
            params.arena_bytes = (1 + below(&seed, 3)) * 4 * SHMQ_SMALL_PAGE;
            if (below(&seed, 8) == 0) params.arena_bytes = 0; /* then the ring ends where the segment does */
            const char *kind = getenv("LAB_KIND");
            if (kind != NULL && strcmp(kind, "lanes") == 0) {
                params.kind = SHMQ_KIND_MPMC;
                params.priority = 1;
                params.max_unacked = (uint32_t)below(&seed, 3);
            }
            if (kind != NULL && strcmp(kind, "lease") == 0) {
                params.kind = SHMQ_KIND_MPMC;
                params.max_unacked = 1 + (uint32_t)below(&seed, 6);
                params.visibility_ns = below(&seed, 2) * (uint64_t)MS / 20;
            }
            if (kind != NULL && strcmp(kind, "keys") == 0) {
                params.kind = SHMQ_KIND_MPMC;
                params.keys = 1 + (uint32_t)below(&seed, 6);
            }
            if (params.kind == SHMQ_KIND_TOPIC) {
                params.policy = (uint32_t)below(&seed, 3);
                params.history = (uint32_t)below(&seed, 3);
            }
            alarm(watchdog_s());
            work(&params, i, MUTATIONS_PER_SEGMENT);
        }
        exit(0); /* not _exit: the leak detector looks now */
    }
    int status;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    if (status != 0) {
        fprintf(stderr,
                "%s %d after mutation %" PRIu64 " (%s): the word at %#" PRIx64 " was %#" PRIx64
                " and became %#" PRIx64 "\n",
                WIFSIGNALED(status) ? "killed by signal" : "ended with",
                WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status), load_relaxed(&last->number),
                place_names[load32_relaxed(&last->place)], load_relaxed(&last->offset),
                load_relaxed(&last->before), load_relaxed(&last->after));
        return 1;
    }
    printf("%" PRIu64 " mutations;", mutations);
    for (int i = 0; i <= LAST_STATUS; i++)
        if (last->statuses[i] > 0) printf(" %s: %" PRIu64, shmq_status_text(i), last->statuses[i]);
    printf("\n");
    /* The damage must have been felt, and must not have been all there was. */
    CHECK(mutations < 1000 ||
          (last->statuses[SHMQ_OK] > mutations && last->statuses[SHMQ_CORRUPT] > mutations / 20));
    return 0;
}
