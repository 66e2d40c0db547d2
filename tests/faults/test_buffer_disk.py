"""A disk that is full, or fails: the log waits or gives up what it may, and what it confirmed stays."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lockgate.buffer import Cursor, Log, LogReader
from lockgate.buffer.ledger import read_ledger
from lockgate.config.model import ClassConfig
from tests.support.buffers import SINKS, batch, config
from tests.support.disks import disk_trouble, fill, memory_disk
from tests.support.failing_disk import SYNC, WRITE, FailingDisk, compile_shim

full_disk = pytest.mark.skipif(bool(disk_trouble()), reason=disk_trouble() or "-")


async def open_on(disk: Path, *limits: ClassConfig) -> Log:
    settings = replace(config(segment_bytes=256 * 1024), limits=limits)
    return await Log.open(disk / "buffer", settings, SINKS, maintain_seconds=0.1)


@full_disk
async def test_on_a_full_disk_the_class_that_may_gives_way_and_alarms_are_kept(tmp_path: Path) -> None:
    with memory_disk(tmp_path / "disk", 8) as disk:
        log = await open_on(disk, ClassConfig(name="telemetry", when_full="drop-oldest"))
        reader = LogReader(disk / "buffer")
        cursor = await Cursor.open(disk / "buffer", "cloud", SINKS["cloud"], reader)
        fill_up = disk / "others"
        with fill_up.open("wb") as file:  # what others keep on the disk
            file.write(bytes(2 * 1024 * 1024))
        for n in range(60):
            async with asyncio.timeout(20):
                await log.append(batch(*[b"x" * 1000] * 150))
                await log.append(batch(b"%d" % n, message_class="alarm"))
        ledger = read_ledger(disk / "buffer")
        assert ledger.closes, ledger
        assert [row.payload for row in reader.read("alarm", 0, 1000)] == [b"%d" % n for n in range(60)]
        assert sum(ledger.deliveries[1].dropped.values()) > 3000
        assert ledger.deliveries[1].addressed == 9000
        reader.close()
        await cursor.close()
        await log.close()


@full_disk
async def test_on_a_full_disk_the_sinks_go_on_and_make_room(tmp_path: Path) -> None:
    with memory_disk(tmp_path / "disk", 8) as disk:
        log = await open_on(disk)
        reader = LogReader(disk / "buffer")
        cursor = await Cursor.open(disk / "buffer", "cloud", SINKS["cloud"], reader)
        confirmed = 0
        waiting: asyncio.Task[int] | None = None
        while waiting is None:
            task = asyncio.create_task(log.append(batch(*[b"x" * 1000] * 100)))
            done, _ = await asyncio.wait({task}, timeout=3)
            if done:
                confirmed = task.result() + 99
            else:
                waiting = task
        assert "disk" in str(log.status()["waiting"])
        fill(disk / "others")  # whatever the reserve gave up is taken by somebody else, all but a little
        os.truncate(disk / "others", max(0, (disk / "others").stat().st_size - 512 * 1024))
        while rows := reader.read("telemetry", cursor.position("telemetry").seq, 100):
            await cursor.settle(rows)
        (disk / "others").unlink()
        async with asyncio.timeout(20):
            while not waiting.done():
                reader.last_seq()  # as the forwarder does, which lets go of what was purged
                await asyncio.wait({waiting}, timeout=0.1)
        assert waiting.result() == confirmed + 1
        assert log.status()["waiting"] is None
        ledger = read_ledger(disk / "buffer")
        assert ledger.closes
        assert (ledger.deliveries[1].addressed, ledger.deliveries[1].dropped) == (confirmed + 100, {})
        assert (disk / "buffer" / "lockgate.reserve").exists()
        reader.close()
        await cursor.close()
        await log.close()


WRITER = """
import asyncio, sys
from pathlib import Path
from tests.support.buffers import batch, open_log

async def main() -> None:
    log = await open_log(Path(sys.argv[1]), segment_bytes=65536)
    print("open", flush=True)
    while True:
        first = await log.append(batch(*[b"x" * 700] * 7))
        print(first + 6, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("operations", [WRITE, SYNC, WRITE | SYNC])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_errors_of_the_disk_lose_nothing_that_was_confirmed(tmp_path: Path, operations: int, error: int) -> None:
    folder = tmp_path / "buffer"
    folder.mkdir()
    disk = FailingDisk(compile_shim(tmp_path), folder, tmp_path / "orders")
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, **disk.environment, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        for _ in range(3):
            for _ in range(20):
                confirmed = int(writer.stdout.readline())
            disk.fail(operations, error, after=3, times=2)
            disk.wait_struck(1)
            disk.recover()
        for _ in range(30):
            confirmed = int(writer.stdout.readline())
    finally:
        writer.kill()
        rest = writer.communicate(timeout=10)[0].split("\n")[:-1]
        disk.close()
    confirmed = int(rest[-1]) if rest else confirmed
    reader = LogReader(folder)
    kept = [row.seq for row in reader.read("telemetry", 0, 1_000_000, limit_bytes=1 << 40)]
    reader.close()
    assert kept == list(range(1, len(kept) + 1))
    assert len(kept) >= confirmed
    assert len(kept) % 7 == 0
    assert read_ledger(folder).intake.logged == len(kept)
