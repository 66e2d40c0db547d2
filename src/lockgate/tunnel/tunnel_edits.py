"""Changes to the edge's file of tunnels: each is checked as a whole before anything is written."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lockgate.access import secret_file
from lockgate.config.errors import ConfigError, did_you_mean
from lockgate.tunnel import tunnels
from lockgate.tunnel.token import SECRET_BYTES, Token

Said = dict[str, Any]


@contextlib.contextmanager
def editing(path: Path) -> Iterator[Said]:
    """Give what the file says, to be changed in place; written when the block ends well and the result is good.

    Others who edit wait meanwhile. Keys nobody here knows are refused, comments (`note`) stay. Raises ConfigError and
    OSError; then the file is what it was.
    """
    _make_folder(path.parent)
    lock_path = path.with_name(f".{path.name}.lock")
    with open(lock_path, "a") as lock:
        _give_to_owner_of(path.parent, lock_path)
        fcntl.flock(lock, fcntl.LOCK_EX)
        said: Said = {}
        if path.exists() or path.is_symlink():
            text = secret_file.read_text(path)
            tunnels.parse(text, path)  # what cannot be read is not written anew
            said = json.loads(text)
        is_new = not path.exists()
        yield said
        text = json.dumps(said, indent=2, ensure_ascii=False) + "\n"
        tunnels.parse(text, path)
        secret_file.replace(path, text.encode())
        if is_new:
            _give_to_owner_of(path.parent, path)


def _make_folder(folder: Path) -> None:
    if not folder.exists():
        folder.mkdir(parents=True, mode=0o700)
        _give_to_owner_of(folder.parent, folder)


def _give_to_owner_of(folder: Path, path: Path) -> None:
    """Let the edge read what root has made in its folder."""
    owner = folder.stat()
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.chown(path, owner.st_uid, owner.st_gid)


def create(said: Said, name: str, now: float, expires: float | None = None) -> Token:
    """Add a tunnel with its first token, which is kept nowhere. Raises ConfigError where the name is taken."""
    table = said.setdefault("tunnels", {})
    if any(one.get("name") == name for one in table.values()):
        raise ConfigError(f"there is a tunnel {name!r} already", key="tunnels", accepted="another name")
    tunnel_id = str(uuid.uuid4())
    table[tunnel_id] = {"name": name, "account_tag": tunnels.ACCOUNT_TAG, "created": spoken(now), "tokens": {}}
    return add_token(said, name, now, expires)


def add_token(
    said: Said, name: str, now: float, expires: float | None = None, others_expire: float | None = None
) -> Token:
    """Give a tunnel one more token; with `others_expire` (Unix seconds) those that count now end then."""
    tunnel_id, tunnel = find(said, name)
    table = tunnel.setdefault("tokens", {})
    for one in table.values():
        until = one.get("expires")
        if others_expire is not None and one.get("revoked") is None:
            if until is None or datetime.fromisoformat(until).timestamp() > others_expire:
                one["expires"] = spoken(others_expire)
    tag = tunnel.get("account_tag") or tunnels.ACCOUNT_TAG
    token = Token(tag, tunnel_id, secrets.token_bytes(SECRET_BYTES))
    digest = tunnels.digest_of(tag, tunnel_id, token.secret)
    number = str(max((int(one) for one in table if one.isdecimal()), default=0) + 1)
    table[number] = {"hash": f"sha256:{digest.hex()}", "created": spoken(now)}
    if expires is not None:
        table[number]["expires"] = spoken(expires)
    return token


def revoke(said: Said, name: str, now: float, number: str | None = None) -> list[str]:
    """Take back a token, or all of a tunnel; give the numbers of those that counted. Raises ConfigError."""
    _, tunnel = find(said, name)
    table = tunnel.get("tokens", {})
    if number is not None and number not in table:
        raise ConfigError(f"has no token {number!r}", key=name, accepted=", ".join(table) or "it has no tokens")
    taken = [one for one in table if number in (None, one) and table[one].get("revoked") is None]
    for one in taken:
        table[one]["revoked"] = spoken(now)
    return taken


def route(said: Said, name: str, kind: str, host: str, settings: Said | None) -> None:
    """Lead a name to a tunnel: `kind` is hosts, mqtts or users. None takes it away. Raises ConfigError."""
    _, tunnel = find(said, name)
    table = tunnel.setdefault(kind, {})
    if settings is not None:
        table[host] = {**table.get(host, {}), **settings}
    elif table.pop(host, None) is None:
        raise ConfigError(
            f"{host!r} does not lead there", key=f"{name}: {kind}", accepted=", ".join(table) or "nothing"
        )


def delete(said: Said, name: str) -> None:
    """Remove a tunnel with all it has. Raises ConfigError where there is none."""
    tunnel_id, _ = find(said, name)
    table = said["tunnels"]
    del table[next(key for key in table if uuid.UUID(key) == tunnel_id)]


def find(said: Said, name: str) -> tuple[uuid.UUID, Said]:
    """Give the tunnel with this name or id. Raises ConfigError."""
    table = said.get("tunnels", {})
    for tunnel_id, tunnel in table.items():
        if name in (tunnel.get("name"), tunnel_id):
            return uuid.UUID(tunnel_id), tunnel
    names = [one.get("name", "") for one in table.values()]
    raise ConfigError(f"there is no tunnel {name!r}.{did_you_mean(name, names)}", accepted=", ".join(names) or "none")


def spoken(at: float) -> str:
    """Give a time as the file has it."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
