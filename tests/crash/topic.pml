/* topic.pml: the ring of a topic, the blocks that the ring and its readers share, and their repair, for the model
 * checker Spin.
 *
 *     python tests/crash/model.py            all configurations and all seeded bugs
 *
 * As in mpmc.pml: what csrc/topic.c, csrc/share.c, csrc/arena.c and csrc/recover.c do to a shared word (slot word,
 * page word, readers word, tail, head, cursor, subscription, joins, peer word) is one step, and between any two
 * steps any other process may run, this one may die, and this one may stop for ever.  One step here are also: a
 * load and the CAS loop behind it; the look at a slot's word, its handle and its word again, since a handle stands
 * still while its slot is READY; and the look at all subscriptions and cursors.
 *
 * All subscribers but the last are there from the start, it joins when it likes; each may leave, read no more, or
 * die, and somebody may join in its place.  Each publisher's messages are numbered; each
 * number is tried once.  With BLOCKS 0 all messages lie in their slot, else all lie in a block of one page.
 * Generations of a page count modulo GENERATIONS: 2 of them
 * stand for the 4096 lives after which a handle comes round, in a long lap or while somebody is stopped.
 * Positions do not wrap here (mpmc.pml has that), nor does a page word's argument.
 *
 * Not modelled: weak memory, blocks of several pages, waits and wake-ups, policy "evict", observers, and a
 * subscriber that gets the next message before it has given back the block of the last one.
 *
 * Properties, as assertions:
 *   (a) who reads a message reads the one that was published at that position, from its block as well, until it
 *       lets go: no block is reused under a reader                       own_message()
 *   (b) policy "block": a subscriber is not overtaken, and finds the block of each message since it joined; at
 *       the end all that it has not read is still there                  overtaken, missed, check_words()
 *   (c) at the end each page is free, or held by a process that is stopped, or by the ring for a message that
 *       names it; and the head lies before the latter, so that a publisher finds it  check_words()
 *   (d) no slot and no block has two owners                              own_slot(), own_page()
 *   (e) nobody is stuck: a process with no branch is an invalid end state
 *
 * Seeded bugs are macros BUG_...: see model.py.
 */

#ifndef PUBLISHERS
#define PUBLISHERS 1
#endif
#ifndef SUBSCRIBERS
#define SUBSCRIBERS 2
#endif
#ifndef REAPERS
#define REAPERS 1
#endif
#ifndef MESSAGES /* of each publisher */
#define MESSAGES 3
#endif
#ifndef DEATHS
#define DEATHS 1
#endif
#ifndef STOPS
#define STOPS 0
#endif
#ifndef BLOCKS /* at most 3 */
#define BLOCKS 0
#endif
#ifndef GENERATIONS
#define GENERATIONS 4
#endif
#ifndef GIVE_UPS /* how often a publisher may discard a loan */
#define GIVE_UPS 0
#endif
#ifndef HISTORY /* at most half a ring */
#define HISTORY 0
#endif
#ifndef DROP_OLDEST /* else policy "block" */
#define DROP_OLDEST 0
#endif

#define SLOTS 2
#define START 2
#define POSITIONS 10
#define PEERS (PUBLISHERS + SUBSCRIBERS) /* at most 4 */

/* ---- words, as in csrc/layout.h ---- */

#define FREE 0
#define WRITING 1
#define READY 2
#define TOMB 4
#define AT(state, owner, position) ((state) | (owner) << 3 | ((position) / SLOTS) << 6)
#define STATE(word) ((word) & 7)
#define OWNER(word) ((word) >> 3 & 7)
#define LAP(word) ((word) >> 6)
#define AHEAD(word, position) (LAP(word) - (position) / SLOTS)
#define SLOT(position) slot[(position) % SLOTS]

#define LOANED 1
#define INFLIGHT 2
#define LEASED 3
#define PAGE(state, owner, gen, pos) ((state) | (owner) << 3 | (gen) << 6 | (pos) << 9)
#define PAGE_OWNER(page) ((page) >> 3 & 7)
#define GENERATION(page) ((page) >> 6 & 7)
#define ARGUMENT(page) ((page) >> 9)
#define HANDLE(block, generation) ((block) | (generation) << 2)
#define HANDLE_BLOCK(handle) ((handle) & 3)
#define HANDLE_GENERATION(handle) ((handle) >> 2)

#define RING 16 /* above the bits of four peers */
#define HOLDERS(readers) ((readers) & 31)
#define READERS_GENERATION(readers) ((readers) >> 5)
#define BIT(peer) (1 << (peer))

short slot[SLOTS];
byte tail, head, joins;
byte cursor[SUBSCRIBERS];
bit subscribed[SUBSCRIBERS];
#if BLOCKS > 0
short page[BLOCKS];
short readers[BLOCKS];
byte handle[SLOTS];
byte payload[BLOCKS]; /* the number of the message in that block; 0: being written */
#else
byte content[SLOTS];
#endif

/* ---- peers ---- */

#define LIVE 0
#define DEAD 1
#define VACANT 2
byte peer[PEERS];
bit reaping[PEERS];
byte busy, finished, deaths, stops, give_ups;
bit stopped[PEERS];

/* ---- what the properties are about: known to no process ---- */

byte published[POSITIONS]; /* the number of the message that was READY there; 0: none */
byte next[PUBLISHERS];
byte since[SUBSCRIBERS]; /* where each joined */

#define own_message(position, number) assert((number) != 0 && (number) == published[position])
#define own_slot(me, position) assert(SLOT(position) == AT(WRITING, me, position))
#define own_page(block, word) assert(page[block] == (word))
#define NAMES(position) (SLOT(position) == AT(READY, 0, position))

#define DIES(cleanup)                                                                                        \
    :: d_step { deaths < DEATHS -> deaths++; cleanup; peer[me] = DEAD }; goto gone                           \
    :: d_step { stops < STOPS -> stops++; cleanup; stopped[me] = 1; finished++ }; goto ended

/* ---- parts of every process; `to` says where each goes on ---- */

#define LOOK_AT_CURSORS(slowest)                                                                             \
    n = 0;                                                                                                   \
    do                                                                                                       \
    :: n < SUBSCRIBERS ->                                                                                    \
        if                                                                                                   \
        :: subscribed[n] && cursor[n] < slowest -> slowest = cursor[n]                                       \
        :: else                                                                                              \
        fi;                                                                                                  \
        n++                                                                                                  \
    :: else -> break                                                                                         \
    od;                                                                                                      \
    n = 0

/* share.c needed_from(): `end` is the oldest position that a subscriber needs; `kept`: or the history. */
#define SCAN(NAME, MAY_DIE, kept)                                                                            \
    NAME:                                                                                                    \
    if                                                                                                       \
    MAY_DIE                                                                                                  \
    :: d_step { true -> least = tail - ((kept) < tail - START -> (kept) : tail - START) }      \
    fi;                                                                                                      \
    if                                                                                                       \
    MAY_DIE                                                                                                  \
    :: d_step { true -> LOOK_AT_CURSORS(least); end = least; least = 0 }                                     \
    fi

#if BLOCKS > 0
#define ITS_READERS readers[HANDLE_BLOCK(h)]
#define ITS_PAGE page[HANDLE_BLOCK(h)]
#define IS_SHARED                                                                                            \
    (READERS_GENERATION(ITS_READERS) == HANDLE_GENERATION(h) && (ITS_READERS & RING) != 0)
#ifdef BUG_NO_LOOK_BEHIND
#define IS_ITS true
#else
#ifdef BUG_LOOK_AT_SLOT
#define IS_ITS (NAMES(pos) && handle[(pos) % SLOTS] == h)
#else
#define IS_ITS                                                                                               \
    (STATE(ITS_PAGE) == INFLIGHT && GENERATION(ITS_PAGE) == HANDLE_GENERATION(h) && ARGUMENT(ITS_PAGE) == pos)
#endif
#endif

/* arena.c hold(), and share.c's look behind it: `held` says whether it is the message's. */
#define HOLD(NAME, MAY_DIE, hands)                                                                           \
    NAME:                                                                                                    \
    if                                                                                                       \
    MAY_DIE                                                                                                  \
    :: d_step { IS_SHARED && (ITS_READERS & BIT(hands)) == 0 ->                                              \
        ITS_READERS = ITS_READERS | BIT(hands); held = 1 }                                                   \
    :: d_step { !(IS_SHARED && (ITS_READERS & BIT(hands)) == 0) -> held = 0 }                                \
    fi;                                                                                                      \
    if                                                                                                       \
    :: held == 0 -> skip                                                                                     \
    :: held == 1 ->                                                                                          \
        if                                                                                                   \
        MAY_DIE                                                                                              \
        :: d_step { IS_ITS }                                                                                 \
        :: d_step { !(IS_ITS) -> held = 0; ring = 0 }; goto let_go                                           \
        fi                                                                                                   \
    fi

/* arena.c let_go(): of block `h`, and the ring's hold if `ring`; then goto let_gone. */
#define LEFT (ITS_READERS & ~(BIT(HANDS) | (ring -> RING : 0)))
#ifdef BUG_NO_LEASED
#define LEFT_BY_THE_LAST (ITS_READERS & ~(RING | BIT(HANDS)))
#define LAST_TAKES PAGE(FREE, 0, GENERATION(ITS_PAGE), 0)
#else
#define LEFT_BY_THE_LAST (ITS_READERS & ~RING)
#define LAST_TAKES PAGE(LEASED, HANDS, GENERATION(ITS_PAGE), 0)
#endif
#define LET_GO(MAY_DIE)                                                                                      \
    let_go:                                                                                                  \
    if                                                                                                       \
    MAY_DIE                                                                                                  \
    :: d_step { (ITS_READERS & BIT(HANDS)) == 0 -> skip }; goto let_gone                                     \
    :: d_step { (ITS_READERS & BIT(HANDS)) != 0 && HOLDERS(LEFT) != 0 -> ITS_READERS = LEFT }; goto let_gone \
    :: d_step { (ITS_READERS & BIT(HANDS)) != 0 && HOLDERS(LEFT) == 0 -> ITS_READERS = LEFT_BY_THE_LAST }    \
    fi;                                                                                                      \
    if                                                                                                       \
    MAY_DIE                                                                                                  \
    :: d_step { STATE(ITS_PAGE) == INFLIGHT -> ITS_PAGE = LAST_TAKES }                                       \
    :: d_step { STATE(ITS_PAGE) != INFLIGHT -> skip }; goto let_gone                                         \
    fi;                                                                                                      \
    if                                                                                                       \
    MAY_DIE                                                                                                  \
    :: d_step { STATE(ITS_PAGE) == FREE -> skip } /* BUG_NO_LEASED has done it */                            \
    :: d_step { STATE(ITS_PAGE) != FREE ->                                                                   \
        own_page(HANDLE_BLOCK(h), PAGE(LEASED, HANDS, GENERATION(ITS_PAGE), 0));                             \
        ITS_PAGE = PAGE(FREE, 0, GENERATION(ITS_PAGE), 0) }                                                  \
    fi

/* share.c drop(), of the message at `pos`; then goto let_gone. */
#define DROP(MAY_DIE)                                                                                        \
    drop:                                                                                                    \
    if                                                                                                       \
    MAY_DIE                                                                                                  \
    :: d_step { NAMES(pos) -> h = handle[(pos) % SLOTS] }                                                    \
    :: d_step { !NAMES(pos) -> skip }; goto let_gone                                                         \
    fi;                                                                                                      \
    HOLD(drop_hold, MAY_DIE, HANDS);                                                                         \
    if                                                                                                       \
    :: held == 0 -> goto let_gone                                                                            \
    :: held == 1 -> held = 0; ring = 1                                                                       \
    fi;                                                                                                      \
    LET_GO(MAY_DIE);                                                                                         \
    goto let_gone

/* share.c give_up_blocks(), up to `end`; then goto trimmed. */
#define HEAD_KEPT                                                                                            \
    (NAMES(head) && READERS_GENERATION(HEAD_READERS) == HANDLE_GENERATION(HEAD_HANDLE) &&                    \
     (HEAD_READERS & RING) != 0 && ARGUMENT(page[HANDLE_BLOCK(HEAD_HANDLE)]) == head)
#define HEAD_HANDLE handle[head % SLOTS]
#define HEAD_READERS readers[HANDLE_BLOCK(HEAD_HANDLE)]
#define HEAD_WRITTEN (STATE(SLOT(head)) == WRITING && AHEAD(SLOT(head), head) <= 0)
#define OLDEST (tail - SLOTS)
#ifdef BUG_HEAD_FIRST
#define FOUND_AT_HEAD head++
#else
#define FOUND_AT_HEAD skip
#endif
#define TRIM(MAY_DIE)                                                                                        \
    trim:                                                                                                    \
    if                                                                                                       \
    MAY_DIE                                                                                                  \
    :: d_step { head < OLDEST -> head = OLDEST }; goto trim                                                  \
    :: d_step { head >= OLDEST && (head >= end || HEAD_WRITTEN) -> skip }; goto trimmed                      \
    :: d_step { head >= OLDEST && head < end && !HEAD_WRITTEN && HEAD_KEPT -> pos = head; FOUND_AT_HEAD };   \
        goto drop                                                                                            \
    :: d_step { head >= OLDEST && head < end && !HEAD_WRITTEN && !HEAD_KEPT -> pos = head }                  \
    fi;                                                                                                      \
    if                                                                                                       \
    MAY_DIE                                                                                                  \
    :: d_step { true ->                                                                                      \
        if                                                                                                   \
        :: head == pos -> head = pos + 1                                                                     \
        :: else                                                                                              \
        fi;                                                                                                  \
        pos = 0 }; goto trim                                                                                 \
    fi
#endif

/* ---- publisher ---- */

#define NUMBER (me * MESSAGES + next[me] + 1)
#define P_LOCALS at = 0; word = 0; n = 0; end = 0; least = 0; pos = 0; h = 0; held = 0; ring = 0; to = 0
#define P_FORGET next[me]++; block = 0; mine = 0; cleared = 0; P_LOCALS
#define P_DIES DIES(P_FORGET; gate = 0; seen_joins = 0)
#define LOAN(b, before)                                                                                      \
    :: d_step { next[me] < MESSAGES && (before) && !NONE_FREE(b) ->                                          \
        block = b;                                                                                           \
        mine = page[b] }; goto loan
#define NONE_FREE(b) ((b) >= BLOCKS || STATE(page[(b) % BLOCKS]) != FREE)

#define CLEAR 1
#define EXPIRE 2
#define RECLAIM 3
#define AFTER_CLAIM 4

proctype publisher(byte me) {
    byte at, block, n, end, least, pos, h, to;
    byte gate, seen_joins; /* as csrc/core.h says */
    bit held, ring, cleared;
    short word, mine; /* a slot's, our block's page word */
#define HANDS me
idle:
    if
    :: d_step { true -> finished++ }; goto ended
#if BLOCKS > 0
    LOAN(0, true) LOAN(1, NONE_FREE(0)) LOAN(2, NONE_FREE(0) && NONE_FREE(1))
    :: d_step { next[me] < MESSAGES && NONE_FREE(0) && NONE_FREE(1) && NONE_FREE(2) -> to = RECLAIM };
#if DROP_OLDEST
        d_step { true -> end = tail }; goto trim
#else
        goto scan_none
#endif
#else
    :: d_step { next[me] < MESSAGES -> skip }; goto reserve
#endif
    fi;

#if BLOCKS > 0
loan:
    if
    P_DIES
    :: d_step { page[block] == mine ->
        mine = PAGE(LOANED, me, (GENERATION(mine) + 1) % GENERATIONS, 0);
        page[block] = mine;
        payload[block] = NUMBER }
    :: d_step { page[block] != mine -> block = 0; mine = 0 }; goto idle
    fi;
#endif

reserve:
    if
    P_DIES
    :: d_step { true -> at = tail }
#if BLOCKS > 0
    :: d_step { give_ups < GIVE_UPS -> give_ups++; own_page(block, mine);
        page[block] = PAGE(FREE, 0, GENERATION(mine), 0);
        block = 0; mine = 0; cleared = 0; at = 0 }; goto idle
    :: d_step { true -> own_page(block, mine); /* and no more of this number: the ring is full, say */
        page[block] = PAGE(FREE, 0, GENERATION(mine), 0);
        P_FORGET }; goto idle
#else
    :: d_step { true -> P_FORGET }; goto idle
#endif
    fi;

    if
    P_DIES
    :: d_step { (AHEAD(SLOT(at), at) == 0 && STATE(SLOT(at)) == FREE) ||
                (AHEAD(SLOT(at), at) == -1 && (STATE(SLOT(at)) == READY || STATE(SLOT(at)) == TOMB)) ->
        word = SLOT(at) }
    :: d_step { AHEAD(SLOT(at), at) == -1 && STATE(SLOT(at)) == WRITING -> at = 0 }; goto reserve /* FULL */
    :: d_step { AHEAD(SLOT(at), at) < -1 || (AHEAD(SLOT(at), at) == -1 && STATE(SLOT(at)) == FREE) ->
        assert(false) }
    :: d_step { AHEAD(SLOT(at), at) > 0 || (AHEAD(SLOT(at), at) == 0 && STATE(SLOT(at)) != FREE) }; goto help
    fi;

#if !DROP_OLDEST
    if
    P_DIES
    :: d_step { joins == seen_joins && at - gate < SLOTS }; goto gated
    :: d_step { joins != seen_joins || at - gate >= SLOTS -> seen_joins = joins }
    fi;
    if
    P_DIES
    :: d_step { true -> gate = at; LOOK_AT_CURSORS(gate) }
    fi;
    if
    :: d_step { at - gate < SLOTS }
    :: d_step { at - gate >= SLOTS -> at = 0; word = 0 }; goto reserve /* FULL */
    fi;
gated:
#endif
#if BLOCKS > 0
    if
    :: d_step { STATE(word) == READY && !cleared -> pos = at - SLOTS;
#ifdef BUG_RING_AFTER_CLAIM
        h = handle[pos % SLOTS] }
#else
        to = CLEAR; at = 0; word = 0 }; goto drop
#endif
    :: d_step { STATE(word) != READY || cleared }
    fi;
#endif
    if
    P_DIES
    :: d_step { SLOT(at) == word ->
        SLOT(at) = AT(WRITING, me, at);
        word = 0; cleared = 0;
        assert(at < POSITIONS - 1) }
    :: d_step { SLOT(at) != word -> at = 0; word = 0; cleared = 0 }; goto reserve
    fi;
    if
    P_DIES
    :: d_step { true ->
        if
        :: tail == at -> tail = at + 1
        :: else
        fi }
    fi;
#if BLOCKS > 0
#ifdef BUG_RING_AFTER_CLAIM
    if
    :: h != 0 || pos != 0 -> to = AFTER_CLAIM; goto drop_hold
    :: else
    fi;
claimed:
#endif
    if
    P_DIES
    :: d_step { true -> own_page(block, mine);
        readers[block] = RING | GENERATION(mine) << 5 }
    fi;
    if
    P_DIES
    :: d_step { true -> own_page(block, mine);
        mine = PAGE(INFLIGHT, me, GENERATION(mine), at);
        page[block] = mine }
    fi;
#endif
    if
    P_DIES
    :: d_step { true -> own_slot(me, at);
#if BLOCKS > 0
        handle[at % SLOTS] = HANDLE(block, GENERATION(mine))
#else
        content[at % SLOTS] = NUMBER
#endif
        }
    fi;
    if
    P_DIES
    :: d_step { true -> own_slot(me, at);
        SLOT(at) = AT(READY, 0, at);
        published[at] = NUMBER;
        pos = at - HISTORY; end = at;
        next[me]++; at = 0; block = 0; mine = 0 }
    fi;
#if BLOCKS > 0 && HISTORY > 0
    to = EXPIRE;
    SCAN(scan_history, P_DIES, HISTORY);
    if
    :: d_step { pos >= START && end > pos -> end = 0 }; goto drop
    :: d_step { pos < START || end <= pos -> P_LOCALS }; goto idle
    fi;
#else
    d_step { true -> P_LOCALS }; goto idle;
#endif

help:
    if
    P_DIES
    :: d_step { true ->
        if
        :: tail == at -> tail = at + 1
        :: else
        fi;
        at = 0 }; goto reserve
    fi;

#if BLOCKS > 0
    SCAN(scan_none, P_DIES, 0);
    TRIM(P_DIES);
    DROP(P_DIES);
let_gone:
    if
    :: d_step { to == CLEAR -> cleared = 1; P_LOCALS }; goto reserve
    :: d_step { to == EXPIRE -> P_LOCALS }; goto idle
    :: d_step { to == RECLAIM -> P_LOCALS }; goto idle
#ifdef BUG_RING_AFTER_CLAIM
    :: d_step { to == AFTER_CLAIM -> h = 0; held = 0; ring = 0; to = 0; pos = 0 }; goto claimed
#endif
    fi;
trimmed:
    if
    :: d_step { true -> P_LOCALS }; goto idle
    fi;
#endif

gone:
    if
    :: d_step { peer[me] == VACANT -> peer[me] = LIVE }; goto idle
    fi;
ended:
    skip
#undef HANDS
}

/* ---- subscriber ---- */

#define ME_S (me - PUBLISHERS)
#define S_LOCALS                                                                                             \
    at = 0; word = 0; n = 0; end = 0; least = 0; pos = 0; h = 0; held = 0; ring = 0; number = 0; to = 0
#define S_DIES DIES(S_LOCALS)
#define MY_CURSOR cursor[ME_S]
#define LEAVE 1
#define PASS 2
#define RELEASE 3
#define MISS 4

proctype subscriber(byte me) {
    byte at, n, end, least, pos, h, number, to;
    bit held, ring;
    short word;
#define HANDS me
    if
    :: me < PEERS - 1 -> goto reading
    :: me == PEERS - 1 /* the last of them joins late */
    fi;
idle:
    if
    :: d_step { true -> finished++ }; goto ended
    :: d_step { true -> at = tail }
    fi;
#ifdef BUG_JOIN_FIRST
    if
    S_DIES
    :: d_step { true -> joins++ }
    fi;
#endif
    if
    S_DIES
    :: d_step { true -> MY_CURSOR = at - SLOTS / 2 }
    fi;
    if
    S_DIES
    :: d_step { true -> subscribed[ME_S] = 1 }
    fi;
#ifndef BUG_JOIN_FIRST
    if
    S_DIES
    :: d_step { true -> joins++ }
    fi;
#endif
#ifndef BUG_TAIL_FIRST
    if
    S_DIES
    :: d_step { true -> at = tail }
    fi;
#endif
    if
    S_DIES
    :: d_step { true -> since[ME_S] = at;
        MY_CURSOR = at - (HISTORY < at - START -> HISTORY : at - START);
        at = 0 }
    fi;

reading:
    if
    :: d_step { true -> finished++ }; goto ended /* it reads no more, and says so to nobody */
    S_DIES
    :: d_step { true -> subscribed[ME_S] = 0; to = LEAVE }; goto passed
    :: d_step { AHEAD(SLOT(MY_CURSOR), MY_CURSOR) > 0 -> at = MY_CURSOR }; goto overtaken
    :: d_step { AHEAD(SLOT(MY_CURSOR), MY_CURSOR) == 0 && STATE(SLOT(MY_CURSOR)) == TOMB -> at = MY_CURSOR };
        goto over
    :: d_step { AHEAD(SLOT(MY_CURSOR), MY_CURSOR) == 0 && STATE(SLOT(MY_CURSOR)) == READY -> at = MY_CURSOR;
        word = SLOT(at) }
    :: d_step { AHEAD(SLOT(MY_CURSOR), MY_CURSOR) < -1 -> assert(false) }
    fi;
    if
    S_DIES
    :: d_step { true ->
#if BLOCKS > 0
        h = handle[at % SLOTS]
#else
        number = content[at % SLOTS]
#endif
        }
    fi;
    if
    S_DIES
    :: d_step { SLOT(at) == word -> word = 0 }
    :: d_step { SLOT(at) != word -> S_LOCALS }; goto reading
    fi;
#if BLOCKS > 0
    pos = at;
    HOLD(lease_hold, S_DIES, me);
    if
    :: held == 1 -> held = 0
    :: held == 0 -> goto missed
    fi;
    if
    :: d_step { true -> own_message(at, payload[HANDLE_BLOCK(h)]); number = published[at] }
    fi;
    if
    S_DIES
    :: d_step { true -> own_message(at, payload[HANDLE_BLOCK(h)]); MY_CURSOR = at + 1 }
    fi;
    to = RELEASE;
    SCAN(scan_release, S_DIES, HISTORY);
    if
    :: d_step { true -> own_message(at, payload[HANDLE_BLOCK(h)]); ring = (end > at); end = 0 }; goto let_go
    fi;
#else
    if
    S_DIES
    :: d_step { true -> own_message(at, number); MY_CURSOR = at + 1; S_LOCALS }; goto reading
    fi;
#endif

overtaken:
#if DROP_OLDEST
    if
    S_DIES
    :: d_step { true -> MY_CURSOR = (tail - SLOTS > at -> tail - SLOTS : at + 1);
        at = 0; to = PASS }; goto passed
    fi;
#else
    assert(false);
#endif
over:
    if
    S_DIES
    :: d_step { true -> MY_CURSOR = at + 1; at = 0; to = PASS }; goto passed
    fi;

#if BLOCKS > 0
missed:
#if !DROP_OLDEST
    assert(at < since[ME_S]);
#endif
    goto over;
#endif

passed:
#if BLOCKS > 0
    SCAN(scan_passed, S_DIES, HISTORY);
    TRIM(S_DIES);
    DROP(S_DIES);
let_gone:
    if
    :: d_step { to == RELEASE && number != 0 -> S_LOCALS }; goto reading
    :: d_step { to == 0 && at != 0 -> h = 0; ring = 0 }; goto missed /* a hold on another message's block */
    :: d_step { to == LEAVE || to == PASS -> h = 0; held = 0; ring = 0; pos = 0 }; goto trim
    fi;
trimmed:
#endif
    if
    :: d_step { to == PASS -> S_LOCALS }; goto reading
    :: d_step { to == LEAVE -> S_LOCALS; finished++ }; goto ended
    fi;

gone:
    if
    :: d_step { peer[me] == VACANT -> peer[me] = LIVE }; goto idle
    fi;
ended:
    skip
#undef HANDS
}

/* ---- reaper ---- */

#define NOBODY 7
#define R_FORGET                                                                                             \
    dead = NOBODY; i = 0; word = 0; n = 0; end = 0; least = 0; pos = 0; h = 0; held = 0; ring = 0; to = 0
#define R_DIES :: d_step { deaths < DEATHS -> deaths++; busy--;                                              \
                      if                                                                                     \
                      :: locked -> reaping[dead % PEERS] = 0                                                 \
                      :: else                                                                                \
                      fi;                                                                                    \
                      locked = 0; R_FORGET }; goto end_idle
#define VERDICT(d)                                                                                           \
    :: d_step { d < PEERS && peer[(d) % PEERS] == DEAD && reaping[(d) % PEERS] == 0 -> busy++; dead = d;     \
        reaping[(d) % PEERS] = 1; locked = 1 }
#define READ_BY_DEAD                                                                                         \
    (STATE(page[i]) == INFLIGHT && READERS_GENERATION(readers[i]) == GENERATION(page[i]) &&                  \
     (readers[i] & BIT(dead)) != 0)
#define HOLDS 1
#define SPENT 2

proctype reaper() {
    byte dead = NOBODY, i, n, end, least, pos, h, to;
    bit locked, held, ring;
    short word;
#define HANDS dead
end_idle:
    if
    VERDICT(0) VERDICT(1) VERDICT(2) VERDICT(3)
    fi;
slots:
    do
    :: i == SLOTS -> i = 0; break
    R_DIES
    :: d_step { i < SLOTS ->
        if
#ifdef BUG_WRITING_TO_READY
        :: STATE(slot[i]) == WRITING && OWNER(slot[i]) == dead -> slot[i] = READY | LAP(slot[i]) << 6
#else
        :: STATE(slot[i]) == WRITING && OWNER(slot[i]) == dead -> slot[i] = TOMB | LAP(slot[i]) << 6
#endif
        :: else
        fi;
        i++ }
    od;
    if
    R_DIES
    :: d_step { true ->
        if
        :: dead >= PUBLISHERS -> subscribed[(dead - PUBLISHERS) % SUBSCRIBERS] = 0
        :: else
        fi }
    fi;
#if BLOCKS > 0
#ifdef BUG_FORGET_HOLDS
    goto pages;
#endif
holds:
    do
    :: i == BLOCKS -> i = 0; break
    R_DIES
    :: d_step { i < BLOCKS && !READ_BY_DEAD ->
#ifndef BUG_ONLY_INFLIGHT
        if
        :: (readers[i] & BIT(dead)) != 0 && (readers[i] & RING) != 0 -> readers[i] = readers[i] & ~BIT(dead)
        :: else
        fi;
#endif
        i++ }
    :: d_step { i < BLOCKS && READ_BY_DEAD -> h = HANDLE(i, GENERATION(page[i])); ring = 0; to = HOLDS };
        goto let_go
    od;
pages:
    do
    :: i == BLOCKS -> i = 0; break
    R_DIES
    :: d_step { i < BLOCKS && (STATE(page[i]) == FREE || PAGE_OWNER(page[i]) != dead) -> i++ }
    :: d_step { i < BLOCKS && STATE(page[i]) != FREE && PAGE_OWNER(page[i]) == dead -> word = page[i];
        h = HANDLE(i, GENERATION(word)) };
        if
        :: STATE(word) != INFLIGHT -> goto free_page
        :: STATE(word) == INFLIGHT
        fi;
        if
        R_DIES
        :: d_step { IS_SHARED }
        :: d_step { !IS_SHARED -> word = 0; h = 0; i++ }; goto pages
        fi;
        if
        R_DIES
        :: d_step { NAMES(ARGUMENT(word)) && handle[ARGUMENT(word) % SLOTS] == h -> word = 0; h = 0; i++ };
            goto pages
        :: d_step { !(NAMES(ARGUMENT(word)) && handle[ARGUMENT(word) % SLOTS] == h) }
        fi;
#ifndef BUG_ONE_LOOK
        if
        R_DIES
        :: d_step { IS_SHARED }
        :: d_step { !IS_SHARED -> word = 0; h = 0; i++ }; goto pages
        fi;
#endif
    free_page:
        if
        R_DIES
        :: d_step { true ->
            if
            :: page[i] == word -> page[i] = PAGE(FREE, 0, GENERATION(word), 0)
            :: else
            fi;
            word = 0; h = 0; i++ }
        fi
    od;
    SCAN(scan_reaped, R_DIES, HISTORY);
    to = SPENT;
    TRIM(R_DIES);
    DROP(R_DIES);
let_gone:
    if
    :: d_step { to == HOLDS -> h = 0; ring = 0; to = 0; i++ }; goto holds
    :: d_step { to == SPENT -> h = 0; held = 0; ring = 0; pos = 0 }; goto trim
    fi;
trimmed:
#endif
    if
    R_DIES
    :: d_step { true -> peer[dead] = VACANT; reaping[dead] = 0; locked = 0; busy--; R_FORGET }; goto end_idle
    fi
#undef HANDS
}

/* ---- when all is quiet ---- */

#define NOT_DEAD(d) ((d) >= PEERS || peer[(d) % PEERS] != DEAD)
#define QUIET                                                                                                \
    (finished == PEERS && busy == 0 && NOT_DEAD(0) && NOT_DEAD(1) && NOT_DEAD(2) && NOT_DEAD(3))
#define EACH(n) i = 0; do :: i < (n) ->
#define NEXT i++ :: else -> break od
#define PAGE_HANDLE HANDLE(i, GENERATION(page[i]))
#define PAGE_AT ARGUMENT(page[i])

inline check_words() {
    EACH(SLOTS)
        assert(STATE(slot[i]) != WRITING || stopped[OWNER(slot[i])]);
    NEXT;
    least = tail;
#if !DROP_OLDEST
    EACH(SUBSCRIBERS)
        at = cursor[i];
        do
        :: subscribed[i] && !stopped[PUBLISHERS + i] && at < tail ->
            if
            :: STATE(SLOT(at)) == WRITING || AHEAD(SLOT(at), at) < 0 -> break /* of one that is stopped */
            :: else
            fi;
            assert(AHEAD(SLOT(at), at) == 0);
#if BLOCKS > 0
            if
            :: STATE(SLOT(at)) == READY && at >= since[i] ->
                h = handle[at % SLOTS];
                assert((readers[HANDLE_BLOCK(h)] & RING) != 0 && STATE(page[HANDLE_BLOCK(h)]) == INFLIGHT &&
                       page[HANDLE_BLOCK(h)] >> 6 == (HANDLE_GENERATION(h) | at << 3));
                own_message(at, payload[HANDLE_BLOCK(h)])
            :: else
            fi;
#else
            assert(STATE(SLOT(at)) == TOMB || content[at % SLOTS] == published[at]);
#endif
            at++
        :: else -> break
        od;
    NEXT;
#endif
    EACH(SUBSCRIBERS)
        if
        :: subscribed[i] && cursor[i] < least -> least = cursor[i]
        :: else
        fi;
    NEXT;
#if BLOCKS > 0
    EACH(BLOCKS)
        if
        :: STATE(page[i]) == LOANED || STATE(page[i]) == LEASED -> assert(stopped[PAGE_OWNER(page[i])])
        :: STATE(page[i]) == INFLIGHT ->
            held = 0;
            at = 0;
            do
            :: at < PEERS ->
                held = held || (stopped[at] && (readers[i] & BIT(at)) != 0);
                assert((readers[i] & BIT(at)) == 0 || stopped[at]);
                at++
            :: else -> break
            od;
            if
            :: NAMES(PAGE_AT) && handle[PAGE_AT % SLOTS] == PAGE_HANDLE && (readers[i] & RING) != 0 ->
                assert(PAGE_AT >= head)
            :: else ->
                assert(held || (stopped[PAGE_OWNER(page[i])] &&
                                SLOT(PAGE_AT) == AT(WRITING, PAGE_OWNER(page[i]), PAGE_AT)))
            fi
        :: else
        fi;
    NEXT;
#endif
}

init {
    byte i, at, least, h;
    bit held;
    d_step {
        head = START;
        tail = START;
        EACH(SLOTS) slot[(START + i) % SLOTS] = AT(FREE, 0, START + i); NEXT;
        EACH(SUBSCRIBERS - 1) cursor[i] = START; since[i] = START; subscribed[i] = 1; joins++; NEXT;
        i = 0
    }
    atomic {
        EACH(PUBLISHERS) run publisher(i); NEXT;
        EACH(SUBSCRIBERS) run subscriber(PUBLISHERS + i); NEXT;
        EACH(REAPERS) run reaper(); NEXT;
        i = 0
    }
    d_step { QUIET ->
        check_words();
        i = 0; at = 0; least = 0; h = 0; held = 0
    }
}
