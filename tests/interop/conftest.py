"""Our broker as a process, for foreign clients to talk to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gateway import Gateway


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Gateway]:
    """A broker with no other service."""
    gateway = Gateway(tmp_path)
    gateway.start("broker")
    yield gateway
    gateway.stop_all()
