"""`mosquitto_ctrl`: administer dynamic security, over the network or (`-f FILE`) in its file; ask the broker of itself.

Commands, prompts and output are Mosquitto's. The exit status is what its manual says, where Mosquitto 2.0 gives 0 for
almost everything: the code of a refusing CONNACK, and 1 for a command that failed.
"""

from __future__ import annotations

import getpass
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from lockgate.access import secret_file
from lockgate.access.dynamic_security import DynamicSecurity, file
from lockgate.access.dynamic_security.initial import administrator_state
from lockgate.access.dynamic_security.model import LIST_PRIORITY, acl_type_of
from lockgate.cli.mosquitto_options import Done, Options, UsageError, parse_leading, report
from lockgate.cli.mosquitto_wire import (
    SYSTEM,
    TIMED_OUT,
    Failure,
    Stopped,
    Wire,
    complain,
    end_quietly_on_a_closed_pipe,
    reason_text,
    stop_on_signals,
)
from lockgate.config.errors import ConfigError
from lockgate.mqtt.packets import Publish, SubAck, SubscriptionRequest

PROGRAM: Final = "mosquitto_ctrl"
FAILED: Final = 1
INVALID: Final = 3  # arguments of a command
UNKNOWN_MODULE: Final = 10
UNKNOWN_COMMAND: Final = 13
_PATIENCE_SECONDS: Final = 10.0

USAGE: Final = """\
mosquitto_ctrl is a tool for administering certain Mosquitto features.

General usage: mosquitto_ctrl [connection options] [-f file] <module> <module-command> <command-options>
For module specific help use: mosquitto_ctrl <module> help

Modules available: dynsec broker

Connection options are those of mosquitto_pub. -f works on a file of dynamic security that no broker has open.
"""

DYNSEC_USAGE: Final = """\
Dynamic Security module
=======================

Initialisation
--------------
Create a new configuration file with an admin user:
    mosquitto_ctrl dynsec init <new-config-file> <admin-username> [admin-password]

General
-------
Get ACL default access:          getDefaultACLAccess
Set ACL default access:          setDefaultACLAccess <acltype> allow|deny
Get group for anonymous clients: getAnonymousGroup
Set group for anonymous clients: setAnonymousGroup   <groupname>
Get numbers of everything:       getDetails

Clients
-------
Create a new client:         createClient      <username> [-c clientid] [-p password]
Delete a client:             deleteClient      <username>
Set a client password:       setClientPassword <username> [password]
Set a client id:             setClientId       <username> [clientid]
Add a role to a client:      addClientRole     <username> <rolename> [priority]
Remove role from a client:   removeClientRole  <username> <rolename>
Get client information:      getClient         <username>
List all clients:            listClients       [count [offset]]
Enable client:               enableClient      <username>
Disable client:              disableClient     <username>

Groups
------
Create a new group:          createGroup       <groupname>
Delete a group:              deleteGroup       <groupname>
Add a role to a group:       addGroupRole      <groupname> <rolename> [priority]
Remove role from a group:    removeGroupRole   <groupname> <rolename>
Add client to a group:       addGroupClient    <groupname> <username> [priority]
Remove client from a group:  removeGroupClient <groupname> <username>
Get group information:       getGroup          <groupname>
List all groups:             listGroups        [count [offset]]

Roles
------
Create a new role:           createRole        <rolename>
Delete a role:               deleteRole        <rolename>
Add an ACL to a role:        addRoleACL        <rolename> <aclspec> [priority]
Remove ACL from a role:      removeRoleACL     <rolename> <acltype> <topicFilter>
Get role information:        getRole           <rolename>
List all roles:              listRoles         [count [offset]]

Higher priority (larger numerical value) roles, groups and ACLs are evaluated first.

aclspec:                     <acltype> <topicFilter> allow|deny
acltype:                     publishClientSend|publishClientReceive
                              |subscribeLiteral|subscribePattern
                              |unsubscribeLiteral|unsubscribePattern
"""

# The words of each command; in brackets what may be left out
_WORDS: Final = {
    "getDefaultACLAccess": "", "getAnonymousGroup": "", "setAnonymousGroup": "groupname", "getDetails": "",
    "deleteClient": "username", "setClientId": "username [clientid]", "getClient": "username",
    "addClientRole": "username rolename [priority]", "removeClientRole": "username rolename",
    "listClients": "[count] [offset]", "enableClient": "username", "disableClient": "username",
    "createGroup": "groupname", "deleteGroup": "groupname", "addGroupRole": "groupname rolename [priority]",
    "removeGroupRole": "groupname rolename", "addGroupClient": "groupname username [priority]",
    "removeGroupClient": "groupname username", "getGroup": "groupname", "listGroups": "[count] [offset]",
    "createRole": "rolename", "deleteRole": "rolename", "getRole": "rolename", "listRoles": "[count] [offset]",
    "addRoleACL": "rolename acltype topic allow [priority]", "removeRoleACL": "rolename acltype topic [allow]",
    "setDefaultACLAccess": "acltype allow", "setClientPassword": "username [password]",
}  # fmt: skip
_DEFAULT_ACCESS: Final = ("publishClientSend", "publishClientReceive", "subscribe", "unsubscribe")


class _End(Exception):
    """The program ends with `status`."""

    def __init__(self, status: int, text: str = "") -> None:
        super().__init__(text)
        self.status = status


def main(arguments: list[str]) -> int:
    """Exit status 0 when it is done, 3 for a command's wrong words, the CONNACK's code when refused, else not 0."""
    end_quietly_on_a_closed_pipe()
    try:
        words, path = _offline_file(arguments)
        options, words = parse_leading(PROGRAM, words)
        if len(words) < 2:
            print(USAGE)
            return FAILED
        module, name, *rest = words
        if module not in ("dynsec", "broker"):
            raise _End(UNKNOWN_MODULE, f"Error: Module '{module}' not supported.")
        if name == "help":
            print(DYNSEC_USAGE if module == "dynsec" else "Commands of the module broker: listPlugins, listListeners")
            return 0
        if module == "dynsec" and name == "init":
            return _init(rest)
        command = _broker_command(name, rest) if module == "broker" else _dynsec_command(name, rest)
        topic = "$CONTROL/broker/v1" if module == "broker" else "$CONTROL/dynamic-security/v1"
        request = json.dumps({"commands": [command]}, ensure_ascii=False).encode("utf-8", "surrogateescape")
        if path is not None:
            if module == "broker":
                raise _End(INVALID, "Error: the module broker needs a broker, not -f.")
            answer = DynamicSecurity.load(path).handle(request, f"{PROGRAM} -f", lambda _username: []).payload
        else:
            answer = _ask(options, topic, request)
        return _show(command["command"], answer)
    except Done:
        return FAILED
    except UsageError as error:
        return report(PROGRAM, error)
    except ConfigError as error:
        complain(f"Error: {error}")
    except Failure as failure:
        complain(f"Error: {failure}")
        return failure.status
    except _End as end:
        if str(end):
            complain(str(end))
        return end.status
    return FAILED


def _offline_file(words: list[str]) -> tuple[list[str], Path | None]:
    if "-f" not in words[:-1]:
        return words, None
    at = words.index("-f")
    return [*words[:at], *words[at + 2 :]], Path(words[at + 1])


# --- words → command -------------------------------------------------------------------------------------------------


def _dynsec_command(name: str, words: list[str]) -> dict[str, Any]:
    if name == "createClient":
        return _create_client(words)
    if name not in _WORDS:
        raise _End(UNKNOWN_COMMAND, f"Command '{name}' not recognised.")
    wanted = _WORDS[name].split()
    needed = [word for word in wanted if not word.startswith("[")]
    if not len(needed) <= len(words) <= len(wanted):
        raise _invalid()
    members: dict[str, Any] = dict(zip((word.strip("[]") for word in wanted), words, strict=False))
    for number in ("priority", "count", "offset"):
        if number in members:
            members[number] = _number(members[number])
    if "allow" in members:
        if members["allow"] not in ("allow", "deny"):
            raise _invalid('Error: access must be "allow" or "deny".\n')
        members["allow"] = members["allow"] == "allow"
    if name == "removeRoleACL":
        members.pop("allow", None)  # the ACL is found without it
    if "acltype" in members:
        known = _DEFAULT_ACCESS if name == "setDefaultACLAccess" else None
        if members["acltype"] not in known if known is not None else acl_type_of(members["acltype"]) is None:
            raise _invalid()
    if name == "setDefaultACLAccess":
        return {"command": name, "acls": [members]}
    if name == "setClientPassword" and "password" not in members:
        members["password"] = _new_password(members["username"]) or ""
        if not members["password"]:
            raise _End(FAILED, "Error: Empty password.")
    return {"command": name, **members}


def _create_client(words: list[str]) -> dict[str, Any]:
    if not words or len(words) % 2 == 0:
        raise _invalid()
    members: dict[str, Any] = {"username": words[0]}
    for flag, value in zip(words[1::2], words[2::2], strict=True):
        member = {"-c": "clientid", "-i": "clientid", "-p": "password"}.get(flag)
        if member is None:
            raise _invalid()
        members[member] = value
    if "password" not in members:
        print(
            f"Enter new password for {words[0]}. Press return for no password (user will be unable to login).",
            flush=True,
        )
        password = _new_password(words[0])
        if password:
            members["password"] = password
    return {"command": "createClient", **members}


def _broker_command(name: str, words: list[str]) -> dict[str, Any]:
    if name not in ("listPlugins", "listListeners"):
        raise _End(UNKNOWN_COMMAND, f"Command '{name}' not recognised.")
    if words:
        raise _invalid()
    return {"command": name}


def _number(text: str) -> int:
    try:
        return int(text, 10)
    except ValueError:
        raise _invalid(f"Error: {text!r} is not a whole number.\n") from None


def _invalid(text: str = "") -> _End:
    return _End(INVALID, f"{text}Error: Invalid function arguments provided.")


def _new_password(username: str) -> str | None:
    """Ask twice, at the terminal or as lines of standard input; None for an empty one."""
    password = _line(f"New password for {username}: ")
    if not password:
        return None
    if _line(f"Reenter password for {username}: ") != password:
        raise _End(FAILED, "Error: Passwords do not match.")
    return password


def _line(prompt: str) -> str:
    if sys.stdin.isatty():
        return getpass.getpass(prompt)
    print(prompt, end="", flush=True)
    line = sys.stdin.readline()
    if line:
        print()
    return line.rstrip("\r\n")


def _init(words: list[str]) -> int:
    if not 2 <= len(words) <= 3:
        raise _invalid("dynsec init: Not enough arguments - filename, or admin-user missing.\n")
    path, username = Path(words[0]), words[1]
    if path.exists() or path.is_symlink():
        raise _End(FAILED, f"dynsec init: '{path}' already exists. Remove the file or use a different location..")
    password = words[2] if len(words) == 3 else _new_password(username)
    if not password:
        raise _End(FAILED, "Error: Empty password.")
    try:
        state = administrator_state(username, os.fsencode(password).decode(), "argon2id")
        secret_file.replace(path, file.dump(state))
    except UnicodeDecodeError:
        raise _End(FAILED, "dynsec init: the password is not UTF-8.") from None
    except OSError as error:
        raise _End(FAILED, f"dynsec init: Unable to open '{path}' for writing: {error.strerror}.") from None
    print(f"""\
The client '{username}' has been created in the file '{path}'.
This client is configured to allow you to administer the dynamic security plugin only.
It does not have access to publish messages to normal topics.
You should create your application clients to do that, for example:
   mosquitto_ctrl <connect options> dynsec createClient <username>
   mosquitto_ctrl <connect options> dynsec createRole <rolename>
   mosquitto_ctrl <connect options> dynsec addRoleACL <rolename> publishClientSend my/topic allow [priority]
   mosquitto_ctrl <connect options> dynsec addClientRole <username> <rolename> [priority]
See https://mosquitto.org/documentation/dynamic-security/ for details of all commands.""")
    return 0


# --- over the network ------------------------------------------------------------------------------------------------


class _Asker(Wire):
    """Subscribes to the responses, asks, and takes the first one."""

    def __init__(self, options: Options, topic: str, request: bytes) -> None:
        super().__init__(options.endpoint(), options.connect_packet(), debug=options.debug, quiet=True)
        self.answer: bytes | None = None
        self.refusal = ""
        self._topic = topic
        self._request = request

    def connected(self) -> None:
        self.subscribe([SubscriptionRequest(f"{self._topic}/response", 1)], None)

    def subscribed(self, packet: SubAck) -> None:
        if packet.reason_codes[0] >= 0x80:
            self._refuse(f"Subscribe error: {reason_text(packet.reason_codes[0])}")
        else:
            self.publish(self._topic, self._request, 1, False)

    def published(self, packet_id: int, reason_code: int) -> None:
        if reason_code >= 0x80:
            self._refuse(f"Publish error: {reason_text(reason_code)}")

    def received(self, message: Publish) -> None:
        if self.answer is None and not message.retain:
            self.answer = message.payload
            self.disconnect()

    def _refuse(self, text: str) -> None:
        self.refusal = text
        self.disconnect()


def _ask(options: Options, topic: str, request: bytes) -> bytes:
    asker = _Asker(options, topic, request)
    if options.endpoint().tls is None and options.unix is None and not options.quiet:
        complain(
            "Warning: You are running mosquitto_ctrl without encryption.\n"
            "This means all of the configuration changes you are making are visible on the network, "
            "including passwords.\n"
        )
    stop_on_signals()
    asker.deadline = time.monotonic() + _PATIENCE_SECONDS
    try:
        try:
            asker.open()
        except Failure as failure:
            raise _End(SYSTEM, f"Error: {failure}") from None
        asker.run()
    except Stopped as stopped:
        asker.leave()
        raise _End(*((TIMED_OUT, "Error: no answer came.") if stopped.timed_out else (FAILED, ""))) from None
    except Failure:
        if asker.status:
            raise _End(asker.status, f"Connection error: {reason_text(asker.status, options.version)}") from None
        raise
    if asker.status:
        raise _End(asker.status, f"Connection error: {reason_text(asker.status, options.version)}")
    if asker.answer is None:
        raise _End(FAILED, asker.refusal or "Error: no answer came.")
    return asker.answer


# --- answer → lines --------------------------------------------------------------------------------------------------


def _show(name: str, answer: bytes) -> int:
    try:
        response = json.loads(answer)["responses"][0]
        error, data = response.get("error"), response.get("data")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise _End(FAILED, f"{name}: Error: the answer cannot be understood.") from None
    if error is not None:
        raise _End(FAILED, f"{name}: Error: {error}")
    if data is not None:
        try:
            lines = _SHOWN[name](data) if name in _SHOWN else _listed(data)
        except (KeyError, TypeError, AttributeError):
            raise _End(FAILED, f"{name}: Error: the answer cannot be understood.") from None
        for line in lines:
            print(line)
    return 0


def _default_access(data: dict[str, Any]) -> list[str]:
    return [f"{acl['acltype']:<20} : {_allow(acl)}" for acl in data["acls"]]


def _client(data: dict[str, Any]) -> list[str]:
    client = data["client"]
    lines = [f"Username: {client['username']}", f"Clientid: {client.get('clientid', '')}".rstrip()]
    lines += _texts(client, 10)
    if client.get("disabled"):
        lines.append("Disabled: true")
    lines += _column("Roles:", 10, [_with_priority(one, "rolename") for one in client.get("roles", [])])
    lines += _column("Groups:", 10, [_with_priority(one, "groupname") for one in client.get("groups", [])])
    return lines + _column("Address:", 10, [one["address"] for one in client.get("connections", [])])


def _group(data: dict[str, Any]) -> list[str]:
    group = data["group"]
    lines = [f"Groupname: {group['groupname']}", *_texts(group, 11)]
    lines += _column("Roles:", 11, [_with_priority(one, "rolename") for one in group.get("roles", [])])
    return lines + _column("Clients:", 11, [one["username"] for one in group.get("clients", [])])


def _role(data: dict[str, Any]) -> list[str]:
    role = data["role"]
    acls = [
        f"{acl['acltype']:<20} : {_allow(acl):<5} : {acl['topic']} (priority: {acl['priority']})"
        for acl in role.get("acls", [])
    ]
    return [f"Rolename: {role['rolename']}", *_texts(role, 10), *_column("ACLs:", 10, acls)]


def _listed(data: dict[str, Any]) -> list[str]:
    """Give the names of a list, or the members of what has no form of its own."""
    lines: list[str] = []
    for member, value in data.items():
        if isinstance(value, list):
            lines += [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in value]
        elif member != "totalCount":
            lines.append(f"{member}: {value}")
    return lines


_SHOWN: Final[dict[str, Callable[[dict[str, Any]], list[str]]]] = {
    "getDefaultACLAccess": _default_access,
    "getClient": _client,
    "getGroup": _group,
    "getRole": _role,
    "getAnonymousGroup": lambda data: [data["group"]["groupname"]],
}


def _texts(thing: dict[str, Any], width: int) -> list[str]:
    named = {"Textname:": "textname", "Textdescription:": "textdescription"}
    return [f"{head:<{width}}{thing[member]}" for head, member in named.items() if thing.get(member)]


def _column(head: str, width: int, values: list[str]) -> list[str]:
    return [f"{head if place == 0 else '':<{width}}{value}" for place, value in enumerate(values)]


def _with_priority(one: dict[str, Any], member: str) -> str:
    return f"{one[member]} (priority: {one.get('priority', LIST_PRIORITY)})"


def _allow(acl: dict[str, Any]) -> str:
    return "allow" if acl["allow"] else "deny"
