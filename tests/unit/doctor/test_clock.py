from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from lockgate.doctor import clock
from lockgate.storage.clock import ClockRow
from lockgate.telemetry.clock import Moment
from tests.support.machines import case_of
from tests.support.stores import fill, open_store, settle

HOUR = 3600.0


def test_a_clock_before_this_program_is_told(tmp_path: Path) -> None:
    case = dataclasses.replace(case_of(tmp_path, "listener 1883"), now=86_400.0)
    found, _ = clock.wall_clock(case)
    assert (found.check, found.severity) == ("clock", "error")
    assert "1970-01-02" in found.problem


def test_a_clock_before_the_configuration_is_told(tmp_path: Path) -> None:
    case = case_of(tmp_path, "listener 1883")
    os.utime(case.path, (case.now + HOUR, case.now + HOUR))
    found, _ = clock.wall_clock(case)
    assert f"{case.path} was written" in found.problem


def test_a_clock_that_is_later_than_all_that_is_no_error(tmp_path: Path) -> None:
    assert not [one for one in clock.wall_clock(case_of(tmp_path, "listener 1883")) if one.severity == "error"]


@pytest.mark.parametrize(("clock_ok", "severity"), [(True, "ok"), (False, "warning")])
def test_what_the_kernel_says_of_its_clock_is_told(clock_ok: bool, severity: str) -> None:
    found = clock.synchronised(True, Moment("boot", 1, 2, clock_ok))
    assert found.severity == severity
    assert ("not in the container" in found.advice) == (not clock_ok)


@pytest.mark.parametrize(("jumped", "way"), [(HOUR, "forward by 3600 s"), (-HOUR, "back by 3600 s"), (0.5, "")])
def test_a_jump_within_a_boot_is_told(jumped: float, way: str) -> None:
    noted = ClockRow(10.0, 100.0, "boot", 1.8e9, True)
    moment = Moment("boot", int(160e9), int((1.8e9 + 60 + jumped) * 1e9), True)
    told = [one.problem for one in clock.jump(noted, moment)]
    assert [way in one for one in told] == ([True] if way else [])


def test_another_boot_tells_nothing_of_jumps() -> None:
    noted = ClockRow(10.0, 100.0, "boot before", 1.8e9, True)
    assert not list(clock.jump(noted, Moment("boot", int(1e9), int(1e18), True)))


def test_the_note_of_a_store_is_held_against_the_clock(tmp_path: Path) -> None:
    store, owner = open_store(tmp_path / "data")
    settle(store, owner, fill(store))
    store.close()
    case = case_of(tmp_path, "persistence true", f"persistence_location {tmp_path / 'data'}")
    assert not list(clock.jumps(case))
