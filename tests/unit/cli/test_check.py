"""`lockgate check`: bridges, the files of authorities, and the data path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lockgate.cli import main
from tests.support.certificates import Authority

BRIDGE = ("connection b", "address h:1884 i", "topic #")


def check(folder: Path, *lines: str) -> int:
    (folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")
    toml = folder / "lockgate.toml"
    toml.write_text('[broker]\nmosquitto_conf = "mosquitto.conf"\n')
    return main(["check", str(toml)])


def test_bridges_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path, *BRIDGE) == 0
    assert "bridge     b: h:1884, i:1883" in capsys.readouterr().out


def test_a_file_that_cannot_be_used_is_told_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "ca.pem"
    broken.write_text("nothing")
    assert check(tmp_path, *BRIDGE, f"bridge_cafile {broken}") != 0
    told = capsys.readouterr().err
    assert f"bridge_cafile: {broken}: no certificates in PEM." in told
    assert "mosquitto.conf:4" in told


@pytest.mark.parametrize(
    ("option", "content", "told"),
    [
        ("password_file", "anna:$9$what\n", "users:1"),
        ("acl_file", "user anna\ntopic reed a\n", "users:2"),
        ("plugin mosquitto_dynamic_security.so\nplugin_opt_config_file", "{", "users:1"),
    ],
)
def test_a_damaged_file_of_an_authority_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, content: str, told: str
) -> None:
    (tmp_path / "users").write_text(content)
    assert check(tmp_path, f"{option} {tmp_path / 'users'}") != 0
    assert told in capsys.readouterr().err


def test_nothing_is_made(tmp_path: Path) -> None:
    state = tmp_path / "security.json"
    assert check(tmp_path, "plugin mosquitto_dynamic_security.so", f"plugin_opt_config_file {state}") == 0
    assert main(["mosquitto", "--test-config", "-c", str(tmp_path / "mosquitto.conf")]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lockgate.toml", "mosquitto.conf"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "[buffer]\nclasses = ['a', 'b']\n[classes.a]\nlimit = '1MiB'\nwhen_full = 'roll-up'\nroll_up_into = 'b'\n"
            "roll_up = 'SELECT nosuch FROM rows'\n",
            "classes.a.roll_up: no such column: nosuch; there is rows (topic",
        ),
        (
            "[sinks.s]\ntype = 'kafka'\nservers = ['h:9092']\ntopic = 't'\n",
            "sinks.s: needs the library aiokafka",
        ),
        (
            "[edge.acme]\nnames = ['a.example']\nagree_to_terms = true\n",
            "edge.acme: needs the library acme",
        ),
    ],
)
def test_the_data_path_and_libraries_are_tried(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, text: str, says: str
) -> None:
    for library in ("aiokafka", "acme.client"):
        monkeypatch.setitem(sys.modules, library, None)  # as if it were not installed
    path = tmp_path / "lockgate.toml"
    path.write_text(text)
    assert main(["check", str(path)]) == 3
    assert says in capsys.readouterr().err


def test_secrets_and_certificates_that_cannot_be_read_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toml = tmp_path / "lockgate.toml"
    (tmp_path / "here").write_text("secret\n")
    toml.write_text(
        "[processor]\nurl = 'mqtt://p@127.0.0.1'\npassword_file = 'here'\n"
        "[downlink]\nurl = 'mqtt://d@127.0.0.1'\npassword_file = 'none'\n"
        "[sinks.a]\ntype = 'mqtt'\nurl = 'mqtts://u@h'\npassword_file = 'nor-this'\n"
        "cafile = 'here'\ncertfile = 'c.pem'\n"
        "[sinks.b]\ntype = 'influx'\nurl = 'http://h/w'\ntoken_file = 'token'\nmetered_while = 'metered'\n"
        "[sinks.c]\ntype = 'file'\npath = 'made-later'\n"
    )
    assert main(["check", str(toml)]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Warning: ")]
    assert told == [
        f"Warning: {key}: {tmp_path / name}: cannot be read: No such file or directory"
        for key, name in (
            ("downlink.password_file", "none"),
            ("sinks.a.password_file", "nor-this"),
            ("sinks.a.certfile", "c.pem"),
            ("sinks.b.token_file", "token"),
        )
    ]


@pytest.mark.parametrize(
    ("standing", "schemas", "warned"),
    [
        ('["a/+"]', ['["a/+"]'], 0),
        ('["a/#"]', ['["a/+"]'], 1),
        ('["b"]', ['["a/+"]'], 0),
        ('["a/+"]', ['["a/b"]', '["a/+"]'], 0),
        ('["a/+"]', ['["+/b"]', '["a/+"]'], 1),
    ],
)
def test_filters_that_bring_a_message_twice_are_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], standing: str, schemas: list[str], warned: int
) -> None:
    text = f"[standing_sessions.lockgate-processor]\ntopics = {standing}\n"
    for place, topics in enumerate(schemas):
        text += f'[schemas.s{place}]\ntopics = {topics}\nfields = {{ n = "integer" }}\n'
    path = tmp_path / "lockgate.toml"
    path.write_text(text)
    assert main(["check", str(path)]) == 0
    assert capsys.readouterr().out.count("the processor gets what matches both twice") == warned


def test_an_edge_with_acme_needs_no_certificate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("acme")
    toml = tmp_path / "lockgate.toml"
    toml.write_text(
        '[gateway]\ndata_dir = "data"\n[edge.acme]\nnames = ["a.example"]\nagree_to_terms = true\nca_file = "ca.pem"\n'
    )
    assert main(["check", str(toml)]) == 0
    said = capsys.readouterr().out
    assert "no certificate is in" not in said
    assert f"Warning: edge.acme.ca_file: {tmp_path / 'ca.pem'}: cannot be read: No such file or directory" in said


def test_both_ends_of_a_tunnel_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml = tmp_path / "lockgate.toml"
    toml.write_text(
        '[gateway]\ndata_dir = "data"\n[connector]\nedges = ["edge.example:7844"]\nallow = ["broker:1883"]\n'
        '[edge]\nlocation = "HERE"\n'
    )
    assert main(["check", str(toml)]) == 0
    said = capsys.readouterr().out
    assert "connector  to edge.example:7844, the rules that its edge pushes; may dial broker:1883\n" in said
    assert "edge       0.0.0.0:7844, 0.0.0.0:443, 0.0.0.0:8883; tunnels in " in said
    assert "Warning: edge: " in said  # no certificates yet
    assert "no certificate is in " in said
    folder = tmp_path / "data" / "edge" / "certificates"
    folder.mkdir(parents=True)
    authority = Authority(tmp_path)
    for source, target in zip(authority.issue("public", "a.example"), ("public.pem", "public.key"), strict=True):
        source.rename(folder / target)
    for source, target in zip(authority.issue("edge", "a.example"), ("tunnel.pem", "tunnel.key"), strict=True):
        source.rename(folder.parent / target)
    assert main(["check", str(toml)]) == 0
    assert "Warning" not in capsys.readouterr().out
