"""One publisher, many subscribers, each in a process of its own and each getting everything.

1MiB: what one array costs the publisher in processor time, that of its library's own threads included. It
publishes when all have read the message before, so it never waits for them, and nobody sleeps, so that no
wake-up is in it ("all asleep": with them). 64B: as fast as the slowest of them reads.
"""

from __future__ import annotations

from .. import machine, ours_topic
from ..harness import Harness, Runner, Sample, Settings
from ..jobs import PROGRESS_BYTES
from ..model import Point, Role, Row
from ..pair import Pair
from ..rivals import iceoryx, pyzmq_pub, zenoh_shm
from ..work import has, one_way_seconds, role, verify

_SIZES = {"1MiB": 1 << 20, "64B": 64}
_READERS = {"1MiB": (1, 2, 4, 8), "64B": (1, 2, 4)}
_IN_FLIGHT = {"1MiB": 1, "64B": 1024}
AMONG = (ours_topic, iceoryx, zenoh_shm, pyzmq_pub)


def rows(settings: Settings) -> list[Row]:
    def cost(readers: int) -> Row:
        title = f"publisher's processor time for 1 MiB (p50), {_subscribers(settings, readers)}"
        where = Point("publisher's processor time against subscribers, 1 MiB (p50)", "subscribers", readers)
        return Row(f"fanout/1MiB/{readers}", "fanout", title, "us", "lower", point=where)

    def rate(readers: int) -> Row:
        title = f"64 B, published per second, {_subscribers(settings, readers)}"
        where = Point("published per second against subscribers, 64 B", "subscribers", readers)
        return Row(f"fanout/64B/{readers}", "fanout", title, "M/s", "higher", point=where)

    return [
        *map(cost, settings.readers or _READERS["1MiB"]),
        *map(rate, settings.readers or _READERS["64B"]),
    ]


def _subscribers(settings: Settings, readers: int) -> str:
    """How many, and on how many cores; the publisher has one for itself."""
    cores = len(set(machine.cores_for(settings.cores, readers)[1:]))
    if settings.cores[0] < 0:
        where = ", not pinned"
    else:
        where = f" share {cores} core{'s' * (cores > 1)}" if cores < readers else ""
    return f"{readers} subscriber{'s' * (readers > 1)}{where}"


def _cost(harness: Harness, pair: Pair, name: str, role: Role) -> Runner:
    size, settings = _SIZES["1MiB"], harness.settings

    def publish(count: int, asleep: bool) -> dict[str, float]:
        progress = harness.directory / "progress"
        progress.write_bytes(bytes(PROGRESS_BYTES * (1 + pair.readers)))
        job = {"count": count, "progress": str(progress), "asleep": asleep}
        receive = [("receive_apart", {**job, "reader": reader}) for reader in range(pair.readers)]
        said: dict[str, float]
        said, _ = pair.run_all(("send_apart", {**job, "size": size}), receive, settings.timeout_s)
        said["us"] = (said["p50"] + said["helpers"]) / 1e3
        return said

    def run(count: int) -> Sample:
        said = publish(count, asleep=False)
        extras = {}
        if not pair.polls:
            asleep = publish(count, asleep=True)
            said["seconds"] += asleep["seconds"]
            extras["all asleep"] = asleep["us"]
        if said["helpers"] > 0.1 * said["p50"]:
            extras["in its own threads"] = said["helpers"] / 1e3
        return Sample(said["us"], said["seconds"], extras)

    return Runner(name, role, run, lambda: verify(pair, "array", size, 3, settings.timeout_s), first=8)


def _rate(harness: Harness, pair: Pair) -> Runner:
    size, timeout = _SIZES["64B"], harness.settings.timeout_s

    def run(count: int) -> Sample:
        seconds = one_way_seconds(pair, "one", size, count, timeout)
        rate = count / seconds / 1e6
        return Sample(rate, seconds, {"delivered": rate * pair.readers} if pair.readers > 1 else {})

    return Runner(pair.name, role(pair), run, lambda: verify(pair, "one", size, 640, timeout))


def _memcpy(harness: Harness) -> list[Runner]:
    """Always into the same buffer, as shmq's messages come here: what was freed last is used first."""
    floors, size = harness.program("floors"), _SIZES["1MiB"]
    if floors is None:
        return []

    def run(count: int) -> Sample:
        us = size / floors.run("memcpy", count, size, 1, harness.settings.cores[0])["gb_per_s"] / 1e3
        return Sample(us, count * us / 1e6)

    return [Runner("memcpy", "floor", run)]


def _runners(harness: Harness, row: Row, pairs: list[Pair], alone: list[Pair]) -> list[Runner]:
    if row.unit == "M/s":
        return [_rate(harness, pair) for pair in pairs if has(pair, "one")]
    runners = [_cost(harness, pair, pair.name, role(pair)) for pair in pairs if has(pair, "array")]
    beside = [_cost(harness, pair, "shmq, one subscriber", "reference") for pair in alone]
    return [*_memcpy(harness), *runners[:1], *beside, *runners[1:]]


def run(harness: Harness, rows: list[Row]) -> None:
    """shmq's topic with one subscriber stays, to be measured beside those that have more."""
    large = _SIZES["1MiB"]
    with harness.pairs(large, in_flight=_IN_FLIGHT["1MiB"], among=AMONG[:1]) as alone:
        for row in rows:
            _, label, readers = row.id.split("/")
            if _SIZES[label] > harness.settings.max_bytes:
                harness.skip(row, "larger than --max-mib")
                continue
            with harness.pairs(
                _SIZES[label], in_flight=_IN_FLIGHT[label], readers=int(readers), among=AMONG
            ) as pairs:
                harness.measure(row, _runners(harness, row, pairs, alone if readers != "1" else []))
