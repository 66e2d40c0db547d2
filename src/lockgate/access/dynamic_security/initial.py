"""What a new file of dynamic security holds."""

from __future__ import annotations

from lockgate.access import hashes
from lockgate.access.dynamic_security.file import stored_password
from lockgate.access.dynamic_security.model import (
    PUBLISH_RECEIVE,
    PUBLISH_SEND,
    SUBSCRIBE_PATTERN,
    UNSUBSCRIBE_PATTERN,
    Acl,
    Client,
    Group,
    Reference,
    Role,
    State,
    sorted_acls,
)
from lockgate.access.hashes import Algorithm

_READ = (PUBLISH_RECEIVE, SUBSCRIBE_PATTERN, UNSUBSCRIBE_PATTERN)
_ALL = (PUBLISH_SEND, *_READ)


def initial_state(admin_password: str, demo_password: str, algorithm: Algorithm) -> State:
    """Give the users `admin` and `democlient` with roles to begin with; anonymous clients get the default access."""
    roles = [
        _role("client", "Read and write everything that is not administration", {"#": _ALL}),
        _role("broker-admin", "Ask the broker about itself", {"$CONTROL/broker/#": _ALL}),
        _role("dynsec-admin", "Administer clients, groups and roles", {"$CONTROL/dynamic-security/#": _ALL}),
        _role("super-admin", "Administer everything", {"$CONTROL/#": _ALL}),
        _role("sys-notify", "Tell the state of a bridge", {"$SYS/broker/connection/%c/state": (PUBLISH_SEND,)}),
        _role("sys-observe", "Read the broker's figures", {"$SYS/#": _READ}),
        _role("topic-observe", "Read every topic", {"#": _READ}),
    ]
    clients = [
        _client("admin", admin_password, ("super-admin", "sys-observe", "topic-observe"), algorithm),
        _client("democlient", demo_password, ("client",), algorithm),
    ]
    group = Group("unauthenticated", text_name="Clients without a user name")
    return State(
        clients={client.name: client for client in clients},
        groups={group.name: group},
        roles={role.name: role for role in roles},
        anonymous_group=group.name,
    )


def administrator_state(username: str, password: str, algorithm: Algorithm) -> State:
    """Give what `mosquitto_ctrl dynsec init` makes: one client who may administer, and read every topic."""
    rights = {"$CONTROL/dynamic-security/#": _ALL[:3], "$SYS/#": _READ[:2], "#": _READ}
    client = _client(username, password, ("admin",), algorithm, "Dynsec admin user")
    return State(clients={username: client}, roles={"admin": _role("admin", None, rights)})


def _role(name: str, description: str | None, rights: dict[str, tuple[str, ...]]) -> Role:
    acls = [Acl(acl_type, topic, allow=True) for topic, acl_types in rights.items() for acl_type in acl_types]
    return Role(name, sorted_acls(acls), text_description=description)


def _client(
    name: str, password: str, roles: tuple[str, ...], algorithm: Algorithm, text_name: str | None = None
) -> Client:
    hashed = hashes.make(password.encode(), algorithm)
    references = tuple(Reference(role) for role in roles)
    return Client(name, text_name=text_name, roles=references, password=hashed, stored_password=stored_password(hashed))
