from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from lockgate.telemetry import health


async def test_who_asks_gets_the_status_of_now(tmp_path: Path) -> None:
    path = tmp_path / "run" / "broker.sock"
    counts = {"messages": 0}
    async with health.StatusServer(path, {"status": lambda _: counts}):
        assert await asyncio.to_thread(health.ask, path) == {"messages": 0}
        counts["messages"] = 3
        assert await asyncio.to_thread(health.ask, path) == {"messages": 3}
    assert not path.exists()
    assert health.ask(path) is None


async def test_a_second_service_on_the_same_socket_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "broker.sock"
    async with health.StatusServer(path, {"status": lambda _: {"who": "first"}}):
        with pytest.raises(OSError, match="already running"):
            await health.StatusServer(path, {"status": lambda _: {"who": "second"}}).__aenter__()
        assert await asyncio.to_thread(health.ask, path) == {"who": "first"}


async def test_a_socket_left_behind_by_a_killed_service_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "broker.sock"
    left_behind = await asyncio.start_unix_server(lambda _r, _w: None, path)
    left_behind.close()  # leaves the file, as a kill does
    assert path.exists()
    assert health.ask(path) is None
    async with health.StatusServer(path, {"status": lambda _: {"who": "second"}}):
        assert await asyncio.to_thread(health.ask, path) == {"who": "second"}


async def test_a_path_too_long_for_a_socket_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="set gateway.run_dir"):
        await health.StatusServer(tmp_path / ("x" * 120), {}).__aenter__()


async def test_a_question_names_its_answer_and_brings_arguments(tmp_path: Path) -> None:
    path = tmp_path / "broker.sock"
    answers: dict[str, health.Answer] = {"status": lambda _: {"up": True}, "twice": lambda asked: {"is": asked["word"]}}
    async with health.StatusServer(path, answers):
        said = await asyncio.to_thread(lambda: health.ask(path, ask="twice", word="w" * 65_535))
        assert said == {"is": "w" * 65_535}
        assert await asyncio.to_thread(lambda: health.ask(path, ask="other")) == {
            "error": "asked for none of status, twice"
        }


@pytest.mark.parametrize("question", [b"[]\n", b"{\n", b"\xff\n"])
async def test_what_is_no_question_is_an_error(tmp_path: Path, question: bytes) -> None:
    path = tmp_path / "broker.sock"
    async with health.StatusServer(path, {"status": lambda _: {"up": True}}):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(question)
        assert await reader.read() == b'{"error": "the question is no JSON object"}\n'
        writer.close()


async def test_a_question_without_end_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "broker.sock"
    monkeypatch.setattr(health, "QUESTION_SECONDS", 0.05)
    async with health.StatusServer(path, {"status": lambda _: {"up": True}}):
        for question in (b"{", b"x" * (health.MAX_QUESTION + 10)):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(question)
            assert await reader.read() == b""
            writer.close()
