"""Marks that another system left: paths of Windows, byte order marks, line ends, folders in place of files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from lockgate.doctor.case import Case
from lockgate.doctor.finding import Finding
from lockgate.doctor.machine import Machine

_BOM = b"\xef\xbb\xbf"
_DRIVE = re.compile(r"(?:[A-Za-z]:[\\/]|\\\\|/(?:[a-z]|mnt/[a-z]|host_mnt/[a-z]|run/desktop)/)")
_OPTIONS = (
    *("acl_file", "password_file", "cafile", "capath", "certfile", "keyfile", "crlfile", "http_dir", "pid_file"),
    *("persistence_location", "include_dir", "bridge_cafile", "bridge_capath", "bridge_certfile", "bridge_keyfile"),
    *("plugin_opt_config_file", "plugin_opt_password_init_file", "plugin_opt_acl_file", "plugin_opt_password_file"),
)
_COMPOSE = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")
# a bind mount in its short form: `- C:\home\mosquitto:/mosquitto/config`
_VOLUME = re.compile(r"""^\s*-\s+["']?(?P<source>(?:[A-Za-z]:[\\/]|/[a-z]/|\.?\\)[^"']*?):(?P<target>/[^"':]*)""")
_SOURCE = re.compile(r"""^\s*source:\s+["']?(?P<source>(?:[A-Za-z]:[\\/]|/[a-z]/|\.?\\)[^"']*?)["']?\s*$""")


def a_folder_instead(path: Path, machine: Machine) -> Finding:
    """Make the finding for a folder where a configuration file should be."""
    where = "here" if machine.in_container else "on this machine"
    return Finding(
        "folder", "error", os.fspath(path), f"{path} is a folder, and should be a file",
        "Docker makes an empty folder of a bind mount's name when there is no such file on the machine",
        f"stop the container, `rmdir` the folder {where} (and the one that is mounted), make the file, and start again",
    )  # fmt: skip


def folders(case: Case) -> Iterator[Finding]:
    """Say which files of the configuration are folders, as Docker makes them."""
    named = [*_OPTIONS[:2], "cafile", "certfile", "keyfile", "crlfile", "bridge_cafile"]
    for line in case.lines(*named, "bridge_certfile", "bridge_keyfile", "plugin_opt_config_file"):
        path = case.locate(Path(line.value))
        if line.value and path.is_dir():
            found = a_folder_instead(path, case.machine)
            yield Finding(
                found.check, "error", f"{line.path}:{line.number}", found.problem, found.why, found.advice
            )  # fmt: skip


def paths(case: Case) -> Iterator[Finding]:
    """Say which options hold a path in a form that only Windows, or Docker on Windows, understands."""
    for line in case.lines(*_OPTIONS, "log_dest"):
        value = line.value.removeprefix("file ") if line.name == "log_dest" else line.value
        backslash = "\\" in value
        if (not _DRIVE.match(value) and not backslash) or os.path.exists(value):
            continue
        where = f"{line.path}:{line.number}"
        yield Finding(
            "windows-path", "error", where, f"{line.name} {value} is a path of Windows",
            "the broker runs on Linux, in the container too, and finds nothing there",
            f"the path inside the container, with slashes, as {_inside(line.name, value)}",
        )  # fmt: skip


def _inside(option: str, value: str) -> str:
    if option == "persistence_location":
        return "/mosquitto/data/"
    name = re.split(r"[\\/]", value.rstrip("\\/"))[-1] or "FILE"
    return f"/mosquitto/{'log' if option == 'log_dest' else 'config'}/{name}"


def line_ends(case: Case) -> Iterator[Finding]:
    """Say which files begin with a byte order mark, or have the line ends of Windows."""
    files = [case.path, *(line.path for line in (case.setup.lines if case.setup is not None else ()))]
    files += [case.conf] if case.conf is not None else []
    files += [case.locate(Path(line.value)) for line in case.lines("acl_file", "password_file")]
    for path in dict.fromkeys(files):
        try:
            data = path.read_bytes()
        except OSError:  # said elsewhere
            continue
        if data.startswith(_BOM):
            yield Finding(
                "byte-order-mark", "error", f"{path}:1", f"{path} begins with a byte order mark (UTF-8 BOM)",
                "it becomes part of the first word, which is then none that the broker knows",
                f"save it as UTF-8 without BOM, or: sed -i '1s/^\\xef\\xbb\\xbf//' {path}",
            )  # fmt: skip
        elif data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            yield Finding(
                "byte-order-mark", "error", f"{path}:1", f"{path} is UTF-16, as some editors of Windows write it",
                "the broker reads UTF-8", f"save it as UTF-8, or: iconv -f UTF-16 -t UTF-8 {path} > NEW",
            )  # fmt: skip
        first = data.find(b"\r\n")
        if first >= 0:
            number = data.count(b"\n", 0, first) + 1
            yield Finding(
                "line-ends", "warning", f"{path}:{number}", f"{path} has the line ends of Windows (CR LF)",
                "this broker takes them; scripts, other programs and older versions of Mosquitto stumble over them",
                f"sed -i 's/\\r$//' {path}",
            )  # fmt: skip


def compose(case: Case) -> Iterator[Finding]:
    """Say which bind mounts of a compose file beside the configuration have a path of Windows."""
    folder = (case.conf or case.path).absolute().parent
    for file in (place / name for place in (folder, folder.parent) for name in _COMPOSE):
        try:
            lines = file.read_text(errors="replace").splitlines()
        except OSError:
            continue
        for number, line in enumerate(lines, start=1):
            match = _VOLUME.match(line) or _SOURCE.match(line)
            if match is None or os.path.exists(match["source"]):
                continue
            yield Finding(
                "windows-path", "error", f"{file}:{number}", f"the bind mount {match['source']} is a path of Windows",
                "Docker on Linux makes a new, empty folder of that name, and the container sees nothing of yours",
                "a path of this machine, with slashes, or one that begins with ./",
            )  # fmt: skip
