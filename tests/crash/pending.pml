/* pending.pml: delivery at least once, for the model checker Spin: the pending table, the blocks that it names, their
 * repair.
 *
 *     python tests/crash/model.py --model pending
 *
 * Every access that csrc/pending.c, csrc/keep.c, csrc/lease.c or csrc/recover.c makes to a shared word (entry word, the
 * handle of an entry, when it is due, the hint, page word, slot word) is one step here: one d_step.  Between any two
 * steps any other process may run, this one may die, and this one may stop for ever.  Local computation belongs to the
 * access before it; a store to memory that its owner alone may touch belongs to an access of the same owner.
 *
 * A consumer is two processes, as its threads: one leases, acknowledges and gives back; `viewer` drops its view
 * whenever it likes.  Both die at once.  A consumer may leave a delivery as it is, lease another message, and come
 * back to it.  A dead peer stays dead until a reaper has repaired what it left, a reaper that dies drops its lock, and
 * the next one starts from the beginning.  All messages are put before it begins.
 *
 * The ring is simpler than it is, since mpmc.pml has it: a message has a slot of its own, which any consumer finds
 * while it is READY.  All messages lie in blocks of one page.
 *
 * Time is a number that grows at most to TIMEOUTS.  Where that is 0 there is no visibility timeout: what is unacked
 * is never overdue.  Serials and generations count modulo 8.  Not modelled: weak memory, a wrong verdict, a close.
 *
 * Properties, as assertions: some where a step relies on them, the others when all is quiet.
 *   (a) no message is lost: it was acknowledged, or it is READY in its slot, or waits in one entry    check()
 *   (b) one that was acknowledged is not delivered again, unless it was overdue, and its slot still in the hands
 *       of who had it first                                                                             deliver()
 *   (c) who acknowledges is whoever it was delivered to last    acked()
 *   (d) no page leaks; none is freed or taken while it is looked at or copied    check(), drop, copy
 *   (e) nobody meets a state that the tables of csrc/pending.c and csrc/keep.c do not list: no SHMQ_CORRUPT
 *   (f) the hint is not later than what waits    check()
 *
 * Seeded bugs are macros BUG_...: see model.py.
 */

#ifndef CONSUMERS
#define CONSUMERS 2
#endif
#ifndef REAPERS
#define REAPERS 1
#endif
#ifndef MESSAGES
#define MESSAGES 1
#endif
#ifndef DEATHS
#define DEATHS 1
#endif
#ifndef STOPS
#define STOPS 0
#endif
#ifndef TIMEOUTS
#define TIMEOUTS 0
#endif
#ifndef BLOCKS
#define BLOCKS 2
#endif
#ifndef ENTRIES
#define ENTRIES 1
#endif
#ifndef GIVE_UPS /* messages that are given back, all together */
#define GIVE_UPS 1
#endif
#ifndef LEAVES /* 1: a consumer may leave a delivery as it is, and come back to it */
#define LEAVES 0
#endif

/* ---- words, as in csrc/layout.h ---- */

#define VACANT 0
#define FILLING 1
#define UNACKED 2
#define WAITING 3
#define MOVING 4
#define ENTRY(state, owner, serial) ((state) | (owner) << 3 | (serial) << 5)
#define STATE(word) ((word) & 7)
#define OWNER(word) ((word) >> 3 & 3)
#define SERIAL(word) ((word) >> 5)
#define LATER(serial) (((serial) + 1) % 8)

#define FREE 0
#define LOANED 1
#define INFLIGHT 2
#define LEASED 3
#define RETURNED 4
#define PAGE(state, owner, gen, argument) ((state) | (owner) << 3 | (gen) << 5 | (argument) << 8)
#define GENERATION(word) ((word) >> 5 & 7)
#define ARGUMENT(word) ((word) >> 8)
#define HANDLE(block, word) ((block) | GENERATION(word) << 2)
#define HANDLE_BLOCK(handle) ((handle) & 3)
#define HANDLE_GENERATION(handle) ((handle) >> 2)

#define NONE 0
#define READY 1
#define READING 2
#define SPENT 3
#define SLOT(state, owner) ((state) | (owner) << 3)

#define NEVER 7
#define NOBODY 7
#if TIMEOUTS > 0
#define OVERDUE_AT (clock + 1)
#else
#define OVERDUE_AT NEVER
#endif

byte slot[MESSAGES], slot_handle[MESSAGES];
byte entry[ENTRIES], named[ENTRIES], due[ENTRIES], position[ENTRIES];
byte hint = NEVER;
byte clock;
short page[BLOCKS];
byte payload[BLOCKS];

/* ---- peers ---- */

#define LIVE 0
#define DEAD 1
#define REPAIRED 2
byte peer[CONSUMERS];
bit reaping[CONSUMERS];
bit stopped[CONSUMERS];
bit views[CONSUMERS];   /* it looks at a block ... */
byte view_of[CONSUMERS]; /* ... this one */
short view_word[CONSUMERS];
byte busy, resting, deaths, stops, give_ups; /* resting: consumers with nothing in their hands */

/* ---- what the properties are about: known to no process ---- */

bit was_acked[MESSAGES], in_hands[MESSAGES];
byte last_to[MESSAGES]; /* 1 + the consumer that it was delivered to last */

inline deliver(m) {
    assert(!was_acked[m] || in_hands[m]);
    last_to[m] = me + 1
}
inline acked(m) {
    assert(last_to[m] == me + 1);
    assert(!was_acked[m] || in_hands[m]);
    was_acked[m] = 1;
    if
    :: TIMEOUTS > 0 && STATE(slot[m]) == READING -> in_hands[m] = 1 /* whoever is still at it may die */
    :: else
    fi
}

/* ---- pieces of several processes; DIE: that process's death ---- */

#define LOWER(DIE, to)                                                                                       \
    do                                                                                                       \
    DIE                                                                                                      \
    :: d_step { hint <= (to) -> seen = 0 }; break                                                            \
    :: d_step { hint > (to) -> seen = hint };                                                                \
        if                                                                                                   \
        DIE                                                                                                  \
        :: d_step { hint == seen -> hint = to; seen = 0 }; break                                             \
        :: d_step { hint != seen -> seen = 0 }                                                               \
        fi                                                                                                   \
    od

/* K2: does the entry of this page's word name this block?  -> yes */
#define NAMES(DIE, block, word)                                                                              \
    do                                                                                                       \
    DIE                                                                                                      \
    :: d_step { true -> seen = entry[ARGUMENT(word) - 1] };                                                  \
        if                                                                                                   \
        DIE                                                                                                  \
        :: d_step { true -> yes = (named[ARGUMENT(word) - 1] == HANDLE(block, word)) }                       \
        fi;                                                                                                  \
        if                                                                                                   \
        DIE                                                                                                  \
        :: d_step { entry[ARGUMENT(word) - 1] == seen ->                                                     \
            yes = (yes && STATE(seen) >= UNACKED);                                                           \
            seen = 0 }; break                                                                                \
        :: d_step { entry[ARGUMENT(word) - 1] != seen -> yes = 0 }                                           \
        fi                                                                                                   \
    od

#define FREE_IF_SPENT(DIE, who, block, word)                                                                 \
    if                                                                                                       \
    :: STATE(word) == RETURNED ->                                                                            \
        NAMES(DIE, block, word);                                                                             \
        if                                                                                                   \
        :: yes -> yes = 0                                                                                    \
        :: else ->                                                                                           \
            if                                                                                               \
            DIE                                                                                              \
            :: d_step { page[block] == word -> word = PAGE(LOANED, who, GENERATION(word), 0);                \
                page[block] = word };                                                                        \
                if                                                                                           \
                DIE                                                                                          \
                :: d_step { true -> assert(page[block] == word);                                             \
                    page[block] = PAGE(FREE, 0, GENERATION(word), 0) }                                       \
                fi                                                                                           \
            :: d_step { page[block] != word }                                                                \
            fi                                                                                               \
        fi                                                                                                   \
    :: else                                                                                                  \
    fi

#define FIRST_FREE                                                                                           \
    block = 0;                                                                                               \
    do                                                                                                       \
    :: block < BLOCKS && STATE(page[block]) != FREE -> block++                                               \
    :: else -> break                                                                                         \
    od

/* ---- consumer ---- */

#define C_FORGET                                                                                             \
    i = 0; at = 0; least = 0; word = 0; mine = 0; seen = 0; yes = 0; block = 0; old = 0; page_word = 0; m = 0
#define ALL_FORGOTTEN C_FORGET; other = 0; other_at = 0; other_m = 0
#define C_DIES                                                                                               \
    :: d_step { deaths < DEATHS -> deaths++; ALL_FORGOTTEN; peer[me] = DEAD }; goto gone                     \
    :: d_step { stops < STOPS -> stops++; ALL_FORGOTTEN; stopped[me] = 1; resting++ }; goto ended

#define LEAVE_REST                                                                                           \
    if                                                                                                       \
    :: other == 0 -> resting--                                                                               \
    :: else                                                                                                  \
    fi

#define FIRST_READY                                                                                          \
    m = 0;                                                                                                   \
    do                                                                                                       \
    :: m < MESSAGES && STATE(slot[m]) != READY -> m++                                                        \
    :: else -> break                                                                                         \
    od;                                                                                                      \
    at = 0;                                                                                                  \
    do                                                                                                       \
    :: at < ENTRIES && STATE(entry[at]) != VACANT -> at++                                                    \
    :: else -> break                                                                                         \
    od

proctype consumer(byte me) {
    byte i, at, least, word, mine, seen, block, old, m;
    byte other, other_at, other_m; /* a delivery that it has left for later: its entry's word, or 0 */
    bit yes;
    short page_word, look_word;
idle:
    if
    :: d_step { true -> C_FORGET;
        if
        :: other == 0 -> resting++
        :: else
        fi }
    fi;
rests:
    if
    :: d_step { deaths < DEATHS && (views[me] || other != 0) -> deaths++; LEAVE_REST; ALL_FORGOTTEN;
        peer[me] = DEAD }; goto gone
    :: d_step { !views[me] && hint <= clock -> LEAVE_REST }; goto take
    :: d_step { !views[me] && hint > clock ->
        FIRST_READY;
        if
        :: m < MESSAGES && at < ENTRIES -> LEAVE_REST; word = entry[at]; slot[m] = SLOT(READING, me)
        :: else -> m = 0; at = 0; yes = 1
        fi };
        if
        :: yes -> yes = 0; goto rests /* nothing is there, or the table is full */
        :: else -> goto new
        fi
    :: d_step { other != 0 -> mine = other; at = other_at; m = other_m; other = 0; other_at = 0; other_m = 0 }; goto settle
    fi;

    /* -- try_take -- */
take:
    if
    C_DIES
    :: d_step { true -> hint = NEVER; least = NEVER; at = NOBODY } /* D1 */
    fi;
    do
    :: i == ENTRIES -> break
    C_DIES
    :: d_step { i < ENTRIES -> seen = entry[i] }; /* D2 */
        if
        :: STATE(seen) == WAITING || STATE(seen) == UNACKED ->
            if
            C_DIES
            :: d_step { true ->
                if
                :: due[i] <= clock && (at == NOBODY || position[i] < position[at]) ->
                    if
                    :: at != NOBODY && mine < least -> least = mine
                    :: else
                    fi;
                    at = i; word = seen; mine = due[i]
                :: else ->
                    if
                    :: due[i] < least -> least = due[i]
                    :: else
                    fi
                fi }
            fi
        :: else
        fi;
        seen = 0;
        i++
    od;
    i = 0;
    if
    :: at == NOBODY -> mine = NOBODY
    :: else ->
        if
        C_DIES
        :: d_step { entry[at] == word ->
            mine = ENTRY(MOVING, me, LATER(SERIAL(word)));
            entry[at] = mine; word = 0 }
        :: d_step { entry[at] != word -> mine = 0; word = 0 }
        fi
    fi;
#ifndef BUG_HINT_LOST
    LOWER(C_DIES, least);
#endif
    least = 0;
    if
    :: mine == NOBODY || mine == 0 -> goto idle /* nothing is due; or another has it, and the code tries again */
    :: else
    fi;

    /* -- MOVING(me): its block -- */
    if
    C_DIES
    :: d_step { true -> old = named[at] }
    fi;
look:
    if
    C_DIES
    :: d_step { true -> block = HANDLE_BLOCK(old);
        page_word = page[block];
        assert(GENERATION(page_word) == HANDLE_GENERATION(old) && ARGUMENT(page_word) == at + 1);
        assert(STATE(page_word) == RETURNED || STATE(page_word) == LEASED);
        m = payload[block];
        assert(m == position[at]) }
    fi;
    if
    :: STATE(page_word) == RETURNED ->
        if
        C_DIES
        :: d_step { true -> assert(page[block] == page_word);
            page_word = PAGE(LEASED, me, GENERATION(page_word), at + 1);
            page[block] = page_word }
        fi
    :: else ->
#ifdef BUG_NO_COPY
        if
        C_DIES
        :: d_step { page[block] == page_word ->
            page_word = PAGE(LEASED, me, GENERATION(page_word), at + 1);
            page[block] = page_word }
        :: d_step { page[block] != page_word }; goto look
        fi
#else
        /* a copy */
        if
        C_DIES
        :: d_step { STATE(page[0]) != FREE && STATE(page[BLOCKS - 1]) != FREE &&
                    STATE(page[BLOCKS / 2]) != FREE }; goto put_back
        :: d_step { STATE(page[0]) == FREE || STATE(page[BLOCKS - 1]) == FREE ||
                    STATE(page[BLOCKS / 2]) == FREE ->
            FIRST_FREE;
            page_word = PAGE(LOANED, me, (GENERATION(page[block]) + 1) % 8, 0);
            page[block] = page_word }
        fi;
        if
        C_DIES
        :: d_step { true -> payload[block] = payload[HANDLE_BLOCK(old)];
            assert(GENERATION(page[HANDLE_BLOCK(old)]) == HANDLE_GENERATION(old));
            assert(STATE(page[HANDLE_BLOCK(old)]) == LEASED || STATE(page[HANDLE_BLOCK(old)]) == RETURNED) }
        fi;
#ifdef BUG_NAME_FIRST
        if
        C_DIES
        :: d_step { true -> named[at] = HANDLE(block, page_word) } /* K3 */
        fi;
#endif
        if
        C_DIES
        :: d_step { true -> assert(page[block] == page_word);
            page_word = PAGE(LEASED, me, GENERATION(page_word), at + 1);
            page[block] = page_word }
        fi;
#ifndef BUG_NAME_FIRST
        if
        C_DIES
        :: d_step { true -> named[at] = HANDLE(block, page_word) } /* K3 */
        fi;
#endif
#ifndef BUG_NO_LOOK_AT_OLD
        if
        C_DIES
        :: d_step { true -> word = HANDLE_BLOCK(old); /* K4 */
            if
            :: GENERATION(page[word]) == HANDLE_GENERATION(old) -> look_word = page[word]
            :: else -> look_word = 0
            fi }
        fi;
        FREE_IF_SPENT(C_DIES, me, word, look_word);
        look_word = 0;
        word = 0
#endif
#endif
    fi;
    if
    C_DIES
    :: d_step { true -> due[at] = OVERDUE_AT; least = OVERDUE_AT;
        mine = ENTRY(UNACKED, me, SERIAL(mine));
        entry[at] = mine;
        deliver(m) }
    fi;
    LOWER(C_DIES, least);
    goto delivered;

put_back:
    if
    C_DIES
    :: d_step { true -> due[at] = 0 }
    fi;
    if
    C_DIES
    :: d_step { true -> assert(entry[at] == mine); entry[at] = ENTRY(WAITING, 0, SERIAL(mine)) } /* D3 */
    fi;
    LOWER(C_DIES, 0); /* D4 */
    goto idle;

    /* -- a message out of the ring -- */
new:
    if
    C_DIES
    :: d_step { entry[at] == word -> mine = ENTRY(FILLING, me, SERIAL(word)); entry[at] = mine; word = 0 }
    :: d_step { entry[at] != word -> C_FORGET; i = 1 }
    fi;
    if
    :: i == 1 -> /* given back to the ring: another consumer has the entry */
        if
        C_DIES
        :: d_step { true -> i = 0;
            do
            :: i < MESSAGES && slot[i] != SLOT(READING, me) -> i++
            :: else -> break
            od;
            slot[i] = SLOT(READY, 0);
            i = 0 }
        fi;
        goto idle
    :: else
    fi;
    if
    C_DIES
    :: d_step { true -> block = HANDLE_BLOCK(slot_handle[m]);
        page_word = page[block];
        assert(STATE(page_word) == INFLIGHT && ARGUMENT(page_word) == m &&
               GENERATION(page_word) == HANDLE_GENERATION(slot_handle[m]));
        page_word = PAGE(LEASED, me, GENERATION(page_word), at + 1);
        page[block] = page_word }
    fi;
#ifdef BUG_SLOT_FIRST
    if
    C_DIES
    :: d_step { true -> slot[m] = SLOT(SPENT, 0) }
    fi;
#endif
    if
    C_DIES
    :: d_step { true -> named[at] = HANDLE(block, page_word) }
    fi;
    if
    C_DIES
    :: d_step { true -> position[at] = m; due[at] = OVERDUE_AT; least = OVERDUE_AT;
        mine = ENTRY(UNACKED, me, SERIAL(mine));
        entry[at] = mine; /* L1 */
        deliver(m) }
    fi;
    LOWER(C_DIES, least);
#ifndef BUG_SLOT_FIRST
    if
    C_DIES
    :: d_step { true -> assert(slot[m] == SLOT(READING, me)); slot[m] = SLOT(SPENT, 0) } /* L2 */
    fi;
#endif

delivered:
    if
    :: d_step { true -> least = 0;
        view_of[me] = block;
        view_word[me] = page_word;
        views[me] = 1;
        block = 0; page_word = 0; old = 0 }
    fi;
    if
    C_DIES
    :: goto settle
    :: d_step { LEAVES && other == 0 && !views[me] -> other = mine; other_at = at; other_m = m }; goto idle
    fi;

    /* -- ack, or nack -- */
settle:
    if
    C_DIES
    :: d_step { entry[at] == mine -> /* K3 */
        old = named[at];
        entry[at] = ENTRY(VACANT, 0, LATER(SERIAL(mine)));
        acked(m) }
    :: d_step { entry[at] != mine }; goto stale
    :: d_step { give_ups < GIVE_UPS -> give_ups++ }; goto nack
    fi;
#ifndef BUG_NO_LOOK_AFTER_ACK
    if
    C_DIES
    :: d_step { true -> word = HANDLE_BLOCK(old); /* K4 */
        if
        :: GENERATION(page[word]) == HANDLE_GENERATION(old) -> look_word = page[word]
        :: else -> look_word = 0
        fi }
    fi;
    FREE_IF_SPENT(C_DIES, me, word, look_word);
    look_word = 0;
#endif
    goto idle;

nack:
    if
    C_DIES
    :: d_step { entry[at] == mine -> mine = ENTRY(MOVING, me, SERIAL(mine)); entry[at] = mine }; goto put_back
    :: d_step { entry[at] != mine }; goto stale
    fi;
stale:
    goto idle;

gone:
    if
    :: d_step { peer[me] == REPAIRED && !views[me] -> peer[me] = LIVE }; goto idle
    fi;
ended:
    skip
}

#define V_FORGET word = 0; seen = 0; yes = 0; block = 0; view_of[me] = 0; view_word[me] = 0; views[me] = 0

/* A thread of that consumer's: it looks at the block, and drops its view.  It dies with it. */
proctype viewer(byte me) {
    byte block, seen;
    bit yes;
    short word;
end_viewer:
    do
    :: {
        if
        :: d_step { views[me] && peer[me] == LIVE && !stopped[me] ->
            block = view_of[me];
            word = view_word[me];
            assert(page[block] == word && STATE(word) == LEASED) }
        fi;
#ifdef BUG_LOOK_FIRST
        NAMES(, block, word);
#endif
        if
        :: d_step { true -> assert(page[block] == word);
            word = PAGE(RETURNED, 0, GENERATION(word), ARGUMENT(word));
            page[block] = word } /* K1 */
        fi;
#ifdef BUG_LOOK_FIRST
        if
        :: d_step { !yes && page[block] == word -> page[block] = PAGE(FREE, 0, GENERATION(word), 0) }
        :: d_step { yes || page[block] != word -> yes = 0 }
        fi;
#else
#ifndef BUG_NO_LOOK_AFTER_DROP
        FREE_IF_SPENT(, me, block, word);
#endif
#endif
        if
        :: d_step { true -> V_FORGET }
        fi
    } unless {
        d_step { views[me] && (peer[me] != LIVE || stopped[me]) -> V_FORGET }
    }
    od
}

/* ---- reaper ---- */

#define R_FORGET i = 0; j = 0; word = 0; seen = 0; yes = 0; least = 0; page_word = 0
#define R_DIES                                                                                               \
    :: d_step { deaths < DEATHS -> deaths++;                                                                 \
        if                                                                                                   \
        :: dead != NOBODY -> reaping[dead] = 0                                                               \
        :: else                                                                                              \
        fi;                                                                                                  \
        busy--; R_FORGET; dead = NOBODY }; goto end_reaper

#define FIND(d) :: d_step { (d) < CONSUMERS && peer[(d) % CONSUMERS] == DEAD && !reaping[(d) % CONSUMERS] -> \
                     dead = d; reaping[d] = 1; busy++ }

proctype reaper() {
    byte dead = NOBODY, i, j, word, seen, least;
    bit yes;
    short page_word, look_word;
end_reaper:
    if
    FIND(0)
    FIND(1)
    fi;

#ifdef BUG_ENTRIES_FIRST
    goto entries;
slots_then:
#endif
    /* 1. slots that it was reading */
    do
    :: i == MESSAGES -> i = 0; break
    R_DIES
    :: d_step { i < MESSAGES && slot[i] != SLOT(READING, dead) -> i++ }
    :: d_step { i < MESSAGES && slot[i] == SLOT(READING, dead) };
        yes = 0;
#ifndef BUG_NO_RETIRE
        do
        :: j == ENTRIES -> j = 0; break
        R_DIES
        :: d_step { j < ENTRIES -> seen = entry[j] };
            if
#ifdef BUG_FIRST_OWNER
            :: STATE(seen) == UNACKED && OWNER(seen) == dead ->
#else
            :: STATE(seen) >= UNACKED ->
#endif
                if
                R_DIES
                :: d_step { true ->
                    if
                    :: position[j] == i -> yes = 1
                    :: else
                    fi }
                fi
            :: else
            fi;
            seen = 0;
            j++
        od;
#endif
        if
        :: yes ->
            yes = 0;
            if
            R_DIES
            :: d_step { true -> slot[i] = SLOT(SPENT, 0) }
            fi
        :: else ->
            if
            R_DIES
            :: d_step { true -> j = HANDLE_BLOCK(slot_handle[i]);
                page_word = page[j];
                if
                :: STATE(page_word) == LEASED && OWNER(page_word) == dead &&
                   GENERATION(page_word) == HANDLE_GENERATION(slot_handle[i]) ->
                    page[j] = PAGE(INFLIGHT, 3, GENERATION(page_word), i)
                :: else
                fi;
                page_word = 0;
                j = 0 }
            fi
        fi;
        i++
    od;
    do
    :: i == MESSAGES -> i = 0; break
    R_DIES
    :: d_step { i < MESSAGES ->
        if
        :: slot[i] == SLOT(READING, dead) -> slot[i] = SLOT(READY, 0)
        :: else
        fi;
        i++ }
    od;

    /* 2. blocks */
    do
    :: i == BLOCKS -> i = 0; break
    R_DIES
    :: d_step { i < BLOCKS -> page_word = page[i] };
        if
        :: STATE(page_word) == RETURNED ->
#ifndef BUG_UNSEEN
            FREE_IF_SPENT(R_DIES, dead, i, page_word)
#endif
        :: STATE(page_word) == LEASED && OWNER(page_word) == dead ->
#ifndef BUG_NAMED_FREED
            NAMES(R_DIES, i, page_word);
            if
            :: yes -> yes = 0;
                if
                R_DIES
                :: d_step { true -> assert(page[i] == page_word);
                    page_word = PAGE(RETURNED, 0, GENERATION(page_word), ARGUMENT(page_word));
                    page[i] = page_word } /* K1 */
                fi;
                FREE_IF_SPENT(R_DIES, dead, i, page_word)
            :: else
            fi
#endif
        :: else
        fi;
        page_word = 0;
        i++
    od;
    do
    :: i == BLOCKS -> i = 0; break
    R_DIES
    :: d_step { i < BLOCKS ->
        if
        :: (STATE(page[i]) == LOANED || STATE(page[i]) == LEASED) && OWNER(page[i]) == dead ->
            page[i] = PAGE(FREE, 0, GENERATION(page[i]), 0)
        :: else
        fi;
        i++ }
    od;

    /* 3. entries */
entries:
    do
    :: i == ENTRIES -> i = 0; break
    R_DIES
    :: d_step { i < ENTRIES -> word = entry[i] };
        if
        :: STATE(word) == FILLING && OWNER(word) == dead ->
            if
            R_DIES
            :: d_step { true -> assert(entry[i] == word); entry[i] = ENTRY(VACANT, 0, LATER(SERIAL(word))) }
            fi
        :: (STATE(word) == UNACKED || STATE(word) == MOVING) && OWNER(word) == dead ->
            if
            :: STATE(word) == UNACKED ->
                if
                R_DIES
                :: d_step { entry[i] == word -> word = ENTRY(MOVING, dead, SERIAL(word)); entry[i] = word }
                :: d_step { entry[i] != word -> word = 0 }
                fi
            :: else
            fi;
            if
            :: word != 0 ->
                if
                R_DIES
                :: d_step { true -> due[i] = 0 }
                fi;
                if
                R_DIES
                :: d_step { true -> assert(entry[i] == word); entry[i] = ENTRY(WAITING, 0, SERIAL(word)) }
                fi;
                LOWER(R_DIES, 0)
            :: else
            fi
        :: else
        fi;
        word = 0;
        i++
    od;
#ifdef BUG_ENTRIES_FIRST
    if
    :: !least -> least = 1; goto slots_then
    :: else -> least = 0
    fi;
#endif
    if
    R_DIES
    :: d_step { true -> peer[dead] = REPAIRED; reaping[dead] = 0; dead = NOBODY }
    fi;

    /* 4. the hint: ends every pass */
#ifndef BUG_NO_SETTLE
    least = NEVER;
    do
    :: i == ENTRIES -> i = 0; break
    R_DIES
    :: d_step { i < ENTRIES ->
        if
        :: (STATE(entry[i]) == WAITING || STATE(entry[i]) == UNACKED) && due[i] < least -> least = due[i]
        :: else
        fi;
        i++ }
    od;
    LOWER(R_DIES, least);
#endif
    if
    :: d_step { true -> busy--; R_FORGET }
    fi;
    goto end_reaper
}

/* ---- when all is quiet ---- */

#define NOT_DEAD(d) ((d) >= CONSUMERS || peer[(d) % CONSUMERS] == LIVE)
#define NO_VIEW(d) ((d) >= CONSUMERS || !views[(d) % CONSUMERS])
#define QUIET                                                                                                \
    (resting == CONSUMERS && busy == 0 && NOT_DEAD(0) && NOT_DEAD(1) && NO_VIEW(0) && NO_VIEW(1))
#define EACH(n) i = 0; do :: i < (n) ->
#define NEXT i++ :: else -> break od

inline check() {
    EACH(MESSAGES)
        found = 0;
        j = 0;
        do
        :: j < ENTRIES ->
            if
            :: STATE(entry[j]) >= UNACKED && position[j] == i ->
                assert(STATE(entry[j]) == WAITING || stopped[OWNER(entry[j])]);
                assert(payload[HANDLE_BLOCK(named[j])] == i);
                assert(GENERATION(page[HANDLE_BLOCK(named[j])]) == HANDLE_GENERATION(named[j]));
                assert(ARGUMENT(page[HANDLE_BLOCK(named[j])]) == j + 1);
                assert(stops > 0 || STATE(page[HANDLE_BLOCK(named[j])]) == RETURNED);
                found++
            :: else
            fi;
            j++
        :: else -> break
        od;
        assert(found <= 1);
        if
        :: STATE(slot[i]) == READY ->
            assert(found == 0 && (!was_acked[i] || in_hands[i]));
            assert(page[HANDLE_BLOCK(slot_handle[i])] ==
                   PAGE(INFLIGHT, 3, HANDLE_GENERATION(slot_handle[i]), i))
        :: STATE(slot[i]) == READING -> assert(stopped[OWNER(slot[i])])
        :: else -> assert(found == 1 || was_acked[i])
        fi;
        assert(found == 0 || !was_acked[i] || in_hands[i]);
    NEXT;
    EACH(ENTRIES)
        assert(STATE(entry[i]) == VACANT || STATE(entry[i]) == WAITING || stopped[OWNER(entry[i])]);
        assert(STATE(entry[i]) != WAITING || hint <= due[i] || stops > 0);
    NEXT;
    EACH(BLOCKS)
        if
        :: STATE(page[i]) == FREE || STATE(page[i]) == INFLIGHT
        :: STATE(page[i]) == RETURNED ->
            assert(stops > 0 || (named[ARGUMENT(page[i]) - 1] == HANDLE(i, page[i]) &&
                                 STATE(entry[ARGUMENT(page[i]) - 1]) == WAITING))
        :: else -> assert(stopped[OWNER(page[i])])
        fi;
    NEXT
}

init {
    byte i, j, found;
    d_step {
        EACH(MESSAGES)
            page[i] = PAGE(INFLIGHT, 3, 1, i);
            payload[i] = i;
            slot_handle[i] = HANDLE(i, page[i]);
            slot[i] = SLOT(READY, 0);
        NEXT;
        i = 0
    }
    atomic {
        EACH(CONSUMERS) run consumer(i); run viewer(i); NEXT;
        EACH(REAPERS) run reaper(); NEXT;
        i = 0
    }
end_init:
    do
    :: d_step { QUIET -> check(); i = 0; j = 0; found = 0 }
    :: d_step { clock < TIMEOUTS -> clock++ }
    od
}
