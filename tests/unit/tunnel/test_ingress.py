"""Ingress rules: what they say in three languages, what matches, what an edge may push."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate import cli
from lockgate.config import lockgate_toml
from lockgate.config.errors import ConfigError
from lockgate.tunnel.ingress import Access, Ingress, OriginRequest
from lockgate.tunnel.ingress_files import configured, from_json, from_toml, from_yaml
from lockgate.tunnel.pushes import Configurations
from lockgate.tunnel.services import AllowList

LAST: dict[str, object] = {"service": "http_status:404"}


def rules(*said: dict[str, object]) -> Ingress:
    return from_json({"ingress": [*said, LAST]})


def service(ingress: Ingress, host: str, path: str = "/") -> str:
    return ingress.match(host, path).service.text


def test_the_first_rule_that_matches_counts() -> None:
    ingress = rules(
        {"hostname": "mqtt.example.org", "path": "^/mqtt", "service": "ws://mosquitto:9001"},
        {"hostname": "mqtt.example.org", "service": "http://web"},
        {"hostname": "*.example.org", "service": "http://other"},
    )
    assert service(ingress, "mqtt.example.org", "/mqtt") == "ws://mosquitto:9001"
    assert service(ingress, "mqtt.example.org:443", "/mqtt?x=1") == "ws://mosquitto:9001"
    assert service(ingress, "MQTT.Example.org.", "/") == "http://web"
    assert service(ingress, "mqtt.example.org", "/?/mqtt") == "http://web"
    assert service(ingress, "a.b.example.org") == "http://other"
    assert service(ingress, "example.org") == "http_status:404"
    assert service(ingress, "badexample.org") == "http_status:404"
    assert service(ingress, ".example.org") == "http_status:404"
    assert service(ingress, "[2001:db8::1]:443") == "http_status:404"


def test_a_path_is_looked_for_anywhere_and_decoded() -> None:
    ingress = rules({"path": r"\.(js|css)$", "service": "http://static"}, {"path": "^/ä", "service": "http://umlaut"})
    assert service(ingress, "x", "/a/b.js") == "http://static"
    assert service(ingress, "x", "/a/b.js?v=1") == "http://static"
    assert service(ingress, "x", "/a%2Ejs") == "http://static"
    assert service(ingress, "x", "/%C3%A4") == "http://umlaut"
    assert service(ingress, "x", "/a.js/") == "http_status:404"


def test_no_path_takes_long_to_be_looked_at() -> None:
    ingress = rules({"path": "^(a+)+(b|bb)*c.*.*.*.*$x", "service": "http://x"})
    begin = time.monotonic()
    assert service(ingress, "x", "/" + "a" * 16_000) == "http_status:404"
    assert service(ingress, "x", "/" + "a" * 100_000) == "http_status:404"
    assert time.monotonic() - begin < 5  # a backtracking engine needs longer than the sun


def test_the_keys_of_origin_requests_and_their_defaults() -> None:
    ingress = from_json(
        {
            "originRequest": {"connectTimeout": 5, "noTLSVerify": True, "proxyType": "", "bastionMode": False},
            "ingress": [
                {
                    "hostname": "a.example",
                    "service": "https://a",
                    "originRequest": {
                        "connectTimeout": 7,
                        "matchSNItoHost": True,
                        "access": {"required": True, "teamName": "team", "audTag": ["one"]},
                    },
                },
                LAST,
            ],
            "warp-routing": {"maxActiveFlows": 3},
        }
    )
    assert ingress.rules[0].request == OriginRequest(
        connect_timeout=7.0,
        no_tls_verify=True,
        match_sni_to_host=True,
        access=Access(required=True, team_name="team", audiences=("one",)),
    )
    assert ingress.rules[1].request == OriginRequest(connect_timeout=5.0, no_tls_verify=True)
    assert ingress.warp_routing.max_active_flows == 3


YAML = """\
tunnel: 6ff42ae2-765d-4adf-8112-31c55c1551ef
credentials-file: /root/.cloudflared/x.json
originRequest:
  connectTimeout: 1m30s
ingress:
  - hostname: mqtt.example.org
    service: ws://localhost:9001
    originRequest:
      keepAliveTimeout: 500ms
  - service: http_status:404
"""


def test_cloudflareds_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    file.write_text(YAML)
    ingress, rest = from_yaml(file)
    assert ingress.rules[0].request == OriginRequest(connect_timeout=90.0, keep_alive_timeout=0.5)
    assert rest["credentials-file"] == "/root/.cloudflared/x.json"


def test_mistakes_in_cloudflareds_file_have_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    file.write_text(YAML.replace("500ms", "30").replace("http_status:404", "nonsense").replace("hostname", "hostnam"))
    with pytest.raises(ConfigError) as caught:
        from_yaml(file)
    lines = str(caught.value).splitlines()
    assert any(
        line.startswith(f"{file}:9: ingress rule 1: originRequest.keepAliveTimeout: 30 ") and "30s" in line
        for line in lines
    )
    assert any(f"{file}:10: ingress rule 2: service: 'nonsense' needs a scheme" in line for line in lines)
    assert any(f"{file}:6: ingress rule 1: 'hostnam' is no key of it. Did you mean hostname?" in line for line in lines)


def test_what_is_not_offered_is_named_with_its_line_and_only_told_of_in_a_push(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "config.yml"
    file.write_text(YAML.replace("keepAliveTimeout: 500ms", "http2Origin: true"))
    with pytest.raises(ConfigError) as caught:
        from_yaml(file)
    said = "http2Origin: True cannot be used (accepted: false, for origins are asked over HTTP/1.1)"
    assert str(caught.value) == f"{file}:9: ingress rule 1: originRequest.{said}"
    for service, line in (("bastion", 7), ("socks-proxy", 7)):
        file.write_text(YAML.replace("ws://localhost:9001", service))
        with pytest.raises(ConfigError, match=rf"config.yml:{line}: ingress rule 1: service: '{service}' lets .*http"):
            from_yaml(file)
    rules({"hostname": "a.example", "service": "https://a", "originRequest": {"http2Origin": True}})
    assert "ingress rule 1: originRequest: http2Origin is passed over" in caplog.text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [", r":\d+: is not valid YAML"),
        ("- 1\n", "holds no keys"),
        ("tunnel: x\n", "ingress: has no rules"),
        ("a: !!python/object:os.system x\n", "is not valid YAML"),
        ("ingress: {}\n", "has no rules"),
    ],
)
def test_a_file_that_is_none_is_named(text: str, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=problem):
        from_yaml(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        from_yaml(tmp_path / "nowhere")


def test_the_tables_of_lockgate_toml_say_it_in_their_words() -> None:
    ingress = from_toml(
        [
            {
                "hostname": "a.example",
                "service": "https://a",
                "origin_request": {"connect_timeout": "10s", "no_tls_verify": True, "keep_alive_timeout": 3},
            },
            LAST,
        ]
    )
    assert ingress.rules[0].request == OriginRequest(connect_timeout=10.0, no_tls_verify=True, keep_alive_timeout=3.0)
    with pytest.raises(ConfigError, match=r"lockgate.toml:7: ingress rule 1: .*'originRequest' is no key"):
        from_toml([{"service": "http://a", "originRequest": {}}], Path("lockgate.toml"), 7)


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ([], "has no rules"),
        ([{"hostname": "a.example", "service": "http://a"}], "rule 1: is the last one and does not match everything"),
        ([{"path": "x", "service": "http://a"}], "rule 1: is the last one"),
        ([LAST, LAST], "rule 1: matches everything"),
        ([{"hostname": "*", "service": "http://a"}, LAST], "rule 1: matches everything"),
        ([{"hostname": "a:80", "service": "http://a"}, LAST], "rule 1: hostname: 'a:80' is no host name"),
        ([{"hostname": "a.*.b", "service": "http://a"}, LAST], "is no host name"),
        ([{"hostname": "a..b", "service": "http://a"}, LAST], "is no host name"),
        ([{"hostname": 5, "service": "http://a"}, LAST], "is no host name"),
        ([{"path": "(", "service": "http://a"}, LAST], "rule 1: path: .*missing \\)"),
        ([{"path": "(?=a)", "service": "http://a"}, LAST], "rule 1: path: .*invalid perl operator"),
        ([{"path": "a" * 1001, "service": "http://a"}, LAST], "rule 1: path: .*is too long.*1000"),
        ([{"path": "((a{1000}){1000}){1000}", "service": "http://a"}, LAST], "rule 1: path"),
        ([{"hostname": "a"}, LAST], "rule 1: service: is missing"),
        ([5, LAST], "rule 1: 5 is no rule"),
        ([{"service": "http://a", "hostname": "a", "originRequest": {"tlsTimeout": 1.5}}, LAST], "whole seconds"),
        ([{"service": "http://a", "hostname": "a", "originRequest": {"tlsTimeout": "5s"}}, LAST], "whole seconds"),
        ([{"service": "http://a", "hostname": "a", "originRequest": {"tlsTimeout": True}}, LAST], "whole seconds"),
        ([{"service": "http://a", "hostname": "a", "originRequest": {"noTLSVerify": 1}}, LAST], "true or false"),
        ([{"service": "http://a", "hostname": "a", "originRequest": {"bastionMode": True}}, LAST], "bastion is not"),
        ([{"service": "http://a", "hostname": "a", "originRequest": {"proxyType": "socks"}}, LAST], "socks-proxy is"),
        ([{"service": "http://a", "hostname": "a", "originRequest": {"ipRules": [{}]}}, LAST], "socks-proxy is"),
        ([{"service": "http://a", "hostname": "a", "originRequest": {"access": {"required": True}}}, LAST], "audTag"),
        (
            [
                {"originRequest": {"access": {"required": True, "teamName": "evil/?", "audTag": ["x"]}}, "path": "a"}
                | LAST
            ],
            "teamName",
        ),
        ([{"service": "http://a", "hostname": "a", "originRequest": 1}, LAST], "rule 1: originRequest: 1 is no object"),
    ],
)
def test_a_rule_that_cannot_be_used_is_named_by_number_key_and_value(said: list[object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        from_json({"ingress": said})
    assert "accepted: " in str(caught.value)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["ingress", "hostname", "path", "service", "originRequest", "access", "connectTimeout"]),
            inner,
        )
    ),
    max_leaves=20,
)


@given(values)
def test_whatever_is_pushed_is_used_or_refused(said: object) -> None:
    configurations = Configurations()
    answer = json.loads(configurations.push(json.dumps({"version": 1, "config": said}).encode()))
    assert answer["lastAppliedVersion"] == (1 if answer["err"] is None else -1)


hosts = st.from_regex(r"[a-z0-9]{1,8}(\.[a-z0-9]{1,8}){0,2}", fullmatch=True)
rule = st.fixed_dictionaries(
    {"hostname": hosts | hosts.map("*.{}".format), "service": hosts.map("http://{}".format)},
    optional={"path": st.sampled_from(["^/a", "b$", "c"])},
)


@given(st.lists(rule, max_size=5))
def test_what_is_reported_can_be_read_again(said: list[dict[str, object]]) -> None:
    ingress = rules(*said)
    assert from_json(ingress.as_json()) == ingress


@given(st.lists(rule, max_size=5), hosts, st.sampled_from(["/", "/a", "/b", "/c/"]))
def test_matching_agrees_with_the_plain_reading(said: list[dict[str, object]], host: str, path: str) -> None:
    def fits(one: dict[str, object]) -> bool:
        name = str(one["hostname"])
        by_host = host.endswith(name[1:]) if name.startswith("*.") else name == host
        want = one.get("path")
        return by_host and (want is None or {"^/a": path == "/a", "b$": path == "/b", "c": "c" in path}[str(want)])

    expected = next((one for one in said if fits(one)), LAST)
    assert service(rules(*said), host, path) == expected["service"]


# --- pushes -------------------------------------------------------------------------------------------------------


def push(to: Configurations, version: object, *said: dict[str, object]) -> dict[str, object]:
    body = {"version": version, "config": {"ingress": [*said, LAST]}}
    answer = json.loads(to.push(json.dumps(body).encode()))
    assert isinstance(answer, dict)
    return answer


A: dict[str, object] = {"hostname": "a.example", "service": "http://a"}


def test_only_a_greater_version_counts() -> None:
    configurations = Configurations()
    assert service(configurations.ingress, "a.example") == "http_status:503"
    assert push(configurations, 0, A) == {"lastAppliedVersion": 0, "err": None}
    assert service(configurations.ingress, "a.example") == "http://a"
    assert push(configurations, 0) == {"lastAppliedVersion": 0, "err": None}
    assert push(configurations, -5) == {"lastAppliedVersion": 0, "err": None}
    assert service(configurations.ingress, "a.example") == "http://a"
    assert push(configurations, 7) == {"lastAppliedVersion": 7, "err": None}
    assert service(configurations.ingress, "a.example") == "http_status:404"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"version":1}', b'{"version":true,"config":{}}', b"[" * 100_000])
def test_a_push_that_cannot_be_read_changes_nothing(body: bytes) -> None:
    configurations = Configurations()
    push(configurations, 0, A)
    answer = json.loads(configurations.push(body))
    assert answer["lastAppliedVersion"] == 0
    assert answer["err"]
    assert service(configurations.ingress, "a.example") == "http://a"


def test_a_push_beyond_the_allow_list_changes_nothing() -> None:
    configurations = Configurations(allow=AllowList.parse(["a:80"]))
    assert push(configurations, 1, A)["err"] is None
    answer = push(configurations, 2, A, {"hostname": "b.example", "service": "http://169.254.169.254"})
    assert answer["lastAppliedVersion"] == 1
    assert "ingress rule 2: service" in str(answer["err"])
    assert "allow-list" in str(answer["err"])


def test_a_raw_stream_reaches_what_is_listed_or_a_tcp_rule_names() -> None:
    ingress = rules({"hostname": "m.example", "service": "tcp://mosquitto:1883"}, A)
    allow = AllowList.parse(["192.0.2.0/24:22"])
    assert ingress.may_dial("mosquitto", 1883, allow)
    assert ingress.may_dial("Mosquitto", 1883, AllowList())
    assert ingress.may_dial("192.0.2.9", 22, allow)
    assert not ingress.may_dial("mosquitto", 22, allow)
    assert not ingress.may_dial("a", 80, allow)  # what speaks HTTP is asked as such
    assert not ingress.may_dial("192.0.2.9", 22, AllowList())


def test_a_raw_stream_is_no_way_around_the_access_of_a_rule() -> None:
    access = {"required": True, "teamName": "team", "audTag": ["tag"]}
    guarded: dict[str, object] = {
        "hostname": "m.example",
        "service": "tcp://mosquitto:1883",
        "originRequest": {"access": access},
    }
    assert not rules(guarded, A).may_dial("mosquitto", 1883, AllowList())
    assert rules(guarded, A).may_dial("mosquitto", 1883, AllowList.parse(["mosquitto:1883"]))


# --- lockgate.toml ------------------------------------------------------------------------------------------------

TOML = """\
[connector]
edges = ["edge.example:7844"]
allow = ["mosquitto:1883"]

[[connector.ingress]]
hostname = "mqtt.example.org"
service = "tcp://mosquitto:1883"
origin_request = { connect_timeout = "3s" }

[[connector.ingress]]
service = "http_status:404"
"""


def test_the_connector_is_read_from_lockgate_toml(tmp_path: Path) -> None:
    file = tmp_path / "lockgate.toml"
    file.write_text(TOML)
    config = lockgate_toml.load(file, {}).connector
    ingress = configured(config)
    assert ingress is not None
    assert ingress.rules[0].request.connect_timeout == 3.0
    assert service(ingress, "mqtt.example.org") == "tcp://mosquitto:1883"
    file.write_text("[gateway]\n")
    assert configured(lockgate_toml.load(file, {}).connector) is None


def test_check_names_the_mistake_of_a_rule_and_of_the_allow_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "lockgate.toml"
    file.write_text(TOML)
    assert cli.main(["check", str(file)]) == 0
    file.write_text(TOML.replace("tcp://", "tcp:"))
    assert cli.main(["check", str(file)]) == 3
    assert f"{file}:5: ingress rule 1: service: 'tcp:mosquitto:1883'" in capsys.readouterr().err
    file.write_text(TOML.replace('["mosquitto:1883"]', '["mosquitto"]'))
    assert cli.main(["check", str(file)]) == 3
    assert f"{file}: connector.allow: 'mosquitto' is no target" in capsys.readouterr().err
    file.write_text(TOML.replace("[connector]", '[connector]\ncloudflared_config = "config.yml"'))
    assert cli.main(["check", str(file)]) == 3
    assert "connector.ingress: stands beside cloudflared_config" in capsys.readouterr().err
