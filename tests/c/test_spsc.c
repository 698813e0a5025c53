/* The byte ring without a segment: cursors placed by hand, one act, the exact bytes. */
#define _GNU_SOURCE
#include "lab.h"

#define CAPACITY 4096u
#define MASK (CAPACITY - 1)
#define INLINE_BYTES (CAPACITY / 4)

/* Where cursors start: the ring's begin, its end, and the wrap of 64 bits. */
static const uint64_t starts[] = {0,
                                  8,
                                  CAPACITY - 16,
                                  CAPACITY - 8,
                                  UINT64_C(0) - CAPACITY,
                                  UINT64_C(0) - 24,
                                  UINT64_C(0) - 16,
                                  UINT64_C(0) - 8};
#define STARTS (sizeof starts / sizeof *starts)
#define FOR_EACH_START(start)                                                                                \
    for (uint64_t i_ = 0, start = starts[0]; i_ < STARTS; start = ++i_ < STARTS ? starts[i_] : 0)

static struct {
    struct shmq_cursor_line tail, head;
    uint8_t records[CAPACITY];
    uint8_t beyond[64]; /* nobody may touch it */
    struct shmq_spsc ring;
    struct shmq_spsc_side producer, consumer;
} rig;

static struct shmq_spsc *const ring = &rig.ring;
static struct shmq_spsc_side *const producer = &rig.producer;
static struct shmq_spsc_side *const consumer = &rig.consumer;

/* An empty ring with both cursors at `start`. */
static void rig_at(uint64_t start) {
    memset(&rig, 0, sizeof rig);
    memset(rig.records, 0xaa, sizeof rig.records);
    memset(rig.beyond, 0xbb, sizeof rig.beyond);
    rig.ring = (struct shmq_spsc){.records = rig.records,
                                  .capacity = CAPACITY,
                                  .inline_bytes = INLINE_BYTES,
                                  .tail = &rig.tail,
                                  .head = &rig.head};
    shmq_spsc_init(ring, start);
    OK(shmq_spsc_side_load(ring, true, producer));
    OK(shmq_spsc_side_load(ring, false, consumer));
}

static uint64_t header_word(uint32_t bytes, uint16_t codec, uint16_t flags) {
    return (uint64_t)bytes | (uint64_t)codec << 32 | (uint64_t)flags << 48;
}
static uint64_t word_at(uint64_t cursor) {
    uint64_t word;
    memcpy(&word, rig.records + (cursor & MASK), 8);
    return word;
}
static void set_word(uint64_t cursor, uint64_t word) { memcpy(rig.records + (cursor & MASK), &word, 8); }

/* Publishes what was put into the ring by hand. */
static void set_tail(uint64_t cursor) { store_relaxed(&rig.tail.cursor, cursor); }

static int put(const void *data, uint32_t bytes) {
    struct shmq_record record;
    int status = shmq_spsc_try_reserve(ring, producer, bytes, 0, 0, &record);
    if (status != SHMQ_OK) return status;
    if (bytes > 0) memcpy(record.payload, data, bytes);
    shmq_spsc_commit(ring, producer);
    return SHMQ_OK;
}

static int peek(struct shmq_record *record) { return shmq_spsc_try_peek(ring, consumer, record); }

/* Takes one and compares it. */
static void get_expecting(const void *data, uint32_t bytes) {
    struct shmq_record record;
    OK(peek(&record));
    CHECK_EQ(record.bytes, bytes);
    CHECK(bytes == 0 || memcmp(record.payload, data, bytes) == 0);
    shmq_spsc_release(ring, consumer);
}

static void ends_empty(void) {
    struct shmq_record record;
    CHECK_EQ(peek(&record), SHMQ_EMPTY);
    CHECK_EQ(load_relaxed(&rig.head.cursor), load_relaxed(&rig.tail.cursor));
    for (size_t i = 0; i < sizeof rig.beyond; i++) CHECK_EQ(rig.beyond[i], 0xbb);
}

/* ---- the bytes ---- */

TEST(a_record_is_header_payload_padding) {
    FOR_EACH_START(start) {
        rig_at(start);
        struct shmq_record record;
        OK(shmq_spsc_try_reserve(ring, producer, 5, 0x1234, 0x8002, &record));
        uint64_t at = (start & MASK) == CAPACITY - 8 ? start + 8 : start; /* 16 bytes do not fit in 8 */
        CHECK_EQ(record.position, at);
        CHECK_EQ(record.bytes, 5);
        CHECK(record.payload == rig.records + (at & MASK) + 8);
        memcpy(record.payload, "hello", 5);
        CHECK_EQ(load_relaxed(&rig.tail.cursor), start); /* not visible yet */
        shmq_spsc_commit(ring, producer);
        static const uint8_t bytes[16] = {5,   0,   0,   0,   0x34, 0x12, 0x02, 0x80,
                                          'h', 'e', 'l', 'l', 'o',  0xaa, 0xaa, 0xaa};
        CHECK(memcmp(rig.records + (at & MASK), bytes, sizeof bytes) == 0);
        CHECK_EQ(load_relaxed(&rig.tail.cursor), at + 16);
        CHECK_EQ(load_relaxed(&rig.head.cursor), start);

        OK(peek(&record));
        CHECK_EQ(record.codec, 0x1234);
        CHECK_EQ(record.flags, 0x8002);
        CHECK_EQ(record.position, at);
        CHECK_EQ(load_relaxed(&rig.head.cursor), start); /* still there for a successor */
        shmq_spsc_release(ring, consumer);
        CHECK_EQ(load_relaxed(&rig.head.cursor), at + 16);
        ends_empty();
    }
}

TEST(a_pad_record_fills_the_end) {
    for (uint64_t turns = 0; turns < 2; turns++) { /* the second ends at 2^64 */
        for (uint64_t left = 8; left < 32; left += 8) {
            uint64_t start = turns * (UINT64_C(0) - CAPACITY) + CAPACITY - left;
            rig_at(start);
            OK(put("0123456789abcdef01234567", 24)); /* 32 bytes, more than is left */
            CHECK_EQ(word_at(start), header_word((uint32_t)left - 8, 0, SHMQ_RECORD_PAD));
            CHECK_EQ(word_at(start + left), header_word(24, 0, 0));
            CHECK_EQ((start + left) & MASK, 0);
            CHECK_EQ(load_relaxed(&rig.tail.cursor), start + left + 32);
            get_expecting("0123456789abcdef01234567", 24);
            ends_empty();
        }
    }
}

TEST(a_record_that_ends_with_the_ring_needs_no_pad) {
    for (uint64_t turns = 0; turns < 2; turns++) {
        uint64_t start = turns * (UINT64_C(0) - CAPACITY) + CAPACITY - 32;
        rig_at(start);
        OK(put("0123456789abcdef01234567", 24));
        CHECK_EQ(word_at(start), header_word(24, 0, 0));
        CHECK_EQ(load_relaxed(&rig.tail.cursor), start + 32);
        OK(put("", 0)); /* an empty message is a header */
        CHECK_EQ(word_at(start + 32), header_word(0, 0, 0));
        CHECK_EQ(load_relaxed(&rig.tail.cursor), start + 40);
        get_expecting("0123456789abcdef01234567", 24);
        get_expecting("", 0);
        ends_empty();
    }
}

/* Two entries alternate; the one whose `at` is the cursor counts. */
TEST(tally_entries_alternate) {
    FOR_EACH_START(start) {
        rig_at(start);
        uint64_t at[3];
        for (int i = 0; i < 3; i++) {
            OK(put("x", 1));
            at[i] = load_relaxed(&rig.tail.cursor);
        }
        CHECK_EQ(load_relaxed(&rig.tail.tally[0].at), at[2]);
        CHECK_EQ(load_relaxed(&rig.tail.tally[0].messages), 3);
        CHECK_EQ(load_relaxed(&rig.tail.tally[1].at), at[1]);
        CHECK_EQ(load_relaxed(&rig.tail.tally[1].messages), 2);
        CHECK_EQ(shmq_spsc_messages(&rig.tail), 3);
        CHECK_EQ(shmq_spsc_messages(&rig.head), 0);
        get_expecting("x", 1);
        CHECK_EQ(shmq_spsc_messages(&rig.head), 1);
    }
}

/* Where neither entry is valid at the cursor, because the side moves faster than we look, the later one counts:
 * a counter that is read again and again never goes back. */
TEST(a_count_never_goes_back) {
    for (uint32_t later = 0; later < 2; later++) {
        FOR_EACH_START(start) {
            rig_at(start);
            store_relaxed(&rig.tail.tally[later].messages, 6);
            store_relaxed(&rig.tail.tally[later].at, start + 96);
            store_relaxed(&rig.tail.tally[1 - later].messages, 5);
            store_relaxed(&rig.tail.tally[1 - later].at, start + 80);
            set_tail(start + 112);
            CHECK_EQ(shmq_spsc_messages(&rig.tail), 6);
        }
    }
}

/* ---- full and empty ---- */

TEST(full_to_the_last_byte) {
    FOR_EACH_START(start) {
        rig_at(start & ~(uint64_t)MASK); /* records of 512 that tile the ring */
        uint8_t payload[504];
        for (uint8_t i = 0; i < 8; i++) {
            memset(payload, i, sizeof payload);
            OK(put(payload, sizeof payload));
        }
        CHECK_EQ(load_relaxed(&rig.tail.cursor) - load_relaxed(&rig.head.cursor), CAPACITY);
        struct shmq_record record;
        struct shmq_spsc_side before = *producer;
        CHECK_EQ(shmq_spsc_try_reserve(ring, producer, 0, 0, 0, &record), SHMQ_FULL);
        CHECK_EQ(producer->ahead, before.ahead);
        CHECK_EQ(producer->messages, before.messages);
        CHECK_EQ(word_at(producer->ahead), header_word(504, 0, 0)); /* the oldest is untouched */
        CHECK(!shmq_spsc_room(ring, producer->cursor, 0));
        OK(shmq_spsc_valid(ring));

        memset(payload, 0, sizeof payload);
        get_expecting(payload, sizeof payload);
        CHECK(shmq_spsc_room(ring, producer->cursor, sizeof payload));
        CHECK(!shmq_spsc_room(ring, producer->cursor, sizeof payload + 1));
        CHECK_EQ(shmq_spsc_try_reserve(ring, producer, sizeof payload + 1, 0, 0, &record), SHMQ_FULL);
        memset(payload, 8, sizeof payload);
        OK(put(payload, sizeof payload));
        for (uint8_t i = 1; i < 9; i++) {
            memset(payload, i, sizeof payload);
            get_expecting(payload, sizeof payload);
        }
        ends_empty();
    }
}

/* For every offset and every fill: room() says exactly what try_reserve() does. */
TEST(room_agrees_with_reserve) {
    for (uint64_t start = 0; start < CAPACITY; start += 8) {
        for (uint32_t used = 0; used <= 1024; used += 256) {
            static const uint32_t sizes[] = {0, 8, 1000, 1016, 1024};
            for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
                rig_at(UINT64_C(0) - CAPACITY + start);
                uint8_t payload[INLINE_BYTES] = {0};
                for (uint32_t filled = 0; filled < 3; filled++)
                    if (used > 0) (void)put(payload, used - 8);
                struct shmq_record record;
                bool room = shmq_spsc_room(ring, producer->cursor, sizes[k]);
                int status = shmq_spsc_try_reserve(ring, producer, sizes[k], 0, 0, &record);
                CHECK_EQ(status, room ? SHMQ_OK : SHMQ_FULL);
            }
        }
    }
}

/* A quarter of the ring, from every offset into the empty ring: record and pad always fit. */
TEST(the_largest_inline_record_always_fits_an_empty_ring) {
    uint8_t payload[INLINE_BYTES];
    for (size_t i = 0; i < sizeof payload; i++) payload[i] = (uint8_t)(i * 7);
    for (uint64_t turns = 0; turns < 2; turns++) {
        for (uint64_t offset = 0; offset < CAPACITY; offset += 8) {
            rig_at(turns * (UINT64_C(0) - CAPACITY) + offset);
            OK(put(payload, sizeof payload));
            get_expecting(payload, sizeof payload);
            OK(put(payload, sizeof payload));
            get_expecting(payload, sizeof payload);
            ends_empty();
        }
    }
}

TEST(nothing_is_visible_before_commit) {
    FOR_EACH_START(start) {
        rig_at(start);
        struct shmq_record a, b;
        for (int i = 0; i < 3; i++) {
            OK(shmq_spsc_try_reserve(ring, producer, 40, 0, 0, &a));
            memset(a.payload, i, 40);
            CHECK_EQ(peek(&b), SHMQ_EMPTY);
            CHECK(!shmq_spsc_unread(ring, consumer->cursor));
        }
        shmq_spsc_commit(ring, producer); /* one store, three messages */
        CHECK(shmq_spsc_unread(ring, consumer->cursor));
        CHECK_EQ(shmq_spsc_messages(&rig.tail), 3);
        for (int i = 0; i < 3; i++) {
            OK(peek(&b));
            CHECK_EQ(b.payload[0], i);
            CHECK_EQ(load_relaxed(&rig.head.cursor), start); /* a run is released whole */
        }
        shmq_spsc_release(ring, consumer);
        CHECK_EQ(shmq_spsc_messages(&rig.head), 3);
        ends_empty();
    }
}

TEST(abort_forgets_what_was_reserved) {
    FOR_EACH_START(start) {
        rig_at(start);
        struct shmq_record record;
        struct shmq_spsc_side before = *producer;
        OK(shmq_spsc_try_reserve(ring, producer, 100, 0, 0, &record));
        shmq_spsc_abort(producer, &before);
        CHECK_EQ(load_relaxed(&rig.tail.cursor), start);
        OK(put("next", 4));
        get_expecting("next", 4);
        CHECK_EQ(shmq_spsc_messages(&rig.tail), 1);
        ends_empty();
    }
}

/* ---- taking over from the dead ---- */

/* A side dies in its nth publish, before each of the three stores.  Its successor finds the cursor where the
 * last complete publish put it, with the count that belongs there. */
TEST(a_publish_cut_short_is_no_publish) {
    enum { BEFORE_COUNT, BEFORE_AT, BEFORE_CURSOR, WHOLE, CUTS };
    FOR_EACH_START(start) {
        for (uint32_t published = 0; published < 4; published++) {
            for (int cut = BEFORE_COUNT; cut < CUTS; cut++) {
                rig_at(start);
                for (uint32_t i = 0; i < published; i++) OK(put("x", 1));
                uint32_t entry = producer->flip ^ 1;
                uint64_t next = producer->cursor + 16;
                if (cut > BEFORE_COUNT) store_relaxed(&rig.tail.tally[entry].messages, published + 1);
                if (cut > BEFORE_AT) store_relaxed(&rig.tail.tally[entry].at, next);
                if (cut > BEFORE_CURSOR) store_relaxed(&rig.tail.cursor, next);
                uint64_t expected = published + (cut == WHOLE);
                CHECK_EQ(shmq_spsc_messages(&rig.tail), expected);
                if (cut == WHOLE) continue;

                struct shmq_spsc_side successor;
                OK(shmq_spsc_side_load(ring, true, &successor));
                CHECK_EQ(successor.cursor, next - 16);
                CHECK_EQ(successor.messages, expected);
                *producer = successor;
                for (uint32_t i = 1; i <= 3; i++) {
                    OK(put("y", 1));
                    CHECK_EQ(shmq_spsc_messages(&rig.tail), expected + i);
                }
            }
        }
    }
}

TEST(a_consumer_that_did_not_release_has_taken_nothing) {
    FOR_EACH_START(start) {
        rig_at(start);
        OK(put("one", 3));
        OK(put("two", 3));
        struct shmq_record record;
        OK(peek(&record));
        OK(peek(&record)); /* and dies */
        OK(shmq_spsc_side_load(ring, false, consumer));
        get_expecting("one", 3);
        get_expecting("two", 3);
        ends_empty();
    }
}

TEST(a_producer_that_did_not_commit_has_put_nothing) {
    FOR_EACH_START(start) {
        rig_at(start);
        OK(put("one", 3));
        struct shmq_record record;
        OK(shmq_spsc_try_reserve(ring, producer, 900, 0, 0, &record));
        memset(record.payload, 0xee, 900); /* and dies */
        OK(shmq_spsc_side_load(ring, true, producer));
        OK(put("two", 3));
        get_expecting("one", 3);
        get_expecting("two", 3);
        ends_empty();
    }
}

/* ---- garbage ---- */

TEST(a_record_is_checked_before_it_is_used) {
    static const struct {
        uint64_t offset, unread, word;
    } garbage[] = {
        {0, 16, (uint64_t)9},                        /* longer than what is published */
        {0, 16, UINT32_MAX},                         /* 4 GiB */
        {0, 2048, INLINE_BYTES + 1},                 /* longer than in-line payloads are */
        {CAPACITY - 16, 32, (uint64_t)9},            /* beyond the ring's end */
        {CAPACITY - 8, 16, (uint64_t)1},             /* the same by one byte */
        {0, 32, UINT64_C(1) << 48 | 25},             /* a pad that is longer than what is published */
        {CAPACITY - 16, 32, UINT64_C(1) << 48 | 16}, /* a pad beyond the end */
        {0, 16, UINT64_C(0xffffffffffffffff)},       /* all ones */
    };
    for (size_t i = 0; i < sizeof garbage / sizeof *garbage; i++) {
        for (uint64_t turns = 0; turns < 2; turns++) {
            uint64_t start = turns * (UINT64_C(0) - CAPACITY) + garbage[i].offset;
            rig_at(start);
            set_word(start, garbage[i].word);
            set_tail(start + garbage[i].unread);
            struct shmq_record record;
            struct shmq_spsc_side before = *consumer;
            CHECK_EQ(peek(&record), SHMQ_CORRUPT);
            CHECK_EQ(consumer->cursor, before.cursor);
            CHECK_EQ(consumer->messages, before.messages);
            CHECK_EQ(shmq_spsc_look(ring, 0, &record), SHMQ_CORRUPT);
        }
    }
}

/* Pads never follow each other, and one is never published alone: a reader that skipped it would say "empty"
 * while its cursor says "unread", and wait without end for what seems to be there. */
TEST(pads_come_one_at_a_time_and_never_last) {
    for (uint64_t pads = 1; pads < 5; pads++) {
        rig_at(0);
        for (uint64_t i = 0; i < pads; i++) set_word(16 * i, header_word(8, 0, SHMQ_RECORD_PAD));
        set_tail(16 * pads);
        struct shmq_record record;
        for (int again = 0; again < 3; again++) CHECK_EQ(peek(&record), SHMQ_CORRUPT);
        CHECK_EQ(consumer->ahead, 0);
    }
}

TEST(the_tail_is_not_believed) {
    static const uint64_t wrong[] = {CAPACITY + 8, 1, 4, 7, UINT64_C(0) - 8, UINT64_C(1) << 63};
    FOR_EACH_START(start) {
        for (size_t k = 0; k < sizeof wrong / sizeof *wrong; k++) {
            struct shmq_record record;
            rig_at(start);
            set_tail(start + wrong[k]);
            CHECK_EQ(peek(&record), SHMQ_CORRUPT);
            CHECK_EQ(shmq_spsc_look(ring, 0, &record), SHMQ_CORRUPT);
            CHECK_EQ(shmq_spsc_side_load(ring, false, consumer), SHMQ_CORRUPT);
            CHECK_EQ(shmq_spsc_side_load(ring, true, producer), SHMQ_CORRUPT);
            CHECK_EQ(shmq_spsc_valid(ring), SHMQ_CORRUPT);
        }
    }
}

TEST(the_head_is_not_believed) {
    static const uint64_t wrong[] = {8, 1, UINT64_C(0) - CAPACITY - 8, UINT64_C(0) - 7, UINT64_C(1) << 63};
    FOR_EACH_START(start) {
        for (size_t k = 0; k < sizeof wrong / sizeof *wrong; k++) {
            struct shmq_record record;
            rig_at(start);
            while (put("x", 1) == SHMQ_OK) continue; /* so that the producer has to look */
            struct shmq_spsc_side before = *producer;
            store_relaxed(&rig.head.cursor, producer->cursor + wrong[k]);
            CHECK_EQ(shmq_spsc_try_reserve(ring, producer, 1, 0, 0, &record), SHMQ_CORRUPT);
            CHECK_EQ(producer->ahead, before.ahead);
            CHECK_EQ(shmq_spsc_side_load(ring, true, producer), SHMQ_CORRUPT);
            CHECK_EQ(shmq_spsc_valid(ring), SHMQ_CORRUPT);
        }
    }
}

/* ---- onlookers ---- */

TEST(look_finds_the_nth_message_and_takes_nothing) {
    FOR_EACH_START(start) {
        rig_at(start);
        char text[] = "0";
        for (int i = 0; i < 9; i++, text[0]++) OK(put(text, 1));
        struct shmq_record record;
        for (uint32_t i = 0; i < 9; i++) {
            OK(shmq_spsc_look(ring, i, &record));
            CHECK_EQ(record.payload[0], '0' + i);
        }
        CHECK_EQ(shmq_spsc_look(ring, 9, &record), SHMQ_EMPTY);
        CHECK_EQ(load_relaxed(&rig.head.cursor), start);
        get_expecting("0", 1);
        OK(shmq_spsc_look(ring, 0, &record));
        CHECK_EQ(record.payload[0], '1');
    }
}

/* ---- the model ---- */

/* Random puts, runs, aborts, gets and take-overs against an array: same messages, same order. */
TEST(behaves_like_a_list) {
    FOR_EACH_START(start) {
        uint64_t random = start * 2 + 1, sent = 0, received = 0;
        rig_at(start);
        for (int step = 0; step < 40000; step++) {
            struct shmq_record record;
            uint64_t what = below(&random, 100);
            if (what < 45) { /* a run of one to four; sometimes aborted, or its producer dies */
                struct shmq_spsc_side before = *producer;
                uint64_t run = 1 + below(&random, 4), done = 0;
                for (; done < run; done++) {
                    uint32_t bytes = (uint32_t)(MESSAGE_MIN + below(&random, INLINE_BYTES - MESSAGE_MIN + 1));
                    if (below(&random, 2) == 0) bytes = bytes % 40 + MESSAGE_MIN;
                    if (shmq_spsc_try_reserve(ring, producer, bytes, 0, 0, &record) != SHMQ_OK) break;
                    message_write(record.payload, sent + done, bytes);
                }
                if (what < 3) {
                    shmq_spsc_abort(producer, &before);
                } else if (what < 6) {
                    OK(shmq_spsc_side_load(ring, true, producer));
                } else if (done > 0) {
                    shmq_spsc_commit(ring, producer);
                    sent += done;
                }
            } else if (what < 98) {
                struct shmq_spsc_side before = *consumer;
                uint64_t run = 1 + below(&random, 4), done = 0;
                for (; done < run && peek(&record) == SHMQ_OK; done++)
                    CHECK_EQ(message_number(record.payload, record.bytes), received + done);
                if (done < run) CHECK_EQ(received + done, sent); /* empty means empty */
                if (what < 50) {
                    *consumer = before;
                } else if (what < 53) {
                    OK(shmq_spsc_side_load(ring, false, consumer));
                } else if (done > 0) {
                    shmq_spsc_release(ring, consumer);
                    received += done;
                }
            } else {
                OK(shmq_spsc_valid(ring));
                CHECK_EQ(shmq_spsc_messages(&rig.tail), sent);
                CHECK_EQ(shmq_spsc_messages(&rig.head), received);
                CHECK_EQ(shmq_spsc_look(ring, (uint32_t)(sent - received), &record), SHMQ_EMPTY);
            }
        }
        CHECK(received > 4000);
        for (size_t i = 0; i < sizeof rig.beyond; i++) CHECK_EQ(rig.beyond[i], 0xbb);
    }
}

int main(int argc, char **argv) { return run_tests(argc, argv); }
