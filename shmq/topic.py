"""``Topic`` and ``Subscription``: every subscriber gets every message, in one order for all.

One payload in shared memory serves all readers.  A subscription is a handle of its own, because what it has
read and what it holds are kept in its entry of the segment's peer table, where a repair finds them after a
death.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal, NoReturn, Self

from . import errors, segment
from ._core import ffi, lib
from .consumer import Consumer
from .handle import DEFAULTS, MAX_PEERS, POLICIES, Options, check_options, make_params
from .producer import Producer
from .tensor import Arrays

Policy = Literal["block", "drop_oldest", "evict"]


class Topic(Producer):
    """A broadcast topic in shared memory, opened or created: the publishing side.

    ``name``: as for ``Queue``; None makes an anonymous topic.  Any number of handles may publish.

    ``policy`` says what becomes of a subscriber that is a whole ring behind, or holds up the arena:
    "block" (the default): the publisher waits for it, or raises ``Full``;
    "drop_oldest": it misses the oldest messages, and ``Subscription.missed`` says how many;
    "evict": its subscription ends, and its next get raises ``Evicted``.
    A subscriber that died is in nobody's way: whoever waits repairs within 100 ms what it left.
    ``history``: so many of the last messages are kept for late subscribers, as long as the arena has room for
    them; at most half of the ring's slots.
    Policy and history count only where this call creates the topic; ``WrongKind`` where one exists that was
    made with others than asked for.

    The sizes are ``Queue``'s, with slots as on "mpmc"; ``max_peers`` counts publishers and subscribers, at
    most 51.  ``allow_pickle`` lets objects that no codec takes be pickled; receivers must allow it, too.

    Threads may share a handle; processes pickle it, or use it in a forked child, where it attaches anew.
    """

    __slots__ = ()
    _kinds: ClassVar[tuple[str, ...]] = ("topic",)

    def __init__(
        self,
        name: str | None = None,
        *,
        policy: Policy | None = None,
        history: int | None = None,
        ring_bytes: int = DEFAULTS["ring_bytes"],
        arena_bytes: int = DEFAULTS["arena_bytes"],
        inline_bytes: int | None = None,
        max_peers: int = MAX_PEERS["topic"],
        allow_pickle: bool = False,
    ) -> None:
        params = _params(policy, history, ring_bytes, arena_bytes, inline_bytes, max_peers)

        def check() -> None:
            found = self.stats()
            for label, asked, got in (("policy", policy, found.policy), ("history", history, found.history)):
                if asked is not None and asked != got:
                    raise errors.WrongKind(
                        f"topic {name!r}: exists with {label}={got!r}, not {asked!r}; leave out {label}=, "
                        "remove it (shmq rm), or use another name"
                    )

        self._open(name, params, check_options(allow_pickle, "auto", None), check)

    @classmethod
    def create(
        cls,
        name: str,
        *,
        policy: Policy = "block",
        history: int = 0,
        ring_bytes: int = DEFAULTS["ring_bytes"],
        arena_bytes: int = DEFAULTS["arena_bytes"],
        inline_bytes: int | None = None,
        max_peers: int = MAX_PEERS["topic"],
        allow_pickle: bool = False,
    ) -> Self:
        """Makes the segment; ``NameTaken`` if there is one of this name.  Parameters as for ``Topic``."""
        self = cls.__new__(cls)
        params = _params(policy, history, ring_bytes, arena_bytes, inline_bytes, max_peers)
        self._create(name, params, check_options(allow_pickle, "auto", None))
        return self

    @classmethod
    def attach(cls, name: str, *, allow_pickle: bool = False, timeout: float | None = 5.0) -> Self:
        """Opens what exists; ``SegmentNotFound`` if nothing does.

        Waits up to ``timeout`` seconds for a creator that is still initialising, then raises ``NotReady``."""
        self = cls.__new__(cls)
        self._attach(name, check_options(allow_pickle, "auto", None), timeout)
        return self

    def publish(self, obj: Any, block: bool = True, timeout: float | None = None) -> None:
        """Sends ``obj`` to every subscriber: copied once, however many there are.

        The same as ``put``, see ``Queue.put``.  Without subscribers it only becomes history.  With policy
        "block" it waits up to ``timeout`` seconds for the slowest subscriber, then raises ``Full``."""
        self.put(obj, block, timeout)

    def publish_many(self, objs: Any, timeout: float | None = None) -> int:
        """Sends every object of an iterable, in order; the same as ``put_many``, see ``Queue.put_many``."""
        return self.put_many(objs, timeout)

    def subscribe(
        self,
        history: int | None = None,
        *,
        allow_pickle: bool = False,
        arrays: Arrays = "auto",
        type: Any = None,
    ) -> "Subscription":
        """A new subscription: it gets each message that is published after this call returns.

        Before them it gets the last ``history`` messages that the topic keeps (None: all of these).  The
        other options are the receiving side's, as for ``Queue``."""
        kept = self.stats().history or 0
        if history is None:
            history = kept
        if not 0 <= history <= kept:
            raise ValueError(
                f"history={history:,}: topic {self.name!r} keeps {kept:,} messages; create it with a larger "
                "history"
            )
        return Subscription(self, history, check_options(allow_pickle, arrays, type))

    def full(self) -> bool:
        """True if a publisher would have to wait for a subscriber now (policy "block")."""
        return self.stats().full


class Subscription(Consumer):
    """One subscriber's side of a topic; made by ``Topic.subscribe``.

    ``get``, ``get_nowait`` and ``get_many`` as on a ``Queue``, and ``for message in subscription``, which
    ends when the topic is shut down.  Arrays that it gets are read-only views of memory that all subscribers
    share (torch has no such thing: do not write to a tensor; ``copy=True`` detaches it).  A view that is
    alive keeps its memory, not the publisher's slot.

    Raises ``Evicted`` (policy "evict"), and ``PeerDead`` once every publisher is gone, the last by death.
    Threads may share it.  It cannot be pickled, and does not go through a fork: subscribe in the other
    process.
    """

    __slots__ = ()
    _kinds: ClassVar[tuple[str, ...]] = ("topic",)

    def __init__(self, topic: Topic, history: int, options: Options) -> None:
        handle = segment.reattach(topic.name, topic._c)
        self._bind(topic.name, handle, topic._identity, options)
        if status := lib.shmq_subscribe(handle, history):
            self.close()
            errors.raise_status(status, topic.name)

    def _state(self) -> Any:
        state = ffi.new("shmq_subscription *")
        if status := lib.shmq_get_subscription(self._c, state):
            errors.raise_status(status, self.name)
        return state

    def qsize(self) -> int:
        """Messages before this subscriber.  Others may publish at any moment."""
        return int(self._state().lag)

    def empty(self) -> bool:
        """True if no message waits for this subscriber now."""
        return self.qsize() == 0

    @property
    def missed(self) -> int:
        """Messages since it subscribed that were written over before it got them (policy "drop_oldest").

        It is up to date with the last get: what comes next is message ``missed + got``.  What a publisher had
        begun when it died counts, too."""
        return int(self._state().missed)

    @property
    def evicted(self) -> bool:
        """True if a publisher has ended this subscription (policy "evict")."""
        return bool(self._state().evicted)

    def reattach(self) -> NoReturn:
        """Refused: in a forked child the parent goes on reading; subscribe anew there."""
        raise errors.ForkedHandle(
            f"topic {self.name!r}: this subscription was inherited through fork(), and is the parent's; call "
            "subscribe() in this process"
        )

    def __iter__(self) -> Iterator[Any]:
        try:
            while True:
                yield self.get()
        except errors.ShutDown:
            return

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a subscription cannot be pickled; pickle its topic, and call subscribe() in the other process"
        )


def _params(
    policy: Policy | None,
    history: int | None,
    ring_bytes: int,
    arena_bytes: int,
    inline_bytes: int | None,
    max_peers: int,
) -> Any:
    if policy is not None and policy not in POLICIES:
        raise ValueError(f"policy {policy!r}: must be one of {', '.join(map(repr, POLICIES))}")
    number = POLICIES[policy or "block"]
    sizes = (ring_bytes, arena_bytes, inline_bytes, max_peers)
    return make_params("topic", *sizes, policy=number, history=0 if history is None else history)
