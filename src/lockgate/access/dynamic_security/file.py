"""The JSON file of dynamic security, in Mosquitto's form."""

from __future__ import annotations

import base64
import binascii
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from lockgate.access import hashes
from lockgate.access.dynamic_security.model import (
    ACL_PRIORITY,
    ACL_TYPES,
    DEFAULT_ACCESS,
    LIST_PRIORITY,
    Acl,
    Client,
    Group,
    Reference,
    Role,
    State,
    acl_type_of,
    by_priority,
    clamped,
    sorted_acls,
)
from lockgate.access.hashes import PasswordHash, Pbkdf2
from lockgate.config.errors import ConfigError

log = logging.getLogger(__name__)

_T = TypeVar("_T", Client, Group, Role)
_KINDS: Final = {str: "a text", bool: "true or false", int: "a whole number", list: "a list", dict: "an object"}


class _Mistake(Exception):
    """What is wrong with a member: `where` it stands, the problem, and what is expected."""

    def __init__(self, where: str, problem: str, accepted: str) -> None:
        super().__init__(problem)
        self.where = where
        self.accepted = accepted


class _Members:
    """An object of the file, taken apart member by member; letter case is ignored, as Mosquitto does."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise _Mistake(where, "is not an object", "an object {…}")
        self.where = where
        self.rest: dict[str, Any] = dict(value)

    def take(self, name: str, kind: type, default: Any = None) -> Any:
        """Take a member out; `default` where it is absent or null."""
        key = name if name in self.rest else next((one for one in self.rest if one.lower() == name.lower()), None)
        value = self.rest.pop(key) if key is not None else None
        if value is None:
            return default
        if kind is int and isinstance(value, float) and value.is_integer():
            value = int(value)  # cJSON knows no other numbers
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise _Mistake(self.place(name), f"is {json.dumps(value)[:60]}", _KINDS[kind])
        return value

    def need(self, name: str, kind: type) -> Any:
        """Take a member out that must be there."""
        value = self.take(name, kind)
        if value is None:
            raise _Mistake(self.place(name), "is missing", _KINDS[kind])
        return value

    def objects(self, name: str) -> list[_Members]:
        """Take out a list of objects."""
        values = self.take(name, list, [])
        return [_Members(value, f"{self.place(name)}[{index}]") for index, value in enumerate(values)]

    def place(self, name: str) -> str:
        return f"{self.where}.{name}" if self.where else name


def parse(data: bytes, path: Path) -> State:
    """Read the file; raises ConfigError for the first thing that is wrong: its line and column, or its member."""
    try:
        text = data.decode("utf-8")
        value = json.loads(text, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError("is not UTF-8 text", path=path, line=line, accepted="JSON in UTF-8") from None
    except json.JSONDecodeError as error:
        problem = f"is damaged at column {error.colno}: {error.msg}"
        raise ConfigError(problem, path=path, line=error.lineno, accepted="JSON as Mosquitto writes it") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"is damaged: {error}", path=path, accepted="JSON as Mosquitto writes it") from None
    try:
        return _state(_Members(value, ""), path)
    except _Mistake as mistake:
        raise ConfigError(str(mistake), path=path, key=mistake.where or None, accepted=mistake.accepted) from None


def dump(state: State) -> bytes:
    """Give the file's content."""
    content: dict[str, Any] = {
        "defaultACLAccess": {name: state.default_access[name] for name in DEFAULT_ACCESS},
        "changeIndex": state.change_index,
        "clients": [_client_object(state.clients[name]) for name in sorted(state.clients)],
        "groups": [_group_object(state.groups[name]) for name in sorted(state.groups)],
        "roles": [_role_object(state.roles[name]) for name in sorted(state.roles)],
    }
    if state.anonymous_group is not None:
        content["anonymousGroup"] = state.anonymous_group
    return (json.dumps({**content, **state.extra}, indent="\t", ensure_ascii=False) + "\n").encode()


def described(thing: Client | Group | Role) -> dict[str, str]:
    """Give what people wrote about it, as members."""
    texts = {"textname": thing.text_name, "textdescription": thing.text_description}
    return {name: text for name, text in texts.items() if text is not None}


def reference_objects(references: Iterable[Reference], member: str) -> list[dict[str, Any]]:
    """Give a list of names; a priority nobody set is left out."""
    return [
        {member: reference.name, **({"priority": reference.priority} if reference.priority != LIST_PRIORITY else {})}
        for reference in references
    ]


def acl_object(acl: Acl) -> dict[str, Any]:
    """Give an ACL as the file and the answers have it."""
    return {"acltype": acl.acl_type, "topic": acl.topic, "priority": acl.priority, "allow": acl.allow, **acl.extra}


def stored_password(hashed: PasswordHash) -> dict[str, Any]:
    """Give the members of a client that hold a new password."""
    return {"encoded_password": str(hashed)}


def _client_object(client: Client) -> dict[str, Any]:
    return {
        "username": client.name,
        **({"clientid": client.client_id} if client.client_id is not None else {}),
        **described(client),
        **({"disabled": True} if client.disabled else {}),
        "roles": reference_objects(client.roles, "rolename"),
        **client.stored_password,
        **client.extra,
    }


def _group_object(group: Group) -> dict[str, Any]:
    members = [Reference(name, group.clients[name]) for name in sorted(group.clients)]
    return {
        "groupname": group.name,
        **described(group),
        "roles": reference_objects(group.roles, "rolename"),
        "clients": reference_objects(members, "username"),
        **group.extra,
    }


def _role_object(role: Role) -> dict[str, Any]:
    return {
        "rolename": role.name,
        **described(role),
        "allowwildcardsubs": role.allow_wildcard_subs,
        "acls": [acl_object(acl) for acl in role.acls],
        **role.extra,
    }


def _state(top: _Members, path: Path) -> State:
    given = _Members(top.take("defaultACLAccess", dict, {}), "defaultACLAccess")
    default_access = {name: given.take(name, bool, default) for name, default in DEFAULT_ACCESS.items()}
    change_index = top.take("changeIndex", int, 0)
    roles = _named(top.objects("roles"), "rolename", _role)

    def known(references: tuple[Reference, ...], names: Mapping[str, object], owner: str) -> tuple[Reference, ...]:
        # Mosquitto has left such behind; they give nobody anything, and must not when the name is used again
        for reference in references:
            if reference.name not in names:
                log.warning("%s: %s refers to %r, which is not there; it is left out", path, owner, reference.name)
        return tuple(reference for reference in references if reference.name in names)

    def client(members: _Members, name: str) -> Client:
        password, stored = _password(members)
        client_id, text_name, text_description = (
            members.take(member, str) for member in ("clientid", "textname", "textdescription")
        )
        disabled = members.take("disabled", bool, False)
        own = known(_references(members, "roles", "rolename"), roles, f"client {name!r}")
        return Client(name, client_id, text_name, text_description, disabled, own, password, stored, members.rest)

    clients = _named(top.objects("clients"), "username", client)

    def group(members: _Members, name: str) -> Group:
        text_name, text_description = members.take("textname", str), members.take("textdescription", str)
        own = known(_references(members, "roles", "rolename"), roles, f"group {name!r}")
        who = known(_references(members, "clients", "username"), clients, f"group {name!r}")
        priorities = {reference.name: reference.priority for reference in who}
        return Group(name, text_name, text_description, own, priorities, members.rest)

    groups = _named(top.objects("groups"), "groupname", group)
    anonymous_group = top.take("anonymousGroup", str)
    if anonymous_group is not None and anonymous_group not in groups:
        raise _Mistake("anonymousGroup", f"names the group {anonymous_group!r}, which is not there", "a group")
    return State(default_access, clients, groups, roles, anonymous_group, change_index, top.rest)


def _named(objects: list[_Members], member: str, make: Callable[[_Members, str], _T]) -> dict[str, _T]:
    made: dict[str, _T] = {}
    for members in objects:
        name = members.need(member, str)
        if name in made:
            raise _Mistake(members.place(member), f"{name!r} stands there twice", "each name once")
        made[name] = make(members, name)
    return made


def _role(members: _Members, name: str) -> Role:
    acls = []
    for acl in members.objects("acls"):
        word = acl.need("acltype", str)
        acl_type = acl_type_of(word)
        if acl_type is None:
            raise _Mistake(acl.place("acltype"), f"is {word!r}", ", ".join(ACL_TYPES))
        topic, allow = acl.need("topic", str), acl.take("allow", bool, False)
        acls.append(Acl(acl_type, topic, allow, clamped(acl.take("priority", int, ACL_PRIORITY)), acl.rest))
    text_name, text_description = members.take("textname", str), members.take("textdescription", str)
    wildcards = members.take("allowwildcardsubs", bool, True)
    return Role(name, sorted_acls(acls), text_name, text_description, wildcards, members.rest)


def _references(members: _Members, name: str, member: str) -> tuple[Reference, ...]:
    found: dict[str, Reference] = {}
    for one in members.objects(name):
        called = one.need(member, str)
        found.setdefault(called, Reference(called, clamped(one.take("priority", int, LIST_PRIORITY))))
    return by_priority(list(found.values()))


def _password(members: _Members) -> tuple[PasswordHash | None, dict[str, Any]]:
    """Read a client's password in its new form or in that of 2.0, and give the members as they are to be written."""
    encoded = members.take("encoded_password", str)
    if encoded is not None:
        try:
            return hashes.parse(encoded), {"encoded_password": encoded}
        except ValueError as error:
            raise _Mistake(members.place("encoded_password"), str(error), hashes.ACCEPTED) from None
    digest, salt = members.take("password", str), members.take("salt", str)
    rounds = members.take("iterations", int)
    if digest is None or salt is None or rounds is None:
        return None, {}  # a client that cannot log in yet
    try:
        if rounds < 1:
            raise ValueError(f"{rounds} iterations")
        hashed = Pbkdf2(rounds, base64.b64decode(salt, validate=True), base64.b64decode(digest, validate=True))
        hashes.parse(str(hashed))
    except (ValueError, binascii.Error) as error:
        raise _Mistake(members.place("password"), f"is damaged: {error}", "base64 of salt and 64 bytes") from None
    return hashed, {"password": digest, "salt": salt, "iterations": rounds}


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")
