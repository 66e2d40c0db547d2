"""`lockgate deploy`: a new version for the containers of a Compose project, and back by itself where it is not well."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from lockgate.cli.common import add_config_argument, load_config, table
from lockgate.config.model import Config
from lockgate.config.secrets import first_line

if TYPE_CHECKING:
    from lockgate.deploy.agent import Agent

REFUSED, ROLLED_BACK, BROKEN = 1, 4, 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser("check", help="look whether there is something new, and whether it may run here")
    check.add_argument("image", nargs="?", default="", metavar="IMAGE", help="(default: deploy.image)")
    apply = actions.add_parser("apply", help="update now: to what is watched, to IMAGE, or to what FILE holds")
    apply.add_argument("image", nargs="?", default="", metavar="IMAGE|FILE", help="(default: deploy.image)")
    apply.add_argument("--allow-older", action="store_true", help="also to a version before the one that runs")
    watch = actions.add_parser("watch", help="look again and again, and update by itself")
    status = actions.add_parser("status", help="what runs, what is under way, how the last update went")
    history = actions.add_parser("history", help="every update: when, by whom, what, how long each service was away")
    for one in (status, history):
        one.add_argument("--json", action="store_true", help="everything, as JSON")
    rollback = actions.add_parser("rollback", help="go back to the version that ran before")
    sign = actions.add_parser("sign", help="sign an image of a registry, as cosign does")
    sign.add_argument("image", metavar="IMAGE")
    sign.add_argument("--key", type=Path, required=True, metavar="FILE", help="private key (PKCS 8, PEM)")
    sign.add_argument("--password-file", type=Path, metavar="FILE", help="its first line is the key's passphrase")
    export = actions.add_parser("export", help="write an image, its documents and signatures into one file")
    export.add_argument("image", metavar="IMAGE")
    export.add_argument("file", type=Path, metavar="FILE")
    for one in (check, apply, watch, status, history, rollback, sign, export):
        add_config_argument(one)


def main(arguments: argparse.Namespace) -> int:
    """Exit status 1: nothing was changed; 4: the new version was not well, the old one serves; 5: see to it now."""
    config = load_config(arguments)
    try:
        from lockgate.deploy import agent, errors
    except ImportError as error:
        print(
            f"lockgate deploy needs more than is installed ({error.name}): pip install 'lockgate[deploy]'",
            file=sys.stderr,
        )
        return REFUSED
    _log_to_stderr(arguments.action == "watch")
    try:
        return _do(arguments, _agent(agent.Agent, config))
    except errors.RolledBack as error:
        print(f"rolled back: {error}", file=sys.stderr)
        return ROLLED_BACK
    except errors.Broken as error:
        print(f"NOT WELL: {error}", file=sys.stderr)
        return BROKEN
    except errors.DeployError as error:
        print(error, file=sys.stderr)
        return REFUSED


def _do(arguments: argparse.Namespace, agent: Agent) -> int:
    action = arguments.action
    if action in ("apply", "rollback"):
        _stop_at_signals()
    if action == "check":
        found = agent.check(arguments.image)
        print(f"running  {found.running}")
        print(f"offered  {found.offered}{'' if found.signed else ', not signed'}")
        print("there is something new" if found.is_new else "nothing new")
    elif action == "apply":
        applied = agent.apply(arguments.image, arguments.allow_older)
        print("that runs already" if applied is None else f"{applied.offered} serves; before: {applied.running}")
    elif action == "watch":
        stop = _stop_at_signals()
        with contextlib.suppress(KeyboardInterrupt):
            agent.watch(stop)
    elif action == "rollback":
        print(f"{agent.rollback()} serves again")
    elif action == "sign":
        password = first_line(arguments.password_file) if arguments.password_file else None
        print(f"signed: {agent.sign(arguments.image, arguments.key, password)}")
    elif action == "export":
        print(f"{arguments.file} holds {agent.export(arguments.image, arguments.file).reference}")
    elif action == "status":
        status = agent.status()
        print(json.dumps(status, indent=2) if arguments.json else _status_text(status))
    else:
        records = agent.history()
        print(json.dumps(records, indent=2) if arguments.json else _history_text(records))
    return 0


def _agent(kind: type[Agent], config: Config) -> Agent:
    from lockgate.deploy.engine import Engine

    by = os.environ.get("SUDO_USER") or getpass.getuser()
    return kind(config.deploy, config.gateway.data_dir / "deploy", Engine(config.deploy.engine), by)


def _log_to_stderr(everything: bool) -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("lockgate.deploy").setLevel(
        logging.INFO if everything or sys.stderr.isatty() else logging.WARNING
    )


def _stop_at_signals() -> threading.Event:
    """Give an event that SIGTERM and SIGINT set; an update that is under way goes back first."""
    stop = threading.Event()

    def heed(_number: int, _frame: FrameType | None) -> None:
        again = stop.is_set()
        stop.set()
        if not again:
            raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, heed)
    return stop


def _status_text(status: dict[str, Any]) -> str:
    lines = [
        f"project  {status['project'] or '(deploy.project is missing)'}",
        f"watched  {status['watched'] or 'nothing'}",
    ]
    running = status["running"]
    if running is not None:
        lines.append(f"running  {running['version'] or 'unnamed'} {running['digest'] or running['image_id']}")
    if status["problem"]:
        lines.append(f"problem  {status['problem']}")
    lines += [f"  {one['service']:<12} {one['container']:<24} {one['health'] or 'runs'}" for one in status["services"]]
    if status["under_way"] is not None:
        lines.append(f"under way: {status['under_way']['state']}, at: {status['under_way']['step']}")
    lines += [f"not tried again: {digest}: {reason}" for digest, reason in status["not_tried_again"].items()]
    if status["last"] is not None:
        lines.append(f"last     {_history_text([status['last']])}")
    return "\n".join(lines)


def _history_text(records: list[dict[str, Any]]) -> str:
    if not records:
        return "no update yet"
    rows: list[tuple[str, ...]] = [
        (
            one["at"] if one["clock_ok"] else f"{one['at']}?",
            one["by"],
            one["kind"],
            _short(one["before"]),
            _short(one["after"]),
            " ".join(f"{part['service']} {part['gap_seconds']}s" for part in one["services"] if part["gap_seconds"])
            or "-",
            one["outcome"] + (f": {one['reason']}" if one["reason"] else ""),
        )
        for one in records
    ]
    return table(("when", "by", "what", "from", "to", "away", "outcome"), rows)


def _short(version: dict[str, str]) -> str:
    return f"{version['version'] or '-'} {(version['digest'] or version['image_id']).removeprefix('sha256:')[:12]}"
