"""The image as one who runs eclipse-mosquitto would use it: the same mounts, commands and signals."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.containers.conftest import OPEN
from tests.support.debian import publish, receive
from tests.support.docker import Container, docker, image
from tests.support.peers import Mosquitto, program

pytestmark = [pytest.mark.containers, pytest.mark.timeout(120)]
image()

PUBLISHED = ("-p", "127.0.0.1:0:1883")
LOCKED_DOWN = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--user", "1883:1883")


def test_the_documented_line_serves_debians_clients_through_published_ports(either: str, config: Path) -> None:
    (config / "mosquitto.conf").write_text(f"{OPEN}listener 9001\nprotocol websockets\n")
    mounts = ("-v", f"{config}:/mosquitto/config", "-v", "/mosquitto/data", "-v", "/mosquitto/log")
    with Container(*PUBLISHED, "-p", "127.0.0.1:0:9001", *mounts, of=either) as broker:
        written = broker.wait_for("running")
        publish(broker.port(), "here", "a word", "-r")
        assert receive(broker.port(), "here") == "a word"
        upgrade = f"http://127.0.0.1:{broker.port(9001)}/mqtt"
        assert subprocess.run(["curl", "-s", "-o", "/dev/null", upgrade], check=False).returncode == 0
        assert "Everybody who reaches port 1883 is let in" in written
        assert "Everybody who reaches port 9001 is let in" in written


def test_one_file_mounted_alone_and_read_only(either: str, config: Path) -> None:
    mount = f"{config / 'mosquitto.conf'}:/mosquitto/config/mosquitto.conf:ro"
    with Container(*PUBLISHED, "-v", mount, of=either) as broker:
        broker.wait_for("running")
        publish(broker.port(), "here", "a word")


def test_without_a_configuration_it_listens_to_itself_alone_and_says_so(either: str) -> None:
    with Container(*PUBLISHED, of=either) as broker:
        written = broker.wait_for("running")
        assert "Warning: Starting in local only mode." in written
        assert "is let in" not in written
        assert broker.execute("mosquitto_pub", "-t", "here", "-m", "a word", "-r") == ""
        assert broker.execute("mosquitto_sub", "-t", "here", "-C", "1", "-W", "10") == "a word\n"
        done = subprocess.run(
            [program("mosquitto_pub"), "-p", str(broker.port()), "-t", "x", "-m", ""], capture_output=True, check=False
        )
        assert done.returncode != 0


def test_the_open_configuration_by_its_name(either: str) -> None:
    with Container(*PUBLISHED, command=["mosquitto", "-c", "/mosquitto-no-auth.conf"], of=either) as broker:
        broker.wait_for("running")
        publish(broker.port(), "here", "a word")


def test_a_command_of_mosquittos_instead_of_the_broker(either: str) -> None:
    assert (
        "mosquitto_passwd is a tool" in docker("run", "--rm", either, "mosquitto_passwd", "--help", check=False).stdout
    )
    made = docker("run", "--rm", either, "mosquitto_passwd", "-b", "-c", "-", "u", "p", check=False).stdout
    assert made.startswith("u:$"), made
    with Container(*PUBLISHED, command=["mosquitto", "-c", "/mosquitto-no-auth.conf"], of=either) as broker:
        broker.wait_for("running")
        publish(broker.port(), "here", "a word", "-r")
        network = ("--network", f"container:{broker.name}")
        said = docker("run", "--rm", *network, either, "mosquitto_sub", "-t", "here", "-C", "1", "-W", "10").stdout
        assert said == "a word\n"


def test_a_program_that_waits_ends_at_once_when_it_is_stopped(either: str) -> None:
    for command in (["mosquitto_sub", "-h", "127.0.0.1", "-t", "#"], ["mosquitto_pub", "-l", "-t", "x"]):
        with Container(
            "-i", "--network", "none", command=["mosquitto", "-c", "/mosquitto-no-auth.conf"], of=either
        ) as broker:
            broker.wait_for("running")
            with Container("-i", "--network", f"container:{broker.name}", command=command, of=either) as client:
                broker.wait_for("New client connected")
                assert client.stop() < 5.0


def test_a_command_that_does_not_exist_is_named() -> None:
    done = docker("run", "--rm", image(), "mosquito", check=False)
    assert (done.returncode, done.stdout) == (127, "docker-entrypoint.sh: mosquito: No such file or directory\n")


def test_the_small_image_says_what_it_does_not_hold() -> None:
    done = docker("run", "--rm", image("-small"), "processor", check=False)
    assert (done.returncode, done.stdout) == (
        1,
        "docker-entrypoint.sh: Error: this image holds the broker alone, and cannot run processor.\n",
    )


def test_a_command_that_the_small_image_does_not_hold_says_so() -> None:
    done = docker("run", "--rm", "--entrypoint", "lockgate", image("-small"), "connector", "--token", "x", check=False)
    assert (done.returncode, done.stdout) == (
        1,
        "Error: lockgate.tunnel is not here: this image holds the broker alone.\n",
    )


def test_a_password_made_inside_counts_after_a_reload_and_connections_stay(either: str, config: Path) -> None:
    (config / "passwd").write_text("")
    os.chown(config, 1883, 1883)
    os.chown(config / "passwd", 1883, 1883)
    (config / "passwd").chmod(0o600)
    (config / "mosquitto.conf").write_text("listener 1883\npassword_file /mosquitto/config/passwd\n")
    with Container(*PUBLISHED, "-v", f"{config}:/mosquitto/config", of=either) as broker:
        broker.wait_for("running")

        def hang_up() -> None:
            broker.execute("python3", "-c", "import os; os.kill(1, 1)")

        def add(user: str) -> None:
            made = ["mosquitto_passwd", "-b", "/mosquitto/config/passwd", user, "secret"]
            broker.execute(*made, options=["-u", "1883"])

        add("first")
        hang_up()
        broker.wait_for("The new configuration is in use.")
        command = [program("mosquitto_sub"), "-p", str(broker.port()), "-t", "t", "-C", "1", "-W", "20"]
        with subprocess.Popen([*command, "-u", "first", "-P", "secret"], stdout=subprocess.PIPE) as stays:
            broker.wait_for("u'first'")
            add("second")
            hang_up()
            broker.wait_for("The new configuration is in use.", count=2)
            publish(broker.port(), "t", "a word", "-u", "second", "-P", "secret")
            assert stays.communicate(timeout=20)[0] == b"a word\n"
        assert broker.logs().count("u'first'") == 1


def test_what_was_acknowledged_is_there_after_a_kill_and_in_the_next_container(either: str, folder: Path) -> None:
    data, conf = folder / "data", folder / "mosquitto.conf"
    data.mkdir()
    conf.write_text(f"{OPEN}persistence true\npersistence_location /mosquitto/data/\n")
    mounts = ("-v", f"{conf}:/mosquitto/config/mosquitto.conf", "-v", f"{data}:/mosquitto/data")
    for number in range(3):
        with Container(*PUBLISHED, *mounts, of=either) as broker:
            broker.wait_for("running")
            for before in range(number):
                assert receive(broker.port(), f"kept/{before}") == str(before)
            publish(broker.port(), f"kept/{number}", str(number), "-r")
            docker("kill", broker.name)


def test_what_mosquitto_left_is_taken_over(folder: Path) -> None:
    """The user changed the image's name and nothing else."""
    data = folder / "data"
    data.mkdir()
    with_store = Mosquitto(folder, ["persistence true", f"persistence_location {data}/"])
    publish(with_store.port, "from/mosquitto", "still here", "-r")
    with_store.stop()
    conf = folder / "mosquitto.conf"
    conf.write_text(f"{OPEN}persistence true\npersistence_location /mosquitto/data/\n")
    mounts = ("-v", f"{conf}:/mosquitto/config/mosquitto.conf", "-v", f"{data}:/mosquitto/data")
    with Container(*PUBLISHED, *mounts) as broker:
        broker.wait_for("running")
        assert receive(broker.port(), "from/mosquitto") == "still here"


# --- the first process ------------------------------------------------------------------------------------------------


def test_it_is_locked_down_and_nothing_is_missing(either: str, config: Path) -> None:
    mount = ("-v", f"{config}:/mosquitto/config:ro")
    with Container(*PUBLISHED, *LOCKED_DOWN, *mount, "-e", "TZ=Asia/Tokyo", of=either) as broker:
        assert "docker-entrypoint" not in broker.wait_for("running")
        publish(broker.port(), "here", "a word")
        zone = "import time; print(time.tzname[0])"
        assert broker.execute("python3", "-c", zone) == "JST\n"
        assert "well" in broker.execute("python3", "-I", "-S", "/opt/lockgate/healthcheck.py")


@pytest.mark.parametrize(("options", "user"), [((), "1883"), (("-e", "PUID=4711", "-e", "PGID=4712"), "4711")])
def test_root_is_given_up_for_good(either: str, options: tuple[str, ...], user: str) -> None:
    with Container(*options, of=either) as broker:
        broker.wait_for("running")
        status = broker.proc_status()
        group = "4712" if options else "1883"
        assert status["Uid"].split() == [user] * 4
        assert status["Gid"].split() == [group] * 4
        assert status["Groups"] == ""
        assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        assert status["NoNewPrivs"] == "1"


def test_it_stops_within_the_grace_period_and_says_so(either: str) -> None:
    with Container(of=either) as broker:
        broker.wait_for("running")
        assert broker.stop() < 5.0
        assert broker.inspect()["State"]["ExitCode"] == 0
        assert "terminating" in broker.logs()


def test_orphans_are_not_left_as_zombies(either: str) -> None:
    orphan = (
        "import os, sys\n"
        "if os.fork() == 0:\n"
        "    if os.fork() == 0:\n"
        "        os.execvp('python3', ['python3', '-c', 'import os; os.write(1, b\"%d\" % os.getpid())'])\n"
        "    os._exit(0)\n"
        "os.wait()\n"
    )
    gone = "import os, sys, time\nwhile os.path.exists('/proc/' + sys.argv[1]): time.sleep(0.02)"
    with Container(of=either) as broker:
        broker.wait_for("running")
        number = broker.execute("python3", "-c", orphan)
        assert int(number) > 1
        broker.execute("python3", "-c", gone, number)


def test_the_fork_of_a_gateway_takes_leave_of_orphans_and_passes_signals_on(folder: Path) -> None:
    with Container(command=["up"], of=image()) as gateway:
        gateway.wait_for("broker is ready")
        assert gateway.stop() < 8.0
        assert gateway.inspect()["State"]["ExitCode"] == 0


# --- who may use the mounts -----------------------------------------------------------------------------------------


def test_mounts_of_another_user_are_given_over_and_each_is_named(either: str, folder: Path) -> None:
    for name in ("data", "log", "config"):
        (folder / name).mkdir()
    (folder / "data" / "old").write_text("")
    (folder / "config" / "mosquitto.conf").write_text(OPEN)
    secret = folder / "config" / "passwd"
    secret.write_text("")
    secret.chmod(0o600)
    mounts = [word for name in ("data", "log", "config") for word in ("-v", f"{folder / name}:/mosquitto/{name}")]
    with Container(*PUBLISHED, *mounts, of=either) as broker:
        written = broker.wait_for("running")
        for line in (
            "/mosquitto/data (0:0 before) and 1 below it now belongs to 1883:1883.",
            "/mosquitto/log (0:0 before) now belongs to 1883:1883.",
            "/mosquitto/config/passwd (0:0 before) now belongs to 1883:1883.",
        ):
            assert f"docker-entrypoint.sh: {line}\n" in written
        assert secret.stat().st_uid == 1883
        assert (folder / "config").stat().st_uid == 0  # it can be read, and is no business of ours
        docker("restart", broker.name)
        again = broker.wait_for("running", count=2)
        assert again.count("docker-entrypoint.sh") == 3


def test_whoever_is_not_root_names_what_it_cannot_use_and_how_that_is_put_right(either: str, folder: Path) -> None:
    (folder / "data").mkdir(mode=0o755)
    mount = f"{folder / 'data'}:/mosquitto/data"
    with Container("--user", "1883:1883", "-v", mount, of=either) as broker:
        assert broker.wait_for_end() != 0
        written = broker.logs()
        assert "/mosquitto/data belongs to 0:0, mode 0755, and 1883:1883 cannot write it." in written
        assert "On the host: chown -R 1883:1883 /" in written
        assert f"{folder.name}/data\n" in written


def test_root_that_may_change_nobody_says_what_it_needs(either: str) -> None:
    with Container("--cap-drop", "ALL", of=either) as broker:
        assert broker.wait_for_end() == 1
        assert "cannot become 1883:1883" in broker.logs()
        assert "Start the container with user: 1883:1883" in broker.logs()
