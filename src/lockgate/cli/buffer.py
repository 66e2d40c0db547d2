"""`lockgate buffer …`: what lies in the buffer, what waits for whom, and what may be asked of it."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lockgate.buffer import LogReader, Row
from lockgate.buffer.cursor import cursor_names, read_positions
from lockgate.buffer.ledger import read_ledger
from lockgate.buffer.offline import columns_of, forget, last_rows, letters, query, send_again
from lockgate.cli.common import add_config_argument, load_config, table
from lockgate.config import values
from lockgate.config.errors import ConfigError
from lockgate.config.model import Config
from lockgate.config.values import BadValue, spell_duration, spell_size
from lockgate.forwarder.messages import Messages

_ROWS_AT_ONCE = 1000
_FOLLOW_SECONDS = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, help_text: str) -> argparse.ArgumentParser:
        made = actions.add_parser(name, help=help_text, description=f"{help_text[0].upper()}{help_text[1:]}.")
        add_config_argument(made)
        return made

    action("status", "what is kept, and what waits for which sink").add_argument(
        "--json", action="store_true", help="as one JSON object"
    )
    tail = action("tail", "the last messages, as JSON lines")
    tail.add_argument("-n", "--lines", type=int, default=10, metavar="N", help="how many (default: 10)")
    tail.add_argument("-f", "--follow", action="store_true", help="go on with those that come, until interrupted")
    export = action("export", "all messages that are kept, as JSON lines")
    export.add_argument("--since", metavar="TIME", help='"90m", "2d", or a date and time of ISO 8601')
    export.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: standard output")
    for one in (tail, export):
        one.add_argument("--class", dest="message_class", metavar="CLASS", help="of this class alone")
    replay = action("replay", "send the dead letters of a sink again, which the forwarder does when it runs")
    replay.add_argument("sink", metavar="SINK")
    replay.add_argument("ids", nargs="*", metavar="ID", help="these alone, as gateway/17; default: all")
    replay.add_argument("--list", action="store_true", help="only show them, with the reasons")
    forgets = action("forget", "remove the cursor of a sink that is gone for good, so that nothing waits for it")
    forgets.add_argument("sink", metavar="SINK")
    sql = action("sql", "run a SELECT over the tables log and quarantine of the whole buffer")
    sql.add_argument("statement", metavar="SELECT")
    sql.add_argument("--json", action="store_true", help="each row as a JSON object")


def main(arguments: argparse.Namespace) -> int:
    """Exit status 1 for what cannot be read or does not exist."""
    config = load_config(arguments)
    folder = config.gateway.buffer_dir
    if not folder.is_dir():
        print(f"there is no buffer in {folder} yet: the processor makes it when it starts", file=sys.stderr)
        return 1
    try:
        return _ACTIONS[arguments.action](config, folder, arguments)
    except (LookupError, OSError, sqlite3.Error) as error:
        if isinstance(error, BrokenPipeError):
            raise
        print(f"Error: {error.args[0] if isinstance(error, LookupError) else error}", file=sys.stderr)
        return 1


def _status(config: Config, folder: Path, arguments: argparse.Namespace) -> int:
    limits = {one.name: one for one in config.buffer.limits}
    books = read_ledger(folder).deliveries
    for book in books:
        if book.problem is not None:
            print(f"sink {book.sink}: {book.problem}, so nothing is removed from the buffer", file=sys.stderr)
    with contextlib.closing(LogReader(folder)) as reader:
        state = reader.state()
        segments = [
            {"file": s.file.name, "bytes": s.file.stat().st_size, "first": s.first_seq(), "last": s.last_seq()}
            for s in reader.segments()
        ]
        kept = {name: reader.pending(name, 0) for name in state.appended}
        lines = {name: reader.missing(name).line for name in state.appended}
    total = sum(path.stat().st_size for path in folder.glob("segment-*") if ".damaged" not in path.name)
    positions = {name: read_positions(folder, name) for name in sorted(cursor_names(folder))}
    said: dict[str, Any] = {
        "folder": str(folder),
        "bytes": total,
        "limit_bytes": config.buffer.limit_bytes,
        "segments": segments,
        "classes": {
            name: {
                "appended": state.appended.get(name, 0),
                "kept": kept.get(name, 0),
                "given_up_until": lines.get(name, 0),
                "limit_bytes": limits[name].limit_bytes if name in limits else None,
                "keep_seconds": limits[name].keep_seconds if name in limits else None,
                "when_full": limits[name].when_full if name in limits else "block",
                "order": limits[name].order if name in limits else "ordered",
            }
            for name in dict.fromkeys((*config.buffer.classes, *state.appended))
        },
        "sinks": [
            {
                "sink": book.sink,
                "class": book.message_class,
                "pending": book.pending,
                "position": (p := (positions[book.sink] or {})[book.message_class]).seq,
                "live_position": p.live_seq if p.islands else None,
                "configured": any(sink.name == book.sink for sink in config.forwarder.sinks),
            }
            for book in books
            if book.problem is None
        ],
    }
    if arguments.json:
        print(json.dumps(said, indent=2))
        return 0
    print(f"{folder}: {spell(total)} of {spell_size(config.buffer.limit_bytes)} in {len(segments)} segments\n")
    head = ("class", "appended", "kept", "limit", "keep", "when full", "order")
    rows: list[tuple[str, ...]] = [
        (name, str(c["appended"]), str(c["kept"]), spell(c["limit_bytes"]) if c["limit_bytes"] else "-",
         spell_duration(c["keep_seconds"]) if c["keep_seconds"] else "-", c["when_full"], c["order"])
        for name, c in said["classes"].items()
    ]  # fmt: skip
    print(table(head, rows))
    if said["sinks"]:
        sinks: list[tuple[str, ...]] = [
            (one["sink"], one["class"], str(one["pending"]), str(one["position"]), str(one["live_position"] or "-"),
             "" if one["configured"] else "not configured: lockgate buffer forget " + one["sink"])
            for one in said["sinks"]
        ]  # fmt: skip
        print("\n" + table(("sink", "class", "pending", "position", "live", ""), sinks))
    return 0


def _tail(config: Config, folder: Path, arguments: argparse.Namespace) -> int:
    seqs = last_rows(folder, arguments.message_class, max(1, arguments.lines))
    after = seqs[0] - 1 if seqs else 0
    with contextlib.closing(LogReader(folder)) as reader:
        messages = Messages(config.gateway.id)
        while True:
            messages.learn(reader.boots())
            for row in _rows(reader, arguments.message_class, after):
                after = row.seq
                print(messages.document(row).decode(), flush=True)
            if not arguments.follow:
                return 0
            time.sleep(_FOLLOW_SECONDS)


def _export(config: Config, folder: Path, arguments: argparse.Namespace) -> int:
    since_ns = _since(arguments.since) if arguments.since is not None else None
    with contextlib.ExitStack() as stack:
        out = sys.stdout
        if arguments.output is not None:
            out = stack.enter_context(arguments.output.open("w", encoding="utf-8"))
        reader = stack.enter_context(contextlib.closing(LogReader(folder)))
        messages = Messages(config.gateway.id)
        messages.learn(reader.boots())
        for row in _rows(reader, arguments.message_class, 0):
            if since_ns is None or messages.wall_time(row)[0] >= since_ns:
                out.write(messages.document(row).decode() + "\n")
        out.flush()
    return 0


def _rows(reader: LogReader, message_class: str | None, after: int) -> Iterator[Row]:
    """All rows after a seq, in order."""
    classes = [message_class] if message_class is not None else sorted(reader.state().appended)
    while True:
        batches = [reader.read(name, after, _ROWS_AT_ONCE) for name in classes]
        found = sorted(row for batch in batches for row in batch)
        # A class whose batch was cut short may have rows before the last ones of the others.
        cut = min((batch[-1].seq for batch in batches if batch), default=0)
        ready = [row for row in found if row.seq <= cut]
        if not ready:
            return
        yield from ready
        after = cut


def _replay(_: Config, folder: Path, arguments: argparse.Namespace) -> int:
    kept = letters(folder, arguments.sink)
    if arguments.list:
        for letter in kept:
            at = datetime.datetime.fromtimestamp(letter.wall_ns / 1e9, datetime.UTC).isoformat(timespec="seconds")
            again = "  (to be sent again)" if letter.again else ""
            print(f"{letter.identity}  {at}  {letter.message_class}  {letter.topic}  {_shown(letter.reason)}{again}")
        return 0
    count = send_again(folder, arguments.sink, arguments.ids) if kept or arguments.ids else 0
    print(f"{count} dead letters of {arguments.sink} will be sent again" if count else "there are no dead letters")
    return 0


def _forget(config: Config, folder: Path, arguments: argparse.Namespace) -> int:
    sink = arguments.sink
    if any(one.name == sink for one in config.forwarder.sinks):
        where = f"[sinks.{sink}]"
        raise ConfigError(
            f"{where} is configured, so messages wait for it", path=config.path, accepted="remove the section first"
        )
    waiting = sum(book.pending for book in read_ledger(folder).deliveries if book.sink == sink)
    forget(folder, sink)
    print(f"sink {sink} is forgotten; {waiting} messages no longer wait for it")
    return 0


def _sql(_: Config, folder: Path, arguments: argparse.Namespace) -> int:
    try:
        with query(folder, arguments.statement) as cursor:
            head = tuple(str(column[0]) for column in cursor.description or ())
            if arguments.json:
                for row in cursor:
                    print(json.dumps(dict(zip(head, map(_plain, row), strict=True))))
                return 0
            rows = [tuple(str(_plain(value)) if value is not None else "NULL" for value in row) for row in cursor]
            print(table(head, rows))
            return 0
    except sqlite3.DatabaseError as error:
        print(f"Error: {error}; there are {columns_of(folder)}", file=sys.stderr)
        return 1


def _shown(text: str) -> str:
    """A receiver's words on one line, without what would steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def _plain(value: object) -> object:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else value


def _since(text: str) -> int:
    try:
        seconds = values.duration(0.001, 1e10).read(text)
        assert isinstance(seconds, float)
        return time.time_ns() - round(seconds * 1e9)
    except BadValue:
        pass
    try:
        return round(datetime.datetime.fromisoformat(text).timestamp() * 1e9)
    except ValueError:
        problem = f"{text!r} is no time"
        raise ConfigError(problem, key="--since", accepted='"90m", "2d", "2026-05-01T12:00"') from None


def spell(count: int) -> str:
    """A size for people, rounded."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


_ACTIONS: dict[str, Callable[[Config, Path, argparse.Namespace], int]] = {
    "status": _status,
    "tail": _tail,
    "export": _export,
    "replay": _replay,
    "forget": _forget,
    "sql": _sql,
}
