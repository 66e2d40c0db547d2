from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from lockgate.doctor import memory
from lockgate.doctor.case import Case
from tests.support.machines import MadeUp, case_of

MIB = 1024 * 1024
BUDGET = "[broker]\nmemory_budget = {}\n"


def machine(case: Case) -> MadeUp:
    assert isinstance(case.machine, MadeUp)
    return case.machine


def limited(folder: Path, budget: str, *lines: str, limit: str = str(256 * MIB)) -> Case:
    case = case_of(folder, "listener 1883", *lines, toml=BUDGET.format(budget if budget == "0" else f'"{budget}"'))
    machine(case).write("proc/meminfo", "MemTotal:       1048576 kB\n")
    machine(case).write("sys/fs/cgroup/memory.max", limit)
    return case


def test_a_budget_that_fits_is_good(tmp_path: Path) -> None:
    (found,) = memory.budget(limited(tmp_path, "64MiB"))
    assert (found.severity, found.problem) == ("ok", "64 MiB may be held for clients, of the 256 MiB of this container")


@pytest.mark.parametrize(("budget", "severity"), [("250MiB", "warning"), ("300MiB", "error")])
def test_a_budget_above_the_containers_limit_is_told(budget: str, severity: str, tmp_path: Path) -> None:
    (found,) = memory.budget(limited(tmp_path, budget))
    assert found.severity == severity
    assert "of this container" in found.problem
    assert "memory_budget" in found.advice


def test_the_limit_of_version_1_counts(tmp_path: Path) -> None:
    case = limited(tmp_path, "300MiB", limit="max")
    (found,) = memory.budget(case)
    assert "of this machine" in found.problem
    machine(case).write("sys/fs/cgroup/memory/memory.limit_in_bytes", str(128 * MIB))
    (found,) = memory.budget(case)
    assert "128 MiB of this container" in found.problem


def test_the_limit_of_a_unit_counts(tmp_path: Path) -> None:
    case = limited(tmp_path, "64MiB", limit="max")
    machine(case).write("proc/self/cgroup", "0::/system.slice/lockgate.service\n")
    machine(case).write("sys/fs/cgroup/system.slice/lockgate.service/memory.max", str(32 * MIB))
    (found,) = memory.budget(case)
    assert found.severity == "error"
    assert "32 MiB" in found.problem


def test_no_budget_at_all_is_told(tmp_path: Path) -> None:
    (found,) = memory.budget(limited(tmp_path, "0"))
    assert "nothing bounds" in found.problem


def test_a_queue_limit_above_the_budget_is_told_with_its_line(tmp_path: Path) -> None:
    case = limited(tmp_path, "64MiB", f"max_queued_bytes {100 * MIB}")
    found = [one for one in memory.budget(case) if one.severity != "ok"]
    assert [one.where for one in found] == [f"{case.path}:2"]


def test_a_broker_in_swap_is_told(tmp_path: Path) -> None:
    case = dataclasses.replace(limited(tmp_path, "64MiB"), status={"pid": 7})
    machine(case).write("proc/7/status", "VmSwap:\t   20480 kB\n")
    (found,) = memory.swap(case)
    assert "20 MiB" in found.problem
    machine(case).write("proc/7/status", "VmSwap:\t   0 kB\n")
    assert not list(memory.swap(case))


def test_more_connections_than_files_are_told(tmp_path: Path) -> None:
    case = limited(tmp_path, "64MiB", "global_max_connections 5000")
    machine(case).write(
        "proc/self/limits", "Max open files            1024                 4096                 files\n"
    )
    (found,) = memory.open_files(case)
    assert (found.severity, found.where) == ("error", f"{case.path}:2")
    assert "5000 connections" in found.problem
    assert "LimitNOFILE=5064" in found.advice


def test_few_files_without_a_limit_of_connections_are_a_warning(tmp_path: Path) -> None:
    case = limited(tmp_path, "64MiB")
    machine(case).write(
        "proc/self/limits", "Max open files            1024                 4096                 files\n"
    )
    (found,) = memory.open_files(case)
    assert found.severity == "warning"
    machine(case).write(
        "proc/self/limits", "Max open files            20000                20000                files\n"
    )
    (found,) = memory.open_files(case)
    assert found.severity == "ok"


@pytest.mark.parametrize(("quota", "severity"), [("50000 100000", "warning"), ("100000 100000", "ok")])
def test_a_part_of_a_core_is_told(quota: str, severity: str, tmp_path: Path) -> None:
    case = limited(tmp_path, "64MiB")
    assert not list(memory.processor(case))
    machine(case).write("sys/fs/cgroup/cpu.max", quota)
    (found,) = memory.processor(case)
    assert found.severity == severity


def test_a_core_that_is_not_enough_is_told(tmp_path: Path) -> None:
    case = limited(tmp_path, "64MiB")
    machine(case).write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "100000")
    machine(case).write("sys/fs/cgroup/cpu/cpu.stat", "nr_periods 1000\nnr_throttled 400\n")
    (found,) = memory.processor(case)
    assert found.severity == "warning"
    assert "40%" in found.problem


def test_a_start_alone_does_not_show_whether_a_core_is_enough(tmp_path: Path) -> None:
    case = limited(tmp_path, "64MiB")
    machine(case).write("sys/fs/cgroup/cpu.max", "100000 100000")
    machine(case).write("sys/fs/cgroup/cpu.stat", "nr_periods 40\nnr_throttled 20\n")
    (found,) = memory.processor(case)
    assert found.severity == "ok"
