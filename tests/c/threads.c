/* Threads on one segment, for the race detector: a producer, a consumer, whoever releases, and onlookers.
 *
 * A race detector knows memory by its address, so the handles here share one mapping (lab_clone); "newcomers"
 * map for themselves.  Payloads are written and read as plain memory: every edge that makes them visible is
 * seen or missed by the detector.  Only shmq_peek is left out where one is at work: it reads what may be reused
 * under it, by design.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>

#include "lab.h"

#define MESSAGES (SANITIZED ? 4000u : 8000u)
#define PAGES_HELD 6u

static struct {
    int fd;
    shmq_queue *origin, *producer, *consumer, *onlooker;
    shmq_a32 stop;
    pthread_t threads[8];
    uint32_t started;
} lab;

static void set_up(uint32_t spin) {
    shmq_params params = {.ring_bytes = 4096,
                          .arena_bytes = 64 * SHMQ_SMALL_PAGE,
                          .inline_bytes = 1024,
                          .peers = 16,
                          .kind = lab_kind()};
    params.first_cursor = UINT64_C(0) - 4096;
    memset(&lab, 0, sizeof lab);
    lab.fd = lab_object();
    lab.origin = lab_create(lab.fd, &params);
    lab.producer = lab_clone(lab.origin);
    lab.consumer = lab_clone(lab.origin);
    lab.onlooker = lab_clone(lab.origin);
    if (spin == 0) {
        store_relaxed(&lab.producer->put.waiter.spin_ns, 0);
        store_relaxed(&lab.consumer->get.waiter.spin_ns, 0);
    }
}
static void start(void *(*run)(void *), void *argument) {
    CHECK_EQ(pthread_create(&lab.threads[lab.started++], NULL, run, argument), 0);
}
static void tear_down(void) {
    store32_release(&lab.stop, 1);
    while (lab.started > 0) pthread_join(lab.threads[--lab.started], NULL);
    lab_all_pages_free(lab.origin);
    OK(shmq_validate(lab.origin));
    lab_end_clone(lab.producer);
    lab_end_clone(lab.consumer);
    lab_end_clone(lab.onlooker);
    shmq_free(lab.origin);
    close(lab.fd);
}
static bool stopped(void) { return load32_acquire(&lab.stop) != 0; }

static uint64_t size_of(uint64_t number, bool blocks) {
    static const uint64_t sizes[] = {
        16, 100, 1024, 2000, SHMQ_SMALL_PAGE, 3 * SHMQ_SMALL_PAGE, 24, 8 * SHMQ_SMALL_PAGE};
    return blocks ? sizes[number % 8] : 16 + number % 200;
}

static void *produce(void *blocks) {
    for (uint64_t i = 0; i < MESSAGES; i++)
        OK(lab_put(lab.producer, i, size_of(i, blocks != NULL), SHMQ_FOREVER));
    return NULL;
}

/* Messages on their way from the consumer to a thread that only releases. */
static struct {
    pthread_mutex_t lock;
    shmq_message held[PAGES_HELD];
    uint32_t count;
} handed = {.lock = PTHREAD_MUTEX_INITIALIZER};

static bool hand_over(shmq_message *m) {
    pthread_mutex_lock(&handed.lock);
    bool room = handed.count < PAGES_HELD;
    if (room) handed.held[handed.count++] = *m;
    pthread_mutex_unlock(&handed.lock);
    return room;
}
static void *release(void *unused) {
    (void)unused;
    for (;;) {
        shmq_message m = {0};
        bool last = stopped();
        pthread_mutex_lock(&handed.lock);
        bool found = handed.count > 0;
        if (found) m = handed.held[--handed.count];
        pthread_mutex_unlock(&handed.lock);
        if (found) shmq_message_release(&m); /* reads nothing; the memory goes back from this thread */
        else if (last) return NULL;
        else sched_yield();
    }
}

static void consume(void) {
    for (uint64_t i = 0; i < MESSAGES; i++) {
        shmq_message m;
        OK(shmq_get(lab.consumer, &m, SHMQ_FOREVER));
        CHECK_EQ(message_number(m.data, m.bytes), i);
        if (m.block == NULL || i % 3 == 0 || !hand_over(&m)) shmq_message_release(&m);
    }
}

/* Every look must find a segment without contradictions, however fast the others are. */
static void *look(void *unused) {
    (void)unused;
    uint64_t got = 0, put = 0;
    while (!stopped()) {
        shmq_peer_info peers[16];
        uint32_t n;
        shmq_stats s = lab_stats(lab.onlooker);
        CHECK(s.messages_put >= put && s.messages_got >= got && s.messages_put >= s.messages_got);
        CHECK(s.messages_put <= MESSAGES);
        put = s.messages_put;
        got = s.messages_got;
        OK(shmq_get_peers(lab.onlooker, peers, 16, &n));
        CHECK(n >= 4);
        OK(shmq_validate(lab.onlooker));
        CHECK_EQ(lab_reap(lab.onlooker), 0);
        for (uint32_t i = 0; !SANITIZED && i < 3; i++) {
            uint8_t buffer[256];
            shmq_peeked peeked;
            int status = shmq_peek(lab.onlooker, i, buffer, sizeof buffer, &peeked);
            CHECK(status == SHMQ_OK || status == SHMQ_EMPTY); /* a message that is overtaken is not garbage */
        }
    }
    return NULL;
}

/* Handles that come and go, some without saying good-bye; their own mapping, the same process. */
static void *come_and_go(void *unused) {
    (void)unused;
    while (!stopped()) {
        shmq_queue *q = lab_attach(lab.fd);
        lab_die(q);
        lab_bury(q);
        q = lab_attach(lab.fd);
        CHECK_EQ(lab_put(q, 0, 16, SHMQ_NO_WAIT), SHMQ_ROLE_TAKEN);
        shmq_free(q);
    }
    return NULL;
}

static void run(bool blocks, bool spin, void *(*company)(void *)) {
    set_up(spin);
    OK(shmq_put_begin(lab.producer)); /* the roles are taken before company comes */
    OK(shmq_get_begin(lab.consumer));
    start(release, NULL);
    if (company != NULL) start(company, NULL);
    start(produce, blocks ? &lab : NULL);
    consume();
    tear_down();
}

TEST(inline_messages) { run(false, true, NULL); }
TEST(inline_messages_asleep) { run(false, false, NULL); }
TEST(blocks) { run(true, true, NULL); }
TEST(blocks_asleep) { run(true, false, NULL); }
TEST(blocks_beside_onlookers) { run(true, true, look); }
TEST(inline_messages_beside_onlookers) { run(false, true, look); }
TEST(blocks_beside_newcomers) { run(true, true, come_and_go); }

/* ---- many owners of one arena ---- */

struct tenant {
    struct shmq_arena arena;
    uint64_t seed;
};

/* Each writes its name into whatever it holds and must find it there until it gives it back. */
static void *rent(void *argument) {
    struct tenant *t = argument;
    enum { HELD = 4 };
    struct {
        uint64_t word;
        uint32_t page, pages;
    } held[HELD] = {{0}};
    for (uint32_t i = 0; i < 10 * MESSAGES; i++) {
        uint64_t k = below(&t->seed, HELD);
        if (held[k].word != 0) {
            for (uint32_t p = 0; p < held[k].pages; p++) {
                uint8_t *memory = shmq_arena_data(&t->arena, held[k].page) + p * (uint64_t)SHMQ_SMALL_PAGE;
                CHECK_EQ(memory[0], t->arena.owner);
            }
            OK(shmq_arena_free(&t->arena, held[k].page, held[k].word));
            held[k].word = 0;
        }
        uint32_t pages = 1 + (uint32_t)below(&t->seed, 6);
        if (shmq_arena_try_loan(&t->arena, pages * (uint64_t)SHMQ_SMALL_PAGE, &held[k].page, &held[k].word) !=
            SHMQ_OK) {
            held[k].word = 0;
            continue;
        }
        held[k].pages = pages;
        for (uint32_t p = 0; p < pages; p++)
            shmq_arena_data(&t->arena, held[k].page)[p * (uint64_t)SHMQ_SMALL_PAGE] = (uint8_t)t->arena.owner;
    }
    for (int k = 0; k < HELD; k++)
        if (held[k].word != 0) OK(shmq_arena_free(&t->arena, held[k].page, held[k].word));
    return NULL;
}

TEST(tenants_never_share_a_page) {
    static shmq_a64 words[24];
    static uint8_t memory[24 * SHMQ_SMALL_PAGE];
    struct tenant tenants[3];
    pthread_t threads[3];
    for (uint32_t i = 0; i < 3; i++) {
        tenants[i].seed = i + 1;
        tenants[i].arena = (struct shmq_arena){.words = words, .owner = i + 1};
        tenants[i].arena.small =
            (struct shmq_tier){.base = memory, .page_bytes = SHMQ_SMALL_PAGE, .pages = 24};
        tenants[i].arena.large = (struct shmq_tier){.page_bytes = SHMQ_LARGE_PAGE, .first = 24};
        CHECK_EQ(pthread_create(&threads[i], NULL, rent, &tenants[i]), 0);
    }
    for (uint32_t i = 0; i < 3; i++) pthread_join(threads[i], NULL);
    for (uint32_t i = 0; i < 24; i++) CHECK_EQ(shmq_word_state(words[i]), SHMQ_PAGE_FREE);
}

/* ---- life and death ---- */

/* Two reapers and the dead one's successor at once: it is repaired once, and put never says "taken" for long. */
static void *reap(void *handle) {
    while (!stopped()) (void)lab_reap(handle);
    return NULL;
}
TEST(a_role_is_taken_over_beside_reapers) {
    set_up(1);
    start(reap, lab.onlooker);
    start(reap, lab.origin);
    for (uint64_t i = 0; i < MESSAGES / 20; i++) {
        shmq_queue *q = lab_attach(lab.fd);
        uint64_t number;
        OK(lab_put(q, i, i % 2 == 0 ? 100 : 2 * SHMQ_SMALL_PAGE, SHMQ_NO_WAIT));
        OK(lab_get(lab.consumer, &number, SHMQ_NO_WAIT));
        CHECK_EQ(number, i);
        lab_die(q); /* with the role; reapers and the successor now meet over it */
        lab_bury(q);
    }
    tear_down();
}

/* One thread closes the handle while another waits on it, as Python's threads do: everything but the wait itself
 * happens under one lock. */
static pthread_mutex_t gil = PTHREAD_MUTEX_INITIALIZER;
static void *close_it(void *handle) {
    pthread_mutex_lock(&gil);
    shmq_close(handle);
    pthread_mutex_unlock(&gil);
    return NULL;
}
static int get_under_lock(shmq_queue *q) {
    for (;;) {
        struct shmq_record record;
        pthread_mutex_lock(&gil);
        int status = shmq_get_begin(q);
        if (status == SHMQ_OK) status = shmq_try_next(q, &record);
        if (status != SHMQ_EMPTY) {
            pthread_mutex_unlock(&gil);
            return status;
        }
        uint64_t cursor = q->get.ring.spsc.cursor;
        shmq_pin(q);
        pthread_mutex_unlock(&gil);
        status = shmq_wait_get(q, cursor, SHMQ_FOREVER);
        pthread_mutex_lock(&gil);
        shmq_unpin(q);
        pthread_mutex_unlock(&gil);
        if (status != SHMQ_OK) return status;
    }
}
TEST(closing_beside_a_wait) {
    for (uint32_t i = 0; i < MESSAGES / 40; i++) {
        int fd = lab_object();
        shmq_queue *q = lab_create(fd, &tiny);
        shmq_message held;
        pthread_t thread;
        OK(lab_put(q, 1, 5000, SHMQ_NO_WAIT));
        OK(shmq_get(q, &held, SHMQ_NO_WAIT));
        CHECK_EQ(pthread_create(&thread, NULL, close_it, q), 0);
        CHECK_EQ(get_under_lock(q), SHMQ_CLOSED);
        CHECK_EQ(message_number(held.data, held.bytes), 1);
        pthread_join(thread, NULL);
        shmq_free(q);
        shmq_message_release(&held); /* the last user: unmaps */
        close(fd);
    }
}

/* A thread forks while another attaches, or repairs.  The child has copies of all descriptors; none of them may
 * keep the dead alive, or a slot locked. */
static shmq_a32 gate;
static int64_t finished_ns;
struct task {
    shmq_queue *made, *reaper;
};
static void *attach_or_reap(void *argument) {
    struct task *task = argument;
    while (load32_acquire(&gate) == 0) cpu_relax();
    if (task->reaper == NULL) task->made = lab_attach(lab.fd);
    else CHECK_EQ(lab_reap(task->reaper), 1);
    finished_ns = shmq_now_ns();
    return NULL;
}
static pid_t fork_beside(struct task *task, uint64_t *random, int64_t *takes_ns) {
    pthread_t thread;
    store32_release(&gate, 0);
    CHECK_EQ(pthread_create(&thread, NULL, attach_or_reap, task), 0);
    int64_t began = shmq_now_ns(), fork_at = began + (int64_t)below(random, (uint64_t)(*takes_ns * 5 / 4));
    store32_release(&gate, 1);
    while (shmq_now_ns() < fork_at) cpu_relax();
    pid_t bystander = fork_child();
    while (bystander == 0) pause();
    pthread_join(thread, NULL);
    *takes_ns += (finished_ns - began - *takes_ns) / 8; /* somewhere in the middle of it is the window */
    return bystander;
}
static void let_go(pid_t bystander) {
    CHECK_EQ(kill(bystander, SIGKILL), 0);
    join_child(bystander, SIGKILL);
}
TEST(a_fork_beside_an_attach_or_a_reap_keeps_nothing_locked) {
    if (SANITIZED) return; /* forks of a process with threads are not for sanitizers */
    set_up(1);
    uint64_t random = 7;
    int64_t attach_ns = 100000, reap_ns = 50000;
    shmq_queue *others[64]; /* one entry stays vacant, so that the successor has to take the dead one's */
    size_t n = 0;
    while (shmq_attach(lab.fd, &others[n]) == SHMQ_OK) n++;
    shmq_free(others[--n]);
    for (int i = 0; i < 300; i++) {
        struct task attach = {0}, reap = {.reaper = lab.origin};
        pid_t first = fork_beside(&attach, &random, &attach_ns);
        uint32_t index = attach.made->me.index;
        lab_die(attach.made);
        CHECK_EQ(shmq_peers_alive(&lab.origin->segment, index), 0);
        pid_t second = fork_beside(&reap, &random, &reap_ns);
        shmq_queue *successor = lab_attach(lab.fd);
        CHECK_EQ(successor->me.index, index);
        shmq_free(successor);
        lab_bury(attach.made);
        let_go(first);
        let_go(second);
    }
    while (n > 0) shmq_free(others[--n]);
    tear_down();
}

int main(int argc, char **argv) { return run_tests(argc, argv); }
