"""All checks of `lockgate doctor`, in the order in which a person would look."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from lockgate.app import scram_authenticator
from lockgate.cli.check import check_access, check_bridges, check_rules
from lockgate.config.errors import ConfigError, ConfigErrors
from lockgate.config.model import Config
from lockgate.doctor import certificates, clock, disk, files, forms, memory, ports, reach, tunnel
from lockgate.doctor.case import Case, Check
from lockgate.doctor.finding import Finding


def check_scram(config: Config) -> None:
    """Read the users of enhanced authentication. Raises ConfigError."""
    scram_authenticator(config.broker)


def named_files(case: Case) -> Iterator[Finding]:
    """Read what the configuration names as the broker does; certificates are looked at more closely."""
    if case.config is None:
        return
    for part in (check_scram, check_access, check_rules, check_bridges):
        try:
            part(case.config)
        except ConfigError as error:
            for finding, one in zip(mistakes(error, case.path), parts_of(error), strict=True):
                if one.path is None or os.access(one.path, os.R_OK):  # else it is said who may not read it
                    yield finding


CHECKS: tuple[Check, ...] = (
    forms.folders,
    forms.line_ends,
    forms.paths,
    forms.compose,
    reach.mounted,
    reach.empty,
    reach.from_outside,
    reach.published,
    ports.in_use,
    ports.addresses,
    files.access,
    named_files,
    certificates.of_listeners,
    tunnel.of_connector,
    tunnel.of_edge,
    clock.wall_clock,
    clock.jumps,
    disk.kept,
    disk.kind,
    disk.space,
    disk.sync_time,
    disk.store,
    memory.budget,
    memory.swap,
    memory.open_files,
    memory.processor,
)


def examine(case: Case) -> Iterator[Finding]:
    """Give everything that is found; a check that cannot look says so, and the others go on."""
    for check in CHECKS:
        try:
            yield from check(case)
        except OSError as error:
            place = os.fspath(error.filename) if error.filename is not None else check.__name__.replace("_", " ")
            yield Finding(
                "unseen", "warning", place, f"it cannot be looked at: {error.strerror or error}",
                "nobody knows whether it is good", "run this as root, or as the broker's user",
            )  # fmt: skip


def parts_of(error: ConfigError) -> tuple[ConfigError, ...]:
    """Give each mistake alone."""
    return error.errors if isinstance(error, ConfigErrors) else (error,)


def mistakes(error: ConfigError, path: Path) -> Iterator[Finding]:
    """Give a finding for each mistake of a configuration."""
    for one in parts_of(error):
        place = os.fspath(one.path or path) + (f":{one.line}" if one.line is not None else "")
        key = f"{one.key}: " if one.key and one.key not in one.problem else ""
        yield Finding(
            "configuration", "error", place, f"{key}{one.problem.rstrip('.')}",
            "the broker does not start with it; checks that need the whole configuration are left out",
            f"accepted: {one.accepted}" if one.accepted else "correct or remove it",
        )  # fmt: skip
