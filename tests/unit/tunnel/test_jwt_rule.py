"""JWTs: which are accepted, and why others are not; the keys of their issuers."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from lockgate.config.errors import ConfigError
from lockgate.tunnel import json_tables, jwks, jwt_rule
from lockgate.tunnel.jwks import KeyFile, KeyUrl, parse
from lockgate.tunnel.jwt_rule import JwtRule, Refused
from tests.support.jwts import AUDIENCE, ISSUER, NOW, Issuer


@pytest.fixture
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture
def rule(issuer: Issuer, tmp_path: Path) -> JwtRule:
    return JwtRule(ISSUER, (AUDIENCE,), KeyFile(issuer.write(tmp_path / "jwks.json")))


def test_a_good_token_tells_who_it_is(rule: JwtRule, issuer: Issuer) -> None:
    assert rule.verify(issuer.token(), NOW) == "anna"
    assert rule.verify(issuer.token(aud=["other", AUDIENCE]), NOW) == "anna"


@pytest.mark.parametrize(
    ("claims", "problem"),
    [
        ({"exp": NOW - 31}, "has expired"),
        ({"exp": None}, "has no exp"),
        ({"exp": float("nan")}, "has expired"),
        ({"nbf": NOW + 31}, "not valid yet"),
        ({"nbf": float("nan")}, "not valid yet"),
        ({"iss": "https://other.example"}, "issuer is another"),
        ({"iss": None}, "has no iss|issuer"),
        ({"aud": "other"}, "another audience"),
        ({"aud": None}, "has no aud|audience"),
        ({"sub": None}, "does not say who"),
        ({"sub": "a\nb"}, "does not say who"),
        ({"sub": "a" * 300}, "does not say who"),
    ],
)
def test_what_is_wrong_with_a_token_is_told(
    rule: JwtRule, issuer: Issuer, claims: dict[str, Any], problem: str
) -> None:
    with pytest.raises(Refused, match=problem):
        rule.verify(issuer.token(**claims), NOW)


def test_clocks_may_differ_a_little(rule: JwtRule, issuer: Issuer) -> None:
    assert rule.verify(issuer.token(exp=NOW - 29, nbf=NOW + 29), NOW) == "anna"


def test_only_listed_algorithms_of_known_keys_count(rule: JwtRule, issuer: Issuer) -> None:
    good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "eve", "exp": NOW + 60}
    for token, problem in (
        (jwt.encode(good, None, algorithm="none"), "algorithm"),  # type: ignore[arg-type]
        (jwt.encode(good, "s" * 64, algorithm="HS256", headers={"kid": "one"}), "algorithm"),
        (Issuer().token(), "signature"),
        (Issuer("two").token(), "key is not known"),
        (issuer.token()[:-4] + "AAAA", "signature"),
        ("a.b.c", "no JWT"),
        ("", "no JWT"),
        ("x" * 20_000, "too long"),
    ):
        with pytest.raises(Refused, match=problem):
            rule.verify(token, NOW)


def test_a_public_key_is_never_taken_for_a_shared_secret(tmp_path: Path) -> None:
    private = rsa.generate_private_key(65537, 2048)
    one = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(private.public_key()))
    (tmp_path / "keys").write_text(json.dumps({"keys": [one]}))
    rule = JwtRule(ISSUER, (AUDIENCE,), KeyFile(tmp_path / "keys"), ("RS256", "PS256", "ES256", "EdDSA"))
    good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "anna", "exp": NOW + 60}
    assert rule.verify(jwt.encode(good, private, algorithm="PS256"), NOW) == "anna"
    with pytest.raises(Refused, match="signature"):  # a key of another kind
        rule.verify(jwt.encode(good, ed25519.Ed25519PrivateKey.generate(), algorithm="EdDSA"), NOW)


def test_claims_are_held_against_their_patterns(issuer: Issuer, tmp_path: Path) -> None:
    keys = KeyFile(issuer.write(tmp_path / "jwks.json"))
    rule = JwtRule(ISSUER, (AUDIENCE,), keys, claims=(("email", ("*@example.org",)), ("groups", ("ops", "dev"))))
    assert rule.verify(issuer.token(email="anna@example.org", groups=["x", "dev"]), NOW) == "anna"
    for claims in (
        {"groups": ["dev"]},
        {"email": "anna@example.org.evil", "groups": ["dev"]},
        {"email": "anna@example.org", "groups": []},
        {"email": 5, "groups": ["dev"]},
    ):
        with pytest.raises(Refused, match="claim"):
            rule.verify(issuer.token(**claims), NOW)


# --- keys ---------------------------------------------------------------------------------------------------------


def test_keys_in_a_file_are_read_again_when_it_changes(
    issuer: Issuer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = issuer.write(tmp_path / "jwks.json")
    rule = JwtRule(ISSUER, (AUDIENCE,), KeyFile(file))
    assert rule.verify(issuer.token(), NOW) == "anna"
    file.write_text("{")
    assert rule.verify(issuer.token(), NOW) == "anna"
    assert "the old keys stay" in caplog.text
    other = Issuer("two")
    other.write(file)
    assert rule.verify(other.token(), NOW) == "anna"
    with pytest.raises(Refused, match="key is not known"):
        rule.verify(issuer.token(), NOW)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"keys": []}', '{"keys": [{"kty": "oct", "k": "AAAA"}]}', "[" * 9999]
)
def test_a_set_without_a_public_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse(text)


def test_a_key_for_something_else_is_passed_over(issuer: Issuer) -> None:
    keys = parse(json.dumps({"keys": [issuer.jwk(), Issuer("two").jwk() | {"use": "enc"}, {"kty": "RSA"}, 5]}))
    assert [key.kid for key in keys] == ["one"]


async def test_keys_at_an_address_are_fetched_and_stay_when_it_fails(issuer: Issuer) -> None:
    answers = [json.dumps({"keys": [issuer.jwk()]}), "nonsense", "x" * (2 << 20)]

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text=answers.pop(0)) if answers else web.Response(status=500)

    app = web.Application()
    app.router.add_get("/keys", answer)
    server = TestServer(app)
    await server.start_server()
    try:
        keys = KeyUrl(f"http://127.0.0.1:{server.port}/keys")
        rule = JwtRule(ISSUER, (AUDIENCE,), keys)
        with pytest.raises(Refused, match="key is not known"):
            rule.verify(issuer.token(), NOW)
        assert await keys.fetch()
        assert rule.verify(issuer.token(), NOW) == "anna"
        for _ in range(3):
            assert not await keys.fetch()
        assert rule.verify(issuer.token(), NOW) == "anna"
    finally:
        await server.close()
    with pytest.raises(ValueError, match="https"):
        KeyUrl("http://login.example/keys")


async def test_addresses_are_asked_as_long_as_they_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, int] = {}
    news = asyncio.Event()

    async def fetch(url: KeyUrl) -> bool:
        asked[url.url] = asked.get(url.url, 0) + 1
        news.set()
        if url.url.endswith("broken") and asked[url.url] == 1:
            raise RuntimeError("not one of those it expects")
        return True

    async def until(name: str, times: int) -> None:
        async with asyncio.timeout(5):
            while asked.get(f"https://x/{name}", 0) < times:
                await news.wait()
                news.clear()

    monkeypatch.setattr(KeyUrl, "fetch", fetch)
    monkeypatch.setattr(jwks, "_PAUSE_SECONDS", 0.01)
    first, second, broken = (KeyUrl(f"https://x/{name}") for name in ("first", "second", "broken"))
    keeping = jwks.Keeping()
    keeping.want([first])
    await until("first", 1)
    keeping.want([first, second, broken])
    await until("second", 1)
    await until("broken", 1)
    assert asked["https://x/first"] == 1
    await asyncio.to_thread(first.miss)  # where passwords are looked at
    await until("first", 2)
    keeping.want([second, broken])
    await until("broken", 2)
    first.miss()
    second.miss()
    await until("second", 2)
    assert asked["https://x/first"] == 2
    keeping.close()


# --- reading ------------------------------------------------------------------------------------------------------


def read(tmp_path: Path, text: str) -> tuple[JwtRule | None, list[ConfigError]]:
    table = json_tables.read(tmp_path / "tunnels.json", text)
    return jwt_rule.read(table), table.errors


def test_a_rule_is_read_from_its_file(issuer: Issuer, tmp_path: Path) -> None:
    issuer.write(tmp_path / "jwks.json")
    said = {"issuer": ISSUER, "audience": [AUDIENCE], "keys": "jwks.json", "claims": {"sub": "an*"}, "leeway": "5s"}
    rule, errors = read(tmp_path, json.dumps(said | {"algorithms": ["ES256"], "identity": "sub", "note": "ours"}))
    assert errors == []
    assert rule is not None
    assert rule.verify(issuer.token(), NOW) == "anna"


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"issuer": None}, "issuer: is missing"),
        ({"audience": "x"}, "audience: 'x' cannot be used"),
        ({"keys": "nowhere.json"}, "keys: .*nowhere.json: cannot be read"),
        ({"keys": "http://login.example"}, "keys: must begin with https"),
        ({"algorithms": ["HS256"]}, r"algorithms: .*'HS256' is not offered \(accepted: some of ES256"),
        ({"leeway": "1h"}, "leeway: '1h' cannot be used"),
        ({"claims": {"sub": 5}}, "claims: .*sub must be a text"),
        ({"isuer": "x"}, "isuer: is no key of it. Did you mean issuer"),
    ],
)
def test_a_mistake_of_a_rule_is_named(issuer: Issuer, tmp_path: Path, changed: dict[str, Any], problem: str) -> None:
    issuer.write(tmp_path / "jwks.json")
    said = {"issuer": ISSUER, "audience": [AUDIENCE], "keys": "jwks.json"} | changed
    rule, errors = read(tmp_path, json.dumps(said))
    assert rule is None or "isuer" in changed
    assert len(errors) == 1
    assert re.search(problem, str(errors[0]))
    assert str(errors[0]).startswith(str(tmp_path / "tunnels.json"))


@pytest.mark.parametrize(
    ("text", "problem"),
    [("{", r":1: is not valid JSON"), ("[]", "no JSON object"), ('{"a": 1, "a": 2}', "a: stands there twice")],
)
def test_a_file_that_is_no_object_is_named(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        read(tmp_path, text)
