"""A second Docker Engine, on a small disk of its own, whose power can be cut."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.disks import disk_trouble, make_image, mounted
from tests.support.docker import docker

BRIDGE, ADDRESS = "lgdeploy0", "172.31.98.1/24"


class OtherEngine:
    """Ends with the block in which `other_engine` gives it."""

    def __init__(self, folder: Path, disk: Path) -> None:
        self.disk = disk
        self.socket = folder / "docker.sock"
        self.url = f"unix://{self.socket}"
        self._run_dir = folder / "exec"
        self._log = folder / "dockerd.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers; containers that start with it do so now."""
        # never --bridge=none: it would take the other engine's bridge away
        with self._log.open("ab") as stream:
            self._process = subprocess.Popen(
                ["dockerd", "-H", self.url, "--data-root", str(self.disk / "docker"), "--exec-root", str(self._run_dir),
                 "--pidfile", f"{self._run_dir}.pid", f"--bridge={BRIDGE}", "--iptables=false", "--ip-masq=false"],
                stdout=stream, stderr=stream, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 30.0
        while self.docker("version", check=False).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                pytest.skip(f"a second engine does not start here: {self._log.read_text()[-500:]}")
            time.sleep(0.1)

    def docker(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return docker("-H", self.url, *words, check=check)

    def load(self, image: str) -> None:
        """Take an image over from the other engine."""
        with subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE) as saving:
            subprocess.run(
                ["docker", "-H", self.url, "load", "-q"], stdin=saving.stdout, check=True, capture_output=True
            )

    def running(self, project: str) -> list[dict[str, Any]]:
        """Give what the engine knows of the containers of a project that run."""
        listed = self.docker("ps", "-q", "--filter", f"label=com.docker.compose.project={project}").stdout.split()
        found: list[dict[str, Any]] = json.loads(self.docker("inspect", *listed).stdout) if listed else []
        return found

    def cut_power(self) -> None:
        """kill -9 for the engine and everything it has started; what lies in memory is gone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._clear()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            for one in self.docker("ps", "-a", "-q").stdout.split():
                self.docker("rm", "-f", "-v", one, check=False)
            self._process.terminate()
            self._process.wait(20)
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._clear()

    def _pids(self) -> Iterator[int]:
        """Give the processes that this engine started: they name its folder, or are children of such."""
        ours = {
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit() and os.fsencode(self._run_dir) in _read(entry / "cmdline")
        }
        parents = {
            int(entry.name): int(stat.rpartition(b")")[2].split()[1])
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit() and (stat := _read(entry / "stat"))
        }
        while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
            ours |= more
        yield from ours - {os.getpid()}

    def _clear(self) -> None:
        """What a machine that starts again has nothing of: mounts, and what lies in memory."""
        for _ in range(3):
            for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
                point = line.split()[1]
                if point.startswith((f"{self.disk}/", f"{self._run_dir}/")):
                    subprocess.run(["umount", "-l", point], check=False, capture_output=True)
        shutil.rmtree(self._run_dir, ignore_errors=True)
        Path(f"{self._run_dir}.pid").unlink(missing_ok=True)
        self.socket.unlink(missing_ok=True)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has just ended
        return b""


@contextlib.contextmanager
def other_engine(folder: Path, mebibytes: int) -> Iterator[OtherEngine]:
    """Give an engine whose images and containers lie on a disk of that size."""
    trouble = disk_trouble()
    if trouble:
        pytest.skip(trouble)
    subprocess.run(["ip", "link", "add", BRIDGE, "type", "bridge"], check=False, capture_output=True)
    subprocess.run(["ip", "address", "add", ADDRESS, "dev", BRIDGE], check=False, capture_output=True)
    subprocess.run(["ip", "link", "set", BRIDGE, "up"], check=True)
    try:
        with mounted(make_image(folder / "disk", mebibytes), folder / "mount") as disk:
            engine = OtherEngine(folder, disk)
            try:
                engine.start()
                yield engine
            finally:
                engine.stop()
    finally:
        subprocess.run(["ip", "link", "delete", BRIDGE], check=False)
