"""The functions that every rule has: what people do most with readings.

Those with a key remember something for it, each rule for itself, and keep it over restarts. Let them be called once for
a message, in WHERE.
"""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

from lockgate.processor.functions import Function
from lockgate.processor.state import Memory

_EARTH_RADIUS_M: Final = 6_371_008.8

# Units by what they measure: how many of the first there are in one
_UNITS: Final[dict[str, dict[str, float]]] = {
    "length": {"m": 1, "mm": 1e-3, "cm": 1e-2, "km": 1e3, "in": 0.0254, "ft": 0.3048, "yd": 0.9144, "mi": 1609.344},
    "mass": {"kg": 1, "g": 1e-3, "t": 1e3, "lb": 0.45359237, "oz": 0.028349523125},
    "pressure": {
        "Pa": 1,
        "hPa": 1e2,
        "kPa": 1e3,
        "MPa": 1e6,
        "mbar": 1e2,
        "bar": 1e5,
        "psi": 6894.757293168,
        "atm": 101325,
        "mmHg": 133.322387415,
    },
    "energy": {
        "J": 1,
        "kJ": 1e3,
        "MJ": 1e6,
        "Wh": 3600,
        "kWh": 3.6e6,
        "MWh": 3.6e9,
        "kcal": 4184,
        "BTU": 1055.05585262,
    },
    "power": {"W": 1, "kW": 1e3, "MW": 1e6, "hp": 745.69987158227022},
    "speed": {"m/s": 1, "km/h": 1 / 3.6, "mph": 0.44704, "kn": 1852 / 3600, "ft/s": 0.3048},
    "volume": {"m3": 1, "L": 1e-3, "mL": 1e-6, "gal": 3.785411784e-3, "ft3": 0.028316846592},
    "flow": {"m3/h": 1, "L/s": 3.6, "L/min": 0.06, "gal/min": 0.2271247},
    "time": {"s": 1, "ms": 1e-3, "min": 60, "h": 3600, "d": 86400},
    "electricity": {"A": 1, "mA": 1e-3},
    "voltage": {"V": 1, "mV": 1e-3, "kV": 1e3},
}
# Degrees: one of them in kelvin, and its zero
_DEGREES: Final = {"K": (1.0, 0.0), "C": (1.0, 273.15), "F": (5 / 9, 459.67 * 5 / 9)}


def ready_functions(memory: Memory) -> list[Function]:
    """All of them, remembering in `memory`."""

    def plain(name: str, implementation: Callable[..., Any], arguments: int) -> Function:
        return Function(name, "scalar", arguments, implementation, deterministic=True, trusted=True)

    def keyed(name: str, implementation: Callable[..., Any], arguments: int) -> Function:
        return Function(name, "scalar", arguments, implementation, trusted=True)

    def window(name: str, implementation: Callable[..., Any], arguments: int) -> Function:
        return Function(name, "window", arguments, implementation, trusted=True)

    def changed(key: str, value: object) -> int:
        known = memory.get("changed", key)
        if known is not None and known[0] == value:
            return 0
        memory.put("changed", key, [value])
        return 1

    def dead_band(key: str, value: float | None, width: float) -> int:
        if value is None:
            return 0
        last = memory.get("dead_band", key)
        if last is not None and abs(value - last) < width:
            return 0
        memory.put("dead_band", key, value)
        return 1

    def rate_limit(key: str, seconds: float, time_ms: float) -> int:
        last = memory.get("rate_limit", key)
        if last is not None and last <= time_ms < last + seconds * 1000:
            return 0
        memory.put("rate_limit", key, time_ms)  # a clock that was set back begins anew
        return 1

    def derivative(key: str, value: float | None, time_ms: float) -> float | None:
        if value is None:
            return None
        last = memory.get("derivative", key)
        if last is not None and time_ms == last[1]:
            return None
        memory.put("derivative", key, [value, time_ms])
        if last is None or time_ms < last[1]:
            return None
        return float((value - last[0]) / (time_ms - last[1]) * 1000)

    return [
        plain("topic_level", topic_level, 2),
        plain("convert", convert, 3),
        plain("distance_m", distance_m, 4),
        plain("in_circle", in_circle, 5),
        plain("in_polygon", in_polygon, 3),
        keyed("changed", changed, 2),
        keyed("dead_band", dead_band, 3),
        keyed("rate_limit", rate_limit, 3),
        keyed("derivative", derivative, 3),
        window("percentile", Percentile, 2),
        window("p95", P95, 1),
        window("median", Median, 1),
        window("stddev", StandardDeviation, 1),
    ]


def topic_level(topic: object, level: object) -> str | None:
    """The n-th level of a topic, counted from 1, or from the end with -1; NULL where there is none."""
    if not isinstance(topic, str) or not isinstance(level, int) or level == 0:
        return None
    levels = topic.split("/")
    place = level - 1 if level > 0 else len(levels) + level
    return levels[place] if 0 <= place < len(levels) else None


def convert(value: float | None, unit: str, wanted: str) -> float | None:
    """A value in another unit of the same kind. Raises ValueError for units that are unknown or differ in kind."""
    if value is None:
        return None
    if unit in _DEGREES and wanted in _DEGREES:
        size, zero = _DEGREES[unit]
        wanted_size, wanted_zero = _DEGREES[wanted]
        return (value * size + zero - wanted_zero) / wanted_size
    for units in _UNITS.values():
        if unit in units and wanted in units:
            return value * units[unit] / units[wanted]
    known = "; ".join(", ".join(units) for units in ([*_DEGREES], *map(list, _UNITS.values())))
    raise ValueError(f"{unit!r} cannot be converted to {wanted!r}; of one kind are {known}")


def distance_m(
    latitude: float | None, longitude: float | None, to_latitude: float, to_longitude: float
) -> float | None:
    """Metres along the surface of the earth, between two places in degrees."""
    if latitude is None or longitude is None:
        return None
    a, b = math.radians(latitude), math.radians(to_latitude)
    across = math.sin(math.radians(to_longitude - longitude) / 2) ** 2
    chord = math.sin((b - a) / 2) ** 2 + math.cos(a) * math.cos(b) * across
    return 2 * _EARTH_RADIUS_M * math.asin(math.sqrt(min(1.0, chord)))


def in_circle(
    latitude: float | None, longitude: float | None, to_latitude: float, to_longitude: float, radius_m: float
) -> int | None:
    """Whether a place is at most so far from another."""
    distance = distance_m(latitude, longitude, to_latitude, to_longitude)
    return None if distance is None else int(distance <= radius_m)


def in_polygon(latitude: float | None, longitude: float | None, corners: str) -> int | None:
    """Whether a place is inside of corners, in JSON as [[latitude, longitude], …]; edges are straight in degrees."""
    if latitude is None or longitude is None:
        return None
    points = _corners(corners)
    inside = False
    for (y, x), (next_y, next_x) in zip(points, (*points[1:], points[0]), strict=True):
        if (y > latitude) != (next_y > latitude):
            if longitude < (next_x - x) * (latitude - y) / (next_y - y) + x:
                inside = not inside
    return int(inside)


@lru_cache(maxsize=256)
def _corners(text: str) -> tuple[tuple[float, float], ...]:
    points = tuple((float(latitude), float(longitude)) for latitude, longitude in json.loads(text))
    if len(points) < 3:
        raise ValueError("a polygon has at least three corners")
    return points


class Percentile:
    """percentile(x, 95): linear between the two nearest values; NULL of none."""

    def __init__(self) -> None:
        self._sorted: list[float] = []
        self._percent: float | None = None

    def step(self, value: float | None, percent: float) -> None:
        if not 0 <= percent <= 100:
            raise ValueError(f"a percentile of {percent} is none: 0 to 100")
        self._percent = percent
        if value is not None:
            bisect.insort(self._sorted, value)

    def inverse(self, value: float | None, percent: float) -> None:
        if value is not None:
            del self._sorted[bisect.bisect_left(self._sorted, value)]

    def value(self) -> float | None:
        if not self._sorted or self._percent is None:
            return None
        place = (len(self._sorted) - 1) * self._percent / 100
        low = math.floor(place)
        high = min(low + 1, len(self._sorted) - 1)
        return self._sorted[low] + (self._sorted[high] - self._sorted[low]) * (place - low)

    finalize = value


class P95:
    """p95(x)."""

    percent = 95.0

    def __init__(self) -> None:
        self._all = Percentile()

    def step(self, value: float | None) -> None:
        self._all.step(value, self.percent)

    def inverse(self, value: float | None) -> None:
        self._all.inverse(value, self.percent)

    def value(self) -> float | None:
        return self._all.value()

    finalize = value


class Median(P95):
    """median(x)."""

    percent = 50.0


class StandardDeviation:
    """stddev(x), of a sample; NULL of fewer than two."""

    def __init__(self) -> None:
        self._values: list[float] = []

    def step(self, value: float | None) -> None:
        if value is not None:
            self._values.append(value)

    def inverse(self, value: float | None) -> None:
        if value is not None:
            self._values.remove(value)

    def value(self) -> float | None:
        if len(self._values) < 2:
            return None
        mean = math.fsum(self._values) / len(self._values)
        return math.sqrt(math.fsum((value - mean) ** 2 for value in self._values) / (len(self._values) - 1))

    finalize = value
