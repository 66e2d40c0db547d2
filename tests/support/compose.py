"""Stacks of Docker Compose, by whichever version of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.support.docker import docker, image


def old_compose() -> str | None:
    """Give Debian's program, version 1.29."""
    return shutil.which("docker-compose", path="/usr/bin")


def new_compose() -> str | None:
    """Give version 5, as the extra `dev` installs it."""
    beside = Path(sys.executable).with_name("docker-compose")
    return str(beside) if beside.exists() else None


class Stack:
    """A stack that `lockgate init` has written, under a name of its own."""

    def __init__(
        self, folder: Path, stack: str, options: Sequence[str] = ("--host", "gw.example"), **environment: str
    ) -> None:
        """`options` of `lockgate init`; one of brokers gets a device `pump`."""
        found = old_compose()
        if found is None:
            pytest.skip("docker-compose is not installed (Debian: apt-get install docker-compose)")
        self.program = found
        self.folder = folder
        self.name = f"lockgatetest{uuid4().hex[:8]}"
        self.environment = {
            **os.environ,
            "LOCKGATE_IMAGE": image(),
            "LOCKGATE_HEALTH_INTERVAL": "1s",
            **environment,
        }
        words = ["init", str(folder), "--stack", stack, "--non-interactive", *options]
        words += ["--device", "pump"] if stack != "edge" else []
        self.said = subprocess.run(
            [sys.executable, "-m", "lockgate", *words], capture_output=True, text=True, check=True, env=self.environment
        ).stdout
        self.passwords = dict(re.findall(r"^  (\S+) +([A-Za-z0-9]{20})$", self.said, re.M))

    def compose(self, *words: str) -> str:
        """Run docker-compose; gives its output and errors together, and fails with them."""
        done = self._run(*words)
        if done.returncode:
            pytest.fail(f"docker-compose {' '.join(words)}: {done.stdout}\n{self._run('logs', '--no-color').stdout}")
        return done.stdout

    def _run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [self.program, "-p", self.name, *words]
        out = subprocess.PIPE
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, stdout=out, stderr=subprocess.STDOUT, text=True, check=False
        )

    def up(self, services: Sequence[str]) -> None:
        """Start it, and wait until every service is well."""
        self.compose("up", "-d")
        for service in services:
            self.wait_healthy(service)

    def remove(self) -> None:
        """Remove it with its volumes, and the networks of every file that may have been used."""
        files = [word for path in sorted(self.folder.glob("*.yml")) for word in ("-f", path.name)]
        self.compose(*files, "down", "-v", "-t", "5")

    def inspect(self, service: str) -> dict[str, Any]:
        """Give what the engine knows of a service's container."""
        found: dict[str, Any] = json.loads(docker("inspect", f"{self.name}_{service}_1").stdout)[0]
        return found

    def execute(self, service: str, *words: str, check: bool = True) -> str:
        return docker("exec", f"{self.name}_{service}_1", *words, check=check).stdout

    def logs(self, service: str) -> str:
        return docker("logs", f"{self.name}_{service}_1").stdout

    def pid(self, service: str) -> int:
        """Give the process id of its first process as the host sees it; 0 while there is none."""
        return int(self.inspect(service)["State"]["Pid"])

    def address(self, service: str) -> str:
        """Give its address in the first of its networks."""
        return str(next(iter(self.inspect(service)["NetworkSettings"]["Networks"].values()))["IPAddress"])

    def wait_healthy(self, service: str, not_pid: int = 0, seconds: float = 30.0) -> None:
        """Wait until a service is well, and not by the process it was before."""
        deadline = time.monotonic() + seconds
        while True:
            state = self.inspect(service)["State"]
            if state["Health"]["Status"] == "healthy" and state["Pid"] not in (0, not_pid):
                return
            if time.monotonic() > deadline:
                pytest.fail(f"{service} does not get well: {state}\n{self.logs(service)}")
            time.sleep(0.1)
