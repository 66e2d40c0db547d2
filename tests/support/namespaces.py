"""Three machines in network namespaces: a home behind NAT, its router, and the world that has no way in."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

HOME, WORLD = "10.77.0.2", "203.0.113.2"
HOSTS = ("edge.example.org", "home.example.org", "mqtt.example.org")

# Notes every TCP segment that comes in from outside: who sent it, to which port, and its flags.
_CAPTURE = """
import json, signal, socket, sys
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
sock.bind(("eth0", 0))
seen = {}
def tell(*_):
    print(json.dumps([[*key, count] for key, count in seen.items()]), flush=True)
    sys.exit()
signal.signal(signal.SIGTERM, tell)
print("capturing", flush=True)
while True:
    frame, where = sock.recvfrom(65535)
    if where[2] == socket.PACKET_OUTGOING or frame[12:14] != b"\\x08\\x00" or frame[23] != 6:
        continue
    tcp = frame[14 + (frame[14] & 15) * 4:]
    key = (int.from_bytes(tcp[0:2], "big"), int.from_bytes(tcp[2:4], "big"), bool(tcp[13] & 2), bool(tcp[13] & 16))
    seen[key] = seen.get(key, 0) + 1
"""


class Namespaces:
    """`home` and `world`, each a machine with an interface eth0."""

    def __init__(self, folder: Path) -> None:
        self._tag = f"lg{os.getpid()}"
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []

    def name(self, machine: str) -> str:
        return f"{self._tag}-{machine}"

    def make(self) -> None:
        for machine in ("home", "router", "world"):
            run("ip", "netns", "add", self.name(machine))
            run("ip", "-n", self.name(machine), "link", "set", "lo", "up")
        self._join("home", HOME, "inside", "10.77.0.1")
        self._join("world", WORLD, "outside", "203.0.113.1")
        run("ip", "-n", self.name("home"), "route", "add", "default", "via", "10.77.0.1")
        self.run("router", "sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
        self.run("router", "iptables", "-t", "nat", "-A", "POSTROUTING", "-o", "outside", "-j", "MASQUERADE")
        for machine in ("home", "world"):
            etc = Path("/etc/netns") / self.name(machine)
            etc.mkdir(parents=True)
            (etc / "hosts").write_text(f"127.0.0.1 localhost\n{WORLD} {' '.join(HOSTS)}\n")

    def _join(self, machine: str, address: str, port: str, other: str) -> None:
        router = self.name("router")
        run(
            "ip", "-n", self.name(machine), "link", "add", "eth0", "type", "veth",
            "peer", "name", port, "netns", router,
        )  # fmt: skip
        for namespace, link, own in ((self.name(machine), "eth0", address), (router, port, other)):
            run("ip", "-n", namespace, "addr", "add", f"{own}/24", "dev", link)
            run("ip", "-n", namespace, "link", "set", link, "up")

    def remove(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.wait(10)
        for machine in ("home", "router", "world"):
            subprocess.run(["ip", "netns", "del", self.name(machine)], check=False, capture_output=True)
            shutil.rmtree(Path("/etc/netns") / self.name(machine), ignore_errors=True)

    def command(self, machine: str, *words: str) -> list[str]:
        return ["ip", "netns", "exec", self.name(machine), *words]

    def run(self, machine: str, *words: str, seconds: float = 60) -> str:
        """Run to the end; what it printed."""
        return run(*self.command(machine, *words), seconds=seconds)

    def start(self, machine: str, log: str, *words: str) -> subprocess.Popen[bytes]:
        with (self._folder / log).open("ab") as stream:
            process = subprocess.Popen(self.command(machine, *words), stdout=stream, stderr=stream)
        self._processes.append(process)
        return process

    def lockgate(self, machine: str, log: str, *words: str) -> subprocess.Popen[bytes]:
        """Start a command of ours."""
        return self.start(machine, log, sys.executable, "-m", "lockgate", *words)

    def wait_for(self, log: str, text: str, seconds: float = 20, times: int = 1) -> None:
        """Until a log says something so many times."""
        deadline = time.monotonic() + seconds
        path = self._folder / log
        while path.read_text(errors="replace").count(text) < times:
            if time.monotonic() > deadline:
                pytest.fail(f"{log} does not say {text!r}: {path.read_text(errors='replace')}")
            time.sleep(0.02)

    def sends(self, machine: str, address: str) -> bool:
        """Whether a packet to an address finds a route."""
        found = subprocess.run(
            self.command(machine, "ip", "route", "get", address), check=False, capture_output=True, timeout=10
        )
        return found.returncode == 0

    @contextlib.contextmanager
    def capture(self, machine: str) -> Iterator[list[tuple[int, int, bool, bool, int]]]:
        """Fills the list, when the block ends, with what came in: ports, SYN, ACK, how often."""
        found: list[tuple[int, int, bool, bool, int]] = []
        process = subprocess.Popen(self.command(machine, sys.executable, "-c", _CAPTURE), stdout=subprocess.PIPE)
        self._processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"capturing\n"
        try:
            yield found
        finally:
            process.send_signal(signal.SIGTERM)
            said, _ = process.communicate(timeout=10)
            found += [tuple(one) for one in json.loads(said)]


def run(*words: str, seconds: float = 60) -> str:
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=seconds)
    if done.returncode:
        pytest.fail(f"{' '.join(words)}: {done.stdout}{done.stderr}")
    return done.stdout


@contextlib.contextmanager
def namespaces(folder: Path) -> Iterator[Namespaces]:
    """Skips where this machine lets nobody make them."""
    if os.geteuid() or not shutil.which("iptables") or not shutil.which("ip"):
        pytest.skip("network namespaces need root, ip and iptables")
    tried = f"lg{os.getpid()}-try"
    if subprocess.run(["ip", "netns", "add", tried], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody make network namespaces")
    subprocess.run(["ip", "netns", "del", tried], check=False)
    made = Namespaces(folder)
    try:
        made.make()
        yield made
    finally:
        made.remove()
