"""Which requests a group takes, and what registers mean: examples, and properties of any layout."""

from __future__ import annotations

import math
import struct
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.config.model import ModbusDeviceConfig, ModbusValueConfig
from lockgate.sources.registers import Block, decode, plan


def device(
    byte_order: Literal["big", "little"] = "big", word_order: Literal["big", "little"] = "big"
) -> ModbusDeviceConfig:
    return ModbusDeviceConfig(name="d", address=("h", 502), byte_order=byte_order, word_order=word_order)


def value(name: str = "v", **said: Any) -> ModbusValueConfig:
    return ModbusValueConfig(name=name, **said)


def read(one: ModbusValueConfig, *raw: int, of: ModbusDeviceConfig | None = None) -> Any:
    block = Block(one.table, one.address, one.count, (one,))
    ((_, _, meaning),) = decode(block, raw, of or device())
    return meaning


@pytest.mark.parametrize(
    ("said", "raw", "expected"),
    [
        ({"holding": 0}, [65535], 65535),
        ({"holding": 0, "type": "int16"}, [65535], -1),
        ({"holding": 0, "scale": 0.1}, [2301], 230.1),
        ({"holding": 0, "scale": 0.01, "offset": -40}, [6512], 25.12),
        ({"holding": 0, "type": "int32"}, [0xFFFE, 0xEE90], -70_000),
        ({"holding": 0, "type": "uint32"}, [0xEE6B, 0x2800], 4_000_000_000),
        ({"holding": 0, "type": "int64"}, [0xFFFF, 0xFF00, 0, 0], -(2**40)),
        ({"holding": 0, "type": "uint64"}, [0xFFFF] * 4, 2**64 - 1),
        ({"holding": 0, "type": "float32"}, [0x4366, 0x199A], 230.1),
        ({"holding": 0, "type": "float32"}, [0x7FC0, 0], None),
        ({"holding": 0, "type": "float32"}, [0x7F80, 0], None),
        ({"holding": 0, "type": "float32"}, [0x7F7F, 0xFFFF], 3.4028235e38),
        ({"holding": 0, "type": "float64"}, [0x3FF8, 0, 0, 0], 1.5),
        ({"holding": 0, "type": "string", "length": 3}, [0x6162, 0x6300, 0x7878], "abc"),
        ({"holding": 0, "type": "string", "length": 2}, [0x6120, 0x2020], "a"),
        ({"holding": 0, "type": "string", "length": 1}, [0xFF61], "\ufffda"),
        ({"holding": 0, "type": "bool"}, [2], True),
        ({"holding": 0, "bit": 1}, [2], True),
        ({"input": 0, "bit": 15}, [0x7FFF], False),
        ({"coil": 0}, [True], True),
        ({"discrete": 0}, [False], False),
    ],
)
def test_what_registers_mean(said: dict[str, Any], raw: list[int], expected: object) -> None:
    assert read(value(**said), *raw) == expected


@pytest.mark.parametrize(
    ("byte_order", "word_order", "raw"),
    [
        ("big", "big", [0x0102, 0x0304]),
        ("big", "little", [0x0304, 0x0102]),
        ("little", "big", [0x0201, 0x0403]),
        ("little", "little", [0x0403, 0x0201]),
    ],
)
def test_the_orders_of_bytes_and_words(
    byte_order: Literal["big", "little"], word_order: Literal["big", "little"], raw: list[int]
) -> None:
    of = device(byte_order, word_order)
    assert read(value(holding=0, type="uint32"), *raw, of=of) == 0x01020304
    text = [0x6162, 0x6364] if byte_order == "big" else [0x6261, 0x6463]
    assert read(value(holding=0, type="string", length=2), *text, of=of) == "abcd"  # its words keep their order


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_float_of_32_bits_is_the_shortest_number_that_is_it(number: float) -> None:
    raw = struct.unpack(">2H", struct.pack(">f", number))
    found = read(value(holding=0, type="float32"), *raw)
    assert struct.pack(">f", found) == struct.pack(">f", number)
    assert len(repr(found)) <= len(repr(number))
    assert math.isfinite(found)


VALUES = st.lists(
    st.builds(
        lambda table, address, type_: (table, address, type_),
        st.sampled_from(["holding", "input", "coil", "discrete"]),
        st.integers(0, 400),
        st.sampled_from(["uint16", "float32", "int64"]),
    ),
    min_size=1,
    max_size=30,
)


@given(VALUES, st.integers(0, 50), st.integers(4, 125))
def test_a_plan_reads_every_value_once_whole_and_asks_for_no_more_than_it_may(
    said: list[tuple[str, int, str]], max_gap: int, max_count: int
) -> None:
    values = [
        value(f"v{number}", **{table: address}, type="" if table in ("coil", "discrete") else type_)
        for number, (table, address, type_) in enumerate(said)
    ]
    blocks = plan(values, max_gap, max_count)
    assert sorted(one.name for block in blocks for one in block.values) == sorted(one.name for one in values)
    for block in blocks:
        assert block.count <= (2000 if block.table in ("coil", "discrete") else max_count)
        covered = set()
        for one in block.values:
            assert one.table == block.table
            assert block.address <= one.address
            assert one.address + one.count <= block.address + block.count
            covered |= set(range(one.address, one.address + one.count))
        gap = longest = 0
        for address in range(block.address, block.address + block.count):
            gap = 0 if address in covered else gap + 1
            longest = max(longest, gap)
        assert longest <= max_gap
        assert block.has_gaps == (longest > 0)


def test_neighbours_are_read_with_one_request_and_the_far_apart() -> None:
    values = [value("a", holding=0), value("c", holding=12, type="int32"), value("b", holding=3), value("d", coil=1)]
    assert [str(block) for block in plan(values, 8, 125)] == ["coil 1", "holding 0 to 13"]
    assert [str(block) for block in plan(values, 7, 125)] == ["coil 1", "holding 0 to 3", "holding 12 to 13"]
    assert [str(block) for block in plan(values, 8, 4)] == ["coil 1", "holding 0 to 3", "holding 12 to 13"]
