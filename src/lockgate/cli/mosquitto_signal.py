"""`mosquitto_signal`: send a broker of this machine a signal by its meaning."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_SIGNALS: Final = {
    "config-reload": signal.SIGHUP,
    "log-rotate": signal.SIGRTMIN,
    "shutdown": signal.SIGTERM,
    "tree-print": signal.SIGUSR2,
}
_USAGE: Final = f"""mosquitto_signal sends a signal to brokers on this machine.

Usage: mosquitto_signal {{-a | -p <pid>}} <signal>

 -a : every process of mosquitto
 -p : the process of this number

Signals: {", ".join(_SIGNALS)}
"""


def main(words: list[str]) -> int:
    """Exit status 0 when somebody was told."""
    if words == ["--help"]:
        print(_USAGE)
        return 0
    pids: list[int] | None = None
    if words[:1] == ["-a"]:
        pids, rest = None, words[1:]
    elif words[:1] == ["-p"] and len(words) > 1 and words[1].isdecimal() and int(words[1]) > 0:
        pids, rest = [int(words[1])], words[2:]
    else:
        return _wrong("-a or -p PID must say which process")
    if rest == ["xtreport"]:
        return _wrong("xtreport asks for a report that this broker does not write")
    if len(rest) != 1 or rest[0] not in _SIGNALS:
        return _wrong(f"{' '.join(rest) or 'no signal'!r}, must be one of {', '.join(_SIGNALS)}")
    if pids is None:
        pids = list(_brokers())
        if not pids:
            print("Error: no broker runs here.", file=sys.stderr)
            return 1
    status = 0
    for pid in pids:
        try:
            os.kill(pid, _SIGNALS[rest[0]])
        except OSError as error:
            print(f"Error: process {pid}: {error.strerror}.", file=sys.stderr)
            status = 1
    return status


def _wrong(problem: str) -> int:
    print(f"Error: {problem}.\n\n{_USAGE}", file=sys.stderr)
    return 1


def _brokers() -> Iterator[int]:
    """The processes called mosquitto, be it Mosquitto itself or our program of that name."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal() or int(folder.name) == os.getpid():
            continue
        try:
            name = (folder / "comm").read_text().strip()
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if name == "mosquitto" or _is_ours(words):
            yield int(folder.name)


def _is_ours(words: list[str]) -> bool:
    """`mosquitto …` and `lockgate mosquitto …` in Python's hands."""
    names = [os.path.basename(word) for word in words[:4]]
    called = names[1:2] == ["mosquitto"] or ("lockgate", "mosquitto") in itertools.pairwise(names)
    return names[0].startswith("python") and called
