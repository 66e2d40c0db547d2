"""Debian's mosquitto and ours from one configuration file, as processes whose ends and logs can be compared.

Above what a scenario writes both read `log_dest stderr`, `log_type all`, `persistence false`, since we keep everything
where nothing is said, and `user root` where the tests run as root, whose files nobody else may read. Left out of the
comparison of logs: times, ports of clients, versions, the protocol version as 2.0 counts it, and what we say would be
accepted.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from tests.support.peers import free_port, program

Maker = Literal["mosquitto", "ours"]
MAKERS: Final[tuple[Maker, ...]] = ("mosquitto", "ours")
_SECONDS: Final = 10.0
_RUNNING: Final = re.compile(rb" running$", re.MULTILINE)
_HEAD: Final = (
    "log_dest stderr\nlog_type all\npersistence false\n"  # 2.0 writes to standard output when a buffer is full
)


class Broker:
    """One broker of one maker; `{p}`, `{p2}`, `{p3}` in a text are its ports, `{dir}` its folder."""

    def __init__(self, maker: Maker, folder: Path, conf: str, files: Mapping[str, str]) -> None:
        self.maker = maker
        self.folder = folder
        folder.mkdir(parents=True)
        self.ports = {name: free_port() for name in ("p", "p2", "p3")}
        self.log = folder / "log"
        self.conf = folder / "mosquitto.conf"
        self._launched_at = 0  # bytes of the log before the last start
        self._read = 0  # lines of the log that `logged` has seen
        self._process: subprocess.Popen[bytes] | None = None
        for name, text in files.items():
            self.write(name, text)
        self.write("mosquitto.conf", conf)

    def filled(self, text: str) -> str:
        """Put in ports and folder."""
        for name, port in self.ports.items():
            text = text.replace(f"{{{name}}}", str(port))
        return text.replace("{dir}", str(self.folder))

    def write(self, name: str, text: str) -> None:
        """Write a file of the folder; the configuration gets its head, a file of passwords its hashes."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        text = self.filled(text)
        if name == "mosquitto.conf":
            text = f"{_HEAD}{'' if os.geteuid() == 0 else '#'}user root\n{text}"
        path.write_text("" if name == "passwords" else text)
        path.chmod(0o600)
        if name == "passwords":
            for line in text.splitlines():
                user, _, password = line.partition(":")
                command = [program("mosquitto_passwd"), "-b", str(path), user, password]
                subprocess.run(command, check=True, capture_output=True)

    # --- the process -------------------------------------------------------------------------------------------------

    def launch(self) -> subprocess.Popen[bytes]:
        """Start and do not wait."""
        if self.maker == "mosquitto":
            command = [program("mosquitto"), "-c", str(self.conf)]
        else:
            command = [sys.executable, "-m", "lockgate", "mosquitto", "-c", str(self.conf)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        with self.log.open("ab") as stream:
            self._launched_at = stream.tell()
            self._process = subprocess.Popen(
                command, stdout=stream, stderr=stream, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL
            )
        return self._process

    def start(self) -> None:
        """Start and wait until it says that it runs. Raises AssertionError, with the log."""
        assert self.wait(self.launch()) is None, self.log.read_text()

    def wait(self, process: subprocess.Popen[bytes]) -> int | None:
        """Give the exit status of a start that failed, None once the broker runs."""
        deadline = time.monotonic() + _SECONDS
        while (status := process.poll()) is None:
            assert time.monotonic() < deadline, self.log.read_text()
            # no connection is made to find out: 2.0 counts those that say nothing wrongly
            if _RUNNING.search(self.log.read_bytes(), self._launched_at):
                return None
            time.sleep(0.01)
        return status

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and give the exit status."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(number)
        return self._process.wait(_SECONDS)

    def ended(self) -> int | None:
        """Give the exit status when it ends within two seconds by itself, else None."""
        assert self._process is not None
        try:
            return self._process.wait(2)
        except subprocess.TimeoutExpired:
            return None

    # --- the log -----------------------------------------------------------------------------------------------------

    def lines(self) -> list[str]:
        """Give the lines of the log, normalised."""
        return [self.normalised(line) for line in self.log.read_text(errors="replace").splitlines()]

    def logged(self, pattern: str) -> str:
        """Wait for the next line that matches, and give it, or say that there is none."""
        deadline = time.monotonic() + 3.0
        while True:
            lines = self.lines()
            for at in range(self._read, len(lines)):
                if re.search(pattern, lines[at]):
                    self._read = at + 1
                    return lines[at]
            if time.monotonic() > deadline:
                return f"no line with {pattern}"
            time.sleep(0.01)

    def normalised(self, line: str) -> str:
        """Leave out the time, the folder, and the numbers of ports."""
        line = re.sub(r"^\d{9,}: |^\d{4}-\d\d-\d\dT[\d:+-]+: ", "", line)
        line = line.replace(str(self.folder), "DIR")
        for name, port in self.ports.items():
            line = re.sub(rf"\b{port}\b", f"{{{name}}}", line)
        line = re.sub(r"mosquitto version 2\.[\d.]+( \(lockgate [\d.]+\))?", "mosquitto version 2", line)
        line = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", line)
        if self.maker == "ours":
            line = re.sub(r" Accepted: .*", "", line)  # we go on and say what would be accepted
        else:
            line = re.sub(r"\(p([12]),", lambda found: f"(p{int(found[1]) + 2},", line)  # since 2.1 as CONNECT has it
        return re.sub(r"(auto-)?[0-9A-F]{8}(-[0-9A-F]{4}){3}-[0-9A-F]{12}", r"\1UUID", line)
