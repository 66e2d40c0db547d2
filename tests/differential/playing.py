"""Plays what is asked for at both brokers, side by side; as a program it prints what differs, as rows of the table.

`python -m tests.differential.playing [NAME…]`
"""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from tests.differential.brokers import MAKERS, Broker, Maker
from tests.differential.catalogue import SETUPS, START_FILES, STARTS, Setup
from tests.differential.differences import rows
from tests.differential.scene import Scene
from tests.interop.scenarios.differences import compare

Transcripts = dict[str, list[str]]  # by scenario

SCENARIOS = [f"{setup.name}/{name}" for setup in SETUPS for name in setup.scenarios]
STARTED = [f"start/{name}" for name in STARTS]


def play(maker: Maker, setup: Setup, folder: Path) -> Transcripts:
    """Give what was seen in each scenario of a configuration."""
    broker = Broker(maker, folder, setup.conf, setup.files)
    transcripts: Transcripts = {}
    try:
        broker.start()
        for name, steps in setup.scenarios.items():
            scene = Scene(broker)
            try:
                transcripts[name] = scene.play(steps)
            except (AssertionError, OSError) as error:
                transcripts[name] = [*scene.lines, f"ended: {broker.normalised(str(error)).splitlines()[:1]}"]
    except AssertionError as error:
        refusal = broker.normalised(str(error)).splitlines()[-1:]
        transcripts = {name: [f"does not start: {refusal}"] for name in setup.scenarios}
    finally:
        broker.end(signal.SIGKILL)
    return transcripts


def start(maker: Maker, name: str, folder: Path) -> list[str]:
    """Give how a start ended, and its first error; we go on to the next ones."""
    broker = Broker(maker, folder, STARTS[name], START_FILES)
    status = broker.wait(broker.launch())
    if status is None:
        broker.end(signal.SIGKILL)  # 2.0 does not hear SIGTERM under some of these
        return ["runs"]
    errors = [line for line in broker.lines() if line.startswith("Error")]
    return [f"status {status}", *errors[: 2 if errors[1:] and errors[1].startswith("Error found at") else 1]]


def play_all(wanted: Collection[str], folder: Path) -> dict[Maker, Transcripts]:
    """Give the transcripts of these scenarios, and of the others of their configurations."""
    seen: dict[Maker, Transcripts] = {maker: {} for maker in MAKERS}
    playing: list[tuple[Maker, str, Future[Transcripts]]] = []
    starting: list[tuple[Maker, str, Future[list[str]]]] = []
    with ThreadPoolExecutor(6) as pool:
        for setup in SETUPS:
            if any(f"{setup.name}/{name}" in wanted for name in setup.scenarios):
                for maker in MAKERS:
                    future = pool.submit(play, maker, setup, folder / maker / setup.name)
                    playing.append((maker, setup.name, future))
        for number, name in enumerate(STARTS):
            if f"start/{name}" in wanted:
                for maker in MAKERS:
                    started = pool.submit(start, maker, name, folder / maker / f"start-{number}")
                    starting.append((maker, name, started))
        for maker, setup_name, future in playing:
            seen[maker] |= {f"{setup_name}/{name}": lines for name, lines in future.result().items()}
        for maker, name, started in starting:
            seen[maker][f"start/{name}"] = started.result()
    return seen


def main(wanted: Collection[str]) -> None:
    """Print the differences that the table does not know."""
    known = {(row.scenario, row.difference) for row in rows()}
    with tempfile.TemporaryDirectory() as folder:
        seen = play_all(wanted, Path(folder))
    for name in wanted:
        for difference in compare(seen["mosquitto"][name], seen["ours"][name]):
            if (name, difference) not in known:
                print(f"[[difference]]\nscenarios = [{_toml(name)}]")
                print(f"mosquitto = [{', '.join(map(_toml, difference.mosquitto))}]")
                print(f'ours = [{", ".join(map(_toml, difference.ours))}]\nwhy = ""\n')


def _toml(text: str) -> str:
    return f"'{text}'" if "'" not in text else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


if __name__ == "__main__":
    main(sys.argv[1:] or [*SCENARIOS, *STARTED])
