"""Public clients see the same on Lockgate and on Debian's mosquitto, but for what differences.toml says."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.interop.scenarios.catalogue import SCENARIOS, Scenario
from tests.interop.scenarios.commands import CLIENT, COMMANDS, Commands, Shell
from tests.interop.scenarios.differences import page, rows, unexplained
from tests.interop.scenarios.kinds import KINDS, stop_drivers
from tests.interop.scenarios.scene import Kind, Scene
from tests.support.gateway import Gateway
from tests.support.peers import Mosquitto, free_port

pytestmark = pytest.mark.peers

PAIRS = [(scenario, kind) for scenario in SCENARIOS for kind in KINDS if scenario.suits(kind)]


class Stage:
    """Both brokers, and the transcripts made on them."""

    def __init__(self, ports: dict[str, dict[bool, int]]) -> None:
        self._ports = ports
        self._workers = ThreadPoolExecutor(24)
        self._running: dict[tuple[str, str, str], Future[list[str]]] = {}

    def start(self, scenario: Scenario, kind: Kind) -> None:
        """Begin to play a scenario on both brokers; most of the time it takes is waiting, so all may run at once."""
        for broker, ports in self._ports.items():
            key = (broker, scenario.name, kind.name)
            self._running[key] = self._workers.submit(_play, scenario, kind, ports[kind.websocket])

    def transcripts(self, scenario: Scenario, kind: Kind) -> tuple[list[str], list[str]]:
        """Give Mosquitto's and ours."""
        return self._transcript("mosquitto", scenario, kind), self._transcript("ours", scenario, kind)

    def output(self, scenario: Commands) -> tuple[list[str], list[str]]:
        """Give the transcripts of Mosquitto's commands on both brokers."""
        running = [self._workers.submit(_run, scenario, ports[False]) for ports in self._ports.values()]
        mosquitto, ours = (one.result() for one in running)
        return mosquitto, ours

    def _transcript(self, broker: str, scenario: Scenario, kind: Kind) -> list[str]:
        return self._running[broker, scenario.name, kind.name].result()

    def stop(self) -> None:
        """Wait for all that runs."""
        self._workers.shutdown(cancel_futures=True)


def _play(scenario: Scenario, kind: Kind, port: int) -> list[str]:
    scene = Scene(scenario.name, kind, port)
    scenario.play(scene)
    return scene.end()


def _run(scenario: Commands, port: int) -> list[str]:
    shell = Shell(port)
    scenario.play(shell)
    return shell.lines


@pytest.fixture(scope="module")
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One process of each broker, with a plain and a WebSocket listener, and every scenario that is asked for begun."""
    doors = {broker: free_port() for broker in ("mosquitto", "ours")}
    mosquitto = Mosquitto(
        tmp_path_factory.mktemp("mosquitto"),
        ["set_tcp_nodelay true", f"listener {doors['mosquitto']} 127.0.0.1", "protocol websockets"],
    )
    gateway = Gateway(
        tmp_path_factory.mktemp("lockgate"),
        mosquitto_conf=["set_tcp_nodelay true", f"listener {doors['ours']} 127.0.0.1", "protocol websockets"],
    )
    try:
        gateway.start("broker")
        running = Stage(
            {
                "mosquitto": {False: mosquitto.port, True: doors["mosquitto"]},
                "ours": {False: gateway.port, True: doors["ours"]},
            }
        )
        for item in request.session.items:
            chosen = getattr(item, "callspec", None)
            if item.path == request.path and chosen is not None and "kind" in chosen.params:
                running.start(chosen.params["scenario"], chosen.params["kind"])
        yield running
        running.stop()
    finally:
        stop_drivers()
        gateway.stop_all()
        mosquitto.stop()


@pytest.mark.parametrize(("scenario", "kind"), PAIRS, ids=[f"{one.name}-{kind.name}" for one, kind in PAIRS])
def test_both_brokers_show_the_same(stage: Stage, scenario: Scenario, kind: Kind) -> None:
    mosquitto, ours = stage.transcripts(scenario, kind)
    assert not unexplained(scenario.name, kind.name, mosquitto, ours)


@pytest.mark.parametrize("scenario", COMMANDS, ids=[one.name for one in COMMANDS])
def test_mosquitto_s_commands_show_the_same(stage: Stage, scenario: Commands) -> None:
    mosquitto, ours = stage.output(scenario)
    assert not unexplained(scenario.name, CLIENT, mosquitto, ours)


def test_every_row_belongs_to_a_scenario_and_to_clients_that_play_it() -> None:
    played = {(scenario.name, kind.name) for scenario, kind in PAIRS}
    played |= {(one.name, CLIENT) for one in COMMANDS}
    for row in rows():
        for client in row.clients:
            assert (row.scenario, client) in played


def test_the_reference_page_is_the_one_the_table_makes() -> None:
    written = Path(__file__).parents[3] / "docs" / "reference" / "differences.md"
    assert written.read_text() == page(), "run `make docs`"
