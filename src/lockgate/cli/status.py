"""`lockgate status`: what the running services say about themselves."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping

from lockgate.app import TUNNEL_SERVICES, services
from lockgate.cli.common import add_config_argument, load_config, table
from lockgate.telemetry import health

# What a person looks at first; --json has everything.
_KEYS = """connections sessions publish_received publish_sent queued received logged refused quarantined duplicate
delivered pending retried dropped dead_lettered sync_ms safe_rate syncs published reads failed repeated
unauthorised requests streams open refused errors resumed audit_lines_lost"""
KEYS = frozenset(_KEYS.split())
PROBLEMS = frozenset({"error", "damage", "last_error", "rejected", "waiting", "problem", "purge_blocked"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    parser.add_argument("--json", action="store_true", help="everything, as one JSON object")


def main(arguments: argparse.Namespace) -> int:
    """Exit status 1 when a service is down."""
    config = load_config(arguments)
    folder = config.gateway.sockets_dir
    # a connector needs no configuration but its token
    names = [*services(config), *(name for name in TUNNEL_SERVICES if (folder / f"{name}.sock").exists())]
    answers = {name: health.ask(folder / f"{name}.sock") for name in names}
    if arguments.json:
        print(json.dumps(answers, indent=2))
    else:
        rows = [row(name, answer) for name, answer in answers.items()]
        print(table(("service", "state", "pid", "uptime", "key numbers"), rows))
        for name, answer in answers.items():
            for problem in problems(answer.get("status") if answer else None):
                print(f"{name}: {problem}")
    return 0 if all(answers.values()) else 1


def row(name: str, answer: Mapping[str, object] | None) -> tuple[str, ...]:
    if answer is None:
        return (name, "down", "", "", "")
    uptime = answer.get("uptime_seconds")
    seconds = int(uptime) if isinstance(uptime, int | float) else 0
    spelled = f"{seconds // 86400}d {seconds % 86400 // 3600:02}:{seconds % 3600 // 60:02}:{seconds % 60:02}"
    status = answer.get("status")
    numbers = "  ".join(key_numbers(status)) if isinstance(status, dict) else ""
    return (name, "up", str(answer.get("pid", "")), spelled, numbers)


def problems(status: object, above: tuple[str, ...] = ()) -> Iterator[str]:
    """What is said in or below one of `PROBLEMS`, as `sinks.cloud.error: HTTP 500`."""
    for name, value in status.items() if isinstance(status, Mapping) else ():
        if isinstance(value, str) and name in PROBLEMS:
            yield f"{'.'.join((*above, name))}: {value}"
        yield from problems(value, (*above, name))


def key_numbers(status: Mapping[str, object], above: tuple[str, ...] = ()) -> Iterator[str]:
    """The numbers in or below one of `KEYS`, as `name=3` or `name.below=3`; none that are 0."""
    for name, value in status.items():
        path = (*above, name)
        if isinstance(value, Mapping):
            yield from key_numbers(value, path)
        elif isinstance(value, int | float) and not isinstance(value, bool) and value and KEYS & set(path):
            yield f"{'.'.join(path)}={value}"
