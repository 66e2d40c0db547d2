"""Apache Parquet: the members of the JSON object of a message as columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lockgate.buffer import Row
from lockgate.config.libraries import library
from lockgate.forwarder.messages import Messages, json_text

_CODECS = {"none": "none", "gzip": "gzip", "zstd": "zstd"}


class Parquet:
    """Writes a batch as one file, whose schema is always the same.

    `payload` is the JSON as it came, `payload_raw` a payload that is no JSON; times are milliseconds of UTC.
    """

    def __init__(self, sink: str, compression: str, messages: Messages) -> None:
        self._arrow = library("pyarrow", "parquet", sink)
        self._parquet = library("pyarrow.parquet", "parquet", sink)
        self._codec = _CODECS[compression]
        self._messages = messages
        arrow = self._arrow
        time = arrow.timestamp("ms", tz="UTC")
        self._schema = arrow.schema(
            [
                arrow.field("id", arrow.string(), nullable=False),
                arrow.field("topic", arrow.string(), nullable=False),
                arrow.field("class", arrow.string(), nullable=False),
                arrow.field("time", time, nullable=False),
                arrow.field("clock_ok", arrow.bool_(), nullable=False),
                arrow.field("device_time", time),
                arrow.field("payload", arrow.string()),
                arrow.field("payload_raw", arrow.binary()),
            ]
        )

    def write(self, rows: Sequence[Row]) -> bytes:
        """Any thread may."""
        records = [self._record(row) for row in rows]
        columns = [
            self._arrow.array(values, field.type)
            for field, values in zip(self._schema, zip(*records, strict=True), strict=True)
        ]
        out = self._arrow.BufferOutputStream()
        table = self._arrow.Table.from_arrays(columns, schema=self._schema)
        self._parquet.write_table(table, out, compression=self._codec)
        written: bytes = out.getvalue().to_pybytes()
        return written

    def _record(self, row: Row) -> tuple[Any, ...]:
        wall_ns, clock_ok = self._messages.wall_time(row)
        payload = json_text(row.payload)
        return (
            self._messages.id_of(row), row.topic, row.message_class, wall_ns // 1_000_000, clock_ok, row.device_ts,
            payload, row.payload if payload is None else None,
        )  # fmt: skip
