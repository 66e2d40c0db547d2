"""The tunnel token: what it says, where it is found, who can see it."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.config.errors import ConfigError
from lockgate.tunnel.token import Token, find, read_file

ID = uuid.UUID("e951e5f6-ba55-476a-b6db-885d92689d8d")
TOKEN = Token("account", ID, b"very secret bytes")


def packed(said: object) -> str:
    return base64.b64encode(json.dumps(said).encode()).decode()


def text_of(**changed: object) -> str:
    said = {"a": "account", "t": str(ID), "s": base64.b64encode(b"very secret bytes").decode()} | changed
    return packed({key: value for key, value in said.items() if value is not None})


addresses = st.sampled_from(["edge.example:7844", "[2001:db8::1]:443", "192.0.2.1:1"])
tokens = st.builds(
    Token,
    st.text(min_size=1),
    st.uuids(),
    st.binary(min_size=1),
    st.text(),
    st.lists(addresses).map(tuple),
    st.sampled_from(["", "sha256:" + "0f" * 32, "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"]),
)


@given(tokens)
def test_what_was_encoded_is_read_again(token: Token) -> None:
    assert Token.parse(token.encode()) == token


def test_the_text_is_what_cloudflared_takes() -> None:
    said = json.loads(base64.b64decode(TOKEN.encode()))
    assert said == {"a": "account", "t": str(ID), "s": base64.b64encode(b"very secret bytes").decode()}
    assert Token.parse(f"  {text_of(unknown=1)}\n") == TOKEN


def test_an_older_credentials_file_says_the_same(tmp_path: Path) -> None:
    file = tmp_path / "credentials.json"
    secret = base64.b64encode(b"very secret bytes").decode()
    file.write_text(json.dumps({"AccountTag": "account", "TunnelSecret": secret, "TunnelID": str(ID), "Endpoint": ""}))
    assert read_file(file) == TOKEN


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is empty"),
        ("cloudflared service install eyJ", "more than one word"),
        ("%%%", "is not Base64"),
        (text_of()[:-3], "is not Base64"),
        (base64.b64encode(b"\xff\xfe\xfd").decode(), "is not Base64 of text"),
        (base64.b64encode(b"{").decode(), "is no JSON"),
        (packed([1]), "holds no JSON object"),
        (text_of(a=None), r"has no a \(account tag\)"),
        (text_of(t=None), r"has no t \(tunnel id\)"),
        (text_of(s=None), r"has no s \(secret\)"),
        (text_of(a=5), "no text as its a"),
        (text_of(t="nothing"), "no UUID"),
        (text_of(s="very secret!"), "no Base64 as its s"),
        (text_of(edges="edge:1"), "no list as its edges"),
        (text_of(edges=["edge"]), "'edge' is no address.*HOST:PORT"),
        (text_of(edges=["edge:70000"]), "is no address"),
        (text_of(ca="abc"), "neither certificates nor a digest"),
        ("A" * 70_000, "at most 65536"),
    ],
)
def test_a_wrong_token_is_explained_without_its_secret(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        Token.parse(text, "TUNNEL_TOKEN")
    said = str(caught.value)
    assert "TUNNEL_TOKEN" in said
    assert "secret bytes" not in said
    assert base64.b64encode(b"very secret bytes").decode() not in said


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: base64.b64encode(raw).decode()))
def test_whatever_is_no_token_is_a_mistake_of_the_configuration(text: str) -> None:
    with pytest.raises(ConfigError):
        Token.parse(text)


def test_its_readable_form_hides_the_secret() -> None:
    assert "very" not in repr(TOKEN)
    assert str(ID) in repr(TOKEN)


def test_it_is_looked_for_in_the_order_of_cloudflared(tmp_path: Path) -> None:
    def named(tag: str) -> str:
        return text_of(a=tag)

    file, other = tmp_path / "token", tmp_path / "other"
    file.write_text(named("file") + "\n")
    other.write_text(named("other"))
    variables = {
        "LOCKGATE_TUNNEL_TOKEN": named("ours"),
        "CLOUDFLARE_TUNNEL_TOKEN": named("compose"),
        "TUNNEL_TOKEN": named("theirs"),
    }
    files = {"LOCKGATE_TUNNEL_TOKEN_FILE": str(other), "TUNNEL_TOKEN_FILE": str(file)}

    def first(option: str, option_file: Path | None, environment: dict[str, str]) -> str:
        found = find(option, option_file, environment)
        return found[0].account_tag if found is not None else "none"

    assert first(named("option"), file, variables | files) == "option"
    for name in ("ours", "compose", "theirs"):
        assert first("", file, variables | files) == name
        del variables[next(iter(variables))]
    assert first("", file, files) == "file"
    assert first("", None, files) == "other"
    assert first("", None, {"TUNNEL_TOKEN": " "}) == "none"


def test_a_file_that_holds_no_token_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere: cannot be read"):
        read_file(tmp_path / "nowhere")
    file = tmp_path / "token"
    file.write_bytes(b"\xff\n")
    with pytest.raises(ConfigError, match=f"{file}: is not text"):
        read_file(file)
    file.write_text("abc")
    with pytest.raises(ConfigError, match=f"{file}: the token: is not Base64"):
        find("", None, {"TUNNEL_TOKEN_FILE": str(file)})


HIDING = """
import os, sys
from lockgate.tunnel import token
found = sys.argv[sys.argv.index("--token") + 1]
hidden = token.hide(found)
shown = open("/proc/self/cmdline", "rb").read() + open("/proc/self/environ", "rb").read()
print(hidden, found.encode() in shown, os.environ["TUNNEL_TOKEN"] == found, shown.count(b"*" * len(found)))
"""


def test_a_token_of_the_command_line_leaves_the_process_list() -> None:
    text = TOKEN.encode()
    environment = {"PYTHONPATH": ":".join(sys.path), "TUNNEL_TOKEN": text}
    done = subprocess.run(
        [sys.executable, "-c", HIDING, "connector", "--token", text],
        capture_output=True,
        text=True,
        env=environment,
        timeout=30,
        check=True,
    )
    assert done.stdout.split() == ["True", "False", "True", "2"]


STARTING_AGAIN = """
import os, sys
from pathlib import Path
from lockgate.tunnel import token
if "--token-file" not in sys.argv:
    token.start_again_without(sys.argv[sys.argv.index("--token") + 1])
shown = open("/proc/self/cmdline", "rb").read() + open("/proc/self/environ", "rb").read()
found, place = token.find("", Path(sys.argv[sys.argv.index("--token-file") + 1]), os.environ)
print(found.encode().encode() in shown, found.account_tag, sys.argv[1], sys.argv[-1])
"""


def test_where_it_cannot_be_overwritten_the_program_starts_again_without_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(STARTING_AGAIN)
    text = TOKEN.encode()
    done = subprocess.run(
        [sys.executable, str(script), "connector", "--token", text, "run"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path), "OTHER": text},
        timeout=30,
        check=True,
    )
    assert done.stdout.split() == ["False", "account", "connector", "run"]
