"""The token a connector shows its edge: one line of text, the same that cloudflared takes.

Base64 of a JSON object with `a` (account tag), `t` (tunnel id), `s` (secret, in Base64 again) and perhaps `e`
(endpoint). Ours may say more, which cloudflared passes over: `edges` (HOST:PORT of each) and `ca`, what the
certificate of the edge is checked against.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from lockgate.config.errors import ConfigError

TEXT_VARIABLES: Final = ("LOCKGATE_TUNNEL_TOKEN", "CLOUDFLARE_TUNNEL_TOKEN", "TUNNEL_TOKEN")
FILE_VARIABLES: Final = ("LOCKGATE_TUNNEL_TOKEN_FILE", "TUNNEL_TOKEN_FILE")
SECRET_BYTES: Final = 32  # of those made here
_TEXT_BYTES: Final = 65_536  # of a token, a bundle of certificates in it included
_ADDRESS: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
_PIN: Final = re.compile(r"sha256:[0-9a-f]{64}")
_PEM: Final = "-----BEGIN CERTIFICATE-----"
_CREDENTIALS: Final = {"AccountTag": "a", "TunnelID": "t", "TunnelSecret": "s", "Endpoint": "e"}
_ACCEPTED: Final = "the text that `lockgate edge tunnel create` or the vendor's page gave, whole and unchanged"


@dataclass(frozen=True, slots=True)
class Token:
    """Who a connector is."""

    account_tag: str
    tunnel_id: uuid.UUID
    secret: bytes = field(repr=False)
    endpoint: str = ""
    edges: tuple[str, ...] = ()  # HOST:PORT; none: the connector is told elsewhere
    ca: str = ""  # certificates in PEM, or sha256: and the digest of the edge's certificate in hex

    @classmethod
    def parse(cls, text: str, name: str = "the token") -> Self:
        """Read a token, or the text of cloudflared's older credentials file.

        Raises ConfigError, which calls it `name`, says what is wrong and shows nothing of the secret.
        """
        text = text.strip()
        if not text:
            raise _wrong(name, "is empty")
        if len(text) > _TEXT_BYTES:
            raise _wrong(name, f"has {len(text)} characters, at most {_TEXT_BYTES} are read")
        if text.startswith("{"):
            said = _json_object(text, name)
            return cls._of({_CREDENTIALS.get(key, key): value for key, value in said.items()}, name)
        if any(character.isspace() for character in text):
            raise _wrong(name, "is more than one word; a token is the last one of the command that was shown")
        try:
            decoded = base64.b64decode(text, validate=True).decode("utf-8")
        except (binascii.Error, ValueError):
            raise _wrong(name, "is not Base64 of text: part of it is missing or changed") from None
        return cls._of(_json_object(decoded, name), name)

    @classmethod
    def _of(cls, said: Mapping[str, Any], name: str) -> Self:
        for key, meaning in (("a", "account tag"), ("t", "tunnel id"), ("s", "secret")):
            if key not in said:
                raise _wrong(name, f"has no {key} ({meaning})")
            if not isinstance(said[key], str) or not said[key]:
                raise _wrong(name, f"has no text as its {key} ({meaning})")
        try:
            tunnel_id = uuid.UUID(said["t"])
        except ValueError:
            raise _wrong(name, "has no UUID as its t (tunnel id)") from None
        try:
            secret = base64.b64decode(said["s"], validate=True)
        except (binascii.Error, ValueError):
            raise _wrong(name, "has no Base64 as its s (secret)") from None
        if not secret:
            raise _wrong(name, "has an empty secret")
        endpoint, edges, ca = said.get("e") or "", said.get("edges") or [], said.get("ca") or ""
        if not isinstance(endpoint, str):
            raise _wrong(name, "has no text as its e (endpoint)")
        if not isinstance(edges, list):
            raise _wrong(name, "has no list as its edges")
        for edge in edges:
            check_address(edge, f"{name}: edges")
        check_ca(ca, f"{name}: ca")
        return cls(said["a"], tunnel_id, secret, endpoint, tuple(edges), ca)

    def encode(self) -> str:
        """Give the text that `parse` reads."""
        said: dict[str, object] = {
            "a": self.account_tag,
            "t": str(self.tunnel_id),
            "s": base64.b64encode(self.secret).decode(),
        }
        for key, value in (("e", self.endpoint), ("edges", list(self.edges)), ("ca", self.ca)):
            if value:
                said[key] = value
        return base64.b64encode(json.dumps(said, separators=(",", ":")).encode()).decode()


def check_address(address: object, key: str) -> tuple[str, int]:
    """Give host and port of `HOST:PORT`, an IPv6 address without its brackets; raises ConfigError that names `key`."""
    match = _ADDRESS.fullmatch(address) if isinstance(address, str) else None
    if match is None or not 1 <= int(match[2]) <= 65_535:
        raise ConfigError(f"{address!r} is no address", key=key, accepted="HOST:PORT or [IPV6]:PORT")
    return match[1].strip("[]"), int(match[2])


def check_ca(ca: object, key: str) -> None:
    """Raise ConfigError that names `key` unless this is a bundle of certificates or a pin, or empty."""
    if not isinstance(ca, str) or (ca and not (_PEM in ca or _PIN.fullmatch(ca))):
        raise ConfigError(
            "is neither certificates nor a digest",
            key=key,
            accepted=f"PEM text ({_PEM}…), or sha256: and 64 digits of a certificate's SHA-256 in lower case",
        )


def find(token: str, token_file: Path | None, environment: Mapping[str, str]) -> tuple[Token, str] | None:
    """Give the token and where it was found, or None where nobody named one. The order is cloudflared's:

    the option `--token`, then its variables, `--token-file`, then its variables. What is empty is not there. Raises
    ConfigError where the first that is there cannot be used.
    """
    if token:
        return Token.parse(token, "--token"), "--token"
    for variable in TEXT_VARIABLES:
        if environment.get(variable, "").strip():
            return Token.parse(environment[variable], variable), variable
    if token_file is not None:
        return read_file(token_file), str(token_file)
    for variable in FILE_VARIABLES:
        if path := environment.get(variable, ""):
            return read_file(Path(path)), f"{variable} ({path})"
    return None


def read_file(path: Path) -> Token:
    """Give the token in a file; a link is followed, as secrets of Kubernetes are ones. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            text = file.read(_TEXT_BYTES + 1).decode("utf-8")
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", path=path, accepted="a readable file") from None
    except UnicodeDecodeError:
        raise ConfigError("is not text", path=path, accepted=_ACCEPTED) from None
    try:
        return Token.parse(text)
    except ConfigError as error:
        error.path = path
        raise


# --- out of the process list --------------------------------------------------------------------------------------


def hide(secret: str) -> bool:
    """Overwrite a text in the command line and the environment that others can read of this process.

    True when it no longer stands there. What Python has taken from both stays as it is. Linux; anywhere else False.
    """
    needle = os.fsencode(secret)
    if not needle:
        return True
    try:
        areas = _areas()
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            for begin, end in areas:
                memory.seek(begin)
                shown = memory.read(end - begin)
                at = shown.find(needle)
                while at >= 0:
                    memory.seek(begin + at)
                    memory.write(b"*" * len(needle))
                    at = shown.find(needle, at + len(needle))
        return all(needle not in Path(f"/proc/self/{name}").read_bytes() for name in ("cmdline", "environ"))
    except (OSError, ValueError, OverflowError):
        return False


def _areas() -> list[tuple[int, int]]:
    """Give where the kernel finds the arguments and the environment of this process (proc(5), stat 48 to 51)."""
    fields = Path("/proc/self/stat").read_text("latin-1").rpartition(")")[2].split()
    argument_begin, argument_end, environment_begin, environment_end = map(int, fields[45:49])
    return [(argument_begin, argument_end), (environment_begin, environment_end)]


def start_again_without(secret: str, words: Sequence[str] | None = None) -> None:
    """Become the same program with the token in a file that lies in memory: for where `hide` could not.

    Does not return. `words` is the command line, that of this process if not given. To be called before anything else
    was begun: descriptors that are not inherited are closed, threads end. Raises OSError.
    """
    descriptor = os.memfd_create("tunnel-token", 0)  # no CLOEXEC: the program it becomes reads it
    os.write(descriptor, secret.encode())
    file = f"/proc/self/fd/{descriptor}"
    kept = list(words if words is not None else sys.orig_argv)
    said: list[str] = []
    for word in kept:
        if word == secret and said and said[-1] == "--token":
            said[-1:] = ["--token-file", file]
        elif word == f"--token={secret}":
            said.append(f"--token-file={file}")
        else:
            said.append(word)
    environment = {name: value for name, value in os.environ.items() if secret not in value}
    os.execve(sys.executable, said, environment | {FILE_VARIABLES[0]: file})


# --- errors -------------------------------------------------------------------------------------------------------


def _json_object(text: str, name: str) -> Mapping[str, Any]:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        raise _wrong(name, "is no JSON below its Base64: part of it is missing or changed") from None
    if not isinstance(said, dict):
        raise _wrong(name, "holds no JSON object below its Base64")
    return said


def _wrong(name: str, problem: str) -> ConfigError:
    return ConfigError(problem, key=name, accepted=_ACCEPTED)
