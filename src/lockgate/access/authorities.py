"""The authorities that a configuration names, each loaded once, and whom each listener asks."""

from __future__ import annotations

from lockgate.access.authority import Authority, Chain
from lockgate.config.errors import ConfigError
from lockgate.config.model import AuthorityConfig, BrokerConfig, ListenerConfig

MISSING = 13  # exit status of Mosquitto's where a file of an authority cannot be used at start


class Authorities:
    """Raises ConfigError, with Mosquitto's exit status, for a file that cannot be used.

    Dynamic security belongs to the running broker, which alone writes its file: with `before`, what that has stays.
    """

    def __init__(self, config: BrokerConfig, before: Authorities | None = None) -> None:
        self._config = config
        self._loaded: dict[AuthorityConfig, Authority] = {}
        self._chains: dict[tuple[tuple[AuthorityConfig, ...], bool], Chain] = {}
        kept = before._loaded if before is not None else {}
        for one in config.every_authority():
            if one.kind == "dynamic_security" and one in kept:
                self._loaded[one] = kept[one]
            elif one not in self._loaded:
                self._loaded[one] = _load(one)

    def rules(self, listener: ListenerConfig) -> Chain | None:
        """Give whom a listener asks, None where there is nobody; those who ask the same have one Chain."""
        named = (*self._config.authorities, *listener.authorities)
        if not named:
            return None
        anonymous = listener.allow_anonymous
        if anonymous is None:
            anonymous = self._config.allow_anonymous
        key = (named, anonymous)
        chain = self._chains.get(key)
        if chain is None:
            chain = self._chains[key] = Chain([self._loaded[one] for one in named], allow_anonymous=anonymous)
        return chain


def check(config: BrokerConfig) -> None:
    """Read every file that a configuration names, and make none. Raises ConfigError."""
    for one in config.every_authority():
        if one.kind != "dynamic_security" or one.path.exists() or one.path.is_symlink():
            _load(one)


def _load(config: AuthorityConfig) -> Authority:
    try:
        return _LOADERS[config.kind](config)
    except ConfigError as error:
        error.exit_code = MISSING
        raise


def _password_file(config: AuthorityConfig) -> Authority:
    from lockgate.access.password_file import PasswordFile

    return PasswordFile.load(config.path)


def _acl_file(config: AuthorityConfig) -> Authority:
    from lockgate.access.acl_file import AclFile

    return AclFile.load(config.path, deny_special_chars=config.deny_special_chars)


def _dynamic_security(config: AuthorityConfig) -> Authority:
    from lockgate.access.dynamic_security import DynamicSecurity

    return DynamicSecurity.load_or_create(config.path, config.password_init_file)


_LOADERS = {"password_file": _password_file, "acl_file": _acl_file, "dynamic_security": _dynamic_security}
