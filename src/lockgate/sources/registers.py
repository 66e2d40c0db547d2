"""Modbus without the network: which requests a group takes, and what the registers mean."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from lockgate.config.model import ModbusDeviceConfig, ModbusValueConfig

BITS: Final = ("coil", "discrete")  # tables of bits; those of registers are the others
MAX_BITS: Final = 2000  # of one request

_FORMATS: Final = {
    "int16": ">h", "uint16": ">H", "int32": ">i", "uint32": ">I", "int64": ">q", "uint64": ">Q",
    "float32": ">f", "float64": ">d",
}  # fmt: skip

Json = bool | int | float | str | None


@dataclass(frozen=True, slots=True)
class Block:
    """One request: `count` registers or bits of a table from `address`, and the values that lie there."""

    table: str
    address: int
    count: int
    values: tuple[ModbusValueConfig, ...]

    @property
    def has_gaps(self) -> bool:
        taken = {value.address + number for value in self.values for number in range(value.count)}
        return len(taken) < self.count

    def __str__(self) -> str:
        last = self.address + self.count - 1
        return f"{self.table} {self.address}" + (f" to {last}" if self.count > 1 else "")


def plan(values: Sequence[ModbusValueConfig], max_gap: int, max_count: int) -> list[Block]:
    """Give the requests that read all values: neighbours together, no value in two of them.

    Two values that are not farther apart than `max_gap` are neighbours; `max_count` bounds the registers of a request.
    """
    blocks: list[Block] = []
    for value in sorted(values, key=lambda one: (one.table, one.address, one.count)):
        limit = MAX_BITS if value.table in BITS else max(max_count, value.count)
        if blocks and (block := blocks[-1]).table == value.table:
            end = max(block.address + block.count, value.address + value.count)
            if value.address - (block.address + block.count) <= max_gap and end - block.address <= limit:
                blocks[-1] = Block(block.table, block.address, end - block.address, (*block.values, value))
                continue
        blocks.append(Block(value.table, value.address, value.count, (value,)))
    return blocks


class Reading(NamedTuple):
    """What lies at one address, and what it means."""

    value: ModbusValueConfig
    raw: Sequence[int]
    meaning: Json


def decode(block: Block, answer: Sequence[int], device: ModbusDeviceConfig) -> Iterator[Reading]:
    """Give the values of a block that was answered with `answer`, whole."""
    for value in block.values:
        start = value.address - block.address
        raw = answer[start : start + value.count]
        yield Reading(value, raw, _value(value, raw, device))


def _value(value: ModbusValueConfig, raw: Sequence[int], device: ModbusDeviceConfig) -> Json:
    if value.table in BITS:
        return bool(raw[0])
    words = [word.to_bytes(2, device.byte_order) for word in raw]
    if value.kind == "bool":
        word = int.from_bytes(words[0], "big")
        return bool(word >> value.bit & 1) if value.bit is not None else word != 0
    if value.kind == "string":
        return b"".join(words).partition(b"\0")[0].decode("utf-8", errors="replace").rstrip()
    if device.word_order == "little":
        words.reverse()
    (number,) = struct.unpack(_FORMATS[value.kind], b"".join(words))
    if isinstance(number, float):
        if not math.isfinite(number):  # how many devices say that there is no reading
            return None
        if value.kind == "float32":
            number = _shortest(number)
    if value.scale == 1 and value.offset == 0:
        return number  # type: ignore[no-any-return]
    # Twelve digits: none that a register holds is lost, and 2301 × 0.1 is 230.1.
    return float(f"{number * value.scale + value.offset:.12g}")


def _shortest(number: float) -> float:
    """The shortest decimal number that is this one in 32 bits: 230.1, not 230.10000610351562."""
    exact = struct.pack(">f", number)
    for digits in range(6, 9):
        short = float(f"{number:.{digits}g}")
        try:
            if struct.pack(">f", short) == exact:
                return short
        except OverflowError:  # rounded up beyond the largest
            continue
    return float(f"{number:.9g}")
