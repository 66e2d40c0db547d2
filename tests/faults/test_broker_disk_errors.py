"""Writes and syncs of the broker's store fail: nothing is acknowledged that is not kept, and it goes on by itself."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lockgate.mqtt import reason_codes
from lockgate.mqtt.packets import V3_1_1, V5, PubAck, Publish
from tests.support.crowd.control import ROUNDS, SEED, Crowd
from tests.support.dialog import Dialog
from tests.support.disks import disk_trouble, memory_disk, resize
from tests.support.failing_disk import SYNC, TRUNCATE, WRITE, FailingDisk, compile_shim
from tests.support.gateway import Gateway, durable_broker

FAILURES = max(4, ROUNDS // 5)  # for each kind


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def broker(tmp_path: Path) -> Gateway:
    """A broker, not started yet."""
    (tmp_path / "store").mkdir()
    return durable_broker(tmp_path, tmp_path / "store")


@pytest.fixture
def disk(tmp_path: Path, shim: Path, broker: Gateway) -> Iterator[FailingDisk]:
    disk = FailingDisk(shim, tmp_path / "store", tmp_path / "orders")
    broker.environment = disk.environment
    yield disk
    disk.close()


Order = Callable[[FailingDisk, int, int], None]

ORDERS: dict[str, Order] = {
    "a sync fails": lambda disk, after, times: disk.fail(SYNC, after=after, times=times),
    "a write fails": lambda disk, after, times: disk.fail(WRITE, after=after, times=times),
    "anything fails": lambda disk, after, times: disk.fail(WRITE | SYNC | TRUNCATE, after=after, times=times),
    "no space": lambda disk, after, times: disk.fail(WRITE, errno.ENOSPC, after=after, times=times),
    "short writes": lambda disk, after, times: disk.write_short(after=after, times=times),
}


@pytest.mark.timeout(60 + 10 * FAILURES)
@pytest.mark.parametrize("name", ORDERS)
def test_nothing_acknowledged_is_lost_by_errors(broker: Gateway, disk: FailingDisk, name: str) -> None:
    chance = random.Random(f"{SEED} {name}")
    with broker.running("broker"), Crowd(broker.port, SEED) as crowd:
        for number in range(1, FAILURES + 1):
            crowd.round(number, "load")
            crowd.load(chance.randint(1, 300), 4000)
            ORDERS[name](disk, chance.randint(0, 60), chance.choice((1, 2, 4)))
            crowd.happened(name)
            disk.wait_struck()
            if chance.random() < 0.5:
                broker.kill("broker")  # nothing may rely on what comes after the error
                disk.recover()
                broker.start("broker")
                crowd.happened("kill -9, all is well")
            else:
                crowd.load(100, 1000)
                disk.recover()
                crowd.happened("all is well")
        crowd.settle()
        crowd.expect_no_violation(broker.log)
        print(f"seed {SEED}, {name}: {crowd.sums}")


def publish_until_taken(port: int, client_id: str, version: int, payload: bytes, seconds: float = 10.0) -> None:
    """Publish, connecting again whenever the broker closes or refuses, as a device would."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with Dialog(port, client_id, version) as publisher:
            publisher.send(Publish("t", payload, 1, packet_id=1))
            answer = publisher.receive(seconds)
            if isinstance(answer, PubAck) and answer.reason_code == reason_codes.SUCCESS:
                return
    pytest.fail(f"{payload!r} is not taken within {seconds} seconds")


def payloads(port: int, client_id: str, count: int) -> list[bytes]:
    """What a receiver finds, each payload once."""
    with Dialog(port, client_id) as receiver:
        return list(dict.fromkeys(message.payload for message in receiver.messages(count)))


def test_who_may_be_told_is_told_and_who_may_not_is_closed(broker: Gateway, disk: FailingDisk) -> None:
    with broker.running("broker"):
        with Dialog(broker.port, "receiver") as receiver:
            receiver.subscribe("t")
        with Dialog(broker.port, "new") as new, Dialog(broker.port, "old", V3_1_1) as old:
            assert new.publish("t", b"before") == reason_codes.SUCCESS
            disk.fail(WRITE | SYNC, errno.EIO)
            assert new.publish("t", b"refused", 2) == reason_codes.IMPLEMENTATION_SPECIFIC_ERROR
            disk.recover()
            publish_until_taken(broker.port, "third", V5, b"refused")
            disk.fail(WRITE | SYNC, errno.ENOSPC)
            old.send(Publish("t", b"unanswered", 1, packet_id=1))
            assert old.receive(30) is None  # closed, and nothing before
            assert new.publish("t", b"refused", 3) == reason_codes.QUOTA_EXCEEDED
        disk.recover()
        publish_until_taken(broker.port, "old", V3_1_1, b"unanswered")
        publish_until_taken(broker.port, "new", V5, b"after")
        broker.kill("broker")
        broker.start("broker")
        kept = payloads(broker.port, "receiver", 10)
        assert [payload for payload in kept if payload != b"refused"] == [b"before", b"unanswered", b"after"]
    assert "cannot be written" in broker.log.read_text()
    assert "can be written again" in broker.log.read_text()


def fill(port: int, client_id: str) -> list[bytes]:
    """Publish until the broker refuses; gives what it took."""
    taken: list[bytes] = []
    with Dialog(port, client_id) as publisher:
        for number in range(2000):
            payload = b"%d " % number + b"." * 10_000
            code = publisher.publish("t", payload)
            if code != reason_codes.SUCCESS:
                assert code == reason_codes.QUOTA_EXCEEDED
                return taken
            taken.append(payload)
    raise AssertionError("the disk does not get full")


@pytest.mark.parametrize(
    "makes_room",
    ["a larger disk", "the receiver"],
)
def test_a_full_disk_is_told_and_left_behind(tmp_path: Path, makes_room: str) -> None:
    if trouble := disk_trouble():
        pytest.skip(trouble)
    point = tmp_path / "store"
    with memory_disk(point, 4) as store, durable_broker(tmp_path, store).running("broker") as broker:
        with Dialog(broker.port, "receiver") as receiver:
            receiver.subscribe("t")
        taken = fill(broker.port, "new")
        assert taken
        if makes_room == "a larger disk":
            resize(point, 64)
        else:
            assert payloads(broker.port, "receiver", len(taken)) == taken
            taken.clear()
        publish_until_taken(broker.port, "new", V5, b"after")
        publish_until_taken(broker.port, "old", V3_1_1, b"at last")
        broker.kill("broker")
        broker.start("broker")
        kept = payloads(broker.port, "receiver", len(taken) + 10)
        assert [payload for payload in kept if payload in {*taken, b"after", b"at last"}] == [
            *taken,
            b"after",
            b"at last",
        ]


def test_a_broker_starts_on_a_full_disk(tmp_path: Path) -> None:
    if trouble := disk_trouble():
        pytest.skip(trouble)
    with memory_disk(tmp_path / "store", 4) as store, durable_broker(tmp_path, store).running("broker") as broker:
        with Dialog(broker.port, "receiver") as receiver:
            receiver.subscribe("t")
        taken = fill(broker.port, "new")
        broker.kill("broker")
        broker.start("broker")
        assert payloads(broker.port, "receiver", len(taken)) == taken


def test_a_second_broker_on_the_same_folder_is_refused(tmp_path: Path, broker: Gateway) -> None:
    second_folder = tmp_path / "second"
    second_folder.mkdir()
    with broker.running("broker") as first:
        second = durable_broker(second_folder, tmp_path / "store")
        process = second.launch("broker")
        assert process.wait(15) != 0
        told = second.log.read_text()
        assert str(tmp_path / "store") in told
        assert "one writer at a time" in told
        assert "Traceback" not in told
        with Dialog(first.port, "client") as client:  # the first has taken no harm
            assert client.publish("t", b"x", retain=True) < reason_codes.UNSPECIFIED_ERROR
