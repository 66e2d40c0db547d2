"""Objects of an S3-compatible store: JSON lines or Parquet, one object for each batch."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Sequence
from typing import Any

from lockgate.buffer import Row
from lockgate.config.errors import ConfigError
from lockgate.config.libraries import library
from lockgate.config.model import ObjectSinkConfig
from lockgate.config.secrets import first_line_text
from lockgate.forwarder.messages import Messages
from lockgate.forwarder.sinks import Sent
from lockgate.forwarder.sinks.compression import compressor
from lockgate.forwarder.sinks.parquet import Parquet

_SUFFIX = {"none": "", "gzip": ".gz", "zstd": ".zst"}


class ObjectSink:
    """`PREFIX/class/YYYY/MM/DD/GATEWAY-FIRST-LAST.jsonl.zst`; the same batch sent again is the same object."""

    def __init__(self, config: ObjectSinkConfig, messages: Messages) -> None:
        self._obstore = library("obstore", "objects", f"sinks.{config.name}")
        self._stores = library("obstore.store", "objects", f"sinks.{config.name}")
        self._config = config
        self._messages = messages
        self._parquet = Parquet(config.name, config.compression, messages) if config.format == "parquet" else None
        self._compress = compressor(config.compression) if self._parquet is None else None
        self._store: Any = None

    async def send(self, rows: Sequence[Row]) -> Sent:
        timeout = self._config.timeout_seconds
        try:
            if self._store is None:
                self._store = self._open()
            if self._parquet is not None:
                data = await asyncio.to_thread(self._parquet.write, rows)
            else:
                data = self._messages.documents(rows, b"", b"\n", b"\n")
                if self._compress is not None:
                    data = await asyncio.to_thread(self._compress, data)
            async with asyncio.timeout(timeout):
                await self._obstore.put_async(self._store, self._path(rows), data)
            return Sent(len(rows))
        except TimeoutError:
            return Sent(0, fault=f"no answer within {timeout:g} seconds")
        except (ConfigError, OSError, self._obstore.exceptions.BaseError) as error:
            self._store = None
            return Sent(0, fault=" ".join((str(error) or type(error).__name__).split())[:300])

    async def close(self) -> None:
        self._store = None

    def _open(self) -> Any:
        config = self._config
        options: dict[str, object] = {"region": config.region}
        if config.endpoint is not None:
            options |= {"endpoint": config.endpoint, "virtual_hosted_style_request": False}
        if config.access_key_id is not None:
            options["access_key_id"] = config.access_key_id
        if config.secret_key_file is not None:
            options["secret_access_key"] = first_line_text(config.secret_key_file)
        seconds = datetime.timedelta(seconds=config.timeout_seconds)
        return self._stores.S3Store(
            config.bucket,
            config=options,
            client_options={"allow_http": (config.endpoint or "").startswith("http://"), "timeout": seconds},
            retry_config={"max_retries": 0, "retry_timeout": seconds},  # the worker has a back-off of its own
        )

    def _path(self, rows: Sequence[Row]) -> str:
        prefix = f"{self._config.prefix.strip('/')}/" if self._config.prefix.strip("/") else ""
        suffix = "parquet" if self._parquet is not None else f"jsonl{_SUFFIX[self._config.compression]}"
        return f"{prefix}{self._messages.name_of(rows)}.{suffix}"
