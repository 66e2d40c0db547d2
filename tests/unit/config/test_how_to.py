"""The configurations shown in the how-to pages are read as a user's would be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lockgate.config import lockgate_toml
from lockgate.config.mosquitto_conf import read_mosquitto_conf

PAGES = sorted((Path(__file__).parents[3] / "docs" / "how-to").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_configurations_of_the_page_are_good(page: Path, tmp_path: Path) -> None:
    shown = re.findall(r"^```(conf|toml)\n(.*?)^```", page.read_text(), re.M | re.S)
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
    assert shown
