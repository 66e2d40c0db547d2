"""A store that was damaged while nobody used it: the broker starts, what can be read is there, the rest is reported."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lockgate.mqtt import reason_codes
from lockgate.mqtt.packets import PubAck, Publish, Subscribe, SubscriptionRequest
from tests.support.crowd.clients import payload_of
from tests.support.crowd.control import ROUNDS, SEED
from tests.support.dialog import Dialog
from tests.support.gateway import Gateway, durable_broker

CASES = max(1, ROUNDS // 20)  # of each kind of damage
QUEUES = ("one", "two", "three")
QUEUED = 200
RETAINED = 150


def prepare(folder: Path) -> None:
    """Leave queues and retained messages in `folder`/store."""
    (folder / "store").mkdir()
    with durable_broker(folder, folder / "store").running("broker") as broker:
        for name in QUEUES:
            with Dialog(broker.port, name) as receiver:
                receiver.subscribe(f"queue/{name}")
        with Dialog(broker.port, "publisher") as publisher:
            topics = [f"queue/{name}" for name in QUEUES for _number in range(QUEUED)]
            topics += [f"retained/{number}" for number in range(RETAINED)]
            for number, topic in enumerate(topics):
                retain = topic.startswith("retained/")
                payload = payload_of("publisher", topic, number)
                publisher.send(Publish(topic, payload, 1, retain, packet_id=1 + number % 20))
                if number % 20 == 19:
                    for _answer in range(20):
                        assert publisher.expect(PubAck).reason_code < reason_codes.UNSPECIFIED_ERROR
            for _answer in range(len(topics) % 20):
                publisher.expect(PubAck)
        broker.kill("broker")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with everything in its write-ahead log, as a killed broker leaves it."""
    folder = tmp_path_factory.mktemp("killed")
    prepare(folder)
    assert (folder / "store" / "lockgate.db-wal").stat().st_size > 100_000
    return folder / "store"


@pytest.fixture(scope="module")
def stopped(killed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same store with everything in the database, as a broker leaves it that was stopped."""
    folder = tmp_path_factory.mktemp("stopped")
    shutil.copytree(killed, folder / "store")
    with durable_broker(folder, folder / "store").running("broker") as broker:
        broker.stop("broker")
    assert (folder / "store" / "lockgate.db").stat().st_size > 100_000
    return folder / "store"


def somewhere(data: bytearray, chance: random.Random, size: int = 1) -> slice:
    """A place that is not at the end of the file: there a cut that is no damage leaves its traces too."""
    start = chance.randrange(len(data) // 8, len(data) * 3 // 4) // size * size
    return slice(start, start + size)


def flip_a_bit(data: bytearray, chance: random.Random) -> None:
    data[somewhere(data, chance).start] ^= 1 << chance.randrange(8)


def spoil_a_page(data: bytearray, chance: random.Random) -> None:
    data[somewhere(data, chance, 4096)] = chance.randbytes(4096)


def zero_a_sector(data: bytearray, chance: random.Random) -> None:
    data[somewhere(data, chance, 512)] = bytes(512)


def truncate(data: bytearray, chance: random.Random) -> None:
    del data[somewhere(data, chance).start :]


def spoil_the_header(data: bytearray, chance: random.Random) -> None:
    data[:100] = chance.randbytes(100)


def empty(data: bytearray, chance: random.Random) -> None:
    data.clear()


Damage = Callable[[bytearray, random.Random], None]

UNSEEN = "SQLite takes a frame of the write-ahead log that is damaged for its end, and says nothing"
# What must be found in spite of the damage, as a share of all (a page may lead to many others); None: nobody can know
# that something is missing.
CASES_OF_DAMAGE = [
    pytest.param("lockgate.db", flip_a_bit, 0.15),
    pytest.param("lockgate.db", spoil_a_page, 0.15),
    pytest.param("lockgate.db", zero_a_sector, 0.15),
    pytest.param("lockgate.db", truncate, 0.0),
    pytest.param("lockgate.db", spoil_the_header, 1.0),
    pytest.param("lockgate.db", empty, 0.0, marks=pytest.mark.xfail(strict=True, reason="it passes for a new store")),
    pytest.param("lockgate.db-wal", flip_a_bit, 0.0, marks=pytest.mark.xfail(strict=True, reason=UNSEEN)),
    pytest.param("lockgate.db-wal", spoil_a_page, 0.0, marks=pytest.mark.xfail(strict=True, reason=UNSEEN)),
    pytest.param("lockgate.db-wal", zero_a_sector, 0.0, marks=pytest.mark.xfail(strict=True, reason=UNSEEN)),
    pytest.param("lockgate.db-wal", spoil_the_header, 0.0, marks=pytest.mark.xfail(strict=True, reason=UNSEEN)),
    pytest.param("lockgate.db-wal", truncate, None),
    pytest.param("lockgate.db-wal", empty, None),
    pytest.param("lockgate.db-shm", spoil_a_page, 1.0),
    pytest.param("lockgate.db-shm", empty, 1.0),
]


def everything() -> set[tuple[str, bytes]]:
    topics = [f"queue/{name}" for name in QUEUES for _number in range(QUEUED)]
    topics += [f"retained/{number}" for number in range(RETAINED)]
    return {(topic, payload_of("publisher", topic, number)) for number, topic in enumerate(topics)}


def harvest(broker: Gateway) -> set[tuple[str, bytes]]:
    """All messages that the broker still has."""
    found: set[tuple[str, bytes]] = set()
    for name in QUEUES:
        with Dialog(broker.port, name) as receiver:
            receiver.send(Subscribe(1, [SubscriptionRequest(f"queue/{name}", 1)]))  # where its Session is gone
            receiver.send(Publish(f"queue/{name}", b"end", 1, packet_id=1))  # behind all that waits
            while (message := receiver.message()).payload != b"end":
                found.add((message.topic, message.payload))
    with Dialog(broker.port, "reader", clean=True) as reader:
        reader.subscribe("retained/#", 0)
        found |= {(message.topic, message.payload) for message in reader.messages(RETAINED, first=0.5)}
    return found


@pytest.mark.timeout(60 + 10 * CASES)
@pytest.mark.parametrize(("name", "damage", "share"), CASES_OF_DAMAGE)
def test_a_damaged_store_is_salvaged_and_reported(
    tmp_path: Path, killed: Path, stopped: Path, name: str, damage: Damage, share: float | None
) -> None:
    chance = random.Random(f"{SEED} {name} {damage.__name__}")
    for case in range(CASES):
        folder = tmp_path / str(case)
        folder.mkdir()
        store = folder / "store"
        shutil.copytree(stopped if name == "lockgate.db" else killed, store)
        whole = (store / name).read_bytes()
        data = bytearray(whole)
        while data == whole:  # zeros may have been zeros before
            damage(data, chance)
        (store / name).write_bytes(data)
        with durable_broker(folder, store).running("broker") as broker:
            found = harvest(broker)
            lost = everything() - found
            print(f"seed {SEED}: {name} {damage.__name__}: {len(lost)} lost")
            log = broker.log.read_text()
            assert "Traceback" not in log
            assert found <= everything(), "nothing is altered"
            if share is not None:
                assert len(found) >= share * len(everything())
                if lost and "messages that waited in the store are damaged" not in log:
                    assert "is damaged (" in log
                    assert list(store.glob("lockgate.db.damaged-*"))
            with Dialog(broker.port, "after") as after:  # and it works
                after.subscribe("after")
                after.send(Publish("after", b"kept", 1, packet_id=1))
                assert {type(after.receive()), type(after.receive())} == {Publish, PubAck}
            broker.kill("broker")
            broker.start("broker")
            with Dialog(broker.port, "after") as after:
                assert [message.payload for message in after.messages(1)] == [b"kept"]


def test_a_topic_name_that_was_damaged_is_sent_to_nobody(tmp_path: Path, stopped: Path) -> None:
    """It would end the receiver's connection, and be sent again on the next."""
    store = tmp_path / "store"
    shutil.copytree(stopped, store)
    path = store / "lockgate.db"
    path.write_bytes(path.read_bytes().replace(b"queue/onepublisher 7 ", b"queue\0onepublisher 7 ", 1))
    with durable_broker(tmp_path, store).running("broker") as broker:
        found = harvest(broker)
    assert found < everything()
    assert len(found) == len(everything()) - 1
