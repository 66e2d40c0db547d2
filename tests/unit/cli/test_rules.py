"""`lockgate rules`, as a person calls it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from lockgate import cli
from lockgate.config import lockgate_toml
from lockgate.telemetry.health import StatusServer
from tests.support.processor import Gateway, Publish

GOOD = """\
[gateway]
data_dir = "data"

[schemas.temperature]
topics = ["sensors/+/temp"]
fields = { value = "real" }

[rules.hot]
schema = "temperature"
class = "alarm"
sql = "SELECT :topic AS topic, :value AS value WHERE :value > 90"

[[rules.hot.test]]
given = [
  { topic = "sensors/a/temp", payload = { value = 95 } },
  { topic = "sensors/a/temp", payload = '{"value": 5}', at = "1s" },
]
expect = [{ topic = "sensors/a/temp", payload = { value = 95.0 } }]

[rules.mean]
schema = "temperature"
class = "telemetry"
every = "10s"
topic = "mean"
sql = \"\"\"
SELECT avg(value) AS mean
FROM temperature
\"\"\"
"""


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "lockgate.toml"
    path.write_text(GOOD)
    return path


def test_good_tests_are_told(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rules", "test", "-c", str(toml)]) == 0
    assert capsys.readouterr().out == "rule hot: 1 tests good\nrule mean: no test\n"


def test_a_test_that_fails_is_told_with_its_line(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml.write_text(GOOD.replace("> 90", "> 3"))
    assert cli.main(["rules", "test", "hot", "-c", str(toml)]) == 1
    said = capsys.readouterr().out
    assert said.startswith(f"{toml}:8: rule hot, test 1: ")
    assert "was not expected" in said


def test_a_mistake_is_told_with_its_line_and_column(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml.write_text(GOOD.replace("FROM temperature", "FROM temperatures"))
    assert cli.main(["rules", "test", "-c", str(toml)]) == 3
    said = capsys.readouterr().err
    line = GOOD.splitlines().index("FROM temperature") + 1
    assert said.startswith(f"{toml}:{line}: rules.mean.sql: line 2, column 6 of the SELECT: no such table: temp")
    assert "table temperature with columns value, topic, received_at" in said


def test_a_rule_that_does_not_exist_is_told(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rules", "explain", "hat", "-c", str(toml)]) == 3
    assert "Did you mean hot?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("test", "problem"),
    [
        ("given = []", "test 1 has not the keys"),
        ("given = [{ topic = 1 }]\nexpect = []", "in test 1, given is no list"),
        ("given = [{ topic = 'a' }]\nexpect = []", "neither payload nor hex"),
        ("given = [{ topic = 'a', hex = 'x' }]\nexpect = []", "in test 1: hex"),
        ("given = []\nexpect = [{ topic = 'a', payload = 1 }]", "is no table"),
        ("given = []\nexpect = 'x'", "in test 1, expect is no list"),
    ],
)
def test_a_test_that_is_none_is_told(toml: Path, test: str, problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    toml.write_text(f"{GOOD}\n[[rules.mean.test]]\n{test}\n")
    assert cli.main(["rules", "test", "-c", str(toml)]) == 3
    assert problem in capsys.readouterr().err


def test_explain_tells_what_a_rule_reads_and_costs(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rules", "explain", "-c", str(toml)]) == 0
    said = capsys.readouterr().out
    assert "runs      for each message, many at once" in said
    assert "runs      on a window: every=10.0" in said
    assert "over      schema temperature: sensors/+/temp" in said
    assert "µs a message, one by one and with its decoding (2000 measured, the messages of its tests)" in said
    assert "not known" in said


async def test_the_quarantine_is_shown_and_replayed(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = lockgate_toml.load(toml, {})
    gateway = Gateway(config.gateway.buffer_dir, config.processor.rules)
    arguments = ["rules", "quarantine", "-c", str(toml)]
    async with gateway.running() as runner:
        await runner.process([Publish(b"{"), Publish(b'{"value": "x"}'), Publish(b"\xff")])
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    assert "not JSON" in said
    assert "field value not real" in said
    assert cli.main([*arguments, "--json", "--reason", "not"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["payload"], row.get("hex")) for row in rows] == [("{", None), (None, "ff")]
    assert cli.main([*arguments, "--replay"]) == 1
    assert "is it running?" in capsys.readouterr().err
    asked: list[Mapping[str, object]] = []

    def answer(question: Mapping[str, object]) -> Mapping[str, object]:
        asked.append(question)
        return {"messages": 2}

    config.gateway.sockets_dir.mkdir(parents=True, exist_ok=True)
    async with StatusServer(config.gateway.sockets_dir / "processor.sock", {"replay": answer}):
        assert await asyncio.to_thread(cli.main, [*arguments, "--replay", "--reason", "not"]) == 0
    assert asked == [{"ask": "replay", "reason": "not"}]
    assert "takes 2 messages once more" in capsys.readouterr().out


async def test_a_rule_is_tried_on_what_is_logged(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = lockgate_toml.load(toml, {})
    gateway = Gateway(config.gateway.buffer_dir, config.processor.rules, schemas=config.processor.schemas)
    gateway.config = config.processor
    async with gateway.running() as runner:
        await runner.process([Publish(b'{"value": 91}'), Publish(b'{"value": 93}'), Publish(b'{"value": 4}')])
    arguments = ["-c", str(toml), "--since", "2001-01-01T00:00Z"]
    assert cli.main(["rules", "backtest", "hot", *arguments]) == 0
    said = capsys.readouterr()
    assert [json.loads(line)["payload"]["value"] for line in said.out.splitlines()] == [91.0, 93.0]
    assert said.err.startswith("rule hot: 3 messages gave 2; 0 were late; 0 problems")
    toml.write_text(GOOD.replace("avg(value) AS mean", "max(value) AS top"))
    assert cli.main(["rules", "backtest", "mean", *arguments]) == 0
    assert json.loads(capsys.readouterr().out) == {"topic": "mean", "payload": {"top": 93.0}}
    assert cli.main(["rules", "backtest", "hot", "-c", str(toml), "--since", "1h"]) == 1
    assert "holds no message" in capsys.readouterr().err
    assert cli.main(["rules", "backtest", "hot", "-c", str(toml), "--since", "noon"]) == 3


@pytest.mark.parametrize("what", [["explain"], ["quarantine"], ["backtest", "mean", "--since", "1d"]])
def test_a_buffer_without_its_tables_is_named(toml: Path, capsys: pytest.CaptureFixture[str], what: list[str]) -> None:
    folder = toml.parent / "data" / "buffer"
    folder.mkdir(parents=True)
    (folder / "segment-000001.sqlite").touch()
    assert cli.main(["rules", *what, "-c", str(toml)]) == 1
    assert f"the buffer in {folder} cannot be read" in capsys.readouterr().err
