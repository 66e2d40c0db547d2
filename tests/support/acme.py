"""Debian's pebble, an ACME server for tests, with a DNS server for which every name is this machine."""

from __future__ import annotations

import contextlib
import json
import ssl
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.support.certificates import Authority
from tests.support.peers import free_port
from tests.support.servers import found, process


class Pebble:
    """One pebble, which proves names at `tls_port`; it forgets everything when it stops."""

    def __init__(self, folder: Path, tls_port: int, **settings: object) -> None:
        """`settings` are further members of its configuration."""
        folder.mkdir()
        self._folder = folder
        authority = Authority(folder)
        self.ca_file = authority.cafile  # of its own certificate
        self._port, self._management_port = free_port(), free_port()
        self.directory = f"https://127.0.0.1:{self._port}/dir"
        self.log = folder / "pebble.log"
        self._config = folder / "pebble.json"
        certfile, keyfile = authority.issue("pebble", "127.0.0.1")
        said: Mapping[str, object] = {
            "listenAddress": f"127.0.0.1:{self._port}",
            "managementListenAddress": f"127.0.0.1:{self._management_port}",
            "certificate": str(certfile),
            "privateKey": str(keyfile),
            "httpPort": free_port(),
            "tlsPort": tls_port,
            **settings,
        }
        self._config.write_text(json.dumps({"pebble": said}))

    @contextlib.contextmanager
    def running(self) -> Iterator[ssl.SSLContext]:
        """Give what trusts the certificates of this run."""
        dns, management = free_port(), free_port()
        names = [found("pebble-challtestsrv"), "-defaultIPv4", "127.0.0.1", "-defaultIPv6", "", "-dns01",
                 f"127.0.0.1:{dns}", "-http01", "", "-https01", "", "-tlsalpn01", "",
                 "-management", f"127.0.0.1:{management}"]  # fmt: skip
        pebble = [found("pebble"), "-strict", "-config", str(self._config), "-dnsserver", f"127.0.0.1:{dns}"]
        # it would wait up to 15 s before it proves a name, and refuse one nonce in twenty, often twice
        quick = {"PEBBLE_VA_SLEEPTIME": "2", "PEBBLE_WFE_NONCEREJECT": "0", "PEBBLE_AUTHZREUSE": "0"}
        with (
            process(names, management, self._folder / "dns.log"),
            process(pebble, self._management_port, self.log, quick),
        ):
            url = f"https://127.0.0.1:{self._management_port}/roots/0"
            with urllib.request.urlopen(url, context=ssl.create_default_context(cafile=self.ca_file)) as root:
                yield ssl.create_default_context(cadata=root.read().decode())
