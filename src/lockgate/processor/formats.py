"""Payloads of every format as documents. A library is imported when a schema asks for its format, and not before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from lockgate.config.errors import ConfigError
from lockgate.config.model import SchemaConfig

Decode = Callable[[bytes], object]


class NotAccepted(Exception):
    """The payload does not fit its schema. `reason` is one of a few, to be counted; `detail` is for a person."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.refused = False  # it is nothing to keep aside, whatever the schema says
        self.detail = detail


def decoder(config: SchemaConfig) -> Decode:
    """What turns the payloads of a schema into documents, raising NotAccepted.

    Raises ConfigError for a format whose library is not installed, or whose files cannot be used.
    """
    for key, wanted in (("descriptor", "protobuf"), ("message", "protobuf"), ("avro_schema", "avro")):
        said = getattr(config, key) is not None
        if said != (config.format == wanted):
            problem = "is missing" if not said else f"means nothing to the format {config.format}"
            raise _mistake(config, key, problem, f'only with format = "{wanted}", and always there')
    try:
        return _DECODERS[config.format](config)
    except ImportError as error:
        problem = f"the library for it is not installed ({error})"
        raise _mistake(config, "format", problem, "pip install lockgate[formats]") from None


def gate(config: SchemaConfig) -> Callable[[object], None] | None:
    """What holds a document against the JSON Schema, raising NotAccepted; None where there is none."""
    if config.json_schema is None:
        return None
    try:
        from jsonschema import SchemaError, exceptions, validators
        from jsonschema_specifications import REGISTRY
    except ImportError as error:
        problem = f"the library for it is not installed ({error})"
        raise _mistake(config, "json_schema", problem, "pip install lockgate[formats]") from None
    text = _read(config, "json_schema", config.json_schema)
    try:
        said = json.loads(text)
        kind = validators.validator_for(said, default=validators.Draft202012Validator)
        kind.check_schema(said)
    except json.JSONDecodeError as error:
        problem = f"{config.json_schema}:{error.lineno}: {error.msg}"
        raise _mistake(config, "json_schema", problem, "a JSON Schema") from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:  # not UTF-8; neither object nor boolean
        raise _mistake(config, "json_schema", f"{config.json_schema}: {error}", "a JSON Schema") from None
    except SchemaError as error:
        place = "/".join(map(str, error.absolute_path))
        raise _mistake(
            config, "json_schema", f"{config.json_schema}: {place}: {error.message}", "a JSON Schema"
        ) from None
    validator = kind(said, registry=REGISTRY)  # which fetches nothing

    def check(document: object) -> None:
        try:
            error = exceptions.best_match(validator.iter_errors(document))
        except Exception as failure:  # a reference to nowhere, a document nested without end, a key that is no text
            detail = f"{type(failure).__name__}: {failure}"[:500]
            raise NotAccepted("cannot be held against its JSON Schema", detail) from None
        if error is not None:
            place = "/".join(map(str, error.absolute_path))
            raise NotAccepted("not of its JSON Schema", f"{place}: {error.message}"[:500])

    return check


def _json(_: SchemaConfig) -> Decode:
    def decode(payload: bytes) -> object:
        try:
            return orjson.loads(payload)
        except orjson.JSONDecodeError as error:
            raise NotAccepted("not JSON", str(error)) from None

    return decode


def _text(config: SchemaConfig) -> Decode:
    if len(config.fields) != 1:
        raise _mistake(config, "fields", "a payload of the format text is one value", "one field")
    ((name, kind),) = config.fields

    def decode(payload: bytes) -> object:
        try:
            said = payload.decode()
            return {name: said if kind == "text" else int(said) if kind == "integer" else float(said)}
        except UnicodeDecodeError as error:
            raise NotAccepted("not UTF-8", str(error)) from None
        except ValueError:
            raise NotAccepted(f"field {name} not {kind}", f"it is {said[:100]!r}") from None

    return decode


def _msgpack(_: SchemaConfig) -> Decode:
    import msgpack

    def decode(payload: bytes) -> object:
        try:
            return msgpack.unpackb(payload, strict_map_key=False)
        except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:  # TypeError: a map as a key
            raise NotAccepted("not MessagePack", str(error) or type(error).__name__) from None

    return decode


def _cbor(_: SchemaConfig) -> Decode:
    from io import BytesIO

    import cbor2

    def decode(payload: bytes) -> object:
        stream = BytesIO(payload)
        try:
            document = cbor2.load(stream)
        except (cbor2.CBORDecodeError, RecursionError, OverflowError) as error:
            raise NotAccepted("not CBOR", str(error)) from None
        if stream.tell() != len(payload):
            raise NotAccepted("not CBOR", "something follows the first item")
        return document

    return decode


def _protobuf(config: SchemaConfig) -> Decode:
    from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
    from google.protobuf.message import DecodeError

    assert config.descriptor is not None
    assert config.message is not None
    pool = descriptor_pool.DescriptorPool()
    try:
        files = descriptor_pb2.FileDescriptorSet.FromString(_read(config, "descriptor", config.descriptor))
        for file in files.file:
            pool.Add(file)
    except (DecodeError, TypeError) as error:
        accepted = "what protoc --include_imports --descriptor_set_out=FILE writes"
        raise _mistake(config, "descriptor", f"{config.descriptor}: {error}", accepted) from None
    try:
        kind = message_factory.GetMessageClass(pool.FindMessageTypeByName(config.message))
    except (KeyError, TypeError) as error:
        known = ", ".join(f"{file.package}.{one.name}".lstrip(".") for file in files.file for one in file.message_type)
        raise _mistake(config, "message", f"{config.message!r} cannot be used: {error}", known or "none") from None

    def decode(payload: bytes) -> object:
        try:
            message = kind.FromString(payload)
        except DecodeError as error:
            raise NotAccepted("not Protobuf", str(error)) from None
        try:
            document = json_format.MessageToDict(
                message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            )
        except (json_format.Error, ValueError, TypeError) as error:  # a Timestamp or an Any that JSON cannot say
            raise NotAccepted("not Protobuf", str(error)) from None
        for field in message.DESCRIPTOR.fields:  # 64-bit integers are text in Protobuf's JSON
            if field.cpp_type in (field.CPPTYPE_INT64, field.CPPTYPE_UINT64) and isinstance(
                document.get(field.name), str
            ):
                document[field.name] = int(document[field.name])
        return document

    return decode


def _avro(config: SchemaConfig) -> Decode:
    from io import BytesIO

    import fastavro
    from fastavro.schema import SchemaParseException

    assert config.avro_schema is not None
    try:
        said: Any = fastavro.parse_schema(json.loads(_read(config, "avro_schema", config.avro_schema)))
    except Exception as error:  # the library meets what it did not expect with whatever Python raises then
        problem = str(error) if isinstance(error, ValueError | SchemaParseException) else repr(error)
        raise _mistake(config, "avro_schema", f"{config.avro_schema}: {problem}", "an Avro schema, in JSON") from None

    def decode(payload: bytes) -> object:
        stream = BytesIO(payload)
        try:
            document = fastavro.schemaless_reader(stream, said, None)
        except Exception as error:  # whatever a reader of foreign bytes meets
            raise NotAccepted("not Avro", f"{type(error).__name__}: {error}") from None
        if stream.tell() != len(payload):
            raise NotAccepted("not Avro", "something follows the record")
        return document

    return decode


def _sparkplug(config: SchemaConfig) -> Decode:
    """What is logged of Sparkplug is JSON; its own payloads need their topic too, see `Schema.decode_all`."""
    from lockgate.processor.sparkplug import FIELDS

    for name, kind in config.fields:
        if FIELDS.get(name) != kind:
            accepted = ", ".join(f'{name} = "{kind}"' for name, kind in FIELDS.items())
            raise _mistake(config, "fields", f"{name} = {kind!r} is nothing that the format sparkplug gives", accepted)
    return _json(config)


_DECODERS: dict[str, Callable[[SchemaConfig], Decode]] = {
    "json": _json,
    "text": _text,
    "msgpack": _msgpack,
    "cbor": _cbor,
    "protobuf": _protobuf,
    "avro": _avro,
    "sparkplug": _sparkplug,
}


def _read(config: SchemaConfig, key: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _mistake(config, key, f"{path} cannot be read: {error.strerror}", "a file") from None


def _mistake(config: SchemaConfig, key: str, problem: str, accepted: str) -> ConfigError:
    return ConfigError(problem, line=config.line, key=f"schemas.{config.name}.{key}", accepted=accepted)
