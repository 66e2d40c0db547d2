"""Many log in at once, and give up before anybody has looked at their passwords."""

from __future__ import annotations

import socket
from pathlib import Path

from lockgate.access import hashes
from lockgate.mqtt.encoder import encode
from lockgate.mqtt.packets import V5, Connect
from tests.support.dialog import Dialog
from tests.support.gateway import Gateway


def test_no_time_goes_into_the_passwords_of_who_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "passwords"
    path.write_text(f"u:{hashes.make(b'p', 'sha512-pbkdf2', 500_000)}\n")  # 0.2 s and more each
    path.chmod(0o600)
    gateway = Gateway(tmp_path, mosquitto_conf=["persistence false", f"password_file {path}"])
    with gateway.running("broker"):
        gone = [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(200)]
        for number, sock in enumerate(gone):
            sock.sendall(encode(Connect(f"c{number}", V5, True, 0, "u", b"wrong"), V5))
        for sock in gone:
            sock.close()
        Dialog(gateway.port, "c", username="u", password=b"p")  # which waits for ten seconds
