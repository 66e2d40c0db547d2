"""The commands of `$CONTROL/dynamic-security/v1`: each takes a State and gives what is answered and the State after it.

Names of commands and members ignore letter case, texts are Mosquitto's. Where Mosquitto 2.0 passed over a value of the
wrong kind, or over a name that is not there, the command fails and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from lockgate.access import hashes
from lockgate.access.dynamic_security.file import acl_object, described, reference_objects, stored_password
from lockgate.access.dynamic_security.model import (
    ACL_PRIORITY,
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
from lockgate.access.hashes import Algorithm
from lockgate.mqtt.errors import MqttError
from lockgate.mqtt.topics import check_topic_filter

T = TypeVar("T")


class CommandError(Exception):
    """Why a command is refused, in the words of the answer."""


@dataclass(frozen=True, slots=True)
class Context:
    """What commands need beyond the State: where a user is connected from, and how passwords are hashed."""

    connected: Callable[[str], list[str]]
    algorithm: Algorithm


Answer = tuple[State, "dict[str, Any] | None"]  # the State after the command, and the answer's data
Command = Callable[[State, "Arguments", Context], Answer]


class Arguments:
    """The members of a command."""

    def __init__(self, members: dict[str, Any]) -> None:
        self._members = {name.lower(): value for name, value in reversed(members.items())}

    def has(self, name: str) -> bool:
        return name in self._members

    def raw(self, name: str) -> Any:
        return self._members.get(name)

    def text(self, name: str, called: str | None = None) -> str | None:
        """Give a text that may be absent."""
        value = self._members.get(name)
        if name in self._members and not (isinstance(value, str) and _is_utf8(value)):
            raise CommandError(f"Invalid/missing {called or name}")
        return value

    def name(self, name: str, called: str) -> str:
        """Give a name that must be there."""
        value = self._members.get(name)
        if not isinstance(value, str) or not value:
            raise CommandError(f"Invalid/missing {name}")
        if not _is_mqtt_text(value):
            raise CommandError(f"{called} not valid UTF-8")
        return value

    def boolean(self, name: str) -> bool | None:
        """Give true or false, None where it is absent."""
        value = self._members.get(name)
        if name in self._members and not isinstance(value, bool):
            raise CommandError(f"Invalid/missing {name}")
        return value

    def number(self, name: str, default: int) -> int:
        """Give a whole number."""
        value = self._members.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise CommandError(f"Invalid/missing {name}")
        return int(max(-(2**31), min(2**31 - 1, value)))

    def priority(self, default: int) -> int:
        return clamped(self.number("priority", default))

    def references(self, name: str, member: str, known: Mapping[str, object], missing: str) -> list[Reference] | None:
        """Give a list of names with their priorities, None where it is absent; of one name the first counts."""
        if not self.has(name):
            return None
        values = self._members[name]
        found: dict[str, Reference] = {}
        for value in values if isinstance(values, list) else [None]:
            one = Arguments(value) if isinstance(value, dict) else Arguments({})
            called = one.raw(member)
            if not isinstance(called, str):
                raise CommandError(f"'{name}' not an array or missing/invalid {member}")
            if called not in known:
                raise CommandError(missing)
            found.setdefault(called, Reference(called, one.priority(LIST_PRIORITY)))
        return list(found.values())


# --- default access --------------------------------------------------------------------------------------------------


def get_default_access(state: State, _arguments: Arguments, _context: Context) -> Answer:
    return state, {"acls": [{"acltype": name, "allow": state.default_access[name]} for name in DEFAULT_ACCESS]}


def set_default_access(state: State, arguments: Arguments, _context: Context) -> Answer:
    acls = arguments.raw("acls")
    if not isinstance(acls, list):
        raise CommandError("Missing/invalid actions array")
    names = {name.lower(): name for name in DEFAULT_ACCESS}
    access = dict(state.default_access)
    for value in acls:
        one = Arguments(value) if isinstance(value, dict) else Arguments({})
        word = one.raw("acltype")
        if not isinstance(word, str):
            raise CommandError("Invalid/missing acltype")
        if word.lower() not in names:
            raise CommandError("Unknown acltype")
        allow = one.boolean("allow")
        if allow is None and one.raw("access") in ("allow", "deny"):
            allow = one.raw("access") == "allow"  # as mosquitto_ctrl 2.0 says it, which its own plug-in passes over
        if allow is None:
            raise CommandError("Invalid/missing allow")
        access[names[word.lower()]] = allow
    return replace(state, default_access=access), None


def get_details(state: State, _arguments: Arguments, _context: Context) -> Answer:
    counts = {"clientCount": len(state.clients), "groupCount": len(state.groups), "roleCount": len(state.roles)}
    return state, {**counts, "changeIndex": state.change_index}


# --- clients ---------------------------------------------------------------------------------------------------------


def create_client(state: State, arguments: Arguments, context: Context) -> Answer:
    name = arguments.name("username", "Username")
    changes = _client_changes(state, arguments, context)
    if name in state.clients:
        raise CommandError("Client already exists")
    groups = _join(state, name, arguments)
    client = replace(Client(name), disabled=arguments.boolean("disabled") or False, **changes)
    return replace(state, clients={**state.clients, name: client}, groups=groups), None


def modify_client(state: State, arguments: Arguments, context: Context) -> Answer:
    client = _client(state, arguments)
    changed = replace(client, **_client_changes(state, arguments, context))
    return replace(_with_client(state, changed), groups=_join(state, client.name, arguments)), None


def delete_client(state: State, arguments: Arguments, _context: Context) -> Answer:
    name = _client(state, arguments).name
    return replace(state, clients=_without(state.clients, name), groups=_leave(state.groups, name)), None


def get_client(state: State, arguments: Arguments, context: Context) -> Answer:
    return state, {"client": _client_answer(state, _client(state, arguments).name, context)}


def list_clients(state: State, arguments: Arguments, context: Context) -> Answer:
    return state, _list(state.clients, "clients", arguments, lambda name: _client_answer(state, name, context))


def set_client_password(state: State, arguments: Arguments, context: Context) -> Answer:
    name = arguments.name("username", "Username")
    if not arguments.has("password"):
        raise CommandError("Invalid/missing password")
    changes = _password(arguments, context)
    if name not in state.clients:
        raise CommandError("Client not found")
    return _with_client(state, replace(state.clients[name], **changes)), None


def set_client_id(state: State, arguments: Arguments, _context: Context) -> Answer:
    name = arguments.name("username", "Username")
    client_id = _client_id(arguments, "client ID")
    if name not in state.clients:
        raise CommandError("Client not found")
    return _with_client(state, replace(state.clients[name], client_id=client_id)), None


def add_client_role(state: State, arguments: Arguments, _context: Context) -> Answer:
    username, rolename = arguments.name("username", "Username"), arguments.name("rolename", "Role name")
    client = _found(state.clients, username, "Client not found")
    _found(state.roles, rolename, "Role not found")
    roles = _with_role(client.roles, rolename, arguments, "Client is already in this role")
    return _with_client(state, replace(client, roles=roles)), None


def remove_client_role(state: State, arguments: Arguments, _context: Context) -> Answer:
    username, rolename = arguments.name("username", "Username"), arguments.name("rolename", "Role name")
    client = _found(state.clients, username, "Client not found")
    _found(state.roles, rolename, "Role not found")
    return _with_client(state, replace(client, roles=_without_role(client.roles, rolename))), None


def enable_client(state: State, arguments: Arguments, _context: Context) -> Answer:
    return _with_client(state, replace(_client(state, arguments), disabled=False)), None


def disable_client(state: State, arguments: Arguments, _context: Context) -> Answer:
    return _with_client(state, replace(_client(state, arguments), disabled=True)), None


def _client(state: State, arguments: Arguments) -> Client:
    return _found(state.clients, arguments.name("username", "Username"), "Client not found")


def _with_client(state: State, client: Client) -> State:
    return replace(state, clients={**state.clients, client.name: client})


def _client_changes(state: State, arguments: Arguments, context: Context) -> dict[str, Any]:
    """Give the fields that createClient and modifyClient set, groups excepted."""
    changes = _texts(arguments)
    if arguments.has("clientid"):
        changes["client_id"] = _client_id(arguments, "client id")
    roles = arguments.references("roles", "rolename", state.roles, "Role not found")
    if roles is not None:
        changes["roles"] = by_priority(roles)
    if arguments.has("password"):
        changes |= _password(arguments, context)
    return changes


def _client_id(arguments: Arguments, called: str) -> str | None:
    client_id = arguments.text("clientid", called)
    if client_id and not _is_mqtt_text(client_id):
        raise CommandError("Client ID not valid UTF-8")
    return client_id or None


def _password(arguments: Arguments, context: Context) -> dict[str, Any]:
    password = arguments.text("password")
    if not password:
        raise CommandError("Empty password is not allowed")
    hashed = hashes.make(password.encode(), context.algorithm)
    return {"password": hashed, "stored_password": stored_password(hashed)}


def _join(state: State, username: str, arguments: Arguments) -> Mapping[str, Group]:
    """Give the groups after a client's list of them has been set, if the command has one."""
    wanted = arguments.references("groups", "groupname", state.groups, "Group not found")
    if wanted is None:
        return state.groups
    groups = dict(_leave(state.groups, username))
    for reference in wanted:
        group = groups[reference.name]
        groups[reference.name] = replace(group, clients={**group.clients, username: reference.priority})
    return groups


def _leave(groups: Mapping[str, Group], username: str) -> Mapping[str, Group]:
    return {
        name: replace(group, clients=_without(group.clients, username)) if username in group.clients else group
        for name, group in groups.items()
    }


def _client_answer(state: State, name: str, context: Context) -> dict[str, Any]:
    client = state.clients[name]
    return {
        "username": name,
        **({"clientid": client.client_id} if client.client_id is not None else {}),
        **described(client),
        **({"disabled": True} if client.disabled else {}),
        "roles": reference_objects(client.roles, "rolename"),
        "groups": reference_objects(state.memberships.get(name, ()), "groupname"),
        "connections": [{"address": address} for address in context.connected(name)],
    }


# --- groups ----------------------------------------------------------------------------------------------------------


def create_group(state: State, arguments: Arguments, _context: Context) -> Answer:
    name = arguments.name("groupname", "Group name")
    changes = _group_changes(state, arguments)
    if name in state.groups:
        raise CommandError("Group already exists")
    return _with_group(state, replace(Group(name), **changes)), None


def modify_group(state: State, arguments: Arguments, _context: Context) -> Answer:
    group = _group(state, arguments)
    return _with_group(state, replace(group, **_group_changes(state, arguments))), None


def delete_group(state: State, arguments: Arguments, _context: Context) -> Answer:
    name = _group(state, arguments).name
    if name == state.anonymous_group:
        raise CommandError("Deleting the anonymous group is forbidden")
    return replace(state, groups=_without(state.groups, name)), None


def get_group(state: State, arguments: Arguments, _context: Context) -> Answer:
    return state, {"group": _group_answer(state, _group(state, arguments).name)}


def list_groups(state: State, arguments: Arguments, _context: Context) -> Answer:
    return state, _list(state.groups, "groups", arguments, lambda name: _group_answer(state, name))


def add_group_client(state: State, arguments: Arguments, _context: Context) -> Answer:
    username, groupname = arguments.name("username", "Username"), arguments.name("groupname", "Group name")
    _found(state.clients, username, "Client not found")
    group = _found(state.groups, groupname, "Group not found")
    if username in group.clients:
        raise CommandError("Client is already in this group")
    clients = {**group.clients, username: arguments.priority(LIST_PRIORITY)}
    return _with_group(state, replace(group, clients=clients)), None


def remove_group_client(state: State, arguments: Arguments, _context: Context) -> Answer:
    username, groupname = arguments.name("username", "Username"), arguments.name("groupname", "Group name")
    _found(state.clients, username, "Client not found")
    group = _found(state.groups, groupname, "Group not found")
    return _with_group(state, replace(group, clients=_without(group.clients, username))), None


def add_group_role(state: State, arguments: Arguments, _context: Context) -> Answer:
    groupname, rolename = arguments.name("groupname", "Group name"), arguments.name("rolename", "Role name")
    group = _found(state.groups, groupname, "Group not found")
    _found(state.roles, rolename, "Role not found")
    roles = _with_role(group.roles, rolename, arguments, "Group is already in this role")
    return _with_group(state, replace(group, roles=roles)), None


def remove_group_role(state: State, arguments: Arguments, _context: Context) -> Answer:
    groupname, rolename = arguments.name("groupname", "Group name"), arguments.name("rolename", "Role name")
    group = _found(state.groups, groupname, "Group not found")
    _found(state.roles, rolename, "Role not found")
    return _with_group(state, replace(group, roles=_without_role(group.roles, rolename))), None


def set_anonymous_group(state: State, arguments: Arguments, _context: Context) -> Answer:
    return replace(state, anonymous_group=_group(state, arguments).name), None


def get_anonymous_group(state: State, _arguments: Arguments, _context: Context) -> Answer:
    return state, {"group": {"groupname": state.anonymous_group or ""}}


def _group(state: State, arguments: Arguments) -> Group:
    return _found(state.groups, arguments.name("groupname", "Group name"), "Group not found")


def _with_group(state: State, group: Group) -> State:
    return replace(state, groups={**state.groups, group.name: group})


def _group_changes(state: State, arguments: Arguments) -> dict[str, Any]:
    changes = _texts(arguments)
    roles = arguments.references("roles", "rolename", state.roles, "Role not found")
    if roles is not None:
        changes["roles"] = by_priority(roles)
    clients = arguments.references("clients", "username", state.clients, "Client not found")
    if clients is not None:
        changes["clients"] = {reference.name: reference.priority for reference in clients}
    return changes


def _group_answer(state: State, name: str) -> dict[str, Any]:
    group = state.groups[name]
    return {
        "groupname": name,
        **described(group),
        "clients": [{"username": username} for username in sorted(group.clients)],
        "roles": reference_objects(group.roles, "rolename"),
    }


# --- roles -----------------------------------------------------------------------------------------------------------


def create_role(state: State, arguments: Arguments, _context: Context) -> Answer:
    name = arguments.name("rolename", "Role name")
    changes = _role_changes(arguments)
    if name in state.roles:
        raise CommandError("Role already exists")
    return _with_role_changed(state, replace(Role(name), **changes)), None


def modify_role(state: State, arguments: Arguments, _context: Context) -> Answer:
    role = _found(state.roles, arguments.name("rolename", "Role name"), "Role does not exist")
    return _with_role_changed(state, replace(role, **_role_changes(arguments))), None


def delete_role(state: State, arguments: Arguments, _context: Context) -> Answer:
    name = _role(state, arguments).name
    clients = {
        username: replace(client, roles=_without_role(client.roles, name)) for username, client in state.clients.items()
    }
    groups = {
        groupname: replace(group, roles=_without_role(group.roles, name)) for groupname, group in state.groups.items()
    }
    return replace(state, roles=_without(state.roles, name), clients=clients, groups=groups), None


def get_role(state: State, arguments: Arguments, _context: Context) -> Answer:
    return state, {"role": _role_answer(_role(state, arguments))}


def list_roles(state: State, arguments: Arguments, _context: Context) -> Answer:
    return state, _list(state.roles, "roles", arguments, lambda name: _role_answer(state.roles[name]))


def add_role_acl(state: State, arguments: Arguments, _context: Context) -> Answer:
    role = _role(state, arguments)
    acl = _acl(arguments)
    if any((one.acl_type, one.topic) == (acl.acl_type, acl.topic) for one in role.acls):
        raise CommandError("ACL with this topic already exists")
    return _with_role_changed(state, replace(role, acls=sorted_acls([*role.acls, acl]))), None


def remove_role_acl(state: State, arguments: Arguments, _context: Context) -> Answer:
    role = _role(state, arguments)
    wanted = _acl(arguments)
    for place, acl in enumerate(role.acls):
        if (acl.acl_type, acl.topic) == (wanted.acl_type, wanted.topic):
            acls = (*role.acls[:place], *role.acls[place + 1 :])
            return _with_role_changed(state, replace(role, acls=acls)), None
    raise CommandError("ACL not found")


def _role(state: State, arguments: Arguments) -> Role:
    return _found(state.roles, arguments.name("rolename", "Role name"), "Role not found")


def _with_role_changed(state: State, role: Role) -> State:
    return replace(state, roles={**state.roles, role.name: role})


def _role_changes(arguments: Arguments) -> dict[str, Any]:
    changes = _texts(arguments)
    wildcards = arguments.boolean("allowwildcardsubs")
    if wildcards is not None:
        changes["allow_wildcard_subs"] = wildcards
    if arguments.has("acls"):
        values = arguments.raw("acls")
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            raise CommandError("'acls' not an array of objects")
        changes["acls"] = sorted_acls([_acl(Arguments(value)) for value in values])
    return changes


def _acl(arguments: Arguments) -> Acl:
    word = arguments.raw("acltype")
    if not isinstance(word, str):
        raise CommandError("Invalid/missing acltype")
    acl_type = acl_type_of(word)
    if acl_type is None:
        raise CommandError("Unknown acltype")
    topic = arguments.raw("topic")
    if not isinstance(topic, str) or not topic:
        raise CommandError("Invalid/missing topic")
    if not _is_mqtt_text(topic):
        raise CommandError("Topic not valid UTF-8")
    try:
        check_topic_filter(topic)
    except MqttError:
        raise CommandError("Invalid ACL topic") from None
    return Acl(acl_type, topic, arguments.boolean("allow") or False, arguments.priority(ACL_PRIORITY))


def _role_answer(role: Role) -> dict[str, Any]:
    wildcards = {} if role.allow_wildcard_subs else {"allowwildcardsubs": False}
    return {"rolename": role.name, **described(role), **wildcards, "acls": [acl_object(acl) for acl in role.acls]}


# --- what they share -------------------------------------------------------------------------------------------------


def _found(things: Mapping[str, T], name: str, missing: str) -> T:
    thing = things.get(name)
    if thing is None:
        raise CommandError(missing)
    return thing


def _without(things: Mapping[str, T], name: str) -> dict[str, T]:
    return {one: thing for one, thing in things.items() if one != name}


def _with_role(roles: tuple[Reference, ...], name: str, arguments: Arguments, already: str) -> tuple[Reference, ...]:
    if any(role.name == name for role in roles):
        raise CommandError(already)
    return by_priority([*roles, Reference(name, arguments.priority(LIST_PRIORITY))])


def _without_role(roles: tuple[Reference, ...], name: str) -> tuple[Reference, ...]:
    return tuple(role for role in roles if role.name != name)


def _texts(arguments: Arguments) -> dict[str, Any]:
    members = {"text_name": "textname", "text_description": "textdescription"}
    return {field: arguments.text(member) for field, member in members.items() if arguments.has(member)}


def _list(
    things: Mapping[str, object], member: str, arguments: Arguments, describe: Callable[[str], dict[str, Any]]
) -> dict[str, Any]:
    """Give `count` (all where it is negative) of the names in their order from `offset`, or what they stand for."""
    count, offset = arguments.number("count", -1), max(0, arguments.number("offset", 0))
    names = sorted(things)[offset:]
    if count >= 0:
        names = names[:count]
    verbose = arguments.boolean("verbose") or False
    return {"totalCount": len(things), member: [describe(name) for name in names] if verbose else names}


def _is_utf8(text: str) -> bool:
    return not any(0xD800 <= ord(character) <= 0xDFFF for character in text)


def _is_mqtt_text(text: str) -> bool:
    """Say whether a text is what MQTT lets a name be: no control characters, no non-characters, at most 65535 bytes."""
    return (
        _is_utf8(text)
        and not any(
            code < 0x20 or 0x7F <= code <= 0x9F or 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE
            for code in map(ord, text)
        )
        and len(text.encode()) <= 65_535
    )


COMMANDS: Final[dict[str, Command]] = {
    "setDefaultACLAccess": set_default_access,
    "getDefaultACLAccess": get_default_access,
    "getDetails": get_details,
    "createClient": create_client,
    "deleteClient": delete_client,
    "getClient": get_client,
    "listClients": list_clients,
    "modifyClient": modify_client,
    "setClientPassword": set_client_password,
    "setClientId": set_client_id,
    "addClientRole": add_client_role,
    "removeClientRole": remove_client_role,
    "enableClient": enable_client,
    "disableClient": disable_client,
    "createGroup": create_group,
    "deleteGroup": delete_group,
    "getGroup": get_group,
    "listGroups": list_groups,
    "modifyGroup": modify_group,
    "addGroupClient": add_group_client,
    "removeGroupClient": remove_group_client,
    "addGroupRole": add_group_role,
    "removeGroupRole": remove_group_role,
    "setAnonymousGroup": set_anonymous_group,
    "getAnonymousGroup": get_anonymous_group,
    "createRole": create_role,
    "deleteRole": delete_role,
    "getRole": get_role,
    "listRoles": list_roles,
    "modifyRole": modify_role,
    "addRoleACL": add_role_acl,
    "removeRoleACL": remove_role_acl,
}
