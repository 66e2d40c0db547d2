"""`python -m tests.fuzz.guided TARGET [libFuzzer's options]`: atheris drives one target, guided by coverage.

Needs the sources, not the compiled build: only what is interpreted can be watched.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["lockgate"]):
    import lockgate.mqtt.decoder
    from tests.fuzz.guided.targets import SEEDS, TARGETS


def main() -> None:
    """Run until libFuzzer's options say it is enough; it ends the process, with a status other than 0 for a finding."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(
            f"usage: python -m tests.fuzz.guided {{{','.join(TARGETS)}}} [-atheris_runs=N] [-max_total_time=SECONDS]"
        )
    if not (lockgate.mqtt.decoder.__file__ or "").endswith(".py"):
        sys.exit("the compiled build is imported, which cannot be watched: set PYTHONPATH to src")
    name = sys.argv[1]
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(SEEDS[name]):
            Path(corpus, f"seed-{number}").write_bytes(seed)
        options = sys.argv[2:]
        if not any(option.startswith("-artifact_prefix") for option in options):
            options.append(f"-artifact_prefix={tempfile.gettempdir()}/lockgate-{name}-")
        atheris.Setup([sys.argv[0], *options, corpus], TARGETS[name])
        atheris.Fuzz()


main()
