"""Access to HTTP origins: each condition, their combinations, and the paths they count for."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.config.errors import ConfigError
from lockgate.tunnel import json_tables, policy
from lockgate.tunnel.ingress import Access
from lockgate.tunnel.jwks import KeyUrl
from lockgate.tunnel.policy import Decision, HostAccess, Policy, Request, new_service_token, readings
from tests.support.jwts import AUDIENCE, ISSUER, NOW, Issuer

HOME = {"networks": ["192.0.2.0/24", "2001:db8::/32"]}


def read(said: dict[str, Any], folder: Path = Path("/nowhere"), name: str = "people") -> Policy:
    table = json_tables.read(folder / "tunnels.json", json.dumps(said))
    found = policy.read(name, table)
    if table.errors:
        raise table.errors[0]
    assert found is not None
    return found


def decide(
    one: Policy, address: str = "198.51.100.1", now: float = NOW, headers: dict[str, str] | None = None
) -> Decision:
    return one.decide(Request("/", address, headers or {}), now)


def pair(identifier: str, secret: str) -> dict[str, str]:
    return {"lockgate-client-id": identifier, "lockgate-client-secret": secret}


def test_a_service_token_lets_in_and_is_not_passed_on() -> None:
    identifier, secret, said = new_service_token()
    assert secret not in json.dumps(said)
    one = read({"service_token": said})
    good = decide(one, headers=pair(identifier, secret))
    assert (good.allowed, good.status, good.identity) == (True, 200, identifier)
    assert {"lockgate-client-id", "lockgate-client-secret"} <= good.secrets
    assert decide(one, headers={"cf-access-client-id": identifier, "cf-access-client-secret": secret}).allowed
    for headers in (
        {},
        {"lockgate-client-id": identifier},
        {"lockgate-client-id": identifier, "cf-access-client-secret": secret},
        pair(identifier, secret + "x"),
        pair("other", secret),
        pair(identifier, "\udcff" * 10),
    ):
        bad = decide(one, headers=headers)
        assert (bad.allowed, bad.status) == (False, 401)
        assert secret not in bad.reason


def test_a_service_token_expires() -> None:
    identifier, secret, said = new_service_token()
    until = datetime.fromtimestamp(NOW, UTC).isoformat()
    one = read({"service_token": said | {"expires": until}})
    headers = pair(identifier, secret)
    assert decide(one, now=NOW - 1, headers=headers).allowed
    late = decide(one, now=NOW, headers=headers)
    assert (late.allowed, late.status) == (False, 401)
    assert "has expired" in late.reason


def test_a_jwt_lets_in_as_bearer_or_in_its_header(tmp_path: Path) -> None:
    issuer = Issuer()
    issuer.write(tmp_path / "keys.json")
    said = {"issuer": ISSUER, "audience": [AUDIENCE], "keys": "keys.json"}
    one = read({"jwt": said}, tmp_path)
    token = issuer.token()
    good = decide(one, headers={"authorization": f"Bearer {token}"})
    assert (good.allowed, good.identity) == (True, "anna")
    assert "authorization" in good.secrets
    for headers in ({}, {"authorization": f"Basic {token}"}, {"authorization": "Bearer x"}, {"cookie": token}):
        assert decide(one, headers=headers).status == 401
    assert token not in decide(one, headers={"authorization": f"Bearer {token}x"}).reason
    named = read({"jwt": said | {"header": "Cf-Access-Jwt-Assertion"}}, tmp_path)
    assert decide(named, headers={"cf-access-jwt-assertion": token}).allowed


def test_access_of_an_ingress_rule_asks_for_the_login_of_its_team() -> None:
    assert policy.of_access(Access(required=False)) is None
    one = policy.of_access(Access(required=True, team_name="team", audiences=(AUDIENCE,)))
    assert one is not None
    issuer = Issuer()
    refused = decide(one, headers={"cf-access-jwt-assertion": issuer.token()})
    assert (refused.allowed, refused.status) == (False, 401)
    (keys,) = policy.sources([one])
    assert isinstance(keys, KeyUrl)
    assert keys.url == "https://team.cloudflareaccess.com/cdn-cgi/access/certs"


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("192.0.2.7", True),
        ("::ffff:192.0.2.7", True),
        ("2001:db8:5::1", True),
        ("192.0.3.7", False),
        ("::1", False),
        ("", False),
        ("unix", False),
    ],
)
def test_an_address_is_in_a_network_or_not(address: str, allowed: bool) -> None:
    decision = decide(read(HOME), address)
    assert decision.allowed is allowed
    assert decision.status == (200 if allowed else 403)


def test_hours_are_those_of_their_zone() -> None:
    one = read({"hours": ["mon-fri 08:00-18:00"], "time_zone": "Asia/Tokyo"})
    monday = datetime(2027, 1, 11, 0, 0, tzinfo=UTC).timestamp()  # 09:00 in Tokyo
    assert decide(one, now=monday).allowed
    assert decide(one, now=monday + 9 * 3600).status == 403
    assert decide(one, now=monday - 2 * 86_400).status == 403


def test_any_needs_one_and_asks_where_credentials_would_help() -> None:
    identifier, secret, said = new_service_token()
    one = read({"any": [HOME, {"service_token": said}]})
    assert decide(one, "192.0.2.1").allowed
    assert decide(one).status == 401
    assert decide(one, headers=pair(identifier, secret)).allowed
    assert decide(read({"any": [HOME]})).status == 403


def test_all_needs_each_and_does_not_ask_where_it_would_not_help() -> None:
    identifier, secret, said = new_service_token()
    headers = pair(identifier, secret)
    one = read({"all": [{"service_token": said}, HOME]})
    assert decide(one, "192.0.2.1", headers=headers).allowed
    assert decide(one, "192.0.2.1").status == 401
    assert decide(one, headers=headers).status == 403
    assert decide(one).status == 403


conditions = st.recursive(
    st.sampled_from([HOME, {"networks": ["0.0.0.0/0"]}, {"networks": ["203.0.113.0/24"]}]),
    lambda inner: st.dictionaries(
        st.sampled_from(["any", "all"]), st.lists(inner, min_size=1, max_size=3), min_size=1, max_size=1
    ),
    max_leaves=6,
)


@given(conditions, st.sampled_from(["192.0.2.1", "198.51.100.1", "203.0.113.1"]))
def test_combinations_mean_what_any_and_all_mean(said: dict[str, Any], address: str) -> None:
    def holds(one: dict[str, Any]) -> bool:
        if "any" in one:
            return any(holds(each) for each in one["any"])
        if "all" in one:
            return all(holds(each) for each in one["all"])
        first = one["networks"][0]
        return first == "0.0.0.0/0" or address.startswith(first[: first.index("0/")])

    assert decide(read(said), address).allowed is holds(said)


# --- paths --------------------------------------------------------------------------------------------------------


OPEN = HostAccess(None, (("/admin", read(HOME, name="staff")),))
CLOSED = HostAccess(
    read(HOME), (("/health", None), ("/health/secret", read({"networks": ["203.0.113.0/24"]}, name="x")))
)


def allowed(access: HostAccess, target: str, address: str = "198.51.100.1") -> bool:
    return access.decide(Request(target, address), NOW).allowed


def test_a_host_without_a_policy_is_open() -> None:
    assert HostAccess().decide(Request("/", "198.51.100.1"), NOW) == Decision(True, 200, "no policy")


def test_the_longest_prefix_counts_in_whole_levels() -> None:
    assert allowed(OPEN, "/")
    assert allowed(OPEN, "/administrator")
    assert not allowed(OPEN, "/admin")
    assert not allowed(OPEN, "/admin?x=1")
    assert not allowed(OPEN, "/admin/users")
    assert allowed(OPEN, "/admin/users", "192.0.2.1")
    assert allowed(CLOSED, "/health")
    assert allowed(CLOSED, "/health/db")
    assert not allowed(CLOSED, "/health/secret", "192.0.2.1")
    assert not allowed(CLOSED, "/healthy")
    assert not allowed(CLOSED, "/")


@pytest.mark.parametrize(
    "target",
    [
        "/%61dmin",
        "/%2561dmin",
        "//admin",
        "/./admin",
        "/x/../admin",
        "/x/%2e%2e/admin",
        "/x%2f..%2fadmin",
        "/admin/../x",
        "\\admin",
        "/x\\..\\admin",
        "/admin;v=1",
        "/x;/../admin",
        "/admin/",
        "http://host/admin",
        "http://host//admin/x",
        "/admin#x",
    ],
)
def test_a_path_spelled_in_another_way_is_no_way_around(target: str) -> None:
    assert not allowed(OPEN, target)
    assert not allowed(CLOSED, f"/health/..{target}")
    assert allowed(OPEN, target, "192.0.2.1")


@given(st.text("/.%25eEfF2aA;\\?x", max_size=40))
def test_any_target_can_be_read(target: str) -> None:
    assert all(path == target.partition("?")[0] or path for path in readings(target))


# --- reading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({}, "has none of its keys .*exactly one of any, all"),
        (HOME | {"hours": ["08:00-09:00"]}, "has networks, hours .*exactly one of"),
        ({"any": []}, "any: has no rules"),
        ({"any": [5]}, r"any\[0\]: 5 is no object"),
        ({"all": [HOME, {"networks": ["x"]}]}, r"all\[1\]\.networks: \['x'\] cannot be used"),
        ({"networks": ["10.0.0.1/8"]}, "has host bits set"),
        ({"hours": ["25:00-26:00"]}, "hours"),
        ({"hours": ["08:00-09:00"], "time_zone": "Mars"}, "time_zone"),
        (HOME | {"time_zone": "UTC"}, "time_zone: is no key of it"),
        ({"service_token": {"id": "x", "hash": "secret"}}, "service_token.hash: its value cannot be used"),
        ({"service_token": {"id": "x"}}, "service_token.hash: is missing"),
        ({"service_token": {"id": "x", "hash": "sha256:" + "0" * 64, "expires": "2027-01-01"}}, "no time zone"),
    ],
)
def test_a_mistake_of_a_policy_is_named(said: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        read(said)
    assert "secret" not in str(caught.value) or "service_token" not in said
    assert "accepted" in str(caught.value)


def test_policies_cannot_lie_within_each_other_without_end() -> None:
    said: dict[str, Any] = HOME
    for _ in range(9):
        said = {"any": [said]}
    with pytest.raises(ConfigError, match="lies too deep"):
        read(said)
