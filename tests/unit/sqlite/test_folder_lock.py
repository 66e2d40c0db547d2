"""One writer process for each folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lockgate.sqlite import FolderInUse, FolderLock

HOLDER = """
import sys
from pathlib import Path
from lockgate.sqlite import FolderLock
lock = FolderLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_the_second_writer_is_told_who_the_first_is(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(FolderInUse, match=f"process {holder.pid} ") as caught:
            FolderLock(tmp_path).acquire()
        assert caught.value.pid == holder.pid
    finally:
        holder.kill()
        holder.wait(10)
    FolderLock(tmp_path).acquire()  # a lock dies with its process


def test_a_released_folder_can_be_taken(tmp_path: Path) -> None:
    first, second = FolderLock(tmp_path), FolderLock(tmp_path)
    first.acquire()
    with pytest.raises(FolderInUse):
        second.acquire()
    first.release()
    second.acquire()
