"""`lockgate version`."""

from __future__ import annotations

import argparse
import platform
from importlib import util

from lockgate import __version__


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def main(_arguments: argparse.Namespace) -> int:
    print(f"lockgate {__version__} ({build()}), Python {platform.python_version()}")
    return 0


def build() -> str:
    """`compiled` or `interpreted`: which broker this installation runs."""
    spec = util.find_spec("lockgate.broker.broker")
    return "compiled" if spec is not None and (spec.origin or "").endswith((".so", ".pyd")) else "interpreted"
