"""Start time, idle memory and memory for each connection, ours and theirs (DESIGN §11)."""

from __future__ import annotations

import os
import statistics
import sys

from benchmarks import brokers, load
from benchmarks.machine import describe

STARTS = 10
CONNECTIONS = 2000


def main(connections: int = CONNECTIONS) -> None:
    """Print the median of ten starts, and resident memory idle and with connections that hold one subscription each."""
    os.sched_setaffinity(0, {brokers.LOAD_CORE})
    print(describe())
    loaded = f"{connections} connections MiB"
    print(f"{'broker':<12}{'ready, median s':>16}{'max s':>8}{'idle MiB':>10}{loaded:>24}{'KiB each':>10}")
    for program in brokers.both():
        ready: list[float] = []
        for _start in range(STARTS):
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
        print(
            f"{program.name:<12}{statistics.median(ready):>16.3f}{max(ready):>8.3f}{idle / mebi:>10.1f}"
            f"{full / mebi:>24.1f}{(full - idle) / connections / 1024:>10.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:2]))
