"""The page docs/reference/configuration.md, made by `python -m lockgate.config.reference` from the parsers' tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

from lockgate.config import bridge_options
from lockgate.config.lockgate_toml import SECTIONS
from lockgate.config.model import ConnectionConfig
from lockgate.config.mosquitto_conf import NOT_YET, OPTIONS
from lockgate.config.sections import Key, Section
from lockgate.config.templates import Template
from lockgate.config.values import spell_duration, spell_size

_TOML = """\
# Configuration

<!-- Made by `make docs` from the tables of the parsers; edit those. -->

Two files. What mosquitto.conf can say is said only there; everything else stands in lockgate.toml.

## lockgate.toml

`lockgate` reads `./lockgate.toml`, else `/etc/lockgate/lockgate.toml`, else runs with the defaults below; `-c FILE`
names another. `lockgate check` reports all mistakes at once. An unknown key is a mistake.

Each key can be overridden by the environment variable `LOCKGATE_<SECTION>_<KEY>`, as `LOCKGATE_GATEWAY_ID` or, for a
section with a name that is in the file, `LOCKGATE_SINKS_CLOUD_URL` (`-` in a name becomes `_`).
"""

_MOSQUITTO = """
## mosquitto.conf

Mosquitto's syntax: one option per line, name and value parted by spaces, `#` only at the start of a line. A listener
option belongs to the `listener` line above it. Without any `listener`, port 1883 on this machine alone is opened and
everybody is let in; with one, `allow_anonymous` is false unless it is set. `include_dir DIR` reads `DIR/*.conf` at its
place.

| option | values | default | meaning |
|---|---|---|---|
"""

_BRIDGES = """
### Bridges

`connection NAME` begins a bridge; the options below belong to the `connection` line above them.

| option | values | default | meaning |
|---|---|---|---|
"""

_NOT_YET = """
Options that Mosquitto knows and this broker does not honour yet are errors that say so, rather than promises that are
not kept:
"""


def page() -> str:
    return "".join(_page())


def _page() -> Iterator[str]:
    yield _TOML
    for section in _with_inner(SECTIONS):
        name = f"[{section.name}.NAME]" if section.named else f"[{section.name}]"
        kind = f' with `type = "{section.variant}"`' if section.variant else ""
        yield f"\n### `{name}`{kind}\n\n{section.help}\n\n| key | values | default | meaning |\n|---|---|---|---|\n"
        for key in section.keys:
            yield f"| `{key.name}` | {_cell(key.kind.accepted)} | {_default(section, key)} | {_cell(key.help)} |\n"
    yield _MOSQUITTO
    for option_name, option in OPTIONS.items():
        yield f"| `{option_name}` | {option.values} | {option.default} | {option.help} |\n"
    yield _BRIDGES
    for option_name, (_, values, default, help_) in bridge_options.OPTIONS.items():
        yield f"| `{option_name}` | {values} | {default} | {help_} |\n"
    yield _NOT_YET + "\n" + ", ".join(f"`{name}`" for name in sorted(NOT_YET)) + ".\n"


def _with_inner(sections: Iterable[Section]) -> Iterator[Section]:
    for section in sections:
        yield section
        yield from _with_inner(section.inner)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _default(section: Section, key: Key) -> str:
    if key.required:
        return "required"
    if key.default:
        return key.default
    if section.variant and key.target == "client_id":
        return "`lockgate-source-NAME`" if section.name == "sources" else "`lockgate-NAME`"
    for model in (section.model, ConnectionConfig):
        for one in dataclasses.fields(model):
            if one.name == key.target and one.default is not dataclasses.MISSING:
                if one.name == "client_id" or (one.name == "url" and model is not ConnectionConfig):
                    continue
                return f"`{_spell(one.default, key)}`"
    return f"`{section.model().connection.client_id}`"


def _spell(value: object, key: Key) -> str:
    if key.target.endswith("_bytes") and isinstance(value, int):
        return spell_size(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return spell_duration(value) if key.target.endswith("_seconds") else f"{value:g}"
    if isinstance(value, tuple):
        return "[" + ", ".join(f'"{one}"' for one in value) + "]"
    return f'"{value}"' if isinstance(value, str | Path | Template) else str(value)


if __name__ == "__main__":
    print(page(), end="")
