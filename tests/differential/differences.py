"""Where the two brokers differ under one configuration, and why: the rows of differences.toml."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.interop.scenarios.differences import Difference, compare

TABLE = Path(__file__).parent / "differences.toml"


@dataclass(frozen=True)
class Row:
    """A known difference in one scenario."""

    scenario: str
    difference: Difference
    why: str


@cache
def rows() -> tuple[Row, ...]:
    """Read the table; a row without a reason is an error."""
    found: list[Row] = []
    for entry in tomllib.loads(TABLE.read_text()).get("difference", []):
        difference = Difference(tuple(entry["mosquitto"]), tuple(entry["ours"]))
        if not entry["why"].strip():
            raise ValueError(f"{TABLE.name}: a row of {entry['scenarios']} has no reason")
        found += [Row(scenario, difference, entry["why"].strip()) for scenario in entry["scenarios"]]
    return tuple(found)


def unexplained(scenario: str, mosquitto: list[str], ours: list[str]) -> str:
    """Say what the table lacks, and which of its rows are not seen; empty when both agree."""
    missing = [row.difference for row in rows() if row.scenario == scenario]
    unknown: list[Difference] = []
    for difference in compare(mosquitto, ours):
        if difference in missing:
            missing.remove(difference)
        else:
            unknown.append(difference)
    told: list[str] = []
    for title, differences in (("is not in the table", unknown), ("is in the table, and not seen", missing)):
        for one in differences:
            told += [f"{title}:", f"mosquitto = {list(one.mosquitto)}", f"ours = {list(one.ours)}"]
    return "\n".join(told)
