"""`lockgate ledger`: both books, and whether they close."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sqlite3
import sys
from pathlib import Path

from lockgate.buffer.ledger import DeliveryBook, IntakeBook, Ledger, read_ledger
from lockgate.cli.common import add_config_argument, load_config, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    parser.add_argument("--json", action="store_true", help="both books, as one JSON object")


def main(arguments: argparse.Namespace) -> int:
    """Exit status 1 when a book does not close or cannot be read."""
    folder = load_config(arguments).gateway.buffer_dir
    if not Path(folder).is_dir():
        print(f"there is no buffer in {folder} yet: the processor makes it when it starts", file=sys.stderr)
        return 1
    try:
        ledger = read_ledger(folder)
    except (OSError, sqlite3.Error) as error:
        print(f"the books in {folder} cannot be read: {error}", file=sys.stderr)
        return 1
    print(as_json(ledger) if arguments.json else as_text(ledger))
    return 0 if ledger.closes else 1


def as_json(ledger: Ledger) -> str:
    said = dataclasses.asdict(ledger)
    said["intake"]["closes"] = ledger.intake.closes
    for book, one in zip(ledger.deliveries, said["deliveries"], strict=True):
        one["closes"] = book.closes
    return json.dumps(said | {"closes": ledger.closes}, indent=2)


def as_text(ledger: Ledger) -> str:
    intake = ledger.intake
    parts = "\n".join(
        f"  {name:<12}{count:>10}{detail}"
        for name, count, detail in (
            ("logged", intake.logged, ""),
            ("refused", *_counts(intake.refused)),
            ("quarantined", *_counts(intake.quarantined)),
            ("filtered", *_counts(intake.filtered)),
            ("duplicate", intake.duplicate, ""),
        )
    )
    head = ("sink", "class", "addressed", "delivered", "pending", "dropped", "dead-lettered", "expired", "rolled-up",
            "retried", "book")  # fmt: skip
    rows = [_row(book) for book in ledger.deliveries]
    deliveries = table(head, rows) if rows else "no sink has a cursor yet: the forwarder makes them when it starts"
    return f"intake      received{intake.received:>6}   {_verdict(intake)}\n{parts}\n\n{deliveries}"


def _counts(by_name: object) -> tuple[int, str]:
    assert isinstance(by_name, dict)
    detail = ", ".join(f"{name} {count}" for name, count in sorted(by_name.items()))
    return sum(by_name.values()), f"   {detail}" if detail else ""


def _row(book: DeliveryBook) -> tuple[str, ...]:
    numbers = (book.addressed, book.delivered, book.pending, sum(book.dropped.values()), book.dead_lettered,
               book.expired, book.rolled_up, book.retried)  # fmt: skip
    return (book.sink, book.message_class or "?", *map(str, numbers), book.problem or _verdict(book))


def _verdict(book: IntakeBook | DeliveryBook) -> str:
    return "closes" if book.closes else f"DOES NOT CLOSE: {book.difference:+}"
