"""Start time, idle memory and memory for each connection, ours and theirs (DESIGN §11)."""

from __future__ import annotations

import os
import statistics
import sys

from benchmarks import brokers, load
from benchmarks.machine import describe

STARTS = 10
CONNECTIONS = 10_000


def main(connections: int = CONNECTIONS, starts: int = STARTS) -> None:
    """Print the median of ten starts, and resident memory idle and with connections that hold one subscription each."""
    os.sched_setaffinity(0, {brokers.LOAD_CORE})
    load.allow_files(connections)
    print(describe())
    loaded = f"{connections:,} idle connections MiB"
    each_head = f"{'bytes each':>12}{'of 4 KiB':>10}"
    print(f"{'broker':<12}{'ready, median s':>16}{'max s':>8}{'idle MiB':>10}{loaded:>30}{each_head}")
    for program in brokers.both():
        ready: list[float] = []
        for _start in range(starts):
            with brokers.running(program) as broker:
                ready.append(broker.ready_seconds)
        with brokers.running(program) as broker:
            idle = broker.resident_bytes()
            sockets = []
            for number in range(connections):
                sock = load.connect(broker.port, f"device-{number:05d}")
                load.subscribe(sock, f"device/{number:05d}/set", 1)
                sockets.append(sock)
            full = broker.resident_bytes()
            for sock in sockets:
                sock.close()
        mebi = 1024 * 1024
        each = (full - idle) / connections
        print(
            f"{program.name:<12}{statistics.median(ready):>16.3f}{max(ready):>8.3f}{idle / mebi:>10.1f}"
            f"{full / mebi:>30.1f}{each:>12,.0f}{each / 4096:>10.0%}",
            flush=True,
        )


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:2]))
