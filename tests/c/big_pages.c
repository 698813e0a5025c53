/* A kernel with pages of 64 KiB, as aarch64 may have: it refuses addresses and offsets that are not multiples of
 * them.  Linked so that the core's calls come here first (variant big_pages in c_build.py). */
#define _GNU_SOURCE
#include <errno.h>

#include "lab.h"

#define BIG UINT64_C(65536)

void *__real_mmap(void *at, size_t bytes, int protection, int flags, int fd, off_t offset);
int __real_munmap(void *at, size_t bytes);
int __real_madvise(void *at, size_t bytes, int advice);
long __real_sysconf(int name);
void *__wrap_mmap(void *at, size_t bytes, int protection, int flags, int fd, off_t offset);
int __wrap_munmap(void *at, size_t bytes);
int __wrap_madvise(void *at, size_t bytes, int advice);
long __wrap_sysconf(int name);

static uint64_t up(uint64_t n) { return (n + BIG - 1) / BIG * BIG; }

static int refuse(void) {
    errno = EINVAL;
    return -1;
}

void *__wrap_mmap(void *at, size_t bytes, int protection, int flags, int fd, off_t offset) {
    if ((uint64_t)offset % BIG != 0 || (uintptr_t)at % BIG != 0) return refuse(), MAP_FAILED;
    if ((flags & MAP_FIXED) != 0) return __real_mmap(at, up(bytes), protection, flags, fd, offset);
    /* Somewhere: a hole that is large enough to have an aligned place in it. */
    uint8_t *hole =
        __real_mmap(NULL, up(bytes) + BIG, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (hole == MAP_FAILED) return MAP_FAILED;
    uint8_t *place = (uint8_t *)(uintptr_t)up((uintptr_t)hole), *end = hole + up(bytes) + BIG;
    if (place > hole) CHECK_EQ(__real_munmap(hole, (size_t)(place - hole)), 0);
    if (place + up(bytes) < end)
        CHECK_EQ(__real_munmap(place + up(bytes), (size_t)(end - place) - up(bytes)), 0);
    return __real_mmap(place, up(bytes), protection, flags | MAP_FIXED, fd, offset);
}

int __wrap_munmap(void *at, size_t bytes) {
    return (uintptr_t)at % BIG != 0 ? refuse() : __real_munmap(at, up(bytes));
}

int __wrap_madvise(void *at, size_t bytes, int advice) {
    return (uintptr_t)at % BIG != 0 ? refuse() : __real_madvise(at, up(bytes), advice);
}

long __wrap_sysconf(int name) { return name == _SC_PAGESIZE ? (long)BIG : __real_sysconf(name); }

/* Bytes of address space that are mapped. */
static uint64_t mapped(void) {
    char line[512];
    uint64_t from, to, sum = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    CHECK(maps != NULL);
    while (fgets(line, sizeof line, maps) != NULL)
        if (strstr(line, "[heap]") == NULL && sscanf(line, "%" SCNx64 "-%" SCNx64, &from, &to) == 2)
            sum += to - from;
    fclose(maps);
    return sum;
}

static void one_life(const shmq_params *params) {
    uint64_t number;
    int fd = lab_object();
    shmq_queue *q = lab_create(fd, params), *other = lab_attach(fd);
    OK(lab_put(q, 1, 100, SHMQ_NO_WAIT));
    OK(lab_put(q, 2, 3 * SHMQ_SMALL_PAGE, SHMQ_NO_WAIT));
    for (uint64_t i = 1; i <= 2; i++) {
        OK(lab_get(other, &number, SHMQ_NO_WAIT));
        CHECK_EQ(number, i);
    }
    CHECK_EQ(shmq_peers_alive(&q->segment, other->me.index), 1);
    uint32_t index = other->me.index;
    lab_die(other);
    CHECK_EQ(shmq_peers_alive(&q->segment, index), 0);
    CHECK_EQ(lab_reap(q), 1);
    lab_bury(other);
    shmq_free(q);
    close(fd);
}

TEST(a_queue_lives_and_leaves_no_mapping) {
    static const uint64_t arenas[] = {5 * SHMQ_SMALL_PAGE, 6 << 20};
    static const uint32_t kinds[] = {SHMQ_KIND_SPSC, SHMQ_KIND_MPMC};
    for (int i = 0; i < 4; i++) {
        shmq_params params = tiny;
        params.arena_bytes = arenas[i / 2];
        params.kind = kinds[i % 2];
        one_life(&params); /* what is mapped once stays */
        uint64_t before = mapped();
        one_life(&params);
        CHECK_EQ(mapped(), before);
    }
}

int main(int argc, char **argv) { return run_tests(argc, argv); }
