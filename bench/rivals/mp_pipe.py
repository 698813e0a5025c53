"""multiprocessing.Pipe (one way each): bytes through a kernel pipe, no pickle.

Arrays are received into one buffer that the next message overwrites.
"""

from __future__ import annotations

import multiprocessing
from typing import Any

import numpy as np

from ..endpoint import Endpoint, Side, Spec

NAME = "mp.Pipe"
LAUNCH = "spawn"
POLLS = False


def missing() -> str | None:
    return None


def wire(spec: Spec) -> Any:
    context = multiprocessing.get_context("spawn")
    return tuple(context.Pipe(duplex=False) for _ in range(2 if spec.both_ways else 1))


def unwire(wiring: Any) -> None:
    for reader, writer in wiring:
        reader.close()
        writer.close()


def open_side(spec: Spec, wiring: Any, side: Side) -> Endpoint:
    out, back = (wiring[0], wiring[-1]) if side == "a" else (wiring[-1], wiring[0])
    end = Endpoint()
    if side == "a" or spec.both_ways:
        send = out[1].send_bytes
        end.put = send
        end.put_array = lambda array: send(array.data.cast("B"))
    if side == "b" or spec.both_ways:
        buffer: Any = np.empty(spec.max_bytes, np.uint8)
        view, receive_into = memoryview(buffer), back[0].recv_bytes_into
        end.get = back[0].recv_bytes
        end.get_array = lambda: receive_into(view)
        end.as_array = lambda nbytes: buffer[:nbytes].view(np.float32)
    return end
