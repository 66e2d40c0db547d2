"""The test's side of a crowd of clients that runs in a process of its own.

FAULT_ROUNDS says how often a broker is killed in one test; FAULT_SEED repeats the decisions of a run, not its timing.
"""

from __future__ import annotations

import json
import os
import random
import select
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Final, Self

import pytest

ROUNDS: Final = int(os.environ.get("FAULT_ROUNDS", "20"))
SEED: Final = int(os.environ.get("FAULT_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)


class Crowd:
    """Publishers, subscribers and readers around a broker, and the oracle that watches them."""

    def __init__(self, port: int, seed: int, state: Path | None = None) -> None:
        """With `state`, the clients are those of an earlier `snapshot`."""
        self.seed = seed
        self.sums: Counter[str] = Counter()
        self.violations: Counter[str] = Counter()  # by kind
        self.report = ""
        command = [sys.executable, "-m", "tests.support.crowd", str(port), str(seed)]
        if state is not None:
            command.append(str(state))
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)
        self._pending = b""

    def __enter__(self) -> Self:
        self.settle()  # all subscriptions are there before the first message
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate(timeout=10)

    def load(self, acknowledgements: int, allowance: int, seconds: float = 30.0) -> None:
        """Return when so many further messages were acknowledged; the load goes on, up to `allowance` messages."""
        self._order(seconds, do="load", acknowledgements=acknowledgements, allowance=allowance)

    def settle(self, quiet_seconds: float = 4.0, seconds: float = 40.0) -> None:
        """End the load and wait until everybody has what is due, or nothing moves any more; then look at `report`."""
        self._order(seconds + 10, do="settle", quiet=quiet_seconds, limit=seconds)

    def round(self, number: int, what: str) -> None:
        """A new round begins: what follows belongs to it."""
        self._order(10, do="round", number=number, what=what)

    def happened(self, what: str) -> None:
        """Note what was done to the broker."""
        self._order(10, do="happened", what=what)

    def snapshot(self, image: Path, copy: Path, state: Path) -> None:
        """Copy a file by reflink, and all clients as they are at that very moment."""
        self._order(10, do="snapshot", image=str(image), copy=str(copy), state=str(state))

    def expect_no_violation(self, log: Path) -> None:
        """Fail with what the oracle tells and the broker's log, if there was any."""
        if self.report:
            lines = log.read_text(errors="replace").splitlines()
            told = [line for line in lines if " connected from " not in line and " disconnected" not in line]
            pytest.fail("\n".join([f"seed {self.seed}", self.report, "the broker's log:", *told[-60:]]))

    def _order(self, seconds: float, **order: Any) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pytest.fail("the crowd's process has ended")
        descriptor = self._process.stdout
        while b"\n" not in self._pending:
            ready, _, _ = select.select([descriptor], [], [], seconds)
            if not ready:
                pytest.fail(
                    f"seed {self.seed}: {order} is not done after {seconds} seconds; {self.sums}\n{self.report}"
                )
            data = os.read(descriptor.fileno(), 65536)
            if not data:
                pytest.fail("the crowd's process has ended")
            self._pending += data
        line, self._pending = self._pending.split(b"\n", 1)
        answer = json.loads(line)
        self.sums, self.violations = Counter(answer["sums"]), Counter(answer["violations"])
        self.report = answer["report"]
