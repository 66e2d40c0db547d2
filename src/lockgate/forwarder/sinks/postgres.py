"""Rows of a table of PostgreSQL (or TimescaleDB): COPY into a staging table, then INSERT … ON CONFLICT DO NOTHING."""

from __future__ import annotations

import asyncio
import datetime
import re
from collections.abc import Sequence
from typing import Any, Final

from lockgate.buffer import Row
from lockgate.config.errors import ConfigError
from lockgate.config.libraries import library
from lockgate.config.model import PostgresSinkConfig
from lockgate.config.secrets import first_line_text
from lockgate.forwarder.messages import Messages, json_text
from lockgate.forwarder.sinks import Sent, halve

_COLUMNS: Final = ("id", "class", "topic", "time", "clock_ok", "device_time", "payload", "payload_raw")
_CREATE: Final = """
CREATE TABLE IF NOT EXISTS {table} (
    id text PRIMARY KEY, class text NOT NULL, topic text NOT NULL, time timestamptz NOT NULL, clock_ok boolean NOT NULL,
    device_time timestamptz, payload jsonb, payload_raw bytea
)
"""
_STAGING: Final = """
CREATE TEMP TABLE lockgate_staging (
    id text, class text, topic text, time timestamptz, clock_ok boolean, device_time timestamptz, payload text,
    payload_raw bytea
) ON COMMIT DELETE ROWS
"""
_ABOUT_THE_ROW: Final = ("22", "23")  # SQLSTATE classes: data exception, integrity constraint violation
# Classes that tell of the connection, the server or its resources. Any other refusal may be for one row alone, as by a
# trigger (P0001), a policy (42501) or an index whose entries have a greatest size (54000).
_NOT_ABOUT_THE_ROW: Final = ("08", "25", "28", "3D", "40", "53", "55", "57", "58")
_EARLIEST, _LATEST = -62_135_596_800_000, 253_402_300_799_999  # Unix milliseconds of the years 1 to 9999


class PostgresSink:
    """One transaction for a batch; a row that is there already stays as it is.

    A batch that PostgreSQL refuses for its data is halved until the row is found. The table is made where it is
    missing; one of our own, say a hypertable, needs these columns and a unique index that holds `id`.
    """

    def __init__(self, config: PostgresSinkConfig, messages: Messages) -> None:
        self._asyncpg = library("asyncpg", "postgres", f"sinks.{config.name}")
        self._config = config
        self._messages = messages
        self._table = ".".join(_quoted(part) for part in config.table.split("."))
        self._connection: Any = None

    async def send(self, rows: Sequence[Row]) -> Sent:
        timeout = self._config.timeout_seconds
        try:
            async with asyncio.timeout(timeout):
                connection = await self._connected()
                await self._write(connection, rows)
            return Sent(len(rows))
        except TimeoutError:
            await self.close()
            return Sent(0, fault=f"no answer within {timeout:g} seconds")
        except self._asyncpg.PostgresError as error:
            reason, state = f"{error} (SQLSTATE {error.sqlstate})", str(error.sqlstate or "")
            if not state.startswith(_ABOUT_THE_ROW):
                await self.close()
                return Sent(0, fault=reason, answered=bool(state) and not state.startswith(_NOT_ABOUT_THE_ROW))
        except (self._asyncpg.InterfaceError, ConfigError, OSError) as error:
            await self.close()
            return Sent(0, fault=str(error) or type(error).__name__)
        return await halve(self.send, rows, reason)

    async def close(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.terminate()  # a server that hangs is not waited for

    async def _connected(self) -> Any:
        if self._connection is None or self._connection.is_closed():
            password = first_line_text(self._config.password_file) if self._config.password_file is not None else None
            options = {} if password is None else {"password": password}
            connection = await self._asyncpg.connect(
                self._config.url, timeout=self._config.timeout_seconds, **options,
                server_settings={"application_name": "lockgate"},
            )  # fmt: skip
            self._connection = connection
            exists = await connection.fetchval("SELECT to_regclass($1)", self._table)
            if exists is None:
                await connection.execute(_CREATE.format(table=self._table))
            await connection.execute(_STAGING)
        return self._connection

    async def _write(self, connection: Any, rows: Sequence[Row]) -> None:
        columns = ", ".join(_COLUMNS)
        async with connection.transaction():
            await connection.copy_records_to_table(
                "lockgate_staging", records=[self._record(row) for row in rows], columns=_COLUMNS
            )
            await connection.execute(
                f"INSERT INTO {self._table} ({columns}) SELECT {columns.replace('payload,', 'payload::jsonb,')}"
                " FROM lockgate_staging ON CONFLICT DO NOTHING"
            )

    def _record(self, row: Row) -> tuple[object, ...]:
        wall_ns, clock_ok = self._messages.wall_time(row)
        payload = json_text(row.payload)
        return (
            self._messages.id_of(row), row.message_class, row.topic, _time(wall_ns // 1_000_000), clock_ok,
            None if row.device_ts is None else _time(row.device_ts), payload, row.payload if payload is None else None,
        )  # fmt: skip


def _time(unix_ms: int) -> datetime.datetime:
    """A time PostgreSQL can hold; one beyond the years 1 to 9999, which a device may send, becomes the nearest."""
    at = min(max(unix_ms, _EARLIEST), _LATEST)
    return datetime.datetime.fromtimestamp(0, datetime.UTC) + datetime.timedelta(milliseconds=at)


def _quoted(name: str) -> str:
    return '"' + re.sub('"', '""', name) + '"'
