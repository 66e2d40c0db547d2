"""`lockgate deploy apply`, killed at one of its steps: `python -m tests.support.deploy_killed TOML IMAGE STEP`.

STEP is its number or its name. Says the step and ends with 9, at once; with 0 where the update has fewer.
"""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

from lockgate.config import lockgate_toml
from lockgate.deploy.agent import Agent
from lockgate.deploy.engine import Engine

KILLED = 9


def main(toml: str, image: str, last_step: str) -> None:
    config = lockgate_toml.load(Path(toml), {})
    numbers = itertools.count(1)

    def on_step(what: str) -> None:
        if last_step in (str(next(numbers)), what):
            print(what, flush=True)
            os._exit(KILLED)

    Agent(config.deploy, config.gateway.data_dir / "deploy", Engine(config.deploy.engine), "test", on_step).apply(
        image, True
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
