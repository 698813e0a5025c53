"""Random bytes in a live segment: an error, or wrong data within bounds; never a crash, never a hang.

`tests/c/damage.c` does the same to the C core, 10,000 times, also under the sanitizers; here the Python side
decodes what comes out.
"""

import os
import subprocess
import sys

import pytest

MUTATIONS = 10_000 if os.environ.get("HYPOTHESIS_PROFILE") == "soak" else 1_000

SCRIPT = """
import random, sys
import numpy as np, shmq

seed, mutations, name = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
choose = random.Random(seed)
SIZES = dict(ring_bytes=4096, arena_bytes=1 << 18, inline_bytes=1024, max_peers=4)
MESSAGES = [
    b"x" * 40, b"y" * 900, b"z" * 5000, {"a": [1, 2.5, "s"]}, np.arange(3000.0), np.arange(7),
    {"t": np.ones((3, 5), np.float32), "u": [np.zeros(2000, np.int8)]},
    np.zeros(20, [("a", "i4"), ("b", "f8", (2,))]), np.float32(3),
]
outcomes = {}
def attempt(what):
    try:
        what()
        kind = "ok"
    except (shmq.ShmqError, MemoryError) as e:
        kind = type(e).__name__
    outcomes[kind] = outcomes.get(kind, 0) + 1

for i in range(mutations):
    if i % 25 == 0:  # a fresh segment: an old one is beyond use after a while
        q = shmq.Queue.create(name, **SIZES)
        path = "/dev/shm/shmq." + name
        memory = np.memmap(path, np.uint8, "r+")
        q.unlink()
    for message in choose.sample(MESSAGES, 3):
        attempt(lambda: q.put(message, block=False))
    # Mostly where the structures lie, behind the header: control, peers, ring, page words, block headers.
    end = memory.size if choose.random() < 0.1 else min(memory.size, 4096 * 6)
    at = choose.randrange(4096, end)
    if choose.random() < 0.5:
        memory[at] ^= 1 << choose.randrange(8)
    else:
        for k in range(at & ~7, min((at & ~7) + 8, memory.size)):
            memory[k] = choose.choice((0, 255, choose.randrange(256)))
    kept = []
    attempt(lambda: kept.append(q.get(block=False)))
    attempt(lambda: kept.extend(q.get_many(3, timeout=0.001)))
    attempt(lambda: repr(kept))
    attempt(q.stats)
    attempt(q.peers)
    attempt(lambda: q.put(b"w" * 2000, timeout=0.001))
    attempt(lambda: q.loan(100, "u1", timeout=0).discard())
    del kept
    if i % 25 == 24:
        q.close()
        del memory
print(sorted(outcomes))
assert outcomes["ok"] > mutations and outcomes.get("Corrupt", 0) > 0, outcomes
"""


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(2))
def test_random_bytes_in_a_live_segment(seed: int, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(seed), str(MUTATIONS), name],
        capture_output=True,
        text=True,
        check=False,
        timeout=1100,
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
