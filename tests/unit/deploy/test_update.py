"""One update: the order of its steps, the way back from each, and what a power cut at each leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from lockgate.deploy.container import Container
from lockgate.deploy.errors import Broken, DeployError, RolledBack, Unreachable
from lockgate.deploy.gate import Gate, Time
from lockgate.deploy.journal import Entry, Journal, Version
from lockgate.deploy.update import Update, parts_of
from tests.support.engines import NEW, OLD, FakeEngine, Killed

SERVICES = ("broker", "processor", "forwarder")


class OfOneLife(Journal):
    """A journal whose process ends at a step: nothing is written afterwards."""

    def __init__(self, path: Path, engine: FakeEngine, last_step: int | None = None) -> None:
        super().__init__(path, self._step)
        self._engine = engine
        self._last_step = last_step
        self.steps: list[str] = []

    def _step(self, what: str) -> None:
        self.steps.append(what)
        if len(self.steps) == self._last_step:
            self._engine.dead = True
            raise Killed

    def write(self, entry: Entry) -> None:
        if self._engine.dead:
            raise Killed
        super().write(entry)


class World:
    """A machine with a project of three services, and an agent on it."""

    def __init__(self, path: Path, policy: str = "always") -> None:
        path.mkdir(exist_ok=True)
        self.engine = FakeEngine()
        self.containers = [self.engine.add(service, policy) for service in SERVICES]
        self.path = path / "journal.json"
        self.before = self.engine.all()
        self.committed: list[str] = []

    def update(self, last_step: int | None = None) -> tuple[Update, OfOneLife]:
        journal = OfOneLife(self.path, self.engine, last_step)
        clock = Time(self.engine.now, self.engine.sleep)
        gate = Gate(self.engine, 20.0, 10.0, clock)
        return Update(self.engine, "p", journal, gate, clock, lambda entry: self.committed.append(entry.token)), journal

    def entry(self) -> Entry:
        before, after = Version("old", OLD, "sha256:old", "1"), Version("new", NEW, "sha256:new", "2")
        return Entry("0a1b", "me", "update", "now", before, after, parts_of(self.containers))

    def run(self, last_step: int | None = None) -> tuple[Entry, OfOneLife]:
        update, journal = self.update(last_step)
        entry = self.entry()
        update.run(entry)
        return entry, journal

    def run_steps(self) -> list[str]:
        """Give the steps of an update in another world like this one."""
        other = World(self.path.parent / "other", self.engine.all()[0][2])
        return other.run()[1].steps

    def resume(self) -> bool | None:
        """Start the agent again; whether the new version serves, None where nothing was under way."""
        self.engine.dead = False
        update, journal = self.update()
        entry = journal.read()
        return update.resume(entry) if entry is not None else None

    @property
    def after(self) -> list[tuple[str, str, str, bool]]:
        """What an update leaves."""
        return [(name, NEW, policy, runs) for name, _, policy, runs in self.before]


def test_one_service_after_the_other_and_the_new_one_is_there_before_the_old_one_stops(tmp_path: Path) -> None:
    world = World(tmp_path)
    entry, _ = world.run()
    of_one = ["create {} new", "stop {} old", "start {} new", "rename {} old", "rename {} new"]
    expected = [line.format(service) for service in SERVICES for line in of_one]
    expected.insert(1, "keep wills broker old")  # nobody who returns has died
    for service in SERVICES:
        expected += [f"policy {service} new", f"remove {service} old"]
    assert world.engine.done == expected
    assert world.engine.all() == world.after
    assert world.committed == ["0a1b"]
    assert [part.gap_seconds for part in entry.parts] == [0.5, 0.5, 0.5]
    assert [part.wills_kept for part in entry.parts] == [True, None, None]
    assert world.engine.clashes == 0


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("way", ["crashes", "bad"])
def test_a_service_that_is_not_well_takes_all_before_it_back(tmp_path: Path, service: str, way: str) -> None:
    world = World(tmp_path)
    getattr(world.engine, way).add((NEW, service))
    reason = (
        "ended with status 1: ValueError: it is broken" if way == "crashes" else "is not well after 20 s: it is bad"
    )
    with pytest.raises(RolledBack, match=f"{service} {reason}") as caught:
        world.run()
    assert not caught.value.again
    assert world.engine.all() == world.before
    assert world.committed == []
    assert ("keep wills broker new" in world.engine.done) == (service != "broker" or way == "bad")
    behind = SERVICES[SERVICES.index(service) + 1 :]
    assert not [line for line in world.engine.done if line.split()[1] in behind]


def test_a_ledger_that_stops_closing_or_goes_back_takes_everything_back(tmp_path: Path) -> None:
    def ledger(closes: bool, received: int) -> dict[str, object]:
        intake = {"received": received, "logged": received}
        return {"closes": closes, "intake": intake, "deliveries": [{"delivered": 0}]}

    for closes, received, reason in ((False, 9, "does not close"), (True, 4, "received was 5 and is 4")):
        world = World(tmp_path)
        answers = iter([ledger(True, 5)])
        world.engine.ledger = lambda: next(answers, ledger(closes, received))  # noqa: B023
        with pytest.raises(RolledBack, match=reason):
            world.run()
        assert world.engine.all() == world.before


def test_a_ledger_that_never_closed_is_no_reason(tmp_path: Path) -> None:
    world = World(tmp_path)
    said = {"closes": False, "intake": {"received": 1, "logged": 1}, "deliveries": []}
    world.engine.ledger = lambda: said
    world.run()
    assert world.engine.all() == world.after


@pytest.mark.parametrize(
    ("policy", "power_cut"), [("always", False), ("always", True), ("unless-stopped", True), ("no", False)]
)
def test_the_agent_killed_at_every_step_leaves_one_version(tmp_path: Path, policy: str, power_cut: bool) -> None:
    world = World(tmp_path, policy)
    steps = world.run()[1].steps
    assert len(steps) > 40
    ends = set()
    for last_step in range(1, len(steps) + 1):
        world = World(tmp_path, policy)
        with pytest.raises(Killed):
            world.run(last_step)
        where = steps[last_step - 1]
        if power_cut:
            world.engine.power_cut()
            assert all(len(images) == 1 for images in world.engine.serving().values()), where
        new = world.resume()
        assert world.engine.all() == (world.after if new else world.before), where
        assert new == bool(world.committed), where
        assert world.resume() == new  # once more changes nothing
        assert world.engine.all() == (world.after if new else world.before), where
        ends.add(new)
    assert ends == {False, True}


def test_what_does_not_start_with_the_engine_does_so_in_the_middle_of_an_update(tmp_path: Path) -> None:
    world = World(tmp_path, "no")
    with pytest.raises(Killed):
        world.run(world.run_steps().index("before: start the new broker") + 1)
    world.engine.power_cut()
    assert world.engine.serving() == {"broker": [OLD], "processor": [], "forwarder": []}
    assert world.resume() is False
    assert [one[:3] for one in world.engine.all()] == [one[:3] for one in world.before]


def test_at_every_step_back_too(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.engine.bad.add((NEW, "forwarder"))
    update, journal = world.update()
    with pytest.raises(RolledBack):
        update.run(world.entry())
    steps = journal.steps
    first = next(number for number, step in enumerate(steps) if step == "before: stop the new forwarder")
    assert len(steps) - first > 15
    for last_step in range(first + 1, len(steps) + 1):
        for power_cut in (False, True):
            world = World(tmp_path)
            world.engine.bad.add((NEW, "forwarder"))
            update, _ = world.update(last_step)
            with pytest.raises(Killed):
                update.run(world.entry())
            if power_cut:
                world.engine.power_cut()
                assert world.engine.serving() == {service: [OLD] for service in SERVICES}, steps[last_step - 1]
            assert world.resume() is False
            assert world.engine.all() == world.before, (steps[last_step - 1], power_cut)


def test_both_start_only_in_the_moment_between_two_policies_and_the_second_finds_the_volume_taken(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    steps = world.run()[1].steps
    clashes = []
    for last_step in range(1, len(steps) + 1):
        world = World(tmp_path)
        with pytest.raises(Killed):
            world.run(last_step)
        world.engine.clashes = 0
        world.engine.power_cut()
        if world.engine.clashes:
            clashes.append(steps[last_step - 1])
    expected = [
        step
        for service in SERVICES
        for step in (f"behind: let the new {service} start with the engine", f"before: remove the old {service}")
    ]
    assert clashes == expected


@pytest.mark.parametrize("what", ["create", "stop", "start", "rename"])
def test_an_engine_that_refuses_takes_everything_back(tmp_path: Path, what: str) -> None:
    world = World(tmp_path)
    real = getattr(world.engine, what)

    def refuse_once(*words: object) -> object:
        one = words[0] if isinstance(words[0], Container) else world.engine.inspect(str(words[0]))
        if one is not None and one.service == "processor":
            setattr(world.engine, what, real)
            raise DeployError("Bind for 127.0.0.1:8883 failed: port is already allocated")
        return real(*words)

    setattr(world.engine, what, refuse_once)
    with pytest.raises(RolledBack, match="port is already allocated; 1 .* serves again") as caught:
        world.run()
    assert not caught.value.again
    assert world.engine.all() == world.before


def test_an_engine_that_is_away_is_waited_for_on_the_way_back(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.engine.bad.add((NEW, "broker"))
    real = world.engine.stop
    times: list[str] = []

    def away(name: str, seconds: int) -> None:
        found = world.engine.inspect(name)
        if found is not None and found.mark and len(times) < 3:
            times.append(name)
            raise Unreachable("no Docker Engine answers")
        real(name, seconds)

    world.engine.stop = away  # type: ignore[method-assign]
    with pytest.raises(RolledBack):
        world.run()
    assert len(times) == 3
    assert world.engine.all() == world.before


def test_an_old_container_that_somebody_has_removed_is_told_until_there_is_another(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.engine.bad.add((NEW, "processor"))
    real = world.engine.rename

    def remove_it(name: str, new: str) -> None:
        real(name, new)
        if new.endswith("-old"):
            world.engine.remove(name)

    world.engine.rename = remove_it  # type: ignore[method-assign]
    with pytest.raises(Broken, match=r"is gone: `docker-compose up -d broker`"):
        world.run()
    world.engine.rename = real  # type: ignore[method-assign]
    entry = world.update()[1].read()
    assert entry is not None
    assert entry.state == "rolling back"
    assert ("/p_broker_1", NEW, "always", True) in world.engine.all()  # it would be there after a power cut
    with pytest.raises(Broken):
        world.resume()
    world.engine.stop("p_broker_1", 10)
    world.engine.remove("p_broker_1")
    world.engine.add("broker")  # as docker-compose does
    assert world.resume() is False
    assert world.engine.all() == world.before


def test_a_new_container_that_somebody_has_replaced_is_left_to_him(tmp_path: Path) -> None:
    world = World(tmp_path)
    steps = world.run_steps()
    with pytest.raises(Killed):
        world.run(steps.index("behind: keep the new version") + 1)
    world.engine.dead = False
    world.engine.stop("p_broker_1", 10)
    world.engine.remove("p_broker_1")
    with pytest.raises(Broken, match="the new container of p_broker_1 is gone"):
        world.resume()
    world.engine.add("broker")
    assert world.resume() is True
    assert [one[:2] for one in world.engine.all()] == [
        ("/p_broker_1", OLD), ("/p_forwarder_1", NEW), ("/p_processor_1", NEW),
    ]  # fmt: skip


def test_who_ends_the_agent_gets_the_old_version_first(tmp_path: Path) -> None:
    world = World(tmp_path)
    real = world.engine.sleep

    def interrupted(seconds: float) -> None:
        world.engine.sleep = real  # type: ignore[method-assign]
        raise KeyboardInterrupt

    world.engine.sleep = interrupted  # type: ignore[method-assign]
    update, _ = world.update()
    with pytest.raises(RolledBack, match="KeyboardInterrupt") as caught:
        update.run(world.entry())
    assert caught.value.again
    assert world.engine.all() == world.before


def test_nothing_begins_where_the_journal_cannot_be_written(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.path.mkdir()
    with pytest.raises(DeployError, match=r"journal\.json cannot be written: Is a directory"):
        world.run()
    assert world.engine.done == []


def test_a_journal_without_sense_is_told_and_stays(tmp_path: Path) -> None:
    for text in ("", "{", "[]", '{"parts": []}', '{"parts": 3}'):
        path = tmp_path / "journal.json"
        path.write_text(text)
        with pytest.raises(DeployError, match=r"journal\.json cannot be read .*docker ps -a"):
            Journal(path).read()
        assert path.read_text() == text
