/* Consumers that acknowledge are killed at random moments, and producers; the ledger is exact.
 *
 *     lessees KILLS PAUSE_MS SEED LIMIT_MS
 *
 * Two producers, four consumers and two workers that are both (workers.h).  A consumer leases up to a batch, dawdles,
 * acknowledges some and gives back some, at once or for a while, and keeps some views.  Now and then a worker is
 * killed; see soak.c.
 *
 * The ledger lies outside the queue.  A consumer notes the name of each message that it was given; of one that it is
 * about to acknowledge, and that it has.  So at the end
 *     - what was put was acknowledged once, or was about to be, by a consumer that died then;
 *     - no message came after it had been acknowledged;
 *     - one that came again said so.
 *
 * Lines of the summary go to standard output, complaints to standard error. */
#define _GNU_SOURCE
#include "workers.h"

enum { PRODUCERS = 2, CONSUMERS = 4, BOTH = 2, WORKERS = PRODUCERS + CONSUMERS + BOTH, TABLE = 48 };
/* In the ledger's bytes. */
enum { CAME = 1, ACKED = 2, PERHAPS_ACKED = 4 };

static struct notes {
    shmq_a64 taken, again, acked, in_dead_hands;
    shmq_a64 acking[WORKERS]; /* the message that it is about to acknowledge, or 0 */
} *notes;
static _Atomic uint8_t *ledger;

static _Atomic uint8_t *entry_of(uint64_t number) {
    CHECK(number >> 16 < most_lives);
    return &ledger[number];
}

/* ---- a worker ---- */

struct leased {
    shmq_message m;
    shmq_delivery d;
    uint64_t number;
    bool later;
};

static int take(struct worker *w, struct leased *l, int64_t deadline_ns) {
    int status = shmq_lease(w->q, &l->m, &l->d, deadline_ns);
    if (status != SHMQ_OK) return status;
    l->later = false;
    l->number = message_number(l->m.data, l->m.bytes);
    uint8_t before = atomic_fetch_or(entry_of(l->number), CAME);
    if ((before & ACKED) != 0) {
        fprintf(stderr, "message %" PRIu64 " came after it had been acknowledged\n", l->number);
        _exit(1);
    }
    if ((before & CAME) != 0 && l->d.deliveries < 2) {
        fprintf(stderr, "message %" PRIu64 " came again and does not say so\n", l->number);
        _exit(1);
    }
    (void)atomic_fetch_add(&notes->taken, 1);
    (void)atomic_fetch_add(&notes->again, l->d.deliveries > 1);
    return SHMQ_OK;
}

static void settle(struct worker *w, const struct leased *l, uint32_t index) {
    if (below(&w->random, 8) == 0) {
        OK(shmq_nack(w->q, &l->d, below(&w->random, 2) * below(&w->random, 5 * (uint64_t)MS)));
        return;
    }
    store_release(&notes->acking[index], l->number);
    OK(shmq_ack(w->q, &l->d));
    if ((atomic_fetch_or(entry_of(l->number), ACKED) & ACKED) != 0) {
        fprintf(stderr, "message %" PRIu64 " was acknowledged twice\n", l->number);
        _exit(1);
    }
    store_release(&notes->acking[index], 0);
    (void)atomic_fetch_add(&notes->acked, 1);
}

static void get_something(struct worker *w, uint32_t index) {
    struct leased got[KEEP];
    uint64_t n = 0, wanted = 1 + below(&w->random, KEEP);
    int64_t deadline = shmq_deadline(PATIENCE_NS);
    int status = SHMQ_OK;
    while (n < wanted && (status = take(w, &got[n], n == 0 ? deadline : SHMQ_NO_WAIT)) == SHMQ_OK) n++;
    CHECK(status == SHMQ_OK || status == SHMQ_EMPTY || status == SHMQ_UNACKED_FULL ||
          status == SHMQ_ARENA_FULL);
    if (status != SHMQ_OK) let_all_go(w); /* what we keep may be in somebody's way */
    for (uint64_t i = 0; i < n; i++) {
        dawdle(w);
        if (below(&w->random, 2) == 0) settle(w, &got[i], index);
        else got[i].later = true;
        keep(w, &got[i].m);
    }
    for (uint64_t i = 0; i < n; i++)
        if (got[i].later) settle(w, &got[i], index);
}

static void work(uint32_t index, uint64_t random) {
    struct worker w = {.q = lab_attach(fd), .random = random, .seldom = 64};
    bool puts = index < PRODUCERS || index >= PRODUCERS + CONSUMERS, gets = index >= PRODUCERS;
    begin_life(&w);
    while (!over()) {
        alarm(watchdog_s());
        if (puts && (!gets || below(&w.random, 2) == 0)) put_something(&w);
        else get_something(&w, index);
        dawdle(&w);
    }
    let_all_go(&w);
    shmq_free(w.q);
}

/* ---- the one who kills ---- */

static void strike(uint32_t i) {
    struct death *d = choose_death(i);
    find_entry(pids[i], d);
    d->killed_ns = kill_it(pids[i]);
    if (d->index == UINT32_MAX) find_entry(pids[i], d); /* it had just come */
    uint64_t number = load_acquire(&notes->acking[i]);
    if (number != 0 && (atomic_fetch_or(entry_of(number), PERHAPS_ACKED) & ACKED) == 0)
        (void)atomic_fetch_add(&notes->in_dead_hands, 1);
    store_release(&notes->acking[i], 0); /* for the next one */
    replace(i);
}

static void after_repair(uint32_t i) {
    uint32_t left = shmq_pending_unacked_by(&q->pending, deaths[i].index);
    bool is_taken = (load_acquire(&q->segment.peers[deaths[i].index].word) & 0xff) == SHMQ_PEER_LIVE;
    if (left > 0 && !is_taken) complain("the dead still have %u messages after their repair", left);
}

/* ---- the end ---- */

static void drain(void) {
    struct worker w = {.q = q};
    struct leased l;
    shmq_stats s;
    while ((s = lab_stats(q)), s.waiting_again > 0 || s.messages_put > s.messages_got) {
        int status = take(&w, &l, shmq_deadline(1000 * MS)); /* for what was given back for a while */
        if (status != SHMQ_OK) {
            complain("the rest does not come: %s", shmq_status_text(status));
            return;
        }
        OK(shmq_ack(q, &l.d));
        (void)atomic_fetch_or(entry_of(l.number), ACKED);
        shmq_message_release(&l.m);
    }
    if (shmq_join(q, SHMQ_NO_WAIT) != SHMQ_OK) complain("%" PRIu64 " are still unacknowledged", s.unacked);
}

static void check_ledger(void) {
    uint64_t begun = load_acquire(&lives->begun);
    for (uint64_t life = 0; life < begun; life++) {
        uint64_t intended = load_acquire(&lives->life[life].intended);
        uint64_t put = load_acquire(&lives->life[life].put);
        for (uint64_t sequence = 1; sequence < SEQUENCES; sequence++) {
            uint8_t found = *entry_of(life << 16 | sequence);
            if (sequence > intended && found == 0) break;
            if (sequence > intended) complain("message %" PRIu64 " was never put, and came", sequence);
            if (sequence <= put && (found & (ACKED | PERHAPS_ACKED)) == 0)
                complain("message %" PRIu64 " of life %" PRIu64 " is lost", sequence, life);
        }
    }
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    uint64_t wanted = strtoull(argv[1], NULL, 10), limit_ms = strtoull(argv[4], NULL, 10);
    seed = strtoull(argv[3], NULL, 10) * 2 + 1;
    shmq_params params = {.ring_bytes = 16 * 512,
                          .arena_bytes = 3 << 20,
                          .inline_bytes = INLINE_BYTES,
                          .first_cursor = UINT64_C(0) - 1000,
                          .peers = 4 * WORKERS,
                          .kind = SHMQ_KIND_MPMC,
                          .max_unacked = TABLE};
    fd = lab_object();
    open_lives(wanted);
    notes = lab_shared(sizeof *notes);
    /* Untouched pages take no memory. */
    ledger = mmap(NULL, most_lives * SEQUENCES, PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(ledger != MAP_FAILED);
    room_for(&at_once, wanted + WORKERS);
    room_for(&by_survivors, wanted + WORKERS);
    q = lab_create(fd, &params);
    for (uint32_t i = 0; i < WORKERS; i++) start(i);
    kill_many(WORKERS, wanted, strtoull(argv[2], NULL, 10) * (uint64_t)MS);
    store32_release(&lives->ending, 1);
    join_mortals(WORKERS);
    (void)lab_reap(q);
    drain();
    shmq_stats s = lab_stats(q);
    check_nobody_holds(&s);
    check_ledger();
    printf("leases: SIGKILL of random workers of %d, at random moments\t%" PRIu64 " kills; %" PRIu64
           " deliveries, %" PRIu64 " of them again, %" PRIu64 " acknowledged, %" PRIu64
           " perhaps, by the dead\t%" PRIu64 "\n",
           WORKERS, kills, load_relaxed(&notes->taken), load_relaxed(&notes->again),
           load_relaxed(&notes->acked), load_relaxed(&notes->in_dead_hands), failures);
    say_times("leases: death to repair, replaced at once", &at_once, limit_ms);
    say_times("leases: death to repair, no newcomer", &by_survivors, limit_ms);
    shmq_free(q);
    return failures != 0;
}
