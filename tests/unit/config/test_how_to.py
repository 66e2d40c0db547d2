"""The configurations shown in the how-to pages are read as a user's would be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lockgate.config import lockgate_toml
from lockgate.config.mosquitto_conf import read_mosquitto_conf

SHOWN = re.compile(r"^```(conf|toml)\n(.*?)^```", re.M | re.S)
PAGES = sorted(
    page for page in (Path(__file__).parents[3] / "docs" / "how-to").rglob("*.md") if SHOWN.search(page.read_text())
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_configurations_of_the_page_are_good(page: Path, tmp_path: Path) -> None:
    shown = SHOWN.findall(page.read_text())
    together = "".join(text for kind, text in shown if kind == "conf")
    conf = tmp_path / "mosquitto.conf"
    for kind, text in [*shown, ("conf", together)]:
        if kind == "conf":
            conf.write_text(text)
            read_mosquitto_conf(conf)
    toml = tmp_path / "lockgate.toml"
    for kind, text in shown:
        if kind == "toml":
            toml.write_text(text)
            lockgate_toml.load(toml, {})
