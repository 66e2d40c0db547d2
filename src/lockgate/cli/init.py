"""`lockgate init [FOLDER]`: a compose stack of one's own, with its passwords and certificates."""

from __future__ import annotations

import argparse
import getpass
import ipaddress
import os
import re
import secrets
import shlex
import shutil
import socket
import string
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from lockgate.access import hashes, password_file
from lockgate.config.errors import ConfigError


class Stack(NamedTuple):
    """What is different from stack to stack."""

    help: str
    accounts: tuple[str, ...] = ()  # of its services
    has_tls: bool = True  # at the broker


STACKS: Final = {
    "broker": Stack("an MQTT broker"),
    "gateway": Stack("broker, processor with its buffer, and forwarder", accounts=("processor",)),
    "tunnel": Stack("an MQTT broker behind the vendor's cloudflared, no port published", has_tls=False),
}
_OPERATOR: Final = "operator"
_USER: Final = 1883  # of our containers
_TOKEN: Final = "secrets/tunnel_token"
_TOKEN_USER: Final = 65532  # of cloudflared's
_TOKEN_VARIABLES: Final = ("LOCKGATE_TUNNEL_TOKEN", "TUNNEL_TOKEN")
_DAYS: Final = {"authority": 3650, "server": 825}
_HOST: Final = re.compile(
    r"(\*\.)?([A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9])?\.)*[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9])?"
)
_DEVICE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TOKEN_FORM: Final = re.compile(r"[A-Za-z0-9+/_=-]{16,4096}")
_LETTERS: Final = string.ascii_letters + string.digits
_FOR_SERVICES: Final = ("access", "secrets/server.key", "secrets/processor_password")


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
    hosts: list[str] = []
    token: bytes | None = None
    if stack.has_tls:
        hosts = (
            arguments.host or _ask(asks, "Names or addresses by which devices reach it", socket.gethostname()).split()
        )
    elif arguments.host:
        raise ConfigError("--host is for a broker with TLS of its own; the tunnel's host name is given at its vendor")
    else:
        token = _token(arguments.token_file, asks)
    device = arguments.device or _ask(asks, "User name of the first device", "device-1")
    _check(hosts, device)
    folder: Path = arguments.folder
    passwords = {
        user: "".join(secrets.choice(_LETTERS) for _ in range(20)) for user in (*stack.accounts, _OPERATOR, device)
    }
    files = {**_templates(name), **_made(stack, passwords)}
    if hosts:
        files |= _certificates(hosts)
    if token is not None:
        files[_TOKEN] = File(token + b"\n", 0o400)
    there = [path for path in files if os.path.lexists(folder / path)]
    if there:
        raise ConfigError(
            f"{', '.join(there)} {'are' if there[1:] else 'is'} there already; nothing was written",
            path=folder,
            accepted="a new or an empty folder",
        )
    _write(folder, files)
    given = _give(folder, files)
    shown = {user: password for user, password in passwords.items() if user not in stack.accounts}
    print("\n".join(_told(folder, stack, hosts, shown, given)))
    return 0


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
            "what was given is no tunnel's token", path=path, accepted="the Base64 text that the vendor's console shows"
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
        if not _is_address(host) and not (_HOST.fullmatch(host) and len(host) <= 253):
            raise ConfigError(f"{host!r} is no host name and no address", accepted="as gateway.example or 192.0.2.7")
    if not _DEVICE.fullmatch(device) or device in (_OPERATOR, "processor"):
        raise ConfigError(
            f"{device!r} cannot be the name of a device",
            accepted=f"1 to 64 letters, digits, . _ -, and neither {_OPERATOR} nor processor",
        )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


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
    if shutil.which("openssl") is None:
        raise ConfigError("openssl is needed to make certificates and is not installed", accepted="apt install openssl")
    names = list(dict.fromkeys([*hosts, "broker", "localhost", "127.0.0.1"]))  # others of the stack, and its own checks
    alternatives = ", ".join(f"{'IP' if _is_address(name) else 'DNS'}:{name}" for name in names)
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch)
        (made / "openssl.cnf").write_text(_OPENSSL_CNF.format(host=hosts[0][:40], alternatives=alternatives))
        common = ("-config", "openssl.cnf")
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
        number = ("-set_serial", str(secrets.randbits(127)))
        _openssl(made, "req", "-x509", *common, "-section", "authority", *key, *number, "-keyout", "ca.key",
                 "-days", str(_DAYS["authority"]), "-out", "ca.crt")  # fmt: skip
        _openssl(
            made, "req", "-new", *common, "-section", "server", *key, "-keyout", "server.key", "-out", "server.csr"
        )
        number = ("-set_serial", str(secrets.randbits(127)))
        _openssl(made, "x509", "-req", "-in", "server.csr", "-CA", "ca.crt", "-CAkey", "ca.key", *number,
                 "-days", str(_DAYS["server"]), "-extfile", "openssl.cnf", "-extensions", "for_server",
                 "-out", "server.crt")  # fmt: skip
        return {
            "ca.crt": File((made / "ca.crt").read_bytes()),
            "config/server.crt": File((made / "server.crt").read_bytes()),
            "secrets/ca.key": File((made / "ca.key").read_bytes(), 0o600),
            "secrets/server.key": File((made / "server.key").read_bytes(), 0o400),
        }


_OPENSSL_CNF: Final = """\
[authority]
prompt = no
distinguished_name = authority_name
x509_extensions = for_authority
[authority_name]
CN = Lockgate CA of {host}
[for_authority]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
prompt = no
distinguished_name = server_name
[server_name]
CN = {host}
[for_server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = {alternatives}
"""


def _openssl(folder: Path, *words: str) -> None:
    done = subprocess.run(["openssl", *words], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"openssl {words[0]} failed: {done.stderr.strip()}")


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
    paths |= {path.parent for path in paths} - {folder}
    for path in paths:
        if path.is_dir():
            path.chmod(0o755)  # whatever the umask is
    (folder / "access").chmod(0o750)
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
        yield "  In the vendor's console, give the tunnel's public host name the service http://broker:9001."
        yield "  Devices connect to wss://HOST/mqtt, HOST being that name."
