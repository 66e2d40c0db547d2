"""SIGHUP: what the files say counts at once, for who is connected too; what cannot be used changes nothing."""

from __future__ import annotations

import json
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockgate.access import hashes
from lockgate.access.scram import Verifier, write_user
from lockgate.mqtt import reason_codes
from lockgate.mqtt.packets import V3_1_1, Disconnect, UnsubAck, Unsubscribe
from tests.support.dialog import Dialog, ScramDialog, proxied
from tests.support.gateway import Gateway
from tests.support.peers import free_port, wait_for_port

WAIT = 10.0


class Files:
    """A broker with a password file and an ACL file, and what a test writes into them."""

    def __init__(self, folder: Path) -> None:
        self.passwords = folder / "passwords"
        self.acl = folder / "acl"
        self.conf = folder / "mosquitto.conf"
        self.users(alice="a", bob="b")
        self.rules("topic readwrite open", "user alice", "topic readwrite #", "user bob", "topic readwrite open")
        options = [f"password_file {self.passwords}", f"acl_file {self.acl}", "persistence false"]
        self.gateway = Gateway(folder, mosquitto_conf=options)

    def users(self, **passwords: str) -> None:
        self.passwords.write_text(
            "".join(f"{name}:{hashes.make(word.encode(), 'sha512-pbkdf2', 10)}\n" for name, word in passwords.items())
        )
        self.passwords.chmod(0o600)

    def rules(self, *lines: str) -> None:
        self.acl.write_text("".join(f"{line}\n" for line in lines))
        self.acl.chmod(0o600)

    def hang_up(self, expected: str = "The new configuration is in use.") -> str:
        """Send SIGHUP and give what is logged, up to a line."""
        seen = len(self.gateway.log.read_text())
        self.gateway.signal("broker", signal.SIGHUP)
        deadline = time.monotonic() + WAIT
        while expected not in (said := self.gateway.log.read_text()[seen:]):
            assert time.monotonic() < deadline, said
            time.sleep(0.01)
        return said


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    files = Files(tmp_path)
    with files.gateway.running("broker"):
        yield files


REFUSED = reason_codes.NOT_AUTHORIZED


def let_in(files: Files, name: str | None, password: bytes | None = None, answer: int = 0, port: int = 0) -> Dialog:
    return Dialog(port or files.gateway.port, f"c-{name}", username=name, password=password, answer=answer)


def is_disconnected(client: Dialog) -> bool:
    """Whether the client was told that it may not be here any more."""
    last = client.receive()
    return isinstance(last, Disconnect) and last.reason_code == REFUSED and client.receive() is None


def test_the_files_decide_who_comes_in_and_what_they_do(files: Files) -> None:
    let_in(files, "alice", b"wrong", REFUSED)
    let_in(files, "nobody", b"a", REFUSED)
    let_in(files, "alice", None, REFUSED)
    Dialog(files.gateway.port, "c", V3_1_1, username="alice", password=b"wrong", answer=5)
    alice, bob, anonymous = let_in(files, "alice", b"a"), let_in(files, "bob", b"b"), let_in(files, None)
    listening = Dialog(files.gateway.port, "listening", username="alice", password=b"a")
    for one in (listening, anonymous):
        one.subscribe("#")
    assert bob.publish("closed", b"1") == REFUSED
    assert alice.publish("closed", b"2") == 0
    assert bob.publish("open", b"3") == 0
    assert [one.payload for one in listening.messages(2)] == [b"2", b"3"]
    assert [one.payload for one in anonymous.messages(2)] == [b"3"]


def test_a_removed_or_changed_user_is_disconnected_and_others_stay(files: Files) -> None:
    alice, bob, anonymous = let_in(files, "alice", b"a"), let_in(files, "bob", b"b"), let_in(files, None)
    kept = files.passwords.read_text().splitlines()[0]
    files.passwords.write_text(f"{kept}\nbob:{hashes.make(b'new', 'sha512-pbkdf2', 10)}\n")
    files.hang_up()
    assert is_disconnected(bob)
    anonymous.subscribe("open")
    let_in(files, "bob", b"b", REFUSED)
    let_in(files, "bob", b"new")
    files.conf.write_text(files.conf.read_text().replace("allow_anonymous true", "allow_anonymous false"))
    files.hang_up()
    assert is_disconnected(anonymous)
    let_in(files, None, None, REFUSED)
    assert alice.publish("open", b"") in (0, reason_codes.NO_MATCHING_SUBSCRIBERS)


def test_new_rules_count_for_who_is_connected_and_for_what_waits(files: Files) -> None:
    alice, bob = let_in(files, "alice", b"a"), let_in(files, "bob", b"b")
    bob.subscribe("#")
    with Dialog(files.gateway.port, "sleeper", username="bob", password=b"b") as sleeper:
        sleeper.subscribe("#")
    assert alice.publish("open", b"1") == 0
    assert bob.messages(1)[0].payload == b"1"
    files.rules("user alice", "topic readwrite #", "user bob", "topic readwrite other")
    files.hang_up()
    assert bob.publish("open", b"x") == REFUSED
    alice.publish("open", b"2")
    alice.publish("other", b"3")
    assert [one.payload for one in bob.messages(1)] == [b"3"]
    with Dialog(files.gateway.port, "sleeper", username="bob", password=b"b") as sleeper:
        assert [one.payload for one in sleeper.messages(3)] == [b"3"]
    files.rules()
    files.hang_up()
    assert alice.publish("open", b"") == REFUSED  # an empty file denies all


@pytest.mark.parametrize("file", ["passwords", "acl", "conf"])
def test_what_cannot_be_used_changes_nothing(files: Files, file: str) -> None:
    alice = let_in(files, "alice", b"a")
    path: Path = getattr(files, file)
    good = path.read_text()
    for bad in (good + "user\nnonsense:\n", None):
        if bad is None:
            path.unlink()
        else:
            path.write_text(bad)
        said = files.hang_up("The configuration stays as it was.")
        assert str(path) in said
        assert alice.publish("closed", b"") in (0, reason_codes.NO_MATCHING_SUBSCRIBERS)
        let_in(files, "bob", b"wrong", REFUSED)
        assert let_in(files, "bob", b"b").publish("closed", b"") == REFUSED
    path.write_text(good)
    path.chmod(0o600)
    files.hang_up()


def test_a_bad_file_may_end_the_broker_as_it_ends_mosquitto(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.gateway.toml.write_text(
        files.gateway.toml.read_text().replace("[broker]\n", '[broker]\non_bad_reload = "exit"\n')
    )
    with files.gateway.running():
        process = files.gateway.launch("broker")
        wait_for_port(files.gateway.port, process, files.gateway.log)
        files.acl.write_text("nonsense\n")
        process.send_signal(signal.SIGHUP)
        assert process.wait(WAIT) == 3


@pytest.mark.parametrize("file", ["passwords", "acl"])
@pytest.mark.parametrize("damage", ["gone", "nonsense"])
def test_a_file_that_cannot_be_used_at_start_is_mosquittos_exit(tmp_path: Path, file: str, damage: str) -> None:
    files = Files(tmp_path)
    path: Path = getattr(files, file)
    if damage == "gone":
        path.unlink()
    else:
        path.write_text("nonsense:x\n")
    with files.gateway.running():
        assert files.gateway.launch("broker").wait(WAIT) == 13
    assert str(path) in files.gateway.log.read_text()


def test_listeners_come_and_go_and_the_others_notice_nothing(files: Files) -> None:
    alice = let_in(files, "alice", b"a")
    good = files.conf.read_text()
    port = free_port()
    files.conf.write_text(f"{good}listener {port} 127.0.0.1\n")
    files.hang_up()
    on_the_new_one = let_in(files, "bob", b"b", port=port)
    assert alice.publish("open", b"") in (0, reason_codes.NO_MATCHING_SUBSCRIBERS)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        files.conf.write_text(f"{good}listener {free_port()} 127.0.0.1\nlistener {number} 127.0.0.1\n")
        said = files.hang_up("The configuration stays as it was.")
        assert f"port {number} on 127.0.0.1 is in use" in said or "held by" in said
    assert on_the_new_one.publish("open", b"") in (0, reason_codes.NO_MATCHING_SUBSCRIBERS)
    files.conf.write_text(good)
    files.hang_up()
    assert on_the_new_one.receive() is None
    with pytest.raises(ConnectionRefusedError):
        let_in(files, "bob", b"b", port=port)
    assert alice.publish("open", b"") in (0, reason_codes.NO_MATCHING_SUBSCRIBERS)


def command(files: Files, *words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "lockgate", "session", words[0], "--config", str(files.gateway.toml), *words[1:]]
    return subprocess.run(line, capture_output=True, text=True, timeout=20, check=False)


def test_a_listener_moves_on_its_port(files: Files) -> None:
    port, other = files.gateway.port, free_port()
    text = files.conf.read_text()
    at = f"listener {port} 127.0.0.1"
    assert at in text
    alice = let_in(files, "alice", b"a")
    with socket.create_server(("127.0.0.1", other)):  # the second one cannot be opened: the first one stays
        files.conf.write_text(text.replace(at, f"listener {port}") + f"listener {other} 127.0.0.1\n")
        files.hang_up("The configuration stays as it was.")
    assert alice.publish("open", b"1") in (0, reason_codes.NO_MATCHING_SUBSCRIBERS)
    let_in(files, "bob", b"b")
    files.conf.write_text(text.replace(at, f"listener {port}"))
    files.hang_up()
    assert alice.receive() is None or alice.receive() is None
    let_in(files, "alice", b"a")
    with socket.create_connection(("::1", port), WAIT):
        pass
    files.conf.write_text(f"{text.replace(at, f'listener {port}')}protocol http_api\n")
    files.hang_up()
    files.conf.write_text(text)
    files.hang_up()
    let_in(files, "alice", b"a")


def test_sessions_are_listed_given_and_dropped(files: Files) -> None:
    alice = let_in(files, "alice", b"a")
    alice.subscribe("open")
    [listed] = [json.loads(line) for line in command(files, "list", "--json").stdout.splitlines()]
    assert (listed["client_id"], listed["user"], listed["subscriptions"]) == ("c-alice", "alice", 1)
    assert "c-alice" in command(files, "list").stdout
    Dialog(files.gateway.port, "c-alice", username="bob", password=b"b", answer=REFUSED)
    assert command(files, "give", "c-alice", "bob").returncode == 0
    last = alice.receive()
    assert isinstance(last, Disconnect)
    assert last.reason_code == reason_codes.ADMINISTRATIVE_ACTION
    Dialog(files.gateway.port, "c-alice", username="alice", password=b"a", answer=REFUSED)
    bob = Dialog(files.gateway.port, "c-alice", username="bob", password=b"b")
    assert bob.connack.session_present
    assert command(files, "drop", "c-alice").returncode == 0
    assert isinstance(bob.receive(), Disconnect)
    assert command(files, "list", "--json").stdout == ""
    missing = command(files, "drop", "c-alice")
    assert (missing.returncode, missing.stderr) == (1, "c-alice: there is no session of this client id\n")


def test_limits_are_read_again(files: Files) -> None:
    alice = let_in(files, "alice", b"a")
    files.conf.write_text(files.conf.read_text() + "message_size_limit 3\nmax_inflight_messages 7\nmax_qos 1\n")
    files.hang_up()
    assert alice.publish("open", b"1234") == reason_codes.IMPLEMENTATION_SPECIFIC_ERROR
    bob = let_in(files, "bob", b"b")
    assert bob.connack.properties is not None
    assert (bob.connack.properties.receive_maximum, bob.connack.properties.maximum_qos) == (7, 1)


def test_the_log_may_be_subscribed_to(files: Files) -> None:
    text = files.conf.read_text()
    files.conf.write_text(f"{text}log_dest stderr\nlog_dest topic\n")
    files.rules("user alice", "topic read $SYS/#")
    files.hang_up()
    alice = let_in(files, "alice", b"a")
    alice.subscribe("$SYS/broker/log/#")
    let_in(files, "bob", b"wrong", REFUSED)
    while (seen := alice.message()).topic != "$SYS/broker/log/W":
        assert b"as c-alice" in seen.payload  # she may be quick enough to hear of herself
    assert b"'c-bob' with user 'bob' is not let in" in seen.payload


def test_who_subscribes_may_be_logged(files: Files) -> None:
    files.conf.write_text(files.conf.read_text() + "log_type subscribe\nlog_type unsubscribe\nlog_type debug\n")
    files.hang_up("Reloading config.")
    deadline = time.monotonic() + WAIT
    while "c-alice 1 open" not in files.gateway.log.read_text():
        assert time.monotonic() < deadline
        alice = let_in(files, "alice", b"a")
        alice.subscribe("open")
        alice.send(Unsubscribe(3, ["open"]))
        alice.expect(UnsubAck)
    said = files.gateway.log.read_text()
    assert "Sending CONNACK to c-alice (" in said
    assert "c-alice open" in said


def test_without_file_descriptors_the_old_rules_go_on(files: Files) -> None:
    alice = let_in(files, "alice", b"a")
    files.users(mallory="m")
    files.rules("topic readwrite #")
    pid = files.gateway.pid("broker")
    held = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (held, before[1]))
    said = files.hang_up("The configuration stays as it was.")
    assert "Too many open files" in said
    assert alice.publish("closed", b"") in (0, reason_codes.NO_MATCHING_SUBSCRIBERS)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    let_in(files, "mallory", b"m", REFUSED)
    assert let_in(files, "bob", b"b").publish("closed", b"") == REFUSED
    files.hang_up()
    assert is_disconnected(alice)


def test_who_proved_it_with_scram_has_to_be_known_after_a_reload_too(files: Files) -> None:
    users = files.passwords.with_name("scram")
    for name in ("ann", "bob", "eve"):
        write_user(users, name, Verifier.of_password(name, 4096))
    toml = files.gateway.toml
    toml.write_text(toml.read_text().replace("[broker]", f'[broker]\nscram_file = "{users}"'))
    files.hang_up()
    port = files.gateway.port
    ann, bob, eve = (ScramDialog(port, name, name, name) for name in ("ann", "bob", "eve"))
    write_user(users, "bob", None)
    write_user(users, "eve", Verifier.of_password("another", 4096))
    files.hang_up()
    assert is_disconnected(bob)
    assert is_disconnected(eve)
    ann.subscribe("open")
    toml.write_text(toml.read_text().replace(f'scram_file = "{users}"', ""))
    files.hang_up()
    assert is_disconnected(ann)


def test_who_shows_no_certificate_leaves_when_it_becomes_the_login(files: Files) -> None:
    text, port = files.conf.read_text(), free_port()
    text += f"listener {port} 127.0.0.1\nenable_proxy_protocol 2\n"
    files.conf.write_text(text)
    files.hang_up()
    anonymous, alice = (
        Dialog(port, f"p-{name}", username=name, password=word, opening=proxied(None))
        for name, word in ((None, None), ("alice", b"a"))
    )
    files.conf.write_text(text + "use_identity_as_username true\n")
    files.hang_up()
    assert is_disconnected(anonymous)
    assert is_disconnected(alice)
    by_certificate = Dialog(port, "p-bob", opening=proxied(b"bob"))
    files.hang_up()
    by_certificate.subscribe("open")


def test_the_log_stays_as_it_was_with_the_rest(files: Files) -> None:
    good = files.conf.read_text() + "log_dest stderr\nlog_dest topic\n"
    files.conf.write_text(good)
    files.rules("user alice", "topic read $SYS/#")
    files.hang_up()
    rules = files.acl.read_text()
    files.rules("nonsense")
    files.conf.write_text(good.replace("log_dest topic", f"log_dest file {files.conf.with_name('other.log')}"))
    files.hang_up("The configuration stays as it was.")
    files.acl.write_text(rules)
    alice = let_in(files, "alice", b"a")
    alice.subscribe("$SYS/broker/log/W")
    seen = len(files.gateway.log.read_text())
    let_in(files, "bob", b"wrong", REFUSED)
    assert b"'bob' is not let in" in alice.message().payload
    assert "'bob' is not let in" in files.gateway.log.read_text()[seen:]


def test_the_log_goes_on_below_sys_when_files_are_opened_anew(files: Files) -> None:
    place = files.conf.with_name("broker.log")
    files.conf.write_text(files.conf.read_text() + f"log_dest file {place}\nlog_dest topic\n")
    files.rules("user alice", "topic read $SYS/#")
    files.gateway.signal("broker", signal.SIGHUP)
    wait_for_text(place, "The new configuration is in use.")
    alice = let_in(files, "alice", b"a")
    alice.subscribe("$SYS/broker/log/W")
    place.rename(place.with_suffix(".1"))
    files.gateway.signal("broker", signal.SIGRTMIN)
    deadline = time.monotonic() + WAIT
    while not place.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    let_in(files, "bob", b"wrong", REFUSED)
    assert b"'bob' is not let in" in alice.message().payload
    wait_for_text(place, "'bob' is not let in")


def wait_for_text(path: Path, expected: str) -> None:
    """Wait until a file says something."""
    deadline = time.monotonic() + WAIT
    while not path.exists() or expected not in path.read_text():
        assert time.monotonic() < deadline, path
        time.sleep(0.01)
