"""What topics said last, for rules that ask: changes, and restarts."""

from __future__ import annotations

from pathlib import Path

import orjson

from lockgate.config.model import RuleConfig, SchemaConfig
from tests.support.processor import HOT, SECOND, Gateway, Publish, reading

CHANGE = RuleConfig(
    name="change",
    schema="temperature",
    sql="""
SELECT :value - value ->> 'value' AS change, :received_at - received_at AS after
FROM state WHERE topic = :topic AND value ->> 'value' <> :value
""",
    message_class="telemetry",
    topic="changes",
)


async def test_a_rule_compares_with_what_the_topic_said_before(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, [CHANGE, HOT])
    async with gateway.running() as runner:
        other = Publish(b'{"value": 7}', topic="sensors/b/temp")
        await runner.process([reading(10), other, reading(10), reading(12)])
        gateway.clock.boottime_ns += 2 * SECOND
    async with gateway.running() as runner:
        await runner.process([reading(15), Publish(b'{"value": 6}', topic="sensors/b/temp")])
    assert gateway.means() == [
        {"change": 2.0, "after": 0},
        {"change": 3.0, "after": 2000},
        {"change": -1.0, "after": 2000},
    ]


async def test_a_window_rule_reads_the_state_too(tmp_path: Path) -> None:
    latest = RuleConfig(
        name="latest",
        schema="temperature",
        sql="SELECT group_concat(topic || '=' || (value ->> 'value'), ' ') AS v FROM (SELECT * FROM state ORDER BY 1)",
        message_class="telemetry",
        topic="t",
        count=3,
    )
    gateway = Gateway(tmp_path, [latest])
    async with gateway.running() as runner:
        await runner.process([reading(1), Publish(b'{"value": 2}', topic="sensors/b/temp")])
    async with gateway.running() as runner:
        await runner.process([reading(3)])
    assert gateway.means() == [{"v": "sensors/a/temp=3.0 sensors/b/temp=2.0"}]


async def test_the_state_is_bounded_and_the_topic_heard_of_longest_ago_goes_first(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, [CHANGE], state_topics=3)
    for topics in ("abc", "ad", "e"):
        async with gateway.running() as runner:
            await runner.process([Publish(b'{"value": 1}', topic=f"sensors/{topic}/temp") for topic in topics])
            gateway.clock.boottime_ns += SECOND
    assert [value.topic[8] for value in gateway.reader.last_values()] == ["a", "d", "e"]


async def test_nothing_is_kept_for_nobody(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, [CHANGE])
    async with gateway.running() as runner:
        await runner.process([reading(10)])
    assert [orjson.loads(value.value) for value in gateway.reader.last_values()] == [{"value": 10.0}]
    gateway.set_rules([HOT])
    async with gateway.running() as runner:
        await runner.process([reading(10)])
    assert gateway.reader.last_values() == []


async def test_a_text_too_long_for_the_sandbox_is_kept_aside_and_the_others_go_on(tmp_path: Path) -> None:
    """As a value of `state`, or as a row of a window or a batch, it would be more than SQLite is let hold."""
    latest = RuleConfig(
        name="latest",
        schema="words",
        sql="SELECT length(value) AS n FROM state WHERE topic = :topic",
        message_class="telemetry",
        topic="t",
    )
    counted = RuleConfig(
        name="counted", schema="words", sql="SELECT count(*) AS n FROM words",
        message_class="telemetry", topic="n", every_seconds=10,
    )  # fmt: skip
    words = SchemaConfig(name="words", topics=("words",), fields=(("a", "text"), ("b", "text")))
    gateway = Gateway(tmp_path, [latest, counted], schemas=(words,))

    def said(size: int) -> Publish:
        return Publish(orjson.dumps({"a": "\x01" * size, "b": "b" * size}), topic="words")

    async with gateway.running() as runner:
        messages = [said(1), said(1_000_000), said(3_000_000), said(1)]
        while messages:
            del messages[: await runner.process(messages)]
        gateway.clock.boottime_ns += 20 * SECOND
        await runner.close_windows()
    assert gateway.means() == [{"n": 22}, {"n": 7_000_015}, {"n": 3}]
    assert gateway.intake().quarantined == {"field a too long": 1}
