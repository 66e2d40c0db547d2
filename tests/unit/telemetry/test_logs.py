from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockgate.config.errors import ConfigError
from lockgate.config.model import LogConfig
from lockgate.telemetry import logs


@pytest.fixture(autouse=True)
def root_logger_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    for handler in handlers:
        root.removeHandler(handler)
    yield
    for handler in root.handlers[:]:
        root.removeHandler(handler)
        handler.close()
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(False)


def lines(path: Path, **settings: object) -> list[str]:
    """What four lines of four levels become."""
    logs.configure(LogConfig(destinations=(f"file {path}",), **settings))  # type: ignore[arg-type]
    log = logging.getLogger("lockgate.test")
    log.debug("a %s", "detail")
    log.info("a change")
    log.warning("a peer's mistake")
    log.error("our mistake")
    return path.read_text().splitlines()


def test_lines_look_like_mosquittos(tmp_path: Path) -> None:
    said = [line.partition(": ") for line in lines(tmp_path / "log")]
    assert all(time.isdecimal() and len(time) == 10 for time, _, _ in said)
    assert [text for _, _, text in said] == ["a change", "Warning: a peer's mistake", "Error: our mistake"]


def test_types_choose_levels_one_by_one(tmp_path: Path) -> None:
    types = frozenset({"error", "debug"})
    assert lines(tmp_path / "log", timestamp=False, types=types) == ["a detail", "Error: our mistake"]
    assert lines(tmp_path / "none", timestamp=False, types=frozenset()) == []


@pytest.mark.parametrize(
    ("types", "lowest"),
    [({"error"}, logging.ERROR), ({"information", "debug"}, logging.DEBUG), (set(), logging.CRITICAL + 1)],
)
def test_what_nobody_wants_is_not_even_made(tmp_path: Path, types: set[str], lowest: int) -> None:
    logs.configure(LogConfig(destinations=(f"file {tmp_path / 'log'}",), types=frozenset(types)))
    log = logging.getLogger("lockgate.test")
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        assert log.isEnabledFor(level) == (level >= lowest)


def test_a_time_by_strftime(tmp_path: Path) -> None:
    assert lines(tmp_path / "log", timestamp_format="at")[0] == "at: a change"


def test_configuring_again_replaces(tmp_path: Path) -> None:
    lines(tmp_path / "first")
    before = (tmp_path / "first").read_text()
    lines(tmp_path / "second")
    assert (tmp_path / "first").read_text() == before


def test_a_file_that_cannot_be_opened_is_a_mistake_of_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="log_dest: file .* cannot be opened"):
        logs.configure(LogConfig(destinations=(f"file {tmp_path}/no/such/folder",)))
