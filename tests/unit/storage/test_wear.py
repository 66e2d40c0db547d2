"""What the disk has to bear is counted, by the hour and by topics."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from lockgate.storage.changes import Batch
from lockgate.storage.wear import Wear, written_by_thread


@pytest.fixture
def minutes(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The minute it is, in a list of one."""
    now = [100.0]
    monkeypatch.setattr(time, "clock_gettime", lambda _clock: now[0] * 60)
    return now


def batch(**sizes: int) -> Batch:
    made = Batch(1)
    made.bytes_by_prefix = sizes
    return made


def test_commits_and_bytes_are_counted_in_all_and_by_prefix(minutes: list[float]) -> None:
    wear = Wear()
    wear.count([batch(home=100, work=10)], 5000)
    wear.count([batch(home=1), batch(work=1000)], 9000)
    assert (wear.commits, wear.bytes_written) == (2, 9000)
    assert wear.prefixes == {"home": 101, "work": 1010}
    last_hour = wear.last_hour()
    assert last_hour == {"syncs": 2, "bytes_written": 9000, "message_bytes": {"work": 1010, "home": 101}}
    assert list(last_hour["message_bytes"]) == ["work", "home"]  # type: ignore[call-overload]


def test_after_an_hour_a_minute_is_forgotten_but_not_in_all(minutes: list[float]) -> None:
    wear = Wear()
    wear.count([batch(a=1)], 1000)
    minutes[0] = 130.5
    wear.count([batch(b=2)], 1500)
    minutes[0] = 159.9
    assert wear.last_hour()["syncs"] == 2
    minutes[0] = 160.0
    assert wear.last_hour() == {"syncs": 1, "bytes_written": 500, "message_bytes": {"b": 2}}
    minutes[0] = 1000.0
    assert wear.last_hour() == {"syncs": 0, "bytes_written": 0, "message_bytes": {}}
    assert (wear.commits, wear.bytes_written, wear.prefixes) == (2, 1500, {"a": 1, "b": 2})


def test_prefixes_are_bounded(minutes: list[float]) -> None:
    wear = Wear()
    for number in range(300):
        wear.count([batch(**{f"p{number}": 1})], None)
    assert len(wear.prefixes) == 101
    assert wear.prefixes["…"] == 200
    assert wear.prefixes["p99"] == 1


def test_where_nobody_tells_what_was_written_only_commits_are_counted(minutes: list[float]) -> None:
    wear = Wear()
    wear.count([], None)
    assert wear.last_hour() == {"syncs": 1, "bytes_written": 0, "message_bytes": {}}


def test_what_a_thread_writes_is_counted(tmp_path: Path) -> None:
    before = written_by_thread()
    if before is None:
        pytest.skip("this machine does not tell")
    (tmp_path / "file").write_bytes(bytes(100_000))
    after = written_by_thread()
    assert after is not None
    assert 100_000 <= after - before < 200_000
