"""multiprocessing.Queue: pickle through a pipe, with a feeder thread in the sender."""

from __future__ import annotations

import multiprocessing
from typing import Any

from ..endpoint import Endpoint, Side, Spec

NAME = "mp.Queue"
LAUNCH = "spawn"
POLLS = False


def missing() -> str | None:
    return None


def wire(spec: Spec) -> Any:
    context = multiprocessing.get_context("spawn")
    return tuple(context.Queue(spec.in_flight) for _ in range(2 if spec.both_ways else 1))


def unwire(wiring: Any) -> None:
    for queue in wiring:
        queue.close()


def open_side(spec: Spec, wiring: Any, side: Side) -> Endpoint:
    out, back = (wiring[0], wiring[-1]) if side == "a" else (wiring[-1], wiring[0])
    end = Endpoint(as_array=lambda received: received)
    if side == "a" or spec.both_ways:
        end.put = end.put_array = out.put
    if side == "b" or spec.both_ways:
        end.get = end.get_array = back.get
    return end
