from __future__ import annotations

import os
import socket

import pytest

from lockgate.telemetry.port_owner import who_listens


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_listening_program_is_named_with_its_pid(family: socket.AddressFamily, address: str) -> None:
    with socket.socket(family) as listening:
        listening.bind((address, 0))
        port = listening.getsockname()[1]
        assert who_listens(port) is None  # bound is not yet listening
        listening.listen()
        said = who_listens(port)
    assert said is not None
    assert said.endswith(f"(pid {os.getpid()})")
    assert who_listens(port) is None
