"""The `shmq` command: looks at segments, removes them, checks the machine, runs the demo.

It only renders: what it shows comes from `shmq.list_segments`, `inspect`, `peek` and `shmq.doctor`,
all read-only. On a terminal it draws tables in colour; into a pipe it writes plain aligned lines
with every name and number whole (sizes in bytes, ages in seconds); `--json` is for programs.
Exit status: 0 done, 1 `doctor` found a failure, 2 refused (one line on stderr says why).
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

import shmq
from shmq import doctor as checks

ON_TERMINAL = sys.stdout.isatty()
app = typer.Typer(
    help="Look after the shared-memory queues of this host.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich" if ON_TERMINAL and sys.stderr.isatty() else None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Name = Annotated[str, typer.Argument(help="Queue, as `shmq ls` names it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON, for programs.")]


# -- cells: str() is the plain face, __rich__ the one on a terminal -------------------------------


class Bytes(int):
    """A size: exact when plain, rounded on a terminal."""

    def __rich__(self) -> Text:
        return Text(checks.human_bytes(self), no_wrap=True)


class Age(int):
    """Time gone by in seconds: exact when plain, its largest unit on a terminal."""

    def __str__(self) -> str:
        return f"{int(self)}s"

    def __rich__(self) -> Text:
        units = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
        size, unit = next((u for u in units if self >= 2 * u[0]), units[-1])
        return Text(f"{self // size} {unit}", no_wrap=True)


class Who(NamedTuple):
    """The process behind a peer."""

    pid: int
    alive: bool | None
    """None where the kernel could not be asked."""

    def __str__(self) -> str:
        return f"{self.pid} {({True: 'alive', False: 'dead', None: 'unknown'})[self.alive]}"

    def __rich__(self) -> Text:
        return Text(str(self.pid), "green") if self.alive else Text(str(self), "red")


class Before(NamedTuple):
    """How long before something else, in seconds."""

    seconds: float
    exact: bool

    def __str__(self) -> str:
        return f"{'' if self.exact else '<'}{self.seconds:.3f}"

    def __rich__(self) -> Text:
        return Text(f"{self} s", no_wrap=True)


class Fill(NamedTuple):
    """How full something is: per cent when plain, with a bar on a terminal."""

    used: int
    total: int

    def __str__(self) -> str:
        return f"{100 * self.used / max(self.total, 1):.1f}%"

    def __rich__(self) -> RenderableType:
        bar = Table.grid(padding=(0, 1))
        bar.add_row(ProgressBar(max(self.total, 1), self.used, width=30), Text(str(self)))
        return bar


class Section(NamedTuple):
    """One table; without column heads a list of names and values."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


def _clean(cell: object) -> str:
    """`cell` as printable text: names and previews are written by other processes."""
    text = str(cell)
    return text if text.isprintable() else ascii(text)[1:-1]


def _table(section: Section) -> Table:
    table = Table(box=None, show_header=bool(section.columns), pad_edge=False, padding=(0, 2, 0, 0))
    for index in range(len(section.rows[0])):
        number = bool(section.columns) and any(isinstance(r[index], int | Before) for r in section.rows)
        process = any(isinstance(r[index], Who) for r in section.rows)
        table.add_column(
            section.columns[index] if section.columns else "",
            justify="right" if number else "left",
            no_wrap=number or process,
            overflow="fold",  # an ellipsis would hide part of a name
        )
    for row in section.rows:
        table.add_row(*(c if isinstance(c, Text) or hasattr(c, "__rich__") else Text(_clean(c)) for c in row))
    return table


def _draw(sections: Sequence[Section]) -> Group:
    """For a terminal: lists side by side, tables below them; `stat` then fits 24 lines."""
    lists = Table.grid(padding=(0, 6, 0, 0))
    lists.add_row(*(_table(section) for section in sections if not section.columns))
    tables = [part for s in sections if s.columns for part in (Text(), _table(s))]
    return Group(lists, *tables) if lists.columns else Group(*tables[1:])


def _plain(section: Section) -> str:
    lines = [[_clean(cell) for cell in row] for row in (section.columns, *section.rows) if row]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _show(sections: Sequence[Section]) -> None:
    if ON_TERMINAL:
        Console().print(_draw(sections))
    else:
        print("\n\n".join(map(_plain, sections)), flush=True)


def _show_json(value: object) -> None:
    # Not msgspec's encoder: a foreign file's name need not be valid Unicode, and json escapes that.
    print(json.dumps(msgspec.to_builtins(value), indent=2 if ON_TERMINAL else None), flush=True)


# -- looking --------------------------------------------------------------------------------------


@app.command()
def ls(as_json: AsJson = False) -> None:
    """List the segments of this host."""
    seen = checks.survey()
    if as_json:
        _show_json(seen)
    elif not seen:
        print("no shmq segments on this host")
    else:
        columns = ("name", "state", "size", "uid", "mode", "age", "qsize", "producer", "consumer")
        _show([Section(columns, [_ls_row(item) for item in seen])])


def _ls_row(item: checks.Surveyed) -> tuple[object, ...]:
    info, snapshot = item.info, item.snapshot
    born = snapshot.created_at if snapshot else info.mtime
    qsize, *holders = (snapshot.stats.qsize, *_holders(snapshot)) if snapshot else ("-", "-", "-")
    state = info.state if snapshot or info.state != "ready" else item.problem.partition(":")[0]
    mode = f"{info.mode & 0o7777:04o}"
    return (info.name, state, Bytes(info.bytes), info.uid, mode, _age(born), qsize, *holders)


def _age(unix_seconds: float) -> Age:
    return Age(max(time.time() - unix_seconds, 0))


def _holders(snapshot: shmq.Snapshot) -> tuple[object, object]:
    """Who produces and who consumes."""
    return _those(snapshot.peers, "producer", "publisher"), _those(snapshot.peers, "consumer", "subscriber")


def _those(peers: Sequence[shmq.Peer], *roles: str) -> object:
    those = [p for p in peers if not p.roles.isdisjoint(roles)]
    if len(those) == 1:
        return Who(those[0].pid, those[0].alive)
    dead = sum(p.alive is False for p in those)
    return f"{len(those)}, {dead} dead" if dead else len(those) or "-"


@app.command()
def stat(
    name: Name,
    as_json: AsJson = False,
    watch: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=0.1, help="Repeat until Ctrl-C.")
    ] = None,
    dead: Annotated[bool, typer.Option("--dead", help="Only the dead: what they held and did last.")] = False,
) -> None:
    """Show one queue: counters, how full it is, its peers."""
    if dead and watch is not None:
        raise typer.BadParameter("--dead shows what does not change: give it without --watch")
    if dead:
        return _post_mortems(name, as_json)
    before: tuple[float, shmq.Snapshot] | None = None
    drawn = ON_TERMINAL and watch is not None and not as_json
    quietly = contextlib.suppress(KeyboardInterrupt)  # the one way to end a watch is no failure
    with quietly, Live(auto_refresh=False) if drawn else contextlib.nullcontext() as live:
        while True:
            snapshot, now = shmq.inspect(name), time.monotonic()
            sections = _stat_sections(snapshot, now, before)
            if as_json:
                _show_json(snapshot)
            elif live:
                live.update(_draw(sections), refresh=True)
            else:
                print(end="\n" if before else "")
                _show(sections)
            if watch is None:
                return
            before = (now, snapshot)
            time.sleep(watch)


def _stat_sections(
    snapshot: shmq.Snapshot, now: float, before: tuple[float, shmq.Snapshot] | None
) -> list[Section]:
    """The tables of `stat`; `before` is an earlier (monotonic time, snapshot), for rates."""
    stats, pages = snapshot.stats, snapshot.stats.pages
    put_rate = got_rate = ""
    if before:
        seconds, old = now - before[0], before[1].stats
        put_rate = f" ({(stats.messages_put - old.messages_put) / seconds:.0f}/s)"
        got_rate = f" ({(stats.messages_got - old.messages_got) / seconds:.0f}/s)"
    about = (
        ("name", stats.name),
        ("kind", stats.kind),
        *([("delivery", stats.delivery)] if stats.max_unacked else []),
        ("state", stats.shutdown),
        ("creator pid", snapshot.creator_pid),
        ("age", _age(snapshot.created_at)),
        *([("dead", f"{len(snapshot.dead)}, see --dead")] if snapshot.dead else []),
        *([("policy", stats.policy), ("history", stats.history)] if stats.policy else []),
    )
    messages = (
        ("put", f"{stats.messages_put}{put_rate}"),
        ("got", f"{stats.messages_got}{got_rate}"),
        ("queued", stats.qsize),
        *([("urgent", stats.urgent)] if stats.priority else []),
        *([("unacked", f"{stats.unacked} of {stats.max_unacked}")] if stats.max_unacked else []),
        *([("to be delivered again", stats.waiting_again)] if stats.max_unacked else []),
        *([("repeats", f"{stats.repeats}, of the last {stats.dedupe} keys")] if stats.dedupe else []),
        ("largest possible", Bytes(stats.largest_message_bytes)),
        ("inline up to", Bytes(stats.inline_bytes)),
    )
    ring = Fill(stats.ring_used_bytes, stats.ring_bytes)
    arena = Fill(stats.arena_bytes - stats.arena_free_bytes, stats.arena_bytes)
    memory = [(n, Bytes(f.used), Bytes(f.total), f) for n, f in (("ring", ring), ("arena", arena))]
    sections = [
        Section((), about),
        Section((), messages),
        Section(("memory", "used", "total", "full"), memory),
        Section(("arena pages", *pages), [("", *pages.values())]),
    ]
    subscribers = [p for p in snapshot.peers if "subscriber" in p.roles]
    if subscribers:
        rows = [(p.index, p.lag, p.missed, "evicted" if p.evicted else "reads") for p in subscribers]
        sections.append(Section(("subscriber", "behind", "missed", "state"), rows))
    return sections + (_peer_sections(snapshot.peers) if snapshot.peers else [])


def _peer_sections(peers: Sequence[shmq.Peer]) -> list[Section]:
    """Who they are, and what they did: two tables, since one would not fit 80 columns."""
    who: list[tuple[object, ...]] = []
    did: list[tuple[object, ...]] = []
    for p in peers:
        roles = ",".join(sorted(p.roles)) or "-"
        who.append((p.index, Who(p.pid, p.alive), p.comm, roles, _age(p.attached_at), p.epoch))
        sizes = map(Bytes, (p.bytes_put, p.bytes_got, p.held_bytes))
        did.append((p.index, p.messages_put, p.messages_got, *sizes, p.parks, p.wakes))
    heads = ("peer", "put", "got", "bytes put", "bytes got", "holds", "parks", "wakes")
    return [Section(("peer", "process", "command", "roles", "attached", "epoch"), who), Section(heads, did)]


def _post_mortems(name: str, as_json: bool) -> None:
    dead = shmq.inspect(name).dead
    if as_json:
        return _show_json(dead)
    if not dead:
        print(f"{name}: no peer has died, or others have taken their entries")
    for index, peer in enumerate(sorted(dead, key=lambda p: p.found_at or time.time())):
        print(end="\n" if index else "", flush=True)
        _show(_post_mortem(peer))


def _post_mortem(peer: shmq.DeadPeer) -> list[Section]:
    found = "not repaired yet"
    if peer.found_at:
        found = f"{_clock(peer.found_at)}, by pid {peer.found_by}"
    facts = [
        ("dead peer", peer.index),
        ("process", f"pid {peer.pid} ({peer.comm})"),
        ("roles", ", ".join(sorted(peer.roles)) or "-"),
        ("attached", f"{_clock(peer.attached_at)}, epoch {peer.epoch}"),
        ("messages", f"{peer.messages_put} put, {peer.messages_got} got"),
        ("last event", _last_event(peer)),
        ("found dead", found),
        ("had in hand", _in_hand(peer)),
    ]
    if not peer.events:
        return [Section((), facts)]
    end = peer.events[-1].at
    rows = [(Before(max(end - e.at, 0), e.exact), e.op, e.what) for e in peer.events]
    return [Section((), facts), Section(("before last", "did", "what"), rows)]


def _last_event(peer: shmq.DeadPeer) -> str:
    if not peer.events:
        return "-"
    last = peer.events[-1]
    before = f", {max(peer.found_at - last.at, 0):.3f} s before it was found dead" if peer.found_at else ""
    return f"{_clock(last.at)}{'' if last.exact else ' or later'}{before}"


def _in_hand(peer: shmq.DeadPeer) -> str:
    blocks = [
        f"{n} {'block' if n == 1 else 'blocks'} {how}"
        for n, how in ((peer.blocks_loaned, "on loan"), (peer.blocks_leased, "on lease"))
        if n
    ]
    parts = [" and ".join(blocks)] if blocks else []
    if peer.holding_since:
        parts[0] += f", {peer.held_bytes:,} bytes, since {_clock(peer.holding_since)}"
    if peer.slot_position is not None:
        doing = "writing" if peer.slots_writing else "reading"
        parts.append(f"the slot at position {peer.slot_position}, which it was {doing}")
    return "; ".join(parts) or "nothing"


def _clock(unix_seconds: float) -> str:
    """Of today the time, else with the date; to a millisecond."""
    then, now = time.localtime(unix_seconds), time.localtime()
    day = "" if then[:3] == now[:3] else time.strftime("%Y-%m-%d ", then)
    return f"{day}{time.strftime('%H:%M:%S', then)}.{int(unix_seconds * 1000) % 1000:03d}"


@app.command()
def peek(
    name: Name,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Messages at most.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Show the messages that wait in a queue, without taking them.

    Oldest first. A consumer at work may take them meanwhile, so this is a look and not a promise.
    """
    messages = shmq.peek(name, count)
    if as_json:
        _show_json(messages)
    elif not messages:
        print(f"{name} is empty")
    else:
        columns = ("position", "bytes", "codec", "where", "preview")
        rows = [(m.position, Bytes(m.bytes), m.codec, m.where, m.preview) for m in messages]
        _show([Section(columns, rows)])


# -- acting ---------------------------------------------------------------------------------------


@app.command()
def rm(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Queues to remove.", show_default=False)
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Even if in use, or not a working queue.")
    ] = False,
    stale: Annotated[
        bool, typer.Option("--stale", help="All of yours that no live process has attached.")
    ] = False,
) -> None:
    """Remove queues, with the messages in them.

    Processes that are attached keep their memory until they close; nobody new finds the queue.
    """
    if bool(names) == stale:
        raise typer.BadParameter("give the names of queues, or --stale")
    unused = [item.info.name for item in checks.survey() if stale and checks.is_unused(item)]
    if stale and not unused:
        print("no stale queues")
    refused = False
    for name in names or unused:
        try:
            if not force:
                _check_unused(name)
            shmq.unlink(name)
            print(f"removed {name}", flush=True)
        except (shmq.ShmqError, OSError) as error:
            refused = True
            _complain(error)
    if stale and (bells := checks.remove_unheard_doorbells()):
        print(f"removed {bells} doorbell{'s' if bells > 1 else ''} of dead event loops")
    if refused:
        raise typer.Exit(2)


def _check_unused(name: str) -> None:
    """Raises `ShmqError` unless `name` is a sound queue without live peers."""
    try:
        # `alive` is None where the kernel could not be asked: then it may be.
        users = [peer for peer in shmq.inspect(name).peers if peer.alive is not False]
    except (shmq.SegmentNotFound, shmq.InvalidName):
        raise
    except shmq.ShmqError as error:
        raise shmq.ShmqError(f"{_text(error)} (--force tries all the same)") from error
    if users:
        shown = ", ".join(f"pid {peer.pid} ({_clean(peer.comm)})" for peer in users)
        raise shmq.ShmqError(f"{name} is in use by {shown}: end them first, or give --force")


@app.command("doctor")
def doctor_command(
    as_json: AsJson = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Repair what dead processes left in your queues, and stop.")
    ] = False,
) -> None:
    """Check this machine: does it give shmq what it needs?

    Exit status 1 if something does not work.
    """
    if repair:
        return _repair()
    findings = list(checks.diagnose())
    if as_json:
        _show_json(findings)
    elif ON_TERMINAL:
        colours = {"ok": "green", "warn": "yellow", "fail": "bold red"}
        rows: list[tuple[object, ...]] = []
        for found in findings:
            rows.append((Text(found.status, colours[found.status]), found.check, found.value))
            rows += [("", "", Text(_clean(found.advice), "italic"))] if found.advice else []
        _show([Section(("", "check", "found"), rows)])
    else:
        heads = ("status", "check", "found", "advice")
        _show([Section(heads, [(f.status, f.check, f.value, f.advice) for f in findings])])
    if any(found.status == "fail" for found in findings):
        raise typer.Exit(1)


def _repair() -> None:
    failed = False
    for item in checks.survey():
        dead = [p for p in item.snapshot.peers if p.alive is False] if item.snapshot else []
        if item.snapshot is None or not dead:
            continue
        who = ", ".join(f"pid {peer.pid} ({_clean(peer.comm)})" for peer in dead)
        try:
            kind = shmq.Topic if item.snapshot.stats.kind == "topic" else shmq.Queue
            with kind.attach(item.info.name, timeout=0) as handle:  # attaching repairs
                handle.reap()
        except (shmq.ShmqError, OSError) as error:
            failed = True
            _complain(error)
        else:
            print(f"{item.info.name}: repaired what {who} left")
    if failed:
        raise typer.Exit(2)


# --help too is the example's to answer.
@app.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
def demo(options: Annotated[list[str] | None, typer.Argument(metavar="OPTIONS")] = None) -> None:
    """Run the examples: a transformer split over processes, and token streams from workers that are killed.

    Options: --quick, --help; and those of the first, --workers N, --batches N.
    """
    scenes = [_beside(f"shmq._examples.{name}", "examples", name) for name in ("tensor_parallel", "serving")]
    sys.argv[0] = "shmq demo"  # what their argparse calls itself
    shared = [option for option in options or [] if option in ("--quick", "--json")]
    raise typer.Exit(scenes[0].main(options or []) or scenes[1].main(shared))


@app.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
def bench(options: Annotated[list[str] | None, typer.Argument(metavar="OPTIONS")] = None) -> None:
    """Measure shmq beside its rivals and the machine's floors; `shmq bench --help` says how."""
    raise typer.Exit(_beside("shmq._bench.__main__", ".", "bench.__main__").main(options or []))


def _beside(installed: str, directory: str, name: str) -> Any:
    """A module that a wheel carries inside the package, and a source checkout beside it."""
    try:
        return importlib.import_module(installed)
    except ModuleNotFoundError as error:
        if not f"{installed}.".startswith(f"{error.name}."):
            raise shmq.ShmqError(f"{error.name} is not installed") from error
    # On sys.path, since the workers that it spawns import it by name too.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / directory))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise shmq.ShmqError(f"{error.name} is not installed") from error


@app.command()
def include() -> None:
    """Print where shmq.h and the C sources are."""
    print(shmq.get_include())


def _version(wanted: bool) -> None:
    if wanted:
        print(f"shmq {shmq.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _text(error: Exception) -> str:
    """The error's own words, on one line; of our OSErrors without the number in front."""
    ours = isinstance(error, shmq.ShmqError) and isinstance(error, OSError)
    return _clean(" ".join(str(error.args[-1] if ours else error).split()))


def _complain(error: Exception) -> None:
    print(f"shmq: {_text(error)}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `shmq` command; ends in SystemExit. `arguments`: default sys.argv[1:]."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a preview may not fit the locale
    try:
        app(arguments, prog_name="shmq")
    except (shmq.ShmqError, OSError) as error:
        _complain(error)
        raise SystemExit(2) from None
