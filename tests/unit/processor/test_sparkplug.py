"""Sparkplug B: births, aliases, deaths and the sequence, over restarts too."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.config.errors import ConfigError
from lockgate.config.model import RuleConfig, SchemaConfig
from lockgate.processor.schemas import NotAccepted, Schema
from lockgate.processor.sparkplug import FIELDS, Sparkplug
from lockgate.processor.state import Memory
from tests.support.processor import Gateway, Publish

INT16, INT64, FLOAT, BOOLEAN, STRING = 2, 4, 9, 11, 12
Payload = Sparkplug()._payload
PLANT = SchemaConfig(name="plant", topics=("spBv1.0/#",), fields=tuple(FIELDS.items()), format="sparkplug")  # type: ignore[arg-type]
COPY = RuleConfig(
    name="copy",
    schema="plant",
    sql="SELECT :device AS device, :type AS type, :metric AS metric, :value AS v, :text AS t, :time AS at",
    message_class="telemetry",
    topic="t",
)


def sparkplug(kind: str, seq: int, *metrics: dict[str, Any], device: str = "", node: str = "n") -> Publish:
    message = Payload(timestamp=1000, metrics=metrics)
    if kind != "NDEATH":
        message.seq = seq
    topic = f"spBv1.0/g/{kind}/{node}" + (f"/{device}" if device else "")
    return Publish(message.SerializeToString(), topic=topic)


def birth(number: int = 7) -> Publish:
    return sparkplug(
        "NBIRTH",
        0,
        {"name": "bdSeq", "datatype": INT64, "long_value": number},
        {"name": "temp", "alias": 1, "datatype": FLOAT, "float_value": 20.5},
    )


def said(gateway: Gateway) -> list[tuple[object, ...]]:
    return [(row["type"], row["device"], row["metric"], row["v"], row["t"]) for row in gateway.means()]


async def test_data_have_the_names_of_their_birth_over_restarts_too(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, [COPY], schemas=[PLANT])
    async with gateway.running() as runner:
        await runner.process([birth()])
        metric = {"name": "door", "alias": 4, "datatype": INT16, "int_value": 0xFFFF}
        await runner.process([sparkplug("DBIRTH", 1, metric, device="d")])
    async with gateway.running() as runner:
        await runner.process(
            [
                sparkplug("NDATA", 2, {"alias": 1, "float_value": 21.5}, {"alias": 1, "is_null": True, "timestamp": 5}),
                sparkplug("DDATA", 3, {"alias": 4, "int_value": 0xFFFE}, device="d"),
                sparkplug("DDATA", 4, {"name": "why", "datatype": STRING, "string_value": "wind"}, device="d"),
                sparkplug("DDEATH", 5, device="d"),
                sparkplug("NDEATH", 0, {"name": "bdSeq", "datatype": INT64, "long_value": 7}),
            ]
        )
    assert said(gateway) == [
        ("NBIRTH", None, "bdSeq", 7.0, None),
        ("NBIRTH", None, "temp", 20.5, None),
        ("DBIRTH", "d", "door", -1.0, None),
        ("NDATA", None, "temp", 21.5, None),
        ("NDATA", None, "temp", None, None),
        ("DDATA", "d", "door", -2.0, None),
        ("DDATA", "d", "why", None, "wind"),
        ("DDEATH", "d", None, None, None),
        ("NDEATH", None, None, None, None),
    ]
    assert [row["at"] for row in gateway.means()[3:5]] == [1000, 5]
    assert gateway.intake().logged == 7


async def test_what_has_no_birth_is_quarantined_with_the_reason(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, [COPY], schemas=[PLANT])
    death = {"name": "bdSeq", "datatype": INT64, "long_value": 7}
    async with gateway.running() as runner:
        await runner.process(
            [
                sparkplug("NDATA", 1, {"alias": 1, "float_value": 1.0}),
                birth(7),
                sparkplug("DDATA", 1, {"alias": 1, "float_value": 1.0}, device="d"),
                sparkplug("NDATA", 1, {"alias": 9, "float_value": 1.0}),
                birth(8),
                sparkplug("NDEATH", 0, death),  # the last connection's will, late
                sparkplug("NDATA", 1, {"alias": 1, "float_value": 2.0}),
                sparkplug("NDEATH", 0, death | {"long_value": 8}),
                sparkplug("NDATA", 2, {"alias": 1, "float_value": 3.0}),
                Publish(b"\xff", topic="spBv1.0/g/NDATA/n"),
                sparkplug("NCMD", 0, {"name": "x"}),
                Publish(b"{}", topic="spBv1.0/STATE/host"),
            ]
        )
        assert runner.replayable("") == []
    book = gateway.intake()
    assert book.quarantined == {"no birth": 3, "unknown alias": 1, "death of an earlier birth": 1, "not Sparkplug": 1}
    assert book.refused == {"no word of a node": 2}
    assert [row["v"] for row in gateway.means() if row["type"] == "NDATA"] == [2.0]


async def test_a_gap_in_the_sequence_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gateway = Gateway(tmp_path, [COPY], schemas=[PLANT])
    data = {"alias": 1, "float_value": 1.0}
    with caplog.at_level(logging.WARNING):
        async with gateway.running() as runner:
            await runner.process([birth(), sparkplug("NDATA", 1, data), sparkplug("NDATA", 4, data)])
            await runner.process([sparkplug("NDATA", seq % 256, data) for seq in range(5, 300)])
    gaps = [record.getMessage() for record in caplog.records if "messages are missing" in record.getMessage()]
    assert gaps == ["sparkplug node g/n: seq 4 came where 2 was due; messages are missing"]


async def test_a_window_takes_each_metric_and_survives_a_restart(tmp_path: Path) -> None:
    total = RuleConfig(
        name="sum",
        schema="plant",
        sql="SELECT sum(value) AS v, group_concat(metric) AS m FROM plant",
        message_class="telemetry",
        topic="t",
        count=4,
    )
    gateway = Gateway(tmp_path, [total], schemas=[PLANT])
    async with gateway.running() as runner:
        await runner.process([birth()])
    async with gateway.running() as runner:
        data = [{"alias": 1, "float_value": float(value)} for value in (1, 2)]
        await runner.process([sparkplug("NDATA", 1, *data)])
    assert gateway.means() == [{"v": 30.5, "m": "bdSeq,temp,temp,temp"}]


async def test_a_message_of_which_one_metric_fails_is_counted_once(tmp_path: Path) -> None:
    failing = RuleConfig(
        name="f",
        schema="plant",
        sql="SELECT abs(iif(:value > 20, -9223372036854775807 - 1, 1)) AS v",
        message_class="alarm",
        topic="t",
    )
    gateway = Gateway(tmp_path, [failing, COPY], schemas=[PLANT])
    async with gateway.running() as runner:
        await runner.process([birth(), sparkplug("NDATA", 1, *[{"alias": 1, "float_value": 30.0}] * 3)])
    book = gateway.intake()
    assert (book.received, book.quarantined) == (2, {"rule f: SQL error": 2})
    assert len(gateway.reader.quarantine()) == 2


def test_fields_that_it_does_not_give_are_a_mistake() -> None:
    with pytest.raises(ConfigError, match="temp = 'real' is nothing that the format sparkplug gives"):
        Schema(SchemaConfig(name="s", topics=("#",), fields=(("temp", "real"),), format="sparkplug"))


@given(st.sampled_from(["NBIRTH", "NDATA", "NDEATH"]), st.binary(max_size=300))
def test_any_bytes_are_taken_or_not_and_nothing_else_happens(kind: str, payload: bytes) -> None:
    memory = Memory(limit=10)
    schema = Schema(PLANT)
    schema.decode_all("spBv1.0/g/NBIRTH/n", birth().payload, memory)
    try:
        rows = schema.decode_all(f"spBv1.0/g/{kind}/n", payload, memory)
    except NotAccepted:
        return
    assert all(len(row) == len(FIELDS) for row in rows)


def test_devices_that_are_dead_take_no_room() -> None:
    memory = Memory(limit=100)
    schema = Schema(PLANT)
    messages = [birth()]
    for number in range(9):
        device = f"d{number}"
        messages.append(sparkplug("DBIRTH", 2 * number + 1, device=device))
        messages.append(sparkplug("DDEATH", 2 * number + 2, device=device))
    for message in messages:
        schema.decode_all(message.topic, message.payload, memory)
    memory.begin("#plant")
    assert memory.get("node", "g/n")["devices"] == {}
    late = sparkplug("DDEATH", 19, device="d1")
    with pytest.raises(NotAccepted, match="no DBIRTH"):
        schema.decode_all(late.topic, late.payload, memory)
