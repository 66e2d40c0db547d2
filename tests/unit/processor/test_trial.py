"""Tests of rules, and a reload that keeps what is wrong out, rule by rule."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import orjson
import pytest

from lockgate.config.errors import ConfigError
from lockgate.config.model import (
    BufferConfig,
    ExpectedMessage,
    GivenMessage,
    ProcessorConfig,
    RuleConfig,
    RuleTest,
    TableConfig,
)
from lockgate.processor.runner import Rulebook
from lockgate.processor.trial import run_tests
from tests.support.processor import HOT, MEAN, SCHEMA, SECOND, Gateway, reading


def given(value: float, at: float = 0.0) -> GivenMessage:
    return GivenMessage(topic="sensors/a/temp", payload=orjson.dumps({"value": value}), at_seconds=at)


def expected(topic: str, **payload: Any) -> ExpectedMessage:
    return ExpectedMessage(topic=topic, payload=payload)


def with_test(rule: RuleConfig, messages: list[GivenMessage], expect: list[ExpectedMessage]) -> RuleConfig:
    return dataclasses.replace(rule, tests=(RuleTest(given=tuple(messages), expect=tuple(expect)),))


def problems(rule: RuleConfig) -> list[str]:
    return [failure.problem for failure in run_tests(rule, ProcessorConfig(schemas=(SCHEMA,)), [])]


def test_a_rule_for_each_message_is_tested() -> None:
    messages = [given(95), given(20)]
    assert problems(with_test(HOT, messages, [expected("sensors/a/temp", value=95.0)])) == []
    assert problems(with_test(HOT, messages, [expected("sensors/a/temp", value=96.0)])) == [
        'message 1 is {"topic":"sensors/a/temp","payload":{"value":95.0}}, '
        'not {"topic":"sensors/a/temp","payload":{"value":96.0}}'
    ]
    assert "was not expected" in problems(with_test(HOT, messages, []))[0]
    assert "did not come" in problems(with_test(HOT, [given(1)], [expected("x")]))[0]


def test_a_window_is_tested_with_time_that_goes_on() -> None:
    messages = [given(1), given(2, at=9.5), given(9, at=10)]
    means = [expected("mean", mean=1.5, n=2, all_values="1.0,2.0"), expected("mean", mean=9.0, n=1, all_values="9.0")]
    assert problems(with_test(MEAN, messages, means)) == []
    ends = dataclasses.replace(MEAN, sql="SELECT :window_end AS device_ts, :window_start AS s FROM temperature")
    end = ExpectedMessage(topic="mean", payload={"s": 1_767_225_600_000}, device_ts=1_767_225_610_000)
    assert problems(with_test(ends, [given(1)], [end])) == []


def test_what_the_schema_does_not_take_fails_a_test() -> None:
    wrong = GivenMessage(topic="sensors/a/temp", payload=b"{}")
    assert "field value missing" in problems(with_test(HOT, [wrong], []))[0]
    assert "no topic of schema" in problems(with_test(HOT, [GivenMessage(topic="x", payload=b"{}")], []))[0]


async def test_a_rule_that_is_wrong_stays_as_it_was_and_the_others_are_reloaded(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, [HOT, MEAN])
    async with gateway.running() as runner:
        await runner.process([reading(1), reading(95)])
        before = gateway.book
        lower = dataclasses.replace(HOT, sql=HOT.sql.replace("90", "0"))
        bad_mean = dataclasses.replace(MEAN, sql="SELECT avg(valu) AS mean FROM temperature")
        bad_new = with_test(dataclasses.replace(HOT, name="new"), [given(1)], [expected("x")])
        no_class = dataclasses.replace(HOT, name="other", message_class="nowhere")
        config = dataclasses.replace(gateway.config, rules=(lower, bad_mean, bad_new, no_class))
        book = before.successor(config, BufferConfig())
        assert book.config.rules == (lower, MEAN)
        assert "no such column: valu" in book.rejected["mean"]
        assert "did not come" in book.rejected["new"]
        assert "no class 'nowhere'" in book.rejected["other"]
        runner = await gateway.go_on_with(book)
        status: Any = runner.status()
        assert "valu" in status["mean"]["rejected"]
        assert status["hot"]["evaluated"] == 0
        await runner.process([reading(3)])
        gateway.clock.boottime_ns += 10 * SECOND
        await runner.close_windows()
        assert gateway.means() == [{"mean": 33.0, "n": 3, "all_values": "1.0,95.0,3.0"}]
        assert len(gateway.rows("alarm")) == 2
        assert status["new"].keys() == {"rejected"}


def test_a_table_that_is_wrong_keeps_the_whole_from_changing(tmp_path: Path) -> None:
    book = Rulebook(ProcessorConfig(schemas=(SCHEMA,), rules=(HOT,)), BufferConfig())
    tables = (TableConfig(name="devices", path=tmp_path / "none.csv"),)
    with pytest.raises(ConfigError, match=r"tables\.devices"):
        book.successor(dataclasses.replace(book.config, tables=tables), BufferConfig())
    book.close()
