/* What the machine itself can do: nothing of shmq is linked in here.
 *
 *   floors cacheline N A B        one cache line there and back, both sides spinning
 *   floors futex N A B            a futex round trip, both sides going to sleep each time
 *   floors parked N GAP_US A B    the same with GAP_US of idleness before each hop (both hops summed)
 *   floors wake N GAP_US A B      one hop of it: B has slept GAP_US when A wakes it
 *   floors touch N PAGES A        the first write to each of PAGES pages of fresh shared memory, N times
 *   floors ring N A B             the least SPSC ring: 64-byte slots, cached remote cursor
 *   floors memcpy N BYTES K A     copies from one private buffer into K warm shared ones in turn
 *   floors mutex N P C A B        a ring of 128-byte slots under a process-shared mutex, P producers, C consumers
 *
 * A and B are core numbers. Each prints one JSON line. */
#include "crowd.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>

enum { LINE = 128, SLOT_BYTES = 64, RING_SLOTS = 16384 };

/* Each word is written by one side only and lies alone on its (prefetch-pair of) cache lines. */
struct words {
    _Alignas(LINE) atomic_uint ping; /* writer: A */
    _Alignas(LINE) atomic_uint pong; /* writer: B */
};

static void cacheline_wait(atomic_uint *word, unsigned value)
{
    while (atomic_load_explicit(word, memory_order_acquire) != value)
        ;
}

static void cacheline(unsigned count, int core_a, int core_b)
{
    struct words *words = shared_memory(sizeof *words);
    unsigned warm = count / 10 + 1, last = count + warm;
    pid_t pid = fork_side_b(core_a, core_b);
    if (pid == 0) {
        for (unsigned i = 1; i <= last; i++) {
            cacheline_wait(&words->ping, i);
            atomic_store_explicit(&words->pong, i, memory_order_release);
        }
        _exit(0);
    }
    uint64_t start_ns = 0;
    for (unsigned i = 1; i <= last; i++) {
        if (i == warm + 1)
            start_ns = now_ns();
        atomic_store_explicit(&words->ping, i, memory_order_release);
        cacheline_wait(&words->pong, i);
    }
    double ns = (double)(now_ns() - start_ns) / count;
    join_side_b(pid);
    printf("{\"ns\": %.2f}\n", ns);
}

/* The syscall re-checks the word, so a wake between our load and our sleep is not lost. */
static void futex_wait(atomic_uint *word, unsigned value)
{
    for (;;) {
        unsigned seen = atomic_load_explicit(word, memory_order_acquire);
        if (seen == value)
            return;
        syscall(SYS_futex, word, FUTEX_WAIT, seen, NULL, NULL, 0);
    }
}

static void futex_wake(atomic_uint *word, unsigned value)
{
    atomic_store_explicit(word, value, memory_order_release);
    syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

/* One routine for `futex` (no gap) and `parked`. */
static void futex(unsigned count, unsigned gap_us, int core_a, int core_b)
{
    struct words *words = shared_memory(sizeof *words);
    struct hop *there = shared_memory(count * sizeof *there);
    struct hop *back = shared_memory(count * sizeof *back);
    pid_t pid = fork_side_b(core_a, core_b);
    if (pid == 0) {
        for (unsigned i = 0; i < count; i++) {
            futex_wait(&words->ping, i + 1);
            there[i].got_ns = now_ns();
            idle(gap_us);
            back[i].sent_ns = now_ns();
            futex_wake(&words->pong, i + 1);
        }
        _exit(0);
    }
    for (unsigned i = 0; i < count; i++) {
        idle(gap_us);
        there[i].sent_ns = now_ns();
        futex_wake(&words->ping, i + 1);
        futex_wait(&words->pong, i + 1);
        back[i].got_ns = now_ns();
    }
    join_side_b(pid);
    print_round_trips(there, back, count);
}

/* B answers without a wake-up, so that A is never asleep: only B's waking is in the figure. */
static void wake(unsigned count, unsigned gap_us, int core_a, int core_b)
{
    struct words *words = shared_memory(sizeof *words);
    struct hop *hops = shared_memory(count * sizeof *hops);
    pid_t pid = fork_side_b(core_a, core_b);
    if (pid == 0) {
        for (unsigned i = 0; i < count; i++) {
            futex_wait(&words->ping, i + 1);
            hops[i].got_ns = now_ns();
            atomic_store_explicit(&words->pong, i + 1, memory_order_release);
        }
        _exit(0);
    }
    for (unsigned i = 0; i < count; i++) {
        idle(gap_us);
        hops[i].sent_ns = now_ns();
        futex_wake(&words->ping, i + 1);
        while (atomic_load_explicit(&words->pong, memory_order_acquire) != i + 1)
            sched_yield(); /* where both share a core */
    }
    join_side_b(pid);
    print_hops(hops, count);
}

/* Memory of tmpfs, as shmq's: zeroed and mapped when it is touched. */
static void touch(uint64_t count, size_t pages, int core_a)
{
    pin(core_a);
    size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    uint64_t elapsed_ns = 0;
    for (uint64_t i = 0; i < count; i++) {
        int fd = memfd_create("bench", MFD_CLOEXEC);
        if (fd < 0 || ftruncate(fd, (off_t)(pages * page_bytes)) != 0)
            die("memory");
        volatile unsigned char *memory =
            mmap(NULL, pages * page_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (memory == MAP_FAILED)
            die("mmap");
        uint64_t start_ns = now_ns();
        for (size_t page = 0; page < pages; page++)
            memory[page * page_bytes] = 1;
        elapsed_ns += now_ns() - start_ns;
        munmap((void *)memory, pages * page_bytes);
        close(fd);
    }
    printf("{\"ns\": %.2f}\n", (double)elapsed_ns / (double)count / (double)pages);
}

/* Lamport's ring with the remote cursor cached (the idea of rigtorp/SPSCQueue), and nothing more:
 * no variable sizes, no waiting, no checks. The ceiling for any ring of 64-byte records. */
struct ring {
    _Alignas(LINE) atomic_ullong tail; /* writer: A */
    _Alignas(LINE) atomic_ullong head; /* writer: B */
    _Alignas(LINE) unsigned char slots[RING_SLOTS][SLOT_BYTES];
};

static void ring_consume(struct ring *ring, uint64_t total)
{
    unsigned char out[SLOT_BYTES];
    uint64_t head = 0, tail_cache = 0;
    while (head < total) {
        while (head == tail_cache)
            tail_cache = atomic_load_explicit(&ring->tail, memory_order_acquire);
        memcpy(out, ring->slots[head % RING_SLOTS], SLOT_BYTES);
        __asm__ volatile("" ::"r"(out) : "memory"); /* the copy is the work: keep it */
        atomic_store_explicit(&ring->head, ++head, memory_order_release);
    }
}

static void ring_produce(struct ring *ring, uint64_t first, uint64_t total, uint64_t *head_cache)
{
    unsigned char message[SLOT_BYTES];
    memset(message, 0x5a, sizeof message);
    for (uint64_t tail = first; tail < total; tail++) {
        while (tail - *head_cache == RING_SLOTS)
            *head_cache = atomic_load_explicit(&ring->head, memory_order_acquire);
        memcpy(ring->slots[tail % RING_SLOTS], message, SLOT_BYTES);
        atomic_store_explicit(&ring->tail, tail + 1, memory_order_release);
    }
}

static void ring(uint64_t count, int core_a, int core_b)
{
    struct ring *ring = shared_memory(sizeof *ring);
    uint64_t warm = RING_SLOTS * 2, head_cache = 0;
    pid_t pid = fork_side_b(core_a, core_b);
    if (pid == 0) {
        ring_consume(ring, warm + count);
        _exit(0);
    }
    ring_produce(ring, 0, warm, &head_cache);
    while (atomic_load_explicit(&ring->head, memory_order_acquire) != warm)
        ;
    uint64_t start_ns = now_ns();
    ring_produce(ring, warm, warm + count, &head_cache);
    while (atomic_load_explicit(&ring->head, memory_order_acquire) != warm + count)
        ;
    uint64_t elapsed_ns = now_ns() - start_ns;
    join_side_b(pid);
    printf("{\"rate_m_per_s\": %.3f}\n", (double)count * 1e3 / (double)elapsed_ns);
}

static void copy(uint64_t count, size_t bytes, size_t buffers, int core_a)
{
    pin(core_a);
    unsigned char *from = malloc(bytes);
    int fd = memfd_create("bench", MFD_CLOEXEC); /* the same tmpfs pages as /dev/shm, no name */
    if (from == NULL || fd < 0 || ftruncate(fd, (off_t)(bytes * buffers)) != 0)
        die("memory");
    unsigned char *to = mmap(NULL, bytes * buffers, PROT_READ | PROT_WRITE,
                             MAP_SHARED | MAP_POPULATE, fd, 0);
    if (to == MAP_FAILED)
        die("mmap");
    memset(from, 0x5a, bytes);
    for (size_t i = 0; i < buffers; i++)
        memcpy(to + i * bytes, from, bytes);
    uint64_t start_ns = now_ns();
    for (uint64_t i = 0; i < count; i++) {
        memcpy(to + (i % buffers) * bytes, from, bytes);
        __asm__ volatile("" ::"r"(to) : "memory");
    }
    uint64_t elapsed_ns = now_ns() - start_ns;
    printf("{\"gb_per_s\": %.4f}\n", (double)bytes * (double)count / (double)elapsed_ns);
}

/* What a program without shmq would write: one lock, two counts. Who finds it full or empty spins for about as long
 * as a message takes, then yields the core. A death under the lock is the end of it, unlike with shmq. */
enum { MUTEX_SLOTS = 8192, MUTEX_SPINS = 20 };

struct mutex_ring {
    pthread_mutex_t lock;
    _Alignas(LINE) uint64_t put, got; /* under the lock */
    _Alignas(LINE) unsigned char slots[MUTEX_SLOTS][LINE];
};

static void *mutex_join(void *object)
{
    return object;
}

static void mutex_leave(void *self)
{
    (void)self;
}

static void mutex_pause(unsigned *tries)
{
    if (++*tries % MUTEX_SPINS == 0)
        sched_yield();
    else
        relax();
}

static void mutex_put(void *self, const unsigned char *message)
{
    struct mutex_ring *ring = self;
    for (unsigned tries = 0;; mutex_pause(&tries)) {
        pthread_mutex_lock(&ring->lock);
        int room = ring->put - ring->got < MUTEX_SLOTS;
        if (room)
            memcpy(ring->slots[ring->put++ % MUTEX_SLOTS], message, MESSAGE_BYTES);
        pthread_mutex_unlock(&ring->lock);
        if (room)
            return;
    }
}

static void mutex_get(void *self, unsigned char *message)
{
    struct mutex_ring *ring = self;
    for (unsigned tries = 0;; mutex_pause(&tries)) {
        pthread_mutex_lock(&ring->lock);
        int some = ring->put != ring->got;
        if (some)
            memcpy(message, ring->slots[ring->got++ % MUTEX_SLOTS], MESSAGE_BYTES);
        pthread_mutex_unlock(&ring->lock);
        if (some)
            return;
    }
}

static void mutex(uint64_t count, const int *members, int core_a, int core_b)
{
    static const struct channel channel = {mutex_join, mutex_put, mutex_get, mutex_leave};
    struct mutex_ring *ring = shared_memory(sizeof *ring);
    pthread_mutexattr_t shared;
    if (pthread_mutexattr_init(&shared) != 0 ||
        pthread_mutexattr_setpshared(&shared, PTHREAD_PROCESS_SHARED) != 0 ||
        pthread_mutex_init(&ring->lock, &shared) != 0)
        die("mutex");
    run_crowd(&channel, ring, count, members, core_a, core_b);
}

static uint64_t number(const char *text)
{
    char *end = NULL;
    unsigned long long value = strtoull(text, &end, 10);
    if (end == text || *end != '\0') {
        fprintf(stderr, "not a number: %s\n", text);
        exit(2);
    }
    return value;
}

int main(int argc, char **argv)
{
    const char *verb = argc > 1 ? argv[1] : "";
    uint64_t count = argc > 2 ? number(argv[2]) : 0;
    if (count == 0 || count > UINT_MAX / 2) {
        fprintf(stderr, "usage: floors VERB N ... (see the head of floors.c)\n");
        return 2;
    }
    if (strcmp(verb, "cacheline") == 0 && argc == 5)
        cacheline((unsigned)count, atoi(argv[3]), atoi(argv[4]));
    else if (strcmp(verb, "futex") == 0 && argc == 5)
        futex((unsigned)count, 0, atoi(argv[3]), atoi(argv[4]));
    else if (strcmp(verb, "parked") == 0 && argc == 6)
        futex((unsigned)count, (unsigned)number(argv[3]), atoi(argv[4]), atoi(argv[5]));
    else if (strcmp(verb, "wake") == 0 && argc == 6)
        wake((unsigned)count, (unsigned)number(argv[3]), atoi(argv[4]), atoi(argv[5]));
    else if (strcmp(verb, "touch") == 0 && argc == 5)
        touch(count, number(argv[3]), atoi(argv[4]));
    else if (strcmp(verb, "ring") == 0 && argc == 5)
        ring(count, atoi(argv[3]), atoi(argv[4]));
    else if (strcmp(verb, "memcpy") == 0 && argc == 6)
        copy(count, number(argv[3]), number(argv[4]), atoi(argv[5]));
    else if (strcmp(verb, "mutex") == 0 && argc == 7)
        mutex(count, (int[]){(int)number(argv[3]), (int)number(argv[4])}, atoi(argv[5]), atoi(argv[6]));
    else {
        fprintf(stderr, "unknown verb or wrong number of arguments: %s\n", verb);
        return 2;
    }
    return 0;
}
