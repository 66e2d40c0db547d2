"""What the how-to page of the edge shows is read as a user's would be."""

from __future__ import annotations

import re
from pathlib import Path

from lockgate.access import hashes
from lockgate.config import lockgate_toml
from lockgate.tunnel import tunnels
from lockgate.tunnel.ingress_files import configured
from lockgate.tunnel.services import AllowList

PAGE = (Path(__file__).parents[3] / "docs" / "how-to" / "edge-access.md").read_text()


def shown(kind: str) -> str:
    (text,) = re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.M | re.S)
    return str(text)


def test_the_tunnels_of_the_page_are_good(tmp_path: Path) -> None:
    (tmp_path / "passwords").write_text(f"anna:{hashes.make(b'right', 'sha512')}\n")
    found = tunnels.parse(shown("json"), tmp_path / "tunnels.json")
    (tunnel,) = found
    assert tunnel.configuration is not None
    assert len(found.keys) == 1
    host = found.host("home.example.org")
    assert host is not None
    assert host[1].devices is not None
    assert host[1].devices.watches_publish


def test_the_connector_of_the_page_is_good(tmp_path: Path) -> None:
    file = tmp_path / "lockgate.toml"
    file.write_text(shown("toml"))
    config = lockgate_toml.load(file, {}).connector
    ingress = configured(config)
    assert ingress is not None
    allow = AllowList.parse(config.allow)
    assert all(allow.permits_service(rule.service) for rule in ingress.rules)
