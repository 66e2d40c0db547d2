"""mosquitto_pub, mosquitto_sub and mosquitto_rr: ours and Debian's, at Debian's broker and at ours, by the same words.

Each row is a few command lines one after the other. Exit status, standard output and standard error are compared
between both programs at both brokers. A row may know a difference: then it says why, and what ours say.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.certificates import Authority
from tests.support.gateway import Gateway
from tests.support.peers import Mosquitto, free_port, program

pytestmark = [pytest.mark.peers, pytest.mark.timeout(180)]


@dataclass(frozen=True)
class Said:
    """What a command line left behind."""

    status: int
    out: bytes
    err: bytes


@dataclass(frozen=True)
class Row:
    """Command lines, split at blanks; `{id}` and `{topic}` are the row's own, {word} those of `Scene.words`.

    `stdin` is given to the last command, the others read three lines. Where `ours` is given our programs differ in what
    the last command says, for the reason `why`; of the errors it gives the beginning.
    """

    commands: str | tuple[str, ...]
    stdin: bytes = b""
    port: str = "open"  # or "login", or one where nobody listens: "closed"
    why: str = ""
    ours: Said | None = None

    @property
    def lines(self) -> tuple[str, ...]:
        return (self.commands,) if isinstance(self.commands, str) else self.commands


SUB = "sub -t {topic}"
PUB = "pub -t {topic}"
# Retained under {topic}: what a subscriber prints without anybody having to be quick.
KEEP = "pub -t {topic} -r -m hello"
KEEP5 = (
    "pub -t {topic} -V 5 -q 1 -r -m hello -D publish content-type text/plain -D publish response-topic re/sp "
    "-D publish correlation-data corr -D publish payload-format-indicator 1 -D publish user-property k1 v1 "
    "-D publish user-property k2 v2"
)
ONE = "sub -t {topic} -C 1 -W 5"
DURABLE = "sub -t {topic} -q 2 -i {id} -c -E"
WIDTH = "The manual: the width is the least, nothing is cut; Mosquitto prints only half of a payload that is shorter."

ROWS = (
    # --- publishing, as `-d` tells it
    Row("pub -t {topic} -m hello -d -i {id}"),
    Row("pub -t {topic} -m hello -d -i {id} -q 1"),
    Row("pub -t {topic} -m hello -d -i {id} -q 2 -r"),
    Row("pub -t {topic} -m hello -d -i {id} -V 5 -q 1"),
    Row("pub -t {topic} -m hello -d -V 5 -q 2"),
    Row("pub -t {topic} -m hello -d -V mqttv31 -i {id}"),
    Row("pub -t {topic} -m hello -d -V 31"),
    Row("pub -t {topic} -n -d -i {id} -r"),
    Row("pub -t {topic} -m x -i {id} --repeat 3 -q 1 -d"),
    Row("pub -t {topic} -m x -i {id} --repeat 3 -d"),
    Row("pub -t {topic} -m x -i {id} --repeat 2 -q 2 -d --repeat-delay 0.1"),
    Row("pub -t {topic} -n --repeat 2 -d -i {id} --repeat-delay 0.05"),
    Row("pub -t {topic} -t {topic}/b -m x -d -i {id}"),
    Row("pub -t {topic} -f {file} -d -i {id} -q 1"),
    Row("pub -t {topic} -f /dev/null -d -i {id}"),
    Row("pub -t {topic} -s -d -i {id}", stdin=b"two\nlines"),
    Row("pub -t {topic} -s", stdin=b""),
    Row("pub -t {topic} -l -i {id} -q 0 -d", stdin=b"one\ntwo\n\nlast"),
    Row("pub -t {topic} -l -d -i {id}", stdin=b""),
    Row("pub -t {topic} -m x -i 💡{id} -d"),
    Row("pub -t {topic} -m x -u ann -P pw -d -i {id}"),
    Row("pub -t {topic} -m x -P pw -V 5 -d -i {id}"),
    Row("pub -t {topic} -m x -c -i {id} -d -V 5 -x 100"),
    Row("pub -t {topic} -m x -k 10 --nodelay -M 5 -q 1 -d -i {id}"),
    Row("pub -L mqtt://ann:pw@{host}:{portnumber}/{topic}/b -m x -d -i {id}"),
    Row("pub -t {topic} -m x -A 127.0.0.1 -d -i {id}"),
    Row("pub -t {topic} -m x -I pre -q 1"),
    Row("pub -t {topic} -m x --will-topic w --will-payload gone --will-qos 1 --will-retain -d -i {id}"),
    Row("pub -t {topic} -m x --will-topic w -D will will-delay-interval 3 -D connect user-property a b -d -i {id}"),
    Row("pub -t {topic} -m x -D disconnect user-property a b -D publish message-expiry-interval 7 -d -i {id}"),
    Row("pub -t {topic} -m x -D publish topic-alias 5 -d -i {id}"),
    # --- subscribing
    Row("sub -t {topic} -t {topic}/b/# -E -d -i {id} -q 1"),
    Row("sub -t {topic} -t {topic}/b -E -d -i {id} -V 5 -q 1 --retain-as-published -R -D subscribe "
        "subscription-identifier 3"),
    Row("sub -t $share/g/{topic} -E -d -i {id} -V 5"),
    Row("sub -t {topic} -U {topic} -W 1 -i {id} -d"),
    Row((KEEP, ONE)),
    Row((KEEP, ONE + " -v")),
    Row((KEEP, ONE + " -N")),
    Row((KEEP, ONE + " -v -N")),
    Row((KEEP, ONE + " -d -i {id} -q 2")),
    Row((KEEP5, ONE + " -d -i {id} -q 2 -V 5")),
    Row((KEEP, "pub -t {topic}/b -r -m b", "sub -t {topic}/# -T {topic} -v -C 1 -W 5")),
    Row((KEEP, "sub -t {topic} -R -W 1")),
    Row((KEEP, "sub -t {topic} --retained-only --remove-retained -W 1"), ours=Said(0, b"hello\n", b""),
        why="The manual: this ends; Mosquitto 2.0.11 waits for an acknowledgement that it has seen."),
    Row((KEEP, "sub -t {topic} --remove-retained -C 1 -W 2"), ours=Said(0, b"hello\n", b""),
        why="Mosquitto does not end at the count where it has removed a message."),
    Row((DURABLE, "pub -t {topic} -q 2 -l", "sub -t {topic} -q 2 -i {id} -c -C 3 -v -W 5"), stdin=b""),
    Row((DURABLE, "pub -t {topic} -q 1 -m a", "pub -t {topic} -q 2 -n", "pub -t {topic} -q 2 -m c",
         "sub -t {topic} -q 2 -i {id} -c -C 3 -v -W 5")),
    Row((DURABLE, "pub -t {topic} -q 1 -m a", "pub -t {topic} -q 2 -n", "pub -t {topic} -q 2 -m c",
         "sub -t {topic} -q 2 -i {id} -c -C 3 -W 5")),
    Row((DURABLE, "pub -t {topic} -q 1 -m a --repeat 4", "sub -t {topic} -q 2 -i {id} -c -C 3 -W 5",
         "sub -t {topic} -q 2 -i {id} -W 1")),
    Row("sub -t {topic} -W 1"),
    Row("sub -t {topic} -W 1 --quiet"),
    Row("sub -t {topic} -V 31 -i {id} -W 1 -d"),
    Row((KEEP, "sub -L mqtt://{host}:{portnumber}/{topic} -C 1 -W 5")),
    # --- request and response: the request is its own response
    Row("rr -t {topic} -e {topic} -m x -W 5"),
    Row("rr -t {topic} -e {topic} -m x -W 5 -v -N"),
    Row("rr -t {topic} -e {topic} -m x -W 5 -F %t|%p|%R|%D -D publish correlation-data abc"),
    Row("rr -t {topic} -e {topic} -n -W 5 -v -V 311"),
    Row("rr -t {topic} -e {topic}/nobody -m x -W 1"),
    Row("rr -t {topic} -e {topic} -m x -q 1 -W 5"),
    Row("rr -t {topic} -e {topic} -s -q 2 -W 5", stdin=b"from stdin", ours=Said(0, b"from stdin\n", b""),
        why="The manual: standard input is the request; Mosquitto 2.0.11 sends an empty one."),
    # --- formats
    Row((KEEP5, ONE + " -V 5 -q 1 -F %A|%C|%D|%E|%F|%l|%m|%P|%p|%q|%R|%r|%S|%t|%x|%X|%%")),
    Row((KEEP5, ONE + " -V 5 -q 1 -F %10A|%20C|%10D|%10E|%10F|%10l|%10m|%10P|%10p|%10q|%10R|%10r|%10S|%20t|")),
    Row((KEEP5, ONE + " -V 5 -q 1 -F %-10A|%-20C|%-10D|%-10E|%-10F|%-10l|%-10m|%-10p|%-10q|%-10R|%-10S|%-20t|")),
    Row((KEEP5, ONE + " -V 5 -q 1 -F %010A|%020C|%010E|%010F|%010l|%010m|%010p|%010q|%010R|%010S|%020t|%-010l|")),
    Row((KEEP5, ONE + " -V 5 -q 1 -F %.2A|%.2C|%.2D|%.2E|%.2F|%.2l|%.2p|%.2q|%.2R|%.2r|%.2S|%.3t")),
    Row((KEEP5, ONE + " -V 5 -q 1 -F %20.3C|%20.3R|%20.3t|%-10.3t|%20.3p")),
    Row((KEEP5, ONE + r" -V 5 -F \0\a\e\n\r\t\v\\|@@|%%|%p")),
    Row((KEEP5, ONE + " -V 5 -F %I|%30I|%-30I|%030I|%.4I")),
    Row((KEEP5, ONE + " -V 5 -F @Y-@m-@d|@%|@j")),
    Row((KEEP5, ONE + " -V 5 -q 1 -F %j")),
    Row((KEEP5, ONE + " -V 5 -q 1 -F %J")),
    Row(('pub -t {topic} -r -m {"a":[1,2.50,"x",null,true,{}],"b":{"c":"é"}}', ONE + " -F %J")),
    Row(('pub -t {topic} -r -m {"a":[1,2.50,"x",null,true],"b":{"c":"é"}}', ONE + " -F %J --pretty")),
    Row((r'pub -t {topic} -r -m q"\é', ONE + " -F %j")),
    Row((KEEP, ONE + " -F %x|%X|%t")),
    Row((KEEP, ONE + " -F %20x|%-20X|%020x"), why=WIDTH,
        ours=Said(0, b"          68656c6c6f|68656C6C6F          |000000000068656c6c6f\n", b"")),
    Row((KEEP, ONE + " -F %3p"), why=WIDTH, ours=Said(0, b"hello\n", b"")),
    *(Row(f"sub -t a -F {text}") for text in ("%", "%z", "@", "\\", r"\q", "%-", "%10", "%5z", "%0-10l", "%b")),
    # --- refused by the server
    Row("pub -t {topic} -m x", port="login"),
    Row("pub -t {topic} -m x -V 5 -d", port="login"),
    Row("pub -t {topic} -m x -u ann -P wrong -V 31 -i {id}", port="login"),
    Row("pub -t {topic} -m x -u ann -P secret", port="login"),
    Row("pub -t {topic} -m x -u ann -P secret -V 5 -q 1 -d -i {id}", port="login"),
    Row("pub -t {topic} -m x -V 5 --quiet", port="login"),
    Row("sub -t {topic}", port="login"),
    Row("sub -t {topic} -V 5", port="login"),
    Row("rr -t {topic} -e b -m x", port="login"),
    Row("rr -t {topic} -e b -m x -V 311", port="login", why="Mosquitto says `Unknown reason` for codes of 3.1.1.",
        ours=Said(5, b"", b"Connection error: Connection Refused: not authorised.\n")),
    # --- nobody there
    Row("pub -t a -m x", port="closed"),
    Row("pub -t a -m x --quiet", port="closed"),
    Row("sub -t a", port="closed"),
    Row("rr -t a -e b -m x", port="closed"),
    Row("pub -h no-such-host.invalid -t a -m x", port="closed"),
    Row("pub --unix /nowhere -t a -m x", port="closed"),
    # --- TLS
    Row("pub -h localhost -p {tls} --cafile {cafile} -t {topic} -m x -q 1 -d -i {id}"),
    Row("pub -h 127.0.0.1 -p {tls} --cafile {cafile} --insecure -t {topic} -m x -q 1 -d -i {id}"),
    Row("sub -h localhost -p {tls} --cafile {cafile} --tls-version tlsv1.3 --tls-alpn mqtt -t {topic} -E -d -i {id}"),
    Row("pub -h localhost -p {mutual} --cafile {cafile} --cert {cert} --key {key} -t {topic} -m x -q 1 -d -i {id}"),
    Row("pub -h localhost -p {tls} --cafile /nowhere -t a -m x"),
    Row("pub -h localhost -p {tls} --cafile {cafile} --tls-version tlsv9 -t a -m x"),
    Row("pub -h localhost -p {tls} --cafile {cafile} --cert /no --key /no -t a -m x"),
    # --- a command line that cannot be meant
    Row("pub -z"),
    Row("pub --cert x -t a -m x"),
    Row("pub --keyform pem --cafile x -t a -m x"),
    Row("pub --psk 12 -t a -m x"),
    Row("pub --psk 12 --cafile x -t a -m x"),
    *(
        Row(f"{name} {words}")
        for name in ("pub", "sub", "rr")
        for words in ("-h", "-p 99999", "-p", "-k 4", "-k 65536", "-V 6", "-V", "-q 3", "-q", "-i a -I b", "-I a -i b",
                      "-L mqtt", "-L mqtt://h", "-x abc", "-x -2", "-x 4294967296", "--will-qos 3", "--will-topic a/+",
                      "--proxy x", "--proxy socks5h://", "-D", "-D foo", "-D foo bar baz", "-D publish bar baz",
                      "-D connect topic-alias 5", "-D publish payload-format-indicator 256",
                      "-D publish user-property a", "-D publish subscription-identifier 1",
                      "-D PUBACK user-property a b", "-D AUTH user-property a b", "-M 0", "-A", "-u", "--tls-alpn")
    ),
    *(
        Row(f"pub -t a -m x {words}")
        for words in ("-q 5", "-c", "-x -1 -V 5", "-f y", "-n", "-P x", "-i", "--will-payload x", "--will-retain",
                      "--repeat 0", "--repeat-delay -1", "-C 1", "-M", "-D connect receive-maximum 0",
                      "-D publish topic-alias 0", "-D publish content-type a -D publish content-type b",
                      "-D connect session-expiry-interval 10 -x 5", "-D connect maximum-packet-size 0")
    ),
    Row("pub -t a/# -m x"),
    Row("pub -t a -f /nowhere"),
    *(
        Row(f"sub {words}")
        for words in ("", "-t", "-t a/#/b", "-t a -T b/#/c", "-t a -U b/#/c", "-U a", "-t a -C 0", "-t a -C",
                      "-t a -W 0", "-t a -W x", "-t a -F", "-t a -c", "-t a -c -V 5", "-t a --random-filter 0",
                      "-t a -m x", "-t a -l", "-t a -R --retained-only", "-t a -r")
    ),
    *(
        Row(f"rr {words}")
        for words in ("", "-t a", "-t a -e b", "-t a -m b", "-t a/# -e b -m x", "-t a -e b/# -m x", "-t a -e b -m x -l",
                      "-t a -e b -W x -m y", "-t a -e b -C 3", "-t a -e b -n -E",
                      "-t a -e b -m x -D publish response-topic c")
    ),
)  # fmt: skip


class Scene:
    """Two brokers of each maker, so that both makers' programs find the same things there, and one with logins."""

    def __init__(self, folder: Path) -> None:
        authority = Authority(folder)
        certfile, keyfile = authority.issue("server", "localhost")
        self.device = authority.issue("device", common_name="device")
        self.cafile = authority.cafile
        self.folder = folder
        self.file = folder / "payload"
        self.file.write_bytes(b"from a file\n")
        self.closed = free_port()
        passwords = folder / "passwords"
        subprocess.run([program("mosquitto_passwd"), "-b", "-c", str(passwords), "ann", "secret"], check=True)
        self.running: list[Mosquitto | Gateway] = []
        self.ports: dict[tuple[str, str], dict[str, int]] = {}
        for broker in ("debian", "lockgate"):
            login = self._start(broker, f"{broker}-login", [f"password_file {passwords}", "allow_anonymous false"])
            for maker in ("debian", "lockgate"):
                tls, mutual = free_port(), free_port()
                cert = [f"certfile {certfile}", f"keyfile {keyfile}"]
                lines = [f"listener {tls} 127.0.0.1", *cert, f"listener {mutual} 127.0.0.1", *cert]
                lines += [f"cafile {authority.cafile}", "require_certificate true", "max_inflight_messages 20"]
                open_port = self._start(broker, f"{broker}-{maker}", ["allow_anonymous true", *lines])
                self.ports[broker, maker] = {"open": open_port, "login": login, "tls": tls, "mutual": mutual}
                self.ports[broker, maker]["closed"] = self.closed

    def _start(self, broker: str, name: str, lines: Sequence[str]) -> int:
        folder = self.folder / name
        folder.mkdir()
        if broker == "debian":
            mosquitto = Mosquitto(
                folder,
                [line for line in lines if not line.startswith("allow_anonymous")],
                anonymous="allow_anonymous true" in lines,
            )
            self.running.append(mosquitto)
            return mosquitto.port
        gateway = Gateway(folder)
        conf = folder / "mosquitto.conf"
        conf.write_text("\n".join([f"listener {gateway.port} 127.0.0.1", *lines]) + "\n")
        gateway.start("broker")
        self.running.append(gateway)
        return gateway.port

    def stop(self) -> None:
        for one in self.running:
            if isinstance(one, Gateway):
                one.stop_all()
            else:
                one.stop()

    def play(self, number: int, row: Row, broker: str, maker: str) -> list[Said]:
        """Give what each command of a row left behind."""
        ports = self.ports[broker, maker]
        words = {
            "topic": f"t{number}", "id": f"c{number}", "host": "127.0.0.1", "portnumber": str(ports[row.port]),
            "tls": str(ports["tls"]), "mutual": str(ports["mutual"]), "cafile": str(self.cafile),
            "cert": str(self.device[0]), "key": str(self.device[1]), "file": str(self.file),
        }  # fmt: skip
        said: list[Said] = []
        for at, line in enumerate(row.lines):
            name, *arguments = [_filled(word, words) for word in line.split(" ")]
            where = [] if {"-p", "-L", "--unix"} & set(arguments) else ["-p", str(ports[row.port])]
            if "-h" not in arguments and where:
                where = ["-h", "127.0.0.1", *where]
            stdin = row.stdin if at == len(row.lines) - 1 else b"a\nb\nc\n"
            done = subprocess.run(
                [*_called(maker, f"mosquitto_{name}"), *where, *[word for word in arguments if word]],
                input=stdin, capture_output=True, timeout=60, env=ENVIRONMENT, check=False,
            )  # fmt: skip
            said.append(Said(done.returncode, _normal(done.stdout), _normal(done.stderr)))
        return said


ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name not in ("XDG_CONFIG_HOME", "HOME")},
    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    "HOME": "/nonexistent",
    "PYTHONSAFEPATH": "1",
}


def _called(maker: str, name: str) -> list[str]:
    return [program(name)] if maker == "debian" else [sys.executable, "-m", "lockgate", name]


def _filled(word: str, words: dict[str, str]) -> str:
    for name, value in words.items():
        word = word.replace(f"{{{name}}}", value)
    return word


def _normal(text: bytes) -> bytes:
    """Leave out what differs from run to run, and Mosquitto's usage, which is in other words."""
    text = re.sub(rb"auto-[0-9A-F-]{36}", b"auto-ID", text)
    text = re.sub(rb"mosq-[A-Za-z0-9]{18}", b"mosq-ID", text)
    text = re.sub(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z?[+-]\d{4}", b"TIME", text)  # the manual has no Z
    text = re.sub(rb"^mosquitto_\w+ (is|publishes|subscribes) .*", b"USAGE\n", text, flags=re.DOTALL)
    if text.startswith((b'{"tst"', b'{\n\t"tst"')):
        try:  # properties come in the order in which a broker wrote them
            whole = json.loads(text)
        except ValueError:
            return text
        lines = b"pretty " if text.startswith(b"{\n") else b""
        return lines + json.dumps(whole, sort_keys=True).encode() + b"\n"
    return text


@pytest.fixture(scope="module")
def transcripts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[tuple[str, str], list[Said]]]]:
    """What every row left behind, by broker and maker of the programs."""
    scene = Scene(tmp_path_factory.mktemp("programs"))
    try:
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            under_way = [
                {
                    (broker, maker): pool.submit(scene.play, number, row, broker, maker)
                    for broker in ("debian", "lockgate")
                    for maker in ("debian", "lockgate")
                    # without a connection the broker's maker is no difference
                    if broker == "debian" or row.port != "closed"
                }
                for number, row in enumerate(ROWS)
            ]
            yield [{who: future.result() for who, future in row.items()} for row in under_way]
    finally:
        scene.stop()


@pytest.mark.parametrize("number", range(len(ROWS)), ids=[" ; ".join(row.lines) for row in ROWS])
def test_programs_and_brokers_say_the_same(transcripts: list[dict[tuple[str, str], list[Said]]], number: int) -> None:
    row, told = ROWS[number], transcripts[number]
    expected = told["debian", "debian"]
    for (broker, maker), said in told.items():
        if maker == "lockgate" and row.ours is not None:
            last = said[-1]
            assert (last.status, last.out) == (row.ours.status, row.ours.out), row.why
            assert last.err.startswith(row.ours.err), row.why
            assert last != expected[-1], f"no difference any more: {row.why}"
        else:
            assert said == expected, f"{maker}'s programs at the broker of {broker}"
