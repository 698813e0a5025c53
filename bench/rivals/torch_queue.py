"""torch.multiprocessing.Queue: multiprocessing's, which pickles a tensor as a handle of shared memory.

Each put copies its array into a new file of shared memory; the descriptor goes through a Unix socket; the
receiver maps it and gets a tensor. Bytes are pickled through the pipe, as with mp.Queue.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from ..endpoint import Endpoint, Side, Spec
from . import mp_queue
from .mp_queue import LAUNCH, POLLS, unwire, wire

__all__ = ["LAUNCH", "NAME", "POLLS", "missing", "open_side", "unwire", "wire"]

NAME = "torch.mp.Queue"


def missing() -> str | None:
    return None if importlib.util.find_spec("torch") else "not installed (pip install torch)"


def open_side(spec: Spec, wiring: Any, side: Side) -> Endpoint:
    torch: Any = importlib.import_module("torch")
    importlib.import_module("torch.multiprocessing")  # teaches multiprocessing how tensors are pickled
    torch.set_num_threads(1)
    end = mp_queue.open_side(spec, wiring, side)
    if end.put is not None:
        put, from_numpy = end.put, torch.from_numpy
        end.put_array = lambda array: put(from_numpy(array))
    end.as_array = lambda tensor: tensor.numpy()
    return end
