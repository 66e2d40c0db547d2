"""A machine that a test makes up: what the doctor looks at below a folder of its own."""

from __future__ import annotations

import argparse
import contextlib
import http.server
import json
import socketserver
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from lockgate.cli.common import load_config
from lockgate.doctor.case import Case
from lockgate.doctor.machine import Machine


class MadeUp(Machine):
    """Files of /proc, /sys and others are those that were written below `root`."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, {})
        (root / "proc/net").mkdir(parents=True, exist_ok=True)

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def make_container(self) -> None:
        self.write(".dockerenv", "")

    def mount(self, *mounts: tuple[str, str], source: str = "/") -> None:
        """Mount file systems: where, and of which kind; `source` is the last one's."""
        lines = [f"{36 + at} 35 98:0 / {point} rw,noatime - {kind} dev rw" for at, (point, kind) in enumerate(mounts)]
        lines[-1] = lines[-1].replace(" / ", f" {source} ", 1) if source != "/" else lines[-1]
        self.write("proc/self/mountinfo", "\n".join(lines) + "\n")

    def listen(self, port: int, address: str, inode: int, pid: int, name: str, *command: str) -> None:
        """Have a process listen, on an IPv4 address."""
        hexadecimal = bytes(map(int, address.split(".")))[::-1].hex().upper()
        row = f"   0: {hexadecimal}:{port:04X} 00000000:0000 0A 0:0 00:0 0 0 0 {inode} 1\n"
        self.write("proc/net/tcp", f"{self.text('proc/net/tcp') or 'head'}\n{row}")
        if pid:
            self.write(f"proc/{pid}/comm", f"{name}\n")
            self.write(f"proc/{pid}/cmdline", "\0".join((name, *command)) + "\0")
            folder = self.root / f"proc/{pid}/fd"
            folder.mkdir(exist_ok=True)
            (folder / str(inode)).symlink_to(f"socket:[{inode}]")


def case_of(folder: Path, *lines: str, toml: str = "") -> Case:
    """A configuration of these lines, on a machine that has nothing yet."""
    conf = folder / "mosquitto.conf"
    conf.write_text("".join(f"{line}\n" for line in lines))
    if toml:
        (folder / "lockgate.toml").write_text(toml)
    machine = MadeUp(folder / "machine")
    return Case(conf, load_config(argparse.Namespace(config=conf)), machine, conf)


@contextlib.contextmanager
def docker_engine(path: Path, containers: Sequence[dict[str, object]]) -> Iterator[None]:
    """Docker's socket, with these containers behind it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = json.dumps(list(containers)).encode()
            self.send_response(200 if self.path == "/containers/json" else 404)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def address_string(self) -> str:
            return "unix"

        def log_message(self, *_: object) -> None: ...

    path.parent.mkdir(parents=True, exist_ok=True)
    with socketserver.ThreadingUnixStreamServer(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            path.unlink()
