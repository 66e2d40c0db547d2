"""`lockgate init [FOLDER]`: a compose stack of one's own, with its passwords and certificates."""

from __future__ import annotations

import argparse
import dataclasses
import getpass
import json
import os
import re
import secrets
import shlex
import socket
import ssl
import string
import sys
import time
from collections.abc import Iterable, Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple

from lockgate.access import hashes, password_file
from lockgate.cli import certificates
from lockgate.config.errors import ConfigError


class Stack(NamedTuple):
    """What is different from stack to stack."""

    help: str
    accounts: tuple[str, ...] = ()  # of its services
    has_tls: bool = True  # at the broker


STACKS: Final = {
    "broker": Stack("an MQTT broker"),
    "gateway": Stack("broker, processor with its buffer, and forwarder", accounts=("processor",)),
    "tunnel": Stack("an MQTT broker behind a tunnel, no port published", has_tls=False),
    "edge": Stack("the public side of tunnels, for a server that others reach"),
}
_CONNECTORS: Final = ("cloudflared", "lockgate")
_OPERATOR: Final = "operator"
_USER: Final = 1883  # of our containers
_TUNNEL_PORT: Final = 7844
_TOKEN: Final = "secrets/tunnel_token"
_TOKEN_USER: Final = 65532  # of cloudflared's
_TOKEN_VARIABLES: Final = ("LOCKGATE_TUNNEL_TOKEN", "TUNNEL_TOKEN")
_DEVICE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TOKEN_FORM: Final = re.compile(r"[A-Za-z0-9+/_=-]{16,4096}")
_LETTERS: Final = string.ascii_letters + string.digits
_FOR_SERVICES: Final = ("access", "data", "secrets/server.key", "secrets/processor_password")
_PRIVATE: Final = ("access", "data")
_ORIGIN: Final = "http://broker:9001"  # what a tunnel leads to: the broker of the stacks tunnel and gateway


class File(NamedTuple):
    """A file to be written."""

    data: bytes
    mode: int = 0o644


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path(), metavar="FOLDER", help="where it is written (default: here)"
    )
    parser.add_argument("--stack", choices=STACKS, help="which one")
    parser.add_argument(
        "--host", action="append", metavar="NAME", help="a name or address by which devices reach it; repeatable"
    )
    parser.add_argument(
        "--connector", choices=_CONNECTORS, help="of the stack tunnel (default: by the token, else cloudflared)"
    )
    parser.add_argument("--tunnel", metavar="NAME", help="name of the first tunnel, for the stack edge")
    parser.add_argument("--certificate", type=Path, metavar="FILE", help="of the stack edge, with its chain, in PEM")
    parser.add_argument("--key", type=Path, metavar="FILE", help="its private key (default: one is made, self-signed)")
    parser.add_argument("--device", metavar="NAME", help="user name of the first device")
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE",
        help=f"the tunnel's token, for the stack tunnel (default: {' or '.join(_TOKEN_VARIABLES)} in the environment)",
    )  # fmt: skip
    parser.add_argument(
        "--non-interactive", action="store_true", help="ask nothing: a broker, this machine's name, device-1"
    )


def main(arguments: argparse.Namespace) -> int:
    """Asks for what was not given, where there is a terminal. Exit status 3 where nothing was written."""
    asks = sys.stdin.isatty() and not arguments.non_interactive
    name = arguments.stack or _ask(asks, f"Which stack, {' or '.join(STACKS)}", "broker")
    if name not in STACKS:
        raise ConfigError(f"{name!r} is no stack", accepted=", ".join(STACKS))
    stack = STACKS[name]
    _check_options(arguments, name)
    return _edge(arguments, stack, asks) if name == "edge" else _broker(arguments, name, stack, asks)


def _check_options(arguments: argparse.Namespace, name: str) -> None:
    its = {"tunnel": ("token_file", "connector"), "edge": ("tunnel", "certificate", "key")}
    for stack, options in its.items():
        for option in options:
            if stack != name and getattr(arguments, option) is not None:
                raise ConfigError(f"is not for the stack {name}", key=f"--{option.replace('_', '-')}", accepted=stack)
    if name == "edge" and arguments.device is not None:
        raise ConfigError("is not for the stack edge", key="--device", accepted=", ".join(set(STACKS) - {"edge"}))
    if (arguments.certificate is None) is not (arguments.key is None):
        raise ConfigError("belong together", key="--certificate and --key", accepted="both or none")


def _broker(arguments: argparse.Namespace, name: str, stack: Stack, asks: bool) -> int:
    hosts: list[str] = []
    token: bytes | None = None
    files = _templates(name)
    if stack.has_tls:
        hosts = (
            arguments.host or _ask(asks, "Names or addresses by which devices reach it", socket.gethostname()).split()
        )
    elif arguments.host:
        raise ConfigError("--host is for a broker with TLS of its own; a tunnel's host name is given at its edge")
    else:
        token = _token(arguments.token_file, asks)
        if _connector(arguments.connector, token, asks) == "lockgate":
            files["docker-compose.yml"] = _with_our_connector(files["docker-compose.yml"])
    device = arguments.device or _ask(asks, "User name of the first device", "device-1")
    _check(hosts, device)
    folder: Path = arguments.folder
    passwords = {
        user: "".join(secrets.choice(_LETTERS) for _ in range(20)) for user in (*stack.accounts, _OPERATOR, device)
    }
    files |= _made(stack, passwords)
    if hosts:
        files |= _certificates(hosts)
    if token is not None:
        files[_TOKEN] = File(token + b"\n", 0o400)
    given = _put(folder, files)
    shown = {user: password for user, password in passwords.items() if user not in stack.accounts}
    print("\n".join(_told(folder, stack, hosts, shown, given)))
    return 0


def _put(folder: Path, files: dict[str, File]) -> bool:
    """Write everything, or nothing where one of it is there; whether the containers' user has what it needs."""
    there = [path for path in files if os.path.lexists(folder / path)]
    if there:
        raise ConfigError(
            f"{', '.join(there)} {'are' if there[1:] else 'is'} there already; nothing was written",
            path=folder,
            accepted="a new or an empty folder",
        )
    _write(folder, files)
    return _give(folder, files)


def _connector(wanted: str | None, token: bytes | None, asks: bool) -> str:
    """Say whose connector it is to be; a token that names edges tells it to ours alone."""
    from lockgate.tunnel.token import Token

    try:
        is_ours = token is not None and bool(Token.parse(token.decode()).edges)
    except ConfigError:
        is_ours = False
    found = wanted or _ask(asks, f"Which connector, {' or '.join(_CONNECTORS)}", _CONNECTORS[is_ours])
    if found not in _CONNECTORS:
        raise ConfigError(f"{found!r} is no connector", accepted=", ".join(_CONNECTORS))
    return found


def _with_our_connector(compose: File) -> File:
    """Change the one line."""
    ours = next(line for line in compose.data.splitlines() if b"image: ${LOCKGATE_IMAGE" in line)
    return File(re.sub(rb"(?m)^ +image: cloudflare/.*$", lambda _: ours, compose.data))


def _token(path: Path | None, asks: bool) -> bytes | None:
    """Give the tunnel's token; never by an argument, which everybody on the machine could read."""
    if path is not None:
        try:
            said = path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the token cannot be read: {error}", path=path) from None
    else:
        said = next((os.environ[name].strip() for name in _TOKEN_VARIABLES if os.environ.get(name)), "")
        if not said and asks:
            said = getpass.getpass("The tunnel's token, which is not shown (empty: later): ").strip()
    if not said and path is None:
        return None
    if not _TOKEN_FORM.fullmatch(said):
        raise ConfigError(
            "what was given is no tunnel's token",
            path=path,
            accepted="the Base64 text that its edge or the vendor's console shows",
        )
    return said.encode()


def _ask(asks: bool, question: str, default: str) -> str:
    if not asks:
        return default
    try:
        return input(f"{question} [{default}]: ").strip() or default
    except EOFError:
        raise KeyboardInterrupt from None


def _check(hosts: list[str], device: str) -> None:
    for host in hosts:
        certificates.check_host(host)
    if not _DEVICE.fullmatch(device) or device in (_OPERATOR, "processor"):
        raise ConfigError(
            f"{device!r} cannot be the name of a device",
            accepted=f"1 to 64 letters, digits, . _ -, and neither {_OPERATOR} nor processor",
        )


# --- what is written -------------------------------------------------------------------------------------------------


def _templates(stack: str) -> dict[str, File]:
    """Give the files that are the same for everybody; packaging/compose has them, too."""
    top = resources.files("lockgate") / "stacks" / stack
    return {str(path): File(data) for path, data in _below(top, PurePosixPath())}


def _below(folder: Traversable, path: PurePosixPath) -> Iterator[tuple[PurePosixPath, bytes]]:
    for one in sorted(folder.iterdir(), key=lambda one: one.name):
        if one.is_dir():
            yield from _below(one, path / one.name)
        else:
            yield path / one.name, one.read_bytes()


def _made(stack: Stack, passwords: dict[str, str]) -> dict[str, File]:
    text = ""
    for name, password in passwords.items():
        # Nobody guesses 20 random letters however quick the hash is, and Argon2id takes 46 MB for each login.
        text, _ = password_file.set_user(text, name, hashes.make(password.encode(), "sha512-pbkdf2"))
    files = {"access/passwd": File(text.encode(), 0o600)}
    for name in stack.accounts:
        files[f"secrets/{name}_password"] = File(f"{passwords[name]}\n".encode(), 0o400)
    return files


def _certificates(hosts: list[str]) -> dict[str, File]:
    """Make an authority and the server's certificate. Raises ConfigError where that cannot be."""
    with certificates.authority(hosts[0]) as signer:
        # others of the stack reach it by these, and its own checks
        server = signer.issue([*hosts, "broker", "localhost", "127.0.0.1"])
        return {
            "ca.crt": File(signer.own.certificate),
            "config/server.crt": File(server.certificate),
            "secrets/ca.key": File(signer.own.key, 0o600),
            "secrets/server.key": File(server.key, 0o400),
        }


def _edge(arguments: argparse.Namespace, stack: Stack, asks: bool) -> int:
    """Write the edge's stack with a first tunnel, whose token is shown here and never again."""
    hosts = arguments.host or _ask(asks, "Host names by which devices and people reach it, its own first", "").split()
    if not hosts:
        raise ConfigError("an edge needs the name by which it is reached", key="--host", accepted="as home.example.org")
    for host in hosts:
        certificates.check_host(host)
        if certificates.is_address(host):
            raise ConfigError("is an address, and tunnels are found by names", key=host, accepted="as home.example.org")
    if hosts[0].startswith("*"):
        raise ConfigError(
            "is no name of one machine, which connectors dial", key=hosts[0], accepted="it, but not first"
        )
    name = arguments.tunnel or _ask(asks, "Name of the first tunnel", "home")
    with certificates.authority(hosts[0]) as signer:
        tunnel = signer.issue([hosts[0], *certificates.CLOUDFLARED_NAMES])
        public = signer.issue(hosts) if arguments.certificate is None else _given(arguments.certificate, arguments.key)
        ca = signer.own
    table, token = _tunnels(name, hosts, ca.certificate.decode("ascii"))
    files = {
        **_templates("edge"),
        ".env": File(f"EDGE_PUBLIC={hosts[0]}:{_TUNNEL_PORT}\n".encode()),
        "ca.crt": File(ca.certificate),
        "secrets/ca.key": File(ca.key, 0o600),
        "data/edge/ca.crt": File(ca.certificate),
        "data/edge/tunnel.pem": File(tunnel.certificate),
        "data/edge/tunnel.key": File(tunnel.key, 0o400),
        "data/edge/certificates/public.pem": File(public.certificate),
        "data/edge/certificates/public.key": File(public.key, 0o400),
        "data/edge/tunnels.json": File(table, 0o600),
    }
    given = _put(arguments.folder, files)
    print("\n".join(_told_of_edge(arguments, stack, hosts, name, token, given)))
    return 0


def _given(certificate: Path, key: Path) -> certificates.Pair:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
        return certificates.Pair(certificate.read_bytes(), key.read_bytes())
    except OSError as error:  # SSLError is one
        raise ConfigError(f"cannot be used: {error}", path=certificate, accepted="PEM, and its key") from None


def _tunnels(name: str, hosts: list[str], ca: str) -> tuple[bytes, str]:
    """Give the file of tunnels and the token of the one that is in it. Raises ConfigError."""
    try:
        from lockgate.tunnel import tunnel_edits, tunnels
    except ModuleNotFoundError as error:
        raise ConfigError(f"an edge needs {error.name}", accepted="pip install 'lockgate[tunnel]'") from None
    said: dict[str, Any] = {}
    token = tunnel_edits.create(said, name, time.time())
    for host in hosts:
        tunnel_edits.route(said, name, "hosts", host, {})
        tunnel_edits.route(said, name, "mqtts", host, {})
    _, table = tunnel_edits.find(said, name)
    table["configuration"] = {"version": 1, "config": {"ingress": [{"service": _ORIGIN}]}}
    text = json.dumps(said, indent=2, ensure_ascii=False) + "\n"
    tunnels.parse(text, Path("tunnels.json"))
    return text.encode(), dataclasses.replace(token, edges=(f"{hosts[0]}:{_TUNNEL_PORT}",), ca=ca).encode()


def _write(folder: Path, files: dict[str, File]) -> None:
    for name, file in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(file.data)
            os.fchmod(descriptor, file.mode)


def _give(folder: Path, files: Iterable[str]) -> bool:
    """Let the containers' user read what it must; whether that could be done.

    Root gives the other files to the folder's owner.
    """
    paths = {folder / name for name in files}
    paths |= {parent for path in paths for parent in path.parents if parent.is_relative_to(folder)} - {folder}
    for path in paths:
        if path.is_dir():
            path.chmod(0o755)  # whatever the umask is
    for private in _PRIVATE:
        if (folder / private).is_dir():
            (folder / private).chmod(0o750)
    if (folder / "access" / "acl").exists():
        (folder / "access" / "acl").chmod(0o640)
    if os.geteuid() != 0:
        return os.geteuid() == _USER
    owner = folder.stat()
    users = {**dict.fromkeys(_FOR_SERVICES, _USER), _TOKEN: _TOKEN_USER}
    for path in paths:
        name = path.relative_to(folder)
        user = users.get(str(name)) or users.get(name.parts[0])
        os.chown(path, *((user, user) if user else (owner.st_uid, owner.st_gid)))
    return True


# --- what is said ----------------------------------------------------------------------------------------------------


def _told(folder: Path, stack: Stack, hosts: list[str], passwords: dict[str, str], given: bool) -> Iterator[str]:
    place = shlex.quote(os.fspath(folder))
    width = max(map(len, passwords))
    yield f"{folder}: {stack.help}, for Docker Compose"
    yield ""
    yield "Users and their passwords, which are shown only now; in access/passwd stand their hashes:"
    yield from (f"  {name:<{width}}  {password}" for name, password in passwords.items())
    yield ""
    yield "Next:"
    if not given:
        wanted = " ".join(name for name in _FOR_SERVICES if (folder / name).exists())
        yield f"  cd {place} && sudo chown -R {_USER}:{_USER} {wanted}    # the containers' user"
    else:
        yield f"  cd {place}"
    if not stack.has_tls and not ((folder / _TOKEN).exists() and given):
        if not (folder / _TOKEN).exists():
            yield f"  mkdir -p secrets && cat > {_TOKEN}    # the token; then Enter and Ctrl-D"
        yield f"  chmod 0400 {_TOKEN} && sudo chown {_TOKEN_USER} {_TOKEN}"
    if "devices.yml" in os.listdir(folder):
        yield "  docker-compose up -d                      # nothing is published yet"
        yield "  docker-compose -f docker-compose.yml -f devices.yml up -d    # port 8883, for devices"
    else:
        yield "  docker-compose up -d                      # or: docker compose up -d"
    yield "  docker-compose exec broker lockgate doctor"
    if stack.has_tls:
        yield f"  Devices get ca.crt, and connect with TLS to {hosts[0]}, port 8883."
        yield "  Take secrets/ca.key away from here: it is needed only for the next certificate, in two years."
    else:
        yield f"  With the vendor's tunnel, give its public host name the service {_ORIGIN} in the vendor's console."
        yield "  Devices connect to wss://HOST/mqtt, HOST being that name."


def _told_of_edge(
    arguments: argparse.Namespace, stack: Stack, hosts: list[str], name: str, token: str, given: bool
) -> Iterator[str]:
    yield f"{arguments.folder}: {stack.help}, for Docker Compose"
    yield ""
    yield f"The token of the tunnel {name}, which is shown only now; data/edge/tunnels.json has its hash:"
    yield ""
    yield token
    yield ""
    yield "Next:"
    chown = "" if given else f" && sudo chown -R {_USER}:{_USER} data    # the containers' user"
    yield f"  cd {shlex.quote(os.fspath(arguments.folder))}{chown}"
    yield f"  Let {', '.join(hosts)} be this machine in the DNS; its ports 443, 8883 and {_TUNNEL_PORT} be reached."
    yield "  docker-compose up -d                      # or: docker compose up -d"
    yield "  docker-compose exec edge lockgate edge tunnel list"
    yield "  At home: lockgate init --stack tunnel, which asks for the token."
    yield f"  Devices connect to wss://{hosts[0]}/mqtt, and with TLS to {hosts[0]}, port 8883."
    if arguments.certificate is None:
        yield "  They get ca.crt, or you put a certificate they know in the place of data/edge/certificates/public.*."
    yield "  Take secrets/ca.key away from here: it is needed only for the next certificate, in two years."
