"""`lockgate session list | give CLIENT USER | drop CLIENT | keep-wills`: whose the sessions of the broker are."""

from __future__ import annotations

import argparse
import json
import sys

from lockgate.cli.common import add_config_argument, load_config, table
from lockgate.telemetry import health

_COLUMNS = ("client id", "user", "connected from", "subscriptions", "queued", "in flight", "expires in")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="every session: its owner, its client, what waits")
    listing.add_argument("--json", action="store_true", help="as JSON, a line for each")
    give = actions.add_parser("give", help="make a session that of a user; its client is disconnected")
    give.add_argument("client", metavar="CLIENT", help="client id")
    owner = give.add_mutually_exclusive_group(required=True)
    owner.add_argument("user", nargs="?", metavar="USER", help="user name")
    owner.add_argument("--nobody", action="store_true", help="the first user that comes with this client id gets it")
    drop = actions.add_parser("drop", help="end a session, with all that waits for it; its client is disconnected")
    drop.add_argument("client", metavar="CLIENT", help="client id")
    keep = actions.add_parser("keep-wills", help="if the broker stops within a minute, publish no Will for it")
    for action in (listing, give, drop, keep):
        add_config_argument(action)


def main(arguments: argparse.Namespace) -> int:
    """Exit status 1 when the broker does not answer, or has no such session."""
    path = load_config(arguments).gateway.sockets_dir / "broker.sock"
    question = {"ask": "sessions", "action": arguments.action}
    if arguments.action == "keep-wills":
        question = {"ask": "keep_wills"}
    elif arguments.action != "list":
        question["client"] = arguments.client
    if arguments.action == "give" and arguments.user is not None:
        question["user"] = arguments.user
    answer = health.ask(path, **question)
    if answer is None or "error" in answer:
        print(f"the broker does not answer on {path}: is it running?", file=sys.stderr)
        return 1
    if "problem" in answer:
        print(f"{getattr(arguments, 'client', 'Wills')}: {answer['problem']}", file=sys.stderr)
        return 1
    sessions = answer.get("sessions")
    if isinstance(sessions, list):
        if arguments.json:
            for one in sessions:
                print(json.dumps(one, ensure_ascii=False))
        else:
            print(table(_COLUMNS, [_row(one) for one in sessions]))
    return 0


def _row(one: dict[str, object]) -> tuple[str, ...]:
    expires_in = one["expires_in"]
    if isinstance(expires_in, int | float):
        expires = f"{expires_in:.0f} s"
    else:
        expires = "" if one["address"] is not None else "never"
    names = (_shown(one["client_id"]), _shown(one["user"]), _shown(one["address"]))
    return (*names, *(str(one[name]) for name in ("subscriptions", "queued", "in_flight")), expires)


def _shown(name: object) -> str:
    """Give a name that a peer chose as a terminal may show it, "-" for none."""
    return str(name).encode("unicode_escape").decode() if name is not None else "-"
