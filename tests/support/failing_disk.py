"""A disk that fails when it is told to, under one process and one folder (failing_disk.c, by LD_PRELOAD)."""

from __future__ import annotations

import errno
import mmap
import shutil
import struct
import subprocess
import time
from pathlib import Path
from typing import Final

import pytest

WRITE: Final = 1
SYNC: Final = 2
TRUNCATE: Final = 4
EVER: Final = 1 << 62

_NOTHING, _ERROR, _SHORT, _LIE = range(4)
_FORMAT = struct.Struct("iiii qqq")
_STRUCK_AT = struct.calcsize("iiii qq")


def compile_shim(folder: Path) -> Path:
    """The shim as a library; the test is skipped where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the shim that fails")
    library = folder / "failing_disk.so"
    source = Path(__file__).with_name("failing_disk.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-Wall", "-o", library, source, "-ldl"], check=True)
    return library


class FailingDisk:
    """Orders for the shim; `environment` brings them to a process."""

    def __init__(self, library: Path, store: Path, orders: Path) -> None:
        orders.write_bytes(bytes(_FORMAT.size))
        self.environment = {
            "LD_PRELOAD": str(library),
            "FAILING_DISK_FOLDER": str(store),
            "FAILING_DISK_ORDERS": str(orders),
        }
        with orders.open("r+b") as file:
            self._orders = mmap.mmap(file.fileno(), _FORMAT.size)

    def fail(self, operations: int, error: int = errno.EIO, *, after: int = 0, times: int = EVER) -> None:
        """From now on let `after` calls pass, then fail `times` of them."""
        self._order(_ERROR, operations, error, after, times)

    def write_short(self, *, after: int = 0, times: int = EVER) -> None:
        """Writes stop half-way without an error, as on a disk that is nearly full."""
        self._order(_SHORT, WRITE, 0, after, times)

    def lie(self) -> None:
        """Syncs say that they succeeded and do nothing."""
        self._order(_LIE, SYNC, 0, 0, EVER)

    def recover(self) -> None:
        """All is well again."""
        self._order(_NOTHING, 0, 0, 0, 0)

    @property
    def struck(self) -> int:
        """How many calls have failed since the last order."""
        count: int = struct.unpack_from("q", self._orders, _STRUCK_AT)[0]
        return count

    def wait_struck(self, count: int = 1, seconds: float = 15.0) -> None:
        """Return once so many calls have failed."""
        deadline = time.monotonic() + seconds
        while self.struck < count:
            assert time.monotonic() < deadline, f"only {self.struck} of {count} calls failed"
            time.sleep(0.001)

    def _order(self, kind: int, operations: int, error: int, after: int, times: int) -> None:
        self._orders[0:4] = struct.pack("i", _NOTHING)  # nothing is struck by half an order
        self._orders[4:] = _FORMAT.pack(0, operations, error, 0, after, times, 0)[4:]
        self._orders[0:4] = struct.pack("i", kind)

    def close(self) -> None:
        self._orders.close()
