"""The file for gateways without a network: what of it is believed, and what is not."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import IO, Any

import pytest

from lockgate.deploy import archive
from lockgate.deploy.archive import Archive
from lockgate.deploy.errors import DeployError, Refused
from lockgate.deploy.reference import Reference
from lockgate.deploy.release import Platform, Release, digest_of, read_release
from lockgate.deploy.signature import Signature

HERE = Platform("linux", "amd64")
CONFIG = json.dumps({"os": "linux", "architecture": "amd64"}).encode()
MANIFEST = json.dumps({"config": {"digest": digest_of(CONFIG)}, "layers": []}).encode()
REFERENCE = Reference("r.example", "lockgate", digest=digest_of(MANIFEST))
SIGNATURES = [Signature(b"payload", b"signature")]


def release() -> Release:
    known = {digest_of(one): one for one in (CONFIG, MANIFEST)}
    return read_release(REFERENCE, lambda digest, _: known[digest], HERE)


def image_tar(config: bytes = CONFIG, manifest: Any = None, **more: bytes) -> bytes:
    """What the engine would save."""
    name = f"{digest_of(config)[7:]}.json"
    said = manifest if manifest is not None else [{"Config": name, "RepoTags": None, "Layers": []}]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for entry, content in {name: config, "manifest.json": json.dumps(said).encode(), **more}.items():
            info = tarfile.TarInfo(entry)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def written(folder: Path, image: bytes) -> Path:
    path = folder / "file.tar"

    def save(to: IO[bytes]) -> None:
        to.write(image)

    archive.write(path, release(), SIGNATURES, save)
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    image = image_tar()
    opened = Archive(written(tmp_path, image))
    assert opened.reference == REFERENCE
    assert opened.signatures == SIGNATURES
    assert opened.release(HERE) == release()
    loaded: list[bytes] = []
    opened.load(opened.release(HERE), lambda file: loaded.append(file.read()))
    opened.close()
    assert loaded == [image]
    assert [path.name for path in tmp_path.iterdir()] == ["file.tar"]


OTHER = b'{"os": "linux", "architecture": "amd64", "evil": 1}'
NAMED = [{"Config": f"{digest_of(CONFIG)[7:]}.json", "RepoTags": ["python:3.11"], "Layers": []}]
TWO = [{"Config": f"{digest_of(CONFIG)[7:]}.json", "RepoTags": None}] * 2
LYING = [{"Config": "lying.json", "RepoTags": None}]


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (image_tar(OTHER), "is another image than sha256:"),
        (image_tar(manifest=NAMED), "other images, or names"),
        (image_tar(manifest=TWO), "other images, or names"),
        (image_tar(OTHER, manifest=LYING, **{"lying.json": OTHER}), "is another image than"),
        (image_tar(repositories=b"{}"), "gives names to images"),
        (image_tar(manifest=[]), "other images"),
        (image_tar(manifest=[{}]), "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_an_image_that_is_not_the_one_that_is_signed_never_reaches_the_engine(
    tmp_path: Path, image: bytes, text: str
) -> None:
    opened = Archive(written(tmp_path, image))
    with pytest.raises(Refused, match=text):
        opened.load(opened.release(HERE), lambda _: pytest.fail("it was loaded"))
    opened.close()


def test_a_document_that_was_changed_is_missing_under_its_digest(tmp_path: Path) -> None:
    path = written(tmp_path, image_tar())
    path.write_bytes(path.read_bytes().replace(b'"layers": []', b'"layers": {}'))
    opened = Archive(path)
    with pytest.raises(Refused, match=f"has no document {REFERENCE.digest}"):
        opened.release(HERE)
    opened.close()


def test_files_that_are_something_else(tmp_path: Path) -> None:
    path = tmp_path / "file.tar"
    for content in (b"", b"no tar", image_tar(), written(tmp_path, image_tar()).read_bytes()[:3000]):
        path.write_bytes(content)
        with pytest.raises(DeployError, match=r"file\.tar is not what `lockgate deploy export` writes"):
            Archive(path).release(HERE)
    with pytest.raises(DeployError, match="cannot be read: No such file"):
        Archive(tmp_path / "none.tar")


def test_a_disk_that_is_full_leaves_no_half_file(tmp_path: Path) -> None:
    def save(to: IO[bytes]) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        archive.write(tmp_path / "file.tar", release(), SIGNATURES, save)
    assert list(tmp_path.iterdir()) == []
