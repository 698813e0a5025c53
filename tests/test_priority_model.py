"""The model of two lanes: two deques and the rule of 16, which Hypothesis drives together with a queue."""

import contextlib
import secrets
from collections import deque
from typing import Any

import hypothesis
import numpy as np
import pytest
from conftest import RUN
from hypothesis import stateful
from hypothesis import strategies as st

import shmq

SLOTS, URGENT_SLOTS, INLINE_BYTES = 64, 16, 96
IN_A_ROW = 16
BULK, URGENT = 0, 1

lanes = st.sampled_from([BULK, URGENT, URGENT])
kinds = st.sampled_from(["bytes", "object", "array", "block"])


def build(kind: str, number: int) -> Any:
    """A message that nothing else looks like."""
    return {
        "bytes": b"%d" % number,
        "object": {"number": number},
        "array": np.full(3, number),
        "block": [np.full(300, number), number],
    }[kind]


class Machine(stateful.RuleBasedStateMachine):
    cursor = 0
    acknowledged = False

    @stateful.initialize()
    def create(self) -> None:
        self.waiting: tuple[deque[Any], deque[Any]] = deque(), deque()
        self.in_a_row = [0, 0]
        self.number = 0
        self.name = f"{RUN}-{secrets.token_hex(4)}"
        leases: dict[str, Any] = {"delivery": "at_least_once", "max_unacked": 8} if self.acknowledged else {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("shmq.handle.CURSOR_START", self.cursor)
            self.producer = shmq.Queue.create(
                self.name,
                ring_bytes=SLOTS * 128,
                arena_bytes=256 * (16 << 10),
                inline_bytes=INLINE_BYTES,
                max_peers=5,
                priority=True,
                **leases,
            )
        self.consumers = [shmq.Queue.attach(self.name) for _ in range(2)]

    def next_of(self, consumer: int) -> int | None:
        """The lane that this consumer takes from."""
        first = URGENT if self.in_a_row[consumer] < IN_A_ROW else BULK
        return next((lane for lane in (first, 1 - first) if self.waiting[lane]), None)

    def take(self, consumer: int) -> Any:
        lane = self.next_of(consumer)
        assert lane is not None
        self.in_a_row[consumer] = self.in_a_row[consumer] + 1 if lane == URGENT else 0
        return self.waiting[lane].popleft()

    @stateful.rule(lane=lanes, kind=kinds, times=st.integers(1, 20))
    def put(self, lane: int, kind: str, times: int) -> None:
        for _ in range(times):
            self.number += 1
            message = build(kind, self.number)
            full = len(self.waiting[lane]) == (SLOTS, URGENT_SLOTS)[lane]
            try:
                self.producer.put_nowait(message, priority=lane == URGENT)
            except shmq.ArenaFull:
                pytest.fail("everything fits into the arena")
            except shmq.Full:
                assert full
            else:
                assert not full
                self.waiting[lane].append(message)

    @stateful.rule(kind=kinds)
    def loan(self, kind: str) -> None:
        self.number += 1
        loan = self.producer.loan(5, "i8", priority=True)
        loan.array[:] = self.number
        try:
            loan.publish(timeout=0)
        except shmq.Full:
            assert len(self.waiting[URGENT]) == URGENT_SLOTS
            loan.discard()
        else:
            self.waiting[URGENT].append(np.full(5, self.number))

    @stateful.rule(consumer=st.integers(0, 1), times=st.integers(1, 40))
    def get(self, consumer: int, times: int) -> None:
        for _ in range(times):
            if self.next_of(consumer) is None:
                with pytest.raises(shmq.Empty):
                    self.consumers[consumer].get_nowait()
                return
            np.testing.assert_equal(self.consumers[consumer].get_nowait(copy=True), self.take(consumer))

    @stateful.rule(consumer=st.integers(0, 1), most=st.integers(1, 50))
    def get_many(self, consumer: int, most: int) -> None:
        with contextlib.suppress(shmq.Empty):
            for message in self.consumers[consumer].get_many(most, timeout=0, copy=True):
                np.testing.assert_equal(message, self.take(consumer))
            return
        assert self.next_of(consumer) is None

    @stateful.rule(consumer=st.integers(0, 1))
    def another_consumer(self, consumer: int) -> None:
        """Turns are a handle's own."""
        self.consumers[consumer].close()
        self.consumers[consumer] = shmq.Queue.attach(self.name)
        self.in_a_row[consumer] = 0

    @stateful.invariant()
    def the_figures_agree(self) -> None:
        if not hasattr(self, "name"):
            return
        s = self.producer.stats()
        assert (s.qsize, s.urgent) == (sum(map(len, self.waiting)), len(self.waiting[URGENT]))
        assert s.full == (len(self.waiting[BULK]) == SLOTS)
        assert s.ring_used_bytes == len(self.waiting[BULK]) * 128

    @stateful.rule()
    def look(self) -> None:
        peeked = shmq.peek(self.name, 100)
        assert [bool(m.position & 4) for m in peeked] == [True] * len(self.waiting[URGENT]) + [False] * len(
            self.waiting[BULK]
        )

    def teardown(self) -> None:
        if hasattr(self, "name"):
            for handle in (*self.consumers, self.producer):
                handle.close()
            shmq.unlink(self.name)


class NearTheWrap(Machine):
    cursor = 2**64 - 8


class Acknowledged(Machine):
    acknowledged = True


for _machine in (Machine, NearTheWrap, Acknowledged):
    _machine.TestCase.settings = hypothesis.settings(max_examples=30, stateful_step_count=30)
TestLanes = Machine.TestCase
TestLanesNearTheWrap = NearTheWrap.TestCase
TestLanesWithAcknowledgement = Acknowledged.TestCase
