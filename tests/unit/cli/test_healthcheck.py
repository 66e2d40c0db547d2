"""The health check says who is missing, silent or unwell, and ends as a container's engine expects."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lockgate.cli import healthcheck

Serve = Callable[[str, bytes | None], None]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start a service by its name: it gives one answer to the first question, or none at all."""
    listening: list[socket.socket] = []
    kept: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def start(name: str, answer: bytes | None) -> None:
        (tmp_path / "services").open("a").write(f"{name}\n")
        server = socket.socket(socket.AF_UNIX)
        listening.append(server)
        server.bind(str(tmp_path / f"{name}.sock"))
        server.listen()
        if answer is None:
            return

        def give() -> None:
            connection, _ = server.accept()
            kept.append(connection)
            assert json.loads(connection.makefile().readline()) == {"ask": "health"}
            connection.sendall(answer)
            connection.close()

        threads.append(threading.Thread(target=give))
        threads[-1].start()

    yield start
    for thread in threads:
        thread.join(5)
    for one in (*listening, *kept):
        one.close()


WELL = b'{"problems": [], "round_trip_us": 85, "last_commit_seconds_ago": 3.21}\n'


def test_all_are_well(tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    serve("broker", WELL)
    serve("processor", b'{"problems": []}\n')
    assert healthcheck.check(str(tmp_path)) == 0
    assert capsys.readouterr().out == "broker: well, a message takes 85 µs, last commit 3 s ago\nprocessor: well\n"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b'{"problems": ["the store cannot be written: x", "y"]}', "the store cannot be written: x; y"),
        (b"", "its answer makes no sense: b''"),
        (b"[]", "its answer makes no sense: b'[]'"),
        (b'{"error": "asked for none of status"}', "its answer makes no sense: "),
    ],
)
def test_one_that_is_not_well_is_enough(
    tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str], answer: bytes, text: str
) -> None:
    serve("broker", WELL)
    serve("processor", answer)
    assert healthcheck.check(str(tmp_path)) == 1
    assert f"processor: {text}" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "status"), [([], 1), (["--alive"], 0)])
def test_one_that_answers_is_alive_even_if_its_disk_is_full(
    tmp_path: Path, serve: Serve, words: list[str], status: int
) -> None:
    serve("broker", b'{"problems": ["the store cannot be written: disk full"]}\n')
    command = [sys.executable, "-I", "-S", healthcheck.__file__, *words]
    done = subprocess.run(
        command, env={healthcheck.VARIABLE: str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (status, "broker: the store cannot be written: disk full\n")


@pytest.mark.parametrize("answer", [None, b"what?"])
def test_one_that_does_not_answer_is_not_alive(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch, answer: bytes | None
) -> None:
    monkeypatch.setattr(healthcheck, "SECONDS", 0.05)
    serve("broker", answer)
    assert healthcheck.check(str(tmp_path), alive=True) == 1


def test_a_service_that_does_not_answer_is_blocked(
    tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(healthcheck, "SECONDS", 0.05)
    serve("broker", None)
    assert healthcheck.check(str(tmp_path)) == 1
    assert capsys.readouterr().out == "broker: no answer in 0.05 s, its loop is blocked\n"


def test_a_service_without_a_socket_or_behind_a_dead_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "services").write_text("broker\nforwarder\n")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "forwarder.sock"))
    assert healthcheck.check(str(tmp_path)) == 1
    assert capsys.readouterr().out == (
        "broker: not ready, it has no status socket\nforwarder: it has ended without a word\n"
    )


def test_where_nothing_was_started_nothing_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert healthcheck.check(str(tmp_path)) == 1
    assert capsys.readouterr().out == f"no service was started here: there is no {tmp_path}/services\n"


def test_as_a_program_it_imports_next_to_nothing(tmp_path: Path, serve: Serve) -> None:
    serve("broker", WELL)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-X", "importtime", healthcheck.__file__],
        env={healthcheck.VARIABLE: str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "socket" in imported
    assert not imported & {
        "argparse",
        "typing",
        "logging",
        "lockgate",
        "asyncio",
        "pathlib",
        "ssl",
        "subprocess",
        "site",
    }


def test_as_a_command_it_is_told_the_folder(tmp_path: Path, serve: Serve) -> None:
    serve("broker", WELL)
    command = [sys.executable, "-m", "lockgate", "healthcheck", "--dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.partition(",")[0]) == (0, "broker: well")
