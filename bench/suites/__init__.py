"""The suites, in the order in which they run. Each module has

`rows(settings)`: the rows it will produce, empty, so that they can be listed without a run;
`run(harness, rows)`: measures them.
"""

from __future__ import annotations

from types import ModuleType

from . import aio, core, fanout, floors, handover, latency, local, mpmc, rpc, tensor, throughput, wait

ALL: dict[str, ModuleType] = {
    "floors": floors,
    "core": core,
    "local": local,
    "throughput": throughput,
    "latency": latency,
    "tensor": tensor,
    "handover": handover,
    "fanout": fanout,
    "mpmc": mpmc,
    "wait": wait,
    "aio": aio,
    "rpc": rpc,
}
