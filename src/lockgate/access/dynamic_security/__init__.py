"""Dynamic security: users, groups and roles in a JSON file, changed over `$CONTROL/dynamic-security/v1`."""

from lockgate.access.dynamic_security.security import ControlAnswer, DynamicSecurity

__all__ = ["ControlAnswer", "DynamicSecurity"]
