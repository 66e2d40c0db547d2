"""How a row of the log looks to a receiver."""

from __future__ import annotations

import base64
import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import orjson

from lockgate.buffer import Row
from lockgate.telemetry.clock import Clock

_MS: Final = 1_000_000


def json_text(payload: bytes) -> str | None:
    """The payload as text where it is JSON, None where it is not."""
    try:
        orjson.loads(payload)
        return payload.decode()
    except (orjson.JSONDecodeError, UnicodeDecodeError):
        return None


class Messages:
    """Names and writes the messages of one gateway."""

    def __init__(self, gateway_id: str) -> None:
        self.gateway_id = gateway_id
        self._clock = Clock()
        self._boots: Mapping[str, int] = {}

    def learn(self, boots: Mapping[str, int]) -> None:
        """Take what wall time the CLOCK_BOOTTIME of boots counts from, as `LogReader.boots` gives it."""
        self._boots = boots

    def id_of(self, row: Row) -> str:
        """The same for every attempt to deliver this row, and for no other row."""
        return f"{self.gateway_id}/{row.seq}"

    def document(self, row: Row) -> bytes:
        """Give the JSON object of a row.

        `time` is the wall time of the append and `device_time` what the device or the rule said, both Unix
        milliseconds; `clock_ok` is false where the gateway's clock was not known to be right. A payload that is not
        JSON is `payload_base64`.
        """
        wall_ns, clock_ok = self.wall_time(row)
        content: dict[str, object] = {
            "id": self.id_of(row),
            "topic": row.topic,
            "class": row.message_class,
            "time": wall_ns // _MS,
            "clock_ok": clock_ok,
        }
        if row.device_ts is not None:
            content["device_time"] = row.device_ts
        try:
            content["payload"] = orjson.loads(row.payload)
        except orjson.JSONDecodeError:
            content["payload_base64"] = base64.b64encode(row.payload).decode()
        return orjson.dumps(content)

    def name_of(self, rows: Sequence[Row]) -> str:
        """`class/YYYY/MM/DD/GATEWAY-FIRST-LAST` of a batch; the date is that of its first message."""
        day = datetime.datetime.fromtimestamp(self.wall_time(rows[0])[0] / 1e9, datetime.UTC)
        gateway = self.gateway_id.replace("/", "_")
        return f"{rows[0].message_class}/{day:%Y/%m/%d}/{gateway}-{rows[0].seq:012}-{rows[-1].seq:012}"

    def documents(self, rows: Iterable[Row], before: bytes, between: bytes, after: bytes) -> bytes:
        """Give the JSON objects of rows with something around and between them.

        Written one after the other: orjson takes a KiB or more for each object, as long as that lives.
        """
        written = bytearray(before)
        for place, row in enumerate(rows):
            if place:
                written += between
            written += self.document(row)
        written += after
        return bytes(written)

    def wall_time(self, row: Row) -> tuple[int, bool]:
        """The wall time of a row, and whether it is right; corrected once the clock of its boot has been right."""
        if not row.clock_ok:
            if row.boot_id in self._boots:
                return row.boottime_ns + self._boots[row.boot_id], True
            now = self._clock.now()
            if now.clock_ok and now.boot_id == row.boot_id:
                return now.wall_ns - (now.boottime_ns - row.boottime_ns), True
        return row.wall_ns, row.clock_ok
