"""A listener with `protocol http_api`, asked with curl as a dashboard or Prometheus would."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockgate.access import hashes
from tests.support.certificates import Authority
from tests.support.dialog import Dialog
from tests.support.gateway import Gateway
from tests.support.peers import free_port


def get(url: str, *options: str) -> tuple[int, str]:
    """Give the status of an answer and its body."""
    done = subprocess.run(
        ["curl", "-s", "-w", "\n%{http_code}", "--max-time", "10", *options, url],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    body, _, code = done.stdout.rpartition("\n")
    return int(code), body


class Api:
    def __init__(self, folder: Path, *more: str) -> None:
        self.port = free_port()
        options = ["persistence false", f"listener {self.port} 127.0.0.1", "protocol http_api", *more]
        self.gateway = Gateway(folder, mosquitto_conf=options)
        self.url = f"http://127.0.0.1:{self.port}"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    files = tmp_path / "files"
    (files / "below").mkdir(parents=True)
    (files / "index.html").write_text("<p>hello</p>")
    (files / "below" / "page.txt").write_text("below")
    (tmp_path / "secret").write_text("secret")
    (files / "link").symlink_to(tmp_path / "secret")
    api = Api(tmp_path, f"http_dir {files}")
    with api.gateway.running("broker"):
        yield api


def test_the_version_the_figures_and_the_listeners(api: Api) -> None:
    code, version = get(f"{api.url}/api/v1/version")
    assert (code, version.split()[0]) == (200, "2.1.2")
    with Dialog(api.gateway.port, "c") as client, Dialog(api.gateway.port, "p") as publisher:
        client.subscribe("t")
        publisher.publish("t", b"12345")
        client.message()
        code, body = get(f"{api.url}/api/v1/systree")
        figures = json.loads(body)
    assert code == 200
    assert figures["$SYS/broker/clients/connected"] == 2
    assert figures["$SYS/broker/publish/bytes/received"] == 5
    assert figures["$SYS/broker/publish/messages/sent"] == 1
    assert figures["$SYS/broker/mqtt/subscribe/received"] == 1
    assert figures["$SYS/broker/mqtt/suback/sent"] == 1
    code, body = get(f"{api.url}/api/v1/listeners")
    assert json.loads(body)["listeners"] == [
        {"port": api.gateway.port, "protocol": "mqtt", "tls": False, "mtls": False, "allow_anonymous": True},
        {"port": api.port, "protocol": "httpapi", "tls": False, "mtls": False, "allow_anonymous": True},
    ]
    assert "access-control-allow-origin: *" in get(f"{api.url}/api/v1/version", "-i")[1].lower()


def test_every_figure_below_sys_is_a_metric(api: Api) -> None:
    code, body = get(f"{api.url}/metrics")
    assert code == 200
    values = dict(line.rsplit(" ", 1) for line in body.splitlines() if not line.startswith("#"))
    for topic, value in json.loads(get(f"{api.url}/api/v1/systree")[1]).items():
        name = "broker_" + topic.removeprefix("$SYS/broker/").replace("/", "_").replace(" ", "_")
        if "/load/" in topic:
            name, _, minutes = name.rpartition("_")
            name = f'{name}{{interval="{minutes}"}}'
        if isinstance(value, int | float):
            assert name in values, topic
            float(values[name])
    assert len(values) == len(set(values))


def test_files_are_served_from_their_folder_alone(api: Api) -> None:
    assert get(f"{api.url}/") == (200, "<p>hello</p>")
    assert get(f"{api.url}/below/page.txt") == (200, "below")
    for path in ("/nothing", "/../secret", "/%2e%2e/secret", "/link", "/below/../../secret", "//etc/passwd", "/%00"):
        assert get(f"{api.url}{path}", "--path-as-is")[0] in (400, 404), path
    assert get(f"{api.url}/", "-X", "POST")[0] == 405


def test_the_rules_say_who_reads_what(tmp_path: Path) -> None:
    (tmp_path / "passwords").write_text(
        "".join(f"{name}:{hashes.make(b'p', 'sha512-pbkdf2', 10)}\n" for name in ("ann", "bob"))
    )
    (tmp_path / "acl").write_text("user ann\ntopic read /api/#\nuser bob\ntopic read /metrics\n")
    api = Api(tmp_path, f"password_file {tmp_path / 'passwords'}", f"acl_file {tmp_path / 'acl'}")
    with api.gateway.running("broker"):
        assert get(f"{api.url}/api/v1/version") == (401, "Not authorised\n")
        assert get(f"{api.url}/api/v1/version", "-u", "ann:wrong")[0] == 401
        assert get(f"{api.url}/api/v1/version", "-u", "ann:p")[0] == 200
        assert get(f"{api.url}/metrics", "-u", "ann:p")[0] == 401
        assert get(f"{api.url}/metrics", "-u", "bob:p")[0] == 200
        assert get(f"{api.url}/metrics", "-H", "Authorization: Basic !!!")[0] == 401


def test_a_crowd_that_guesses_is_told_to_wait(tmp_path: Path) -> None:
    passwords = tmp_path / "passwords"
    passwords.write_text(f"ann:{hashes.make(b'a', 'sha512-pbkdf2', 200_000)}\n")
    passwords.chmod(0o600)
    api = Api(tmp_path, f"password_file {passwords}")
    command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-u", "ann:wrong", f"{api.url}/api/v1/version"]
    with api.gateway.running("broker"):
        crowd = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(24)]
        codes = Counter(one.communicate(timeout=30)[0] for one in crowd)
        assert set(codes) == {"401", "503"}
        assert get(f"{api.url}/api/v1/version", "-u", "ann:a")[0] == 200


def test_it_speaks_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server", "localhost")
    api = Api(tmp_path, f"certfile {certificate}", f"keyfile {key}")
    with api.gateway.running("broker"):
        url = f"https://localhost:{api.port}/api/v1/version"
        assert get(url, "--cacert", str(authority.cafile))[0] == 200


def test_what_a_reload_says_of_tls_counts(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server", "localhost")
    mine, my_key = authority.issue("mine", common_name="me")
    api = Api(tmp_path)
    conf, trust = tmp_path / "mosquitto.conf", ["--cacert", str(authority.cafile)]
    plain, secure = f"{api.url}/api/v1/version", f"https://localhost:{api.port}/api/v1/version"

    def reload(more: str) -> None:
        seen = api.gateway.log.read_text().count("in use.")
        conf.write_text(without + more)
        api.gateway.signal("broker", signal.SIGHUP)
        deadline = time.monotonic() + 10
        while api.gateway.log.read_text().count("in use.") == seen:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    with api.gateway.running("broker"):
        without = conf.read_text()
        assert get(plain)[0] == 200
        reload(f"certfile {certificate}\nkeyfile {key}\n")
        assert get(secure, *trust)[0] == 200
        assert subprocess.run(["curl", "-s", plain], capture_output=True, check=False, timeout=10).returncode != 0
        reload(f"certfile {certificate}\nkeyfile {key}\ncafile {authority.cafile}\nrequire_certificate true\n")
        asked = ["curl", "-s", *trust, secure]
        assert subprocess.run(asked, capture_output=True, check=False, timeout=10).returncode != 0
        assert get(secure, *trust, "--cert", str(mine), "--key", str(my_key))[0] == 200
