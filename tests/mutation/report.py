"""Which mutants the tests do not notice, module by module, and whether each of those is explained."""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import time
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.mutation import runner
from tests.mutation.mutants import Mutant, mutants
from tests.mutation.runner import NOT_RUN, SOURCE, SURVIVED, TESTS

PACKAGES: Final = ("mqtt", "broker")
EXPLANATIONS: Final = Path(__file__).parent / "survivors.toml"
LAST: Final = runner.ROOT / "build" / "survivors.json"
REQUIRED: Final = 0.9

Key = tuple[str, str, str, str]


def read_explanations(path: Path) -> dict[Key, str]:
    """Read survivors.toml; raises ValueError where an entry lacks its reason or stands twice."""
    found: dict[Key, str] = {}
    for entry in tomllib.loads(path.read_text()).get("survivor", []):
        for now in entry["now"]:
            key = ("lockgate." + entry["module"].replace("/", "."), entry["function"], entry["was"], now)
            if key in found:
                raise ValueError(f"{path.name} has it twice: {key}")
            if len(entry["why"]) < 10:
                raise ValueError(f"{path.name} gives no reason for {key}")
            found[key] = entry["why"]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--module", action="append", metavar="NAME", help="only this one, as in mqtt/decoder")
    parser.add_argument("--sample", type=int, metavar="N", help="only N of the mutants, drawn by --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="only those that survived the last time")
    parser.add_argument(
        "--explained", action="store_true", help="run those too whose survival is explained: it takes long"
    )
    parser.add_argument("--tests", nargs="+", default=list(TESTS), metavar="PATH")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)

    trees = {name: ast.parse(runner.file_of(name).read_text()) for name in _modules()}
    every = [mutant for name, tree in trees.items() for mutant in mutants(name, tree)]
    chosen = [mutant for mutant in every if not options.module or _short(mutant) in options.module]
    if options.again:
        survived = {tuple(key) for key in json.loads(LAST.read_text())}
        chosen = [mutant for mutant in chosen if mutant.key in survived]
    is_whole = len(chosen) == len(every)
    if options.sample is not None and options.sample < len(chosen):
        is_whole = False
        chosen = random.Random(options.seed).sample(chosen, options.sample)
    explanations = read_explanations(EXPLANATIONS)
    unknown = [key for key in explanations if key not in {mutant.key for mutant in every}]

    # Every test passes with a survivor, so it takes longer than a hundred that are killed.
    to_run = [mutant for mutant in chosen if options.explained or mutant.key not in explanations]

    started = time.monotonic()
    survived_now: set[Mutant] = set(chosen) - set(to_run)
    for done, (number, result) in enumerate(runner.run(to_run, trees, options.tests, options.jobs), 1):
        if result in (SURVIVED, NOT_RUN):
            survived_now.add(to_run[number])
            if to_run[number].key not in explanations:
                _print_as_toml(to_run[number], result)
        if done % 100 == 0:
            print(f"  {done} of {len(to_run)}, {time.monotonic() - started:.0f} s", flush=True)
    survivors = [mutant for mutant in chosen if mutant in survived_now]
    if options.tests == list(TESTS):
        LAST.parent.mkdir(exist_ok=True)
        LAST.write_text(json.dumps([mutant.key for mutant in survivors]))

    unexplained = [mutant for mutant in survivors if mutant.key not in explanations]
    _print_table(chosen, survivors, unexplained)
    print(f"{time.monotonic() - started:.0f} s")
    for key in unknown:
        print(f"survivors.toml explains what cannot be any more: {key}")
    if is_whole and options.explained:
        alive = {mutant.key for mutant in survivors}
        for key in explanations:
            if key not in alive and key not in unknown:
                print(f"survivors.toml explains what is killed: {key}")
    killed = 1 - len(survivors) / len(chosen)
    return 1 if killed < REQUIRED or unexplained or unknown else 0


def _modules() -> list[str]:
    files = [path for package in PACKAGES for path in sorted((SOURCE / "lockgate" / package).glob("*.py"))]
    return [".".join(path.relative_to(SOURCE).with_suffix("").parts) for path in files if path.stem != "__init__"]


def _short(mutant: Mutant) -> str:
    return mutant.module.removeprefix("lockgate.").replace(".", "/")


def _print_as_toml(mutant: Mutant, result: str) -> None:
    print(f"[[survivor]] # line {mutant.first}, {result}")
    print(f"module = {json.dumps(_short(mutant))}")
    print(f"function = {json.dumps(mutant.function)}")
    print(f"was = {json.dumps(mutant.was, ensure_ascii=False)}")
    print(f"now = [{json.dumps(mutant.now, ensure_ascii=False)}]")
    print('why = ""\n', flush=True)


def _print_table(chosen: list[Mutant], survivors: list[Mutant], unexplained: list[Mutant]) -> None:
    count, alive, open_ = (Counter(map(_short, group)) for group in (chosen, survivors, unexplained))
    print(f"{'module':24}{'mutants':>9}{'killed':>9}{'survived':>10}{'explained':>11}{'killed':>9}")
    rows = [*((name, count[name], alive[name], open_[name]) for name in count)]
    rows.append(("all", len(chosen), len(survivors), len(unexplained)))
    for name, total, survived, without in rows:
        share = f"{(total - survived) / total:.1%}"
        print(f"{name:24}{total:>9}{total - survived:>9}{survived:>10}{survived - without:>11}{share:>9}")
