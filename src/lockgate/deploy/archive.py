"""One file with an image, its documents and its signatures, for gateways without a network.

A tar of `release.json` (repository, digest, signatures), `documents/N` (index, manifest, configuration, as the registry
has them) and `image.tar` (as the engine saves it). Nothing of it is believed: the signature vouches for the digest, the
digest for the documents, the last of them for the image, whose id it is. What is handed to the engine holds this one
image without a name, so that no other can come in by the way.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from lockgate.deploy import signature
from lockgate.deploy.errors import DeployError, Refused
from lockgate.deploy.reference import Reference, parse
from lockgate.deploy.release import Platform, Release, digest_of, read_release
from lockgate.deploy.signature import Signature

_MOST_BYTES = 4 * 1024 * 1024  # of one document
_FORMAT = 1


def write(path: Path, release: Release, signatures: Sequence[Signature], save: Callable[[IO[bytes]], None]) -> None:
    """Write the file; `save` writes the image's archive. Raises OSError."""
    head = {
        "format": _FORMAT,
        "image": str(release.reference),
        "documents": len(release.documents),
        "signatures": [one.as_json() for one in signatures],
    }
    new = path.with_name(f".{path.name}.new")
    try:
        with tempfile.TemporaryFile(dir=path.parent) as image, tarfile.open(new, "w") as tar:
            _add(tar, "release.json", json.dumps(head, indent=1).encode())
            for number, document in enumerate(release.documents):
                _add(tar, f"documents/{number}", document)
            save(image)
            entry = tarfile.TarInfo("image.tar")
            entry.size = image.tell()
            image.seek(0)
            tar.addfile(entry, image)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


class Archive:
    """Such a file, opened. Raises DeployError where it is none, Refused where it is not what it says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._tar = tarfile.open(path)  # noqa: SIM115 - closed in `close`
            head: Any = json.loads(self._small("release.json"))
            if head["format"] != _FORMAT:
                raise DeployError(f"{path} has the format {head['format']}, and {_FORMAT} is known here")
            self.reference: Reference = parse(str(head["image"]))
            self.signatures = [signature.from_json(one) for one in head["signatures"]]
            self._documents = {
                digest_of(document): document
                for document in (self._small(f"documents/{number}") for number in range(int(head["documents"])))
            }
        except OSError as error:
            raise DeployError(f"{path} cannot be read: {error.strerror or error}") from None
        except (tarfile.TarError, ValueError, LookupError, TypeError, EOFError) as error:
            raise DeployError(f"{path} is not what `lockgate deploy export` writes: {error}") from None
        if not self.reference.digest:
            raise DeployError(f"{path} is not what `lockgate deploy export` writes: it names no digest")

    def close(self) -> None:
        self._tar.close()

    def release(self, platform: Platform) -> Release:
        """Give what its documents say. Raises Refused."""

        def fetch(digest: str, _is_manifest: bool) -> bytes:
            try:
                return self._documents[digest]
            except KeyError:
                raise Refused(f"{self.path} has no document {digest}, which {self.reference} needs") from None

        return read_release(self.reference, fetch, platform)

    def load(self, release: Release, load: Callable[[IO[bytes]], None]) -> None:
        """Hand the image to the engine. Raises Refused unless the archive holds it alone and without a name."""
        try:
            self._check_image(release)
            with self._member("image.tar") as file:
                load(file)
        except (tarfile.TarError, ValueError, LookupError, TypeError, EOFError, OSError) as error:
            raise Refused(f"{self.path}: its image cannot be read: {error}") from None

    def _check_image(self, release: Release) -> None:
        with self._member("image.tar") as file, tarfile.open(fileobj=file) as image:
            manifest: Any = json.loads(_read(image, "manifest.json"))
            if len(manifest) != 1 or manifest[0].get("RepoTags"):
                raise Refused(f"{self.path}: its image.tar holds other images, or names, than the one that is signed")
            config = _read(image, str(manifest[0]["Config"]))
            if "repositories" in image.getnames():
                raise Refused(f"{self.path}: its image.tar gives names to images")
        if f"sha256:{hashlib.sha256(config).hexdigest()}" != release.config_digest:
            raise Refused(f"{self.path}: its image.tar is another image than {release.config_digest}, which is signed")

    def _member(self, name: str) -> IO[bytes]:
        file = self._tar.extractfile(name)
        if file is None:
            raise ValueError(f"{name} is no file")
        return file

    def _small(self, name: str) -> bytes:
        return _read(self._tar, name)


def _read(tar: tarfile.TarFile, name: str) -> bytes:
    entry = tar.getmember(name)
    if entry.size > _MOST_BYTES:
        raise ValueError(f"{name} has {entry.size} bytes")
    file = tar.extractfile(entry)
    if file is None:
        raise ValueError(f"{name} is no file")
    return file.read()
