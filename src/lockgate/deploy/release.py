"""What an image is by its own documents: each names the next by its digest, so that one digest vouches for all."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from lockgate.deploy.errors import Refused
from lockgate.deploy.reference import DIGEST, Reference

INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
TITLE, VERSION = "org.opencontainers.image.title", "org.opencontainers.image.version"

Fetch = Callable[[str, bool], bytes]  # a digest, whether it is a manifest's → the document


@dataclass(frozen=True, slots=True)
class Platform:
    """The machine an engine runs on, by the words of image documents."""

    os: str
    architecture: str

    def __str__(self) -> str:
        return f"{self.os}/{self.architecture}"


@dataclass(frozen=True, slots=True)
class Release:
    """One image for one machine. `documents` are index (if there is one), manifest and configuration."""

    reference: Reference  # by digest
    documents: tuple[bytes, ...]
    manifest_digest: str
    config_digest: str  # which is the image's id in the engine
    labels: dict[str, str]
    created: str
    size_bytes: int

    @property
    def version(self) -> str:
        return self.labels.get(VERSION, "")

    @property
    def title(self) -> str:
        return self.labels.get(TITLE, "")


def digest_of(document: bytes) -> str:
    return f"sha256:{hashlib.sha256(document).hexdigest()}"


def checked(document: bytes, digest: str, what: str) -> bytes:
    """Give the document back if it is the one that was asked for. Raises Refused."""
    if digest_of(document) != digest:
        raise Refused(f"{what}: its content has the digest {digest_of(document)}, and {digest} was asked for")
    return document


def read_release(reference: Reference, fetch: Fetch, platform: Platform) -> Release:
    """Follow the documents of an image from its digest. Raises Refused where they are not for this machine."""
    top = checked(fetch(reference.digest, True), reference.digest, str(reference))
    documents, digest, said = [top], reference.digest, _parsed(top, reference)
    if isinstance(said.get("manifests"), list):
        digest = _for_platform(said["manifests"], platform, reference)
        documents.append(checked(fetch(digest, True), digest, str(reference)))
        said = _parsed(documents[-1], reference)
    descriptor = said.get("config")
    config_digest = str(descriptor.get("digest", "")) if isinstance(descriptor, dict) else ""
    if not DIGEST.fullmatch(config_digest):
        raise Refused(f"{reference}: its manifest names no configuration; it is no image that an engine runs")
    documents.append(checked(fetch(config_digest, False), config_digest, str(reference)))
    config = _parsed(documents[-1], reference)
    built_for = Platform(str(config.get("os", "")), str(config.get("architecture", "")))
    if built_for != platform:
        raise Refused(f"{reference} is built for {built_for}, and this engine runs {platform}")
    inner = config.get("config")
    labels = inner.get("Labels") if isinstance(inner, dict) else None
    layers = said.get("layers")
    sizes = [one.get("size", 0) for one in (layers if isinstance(layers, list) else ()) if isinstance(one, dict)]
    return Release(
        reference=reference,
        documents=tuple(documents),
        manifest_digest=digest,
        config_digest=config_digest,
        labels={str(name): str(value) for name, value in labels.items()} if isinstance(labels, dict) else {},
        created=str(config.get("created", "")),
        size_bytes=sum(size for size in sizes if isinstance(size, int)),
    )


def _parsed(document: bytes, reference: Reference) -> dict[str, object]:
    try:
        said = json.loads(document)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise Refused(f"{reference}: one of its documents is no JSON object")
    return said


def _for_platform(manifests: object, platform: Platform, reference: Reference) -> str:
    offered = []
    for one in manifests if isinstance(manifests, list) else ():
        said = one.get("platform") if isinstance(one, dict) else None
        if not isinstance(said, dict):
            continue
        offers = Platform(str(said.get("os", "")), str(said.get("architecture", "")))
        if offers == platform and DIGEST.fullmatch(str(one.get("digest"))):
            return str(one["digest"])
        offered.append(str(offers))
    raise Refused(f"{reference} is built for {', '.join(offered) or 'nothing'}, and this engine runs {platform}")


def is_older(version: str, created: str, than_version: str, than_created: str) -> bool:
    """Whether one image comes before another: by version where both have one, else by the time they were made."""
    one, other = _numbers(version), _numbers(than_version)
    if one and other:
        return one < other
    return bool(created and than_created) and created[:19] < than_created[:19]


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"v?(\d+(?:\.\d+)*)", version)
    return tuple(int(part) for part in found[1].split(".")) if found else ()
