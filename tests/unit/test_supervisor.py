"""Children: restart, output, clean stop, and no child without its parent."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lockgate import supervisor
from lockgate.supervisor import Supervisor

# Answers on its status socket, says its pid, and ends on SIGTERM.
SERVICE = """
import os, signal, socket, sys, threading
def stop():
    print("bye", flush=True); os.unlink(sys.argv[1]); os._exit(0)
def heed():
    try:
        while True:
            if signal.sigwait(heard) == signal.SIGTERM:
                stop()
            else:
                print("hup", flush=True)
    except OSError:
        os._exit(1)  # whoever listened is gone
heard = {signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, heard)
threading.Thread(target=heed, daemon=True).start()
server = socket.socket(socket.AF_UNIX)
if os.path.exists(sys.argv[1]): os.unlink(sys.argv[1])
server.bind(sys.argv[1]); server.listen()
print("pid", os.getpid(), flush=True)
while True:
    peer, _ = server.accept()
    peer.recv(4096)
    try:
        peer.sendall(b"{}")
    except OSError:
        pass  # whoever asked has stopped waiting
    peer.close()
"""
STUBBORN = SERVICE.replace("os._exit(0)", "pass").replace("; os.unlink(sys.argv[1])", "")


class Output:
    """Lines as they come, by child."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self._came = asyncio.Event()

    def write(self, name: str, line: str) -> None:
        self.lines.append((name, line))
        self._came.set()

    async def wait_for(self, found: Callable[[list[tuple[str, str]]], bool]) -> None:
        async with asyncio.timeout(20):
            while not found(self.lines):
                self._came.clear()
                await self._came.wait()

    def pids(self, name: str) -> list[int]:
        return [int(line.split()[1]) for one, line in self.lines if one == name and line.startswith("pid")]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def supervise(folder: Path, output: Output, stages: list[list[str]], script: str = SERVICE) -> Supervisor:
    def command(name: str) -> list[str]:
        return [sys.executable, "-c", script, str(folder / f"{name}.sock")]

    return Supervisor(stages, command, folder, output.write)


async def test_stages_start_in_order_and_stop_in_reverse(tmp_path: Path) -> None:
    output, stop = Output(), asyncio.Event()
    running = asyncio.create_task(supervise(tmp_path, output, [["a"], ["b", "c"]]).run(stop))
    await output.wait_for(lambda lines: len(lines) == 3)
    stop.set()
    await asyncio.wait_for(running, 10)
    names = [name for name, _ in output.lines]
    assert names[0] == "a"
    assert output.lines[-1] == ("a", "bye")
    assert sorted(output.lines[3:5]) == [("b", "bye"), ("c", "bye")]
    assert not any(alive(pid) for name in "abc" for pid in output.pids(name))


async def test_a_killed_child_is_started_again_and_the_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "BACKOFF_SECONDS", (0.01, 0.02))
    output, stop = Output(), asyncio.Event()
    watched = supervise(tmp_path, output, [["a", "b"]])
    running = asyncio.create_task(watched.run(stop))
    await output.wait_for(lambda lines: len(lines) == 2)
    os.kill(output.pids("a")[0], signal.SIGKILL)
    await output.wait_for(lambda lines: len(output.pids("a")) == 2)
    assert len(output.pids("b")) == 1
    assert watched.restarts() == {"a": 1, "b": 0}
    stop.set()
    await asyncio.wait_for(running, 10)


async def test_a_hangup_reaches_the_children_and_harms_none_that_does_not_listen_yet(tmp_path: Path) -> None:
    listening = SERVICE.replace("{signal.SIGTERM}", "{signal.SIGTERM, signal.SIGHUP}")
    output, stop = Output(), asyncio.Event()
    watched = supervise(tmp_path, output, [["a"]], listening)
    running = asyncio.create_task(watched.run(stop))
    while watched._stages[0][0]._process is None:
        await asyncio.sleep(0)
    watched.reload()  # it has hardly begun
    await output.wait_for(lambda lines: len(output.pids("a")) == 1)
    watched.reload()
    await output.wait_for(lambda lines: ("a", "hup") in lines)
    assert watched.restarts() == {"a": 0}
    stop.set()
    await asyncio.wait_for(running, 10)


async def test_pauses_grow_until_a_child_has_been_stable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "BACKOFF_SECONDS", (0.01, 0.02, 0.03))
    output, stop = Output(), asyncio.Event()
    watched = supervise(tmp_path, output, [["a"]], "print('x'); raise SystemExit(7)")
    running = asyncio.create_task(watched.run(stop))
    await output.wait_for(lambda lines: len(lines) == 5)
    pauses = [record.args[2] for record in caplog.records if isinstance(record.args, tuple)]
    assert pauses[:4] == [0.01, 0.02, 0.03, 0.03]
    assert "a ended (exit status 7)" in caplog.text
    monkeypatch.setattr(supervisor, "STABLE_SECONDS", -1.0)
    caplog.clear()
    seen = len(output.lines)
    await output.wait_for(lambda lines: len(lines) > seen + 2)
    pauses = [record.args[2] for record in caplog.records if isinstance(record.args, tuple)]
    assert pauses[-1] == 0.01
    stop.set()
    await asyncio.wait_for(running, 10)


async def test_output_that_cannot_be_written_does_not_cost_the_child(tmp_path: Path) -> None:
    output, stop = Output(), asyncio.Event()

    def write(name: str, line: str) -> None:
        output.write(name, line)
        raise BrokenPipeError

    script = "import sys; [print(n, flush=True) for n in range(3)]; import time; time.sleep(60)"
    watched = Supervisor([["a"]], lambda _: [sys.executable, "-c", script], tmp_path, write)
    running = asyncio.create_task(watched.run(stop))
    await output.wait_for(lambda lines: lines == [("a", "0"), ("a", "1"), ("a", "2")])
    stop.set()
    await asyncio.wait_for(running, 10)
    assert watched.restarts() == {"a": 0}


async def test_a_child_that_cannot_be_started_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "BACKOFF_SECONDS", (0.01,))
    output, stop = Output(), asyncio.Event()
    program = tmp_path / "program"
    watched = Supervisor([["a"]], lambda _: [str(program)], tmp_path, output.write)
    running = asyncio.create_task(watched.run(stop))
    async with asyncio.timeout(10):
        while not watched.restarts()["a"]:
            await asyncio.sleep(0.01)
    program.write_text("#!/bin/sh\necho here\n")
    program.chmod(0o755)
    await output.wait_for(lambda lines: ("a", "here") in lines)
    assert "a ended (it could not be started: " in caplog.text
    stop.set()
    await asyncio.wait_for(running, 10)


def test_children_do_not_import_from_the_folder_they_are_started_in(tmp_path: Path) -> None:
    (tmp_path / "ssl.py").write_text("raise SystemExit('shadowed')")
    (tmp_path / "argparse.py").write_text("raise SystemExit('shadowed')")
    command = supervisor.run_command(None, "--help")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "usage: lockgate run" in done.stdout


async def test_a_child_that_ignores_sigterm_is_killed_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "STOP_SECONDS", 0.5)
    output, stop = Output(), asyncio.Event()
    running = asyncio.create_task(supervise(tmp_path, output, [["a"]], STUBBORN).run(stop))
    await output.wait_for(lambda lines: len(lines) == 1)
    stop.set()
    await asyncio.wait_for(running, 10)
    assert not alive(output.pids("a")[0])


def test_children_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    parent = f"""
import asyncio, sys
from pathlib import Path
from lockgate.supervisor import Supervisor
folder = Path({str(tmp_path)!r})
command = lambda name: [sys.executable, "-c", {SERVICE!r}, str(folder / "a.sock")]
write = lambda name, line: print(line, flush=True)
asyncio.run(Supervisor([["a"]], command, folder, write).run(asyncio.Event()))
"""
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline().split()[1])
        assert alive(pid)
        process.kill()
    descriptor = os.pidfd_open(pid) if alive(pid) else None
    if descriptor is not None:
        import select

        assert select.select([descriptor], [], [], 10)[0], "the child outlived its parent"
        os.close(descriptor)
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        os.sched_yield()
    assert not alive(pid)
