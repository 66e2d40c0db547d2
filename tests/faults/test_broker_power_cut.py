"""Power cuts: only what was synced is there afterwards, and nothing that was acknowledged is missing."""

from __future__ import annotations

import contextlib
import random
import time
from pathlib import Path

import pytest

from tests.support.crowd.control import ROUNDS, SEED, Crowd
from tests.support.disks import cut_power, disk_trouble, make_image, mounted
from tests.support.failing_disk import FailingDisk, compile_shim
from tests.support.gateway import Gateway, durable_broker

CUTS = max(4, ROUNDS // 5)
STORE_MEBIBYTES = 192


@pytest.fixture(autouse=True)
def _disks_can_be_made() -> None:
    if trouble := disk_trouble("mkfs.ext4", "mkfs.xfs"):
        pytest.skip(trouble)


def cut(broker: Gateway, crowd: Crowd, point: Path) -> None:
    """Cut the power of broker and disk in one moment.

    A broker that lived on would be told lies: an ext4 that is shut down in the middle of an fsync may say that it
    succeeded. How the broker takes errors is for test_broker_disk_errors.
    """
    broker.freeze("broker")
    cut_power(point)
    broker.kill("broker")
    crowd.happened("power cut")


@pytest.mark.timeout(60 + 15 * CUTS)
def test_nothing_acknowledged_is_lost_by_a_power_cut(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    image = make_image(tmp_path / "image", STORE_MEBIBYTES)
    point = tmp_path / "store"
    broker = durable_broker(tmp_path, point)
    with contextlib.ExitStack() as running:
        crowd: Crowd | None = None
        for number in range(1, CUTS + 1):
            with mounted(image, point), broker.running("broker"):
                crowd = crowd or running.enter_context(Crowd(broker.port, SEED))
                crowd.round(number, "ready")
                crowd.load(chance.randint(1, chance.choice((10, 1500))), 2500)
                time.sleep(chance.choice((0, 0.01)) * chance.random())  # between two acknowledgements
                cut(broker, crowd, point)
        assert crowd is not None
        with mounted(image, point), broker.running("broker"):
            crowd.happened("ready")
            crowd.settle()
            crowd.expect_no_violation(broker.log)
        print(f"seed {SEED}, {CUTS} cuts: {crowd.sums}")


@pytest.mark.timeout(60 + 15 * CUTS)
def test_every_moment_of_a_run_is_a_moment_to_restart_from(tmp_path: Path) -> None:
    """The disk is copied while the broker works; each copy is what a cut at that moment would have left."""
    chance = random.Random(SEED)
    cuts: list[tuple[Path, Path]] = []
    with mounted(make_image(tmp_path / "outer", 4096, "xfs"), tmp_path / "copies") as copies:
        image = make_image(copies / "image", STORE_MEBIBYTES)
        with (
            mounted(image, tmp_path / "store") as store,
            durable_broker(tmp_path, store).running("broker") as broker,
            Crowd(broker.port, SEED) as crowd,
        ):
            for number in range(1, CUTS + 1):
                crowd.round(number, "load")
                crowd.load(chance.randint(1, 400), 600)
                cuts.append((copies / f"copy-{number}", tmp_path / f"clients-{number}"))
                crowd.snapshot(image, *cuts[-1])
                crowd.happened("copied")
        for number, (copy, clients) in enumerate(cuts, 1):
            folder = tmp_path / f"restart-{number}"
            folder.mkdir()
            with (
                mounted(copy, folder / "store") as store,
                durable_broker(folder, store).running("broker") as broker,
                Crowd(broker.port, SEED, clients) as crowd,
            ):
                crowd.expect_no_violation(broker.log)
                crowd.round(1000, "load after the cut")
                crowd.load(100, 200)
                crowd.settle()
                crowd.expect_no_violation(broker.log)
                print(f"seed {SEED}, copy {number}: {crowd.sums}")
            copy.unlink()


def test_a_disk_that_lies_about_syncs_is_found_out(tmp_path: Path) -> None:
    """The same cut, where a sync does nothing: the cut does take away what was not synced."""
    image = make_image(tmp_path / "image", STORE_MEBIBYTES)
    point = tmp_path / "store"
    broker = durable_broker(tmp_path, point)
    with contextlib.ExitStack() as running:
        with mounted(image, point):
            disk = FailingDisk(compile_shim(tmp_path), point, tmp_path / "orders")
            broker.environment = disk.environment
            with broker.running("broker"):
                crowd = running.enter_context(Crowd(broker.port, SEED))
                crowd.load(100, 200)
                crowd.settle()
                disk.lie()
                crowd.load(200, 2000)
                cut(broker, crowd, point)
                assert disk.struck
                disk.recover()
        with mounted(image, point), broker.running("broker"):
            crowd.settle(quiet_seconds=2)
            assert crowd.violations, crowd.sums
