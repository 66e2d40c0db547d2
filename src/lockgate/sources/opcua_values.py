"""Values of OPC UA as JSON: never a bad one as if it were good."""

from __future__ import annotations

import base64
import dataclasses
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Final
from uuid import UUID

_DEPTH: Final = 20  # of structures within structures


def message(data: Any, now_ms: int) -> dict[str, object]:
    """Give what is published of a DataValue.

    The time is the source's, else the server's, else `now_ms`, all Unix milliseconds. A bad value is null: what a
    server gives with it may be anything.
    """
    status = data.StatusCode
    is_bad = status is not None and status.is_bad()
    value = None if is_bad or data.Value is None else to_json(data.Value.Value)
    said = data.SourceTimestamp or data.ServerTimestamp
    time = round(_aware(said).timestamp() * 1000) if said is not None else now_ms
    return {"value": value, "status": status.name if status is not None else "Good", "time": time}


def to_json(value: object, depth: int = 0) -> object:
    """Give a value as JSON has it; what has no such form is text."""
    if depth > _DEPTH:
        return str(value)
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Enum):
        return value.value if isinstance(value.value, int | str) else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int):
        return value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime):
        return _aware(value).isoformat().replace("+00:00", "Z")
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, list | tuple):
        return [to_json(one, depth + 1) for one in value]
    if isinstance(value, Mapping):
        return {str(name): to_json(one, depth + 1) for name, one in value.items()}
    for name in ("Text", "Name"):  # of a LocalizedText, of a QualifiedName
        if type(value).__name__ in ("LocalizedText", "QualifiedName") and hasattr(value, name):
            return to_json(getattr(value, name))
    if type(value).__name__ == "NodeId":
        return value.to_string()  # type: ignore[attr-defined]
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value) if field.name not in ("Encoding", "TypeId")]
        return {name: to_json(getattr(value, name), depth + 1) for name in names}
    return str(value)


def _aware(time: datetime) -> datetime:
    """OPC UA speaks UTC, whether the library says so or not."""
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
