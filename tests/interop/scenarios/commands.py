"""Mosquitto's own command-line clients: what they print and how they end is the transcript."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass

from tests.interop.scenarios.paho_client import PahoClient
from tests.interop.scenarios.scene import WAIT_SECONDS, Filter, Kind, Options
from tests.support.peers import program

CLIENT = "mosquitto clients"
# topic, payload, QoS, RETAIN, Content Type, Correlation Data, expiry, format, User Properties, Response Topic
_FORMAT = "%t|%p|%q|%r|%C|%D|%E|%F|%P|%R"
_RESPONDER = Kind("responder", 5, False, PahoClient)


class Shell:
    """Runs the commands against one broker."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.lines: list[str] = []

    def run(self, name: str, *arguments: str, lines: str | None = None) -> None:
        """Run a command to its end, and note its output and exit status."""
        done = subprocess.run(
            [program(name), "-h", "127.0.0.1", "-p", str(self.port), *arguments],
            input=lines,
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
        )
        self.lines.append(f"{name} {' '.join(arguments)}: {done.returncode}")
        self.lines += [f"  {line}" for line in (done.stdout + done.stderr).splitlines()]

    def pub(self, *arguments: str, lines: str | None = None) -> None:
        """Publish."""
        self.run("mosquitto_pub", *arguments, lines=lines)

    def sub(self, *arguments: str) -> None:
        """Subscribe."""
        self.run("mosquitto_sub", "-F", _FORMAT, *arguments)


Play = Callable[[Shell], None]


@dataclass(frozen=True)
class Commands:
    """One row of the list."""

    name: str
    shows: str
    play: Play


COMMANDS: list[Commands] = []


def commands(play: Play) -> Play:
    """Enter a function into the list."""
    COMMANDS.append(Commands(play.__name__, (play.__doc__ or "").rstrip("."), play))
    return play


@commands
def commands_wait_for_each_other(s: Shell) -> None:
    """A Session made by one command is read by a later one, in each version."""
    for version in ("mqttv31", "mqttv311", "mqttv5"):
        for qos in "12":
            session = ("-V", version, "-c", "-i", f"q{version}{qos}", "-t", f"q/{version}/{qos}", "-q", qos)
            s.sub(*session, "-E")
            s.pub("-V", version, "-t", f"q/{version}/{qos}", "-q", qos, "-m", "waits")
            s.sub(*session, "-C", "1", "-W", "5")


@commands
def commands_meet_retained_messages(s: Shell) -> None:
    """Set, found, cleared, and not found."""
    s.pub("-t", "r/a", "-q", "1", "-r", "-m", "kept")
    s.sub("-t", "r/#", "-q", "1", "-C", "1", "-W", "5")
    s.sub("-t", "r/#", "--retained-only", "-q", "0", "-C", "1", "-W", "5")
    s.pub("-t", "r/a", "-q", "1", "-r", "-n")
    s.sub("-t", "r/#", "-W", "1")


@commands
def commands_send_properties(s: Shell) -> None:
    """All that `-D publish` can say."""
    session = ("-V", "mqttv5", "-c", "-i", "props", "-t", "p", "-q", "2")
    s.sub(*session, "-E")
    told = (
        ("content-type", "text/plain"), ("correlation-data", "c-1"), ("response-topic", "p/r"),
        ("payload-format-indicator", "1"), ("user-property", "k", "1"), ("user-property", "k", "2"),
    )  # fmt: skip
    flags = [word for one in told for word in ("-D", "publish", *one)]
    s.pub("-V", "mqttv5", "-t", "p", "-q", "2", "-m", "ü", *flags)
    s.sub(*session, "-C", "1", "-W", "5")


@commands
def lines_become_messages(s: Shell) -> None:
    """`-l` sends a message for each line, in order."""
    session = ("-c", "-i", "lines", "-t", "l", "-q", "2")
    s.sub(*session, "-E")
    s.pub("-t", "l", "-q", "2", "-l", lines="".join(f"{number}\n" for number in range(50)))
    s.sub(*session, "-C", "50", "-W", "5")


@commands
def a_session_of_a_command_ends(s: Shell) -> None:
    """Without `-c` the Session is new."""
    s.sub("-c", "-i", "ends", "-t", "e", "-q", "1", "-E")
    s.sub("-i", "ends", "-t", "other", "-q", "1", "-E")
    s.pub("-t", "e", "-q", "1", "-m", "unseen")
    s.sub("-c", "-i", "ends", "-t", "e", "-q", "1", "-W", "1")


@commands
def commands_share_a_subscription(s: Shell) -> None:
    """One group, one member, whose messages wait for it."""
    session = ("-c", "-i", "share", "-t", "$share/g/s/+", "-q", "1")
    s.sub(*session, "-E")
    for number in range(3):
        s.pub("-t", f"s/{number}", "-q", "1", "-m", str(number))
    s.sub(*session, "-C", "3", "-W", "5")


@commands
def mosquitto_rr_gets_its_response(s: Shell) -> None:
    """Request and response, with mosquitto_rr asking."""
    responder = PahoClient(_RESPONDER, s.port)
    responder.connect(Options(client_id="responder"))
    responder.subscribe([Filter(topic_filter="questions", qos=1)], None)
    asked = ("-t", "questions", "-e", "answers", "-m", "?", "-q", "1", "-W", "5", "-i", "asker")
    for version, more in (("5", ("-D", "publish", "correlation-data", "c-2")), ("311", ())):
        asking = subprocess.Popen(
            [
                program("mosquitto_rr"),
                "-h",
                "127.0.0.1",
                "-p",
                str(s.port),
                "-V",
                version,
                *asked,
                *more,
                "-F",
                _FORMAT,
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        responder.events.wait_messages(1 if version == "5" else 2)
        told: dict[str, object] = {"correlation_data": b"c-2"} if version == "5" else {}
        responder.publish("answers", b"!", 1, False, told)
        output, _none = asking.communicate(timeout=WAIT_SECONDS)
        s.lines += [f"mosquitto_rr -V {version}: {asking.returncode}", *(f"  {line}" for line in output.splitlines())]
    s.lines += [event.text for event in responder.events.take(messages=True)]
    responder.disconnect(0, {})


@commands
def a_killed_command_leaves_its_will(s: Shell) -> None:
    """mosquitto_sub with a Will is killed."""
    session = ("-c", "-i", "heir", "-t", "w", "-q", "1")
    s.sub(*session, "-E")
    s.pub("-t", "x", "-r", "-m", "is connected")
    command = [program("mosquitto_sub"), "-h", "127.0.0.1", "-p", str(s.port), "-t", "x"]
    with subprocess.Popen(
        [*command, "--will-topic", "w", "--will-payload", "gone", "--will-qos", "1"], stdout=subprocess.PIPE, text=True
    ) as dying:
        assert dying.stdout is not None
        s.lines.append(dying.stdout.readline())
        dying.kill()
    s.sub(*session, "-C", "1", "-W", "5")
