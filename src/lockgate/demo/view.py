"""What the demo shows: a row per hop, from the services' own words and the gateway's books."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lockgate.buffer.ledger import Ledger

Answers = Mapping[str, Mapping[str, object] | None]  # by service; None: it does not answer

JOIN = """mosquitto_pub -t sensors/x/temp -m '{"value": 91}'"""


@dataclass(frozen=True, slots=True)
class Hop:
    """One row; None where a number means nothing at that hop."""

    name: str
    state: str
    accepted: int | None = None
    pending: int | None = None
    delivered: int | None = None
    retried: int | None = None
    books: str = ""


def hops(answers: Answers, ledger: Ledger | None, restarts: Mapping[str, int]) -> list[Hop]:
    """The way of a message, hop by hop. Counts of devices and broker begin with their process, the others' last."""
    device, broker, cloud = (_status(answers, name) for name in ("demo-device", "broker", "demo-cloud"))
    intake = ledger.intake if ledger else None
    deliveries = ledger.deliveries if ledger else ()
    addressed = sum(book.addressed for book in deliveries)
    pending = sum(book.pending for book in deliveries)
    delivered = sum(book.delivered for book in deliveries)

    def state(name: str) -> str:
        if answers.get(name) is None:
            return "down"
        return f"up, restarted {restarts[name]}×" if restarts.get(name) else "up"

    away = f", back in {_number(cloud, 'changes_in_seconds')} s" if cloud and not cloud["open"] else ""
    return [
        Hop(
            "devices",
            state("demo-device"),
            _number(device, "made"),
            _number(device, "pending"),
            _number(device, "acknowledged"),
        ),
        Hop(
            "broker",
            state("broker"),
            _number(broker, "publish_received"),
            _number(broker, "queued"),
            _number(broker, "publish_sent"),
        ),
        Hop(
            "processor",
            state("processor"),
            intake.received if intake else None,
            delivered=intake.logged if intake else None,
            books=_book(intake.closes if intake else None),
        ),
        Hop("buffer", "", addressed, pending, addressed - pending, books=_book(ledger.closes if ledger else None)),
        Hop(
            "forwarder",
            state("forwarder"),
            addressed,
            pending,
            delivered,
            sum(book.retried for book in deliveries),
            _book(all(book.closes for book in deliveries) if deliveries else None),
        ),
        Hop(
            "cloud",
            "away" + away if away else state("demo-cloud"),
            _number(cloud, "received"),
            delivered=_number(cloud, "kept"),
            retried=_number(cloud, "duplicates"),
        ),
    ]


def screen(rows: list[Hop], answers: Answers, troubles: Mapping[str, str], log_path: str) -> RenderableType:
    """The live table, why a service is down, the latest messages in the cloud, and how to join in."""
    table = Table(title="Lockgate: from the device to the cloud", title_style="bold", expand=False)
    table.add_column("hop")
    table.add_column("state")
    for head in ("accepted", "pending", "delivered", "retried"):
        table.add_column(head, justify="right")
    table.add_column("books")
    for row in rows:
        numbers = (row.accepted, row.pending, row.delivered, row.retried)
        style = "yellow" if row.state.startswith(("away", "down")) else ""
        table.add_row(
            row.name, row.state, *("" if one is None else f"{one:,}" for one in numbers), row.books, style=style
        )
    arrived = "\n".join(f"  {message}" for message in reversed(recent(answers)))
    down = [Text(f"{name}: {text}", style="red") for name, text in troubles.items() if answers.get(name) is None]
    return Group(
        table,
        *down,
        Text("Arrived in the cloud, the latest first:", style="bold"),
        Text(arrived or "  nothing yet: the first averages come after ten seconds", no_wrap=True, overflow="ellipsis"),
        Text.assemble("Join in:  ", (JOIN, "bold green"), "  (above 90 is an alarm, and goes first)"),
        Text(
            f"The broker lets in everybody who reaches port 1883. Log: {log_path}. Ctrl-C stops everything.",
            style="dim",
        ),
    )


def line(rows: list[Hop]) -> str:
    """The same in one line, where there is no terminal."""
    parts = []
    for row in rows:
        numbers = [
            f"{name} {count}"
            for name, count in (("accepted", row.accepted), ("pending", row.pending), ("delivered", row.delivered))
            if count is not None
        ]
        books = f" books {row.books}" if row.books else ""
        parts.append(
            f"{row.name}{f' ({row.state})' if row.state not in ('', 'up') else ''}: {', '.join(numbers)}{books}"
        )
    return " | ".join(parts)


def recent(answers: Answers) -> list[str]:
    """The messages that arrived in the cloud last, the latest at the end."""
    messages = (_status(answers, "demo-cloud") or {}).get("recent")
    return [str(message) for message in messages] if isinstance(messages, list) else []


def _status(answers: Answers, name: str) -> Mapping[str, object] | None:
    answer = answers.get(name)
    status = answer.get("status") if answer else None
    return status if isinstance(status, Mapping) else None


def _number(status: Mapping[str, object] | None, name: str) -> int | None:
    value = status.get(name) if status else None
    return value if isinstance(value, int) else None


def _book(closes: bool | None) -> str:
    return "" if closes is None else "close" if closes else "DO NOT CLOSE"
