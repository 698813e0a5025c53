"""iceoryx2 publish-subscribe over shared memory: loan, write in place, send; the receiver polls.

Set so that nothing is lost: no overwriting, and the publisher retries until there is room. Bytes
are copied out of the sample so that the receiver owns them; arrays stay views that hold their
sample. Where there are several subscribers, which may share a core, a poll that found nothing yields it.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import secrets
import time
from pathlib import Path
from typing import Any

from ..endpoint import Endpoint, Side, Spec
from ..jobs import float32_at

NAME = "iceoryx2"
LAUNCH = "spawn"
POLLS = True

_SLOTS = 1024
_PAUSE_S = 0.001


def missing() -> str | None:
    found = importlib.util.find_spec("iceoryx2")
    return None if found else "not installed (pip install iceoryx2)"


def wire(spec: Spec) -> Any:
    return f"bench-{os.getpid()}-{secrets.token_hex(4)}"


def unwire(wiring: Any) -> None:
    """Removes what its management of nodes leaves in /dev/shm under our own prefix."""
    for left in Path("/dev/shm").glob(f"{wiring}*"):
        left.unlink(missing_ok=True)


def open_side(spec: Spec, wiring: Any, side: Side) -> Endpoint:
    iox2 = importlib.import_module("iceoryx2")
    iox2.set_log_level(iox2.LogLevel.Error)
    config = iox2.config.default()
    config.global_cfg.prefix = iox2.FileName.new(wiring)
    config.global_cfg.root_path = iox2.Path.new(spec.directory)
    node = iox2.NodeBuilder.new().config(config).create(iox2.ServiceType.Ipc)
    buffered = min(_SLOTS, spec.in_flight)

    def service(way: str) -> Any:
        return (
            node.service_builder(iox2.ServiceName.new(f"{wiring}/{way}"))
            .publish_subscribe(iox2.Slice[ctypes.c_uint8])
            .enable_safe_overflow(False)
            .history_size(0)
            .max_publishers(1)
            .max_subscribers(spec.readers)
            .subscriber_max_buffer_size(buffered)
            .subscriber_max_borrowed_samples(1)
            .payload_alignment(iox2.Alignment.new(64))
            .open_or_create()
        )

    out_service, back_service = service("ab"), service("ba")
    if side == "b":
        out_service, back_service = back_service, out_service
    end = Endpoint()
    if side == "a" or spec.both_ways:
        publisher = (
            out_service.publisher_builder()
            .initial_max_slice_len(spec.max_bytes)
            .max_loaned_samples(1)
            .backpressure_strategy(iox2.BackpressureStrategy.RetryUntilDelivered)
            .create()
        )
        loan_slice, memmove = publisher.loan_slice_uninit, ctypes.memmove

        def put(data: bytes) -> None:
            sample = loan_slice(len(data))
            memmove(sample.payload_ptr, data, len(data))
            sample.assume_init().send()

        def put_array(array: Any) -> None:
            sample = loan_slice(array.nbytes)
            memmove(sample.payload_ptr, array.ctypes.data, array.nbytes)
            sample.assume_init().send()

        def loan(nbytes: int) -> tuple[Any, Any]:
            sample = loan_slice(nbytes)
            view = float32_at(sample.payload_ptr, nbytes)
            return view, sample.assume_init().send

        end.put, end.put_array, end.loan = put, put_array, loan
    if side == "b" or spec.both_ways:
        subscriber = back_service.subscriber_builder().create()
        # A publisher waits for room with subscribers that have looked once; with others it drops.
        while back_service.dynamic_config.number_of_publishers == 0:
            time.sleep(_PAUSE_S)
        subscriber.has_samples()
        receive, string_at, sched_yield = subscriber.receive, ctypes.string_at, os.sched_yield

        def get_sample() -> Any:
            while (sample := receive()) is None:
                pass
            return sample

        def get_sample_yielding() -> Any:
            while (sample := receive()) is None:
                sched_yield()
            return sample

        if spec.readers > 1:
            get_sample = get_sample_yielding

        def get() -> bytes:
            sample = get_sample()
            return string_at(sample.payload_ptr, sample.header.number_of_elements)

        def view(sample: Any) -> Any:
            return float32_at(sample.payload_ptr, sample.header.number_of_elements)

        def as_array(sample: Any) -> Any:
            return view(sample).copy()

        end.get, end.get_array, end.get_polling = get, get_sample, get_sample
        end.as_array, end.view = as_array, view
    return end
