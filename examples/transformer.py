"""A small transformer of which each worker computes a share, in numpy alone; and the text it reads.

Tensor parallel as in Megatron-LM: every worker has some of the attention heads and some columns of
the MLP, and the sum of all workers' results is the layer's result. Attention and MLP run side by
side as in GPT-J, y = x + attention(norm x) + mlp(norm x), so that one sum per layer is enough.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

BATCH, SEQ, HIDDEN, MLP, HEADS, LAYERS, VOCABULARY = 8, 128, 256, 1024, 8, 2, 256
ROWS = BATCH * SEQ
SEED = 2026

Array = npt.NDArray[Any]


class Model:
    """Shard ``rank`` of ``workers``: all draw the same weights from SEED and keep a part of them.

    Query, key, value and MLP-up are split by column, the two output matrices by row; as their
    products are summed anyway, they are stacked to one matrix. Not for use by several threads.
    """

    def __init__(self, rank: int, workers: int) -> None:
        rng = np.random.default_rng(SEED)

        def draw(*shape: int) -> Array:
            return rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[-2]))

        def mine(size: int) -> slice:
            return slice(size * rank // workers, size * (rank + 1) // workers)

        self.adds_residual = rank == 0  # once, not once for each worker
        self.heads = HEADS // workers
        self.embedding, self.positions = draw(VOCABULARY, HIDDEN) * 16, draw(SEQ, HIDDEN)
        self.future = np.triu(np.full((SEQ, SEQ), -1e9, np.float32), 1)
        self.layers: list[tuple[Array, Array, Array]] = []
        for _ in range(LAYERS):
            qkv, up = draw(3, HIDDEN, HIDDEN), draw(HIDDEN, MLP)
            attention_out, mlp_out = draw(HIDDEN, HIDDEN), draw(MLP, HIDDEN)
            out = np.concatenate([attention_out[mine(HIDDEN)], mlp_out[mine(MLP)]])
            self.layers.append((qkv[..., mine(HIDDEN)].copy(), up[:, mine(MLP)].copy(), out))

    def embed(self, tokens: Array) -> Array:
        """(BATCH, SEQ) int32 to (ROWS, HIDDEN) float32."""
        return np.asarray(self.embedding[tokens] + self.positions).reshape(ROWS, HIDDEN)

    def partial(self, layer: int, x: Array, out: Array) -> None:
        """Write this shard's part of a layer's result to ``out``.

        x and out are (ROWS, HIDDEN) float32, C-contiguous; the last matrix product writes to out.
        """
        qkv_weight, up_weight, out_weight = self.layers[layer]
        centred = x - x.mean(axis=1, keepdims=True)
        norm = centred / np.sqrt((centred * centred).mean(axis=1, keepdims=True) + 1e-5)

        qkv = (norm @ qkv_weight).reshape(3, BATCH, SEQ, self.heads, -1).swapaxes(2, 3)
        scores = qkv[0] @ qkv[1].swapaxes(2, 3) / np.float32(np.sqrt(HIDDEN // HEADS))
        scores += self.future
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        attention = (weights @ qkv[2]).swapaxes(1, 2).reshape(ROWS, -1)

        up = norm @ up_weight
        gelu = up / (1 + np.exp(np.float32(-1.702) * up))
        np.matmul(np.concatenate([attention, gelu], axis=1), out_weight, out=out)
        if self.adds_residual:
            out += x


def compute_alone(model: Model, tokens: Array) -> Array:
    """All layers in one process, for Model(0, 1): what the workers together must arrive at."""
    x = model.embed(tokens)
    for layer in range(LAYERS):
        out = np.empty_like(x)
        model.partial(layer, x, out)
        x = out
    return x


def token_batches(count: int) -> Iterator[Array]:
    """The source of this Python's standard library as ``count`` arrays (BATCH, SEQ) of int32.

    A token is a byte. After the last file it starts over.
    """
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    if not files:
        raise FileNotFoundError(f"no .py files in {sysconfig.get_path('stdlib')}: no text to read")
    text = b""
    for _ in range(count):
        while len(text) < ROWS:
            text += files[0].read_bytes()
            files.append(files.pop(0))
        yield np.frombuffer(text, np.uint8, ROWS).astype(np.int32).reshape(BATCH, SEQ)
        text = text[ROWS:]
