"""The agent around an update: what it remembers, what it does not try again, when it begins by itself."""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from lockgate.config import values
from lockgate.config.model import DeployConfig, Window
from lockgate.deploy import agent as module
from lockgate.deploy.agent import Agent
from lockgate.deploy.engine import Engine
from lockgate.deploy.errors import Broken, DeployError, Refused, RolledBack, Unreachable
from lockgate.deploy.gate import Time
from lockgate.deploy.history import MOST_REFUSED, History, Record
from lockgate.deploy.journal import Journal
from lockgate.deploy.reference import Reference
from lockgate.deploy.release import Platform, Release, is_older
from lockgate.deploy.signature import Signature
from lockgate.telemetry.clock import Clock, Moment
from tests.support.engines import NEW, OLD, FakeEngine, Killed

SERVICES = ("broker", "processor", "forwarder")
DIGEST = "sha256:" + "d" * 64
CONFIG = DeployConfig(project="p", image="r.example/lockgate:stable", signature="none", watch_seconds=1.0)


class FakeRegistry:
    """Has one image, the new one."""

    def __init__(self) -> None:
        self.digest = DIGEST
        self.version = "2"
        self.title = "lockgate"
        self.found: list[Signature] = []
        self.problem: DeployError | None = None
        self.asked = 0

    def resolve(self, reference: Reference) -> Reference:
        self.asked += 1
        if self.problem is not None:
            raise self.problem
        return reference.at(self.digest)

    def signatures(self, reference: Reference) -> list[Signature]:
        return self.found

    def release(self, reference: Reference, platform: Platform) -> Release:
        labels = {"org.opencontainers.image.version": self.version, "org.opencontainers.image.title": self.title}
        return Release(reference, (), NEW, NEW, labels, "2026-02-01T00:00:00Z", 0)


class PullingEngine(FakeEngine):
    """Has the new image once it was pulled."""

    def pull(self, reference: Reference, login: object, seconds: float) -> None:
        self.done.append(f"pull {reference}")
        self._images[str(reference)] = self._images[NEW]

    def create(self, old: Any, image: str, name: str, token: str) -> Any:
        known = self._images.get(image)
        return super().create(old, "new" if known is not None and known["Id"] == NEW else image, name, token)


class Site:
    """A machine with its engine, a registry, and an agent that is made anew for each command, as in life."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.config = CONFIG
        self.engine = PullingEngine()
        for service in SERVICES:
            self.engine.add(service)
        self.registry = FakeRegistry()
        self.before = self.engine.all()
        monkeypatch.setattr(module, "Registry", lambda *_: self.registry)

    def agent(self, on_step: Callable[[str], None] = lambda _: None) -> Agent:
        clock = Time(self.engine.now, self.engine.sleep)
        return Agent(self.config, self.folder / "deploy", cast(Engine, self.engine), "me", on_step, clock)

    def outcomes(self) -> list[tuple[str, str]]:
        return [(one["kind"], one["outcome"]) for one in self.agent().history()]

    def die_at(self, wanted: str) -> None:
        def on_step(what: str) -> None:
            if what == wanted:
                self.engine.dead = True
                raise Killed

        with pytest.raises(Killed):
            self.agent(on_step).apply()
        self.engine.dead = False


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path, monkeypatch)


def test_an_update_is_remembered_and_its_image_stands_in_the_environment_file(site: Site) -> None:
    folder = site.folder / "stack"
    folder.mkdir()
    (folder / ".env").write_text("GATEWAY_ID=hall-3\nLOCKGATE_IMAGE=old\n")
    (folder / ".env").chmod(0o640)
    site.config = dataclasses.replace(CONFIG, folder=folder)
    found = site.agent().apply()
    assert found is not None
    assert site.engine.done[0] == f"pull r.example/lockgate@{DIGEST}"
    assert (folder / ".env").read_text() == f"GATEWAY_ID=hall-3\nLOCKGATE_IMAGE=r.example/lockgate@{DIGEST}\n"
    assert (folder / ".env").stat().st_mode & 0o777 == 0o640
    (record,) = site.agent().history()
    assert (record["by"], record["outcome"], record["before"]["image_id"], record["after"]["digest"]) == (
        "me", "updated", OLD, DIGEST,
    )  # fmt: skip
    assert [part["service"] for part in record["services"]] == list(SERVICES)
    assert all(part["gap_seconds"] >= 0.5 for part in record["services"])
    assert site.agent().apply() is None  # it runs already
    status = site.agent().status()
    assert status["under_way"] is None
    assert cast(dict[str, str], status["running"])["digest"] == DIGEST


def test_the_way_back_is_to_what_ran_before_and_no_further(site: Site) -> None:
    with pytest.raises(DeployError, match="nobody knows what ran before"):
        site.agent().rollback()
    site.agent().apply()
    assert site.agent().rollback().image_id == OLD
    assert site.engine.all() == site.before
    assert site.outcomes() == [("update", "updated"), ("rollback", "updated")]
    with pytest.raises(DeployError, match="nobody knows what ran before"):
        site.agent().rollback()  # not forward again
    assert site.agent()._look_and_update() == ""
    assert site.engine.all() == site.before  # and the registry does not bring it again by itself


def test_an_image_that_is_gone_is_told(site: Site) -> None:
    site.agent().apply()
    del site.engine._images[OLD]
    with pytest.raises(DeployError, match="is not here any more; apply it by its name"):
        site.agent().rollback()


def test_what_was_not_well_is_tried_again_when_it_changes_or_somebody_asks(site: Site) -> None:
    site.engine.bad.add((NEW, "processor"))
    with pytest.raises(RolledBack):
        site.agent()._look_and_update()
    assert site.outcomes() == [("update", "rolled back")]
    site.engine.done.clear()
    assert site.agent()._look_and_update() == ""
    assert site.engine.done == []
    site.registry.digest = "sha256:" + "e" * 64
    with pytest.raises(RolledBack):
        site.agent()._look_and_update()
    with pytest.raises(RolledBack):
        site.agent().apply()
    site.engine.bad.clear()
    assert site.agent()._look_and_update() == ""  # still on the list
    assert site.engine.all() == site.before
    assert site.agent().apply() is not None
    assert site.agent().status()["not_tried_again"] == {DIGEST: "processor is not well after 120 s: it is bad"}


def test_an_engine_that_was_away_is_no_fault_of_the_image(site: Site) -> None:
    site.engine.failing["create processor"] = Unreachable("no Docker Engine answers")
    with pytest.raises(RolledBack):
        site.agent()._look_and_update()
    site.engine.failing.clear()
    site.agent()._look_and_update()
    assert site.outcomes() == [("update", "rolled back"), ("update", "updated")]


def test_what_cannot_be_brought_back_is_tried_at_the_next_start(site: Site) -> None:
    site.engine.bad.add((NEW, "broker"))
    site.engine.failing["remove broker"] = DeployError("the engine's disk is full")
    with pytest.raises(Broken, match="not everything of the old version could be brought back: broker: .*disk is full"):
        site.agent().apply()
    assert site.engine.serving()["broker"] == [OLD]  # it serves all the same
    site.engine.failing.clear()
    site.agent().resume()
    assert site.engine.all() == site.before
    assert site.outcomes() == [("update", "rolled back")]


def test_an_update_that_was_interrupted_twice_is_left(site: Site) -> None:
    for times in (1, 2):
        site.die_at("before: watch the new processor")
        site.engine.power_cut()
        assert cast(dict[str, Any], site.agent().status()["under_way"])["step"] == "watch the new processor"
        site.agent().resume()
        assert site.engine.all() == site.before
        assert site.outcomes() == [("update", "interrupted")] * times
    assert "twice" in cast(dict[str, str], site.agent().status()["not_tried_again"])[DIGEST]


def test_an_update_that_was_committed_goes_on_to_its_end(site: Site) -> None:
    site.die_at("behind: keep the new version")
    site.agent().resume()
    assert [image for _, image, policy, _ in site.engine.all()] == [NEW] * 3
    assert site.outcomes() == [("update", "updated")]


def test_the_end_of_an_update_is_remembered_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "end", die)
        with pytest.raises(Killed):
            site.agent().apply()
    assert site.outcomes() == [("update", "updated")]
    site.agent().resume()
    assert site.outcomes() == [("update", "updated")]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"title": "something"}, "is something, and lockgate runs here"),
        ({"version": "0.9"}, r"\(0.9\) is older than what runs \(1\): --allow-older"),
    ],
)
def test_what_is_refused_is_not_pulled(site: Site, change: dict[str, str], text: str) -> None:
    for name, value in change.items():
        setattr(site.registry, name, value)
    with pytest.raises(Refused, match=text):
        site.agent().apply()
    assert site.engine.done == []
    assert site.outcomes() == []


def test_an_older_version_where_it_is_allowed(site: Site) -> None:
    site.registry.version = "0.9"
    assert site.agent().apply(allow_older=True) is not None


def test_a_key_has_to_be_named_or_done_without_by_name(site: Site) -> None:
    site.config = dataclasses.replace(CONFIG, signature="required")
    with pytest.raises(DeployError, match=r'deploy.public_key is missing: set it, or signature = "none"'):
        site.agent().apply()
    site.config = dataclasses.replace(CONFIG, public_key=site.folder / "no.pub")
    with pytest.raises(DeployError, match="no.pub: No such file"):  # a key that is named is used
        site.agent().apply()
    assert site.engine.done == []


def test_only_one_agent_is_at_work(site: Site) -> None:
    first = site.agent()
    with first._alone(), pytest.raises(DeployError, match="another `lockgate deploy` is at work"):
        site.agent().apply()


def test_projects_that_are_none(site: Site) -> None:
    for project, text in (("", "deploy.project is missing"), ("q", "no containers of a Compose project 'q'")):
        site.config = dataclasses.replace(CONFIG, project=project)
        with pytest.raises(DeployError, match=text):
            site.agent().apply()
    site.config = dataclasses.replace(CONFIG, services=("broker", "brocker"))
    with pytest.raises(DeployError, match="has no brocker; there are broker, forwarder, processor"):
        site.agent().apply()
    site.config = CONFIG
    site.engine.stop("p_processor_1", 10)
    with pytest.raises(DeployError, match="p_processor_1 does not run"):
        site.agent().apply()


def test_an_image_is_missing(site: Site) -> None:
    site.config = dataclasses.replace(CONFIG, image="")
    with pytest.raises(DeployError, match="deploy.image is missing"):
        site.agent().check()


# --- watching ---------------------------------------------------------------------------------------------------------


class Turns(threading.Event):
    """Lets the agent look so often."""

    def __init__(self, turns: int) -> None:
        super().__init__()
        self._turns = turns
        self.pauses: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.pauses.append(timeout or 0.0)
        self._turns -= 1
        return self._turns < 0


def test_watching_updates_once_and_tells_a_problem_once(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "lockgate.deploy")
    turns = Turns(3)
    site.agent().watch(turns)
    assert site.outcomes() == [("update", "updated")]
    assert site.registry.asked == 3
    assert 0 <= turns.pauses[0] <= CONFIG.jitter_seconds
    assert all(900 <= pause <= 1200 for pause in turns.pauses[1:])
    site.registry.problem = Unreachable("r.example did not answer within 30 s")
    site.agent().watch(Turns(3))
    assert caplog.text.count("r.example did not answer") == 1


def test_what_was_interrupted_is_brought_to_its_end_at_any_hour(site: Site) -> None:
    site.config = dataclasses.replace(CONFIG, windows=(Window(frozenset(), 0, 1),))
    site.die_at("before: watch the new processor")
    site.agent().watch(Turns(0))
    assert site.engine.all() == site.before
    assert site.outcomes() == [("update", "interrupted")]


def test_nothing_begins_outside_of_its_hours_or_while_nobody_knows_the_time(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = Window(frozenset(range(7)), 0, 24 * 60)
    none = Window(frozenset(), 0, 24 * 60)
    good = Moment("boot", 0, 0, True)
    for window, moment, asked in ((every, good._replace(clock_ok=False), 0), (none, good, 0), (every, good, 1)):
        site.config = dataclasses.replace(CONFIG, windows=(window,), time_zone="Europe/Vienna")
        monkeypatch.setattr(Clock, "now", lambda _, moment=moment: moment)
        said = site.agent()._look_and_update()
        assert site.registry.asked == asked
        assert ("nobody knows what time it is" in said) == (not moment.clock_ok)


def window(text: str) -> tuple[Window, ...]:
    return cast(tuple[Window, ...], values.WINDOWS.read([text]))


# --- remembering ------------------------------------------------------------------------------------------------------


def test_the_history_is_bounded_and_what_cannot_be_read_is_kept_aside(tmp_path: Path) -> None:
    path = tmp_path / "history.json"
    history = History(path, 3)
    for number in range(5):
        history.add(Record(str(number), True, "me", "update", {}, {}, "updated", token=str(number)))
    for number in range(MOST_REFUSED + 5):
        history.refuse(f"sha256:{number}", "bad")
    again = History(path, 3)
    assert [record.at for record in again.records] == ["2", "3", "4"]
    assert len(again.not_again) == MOST_REFUSED
    for text in ("{", "[]", '{"records": [{"x": 1}], "not_again": {}}'):
        path.write_text(text)
        assert History(path, 3).records == []
        assert (tmp_path / "history.unreadable").read_text() == text


def test_versions_are_compared_by_their_numbers_else_by_their_age() -> None:
    assert is_older("0.9.0", "", "0.10.0", "")
    assert not is_older("v1.2", "2020", "1.2", "2021")
    assert is_older("", "2026-01-01T00:00:00Z", "1.0", "2026-01-02T00:00:00.123Z")
    assert not is_older("", "", "", "")


def test_the_command_says_what_happened(
    site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lockgate.cli import deploy, main

    monkeypatch.setattr(deploy, "_agent", lambda *_: site.agent())
    monkeypatch.setattr(deploy, "_stop_at_signals", threading.Event)
    toml = site.folder / "lockgate.toml"
    toml.write_text('[deploy]\nproject = "p"\n')

    def said(*words: str, status: int = 0) -> str:
        assert main(["deploy", words[0], "-c", str(toml), *words[1:]]) == status
        captured = capsys.readouterr()
        return captured.out + captured.err

    assert said("history") == "no update yet\n"
    assert "there is something new" in said("check")
    assert "not signed" in said("check")
    assert f"2 ({DIGEST}) serves; before: 1 ({OLD})" in said("apply")
    assert "that runs already" in said("apply")
    assert "nothing new" in said("check")
    assert "1 (sha256:000" in said("rollback")
    rows = said("history").splitlines()
    assert rows[0].split() == ["when", "by", "what", "from", "to", "away", "outcome"]
    assert "broker 0.5s processor 0.5s forwarder 0.5s" in rows[1]
    status = said("status")
    assert "running  1" in status
    assert f"not tried again: {DIGEST}: somebody went back from it" in status
    assert json.loads(said("status", "--json"))["project"] == "p"
    site.engine.bad.add((NEW, "forwarder"))
    assert "rolled back: forwarder is not well after 120 s: it is bad; 1 (sha256:" in said("apply", status=4)
    site.registry.problem = Refused("no")
    assert said("check", status=1) == "no\n"


def test_what_is_not_installed_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lockgate.cli import main

    toml = tmp_path / "lockgate.toml"
    toml.write_text("")
    for name in [name for name in sys.modules if name.startswith("lockgate.deploy.")]:
        monkeypatch.delitem(sys.modules, name)
        monkeypatch.delattr(sys.modules["lockgate.deploy"], name.rpartition(".")[2], raising=False)
    monkeypatch.setitem(sys.modules, "docker", None)
    assert main(["deploy", "status", "-c", str(toml)]) == 1
    assert "pip install 'lockgate[deploy]'" in capsys.readouterr().err
