"""The model is a deque: Hypothesis drives it and a queue together, through every step a user can take.

In profile soak one run takes more than 10^5 steps."""

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

RING_BYTES = 4096
PAGES = 24
PAGE = 16 << 10
INLINE_BYTES = 700

sizes = st.integers(0, 100) | st.integers(600, 1200) | st.integers(0, 3 * PAGE)
kinds = st.sampled_from(["bytes", "object", "array", "strided", "envelope", "large"])


def build(kind: str, size: int, number: int) -> Any:
    """A message of about ``size`` bytes that nothing else looks like."""
    if kind == "bytes":
        return (b"%d." % number) * (size // 8)
    if kind == "large":
        return b"%d." % number + bytes(size)
    if kind == "object":
        return {"number": number, "text": "x" * size}
    array = np.full(size // 8 + 1, number)
    return {
        "array": array,
        "strided": np.repeat(array, 2)[::2],
        "envelope": [number, array, {"a": array[:3]}],
    }[kind]


class Machine(stateful.RuleBasedStateMachine):
    cursor = 0

    @stateful.initialize()
    def create(self) -> None:
        self.model: deque[Any] = deque()
        self.held: list[tuple[Any, Any]] = []
        self.loans: list[tuple[Any, int]] = []
        self.number = 0
        self.shut_down = ""
        self.name = f"{RUN}-{secrets.token_hex(4)}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("shmq.handle.CURSOR_START", self.cursor)
            self.keeper = shmq.Queue.create(
                self.name,
                ring_bytes=RING_BYTES,
                arena_bytes=PAGES * PAGE,
                inline_bytes=INLINE_BYTES,
                max_peers=4,
            )
        self.producer = shmq.Queue.attach(self.name)
        self.consumer = shmq.Queue.attach(self.name)

    def next_number(self) -> int:
        self.number += 1
        return self.number

    def check(self, got: Any, want: Any) -> None:
        np.testing.assert_equal(got, want)

    def refused(self, error: shmq.ShmqError) -> None:
        """A put was refused: that must be right."""
        s = self.keeper.stats()
        if isinstance(error, shmq.ShutDown):
            assert self.shut_down
        elif isinstance(error, shmq.MessageTooLarge):
            pytest.fail("everything here fits")
        elif isinstance(error, shmq.ArenaFull):
            # A run of up to 7 pages was not to be had, so no such run may be free.
            assert s.largest_free_bytes < 7 * PAGE
        else:
            assert isinstance(error, shmq.Full)
            assert s.ring_bytes - s.ring_used_bytes < 2 * (INLINE_BYTES + 8)

    # ---- puts ----

    @stateful.rule(kind=kinds, size=sizes)
    def put(self, kind: str, size: int) -> None:
        message = build(kind, size, self.next_number())
        try:
            self.producer.put_nowait(message)
        except (shmq.Full, shmq.ShutDown) as e:
            self.refused(e)
        else:
            assert not self.shut_down
            self.model.append(message)

    @stateful.rule(batch=st.lists(st.tuples(kinds, sizes), max_size=8), plain=st.booleans())
    def put_many(self, batch: list[tuple[str, int]], plain: bool) -> None:
        messages = [
            build("bytes" if plain else kind, size % 600 if plain else size, self.next_number())
            for kind, size in batch
        ]
        try:
            done = self.producer.put_many(messages, timeout=0)
            assert done == len(messages)
            assert not self.shut_down or not messages
        except (shmq.Full, shmq.ShutDown) as e:
            self.refused(e)
            done = e.done  # type: ignore[union-attr]
            assert done < len(messages)
        self.model.extend(messages[:done])

    @stateful.precondition(lambda self: len(self.loans) < 3)
    @stateful.rule(size=sizes)
    def loan(self, size: int) -> None:
        try:
            loan = self.producer.loan(size, "u1", timeout=0)
        except (shmq.Full, shmq.ShutDown) as e:
            self.refused(e)
            return
        number = self.next_number()
        loan.array[:] = number % 251
        self.loans.append((loan, number))

    @stateful.precondition(lambda self: self.loans)
    @stateful.rule(data=st.data(), how=st.sampled_from(["publish", "discard", "drop"]))
    def end_loan(self, data: Any, how: str) -> None:
        at = data.draw(st.integers(0, len(self.loans) - 1))
        loan, number = self.loans[at]
        assert (loan.array == number % 251).all()
        want = loan.array.copy()
        if how == "publish":
            try:
                loan.publish(timeout=0)
            except (shmq.Full, shmq.ShutDown) as e:
                self.refused(e)
                return  # it is still there
            self.model.append(want)
        elif how == "discard":
            loan.discard()
        del self.loans[at], loan

    # ---- gets ----

    @stateful.rule(copy=st.booleans(), hold=st.booleans())
    def get(self, copy: bool, hold: bool) -> None:
        try:
            got = self.consumer.get_nowait(copy=copy)
        except shmq.Empty:
            assert not self.model
            assert not self.shut_down
            return
        except shmq.ShutDown:
            assert self.shut_down == "immediate" or (self.shut_down and not self.model)
            return
        assert self.shut_down != "immediate"
        want = self.model.popleft()
        self.check(got, want)
        if hold:
            self.held.append((got, want))

    @stateful.rule(n=st.integers(1, 30), copy=st.booleans(), hold=st.booleans())
    def get_many(self, n: int, copy: bool, hold: bool) -> None:
        try:
            got = self.consumer.get_many(n, timeout=0, copy=copy)
        except shmq.Empty:
            assert not self.model
            return
        except shmq.ShutDown:
            assert self.shut_down == "immediate" or not self.model
            return
        assert len(got) == min(n, len(self.model))
        for message in got:
            want = self.model.popleft()
            self.check(message, want)
            if hold:
                self.held.append((message, want))

    @stateful.precondition(lambda self: self.held)
    @stateful.rule(data=st.data())
    def drop(self, data: Any) -> None:
        at = data.draw(st.integers(0, len(self.held) - 1))
        self.check(*self.held.pop(at))

    @stateful.precondition(lambda self: self.held)
    @stateful.rule()
    def drop_all(self) -> None:
        while self.held:
            self.check(*self.held.pop())

    # ---- handles ----

    @stateful.rule()
    def new_producer(self) -> None:
        """Loans stay with the handle that made them, so they end with it."""
        self.producer.close()
        for loan, _ in self.loans:
            loan.discard()
        self.loans.clear()
        self.producer = shmq.Queue.attach(self.name)

    @stateful.rule()
    def new_consumer(self) -> None:
        """Its views live on; its entry in the peer table with them."""
        self.consumer.close()
        self.drop_all()
        self.consumer = shmq.Queue.attach(self.name)

    @stateful.rule()
    def drop_the_consumer(self) -> None:
        """What it held goes back; what it had not taken stays."""
        self.held.clear()
        del self.consumer
        self.consumer = shmq.Queue.attach(self.name)

    @stateful.rule()
    def intruder(self) -> None:
        with shmq.Queue.attach(self.name) as other:
            s = other.stats()
            if s.producer is not None and not self.shut_down:
                with pytest.raises(shmq.RoleTaken):
                    other.put(b"")
            if s.consumer is not None and self.shut_down != "immediate":
                with pytest.raises(shmq.RoleTaken):
                    other.get_nowait()

    @stateful.precondition(lambda self: self.number > 25)
    @stateful.rule(immediate=st.booleans())
    def shutdown(self, immediate: bool) -> None:
        self.keeper.shutdown(immediate)
        if self.shut_down != "immediate":
            self.shut_down = "immediate" if immediate else "draining"

    # ---- always ----

    @stateful.invariant()
    def counts_agree(self) -> None:
        s = self.keeper.stats()
        assert s.qsize == len(self.model)
        assert s.messages_put - s.messages_got == len(self.model)
        assert self.keeper.empty() == (not self.model)
        assert (s.ring_used_bytes == 0) == (not self.model)
        assert sum(s.pages.values()) == PAGES
        assert s.pages["loaned"] == len(self.loans)
        assert s.shutdown == (self.shut_down or "open")
        blocks = s.pages["inflight"] + s.pages["leased"]
        assert blocks <= len(self.model) + len(self.held)
        assert shmq._core.lib.shmq_validate(self.keeper._c) == 0

    @stateful.invariant()
    def held_views_are_whole(self) -> None:
        for got, want in self.held:
            self.check(got, want)

    def teardown(self) -> None:
        if not hasattr(self, "keeper"):
            return
        with contextlib.ExitStack() as stack:
            for handle in (self.producer, self.consumer, self.keeper):
                stack.callback(handle.close)
            stack.callback(self.keeper.unlink)
            for loan, _ in self.loans:
                loan.discard()
            self.held.clear()
            pages = self.keeper.stats().pages
            assert pages["leased"] == pages["loaned"] == 0


class NearTheWrap(Machine):
    cursor = 2**64 - 2


_profile = hypothesis.settings()
_soak = _profile.max_examples >= 1000
SETTINGS = hypothesis.settings(
    max_examples=_profile.max_examples if _soak else 40,
    stateful_step_count=_profile.stateful_step_count if _soak else 40,
    suppress_health_check=list(hypothesis.HealthCheck),
)

TestModel = Machine.TestCase
TestModel.settings = SETTINGS
TestModelNearTheWrap = NearTheWrap.TestCase
TestModelNearTheWrap.settings = SETTINGS
