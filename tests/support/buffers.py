"""A log on a temporary folder, with a small segment size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from lockgate.buffer import Batch, Entry, Log
from lockgate.config.model import BufferConfig
from lockgate.telemetry.clock import Clock

SINKS = {"cloud": ("alarm", "telemetry")}


def config(
    segment_bytes: int = 64 * 1024, limit_bytes: int = 64 * 1024 * 1024, *, compressed: bool = False
) -> BufferConfig:
    compression: Literal["none", "zstd"] = "zstd" if compressed else "none"
    return BufferConfig(segment_bytes=segment_bytes, limit_bytes=limit_bytes, compression=compression)


async def open_log(
    folder: Path, sinks: Mapping[str, tuple[str, ...]] = SINKS, *, compressed: bool = False, **limits: int
) -> Log:
    """Maintenance runs only when a test asks for it."""
    return await Log.open(folder, config(**limits, compressed=compressed), sinks, maintain_seconds=3600)


def batch(*payloads: bytes, message_class: str = "telemetry", topic: str = "t", schema: str = "s") -> Batch:
    return Batch(
        moment=Clock().now(),
        entries=[Entry(topic, message_class, schema, payload) for payload in payloads],
        intake=Counter({("received", ""): len(payloads), ("logged", ""): len(payloads)}),
    )
