"""Rules: checked at start, sandboxed at run."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from lockgate.buffer import Entry
from lockgate.config.errors import ConfigError
from lockgate.config.model import RuleConfig, SchemaConfig
from lockgate.processor.rules import MessageRule, WindowKey, WindowRule
from lockgate.processor.sandbox import RuleError, topic_level
from lockgate.processor.schemas import Schema, Value

SCHEMA = Schema(SchemaConfig(name="readings", topics=("#",), fields=(("value", "real"), ("unit", "text"))))
HOT: dict[str, Value] = {"value": 91.0, "unit": "C", "topic": "sensors/x/temp", "received_at": 1000}


def rule(sql: str, **other: Any) -> RuleConfig:
    keys: dict[str, Any] = {"message_class": "alarm", "topic": "out", "line": 7} | other
    return RuleConfig(name="r", schema="readings", sql=sql, **keys)


def message_rule(sql: str, **other: Any) -> MessageRule:
    return MessageRule(rule(sql, **other), SCHEMA)


def window_rule(sql: str, **other: Any) -> WindowRule:
    return WindowRule(rule(sql, **({"every_seconds": 10.0} | other)), SCHEMA)


def test_a_message_becomes_the_rows_of_the_result() -> None:
    hot = message_rule(
        "SELECT 'alarm/' || topic_level(:topic, 2) AS topic, :value AS value, :received_at AS device_ts"
        " WHERE :value > 90;"
    )
    assert hot.evaluate(HOT) == [Entry("alarm/x", "alarm", "readings", b'{"value":91.0}', 1000)]
    assert hot.evaluate(HOT | {"value": 90.0}) == []
    assert (hot.counts.evaluated, hot.counts.rows, hot.counts.errors) == (2, 1, 0)


def test_json_functions_work() -> None:
    split = message_rule("SELECT value FROM json_each('[1, 2]') -- a comment")
    assert [orjson.loads(entry.payload) for entry in split.evaluate(HOT)] == [{"value": 1}, {"value": 2}]
    assert split.evaluate(HOT)[0].topic == "out"


def test_columns_of_one_name_are_kept_apart() -> None:
    assert message_rule("SELECT 1 AS a, 2 AS a").evaluate(HOT)[0].payload == b'{"a":1,"a:1":2}'


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELEC 1", "syntax error"),
        ("", "syntax error"),
        ("SELECT :valeu", ":valeu"),
        ("SELECT value", "no such column: value"),
        ("SELECT * FROM readings", "no such table: readings"),
        ("SELECT 1; SELECT 2", "syntax error"),
        ("DELETE FROM readings", "syntax error"),
        ("SELECT 1) LIMIT 0; ATTACH '/tmp/x' AS x; SELECT * FROM (SELECT 1", "one statement"),
        ("SELECT * FROM pragma_database_list()", "not authorized|prohibited"),
        ("SELECT nosuch(1)", "no such function: nosuch"),
    ],
)
def test_a_mistake_is_named_with_what_there_is(sql: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        message_rule(sql)
    assert caught.value.line == 7
    assert caught.value.key == "rules.r.sql"
    assert caught.value.accepted == "parameters :value, :unit, :topic, :received_at"


def test_a_window_rule_is_told_its_table() -> None:
    with pytest.raises(ConfigError, match="no such column: valu") as caught:
        window_rule("SELECT avg(valu) FROM readings")
    assert "table readings with columns value, unit, topic, received_at" in str(caught.value.accepted)


def test_a_rule_without_a_topic_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="no topic"):
        message_rule("SELECT 1 AS a", topic=None)


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("SELECT abs(-9223372036854775807 - 1) AS a", "SQL error"),
        ("WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) AS c FROM n", "time"),
        ("WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n", "result too large"),
        ("SELECT x'00' AS blob", "result not JSON"),
        ("SELECT 'a/+' AS topic", "no valid topic"),
        ("SELECT NULL AS topic", "no valid topic"),
        ("SELECT 'late' AS device_ts", "device_ts not integer"),
    ],
)
def test_an_error_while_running_is_counted_and_the_rule_goes_on(sql: str, reason: str) -> None:
    failing = message_rule(sql, budget_seconds=0.2 if reason == "time" else 60)
    with pytest.raises(RuleError) as caught:
        failing.evaluate(HOT)
    assert caught.value.reason == reason
    assert failing.counts.errors == 1
    with pytest.raises(RuleError):
        failing.evaluate(HOT)


def test_a_window_gathers_runs_and_is_emptied() -> None:
    mean = window_rule(
        "SELECT unit, avg(value) AS mean, count(*) AS n, :window_end AS e FROM readings GROUP BY unit ORDER BY unit"
    )
    key = mean.key("boot", 25_000_000_000)
    assert key == WindowKey("boot", 2)
    for value, unit in [(1.0, "C"), (3.0, "C"), (5.0, "F")]:
        mean.add(key, 1, [value, unit, "t", 123])
    assert mean.end_ns() == 30_000_000_000
    assert [entry.payload for entry in mean.evaluate(99)] == [
        b'{"unit":"C","mean":2.0,"n":2,"e":99}',
        b'{"unit":"F","mean":5.0,"n":1,"e":99}',
    ]
    mean.clear()
    assert mean.open is None
    mean.add(key, 2, [7.0, "C", "t", 123])
    assert mean.evaluate()[0].payload == b'{"unit":"C","mean":7.0,"n":1,"e":123}'


def test_a_rule_cannot_change_its_table() -> None:
    for sql in ("DELETE FROM readings", "INSERT INTO readings VALUES (1, 2, 3, 4)", "PRAGMA user_version = 3"):
        with pytest.raises(ConfigError):
            window_rule(sql)


def test_topic_level() -> None:
    levels = [topic_level("a/b/c", n) for n in (1, 3, 4, -1, -3, -4, 0)]
    assert levels == ["a", "c", None, "c", "a", None, None]
    assert topic_level(None, 1) is None
