from __future__ import annotations

import base64
import contextlib
import dataclasses
import datetime
import ipaddress
import shutil
import ssl
import time
from pathlib import Path

import pytest
import trustme
from cryptography import x509 as other_x509
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lockgate.doctor import certificates
from lockgate.doctor.case import Case
from lockgate.doctor.finding import Finding
from lockgate.doctor.x509 import read
from tests.support.certificates import Authority
from tests.support.machines import case_of

DAY = 86_400


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    (tmp_path / "tls").mkdir()
    return Authority(tmp_path / "tls")


def tls(folder: Path, cert: Path, key: Path, *lines: str) -> Case:
    return case_of(folder, "listener 8883", f"certfile {cert}", f"keyfile {key}", *lines)


def bad(case: Case) -> list[Finding]:
    return [one for one in certificates.of_listeners(case) if one.severity != "ok"]


def only(case: Case) -> Finding:
    (found,) = bad(case)
    return found


def test_what_is_read_is_what_cryptography_reads(authority: Authority) -> None:
    cert, _ = authority.issue("server", "mqtt.example.org", "*.example.net", "192.0.2.7", "2001:db8::7")
    for path in (cert, authority.cafile):
        (ours,) = read(path.read_text())
        theirs = other_x509.load_pem_x509_certificate(path.read_bytes())
        assert (ours.subject, ours.issuer) == (theirs.subject.public_bytes(), theirs.issuer.public_bytes())
        assert ours.begins_at == theirs.not_valid_before_utc.timestamp()
        assert ours.ends_at == theirs.not_valid_after_utc.timestamp()
        key = theirs.extensions.get_extension_for_class(other_x509.SubjectKeyIdentifier).value.digest
        assert ours.key_id == key
        constraints = theirs.extensions.get_extension_for_class(other_x509.BasicConstraints).value
        assert ours.is_authority == constraints.ca
    (ours,) = read(cert.read_text())
    assert set(ours.hosts) == {
        "mqtt.example.org",
        "*.example.net",
        "192.0.2.7",
        str(ipaddress.ip_address("2001:db8::7")),
    }
    assert ours.issuer_key_id == read(authority.cafile.read_text())[0].key_id


@pytest.mark.parametrize(
    ("host", "covered"),
    [
        ("mqtt.example.org", True),
        ("MQTT.example.org.", True),
        ("a.example.net", True),
        ("a.b.example.net", False),
        ("example.net", False),
        ("192.0.2.7", True),
        ("192.0.2.8", False),
    ],
)
def test_names_cover_hosts(host: str, covered: bool, authority: Authority) -> None:
    cert, _ = authority.issue("server", "mqtt.example.org", "*.example.net", "192.0.2.7")
    assert read(cert.read_text())[0].covers(host) == covered


def test_a_file_without_a_certificate_holds_none() -> None:
    assert read("") == []


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_a_damaged_certificate_is_a_value_error(noise: bytes) -> None:
    text = base64.b64encode(bytes([0x30, 0x03, 0x30, 0x01]) + noise).decode()
    with contextlib.suppress(ValueError):
        read(f"-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")


@given(st.integers(0, 2**31), st.integers(0, 255))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_certificate_with_a_changed_byte_is_read_or_a_value_error(
    good_certificate: bytes, at: int, value: int
) -> None:
    damaged = bytearray(good_certificate)
    damaged[at % len(damaged)] = value
    with contextlib.suppress(ValueError):
        read(ssl.DER_cert_to_PEM_cert(bytes(damaged)))


@pytest.fixture(scope="module")
def good_certificate(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    cert, _ = Authority(tmp_path_factory.mktemp("good")).issue("server", "mqtt.example.org")
    return ssl.PEM_cert_to_DER_cert(cert.read_text())


def test_a_good_pair_is_good(authority: Authority, tmp_path: Path) -> None:
    (found,) = certificates.of_listeners(tls(tmp_path, *authority.issue("server", "mqtt.example.org")))
    assert found.severity == "ok"
    assert "is for mqtt.example.org" in found.problem


def test_a_key_of_another_certificate_is_told_with_its_line(authority: Authority, tmp_path: Path) -> None:
    cert, _ = authority.issue("server", "localhost")
    _, key = authority.issue("other", "localhost")
    found = only(tls(tmp_path, cert, key))
    assert (found.check, found.severity, found.where) == ("certificate", "error", f"{tmp_path / 'mosquitto.conf'}:3")
    assert "is not the key of" in found.problem


def chained(folder: Path) -> tuple[Path, Path, Path, Path]:
    """A server's certificate, its key, the intermediate and the root."""
    root = trustme.CA()
    intermediate = root.create_child_ca()
    made = intermediate.issue_cert("localhost")
    paths = (folder / "leaf.pem", folder / "server.key", folder / "intermediate.pem", folder / "root.crt")
    made.cert_chain_pems[0].write_to_path(paths[0])
    made.private_key_pem.write_to_path(paths[1])
    intermediate.cert_pem.write_to_path(paths[2])
    root.cert_pem.write_to_path(paths[3])
    return paths


def test_a_leaf_without_its_intermediate_is_told(tmp_path: Path) -> None:
    (tmp_path / "tls").mkdir()
    leaf, key, intermediate, _ = chained(tmp_path / "tls")
    found = only(tls(tmp_path, leaf, key))
    assert (found.check, found.severity) == ("certificate-chain", "error")
    assert str(intermediate) in found.problem
    assert found.advice.startswith(f"cat {leaf} {intermediate}")
    chain = tmp_path / "chain.pem"
    chain.write_bytes(leaf.read_bytes() + intermediate.read_bytes())
    assert not bad(tls(tmp_path, chain, key))


def test_the_short_one_of_lets_encrypts_files_is_told(tmp_path: Path) -> None:
    (tmp_path / "tls").mkdir()
    leaf, key, intermediate, _ = chained(tmp_path / "tls")
    full = tmp_path / "tls/fullchain.pem"
    full.write_bytes(leaf.read_bytes() + intermediate.read_bytes())
    intermediate.unlink()
    cert = leaf.rename(tmp_path / "tls/cert.pem")
    assert only(tls(tmp_path, cert, key)).advice == f"name {full} as certfile"


def test_a_chain_with_its_server_last_is_told(tmp_path: Path) -> None:
    leaf, key, intermediate, _ = chained(tmp_path)
    chain = tmp_path / "chain.txt"
    chain.write_bytes(intermediate.read_bytes() + leaf.read_bytes())
    found = bad(tls(tmp_path, chain, key))
    assert {one.check for one in found if one.severity == "error"} >= {"certificate-order"}
    assert any("number 2 in it" in one.problem for one in found)


def test_a_chain_in_the_wrong_order_behind_its_server_is_told(tmp_path: Path) -> None:
    leaf, key, intermediate, root = chained(tmp_path)
    chain = tmp_path / "chain.txt"
    chain.write_bytes(leaf.read_bytes() + root.read_bytes() + intermediate.read_bytes())
    found = only(tls(tmp_path, chain, key))
    assert found.check == "certificate-order"
    assert "certificate 1" in found.problem


def test_a_certificate_for_another_host_is_told(authority: Authority, tmp_path: Path) -> None:
    case = tls(tmp_path, *authority.issue("server", "mqtt.example.org"))
    assert not bad(dataclasses.replace(case, hosts=("mqtt.example.org",)))
    found = only(dataclasses.replace(case, hosts=("gateway.local",)))
    assert (found.check, found.severity) == ("certificate-name", "error")
    assert "not for gateway.local, only for mqtt.example.org" in found.problem
    assert "DNS:gateway.local" in found.advice


def test_the_address_of_a_listener_has_to_be_in_its_certificate(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.issue("server", "mqtt.example.org")
    case = case_of(tmp_path, "listener 8883 192.0.2.7", f"certfile {cert}", f"keyfile {key}")
    assert "IP:192.0.2.7" in only(case).advice


@pytest.mark.parametrize(
    ("ends_in", "severity"), [(40 * DAY, None), (10 * DAY, "warning"), (-DAY, "error")], ids=["later", "soon", "past"]
)
def test_the_end_of_a_certificate_is_told(
    ends_in: float, severity: str | None, authority: Authority, tmp_path: Path
) -> None:
    cert, key = authority.issue("server", "localhost")
    end = read(cert.read_text())[0].ends_at
    found = bad(dataclasses.replace(tls(tmp_path, cert, key), now=end - ends_in))
    assert [one.severity for one in found] == ([severity] if severity else [])
    if severity == "warning":
        assert "in 10 days" in found[0].problem


@pytest.mark.parametrize(("left", "told"), [(2.1, []), (1.9, ["warning"])])
def test_a_certificate_for_days_ends_soon_when_a_third_of_them_is_left(
    authority: Authority, left: float, told: list[str]
) -> None:
    certfile, _ = authority.issue("server", "localhost")
    now = 1_800_000_000
    end = now + int(left * 86_400)
    one = dataclasses.replace(read(certfile.read_text())[0], begins_at=end - 6 * 86_400, ends_at=end)
    assert [found.severity for found in certificates.times(certfile, one, "here", now)] == told


def test_a_certificate_of_the_future_points_to_the_clock(authority: Authority, tmp_path: Path) -> None:
    case = tls(tmp_path, *authority.issue("server", "localhost"))
    found = only(dataclasses.replace(case, now=datetime.datetime(1970, 1, 2, tzinfo=datetime.UTC).timestamp()))
    assert "not valid before" in found.problem
    assert "1970-01-02" in found.problem
    assert "clock" in found.advice


def test_a_client_of_another_authority_is_told(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "others").mkdir()
    theirs, _ = Authority(tmp_path / "others").issue("device", common_name="device")
    ours, _ = authority.issue("mine", common_name="mine")
    lines = (f"cafile {authority.cafile}", "require_certificate true")
    case = tls(tmp_path, *authority.issue("server", "localhost"), *lines)
    assert not bad(dataclasses.replace(case, client_certificates=(ours,)))
    found = only(dataclasses.replace(case, client_certificates=(theirs,)))
    assert (found.check, found.severity, found.where) == ("certificate-client", "error", f"{case.path}:4")
    assert str(theirs) in found.problem


def test_a_file_that_is_no_client_certificate_is_told(authority: Authority, tmp_path: Path) -> None:
    lines = (f"cafile {authority.cafile}", "require_certificate true")
    case = tls(tmp_path, *authority.issue("server", "localhost"), *lines)
    found = only(dataclasses.replace(case, client_certificates=(tmp_path / "none.pem",)))
    assert found.where == str(tmp_path / "none.pem")


def test_a_server_certificate_as_cafile_is_told(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.issue("server", "localhost")
    wrong = shutil.copy(cert, tmp_path / "ca.txt")
    found = only(tls(tmp_path, cert, key, f"cafile {wrong}", "require_certificate true"))
    assert found.check == "certificate-authority"
    assert time.time() < read(cert.read_text())[0].ends_at
