"""A registry over real sockets: tokens, passwords, documents that are not what they are called, and silence."""

from __future__ import annotations

import base64
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockgate.deploy.errors import DeployError, Refused, Unreachable
from lockgate.deploy.reference import Reference, parse
from lockgate.deploy.registry import Login, Missing, Registry, login_from_docker, login_from_file
from lockgate.deploy.release import Platform, digest_of
from lockgate.deploy.signature import Signature
from tests.support.registries import silent_peer

HERE = Platform("linux", "arm64")
CONFIG = json.dumps(
    {"os": "linux", "architecture": "arm64", "created": "2026-01-02T00:00:00Z", "config": {"Labels": {"a": "b"}}}
)


class Served:
    """What a registry has, and how it wants to be asked."""

    def __init__(self) -> None:
        self.manifests: dict[str, bytes] = {}  # by tag
        self.blobs: dict[str, bytes] = {}
        self.login: Login | None = None
        self.bearer = False
        self.asked: list[str] = []
        self.host = ""
        self.status = 200
        self.digest_said = ""
        self.realm = ""

    def add_image(self, tag: str, config: str = CONFIG) -> str:
        """Give the digest of its manifest."""
        self.blobs[digest_of(config.encode())] = config.encode()
        manifest = {"config": {"digest": digest_of(config.encode())}, "layers": [{"size": 7}, {"size": 8}]}
        self.manifests[tag] = json.dumps(manifest).encode()
        return digest_of(self.manifests[tag])

    def find(self, place: str) -> bytes | None:
        known = {digest_of(one): one for one in self.manifests.values()} | self.manifests | self.blobs
        return known.get(place)


@pytest.fixture
def served() -> Iterator[Served]:
    said = Served()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            said.asked.append(f"{self.path} {self.headers.get('Authorization', '')}")
            if self.path.startswith("/token"):
                good = said.login is None or self.headers.get("Authorization") == said.login.basic()
                self._send(200 if good else 401, b'{"token": "t1"}')
                return
            wanted = "Bearer t1" if said.bearer else said.login.basic() if said.login else None
            if wanted is not None and self.headers.get("Authorization") != wanted:
                self.send_response(401)
                realm = said.realm or f"http://{said.host}/token"
                kind = f'Bearer realm="{realm}",service="here"' if said.bearer else 'Basic realm="here"'
                self.send_header("WWW-Authenticate", kind)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            found = said.find(self.path.rpartition("/")[2])
            self._send(said.status if found is not None else 404, found or b"")

        def do_POST(self) -> None:
            self.send_response(202)
            self.send_header("Location", f"http://{said.host}/upload?state=1")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if "/manifests/" in self.path:
                said.manifests[self.path.rpartition("/")[2]] = body
            else:
                said.blobs[self.path.rpartition("digest=")[2]] = body
            self._send(201, b"")

        def _send(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if said.digest_said:
                self.send_header("Docker-Content-Digest", said.digest_said)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *words: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    said.host = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield said
    server.shutdown()
    server.server_close()
    thread.join()


def registry(served: Served, login: Login | None = None) -> Registry:
    return Registry(served.host, login, None, 5.0)


def test_a_tag_becomes_a_digest_and_the_digest_a_release(served: Served) -> None:
    digest = served.add_image("stable")
    asked = registry(served)
    at = asked.resolve(parse(f"{served.host}/lockgate:stable"))
    assert (at.tag, at.digest) == ("", digest)
    assert asked.resolve(at) == at
    release = asked.release(at, HERE)
    assert release.config_digest == digest_of(CONFIG.encode())
    assert (release.manifest_digest, release.labels, release.size_bytes) == (digest, {"a": "b"}, 15)
    assert release.created == "2026-01-02T00:00:00Z"
    with pytest.raises(Refused, match="is built for linux/arm64, and this engine runs linux/amd64"):
        asked.release(at, Platform("linux", "amd64"))


def test_an_index_leads_to_the_image_of_this_machine(served: Served) -> None:
    digest = served.add_image("arm64")
    amd64 = {"digest": "sha256:" + "0" * 64, "platform": {"os": "linux", "architecture": "amd64"}}
    arm64 = {"digest": digest, "platform": {"os": "linux", "architecture": "arm64"}}
    served.manifests["all"] = json.dumps({"manifests": [{"no": "platform"}, amd64, arm64]}).encode()
    asked = registry(served)
    at = asked.resolve(parse(f"{served.host}/lockgate:all"))
    release = asked.release(at, HERE)
    assert (release.reference.digest, release.manifest_digest) == (digest_of(served.manifests["all"]), digest)
    assert len(release.documents) == 3
    with pytest.raises(Refused, match="built for linux/amd64, linux/arm64, and this engine runs linux/s390x"):
        asked.release(at, Platform("linux", "s390x"))


def test_tokens_are_fetched_with_the_password_and_only_once(served: Served) -> None:
    served.add_image("stable")
    served.login, served.bearer = Login("u", "p:w"), True
    asked = registry(served, served.login)
    reference = parse(f"{served.host}/team/lockgate:stable")
    asked.resolve(reference)
    asked.resolve(reference)
    basic = base64.b64encode(b"u:p:w").decode()
    assert [line for line in served.asked if line.startswith("/token")] == [
        f"/token?scope=repository:team/lockgate:pull&service=here Basic {basic}"
    ]
    assert [line.rpartition(" ")[2] for line in served.asked if "/manifests/" in line] == ["", "t1", "t1"]


def test_logins_that_are_refused(served: Served) -> None:
    served.add_image("stable")
    reference = parse(f"{served.host}/lockgate:stable")
    served.login = Login("u", "p")
    with pytest.raises(DeployError, match="wants a login: deploy.login_file"):
        registry(served).resolve(reference)
    with pytest.raises(DeployError, match="refused the login of 'u' for lockgate: 401"):
        registry(served, Login("u", "wrong")).resolve(reference)
    served.bearer = True
    with pytest.raises(DeployError, match="refused the login for lockgate: 401"):
        registry(served, Login("u", "wrong")).resolve(reference)
    served.realm = "http://192.0.2.1/token"
    with pytest.raises(DeployError, match="with a password, and that is not https"):
        registry(served, served.login).resolve(reference)


def test_what_is_not_what_it_is_called_is_refused(served: Served) -> None:
    digest = served.add_image("stable")
    asked = registry(served)
    at = asked.resolve(parse(f"{served.host}/lockgate:stable"))
    served.manifests[digest] = b'{"another": "manifest"}'
    with pytest.raises(Refused, match=f"{digest} was asked for"):
        asked.release(at, HERE)
    del served.manifests[digest]
    served.blobs[digest_of(CONFIG.encode())] = b"{}"
    with pytest.raises(Refused, match="was asked for"):
        asked.release(at, HERE)
    served.digest_said = "sha256:" + "0" * 64
    with pytest.raises(Refused, match="calls its content sha256:0000"):
        asked.resolve(parse(f"{served.host}/lockgate:stable"))


@pytest.mark.parametrize("document", [b"[]", b"\xff", b"{}", b'{"config": 3}', b'{"config": {"digest": "../../etc"}}'])
def test_documents_without_sense(served: Served, document: bytes) -> None:
    served.manifests["odd"] = document
    asked = registry(served)
    with pytest.raises(Refused, match="no JSON object|names no configuration"):
        asked.release(asked.resolve(parse(f"{served.host}/lockgate:odd")), HERE)


def test_answers_that_are_none(served: Served) -> None:
    reference = parse(f"{served.host}/lockgate:none")
    with pytest.raises(Missing, match=f"{served.host} has no {served.host}/lockgate:none"):
        registry(served).resolve(reference)
    served.add_image("none")
    for status in (429, 500, 503):
        served.status = status
        with pytest.raises(Unreachable, match=str(status)):
            registry(served).resolve(reference)
    served.status = 200
    served.manifests["none"] = bytes(5 * 1024 * 1024)
    with pytest.raises(Refused, match="a document of more than"):
        registry(served).resolve(reference)
    with pytest.raises(Unreachable, match="cannot be asked"):
        Registry("127.0.0.1:1", None, None, 5.0).resolve(Reference("127.0.0.1:1", "a", "b"))


@pytest.mark.parametrize("drip", [None, 0.05])
def test_silence_and_single_bytes_end_at_the_limit(drip: float | None) -> None:
    with silent_peer(drip) as host, pytest.raises(Unreachable, match="did not answer within 0.5 s"):
        Registry(host, None, None, 0.5).resolve(Reference(host, "lockgate", "stable"))


def test_signatures_are_put_beside_those_that_are_there(served: Served) -> None:
    digest = served.add_image("stable")
    asked = registry(served)
    at = Reference(served.host, "lockgate", digest=digest)
    assert asked.signatures(at) == []
    one, two = Signature(b"{1}", b"one"), Signature(b"{2}", b"two")
    assert asked.add_signature(at, one).tag == f"sha256-{digest[7:]}.sig"
    asked.add_signature(at, two)
    assert asked.signatures(at) == [one, two]
    served.blobs[digest_of(b"{1}")] = b"{3}"
    with pytest.raises(Refused, match="was asked for"):
        asked.signatures(at)


def test_logins_from_files(tmp_path: Path) -> None:
    path = tmp_path / "login"
    path.write_text("user:pass:word\nmore\n")
    assert login_from_file(path) == Login("user", "pass:word")
    for text in ("", "user", ":password", "user:"):
        path.write_text(text)
        with pytest.raises(DeployError, match=r"login has to be USER:PASSWORD"):
            login_from_file(path)
    path.write_text(
        json.dumps({"auths": {"r.example:5000": {"auth": base64.b64encode(b"u:p").decode()}, "k.example": {}}})
    )
    assert login_from_docker(path, "r.example:5000") == Login("u", "p")
    assert login_from_docker(path, "other.example") is None
    with pytest.raises(DeployError, match="credsStore"):
        login_from_docker(path, "k.example")
    path.write_text("{")
    with pytest.raises(DeployError, match="deploy.docker_config"):
        login_from_docker(path, "r.example")


def test_references() -> None:
    assert str(parse("r.example:5000/a/b:1.0")) == "r.example:5000/a/b:1.0"
    assert parse("localhost/a") == Reference("localhost", "a", "latest")
    digest = "sha256:" + "0" * 64
    assert parse(f"r.example/a@{digest}") == Reference("r.example", "a", "", digest)
    for text in ("lockgate", "library/lockgate:1", "r.example/", "r.example/UPPER", "r.example/a:b:c", "",
                 "r.example/a@sha256:12", "r.example/a@", "r.example:port/a", "https://r.example/a"):  # fmt: skip
        with pytest.raises(DeployError, match="accepted: REGISTRY"):
            parse(text)
