"""Sparkplug B: births that give metrics their names, data that use them, deaths, and the sequence that tells a gap.

A message becomes a document for each metric; a death becomes one without a metric. What the births said is remembered
and kept over restarts, for data give metrics by an alias alone.
"""

from __future__ import annotations

import logging
from typing import Any, Final, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from lockgate.processor.formats import NotAccepted
from lockgate.processor.state import Memory

log = logging.getLogger(__name__)

# What fields a schema of this format may have: the metric, and where it comes from
FIELDS: Final = {
    "group": "text",
    "node": "text",
    "device": "text",
    "type": "text",
    "metric": "text",
    "value": "real",
    "text": "text",
    "time": "integer",
    "historical": "integer",
}
MAY_BE_NULL: Final = frozenset({"device", "metric", "value", "text"})
_OF_NODES: Final = frozenset({"NBIRTH", "NDATA", "NDEATH"})
_OF_DEVICES: Final = frozenset({"DBIRTH", "DDATA", "DDEATH"})
_SIGNED: Final = {1: 8, 2: 16, 3: 32, 4: 64}  # data types Int8 to Int64: bits
_BYTE: Final = 256  # seq counts to 255


class Ignored(NotAccepted):
    """A message of Sparkplug that is no word of a node: commands and the state of hosts."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.refused = True


class Place(NamedTuple):
    group: str
    node: str
    device: str  # empty: the node itself


def _payload_class() -> Any:
    """The Payload of the specification, as far as metrics go; the rest is passed over."""
    kind = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="sparkplug.proto", package="sparkplug", syntax="proto2")
    metric, payload = file.message_type.add(name="Metric"), file.message_type.add(name="Payload")
    for number, name, type_ in (
        (1, "name", kind.TYPE_STRING),
        (2, "alias", kind.TYPE_UINT64),
        (3, "timestamp", kind.TYPE_UINT64),
        (4, "datatype", kind.TYPE_UINT32),
        (5, "is_historical", kind.TYPE_BOOL),
        (7, "is_null", kind.TYPE_BOOL),
        (10, "int_value", kind.TYPE_UINT32),
        (11, "long_value", kind.TYPE_UINT64),
        (12, "float_value", kind.TYPE_FLOAT),
        (13, "double_value", kind.TYPE_DOUBLE),
        (14, "boolean_value", kind.TYPE_BOOL),
        (15, "string_value", kind.TYPE_STRING),
    ):
        metric.field.add(name=name, number=number, type=type_, label=kind.LABEL_OPTIONAL)
    payload.field.add(name="timestamp", number=1, type=kind.TYPE_UINT64, label=kind.LABEL_OPTIONAL)
    payload.field.add(
        name="metrics", number=2, type=kind.TYPE_MESSAGE, type_name=".sparkplug.Metric", label=kind.LABEL_REPEATED
    )
    payload.field.add(name="seq", number=3, type=kind.TYPE_UINT64, label=kind.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("sparkplug.Payload"))


class Sparkplug:
    """The documents of one schema's messages."""

    def __init__(self) -> None:
        self._payload = _payload_class()

    def decode(self, topic: str, payload: bytes, memory: Memory) -> list[dict[str, object]]:
        """Raises NotAccepted; what is remembered of a message then must not be kept."""
        kind, place = _place(topic)
        try:
            message = self._payload.FromString(payload)
        except DecodeError as error:
            raise NotAccepted("not Sparkplug", str(error)) from None
        node = f"{place.group}/{place.node}"
        if kind == "NDEATH":
            self._end(node, message, memory)
        elif kind == "NBIRTH":
            born = {"seq": message.seq % _BYTE, "bdSeq": _death_number(message), "devices": {}}
            memory.put("node", node, born)
        else:
            self._follow(node, kind, place, message.seq % _BYTE, memory)
        if kind.endswith("BIRTH"):
            aliases = {str(m.alias): [m.name, m.datatype] for m in message.metrics if m.HasField("alias")}
            types = {m.name: m.datatype for m in message.metrics if m.name}
            memory.put("birth", f"{node}/{place.device}", {"aliases": aliases, "types": types})
        if kind.endswith("DEATH"):
            return [_about(place, kind) | {"metric": None, "time": message.timestamp, "historical": 0}]
        documents = []
        known = memory.get("birth", f"{node}/{place.device}")
        for metric in message.metrics:
            name, datatype = _named(metric, known)
            time = metric.timestamp or message.timestamp
            about = {"metric": name, "time": time, "historical": int(metric.is_historical)}
            documents.append(_about(place, kind) | about | _value(metric, datatype))
        return documents

    def _end(self, node: str, message: Any, memory: Memory) -> None:
        born = memory.get("node", node)
        number = _death_number(message)
        if born is not None and number is not None and born["bdSeq"] not in (None, number):
            raise NotAccepted("death of an earlier birth", f"bdSeq {number}, born with {born['bdSeq']}")
        memory.put("node", node, None)

    def _follow(self, node: str, kind: str, place: Place, seq: int, memory: Memory) -> None:
        """A message between birth and death of its node: it must follow on the last."""
        born = memory.get("node", node)
        if born is None:
            raise NotAccepted("no birth", f"{node} has sent no NBIRTH since it was last dead")
        if kind in ("DDATA", "DDEATH") and not born["devices"].get(place.device):
            raise NotAccepted("no birth", f"{place.device} of {node} has sent no DBIRTH since it was last dead")
        expected = (born["seq"] + 1) % _BYTE
        if seq != expected:
            log.warning("sparkplug node %s: seq %d came where %d was due; messages are missing", node, seq, expected)
        devices = dict(born["devices"])
        if kind == "DBIRTH":
            devices[place.device] = True
        elif kind == "DDEATH":
            del devices[place.device]  # it may have been one of ever new names
        memory.put("node", node, born | {"seq": seq, "devices": devices})


def _place(topic: str) -> tuple[str, Place]:
    levels = topic.split("/")
    kind = levels[2] if len(levels) > 2 else ""
    if levels[0] == "spBv1.0" and (
        (len(levels) == 4 and kind in _OF_NODES) or (len(levels) == 5 and kind in _OF_DEVICES)
    ):
        return kind, Place(levels[1], levels[3], levels[4] if len(levels) == 5 else "")
    raise Ignored("no word of a node", f"{topic!r} is not of the kind spBv1.0/GROUP/NDATA/NODE")


def _about(place: Place, kind: str) -> dict[str, object]:
    return {"group": place.group, "node": place.node, "device": place.device or None, "type": kind}


def _named(metric: Any, known: Any) -> tuple[str, int]:
    """A metric's name and data type, from itself or from the birth."""
    if metric.name:
        types = known["types"] if known is not None else {}
        return metric.name, metric.datatype or types.get(metric.name, 0)
    found = known["aliases"].get(str(metric.alias)) if known is not None else None
    if found is None:
        raise NotAccepted("unknown alias", f"no birth has named alias {metric.alias}")
    return found[0], metric.datatype or found[1]


def _value(metric: Any, datatype: int) -> dict[str, object]:
    if metric.is_null:
        return {"value": None, "text": None}
    if metric.HasField("string_value"):
        return {"value": None, "text": metric.string_value}
    for name in ("int_value", "long_value"):
        if metric.HasField(name):
            return {"value": _signed(getattr(metric, name), _SIGNED.get(datatype)), "text": None}
    for name in ("float_value", "double_value", "boolean_value"):
        if metric.HasField(name):
            return {"value": float(getattr(metric, name)), "text": None}
    return {"value": None, "text": None}  # data sets, templates, bytes


def _signed(value: int, bits: int | None) -> float:
    """The specification puts signed numbers into unsigned fields."""
    if bits is None:
        return float(value)
    value &= (1 << bits) - 1
    return float(value - (1 << bits) if value >> (bits - 1) else value)


def _death_number(message: Any) -> float | None:
    """`bdSeq`, which tells the death of this birth from that of an earlier one."""
    for metric in message.metrics:
        if metric.name == "bdSeq":
            value = _value(metric, metric.datatype)["value"]
            return value if isinstance(value, float) else None
    return None
