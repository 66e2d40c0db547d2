"""The audit log: its chain, its files, a crash, a full disk."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lockgate import cli
from lockgate.tunnel import audit
from lockgate.tunnel.audit import AuditLog, files, tail, verify

NOW = 1_800_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        self.now += 0.5
        return self.now


Opener = Callable[..., AuditLog]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "audit"


@pytest.fixture
def opener(folder: Path) -> Iterator[Opener]:
    """Opens logs that write when they are told to; closes what is open."""
    opened: list[AuditLog] = []

    def open_log(**said: int) -> AuditLog:
        opened.append(AuditLog(folder, sync_seconds=3600, clock=Clock(), **said))
        return opened[-1]

    yield open_log
    for one in opened:
        if not one._held.closed:
            one.close()


def filled(opener: Opener, lines: int = 5, **said: int) -> None:
    log = opener(**said)
    for number in range(lines):
        log.write("test", number=number)
        assert log.flush()
    log.close()


def the_file(folder: Path) -> Path:
    return files(folder)[-1][1]


def test_a_connection_is_told_of_when_it_begins_and_ends(opener: Opener, folder: Path) -> None:
    log = opener()
    visit = log.begin(who="anna", address="192.0.2.1", tunnel="home", host="mqtt.example.org", kind="mqtts")
    visit.up, visit.down = 100, 2000
    log.refused("wrong user name or password", who="eve\n\x1b[2J", address="192.0.2.9")
    log.end(visit, "the device left")
    log.close()
    begin, refused, end = tail(folder, 10)
    facts = {"who": "anna", "from": "192.0.2.1", "tunnel": "home", "host": "mqtt.example.org", "kind": "mqtts"}
    assert begin.items() >= ({"event": "begin", "connection": 1} | facts).items()
    assert end.items() >= ({"event": "end", "up": 100, "down": 2000, "how": "the device left"} | facts).items()
    assert (end["began"], end["seconds"]) == ("2027-01-15T08:00:00.500Z", 1.5)
    assert refused["who"] == "eve\n\x1b[2J"
    assert b"\x1b" not in the_file(folder).read_bytes()
    assert the_file(folder).stat().st_mode & 0o777 == 0o600
    report = verify(folder)
    assert (report.lines, report.first, report.last, report.problems) == (3, 1, 3, ())


def test_lines_are_written_by_themselves(folder: Path) -> None:
    written = threading.Event()

    class Told(AuditLog):
        def flush(self) -> bool:
            done = super().flush()
            written.set()
            return done

    log = Told(folder, sync_seconds=0.01)
    log.write("test")
    assert written.wait(10)
    assert verify(folder).lines == 1
    log.close()


def test_what_a_peer_says_is_bounded(opener: Opener, folder: Path) -> None:
    log = opener()
    log.begin(who="x" * 100_000, host="y" * 100_000)
    log.close()
    assert the_file(folder).stat().st_size < 1500


def test_the_chain_goes_on_over_starts_and_files(opener: Opener, folder: Path) -> None:
    filled(opener, 5, file_bytes=300)
    filled(opener, 5, file_bytes=300)
    report = verify(folder)
    assert report.files > 3
    assert (report.lines, report.first, report.last, report.problems) == (10, 1, 10, ())
    assert [line["n"] for line in tail(folder, 4)] == [7, 8, 9, 10]


def test_old_files_are_removed_and_the_rest_is_whole(opener: Opener, folder: Path) -> None:
    filled(opener, 30, file_bytes=300, files=3)
    report = verify(folder)
    assert report.files == 3
    assert report.problems == ()
    assert report.first is not None
    assert report.first > 1
    assert report.last == 30


def test_nobody_else_writes_there_meanwhile(opener: Opener, folder: Path) -> None:
    opener()
    with pytest.raises(BlockingIOError, match="another process"):
        opener()


# --- tampering ----------------------------------------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(data=st.data())
def test_any_change_but_a_cut_at_the_end_is_found(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("audit")
    log = AuditLog(folder, sync_seconds=3600, clock=Clock(), file_bytes=500)
    for number in range(8):
        log.write("test", number=number)
        log.flush()
    log.close()
    whole = verify(folder)
    assert whole.last is not None
    assert whole.hash is not None
    path = data.draw(st.sampled_from([path for _, path in files(folder)]))
    before = path.read_bytes()
    lines = before.splitlines(keepends=True)
    kind = data.draw(st.sampled_from(["byte", "line gone", "line twice", "lines swapped", "file gone"]))
    position = data.draw(st.integers(0, len(lines) - 1))
    if kind == "byte":
        at = data.draw(st.integers(0, len(before) - 2))
        path.write_bytes(before[:at] + bytes([before[at] ^ data.draw(st.sampled_from([1, 4, 32]))]) + before[at + 1 :])
    elif kind == "line gone":
        path.write_bytes(b"".join(lines[:position] + lines[position + 1 :]))
    elif kind == "line twice":
        path.write_bytes(b"".join([*lines[: position + 1], *lines[position:]]))
    elif kind == "lines swapped":
        lines.insert(0, lines.pop())
        path.write_bytes(b"".join(lines))
    else:
        path.unlink()
    is_whole = path.exists() and path.read_bytes() == before
    noted = (whole.last, whole.hash)
    assert bool(verify(folder, noted).problems) is not (is_whole or _only_the_beginning_is_gone(folder, noted))


def _only_the_beginning_is_gone(folder: Path, noted: tuple[int, str]) -> bool:
    """As when old files are removed, which `verify` tells by the first number."""
    report = verify(folder)
    return report.first is not None and report.first > 1 and (report.last, report.hash) == noted and not report.problems


def test_lines_cut_off_at_the_end_are_missed_by_who_noted_the_last(opener: Opener, folder: Path) -> None:
    filled(opener)
    noted = verify(folder)
    assert noted.last is not None
    assert noted.hash is not None
    path = the_file(folder)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    assert verify(folder).problems == ()
    (problem,) = verify(folder, (noted.last, noted.hash)).problems
    assert "lines were cut off" in str(problem)


def test_a_log_that_was_tampered_with_goes_on_in_a_new_file(opener: Opener, folder: Path) -> None:
    filled(opener)
    path = the_file(folder)
    path.write_bytes(path.read_bytes().replace(b'"number":3', b'"number":9'))
    tampered = path.read_bytes()
    filled(opener, 2)
    assert path.read_bytes() == tampered
    assert tail(folder, 3)[0]["event"] == "broken"
    (problem,) = verify(folder).problems
    assert str(problem) == f"{path.name}:4: does not fit its hash: it was changed, or lines before it were"


# --- crashes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [b'{"n":6,"ti', b"\0" * 5000, b"\0" * 200_000, b'{"n":6,"time":"2027"}'])
@pytest.mark.parametrize("lines", [5, 0])
def test_a_line_that_a_crash_cut_off_is_told_of_and_taken_away(
    opener: Opener, folder: Path, end: bytes, lines: int
) -> None:
    folder.mkdir()
    (folder / "audit-00000001.jsonl").touch()
    if lines:
        filled(opener, lines)
    with the_file(folder).open("ab") as file:
        file.write(end)
    report = verify(folder)
    assert (report.lines, report.torn, report.problems) == (lines, len(end), ())
    filled(opener, 1)
    report = verify(folder)
    assert (report.lines, report.torn, report.problems) == (lines + 2, 0, ())
    torn = tail(folder, 2)[0]
    assert (torn["event"], torn["bytes"]) == ("torn", len(end))


def test_a_torn_line_in_the_middle_is_no_excuse(opener: Opener, folder: Path) -> None:
    filled(opener, 4, file_bytes=300)
    path = files(folder)[0][1]
    path.write_bytes(path.read_bytes()[:-10])
    assert any("ends within a line" in str(problem) for problem in verify(folder).problems)
    path.write_bytes(b'{"n":1,"ti\n')
    assert verify(folder).problems


# --- a disk that takes nothing ------------------------------------------------------------------------------------


def test_a_full_disk_stops_nobody_and_is_counted(
    opener: Opener, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = opener()
    log.write("test", number=0)
    assert log.flush()
    real = os.write
    room = [100]

    def full(descriptor: int, data: memoryview) -> int:
        if not room[0]:
            raise OSError(28, "No space left on device")
        piece = data[: room[0]]
        room[0] -= len(piece)
        return real(descriptor, piece)

    monkeypatch.setattr(os, "write", full)
    monkeypatch.setattr(audit, "_WAITING", 3)
    for number in range(1, 6):
        log.write("test", number=number)
        assert not log.flush()
    assert log.lost == 2
    assert caplog.text.count("cannot be written") == 1
    assert verify(folder).lines == 1  # nothing half is left behind
    assert verify(folder).torn == 0
    monkeypatch.setattr(os, "write", real)
    assert log.flush()
    said = tail(folder, 10)
    assert [line.get("number") for line in said] == [0, 1, 2, 3, None]
    assert (said[-1]["event"], said[-1]["lines"]) == ("lost", 2)
    assert verify(folder).problems == ()


# --- the command --------------------------------------------------------------------------------------------------


def test_the_command_shows_and_checks_the_log(
    opener: Opener, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lockgate.toml").write_text('[edge]\naudit_dir = "audit"\n')
    log = opener()
    log.refused("no such host", who="eve\x1b\u202e", address="192.0.2.9")
    log.close()
    assert cli.main(["edge", "audit", "tail"]) == 0
    said = capsys.readouterr().out
    assert "refused" in said
    assert "192.0.2.9" in said
    assert said.isascii()
    assert cli.main(["edge", "audit", "verify"]) == 0
    first, noted = capsys.readouterr().out.split("\n")[:2]
    assert first == "1 lines in 1 files, whole"
    assert cli.main(["edge", "audit", "verify", "--holds", noted]) == 0
    assert cli.main(["edge", "audit", "verify", "--holds", "nonsense"]) == 3
    path = the_file(folder)
    path.write_bytes(path.read_bytes().replace(b"no such", b"a known"))
    capsys.readouterr()
    assert cli.main(["edge", "audit", "verify", str(folder), "--holds", noted]) == 1
    captured = capsys.readouterr()
    assert "BROKEN" in captured.out
    assert f"{path.name}:1: does not fit its hash" in captured.err
    assert json.loads(path.read_text())["n"] == 1
