"""What the command line accepts, and what it says where that makes no sense."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable

_UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_STEP_BYTES = 8
"""Payloads carry numbers of eight bytes, and float32 arrays have to fit."""


def label(size: int) -> str:
    """4096 -> "4KiB": the largest unit that divides it."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit and size % unit == 0:
            return f"{size // unit}{name}"
    return f"{size}B"


def load_label(rate: int) -> str:
    """10000 -> "10k"."""
    return f"{rate // 1000}k" if rate % 1000 == 0 else str(rate)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _refuse(message: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(message)


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+)\s*([a-z]*)", text.lower())
    if match is None or match[2] not in _UNITS:
        raise _refuse(f"{text!r} is no size: write bytes, or 4KiB, 1MiB, 1GiB")
    size = int(match[1]) * _UNITS[match[2]]
    if size == 0 or size % _STEP_BYTES:
        raise _refuse(f"{text!r}: a payload is a multiple of {_STEP_BYTES} bytes, and not empty")
    return size


def sizes(text: str) -> tuple[int, ...]:
    """ "64,4KiB" -> (64, 4096), rising."""
    found = sorted({_size(part) for part in _parts(text)})
    if not found:
        raise _refuse("no size is given: for example 64,4KiB,1MiB")
    return tuple(found)


def whole(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[+-]?\d+", text.strip()):
            raise _refuse(f"{text!r} is no whole number")
        if not least <= int(text) <= most:
            raise _refuse(f"{text} is not between {least:,} and {most:,}")
        return int(text)

    return parse


def wholes(least: int, most: int) -> Callable[[str], tuple[int, ...]]:
    """Several, separated by commas, rising."""
    one = whole(least, most)

    def parse(text: str) -> tuple[int, ...]:
        found = sorted({one(part) for part in _parts(text)})
        if not found:
            raise _refuse("no number is given")
        return tuple(found)

    return parse


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise _refuse(f"{text!r} is no number of seconds") from None
    if not 0.001 <= value <= 60:  # NaN too
        raise _refuse(f"{text} s: a timed run takes 0.001 to 60 seconds")
    return value


def some_of(*allowed: str) -> Callable[[str], tuple[str, ...]]:
    """Some of these words, separated by commas, in the order given here."""

    def parse(text: str) -> tuple[str, ...]:
        found = _parts(text)
        if unknown := [word for word in found if word not in allowed]:
            raise _refuse(f"{unknown[0]!r} is none of {', '.join(allowed)}")
        if not found:
            raise _refuse(f"nothing is given: some of {', '.join(allowed)}")
        return tuple(word for word in allowed if word in found)

    return parse


def names(allowed: frozenset[str]) -> Callable[[str], frozenset[str]]:
    """Any of these, or none."""

    def parse(text: str) -> frozenset[str]:
        found = _parts(text)
        if unknown := [name for name in found if name not in allowed]:
            raise _refuse(f"{unknown[0]!r} is not known: {', '.join(sorted(allowed))}")
        return frozenset(found)

    return parse
