"""`lockgate healthcheck`: asks the services that run here, each at its status socket, whether they are well.

It is also a program of its own, `python3 -I -S healthcheck.py`, for a container that is asked twice a minute: then
nothing is imported but what stands here.
"""

from __future__ import annotations

import json
import os
import socket
import sys

TYPE_CHECKING = False  # as in typing, whose import would take longer than all else here
if TYPE_CHECKING:
    import argparse

SECONDS = 3.0  # an answer takes less than a thousandth of that
VARIABLE = "LOCKGATE_GATEWAY_RUN_DIR"
ALIVE = "--alive"
EXPECTED = "services"  # the file, beside the sockets, that names who should be there; one in each line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dir", default=None, metavar="FOLDER", help=f"of the status sockets (default: ${VARIABLE})")
    parser.add_argument(
        ALIVE, action="store_true", help="that each service answers is enough: for whoever restarts what fails"
    )


def main(arguments: argparse.Namespace) -> int:
    """Exit status 1 where a service is missing or not well."""
    return check(arguments.dir or os.environ.get(VARIABLE, ""), arguments.alive)


def check(folder: str, alive: bool = False) -> int:
    """Print a line for each service whose status socket should lie in a folder; gives the exit status.

    With `alive` it is enough that each answers: a full disk is told, but whoever restarts what fails would only
    disconnect all clients for it.
    """
    lines: list[str] = []
    try:
        with open(f"{folder}/{EXPECTED}") as file:
            names = file.read().split()
    except OSError:
        names = []
    healthy = bool(names)
    if not names:
        lines.append(f"no service was started here: there is no {folder}/{EXPECTED}")
    for name in names:
        well, text = ask(name, f"{folder}/{name}.sock", alive)
        healthy = healthy and well
        lines.append(f"{name}: {text}")
    print("\n".join(lines))
    return 0 if healthy else 1


def ask(name: str, path: str, alive: bool = False) -> tuple[bool, str]:
    """Whether a service is well, or answers at all, and what there is to be said about it."""
    answer = b""
    try:
        _become_owner(path)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(SECONDS)
            connection.connect(path)
            connection.sendall(b'{"ask": "health"}\n')
            while chunk := connection.recv(65536):
                answer += chunk
    except TimeoutError:
        return False, f"no answer in {SECONDS:g} s, its loop is blocked"
    except FileNotFoundError:
        return False, "not ready, it has no status socket"
    except ConnectionRefusedError:
        return False, "it has ended without a word"
    except OSError as error:
        return False, f"{path} cannot be asked: {error.strerror}"
    try:
        said = json.loads(answer)
        problems = said["problems"]
    except (ValueError, LookupError, TypeError):
        return False, f"its answer makes no sense: {answer[:200]!r}"
    if problems:
        return alive, "; ".join(problems)
    words = ["well"]
    if "round_trip_us" in said:
        words.append(f"a message takes {said['round_trip_us']} µs")
    if said.get("last_commit_seconds_ago") is not None:
        words.append(f"last commit {said['last_commit_seconds_ago']:.0f} s ago")
    return True, ", ".join(words)


def _become_owner(path: str) -> None:
    """Be whose socket it is: root without its capabilities may not open what belongs to another user."""
    owner = os.stat(path)
    if os.geteuid() == 0 and owner.st_uid != 0:
        try:
            os.setgid(owner.st_gid)
            os.setuid(owner.st_uid)
        except PermissionError:
            pass  # then it is tried as root


if __name__ == "__main__":
    sys.exit(check(os.environ.get(VARIABLE, ""), ALIVE in sys.argv))
