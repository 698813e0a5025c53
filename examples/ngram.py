"""A small language model over real text, in numpy: it has counted which byte follows what.

The text is the source of this Python's own standard library.  The next byte depends on the three before it,
and on all trigrams so far, through a layer of weights that says what comes soon after each of these.  Each
prompt draws from a generator of its own.  All values are integers, in float64 where they are multiplied, and
so exact in any order: a continuation is the same alone, in a batch, and in another process.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

CONTEXT = 3
ROWS = 1 << 14
WIDTH = 1 << 11
SOON = 8
TEXT_BYTES = 1 << 20
SEED = 2026

Array = npt.NDArray[Any]


def read_text(size: int = TEXT_BYTES) -> bytes:
    """The first ``size`` bytes of the standard library's source."""
    text = b""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text += path.read_bytes()
        if len(text) >= size:
            return text[:size]
    raise FileNotFoundError(f"no {size:,} bytes of *.py in {sysconfig.get_path('stdlib')}")


def prompts(count: int, size: int = 48) -> list[bytes]:
    """``count`` pieces of the text, from all over it."""
    text = read_text()
    starts = np.random.default_rng(SEED).integers(0, len(text) - size, count)
    return [text[start : start + size] for start in starts]


def _trigrams(text: Array, buckets: int) -> Array:
    """Of each three bytes that follow one another, along the last axis, the hash."""
    a, b, c = text[..., :-2], text[..., 1:-1], text[..., 2:]
    hashed: Array = (a * 31_337 + b * 257 + c) % buckets
    return hashed


def _counts(rows: Array, text: Array, distance: int, buckets: int) -> Array:
    """How often each byte stands ``distance`` behind a trigram of each bucket."""
    last = len(rows) - distance
    pairs = rows[:last] * 256 + text[CONTEXT - 1 + distance :][:last]
    return np.bincount(pairs, minlength=buckets * 256).reshape(buckets, 256)


class Model:
    """``next``: (ROWS, 256), what followed a trigram; ``soon``: (WIDTH, 256), what came within SOON bytes."""

    def __init__(self) -> None:
        text = np.frombuffer(read_text(), np.uint8).astype(np.int64)
        self.next = 4096 * _counts(_trigrams(text, ROWS), text, 1, ROWS)
        wide = _trigrams(text, WIDTH)
        self.soon = np.zeros((WIDTH, 256))
        for distance in range(1, SOON + 1):
            self.soon += _counts(wide, text, distance, WIDTH)

    def generate(self, batch: list[bytes], lengths: list[int]) -> Iterator[Array]:
        """For each step the next byte of each prompt, (batch,) uint8; 0 for those that are complete."""
        so_far = np.array([list(prompt) for prompt in batch], np.int64)
        recent = so_far[:, -CONTEXT:]
        memory = np.zeros((len(batch), WIDTH))
        prompt_of = np.arange(len(batch))
        np.add.at(memory, (prompt_of[:, None], _trigrams(so_far, WIDTH)), 1)
        draw = np.array([hash_of(prompt) for prompt in batch], np.uint64)
        until = np.array(lengths)
        for step in range(max(lengths)):
            draw = draw * np.uint64(6_364_136_223_846_793_005) + np.uint64(1_442_695_040_888_963_407)
            chances = self.next[_trigrams(recent, ROWS)[:, 0]] + (memory @ self.soon).astype(np.int64) // 256
            cumulative = chances.cumsum(axis=1)
            chosen = (draw >> np.uint64(33)).astype(np.int64) % cumulative[:, -1]
            found = (cumulative <= chosen[:, None]).sum(axis=1)
            recent = np.column_stack((recent[:, 1:], found))
            memory[prompt_of, _trigrams(recent, WIDTH)[:, 0]] += 1
            yield np.where(step < until, found, 0).astype(np.uint8)

    def continuations(self, batch: list[bytes], length: int) -> list[bytes]:
        """All at once."""
        steps = np.array(list(self.generate(batch, [length] * len(batch))))
        return [steps[:, i].tobytes() for i in range(len(batch))]


def hash_of(prompt: bytes) -> int:
    """The same in every process."""
    value = SEED
    for byte in prompt:
        value = (value * 1_099_511_628_211 ^ byte) % (1 << 64)
    return value
