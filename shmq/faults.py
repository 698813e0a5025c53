"""Exceptions as data: how an error of a server's handler reaches the caller without pickle.

A fault is ``[type name, base, arguments, text, traceback]``.  ``base`` is the nearest class above it in a
fixed table; at the caller it becomes a ``RemoteError`` that is also one of that class.  Other types are
plain ``RemoteError``.  What arrives names a row of the table, and is data otherwise.
"""

import builtins
import traceback
from typing import Any

import msgspec

from . import errors
from .errors import RemoteError

TEXT_CHARS = 2_000
TRACEBACK_CHARS = 6_000
ARGUMENTS = 8
"""An exception with more arguments than these, or with others than plain ones, keeps its text only."""

Fault = list[Any]

_BUILTINS = (
    "ArithmeticError", "AssertionError", "AttributeError", "BlockingIOError", "BrokenPipeError",
    "BufferError", "ChildProcessError", "ConnectionAbortedError", "ConnectionError",
    "ConnectionRefusedError", "ConnectionResetError", "EOFError", "FileExistsError", "FileNotFoundError",
    "FloatingPointError", "ImportError", "IndexError", "InterruptedError", "IsADirectoryError", "KeyError",
    "LookupError", "MemoryError", "ModuleNotFoundError", "NameError", "NotADirectoryError",
    "NotImplementedError", "OSError", "OverflowError", "PermissionError", "ProcessLookupError",
    "RecursionError", "ReferenceError", "RuntimeError", "TimeoutError", "TypeError", "UnicodeError",
    "ValueError", "ZeroDivisionError",
)  # fmt: skip
_OURS = (
    "ArenaFull", "Closed", "Corrupt", "DecodeError", "Empty", "Full", "MessageTooLarge", "NotReady",
    "OutOfSpace", "PickleRefused", "SegmentNotFound", "ShutDown", "Unencodable",
)  # fmt: skip


def _with_base(name: str, base: type[Exception]) -> type[RemoteError]:
    return type(
        "Remote" + name, (RemoteError, base), {"__module__": __name__, "__doc__": RemoteError.__doc__}
    )


_BASES: dict[str, type[Exception]] = {name: getattr(builtins, name) for name in _BUILTINS} | {
    f"shmq.{name}": getattr(errors, name) for name in _OURS
}
_REMOTE = {name: _with_base(base.__name__, base) for name, base in _BASES.items()}
_NAMES = {base: name for name, base in _BASES.items()}


def _text(made: Any, limit: int) -> str:
    """What can be encoded, and not too much of it: its start and its end."""
    try:
        text = made if isinstance(made, str) else str(made)
    except Exception as e:  # what __str__ raises is up to the object
        text = f"<no text: {type(e).__name__}>"
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= limit else f"{text[: limit // 2]} ... {text[-limit // 2 :]}"


def _arguments(error: BaseException) -> list[Any] | None:
    found = list(error.args)
    if len(found) > ARGUMENTS or not all(isinstance(a, (str, int, float, bytes, type(None))) for a in found):
        return None
    if isinstance(error, OSError) and error.filename is not None:  # args has only the first two
        found += [error.filename]
    try:
        return found if len(msgspec.msgpack.encode(found)) <= TEXT_CHARS else None
    except Exception:  # a lone surrogate, an integer of more than 64 bits, a filename of any type
        return None


def describe(error: BaseException, where: str = "") -> Fault:
    """``error`` as data.  ``where`` replaces the traceback."""
    kind = type(error)
    base = next((_NAMES[c] for c in kind.__mro__ if c in _NAMES), None)
    # A subclass may say something else of the same arguments.
    exact = kind in _NAMES or isinstance(error, (OSError, KeyError))
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    lines = [where] if where else traceback.format_exception(error)
    return [
        _text(name, 200),
        base,
        _arguments(error) if exact else None,
        _text(error, TEXT_CHARS),
        _text("".join(lines), TRACEBACK_CHARS),
    ]


def brief(fault: Fault) -> Fault:
    """The same where there is little room."""
    return [fault[0], fault[1], None, fault[3][:100], ""]


def revive(fault: Any) -> RemoteError:
    """The exception that a caller raises."""
    if not (isinstance(fault, list) and len(fault) == 5):
        return RemoteError(f"the server failed, and what it says cannot be read: {fault!r:.200}")
    name, base, arguments, text, where = fault
    kind = _REMOTE.get(base, RemoteError) if isinstance(base, str) else RemoteError
    if kind is RemoteError:
        error = RemoteError(f"{name}: {text}" if text else str(name))
    else:
        error = _build(kind, arguments, text)
    error.kind = str(name)
    if where:
        error.add_note(f"in the server:\n{where}".rstrip())
    return error


def _build(kind: type[RemoteError], arguments: Any, text: Any) -> RemoteError:
    if isinstance(arguments, list) and not issubclass(kind, errors.DecodeError):
        try:
            return kind(*arguments)
        except TypeError:  # its constructor takes others
            pass
    return kind(str(text))
