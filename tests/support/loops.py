"""The event loops that services run on: tests that import the fixture run on each."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

_POLICIES: dict[str, type[asyncio.AbstractEventLoopPolicy]] = {
    "asyncio": asyncio.DefaultEventLoopPolicy,
    "uvloop": uvloop.EventLoopPolicy,
}


@pytest.fixture(params=list(_POLICIES))
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    """What pytest-asyncio makes its loops with."""
    return _POLICIES[request.param]()
