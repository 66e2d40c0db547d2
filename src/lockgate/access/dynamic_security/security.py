"""Dynamic security as an authority, and as the one who answers its commands."""

from __future__ import annotations

import json
import logging
import os
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from lockgate.access import hashes, secret_file
from lockgate.access.authority import Verdict
from lockgate.access.dynamic_security import file
from lockgate.access.dynamic_security.commands import COMMANDS, Arguments, CommandError, Context
from lockgate.access.dynamic_security.initial import initial_state
from lockgate.access.dynamic_security.model import State
from lockgate.access.dynamic_security.rules import Rules
from lockgate.access.hashes import Algorithm, PasswordHash
from lockgate.config.errors import ConfigError

log = logging.getLogger(__name__)

TOPIC: Final = "$CONTROL/dynamic-security/v1"
RESPONSE_TOPIC: Final = f"{TOPIC}/response"
PASSWORD_VARIABLE: Final = "MOSQUITTO_DYNSEC_PASSWORD"
_LEAST_PASSWORD: Final = 12  # characters, in that variable

_UNKNOWN: Final = "Unknown command"
_BY_LOWER_CASE: Final = {name.lower(): (name, command) for name, command in COMMANDS.items()}


@dataclass(frozen=True, slots=True)
class ControlAnswer:
    """What to publish to RESPONSE_TOPIC, and afterwards whom to disconnect: users by name, all without a name.

    `changed` says that what was decided before may be decided otherwise now.
    """

    payload: bytes
    disconnect: frozenset[str] = frozenset()
    disconnect_anonymous: bool = False
    changed: bool = False


class DynamicSecurity:
    """An authority over everything, by one JSON file.

    `handle` takes as long as hashes and a write to the disk: call it in a worker thread. The questions are answered
    meanwhile, by what was true before; what is answered changes only when it is on the disk.
    """

    topic = TOPIC

    def __init__(self, path: Path, state: State, algorithm: Algorithm = "argon2id") -> None:
        self.path = path
        self._algorithm = algorithm
        self._rules = Rules(state)  # replaced as a whole: read without a lock
        self._nobody = _nobody(state)
        self._lock = threading.Lock()

    @classmethod
    def load(cls, path: Path, algorithm: Algorithm = "argon2id") -> Self:
        """Read the file; raises ConfigError that says what is wrong with it."""
        return cls(path, file.parse(secret_file.read(path), path), algorithm)

    @classmethod
    def load_or_create(
        cls,
        path: Path,
        password_init_file: Path | None = None,
        environment: Mapping[str, str] = os.environ,
        algorithm: Algorithm = "argon2id",
    ) -> Self:
        """Read the file, or make it if there is none.

        The password of `admin` is then the first line of `password_init_file`, else that of PASSWORD_VARIABLE, else an
        invented one, which is written to `<file>.pw`. Raises ConfigError.
        """
        if path.exists() or path.is_symlink():
            return cls.load(path, algorithm)
        password = _given_password(password_init_file, environment)
        admin, demo = password or secrets.token_urlsafe(15), secrets.token_urlsafe(15)
        try:
            if password is None:  # first: without it nobody could use the other file
                note = path.with_name(f"{path.name}.pw")
                secret_file.replace(note, f"admin {admin}\ndemoclient {demo}\n".encode())
                log.warning("%s is new: the passwords of its users are in %s", path, note)
            made = cls(path, initial_state(admin, demo, algorithm), algorithm)
            secret_file.replace(path, file.dump(made.state))
        except OSError as error:
            raise ConfigError(f"cannot be made: {error.strerror}", path=path, accepted="a folder to write to") from None
        log.info("%s: dynamic security begins with its default users and roles", path)
        return made

    @property
    def state(self) -> State:
        """What is true now."""
        return self._rules.state

    # --- questions ---------------------------------------------------------------------------------------------------

    def login(
        self, client_id: str, username: str | None, password: bytes | None, by_certificate: bool = False
    ) -> Verdict:
        """Say whether this is a client's password and the client id it may use; others may know who is unknown here."""
        client = self.state.clients.get(username) if username is not None else None
        if by_certificate:
            if client is None:
                return Verdict.IGNORE
            fits = True
        elif password is None:
            return Verdict.DEFER if client is None else Verdict.DENY
        else:
            known = client.password if client is not None else None
            fits = (known if known is not None else self._nobody).verify(password) and known is not None
        if client is None:
            return Verdict.DEFER
        if not fits or client.disabled or client.client_id not in (None, client_id):
            return Verdict.DENY
        return Verdict.ALLOW

    def may_publish(self, client_id: str, username: str | None, topic: str) -> Verdict:
        """Decide by `publishClientSend`."""
        return self._rules.may_publish(client_id, username, topic)

    def may_receive(self, client_id: str, username: str | None, topic: str) -> Verdict:
        """Decide by `publishClientReceive`."""
        return self._rules.may_receive(client_id, username, topic)

    def may_subscribe(self, client_id: str, username: str | None, topic_filter: str) -> Verdict:
        """Decide by `subscribeLiteral` and `subscribePattern`; a shared filter counts as the filter in it."""
        return self._rules.may_subscribe(client_id, username, topic_filter)

    def may_unsubscribe(self, client_id: str, username: str | None, topic_filter: str) -> Verdict:
        """Decide by `unsubscribeLiteral` and `unsubscribePattern`."""
        return self._rules.may_unsubscribe(client_id, username, topic_filter)

    def credential(self, username: str) -> object:
        """Give all of a client that its login depends on."""
        client = self.state.clients.get(username)
        return (str(client.password), client.client_id, client.disabled) if client is not None else None

    # --- commands ----------------------------------------------------------------------------------------------------

    def handle(self, payload: bytes, requester: str, connected: Callable[[str], list[str]]) -> ControlAnswer:
        """Do what was published to TOPIC. `requester` is for the log; `connected` gives a user's network addresses.

        All commands of a payload are written to the disk at once; where that fails, none of them has changed anything.
        """
        with self._lock:
            before = self.state
            after, responses, changing = self._perform(payload, requester, Context(connected, self._algorithm))
            if after is before:
                return ControlAnswer(_response(responses))
            try:
                secret_file.replace(self.path, file.dump(after))
            except (OSError, ValueError) as error:
                log.error("%s cannot be written, nothing was changed: %s", self.path, error)
                for response in changing:
                    response["error"] = "The change could not be saved, nothing was changed"
                for response in responses:  # what was read after a change that is undone is not true
                    if "data" in response and response not in changing:
                        del response["data"]
                        response["error"] = "A change before it could not be saved"
                return ControlAnswer(_response(responses))
            self._rules = Rules(after)
            self._nobody = _nobody(after)
            users, anonymous = _affected(before, after)
            return ControlAnswer(_response(responses), users, anonymous, changed=True)

    def _perform(
        self, payload: bytes, requester: str, context: Context
    ) -> tuple[State, list[dict[str, Any]], list[dict[str, Any]]]:
        """Give the State after all commands, the responses, and those of commands that changed something."""
        state = self.state
        responses: list[dict[str, Any]] = []
        changing: list[dict[str, Any]] = []
        try:
            request = json.loads(payload.decode("utf-8"), parse_constant=_no_constant)
        except (ValueError, RecursionError):
            return state, [{"command": _UNKNOWN, "error": "Payload not valid JSON"}], changing
        wanted = Arguments(request).raw("commands") if isinstance(request, dict) else None
        if not isinstance(wanted, list):
            return state, [{"command": _UNKNOWN, "error": "Invalid/missing commands"}], changing
        for one in wanted:
            response: dict[str, Any] = {"command": _UNKNOWN}
            responses.append(response)
            try:
                state_after, data = _command(state, one, response, context)
            except CommandError as error:
                correlation = response.pop("correlationData", None)
                response["error"] = str(error)
                if correlation is not None:
                    response["correlationData"] = correlation
                continue
            if data is not None:
                correlation = response.pop("correlationData", None)
                response["data"] = data
                if correlation is not None:
                    response["correlationData"] = correlation
            if state_after != state:
                changing.append(response)
                state = replace(state_after, change_index=state.change_index + 1)
                log.info("dynamic security: %s: %s", requester, response["command"])
        return state, responses, changing


def _command(
    state: State, one: object, response: dict[str, Any], context: Context
) -> tuple[State, dict[str, Any] | None]:
    if not isinstance(one, dict):
        raise CommandError("Command not an object")
    arguments = Arguments(one)
    word = arguments.raw("command")
    if not isinstance(word, str):
        raise CommandError("Missing command")
    name, command = _BY_LOWER_CASE.get(word.lower(), (word, None))
    response["command"] = name
    if arguments.has("correlationdata"):
        correlation = arguments.raw("correlationdata")
        if not isinstance(correlation, str):
            raise CommandError("Invalid correlationData data type.")
        response["correlationData"] = correlation
    if command is None:
        raise CommandError(_UNKNOWN)
    return command(state, arguments, context)


def _affected(before: State, after: State) -> tuple[frozenset[str], bool]:
    """Give the users whose account, password, client id or roles changed, and say whether anonymous roles did."""
    users = frozenset(
        name
        for name, client in before.clients.items()
        if (now := after.clients.get(name)) is None
        or (client.password, client.client_id, client.disabled) != (now.password, now.client_id, now.disabled)
        or before.roles_of(name) != after.roles_of(name)
    )
    return users, before.anonymous_roles != after.anonymous_roles


def _response(responses: list[dict[str, Any]]) -> bytes:
    text = json.dumps({"responses": responses}, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")  # a lone surrogate of the request is not sent back


def _nobody(state: State) -> PasswordHash:
    """Give a hash for who is unknown, as dear as those of who is known."""
    return hashes.like(next((client.password for client in state.clients.values() if client.password), None))


def _given_password(password_init_file: Path | None, environment: Mapping[str, str]) -> str | None:
    if password_init_file is not None:
        password = secret_file.read_text(password_init_file).partition("\n")[0].rstrip("\r")
        if not password:
            raise ConfigError("its first line is empty", path=password_init_file, accepted="the password of admin")
        return password
    password = environment.get(PASSWORD_VARIABLE, "")
    if password and len(password) < _LEAST_PASSWORD:
        raise ConfigError(
            f"has {len(password)} characters", key=PASSWORD_VARIABLE, accepted=f"at least {_LEAST_PASSWORD}"
        )
    return password or None


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")
