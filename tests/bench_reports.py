"""Reports made by hand, for the tests of what the benchmark writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.model import Budget, Point, Report, Result, Row

ROOT = Path(__file__).resolve().parent.parent
EVIL = "<script>document.documentElement.dataset.evil = 1</script>--></title></svg>\"'$x$&amp;"
"""A name that would break a careless page."""
MACHINE = {
    "cpu": "A Processor",
    "cpu_cores": 2,
    "sockets": 1,
    "numa_nodes": 1,
    "smt": "off",
    "governor": "performance",
    "virtual": "none",
    "kernel": "6.1",
    "memory_bytes": 8 << 30,
    "dev_shm_free_bytes": 4 << 30,
    "huge_pages_shmem": "never",
    "clocksource": "tsc",
    "python": "3.11.7",
    "python_optimized_build": True,
    "compiler": "cc 12",
    "versions": {"shmq": "0.1.0", "pyzmq": "27.0"},
    "load_average": [0.1, 0.1, 0.1],
}
SETTINGS = {
    "repetitions": 3,
    "target_s": 0.25,
    "cores": [0, 1],
    "started": "2026-11-22T18:02:11+00:00",
    "took_s": 300.0,
    "only": [],
    "rivals": None,
}


def row(name: str, /, **samples: list[float]) -> Row:
    made = Row(name, name.split("/")[0], f"title of {name}", "us", "lower")
    roles = {"shmq": "shmq", "floor": "floor"}
    for contestant, values in samples.items():
        role: Any = roles.get(contestant, "rival")
        made.results.append(Result(contestant, role, values, verified=True))
    return made


def run_of(*rows: Row, **changes: Any) -> Report:
    noise = {"loop_median_ms": 3.0, "spread_percent": 4.0, "p90_percent": 1.0}
    made = Report({**MACHINE}, {**SETTINGS}, {"at the start": noise}, list(rows))
    for name, value in changes.items():
        (made.machine if name in MACHINE else made.settings)[name] = value
    return made


def rich_run() -> Report:
    """Every kind of row, plot and remark; names that would break a careless page."""
    rows = []
    for size in (64, 4096, 1 << 20):
        made = row(
            f"rate/{size}", shmq=[3e6 / size, 3.1e6 / size], floor=[9e6 / size] * 2, evil=[1e6 / size] * 2
        )
        made.point = Point(f"rate against size {EVIL}", "bytes", size)
        made.unit, made.better = "M/s", "higher"
        made.results[2].name = EVIL
        rows.append(made)
    for consumers in (1, 2):
        made = row(f"fanout/{consumers}", shmq=[30.0, 31.0], other=[20.0, 22.0])
        made.point = Point("cost against consumers", "subscribers", consumers)
        made.budget = Budget("<= 10 us", 10.0, "value")
        rows.append(made)
    tail = row("latency/tail", shmq=[1.0, 1.1], other=[2.0, 2.1])
    for result in tail.results:
        result.distribution = [(0.0, 0.5), (50.0, 1.0), (99.0, 2.0), (99.9, 80.0), (100.0, 900.0)]
        result.extras = {"p99": [2.0, 2.1], "power [M/s per us]": [3.0, 3.5]}
    odd = row("odd/" + EVIL, shmq=[0.0, 0.0], other=[0.0, 0.0])
    odd.title, odd.unit = EVIL, EVIL
    odd.results.append(Result("gone", "rival", failed=EVIL))
    skipped = Row("huge/1", "huge", "a huge row", "us", "lower", skipped="larger than --max-mib")
    made = run_of(*rows, tail, odd, skipped, Row("nobody/1", "nobody", "can", "us", "lower"), cpu=EVIL)
    made.absent, made.warnings = {EVIL: EVIL}, [EVIL]
    return made


def check_schema(data: Any) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema (pip install 'shmq[test]')")
    schema = json.loads((ROOT / "bench" / "schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(data, schema, jsonschema.Draft202012Validator)
