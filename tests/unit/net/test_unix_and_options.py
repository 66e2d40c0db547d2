"""Unix sockets, and the listener options that concern the socket itself."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import socket
from pathlib import Path

import pytest

from lockgate.config.model import BrokerConfig, ListenerConfig
from lockgate.mqtt.packets import ConnAck, Connect
from lockgate.net.service import BrokerService
from lockgate.storage.memory import MemoryStore
from tests.support.wires import Wire, serving

PLAIN = ListenerConfig(port=0, address="127.0.0.1")


@pytest.fixture
def listener(tmp_path: Path) -> ListenerConfig:
    return ListenerConfig(port=0, path=tmp_path / "s")


async def test_the_process_at_the_other_end_is_logged(
    listener: ListenerConfig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with serving(listener) as service:
        await Wire.client(service, "c")
    who = f"unix socket (pid {os.getpid()}, uid {os.getuid()})"
    assert f"New connection from {who} on {listener.path}." in caplog.messages
    assert any(f"New client connected from {who} as c" in line for line in caplog.messages)


async def test_a_socket_left_behind_is_replaced(listener: ListenerConfig) -> None:
    assert listener.path is not None
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(listener.path))
    left.close()
    async with serving(listener) as service:
        await Wire.client(service, "c")
    assert not listener.path.exists()


async def test_a_socket_of_another_program_a_file_and_a_missing_folder_are_named(listener: ListenerConfig) -> None:
    assert listener.path is not None
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(listener.path))
        other.listen()
        with pytest.raises(OSError, match="cannot listen on the Unix socket .*: another program listens there"):
            async with serving(listener):
                pass
    assert listener.path.exists()
    listener.path.unlink()
    listener.path.write_text("precious")
    with pytest.raises(OSError, match="there is a file that is no socket"):
        async with serving(listener):
            pass
    assert listener.path.read_text() == "precious"
    missing = dataclasses.replace(listener, path=listener.path.parent / "none" / "s")
    with pytest.raises(OSError, match="none/s: No such file or directory"):
        async with serving(missing):
            pass


async def test_a_socket_that_another_program_put_there_meanwhile_stays(listener: ListenerConfig) -> None:
    assert listener.path is not None
    async with serving(listener):
        listener.path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(listener.path))
    assert listener.path.exists()


@pytest.mark.parametrize(("domain", "family"), [("ipv4", socket.AF_INET), ("ipv6", socket.AF_INET6)])
async def test_a_listener_opens_the_wanted_family_alone(domain: str, family: int) -> None:
    listener = ListenerConfig(port=0, domain=domain)  # type: ignore[arg-type]
    async with serving(listener) as service:
        assert [sock.family for sock in service.listeners[0]._bound] == [family]


async def test_without_a_family_both_are_open_on_one_port() -> None:
    async with serving(ListenerConfig(port=0)) as service:
        bound = service.listeners[0]._bound
        assert [sock.family for sock in bound] == [socket.AF_INET, socket.AF_INET6]
        assert len({sock.getsockname()[1] for sock in bound}) == 1
        _reader, writer = await asyncio.open_connection("::1", service.listeners[0].port)
        writer.close()


async def test_an_interface_is_bound_to_and_a_missing_one_named() -> None:
    with pytest.raises(OSError, match="bind_interface none0: No such device"):
        async with serving(dataclasses.replace(PLAIN, interface="none0")):
            pass
    async with serving(dataclasses.replace(PLAIN, interface="lo")) as service:
        await Wire.client(service, "c")


@pytest.mark.parametrize("nodelay", [True, False])
async def test_small_packets_wait_only_where_that_is_asked_for(nodelay: bool) -> None:
    config = BrokerConfig(listeners=(PLAIN,), allow_anonymous=True, set_tcp_nodelay=nodelay)
    service = BrokerService(config, MemoryStore)
    ready = asyncio.Event()
    running = asyncio.create_task(service.run(ready.set))
    await ready.wait()
    wire = await Wire.client(service, "c")
    [stream] = service.listeners[0].streams
    sock = socket.socket(fileno=os.dup(stream._socket))
    assert bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) == nodelay
    sock.close()
    wire.writer.close()
    running.cancel()
    await asyncio.wait({running})


async def test_a_listener_lets_in_the_versions_it_accepts() -> None:
    async with serving(dataclasses.replace(PLAIN, protocol_versions=frozenset({5}))) as service:
        await Wire.client(service, "new")
        old = await Wire.open(service, version=4)
        await old.send(Connect("old", 4))
        assert await old.receive() == ConnAck(1)
        await old.closed()
