"""Registries: Debian's docker-registry with TLS and a login, and one of our own that misbehaves."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.certificates import Authority
from tests.support.docker import docker
from tests.support.peers import free_port, wait_for_port

BRIDGE = "172.17.0.1"  # of docker0: not on the loopback, so that the engine insists on TLS, too
USER, PASSWORD = "gateway", "a long password"


class Registry:
    """A private registry whose certificate the engine trusts, for as long as it runs."""

    def __init__(self, folder: Path) -> None:
        for name in ("docker-registry", "htpasswd"):
            if shutil.which(name) is None:
                pytest.skip(f"{name} is not installed (Debian: docker-registry, apache2-utils)")
        self.folder = folder
        self.authority = Authority(folder)
        certfile, keyfile = self.authority.issue("registry", BRIDGE)
        self.port = free_port()
        self.host = f"{BRIDGE}:{self.port}"
        users = subprocess.run(["htpasswd", "-Bbn", USER, PASSWORD], capture_output=True, check=True).stdout
        (folder / "htpasswd").write_bytes(users)
        config = {
            "version": 0.1,
            "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": str(folder / "images")}},
            "http": {"addr": self.host, "tls": {"certificate": str(certfile), "key": str(keyfile)}},
            "auth": {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}},
        }
        (folder / "registry.json").write_text(json.dumps(config))
        self._certs = Path("/etc/docker/certs.d") / self.host
        self._certs.mkdir(parents=True)
        shutil.copy(self.authority.cafile, self._certs / "ca.crt")
        self.login_file = folder / "login"
        self.login_file.write_text(f"{USER}:{PASSWORD}\n")
        log = folder / "registry.log"
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                ["docker-registry", "serve", str(folder / "registry.json")], stdout=stream, stderr=stream
            )
        wait_for_port(self.port, self._process, log, host=BRIDGE)
        self.docker_config = folder / "docker"
        self.docker_config.mkdir()
        self._docker("login", "-u", USER, "--password-stdin", self.host, text=PASSWORD)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)
        listed = docker("images", "--format", "{{.Repository}} {{.ID}}").stdout.splitlines()
        pulled = {line.split()[1] for line in listed if line.startswith(f"{self.host}/")}
        if pulled:
            docker("rmi", "-f", *pulled, check=False)
        shutil.rmtree(self._certs)

    def push(self, image: str, name: str) -> str:
        """Push an image of the engine's; gives its name over there. No name of it stays here."""
        there = f"{self.host}/{name}"
        docker("tag", image, there)
        self._docker("push", "-q", there)
        docker("rmi", there)
        return there

    def _docker(self, *words: str, text: str = "") -> None:
        done = subprocess.run(
            ["docker", "--config", str(self.docker_config), *words],
            input=text,
            text=True,
            capture_output=True,
            check=False,
        )
        if done.returncode:
            pytest.fail(f"docker {' '.join(words)}: {done.stdout}{done.stderr}")


@contextmanager
def silent_peer(drip: float | None = None) -> Iterator[str]:
    """A port of the loopback where everybody is let in and nobody answered; with `drip` a byte now and then."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        held: list[socket.socket] = []

        def serve() -> None:
            while not stop.is_set():
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                held.append(connection)
                if drip is not None:
                    threading.Thread(target=dribble, args=(connection, drip), daemon=True).start()

        def dribble(connection: socket.socket, pause: float) -> None:
            try:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n")
                while not stop.wait(pause):
                    connection.sendall(b" ")
            except OSError:
                return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            stop.set()
            server.shutdown(socket.SHUT_RDWR)
            thread.join(5)
            for connection in held:
                connection.close()


def digest(document: bytes) -> str:
    return f"sha256:{hashlib.sha256(document).hexdigest()}"


@contextmanager
def one_image(config: dict[str, object], layer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A registry with one image, `lockgate:new`, whose only layer is what `layer` sends, or does not."""
    blob = json.dumps(config).encode()
    kind = "application/vnd.docker.container.image.v1+json"
    of_layer = {
        "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "size": 1 << 30,
        "digest": digest(os.urandom(8)),
    }
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": {"mediaType": kind, "size": len(blob), "digest": digest(blob)},
            "layers": [of_layer],
        }
    ).encode()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            place = self.path.rpartition("/")[2]
            if self.path == "/v2/":
                self._send(b"{}", "application/json")
            elif "/manifests/" in self.path and place in ("new", digest(manifest)):
                self._send(manifest, "application/vnd.docker.distribution.manifest.v2+json")
            elif place == digest(blob):
                self._send(blob, "application/octet-stream")
            elif place == of_layer["digest"]:
                layer(self)
            else:
                self.send_error(404)

        do_HEAD = do_GET

        def _send(self, body: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Docker-Content-Digest", digest(body))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, format: str, *words: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # the engine has gone away, as it was told to

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
