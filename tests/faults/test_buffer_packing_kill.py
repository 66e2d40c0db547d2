"""`kill -9` at each step of compressing a segment and of making it plain again: no row is lost or there twice."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lockgate.buffer import LogReader
from lockgate.buffer.ledger import read_ledger
from lockgate.buffer.packed import PACKING, UNPACKED, segment_file
from lockgate.buffer.segments import list_segments
from tests.support.buffers import batch, open_log

ROWS = 280
# What the program does to files from here on; it is killed before, or right after, the step of this number.
PACKER = """
import asyncio, os, pathlib, signal, sys
from pathlib import Path

STEP, AFTER, COMPRESSED = int(sys.argv[2]), sys.argv[3] == "after", sys.argv[4] == "zstd"
count = 0

def counted(name, real):
    def step(*args, **kwargs):
        global count
        count += 1
        mine = count
        if mine == STEP and not AFTER:
            print("killed before", name, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if mine == STEP and AFTER:
            print("killed after", name, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return step

async def main():
    from lockgate.buffer import packed, packer
    from tests.support.buffers import open_log

    log = await open_log(Path(sys.argv[1]), compressed=COMPRESSED)
    os.rename = counted("rename", os.rename)
    os.fsync = counted("fsync", os.fsync)
    packer.sync_folder = counted("sync_folder", packer.sync_folder)
    pathlib.Path.unlink = counted("unlink", pathlib.Path.unlink)
    packed._pieces = counted("reading", packed._pieces)
    while await log.pack():
        pass
    print("done", flush=True)

asyncio.run(main())
"""
STEPS = range(1, 40)


async def fill(folder: Path) -> None:
    log = await open_log(folder, compressed=True)
    for start in range(0, ROWS, 40):
        await log.append(batch(*(b"%06d" % n + b"x" * 900 for n in range(start, start + 40))))
        await log.maintain()
    await log.close()


def kept(folder: Path) -> list[int]:
    reader = LogReader(folder)
    found: list[int] = []
    after = 0
    while rows := reader.read("telemetry", after, 50):
        found += [int(row.payload[:6]) for row in rows]
        after = rows[-1].seq
    reader.close()
    return found


async def look(folder: Path, *, compressed: bool) -> None:
    """Whatever was left is read as it is, before anything is mended and after; then the work is taken up again."""
    assert kept(folder) == [*range(ROWS)]
    assert read_ledger(folder).intake.logged == ROWS
    log = await open_log(folder, compressed=compressed)
    assert not log.status()["damaged"]
    assert log.state.next_seq == ROWS + 1
    assert not [*folder.glob(f"*{PACKING}"), *folder.glob(f"*{UNPACKED}")]
    for number in list_segments(folder):
        assert len(list(folder.glob(f"segment-{number:06}.sqlite*zst"))) == (
            segment_file(folder, number).suffix == ".zst"
        )
    while await log.pack():
        pass
    await log.close()
    assert kept(folder) == [*range(ROWS)]


def run(folder: Path, step: int, when: str, compression: str) -> str:
    command = [sys.executable, "-c", PACKER, str(folder), str(step), when, compression]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=30, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done
    return done.stdout


@pytest.mark.parametrize("when", ["before", "after"])
def test_no_row_is_lost_while_segments_are_compressed(tmp_path: Path, when: str) -> None:
    seen = set()
    for step in STEPS:
        folder = tmp_path / str(step)
        asyncio.run(fill(folder))
        said = run(folder, step, when, "zstd")
        seen.add(said.strip())
        asyncio.run(look(folder, compressed=True))
        if said == "done\n":
            break
    assert seen >= {f"killed {when} {what}" for what in ("rename", "fsync", "sync_folder", "unlink", "reading")}
    assert "done" in seen


@pytest.mark.parametrize("when", ["before", "after"])
def test_no_row_is_lost_while_they_are_made_plain(tmp_path: Path, when: str) -> None:
    seen = set()
    for step in STEPS:
        folder = tmp_path / str(step)
        asyncio.run(fill(folder))
        assert run(folder, 0, when, "zstd") == "done\n"
        numbers = list_segments(folder)
        assert [segment_file(folder, number).suffix for number in numbers[2:4]] == [".zst"] * 2
        for number in numbers[:2]:  # so that the next two are the first that are needed
            segment_file(folder, number).rename(folder / f"aside-{number}")
        said = run(folder, step, when, "none")
        seen.add(said.strip())
        for number in numbers[:2]:
            (folder / f"aside-{number}").rename(folder / f"segment-{number:06}.sqlite")
        asyncio.run(look(folder, compressed=False))
        if said == "done\n":
            break
    assert seen >= {f"killed {when} {what}" for what in ("rename", "fsync", "sync_folder", "unlink", "reading")}
    assert "done" in seen
