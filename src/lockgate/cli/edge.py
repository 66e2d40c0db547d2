"""`lockgate edge tunnel | log | service-token | certificate | audit`: who may come in through this edge, who did."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lockgate.cli.common import add_config_argument, load_config, table
from lockgate.config import values
from lockgate.config.errors import ConfigError
from lockgate.config.model import Config
from lockgate.config.values import BadValue
from lockgate.telemetry import health

if TYPE_CHECKING:
    from lockgate.tunnel.token import Token

_LOG_SECONDS = 0.5  # between questions
_DURATION = values.duration(1, 3660 * 86_400)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parts = parser.add_subparsers(dest="part", required=True, metavar="PART")
    tunnel = parts.add_parser("tunnel", help="tunnels, their tokens and host names")
    _add_tunnel(tunnel.add_subparsers(dest="action", required=True, metavar="ACTION"))
    log = parts.add_parser("log", help="what the connectors of a tunnel log, as it comes")
    log.add_argument("name", metavar="NAME")
    log.add_argument(
        "--level", choices=("debug", "info", "warn", "error"), default="info", help="(default: %(default)s)"
    )
    add_config_argument(log)
    add_config_argument(parts.add_parser("service-token", help="make an id and a secret for a program"))
    _add_certificate(parts.add_parser("certificate", help="make the certificate that connectors see, or renew it"))
    audit = parts.add_parser("audit", help="who connected, from where, to what, how much")
    _add_audit(audit.add_subparsers(dest="action", required=True, metavar="ACTION"))


def _add_tunnel(actions: Any) -> None:
    create = actions.add_parser("create", help="make a tunnel and print its token, once")
    token = actions.add_parser("token", help="print a new token, once; the others end by --overlap")
    for one in (create, token):
        one.add_argument("name", metavar="NAME")
        one.add_argument("--expires", metavar="TIME", help="how long the token counts, as 90d (default: for ever)")
        one.add_argument("--edge", action="append", metavar="HOST:PORT", help="where to dial (default: edge.public)")
    create.add_argument("--host", action="append", default=[], metavar="HOST", help="a host name that leads there")
    token.add_argument("--overlap", metavar="TIME", help="how long the other tokens still count (default: as before)")
    listing = actions.add_parser("list", help="every tunnel: its tokens, where it is reached")
    listing.add_argument("--json", action="store_true", help="as JSON, a line for each")
    route = actions.add_parser("route", help="lead a host name, or the beginning of user names, to a tunnel")
    route.add_argument("name", metavar="NAME")
    route.add_argument("host", metavar="HOST", help="a.example or *.example; with --users, as home/")
    kind = route.add_mutually_exclusive_group()
    kind.add_argument("--mqtts", dest="kind", action="store_const", const="mqtts", help="MQTT over TLS, by SNI")
    kind.add_argument("--users", dest="kind", action="store_const", const="users", help="MQTT over TLS, by user name")
    route.add_argument("--target", metavar="HOST:PORT", help="of MQTT: what the connector dials")
    route.add_argument("--policy", metavar="NAME", help="of a host name: who may pass")
    route.add_argument("--devices", metavar="NAME", help="of MQTT: what devices may do")
    route.add_argument("--remove", action="store_true", help="lead it nowhere")
    revoke = actions.add_parser("revoke", help="take back a token, or all of a tunnel")
    revoke.add_argument("name", metavar="NAME")
    revoke.add_argument("number", nargs="?", metavar="TOKEN", help="its number in `list` (default: all)")
    delete = actions.add_parser("delete", help="remove a tunnel with all it has")
    delete.add_argument("name", metavar="NAME")
    for one in (create, token, listing, route, revoke, delete):
        add_config_argument(one)


def _add_certificate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="+", metavar="NAME", help="host name or address that connectors dial")
    parser.add_argument("--ca", type=Path, metavar="FILE", help="authority that signs it (default: ca.crt beside it)")
    parser.add_argument("--ca-key", type=Path, metavar="FILE", help="its key (default: ca.key beside the authority)")
    add_config_argument(parser)


def _add_audit(actions: Any) -> None:
    verify = actions.add_parser("verify", help="whether the log is whole; prints its newest line's number and hash")
    verify.add_argument("--holds", metavar="N:HASH", help="what an earlier call printed, which has to be in it")
    tail = actions.add_parser("tail", help="the newest lines")
    tail.add_argument("-n", type=int, default=20, metavar="COUNT", help="how many (default: %(default)s)")
    for one in (verify, tail):
        one.add_argument("folder", type=Path, nargs="?", metavar="FOLDER", help="(default: that of edge.audit_dir)")
        add_config_argument(one)


def main(arguments: argparse.Namespace) -> int:
    config = load_config(arguments)
    if arguments.part == "tunnel":
        return _tunnel(arguments, config)
    if arguments.part == "audit":
        return _audit(arguments, arguments.folder or config.edge.audit_folder(config.gateway))
    if arguments.part == "log":
        return _follow_log(arguments, config)
    if arguments.part == "certificate":
        return _certificate(arguments, config)
    return _service_token()


def _follow_log(arguments: argparse.Namespace, config: Config) -> int:
    """Print what a tunnel's connectors log, until it is interrupted; the edge has to run."""
    path = config.gateway.sockets_dir / "edge.sock"
    after: dict[str, int] = {}
    while True:
        said = health.ask(path, ask="log", tunnel=arguments.name, level=arguments.level, after=json.dumps(after))
        connectors: Any = said.get("connectors") if said is not None else None
        if not isinstance(connectors, dict):
            problem = f"the edge does not answer on {path}: is it running?" if said is None else said.get("error")
            print(problem, file=sys.stderr)
            return 1
        for connector, lines in connectors.items():
            for line in lines:
                after[connector] = line["number"]
                text = f"{line.get('time')} {line.get('level')} {line.get('message')}"
                print(f"{connector[:8]} {text.encode('unicode_escape').decode()}", flush=True)
        time.sleep(_LOG_SECONDS)


def _tunnel(arguments: argparse.Namespace, config: Config) -> int:
    path = config.edge.tunnels_file(config.gateway)
    now = time.time()
    if arguments.action == "list":
        return _list(path, arguments.json, now)
    from lockgate.tunnel import tunnel_edits

    name: str = arguments.name
    with tunnel_edits.editing(path) as said:
        if arguments.action in ("create", "token"):
            until = _after(now, "--expires", arguments.expires)
            if arguments.action == "create":
                token = tunnel_edits.create(said, name, now, until)
                for host in arguments.host:
                    tunnel_edits.route(said, name, "hosts", host, {})
            else:
                others = _after(now, "--overlap", arguments.overlap)
                token = tunnel_edits.add_token(said, name, now, until, others)
            text = _for_connectors(token, arguments.edge, config).encode()
        elif arguments.action == "route":
            _route(said, arguments)
        elif arguments.action == "revoke":
            numbers = tunnel_edits.revoke(said, name, now, arguments.number)
        else:
            tunnel_edits.delete(said, name)
    # said once it is written
    if arguments.action in ("create", "token"):
        print(f"{name}: this token is shown once; give it to the connector, or to cloudflared:", file=sys.stderr)
        print(text)
    elif arguments.action == "revoke":
        taken = f"token {', '.join(numbers)} revoked" if numbers else "nothing to revoke"
        print(f"{name}: {taken}")
    elif arguments.action == "delete":
        print(f"{name}: deleted")
    else:
        print(f"{arguments.host}: leads {'nowhere' if arguments.remove else f'to {name}'}")
    return 0


def _route(said: dict[str, Any], arguments: argparse.Namespace) -> None:
    from lockgate.tunnel import tunnel_edits

    kind = arguments.kind or "hosts"
    wrong = ("target",) if kind == "hosts" else ("policy",)
    for name in wrong:
        if getattr(arguments, name) is not None:
            accepted = "it with --mqtts or --users" if name == "target" else "--devices"
            raise ConfigError(f"is not for {kind}", key=f"--{name}", accepted=accepted)
    settings = {
        name: getattr(arguments, name)
        for name in ("target", "policy", "devices")
        if getattr(arguments, name) is not None
    }
    tunnel_edits.route(said, arguments.name, kind, arguments.host, None if arguments.remove else settings)


def _list(path: Path, as_json: bool, now: float) -> int:
    from lockgate.tunnel import tunnels

    rows: list[tuple[str, ...]] = []
    for tunnel in tunnels.load(path):
        tokens = {
            token.number: (refusal.value if (refusal := token.refusal(now)) is not None else "good")
            for token in tunnel.tokens
        }
        names = {
            "hosts": [host.name for host in tunnel.hosts],
            "mqtts": [one.name for one in tunnel.mqtts],
            "users": [one.name for one in tunnel.users],
        }
        if as_json:
            print(json.dumps({"id": str(tunnel.id), "name": tunnel.name, "tokens": tokens} | names))
        said = " ".join(f"{number}:{state}" for number, state in tokens.items())
        rows.append((tunnel.name, str(tunnel.id), said or "-", *(" ".join(names[key]) or "-" for key in names)))
    if not as_json:
        print(table(("name", "id", "tokens", "hosts", "mqtts", "users"), rows) if rows else f"{path}: no tunnels")
    return 0


def _for_connectors(token: Token, edges: list[str] | None, config: Config) -> Token:
    """Put into a token what our own connector is told by it."""
    import dataclasses

    from lockgate.tunnel.token import check_address, check_ca

    for edge in edges or ():
        check_address(edge, "--edge")
    ca = ""
    if config.edge.ca_file is not None:
        try:
            ca = config.edge.ca_file.read_text("ascii")
        except (OSError, UnicodeDecodeError) as error:
            problem = getattr(error, "strerror", None) or "is not PEM"
            raise ConfigError(f"{config.edge.ca_file}: {problem}", key="edge.ca_file", accepted="PEM") from None
        check_ca(ca, "edge.ca_file")
    return dataclasses.replace(token, edges=tuple(edges or config.edge.public), ca=ca)


def _service_token() -> int:
    from lockgate.tunnel.policy import SERVICE_TOKEN_HEADERS, new_service_token

    identifier, secret, rule = new_service_token()
    print("The secret is shown once. Requests have these headers:", file=sys.stderr)
    id_header, secret_header = SERVICE_TOKEN_HEADERS[0]
    print(f"{id_header}: {identifier}\n{secret_header}: {secret}")
    print("and a policy has this rule:", file=sys.stderr)
    print(json.dumps({"service_token": rule}))
    return 0


def _certificate(arguments: argparse.Namespace, config: Config) -> int:
    """Without an authority one is made. Exit status 3 where nothing was written."""
    from lockgate.access import secret_file
    from lockgate.cli import certificates

    for name in arguments.names:
        certificates.check_host(name)
    certfile, keyfile = config.edge.tunnel_pair(config.gateway)
    ca: Path = arguments.ca or certfile.with_name("ca.crt")
    ca_key: Path = arguments.ca_key or ca.with_name("ca.key")
    own: certificates.Pair | None = None
    if ca.exists() or ca_key.exists():
        try:
            own = certificates.Pair(ca.read_bytes(), ca_key.read_bytes())
        except OSError as error:
            raise ConfigError(
                f"cannot be read: {error.strerror}",
                path=Path(str(error.filename)),
                accepted="the authority and its key",
            ) from None
    with certificates.authority(arguments.names[0], own) as signer:
        made = signer.issue([*arguments.names, *certificates.CLOUDFLARED_NAMES])
    for path in (certfile, keyfile, ca, ca_key):
        path.parent.mkdir(parents=True, exist_ok=True)
    if own is None:
        secret_file.replace(ca_key, signer.own.key)
        secret_file.replace(ca, signer.own.certificate)
        ca.chmod(0o644)
    secret_file.replace(keyfile, made.key)
    secret_file.replace(certfile, made.certificate)
    certfile.chmod(0o644)
    if os.geteuid() == 0:  # the edge has what root makes in its folder
        for path in (keyfile, certfile):
            os.chown(path, path.parent.stat().st_uid, path.parent.stat().st_gid)
    print(f"{certfile}: for {', '.join(arguments.names)}, and for cloudflared; signed by {ca}")
    if config.edge.ca_file is None:
        print(f'Say it to connectors by new tokens: [edge] ca_file = "{ca}"; to cloudflared: --cacert.')
    return 0


def _audit(arguments: argparse.Namespace, folder: Path) -> int:
    """Exit status 1 when the chain is broken."""
    from lockgate.tunnel import audit

    if arguments.action == "tail":
        for line in audit.tail(folder, max(1, arguments.n)):
            said = " ".join(
                f"{name}={json.dumps(value)}"
                for name, value in line.items()
                if name not in ("n", "time", "event", "hash", "before")
            )
            print(f"{line.get('time')} {line.get('event')} {said}".encode("unicode_escape").decode())
        return 0
    wanted: tuple[int, str] | None = None
    if arguments.holds is not None:
        number, _, digest = arguments.holds.partition(":")
        if not number.isdecimal() or len(digest) != 64:
            raise ConfigError(f"{arguments.holds!r} is none", key="--holds", accepted="N:HASH, as verify prints it")
        wanted = int(number), digest.lower()
    report = audit.verify(folder, wanted)
    for problem in report.problems:
        print(problem, file=sys.stderr)
    if report.torn:
        print(f"the last line is cut off after {report.torn} bytes: a crash, or it is being written", file=sys.stderr)
    if report.first is not None and report.first > 1:
        print(f"lines before {report.first} are not there: old files are removed, by edge.audit_files", file=sys.stderr)
    print(f"{report.lines} lines in {report.files} files, {'BROKEN' if report.problems else 'whole'}")
    if report.last is not None:
        print(f"{report.last}:{report.hash}")
    return 1 if report.problems else 0


def _after(now: float, option: str, said: str | None) -> float | None:
    """Give the time that lies so long after now."""
    if said is None:
        return None
    try:
        seconds: Any = _DURATION.read(said)
    except BadValue:
        raise ConfigError(f"{said!r} is no time", key=option, accepted=_DURATION.accepted) from None
    return now + float(seconds)
