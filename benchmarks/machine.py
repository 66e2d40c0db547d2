"""What a measurement has to say about where it was made."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import lockgate
from lockgate.broker import broker


def describe() -> str:
    """Give machine, commit and build in a few lines."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=False,
    ).stdout.strip()
    build = "compiled" if str(broker.__file__).endswith(".so") else "interpreted"
    return (
        f"{model}, {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}\n"
        f"lockgate {lockgate.__version__} ({commit or 'no commit'}), {build}; broker and load on one core each, "
        f"load average before {os.getloadavg()[0]:.1f}"
    )
