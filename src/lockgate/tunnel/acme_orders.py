"""Certificates of an ACME server (RFC 8555), by the library `acme`, which blocks: for a thread of its own."""

from __future__ import annotations

import base64
import binascii
import contextlib
import datetime
import hashlib
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from acme import challenges, client, crypto_util, errors, messages
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from josepy.errors import Error as JoseError
from josepy.jwa import ES256
from josepy.jwk import JWK, JWKEC

from lockgate import __version__, files
from lockgate.access import secret_file
from lockgate.config.errors import ConfigError
from lockgate.config.model import AcmeConfig
from lockgate.config.secrets import first_line
from lockgate.tunnel.certificates import load_authorities
from lockgate.tunnel.renewals import OrderError
from lockgate.tunnel.tls_alpn import Proofs, private_key_pem

_REQUEST_SECONDS: Final = 30
_ORDER_SECONDS: Final = 120.0  # from its first request to the certificate
_ACCEPTED_KEY: Final = "the account's key on P-256 in PEM; without the file a new account is made"


@challenges.ChallengeResponse.register
class _Response(challenges.KeyAuthorizationChallengeResponse):
    typ = "tls-alpn-01"


@challenges.Challenge.register
class _TlsAlpn01(challenges.KeyAuthorizationChallenge):
    """The challenge of RFC 8737, which the library does not know."""

    response_cls = _Response
    typ = _Response.typ

    def validation(self, account_key: JWK, **_: Any) -> bytes:
        """Give what the certificate with the proof has to hold."""
        return hashlib.sha256(self.key_authorization(account_key).encode()).digest()


class Orders:
    """Orders certificates by one account. Each order finds the account by its key, or makes it."""

    def __init__(self, config: AcmeConfig, folder: Path, proofs: Proofs) -> None:
        """`folder` holds the account's key, which is made if it is not there. Raises ConfigError."""
        self._config = config
        self._proofs = proofs
        self._hmac_key = _hmac_key(config.eab_hmac_file) if config.eab_hmac_file is not None else ""
        if config.ca_file is not None:
            load_authorities(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), config.ca_file)  # requests says less of it
        self._key = JWKEC(key=_account_key(folder / "account.key"))

    def certificate(self, name: str) -> bytes:
        """Give a certificate for a name with its chain, and its new private key, in PEM. Raises OrderError."""
        try:
            return self._order(name)
        except errors.ValidationError as error:
            raise OrderError("; ".join(_refusals(error))) from None
        except messages.Error as problem:
            raise OrderError(_told(problem)) from None
        except errors.IssuanceError as error:
            raise OrderError(_told(error.error)) from None
        except errors.TimeoutError:
            raise OrderError(f"the order is not done after {_ORDER_SECONDS:.0f} s") from None
        except (errors.Error, JoseError, OSError, KeyError, ValueError) as error:
            why = getattr(error.args[0], "reason", error) if error.args else error  # urllib3's, without what it tried
            raise OrderError(f"{self._config.directory} does not answer as it should: {why}") from None

    def _order(self, name: str) -> bytes:
        deadline = datetime.datetime.now() + datetime.timedelta(seconds=_ORDER_SECONDS)
        server = self._server()
        key = ec.generate_private_key(ec.SECP256R1())
        private = private_key_pem(key)
        order = server.new_order(crypto_util.make_csr(private, [name]))
        with contextlib.ExitStack() as shown:
            for authorization in order.authorizations:
                if authorization.body.status == messages.STATUS_PENDING:  # else one of an earlier order still counts
                    challenge = _challenge(authorization)
                    response, digest = challenge.response_and_validation(self._key)
                    shown.enter_context(self._proofs.showing(name, digest))
                    server.answer_challenge(challenge, response)
            order = server.poll_authorizations(order, deadline)
        chain = server.finalize_order(order, deadline).fullchain_pem.encode()
        if x509.load_pem_x509_certificate(chain).public_key() != key.public_key():
            raise OrderError("the certificate is for another key than was asked for")
        return chain + private

    def _server(self) -> client.ClientV2:
        """A connection with the account."""
        config = self._config
        verify: Any = True if config.ca_file is None else str(config.ca_file)  # as requests takes it
        net = client.ClientNetwork(
            self._key,
            alg=ES256,
            verify_ssl=verify,
            user_agent=f"lockgate/{__version__}",
            timeout=_REQUEST_SECONDS,
        )
        server = client.ClientV2(client.ClientV2.get_directory(config.directory, net), net)
        binding = None
        if config.eab_key_id:
            binding = messages.ExternalAccountBinding.from_data(
                self._key.public_key(), config.eab_key_id, self._hmac_key, server.directory
            )
        asked = messages.NewRegistration.from_data(
            email=config.email or None, terms_of_service_agreed=True, external_account_binding=binding
        )
        try:
            server.new_account(asked)
        except errors.ConflictError as known:
            net.account = messages.RegistrationResource(uri=known.location, body=messages.Registration())
        return server


def _challenge(authorization: messages.AuthorizationResource) -> messages.ChallengeBody:
    offered = {one.chall.typ: one for one in authorization.body.challenges}
    if _TlsAlpn01.typ not in offered:
        raise OrderError(f"the server offers {', '.join(offered) or 'no challenge'}, and not {_TlsAlpn01.typ}")
    return offered[_TlsAlpn01.typ]


def _told(problem: messages.Error) -> str:
    """A problem document (RFC 7807) in a line: its type and detail, then those of its subproblems."""
    told = f"{problem.typ}: {problem.detail or problem.title or 'no detail'}"
    return "; ".join((" ".join(told.split()), *map(_told, problem.subproblems or ())))


def _refusals(error: errors.ValidationError) -> Iterator[str]:
    for authorization in error.failed_authzrs:
        for challenge in authorization.body.challenges:
            if challenge.error is not None:
                yield _told(challenge.error)


def _hmac_key(path: Path) -> str:
    """The key as the library wants it: base64url. Raises ConfigError."""
    line = first_line(path)
    try:
        key = base64.b64decode(line + b"=" * (-len(line) % 4), b"-_", validate=True)
    except binascii.Error:
        raise ConfigError("is no key", path=path, accepted="base64url in the first line") from None
    return base64.urlsafe_b64encode(key).decode()  # where it may have been + and /


def _account_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read the key, or make it. Raises ConfigError."""
    if not path.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            files.replace(path, private_key_pem(key))
        except OSError as error:
            raise ConfigError(f"cannot be written: {error.strerror}", path=path) from None
        return key
    try:
        found = load_pem_private_key(secret_file.read(path), None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"cannot be used: {error}", path=path, accepted=_ACCEPTED_KEY) from None
    if not isinstance(found, ec.EllipticCurvePrivateKey) or not isinstance(found.curve, ec.SECP256R1):
        raise ConfigError("is a key of another kind", path=path, accepted=_ACCEPTED_KEY)
    return found
