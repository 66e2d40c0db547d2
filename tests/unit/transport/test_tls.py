"""The TLS layer without a socket: whom it lets in, what it says of the others, and what it says of bad files."""

from __future__ import annotations

import contextlib
import dataclasses
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lockgate.config.errors import ConfigError
from lockgate.config.model import CertificateConfig, Place, TlsConfig
from lockgate.transport import tls as tls_module
from lockgate.transport.layer import TransportError
from lockgate.transport.tls import Tls, TlsServer
from tests.support.certificates import Authority
from tests.support.peers import program


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def config(authority: Authority) -> TlsConfig:
    certfile, keyfile = authority.issue("server", "localhost")
    places = {name: Place(Path("m.conf"), number) for number, name in enumerate(("certfile", "keyfile", "ciphers"), 7)}
    return TlsConfig(certfile=certfile, keyfile=keyfile, places=places)


class Client:
    """The other end; `shake` goes through the handshake."""

    def __init__(self, cafile: Path, host: str = "localhost", **settings: Any) -> None:
        context = ssl.create_default_context(cafile=str(cafile))
        for name, value in settings.items():
            if name == "certificate":
                context.load_cert_chain(*value)
            elif name == "ciphers":
                context.set_ciphers(value)
            else:
                setattr(context, name, value)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.object = context.wrap_bio(self.incoming, self.outgoing, server_hostname=host)

    def shake(self, server: Tls) -> bytes:
        """Both sides until neither has more to say; raises what the server raises."""
        got = b""
        for _turn in range(10):
            with contextlib.suppress(ssl.SSLWantReadError):
                self.object.do_handshake()
            if data := self.outgoing.read():
                got += server.receive(data)
            self.incoming.write(server.send(b""))
        self.object.do_handshake()
        return got


def refusal(config: TlsConfig, client: Client) -> str:
    server = TlsServer(config).layer()
    with pytest.raises(TransportError) as caught:
        client.shake(server)
    assert not server.is_open
    client.incoming.write(server.finish(b""))
    with pytest.raises(ssl.SSLError, match="ALERT|alert"):  # it is told
        client.object.read(1)
    return str(caught.value)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_both_versions_carry_bytes_both_ways_and_say_goodbye(
    config: TlsConfig, authority: Authority, version: ssl.TLSVersion
) -> None:
    server, client = TlsServer(config).layer(), Client(authority.cafile, maximum_version=version)
    client.shake(server)
    assert server.is_open
    data = bytes(range(256)) * 400
    client.object.write(data)
    assert server.receive(client.outgoing.read()) == data
    client.incoming.write(server.finish(data))
    got = b""
    while piece := client.object.read(65536):
        got += piece
    assert got == data
    client.object.unwrap()
    server.receive(client.outgoing.read())
    assert server.ended


def test_a_version_below_the_lowest_is_refused(config: TlsConfig, authority: Authority) -> None:
    old = Client(authority.cafile, maximum_version=ssl.TLSVersion.TLSv1_2)
    assert "below tls_version" in refusal(dataclasses.replace(config, tls_version="tlsv1.3"), old)


def test_ciphers_are_chosen(config: TlsConfig, authority: Authority) -> None:
    one, other = "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-GCM-SHA256"
    config = dataclasses.replace(config, ciphers=one)
    settings: dict[str, Any] = {"maximum_version": ssl.TLSVersion.TLSv1_2}
    client = Client(authority.cafile, ciphers=one, **settings)
    client.shake(TlsServer(config).layer())
    assert client.object.cipher()[0] == one  # type: ignore[index]
    assert "no cipher that is allowed" in refusal(config, Client(authority.cafile, ciphers=other, **settings))


def test_a_client_certificate_is_demanded_checked_and_names_the_client(config: TlsConfig, authority: Authority) -> None:
    demanding = dataclasses.replace(config, require_certificate=True, cafile=authority.cafile)
    good = authority.issue("good", common_name="device-1")
    stranger = Authority(authority.folder / "..").issue("stranger")
    client = Client(authority.cafile, certificate=good)
    server = TlsServer(demanding, "identity").layer()
    client.shake(server)
    assert server.identity == "device-1"
    server = TlsServer(demanding, "subject").layer()
    Client(authority.cafile, certificate=good).shake(server)
    assert server.identity is not None
    assert server.identity.startswith("CN=device-1,OU=")
    assert "the client shows no certificate" in refusal(demanding, Client(authority.cafile))
    said = refusal(demanding, Client(authority.cafile, certificate=stranger))
    assert "the client's certificate is not accepted: " in said


def test_a_certificate_without_a_name_gives_no_identity(config: TlsConfig, authority: Authority) -> None:
    demanding = dataclasses.replace(config, require_certificate=True, cafile=authority.cafile)
    server = TlsServer(demanding, "identity").layer()
    Client(authority.cafile, certificate=authority.issue("nameless")).shake(server)
    assert server.is_open
    assert server.identity is None


def test_a_revoked_certificate_is_refused(config: TlsConfig, authority: Authority) -> None:
    good, revoked = authority.issue("kept", common_name="kept"), authority.issue("revoked", common_name="revoked")
    config = dataclasses.replace(
        config, require_certificate=True, cafile=authority.cafile, crlfile=authority.revoke(revoked[0])
    )
    Client(authority.cafile, certificate=good).shake(TlsServer(config).layer())
    assert refusal(config, Client(authority.cafile, certificate=revoked)).endswith("certificate revoked")


def test_an_expired_certificate_is_refused_unless_dates_do_not_count(config: TlsConfig, authority: Authority) -> None:
    expired = authority.issue("expired", common_name="old", expired=True)
    config = dataclasses.replace(config, require_certificate=True, cafile=authority.cafile)
    assert refusal(config, Client(authority.cafile, certificate=expired)).endswith("certificate has expired")
    lenient = dataclasses.replace(config, disable_client_cert_date_checks=True)
    server = TlsServer(lenient, "identity").layer()
    Client(authority.cafile, certificate=expired).shake(server)
    assert server.identity == "old"
    stranger = Authority(authority.folder / "..").issue("old-stranger", expired=True)
    assert "is not accepted" in refusal(lenient, Client(authority.cafile, certificate=stranger))


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("localhost", "localhost"),
        ("a.example", "a.example"),
        ("A.Example", "a.example"),
        ("x.b.example", "*.b.example"),
        ("y.x.b.example", "localhost"),
        ("c.example", "localhost"),
    ],
)
def test_the_certificate_is_chosen_by_the_name_asked_for(
    config: TlsConfig, authority: Authority, host: str, shown: str
) -> None:
    more = tuple(
        CertificateConfig(name=name, listener=8883, hosts=(name.replace("star", "*"),), certfile=cert, keyfile=key)
        for name in ("a.example", "star.b.example")
        for cert, key in [authority.issue(name, name.replace("star", "*"))]
    )
    client = Client(authority.cafile, host, check_hostname=False)
    client.shake(TlsServer(dataclasses.replace(config, certificates=more)).layer())
    certificate: Any = client.object.getpeercert()
    assert certificate["subjectAltName"] == (("DNS", shown),)


def test_a_name_that_is_no_text_fails_alone_and_prints_nothing(
    config: TlsConfig, authority: Authority, capfd: pytest.CaptureFixture[str]
) -> None:
    unheard: list[sys.UnraisableHookArgs] = []
    before, sys.unraisablehook = sys.unraisablehook, unheard.append
    try:
        one = CertificateConfig(
            name="a", listener=1, hosts=("a.example",), certfile=config.certfile, keyfile=config.keyfile
        )
        server = TlsServer(dataclasses.replace(config, certificates=(one,)))
        client = Client(authority.cafile, "a.example")
        with contextlib.suppress(ssl.SSLWantReadError):
            client.object.do_handshake()
        hello = client.outgoing.read()
        assert b"a.example" in hello
        layer = server.layer()
        with pytest.raises(TransportError, match="TLS handshake failed"):
            layer.receive(hello.replace(b"a.example", b"\xff.example"))
        Client(authority.cafile, "a.example", check_hostname=False).shake(server.layer())
    finally:
        sys.unraisablehook = before
    assert not unheard
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\x10\x0c\x00\x04MQTT\x05", "heard plain MQTT"),
        (b"GET / HTTP/1.1\r\n", "heard plain HTTP"),
        (b"SSH-2.0-x\r\n", "heard SSH"),
        (b"PROXY TCP4 ", "heard a PROXY header"),
        (b"\x00" * 40, "TLS handshake failed"),
        (b"\x16\x03\x01\xff\xff" + bytes(600), "TLS handshake failed"),
    ],
)
def test_other_bytes_are_named(config: TlsConfig, data: bytes, says: str) -> None:
    layer = TlsServer(config).layer()
    with pytest.raises(TransportError, match=says):
        layer.receive(data)
    assert layer.receive(data) == b""
    layer.finish(b"")


def test_a_broken_record_ends_an_open_connection(config: TlsConfig, authority: Authority) -> None:
    server, client = TlsServer(config).layer(), Client(authority.cafile)
    client.shake(server)
    client.object.write(b"x" * 100)
    record = bytearray(client.outgoing.read())
    record[-1] ^= 1
    with pytest.raises(TransportError, match="TLS failed"):
        server.receive(bytes(record))
    assert server.send(b"late") is not None


# --- files --------------------------------------------------------------------------------------------------------


def mistake(config: TlsConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        TlsServer(config)
    return str(caught.value)


def test_files_that_cannot_be_used_are_named_with_option_and_line(
    config: TlsConfig, authority: Authority, tmp_path: Path
) -> None:
    change = dataclasses.replace
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text("-----BEGIN CERTIFICATE-----\nrubbish\n-----END CERTIFICATE-----\n")
    other = authority.issue("other", "localhost")
    for bad, option, says in [
        (change(config, certfile=tmp_path / "none"), "certfile", "none cannot be read: No such file"),
        (change(config, keyfile=tmp_path), "keyfile", "cannot be read: Is a directory"),
        (change(config, certfile=rubbish), "certfile", "rubbish.pem cannot be used"),
        (change(config, keyfile=rubbish), "keyfile", "rubbish.pem cannot be used"),
        (change(config, keyfile=other[1]), "keyfile", "other.key is not the key of"),
        (change(config, ciphers="NONSENSE"), "ciphers", "no cipher of 'NONSENSE'"),
    ]:
        said = mistake(bad)
        assert says in said
        assert said.startswith(f"Error: {option}: ")
        assert said.endswith(f"Error found at m.conf:{config.places[option].line}.")
    demanding = change(config, require_certificate=True, cafile=authority.cafile)
    assert "none cannot be read" in mistake(change(demanding, cafile=tmp_path / "none"))
    assert "cafile: " in mistake(change(demanding, cafile=rubbish))
    assert "crlfile: " in mistake(change(demanding, crlfile=rubbish))
    assert "is no folder" in mistake(change(demanding, capath=tmp_path / "none"))


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked(config: TlsConfig, tmp_path: Path) -> None:
    locked = tmp_path / "locked.key"
    command = ["openssl", "pkey", "-in", str(config.keyfile), "-aes256", "-passout", "pass:x", "-out", str(locked)]
    subprocess.run([program(command[0]), *command[1:]], check=True, capture_output=True)
    said = mistake(dataclasses.replace(config, keyfile=locked))
    assert "locked.key is encrypted, and nobody is there to type its passphrase" in said


def test_a_certificate_of_lockgate_toml_is_named_by_its_table(config: TlsConfig, tmp_path: Path) -> None:
    one = CertificateConfig(
        name="a",
        listener=8883,
        hosts=("a",),
        certfile=tmp_path / "none",
        keyfile=config.keyfile,
        place=Place(Path("lockgate.toml"), 12),
    )
    said = mistake(dataclasses.replace(config, certificates=(one,)))
    assert said.startswith("lockgate.toml:12: certificates.a.certfile: ")


def test_a_folder_of_issuers_made_by_openssl_rehash_is_understood(
    config: TlsConfig, authority: Authority, tmp_path: Path
) -> None:
    hashed = tmp_path / "hashed"
    hashed.mkdir()
    (hashed / "ca.pem").write_bytes(authority.cafile.read_bytes())
    subprocess.run([program("openssl"), "rehash", str(hashed)], check=True, capture_output=True)
    demanding = dataclasses.replace(config, require_certificate=True, capath=hashed)
    Client(authority.cafile, certificate=authority.issue("hashed")).shake(TlsServer(demanding).layer())
    assert "not accepted" in refusal(
        demanding, Client(authority.cafile, certificate=Authority(tmp_path).issue("stranger"))
    )


def test_renewed_files_count_for_new_connections_and_a_bad_one_changes_nothing(
    config: TlsConfig, authority: Authority, tmp_path: Path
) -> None:
    mine = dataclasses.replace(config, certfile=tmp_path / "c.pem", keyfile=tmp_path / "c.key")

    def put(name: str) -> None:
        for source, target in zip(authority.issue(name, name), (mine.certfile, mine.keyfile), strict=True):
            target.write_bytes(source.read_bytes())

    put("localhost")
    server = TlsServer(mine)
    before = server.layer()
    mine.keyfile.write_text("rubbish")
    with pytest.raises(ConfigError, match=r"c\.key cannot be used"):
        TlsServer(mine)
    Client(authority.cafile).shake(server.layer())
    put("renewed.example")
    Client(authority.cafile, "renewed.example").shake(TlsServer(mine).layer())
    Client(authority.cafile).shake(before)  # it was accepted before


def test_a_certificate_revoked_later_is_refused_from_then_on(
    config: TlsConfig, authority: Authority, tmp_path: Path
) -> None:
    lost = authority.issue("lost", common_name="lost")
    config = dataclasses.replace(
        config, require_certificate=True, cafile=authority.cafile, crlfile=tmp_path / "crl.pem"
    )
    assert config.crlfile is not None
    config.crlfile.write_bytes(authority.revoke().read_bytes())
    server = TlsServer(config)
    connected, client = server.layer(), Client(authority.cafile, certificate=lost)
    client.shake(connected)
    config.crlfile.write_bytes(authority.revoke(lost[0]).read_bytes())
    server = TlsServer(config)
    with pytest.raises(TransportError, match="certificate revoked"):
        Client(authority.cafile, certificate=lost).shake(server.layer())
    client.object.write(b"still here")
    assert connected.receive(client.outgoing.read()) == b"still here"


# --- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "subject",
    [
        '/C=DE/ST=Berlin/L=Berlin/O=Ada, Inc./OU=R&D+CN=dev "1" <x>;y\\\\z/emailAddress=a@b.c',
        "/DC=org/DC=example/UID=u1/CN=Zoë Ünïcode",
        "/CN= leading and trailing /O=#hash",
        "/SN=S/GN=G/title=T/serialNumber=42/CN=a=b",
    ],
)
def test_the_subject_is_written_as_openssl_writes_it(subject: str, tmp_path: Path) -> None:
    key, cert = tmp_path / "k", tmp_path / "c"
    openssl = program("openssl")
    make = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1", "-utf8"]
    multi = ["-multivalue-rdn"] if "+CN" in subject else []
    command = [openssl, *make, *multi, "-subj", subject, "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    show = [openssl, "x509", "-in", str(cert), "-noout", "-subject", "-nameopt", "RFC2253"]
    theirs = (
        subprocess.run(show, check=True, capture_output=True, text=True).stdout.rstrip("\n").removeprefix("subject=")
    )
    ours = tls_module.subject(ssl._ssl._test_decode_cert(str(cert)))  # type: ignore[attr-defined]
    assert ours == theirs
