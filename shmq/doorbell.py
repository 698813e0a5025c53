"""Doorbells: how the tasks of an event loop wait for what other processes do.

A ``Doorbell`` is a FIFO that its loop polls; whoever makes something available writes a byte into it, if
somebody said that he waits (``csrc/doorbell.c``).  There is one for each loop of a process, shared by all
its handles, from the first wait that has to park until the last handle closes.

A ``Gate`` is where tasks wait for one side of a handle, oldest first.  One task is woken at a time; when it
has taken its message, or was cancelled instead, it looks for the next one (``leave``).  A wake-up is a hint
to try again: messages never pass through here, so there is none to lose.

    look: may the first one go on?  yes: it is woken, and nobody else until it has left
                                    no: the doorbell is armed, and everyone waits

Who dies before it rings is repaired by whoever looks, and what it had made available is then found.  The
loop hears of the deaths of its peers (``deaths.py``), and of newcomers by a ring, and looks then.  Where
that cannot be, a timer looks every 100 ms, as sleeping threads do (``csrc/wait.c``); else every second, for
whoever is stopped between taking a wake-up upon itself and ringing.  No task waits: no timer.
"""

import asyncio
import errno
import os
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from . import errors
from ._core import ffi, lib
from .deaths import Deaths, Process
from .handle import Handle

SLICE_S = 0.1
"""Longest wait without a look at the peers, where the death of one of them would not be told."""
CALM_SLICE_S = 1.0
"""Where it is, and no deadline is to be kept."""
TIMED_S = 1.1 * SLICE_S
"""Deadlines that are nearer have a timer: a slice's end may be late."""
SHORT_SLICE_S = 0.005
"""After this an armed doorbell is made sure of: by a turn of the loop and a barrier, too much for every wait.

What was put while the doorbell was being armed, within the moment that a store takes to be seen (below a
microsecond), may lie there for so long, unless something else rings."""

OK, NOT_READY = lib.SHMQ_OK, lib.SHMQ_NOT_READY
ARM, AGAIN, SURELY = lib.SHMQ_ARM, lib.SHMQ_ARM_AGAIN, lib.SHMQ_ARM_SURELY

Loop = asyncio.AbstractEventLoop
Need = tuple[()] | tuple[bool, int, int]
"""What a get waits for, or a put: whether for a block, and its bytes."""

_doorbells: "weakref.WeakValueDictionary[Loop, Doorbell]" = weakref.WeakValueDictionary()


class Doorbell:
    """The FIFO of an event loop, and the gates where tasks wait for it to ring."""

    __slots__ = (
        "__weakref__",
        "_deaths",
        "_fd",
        "_finalizer",
        "_gates",
        "_rosters",
        "_settler",
        "_timer",
        "_users",
        "loop",
        "number",
        "pid",
    )

    def __init__(self, loop: Loop) -> None:
        number, fd = ffi.new("uint64_t *"), ffi.new("int *")
        if status := lib.shmq_doorbell_open(number, fd):
            _raise(status)
        self.loop, self.number, self.pid = loop, int(number[0]), os.getpid()
        self._fd = int(fd[0])
        self._gates: set[Gate] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._settler: asyncio.TimerHandle | None = None
        self._users = 0
        me = weakref.ref(self)
        self._deaths = Deaths(loop, partial(_somebody_died, me))
        self._rosters: weakref.WeakKeyDictionary[Waits, frozenset[Process]] = weakref.WeakKeyDictionary()
        """Of each handle."""
        self._finalizer = weakref.finalize(self, _end, loop, self.number, self._fd, self.pid, self._deaths)
        loop.add_reader(self._fd, _rung, me)

    @staticmethod
    def of(loop: Loop) -> "Doorbell":
        """The loop's; made on first use."""
        bell = _doorbells.get(loop)
        if bell is None:
            bell = _doorbells[loop] = Doorbell(loop)
        return bell

    def bind(self) -> None:
        """A handle uses it from now on."""
        self._users += 1

    def let_go(self) -> None:
        """A handle was closed, or has another loop: the last one ends it.  (Else the last one's end does.)"""
        self._users -= 1
        if self._users == 0:
            if _doorbells.get(self.loop) is self:
                del _doorbells[self.loop]
            self._finalizer()

    def follow(self, waits: "Waits", roster: frozenset[Process]) -> bool:
        """These are the peers of a handle.  True if the deaths of all of them are going to be told."""
        self._rosters[waits] = roster
        self._deaths.forget_all_but(frozenset().union(*self._rosters.values()))
        told = [self._deaths.watch(process) for process in roster]
        return all(told)

    def unfollow(self, waits: "Waits") -> None:
        """The handle is another loop's, or closed."""
        if self._rosters.pop(waits, None) is not None:
            self._deaths.forget_all_but(frozenset().union(*self._rosters.values()))

    def _start_timer(self, slice_s: float) -> None:
        """Unless it goes off sooner."""
        if self._timer is not None:
            if self._timer.when() <= self.loop.time() + slice_s:
                return
            self._timer.cancel()
        self._timer = self.loop.call_later(slice_s, _slice_over, weakref.ref(self))

    def add(self, gate: "Gate") -> None:
        """Tasks wait there from now on."""
        self._gates.add(gate)
        self._start_timer(gate.slice_s())
        if gate.unsure_since is not None:
            self._start_settling()

    def discard(self, gate: "Gate") -> None:
        """No task waits there any more.  The timer finds out by itself."""
        self._gates.discard(gate)

    def unsure(self, gate: "Gate") -> None:
        """It has just been armed, without a barrier in the other processes: that is made up for, if no ring
        comes soon."""
        gate.unsure_since = self.loop.time()
        self._start_settling()

    def _start_settling(self) -> None:
        if self._settler is None:
            self._settler = self.loop.call_later(SHORT_SLICE_S, _settle, weakref.ref(self))

    def settle(self) -> None:
        """At the end of each short slice, while a gate is unsure."""
        self._settler = None
        due = self.loop.time() - SHORT_SLICE_S / 2  # who was armed just now waits for the next time
        for gate in tuple(self._gates):
            if gate.unsure_since is not None and gate.unsure_since <= due:
                gate.look(SURELY)
            if gate.unsure_since is not None:
                self._start_settling()

    def rung(self) -> None:
        """The loop's: there is a byte to read."""
        with suppress(BlockingIOError):
            os.read(self._fd, 64)  # more: the loop comes again
        for gate in tuple(self._gates):
            gate.look()
            self._start_timer(gate.follow())  # the newcomer's ring may be this one

    def slice_over(self) -> None:
        """The timer's."""
        self._timer = None
        self.look_around()

    def somebody_died(self) -> None:
        """A peer; that is told once.  Until it is repaired, by whomever, slices are short again."""
        for waits in tuple(self._rosters):  # also those where nobody waits now
            waits.watched = False
        self.look_around()

    def look_around(self) -> None:
        """Who has died is repaired."""
        self._deaths.ask_again()
        for gate in tuple(self._gates):
            gate.look_around()
            self._start_timer(gate.follow())


# The loop knows a doorbell by weak references only, so that it ends with the last handle.


def _rung(bell: "weakref.ref[Doorbell]") -> None:
    if (found := bell()) is not None:
        found.rung()


def _somebody_died(bell: "weakref.ref[Doorbell]") -> None:
    if (found := bell()) is not None:
        found.somebody_died()


def _slice_over(bell: "weakref.ref[Doorbell]") -> None:
    if (found := bell()) is not None:
        found.slice_over()


def _settle(bell: "weakref.ref[Doorbell]") -> None:
    if (found := bell()) is not None:
        found.settle()


def _raise(status: int) -> None:
    directory = f"/dev/shm/shmq-doorbells-{os.geteuid()}"
    if status == lib.SHMQ_WRONG_OWNER:
        raise errors.WrongOwner(
            errno.EACCES,
            f"{directory}, where event loops are woken, must be a directory of yours with mode 0700; let its "
            "owner remove it, or set the mode",
        )
    raise OSError(ffi.errno, f"cannot make a doorbell in {directory}: {os.strerror(ffi.errno)}")


def _end(loop: Loop, number: int, fd: int, pid: int, deaths: Deaths) -> None:
    """Once nobody needs the doorbell, and at exit.  Any thread may have dropped the last handle."""
    if os.getpid() != pid:
        return  # the parent's
    lib.shmq_doorbell_remove(number)
    try:
        here = asyncio.get_running_loop() is loop
    except RuntimeError:
        here = False
    if loop.is_running() and not here:
        with suppress(RuntimeError):  # closed just now
            loop.call_soon_threadsafe(_stop_polling, loop, number, fd, deaths)
    else:
        _stop_polling(loop, number, fd, deaths)


def _stop_polling(loop: Loop, number: int, fd: int, deaths: Deaths) -> None:
    deaths.close()
    if not loop.is_closed():
        loop.remove_reader(fd)
    lib.shmq_doorbell_close(number, fd)


def _expire(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


class Place:
    """Of a task that waits at a gate."""

    __slots__ = ("deadline", "future", "need", "timer", "woken")

    def __init__(self, future: "asyncio.Future[None]", need: Need, deadline: int) -> None:
        self.future = future
        self.need = need
        self.deadline = deadline
        self.timer: asyncio.TimerHandle | None = None
        self.woken = False
        """By ``Gate.look``, which took it out of the queue."""

    def expect(self, loop: Loop) -> bool:
        """True: it has a timer of its own, since its deadline comes before a slice's end.

        Else it is asked again at the slice's end: most waits are over by then, and took no timer."""
        left_s = max(0, self.deadline - time.monotonic_ns()) / 1e9
        if left_s <= TIMED_S:
            self.timer = loop.call_later(left_s, _expire, self.future)
        return self.timer is not None


class Gate:
    """Where tasks wait for one side of a handle.

    ``arm``: ``py_arm_get`` or ``py_arm_put``.  OK: another try makes sense; else the doorbell is armed."""

    __slots__ = ("__weakref__", "_arm", "_due", "_has_untimed", "_waiting", "_woken", "unsure_since", "waits")

    def __init__(self, waits: "Waits", arm: Callable[..., int]) -> None:
        self.waits = waits
        self._arm = arm
        self._due: asyncio.TimerHandle | None = None
        self.forget()

    def forget(self) -> None:
        """Nobody waits: the handle has a new loop."""
        self._waiting: deque[Place] = deque()
        if self._due is not None:
            self._due.cancel()  # the loop before's
        self._due = None
        self._has_untimed = False
        """Somebody has a deadline, which is going to have a timer at the end of a slice."""
        self.unsure_since: float | None = None
        """When the doorbell was armed, by the loop's clock; None: sure."""
        self._woken = False

    def enter(self, need: Need, deadline: int, again: bool) -> "Place":
        """A place in the queue of tasks: await its ``future``, then ``quit`` it, whatever happened.

        The future is done when another try makes sense, or the deadline has passed.  ``again``: it has tried
        in vain after a wait, and keeps its place."""
        bell = self.waits.bell()
        loop = bell.loop
        place = Place(loop.create_future(), need, deadline)
        if deadline != sys.maxsize:
            self._has_untimed |= not place.expect(loop)
        if again:
            self._waiting.appendleft(place)
        else:
            self._waiting.append(place)
        bell.add(self)
        self.look()
        if not place.woken:
            bell._start_timer(self.follow())
        return place

    def quit(self, place: "Place") -> None:
        """The task goes on.  Afterwards it calls ``enter`` again, or ``leave``."""
        if place.timer is not None:
            place.timer.cancel()
        if place.woken:
            self._woken = False  # also where it was cancelled since
        elif place in self._waiting:  # else close() took it out
            self._waiting.remove(place)

    def leave(self) -> None:
        """A task is done here, or was cancelled: whoever waits behind it may go on now."""
        bell = self.waits.bound
        if self._waiting:
            self.look()
            if bell is not None:
                bell._start_timer(self.follow())
        elif bell is not None:
            bell.discard(self)

    def look(self, how: int = ARM) -> None:
        """Wakes the first task that may go on; where there is none, the doorbell is armed."""
        handle, bell = self.waits.handle(), self.waits.bound
        if self._woken or handle is None or bell is None:
            return  # whoever was woken looks when it leaves
        for place in self._waiting:
            if place.future.done():
                continue  # cancelled, or its time is over: it takes itself out
            status = self._arm(handle._c, bell.number, how, *place.need)
            if status == OK:
                self._woken = place.woken = True
                self._waiting.remove(place)
                place.future.set_result(None)
                return
            if status == NOT_READY:
                bell.unsure(self)
            elif how == SURELY:
                self.unsure_since = None
            if not place.need:
                self._await_due(handle, bell)
                return  # gets all wait for the same

    def _await_due(self, handle: Handle, bell: Doorbell) -> None:
        """A message that is to be delivered again later rings nobody."""
        if handle._max_unacked == 0:
            return
        left_s = (lib.py_next_due(handle._c) - time.monotonic_ns()) / 1e9
        if left_s > CALM_SLICE_S:
            return
        at = bell.loop.time() + max(left_s, 0.0)
        if self._due is not None:
            if self._due.when() <= at:
                return
            self._due.cancel()
        self._due = bell.loop.call_at(at, _is_due, weakref.ref(self))

    def due(self) -> None:
        """The timer's."""
        self._due = None
        if self._waiting:
            self.look()

    def slice_s(self) -> float:
        """How long tasks may wait here without a look at the peers."""
        return CALM_SLICE_S if self.waits.watched and not self._has_untimed else SLICE_S

    def follow(self) -> float:
        """Learns of peers that have come, and makes sure to hear of their deaths; then as ``slice_s``."""
        self.waits.follow()
        return self.slice_s()

    def look_around(self) -> None:
        """At the end of a slice: repairs what the dead left, first."""
        if (handle := self.waits.handle()) is not None:
            lib.py_look_now(handle._c)
            self._has_untimed = False
            for place in self._waiting:
                if place.deadline != sys.maxsize and place.timer is None:
                    self._has_untimed |= not place.expect(place.future.get_loop())
            self.look(AGAIN)

    def wake_all(self) -> None:
        """The handle was closed."""
        waiting = self._waiting
        self.forget()
        for place in waiting:
            _expire(place.future)


def _is_due(gate: "weakref.ref[Gate]") -> None:
    if (found := gate()) is not None:
        found.due()


class Waits:
    """What the tasks of one event loop wait for on one handle."""

    __slots__ = ("__weakref__", "_joined", "bound", "getters", "handle", "putters", "watched")

    def __init__(self, handle: Handle) -> None:
        self.handle = weakref.ref(handle)
        self.bound: Doorbell | None = None
        self._joined = -1
        self.watched = False
        """The deaths of all peers are going to be told."""
        self.getters = Gate(self, lib.py_arm_get)
        self.putters = Gate(self, lib.py_arm_put)

    @staticmethod
    def of(handle: Handle) -> "Waits":
        """Of a handle there is one, however many objects of ``aio.py`` it has."""
        waits = _all_waits.get(handle)
        if waits is None:
            waits = _all_waits[handle] = Waits(handle)
        return waits

    def bell(self) -> Doorbell:
        """The running loop's.  RuntimeError where the handle belongs to another loop."""
        loop = asyncio.get_running_loop()
        bell = self.bound
        if bell is not None and bell.loop is loop:
            return bell
        if bell is not None and bell.pid == os.getpid() and not bell.loop.is_closed():
            handle = self.handle()
            name = "" if handle is None else handle.name
            raise RuntimeError(
                f"queue {name!r}: this handle belongs to another event loop, where it waited first; open one "
                "for each loop"
            )
        self.getters.forget()
        self.putters.forget()
        if bell is not None:
            self._let_go_of(bell)
        self.bound = Doorbell.of(loop)
        self.bound.bind()
        return self.bound

    def follow(self) -> None:
        """Behind the arming: who joins later rings, see ``shmq_bell_news``."""
        handle, bell = self.handle(), self.bound
        if handle is None or bell is None:
            return
        joined = lib.py_joined(handle._c)  # before the roster
        if joined == self._joined and self.watched:
            return
        roster: list[Process] = []
        complete = lib.py_roster(handle._c, id(roster)) == 0
        self._joined = joined
        self.watched = bell.follow(self, frozenset(roster)) and complete

    def _let_go_of(self, bell: Doorbell) -> None:
        self._joined, self.watched = -1, False
        bell.unfollow(self)
        bell.let_go()

    def close(self) -> None:
        """The handle was closed.  Any thread."""
        bell = self.bound
        if bell is None or bell.pid != os.getpid():
            return
        try:
            here = asyncio.get_running_loop() is bell.loop
        except RuntimeError:
            here = False
        if here or not bell.loop.is_running():
            self._let_go()
        else:
            with suppress(RuntimeError):  # closed just now
                bell.loop.call_soon_threadsafe(self._let_go)

    def _let_go(self) -> None:
        bell, self.bound = self.bound, None
        for gate in (self.getters, self.putters):
            gate.wake_all()
            if bell is not None:
                bell.discard(gate)
        if bell is not None:
            self._let_go_of(bell)


_all_waits: "weakref.WeakKeyDictionary[Handle, Waits]" = weakref.WeakKeyDictionary()
