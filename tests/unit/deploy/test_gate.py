"""When a new container counts as well, and what is said of one that does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from lockgate.deploy.container import Container
from lockgate.deploy.errors import DeployError, Failed
from lockgate.deploy.gate import Books, Gate, Time, books_of, read_books
from tests.support.engines import FakeEngine


class Changing(FakeEngine):
    """One container whose state changes with time."""

    def __init__(self, change: Callable[[float, dict[str, Any]], None] = lambda *_: None) -> None:
        super().__init__()
        self.id = self.add("processor").id
        self._change = change
        self.probes: list[float] = []
        self.well_at = 0.0

    def inspect(self, name: str) -> Container | None:
        found = super().inspect(name)
        if found is not None:
            self._change(self.time, cast(dict[str, Any], found.attributes))
        return found

    def execute(self, name: str, words: tuple[str, ...]) -> tuple[int, str]:
        if words == ("probe",):
            self.probes.append(self.time)
            self.time += 0.2
            return (0, "well") if self.time > self.well_at else (1, "processor: not ready,\n it has no status socket")
        return super().execute(name, words)

    def gate(self, health: float = 20.0, watch: float = 10.0) -> Gate:
        return Gate(self, health, watch, Time(self.now, self.sleep))


def state(**values: object) -> Callable[[float, dict[str, Any]], None]:
    """After five seconds the container's state is another."""

    def change(now: float, attributes: dict[str, Any]) -> None:
        if now >= 5.0:
            attributes["State"].update(values)

    return change


def test_it_is_ready_when_its_own_health_check_says_so() -> None:
    engine = Changing()
    engine.well_at = 3.0
    engine.gate().wait_ready(engine.id)
    assert 3.0 <= engine.time < 3.5
    assert all(later - earlier > 0.399 for earlier, later in zip(engine.probes, engine.probes[1:], strict=False))
    engine.well_at = 1e9
    with pytest.raises(Failed, match="processor is not well after 20 s: processor: not ready, it has no status socket"):
        engine.gate().wait_ready(engine.id)


def test_without_a_health_check_it_is_enough_that_it_runs() -> None:
    engine = Changing(lambda _, attributes: attributes["Config"].update(Healthcheck=None))
    engine.gate().wait_ready(engine.id)
    assert engine.probes == []


def test_a_check_that_cannot_be_run_waits_for_the_next_look() -> None:
    engine = Changing()

    def refuse(name: str, words: tuple[str, ...]) -> tuple[int, str]:
        raise DeployError("container is not running")

    engine.execute = refuse  # type: ignore[method-assign]
    with pytest.raises(Failed, match="not well after 20 s: container is not running"):
        engine.gate().wait_ready(engine.id)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (state(Running=False, ExitCode=137), "processor ended with status 137: ValueError: it is broken"),
        (state(StartedAt="later"), "processor has started anew by itself"),
        (state(Health={"Status": "unhealthy", "Log": [{"Output": "the store\ncannot be written"}]}),
         "the health check of processor fails: the store cannot be written"),
        (lambda now, attributes: attributes.update(RestartCount=int(now >= 5)), "processor ended with status 0"),
        (lambda _, attributes: attributes["State"].update(Health={"Status": "starting"}),
         "the engine does not call processor healthy after 30 s"),
    ],
)  # fmt: skip
def test_what_happens_while_it_is_watched(change: Callable[[float, dict[str, Any]], None], text: str) -> None:
    engine = Changing(change)
    with pytest.raises(Failed, match=text):
        engine.gate().watch(engine.id, None, lambda: None)


def test_a_container_that_is_gone() -> None:
    engine = Changing()
    with pytest.raises(Failed, match="is gone"):
        engine.gate().watch("f" * 64, None, lambda: None)


def test_it_is_watched_for_as_long_as_it_is_said() -> None:
    engine = Changing()
    engine.gate(watch=10.0).watch(engine.id, None, lambda: None)
    assert 10.0 <= engine.time < 11.0


def test_the_books_may_be_late_once_but_not_five_times() -> None:
    before = Books(True, 10, 9, 8)
    good = Books(True, 10, 9, 9)
    for answers, text in (
        ([None, Books(False, 11, 9, 9), good], ""),
        ([None] * 5, "the ledger cannot be read any more"),
        ([Books(False, 11, 9, 9)] * 5, "the ledger does not close any more"),
        ([Books(True, 10, 9, 7)] * 5, "the ledger went back: delivered was 8 and is 7"),
    ):
        engine, left = Changing(), iter(answers)
        if text:
            with pytest.raises(Failed, match=text):
                engine.gate(watch=0.0).watch(engine.id, before, lambda left=left: next(left))  # type: ignore[misc]
        else:
            engine.gate(watch=0.0).watch(engine.id, before, lambda left=left: next(left))  # type: ignore[misc]
        assert next(left, "none is left") == "none is left"


def test_the_ledger_is_asked_of_whoever_keeps_it() -> None:
    engine = FakeEngine()
    broker, processor = engine.add("broker"), engine.add("processor")
    assert read_books(engine, [broker]) is None
    assert read_books(engine, [broker, processor]) == Books(True, 5, 5, 5)
    for answer in ("there is no buffer yet", "{", "[]", '{"closes": 1}'):
        engine.execute = lambda *_, answer=answer: (1, answer)  # type: ignore[method-assign]
        assert read_books(engine, [processor]) is None
    assert books_of({"closes": False, "intake": {"received": 3, "logged": 2}, "deliveries": []}) == Books(
        False, 3, 2, 0
    )
