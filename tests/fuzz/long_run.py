"""The long run, `python -m tests.fuzz`: two clients against the broker's core, on every processor, with a watchdog.

Prints packets, seconds, resident memory before and after, and the first failing case as a test to be pasted.
"""

from __future__ import annotations

import argparse
import faulthandler
import multiprocessing
import os
import random
import signal
import sys
import time
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import lockgate.broker.broker
from tests.fuzz.fuzzer import run_case
from tests.fuzz.world import World

_HANG_SECONDS = 30.0
_WARM_UP = 0.05  # of the packets; resident memory is measured from there on


def _resident_kib() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def _work(
    first: int,
    step: int,
    packets: int,
    sent: Synchronized[int],
    seed: Synchronized[int],
    memory: list[Synchronized[int]],
) -> None:
    """Run every `step`th case until this process has sent its packets; exit status 1 after a failure."""
    faulthandler.enable()
    worlds: dict[tuple[int, int], World] = {}
    case = first
    while True:
        seed.value = case
        failure = run_case(case, worlds)
        if failure is not None:
            print(failure.error, "\n\n", failure.as_test(), sep="", flush=True)
            print(f"\nrepeat with: python -m tests.fuzz --seed {case} --cases 1", flush=True)
            sys.exit(1)
        sent.value = sum(world.packets for world in worlds.values())
        if memory[0].value == 0 and sent.value >= packets * _WARM_UP:
            memory[0].value = _resident_kib()
        if sent.value >= packets:
            memory[1].value = _resident_kib()
            return
        case += step


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--packets", type=int, default=10_000_000)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, help="of the first case; drawn when it is not given")
    parser.add_argument("--cases", type=int, help="at most so many, whatever --packets says")
    given = parser.parse_args()
    first = given.seed if given.seed is not None else random.randrange(1 << 40)
    build = "compiled" if (lockgate.broker.broker.__file__ or "").endswith(".so") else "interpreted"
    print(f"fuzz: {given.packets:,} packets by {given.jobs} processes from seed {first}, {build} broker", flush=True)
    if given.cases is not None:
        worlds: dict[tuple[int, int], World] = {}
        for case in range(first, first + given.cases):
            failure = run_case(case, worlds)
            if failure is not None:
                print(failure.error, "\n\n", failure.as_test(), sep="")
                return 1
        return 0
    return _supervise(first, given.packets, given.jobs)


def _supervise(first: int, packets: int, jobs: int) -> int:
    """Start the workers and watch them: one that makes no headway is ended with its traceback shown."""
    spawn = multiprocessing.get_context("spawn")
    began = time.monotonic()
    sent: list[Synchronized[int]] = [spawn.Value("q", 0) for _ in range(jobs)]
    seeds: list[Synchronized[int]] = [spawn.Value("q", -1) for _ in range(jobs)]
    memory: list[list[Synchronized[int]]] = [[spawn.Value("q", 0), spawn.Value("q", 0)] for _ in range(jobs)]
    workers = [
        spawn.Process(target=_work, args=(first + job, jobs, packets // jobs, sent[job], seeds[job], memory[job]))
        for job in range(jobs)
    ]
    for worker in workers:
        worker.start()
    seen = [(-1, began)] * jobs
    failed = hung = 0
    while any(worker.is_alive() for worker in workers) and not failed and not hung:
        workers[0].join(0.2)
        for job, worker in enumerate(workers):
            if seeds[job].value != seen[job][0]:
                seen[job] = (seeds[job].value, time.monotonic())
            elif worker.is_alive() and time.monotonic() - seen[job][1] > _HANG_SECONDS:
                print(f"the case of seed {seeds[job].value} hangs", flush=True)
                os.kill(worker.pid or 0, signal.SIGABRT)  # faulthandler shows where
                hung += 1
            elif worker.exitcode:
                failed += 1
    for worker in workers:
        if failed or hung:
            worker.terminate()
        worker.join()
        failed += 1 if worker.exitcode and not failed and not hung else 0
    seconds = time.monotonic() - began
    total = sum(value.value for value in sent)
    print(f"{total:,} packets in {seconds:.0f} s ({total / seconds:,.0f}/s); {failed} failed, {hung} hung")
    for job in range(jobs):
        before, after = memory[job][0].value, memory[job][1].value
        if after:
            print(f"process {job}: {before:,} KiB resident after warm-up, {after:,} KiB at the end")
    return 1 if failed or hung else 0
