"""`lockgate doctor`: what is wrong with this gateway, where, why it matters and what to do. It only reads."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from lockgate.cli.common import load_config, socket_folders
from lockgate.config.errors import ConfigError
from lockgate.config.model import Config
from lockgate.doctor import delivery
from lockgate.doctor.case import PLACES, Case, find_configuration
from lockgate.doctor.examine import examine, mistakes
from lockgate.doctor.finding import Finding
from lockgate.doctor.forms import a_folder_instead
from lockgate.doctor.machine import Machine
from lockgate.telemetry import health

NOTHING, WARNINGS, ERRORS, UNREADABLE = 0, 1, 2, 3
_MARKS = {"ok": "good    ", "warning": "WARNING ", "error": "ERROR   "}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_place(parser)
    parser.add_argument("--json", action="store_true", help="the findings, as one JSON object")
    parser.add_argument("--host", action="append", default=[], metavar="NAME", help="a name by which clients connect")
    parser.add_argument(
        "--client-cert", action="append", default=[], type=Path, metavar="FILE", help="a client's certificate"
    )
    asked = parser.add_argument_group("a subscriber that gets nothing")
    asked.add_argument("--client", metavar="ID", help="its client id")
    asked.add_argument("--topic", metavar="T", help="a Topic Name of which it should get messages")
    asked.add_argument("--filter", metavar="F", help="the Topic Filter it subscribes to")
    asked.add_argument("--publisher", metavar="ID", help="client id of who publishes")


def add_place(parser: argparse.ArgumentParser) -> None:
    """Let a configuration be named."""
    places = ", else ".join(map(str, PLACES))
    parser.add_argument(
        "-c", "--config", type=Path, metavar="FILE", help=f"lockgate.toml, or mosquitto.conf (default: {places})"
    )


def main(arguments: argparse.Namespace) -> int:
    """Exit status 0 if nothing was found, 1 for warnings, 2 for errors, 3 if no configuration can be read."""
    logging.getLogger("lockgate").addHandler(logging.NullHandler())
    if (arguments.client is None) != (arguments.topic is None):
        raise ConfigError("--client and --topic belong together", accepted="both, or none")
    machine = Machine()
    path = arguments.config or find_configuration()
    found, case = look(path, machine, arguments)
    way: list[Finding] = []
    if case is not None and arguments.client is not None:
        way = delivery.walk(case, arguments.client, arguments.topic, arguments.filter, arguments.publisher)
    if arguments.json:
        said: dict[str, object] = {
            "configuration": os.fspath(path) if path is not None else None,
            "broker_pid": case.pid if case is not None else None,
            "findings": [one.as_json() for one in found],
        }
        if way:
            said |= {"way": [one.as_json() for one in way], "stops_at": stop(way)}
        print(json.dumps(said, indent=2))
    else:
        print("\n".join(as_text(case, found, way)))
    return UNREADABLE if case is None else status([*found, *way])


def stop(way: Sequence[Finding]) -> str | None:
    """Give where a message stops on its way; None: it arrives."""
    return next((one.check for one in way if one.severity == "error"), None)


def status(found: Sequence[Finding]) -> int:
    worst = {one.severity for one in found}
    return ERRORS if "error" in worst else WARNINGS if "warning" in worst else NOTHING


def look(path: Path | None, machine: Machine, arguments: argparse.Namespace) -> tuple[list[Finding], Case | None]:
    """Give the findings, and the case; None where there is no configuration to read."""
    if path is None:
        return [_nothing(f"there is none in {', '.join(map(str, PLACES))}", "the current folder")], None
    if path.is_dir() and path.suffix in (".conf", ".toml"):
        return [a_folder_instead(path, machine)], None
    if path.is_dir():
        return [_nothing(f"{path} is a folder", os.fspath(path))], None
    try:
        path.open("rb").close()
    except OSError as error:
        return [_nothing(f"{path}: {error.strerror}", os.fspath(path))], None
    found: list[Finding] = []
    config: Config | None = None
    conf: Path | None = path if path.suffix == ".conf" else None
    try:
        config = load_config(argparse.Namespace(config=path))
        conf = conf or config.broker.path
    except ConfigError as error:
        found += mistakes(error, path)
        wrong = {one.path for one in getattr(error, "errors", (error,)) if one.path is not None}
        conf = conf or next((one for one in wrong if one.suffix == ".conf"), None)
        folder = next((one for one in wrong if one.is_dir()), None)
        if folder is not None:
            return [a_folder_instead(folder, machine)], None
    case = Case(
        path, config, machine, conf, hosts=tuple(arguments.host), client_certificates=tuple(arguments.client_cert)
    )
    said, socket = _ask(case)
    case = dataclasses.replace(case, status=said, socket=socket)
    found += examine(case)
    return found, case


def _ask(case: Case) -> tuple[dict[str, object] | None, Path | None]:
    """Ask the broker how it is, also where its configuration has got mistakes since it started; give its socket."""
    folders = [case.config.gateway.sockets_dir] if case.config is not None else []
    folders += socket_folders(case.conf) if case.conf is not None else []
    for folder in folders:
        answer = health.ask(folder / "broker.sock")
        if answer is not None and "pid" in answer:
            return answer, folder / "broker.sock"
    return None, None


def _nothing(problem: str, where: str) -> Finding:
    advice = "name it: lockgate doctor -c FILE (in a container: docker exec CONTAINER lockgate doctor)"
    return Finding("configuration", "error", where, f"no configuration can be read: {problem}", "", advice)


def as_text(case: Case | None, found: Sequence[Finding], way: Sequence[Finding]) -> Iterator[str]:
    """Give the lines for people: what is good in short, the worst last, next to the prompt."""
    if case is not None:
        runs = f"the broker runs (pid {case.pid})" if case.pid is not None else "the broker does not answer"
        files = list(dict.fromkeys(map(str, (one for one in (case.path, case.conf) if one is not None))))
        yield f"{', '.join(files)}; {runs}"
    for severity in ("ok", "warning", "error"):
        for one in found:
            if one.severity == severity:
                yield from _told(one)
    if way:
        yield "\nThe way of a message:"
        for one in way:
            yield from _told(one)
        stopped = stop(way)
        yield f"It stops at: {stopped}.\n" if stopped is not None else "It arrives.\n"
    counts = [sum(one.severity == severity for one in (*found, *way)) for severity in ("error", "warning")]
    yield f"Errors: {counts[0] or 'none'}. Warnings: {counts[1] or 'none'}."


def _told(one: Finding) -> Iterator[str]:
    yield f"{_MARKS[one.severity]}{one.where}: {one.problem}"
    yield from (f"          {text}" for text in (one.why, f"→ {one.advice}" if one.advice else "") if text)
