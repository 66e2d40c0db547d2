"""`lockgate explain --client C --topic T`: why a client did not get a message."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping

from lockgate.cli.common import add_config_argument, load_config
from lockgate.telemetry import health


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    parser.add_argument("--client", required=True, metavar="C", help="Client Identifier of who did not get it")
    parser.add_argument("--topic", required=True, metavar="T", help="Topic Name of the message")
    parser.add_argument("--json", action="store_true", help="everything, as one JSON object")


def main(arguments: argparse.Namespace) -> int:
    """Exit status 1 when the broker does not answer."""
    path = load_config(arguments).gateway.sockets_dir / "broker.sock"
    answer = health.ask(path, ask="explain", client=arguments.client, topic=arguments.topic)
    if answer is None or "findings" not in answer:
        print(f"the broker does not answer on {path}: is it running?", file=sys.stderr)
        return 1
    print(json.dumps(answer, indent=2) if arguments.json else as_text(answer))
    return 0


def as_text(answer: Mapping[str, object]) -> str:
    """One line for each reason, and how far back the broker remembers."""
    findings = answer["findings"]
    assert isinstance(findings, list)
    lines = [_line(finding) for finding in findings]
    since = answer.get("remembered_since")
    if isinstance(since, int | float):
        lines.append(f"(decisions are remembered since {_spell(since)})")
    return "\n".join(lines)


def _line(finding: Mapping[str, object]) -> str:
    first, last, count = finding["first_at"], finding["last_at"], finding["count"]
    when = ""
    if isinstance(last, int | float) and isinstance(first, int | float):
        when = f", at {_spell(last)}" if count == 1 else f", {count} times from {_spell(first)} to {_spell(last)}"
    elif isinstance(first, int | float):
        when = f", since {_spell(first)}"
    return f"{finding['reason']}: {finding['text']}{when}"


def _spell(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
