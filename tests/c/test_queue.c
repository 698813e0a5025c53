/* The public interface (shmq.h), as a C worker sees it. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>

#include "lab.h"

#define PAGE SHMQ_SMALL_PAGE

static int fd;
static shmq_queue *q;

static void open_with(const shmq_params *params) {
    fd = lab_object();
    q = lab_create(fd, params);
}
static void open_tiny(void) { open_with(&tiny); }
static void shut(void) {
    OK(shmq_validate(q));
    lab_all_pages_free(q);
    shmq_free(q);
    close(fd);
}

/* To the last byte: 256 records of 16. */
static void fill_ring(void) {
    while (shmq_put(q, "12345678", 8, SHMQ_NO_WAIT) == SHMQ_OK) continue;
    CHECK_EQ(lab_stats(q).ring_used_bytes, 4096);
}

static void drain(void) {
    shmq_message m;
    while (shmq_get(q, &m, SHMQ_NO_WAIT) == SHMQ_OK) shmq_message_release(&m);
}

static uint64_t get_number(void) {
    uint64_t number;
    OK(lab_get(q, &number, SHMQ_NO_WAIT));
    return number;
}

TEST(every_size_arrives_as_it_was_sent) {
    open_tiny();
    static const uint64_t sizes[] = {16,   17,       1023,     1024,     1025,          PAGE - 1,
                                     PAGE, PAGE + 1, 2 * PAGE, 5 * PAGE, 16 * PAGE - 1, 16 * PAGE};
    for (int round = 0; round < 20; round++) {
        for (uint64_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            shmq_message m;
            OK(lab_put(q, i, sizes[i], SHMQ_NO_WAIT));
            OK(shmq_get(q, &m, SHMQ_NO_WAIT));
            CHECK_EQ(m.bytes, sizes[i]);
            CHECK_EQ(m.codec, SHMQ_RAW);
            CHECK_EQ(m.meta_bytes, 0);
            CHECK_EQ(m.block != NULL, sizes[i] > 1024);
            if (m.block != NULL) CHECK_EQ((uintptr_t)m.data % 4096, 0);
            CHECK_EQ(message_number(m.data, m.bytes), i);
            shmq_message_release(&m);
            CHECK(m.data == NULL);
            shmq_message_release(&m); /* again: nothing */
        }
    }
    shut();
}

TEST(empty_messages_are_messages) {
    open_tiny();
    shmq_message m;
    uint64_t done;
    OK(shmq_put(q, NULL, 0, SHMQ_NO_WAIT));
    OK(shmq_put_many(q, NULL, 0, 3, SHMQ_NO_WAIT, &done));
    CHECK_EQ(done, 3);
    for (int i = 0; i < 4; i++) {
        OK(shmq_get(q, &m, SHMQ_NO_WAIT));
        CHECK_EQ(m.bytes, 0);
    }
    CHECK_EQ(shmq_get(q, &m, SHMQ_NO_WAIT), SHMQ_EMPTY);
    shut();

    shmq_params narrow = tiny; /* a tensor's header alone is too long to lie in this ring */
    narrow.inline_bytes = 8;
    open_with(&narrow);
    shmq_tensor nothing = {.dtype = SHMQ_UINT8, .order = 'C', .ndim = 1};
    OK(shmq_put_tensor(q, NULL, 0, &nothing, SHMQ_NO_WAIT));
    OK(shmq_get(q, &m, SHMQ_NO_WAIT));
    CHECK_EQ(m.bytes, 0);
    CHECK_EQ(m.tensor.ndim, 1);
    shmq_message_release(&m);
    shut();
}

TEST(tensors_carry_their_header) {
    open_tiny();
    static const uint64_t sizes[] = {0, 8, 800, 1016, 1024, 5000};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        shmq_tensor t = {.dtype = SHMQ_FLOAT64, .order = 'F', .ndim = 2, .flags = SHMQ_FROM_TORCH};
        t.shape[0] = sizes[i] / 8;
        t.shape[1] = 1;
        uint8_t data[5000];
        memset(data, (int)i, sizeof data);
        OK(shmq_put_tensor(q, data, sizes[i], &t, SHMQ_NO_WAIT));
        shmq_message m;
        OK(shmq_get(q, &m, SHMQ_NO_WAIT));
        CHECK_EQ(m.codec, SHMQ_TENSOR);
        CHECK_EQ(m.bytes, sizes[i]);
        CHECK_EQ(m.meta_bytes, sizeof t);
        CHECK(memcmp(&m.tensor, &t, sizeof t) == 0);
        CHECK(memcmp(m.data, data, sizes[i]) == 0);
        shmq_message_release(&m);
    }
    shmq_tensor bad[] = {{.dtype = 0, .order = 'C'},
                         {.dtype = 21, .order = 'C'},
                         {.dtype = 1, .order = 'c'},
                         {.dtype = 1, .order = 'C', .ndim = 12}};
    for (size_t i = 0; i < 4; i++) CHECK_EQ(shmq_put_tensor(q, "x", 1, &bad[i], SHMQ_NO_WAIT), SHMQ_INVALID);
    shut();
}

TEST(arguments_are_checked) {
    open_tiny();
    uint64_t done;
    shmq_message m;
    shmq_queue *none;
    CHECK_EQ(shmq_put(NULL, "x", 1, 0), SHMQ_INVALID);
    CHECK_EQ(shmq_put(q, NULL, 1, 0), SHMQ_INVALID);
    CHECK_EQ(shmq_put_many(q, NULL, 1, 1, 0, &done), SHMQ_INVALID);
    CHECK_EQ(shmq_put_many(q, "x", 1025, 1, 0, &done), SHMQ_TOO_LARGE);
    CHECK_EQ(shmq_get(NULL, &m, 0), SHMQ_INVALID);
    CHECK_EQ(shmq_get(q, NULL, 0), SHMQ_INVALID);
    CHECK_EQ(shmq_publish(NULL, NULL, 0), SHMQ_INVALID);
    CHECK_EQ(shmq_put_tensor(q, "x", 1, NULL, 0), SHMQ_INVALID);
    CHECK_EQ(shmq_open(NULL, &none), SHMQ_INVALID);
    CHECK_EQ(shmq_open("", &none), SHMQ_INVALID);
    CHECK_EQ(shmq_open("a/b", &none), SHMQ_INVALID);
    CHECK_EQ(shmq_open("a-segment-that-nobody-made", &none), SHMQ_SYSTEM);
    CHECK_EQ(errno, ENOENT);
    char name[300];
    memset(name, 'x', sizeof name);
    name[299] = '\0';
    CHECK_EQ(shmq_open(name, &none), SHMQ_INVALID);
    shmq_free(NULL);
    shmq_close(NULL);
    shmq_block_release(NULL);
    shmq_message_release(NULL);
    for (int i = -3; i < 30; i++) CHECK(strlen(shmq_status_text(i)) > 1);
    shut();
}

TEST(what_never_fits_is_too_large) {
    open_tiny();
    shmq_block *b;
    static const uint64_t sizes[] = {16 * PAGE + 1, UINT64_C(1) << 40, UINT64_MAX - 100, UINT64_MAX};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        CHECK_EQ(shmq_loan(q, sizes[i], SHMQ_FOREVER, &b), SHMQ_TOO_LARGE);
        CHECK_EQ(shmq_put(q, "x", sizes[i], SHMQ_FOREVER), SHMQ_TOO_LARGE);
        shmq_tensor t = {.dtype = SHMQ_UINT8, .order = 'C', .ndim = 1, .shape = {sizes[i]}};
        CHECK_EQ(shmq_put_tensor(q, "x", sizes[i], &t, SHMQ_FOREVER), SHMQ_TOO_LARGE);
    }
    CHECK_EQ(lab_stats(q).largest_message_bytes, 16 * PAGE);
    shut();
}

TEST(full_is_an_answer) {
    open_tiny();
    uint64_t n = 0;
    while (lab_put(q, n, 1000, SHMQ_NO_WAIT) == SHMQ_OK) n++;
    CHECK_EQ(n, 4);
    CHECK_EQ(lab_put(q, n, 1000, SHMQ_NO_WAIT), SHMQ_FULL);
    CHECK_EQ(lab_put(q, n, 1000, shmq_deadline(2 * MS)), SHMQ_FULL);
    uint64_t done;
    uint8_t many[64] = {0};
    CHECK_EQ(shmq_put_many(q, many, 8, 8, shmq_deadline(MS), &done), SHMQ_FULL);
    CHECK(done < 8); /* the rest of the ring took some */
    CHECK_EQ(lab_stats(q).messages_put, n + done);
    for (uint64_t i = 0; i < n; i++) CHECK_EQ(get_number(), i);
    shmq_message m;
    for (uint64_t i = 0; i < done; i++) OK(shmq_get(q, &m, SHMQ_NO_WAIT));
    CHECK_EQ(shmq_get(q, &m, SHMQ_NO_WAIT), SHMQ_EMPTY);

    shmq_block *all, *b;
    OK(shmq_loan(q, 16 * PAGE, SHMQ_NO_WAIT, &all));
    CHECK_EQ(shmq_loan(q, 1, SHMQ_NO_WAIT, &b), SHMQ_ARENA_FULL);
    CHECK_EQ(shmq_loan(q, 1, shmq_deadline(2 * MS), &b), SHMQ_ARENA_FULL);
    CHECK_EQ(lab_put(q, 0, PAGE, SHMQ_NO_WAIT), SHMQ_ARENA_FULL);
    OK(lab_put(q, 1, 1024, SHMQ_NO_WAIT)); /* in-line messages still go */
    CHECK_EQ(get_number(), 1);
    shmq_block_release(all);
    shut();
}

/* A put that finds no room in the ring gives its block back. */
TEST(a_put_that_fails_leaves_nothing_behind) {
    open_tiny();
    fill_ring();
    for (int i = 0; i < 50; i++) CHECK_EQ(lab_put(q, 0, 3 * PAGE, SHMQ_NO_WAIT), SHMQ_FULL);
    lab_all_pages_free(q);
    drain();
    shut();
}

TEST(a_loan_is_published_or_given_back) {
    open_tiny();
    shmq_block *b;
    OK(shmq_loan(q, 3 * PAGE, SHMQ_NO_WAIT, &b));
    CHECK_EQ(b->bytes, 3 * PAGE);
    message_write(b->data, 5, b->bytes);
    shmq_message m;
    CHECK_EQ(shmq_get(q, &m, SHMQ_NO_WAIT), SHMQ_EMPTY);
    OK(shmq_publish(b, NULL, SHMQ_NO_WAIT));
    OK(shmq_loan(q, PAGE, SHMQ_NO_WAIT, &b)); /* discarded */
    shmq_block_release(b);
    OK(shmq_get(q, &m, SHMQ_NO_WAIT));
    CHECK_EQ(message_number(m.data, m.bytes), 5);
    CHECK_EQ(shmq_get(q, &(shmq_message){0}, SHMQ_NO_WAIT), SHMQ_EMPTY);
    shmq_message_release(&m);

    fill_ring();
    OK(shmq_loan(q, PAGE, SHMQ_NO_WAIT, &b));
    message_write(b->data, 6, b->bytes);
    CHECK_EQ(shmq_publish(b, NULL, SHMQ_NO_WAIT), SHMQ_FULL); /* it is still ours */
    OK(shmq_get(q, &m, SHMQ_NO_WAIT));
    OK(shmq_publish(b, NULL, SHMQ_NO_WAIT));
    while (shmq_get(q, &m, SHMQ_NO_WAIT) == SHMQ_OK && m.block == NULL) continue;
    CHECK_EQ(message_number(m.data, m.bytes), 6);
    shmq_message_release(&m);
    shut();
}

/* Pages are free or not, whatever waits in the ring: a loan needs no room there. */
TEST(a_loan_does_not_wait_for_the_ring) {
    open_tiny();
    shmq_block *all, *b;
    OK(shmq_loan(q, 16 * PAGE, SHMQ_NO_WAIT, &all));
    fill_ring();
    CHECK_EQ(shmq_loan(q, PAGE, SHMQ_NO_WAIT, &b), SHMQ_ARENA_FULL);
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, (void *(*)(void *))(void (*)(void))shmq_block_release, all), 0);
    OK(shmq_loan(q, PAGE, SHMQ_FOREVER, &b));
    pthread_join(thread, NULL);
    shmq_block_release(b);
    drain();
    shut();
}

/* Views that outlive the ring's memory of them do not stall it. */
TEST(held_messages_do_not_stall_the_ring) {
    open_tiny();
    shmq_message held[8];
    for (uint64_t i = 0; i < 8; i++) {
        OK(lab_put(q, i, 2 * PAGE, SHMQ_NO_WAIT));
        OK(shmq_get(q, &held[i], SHMQ_NO_WAIT));
    }
    for (uint64_t i = 100; i < 2000; i++) {
        OK(lab_put(q, i, 500, SHMQ_NO_WAIT));
        CHECK_EQ(get_number(), i);
    }
    for (uint64_t i = 0; i < 8; i++) {
        uint64_t k = i * 5 % 8; /* in any order */
        CHECK_EQ(message_number(held[k].data, held[k].bytes), k);
        shmq_message_release(&held[k]);
    }
    shut();
}

TEST(blocks_outlive_their_handle) {
    open_tiny();
    shmq_queue *other = lab_attach(fd);
    shmq_message m;
    shmq_block *loan;
    OK(lab_put(q, 3, 2 * PAGE, SHMQ_NO_WAIT));
    OK(shmq_get(other, &m, SHMQ_NO_WAIT));
    OK(shmq_loan(q, PAGE, SHMQ_NO_WAIT, &loan));
    shmq_close(other);
    CHECK_EQ(shmq_get(other, &(shmq_message){0}, SHMQ_NO_WAIT), SHMQ_CLOSED);
    shmq_free(other);
    CHECK_EQ(lab_stats(q).consumer, (uint64_t)-1);             /* its role is free at once ... */
    CHECK_EQ(q->segment.peers[1].word & 0xff, SHMQ_PEER_LIVE); /* ... and the slot when the last view dies */
    CHECK_EQ(message_number(m.data, m.bytes), 3);
    shmq_message_release(&m);
    CHECK_EQ(q->segment.peers[1].word & 0xff, SHMQ_PEER_FREE);

    shmq_close(q);
    CHECK_EQ(shmq_publish(loan, NULL, SHMQ_NO_WAIT), SHMQ_CLOSED);
    memset(loan->data, 1, PAGE);
    other = lab_attach(fd);
    CHECK_EQ(lab_stats(other).pages[SHMQ_PAGE_LOANED], 1);
    shmq_block_release(loan);
    lab_all_pages_free(other);
    shmq_free(q);
    shmq_free(other);
    close(fd);
}

TEST(a_closed_handle_says_so) {
    open_tiny();
    shmq_queue *other = lab_attach(fd);
    shmq_close(other);
    shmq_close(other);
    shmq_block *b;
    shmq_message m;
    shmq_stats s;
    uint32_t n;
    uint64_t done;
    CHECK_EQ(shmq_put(other, "x", 1, SHMQ_NO_WAIT), SHMQ_CLOSED);
    CHECK_EQ(shmq_put_many(other, "x", 1, 1, SHMQ_NO_WAIT, &done), SHMQ_CLOSED);
    CHECK_EQ(shmq_get(other, &m, SHMQ_NO_WAIT), SHMQ_CLOSED);
    CHECK_EQ(shmq_loan(other, 1, SHMQ_NO_WAIT, &b), SHMQ_CLOSED);
    CHECK_EQ(shmq_get_stats(other, &s), SHMQ_CLOSED);
    CHECK_EQ(shmq_get_peers(other, NULL, 0, &n), SHMQ_CLOSED);
    CHECK_EQ(shmq_peek(other, 0, NULL, 0, NULL), SHMQ_CLOSED);
    CHECK_EQ(shmq_validate(other), SHMQ_CLOSED);
    CHECK_EQ(shmq_reap(other, &n), SHMQ_CLOSED);
    CHECK_EQ(shmq_shutdown(other, 0), SHMQ_CLOSED);
    shmq_free(other);
    shut();
}

TEST(shutdown_drains_or_stops) {
    open_tiny();
    shmq_queue *other = lab_attach(fd);
    OK(lab_put(q, 1, 16, SHMQ_NO_WAIT));
    OK(lab_put(q, 2, PAGE, SHMQ_NO_WAIT));
    OK(shmq_shutdown(other, 0));
    CHECK_EQ(lab_put(q, 3, 16, SHMQ_NO_WAIT), SHMQ_SHUT_DOWN);
    shmq_message m;
    uint64_t number;
    OK(lab_get(other, &number, SHMQ_FOREVER));
    CHECK_EQ(number, 1);
    OK(lab_get(other, &number, SHMQ_FOREVER));
    CHECK_EQ(number, 2);
    CHECK_EQ(shmq_get(other, &m, SHMQ_FOREVER), SHMQ_SHUT_DOWN);
    CHECK_EQ(lab_stats(q).lifecycle, SHMQ_DRAINING);
    OK(shmq_shutdown(q, 1));
    OK(shmq_shutdown(q, 0)); /* it only ever grows */
    CHECK_EQ(lab_stats(q).lifecycle, SHMQ_STOPPED);
    CHECK_EQ(shmq_get(other, &m, SHMQ_NO_WAIT), SHMQ_SHUT_DOWN);
    shmq_free(other);
    shut();
}

/* ... and waits, asleep and to its deadline, for the message of a producer that is at work. */
TEST(a_drain_waits_for_who_is_at_work) {
    shmq_params params = tiny;
    for (params.kind = SHMQ_KIND_MPMC; params.kind <= SHMQ_KIND_TOPIC; params.kind++) {
        struct shmq_record record;
        uint64_t number;
        open_with(&params);
        shmq_queue *c = lab_attach(fd);
        if (params.kind == SHMQ_KIND_TOPIC) OK(shmq_subscribe(c, 0));
        OK(shmq_put_begin(q));
        OK(shmq_try_reserve(q, MESSAGE_MIN, SHMQ_RAW, 0, &record));
        OK(shmq_shutdown(q, 0));
        store_relaxed(&c->get.waiter.spin_ns, 0);
        int64_t from = shmq_now_ns();
        CHECK_EQ(lab_get(c, &number, shmq_deadline(20 * MS)), SHMQ_EMPTY);
        CHECK(shmq_now_ns() - from >= 20 * MS);
        CHECK_EQ(load_relaxed(&c->counters->parks), 1);
        message_write(record.payload, 7, MESSAGE_MIN);
        shmq_put_commit(q, 1, MESSAGE_MIN);
        OK(lab_get(c, &number, shmq_deadline(5000 * MS)));
        CHECK_EQ(number, 7);
        CHECK_EQ(lab_get(c, &number, shmq_deadline(5000 * MS)), SHMQ_SHUT_DOWN);
        shmq_free(c);
        shut();
    }
}

TEST(peek_shows_and_takes_nothing) {
    open_tiny();
    shmq_tensor t = {.dtype = SHMQ_UINT8, .order = 'C', .ndim = 1, .shape = {100}};
    uint8_t data[100] = {1, 2, 3}, buffer[3 * PAGE];
    OK(lab_put(q, 1, 100, SHMQ_NO_WAIT));
    OK(shmq_put_tensor(q, data, sizeof data, &t, SHMQ_NO_WAIT));
    OK(lab_put(q, 3, 2 * PAGE, SHMQ_NO_WAIT));
    for (int again = 0; again < 2; again++) {
        shmq_peeked p;
        OK(shmq_peek(q, 0, buffer, sizeof buffer, &p));
        CHECK_EQ(p.position, 0);
        CHECK_EQ(p.in_block, 0);
        CHECK_EQ(message_number(buffer, p.copied_bytes), 1);
        OK(shmq_peek(q, 1, buffer, 50, &p));
        CHECK_EQ(p.codec, SHMQ_TENSOR);
        CHECK_EQ(p.bytes, 100);
        CHECK_EQ(p.copied_bytes, 50);
        CHECK(memcmp(&p.tensor, &t, sizeof t) == 0 && memcmp(buffer, data, 50) == 0);
        OK(shmq_peek(q, 2, buffer, sizeof buffer, &p));
        CHECK_EQ(p.in_block, 1);
        CHECK_EQ(message_number(buffer, p.copied_bytes), 3);
        CHECK_EQ(shmq_peek(q, 3, buffer, sizeof buffer, &p), SHMQ_EMPTY);
    }
    shmq_message m;
    for (int i = 0; i < 3; i++) {
        OK(shmq_get(q, &m, SHMQ_NO_WAIT));
        shmq_message_release(&m);
    }
    shut();
}

TEST(counters_count) {
    open_tiny();
    shmq_queue *other = lab_attach(fd);
    for (uint64_t i = 0; i < 10; i++) {
        uint64_t number;
        OK(lab_put(q, i, i % 2 == 0 ? 100 : PAGE, SHMQ_NO_WAIT));
        if (i < 7) OK(lab_get(other, &number, SHMQ_NO_WAIT));
    }
    shmq_peer_info peers[8];
    uint32_t n;
    OK(shmq_get_peers(other, peers, 8, &n));
    CHECK_EQ(n, 2);
    CHECK_EQ(peers[0].messages_put, 10);
    CHECK_EQ(peers[0].bytes_put, 5 * 100 + 5 * PAGE);
    CHECK_EQ(peers[0].is_producer, 1);
    CHECK_EQ(peers[0].is_consumer, 0);
    CHECK_EQ(peers[1].messages_got, 7);
    CHECK_EQ(peers[1].bytes_got, 4 * 100 + 3 * PAGE);
    CHECK_EQ(peers[1].is_consumer, 1);
    CHECK_EQ(peers[1].pid, getpid());
    OK(shmq_get_peers(other, peers, 1, &n));
    CHECK_EQ(n, 1);
    shmq_stats s = lab_stats(q);
    CHECK_EQ(s.messages_put, 10);
    CHECK_EQ(s.messages_got, 7);
    CHECK_EQ(s.producer, 0);
    CHECK_EQ(s.consumer, 1);
    CHECK_EQ(s.pages[SHMQ_PAGE_INFLIGHT], 2);
    for (int i = 0; i < 3; i++) {
        uint64_t number;
        OK(lab_get(other, &number, SHMQ_NO_WAIT));
    }
    shmq_free(other);
    shut();
}

/* What is read from the segment as a length or an index is checked first, even where the value comes from the
 * very end of the mapping. */
TEST(a_block_record_without_a_handle_is_corrupt) {
    shmq_params bare = tiny;
    bare.arena_bytes = 0; /* the ring is the segment's last page */
    bare.first_cursor = 4096 - 8;
    open_with(&bare);
    CHECK_EQ(q->segment.geometry.ring_at + 4096, q->segment.geometry.total_bytes);
    void *behind = q->segment.base + q->segment.geometry.total_bytes;
    void *guard = mmap(behind, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    uint64_t record = (uint64_t)SHMQ_RECORD_BLOCK << 48; /* 0 bytes long, where 8 are said to lie */
    memcpy(q->ring.spsc.records + 4096 - 8, &record, 8);
    store_release(&q->control->tail.cursor, 4096);
    shmq_message m;
    shmq_peeked p;
    CHECK_EQ(shmq_get(q, &m, SHMQ_NO_WAIT), SHMQ_CORRUPT);
    CHECK_EQ(shmq_peek(q, 0, NULL, 0, &p), SHMQ_CORRUPT);
    store_release(&q->control->tail.cursor, 4096 - 8);
    if (guard == behind) munmap(guard, 4096);
    shut();
}

TEST(a_payload_length_that_wraps_is_corrupt) {
    static const uint64_t lengths[] = {PAGE + 1, 16 * PAGE + 1, UINT64_C(1) << 63, UINT64_MAX - PAGE + 2,
                                       UINT64_MAX};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        open_tiny();
        OK(lab_put(q, 1, PAGE, SHMQ_NO_WAIT));
        q->arena.headers[0].payload_bytes = lengths[i];
        shmq_message m;
        shmq_peeked p;
        uint8_t buffer[64];
        int status = shmq_peek(q, 0, buffer, sizeof buffer, &p);
        CHECK(status == SHMQ_CORRUPT || status == SHMQ_EMPTY);
        CHECK_EQ(shmq_get(q, &m, SHMQ_NO_WAIT), SHMQ_CORRUPT);
        shmq_free(q);
        close(fd);
    }
}

/* Garbage may cost the message, never the caller's deadline. */
TEST(a_deadline_holds_over_garbage) {
    open_tiny();
    uint64_t pad = 8 | (uint64_t)SHMQ_RECORD_PAD << 48; /* a pad that nothing follows */
    memcpy(q->ring.spsc.records, &pad, 8);
    store_release(&q->control->tail.cursor, 16);
    shmq_message m;
    int status = shmq_get(q, &m, shmq_deadline(5 * MS));
    CHECK(status == SHMQ_CORRUPT || status == SHMQ_EMPTY);
    store_release(&q->control->tail.cursor, 0);
    shut();
}

int main(int argc, char **argv) { return run_tests(argc, argv); }
