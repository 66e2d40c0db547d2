"""What holds for every test."""

from __future__ import annotations

import contextlib
import logging
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# The same examples in every run of a commit, however slow the machine is; `make fuzz` draws new ones.
hypothesis.settings.register_profile("steady", derandomize=True, deadline=None)
hypothesis.settings.register_profile("drawn", derandomize=False, deadline=None)
hypothesis.settings.load_profile("steady")


@pytest.fixture(scope="session", autouse=True)
def _run_is_clean() -> Iterator[None]:
    """Remove the status sockets that brokers left which were killed, and their folders; not those of others."""
    before = set(Path("/run").glob("lockgate-*"))
    yield
    for folder in set(Path("/run").glob("lockgate-*")) - before:
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            try:
                probe.connect(str(folder / "broker.sock"))
            except ConnectionRefusedError:  # nobody listens any more
                shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """Take back what a test made of logging: its streams end with it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in root.handlers[:]:
        if handler not in handlers:
            root.removeHandler(handler)
            handler.close()
    for handler in handlers:
        if handler not in root.handlers:
            root.addHandler(handler)
    root.setLevel(level)
