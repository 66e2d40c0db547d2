"""Objects of a JSON file, read key by key: every mistake is kept, with the key it stands under."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lockgate.config.errors import ConfigError, did_you_mean
from lockgate.config.values import BadValue, Kind


def read(path: Path, text: str, shared: dict[str, Any] | None = None) -> Table:
    """Give the object a file's text holds. Raises ConfigError where it is none.

    `shared` is for what tables of this file have in common, by a name of their choice.
    """
    try:
        said = json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise ConfigError(f"is not valid JSON: {error.msg}", path=path, line=error.lineno) from None
    except _Twice as error:
        raise ConfigError("stands there twice", path=path, key=str(error), accepted="each key once") from None
    except (ValueError, RecursionError):
        raise ConfigError("is not valid JSON", path=path, accepted="an object") from None
    if not isinstance(said, dict):
        raise ConfigError("holds no JSON object", path=path, accepted="{…}")
    return Table(said, path, "", [], shared if shared is not None else {})


class Table:
    """One object. What is asked for is checked; `done` finds what nobody asked for.

    All tables of a file have the same `errors` and `shared`. `where` is the place of the object, as `tunnels.x.limits`.
    """

    def __init__(
        self, said: Mapping[str, object], path: Path, where: str, errors: list[ConfigError], shared: dict[str, Any]
    ) -> None:
        self.said = said
        self.path = path
        self.where = where
        self.errors = errors
        self.shared = shared
        self._known: list[str] = ["note"]  # for people: JSON has no comments

    def get(self, name: str, kind: Kind, default: object, required: bool = False) -> Any:
        """Give what stands under a key, `default` where it is missing, null or cannot be used."""
        self._known.append(name)
        value = self.said.get(name)
        if value is None:
            if required:
                self.wrong(name, "is missing", kind.accepted)
            return default
        try:
            return kind.read(value)
        except BadValue as bad:
            shown = "its value" if kind.secret else f"{value!r:.200}"
            self.wrong(name, f"{shown} cannot be used" + (f": {bad}" if str(bad) else ""), kind.accepted)
            return default

    def table(self, name: str) -> Table | None:
        """Give the object under a key, None where there is none."""
        self._known.append(name)
        value = self.said.get(name)
        if value is None:
            return None
        return self._below(name, value)

    def tables(self, name: str) -> list[Table]:
        """Give the objects of the list under a key."""
        self._known.append(name)
        value = self.said.get(name)
        if not isinstance(value, list | None):
            self.wrong(name, f"{value!r:.200} is no list", "a list of objects")
        found = (self._below(f"{name}[{n}]", one) for n, one in enumerate(value)) if isinstance(value, list) else ()
        return [one for one in found if one is not None]

    def named(self, name: str) -> dict[str, Table]:
        """Give the objects by the names they have in the object under a key."""
        table = self.table(name)
        if table is None:
            return {}
        table._known.extend(table.said)
        found = ((key, table._below(key, value)) for key, value in table.said.items())
        return {key: one for key, one in found if one is not None}

    def done(self) -> None:
        """Find the keys that nobody asked for."""
        for name in self.said:
            if name not in self._known:
                known = [one for one in self._known if one != "note"]
                self.wrong(name, f"is no key of it.{did_you_mean(name, known)}", ", ".join(known))

    def one_of(self, names: Collection[str]) -> str | None:
        """Give the only key that this object has of `names`."""
        found = [name for name in names if self.said.get(name) is not None]
        if len(found) == 1:
            return found[0]
        problem = f"has {', '.join(found)}" if found else "has none of its keys"
        self.wrong("", problem, f"exactly one of {', '.join(names)}")
        return None

    def wrong(self, name: str, problem: str, accepted: str | None = None) -> None:
        """Keep a mistake; an empty name means the object itself."""
        key = ".".join(part for part in (self.where, name) if part)
        self.errors.append(ConfigError(problem, path=self.path, key=key, accepted=accepted))

    def _below(self, name: str, value: object) -> Table | None:
        if not isinstance(value, dict):
            self.wrong(name, f"{value!r:.200} is no object", "{…}")
            return None
        where = ".".join(part for part in (self.where, name) if part)
        return Table(value, self.path, where, self.errors, self.shared)


class _Twice(Exception):
    pass


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """What stands there twice would count once, and nobody knew which."""
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(next(name for name in names if names.count(name) > 1))
    return table
