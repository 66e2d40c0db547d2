"""What `lockgate migrate` finds: each check looks at one thing of a setup and changes nothing."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from lockgate.access import acl_file, hashes, password_file
from lockgate.access.dynamic_security import file as dynamic_security
from lockgate.access.hashes import Pbkdf2, Sha512
from lockgate.access.secret_file import SYMLINKS_VARIABLE
from lockgate.cli.migrate_setup import Authority, Line, Scope, Setup, is_public, opening, port_of
from lockgate.config.errors import ConfigError, ConfigErrors
from lockgate.config.model import BridgeTlsConfig, Place, TlsConfig, is_local
from lockgate.config.mosquitto_conf import read_mosquitto_conf
from lockgate.config.options_table import ROWS, instead_of
from lockgate.doctor.x509 import read

Section = Literal["same", "different", "unsafe", "cannot", "unseen"]

_ROUNDS = 100_000  # of PBKDF2; fewer are guessed quickly
_DAY = 86_400
_SOON = 30 * _DAY

# Options whose row tells a difference that is there only where the line is not.
_UNLESS_SAID = ("check_retain_source", "set_tcp_nodelay")
# Options whose row tells what other checks, or the parser, look at.
_LOOKED_AT = {
    *_UNLESS_SAID,
    *("persistence", "retained_persistence", "autosave_interval", "autosave_on_changes"),
    *("plugin", "auth_plugin", "global_plugin", "plugin_load", "listener", "http_dir", "clientid_prefixes", "log_dest"),
    *("keyfile", "tls_keyform", "tls_version", "require_certificate", "disable_client_cert_date_checks"),
    *("use_identity_as_username", "use_subject_as_username", "bridge_tls_version", "bridge_session_expiry_interval"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing a person should know: where it stands, what it is and what to do about it."""

    section: Section
    path: Path
    line: int | None
    option: str
    problem: str
    advice: str = ""


def of(section: Section, line: Line, problem: str, advice: str = "") -> Finding:
    """Make a finding about a line of the configuration."""
    return Finding(section, line.path, line.number, line.name, problem, advice)


def unseen(line: Line, path: Path, then: str = "") -> Finding:
    """Make a finding about something that could not be looked at."""
    advice = "run this where it is, as in the container, and as a user who may see it"
    return of("unseen", line, f"{path} is not here, or not to be seen", f"{advice}; {then}" if then else advice)


def look_at(setup: Setup, now: float) -> list[Finding]:
    """Find everything; `now` is in seconds since 1970."""
    found: list[Finding] = []
    for check in (parser, options, listeners, persistence, authorities, tls_of_listeners, bridges, process):
        found += check(setup)
    for line, path in _certificates(setup):
        found += expiry(line, path, now)
    refused = {(one.path, one.line) for one in found if one.section == "cannot"}
    return [one for one in found if one.section in ("cannot", "unsafe") or (one.path, one.line) not in refused]


# --- what the parser says -----------------------------------------------------------------------------------------


def parser(setup: Setup) -> Iterator[Finding]:
    """Give what the broker would not start with."""
    foreign = [one for one in setup.plugins if not one.is_built_in]
    covered = {(option.path, option.number) for one in foreign for option in (one.line, *one.options)}
    for one in foreign:
        with_options = f", with its {len(one.options)} options" if one.options else ""
        yield of(
            "cannot",
            one.line,
            f"{one.line.value} is a C library, which this broker cannot load{with_options}",
            f"use {instead_of(one.file)}, and remove its lines",
        )
    try:
        read_mosquitto_conf(setup.path, setup.locate)
    except ConfigError as error:
        for mistake in error.errors if isinstance(error, ConfigErrors) else (error,):
            if (mistake.path, mistake.line) in covered:
                continue
            row = ROWS.get(mistake.key or "")
            path = mistake.path or setup.path
            if row is not None and row.state == "refused" and "Duplicate" not in mistake.problem:
                why, _, advice = row.note.rpartition(": ")
                yield Finding("cannot", path, mistake.line, row.name, f"not honoured: {why}", advice)
            else:
                advice = f"accepted: {mistake.accepted}" if mistake.accepted else "correct or remove the line"
                yield Finding("cannot", path, mistake.line, mistake.key or "", mistake.problem, advice)


def options(setup: Setup) -> Iterator[Finding]:
    """Give what each option means here, by the table of options."""
    foreign = {option for one in setup.plugins if not one.is_built_in for option in (one.line, *one.options)}
    for line in setup.lines:
        row = ROWS.get(line.name) or ROWS.get(line.name.replace("auth_opt_", "plugin_opt_"))
        if row is None or row.state == "refused" or line in foreign:
            continue
        if row.state == "same" or line.name in _LOOKED_AT:
            yield of("same", line, "")
        elif row.state == "ignored":
            yield of("different", line, f"is ignored: {row.note}", "remove the line, or leave it")
        else:
            yield of("different", line, row.note, "nothing")
    for name in _UNLESS_SAID:
        if name not in setup.everywhere:
            advice = f"nothing, or `{name} false`, which is Mosquitto's default"
            yield Finding("different", setup.path, None, name, ROWS[name].note, advice)
    if setup.authorities:
        yield of(
            "different",
            setup.authorities[0].line,
            "a stored session belongs to the user who made it: others are refused its client id",
            'nothing; `session_owner = "any"` in lockgate.toml is Mosquitto\'s way',
        )


# --- listeners ----------------------------------------------------------------------------------------------------


def listeners(setup: Setup) -> Iterator[Finding]:
    """Look at who can come in, and over what."""
    for listener in setup.listeners:
        line, port = opening(listener), port_of(listener)
        asked = list(setup.asked(listener))
        loaded = [one for one in setup.plugins if not one.is_built_in]
        if 0 < port < 1024:
            yield of(
                "different",
                line,
                f"port {port} needs a right of root; a capability given to the program mosquitto is not this one's",
                "give the service AmbientCapabilities=CAP_NET_BIND_SERVICE, or use a port from 1024 on",
            )
        if "http_dir" in listener and "websockets" in _values(listener, "protocol"):
            yield of("different", listener["http_dir"][0], ROWS["http_dir"].note, "make it `protocol http_api`")
        if setup.is_true("disable_client_cert_date_checks", listener) and "crlfile" in listener:
            name = "disable_client_cert_date_checks"
            yield of("different", listener[name][0], ROWS[name].note, "nothing")
        if not is_public(listener):
            continue
        anonymous = setup.lets_anonymous_in(listener)
        if anonymous is not None and setup.is_true("require_certificate", listener) is not True:
            ruled = any(one.kind != "password_file" for one in asked) or loaded
            what = "does what the rules for clients without a name allow" if ruled else "reads and writes everything"
            yield of(
                "unsafe",
                anonymous,
                f"whoever reaches port {port} comes in without a password and {what} ({_place(line)})",
                f"allow_anonymous false with a password_file, or `listener {port} 127.0.0.1`",
            )
        by_password = [one for one in asked if one.kind != "acl_file"] or loaded
        proxied = "enable_proxy_protocol" in listener  # the proxy ends TLS
        if by_password and "certfile" not in listener and "psk_hint" not in listener and not proxied:
            yield of(
                "unsafe",
                line,
                f"passwords cross the network readable: port {port} is open to others and has no TLS",
                "certfile and keyfile below it; for devices that cannot, an ADDRESS in a network of their own",
            )
        version = setup.last("tls_version", listener)
        if version is not None and version.value in _OLD_TLS:
            yield of("unsafe", version, f"{version.value} is broken", "remove the line: 1.2 and 1.3 are spoken")


_OLD_TLS = ("tlsv1", "tlsv1.0", "tlsv1.1")


def _values(scope: Scope, name: str) -> list[str]:
    return [line.value for line in scope.get(name, ())]


def _place(line: Line) -> str:
    return f"{line.path}:{line.number}"


# --- the store ----------------------------------------------------------------------------------------------------


def persistence(setup: Setup) -> Iterator[Finding]:
    """Look at what survives, and at the data folder."""
    name = "persistence" if "persistence" in setup.everywhere else "retained_persistence"
    said, line = setup.is_true(name), setup.last(name)
    by_plugin = next((one.line for one in setup.plugins if one.file == "mosquitto_persist_sqlite.so"), None)
    if said is False and line is not None:
        yield of(
            "unsafe", line,
            "sessions, queued and retained messages are lost at each stop, here as there",
            "persistence true",
        )  # fmt: skip
        return
    if by_plugin is None and line is None:
        yield Finding(
            "different", setup.path, None, "persistence",
            "nothing says it: Mosquitto keeps nothing over a stop, this broker does, in lockgate.db",
            "persistence true, and persistence_location; or persistence false, to keep nothing",
        )  # fmt: skip
        return
    interval = setup.last("autosave_interval")
    if by_plugin is not None:
        yield of(
            "unsafe", by_plugin,
            "Mosquitto acknowledges before the disk has it: a power cut loses up to flush_period (5 s)",
            "nothing: here what is acknowledged is on the disk",
        )  # fmt: skip
    elif line is not None:
        by_changes = setup.is_true("autosave_on_changes")
        unit = "changes" if by_changes else "seconds"
        period = f"{interval.value if interval is not None else 1800} {unit}"
        yield of(
            "unsafe", interval or line,
            f"Mosquitto writes its store every {period}: a power cut loses what it acknowledged since",
            "nothing: here what is acknowledged is on the disk",
        )  # fmt: skip
    yield from stores(setup, by_plugin or line)


def stores(setup: Setup, why: Line | None) -> Iterator[Finding]:
    """Look into the data folder: what Mosquitto left there is taken over at the first start."""
    location, file = setup.last("persistence_location"), setup.last("persistence_file")
    line = location or why
    if location is None or line is None:
        problem = "persistence_location is not said: the store lies where Mosquitto was started, and was not looked at"
        yield Finding("unseen", setup.path, None, "persistence_location", problem, "start the broker in that folder")
        return
    folder = setup.file(location)
    if not os.path.isdir(folder):
        yield unseen(line, folder)
        return
    names = (file.value if file is not None else "mosquitto.db", "mosquitto.sqlite3")
    if os.path.exists(folder / "lockgate.db"):
        yield of("same", line, f"{folder} has a lockgate.db: what that knows stays as it is")
    for path in (folder / name for name in names):
        try:
            if path.is_file():
                yield from store(line, path)
        except OSError as error:
            yield of("unseen", line, f"{path} cannot be read: {error.strerror}", "run this as root")


def store(line: Line, path: Path) -> Iterator[Finding]:
    """Look into one store, or rather into a copy: SQLite would leave files beside it. Raises OSError."""
    from lockgate.storage import mosquitto_db, mosquitto_sqlite
    from lockgate.storage.imported import UnreadableStore

    try:
        if path.suffix == ".sqlite3":
            with tempfile.TemporaryDirectory(prefix="lockgate-") as folder:
                for part in ("", "-wal"):
                    with contextlib.suppress(FileNotFoundError):
                        shutil.copyfile(f"{path}{part}", Path(folder) / f"{path.name}{part}")
                found = mosquitto_sqlite.read(Path(folder) / path.name)
        else:
            found = mosquitto_db.read(path)
    except UnreadableStore as error:
        yield of("cannot", line, str(error), "move the file away to start without it")
        return
    waiting = sum(len(one.queued) + len(one.in_flight) + len(one.received) for one in found.sessions.values())
    subscriptions = sum(len(one.subscriptions) for one in found.sessions.values())
    yield of(
        "same",
        line,
        f"{path} ({found.form}): {len(found.sessions)} sessions with {subscriptions} subscriptions, {waiting} messages "
        f"that wait, {len(found.retained)} retained messages are taken over once; the file is kept as "
        f"{path.name}.imported",
    )
    for reason, count in found.skipped.items():
        yield of("different", line, f"{count} {reason} in {path} cannot be taken over", "nothing")
    if found.damage:
        yield of(
            "different", line, f"{path} is damaged, all before the damage is taken over: {found.damage}", "nothing"
        )


# --- who may ------------------------------------------------------------------------------------------------------


def authorities(setup: Setup) -> Iterator[Finding]:
    """Look into the files that say who may do what."""
    seen: set[tuple[str, Path]] = set()
    for one in setup.authorities:
        path = setup.file(one.line)
        if (one.kind, path) in seen:
            continue
        seen.add((one.kind, path))
        try:
            if not os.path.exists(path):
                makes = one.kind == "dynamic_security"
                yield unseen(
                    one.line, path, "the broker makes one" if makes else "the broker does not start without it"
                )
                continue
            if path.is_symlink() and SYMLINKS_VARIABLE not in os.environ:
                yield of(
                    "cannot", one.line,
                    f"{path} is a symbolic link, which is refused for a file of secrets",
                    f"name the file itself, or set {SYMLINKS_VARIABLE}=1",
                )  # fmt: skip
            yield from readable_by_all(one.line, path)
            yield from authority(setup, one, path)
        except OSError as error:
            yield of("unseen", one.line, f"{path} cannot be read: {error.strerror}", "run this as root")


def authority(setup: Setup, one: Authority, path: Path) -> Iterator[Finding]:
    """Look into one file. Raises OSError."""
    data = path.read_bytes()
    try:
        if one.kind == "dynamic_security":
            yield from _dynamic_security(data, path)
            return
        text = data.decode("utf-8")
        if one.kind == "acl_file":
            yield from _acl(setup, text, path)
            acl_file.parse(text, path)
        else:
            yield from _passwords(text, path)
            password_file.parse(text, path)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        yield Finding("cannot", path, line, one.kind, "is not UTF-8 text", "write it in UTF-8")
    except ConfigError as error:
        for mistake in error.errors if isinstance(error, ConfigErrors) else (error,):
            advice = f"accepted: {mistake.accepted}" if mistake.accepted else "correct the line"
            yield Finding("cannot", path, mistake.line, one.kind, mistake.problem, advice)


def _passwords(text: str, path: Path) -> Iterator[Finding]:
    for number, line in enumerate(text.split("\n"), start=1):
        name, colon, said = line.partition(":")
        if line.startswith("#") or not colon or not name.strip() or not said.strip():
            continue
        user = f"user {name.strip()}"
        try:
            hashed = hashes.parse(said.strip())
        except ValueError:
            if not said.strip().startswith("$"):
                yield Finding(
                    "unsafe", path, number, "password_file",
                    f"{user}: a password in clear text", f"mosquitto_passwd -U {path}",
                )  # fmt: skip
            continue
        problem = weakness(hashed)
        if problem:
            yield Finding(
                "unsafe", path, number, "password_file",
                f"{user}: {problem}", f"a new password by `mosquitto_passwd {path} {name.strip()}` (Argon2id)",
            )  # fmt: skip


def weakness(hashed: object) -> str:
    """Say why a hash is quick to guess; nothing for a good one."""
    if isinstance(hashed, Sha512):
        return "its hash ($6$) is one round of SHA-512, quick to guess"
    if isinstance(hashed, Pbkdf2) and hashed.rounds < _ROUNDS:
        return f"its hash ($7$) has {hashed.rounds} rounds, quick to guess"
    return ""


def _acl(setup: Setup, text: str, path: Path) -> Iterator[Finding]:
    anonymous = any(setup.lets_anonymous_in(one) for one in setup.listeners)
    user: str | None = None
    for number, raw in enumerate(text.split("\n"), start=1):
        words = raw.split()
        if raw.startswith("#") or len(words) < 2:
            continue
        if words[0] == "user":
            user = raw.strip().partition(" ")[2]
        allowed = words[1] if len(words) > 2 and words[1] in acl_file.ACCESS else "readwrite"
        everything = words[-1] == "#" and allowed != "deny"
        may = {"read": "reads", "write": "writes"}.get(allowed, "reads and writes")
        if words[0] == "topic" and user is None and everything and anonymous:
            yield Finding(
                "unsafe", path, number, "acl_file",
                f"a client without a user name {may} everything", "name the topics, or put the line below a `user`",
            )  # fmt: skip
        elif words[0] == "pattern" and everything:
            yield Finding(
                "unsafe", path, number, "acl_file",
                f"a pattern without %u or %c is for everybody, who {may} everything", "put `topic` below each `user`",
            )  # fmt: skip
        levels = words[-1].split("/")
        if words[0] == "pattern" and any("%u" in one or "%c" in one for one in levels if one not in ("%u", "%c")):
            yield Finding(
                "different", path, number, "acl_file",
                "%u and %c stand for user and client id only where they are a whole level (Mosquitto 2.0: anywhere)",
                "make it a level of its own, as `sensors/%u`",
            )  # fmt: skip


def _dynamic_security(data: bytes, path: Path) -> Iterator[Finding]:
    state = dynamic_security.parse(data, path)
    lines = data.decode().split("\n")
    for name, client in state.clients.items():
        problem = weakness(client.password)
        if problem:
            yield Finding(
                "unsafe", path, _line_with(lines, name), "dynamic_security",
                f"user {name}: {problem}", f"a new password by `mosquitto_ctrl dynsec setClientPassword {name}`",
            )  # fmt: skip


def _line_with(lines: list[str], text: str) -> int:
    quoted = json.dumps(text)
    return next((number for number, line in enumerate(lines, start=1) if quoted in line), 1)


def readable_by_all(line: Line, path: Path) -> Iterator[Finding]:
    """Say if everybody on the machine can read a file of secrets. Raises OSError."""
    if path.stat().st_mode & stat.S_IROTH:
        yield of(
            "unsafe", line, f"everybody on this machine can read {path}", f"chmod 0600 {path}, for the broker's user"
        )


# --- TLS ----------------------------------------------------------------------------------------------------------


def tls_of_listeners(setup: Setup) -> Iterator[Finding]:
    """Try the certificates and keys of the listeners."""
    from lockgate.transport.tls import TlsServer

    for listener in setup.listeners:
        lines = {name: listener[name][0] for name in _TLS_FILES if name in listener}
        absent = [line for line in lines.values() if not os.path.exists(setup.file(line))]
        for line in absent:
            yield unseen(line, setup.file(line))
        if absent or not {"certfile", "keyfile"} <= lines.keys():
            continue
        places = {name: Place(line.path, line.number) for name, line in lines.items()}
        files = {name: setup.file(line) for name, line in lines.items()}
        shown = setup.is_true("require_certificate", listener) is True and bool({"cafile", "capath"} & files.keys())
        try:
            yield from readable_by_all(lines["keyfile"], files["keyfile"])
            TlsServer(TlsConfig(require_certificate=shown, places=places, **files))  # type: ignore[arg-type]
        except ConfigError as error:
            advice = f"accepted: {error.accepted}" if error.accepted else "name another file"
            path = error.path or setup.path
            yield Finding("cannot", path, error.line, error.key or "", error.problem, advice)
        except OSError as error:
            yield of("unseen", lines["keyfile"], f"{files['keyfile']} cannot be read: {error.strerror}", "run as root")


_TLS_FILES = ("certfile", "keyfile", "cafile", "capath", "crlfile")


def _certificates(setup: Setup) -> Iterator[tuple[Line, Path]]:
    names = ("certfile", "cafile", "bridge_certfile", "bridge_cafile")
    for scope in (*setup.listeners, *setup.bridges):
        for name in names:
            if name in scope:
                yield scope[name][0], setup.file(scope[name][0])


def expiry(line: Line, path: Path, now: float) -> Iterator[Finding]:
    """Say of a file of certificates whether the first of them to end has ended, or does soon."""
    try:
        end = min((one.ends_at for one in read(path.read_text("ascii"))), default=None)
    except (OSError, ValueError):  # said elsewhere
        return
    if end is None or end > now + _SOON:
        return
    date = time.strftime("%Y-%m-%d", time.gmtime(end))
    problem = f"a certificate in {path} ended on {date}" if end <= now else f"a certificate in {path} ends on {date}"
    yield of("unsafe", line, problem, "renew it; SIGHUP has the broker read it")


# --- bridges, and the process -------------------------------------------------------------------------------------


def bridges(setup: Setup) -> Iterator[Finding]:
    """Look at how each bridge logs in, and over what."""
    from lockgate.bridge.remote import tls_context
    from lockgate.transport.tls_client import TlsSetupError

    for bridge in setup.bridges:
        name = bridge["connection"][0]
        if setup.is_true("bridge_insecure", bridge):
            yield of(
                "unsafe", bridge["bridge_insecure"][0],
                "whoever has any certificate of the bridge_cafile can stand in for the remote broker",
                "bridge_insecure false, and the address as the certificate has it",
            )  # fmt: skip
        secrets = [line for option in ("remote_password", "password") for line in bridge.get(option, ())]
        trusts = {"bridge_cafile", "bridge_capath", "bridge_tls_use_os_certs", "bridge_psk"} & bridge.keys()
        hosts = " ".join(_values(bridge, "address") + _values(bridge, "addresses")).split()
        if secrets and not trusts and not all(is_local(host.rpartition(":")[0] or host) for host in hosts):
            yield of(
                "unsafe", name, "the bridge's password crosses the network readable", "bridge_cafile, and TLS there"
            )
        for line in (*secrets, *bridge.get("local_password", ())):
            with contextlib.suppress(OSError):
                if line.path.stat().st_mode & stat.S_IROTH:
                    yield of(
                        "unsafe", line,
                        f"a password in clear text, in a file that everybody on this machine can read: {line.path}",
                        f"chmod 0640 {line.path}, with the broker's group",
                    )  # fmt: skip
        version = setup.last("bridge_tls_version", bridge)
        if version is not None and version.value in _OLD_TLS:
            yield of("unsafe", version, f"{version.value} is broken", "remove the line: 1.2 and 1.3 are spoken")
        if "mqttv50" in _values(bridge, "bridge_protocol_version") and "bridge_session_expiry_interval" not in bridge:
            yield of("different", name, ROWS["bridge_session_expiry_interval"].note, "bridge_session_expiry_interval 0")
        lines = {option.removeprefix("bridge_"): bridge[option][0] for option in _BRIDGE_FILES if option in bridge}
        absent = [line for line in lines.values() if not os.path.exists(setup.file(line))]
        for line in absent:
            yield unseen(line, setup.file(line))
        if absent or not {"cafile", "capath"} & lines.keys() or ("certfile" in lines) != ("keyfile" in lines):
            continue
        try:
            if "keyfile" in lines:
                yield from readable_by_all(lines["keyfile"], setup.file(lines["keyfile"]))
            tls_context(BridgeTlsConfig(**{option: setup.file(line) for option, line in lines.items()}))  # type: ignore[arg-type]
        except TlsSetupError as error:
            line = lines.get(error.what, name)
            yield of("cannot", line, f"{error.path or ''} {error}".strip(), "name another file")
        except OSError as error:
            yield of("unseen", name, f"a file of the bridge cannot be read: {error.strerror}", "run this as root")


_BRIDGE_FILES = ("bridge_cafile", "bridge_capath", "bridge_certfile", "bridge_keyfile")


def process(setup: Setup) -> Iterator[Finding]:
    """Look at what the broker runs as."""
    user = setup.last("user")
    if user is not None and user.value == "root":
        yield of("unsafe", user, "the broker keeps all rights of root", "remove the line: it becomes user mosquitto")
    for line in setup.lines:
        if line.name == "log_dest" and line.value.startswith("file "):
            folder = setup.locate(Path(line.value.removeprefix("file ").strip()).parent)
            if not os.path.isdir(folder):
                yield unseen(line, folder, "the broker does not start without it")


def as_json(found: list[Finding]) -> dict[str, list[dict[str, object]]]:
    """Give the findings by section, for JSON."""
    sections: dict[str, list[dict[str, object]]] = {}
    for section in ("same", "different", "unsafe", "cannot", "unseen"):
        rows = [asdict(one) for one in found if one.section == section]
        for row in rows:
            row["path"] = str(row["path"])
            del row["section"]
        sections[section] = rows
    return sections
