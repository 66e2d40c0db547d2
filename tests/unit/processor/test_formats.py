"""Payloads of every format, and what becomes of those that do not fit."""

from __future__ import annotations

import contextlib
import io
import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import cbor2
import fastavro
import msgpack
import pytest
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2
from hypothesis import given
from hypothesis import strategies as st

from lockgate.buffer.ledger import IntakeBook
from lockgate.config.errors import ConfigError
from lockgate.config.model import RuleConfig, SchemaConfig
from lockgate.processor.schemas import NotAccepted, Schema
from tests.support.processor import MEAN, SECOND, Gateway, Publish, reading

FIELDS: Any = (("value", "real"), ("count", "integer"), ("unit", "text"))
DOCUMENT = {"value": 21.5, "count": 3, "unit": "C", "more": [1, {"a": None}]}
ROW = [21.5, 3, "C"]
AVRO = {
    "type": "record",
    "name": "Reading",
    "fields": [
        {"name": "value", "type": "double"},
        {"name": "count", "type": "long"},
        {"name": "unit", "type": "string"},
    ],
}


def schema(**keys: Any) -> Schema:
    return Schema(SchemaConfig(name="s", topics=("#",), **({"fields": FIELDS} | keys)))


@pytest.fixture
def avro(tmp_path: Path) -> Path:
    path = tmp_path / "reading.avsc"
    path.write_text(json.dumps(AVRO))
    return path


@pytest.fixture
def descriptor(tmp_path: Path) -> Path:
    """What protoc would write for a message with these fields."""
    file = descriptor_pb2.FileDescriptorProto(name="reading.proto", package="plant", syntax="proto3")
    message = file.message_type.add(name="Reading")
    kind = descriptor_pb2.FieldDescriptorProto
    for number, (name, type_) in enumerate(
        (("value", kind.TYPE_DOUBLE), ("count", kind.TYPE_INT64), ("unit", kind.TYPE_STRING)), start=1
    ):
        message.field.add(name=name, number=number, type=type_, label=kind.LABEL_OPTIONAL)
    path = tmp_path / "reading.desc"
    path.write_bytes(descriptor_pb2.FileDescriptorSet(file=[file]).SerializeToString())
    return path


def protobuf(descriptor: Path, **fields: Any) -> bytes:
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(descriptor.read_bytes()).file:
        pool.Add(file)
    payload: bytes = message_factory.GetMessageClass(pool.FindMessageTypeByName("plant.Reading"))(
        **fields
    ).SerializeToString()
    return payload


def test_text_is_one_value() -> None:
    real = schema(format="text", fields=(("value", "real"),))
    assert real.decode(b"21.5") == [21.5]
    assert real.decode(b" -3\n") == [-3.0]
    assert schema(format="text", fields=(("n", "integer"),)).decode(b"7") == [7]
    assert schema(format="text", fields=(("state", "text"),)).decode("an — ü".encode()) == ["an — ü"]
    for payload, reason in ((b"warm", "field value not real"), (b"\xff", "not UTF-8"), (b"", "field value not real")):
        with pytest.raises(NotAccepted) as caught:
            real.decode(payload)
        assert caught.value.reason == reason


def test_binary_documents_are_read(avro: Path, descriptor: Path) -> None:
    assert schema(format="msgpack").decode(msgpack.packb(DOCUMENT)) == ROW
    assert schema(format="cbor").decode(cbor2.dumps(DOCUMENT)) == ROW
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, AVRO, {name: DOCUMENT[name] for name in ("value", "count", "unit")})
    assert schema(format="avro", avro_schema=avro).decode(stream.getvalue()) == ROW
    plant = schema(format="protobuf", descriptor=descriptor, message="plant.Reading")
    assert plant.decode(protobuf(descriptor, value=21.5, count=3, unit="C")) == ROW
    assert plant.decode(protobuf(descriptor, value=1.0, count=2**53 + 1)) == [1.0, 2**53 + 1, ""]


@pytest.mark.parametrize("name", ["msgpack", "cbor", "avro", "protobuf", "json", "text"])
def test_any_bytes_are_taken_or_not_and_nothing_else_happens(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("formats")
    keys: dict[str, Any] = {}
    if name == "avro":
        (folder / "a.avsc").write_text(json.dumps(AVRO))
        keys = {"avro_schema": folder / "a.avsc"}
    elif name == "protobuf":
        path = descriptor.__wrapped__(folder)  # type: ignore[attr-defined]
        keys = {"descriptor": path, "message": "plant.Reading"}
    elif name == "text":
        keys = {"fields": (("value", "real"),)}
    one = schema(format=name, **keys)

    @given(st.binary(max_size=200) | st.builds(msgpack.packb, st.dictionaries(st.text(), st.integers(-9, 9))))
    def tries(payload: bytes) -> None:
        try:
            values = one.decode(payload)
        except NotAccepted:
            return
        assert all(type(value) in (int, float, str) for value in values)
        assert one.decode_logged(one.to_log(payload, [*values, "topic", 0])) == pytest.approx(values, nan_ok=True)

    tries()


@pytest.mark.parametrize(
    ("keys", "key", "problem"),
    [
        ({"format": "text"}, "fields", "is one value"),
        ({"format": "avro"}, "avro_schema", "is missing"),
        ({"format": "protobuf", "descriptor": Path("x")}, "message", "is missing"),
        ({"format": "json", "avro_schema": Path("x")}, "avro_schema", "means nothing to the format json"),
        ({"format": "avro", "avro_schema": Path("/none.avsc")}, "avro_schema", "cannot be read"),
        ({"json_schema": Path("/none.json")}, "json_schema", "cannot be read"),
    ],
)
def test_a_format_that_cannot_be_used_is_named(keys: dict[str, Any], key: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        schema(**keys)
    assert caught.value.key == f"schemas.s.{key}"


def test_files_that_are_wrong_are_named(tmp_path: Path, descriptor: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_bytes(b"{\n]")
    with pytest.raises(ConfigError, match="wrong:2: "):
        schema(json_schema=wrong)
    with pytest.raises(ConfigError, match="avro_schema"):
        schema(format="avro", avro_schema=wrong)
    with pytest.raises(ConfigError, match="descriptor"):
        schema(format="protobuf", descriptor=wrong, message="x")
    with pytest.raises(ConfigError, match=r"'plant.Reeding' cannot be used.*accepted: plant.Reading"):
        schema(format="protobuf", descriptor=descriptor, message="plant.Reeding")
    wrong.write_text('{"type": "objekt"}')
    with pytest.raises(ConfigError, match="type: 'objekt' is not"):
        schema(json_schema=wrong)


def test_a_library_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cbor2", None)
    with pytest.raises(ConfigError, match=r"not installed.*pip install lockgate\[formats\]"):
        schema(format="cbor")


def test_no_library_is_imported_that_nobody_asked_for() -> None:
    code = (
        "import sys, lockgate.processor.service\n"
        "print({'msgpack', 'cbor2', 'google.protobuf', 'fastavro', 'jsonschema'} & set(sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "set()\n"


# --- misfits ----------------------------------------------------------------------------------------------------------


def test_the_json_schema_is_the_gate(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"properties": {"value": {"maximum": 100}, "more": {"items": {"type": "integer"}}}}))
    gated = schema(json_schema=path)
    assert gated.decode(json.dumps(DOCUMENT | {"more": [1]}).encode()) == ROW
    with pytest.raises(NotAccepted, match="more/1: {'a': None} is not of type 'integer'") as caught:
        gated.decode(json.dumps(DOCUMENT).encode())
    assert caught.value.reason == "not of its JSON Schema"


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"value": "21.5", "count": "3", "unit": 7}, [21.5, 3, "7"]),
        ({"value": True, "count": 3.0, "unit": "C"}, [1.0, 3, "C"]),
        ({"value": 1, "count": str(2**62 + 1), "unit": 2.5}, [1.0, 2**62 + 1, "2.5"]),
        ({"value": 1, "count": 3.5, "unit": "C"}, "field count not integer"),
        ({"value": "warm", "count": 3, "unit": "C"}, "field value not real"),
        ({"value": "inf", "count": 3, "unit": "C"}, "field value not real"),
        ({"value": 1, "count": "1e400", "unit": "C"}, "field count not integer"),
        ({"value": 1, "count": "nan", "unit": "C"}, "field count not integer"),
        ({"value": 1, "count": 3, "unit": True}, "field unit not text"),
        ({"value": 1, "count": 3}, "field unit missing"),
    ],
)
def test_coercion_loses_nothing(document: dict[str, object], expected: object) -> None:
    coercing = schema(misfits="coerce")
    try:
        found: object = coercing.decode(json.dumps(document).encode())
    except NotAccepted as error:
        found = error.reason
    assert found == expected


async def test_misfits_are_counted_as_the_schema_says(tmp_path: Path) -> None:
    rule = RuleConfig(name="r", schema="s", sql="SELECT :value AS v", message_class="telemetry", topic="t")
    books = {}
    for misfits in ("quarantine", "refuse", "coerce"):
        one = SchemaConfig(name="s", topics=("s",), fields=(("value", "real"),), misfits=misfits)
        gateway = Gateway(tmp_path / misfits, [rule], schemas=[one])
        async with gateway.running() as runner:
            await runner.process([Publish(b'{"value": "1"}', topic="s"), Publish(b"{}", topic="s")])
        books[misfits] = gateway.intake()
    not_real, missing = "field value not real", "field value missing"
    assert books == {
        "quarantine": IntakeBook(received=2, quarantined={not_real: 1, missing: 1}),
        "refuse": IntakeBook(received=2, refused={not_real: 1, missing: 1}),
        "coerce": IntakeBook(received=2, logged=1, quarantined={missing: 1}),
    }


async def test_a_window_over_a_binary_format_survives_a_restart(tmp_path: Path) -> None:
    total = RuleConfig(
        name="r", schema="s", sql="SELECT sum(value) AS v FROM s", message_class="telemetry", topic="t", count=2
    )
    one = SchemaConfig(name="s", topics=("s",), fields=(("value", "real"),), format="cbor")
    gateway = Gateway(tmp_path, [total], schemas=[one])
    for value in (1, 2):
        async with gateway.running() as runner:
            await runner.process([Publish(cbor2.dumps({"value": value}), topic="s")])
    assert gateway.means() == [{"v": 3.0}]


def test_what_a_library_stumbles_over_is_not_accepted(tmp_path: Path) -> None:
    """Nothing else may be raised: the processor would stop, and stop again when the Server sends the message anew."""
    well_known = descriptor_pb2.FileDescriptorProto(name="r.proto", package="plant", syntax="proto3")
    message = well_known.message_type.add(name="Reading")
    kind = descriptor_pb2.FieldDescriptorProto
    message.field.add(name="value", number=1, type=kind.TYPE_DOUBLE, label=kind.LABEL_OPTIONAL)
    files = descriptor_pb2.FileDescriptorSet()
    for number, (module, name) in enumerate(((timestamp_pb2, "Timestamp"), (any_pb2, "Any")), start=2):
        module.DESCRIPTOR.CopyToProto(files.file.add())
        well_known.dependency.append(f"google/protobuf/{name.lower()}.proto")
        message.field.add(
            name=name.lower(), number=number, type=kind.TYPE_MESSAGE, type_name=f".google.protobuf.{name}",
            label=kind.LABEL_OPTIONAL,
        )  # fmt: skip
    files.file.append(well_known)
    path = tmp_path / "reading.desc"
    path.write_bytes(files.SerializeToString())
    protobuf_schema = schema(format="protobuf", descriptor=path, message="plant.Reading", fields=(("value", "real"),))
    inner = timestamp_pb2.Timestamp(seconds=10**15).SerializeToString()
    unknown = any_pb2.Any(type_url="x/y.Z", value=b"1").SerializeToString()
    for one, payload in (
        (schema(format="msgpack"), b"\x81\x92\x01\x02\xc0"),  # a map whose key is a list
        (schema(format="cbor"), cbor2.dumps({"value": 10**400, "count": 1, "unit": "C"})),
        (protobuf_schema, b"\x12" + bytes([len(inner)]) + inner),
        (protobuf_schema, b"\x1a" + bytes([len(unknown)]) + unknown),
    ):
        with pytest.raises(NotAccepted):
            one.decode(payload)


def test_numbers_that_json_does_not_know_count_as_missing() -> None:
    """The log is JSON: a window would see something else after a restart."""
    real: Any = {"format": "text", "fields": (("value", "real"),)}
    for payload in (b"nan", b"-inf", b"1e999"):
        with pytest.raises(NotAccepted, match="field value missing"):
            schema(**real).decode(payload)
        assert schema(**real, optional=frozenset({"value"})).decode(payload) == [None]


@pytest.mark.parametrize(
    ("said", "keys", "payload"),
    [
        ({"properties": {"a": {"$ref": "#"}}}, {}, b'{"a":' * 900 + b"1" + b"}" * 900),
        ({"$ref": "#/$defs/none"}, {}, json.dumps(DOCUMENT).encode()),
        ({"patternProperties": {"^a": {}}}, {"format": "msgpack"}, msgpack.packb({1: 2})),
        ({"properties": {"more": {"multipleOf": 0.1}}}, {"format": "cbor"}, cbor2.dumps(DOCUMENT | {"more": 10**400})),
    ],
)
def test_what_cannot_be_held_against_a_json_schema_is_not_accepted(
    tmp_path: Path, said: Any, keys: Any, payload: bytes
) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(said))
    with pytest.raises(NotAccepted, match="cannot be held against its JSON Schema"):
        schema(json_schema=path, **keys).decode(payload)


@pytest.mark.parametrize("said", [b"5", b"\xff\xfe{", b'{"$schema": 5}', b'{"$schema": ["a"]}', b"[" * 100_000])
def test_a_file_that_is_no_json_schema_is_named(tmp_path: Path, said: bytes) -> None:
    path = tmp_path / "schema.json"
    path.write_bytes(said)
    with pytest.raises(ConfigError, match="schema.json"):
        schema(json_schema=path)


@pytest.mark.parametrize("said", ["5", "null", '{"type": "array"}', '{"type": "enum", "name": "e"}'])
def test_a_file_that_is_no_avro_schema_is_named(tmp_path: Path, said: str) -> None:
    path = tmp_path / "schema.avsc"
    path.write_text(said)
    with pytest.raises(ConfigError, match="schema.avsc"):
        schema(format="avro", avro_schema=path)


def test_a_number_in_a_text_loses_nothing_below_zero_either() -> None:
    one = schema(misfits="coerce", fields=(("n", "integer"),))
    assert one.decode(b'{"n": "-9007199254740993"}') == [-9007199254740993]


async def test_a_damaged_message_in_the_log_is_left_out_of_its_window(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, [MEAN])
    async with gateway.running() as runner:
        await runner.process([reading(10), reading(20)])
    (path,) = tmp_path.glob("segment-*.sqlite")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("""UPDATE log SET payload = CAST('{"value":1' AS BLOB) WHERE seq = 1""")
        connection.commit()
    async with gateway.running() as runner:
        gateway.clock.boottime_ns += 20 * SECOND
        await runner.close_windows()
    assert [mean["all_values"] for mean in gateway.means()] == ["20.0"]
