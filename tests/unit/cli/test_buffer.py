"""`lockgate buffer …` on a log that is written, sealed and has sinks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from lockgate import cli
from lockgate.buffer import Cursor, LogReader
from lockgate.buffer.segments import list_segments
from tests.support.buffers import SINKS, batch, open_log


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    async def make() -> None:
        log = await open_log(tmp_path / "data" / "buffer")
        for n in range(4):
            payloads = [b'{"n": %d, "pad": "%s"}' % (n * 100 + k, b"x" * 500) for k in range(100)]
            await log.append(batch(*payloads, topic=f"site/{n}"))
            await log.append(batch(b'"fire %d"' % n, message_class="alarm"))
        reader = LogReader(tmp_path / "data" / "buffer")
        cursor = await Cursor.open(tmp_path / "data" / "buffer", "cloud", SINKS["cloud"], reader)
        rows = reader.read("telemetry", 0, 10)
        await cursor.settle(rows, dead_letters={3: ("gw/3", "HTTP 422"), 5: ("gw/5", "HTTP 400")})
        await cursor.close()
        reader.close()
        await log.close()

    asyncio.run(make())
    config = tmp_path / "lockgate.toml"
    config.write_text(
        '[gateway]\nid = "gw"\ndata_dir = "data"\n[classes.telemetry]\nlimit = "1MiB"\nkeep = "7d"\n'
        'when_full = "drop-oldest"\norder = "latest-first"\n'
    )
    return tmp_path


def run(folder: Path, *words: str, code: int = 0) -> None:
    action, *rest = words
    assert cli.main(["buffer", action, "-c", str(folder / "lockgate.toml"), *rest]) == code


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_status_says_what_is_kept_and_what_waits(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(folder, "status", "--json")
    said = json.loads(capsys.readouterr().out)
    assert said["classes"]["telemetry"]["kept"] == 400
    assert [(one["sink"], one["class"], one["pending"]) for one in said["sinks"]] == [
        ("cloud", "alarm", 4),
        ("cloud", "telemetry", 390),
    ]
    run(folder, "status")
    text = capsys.readouterr().out
    assert "drop-oldest" in text
    assert "latest-first" in text
    assert "not configured: lockgate buffer forget cloud" in text


def test_tail_and_export_give_messages_in_order(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(folder, "tail", "-n", "3")
    assert [one["id"] for one in lines(capsys)] == ["gw/402", "gw/403", "gw/404"]
    run(folder, "tail", "--class", "alarm", "-n", "2")
    assert [one["payload"] for one in lines(capsys)] == ["fire 2", "fire 3"]
    run(folder, "export", "-o", str(folder / "all.jsonl"))
    exported = [json.loads(line) for line in (folder / "all.jsonl").read_text().splitlines()]
    assert [one["id"] for one in exported] == [f"gw/{seq}" for seq in range(1, 405)]
    run(folder, "export", "--since", "2000-01-01", "--class", "alarm")
    assert len(lines(capsys)) == 4
    run(folder, "export", "--since", "2100-01-01T00:00")
    assert lines(capsys) == []
    run(folder, "export", "--since", "yesterday", code=3)
    assert "'yesterday' is no time" in capsys.readouterr().err


@pytest.mark.parametrize("many", [False, True])
def test_sql_sees_every_segment(folder: Path, capsys: pytest.CaptureFixture[str], many: bool) -> None:
    buffer = folder / "data" / "buffer"
    rows = 404
    if many:

        async def more() -> None:
            nonlocal rows
            log = await open_log(buffer)
            while len(list_segments(buffer)) <= 10:
                await log.append(batch(*[b"x" * 1000] * 50))
                rows += 50
            await log.close()

        asyncio.run(more())
    run(folder, "sql", "SELECT count(*) AS rows, min(seq) AS first FROM log", "--json")
    assert lines(capsys) == [{"rows": rows, "first": 1}]
    run(folder, "sql", "SELECT payload ->> 'n' AS n FROM log WHERE topic = 'site/2' ORDER BY seq LIMIT 2")
    assert capsys.readouterr().out.split() == ["n", "200", "201"]


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("SELECT colour FROM log", "no such column: colour; there are log (seq, number, boot_id"),
        ("SELECT * FROM nowhere", "no such table: nowhere; there are log"),
        ("DELETE FROM segment_1.log", "not authorized"),
        ("ATTACH 'x' AS y", "not authorized"),
        ("PRAGMA writable_schema = 1", "not authorized"),
    ],
)
def test_sql_that_cannot_be_run_is_said_and_changes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], statement: str, said: str
) -> None:
    run(folder, "sql", statement, code=1)
    assert said in capsys.readouterr().err
    run(folder, "sql", "SELECT count(*) FROM log")
    assert "404" in capsys.readouterr().out


def test_dead_letters_are_listed_and_asked_for_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(folder, "replay", "cloud", "--list")
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("gw/3  ")
    assert second.endswith("telemetry  site/0  HTTP 400")
    run(folder, "replay", "cloud", "gw/5")
    assert capsys.readouterr().out == "1 dead letters of cloud will be sent again\n"
    run(folder, "replay", "cloud", "--list")
    assert [line.endswith("(to be sent again)") for line in capsys.readouterr().out.splitlines()] == [False, True]
    run(folder, "replay", "cloud", "gw/6", code=1)
    assert "keeps no dead letter gw/6" in capsys.readouterr().err
    run(folder, "replay", "clowd", code=1)
    assert "no sink 'clowd' has a cursor" in capsys.readouterr().err


def test_a_sink_is_forgotten_only_when_it_is_gone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = folder / "lockgate.toml"
    text = config.read_text()
    config.write_text(text + '[sinks.cloud]\ntype = "http"\nurl = "http://127.0.0.1:9/"\n')
    run(folder, "forget", "cloud", code=3)
    assert "[sinks.cloud] is configured" in capsys.readouterr().err
    config.write_text(text)
    buffer = folder / "data" / "buffer"

    async def held() -> None:
        reader = LogReader(buffer)
        cursor = await Cursor.open(buffer, "cloud", SINKS["cloud"], reader)
        await asyncio.to_thread(run, folder, "forget", "cloud", code=1)
        await cursor.close()
        reader.close()

    asyncio.run(held())
    assert "one writer at a time" in capsys.readouterr().err
    run(folder, "forget", "cloud")
    assert capsys.readouterr().out == "sink cloud is forgotten; 394 messages no longer wait for it\n"
    assert not list(buffer.glob("cursor-*"))


def test_without_a_buffer_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "lockgate.toml").write_text('[gateway]\ndata_dir = "data"\n')
    run(tmp_path, "status", code=1)
    assert "there is no buffer in" in capsys.readouterr().err


def test_status_names_a_sink_whose_cursor_cannot_be_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "data" / "buffer" / "cursor-cloud.sqlite").write_bytes(b"no database" * 1000)
    run(folder, "status")
    assert "sink cloud: the cursor cannot be read" in capsys.readouterr().err


def test_the_words_of_a_receiver_do_not_steer_the_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "data" / "buffer" / "cursor-cloud.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as cursor:
        cursor.execute("UPDATE dead_letters SET reason = ?", ("HTTP 422: \x1b[2Jno\nsuch",))
        cursor.commit()
    run(folder, "replay", "cloud", "--list")
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert len(out.splitlines()) == 2
