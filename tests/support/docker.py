"""Containers of the image, through the `docker` program."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Sequence
from typing import Any, Self
from uuid import uuid4

import pytest

WAIT_SECONDS = 20.0


def docker(*words: str, check: bool = True, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run `docker`, with its output and errors together; fails with them unless `check` is False."""
    done = subprocess.run(
        ["docker", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, input=text, check=False
    )
    if check and done.returncode:
        pytest.fail(f"docker {' '.join(words)}: {done.stdout}")
    return done


def image(suffix: str = "") -> str:
    """Give the image to be tested, or with "-small" the one of the broker alone; without one the test is skipped."""
    name = os.environ.get("LOCKGATE_IMAGE")
    if not name:
        pytest.skip("no image was built: make test-containers")
    return name + suffix


class Container:
    """A container that runs until it is left; then it is removed with its volumes."""

    def __init__(self, *words: str, command: Sequence[str] = (), of: str = "") -> None:
        """`words` are options of `docker run`, `of` an image that is not the one to be tested."""
        self.name = f"lockgate-test-{uuid4().hex[:12]}"
        docker("run", "-d", "--name", self.name, *words, of or image(), *command)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        docker("rm", "-f", "-v", self.name, check=False)

    def logs(self) -> str:
        """Give all it has written."""
        return docker("logs", self.name).stdout

    def wait_for(self, line: str, count: int = 1, seconds: float = WAIT_SECONDS) -> str:
        """Give what it has written, once something occurs there so often."""
        deadline = time.monotonic() + seconds
        while (written := self.logs()).count(line) < count:
            if time.monotonic() > deadline or not self.running():
                pytest.fail(f"{line!r} does not come from {self.name}: {written}")
            time.sleep(0.05)
        return written

    def wait_for_end(self, seconds: float = WAIT_SECONDS) -> int:
        """Give its exit status, once it has ended."""
        done = subprocess.run(
            ["docker", "wait", self.name], capture_output=True, text=True, timeout=seconds, check=True
        )
        return int(done.stdout)

    def inspect(self) -> dict[str, Any]:
        """Give what the engine knows of it."""
        found: dict[str, Any] = json.loads(docker("inspect", self.name).stdout)[0]
        return found

    def running(self) -> bool:
        """Whether it has not ended."""
        return bool(self.inspect()["State"]["Running"])

    def pid(self) -> int:
        """Give the process id of its first process, as the host sees it."""
        pid = int(self.inspect()["State"]["Pid"])
        assert pid > 1
        return pid

    def port(self, inside: int = 1883) -> int:
        """Give the host's port that is published for one of its own."""
        ports = self.inspect()["NetworkSettings"]["Ports"]
        return int(ports[f"{inside}/tcp"][0]["HostPort"])

    def execute(self, *words: str, options: Sequence[str] = (), check: bool = True) -> str:
        """Run a program in it; gives its output."""
        return docker("exec", *options, self.name, *words, check=check).stdout

    def proc_status(self) -> dict[str, str]:
        """Give /proc/PID/status of its first process."""
        with open(f"/proc/{self.pid()}/status") as lines:
            return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def wait_for_health(self, state: str, seconds: float = WAIT_SECONDS) -> str:
        """Give what the health check said, once the engine calls the container `healthy` or `unhealthy`."""
        deadline = time.monotonic() + seconds
        while (health := self.inspect()["State"]["Health"])["Status"] != state:
            if time.monotonic() > deadline:
                pytest.fail(f"{self.name} does not get {state}: {health}")
            time.sleep(0.1)
        return str(health["Log"][-1]["Output"])

    def stop(self, seconds: int = 10) -> float:
        """`docker stop` with a grace period; gives the seconds it took."""
        before = time.monotonic()
        docker("stop", "-t", str(seconds), self.name)
        return time.monotonic() - before
