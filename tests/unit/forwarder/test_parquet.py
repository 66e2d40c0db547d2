"""Parquet as pyarrow reads it back: one schema, whatever the messages are."""

from __future__ import annotations

import datetime
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lockgate.buffer import Batch, Entry, Log
from lockgate.config.model import FileSinkConfig
from lockgate.telemetry.clock import Clock
from tests.support.buffers import batch
from tests.unit.forwarder.test_forwarder import CLASSES, forwarding, log, numbers, settled, until

pq = pytest.importorskip("pyarrow.parquet")
__all__ = ["log"]

SCHEMA = [
    ("id", "string", False), ("topic", "string", False), ("class", "string", False),
    ("time", "timestamp[ms, tz=UTC]", False), ("clock_ok", "bool", False),
    ("device_time", "timestamp[ms, tz=UTC]", True),
    ("payload", "string", True), ("payload_raw", "binary", True),
]  # fmt: skip


def sink(folder: Path, **options: Any) -> FileSinkConfig:
    return FileSinkConfig(
        name="cloud", classes=CLASSES, path=folder, format="parquet", retry_min_seconds=0.01, retry_max_seconds=0.05,
        **options,
    )  # fmt: skip


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.parquet"))


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
async def test_each_batch_is_a_file_of_the_same_schema(tmp_path: Path, log: Log, compression: Any) -> None:
    moment = Clock().now()
    entries = [
        Entry("t/1", "telemetry", "s", b'{"v": 1.5}', device_ts=1_767_225_600_123),
        Entry("t/2", "telemetry", "s", b"\xff\x00"),
        Entry("t/3", "telemetry", "s", "es ist ü".encode()),
    ]
    await log.append(Batch(moment=moment, entries=entries, intake=Counter({("received", ""): 3, ("logged", ""): 3})))
    await log.append(batch(*numbers(1, 2), topic="u"))
    folder = tmp_path / "archive"
    async with forwarding(tmp_path, sink(folder, batch=3, compression=compression)) as forwarder:
        await settled(tmp_path, forwarder)
    first, second = files(folder)
    assert [path.name for path in (first, second)] == [
        "gw-000000000001-000000000003.parquet", "gw-000000000004-000000000005.parquet"
    ]  # fmt: skip
    assert first.relative_to(folder).parts[:2] == ("telemetry", f"{datetime.datetime.now(datetime.UTC):%Y}")
    for path in (first, second):
        file = pq.ParquetFile(path)
        assert [(one.name, str(one.type), one.nullable) for one in file.schema_arrow] == SCHEMA
        used = {"none": "UNCOMPRESSED"}.get(compression, compression.upper())
        assert file.metadata.row_group(0).column(0).compression == used
    table = pq.read_table(first).to_pydict()
    assert table["id"] == ["gw/1", "gw/2", "gw/3"]
    assert table["topic"] == ["t/1", "t/2", "t/3"]
    assert table["payload"] == ['{"v": 1.5}', None, None]
    assert table["payload_raw"] == [None, b"\xff\x00", "es ist ü".encode()]
    assert table["device_time"] == [datetime.datetime(2026, 1, 1, 0, 0, 0, 123_000, datetime.UTC), None, None]
    assert table["time"][0] == datetime.datetime.fromtimestamp(moment.wall_ns // 10**6 / 1000, datetime.UTC)
    assert pq.read_table(second)["payload"].to_pylist() == ["1", "2"]
    assert len(pq.read_table(folder)) == 5  # as one data set


async def test_a_folder_that_cannot_be_written_is_waited_for(tmp_path: Path, log: Log) -> None:
    folder = tmp_path / "archive"
    folder.write_text("in the way")
    await log.append(batch(*numbers(1)))
    async with forwarding(tmp_path, sink(folder)) as forwarder:
        await until(lambda: "archive: " in str(forwarder.status()))
        folder.unlink()
        await settled(tmp_path, forwarder)
    assert [path.name for path in files(folder)] == ["gw-000000000001-000000000001.parquet"]


def test_a_sink_of_json_lines_does_not_import_it() -> None:
    code = "import sys, lockgate.forwarder.sinks.file; sys.exit('pyarrow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
