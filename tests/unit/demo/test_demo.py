"""The demo's parts: its files, its devices' readings, its cloud, its table."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path

import aiohttp
from rich.console import Console

from lockgate.buffer.ledger import DeliveryBook, IntakeBook, Ledger
from lockgate.config import lockgate_toml
from lockgate.demo import view
from lockgate.demo.cloud import Archive, Cloud
from lockgate.demo.device import Readings
from lockgate.demo.files import write_configuration


def test_the_files_are_a_good_configuration_and_are_not_overwritten(tmp_path: Path) -> None:
    path = write_configuration(tmp_path / "demo")
    config = lockgate_toml.load(path, {})
    assert [rule.name for rule in config.processor.rules] == ["mean", "alarm"]
    assert [listener.port for listener in config.broker.listeners] == [1883]
    [standing] = config.broker.standing_sessions
    assert standing.name == config.processor.connection.client_id  # else nothing waits for the processor
    assert standing.topics == config.processor.schemas[0].topics
    from lockgate.cli.check import check_rules

    check_rules(config)
    path.write_text("[gateway]\nid = 'mine'\n")
    assert write_configuration(tmp_path / "demo").read_text() == "[gateway]\nid = 'mine'\n"


def test_readings_are_this_machines() -> None:
    taken = {quantity: (value, unit) for quantity, value, unit in Readings().take()}
    assert {"cpu", "memory", "disk"} <= taken.keys()
    assert 0 < taken["memory"][0] <= 100
    assert taken["memory"][1] == "%"


def test_the_archive_keeps_each_id_once_and_over_restarts(tmp_path: Path) -> None:
    archive = Archive(tmp_path / "cloud" / "messages.db")
    assert archive.keep([("g/1", "a"), ("g/2", "b"), ("g/1", "a")]) == ["a", "b"]
    archive.close()
    archive = Archive(tmp_path / "cloud" / "messages.db")
    assert archive.kept == 2
    assert archive.keep([("g/2", "b"), ("g/3", "c")]) == ["c"]
    assert archive.kept == 3
    archive.close()


async def answers(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.post(url, data="[]"):
            return True
    except aiohttp.ClientConnectionError:
        return False


async def test_the_cloud_takes_messages_and_really_goes_away(tmp_path: Path, unused_tcp_port: int) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}/in"
    cloud = Cloud(tmp_path, url, open_seconds=1.0, away_seconds=600.0)
    ready = asyncio.Event()
    running = asyncio.create_task(cloud.run(ready.set))
    await asyncio.wait_for(ready.wait(), 10)
    messages = [{"id": "g/1", "topic": "alarm/x", "payload": {"value": 91}}]
    async with aiohttp.ClientSession() as session:
        for _ in range(2):
            async with session.post(url, data=json.dumps(messages)) as response:
                assert response.status == 204
        async with session.post(url, data="[{}]") as response:
            assert response.status == 400
        status = cloud.status()
        assert (status["received"], status["kept"], status["duplicates"], status["open"]) == (2, 1, 1, True)
        assert status["recent"] == ['alarm/x {"value": 91}']
        async with asyncio.timeout(20):
            while await answers(session, url):
                pass
    assert cloud.status()["outages"] == 1
    running.cancel()
    await asyncio.wait({running})


ANSWERS: dict[str, dict[str, object] | None] = {
    "demo-device": {"status": {"made": 1000, "pending": 1, "acknowledged": 999}},
    "broker": {"status": {"publish_received": 1001, "queued": 3, "publish_sent": 998}},
    "processor": {"status": {}},
    "forwarder": None,
    "demo-cloud": {
        "status": {
            "open": False,
            "changes_in_seconds": 12,
            "received": 92,
            "kept": 90,
            "duplicates": 2,
            "recent": ["a", "b"],
        }
    },
}
BOOKS = Ledger(
    IntakeBook(received=998, logged=990, refused={"not JSON": 8}),
    (DeliveryBook("cloud", "alarm", addressed=100, delivered=90, pending=10, retried=4),),
)


def test_the_table_has_a_row_for_each_hop() -> None:
    rows = view.hops(ANSWERS, BOOKS, {"processor": 2})
    assert rows == [
        view.Hop("devices", "up", 1000, 1, 999),
        view.Hop("broker", "up", 1001, 3, 998),
        view.Hop("processor", "up, restarted 2×", 998, None, 990, None, "close"),
        view.Hop("buffer", "", 100, 10, 90, None, "close"),
        view.Hop("forwarder", "down", 100, 10, 90, 4, "close"),
        view.Hop("cloud", "away, back in 12 s", 92, None, 90, 2),
    ]
    console = Console(file=io.StringIO(), width=140)
    console.print(view.screen(rows, ANSWERS, {"forwarder": "no route", "broker": "old"}, "x.log"))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert view.JOIN in shown
    assert "998" in shown
    assert "forwarder: no route" in shown
    assert "old" not in shown  # it runs again
    lines = [text.rstrip() for text in shown.splitlines()]
    assert lines.index("  b") + 1 == lines.index("  a")  # the latest first
    assert "cloud (away, back in 12 s): accepted 92, delivered 90" in view.line(rows)


def test_a_book_that_does_not_close_is_shown() -> None:
    wrong = Ledger(IntakeBook(received=2, logged=1), BOOKS.deliveries)
    rows = {row.name: row.books for row in view.hops(ANSWERS, wrong, {})}
    assert (rows["processor"], rows["buffer"], rows["forwarder"]) == ("DO NOT CLOSE", "DO NOT CLOSE", "close")


def test_nothing_is_known_before_anything_runs() -> None:
    rows = view.hops(dict.fromkeys(ANSWERS), None, {})
    assert {row.books for row in rows} == {""}
    assert [row.state for row in rows if row.name != "buffer"] == ["down"] * 5
