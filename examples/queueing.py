"""What queueing theory says of a pipeline, computed from the stamps that its requests carried.

Kleinrock's *power* is throughput / latency.  More load gives more of both: the power rises as long
as the throughput gains more than the latency loses, and its maximum is the load to run at.  In a
row of services that take a fixed time, with one worker each, it lies where as many requests are
inside as there are services ("keep the pipe just full, but no fuller").
L. Kleinrock: Power and deterministic rules of thumb for probabilistic problems in computer
communications, ICC 1979.

Little's law, L = lambda * W: requests inside = arrivals per second * seconds that each one stays.
J. D. C. Little: A proof for the queuing formula L = lambda W, Operations Research 9, 1961.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
PUT, ASKED, GOT = range(3)  # the stamps of a hop
WARM_UP = 0.2  # of a load's time: the pipeline fills, and nothing is counted


def best_busy(services: int, arrivals: str) -> float:
    """The part of its time that each of a row of equal, fixed services works where the power is highest.

    Nobody waits when arrivals are even: then as much as can be.  With Poisson arrivals only the first
    service makes them wait (the others get them as far apart as they can work), so that in units of
    its time the latency is services + busy / (2 - 2 * busy), Pollaczek and Khinchine's mean wait.
    busy / latency is highest where its derivative is 0: at busy**2 = 2 * services * (1 - busy)**2.
    """
    return 1.0 if arrivals == "even" else 1 / (1 + 1 / math.sqrt(2 * services))


class Trace(NamedTuple):
    """One load: when the gateway was to send, and what the requests brought to the collector."""

    plan_ns: Array  # (n,)
    numbers: Array  # (n,) of the requests as they came; a request's place in the plan
    due_ns: Array  # (n,) as the request itself had it
    stamps_ns: Array  # (n, hops, 3) put, asked, got


def arrivals_ns(per_s: float, seconds: float, kind: str, seed: int) -> Array:
    """Times from 0 on.  "poisson" is what many independent users do: n points, each anywhere."""
    n = round(per_s * seconds)
    if kind == "even":
        return (np.arange(n) * (1e9 / per_s)).astype(np.int64)
    return np.sort(np.random.default_rng(seed).integers(0, int(seconds * 1e9), n))


def faults(trace: Trace) -> list[str]:
    """Requests that did not come once, and stamps that cannot be: each would spoil the figures."""
    found = []
    came = np.bincount(trace.numbers, minlength=len(trace.plan_ns))
    if len(came) > len(trace.plan_ns) or (came != 1).any():
        found.append(f"{(came == 0).sum()} requests were lost, {(came > 1).sum()} came twice")
    put, asked, got = (trace.stamps_ns[..., i] for i in (PUT, ASKED, GOT))
    early = (got < np.maximum(put, asked)).sum() + (put[:, 1:] < got[:, :-1]).sum()
    if early or (put[:, 0] < trace.due_ns).any():
        found.append("stamps are out of order")
    return found


def mean_inside(arrived_ns: Array, left_ns: Array, begin_ns: int, end_ns: int) -> float:
    """L: the time-average of how many are inside, from two lists of times that nobody matched."""
    times = np.concatenate([arrived_ns, left_ns])
    order = np.argsort(times)
    inside = np.cumsum(np.repeat([1, -1], [len(arrived_ns), len(left_ns)])[order])
    bounds = np.append(np.clip(times[order], begin_ns, end_ns), end_ns)
    return float((inside * np.diff(bounds)).sum() / (end_ns - begin_ns))


def little(trace: Trace, begin_ns: int, end_ns: int) -> dict[str, float]:
    """Both sides of Little's law between two moments.

    L counts by the plan and by the departures; lambda * W takes the requests that are due between
    the two moments, and the stay that each of them reports.  The two differ by the stays which the
    moments cut: by at most ``cut``, or else a request or a clock is wrong.
    """
    left_ns = trace.stamps_ns[:, -1, GOT]
    stay_ns = left_ns - trace.due_ns
    due_inside = (trace.due_ns >= begin_ns) & (trace.due_ns < end_ns)
    inside = mean_inside(trace.plan_ns, left_ns, begin_ns, end_ns)
    product = float(stay_ns[due_inside].sum() / (end_ns - begin_ns))  # = n / time * (sum / n)
    before, after = trace.due_ns < begin_ns, due_inside & (left_ns > end_ns)
    carried_in = np.clip(np.minimum(left_ns, end_ns)[before] - begin_ns, 0, None).sum()
    carried_out = (left_ns[after] - end_ns).sum()
    return {
        "inside": inside,
        "arrivals_times_stay": product,
        "difference_percent": 100 * (product / inside - 1),
        "cut_percent": 100 * float(max(carried_in, carried_out)) / (end_ns - begin_ns) / inside,
    }


def holds(law: dict[str, float]) -> bool:
    """True unless something beside the cut stays sets the two sides apart."""
    return abs(law["difference_percent"]) <= law["cut_percent"] + 0.01


def percentiles(values: Array, *percents: int) -> dict[str, float]:
    return {f"p{percent}": float(np.percentile(values, percent)) for percent in percents}


def transport_us(traces: list[Trace], hop: int | slice) -> dict[str, Any]:
    """From when both are there (it was put, the receiver asked) until the receiver has it.

    "receiver_waits": the part of them in which the receiver was there first, and mostly asleep.
    """
    put, asked, got = np.concatenate([t.stamps_ns[:, hop].reshape(-1, 3) for t in traces]).T
    took_us = (got - np.maximum(put, asked)) / 1e3
    first = asked < put
    waits = percentiles(took_us[first], 50, 99) if first.any() else None
    return {**percentiles(took_us, 50, 99), "receiver_waits": waits}


def figures(trace: Trace, workers_per_stage: int) -> dict[str, Any]:
    """Of one load, without its warm-up.  Latencies count from when a request was due."""
    first_ns, end_ns = int(trace.plan_ns[0]), int(trace.plan_ns[-1])
    begin_ns = first_ns + int(WARM_UP * (end_ns - first_ns))
    seconds = (end_ns - begin_ns) / 1e9
    counted = (trace.due_ns >= begin_ns) & (trace.due_ns < end_ns)
    left_ns = trace.stamps_ns[:, -1, GOT]
    put, got = trace.stamps_ns[..., PUT], trace.stamps_ns[..., GOT]
    latency_ms = (left_ns - trace.due_ns)[counted] / 1e6
    service_ms = float((put[:, 1:] - got[:, :-1])[counted].mean() / 1e6)
    arrived_per_s = float(counted.sum() / seconds)
    done_per_s = float(((left_ns >= begin_ns) & (left_ns < end_ns)).sum() / seconds)
    mean_ms = float(latency_ms.mean())
    return {
        "requests": len(trace.plan_ns),
        "arrived_per_s": arrived_per_s,
        "done_per_s": done_per_s,
        "busy": done_per_s * service_ms / 1e3 / workers_per_stage,
        "service_ms": service_ms,
        "latency_ms": {
            "mean": mean_ms,
            **percentiles(latency_ms, 50, 99),
            "max": float(latency_ms.max()),
        },
        "transport_us": transport_us([trace], slice(None)),
        "sent_late_us": percentiles((put[:, 0] - trace.due_ns)[counted] / 1e3, 50, 99),
        "power_per_s2": done_per_s / (mean_ms / 1e3),
        "little": little(trace, begin_ns, end_ns),
    }
