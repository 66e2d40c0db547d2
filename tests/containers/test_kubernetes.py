"""The pods of the chart, run with what their specification says; there is no cluster here."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import trustme

from tests.support.disks import fill, memory_disk
from tests.support.docker import docker, image
from tests.support.kubernetes import objects
from tests.support.peers import program
from tests.support.pod import Pod

pytestmark = [pytest.mark.containers, pytest.mark.timeout(120)]
image()

RELOAD = ("python3", "-c", "import os; os.kill(1, 1)")  # as the chart's NOTES.txt says it
ACL = """\
user operator
topic readwrite #
topic read /metrics
user device
topic write sensors/#
user processor
topic read sensors/#
"""
TOML = """\
[standing_sessions.lockgate-processor]
topics = ["sensors/#"]

[schemas.reading]
topics = ["sensors/#"]
fields = { value = "real" }

[rules.each]
schema = "reading"
class = "telemetry"
sql = "SELECT 'out/' || :topic AS topic, :value AS value"

[sinks.kept]
type = "file"
path = "/mosquitto/data/kept.jsonl"
"""


def hashed(**users: str) -> str:
    """Give a password file, made as the how-to says."""
    made = [
        docker("run", "--rm", image(), "mosquitto_passwd", "-b", "-c", "-", name, password).stdout
        for name, password in users.items()
    ]
    return "".join(made)


def client(name: str, pod: Pod, *words: str, user: str = "operator", password: str = "secret") -> tuple[int, str]:
    """Run mosquitto_pub or mosquitto_sub of Debian against a pod; gives its status and its output."""
    login = ["-h", pod.address, "-u", user, "-P", password]
    done = subprocess.run([program(name), *login, *words], capture_output=True, text=True, timeout=30, check=False)
    return done.returncode, done.stdout


def test_a_broker_is_ready_lets_its_users_in_and_keeps_what_it_has(folder: Path) -> None:
    secrets = {"lockgate-auth": {"passwd": hashed(operator="secret", device="word"), "acl": ACL}}
    with Pod(objects("broker"), secrets, folder) as pod:
        broker = pod.containers["broker"]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            pod.wait_for("broker", probe)
        assert "Warning" not in broker.logs()
        status = broker.proc_status()
        assert (status["Uid"].split()[0], status["CapBnd"], status["NoNewPrivs"]) == ("1883", "0" * 16, "1")
        assert client("mosquitto_pub", pod, "-t", "kept", "-m", "a word", "-r", "-q", "1")[0] == 0
        assert client("mosquitto_pub", pod, "-t", "x", "-m", "", user="device", password="wrong")[0] != 0
        assert (
            client("mosquitto_pub", pod, "-t", "kept", "-m", "other", "-r", "-q", "1", user="device", password="word")[
                0
            ]
            == 0
        )
        assert client("mosquitto_sub", pod, "-t", "kept", "-C", "1", "-W", "10") == (0, "a word\n")
        assert broker.stop(pod.spec["terminationGracePeriodSeconds"]) < 5
    with Pod(objects("broker"), secrets, folder) as pod:  # another pod, the same claim
        pod.wait_for("broker", "readinessProbe")
        assert client("mosquitto_sub", pod, "-t", "kept", "-C", "1", "-W", "10") == (0, "a word\n")


def test_a_changed_secret_counts_after_a_reload_and_connections_stay(folder: Path) -> None:
    before = {"passwd": hashed(operator="secret"), "acl": ACL}
    with Pod(objects("broker"), {"lockgate-auth": before}, folder) as pod:
        pod.wait_for("broker", "readinessProbe")
        login = ["-h", pod.address, "-u", "operator", "-P", "secret"]
        command = [program("mosquitto_sub"), *login, "-t", "sensors/#", "-C", "1", "-W", "30"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as stays:
            pod.containers["broker"].wait_for("New client connected")
            pod.change("lockgate-auth", {**before, "passwd": before["passwd"] + hashed(device="word")})
            assert client("mosquitto_pub", pod, "-t", "sensors/1", "-m", "1", user="device", password="word")[0] != 0
            pod.containers["broker"].execute(*RELOAD)
            pod.containers["broker"].wait_for("The new configuration is in use.")
            assert client("mosquitto_pub", pod, "-t", "sensors/1", "-m", "2", user="device", password="word")[0] == 0
            assert stays.communicate(timeout=30)[0] == "2\n"


def test_links_are_refused_where_nobody_said_that_they_are_meant(folder: Path) -> None:
    manifests = json.loads(json.dumps(objects("broker")))
    pod = Pod(manifests, {"lockgate-auth": {"passwd": hashed(operator="secret"), "acl": ACL}}, folder)
    (broker,) = pod.spec["containers"]
    broker["env"] = [one for one in broker["env"] if one["name"] != "MOSQUITTO_UNSAFE_ALLOW_SYMLINKS"]
    with pod:
        assert pod.containers["broker"].wait_for_end() != 0
        assert "/mosquitto/auth/passwd: is a symbolic link" in pod.containers["broker"].logs()


def test_the_whole_gateway_passes_messages_on_and_its_books_close(folder: Path) -> None:
    secrets = {
        "lockgate-auth": {"passwd": hashed(operator="secret", device="word", processor="third"), "acl": ACL},
        "lockgate-processor": {"url": "mqtt://processor:third@127.0.0.1:1883"},
        "lockgate-cloud": {"url": "http://127.0.0.1:9/"},
    }
    toml = folder / "lockgate.toml"
    toml.write_text(TOML)
    manifests = objects("gateway", "--set-file", f"lockgateToml={toml}", "--set", "forwarder.env=null")
    with Pod(manifests, secrets, folder) as pod:
        pod.wait_for("broker", "readinessProbe")
        for number in range(50):
            words = ("-t", f"sensors/{number % 5}", "-m", f'{{"value": {number}}}', "-q", "1")
            assert client("mosquitto_pub", pod, *words, user="device", password="word")[0] == 0
        for service in ("processor", "forwarder"):
            pod.wait_for(service, "livenessProbe")
        values = wait_for_lines(pod, 50)
        assert sorted(values) == list(range(50))
        pod.containers["forwarder"].execute("lockgate", "ledger")  # fails where a book does not close
        for name, container in pod.containers.items():
            used = docker("stats", "--no-stream", "--format", "{{.MemUsage}}, {{.CPUPerc}}", container.name).stdout
            print(f"{name}: {used.strip()}")


def wait_for_lines(pod: Pod, count: int) -> list[int]:
    """Give the values that the sink has, once there are enough."""
    wait = (
        "import pathlib, time; path = pathlib.Path('/mosquitto/data/kept.jsonl'); end = time.monotonic() + 30\n"
        f"while not path.exists() or len(path.read_text().splitlines()) < {count}:\n"
        "    if time.monotonic() > end: break\n"
        "    time.sleep(0.1)\n"
        "print(path.read_text())"
    )
    written = pod.containers["forwarder"].execute("python3", "-c", wait)
    return [int(json.loads(line)["payload"]["value"]) for line in written.splitlines() if line]


def test_devices_are_let_in_while_the_processor_cannot_log_in(folder: Path) -> None:
    secrets = {
        "lockgate-auth": {"passwd": hashed(operator="secret"), "acl": ACL},
        "lockgate-processor": {"url": "mqtt://processor:wrong@127.0.0.1:1883"},
        "lockgate-cloud": {"url": "http://127.0.0.1:9/"},
    }
    with Pod(objects("gateway"), secrets, folder) as pod:
        for container in pod.spec["containers"]:  # all that makes a pod ready
            for probe in ("startupProbe", "readinessProbe"):
                if probe in container:
                    pod.wait_for(container["name"], probe)
        lives, said = pod.asked("processor", "livenessProbe")
        assert not lives
        # by now it may have ended, for the node to start it again
        assert said == "processor: not ready, it has no status socket\n" or not pod.containers["processor"].running()
        assert client("mosquitto_pub", pod, "-t", "sensors/1", "-m", "{}", "-q", "1")[0] == 0


def test_a_full_disk_makes_the_pod_not_ready_and_restarts_nothing(folder: Path) -> None:
    secrets = {"lockgate-auth": {"passwd": hashed(operator="secret"), "acl": ACL}}
    with memory_disk(folder / "data", 8) as disk, Pod(objects("broker"), secrets, folder) as pod:
        pod.wait_for("broker", "readinessProbe")
        fill(disk / "filler")
        login = ["-h", pod.address, "-u", "operator", "-P", "secret"]
        command = [program("mosquitto_pub"), *login, "-t", "t", "-q", "1", "-r", "-m", "kept"]
        with subprocess.Popen(command) as waiting:
            said = "broker: the store cannot be written: the disk is full\n"
            pod.wait_for("broker", "readinessProbe", passed=False)
            assert pod.asked("broker", "readinessProbe") == (False, said)
            assert pod.asked("broker", "livenessProbe") == (True, said)
            (disk / "filler").unlink()
            pod.wait_for("broker", "readinessProbe")
            assert waiting.wait(20) == 0


def test_helm_test_passes_every_listener_and_fails_with_a_wrong_password(folder: Path) -> None:
    ca = trustme.CA()
    issued = ca.issue_cert("mqtt.example")
    secrets = {
        "lockgate-tls": {
            "tls.crt": issued.cert_chain_pems[0].bytes().decode(),
            "tls.key": issued.private_key_pem.bytes().decode(),
            "ca.crt": ca.cert_pem.bytes().decode(),
        },
        "lockgate-operator": {"username": "operator", "password": "secret"},
    }
    users, rules = folder / "users", folder / "rules"
    users.write_text(hashed(operator="secret"))
    rules.write_text(ACL)
    files = ("--set-file", f"auth.passwordFile={users}", "--set-file", f"auth.aclFile={rules}")
    made = objects("everything", *files)
    tester = [one for one in made if one["kind"] == "Pod"]
    (folder / "broker").mkdir()
    with Pod([one for one in made if one["kind"] != "Pod"], secrets, folder / "broker") as pod:
        pod.wait_for("broker", "readinessProbe")
        hosts = {"lockgate.lockgate.svc": pod.address}
        for password in ("secret", "wrong"):
            secrets["lockgate-operator"]["password"] = password
            (folder / password).mkdir()
            with Pod(tester, secrets, folder / password, hosts=hosts) as verify:
                assert list(verify.containers) == ["mqtt", "mqtts", "websockets"]
                for one in verify.containers.values():
                    assert (one.wait_for_end() == 0) is (password == "secret"), one.logs()
        figures = f"http://operator:secret@{pod.address}:9100/metrics"
        done = subprocess.run(["curl", "-sf", figures], capture_output=True, text=True, check=False)
        assert (done.returncode, "# TYPE" in done.stdout) == (0, True)
        bare = subprocess.run(
            ["curl", "-sf", figures.replace("operator:secret@", "")], capture_output=True, check=False
        )
        assert bare.returncode != 0
