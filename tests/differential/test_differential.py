"""One configuration and one scenario, at Debian's mosquitto and at us: the same lines, but for differences.toml."""

from __future__ import annotations

import difflib

import pytest

from tests.differential.brokers import Maker
from tests.differential.differences import rows, unexplained
from tests.differential.playing import SCENARIOS, STARTED, Transcripts, play_all

pytestmark = [pytest.mark.peers, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def transcripts(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[Maker, Transcripts]:
    """What was seen in everything that was asked for."""
    wanted = set()
    for item in request.session.items:
        chosen = getattr(item, "callspec", None)
        if item.path == request.path and chosen is not None and "name" in chosen.params:
            wanted.add(chosen.params["name"])
    return play_all(wanted, tmp_path_factory.mktemp("differential"))


@pytest.mark.parametrize("name", [*SCENARIOS, *STARTED])
def test_both_brokers_show_the_same(transcripts: dict[Maker, Transcripts], name: str) -> None:
    mosquitto, ours = transcripts["mosquitto"][name], transcripts["ours"][name]
    told = unexplained(name, mosquitto, ours)
    assert not told, "\n".join([told, *difflib.unified_diff(mosquitto, ours, "mosquitto", "ours", lineterm="", n=3)])


def test_every_row_belongs_to_a_scenario() -> None:
    assert {row.scenario for row in rows()} <= {*SCENARIOS, *STARTED}


def test_there_are_as_many_scenarios_as_promised() -> None:
    assert len({*SCENARIOS, *STARTED}) == len(SCENARIOS) + len(STARTED) >= 150
