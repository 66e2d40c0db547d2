"""How an image is named: REGISTRY/REPOSITORY[:TAG][@DIGEST]."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from lockgate.deploy.errors import DeployError

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HOST = re.compile(r"[A-Za-z0-9.-]+(:[0-9]{1,5})?|\[[0-9a-fA-F:]+\](:[0-9]{1,5})?")
_REPOSITORY = re.compile(r"[a-z0-9]+([._/-]+[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_ACCEPTED = "REGISTRY[:PORT]/REPOSITORY[:TAG][@sha256:…], as registry.example/lockgate:stable"


@dataclass(frozen=True, slots=True)
class Reference:
    """One image of one registry, by tag or by digest."""

    registry: str
    repository: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """Without tag and digest."""
        return f"{self.registry}/{self.repository}"

    def at(self, digest: str) -> Reference:
        """Give the same image as it is now, whatever becomes of the tag."""
        return replace(self, tag="", digest=digest)

    def __str__(self) -> str:
        return self.name + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def parse(text: str) -> Reference:
    """Read a reference; without tag and digest it is the tag `latest`. Raises DeployError."""
    name, _, digest = text.partition("@")
    registry, slash, rest = name.partition("/")
    repository, _, tag = rest.partition(":")
    if not slash or not ("." in registry or ":" in registry or registry == "localhost"):
        raise DeployError(f"{text!r} names no registry (accepted: {_ACCEPTED})")
    if not (_HOST.fullmatch(registry) and _REPOSITORY.fullmatch(repository)):
        raise DeployError(f"{text!r} is no image (accepted: {_ACCEPTED})")
    if (tag and not _TAG.fullmatch(tag)) or ("@" in text and not DIGEST.fullmatch(digest)):
        raise DeployError(f"{text!r} has a tag or a digest that cannot be one (accepted: {_ACCEPTED})")
    return Reference(registry, repository, tag or ("" if digest else "latest"), digest)
