"""What several commands share."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from lockgate.config import lockgate_toml
from lockgate.config.model import Config


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    places = ", else ".join(str(path) for path in lockgate_toml.PLACES)
    parser.add_argument(
        "-c", "--config", type=Path, metavar="FILE", help=f"lockgate.toml, or mosquitto.conf (default: {places})"
    )


def load_config(arguments: argparse.Namespace) -> Config:
    """The configuration the arguments name. Raises ConfigError."""
    path: Path | None = arguments.config or lockgate_toml.find()
    if path is None or path.suffix != ".conf":
        return lockgate_toml.load(path, os.environ)
    config = load_mosquitto(path)
    if config.gateway.run_dir is None:
        found = next((folder for folder in socket_folders(path) if folder.exists()), None)
        config = dataclasses.replace(config, gateway=dataclasses.replace(config.gateway, run_dir=found))
    return config


def load_mosquitto(path: Path | None) -> Config:
    """The configuration in a mosquitto.conf, and in a lockgate.toml beside it if there is one. Raises ConfigError."""
    beside = path.parent / "lockgate.toml" if path is not None else None
    return lockgate_toml.load(beside if beside is not None and beside.exists() else None, os.environ, path)


def socket_folders(path: Path) -> Iterator[Path]:
    """Where a broker that was started with a mosquitto.conf alone has its status socket, the likelier place first."""
    name = f"lockgate-{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:12]}"
    yield Path("/run") / name
    own = os.environ.get("XDG_RUNTIME_DIR", "")
    if own:
        yield Path(own) / name


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
