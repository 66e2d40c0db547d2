"""A damaged store never keeps the broker from starting: what can be read is there, and new changes are kept."""

from __future__ import annotations

import logging
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lockgate.broker.ports import (
    NEVER,
    RECEIVED,
    RETAINED,
    SESSIONS,
    SUBSCRIPTIONS,
    WILLS,
    Delivery,
    StoredSession,
    StoredSubscription,
    StoredWill,
)
from lockgate.storage.store import FILE_NAME, SqliteStore
from tests.support.stores import Owner, StoreDamaged, fill, message, open_store, settle

ROUNDS = int(os.environ.get("DAMAGE_ROUNDS", "20"))  # of each kind
WAL = f"{FILE_NAME}-wal"
VERSION = range(60, 64)  # the bytes of the format's number: with another one the file is a newer program's

Damage = Callable[[random.Random, bytearray], None]


def flip_bit(chance: random.Random, data: bytearray) -> None:
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def flip_bits(chance: random.Random, data: bytearray) -> None:
    for _ in range(chance.randrange(2, 30)):
        flip_bit(chance, data)


def overwrite(chance: random.Random, data: bytearray) -> None:
    at = chance.randrange(len(data))
    length = min(chance.choice((3, 100, 4096, 9000)), len(data) - at)
    data[at : at + length] = chance.choice((bytes(length), b"\xff" * length, chance.randbytes(length)))


def swap_pages(chance: random.Random, data: bytearray) -> None:
    one, other = (chance.randrange(len(data) // 4096) * 4096 for _ in range(2))
    data[one : one + 4096], data[other : other + 4096] = data[other : other + 4096], data[one : one + 4096]


def truncate(chance: random.Random, data: bytearray) -> None:
    del data[chance.randrange(len(data)) :]


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a store that was closed: all is in the database."""
    folder = tmp_path_factory.mktemp("closed")
    store, owner = open_store(folder)
    settle(store, owner, fill(store))
    store.close()
    assert not (folder / WAL).exists()
    return folder


@pytest.fixture(scope="module")
def killed(closed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a store that was killed: its newest changes are in the write-ahead log."""
    folder = tmp_path_factory.mktemp("killed")
    shutil.copy(closed / FILE_NAME, folder)
    running, owner = open_store(folder)
    use(owner, running, 1000, "older", everything=False)
    left = tmp_path_factory.mktemp("left")
    for name in (FILE_NAME, WAL):
        shutil.copy(folder / name, left)
    running.close()
    return left


def use(owner: Owner, store: SqliteStore, commit: int, name: str, *, everything: bool = True) -> None:
    """Do with a store what a broker does with all that it was given, and with something new of that name."""
    for client_id, queue in owner.queues.items():
        owner.asked += 1
        store.want(client_id, queue.head_position, 1000)
    settle(store, owner, 0)
    found = dict(owner.found)
    for client_id, queue in owner.queues.items():
        deliveries = [*queue.in_flight, *found[client_id]]
        for place, delivery in enumerate(deliveries):
            if place % 2 and not everything:
                delivery.packet_id, delivery.state = 20 + place, 1
                store.update(commit, client_id, delivery)
            else:
                store.acknowledge(commit, client_id, delivery.position)
        for packet_id in owner.received[client_id]:
            store.delete(commit, RECEIVED, (client_id, str(packet_id)))
        for topic_filter in owner.subscriptions[client_id]:
            store.set(commit, SUBSCRIPTIONS, (client_id, topic_filter), StoredSubscription(0, False, False, 0))
        store.append(commit, client_id, Delivery(message(name, b"new"), 1, False, 0, queue.last_position + 1))
        store.set(commit, SESSIONS, (client_id,), StoredSession(50, NEVER, None))
    for topic in [*owner.retained, name]:
        store.set(commit, RETAINED, (topic,), message(topic, b"new"))
    for client_id in [*owner.wills, name]:
        store.set(commit, WILLS, (client_id,), StoredWill(message("will", b"new"), 1, 1, NEVER))
    store.set(commit, SESSIONS, (name,), StoredSession(50, NEVER, "somebody"))
    store.set(commit, SUBSCRIPTIONS, (name, name), StoredSubscription(1, False, False, 1))
    store.append(commit, name, Delivery(message(name, b"new"), 1, False, 0, 1))
    settle(store, owner, commit)
    for client_id in owner.queues if everything else ():
        store.end_session(commit + 1, client_id)
    store.flush()
    settle(store, owner, commit + 1 if everything and owner.queues else commit)


@pytest.mark.parametrize("damage", [flip_bit, flip_bits, overwrite, swap_pages, truncate], ids=lambda f: f.__name__)
@pytest.mark.parametrize("where", [FILE_NAME, WAL])
@pytest.mark.timeout(300)
def test_a_damaged_store_opens_and_keeps_what_is_new(
    damage: Damage, where: str, closed: Path, killed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    for seed in range(ROUNDS):
        chance = random.Random(seed)
        whole = killed if where == WAL or seed % 3 == 0 else closed
        folder = tmp_path / str(seed)
        shutil.copytree(whole, folder)
        data = bytearray((folder / where).read_bytes())
        version = bytes(data[VERSION.start : VERSION.stop])
        damage(chance, data)
        if where == FILE_NAME and len(data) >= VERSION.stop:
            data[VERSION.start : VERSION.stop] = version
        (folder / where).write_bytes(data)
        try:
            store, owner = open_store(folder)
            try:
                use(owner, store, 5, "new")
            except StoreDamaged:  # the broker ends, and its next start looks closer
                store.close()
                store, owner = open_store(folder)
                use(owner, store, 5, "new")
            store.close()
            store, owner = open_store(folder)
            assert owner.retained["new"].payload == b"new"
            assert list(owner.subscriptions["new"]) == ["new"]
            assert owner.queues["new"].count == 1
            assert owner.wills["new"].keep_alive == 1
            store.close()
        except BaseException:
            print(f"seed {seed} of {damage.__name__} in {where}")
            raise
        shutil.rmtree(folder)
