"""Which certificate a client of the edge's public side sees, also while a name is proved (RFC 8737)."""

from __future__ import annotations

import hashlib
import ssl
from pathlib import Path

import pytest
from cryptography import x509

from lockgate.config.errors import ConfigError
from lockgate.config.model import AcmeConfig, EdgeConfig, GatewayConfig
from lockgate.tunnel.certificates import Certificates, Pair, public_pairs
from lockgate.tunnel.tls_alpn import Proofs
from tests.support.certificates import Authority

DIGEST = hashlib.sha256(b"token.thumbprint").digest()
ACME_IDENTIFIER = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    return [Authority(tmp_path).issue("a", "a.example"), Authority(tmp_path).issue("b", "b.example")]


def client_context() -> ssl.SSLContext:
    """Of a client that takes any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def handshake(
    port: ssl.SSLContext, asking: ssl.SSLContext, name: str, piece: int = 1 << 14
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """The two ends of a connection; what the client sends arrives in pieces. Raises SSLError."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    sent = ssl.MemoryBIO()
    client = asking.wrap_bio(down, sent, server_hostname=name)
    server = port.wrap_bio(up, down, server_side=True)
    left = {client, server}
    while left:
        for side in (client, server):
            while side in left:
                try:
                    side.do_handshake()
                    left.discard(side)
                except ssl.SSLWantReadError:
                    if side is client or not sent.pending:
                        break
                if side is server:
                    up.write(sent.read(piece))
    return client, server


def shown(
    certificates: Certificates, name: str, alpn: list[str], piece: int = 1 << 14
) -> tuple[str | None, x509.Certificate]:
    """Protocol and certificate that a client gets. Raises SSLError."""
    asking = client_context()
    if alpn:
        asking.set_alpn_protocols(alpn)
    client, _ = handshake(certificates.context, asking, name, piece)
    der = client.getpeercert(binary_form=True)
    assert der is not None
    return client.selected_alpn_protocol(), x509.load_der_x509_certificate(der)


def hosts(certificate: x509.Certificate) -> list[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.DNSName)


@pytest.mark.parametrize("piece", [1, 100, 1 << 14])
def test_only_who_validates_a_name_sees_its_proof(pairs: list[Pair], piece: int) -> None:
    proofs = Proofs()
    certificates = Certificates(lambda: pairs, client_ca=None, alpn=("http/1.1",), proofs=proofs)
    with proofs.showing("b.example", DIGEST):
        protocol, proof = shown(certificates, "b.example", ["acme-tls/1"], piece)
        assert protocol == "acme-tls/1"
        assert proof.issuer == proof.subject
        assert hosts(proof) == ["b.example"]
        found = proof.extensions.get_extension_for_oid(ACME_IDENTIFIER)
        assert found.critical
        assert found.value.public_bytes() == b"\x04\x20" + DIGEST
        for name, alpn in (
            ("b.example", []),
            ("b.example", ["http/1.1"]),
            ("b.example", ["acme-tls/1", "http/1.1"]),
            ("a.example", ["acme-tls/1"]),
        ):
            _, ordinary = shown(certificates, name, alpn, piece)
            assert (hosts(ordinary), ordinary.issuer == ordinary.subject) == ([name], False)
    _, afterwards = shown(certificates, "b.example", ["acme-tls/1"], piece)
    assert afterwards.issuer != afterwards.subject


def test_without_a_certificate_everybody_is_refused_but_who_validates(pairs: list[Pair]) -> None:
    proofs = Proofs()
    certificates = Certificates(list, client_ca=None, alpn=(), proofs=proofs)
    with proofs.showing("a.example", DIGEST):
        assert shown(certificates, "a.example", ["acme-tls/1"])[0] == "acme-tls/1"
        with pytest.raises(ssl.SSLError):
            shown(certificates, "a.example", [])


def test_a_certificate_that_comes_is_taken_and_one_that_goes_stays(
    pairs: list[Pair], caplog: pytest.LogCaptureFixture
) -> None:
    there: list[Pair] = []

    def find() -> list[Pair]:
        if there == pairs[1:]:
            raise ConfigError("none is there")
        return list(there)

    certificates = Certificates(find, client_ca=None, alpn=())
    there.append(pairs[0])
    assert certificates.refresh()
    assert hosts(shown(certificates, "a.example", [])[1]) == ["a.example"]
    there[:] = pairs[1:]
    assert not certificates.refresh()
    assert not certificates.refresh()
    assert caplog.text.count("Certificates stay what they were: none is there") == 1
    assert hosts(shown(certificates, "a.example", [])[1]) == ["a.example"]


def test_a_broken_pair_stays_what_it_was_and_holds_up_no_other(
    pairs: list[Pair], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificates = Certificates(lambda: pairs, client_ca=None, alpn=())
    before = {name: shown(certificates, name, [])[1] for name in ("a.example", "b.example")}
    pairs[0][1].write_text("no key")
    Authority(tmp_path).issue("b", "b.example")
    assert not certificates.refresh()
    assert caplog.text.count(f"Certificates stay what they were: {pairs[0][0]}") == 1
    assert shown(certificates, "a.example", [])[1] == before["a.example"]
    renewed = shown(certificates, "b.example", [])[1]
    assert hosts(renewed) == ["b.example"]
    assert renewed != before["b.example"]
    assert not certificates.refresh()  # it is read again when it has changed
    Authority(tmp_path).issue("a", "a.example")
    assert certificates.refresh()
    assert shown(certificates, "a.example", [])[1] != before["a.example"]


def test_devices_are_asked_for_certificates_at_a_port_that_began_without_one(pairs: list[Pair], tmp_path: Path) -> None:
    there: list[Pair] = []
    authority = Authority(tmp_path)
    certificates = Certificates(lambda: list(there), client_ca=authority.cafile, alpn=())
    port = certificates.context
    there += pairs
    certificates.refresh()
    asking = client_context()
    asking.load_cert_chain(*authority.issue("device"))
    _, server = handshake(port, asking, "a.example")
    assert server.getpeercert()


def test_authorities_of_devices_that_cannot_be_used_are_named(pairs: list[Pair], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.pem: cannot be used: .*certificates in PEM"):
        Certificates(lambda: pairs, client_ca=tmp_path / "none.pem", alpn=())


def test_files_go_before_what_acme_brought(tmp_path: Path) -> None:
    gateway = GatewayConfig(id="edge", data_dir=tmp_path)
    with pytest.raises(ConfigError, match="no certificate is in"):
        public_pairs(EdgeConfig(), gateway)
    acme = AcmeConfig(names=("b.example", "a.example"))
    config = EdgeConfig(acme=acme)
    assert not public_pairs(config, gateway)
    fetched = acme.files(gateway)["a.example"]
    assert fetched == tmp_path / "edge" / "acme" / "acme-v02.api.letsencrypt.org-directory" / "a.example.pem"
    fetched.parent.mkdir(parents=True)
    fetched.touch()
    own = tmp_path / "edge" / "certificates" / "own.pem"
    own.parent.mkdir()
    own.touch()
    assert public_pairs(config, gateway) == [(own, own.with_suffix(".key")), (fetched, fetched)]
