"""The wall clock jumps, the machine is off for long, with and without a clock that is known: what expires, what stays.

A broker and its store on disk, on a machine whose clocks the test owns (DESIGN §3.5).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lockgate.mqtt.packets import PubAck, Publish, Will
from lockgate.mqtt.properties import Properties
from lockgate.storage.store import SqliteStore
from lockgate.telemetry.clock import Moment
from tests.support.server import Server

DAY = 86_400.0
IN_2026 = 1_795_000_000.0
QUEUED_SECONDS = 100
SESSION_SECONDS = 1000


class Machine:
    """The clocks of a machine, and the broker that runs on it."""

    def __init__(self, folder: Path) -> None:
        self.boot = 1
        self.boottime = 5000.0
        self.wall = IN_2026
        self.clock_ok = True
        self.folder = folder
        self.server: DurableServer
        self.start()

    def now(self) -> Moment:
        return Moment(f"boot {self.boot}", int(self.boottime * 1e9), int(self.wall * 1e9), self.clock_ok)

    def start(self) -> None:
        """Start the broker."""
        self.server = DurableServer(self)

    def kill(self) -> None:
        """End the broker without a word to its store."""
        self.server.abandon()

    def wait(self, seconds: float) -> None:
        """Let time pass while the broker runs."""
        self.boottime += seconds
        self.wall += seconds
        self.server.advance(seconds)

    def restart(self, seconds: float = 0.0) -> None:
        """Kill the broker and start it again after a time, on the same boot."""
        self.kill()
        self.boottime += seconds
        self.wall += seconds
        self.start()

    def power_off(self, seconds: float) -> None:
        """Cut the power for so long; the clock goes on meanwhile, as one with a battery does."""
        self.kill()
        self.boot += 1
        self.boottime = 20.0
        self.wall += seconds
        self.start()


class DurableServer(Server):
    """A broker whose store is on disk; each turn ends when the disk has answered."""

    def __init__(self, machine: Machine) -> None:
        def open_store(server: Server) -> SqliteStore:
            store = SqliteStore(machine.folder, server, machine, flush_seconds=0.0)
            store.open()
            self.sqlite = store
            return store

        super().__init__(open_store=open_store)
        self.now = machine.boottime
        self.sqlite.restore(self)
        self.advance(0)

    def flush(self) -> None:
        self.sqlite.flush()
        self._await_disk()
        super().flush()
        self._await_disk()

    def _await_disk(self) -> None:
        self.sqlite.settle()
        while (commit := self.sqlite._commit) is not None:
            commit.future.result(10)
            self.sqlite.settle()

    def abandon(self) -> None:
        self.sqlite._writer.close()
        self.sqlite._lock.release()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    machine.kill()


def leave_messages(machine: Machine) -> None:
    """A receiver goes away; one message waits for it that expires, one that does not, and one is retained."""
    receiver = machine.server.client("receiver", session_expiry_interval=SESSION_SECONDS, clean_start=False)
    receiver.subscribe("t", 1)
    receiver.lose()
    sender = machine.server.client("sender")
    for number, (topic, expiry) in enumerate((("t", QUEUED_SECONDS), ("t", None), ("retained", None)), 1):
        properties = Properties(message_expiry_interval=expiry) if expiry else None
        payload = b"expires" if expiry else b"stays"
        sender.send(Publish(topic, payload, 1, topic == "retained", packet_id=number, properties=properties))
        sender.expect(PubAck)
    sender.lose()


def found(machine: Machine) -> set[bytes] | None:
    """What waits for the receiver; None when its Session is gone."""
    receiver = machine.server.client("receiver", session_expiry_interval=SESSION_SECONDS, clean_start=False)
    present = receiver.connack.session_present
    payloads = {packet.payload for packet in receiver.publishes()}
    receiver.lose()
    return payloads if present else None


def retained(machine: Machine) -> list[bytes]:
    reader = machine.server.client("reader")
    reader.subscribe("retained")
    payloads = [packet.payload for packet in reader.publishes()]
    reader.lose()
    return payloads


JUMPS = pytest.mark.parametrize("to", [IN_2026 + DAY, IN_2026 - DAY, 0.0], ids=["a day ahead", "a day back", "1970"])
RESTARTS = pytest.mark.parametrize("restarts", [False, True], ids=["running", "restarted"])


@JUMPS
@RESTARTS
def test_a_jump_of_the_wall_clock_expires_nothing(machine: Machine, to: float, restarts: bool) -> None:
    leave_messages(machine)
    machine.wall = to
    machine.wait(QUEUED_SECONDS - 10)
    if restarts:
        machine.restart()
    assert found(machine) == {b"expires", b"stays"}


@JUMPS
@RESTARTS
def test_a_jump_of_the_wall_clock_keeps_nothing_alive(machine: Machine, to: float, restarts: bool) -> None:
    leave_messages(machine)
    machine.wall = to
    machine.wait(QUEUED_SECONDS + 1)
    if restarts:
        machine.restart()
    assert found(machine) == {b"stays"}


@JUMPS
@RESTARTS
def test_a_jump_of_the_wall_clock_changes_no_session(machine: Machine, to: float, restarts: bool) -> None:
    leave_messages(machine)
    machine.wall = to
    machine.wait(SESSION_SECONDS - 10)
    if restarts:
        machine.restart(5)
    assert found(machine) is not None
    machine.wait(SESSION_SECONDS - 10)  # its time began anew
    if restarts:
        machine.restart(11)
    else:
        machine.wait(11)
    assert found(machine) is None


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(QUEUED_SECONDS - 10, {b"expires", b"stays"}), (QUEUED_SECONDS + 1, {b"stays"}), (SESSION_SECONDS + 1, None)],
)
def test_time_passes_while_the_broker_is_dead(machine: Machine, seconds: float, expected: set[bytes] | None) -> None:
    leave_messages(machine)
    machine.restart(seconds)
    assert found(machine) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (QUEUED_SECONDS / 2, {b"expires", b"stays"}),
        (QUEUED_SECONDS * 2, {b"stays"}),
        (SESSION_SECONDS * 2, None),
        (365 * DAY, None),
    ],
)
def test_a_power_off_counts_by_a_clock_that_was_known(
    machine: Machine, seconds: float, expected: set[bytes] | None
) -> None:
    leave_messages(machine)
    machine.power_off(seconds)
    assert retained(machine) == [b"stays"]
    assert found(machine) == expected


@pytest.mark.parametrize("why", ["not known after", "not known before", "in 1970", "set back"])
@pytest.mark.parametrize("seconds", [10.0, 365 * DAY])
def test_after_a_power_off_of_unknown_length_only_messages_with_an_expiry_expire(
    machine: Machine, why: str, seconds: float
) -> None:
    if why == "not known before":
        machine.clock_ok = False
    leave_messages(machine)
    if why == "not known after":
        machine.clock_ok = False
    elif why == "in 1970":
        machine.clock_ok = False
        machine.wall = 0.0
    elif why == "set back":
        machine.wall -= 400 * DAY
    elif why == "not known before":
        machine.kill()
        machine.clock_ok = True
        machine.boot += 1
        machine.boottime = 20.0
        machine.wall += seconds
        machine.start()
        assert found(machine) == {b"stays"}
        return
    machine.power_off(seconds)
    assert found(machine) == {b"stays"}
    assert retained(machine) == [b"stays"]


def test_a_session_whose_rest_is_unknown_goes_on_where_it_stopped(machine: Machine) -> None:
    leave_messages(machine)
    machine.wait(SESSION_SECONDS - 100)
    machine.clock_ok = False
    machine.power_off(365 * DAY)
    machine.wait(50)
    machine.restart()
    assert found(machine) == {b"stays"}


def test_what_is_in_flight_is_finished_whatever_the_clock_says(machine: Machine) -> None:
    """Its identifier is known to the client."""
    receiver = machine.server.client("receiver", session_expiry_interval=SESSION_SECONDS, clean_start=False)
    receiver.subscribe("t", 2)
    sender = machine.server.client("sender")
    properties = Properties(message_expiry_interval=QUEUED_SECONDS)
    sender.send(Publish("t", b"in flight", 1, packet_id=1, properties=properties))
    (first,) = receiver.publishes()
    receiver.lose()
    machine.clock_ok = False
    machine.power_off(DAY)
    receiver = machine.server.client("receiver", session_expiry_interval=SESSION_SECONDS, clean_start=False)
    (again,) = receiver.publishes()
    assert (again.packet_id, again.payload, again.dup) == (first.packet_id, b"in flight", True)


@JUMPS
def test_a_will_waits_as_long_as_it_says(machine: Machine, to: float) -> None:
    watcher = machine.server.client("watcher", session_expiry_interval=SESSION_SECONDS, clean_start=False)
    watcher.subscribe("will", 1)
    will = Will("will", b"gone", 1, properties=Properties(will_delay_interval=60))
    machine.server.client("mortal", will=will, session_expiry_interval=SESSION_SECONDS).lose()
    machine.wall = to
    machine.wait(50)
    assert watcher.received() == []
    watcher.lose()
    machine.restart()
    machine.wait(5)
    watcher = machine.server.client("watcher", session_expiry_interval=SESSION_SECONDS, clean_start=False)
    assert watcher.received() == []
    machine.wait(6)
    assert watcher.messages() == [("will", b"gone")]
