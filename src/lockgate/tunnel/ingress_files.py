"""Ingress rules as they are written: by an edge that pushes them (JSON), in cloudflared's config.yml, in lockgate.toml.

The three have the same keys; durations are spelled as each of them does.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lockgate.config.errors import ConfigError, did_you_mean, raise_all
from lockgate.config.model import ConnectorConfig
from lockgate.tunnel.ingress import (
    NOTHING,
    REQUEST_KEYS,
    WARP_KEYS,
    Access,
    Ingress,
    Key,
    OriginRequest,
    Rule,
    WarpRouting,
)
from lockgate.tunnel.services import ACCEPTED as SERVICES
from lockgate.tunnel.services import BadService, Service

log = logging.getLogger(__name__)

PATTERN_CHARACTERS: Final = 1000  # of a path's regular expression
_PATTERN_MEMORY: Final = 1 << 20  # bytes that RE2 may use for one
_LONGEST_SECONDS: Final = 366 * 86_400


class _Bad(Exception):
    """A value that cannot be used; the text says why, if there is more to say."""


_GO_DURATION: Final = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h))+")
_GO_PART: Final = re.compile(r"([0-9.]+)(ms|s|m|h)")
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def _spelled_seconds(value: object) -> float:
    if not isinstance(value, str) or not _GO_DURATION.fullmatch(value):
        raise _Bad
    return sum(float(number) * _UNITS[unit] for number, unit in _GO_PART.findall(value))


def _whole_seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _Bad
    return float(value)


def _either_seconds(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return _spelled_seconds(value)


@dataclass(frozen=True, slots=True)
class _Dialect:
    seconds: Callable[[object], float]
    seconds_accepted: str
    snake: bool = False  # keys as no_tls_verify in place of noTLSVerify
    strict: bool = True  # whether an unknown key is a mistake


_JSON: Final = _Dialect(_whole_seconds, "whole seconds, as 30", strict=False)
_YAML: Final = _Dialect(_spelled_seconds, "a duration with its unit, as 30s or 1m30s")
_TOML: Final = _Dialect(_either_seconds, 'a duration, as "30s", "1m30s" or seconds', snake=True)


_ACCEPTED: Final = {
    "count": "0 to 1000000000",
    "bool": "true or false",
    "text": "text in one line",
    "access": "required, teamName (letters, digits and -) and audTag (a list)",
}

Lines = Callable[[tuple[str | int, ...]], int | None]  # where a key stands, for messages


def configured(config: ConnectorConfig) -> Ingress | None:
    """Give the rules of [connector], None where it has none: then the edge pushes them. Raises ConfigError."""
    if config.cloudflared_config is not None:
        ingress, rest = from_yaml(config.cloudflared_config)
        if rest:
            log.info("%s: only the rules are used, not %s", config.cloudflared_config, ", ".join(map(str, rest)))
        return ingress
    if not config.ingress:
        return None
    place = config.place
    return from_toml(config.ingress, *(place if place is not None else (None, None)))


def from_json(said: object) -> Ingress:
    """Read the `config` of a push: unknown keys are passed over, as cloudflared does. Raises ConfigError."""
    return _Reading(_JSON).config(said)


def from_yaml(path: Path) -> tuple[Ingress, Mapping[str, Any]]:
    """Read cloudflared's config.yml; gives the rules and the other keys of the file, which nobody has checked.

    Raises ConfigError, with every mistake and its line.
    """
    import yaml  # a connector that has its rules elsewhere does without

    try:
        text = path.read_text("utf-8")
        tree = yaml.compose(text, yaml.SafeLoader)
        said = yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", path=path, accepted="a readable file") from None
    except UnicodeDecodeError:
        raise ConfigError("is not UTF-8 text", path=path, accepted="UTF-8") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise ConfigError(f"is not valid YAML: {problem}", path=path, line=mark.line + 1 if mark else None) from None

    def line(where: tuple[str | int, ...]) -> int | None:
        node, found = tree, None
        for step in where:
            value = node.value if node is not None else ()
            if isinstance(step, int) and isinstance(node, yaml.SequenceNode) and step < len(value):
                node = value[step]
            elif isinstance(node, yaml.MappingNode):
                node = next((below for key, below in value if key.value == step), None)
            else:
                break
            if node is None:
                break
            found = node.start_mark.line + 1
        return found

    if not isinstance(said, dict):
        raise ConfigError("holds no keys", path=path, accepted="tunnel, credentials-file, ingress, …")
    rest = {key: value for key, value in said.items() if key not in ("ingress", "originRequest", "warp-routing")}
    rules = {key: said[key] for key in said if key not in rest}
    return _Reading(_YAML, path, line).config(rules), rest


def from_toml(rules: Sequence[Mapping[str, object]], path: Path | None = None, line: int | None = None) -> Ingress:
    """Read the tables `[[connector.ingress]]`; `line` is that of the first. Raises ConfigError."""
    return _Reading(_TOML, path, lambda _where: line).config({"ingress": [dict(rule) for rule in rules]})


class _Reading:
    def __init__(self, dialect: _Dialect, path: Path | None = None, lines: Lines = lambda _where: None) -> None:
        self._dialect = dialect
        self._path = path
        self._lines = lines
        self._errors: list[ConfigError] = []

    def config(self, said: object) -> Ingress:
        if not isinstance(said, dict):
            self._wrong((), "config", "is no object", "ingress, originRequest and warp-routing")
            raise_all(self._errors)
            return NOTHING
        defaults = self._keys(("originRequest",), "originRequest", said.get("originRequest"), REQUEST_KEYS)
        warp = self._keys(("warp-routing",), "warp-routing", said.get("warp-routing"), WARP_KEYS)
        rules = said.get("ingress")
        if not isinstance(rules, list) or not rules:
            self._wrong(("ingress",), "ingress", "has no rules", "a list of rules, the last for everything else")
            rules = []
        read = [self._rule(number, rule, defaults, number == len(rules)) for number, rule in enumerate(rules, 1)]
        raise_all(self._errors)
        return Ingress(tuple(rule for rule in read if rule is not None), WarpRouting(**warp))

    def _rule(self, number: int, said: object, defaults: dict[str, Any], is_last: bool) -> Rule | None:
        where, name = ("ingress", number - 1), f"ingress rule {number}"
        request_key = "origin_request" if self._dialect.snake else "originRequest"
        known = ("hostname", "path", "service", request_key)
        if not isinstance(said, dict):
            self._wrong(where, name, f"{said!r} is no rule", ", ".join(known))
            return None
        self._unknown(where, name, said, known)
        before = len(self._errors)
        hostname = self._hostname(where, name, said.get("hostname"))
        path, found = self._pattern(where, name, said.get("path"))
        service = self._service(where, name, said.get("service"))
        request = self._keys(
            (*where, request_key), f"{name}: {request_key}", said.get(request_key), REQUEST_KEYS, defaults
        )
        matches_all = not hostname and not path
        if is_last and not matches_all:
            self._wrong(where, name, "is the last one and does not match everything", "no hostname (or *) and no path")
        elif matches_all and not is_last:
            self._wrong(where, name, "matches everything, and no rule behind it can", "a hostname or a path")
        if service is None or len(self._errors) > before:
            return None
        return Rule(number, hostname, path, service, OriginRequest(**request), found)

    def _hostname(self, where: tuple[str | int, ...], name: str, said: object) -> str:
        if said is None or said == "" or said == "*":
            return ""
        accepted = "a host name as a.example or *.example, without a port"
        bare = said.removeprefix("*.") if isinstance(said, str) else ""
        try:
            encoded = bare.encode("ascii" if bare.isascii() else "idna").decode("ascii").lower()
        except UnicodeError:
            encoded = ""
        if not isinstance(said, str) or not _HOST.fullmatch(encoded):
            self._wrong((*where, "hostname"), f"{name}: hostname", f"{said!r} is no host name", accepted)
            return "?"
        return f"*.{encoded}" if said.startswith("*.") else encoded

    def _pattern(
        self, where: tuple[str | int, ...], name: str, said: object
    ) -> tuple[str, Callable[[str], object] | None]:
        if said is None or said == "":
            return "", None
        try:
            if not isinstance(said, str):
                raise _Bad("is no text")
            return said, _compiled(said)
        except _Bad as bad:
            accepted = f"a regular expression of RE2, as ^/api/, of at most {PATTERN_CHARACTERS} characters"
            self._wrong((*where, "path"), f"{name}: path", f"{said!r:.200} {bad}", accepted)
            return "?", None

    def _service(self, where: tuple[str | int, ...], name: str, said: object) -> Service | None:
        try:
            if not isinstance(said, str) or not said:
                raise BadService("is missing" if said in (None, "") else "is no text")
            return Service.parse(said)
        except BadService as bad:
            said = "" if said in (None, "") else f"{said!r} "
            self._wrong((*where, "service"), f"{name}: service", f"{said}{bad}", SERVICES)
            return None

    def _keys(
        self,
        where: tuple[str | int, ...],
        name: str,
        said: object,
        keys: Sequence[Key],
        defaults: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        read = dict(defaults or {})
        if said is None:
            return read
        if not isinstance(said, dict):
            self._wrong(where, name, f"{said!r} is no object", ", ".join(self._name(key) for key in keys))
            return read
        self._unknown(where, name, said, [self._name(key) for key in keys])
        for key in keys:
            key_name = self._name(key)
            if said.get(key_name) is None:
                continue
            try:
                value = self._value(key.kind, said[key_name])
            except _Bad:
                seconds = self._dialect.seconds_accepted if key.kind == "seconds" else ""
                accepted = key.accepted or seconds or _ACCEPTED[key.kind]
                problem = f"{said[key_name]!r} cannot be used"
                self._wrong((*where, key_name), f"{name}.{key_name}", problem, accepted)
                continue
            if key.kind == "wished" and value:
                log.warning("%s: %s is passed over; accepted: %s", name, key_name, key.accepted)
            elif key.kind not in ("never", "wished", "passed over"):
                read[key.target] = value
        return read

    def _value(self, kind: str, said: object) -> object:
        if kind == "seconds":
            seconds = self._dialect.seconds(said)
            if not 0 <= seconds <= _LONGEST_SECONDS:
                raise _Bad
            return seconds
        if kind == "count":
            if isinstance(said, bool) or not isinstance(said, int) or not 0 <= said <= 1_000_000_000:
                raise _Bad
        elif kind == "bool":
            if not isinstance(said, bool):
                raise _Bad
        elif kind == "text":
            if not isinstance(said, str) or any(character < " " for character in said):
                raise _Bad
        elif kind == "access":
            return self._access(said)
        elif said and (kind == "never" or (kind == "wished" and self._dialect.strict)):
            raise _Bad
        return said

    def _access(self, said: object) -> Access:
        names = ("required", "team_name", "aud_tag") if self._dialect.snake else ("required", "teamName", "audTag")
        if not isinstance(said, dict) or said.keys() - set(names):
            raise _Bad
        required, team, tags = (said.get(name) for name in names)
        tags = tags or []
        if not isinstance(required or False, bool) or not isinstance(team or "", str) or not isinstance(tags, list):
            raise _Bad
        if not all(isinstance(tag, str) for tag in tags) or (required and not (team and tags)):
            raise _Bad
        if team and not _TEAM.fullmatch(team):  # a part of the address that keys are fetched from
            raise _Bad
        return Access(required=bool(required), team_name=str(team or ""), audiences=tuple(tags))

    def _name(self, key: Key) -> str:
        return key.target if self._dialect.snake else key.name

    def _unknown(
        self, where: tuple[str | int, ...], name: str, said: Mapping[object, object], known: Sequence[str]
    ) -> None:
        for key in said:
            if key not in known:
                if not self._dialect.strict:
                    log.debug("%s: key %r is passed over", name, key)
                    continue
                problem = f"{key!r} is no key of it.{did_you_mean(str(key), known)}"
                self._wrong((*where, str(key)), name, problem, ", ".join(known))

    def _wrong(self, where: tuple[str | int, ...], name: str, problem: str, accepted: str) -> None:
        line = self._lines(where)
        self._errors.append(ConfigError(problem, path=self._path, line=line, key=name, accepted=accepted))


_TEAM: Final = re.compile(r"[A-Za-z0-9-]{1,63}")
_HOST: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")


def _compiled(pattern: str) -> Callable[[str], object]:
    """Give what looks for an expression in a text, in a time linear in its length: paths come from anybody."""
    if len(pattern) > PATTERN_CHARACTERS:
        raise _Bad("is too long")
    try:
        import re2
    except ImportError:
        raise _Bad("needs the library google-re2, which is not installed") from None
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _PATTERN_MEMORY
    try:
        search: Callable[[str], object] = re2.compile(pattern, options).search
    except (re2.error, UnicodeError) as error:
        detail = error.args[0] if error.args else ""
        text = detail.decode("utf-8", "replace") if isinstance(detail, bytes) else str(detail)
        raise _Bad(f"is no expression that can be used: {text}") from None
    return search
