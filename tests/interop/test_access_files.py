"""ACL files and password files: Debian's mosquitto and we decide alike."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from lockgate.access.acl_file import AclFile
from lockgate.access.authority import Chain
from lockgate.access.password_file import PasswordFile
from lockgate.client import Client, ConnectionRefused, PublishRefused
from lockgate.config.model import ConnectionConfig
from lockgate.mqtt import reason_codes
from tests.support.peers import Mosquitto, program

pytestmark = pytest.mark.peers

END = "$end"  # everybody may read it, no other rule matches it; when it arrives, all that went before has
ROOT = f"user root\ntopic #\ntopic $x/#\ntopic $SYS/#\ntopic {END}\n"
USERS = ("u", "v", "a/b", "%u")
CLIENTS = ("c", "%c", "x y")
PARTS = ("a", "b", "a b", "%c", "%u", "", "$x", "c", "u", "+", "+")
TOPICS = sorted(
    {"/".join(levels) for count in (1, 2, 3) for levels in itertools.product(("a", "b", "u", "c"), repeat=count)}
    | {
        "a b/a",
        "/a",
        "a/",
        "/",
        "$x/a",
        "$x",
        "%c/a",
        "a/%u",
        "xc",
        "x%c/a",
        "a/xc",
        "b/xx y",
        "uy",
        "uy/a",
        "%uy/a",
        "a/b/c/d",
        "x y/a",
        "v/v",
    }
)


@asynccontextmanager
async def client(peer: Mosquitto, client_id: str, username: str | None) -> AsyncIterator[Client]:
    """Connect as somebody."""
    login = f"{quote(username, safe='')}@" if username is not None else ""
    url = peer.url.replace("mqtt://", f"mqtt://{login}")
    async with Client(ConnectionConfig(url=url, client_id=client_id, version="5"), clean_start=True) as connected:
        yield connected


async def may_write(peer: Mosquitto, client_id: str, username: str | None) -> dict[str, bool]:
    async def publish(connected: Client, topic: str) -> bool:
        try:
            await connected.publish(topic, b"", 1)
        except PublishRefused:
            return False
        return True

    async with client(peer, client_id, username) as connected:
        return dict(zip(TOPICS, await asyncio.gather(*(publish(connected, topic) for topic in TOPICS)), strict=True))


async def may_read(peer: Mosquitto, root: Client, client_id: str, username: str | None) -> dict[str, bool]:
    async with client(peer, client_id, username) as connected:
        await connected.subscribe([(topic, 0) for topic in (*TOPICS, END)])
        for topic in (*TOPICS, END):
            await root.publish(topic, b"x", 0)
        arrived: set[str] = set()
        async with asyncio.timeout(10):
            async for message in connected.messages():
                if message.topic == END:
                    break
                arrived.add(message.topic)
    return {topic: topic in arrived for topic in TOPICS}


def random_rules(chance: random.Random) -> str:
    """Give a file with a few rules for each user, and patterns.

    %c and %u are whole levels, as the manual asks: Mosquitto filled in parts of levels too until 2.1.
    """

    def rule(word: str) -> str:
        parts = [chance.choice(PARTS) for _ in range(chance.randint(1, 3))]
        if chance.random() < 0.25:
            parts[-1] = "#"
        access = chance.choice(["read ", "write ", "readwrite ", "deny ", ""])
        topic_filter = "/".join(parts)
        if not topic_filter or (not access and " " in topic_filter):
            topic_filter = "a"
        return f"{word} {access}{topic_filter}\n"

    text = "".join(rule("topic") for _ in range(chance.randint(0, 4))) + f"topic read {END}\n"
    for user in USERS:
        text += f"user {user}\n" + "".join(rule("topic") for _ in range(chance.randint(0, 4))) + f"topic read {END}\n"
        text += "".join(rule("pattern") for _ in range(chance.randint(0, 1)))
    return f"{text}pattern read {END}\n{ROOT}"


@pytest.mark.parametrize("seed", range(8))
async def test_an_acl_file_decides_alike(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "acl"
    text = random_rules(random.Random(seed))
    path.write_text(text)
    path.chmod(0o600)
    ours = Chain([AclFile.load(path)], allow_anonymous=True)
    peer = Mosquitto(tmp_path, [f"acl_file {path}"])
    different: list[str] = []
    try:
        async with client(peer, "root", "root") as root:
            for client_id, username in itertools.product(CLIENTS, (None, *USERS)):
                questions: list[tuple[str, Callable[[str, str | None, str], bool], dict[str, bool]]] = [
                    ("write", ours.may_publish, await may_write(peer, client_id, username)),
                    ("read", ours.may_receive, await may_read(peer, root, client_id, username)),
                ]
                for word, decide, theirs in questions:
                    for topic, allowed in theirs.items():
                        if decide(client_id, username, topic) != allowed:
                            different.append(f"{word} {topic!r} by {client_id!r}, {username!r}: theirs {allowed}")
    finally:
        peer.stop()
    assert not different, "\n".join((text, *different))


# --- passwords -------------------------------------------------------------------------------------------------------

OURS = [
    sys.executable,
    "-c",
    "import sys; from lockgate.cli.mosquitto_passwd import main; sys.exit(main(sys.argv[1:]))",
]
DIALOGUES: list[tuple[str, ...]] = [
    # words, and behind "<" what is typed
    ("-c", "-b", "-H", "sha512-pbkdf2", "FILE", "anna", "secret"),
    ("-b", "-H", "sha512", "FILE", "bert", "secret"),
    ("-H", "sha512-pbkdf2", "FILE", "carl", "<", "geheim\ngeheim\n"),
    ("-b", "-I", "7", "-H", "sha512-pbkdf2", "FILE", "dora", "x"),
    ("-b", "-H", "sha512-pbkdf2", "FILE", "anna", "changed"),
    ("FILE", "bert", "<", "one\nother\n"),
    ("FILE", "bert", "<", ""),
    ("-D", "FILE", "dora"),
    ("-D", "FILE", "dora"),
    ("-D", "FILE"),
    ("-D", "MISSING", "anna"),
    ("-b", "MISSING", "anna", "x"),
    ("-U", "MISSING"),
    ("-U", "-H", "sha512-pbkdf2", "PLAIN"),
    ("-U", "CORRUPT"),
    ("-b", "FILE", "a:b", "x"),
    ("-b", "FILE", "a\x01b", "x"),
    ("-b", "-H", "md5", "FILE", "anna", "x"),
    ("-b", "-I", "0", "FILE", "anna", "x"),
    ("-b", "-I", "many", "FILE", "anna", "x"),
    ("-c", "-D", "FILE", "anna"),
    ("-b", "-D", "FILE", "anna"),
    ("-c", "-U", "FILE"),
    ("-c",),
    ("-c", "FILE"),
    ("-H",),
    ("-z", "FILE", "anna", "<", ""),
    ("-c", "-b", "/nonexistent/file", "anna", "x"),
    ("-b", "FILE", "anna"),
    (),
]


def shape(path: Path) -> list[str]:
    """Give a file's lines without what chance has put there; 101 rounds are 2.0's default and 1000 are 2.1's."""
    lines = path.read_text().replace("$7$101$", "$7$1000$").splitlines()
    return [re.sub(r"\$[^$]{16}\$[^$]{88}$", "$SALT$HASH", line) for line in lines]


def dialogue(command: Sequence[str], folder: Path) -> tuple[list[str], Path]:
    """Go through the dialogues; gives what was answered, and the password file."""
    folder.mkdir()
    folder.joinpath("plain").write_text("anna:secret\nbert:geheim\n")
    folder.joinpath("corrupt").write_text("anna:secret\nbert:geheim\nnonsense\n")
    names = {"FILE": "file", "MISSING": "missing", "PLAIN": "plain", "CORRUPT": "corrupt"}
    said: list[str] = []
    for words in DIALOGUES:
        before, typed = (words[: words.index("<")], words[-1]) if "<" in words else (words, "")
        argv = [*command, *(names.get(word, word) for word in before)]
        ended = subprocess.run(argv, cwd=folder, input=typed.encode(), capture_output=True, timeout=20)
        output = ended.stdout.decode().partition("\nUsage:")[0].strip()
        errors = [line for line in ended.stderr.decode().splitlines() if line and "readable by everybody" not in line]
        said.append(f"{words}: {ended.returncode} {output!r} {errors}")
        said += [line for name in ("file", "plain") if (folder / name).exists() for line in shape(folder / name)]
    return said, folder / "file"


def test_mosquitto_passwd_answers_alike(tmp_path: Path) -> None:
    ours, _file = dialogue(OURS, tmp_path / "ours")
    theirs, _file = dialogue([program("mosquitto_passwd")], tmp_path / "theirs")
    assert ours == theirs


@pytest.mark.parametrize("whose", ["ours", "theirs"])
async def test_each_lets_in_whom_the_others_file_names(tmp_path: Path, whose: str) -> None:
    _said, path = dialogue(OURS if whose == "ours" else [program("mosquitto_passwd")], tmp_path / whose)
    path.chmod(0o600)
    chain = Chain([PasswordFile.load(path)], allow_anonymous=False)
    peer = Mosquitto(tmp_path, [f"password_file {path}"], anonymous=False)
    try:
        for username, password, expected in [
            ("anna", "changed", True),
            ("anna", "secret", False),
            ("bert", "secret", True),
            ("carl", "geheim", True),
            ("carl", "", False),
            ("carl", None, False),
            ("dora", "x", False),
            (None, None, False),
        ]:
            assert chain.login("c", username, password.encode() if password is not None else None) is expected
            assert await lets_in(peer, username, password) is expected, (username, password)
    finally:
        peer.stop()


async def lets_in(peer: Mosquitto, username: str | None, password: str | None) -> bool:
    login = "" if username is None else f"{username}@" if password is None else f"{username}:{password}@"
    url = peer.url.replace("mqtt://", f"mqtt://{login}")
    connection = Client(ConnectionConfig(url=url, client_id="c", version="5"), clean_start=True)
    try:
        await connection.connect(retry=False)
    except ConnectionRefused as error:
        if error.reason_code == reason_codes.NOT_AUTHORIZED:
            return False
        raise
    await connection.disconnect()
    return True
