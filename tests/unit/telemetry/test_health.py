from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from lockgate.telemetry import health


async def test_who_asks_gets_the_status_of_now(tmp_path: Path) -> None:
    path = tmp_path / "run" / "broker.sock"
    counts = {"messages": 0}
    async with health.StatusServer(path, lambda: counts):
        assert await asyncio.to_thread(health.ask, path) == {"messages": 0}
        counts["messages"] = 3
        assert await asyncio.to_thread(health.ask, path) == {"messages": 3}
    assert not path.exists()
    assert health.ask(path) is None


async def test_a_second_service_on_the_same_socket_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "broker.sock"
    async with health.StatusServer(path, lambda: {"who": "first"}):
        with pytest.raises(OSError, match="already running"):
            await health.StatusServer(path, lambda: {"who": "second"}).__aenter__()
        assert await asyncio.to_thread(health.ask, path) == {"who": "first"}


async def test_a_socket_left_behind_by_a_killed_service_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "broker.sock"
    left_behind = await asyncio.start_unix_server(lambda _r, _w: None, path)
    left_behind.close()  # leaves the file, as a kill does
    assert path.exists()
    assert health.ask(path) is None
    async with health.StatusServer(path, lambda: {"who": "second"}):
        assert await asyncio.to_thread(health.ask, path) == {"who": "second"}


async def test_a_path_too_long_for_a_socket_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="set gateway.run_dir"):
        await health.StatusServer(tmp_path / ("x" * 120), dict).__aenter__()
