"""`kill -9` of the writer: everything whose append was confirmed is there afterwards, once and in order."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from pathlib import Path

import pytest

from lockgate.buffer import LogReader
from lockgate.buffer.ledger import read_ledger
from tests.support.buffers import open_log

WRITER = """
import asyncio, sys
from pathlib import Path
from tests.support.buffers import batch, open_log

async def main() -> None:
    log = await open_log(Path(sys.argv[1]), segment_bytes=65536)
    while True:
        payloads = [b"x" * 700] * 7
        first = await log.append(batch(*payloads))
        print(first + len(payloads) - 1, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("seed", range(4))
def test_what_was_confirmed_survives(tmp_path: Path, seed: int) -> None:
    confirmed = 0
    for round_number in range(2):
        lines = random.Random(seed * 2 + round_number).randrange(1, 120)
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        try:
            assert writer.stdout is not None
            for _ in range(lines):
                confirmed = int(writer.stdout.readline())
        finally:
            writer.kill()
            rest = writer.communicate(timeout=10)[0].split("\n")[:-1]
        confirmed = int(rest[-1]) if rest else confirmed

        reader = LogReader(tmp_path)  # before anything was mended
        kept = [row.seq for row in reader.read("telemetry", 0, 1_000_000, limit_bytes=1 << 40)]
        assert kept == list(range(1, len(kept) + 1))
        assert len(kept) >= confirmed
        assert len(kept) % 7 == 0  # an append is whole or not there
        assert read_ledger(tmp_path).intake.received == len(kept)
        reader.close()
    asyncio.run(reopen(tmp_path, len(kept)))


async def reopen(folder: Path, kept: int) -> None:
    log = await open_log(folder)
    assert log.state.next_seq == kept + 1
    assert not log.status()["damaged"]
    await log.close()
