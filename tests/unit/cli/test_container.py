"""The container's entry point: whose mounts they are, whom it becomes, what the command means."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lockgate import cli
from lockgate.app import SERVICES, TUNNEL_SERVICES
from lockgate.cli import container

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files to others")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name in (*container.WRITTEN, container.READ):
        (tmp_path / name).mkdir(mode=0o755)
    return tmp_path


@as_root
def test_what_is_written_is_given_with_all_that_lies_in_it(home: Path) -> None:
    (home / "data" / "sub").mkdir()
    (home / "data" / "sub" / "file").write_text("")
    (home / "data" / "link").symlink_to("/etc/passwd")
    os.chown(home / "log", 1883, 7)
    assert list(container.give(home, 1883, 1884)) == [
        f"{home}/data (0:0 before) and 2 below it now belongs to 1883:1884.",
    ]
    assert {(path.stat().st_uid, path.stat().st_gid) for path in (home / "data", home / "data" / "sub" / "file")} == {
        (1883, 1884)
    }
    assert os.stat("/etc/passwd").st_uid == 0
    assert os.lstat(home / "data" / "link").st_uid == 0
    assert not list(container.give(home, 1883, 1884))


@as_root
@pytest.mark.parametrize(
    ("mode", "group", "is_given"),
    [(0o644, 0, False), (0o640, 1884, False), (0o600, 1884, True), (0o640, 0, True), (0o604, 0, False)],
)
def test_what_is_read_is_given_only_where_it_could_not_be(home: Path, mode: int, group: int, is_given: bool) -> None:
    secret = home / "config" / "passwd"
    secret.write_text("")
    secret.chmod(mode)
    os.chown(secret, 0, group)
    told = list(container.give(home, 1883, 1884))
    assert any(str(secret) in line for line in told) is is_given
    assert secret.stat().st_uid == (1883 if is_given else 0)
    assert (home / "config").stat().st_uid == 0


def test_folders_that_are_not_there_are_no_concern(tmp_path: Path) -> None:
    assert not list(container.give(tmp_path, 1883, 1883))
    assert not list(container.unusable(tmp_path, Path("/proc/self/mountinfo")))


_AS_ANOTHER = """
import os, sys
from pathlib import Path
from lockgate.cli import container
os.setgroups([]); os.setgid(1884); os.setuid(1883)
for line in container.unusable(Path(sys.argv[1]), Path(sys.argv[2])): print(line)
"""


@as_root
def test_what_cannot_be_used_is_named_with_its_owner_and_the_command_that_helps(home: Path) -> None:
    for parent in home.parents:
        if parent.name.startswith("pytest-"):
            parent.chmod(0o755)
    home.chmod(0o755)
    (home / "config" / "key.pem").write_text("")
    (home / "config" / "key.pem").chmod(0o600)
    os.chown(home / "log", 1883, 1884)
    (home / "log" / "old.log").write_text("")
    mounts = home / "mountinfo"
    mounts.write_text(
        "1 0 0:1 / / rw - overlay overlay rw\n"
        f"2 1 8:1 /home/u/mosquitto/data {home}/data rw - ext4 /dev/sda1 rw\n"
        f"3 1 0:2 / {home}/log rw - tmpfs tmpfs rw\n"
    )
    command = [sys.executable, "-c", _AS_ANOTHER, str(home), str(mounts)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f"{home}/data belongs to 0:0, mode 0755, and 1883:1884 cannot write it."
        " On the host: chown -R 1883:1884 /home/u/mosquitto/data",
        f"{home}/log/old.log belongs to 0:0, mode 0644, and 1883:1884 cannot write it."
        " On the host: chown 1883:1884 what is mounted there",
        f"{home}/config/key.pem belongs to 0:0, mode 0600, and 1883:1884 cannot read it."
        " On the host: chown 1883:1884 what is mounted there",
    ]


_BECOME = """
from lockgate.cli import process
process.become_for_good(1883, 1884)
print(open("/proc/self/status").read())
"""


@as_root
def test_nothing_of_root_is_left() -> None:
    done = subprocess.run([sys.executable, "-c", _BECOME], capture_output=True, text=True, check=True)
    status = dict(line.split(":\t", 1) for line in done.stdout.splitlines() if ":\t" in line)
    assert status["Uid"].split() == ["1883"] * 4
    assert status["Gid"].split() == ["1884"] * 4
    assert status["Groups"].strip() == ""
    assert {int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert status["NoNewPrivs"] == "1"


@pytest.mark.parametrize(
    ("words", "called", "served"),
    [
        ([], ["mosquitto", "-c", "/mosquitto/config/mosquitto.conf"], ["broker"]),
        (["/usr/sbin/mosquitto", "-c", "f"], ["mosquitto", "-c", "f"], ["broker"]),
        (["mosquitto_sub", "-t", "t"], ["mosquitto_sub", "-t", "t"], None),
        (["processor"], ["run", "processor"], ["processor"]),
        (["processor", "forwarder"], ["run", "processor", "forwarder"], ["processor", "forwarder"]),
        (["run", "-c", "f", "broker"], ["run", "-c", "f", "broker"], ["broker"]),
        (["lockgate", "run", "forwarder"], ["run", "forwarder"], ["forwarder"]),
        (["up"], ["up"], ["broker", "processor", "forwarder"]),
        (["/usr/bin/lockgate", "status", "--json"], ["status", "--json"], None),
        (["connector"], ["run", "connector"], ["connector"]),
        (["connector", "--token", "t"], ["connector", "--token", "t"], ["connector"]),
        (["connector", "--help"], ["connector", "--help"], None),
        (["edge"], ["run", "edge"], ["edge"]),
        (["edge", "tunnel", "list"], ["edge", "tunnel", "list"], None),
        (
            ["tunnel", "--no-autoupdate", "run"],
            ["cloudflared", "tunnel", "--no-autoupdate", "run"],
            ["connector"],
        ),
        (["cloudflared", "tunnel", "ready"], ["cloudflared", "tunnel", "ready"], None),
    ],
)
def test_what_the_command_of_a_container_means(
    words: list[str], called: list[str], served: list[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []

    def command(argv: list[str]) -> int:
        calls.append(argv)
        return 7

    monkeypatch.setattr(cli, "main", command)
    monkeypatch.setattr(container, "_prepare", lambda _services: 0)
    monkeypatch.setenv("LOCKGATE_GATEWAY_RUN_DIR", str(tmp_path / "run"))
    assert container.main(words) == 7
    assert calls == [called]
    file = tmp_path / "run" / "services"
    assert (file.read_text().split() if file.exists() else None) == served


def test_services_are_those_of_the_gateway() -> None:
    assert set(container.SERVICES) == set(SERVICES)
    assert set(container.TUNNEL) == set(TUNNEL_SERVICES)


def test_up_expects_what_is_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml = tmp_path / "lockgate.toml"
    toml.write_text('[connector]\ntoken_file = "token"\n')
    monkeypatch.setattr(cli, "main", lambda _argv: 0)
    monkeypatch.setattr(container, "_prepare", lambda _services: 0)
    monkeypatch.setenv("LOCKGATE_GATEWAY_RUN_DIR", str(tmp_path / "run"))
    assert container.main(["up", "-c", str(toml)]) == 0
    assert (tmp_path / "run" / "services").read_text().split() == ["broker", "processor", "forwarder", "connector"]


@as_root
def test_a_connector_is_not_told_of_folders_it_does_not_use(home: Path) -> None:
    (home / "data").chmod(0o700)
    for parent in (home, *home.parents):
        if parent.name.startswith("pytest-") or parent == home:
            parent.chmod(0o755)
    script = _AS_ANOTHER.replace("Path(sys.argv[2]))", "Path(sys.argv[2]), ())")
    words = [sys.executable, "-c", script, str(home), "/proc/self/mountinfo"]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == ""


def test_another_program_takes_this_ones_place() -> None:
    script = "from lockgate.cli import container; container.main(['echo', 'a', 'word'])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "a word\n"


@pytest.mark.parametrize(("action", "status"), [("sys.exit(5)", 5), ("os.kill(os.getpid(), 9)", 137)])
def test_the_first_process_ends_as_its_child_does(action: str, status: int) -> None:
    script = f"import os, sys\nfrom lockgate.cli import container\ncontainer._watch()\n{action}\n"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == status


def test_the_first_process_passes_a_signal_on() -> None:
    script = (
        "import signal, sys\nfrom lockgate.cli import container\ncontainer._watch()\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])\nprint(flush=True)\n"
        "sys.exit(8 + signal.sigwait([signal.SIGHUP]))\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(1)
        assert process.wait(10) == 9
