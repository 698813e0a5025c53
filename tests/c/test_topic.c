/* Topics through the public calls and the steps below them: who sees what, who waits for whom, who holds which
 * block, and what is left of the dead.
 *
 * Handles of one process stand for processes.  Every test runs from several first cursors: 0, just below the wrap
 * of a position's lap, and of the cursor. */
#define _GNU_SOURCE
#include <signal.h>
#include <sys/wait.h>
#include <time.h>

#include "lab.h"

enum {
    SLOTS = 16,
    SHORT = 40,
    BLOCK = SHMQ_SMALL_PAGE + 100,
    PAGES_OF_BLOCK = 2,
    PAGES = 16,
    WHOLE = 16 * SHMQ_SMALL_PAGE
};

static const uint64_t starts[] = {0, 8, (SHMQ_LAP_MASK - 1) << 4, UINT64_MAX - 31};
#define FROM_EACH_START                                                                                      \
    for (size_t s_ = 0; s_ < sizeof starts / sizeof *starts && begin(starts[s_]); s_++, end())

static shmq_params params = {.ring_bytes = SLOTS * 256,
                             .arena_bytes = PAGES * SHMQ_SMALL_PAGE,
                             .inline_bytes = 224,
                             .peers = 12,
                             .kind = SHMQ_KIND_TOPIC};
static int fd;
static shmq_queue *out; /* the publisher that made the topic */

static bool begin(uint64_t start) {
    params.first_cursor = start;
    fd = lab_object();
    out = lab_create(fd, &params);
    return true;
}
static void end(void) {
    (void)lab_reap(out);
    OK(shmq_validate(out));
    shmq_free(out);
    close(fd);
}
static void with(uint32_t policy, uint32_t history) {
    params.policy = policy;
    params.history = history;
}

static shmq_queue *subscriber(uint32_t history) {
    shmq_queue *q = lab_attach(fd);
    OK(shmq_subscribe(q, history));
    return q;
}
static int publish(uint64_t number, uint64_t bytes) { return lab_put(out, number, bytes, SHMQ_NO_WAIT); }
static void gets(shmq_queue *q, uint64_t expected) {
    uint64_t number;
    OK(lab_get(q, &number, SHMQ_NO_WAIT));
    CHECK_EQ(number, expected);
}
static void gets_nothing(shmq_queue *q) {
    uint64_t number;
    CHECK_EQ(lab_get(q, &number, SHMQ_NO_WAIT), SHMQ_EMPTY);
}
static shmq_subscription state_of(shmq_queue *q) {
    shmq_subscription s;
    OK(shmq_get_subscription(q, &s));
    return s;
}
static uint64_t free_pages(void) { return lab_stats(out).arena_free_bytes / SHMQ_SMALL_PAGE; }
static void dies(shmq_queue *q) {
    lab_die(q);
    lab_bury(q);
}

/* ---- who sees what ---- */

TEST(every_subscriber_sees_every_message_in_order) {
    with(SHMQ_BLOCK, 0);
    FROM_EACH_START {
        shmq_queue *a = subscriber(0), *b = subscriber(0);
        for (uint64_t n = 1; n <= 5 * SLOTS; n++) {
            OK(publish(n, n % 3 == 0 ? BLOCK : SHORT + n % 100));
            gets(a, n);
            if (n % 4 == 0)
                for (uint64_t i = n - 3; i <= n; i++) gets(b, i);
        }
        gets_nothing(a);
        gets_nothing(b);
        lab_all_pages_free(out);
        shmq_free(a);
        shmq_free(b);
    }
}

TEST(a_payload_of_every_length_comes_whole) {
    with(SHMQ_BLOCK, 0);
    FROM_EACH_START {
        shmq_queue *a = subscriber(0);
        for (uint64_t bytes = MESSAGE_MIN; bytes <= 224; bytes++) {
            OK(publish(bytes, bytes));
            gets(a, bytes);
        }
        OK(shmq_put(out, "", 0, SHMQ_NO_WAIT));
        shmq_message m;
        OK(shmq_get(a, &m, SHMQ_NO_WAIT));
        CHECK_EQ(m.bytes, 0);
        shmq_free(a);
    }
}

TEST(what_came_before_is_not_seen_and_not_missed) {
    with(SHMQ_BLOCK, 0);
    FROM_EACH_START {
        for (uint64_t n = 1; n <= SLOTS + 3; n++)
            OK(publish(n, n % 2 ? SHORT : BLOCK)); /* nobody: never full */
        shmq_queue *a = subscriber(0);
        gets_nothing(a);
        OK(publish(100, SHORT));
        gets(a, 100);
        CHECK_EQ(state_of(a).missed, 0);
        shmq_free(a);
    }
}

TEST(history_is_replayed) {
    with(SHMQ_BLOCK, 4);
    FROM_EACH_START {
        shmq_queue *early = subscriber(4); /* nothing yet */
        gets_nothing(early);
        OK(publish(1, SHORT));
        shmq_queue *second = subscriber(4);
        gets(second, 1);
        for (uint64_t n = 2; n <= 30; n++) {
            OK(publish(n, n % 2 ? SHORT : BLOCK));
            gets(second, n);
            gets(early, n - 1);
        }
        shmq_queue *late = subscriber(4), *some = subscriber(2), *none = subscriber(0);
        for (uint64_t n = 27; n <= 30; n++) gets(late, n);
        gets(some, 29);
        gets(some, 30);
        gets_nothing(none);
        CHECK_EQ(free_pages(), PAGES - 2 * PAGES_OF_BLOCK); /* of 27 to 30 two lie in blocks */
        CHECK_EQ(shmq_subscribe(none, 0), SHMQ_INVALID);    /* once */
        shmq_queue *greedy = lab_attach(fd);
        CHECK_EQ(shmq_subscribe(greedy, 5), SHMQ_INVALID); /* more than is kept */
        shmq_free(greedy);
        shmq_free(early);
        shmq_free(second);
        shmq_free(late);
        shmq_free(some);
        shmq_free(none);
    }
}

TEST(history_that_is_gone_is_not_missed) {
    with(SHMQ_DROP_OLDEST, 4);
    FROM_EACH_START {
        for (uint64_t n = 1; n <= 4; n++) OK(publish(n, SHORT));
        shmq_queue *late = subscriber(4);
        for (uint64_t n = 5; n <= SLOTS + 7; n++) OK(publish(n, SHORT));
        uint64_t number;
        OK(lab_get(late, &number, SHMQ_NO_WAIT));
        CHECK_EQ(number, 5 + state_of(late).missed); /* of 1 to 4 it has no claim */
        shmq_free(late);
    }
}

TEST(a_handle_publishes_or_subscribes) {
    with(SHMQ_BLOCK, 0);
    FROM_EACH_START {
        uint64_t number;
        shmq_queue *a = subscriber(0);
        CHECK_EQ(lab_put(a, 1, SHORT, SHMQ_NO_WAIT), SHMQ_INVALID);
        OK(publish(1, SHORT));
        CHECK_EQ(shmq_subscribe(out, 0), SHMQ_INVALID);
        CHECK_EQ(lab_get(out, &number, SHMQ_NO_WAIT), SHMQ_INVALID);
        gets(a, 1);
        shmq_free(a);
    }
    int other = lab_object();
    shmq_queue *q = lab_create(other, &tiny);
    CHECK_EQ(shmq_subscribe(q, 0), SHMQ_INVALID); /* not a topic */
    shmq_free(q);
    close(other);
}

TEST(two_publishers_one_order) {
    with(SHMQ_BLOCK, 0);
    FROM_EACH_START {
        shmq_queue *a = subscriber(0), *b = subscriber(0), *other = lab_attach(fd);
        for (uint64_t n = 1; n <= 3 * SLOTS; n++) {
            OK(lab_put(n % 2 ? out : other, n, n % 5 ? SHORT : BLOCK, SHMQ_NO_WAIT));
            gets(a, n);
            gets(b, n);
        }
        shmq_free(a);
        shmq_free(b);
        shmq_free(other);
    }
}

/* ---- policies ---- */

TEST(block_waits_for_the_slowest) {
    with(SHMQ_BLOCK, 0);
    FROM_EACH_START {
        shmq_queue *fast = subscriber(0), *slow = subscriber(0);
        for (uint64_t n = 1; n <= SLOTS; n++) {
            OK(publish(n, n % 3 ? SHORT : BLOCK));
            gets(fast, n);
        }
        CHECK_EQ(publish(SLOTS + 1, SHORT), SHMQ_FULL);
        CHECK_EQ(lab_stats(out).full, 1);
        CHECK_EQ(lab_stats(out).holds_up_put, (int32_t)slow->me.index);
        CHECK_EQ(state_of(slow).lag, SLOTS);
        gets(slow, 1);
        OK(publish(SLOTS + 1, SHORT));
        CHECK_EQ(publish(SLOTS + 2, SHORT), SHMQ_FULL);
        shmq_free(slow); /* leaving makes room */
        OK(publish(SLOTS + 2, SHORT));
        gets(fast, SLOTS + 1);
        gets(fast, SLOTS + 2);
        lab_all_pages_free(out);
        shmq_free(fast);
    }
}

TEST(a_newcomer_gates_a_publisher_that_has_seen_nobody) {
    with(SHMQ_BLOCK, 2);
    FROM_EACH_START {
        for (uint64_t n = 1; n <= SLOTS + 1; n++) OK(publish(n, SHORT)); /* looked at nobody for the last */
        shmq_queue *a = subscriber(2);
        uint64_t n = SLOTS + 2;
        while (publish(n, SHORT) == SHMQ_OK) n++;
        CHECK_EQ(n, SLOTS + 1 + SLOTS - 2 + 1);
        for (uint64_t i = SLOTS; i < n; i++) gets(a, i);
        gets_nothing(a);
        shmq_free(a);
    }
}

TEST(drop_oldest_says_how_many_were_missed) {
    with(SHMQ_DROP_OLDEST, 0);
    FROM_EACH_START {
        shmq_queue *a = subscriber(0), *fast = subscriber(0);
        uint64_t n = 1, got = 0, last = 0;
        for (; n <= 3 * SLOTS; n++) {
            OK(publish(n, n % 3 ? SHORT : BLOCK)); /* never full, and never without memory */
            gets(fast, n);
        }
        shmq_message m;
        while (shmq_get(a, &m, SHMQ_NO_WAIT) == SHMQ_OK) {
            uint64_t number = message_number(m.data, m.bytes);
            CHECK(number > last);
            CHECK_EQ(number, got + state_of(a).missed + 1); /* missed + got is exact at every message */
            last = number;
            got += 1;
            shmq_message_release(&m);
        }
        CHECK_EQ(last, 3 * SLOTS);
        CHECK(got >= SLOTS - SLOTS / 8 - 1 && state_of(a).missed >= 2 * SLOTS);
        CHECK_EQ(state_of(fast).missed, 0);
        lab_all_pages_free(out);
        shmq_free(a);
        shmq_free(fast);
    }
}

TEST(evict_ends_the_slow_and_tells_it) {
    with(SHMQ_EVICT, 0);
    FROM_EACH_START {
        shmq_queue *fast = subscriber(0), *slow = subscriber(0);
        shmq_message kept;
        OK(publish(1, BLOCK));
        gets(fast, 1);
        OK(shmq_get(slow, &kept, SHMQ_NO_WAIT));
        for (uint64_t n = 2; n <= SLOTS + 1; n++) {
            OK(publish(n, SHORT));
            gets(fast, n);
        }
        CHECK_EQ(state_of(slow).evicted, 0);
        OK(publish(SLOTS + 2, SHORT));
        CHECK_EQ(state_of(slow).evicted, 1);
        shmq_message m;
        CHECK_EQ(shmq_get(slow, &m, SHMQ_NO_WAIT), SHMQ_EVICTED);
        CHECK_EQ(shmq_get(slow, &m, shmq_deadline(10 * MS)), SHMQ_EVICTED); /* also one that would wait */
        CHECK_EQ(message_number(kept.data, kept.bytes), 1); /* what it holds is still its own */
        shmq_message_release(&kept);
        gets(fast, SLOTS + 2);
        lab_all_pages_free(out);
        shmq_free(slow);
        shmq_free(fast);
    }
}

/* ---- memory ---- */

TEST(one_payload_for_all_readers) {
    with(SHMQ_BLOCK, 0);
    FROM_EACH_START {
        shmq_queue *subs[5];
        shmq_message m[5];
        for (int i = 0; i < 5; i++) subs[i] = subscriber(0);
        OK(publish(1, BLOCK));
        for (int i = 0; i < 5; i++) {
            OK(shmq_get(subs[i], &m[i], SHMQ_NO_WAIT));
            CHECK_EQ(m[i].block->page, m[0].block->page);
            CHECK_EQ(message_number(m[i].data, m[i].bytes), 1);
        }
        shmq_peer_info peers[16];
        uint32_t count;
        OK(shmq_get_peers(out, peers, 16, &count));
        CHECK_EQ(peers[subs[2]->me.index].held_bytes, PAGES_OF_BLOCK * SHMQ_SMALL_PAGE);
        CHECK_EQ(free_pages(), PAGES - PAGES_OF_BLOCK);
        for (int i = 0; i < 5; i++) {
            CHECK_EQ(free_pages(), PAGES - PAGES_OF_BLOCK); /* until the last has let go */
            shmq_message_release(&m[(i + 2) % 5]);
        }
        lab_all_pages_free(out);
        for (int i = 0; i < 5; i++) shmq_free(subs[i]);
    }
}

TEST(a_view_outlives_its_slot) {
    with(SHMQ_BLOCK, 0);
    FROM_EACH_START {
        shmq_queue *a = subscriber(0), *b = subscriber(0);
        shmq_message kept;
        OK(publish(1, BLOCK));
        OK(shmq_get(a, &kept, SHMQ_NO_WAIT));
        gets(b, 1);
        for (uint64_t n = 2; n <= 3 * SLOTS; n++) {
            OK(publish(n, n % 2 ? BLOCK : SHORT));
            gets(a, n);
            gets(b, n);
        }
        CHECK_EQ(message_number(kept.data, kept.bytes), 1);
        CHECK_EQ(free_pages(), PAGES - PAGES_OF_BLOCK);
        shmq_free(a); /* the handle goes first, the view later */
        CHECK_EQ(message_number(kept.data, kept.bytes), 1);
        shmq_message_release(&kept);
        lab_all_pages_free(out);
        shmq_free(b);
    }
}

TEST(a_full_arena_takes_back_what_all_have_read) {
    with(SHMQ_BLOCK, 8);
    FROM_EACH_START {
        shmq_queue *a = subscriber(0);
        for (uint64_t n = 1; n <= 40; n++) { /* a history of 8 blocks would be all of the arena */
            OK(publish(n, BLOCK));
            gets(a, n);
        }
        CHECK(free_pages() < PAGES_OF_BLOCK);
        shmq_free(a);
        for (uint64_t n = 41; n <= 80; n++) OK(publish(n, BLOCK)); /* the same with nobody there */
        shmq_queue *late = subscriber(8);
        uint64_t number, next = 0;
        while (lab_get(late, &number, SHMQ_NO_WAIT) == SHMQ_OK) { /* as far as there was room */
            CHECK(next == 0 || number == next);
            next = number + 1;
        }
        CHECK_EQ(next, 81);
        CHECK_EQ(state_of(late).missed, 0);
        shmq_free(late);
    }
}

TEST(a_full_arena_by_policy) {
    for (uint32_t policy = SHMQ_BLOCK; policy <= SHMQ_EVICT; policy++) {
        with(policy, 0);
        FROM_EACH_START {
            uint64_t number;
            shmq_queue *slow = subscriber(0);
            for (uint64_t n = 1; n <= PAGES / PAGES_OF_BLOCK; n++) OK(publish(n, BLOCK));
            int status = publish(9, BLOCK);
            if (policy == SHMQ_BLOCK) {
                CHECK_EQ(status, SHMQ_ARENA_FULL);
                gets(slow, 1);
                OK(publish(9, BLOCK));
                gets(slow, 2);
            } else if (policy == SHMQ_DROP_OLDEST) {
                OK(status);
                gets(slow, 2);
                CHECK_EQ(state_of(slow).missed, 1);
            } else {
                OK(status);
                CHECK_EQ(lab_get(slow, &number, SHMQ_NO_WAIT), SHMQ_EVICTED);
            }
            shmq_free(slow);
        }
    }
}

TEST(who_waits_for_memory_wakes_when_only_history_holds_it) {
    with(SHMQ_BLOCK, 1);
    FROM_EACH_START {
        shmq_queue *a = subscriber(0);
        OK(publish(1, WHOLE));
        CHECK_EQ(shmq_wait_put(out, 0, true, BLOCK, shmq_deadline(MS)), SHMQ_EMPTY);
        gets(a, 1); /* the history keeps it */
        OK(shmq_wait_put(out, 0, true, BLOCK, shmq_deadline(MS)));
        OK(publish(2, BLOCK));
        gets(a, 2);
        shmq_free(a);
    }
}

TEST(only_who_holds_up_the_arena_is_evicted) {
    with(SHMQ_EVICT, 0);
    FROM_EACH_START {
        shmq_message kept;
        shmq_queue *keeper = subscriber(0), *other = subscriber(0);
        OK(publish(1, WHOLE));
        OK(shmq_get(keeper, &kept, SHMQ_NO_WAIT));
        gets(other, 1);
        OK(publish(2, SHORT)); /* unread, and no memory that a publisher could have */
        CHECK_EQ(publish(3, BLOCK), SHMQ_ARENA_FULL);
        CHECK_EQ(shmq_wait_put(out, 0, true, BLOCK, shmq_deadline(MS)), SHMQ_EMPTY);
        gets(other, 2);
        gets(keeper, 2);
        shmq_message_release(&kept);
        OK(publish(3, WHOLE));
        OK(publish(4, BLOCK)); /* 3 was unread */
        CHECK_EQ(state_of(other).evicted, 1);
        shmq_free(keeper);
        shmq_free(other);
    }
}

TEST(a_loan_is_published_to_all) {
    with(SHMQ_BLOCK, 0);
    FROM_EACH_START {
        shmq_queue *a = subscriber(0), *b = subscriber(0);
        shmq_block *loan;
        OK(shmq_loan(out, BLOCK, SHMQ_NO_WAIT, &loan));
        message_write(loan->data, 1, BLOCK);
        OK(shmq_publish(loan, NULL, SHMQ_NO_WAIT));
        gets(a, 1);
        gets(b, 1);
        lab_all_pages_free(out);
        OK(shmq_loan(out, BLOCK, SHMQ_NO_WAIT, &loan));
        shmq_block_release(loan); /* discarded */
        lab_all_pages_free(out);
        gets_nothing(a);
        shmq_free(a);
        shmq_free(b);
    }
}

/* A reader that gives a message back for want of memory gets it again. */
TEST(a_lease_given_back_is_still_there) {
    with(SHMQ_BLOCK, 0);
    FROM_EACH_START {
        const struct shmq_block_header *header;
        struct shmq_record record;
        shmq_block *b;
        shmq_queue *a = subscriber(0);
        OK(publish(1, BLOCK));
        OK(shmq_try_next(a, &record));
        OK(shmq_try_lease(a, &record, NULL, &b, &header));
        shmq_unlease(b, &record);
        gets(a, 1);
        lab_all_pages_free(out);
        shmq_free(a);
    }
}

/* ---- a process that was stopped between two steps, and goes on much later ---- */

TEST(a_late_hold_on_another_life_is_refused_or_let_go) {
    with(SHMQ_DROP_OLDEST, 0);
    FROM_EACH_START {
        uint64_t handle, again;
        uint32_t page;
        shmq_queue *a = subscriber(0), *late = subscriber(0);
        uint64_t first = late->get.ring.topic.cursor;
        OK(publish(1, BLOCK));
        CHECK(shmq_topic_names(&late->ring.topic, first, &handle)); /* it stops here */
        gets(a, 1);
        for (uint64_t n = 2; n <= 2 * SLOTS; n++) {
            OK(publish(n, BLOCK));
            gets(a, n);
        }
        CHECK(!shmq_topic_names(&late->ring.topic, first, &again));
        int status = shmq_arena_hold(&late->arena, handle, &page);
        CHECK_EQ(status, SHMQ_EMPTY); /* another generation */
        uint64_t number;
        OK(lab_get(late, &number, SHMQ_NO_WAIT));
        CHECK(number > SLOTS);
        shmq_free(a);
        shmq_free(late);
    }
}

TEST(a_hold_that_came_too_late_is_let_go) {
    with(SHMQ_DROP_OLDEST, 0);
    FROM_EACH_START {
        uint64_t position = out->ring.topic.first, handle, word;
        uint32_t page;
        shmq_queue *a = subscriber(0), *late = subscriber(0);
        OK(publish(1, BLOCK));
        CHECK(shmq_topic_names(&a->ring.topic, position, &handle));
        OK(shmq_arena_hold(&a->arena, handle, &page)); /* keeps the block in this life */
        for (uint64_t n = 2; n <= SLOTS + 1; n++) OK(publish(n, SHORT));
        CHECK_EQ(shmq_share_lease(&late->arena, handle, position << 3, &page, &word), SHMQ_LOOK_AGAIN);
        CHECK_EQ(free_pages(), PAGES - PAGES_OF_BLOCK);
        shmq_arena_let_go(&a->arena, page, false);
        lab_all_pages_free(out);
        shmq_free(a);
        shmq_free(late);
    }
}

TEST(a_late_lease_of_another_message_is_let_go) {
    with(SHMQ_DROP_OLDEST, 0);
    FROM_EACH_START {
        uint64_t position = out->ring.topic.first, handle, word;
        uint32_t page;
        shmq_queue *late = subscriber(0);
        OK(publish(1, BLOCK));
        CHECK(shmq_topic_names(&late->ring.topic, position,
                               &handle)); /* generations come round: the same handle */
        CHECK_EQ(shmq_share_lease(&late->arena, handle, (position + SLOTS) << 3, &page, &word),
                 SHMQ_LOOK_AGAIN);
        CHECK_EQ(shmq_arena_is_shared(&late->arena, handle), true);
        gets(late, 1);
        lab_all_pages_free(out);
        shmq_free(late);
    }
}

TEST(a_block_that_came_round_to_its_generation_is_another_messages) {
    with(SHMQ_BLOCK, 0);
    FROM_EACH_START {
        uint64_t first = out->ring.topic.first, handle, again;
        shmq_queue *a = subscriber(0);
        OK(publish(1, BLOCK));
        CHECK(shmq_topic_names(&a->ring.topic, first, &handle));
        gets(a, 1); /* the block is given up; the slot keeps the handle */
        for (int life = 1; life < 4096; life++) {
            shmq_block *unused;
            OK(shmq_loan(out, BLOCK, SHMQ_NO_WAIT, &unused));
            shmq_block_release(unused);
        }
        OK(publish(2, BLOCK));
        CHECK(shmq_topic_names(&a->ring.topic, first + 1, &again));
        CHECK_EQ(again, handle);
        for (uint64_t n = 3; n <= SLOTS + 1; n++) OK(publish(n, SHORT)); /* the last one in the slot of 1 */
        for (uint64_t n = 2; n <= SLOTS + 1; n++) gets(a, n);
        lab_all_pages_free(out);
        shmq_free(a);
    }
}

/* A page that was within another block meanwhile has the same generation again, a few messages later. */
TEST(a_handle_that_comes_again_within_a_lap) {
    with(SHMQ_BLOCK, 0);
    FROM_EACH_START {
        enum { ONE = SHMQ_SMALL_PAGE, TWO = 2 * SHMQ_SMALL_PAGE };
        shmq_message kept;
        uint64_t first, again, n, start = out->ring.first_cursor;
        shmq_queue *a = subscriber(0);
        OK(publish(1, ONE));
        OK(shmq_get(a, &kept, SHMQ_NO_WAIT)); /* has page 0, of generation 1 */
        for (n = 2; n <= 4; n++) {            /* page 1, up to generation 3 */
            OK(publish(n, ONE));
            gets(a, n);
        }
        CHECK(shmq_topic_names(&out->ring.topic, start + 3, &first));
        shmq_message_release(&kept);
        OK(publish(5, TWO)); /* both pages, of generation 2 */
        gets(a, 5);
        OK(publish(6, ONE));
        OK(shmq_get(a, &kept, SHMQ_NO_WAIT));
        OK(publish(7, ONE));
        CHECK(shmq_topic_names(&out->ring.topic, start + 6, &again));
        CHECK_EQ(again, first);
        for (n = 8; n <= 4 + SLOTS; n++) OK(publish(n, SHORT)); /* the slot of the fourth is claimed again */
        for (n = 7; n <= 4 + SLOTS; n++) gets(a, n);
        shmq_message_release(&kept);
        lab_all_pages_free(out);
        shmq_free(a);
    }
}

TEST(a_publisher_between_its_look_and_its_claim) {
    with(SHMQ_BLOCK, 0);
    FROM_EACH_START {
        struct shmq_record record;
        shmq_queue *other = lab_attach(fd);
        for (uint64_t n = 1; n <= SLOTS; n++) OK(publish(n, n == 1 ? BLOCK : SHORT));
        OK(shmq_put_begin(other));
        CHECK_EQ(shmq_ring_try_reserve(&other->ring, &other->put.ring, 8, SHMQ_RAW, 0, &record),
                 SHMQ_LOOK_AGAIN);
        OK(publish(100, BLOCK)); /* gives up the block of 1, and claims its slot */
        shmq_share_clear(&other->ring.topic, &other->put.ring.topic, &other->arena); /* touches nothing */
        uint64_t handle;
        CHECK(shmq_topic_names(&out->ring.topic, out->put.ring.topic.position, &handle));
        CHECK(shmq_arena_is_shared(&out->arena, handle));
        OK(lab_put(other, 101, SHORT, SHMQ_NO_WAIT));
        shmq_free(other);
    }
}

/* ---- deaths ---- */

TEST(a_dead_hold_on_a_block_that_is_not_in_flight_yet) {
    with(SHMQ_BLOCK, 0);
    FROM_EACH_START {
        uint32_t page;
        struct shmq_record record;
        shmq_block *b;
        shmq_queue *a = subscriber(0), *dead = lab_attach(fd);
        OK(shmq_loan(out, BLOCK, SHMQ_NO_WAIT, &b));
        message_write(b->data, 1, BLOCK);
        out->arena.headers[b->page].payload_bytes = BLOCK;
        OK(shmq_try_reserve(out, sizeof(uint64_t), SHMQ_RAW, SHMQ_RECORD_BLOCK, &record));
        uint64_t handle = shmq_handle(b->page, shmq_word_generation(b->word));
        memcpy(record.payload, &handle, sizeof handle);
        shmq_arena_share(&out->arena, b->page, b->word);  /* as shmq_try_publish does */
        OK(shmq_arena_hold(&dead->arena, handle, &page)); /* of a message 4096 lives ago */
        dies(dead);
        CHECK_EQ(lab_reap(a), 1);
        OK(shmq_arena_send(&out->arena, b->page, &b->word, record.position));
        b->word = 0;
        (void)sub32_acq_rel(&out->held, 1);
        shmq_put_commit(out, 1, BLOCK);
        shmq_block_release(b);
        gets(a, 1);
        lab_all_pages_free(out);
        shmq_free(a);
    }
}

TEST(a_death_on_the_way_to_give_up_a_block_leaves_it_in_sight) {
    with(SHMQ_BLOCK, 1);
    FROM_EACH_START {
        uint64_t position;
        shmq_queue *a = subscriber(0), *dead = lab_attach(fd);
        OK(publish(1, WHOLE));
        gets(a, 1);
        uint64_t end = shmq_topic_needed_from(&dead->ring.topic, false);
        CHECK(shmq_topic_next_spent(&dead->ring.topic, end, &position));
        dies(dead);
        OK(publish(2, WHOLE));
        gets(a, 2);
        shmq_free(a);
    }
}

TEST(a_dead_publisher_leaves_no_hole) {
    with(SHMQ_BLOCK, 0);
    FROM_EACH_START {
        struct shmq_record record;
        shmq_queue *a = subscriber(0), *dead = lab_attach(fd);
        OK(shmq_put_begin(dead));
        OK(shmq_try_reserve(dead, 8, SHMQ_RAW, 0, &record)); /* WRITING */
        OK(publish(2, SHORT));
        gets_nothing(a);
        dies(dead);
        CHECK_EQ(lab_reap(out), 1);
        gets(a, 2);
        shmq_free(a);
    }
}

TEST(a_block_that_its_publisher_did_not_publish) {
    with(SHMQ_BLOCK, 0);
    FROM_EACH_START {
        for (int step = 0; step < 4; step++) {
            struct shmq_record record;
            shmq_block *b;
            shmq_queue *a = subscriber(0), *dead = lab_attach(fd);
            OK(shmq_loan(dead, BLOCK, SHMQ_NO_WAIT, &b));
            if (step > 0) shmq_arena_share(&dead->arena, b->page, b->word);
            if (step > 1) {
                OK(shmq_try_reserve(dead, 8, SHMQ_RAW, SHMQ_RECORD_BLOCK, &record));
                uint64_t handle = shmq_handle(b->page, shmq_word_generation(b->word));
                memcpy(record.payload, &handle, sizeof handle);
            }
            if (step > 2) OK(shmq_arena_send(&dead->arena, b->page, &b->word, record.position));
            free(b);
            dies(dead);
            CHECK_EQ(lab_reap(out), 1);
            lab_all_pages_free(out);
            gets_nothing(a);
            shmq_free(a);
        }
    }
}

TEST(a_block_outlives_its_publisher) {
    with(SHMQ_BLOCK, 0);
    FROM_EACH_START {
        shmq_queue *a = subscriber(0), *b = subscriber(0), *dead = lab_attach(fd);
        OK(lab_put(dead, 1, BLOCK, SHMQ_NO_WAIT));
        OK(lab_put(dead, 2, BLOCK, SHMQ_NO_WAIT));
        shmq_message kept;
        OK(shmq_get(a, &kept, SHMQ_NO_WAIT)); /* 1 */
        gets(b, 1);                           /* from here on only a's view holds it */
        dies(dead);
        CHECK_EQ(lab_reap(out), 1);
        CHECK_EQ(message_number(kept.data, kept.bytes), 1);
        CHECK_EQ(free_pages(), PAGES - 2 * PAGES_OF_BLOCK);
        shmq_message_release(&kept);
        gets(a, 2);
        gets(b, 2);
        lab_all_pages_free(out);
        shmq_free(a);
        shmq_free(b);
    }
}

TEST(a_dead_subscriber_holds_nothing) {
    with(SHMQ_BLOCK, 0);
    FROM_EACH_START {
        shmq_message m;
        shmq_queue *dead = subscriber(0), *a = subscriber(0);
        OK(publish(1, BLOCK));
        OK(publish(2, BLOCK));
        OK(shmq_get(dead, &m, SHMQ_NO_WAIT)); /* a view of 1; has not read 2 */
        gets(a, 1);
        gets(a, 2);
        free(m.block);
        dies(dead);
        CHECK_EQ(free_pages(), PAGES - 2 * PAGES_OF_BLOCK);
        CHECK_EQ(lab_reap(out), 1);
        lab_all_pages_free(out);
        for (uint64_t n = 3; n <= 3 * SLOTS; n++) { /* and does not gate any more */
            OK(publish(n, SHORT));
            gets(a, n);
        }
        shmq_free(a);
    }
}

TEST(the_last_reader_dies_with_the_block) {
    with(SHMQ_BLOCK, 0);
    FROM_EACH_START {
        uint64_t handle;
        uint32_t page;
        shmq_queue *dead = subscriber(0);
        OK(publish(1, BLOCK));
        CHECK(shmq_topic_names(&dead->ring.topic, dead->get.ring.topic.cursor, &handle));
        OK(shmq_arena_hold(&dead->arena, handle, &page));
        shmq_a64 *readers = &dead->arena.headers[page].readers;
        store_relaxed(readers, load_relaxed(readers) & ~SHMQ_HELD_BY_RING); /* alone, and then dies */
        dies(dead);
        CHECK_EQ(lab_reap(out), 1);
        lab_all_pages_free(out);
    }
}

/* It has found a block that nobody needs any more, and does not come to give it up. */
TEST(a_block_that_the_dead_did_not_give_up_is_not_forgotten) {
    with(SHMQ_BLOCK, 1);
    FROM_EACH_START {
        uint64_t position;
        shmq_queue *a = subscriber(0), *dead = lab_attach(fd);
        const struct shmq_topic *t = &dead->ring.topic;
        OK(publish(1, PAGES * SHMQ_SMALL_PAGE)); /* it is the history, and has every page */
        gets(a, 1);
        CHECK(shmq_topic_next_spent(t, shmq_topic_needed_from(t, false), &position));
        dies(dead);
        OK(publish(2, BLOCK));
        CHECK_EQ(lab_reap(out), 1);
        gets(a, 2);
        shmq_free(a);
    }
}

/* Its message would have put a block out of the history. */
TEST(a_dead_publisher_counts_in_the_history) {
    with(SHMQ_BLOCK, 1);
    FROM_EACH_START {
        shmq_queue *a = subscriber(0), *dead = lab_attach(fd);
        struct shmq_slots *s = &dead->ring.topic.slots;
        OK(publish(1, BLOCK));
        gets(a, 1);
        uint64_t at = load_acquire(&s->tail->cursor); /* it dies before it moves the tail */
        store_release(&shmq_slot_at(s, at)->word, shmq_word_for(s, SHMQ_SLOT_WRITING, s->owner, at));
        dies(dead);
        CHECK_EQ(lab_reap(out), 1);
        lab_all_pages_free(out);
        shmq_free(a);
    }
}

TEST(a_dead_subscriber_does_not_block_for_long) {
    with(SHMQ_BLOCK, 0);
    FROM_EACH_START {
        shmq_queue *dead = subscriber(0);
        for (uint64_t n = 1; n <= SLOTS; n++) OK(publish(n, SHORT));
        CHECK_EQ(publish(SLOTS + 1, SHORT), SHMQ_FULL);
        dies(dead);
        int64_t from = shmq_now_ns();
        OK(lab_put(out, SLOTS + 1, SHORT, shmq_deadline(5000 * MS)));
        CHECK(shmq_now_ns() - from < 250 * MS);
    }
}

/* Nor where the publisher only ever tries. */
TEST(a_dead_subscriber_does_not_block_who_only_tries) {
    with(SHMQ_BLOCK, 0);
    FROM_EACH_START {
        shmq_queue *dead = subscriber(0);
        for (uint64_t n = 1; n <= SLOTS; n++) OK(publish(n, SHORT));
        dies(dead);
        int64_t from = shmq_now_ns();
        while (publish(SLOTS + 1, SHORT) == SHMQ_FULL) CHECK(shmq_now_ns() - from < 250 * MS);
    }
}

TEST(the_last_publisher_is_missed) {
    with(SHMQ_BLOCK, 0);
    FROM_EACH_START {
        uint64_t number;
        shmq_queue *a = subscriber(0), *one = lab_attach(fd), *two = lab_attach(fd);
        OK(lab_put(one, 1, SHORT, SHMQ_NO_WAIT));
        OK(lab_put(two, 2, SHORT, SHMQ_NO_WAIT));
        dies(one);
        CHECK_EQ(lab_reap(a), 1);
        gets(a, 1);
        gets(a, 2);
        CHECK_EQ(lab_get(a, &number, shmq_deadline(10 * MS)), SHMQ_EMPTY); /* two may still publish */
        OK(lab_put(two, 3, SHORT, SHMQ_NO_WAIT));
        dies(two);
        CHECK_EQ(lab_reap(a), 1);
        gets(a, 3); /* first what it published */
        CHECK_EQ(lab_get(a, &number, shmq_deadline(5000 * MS)), SHMQ_PEER_DEAD);
        CHECK_EQ(lab_stats(a).lost_messages, 3);
        CHECK_EQ(lab_get(a, &number, shmq_deadline(10 * MS)), SHMQ_EMPTY); /* told once */
        OK(publish(4, SHORT));                                             /* a successor */
        gets(a, 4);
        CHECK_EQ(lab_get(a, &number, shmq_deadline(10 * MS)), SHMQ_EMPTY);
        shmq_queue *b = subscriber(0); /* nobody is missed any more */
        CHECK_EQ(lab_get(b, &number, shmq_deadline(10 * MS)), SHMQ_EMPTY);
        shmq_free(b);
        shmq_free(a);
    }
}

TEST(a_publisher_that_ended_well_is_not_missed) {
    with(SHMQ_BLOCK, 0);
    FROM_EACH_START {
        uint64_t number;
        shmq_queue *a = subscriber(0), *one = lab_attach(fd);
        OK(lab_put(one, 1, SHORT, SHMQ_NO_WAIT));
        shmq_free(one);
        gets(a, 1);
        CHECK_EQ(lab_get(a, &number, shmq_deadline(10 * MS)), SHMQ_EMPTY);
        shmq_free(a);
    }
}

TEST(a_reaper_that_died_while_it_told_so_is_corrected) {
    with(SHMQ_BLOCK, 0);
    FROM_EACH_START {
        uint64_t number;
        shmq_queue *a = subscriber(0), *one = lab_attach(fd);
        OK(lab_put(one, 1, SHORT, SHMQ_NO_WAIT));
        OK(publish(2, SHORT)); /* while the reaper was about to tell, and it died before it saw this one */
        store_release(&a->control->roles.lost_producer, shmq_role_word(one->me.index, one->me.epoch));
        dies(one);
        CHECK_EQ(lab_reap(a), 1);
        gets(a, 1);
        gets(a, 2);
        CHECK_EQ(lab_get(a, &number, shmq_deadline(10 * MS)), SHMQ_EMPTY);
        shmq_free(a);
    }
}

TEST(a_message_that_was_begun_before_the_shutdown_still_comes) {
    with(SHMQ_BLOCK, 0);
    FROM_EACH_START {
        uint64_t number;
        struct shmq_record record;
        uint8_t payload[SHORT];
        shmq_queue *a = subscriber(0);
        OK(shmq_put_begin(out));
        OK(shmq_try_reserve(out, SHORT, SHMQ_RAW, 0, &record));
        store_release(&out->control->tail.cursor, out->ring.topic.first); /* it has not moved the tail yet */
        OK(shmq_shutdown(a, 0));
        CHECK_EQ(lab_get(a, &number, SHMQ_NO_WAIT), SHMQ_EMPTY);
        message_write(payload, 1, SHORT);
        memcpy(record.payload, payload, SHORT);
        store_release(&out->control->tail.cursor, out->ring.topic.first + 1);
        shmq_put_commit(out, 1, SHORT);
        gets(a, 1);
        CHECK_EQ(lab_get(a, &number, SHMQ_NO_WAIT), SHMQ_SHUT_DOWN);
        shmq_free(a);
    }
}

TEST(shutdown_ends_reading_when_drained) {
    with(SHMQ_BLOCK, 0);
    FROM_EACH_START {
        uint64_t number;
        shmq_queue *a = subscriber(0);
        OK(publish(1, BLOCK));
        OK(shmq_shutdown(out, 0));
        CHECK_EQ(publish(2, SHORT), SHMQ_SHUT_DOWN);
        gets(a, 1);
        CHECK_EQ(lab_get(a, &number, shmq_deadline(1000 * MS)), SHMQ_SHUT_DOWN);
        shmq_free(a);
    }
}

TEST(onlookers_see_what_waits) {
    with(SHMQ_BLOCK, 2);
    FROM_EACH_START {
        shmq_peeked peeked;
        uint8_t data[64];
        shmq_queue *a = subscriber(0);
        for (uint64_t n = 1; n <= 5; n++) {
            OK(publish(n, n == 4 ? BLOCK : SHORT));
            if (n < 3) gets(a, n);
        }
        CHECK_EQ(lab_stats(out).messages_put, 5);
        CHECK_EQ(lab_stats(out).messages_got, 2);
        CHECK_EQ(lab_stats(out).subscribers, 1);
        for (uint32_t i = 0; i < 3; i++) {
            OK(shmq_peek(out, i, data, sizeof data, &peeked));
            CHECK_EQ(*(uint64_t *)(void *)data, 3 + i);
        }
        CHECK_EQ(shmq_peek(out, 3, data, sizeof data, &peeked), SHMQ_EMPTY);
        for (uint64_t n = 3; n <= 5; n++) gets(a, n);
        OK(shmq_peek(out, 0, data, sizeof data, &peeked)); /* the history */
        CHECK_EQ(*(uint64_t *)(void *)data, 4);
        shmq_free(a);
    }
}

int main(int argc, char **argv) { return run_tests(argc, argv); }
