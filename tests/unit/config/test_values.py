"""Values of lockgate.toml that have a form of their own."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import cast

import pytest

from lockgate.config import values
from lockgate.config.model import Window


def windows(text: str) -> tuple[Window, ...]:
    return cast(tuple[Window, ...], values.WINDOWS.read([text]))


def test_windows() -> None:
    friday = datetime(2026, 5, 1, tzinfo=UTC)  # a Friday
    for text, hour, minute, expected in (
        ("02:00-04:00", 2, 0, True), ("02:00-04:00", 3, 59, True), ("02:00-04:00", 4, 0, False),
        ("sat,sun 02:00-04:00", 3, 0, False), ("mon-fri 02:00-04:00", 3, 0, True), ("sun-tue 02:00-04:00", 3, 0, False),
        ("fri-mon 02:00-04:00", 3, 0, True), ("fri 22:00-05:00", 23, 0, True), ("fri 22:00-05:00", 1, 0, False),
        ("thu 22:00-05:00", 1, 0, True), ("thu 22:00-05:00", 23, 0, False), ("fri 00:00-24:00", 23, 59, True),
    ):  # fmt: skip
        window = windows(text)[0]
        assert window.holds(friday.replace(hour=hour, minute=minute)) == expected, (text, hour)
    for wrong in ("2:00-4:00", "mon 25:00-26:00", "mo 02:00-03:00", "mon-xyz 02:00-03:00", "02:00", "mon 02:60-03:00"):
        with pytest.raises(values.BadValue):
            windows(wrong)
    assert values.TIME_ZONE.read("Europe/Vienna") == "Europe/Vienna"
    for wrong in ("Mars/Olympus", "../../etc/passwd", ""):
        with pytest.raises(values.BadValue):
            values.TIME_ZONE.read(wrong)
