/* mpmc.pml: the MPMC ring with its blocks and their repair, for the model checker Spin.
 *
 *     python tests/crash/model.py            all configurations and all seeded bugs
 *
 * Every access that csrc/mpmc.c, csrc/arena.c, csrc/recover.c or csrc/peers.c makes to a shared word (slot
 * word, page word, tail, head, peer word, reaper lock) is one step here: one d_step.  Between any two steps
 * any other process may run, this one may die, and this one may stop for ever.  Local computation belongs to
 * the access before it.  A store to memory that its owner alone may touch belongs to an access of the same
 * owner.
 *
 * Producers and consumers have a peer slot each; the owner in a word is its index.  A dead peer stays dead
 * until a reaper has repaired what it left; then a newcomer may take its index: the process starts again.  A
 * reaper that dies drops its lock, as the kernel does for it, and the next one starts from the beginning.
 * Here reapers are processes of their own: that a consumer dies while it reaps is two deaths. Each process
 * may end between two calls.  A full ring, an empty one and a full arena are tried again.
 *
 * Messages are numbered.  Each number is tried once: it is committed, or given up, or lost with its producer
 * before the slot was READY.  So a run claims at most PRODUCERS * MESSAGES positions.
 *
 * Laps count modulo LAPS = 8 where the code has 2^49, and positions modulo SLOTS * LAPS = 16.  That is
 * enough: each difference that the code takes is one between laps of the same run, however old the copy in
 * somebody's hand is.  A run claims at most 6 positions (asserted), from 15 to 20.  So laps lie in 7 ... 11,
 * the difference of a word and a position of the same slot in -3 ... 3, that of two positions in -6 ... 6,
 * and the signed differences modulo 8 and 16 tell these apart as the real ones modulo 2^49 and 2^64 do.  The
 * first position is the last before the wrap.  Generations of a page count modulo 8: there are at most 6
 * loans.
 *
 * One lane: of a queue with priority each lane is such a ring by itself.  They share nothing but the arena, as two
 * slots of one ring do, and a page's word says which lane's slot it is to be judged by.
 *
 * Not modelled: weak memory (here memory is sequentially consistent), blocks of several pages (CONT words),
 * eventcounts and futexes, a wrong verdict of the kernel, damaged memory, detaching while alive, and a
 * consumer that gets the next message before it has given back the block of the last one.
 *
 * Properties, as assertions: some where a step relies on them, the others when all is quiet.
 *   (a) no message is delivered twice                      deliver()
 *   (b) no message that was READY is lost: it was delivered, or is READY at the head or after it, from
 *       where a consumer gets it                           check_words(), drain()
 *   (c) first deliveries are in the producer's order       take()
 *   (d) no block leaks; none is freed twice or while held  own_page(), check_words()
 *   (e) no slot and no block has two owners                own_slot(), own_page()
 *   (f) nobody meets a state that the table of csrc/mpmc.c does not list: each branch on a word names all
 *       cases, and those that cannot be assert false; a process with no branch is an invalid end state
 *
 * Seeded bugs are macros BUG_..., what turned out not to be needed are macros WITHOUT_...: see model.py.
 */

#ifndef PRODUCERS
#define PRODUCERS 1
#endif
#ifndef CONSUMERS
#define CONSUMERS 2
#endif
#ifndef REAPERS
#define REAPERS 1
#endif
#ifndef MESSAGES /* of each producer */
#define MESSAGES 2
#endif
#ifndef DEATHS
#define DEATHS 2
#endif
#ifndef STOPS
#define STOPS 0
#endif
#ifndef BLOCKS /* at most 3; 0: all messages lie in their slot */
#define BLOCKS 0
#endif
#ifndef GIVE_UPS /* how often a producer (-> TOMB) or consumer (-> READY) may go back, all together */
#define GIVE_UPS 1
#endif
#ifndef IDLE_PASSES /* 1: a repair pass that finds nobody dead looks behind the head all the same */
#define IDLE_PASSES 0
#endif

#define SLOTS 2
#define LAPS 8
#define POSITIONS 16
#define START 15
#define PEERS (PRODUCERS + CONSUMERS)

/* ---- words, as in csrc/layout.h ---- */

#define FREE 0
#define WRITING 1
#define READY 2
#define READING 3
#define TOMB 4
#define WORD(state, owner, lap) ((state) | (owner) << 3 | (lap) << 6)
#define STATE(word) ((word) & 7)
#define OWNER(word) ((word) >> 3 & 7)
#define LAP(word) ((word) >> 6)

#define AFTER(position, n) (((position) + (n)) % POSITIONS)
#define LAP_OF(position) ((position) / SLOTS)
#define AT(state, owner, position) WORD(state, owner, LAP_OF(position))
#define BEHIND_LAP(position) AFTER(position, SLOTS)
#define AHEAD(word, position) ((LAP(word) - LAP_OF(position) + LAPS + LAPS / 2) % LAPS - LAPS / 2)
#define APART(a, b) (((a) - (b) + POSITIONS + POSITIONS / 2) % POSITIONS - POSITIONS / 2)
#define POSITION(index, word) (LAP(word) * SLOTS + (index))

#define LOANED 1
#define INFLIGHT 2
#define LEASED 3
#define COMMITTED 8
#define PAGE(state, owner, gen, pos) ((state) | (owner) << 4 | (gen) << 7 | (pos) << 10)
#define PAGE_OWNER(page) ((page) >> 4 & 7)
#define GENERATION(page) ((page) >> 7 & 7)
#define ARGUMENT(page) ((page) >> 10)
#define HANDLE(block, generation) ((block) | (generation) << 4)
#define HANDLE_BLOCK(handle) ((handle) & 15)
#define HANDLE_GENERATION(handle) ((handle) >> 4)

short slot[SLOTS];
byte head, tail;
#if BLOCKS > 0
short page[BLOCKS];
byte handle[SLOTS];
byte payload[BLOCKS]; /* the number of the message in that block */
#endif

/* ---- peers ---- */

#define LIVE 0
#define DEAD 1   /* LIVE and its lock gone: the proof of death */
#define VACANT 2 /* repaired: anyone may join here */
byte peer[PEERS]; /* at most 4 */
bit reaping[PEERS]; /* the reaper lock */
byte busy;          /* reapers at work */
byte finished;      /* peers that do no more, by their own will or because they are stopped */
byte deaths, stops, give_ups;
bit stopped[PEERS];

/* ---- what the properties are about: known to no process ---- */

#define NEVER 0
#define SENT 1      /* was READY, nobody had it */
#define TAKEN 2     /* somebody had it: whoever gets it now may get it late */
#define DELIVERED 3
byte message[PRODUCERS * MESSAGES];
byte content[SLOTS]; /* which message; in-line it is the payload */
byte next[PRODUCERS];
byte claims;

#define own_slot(me, state, position) assert(slot[(position) % SLOTS] == AT(state, me, position))
#define own_page(me, state, block, word)                                                                     \
    assert(page[block] == (word) && (word & 7) == (state) && PAGE_OWNER(word) == (me))

inline take(number) {
    assert(message[number] == SENT || message[number] == TAKEN);
    /* First deliveries are in order even among all consumers together. */
    scan = number + 1;
    do
    :: message[number] == SENT && scan < (number / MESSAGES + 1) * MESSAGES ->
        assert(message[scan] == NEVER || message[scan] == SENT);
        scan++
    :: else -> break
    od;
    scan = 0;
    message[number] = TAKEN
}
inline deliver(number) {
    assert(message[number] == TAKEN);
    message[number] = DELIVERED
}

/* ---- helpers of several processes ---- */

/* CAS; whoever fails has learned that it is not late any more. */
#define MOVE_ON(hint, position)                                                                              \
    if                                                                                                       \
    :: hint == (position) -> hint = AFTER(position, 1)                                                       \
    :: else                                                                                                  \
    fi

/* What a process has in private memory is forgotten where it is not needed any more, so that states which
 * differ in nothing else are one. */
#define DIES(cleanup)                                                                                        \
    :: d_step { deaths < DEATHS -> deaths++; cleanup; peer[me] = DEAD }; goto gone                           \
    :: d_step { stops < STOPS -> stops++; cleanup; stopped[me] = 1; finished++ }; goto ended

/* ---- producer ---- */

#define TAIL_SLOT slot[at % SLOTS]
#define NUMBER (me * MESSAGES + next[me])
#define P_FORGET next[me]++; at = 0; block = 0; word = 0
#define P_DIES DIES(P_FORGET)

#if BLOCKS > 0
#define LOAN(b)                                                                                              \
    :: d_step { next[me] < MESSAGES && b < BLOCKS && (page[(b) % BLOCKS] & 7) == FREE ->                     \
        block = b;                                                                                           \
        word = page[b] }; goto loan
#define AGAIN reserve
#else
#define AGAIN idle
#endif

proctype producer(byte me) {
    byte at, block;
    short word; /* our block's page word */
idle:
    if
    :: d_step { true -> finished++ }; goto ended
#if BLOCKS > 0
    LOAN(0) LOAN(1) LOAN(2)
#else
    :: d_step { next[me] < MESSAGES -> at = tail }; goto look
#endif
    fi;

#if BLOCKS > 0
loan:
    if
    P_DIES
    :: d_step { page[block] == word ->
        word = PAGE(LOANED, me, (GENERATION(word) + 1) % 8, 0);
        page[block] = word;
        payload[block] = NUMBER }; goto reserve
    :: d_step { page[block] != word -> block = 0; word = 0 }; goto idle
    fi;

reserve: /* the block is filled; it may be given back as well */
    if
    P_DIES
    :: d_step { true -> at = tail }; goto look
    :: d_step { true -> own_page(me, LOANED, block, word);
        page[block] = PAGE(FREE, 0, GENERATION(word), 0);
        P_FORGET }; goto idle
    fi;
#endif

look:
    if
    P_DIES
    :: d_step { AHEAD(TAIL_SLOT, at) == 0 && STATE(TAIL_SLOT) == FREE };
#ifdef BUG_TICKET
        goto ticket
#else
        goto claim
#endif
    :: d_step { AHEAD(TAIL_SLOT, at) == -1 -> at = 0 }; goto AGAIN /* FULL */
    :: d_step { AHEAD(TAIL_SLOT, at) < -1 -> assert(false) }
    :: d_step { AHEAD(TAIL_SLOT, at) > 1 }; goto far
    :: d_step { AHEAD(TAIL_SLOT, at) == 1 ||
                (AHEAD(TAIL_SLOT, at) == 0 && STATE(TAIL_SLOT) != FREE) }; goto help
    fi;
far: /* the tail only grows: a slot is two laps ahead of it only if it is not the tail any more */
    if
    P_DIES
    :: d_step { true -> assert(tail != at) }; goto help
    fi;
help:
    if
    P_DIES
    :: d_step { true -> MOVE_ON(tail, at); at = 0 }; goto AGAIN
    fi;

#ifdef BUG_TICKET
ticket:
    if
    P_DIES
    :: d_step { tail == at -> tail = AFTER(at, 1) }
    :: d_step { tail != at -> at = 0 }; goto AGAIN
    fi;
#endif
claim:
    if
    P_DIES
    :: d_step { TAIL_SLOT == AT(FREE, 0, at) ->
        TAIL_SLOT = AT(WRITING, me, at);
        claims++;
        assert(claims <= 6) }
    :: d_step { TAIL_SLOT != AT(FREE, 0, at) -> at = 0 }; goto AGAIN
    fi;
#ifndef BUG_TICKET
    if
    P_DIES
    :: d_step { true -> MOVE_ON(tail, at) }
    fi;
#endif
    if
    P_DIES
    :: d_step { true -> own_slot(me, WRITING, at);
        content[at % SLOTS] = NUMBER;
#if BLOCKS > 0
        handle[at % SLOTS] = HANDLE(block, GENERATION(word))
#endif
        }
    fi;
filled:
    if
    P_DIES
    :: d_step { give_ups < GIVE_UPS -> give_ups++; own_slot(me, WRITING, at);
        TAIL_SLOT = AT(TOMB, 0, at);
        at = 0;
#if BLOCKS > 0
        }; goto give_back
    :: d_step { true -> own_page(me, LOANED, block, word);
        word = PAGE(INFLIGHT, me, GENERATION(word), at);
        page[block] = word }
#else
        P_FORGET }; goto idle
    :: goto commit
#endif
    fi;
commit:
    if
    P_DIES
    :: d_step { true -> own_slot(me, WRITING, at);
        TAIL_SLOT = AT(READY, 0, at);
        assert(message[NUMBER] == NEVER);
        message[NUMBER] = SENT;
        P_FORGET }; goto idle
    fi;

#if BLOCKS > 0
give_back:
    if
    P_DIES
    :: d_step { true -> own_page(me, LOANED, block, word);
        page[block] = PAGE(FREE, 0, GENERATION(word), 0);
        P_FORGET }; goto idle
    fi;
#endif

gone:
    if
    :: d_step { peer[me] == VACANT -> peer[me] = LIVE }; goto idle
    fi;
ended:
    skip
}

/* ---- consumer ---- */

/* A word in lap n says that all of its slot up to lap n - 1 is done, and that the tail has been there: so of
 * the other slots all up to lap n - 3, and of those before it up to n - 2. */
#ifdef BUG_LONG_JUMP
#define LAPS_KEPT 1
#else
#define LAPS_KEPT 2
#endif
#define HEAD_SLOT slot[at % SLOTS]
#define MY_SLOT slot[pos % SLOTS]
#define C_FORGET at = 0; pos = 0; seen = 0; block = 0; word = 0
#define C_DIES DIES(C_FORGET)
#define NAMED handle[pos % SLOTS]

proctype consumer(byte me) {
    byte at, pos, seen, block, scan;
    short word;
idle:
    if
    :: d_step { true -> finished++ }; goto ended
    :: d_step { true -> at = head }
    fi;

look:
    if
    C_DIES
    :: d_step { AHEAD(HEAD_SLOT, at) < -1 || STATE(HEAD_SLOT) > TOMB -> assert(false) }
#ifdef BUG_FAR_HEAD
    :: d_step { AHEAD(HEAD_SLOT, at) > 1 }; goto far
    :: d_step { AHEAD(HEAD_SLOT, at) == 1 }; goto help
#else
    /* Behind by more than a lap: somebody who slept long moved it back for a message that is gone.  It jumps
     * to where the oldest message can be. */
    :: d_step { AHEAD(HEAD_SLOT, at) > 0 ->
        if
        :: AHEAD(HEAD_SLOT, at) > LAPS_KEPT -> pos = AFTER(at, (AHEAD(HEAD_SLOT, at) - LAPS_KEPT) * SLOTS + 1)
        :: else -> pos = AFTER(at, 1)
        fi }; goto help
#endif
#ifdef WITHOUT_EARLIER_LAP
    :: d_step { AHEAD(HEAD_SLOT, at) == -1 && STATE(HEAD_SLOT) == READY -> at = 0 }; goto idle
    :: d_step { AHEAD(HEAD_SLOT, at) == 0 && STATE(HEAD_SLOT) == READY ->
#else
    :: d_step { (AHEAD(HEAD_SLOT, at) == 0 || AHEAD(HEAD_SLOT, at) == -1) && STATE(HEAD_SLOT) == READY ->
#endif
        word = HEAD_SLOT;
        pos = AFTER(at, POSITIONS + AHEAD(HEAD_SLOT, at) * SLOTS) }; goto claim
    :: d_step { (AHEAD(HEAD_SLOT, at) == 0 || AHEAD(HEAD_SLOT, at) == -1) && STATE(HEAD_SLOT) == TOMB ->
        word = HEAD_SLOT }; goto bury
    :: d_step { AHEAD(HEAD_SLOT, at) == 0 && STATE(HEAD_SLOT) == READING }; goto over
    :: d_step { AHEAD(HEAD_SLOT, at) == -1 && STATE(HEAD_SLOT) == READING -> at = 0 }; goto idle /* EMPTY */
    :: d_step { AHEAD(HEAD_SLOT, at) == 0 && (STATE(HEAD_SLOT) == FREE || STATE(HEAD_SLOT) == WRITING) ->
        at = 0 }; goto idle /* EMPTY */
    /* The head is never moved over a slot that was not READY yet. */
    :: d_step { AHEAD(HEAD_SLOT, at) == -1 && (STATE(HEAD_SLOT) == FREE || STATE(HEAD_SLOT) == WRITING) ->
        assert(false) }
    fi;

#ifdef BUG_FAR_HEAD
far:
    if
    C_DIES
    :: d_step { true -> assert(head != at) }
    fi;
#endif
help:
    if
    C_DIES
#ifdef BUG_FAR_HEAD
    :: d_step { true -> MOVE_ON(head, at); C_FORGET }; goto idle
#else
    :: d_step { true ->
        if
        :: head == at -> head = pos
        :: else
        fi;
        C_FORGET }; goto idle
#endif
    fi;
bury:
    if
    C_DIES
    :: d_step { true ->
        if
        :: HEAD_SLOT == word -> HEAD_SLOT = WORD(FREE, 0, (LAP(word) + 1) % LAPS)
        :: else
        fi;
        C_FORGET }; goto idle
    fi;
over:
    if
    C_DIES
#ifdef BUG_NO_SECOND_LOOK
    :: d_step { true -> MOVE_ON(head, at); C_FORGET }; goto idle
#else
    :: d_step { true -> MOVE_ON(head, at) }
#endif
    fi;
    if
    C_DIES
    :: d_step { HEAD_SLOT == AT(READY, 0, at) -> pos = at; at = 0 }; goto back
    :: d_step { HEAD_SLOT != AT(READY, 0, at) -> at = 0 }; goto idle
    fi;

claim:
    if
    C_DIES
    :: d_step { HEAD_SLOT == word ->
        HEAD_SLOT = AT(READING, me, pos);
        word = 0;
        take(content[pos % SLOTS]) }
    :: d_step { HEAD_SLOT != word -> C_FORGET }; goto idle
    fi;
    if
    C_DIES
    :: d_step { true ->
        if
        :: at == pos -> MOVE_ON(head, at)
        :: else
        fi;
        at = 0 }
    fi;

mine:
    if
    C_DIES
    :: d_step { give_ups < GIVE_UPS -> give_ups++; own_slot(me, READING, pos);
        MY_SLOT = AT(READY, 0, pos) }; goto back
#if BLOCKS == 0
    :: d_step { true -> own_slot(me, READING, pos);
        deliver(content[pos % SLOTS]);
        MY_SLOT = AT(FREE, 0, BEHIND_LAP(pos));
        C_FORGET }; goto idle
    fi;
#else
    :: d_step { true -> own_slot(me, READING, pos);
        block = HANDLE_BLOCK(NAMED);
        word = page[block];
        assert((word & 7) == INFLIGHT && GENERATION(word) == HANDLE_GENERATION(NAMED) &&
               ARGUMENT(word) == pos);
#ifdef BUG_FREE_BEFORE_LEASE
        deliver(content[pos % SLOTS]);
        MY_SLOT = AT(FREE, 0, BEHIND_LAP(pos))
#endif
        }
    fi;
    if
    C_DIES
    :: d_step { true -> assert(page[block] == word);
        word = PAGE(LEASED, me, GENERATION(word), 0);
        page[block] = word }
#ifdef BUG_FREE_BEFORE_LEASE
        ; goto held
#endif
    fi;
    if
    C_DIES
    :: d_step { true -> own_slot(me, READING, pos);
        assert(payload[block] == content[pos % SLOTS]);
        deliver(content[pos % SLOTS]);
        MY_SLOT = AT(FREE, 0, BEHIND_LAP(pos));
        pos = 0 }; goto held
    :: d_step { give_ups < GIVE_UPS -> give_ups++; own_page(me, LEASED, block, word);
        page[block] = PAGE(INFLIGHT, me, GENERATION(word), pos);
        block = 0; word = 0 }
    fi;
    if
    C_DIES
    :: d_step { true -> own_slot(me, READING, pos); MY_SLOT = AT(READY, 0, pos) }; goto back
    fi;
held:
    if
    C_DIES
    :: d_step { true -> own_page(me, LEASED, block, word);
        assert(message[payload[block]] == DELIVERED);
        page[block] = PAGE(FREE, 0, GENERATION(word), 0);
        C_FORGET }; goto idle
    fi;
#endif

back: /* move_back */
    if
    C_DIES
    :: d_step { APART(head, pos) > 0 -> seen = head }
    :: d_step { APART(head, pos) <= 0 -> C_FORGET }; goto idle
    fi;
back_cas:
    if
    C_DIES
    :: d_step { head == seen -> head = pos; C_FORGET }; goto idle
    :: d_step { head != seen && APART(head, pos) > 0 -> seen = head }; goto back_cas
    :: d_step { head != seen && APART(head, pos) <= 0 -> C_FORGET }; goto idle
    fi;

gone:
    if
    :: d_step { peer[me] == VACANT -> peer[me] = LIVE }; goto idle
    fi;
ended:
    skip
}

/* ---- reaper ---- */

#define NOBODY 7
#define R_FORGET dead = NOBODY; readied = 0; i = 0; word = 0; seen = 0; least = 0; block = 0
/* The kernel drops its lock.  The next reaper starts at `idle`. */
#define R_DIES :: d_step { deaths < DEATHS -> deaths++; busy--;                                              \
                      if                                                                                     \
                      :: dead != NOBODY && locked -> reaping[dead % PEERS] = 0                               \
                      :: else                                                                                \
                      fi;                                                                                    \
                      locked = 0; R_FORGET }; goto end_idle
#define VERDICT(d)                                                                                           \
    :: d_step { d < PEERS && peer[(d) % PEERS] == DEAD && CAN_LOCK(d) -> busy++; dead = d }; goto lock
#define CAN_LOCK(d) (reaping[(d) % PEERS] == 0)
#define HELD_BY_DEAD(state) (STATE(slot[i]) == (state) && OWNER(slot[i]) == dead)
#define ITS_PAGE page[HANDLE_BLOCK(handle[i])]
#define LEASED_BY_DEAD                                                                                       \
    ((ITS_PAGE & 7) == LEASED && PAGE_OWNER(ITS_PAGE) == dead &&                                             \
     GENERATION(ITS_PAGE) == HANDLE_GENERATION(handle[i]))
#define ITS_SLOT slot[ARGUMENT(word) % SLOTS]
#define PUBLISHED                                                                                            \
    ((STATE(ITS_SLOT) == READY || STATE(ITS_SLOT) == READING) && LAP(ITS_SLOT) == LAP_OF(ARGUMENT(word)))
#define NAMES_IT (handle[ARGUMENT(word) % SLOTS] == HANDLE(i, GENERATION(word)))

proctype reaper() {
    byte dead = NOBODY, i, seen, least, block;
    bit locked, readied;
    short word;
end_idle:
    if
    VERDICT(0) VERDICT(1) VERDICT(2) VERDICT(3)
#if IDLE_PASSES
    :: d_step { true -> busy++ }; goto settle
#endif
    fi;

lock:
    if
    R_DIES
#if defined(BUG_NO_LOCK) || defined(BUG_NO_LOCK_PLAIN)
    :: goto begin
#else
    :: d_step { reaping[dead] == 0 -> reaping[dead] = 1; locked = 1 }
    :: d_step { reaping[dead] == 1 -> busy--; R_FORGET }; goto end_idle
#endif
    fi;
#ifndef BUG_NO_LOOK_AFTER_LOCK
    if
    R_DIES
    :: d_step { peer[dead] == DEAD }
    :: d_step { peer[dead] != DEAD -> reaping[dead] = 0; locked = 0; busy--; R_FORGET }; goto end_idle
    fi;
#endif

begin:
#ifdef BUG_VACANT_FIRST
    if
    R_DIES
    :: d_step { true -> peer[dead] = VACANT }
    fi;
#endif
#if BLOCKS > 0
#ifdef BUG_PAGES_FIRST
    goto pages;
#endif
resend:
    do
    :: i == SLOTS -> i = 0; break
    R_DIES
    :: d_step { i < SLOTS && !HELD_BY_DEAD(READING) -> i++ }
    :: d_step { i < SLOTS && HELD_BY_DEAD(READING) -> seen = POSITION(i, slot[i]) };
        if
        R_DIES
        :: d_step { LEASED_BY_DEAD ->
            block = HANDLE_BLOCK(handle[i]);
            word = page[block] };
            if
            R_DIES
            :: d_step { true ->
                if
                :: page[block] == word ->
#ifdef WITHOUT_COMMITTED
                    page[block] = PAGE(INFLIGHT, dead, GENERATION(word), seen)
#else
                    page[block] = PAGE(INFLIGHT | COMMITTED, dead, GENERATION(word), seen)
#endif
                :: else
                fi;
                block = 0; word = 0; seen = 0; i++ }
            fi
        :: d_step { !LEASED_BY_DEAD -> seen = 0; i++ }
        fi
    od;
#endif

slots:
    do
    :: i == SLOTS -> i = 0; break
    R_DIES
    :: d_step { i < SLOTS && !HELD_BY_DEAD(WRITING) && !HELD_BY_DEAD(READING) -> i++ }
    :: d_step { i < SLOTS && (HELD_BY_DEAD(WRITING) || HELD_BY_DEAD(READING)) -> word = slot[i] };
        if
        R_DIES
        :: d_step { true ->
            if
#ifdef BUG_NO_LOCK_PLAIN
            :: true ->
#else
            :: slot[i] == word ->
#endif
                if
#ifndef BUG_WRITING_TO_READY
                :: STATE(word) == WRITING -> slot[i] = WORD(TOMB, 0, LAP(word))
#endif
                :: else -> slot[i] = WORD(READY, 0, LAP(word));
#ifdef BUG_SETTLE_OWN
                    readied = 1
#endif
                fi
#ifndef BUG_NO_LOCK_PLAIN
            :: else
#endif
            fi;
            word = 0; i++ }
        fi
    od;

#ifdef BUG_NO_SETTLE
    goto settled;
#endif
#ifdef BUG_SETTLE_OWN
    if
    :: readied == 0; goto settled
    :: readied == 1
    fi;
#endif
settle:
    if
    R_DIES
    :: d_step { true -> seen = head; least = head }
    fi;
    do
    :: i == SLOTS -> i = 0; break
    R_DIES
    :: d_step { i < SLOTS ->
        if
        :: STATE(slot[i]) == READY && APART(POSITION(i, slot[i]), least) < 0 -> least = POSITION(i, slot[i])
        :: else
        fi;
        i++ }
    od;
    if
    :: d_step { seen == least -> seen = 0; least = 0 }; goto settled
    :: d_step { seen != least -> seen = 0 }
    fi;
    if
    R_DIES
    :: d_step { APART(head, least) > 0 -> seen = head }
    :: d_step { APART(head, least) <= 0 -> least = 0 }; goto settled
    fi;
settle_cas:
    if
    R_DIES
    :: d_step { head == seen -> head = least; seen = 0; least = 0 }
    :: d_step { head != seen && APART(head, least) > 0 -> seen = head }; goto settle_cas
    :: d_step { head != seen && APART(head, least) <= 0 -> seen = 0; least = 0 }
    fi;
settled:
    if
    :: d_step { dead == NOBODY -> busy-- }; goto end_idle
    :: dead != NOBODY
    fi;

#if BLOCKS > 0
#ifdef BUG_PAGES_FIRST
    goto vacate;
#endif
pages:
    do
    :: i == BLOCKS -> i = 0; break
    R_DIES
    :: d_step { i < BLOCKS && !((page[i] & 7) != FREE && PAGE_OWNER(page[i]) == dead) -> i++ }
    :: d_step { i < BLOCKS && PAGE_OWNER(page[i]) == dead &&
                ((page[i] & 7) == LOANED || (page[i] & 7) == LEASED) -> word = page[i] }; goto free_page
    :: d_step { i < BLOCKS && PAGE_OWNER(page[i]) == dead && (page[i] & 15) == (INFLIGHT | COMMITTED) -> i++ }
    :: d_step { i < BLOCKS && PAGE_OWNER(page[i]) == dead && (page[i] & 15) == INFLIGHT -> word = page[i] };
#ifndef BUG_NO_SLOT_LOOK
        if
        R_DIES
        :: d_step { PUBLISHED };
            if
            R_DIES
            :: d_step { NAMES_IT -> word = 0; i++ }; goto pages
            :: d_step { !NAMES_IT }; goto free_page
            fi
        :: d_step { !PUBLISHED }; goto free_page
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
            word = 0; i++ }
        fi
    od;
#ifdef BUG_PAGES_FIRST
    goto resend;
#endif
#endif

vacate:
    if
    R_DIES
    :: d_step { true -> peer[dead] = VACANT }
    fi;
    if
    R_DIES
    :: d_step { true ->
        if
        :: locked -> reaping[dead] = 0
        :: else
        fi;
        locked = 0; busy--; R_FORGET }; goto end_idle
    fi
}

/* ---- when all is quiet ---- */

#define NOT_DEAD(d) ((d) >= PEERS || peer[(d) % PEERS] != DEAD)
#define QUIET                                                                                                \
    (finished == PEERS && busy == 0 && NOT_DEAD(0) && NOT_DEAD(1) && NOT_DEAD(2) && NOT_DEAD(3))
#define EACH(n) i = 0; do :: i < (n) ->
#define NEXT i++ :: else -> break od
#define HEAD_WORD slot[head % SLOTS]
#define TAIL_WORD slot[tail % SLOTS]

/* What may be held: only by the stopped.  All else is free, or a message that can be had. */
inline check_words() {
    EACH(SLOTS)
        if
        :: STATE(slot[i]) == WRITING || STATE(slot[i]) == READING -> assert(stopped[OWNER(slot[i])])
        :: STATE(slot[i]) == READY -> assert(APART(POSITION(i, slot[i]), head) >= 0)
        :: else
        fi;
    NEXT;
    EACH(PRODUCERS * MESSAGES)
        found = 0;
        j = 0;
        do
        :: j < SLOTS ->
            if
            :: (STATE(slot[j]) == READY || STATE(slot[j]) == READING) && content[j] == i -> found++
            :: else
            fi;
            j++
        :: else -> break
        od;
        assert(found == (message[i] == SENT || message[i] == TAKEN));
    NEXT;
#if BLOCKS > 0
    EACH(BLOCKS)
        found = 0;
        j = 0;
        do
        :: j < SLOTS ->
            if
            :: (STATE(slot[j]) == READY || STATE(slot[j]) == READING) &&
               handle[j] == HANDLE(i, GENERATION(page[i])) && (page[i] & 7) != FREE ->
                assert(payload[i] == content[j]);
                found++;
                if
                :: (page[i] & 7) == INFLIGHT -> assert(ARGUMENT(page[i]) == POSITION(j, slot[j]))
                :: else -> assert(STATE(slot[j]) == READING && OWNER(slot[j]) == PAGE_OWNER(page[i]))
                fi
            :: else
            fi;
            j++
        :: else -> break
        od;
        if
        :: (page[i] & 7) == INFLIGHT && !stopped[PAGE_OWNER(page[i])] -> assert(found == 1)
        :: (page[i] & 7) == LOANED || (page[i] & 7) == LEASED -> assert(stopped[PAGE_OWNER(page[i])])
        :: else
        fi;
    NEXT;
#endif
}

/* A last consumer takes all there is, by the same rules. */
inline drain() {
    j = 0;
    do
    :: AHEAD(HEAD_WORD, head) > 0 -> head = AFTER(head, 1)
    :: AHEAD(HEAD_WORD, head) == 0 && STATE(HEAD_WORD) == READING -> head = AFTER(head, 1)
    :: AHEAD(HEAD_WORD, head) <= 0 && STATE(HEAD_WORD) == TOMB ->
        HEAD_WORD = WORD(FREE, 0, (LAP(HEAD_WORD) + 1) % LAPS)
    :: AHEAD(HEAD_WORD, head) <= 0 && STATE(HEAD_WORD) == READY ->
        i = content[head % SLOTS];
        assert(message[i] == SENT || message[i] == TAKEN);
        message[i] = DELIVERED;
        HEAD_WORD = WORD(FREE, 0, (LAP(HEAD_WORD) + 1) % LAPS)
    :: else -> break
    od;
    do
    :: AHEAD(TAIL_WORD, tail) > 0 || (AHEAD(TAIL_WORD, tail) == 0 && STATE(TAIL_WORD) != FREE) ->
        tail = AFTER(tail, 1)
    :: else -> break
    od;
    if
    :: stops == 0 -> /* else somebody may be in the way */
        assert(AHEAD(HEAD_WORD, head) == 0 && STATE(HEAD_WORD) == FREE && head == tail);
        EACH(PRODUCERS * MESSAGES)
            assert(message[i] == NEVER || message[i] == DELIVERED);
        NEXT
    :: else
    fi
}

init {
    byte i, j, found;
    d_step {
        head = START;
        tail = START;
        EACH(SLOTS)
            slot[i] = AT(FREE, 0, AFTER(START, (i + SLOTS - START % SLOTS) % SLOTS));
        NEXT;
        i = 0
    }
    atomic {
        EACH(PRODUCERS) run producer(i); NEXT;
        EACH(CONSUMERS) run consumer(PRODUCERS + i); NEXT;
        EACH(REAPERS) run reaper(); NEXT;
        i = 0
    }
    d_step { QUIET ->
#if IDLE_PASSES /* which any waiting peer makes */
        EACH(SLOTS)
            if
            :: STATE(slot[i]) == READY && APART(POSITION(i, slot[i]), head) < 0 -> head = POSITION(i, slot[i])
            :: else
            fi;
        NEXT;
#endif
        check_words();
        drain();
        i = 0; j = 0; found = 0
    }
}
