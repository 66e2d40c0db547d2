"""Messages in, one commit out: every message counted once, resends and restarts included."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from lockgate.buffer import RuleCursor
from lockgate.buffer.ledger import IntakeBook
from lockgate.config.model import ProcessorConfig, RuleConfig
from lockgate.processor.runner import SessionLost
from tests.support.processor import BROKEN, HOT, MEAN, SCHEMA, SECOND, Gateway, Publish, ScriptedClock, reading


async def test_every_message_is_counted_once(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, [HOT, BROKEN])
    async with gateway.running() as runner:
        await runner.process(
            [
                reading(91),
                reading(20),
                reading(13),
                Publish(b"{"),
                Publish(b'{"value": "x"}'),
                Publish(b"1", topic="elsewhere"),
            ]
        )
        assert gateway.intake() == IntakeBook(
            received=6,
            logged=1,
            refused={"no schema": 1},
            quarantined={"not JSON": 1, "field value not real": 1, "rule broken: SQL error": 1},
            filtered={"hot+broken": 1},
        )
        (alarm,) = gateway.rows("alarm")
        assert (alarm.topic, alarm.payload, alarm.schema) == ("sensors/a/temp", b'{"value":91.0}', "temperature")
        newest = gateway.reader.segments()[-1].connection
        kept = newest.execute("SELECT topic, reason, payload FROM quarantine").fetchall()
        assert sorted(kept) == [
            ("sensors/a/temp", "field value not real", b'{"value": "x"}'),
            ("sensors/a/temp", "not JSON", b"{"),
            ("sensors/a/temp", "rule broken: SQL error", b'{"value":13}'),
        ]
        assert runner.status()["broken"]["errors"] == 1  # type: ignore[index]


async def test_what_a_broken_rule_spoils_the_other_rules_still_make(tmp_path: Path) -> None:
    always = RuleConfig(
        name="all", schema="temperature", sql="SELECT :value AS v", message_class="telemetry", topic="t"
    )
    gateway = Gateway(tmp_path, [BROKEN, always])
    async with gateway.running() as runner:
        await runner.process([reading(13)])
    assert len(gateway.rows("telemetry")) == 1
    assert gateway.intake() == IntakeBook(received=1, quarantined={"rule broken: SQL error": 1})


async def test_what_is_quarantined_can_be_taken_once_more(tmp_path: Path) -> None:
    copy = RuleConfig(name="copy", schema="temperature", sql="SELECT :value AS v", message_class="telemetry", topic="t")
    gateway = Gateway(tmp_path, [BROKEN, copy])
    messages = [reading(13), Publish(b'{"value": "95"}'), Publish(b"{"), Publish(b'{"value": "13"}')]
    async with gateway.running() as runner:
        await runner.process(messages)
        kept = runner.replayable("")
        assert len(kept) == 4
        gateway.clock.boottime_ns += SECOND
        await runner.replay(kept)
        await runner.replay(kept)  # they are other rows now
    assert sorted(kept.message.reason for kept in gateway.reader.quarantine()) == [
        "field value not real", "field value not real", "not JSON", "rule broken: SQL error"
    ]  # fmt: skip
    mended = dataclasses.replace(BROKEN, sql="SELECT -:value AS a WHERE :value = 13")
    gateway.config = dataclasses.replace(
        gateway.config, schemas=(dataclasses.replace(SCHEMA, misfits="coerce"),), rules=(mended, copy)
    )
    async with gateway.running() as runner:
        assert [kept.message.payload for kept in runner.replayable("not JSON")] == [b"{"]
        await runner.replay(runner.replayable(""))
        assert [kept.message.reason for kept in runner.replayable("")] == ["not JSON"]
    assert [row.payload for row in gateway.rows("alarm")] == [b'{"a":-13.0}'] * 2
    assert gateway.means() == [{"v": 13.0}, {"v": 95.0}, {"v": 13.0}]  # the rule that took it does not do so again
    book = gateway.intake()
    assert (book.received, book.logged, sum(book.quarantined.values())) == (12, 3, 9)
    assert gateway.reader.state().quarantine_bytes == 1


async def test_a_resend_is_a_duplicate_even_after_a_restart(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, [HOT])
    async with gateway.running() as runner:
        await runner.process([reading(91, 1), reading(20, 2), Publish(b"{", packet_id=3)])
        await runner.process([reading(91, 1, duplicate=True)])
    async with gateway.running() as runner:
        await runner.process([reading(20, 2, duplicate=True), Publish(b"{", packet_id=3, duplicate=True)])
        await runner.process([reading(92, 4, duplicate=True)])  # the first of it that reached us
    assert gateway.intake() == IntakeBook(
        received=7, logged=2, quarantined={"not JSON": 1}, filtered={"hot": 1}, duplicate=3
    )
    assert len(gateway.rows("alarm")) == 2


async def test_a_reused_identifier_is_a_new_message(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, [HOT])
    async with gateway.running() as runner:
        await runner.process([reading(91, 1), reading(91, 1), reading(91, 1, duplicate=True)])
    assert gateway.intake() == IntakeBook(received=3, logged=2, duplicate=1)


async def test_a_new_message_under_a_reused_identifier_is_not_lost_when_it_comes_back_after_a_kill(
    tmp_path: Path,
) -> None:
    """Its first PUBLISH, without DUP, was not committed; the identifier stored is of the message before."""
    gateway = Gateway(tmp_path, [HOT])
    async with gateway.running() as runner:
        await runner.process([reading(91, 1)])
    async with gateway.running() as runner:
        await runner.process([reading(92, 1, duplicate=True)])  # differs
    async with gateway.running() as runner:
        many = 32_767
        while many := many - await runner.process([reading(93, 2)] * many):
            pass
        await runner.process([reading(92, 1, duplicate=True)])  # the same, and as late as a resend can be
        await runner.process([reading(93, 2)])
        await runner.process([reading(92, 1, duplicate=True)])  # too late to be one
    assert gateway.intake() == IntakeBook(received=32_772, logged=32_771, duplicate=1)


async def test_a_lost_session_forgets_its_identifiers(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, [HOT])
    async with gateway.running() as runner:
        await runner.process([reading(91, 1), reading(92, 2)])
        await runner.process([SessionLost(), reading(91, 1, duplicate=True)])
    async with gateway.running() as runner:
        await runner.process([reading(92, 2, duplicate=True)])
    assert gateway.intake() == IntakeBook(received=4, logged=4)


async def test_a_window_gives_its_result_when_it_is_over(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, [MEAN, HOT])
    async with gateway.running() as runner:
        await runner.process([reading(10), reading(20)])
        gateway.clock.boottime_ns += 9 * SECOND
        await runner.process([reading(99)])
        await runner.close_windows()
        assert gateway.means() == []
        assert runner.seconds_to_window_end() == 1.0
        gateway.clock.boottime_ns += SECOND
        await runner.close_windows()
        assert gateway.means() == [{"mean": 43.0, "n": 3, "all_values": "10.0,20.0,99.0"}]
        assert runner.seconds_to_window_end() is None
        gateway.clock.boottime_ns += 100 * SECOND
        await runner.close_windows()  # nothing arrived: no result
        await runner.process([reading(1)])
        gateway.clock.boottime_ns += 10 * SECOND
        await runner.process([reading(2)])  # a message of the next window closes the one before
        assert gateway.means()[1:] == [{"mean": 1.0, "n": 1, "all_values": "1.0"}]
    assert gateway.intake() == IntakeBook(received=5, logged=5)


async def test_a_window_survives_restarts_and_counts_no_message_twice(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, [MEAN])
    async with gateway.running() as runner:
        await runner.process([reading(1)])
    async with gateway.running() as runner:
        await runner.process([reading(2)])
        gateway.clock.boottime_ns += 10 * SECOND
        await runner.process([reading(3)])
    async with gateway.running() as runner:
        assert gateway.means() == [{"mean": 1.5, "n": 2, "all_values": "1.0,2.0"}]
        gateway.clock.boottime_ns += 4 * SECOND
        await runner.process([reading(4)])
    gateway.clock.boottime_ns += 30 * SECOND
    async with gateway.running():  # the window ended while nobody ran
        assert gateway.means()[1:] == [{"mean": 3.5, "n": 2, "all_values": "3.0,4.0"}]
    async with gateway.running():
        assert len(gateway.means()) == 2


async def test_another_boot_closes_the_open_window_with_what_it_has(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, [MEAN])
    async with gateway.running() as runner:
        await runner.process([reading(1)])
    gateway.clock = ScriptedClock("boot-2")
    async with gateway.running() as runner:
        assert gateway.means() == [{"mean": 1.0, "n": 1, "all_values": "1.0"}]
        await runner.process([reading(2)])
        gateway.clock.boottime_ns += 10 * SECOND
        await runner.close_windows()
        assert gateway.means()[1:] == [{"mean": 2.0, "n": 1, "all_values": "2.0"}]


async def test_a_window_rule_that_fails_is_reported_and_goes_on(tmp_path: Path) -> None:
    failing = RuleConfig(
        name="failing",
        schema="temperature",
        sql="SELECT sum(9223372036854775807) AS a FROM temperature",
        message_class="telemetry",
        topic="t",
        every_seconds=10,
    )
    gateway = Gateway(tmp_path, [failing, MEAN])
    async with gateway.running() as runner:
        await runner.process([reading(1), reading(2)])
        gateway.clock.boottime_ns += 10 * SECOND
        await runner.close_windows()
        assert len(gateway.means()) == 1
        await runner.process([reading(3)])
        gateway.clock.boottime_ns += 10 * SECOND
        await runner.close_windows()
        assert len(gateway.means()) == 3
    kept = gateway.reader.segments()[-1].connection.execute("SELECT reason FROM quarantine").fetchall()
    assert kept == [("rule failing: SQL error",)]


async def test_a_new_rule_begins_with_the_next_message_and_an_old_one_is_forgotten(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, [MEAN])
    async with gateway.running() as runner:
        await runner.process([reading(1)])
    other = RuleConfig(
        name="other",
        schema="temperature",
        sql="SELECT count(*) AS n FROM temperature",
        message_class="telemetry",
        topic="t",
        every_seconds=10,
    )
    gateway.config = ProcessorConfig(connection=gateway.config.connection, schemas=(SCHEMA,), rules=(other,))
    async with gateway.running() as runner:
        assert runner._buffer.state.rule_cursors == {"other": RuleCursor("temperature", 1, 1, shape="every=10")}
        await runner.process([reading(2)])
        gateway.clock.boottime_ns += 10 * SECOND
        await runner.close_windows()
    assert gateway.means() == [{"n": 1}]


async def test_slow_rules_get_fewer_messages_in_one_go(tmp_path: Path) -> None:
    """Meanwhile the loop serves nobody: neither the broker's PINGRESP nor who asks for the status."""
    functions = tmp_path / "functions"
    functions.mkdir()
    (functions / "slow.py").write_text(
        "import time\nfrom lockgate.processor.functions import scalar\n"
        "@scalar\ndef slowly(x):\n    time.sleep(0.03 if x < 0 else 0)\n    return x\n"
    )
    slow = RuleConfig(
        name="slow", schema="temperature", sql="SELECT slowly(:value) AS v", message_class="telemetry", topic="t"
    )
    gateway = Gateway(tmp_path / "buffer", [slow], functions=functions)
    async with gateway.running() as runner:
        assert await runner.process([reading(-1)] * 200) < 50
        for _ in range(10):
            await runner.process([reading(1)] * 200)
        assert await runner.process([reading(1)] * 200) == 200
    assert gateway.intake().received == gateway.intake().logged
