/* A segment's geometry and the handshake: who is believed, and who is not. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <sys/resource.h>

#include "lab.h"

#define MIB (UINT64_C(1) << 20)

static struct shmq_header *header_of(shmq_queue *q) { return (struct shmq_header *)(void *)q->segment.base; }

static int attach_status(int fd) {
    shmq_queue *q;
    int status = shmq_attach(fd, &q);
    if (status == SHMQ_OK) shmq_free(q);
    return status;
}

static int create_status(const shmq_params *params) {
    shmq_queue *q;
    int fd = lab_object();
    int status = shmq_create(fd, params, &q);
    if (status == SHMQ_OK) shmq_free(q);
    close(fd);
    return status;
}

/* Worked out by hand: see the drawing in layout.h. */
TEST(every_offset_is_where_the_drawing_says) {
    static const struct {
        shmq_params params;
        uint64_t ring_bytes, ring_at, words_at, blocks_at, small_at, large_at, total;
        uint32_t small_pages, large_pages;
    } cases[] = {
        /* clang-format off */
        /* 1 MiB ring, 32 MiB arena, 64 peers: control ends at 5248, the table at 5248 + 65536 */
        {{MIB, 32 * MIB, 0, 8192, 64, SHMQ_KIND_SPSC, 0}, MIB, 73728, 1122304, 1126528, 1196032, 10485760, 44040192, 512, 16},
        /* the smallest: a ring of one page, no arena, one peer */
        {{0, 0, 0, 8, 1, SHMQ_KIND_SPSC, 0}, 4096, 8192, 12288, 12288, 12288, 12288, 12288, 0, 0},
        /* just below the large tier */
        {{5000, 4 * MIB - 1, 0, 64, 2, SHMQ_KIND_SPSC, 0}, 8192, 8192, 16384, 18432, 53248, 4247552, 4247552, 256, 0},
        /* and just in it */
        {{5000, 4 * MIB, 0, 64, 2, SHMQ_KIND_SPSC, 0}, 8192, 8192, 16384, 17024, 28672, 2 * MIB, 6 * MIB, 64, 2},
        /* slots of 512 bytes, 2,048 of them */
        {{MIB, 0, 0, 480, 64, SHMQ_KIND_MPMC, 0}, MIB, 73728, 1122304, 1122304, 1122304, 1122304, 1122304, 0, 0},
        /* 384 bytes each: 16 of them, since 8 are less than a page */
        {{0, 0, 0, 300, 1, SHMQ_KIND_MPMC, 0}, 6144, 8192, 16384, 16384, 16384, 16384, 16384, 0, 0},
        /* clang-format on */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int fd = lab_object();
        shmq_queue *q = lab_create(fd, &cases[i].params);
        const struct shmq_geometry *g = &header_of(q)->geometry;
        CHECK_EQ(g->ring_bytes, cases[i].ring_bytes);
        CHECK_EQ(g->peers_at, 5248);
        CHECK_EQ(g->ring_at, cases[i].ring_at);
        CHECK_EQ(g->words_at, cases[i].words_at);
        CHECK_EQ(g->blocks_at, cases[i].blocks_at);
        CHECK_EQ(g->small_at, cases[i].small_at);
        CHECK_EQ(g->large_at, cases[i].large_at);
        CHECK_EQ(g->total_bytes, cases[i].total);
        CHECK_EQ(g->small_pages, cases[i].small_pages);
        CHECK_EQ(g->large_pages, cases[i].large_pages);
        struct stat st;
        CHECK_EQ(fstat(fd, &st), 0);
        CHECK_EQ(st.st_size, cases[i].total);
        CHECK_EQ((uint64_t)st.st_blocks * 512 >= cases[i].total, 1); /* reserved, not only promised */
        CHECK_EQ((uintptr_t)q->segment.base % (2 * MIB), 0);
        shmq_free(q);
        close(fd);
    }
}

TEST(sizes_out_of_range_are_refused) {
    static const shmq_params bad[] = {
        {(1 << 30) + 1, 0, 0, 64, 1, SHMQ_KIND_SPSC, 0},        /* a ring beyond 1 GiB */
        {4096, UINT64_C(1) << 39, 0, 64, 1, SHMQ_KIND_SPSC, 0}, /* an arena beyond 2^24 small pages */
        {4096, UINT64_MAX, 0, 64, 1, SHMQ_KIND_SPSC, 0},
        {UINT64_MAX, 0, 0, 64, 1, SHMQ_KIND_SPSC, 0},
        {4096, 0, 0, 7, 1, SHMQ_KIND_SPSC, 0},    /* a block's handle would not fit in-line */
        {4096, 0, 0, 1025, 1, SHMQ_KIND_SPSC, 0}, /* more than a quarter of the ring */
        {4096, 0, 0, UINT32_MAX, 1, SHMQ_KIND_SPSC, 0},
        {4096, 0, 0, 64, 0, SHMQ_KIND_SPSC, 0},
        {4096, 0, 0, 64, 4096, SHMQ_KIND_SPSC, 0},
        {4096, 0, 0, 64, 1, 0, 0}, /* no kind */
        {4096, 0, 0, 64, 1, 4, 0},
        {4096, 0, 0, 64, 1, SHMQ_KIND_MPMC, SHMQ_EVICT}, /* only topics have a policy, and a history */
        {4096, 0, 0, 64, 1, SHMQ_KIND_SPSC, .history = 1},
        {4096, 0, 0, 64, 1, SHMQ_KIND_TOPIC, SHMQ_EVICT + 1},
        {4096, 0, 0, 96, 1, SHMQ_KIND_TOPIC, .history = 17}, /* more than half of 32 slots */
        {4096, 0, 0, 64, 52, SHMQ_KIND_TOPIC, 0},            /* more peers than bits */
        {4096, 0, 0, UINT32_MAX, 1, SHMQ_KIND_MPMC, 0},
        {UINT64_C(1) << 30, 0, 0, 4096, 1, SHMQ_KIND_MPMC,
         0}, /* a power of two of slots is more than 1 GiB */
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) CHECK_EQ(create_status(&bad[i]), SHMQ_INVALID);
}

TEST(nothing_is_built_over_something) {
    int fd = lab_object();
    shmq_queue *q;
    CHECK_EQ(write(fd, "precious", 8), 8);
    CHECK_EQ(shmq_create(fd, &tiny, &q), SHMQ_INVALID);
    char text[9] = "";
    CHECK_EQ(pread(fd, text, 8, 0), 8);
    CHECK(strcmp(text, "precious") == 0);
    close(fd);
}

TEST(out_of_space_is_an_answer_and_no_sigbus) {
    pid_t pid = fork_child();
    if (pid == 0) {
        struct rlimit limit = {64 << 10, 64 << 10};
        signal(SIGXFSZ, SIG_IGN);
        CHECK_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
        CHECK_EQ(create_status(&tiny), SHMQ_OUT_OF_SPACE);
        _exit(0);
    }
    join_child(pid, 0);
}

TEST(only_a_private_plain_file_is_believed) {
    int fd = lab_object(), pipe_ends[2];
    shmq_queue *q = lab_create(fd, &tiny), *other;
    for (mode_t mode = 0601; mode < 0700; mode++) {
        CHECK_EQ(fchmod(fd, mode), 0);
        CHECK_EQ(attach_status(fd), (mode & 077) != 0 ? SHMQ_WRONG_OWNER : SHMQ_OK);
    }
    CHECK_EQ(pipe(pipe_ends), 0);
    CHECK_EQ(shmq_attach(pipe_ends[0], &other), SHMQ_NOT_A_SEGMENT);
    CHECK_EQ(shmq_attach(-1, &other), SHMQ_SYSTEM);
    CHECK_EQ(errno, EBADF);
    close(pipe_ends[0]);
    close(pipe_ends[1]);
    shmq_free(q);
    close(fd);
}

TEST(an_unfinished_segment_is_not_ready) {
    int fd = lab_object();
    CHECK_EQ(attach_status(fd), SHMQ_NOT_READY); /* its creator has not sized it yet */
    CHECK_EQ(ftruncate(fd, 5119), 0);
    CHECK_EQ(attach_status(fd), SHMQ_NOT_A_SEGMENT);
    CHECK_EQ(ftruncate(fd, 1 << 20), 0);
    CHECK_EQ(attach_status(fd), SHMQ_NOT_READY); /* no magic */
    close(fd);
}

TEST(a_header_must_be_ours_in_every_field) {
    int fd = lab_object();
    shmq_queue *q = lab_create(fd, &tiny);
    struct shmq_header *h = header_of(q), good;
    memcpy(&good, h, sizeof good);
    CHECK_EQ(h->magic, SHMQ_MAGIC);
    store_release(&h->magic, SHMQ_MAGIC + 1);
    CHECK_EQ(attach_status(fd), SHMQ_NOT_A_SEGMENT);
    store_release(&h->magic, SHMQ_MAGIC);
    h->fingerprint ^= 1;
    CHECK_EQ(attach_status(fd), SHMQ_ABI_MISMATCH);
    h->fingerprint ^= 1;
    h->kind = 4;
    CHECK_EQ(attach_status(fd), SHMQ_ABI_MISMATCH);
    h->kind = SHMQ_KIND_SPSC;
    h->flags = SHMQ_EVICT; /* a policy, and no topic */
    CHECK_EQ(attach_status(fd), SHMQ_ABI_MISMATCH);
    h->flags = 0;
    h->kind = SHMQ_KIND_MPMC; /* but the geometry is a byte ring's */
    CHECK_EQ(attach_status(fd), SHMQ_NOT_A_SEGMENT);
    h->kind = SHMQ_KIND_SPSC;
    /* Every bit of every offset and size (total_bytes ... ring_bytes), and of the counts that matter here. */
    uint64_t *words = &h->geometry.total_bytes;
    for (size_t i = 0; i < 8; i++) {
        for (int bit = 0; bit < 64; bit++) {
            words[i] ^= UINT64_C(1) << bit;
            CHECK_EQ(attach_status(fd), SHMQ_NOT_A_SEGMENT);
            words[i] ^= UINT64_C(1) << bit;
        }
    }
    uint32_t *halves[] = {&h->geometry.peers, &h->geometry.small_pages, &h->geometry.large_pages};
    for (size_t i = 0; i < 3; i++) {
        for (int bit = 0; bit < 32; bit++) {
            uint32_t was = *halves[i];
            *halves[i] ^= UINT32_C(1) << bit;
            /* The table of peers ends with a rounding, so some other counts give the same offsets. */
            int status = attach_status(fd);
            CHECK(status == SHMQ_NOT_A_SEGMENT || (i == 0 && status == SHMQ_OK));
            *halves[i] = was;
        }
    }
    CHECK(memcmp(&good, h, sizeof good) == 0);
    OK(attach_status(fd));
    CHECK_EQ(ftruncate(fd, (off_t)good.geometry.total_bytes - 4096), 0);
    CHECK_EQ(attach_status(fd), SHMQ_NOT_A_SEGMENT);
    CHECK_EQ(ftruncate(fd, (off_t)good.geometry.total_bytes), 0);
    shmq_free(q);
    close(fd);
}

/* The geometry is read once: what happens to it later changes nothing. */
TEST(a_geometry_that_changes_later_is_not_looked_at) {
    int fd = lab_object();
    shmq_queue *q = lab_create(fd, &tiny);
    memset(&header_of(q)->geometry, 0xff, sizeof(struct shmq_geometry));
    uint64_t number;
    OK(lab_put(q, 1, 100, SHMQ_NO_WAIT));
    OK(lab_put(q, 2, 5000, SHMQ_NO_WAIT));
    OK(lab_get(q, &number, SHMQ_NO_WAIT));
    OK(lab_get(q, &number, SHMQ_NO_WAIT));
    CHECK_EQ(number, 2);
    OK(shmq_validate(q));
    shmq_free(q);
    close(fd);
}

TEST(cursors_start_where_the_creator_says) {
    shmq_params params = tiny;
    params.first_cursor = UINT64_C(0) - 13; /* rounded down to 8 */
    int fd = lab_object();
    shmq_queue *q = lab_create(fd, &params);
    CHECK_EQ(load_relaxed(&q->control->tail.cursor), UINT64_C(0) - 16);
    CHECK_EQ(load_relaxed(&q->control->head.cursor), UINT64_C(0) - 16);
    CHECK_EQ(lab_stats(q).messages_put, 0);
    shmq_free(q);
    close(fd);
}

TEST(an_onlooker_cannot_write) {
    int fd = lab_object();
    shmq_queue *q = lab_create(fd, &tiny), *onlooker;
    OK(lab_put(q, 7, 5000, SHMQ_NO_WAIT));
    OK(shmq_observe(fd, &onlooker));
    shmq_message m;
    shmq_block *b;
    uint32_t n;
    CHECK_EQ(shmq_put(onlooker, "x", 1, SHMQ_NO_WAIT), SHMQ_INVALID);
    CHECK_EQ(shmq_get(onlooker, &m, SHMQ_NO_WAIT), SHMQ_INVALID);
    CHECK_EQ(shmq_loan(onlooker, 1, SHMQ_NO_WAIT, &b), SHMQ_INVALID);
    CHECK_EQ(shmq_reap(onlooker, &n), SHMQ_INVALID);
    CHECK_EQ(shmq_shutdown(onlooker, 1), SHMQ_INVALID);
    CHECK_EQ(lab_stats(onlooker).messages_put, 1);
    OK(shmq_validate(onlooker));
    uint8_t buffer[5000];
    shmq_peeked p;
    OK(shmq_peek(onlooker, 0, buffer, sizeof buffer, &p));
    CHECK_EQ(p.in_block, 1);
    CHECK_EQ(p.copied_bytes, 5000);
    CHECK_EQ(message_number(buffer, p.copied_bytes), 7);
    shmq_peer_info peers[8];
    OK(shmq_get_peers(onlooker, peers, 8, &n));
    CHECK_EQ(n, 1);
    CHECK_EQ(peers[0].alive, 1);
    pid_t pid = fork_child(); /* the mapping itself is read-only */
    if (pid == 0) {
        signal(SIGSEGV, SIG_DFL);
        *(volatile uint8_t *)onlooker->segment.base = 1;
        _exit(0);
    }
    join_child(pid, SIGSEGV);
    shmq_free(onlooker);
    shmq_free(q);
    close(fd);
}

TEST(handles_leave_no_descriptor_and_no_mapping) {
    char before[4096], after[4096];
    for (int round = 0; round < 3; round++) {
        int fd = lab_object();
        shmq_queue *a = lab_create(fd, &tiny), *b = lab_attach(fd), *c;
        OK(shmq_observe(fd, &c));
        OK(lab_put(a, 1, 5000, SHMQ_NO_WAIT));
        uint64_t number;
        OK(lab_get(b, &number, SHMQ_NO_WAIT));
        shmq_free(a);
        shmq_free(b);
        shmq_free(c);
        close(fd);
        memcpy(before, after, sizeof before);
        memset(after, 0, sizeof after);
        for (int i = 0, n = 0; i < 256; i++)
            if (fcntl(i, F_GETFD) >= 0) after[n++] = (char)i;
        FILE *maps = fopen("/proc/self/maps", "r");
        CHECK(maps != NULL);
        char line[512];
        while (fgets(line, sizeof line, maps) != NULL) CHECK(strstr(line, "shmq-lab") == NULL);
        fclose(maps);
    }
    CHECK(memcmp(before, after, sizeof before) == 0);
}

int main(int argc, char **argv) { return run_tests(argc, argv); }
