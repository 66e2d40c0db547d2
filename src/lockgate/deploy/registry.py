"""A private registry, by the OCI distribution protocol: small documents only, the engine pulls what is large.

Every request has a limit for all of it, from the name's look-up to the last byte: a registry that answers byte by byte
ends there like one that says nothing.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import aiohttp

from lockgate.deploy.errors import DeployError, Refused, Unreachable
from lockgate.deploy.reference import Reference
from lockgate.deploy.release import INDEXES, MANIFESTS, Platform, Release, checked, digest_of, read_release
from lockgate.deploy.signature import ANNOTATION, MEDIA_TYPE, Signature, of_layer, tag_of

_MOST_BYTES = 4 * 1024 * 1024  # of one document
_LOOPBACK = re.compile(r"(127(\.\d+){3}|localhost|\[::1\])(:\d+)?")
_CHALLENGE = re.compile(r'([a-zA-Z]+)="([^"]*)"')


class Missing(DeployError):
    """The registry has no such image."""


@dataclass(frozen=True, slots=True)
class Login:
    """User and password of a registry."""

    user: str
    password: str

    def basic(self) -> str:
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def login_from_file(path: Path) -> Login:
    """Read USER:PASSWORD, a file's first line. Raises DeployError."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DeployError(f"deploy.login_file: {path} cannot be read: {error}") from None
    user, colon, password = (lines or [""])[0].partition(":")
    if not (user and colon and password):
        raise DeployError(f"deploy.login_file: the first line of {path} has to be USER:PASSWORD")
    return Login(user, password)


def login_from_docker(path: Path, registry: str) -> Login | None:
    """Read what `docker login` left in its config.json; None where it knows nothing of this registry."""
    try:
        said = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DeployError(f"deploy.docker_config: {path} cannot be read: {error}") from None
    known = said.get("auths") if isinstance(said, dict) else None
    entry = known.get(registry, known.get(f"https://{registry}")) if isinstance(known, dict) else None
    if entry is None:
        return None
    try:
        user, _, password = base64.b64decode(entry["auth"]).decode().partition(":")
        return Login(user, password)
    except (LookupError, TypeError, ValueError):
        problem = f"{path} has no password for {registry}, a program keeps it (credsStore)"
        raise DeployError(f"deploy.docker_config: {problem}: use deploy.login_file") from None


class Registry:
    """One registry. Plain HTTP only on the loopback, as the engine has it."""

    def __init__(self, host: str, login: Login | None, ca_file: Path | None, seconds: float) -> None:
        self.host = host
        self._login = login
        self._seconds = seconds
        self._scheme = "http" if _LOOPBACK.fullmatch(host) and ca_file is None else "https"
        self._authorization: dict[str, str] = {}  # by what is asked for
        self._tls: ssl.SSLContext | bool = True
        if self._scheme == "https":
            try:
                self._tls = ssl.create_default_context(cafile=ca_file)
            except (OSError, ssl.SSLError) as error:
                raise DeployError(f"deploy.ca_file: {ca_file} cannot be used: {error}") from None

    # --- reading --------------------------------------------------------------------------------------------------

    def resolve(self, reference: Reference) -> Reference:
        """Give what a tag stands for now. Raises Missing."""
        if reference.digest:
            return reference
        _, document = self._document(reference, f"manifests/{reference.tag}", str(reference))
        return reference.at(digest_of(document))

    def release(self, reference: Reference, platform: Platform) -> Release:
        """Give the documents of an image. Raises Missing, Refused."""

        def fetch(digest: str, is_manifest: bool) -> bytes:
            kind = "manifests" if is_manifest else "blobs"
            return self._document(reference, f"{kind}/{digest}", str(reference))[1]

        return read_release(reference, fetch, platform)

    def signatures(self, reference: Reference) -> list[Signature]:
        """Give what lies beside an image under the tag that cosign uses; none where nothing does."""
        tag = tag_of(reference.digest)
        try:
            _, document = self._document(reference, f"manifests/{tag}", f"{reference.name}:{tag}")
        except Missing:
            return []
        found = []
        for layer in _layers(document)[:32]:
            digest = str(layer.get("digest", ""))
            if layer.get("mediaType") == MEDIA_TYPE:
                payload = checked(
                    self._document(reference, f"blobs/{digest}", digest)[1], digest, f"{reference.name}:{tag}"
                )
                signature = of_layer(layer, payload)
                found += [signature] if signature is not None else []
        return found

    # --- writing --------------------------------------------------------------------------------------------------

    def add_signature(self, reference: Reference, signature: Signature) -> Reference:
        """Put a signature beside an image, and beside those that are there; gives where it lies."""
        tag = tag_of(reference.digest)
        try:
            _, before = self._document(reference, f"manifests/{tag}", tag)
            layers = _layers(before)
        except Missing:
            layers = []
        layers.append(
            {
                "mediaType": MEDIA_TYPE,
                "size": len(signature.payload),
                "digest": digest_of(signature.payload),
                "annotations": {ANNOTATION: base64.b64encode(signature.signature).decode()},
            }
        )
        history = {"architecture": "", "os": "", "config": {}}
        rootfs = {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]}
        config = json.dumps(history | {"rootfs": rootfs}).encode()
        kind = "application/vnd.oci.image.config.v1+json"
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFESTS[0],
            "config": {"mediaType": kind, "size": len(config), "digest": digest_of(config)},
            "layers": layers,
        }
        for blob in (signature.payload, config):
            self._push_blob(reference, blob)
        path = f"/v2/{reference.repository}/manifests/{tag}"
        self._request("PUT", path, reference, json.dumps(manifest).encode(), {"Content-Type": MANIFESTS[0]})
        return Reference(reference.registry, reference.repository, tag)

    def _push_blob(self, reference: Reference, blob: bytes) -> None:
        status, headers, _ = self._request("POST", f"/v2/{reference.repository}/blobs/uploads/", reference, b"")
        place = headers.get("Location", "")
        if not place:
            raise DeployError(f"{self.host} takes no upload: it answered {status} without a place for it")
        place += ("&" if "?" in place else "?") + f"digest={digest_of(blob)}"
        self._request("PUT", place, reference, blob, {"Content-Type": "application/octet-stream"})

    # --- asking ---------------------------------------------------------------------------------------------------

    def _document(self, reference: Reference, what: str, name: str) -> tuple[Mapping[str, str], bytes]:
        accept = {"Accept": ", ".join((*INDEXES, *MANIFESTS))} if what.startswith("manifests/") else {}
        try:
            status, headers, document = self._request(
                "GET", f"/v2/{reference.repository}/{what}", reference, None, accept
            )
        except Missing:
            raise Missing(f"{self.host} has no {name}") from None
        said = headers.get("Docker-Content-Digest")
        if what.startswith("manifests/") and said is not None and said != digest_of(document):
            raise Refused(f"{name}: {self.host} calls its content {said}, and it is {digest_of(document)}")
        if status != 200:
            raise DeployError(f"{self.host} answered {status} when asked for {name}")
        return headers, document

    def _request(
        self, method: str, path: str, reference: Reference, body: bytes | None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Mapping[str, str], bytes]:
        try:
            return asyncio.run(self._authorized(method, path, reference, body, dict(headers or {})))
        except TimeoutError:
            raise Unreachable(f"{self.host} did not answer within {self._seconds:g} s") from None
        except aiohttp.ClientConnectorCertificateError as error:
            problem = getattr(error.certificate_error, "verify_message", "") or error.certificate_error
            hint = "name its authority in deploy.ca_file, and for the engine in /etc/docker/certs.d"
            raise DeployError(
                f"{self.host}: its certificate cannot be trusted: {problem}; {hint}/{self.host}/ca.crt"
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(f"{self.host} cannot be asked: {error}") from None

    async def _authorized(
        self, method: str, path: str, reference: Reference, body: bytes | None, headers: dict[str, str]
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Ask once, and once more with what the registry wants to see."""
        timeout = aiohttp.ClientTimeout(total=self._seconds)
        actions = "pull" if method == "GET" else "pull,push"
        async with asyncio.timeout(self._seconds), aiohttp.ClientSession(timeout=timeout) as session:
            known = self._authorization.get(actions)
            answer = await self._ask(session, method, path, body, headers | ({"Authorization": known} if known else {}))
            if answer[0] == 401:
                authorization = await self._authorization_for(session, answer[1], reference, actions)
                if authorization != known:
                    self._authorization[actions] = authorization
                    answer = await self._ask(session, method, path, body, headers | {"Authorization": authorization})
        status = answer[0]
        if status in (401, 403):
            who = f"{self._login.user!r}" if self._login else "who does not log in (deploy.login_file)"
            raise DeployError(f"{self.host} refused the login of {who} for {reference.repository}: {status}")
        if status == 404:
            raise Missing(f"{self.host} has no {path}")
        if status == 429 or status >= 500:
            raise Unreachable(f"{self.host} answered {status}")
        if status >= 300:
            raise DeployError(f"{self.host} answered {status} to {method} {path.partition('?')[0]}")
        return answer

    async def _ask(
        self, session: aiohttp.ClientSession, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[int, Mapping[str, str], bytes]:
        url = urljoin(f"{self._scheme}://{self.host}", path)
        if "Authorization" in headers and urlsplit(url).netloc != self.host:
            raise DeployError(
                f"{self.host} wants an upload to {urlsplit(url).netloc}, which gets no password from here"
            )
        async with session.request(method, url, data=body, headers=headers, ssl=self._tls) as response:
            document = bytearray()
            async for chunk in response.content.iter_any():
                document += chunk
                if len(document) > _MOST_BYTES:
                    raise Refused(f"{self.host}: a document of more than {_MOST_BYTES} bytes")
            return response.status, dict(response.headers), bytes(document)

    async def _authorization_for(
        self, session: aiohttp.ClientSession, headers: Mapping[str, str], reference: Reference, actions: str
    ) -> str:
        """Give the header by which to ask again: the password, or a token that it is changed for."""
        challenge = next((value for name, value in headers.items() if name.lower() == "www-authenticate"), "")
        if challenge.lower().startswith("basic"):
            if self._login is None:
                raise DeployError(f"{self.host} wants a login: deploy.login_file or deploy.docker_config")
            return self._login.basic()
        said = {name.lower(): value for name, value in _CHALLENGE.findall(challenge)}
        realm = said.get("realm", "")
        if not challenge.lower().startswith("bearer") or not realm:
            raise DeployError(f"{self.host} wants a login of a kind that is not known here: {challenge[:80]!r}")
        place = urlsplit(realm)
        if self._login is not None and place.scheme != "https" and not _LOOPBACK.fullmatch(place.netloc):
            raise DeployError(f"{self.host} sends us to {realm} with a password, and that is not https")
        asked = {"scope": f"repository:{reference.repository}:{actions}"}
        asked |= {"service": said["service"]} if "service" in said else {}
        login = {"Authorization": self._login.basic()} if self._login is not None else {}
        async with session.get(realm, params=asked, headers=login, ssl=self._tls) as response:
            text = await response.content.read(_MOST_BYTES)
            if response.status != 200:
                raise DeployError(f"{place.netloc} refused the login for {reference.repository}: {response.status}")
        try:
            token = json.loads(text)
            return f"Bearer {token.get('token') or token['access_token']}"
        except (ValueError, LookupError, AttributeError):
            raise DeployError(f"{place.netloc} gave no token") from None


def _layers(document: bytes) -> list[dict[str, object]]:
    try:
        layers = json.loads(document)["layers"]
    except (ValueError, LookupError, TypeError):
        return []
    return [layer for layer in layers if isinstance(layer, dict)] if isinstance(layers, list) else []
