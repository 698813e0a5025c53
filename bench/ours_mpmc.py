"""shmq's other kind of ring, beside the first one in the rows where the ring is what counts."""

from __future__ import annotations

from typing import Any

from . import ours
from .endpoint import Spec
from .ours import LAUNCH, POLLS, missing, open_side, unwire

__all__ = ["LAUNCH", "NAME", "POLLS", "missing", "open_side", "unwire", "wire"]

NAME = "shmq mpmc"


def wire(spec: Spec) -> Any:
    return ours.wire(spec, "mpmc")
