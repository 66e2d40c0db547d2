"""The secret in a file, and files that hold none."""

from __future__ import annotations

from pathlib import Path

import pytest

from lockgate.cli import main
from lockgate.config.errors import ConfigError
from lockgate.config.secrets import first_line, first_line_text


@pytest.mark.parametrize("content", [b"geheim\xc3\xa9", b"geheim\xc3\xa9\n", b"geheim\xc3\xa9\r\nanother\n"])
def test_it_is_the_first_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content)
    assert first_line(path) == b"geheim\xc3\xa9"
    assert first_line_text(path) == "geheimé"


@pytest.mark.parametrize(
    ("content", "problem"), [(None, "No such file"), (b"", "has no first line"), (b"\nx", "has no"), (b"\xff", "UTF-8")]
)
def test_a_file_without_one_is_named(tmp_path: Path, content: bytes | None, problem: str) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=problem) as caught:
        first_line_text(path)
    assert caught.value.path == path


def test_signing_with_a_passphrase_that_is_not_there_is_a_mistake_and_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "lockgate.toml"
    config.write_text("")
    missing = tmp_path / "passphrase"
    command = ["deploy", "sign", "-c", str(config), "--key", "key", "--password-file", str(missing), "image"]
    assert main(command) == 3
    assert f"{missing}: cannot be read" in capsys.readouterr().err
