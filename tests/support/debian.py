"""Debian's MQTT clients, as programs that publish and receive."""

from __future__ import annotations

import subprocess

from tests.support.peers import program


def publish(port: int, topic: str, text: str, *words: str) -> None:
    """Publish at QoS 1; fails unless it is acknowledged."""
    command = [program("mosquitto_pub"), "-p", str(port), "-t", topic, "-m", text, "-q", "1", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr


def receive(port: int, topic: str, *words: str) -> str:
    """Give the first message of a topic, or nothing after some seconds."""
    command = [program("mosquitto_sub"), "-p", str(port), "-t", topic, "-C", "1", "-W", "10", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout.removesuffix("\n")
