"""What an order for certificates needs on the disk. Orders themselves: tests/system/test_tunnel_acme.py."""

from __future__ import annotations

import dataclasses
import stat
from pathlib import Path
from typing import Any

import pytest

from lockgate.config.errors import ConfigError
from lockgate.config.model import AcmeConfig
from lockgate.tunnel.renewals import OrderError
from lockgate.tunnel.tls_alpn import Proofs

pytest.importorskip("acme")
from acme import challenges, errors, messages

from lockgate.tunnel.acme_orders import Orders

CONFIG = AcmeConfig(names=("a.example",), agree_to_terms=True)


def test_an_account_key_is_made_once_and_belongs_to_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    Orders(CONFIG, folder, Proofs())
    key = (folder / "account.key").read_bytes()
    assert stat.S_IMODE((folder / "account.key").stat().st_mode) == 0o600
    Orders(CONFIG, folder, Proofs())
    assert (folder / "account.key").read_bytes() == key


@pytest.mark.parametrize(
    ("settings", "name", "content", "says"),
    [
        ({}, "account.key", b"nonsense", "account.key: cannot be used: "),
        ({"ca_file": "ca.pem"}, "ca.pem", b"nonsense", "ca.pem: cannot be used: "),
        ({"ca_file": "none.pem"}, "ca.pem", b"", "none.pem: cannot be used: "),
        ({"eab_hmac_file": "hmac"}, "hmac", b"c2Vj*mV0\n", "hmac: is no key (accepted: base64url in the first line)"),
        ({"eab_hmac_file": "none"}, "hmac", b"", "none: cannot be read: No such file"),
    ],
)
def test_files_that_cannot_be_used_are_named(
    tmp_path: Path, settings: dict[str, str], name: str, content: bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    files: dict[str, Any] = {key: tmp_path / value for key, value in settings.items()}
    config = dataclasses.replace(CONFIG, **files)
    with pytest.raises(ConfigError) as caught:
        Orders(config, tmp_path, Proofs())
    assert says in str(caught.value)
    assert "c2Vj" not in str(caught.value)


_CAA = {"type": "urn:ietf:params:acme:error:caa", "detail": "CAA record\nforbids it"}
CAA = messages.Error.from_json(_CAA)
COMPOUND = messages.Error.from_json(
    {"type": "urn:ietf:params:acme:error:compound", "title": "Several", "subproblems": [_CAA]}
)


def refused(problem: messages.Error) -> errors.ValidationError:
    challenge = messages.ChallengeBody(
        chall=challenges.HTTP01(token=b"0" * 32), uri="https://h/1", status=messages.STATUS_INVALID, error=problem
    )
    body = messages.Authorization(challenges=(challenge,), status=messages.STATUS_INVALID)
    return errors.ValidationError([messages.AuthorizationResource(body=body)])


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (CAA, "urn:ietf:params:acme:error:caa: CAA record forbids it"),
        (
            COMPOUND,
            "urn:ietf:params:acme:error:compound: Several; urn:ietf:params:acme:error:caa: CAA record forbids it",
        ),
        (errors.IssuanceError(CAA), "urn:ietf:params:acme:error:caa: CAA record forbids it"),
        (refused(CAA), "urn:ietf:params:acme:error:caa: CAA record forbids it"),
        (errors.TimeoutError(), "the order is not done after 120 s"),
        (KeyError("no newOrder"), f"{CONFIG.directory} does not answer as it should: 'no newOrder'"),
        (TimeoutError("timed out"), f"{CONFIG.directory} does not answer as it should: timed out"),
    ],
)
def test_what_the_library_raises_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    def fail(_: str) -> bytes:
        raise error

    orders = Orders(CONFIG, tmp_path, Proofs())
    monkeypatch.setattr(orders, "_order", fail)
    with pytest.raises(OrderError) as caught:
        orders.certificate("a.example")
    assert str(caught.value) == says
