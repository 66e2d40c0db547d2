"""The engine's socket, where it cannot be used."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from lockgate.deploy.engine import Engine
from lockgate.deploy.errors import DeployError, Unreachable


def test_no_engine_answers(tmp_path: Path) -> None:
    for url in (f"unix://{tmp_path}/none.sock", "tcp://127.0.0.1:1"):
        with pytest.raises(Unreachable, match=r"no Docker Engine answers \(deploy.engine\)"):
            Engine(url).platform()


def test_who_may_not_use_the_socket_is_told_what_to_do(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("root alone can become somebody else")
    for parent in (tmp_path, *tmp_path.parents):  # pytest keeps them to itself
        if parent.name.startswith("pytest-"):
            parent.chmod(0o755)
    tmp_path.chmod(0o755)
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.fspath(path))
        listening.listen()
        path.chmod(0o600)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.setuid(65534)
            try:
                Engine(f"unix://{path}").platform()
                os.write(writing, b"it may")
            except DeployError as error:
                os.write(writing, str(error).encode())
            finally:
                os._exit(0)
        os.close(writing)
        said = os.read(reading, 10_000).decode()
        os.close(reading)
        os.waitpid(child, 0)
    assert "may not use the engine's socket; run this as root or as a member of the group docker" in said
