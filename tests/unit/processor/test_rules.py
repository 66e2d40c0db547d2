"""Rules: checked at start, sandboxed at run."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from lockgate.buffer import Entry
from lockgate.config.errors import ConfigError
from lockgate.config.model import RuleConfig, SchemaConfig
from lockgate.processor.ready import topic_level
from lockgate.processor.rules import Decoded, MessageRule, Rules
from lockgate.processor.schemas import Schemas, Value

SCHEMAS = Schemas([SchemaConfig(name="readings", topics=("#",), fields=(("value", "real"), ("unit", "text")))])
SCHEMA = SCHEMAS.by_name["readings"]


def rule(sql: str, **other: Any) -> RuleConfig:
    keys: dict[str, Any] = {"message_class": "alarm", "topic": "out", "line": 7} | other
    return RuleConfig(name="r", schema="readings", sql=sql, **keys)


def rules(*configs: RuleConfig) -> Rules:
    return Rules(configs, SCHEMAS, ["alarm"])


def message_rule(sql: str, **other: Any) -> MessageRule:
    return rules(rule(sql, **other)).by_message["readings"][0]


def window_rule(sql: str, **other: Any) -> Rules:
    return rules(rule(sql, **({"every_seconds": 10.0} | other)))


def message(value: Value = 91.0, unit: str = "C", topic: str = "sensors/x/temp") -> Decoded:
    return Decoded(topic, b"{}", SCHEMA, [value, unit, topic, 1000])


def entries(one: MessageRule, value: float = 91.0) -> list[Entry]:
    """What a rule makes of a message."""
    given = message(value)
    one.evaluate(given)
    assert given.failures == []
    return given.entries


def test_a_message_becomes_the_rows_of_the_result() -> None:
    hot = message_rule(
        "SELECT 'alarm/' || topic_level(:topic, 2) AS topic, :value AS value, :received_at AS device_ts"
        " WHERE :value > 90;"
    )
    assert entries(hot) == [Entry("alarm/x", "alarm", "readings", b'{"value":91.0}', 1000)]
    assert entries(hot, 90.0) == []
    assert (hot.counts.evaluated, hot.counts.rows, hot.counts.errors) == (2, 1, 0)


def test_json_functions_work() -> None:
    split = message_rule("SELECT value FROM json_each('[1, 2]') -- a comment")
    assert [orjson.loads(entry.payload) for entry in entries(split)] == [{"value": 1}, {"value": 2}]
    assert entries(split)[0].topic == "out"


def test_columns_of_one_name_are_kept_apart() -> None:
    assert entries(message_rule("SELECT 1 AS a, 2 AS a"))[0].payload == b'{"a":1,"a:1":2}'


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
    assert caught.value.accepted is not None
    parameters, _, tables = caught.value.accepted.partition("; ")
    assert parameters == "parameters :value, :unit, :topic, :received_at"
    assert tables == "table state with columns topic, schema, received_at, value"


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
    for count in (1, 2):
        given = message()
        failing.evaluate(given)
        assert [why for why, _ in given.failures] == [f"rule r: {reason}"]
        assert given.entries == []
        assert failing.counts.errors == count


def test_a_rule_cannot_change_its_table() -> None:
    for sql in ("DELETE FROM readings", "INSERT INTO readings VALUES (1, 2, 3, 4)", "PRAGMA user_version = 3"):
        with pytest.raises(ConfigError):
            window_rule(sql)


def test_topic_level() -> None:
    levels = [topic_level("a/b/c", n) for n in (1, 3, 4, -1, -3, -4, 0)]
    assert levels == ["a", "c", None, "c", "a", None, None]
    assert topic_level(None, 1) is None


@pytest.mark.parametrize(
    ("sql", "line", "column"),
    [
        ("SELECT :topic AS topic,\n  :valeu AS v", 2, 3),
        ("SELECT 'value' AS topic,\n  unt AS v", 2, 3),
        ("SELECT :value AS v\nFROM reading", 2, 6),
        ("SELECT 1,\n1 FROM FROM x", 2, 8),
        ("SELECT (1", 1, 10),
        ("SELECT round(1)\n, rnd(2)", 2, 3),
        ("SELECT 1 AS a,, 2", 1, 15),
    ],
)
def test_a_mistake_is_named_with_its_place(sql: str, line: int, column: int) -> None:
    with pytest.raises(ConfigError, match=f"^rules.r.sql: line {line}, column {column} of the SELECT") as caught:
        message_rule(sql, sql_line=20)
    assert caught.value.line == 19 + line


@pytest.mark.parametrize(
    ("sql", "at_once"),
    [
        ("SELECT :value AS v WHERE :value > 50", True),
        ("SELECT upper(:unit) || ' where ' AS u, (SELECT 1 + :value) AS v -- why", True),
        ("SELECT :value AS v WHERE :unit = 'FROM' AND :value > (SELECT 50)", True),
        ("SELECT max(:value, 50) AS v", True),
        ("SELECT max(:value) AS v", False),
        ("SELECT count(*) AS n WHERE :value > 50", False),
        ("SELECT :value AS v UNION ALL SELECT 2 WHERE :value > 50", False),
        ("SELECT value, :unit AS u FROM json_each('[1, 2]')", False),
        ("WITH x AS (SELECT :value AS v) SELECT v FROM x", False),
        ("SELECT DISTINCT :value AS v", False),
        ("SELECT :value AS v ORDER BY 1 LIMIT 1", False),
        ("SELECT :value AS v WHERE dead_band('k', :value, 10)", True),
        ("SELECT :unit = 91 AS a, :value = '91' AS b, typeof(:value) AS c", True),
        ("SELECT :value / 2 AS value WHERE value > 40", False),
        ("SELECT 'x' || :unit AS \"unit\" WHERE \"Unit\" = 'xC'", False),
        ("SELECT :value / 2 AS value, upper(:unit) AS unit", True),
    ],
)
def test_a_batch_gives_what_its_messages_give_one_by_one(sql: str, at_once: bool) -> None:
    book = rules(rule(sql))
    one = message_rule(sql)
    assert one.at_once is at_once
    readings = [(91.0, "C"), (20.0, "91"), (60.0, "FROM"), (None, "")]
    apart = [message(value, unit) for value, unit in readings]
    for each in apart:
        one.evaluate(each)
    together = [message(value, unit) for value, unit in readings]
    book.evaluate(together)
    assert [each.entries for each in together] == [each.entries for each in apart]
    assert sum(len(each.entries) for each in apart) >= 1


def test_one_message_that_fails_spoils_no_other_of_its_batch() -> None:
    book = rules(rule("SELECT abs(CAST(:unit AS INTEGER)) AS v"))
    together = [message(unit=unit) for unit in ("1", "-9223372036854775808", "3")]
    book.evaluate(together)
    assert [len(each.entries) for each in together] == [1, 0, 1]
    assert [len(each.failures) for each in together] == [0, 1, 0]
