"""What an update ends with where it cannot go on."""

from __future__ import annotations


class DeployError(Exception):
    """Something is in the way of an update. The text says what, and what to do; nothing that ran was changed."""


class Unreachable(DeployError):
    """The registry or the engine does not answer now; the same may do a while later."""


class Refused(DeployError):
    """This image will not be run: its signature, its kind, its version. It is so also the next time."""


class Failed(DeployError):
    """The new version was started and is not well."""


class RolledBack(DeployError):
    """The new version could not be brought into service, and the old one serves. `again`: that was not its fault."""

    def __init__(self, text: str, again: bool = False) -> None:
        super().__init__(text)
        self.again = again


class Broken(DeployError):
    """The old version could not be brought back either. The journal stays, and the next start tries again."""
