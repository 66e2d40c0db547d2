"""What several commands share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from lockgate.config import lockgate_toml
from lockgate.config.model import Config


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    places = ", else ".join(str(path) for path in lockgate_toml.PLACES)
    parser.add_argument("-c", "--config", type=Path, metavar="FILE", help=f"lockgate.toml (default: {places})")


def load_config(arguments: argparse.Namespace) -> Config:
    """The configuration the arguments name. Raises ConfigError."""
    return lockgate_toml.load(arguments.config or lockgate_toml.find(), os.environ)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Columns under their heads; numbers to the right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(cells: tuple[str, ...]) -> str:
        padded = (
            cell.rjust(width) if cell[:1].isdecimal() else cell.ljust(width)
            for cell, width in zip(cells, widths, strict=True)
        )
        return "  ".join(padded).rstrip()

    return "\n".join(map(line, (head, *rows)))
