"""Our broker as a process, for sources to publish to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gateway import Gateway


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Gateway]:
    gateway = Gateway(tmp_path)
    gateway.start("broker")
    yield gateway
    gateway.stop_all()
