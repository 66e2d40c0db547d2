"""What a row of the store must add up to: SQLite would not notice a bit that turned over in its pages.

CRC-32, of everything in a row that does not change while the row lives. Compiled where there is a compiler.
"""

from __future__ import annotations

import struct
from typing import Final
from zlib import crc32

_MESSAGE: Final = struct.Struct("<QBBdd")
_DELIVERY: Final = struct.Struct("<qQBQBBI")


def of_message(
    topic: str,
    payload: bytes,
    properties: bytes | None,
    qos: int,
    retain: int,
    expires_at: float,
    arrived_at: float,
    publisher: str,
    publisher_user: str | None,
) -> int:
    """Sum the columns of a message, wherever it lies."""
    names = f"{topic}\0{publisher}" if publisher_user is None else f"{topic}\0{publisher}\0{publisher_user}"
    total = crc32(_MESSAGE.pack(len(payload), qos, retain, expires_at, arrived_at))
    total = crc32(payload, crc32(names.encode(), total))
    return total if properties is None else crc32(properties, total)


def of_delivery(
    row: int, message: int, shared: int, size: int, qos: int, retain: int, identifier: int, share: str
) -> int:
    """Sum a delivery's identifier and columns, without where it stands with the client."""
    return crc32(share.encode(), crc32(_DELIVERY.pack(row, message, shared, size, qos, retain, identifier)))
