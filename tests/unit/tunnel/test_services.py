"""Services and the list of what a connector may dial."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.config.errors import ConfigError
from lockgate.tunnel.services import AllowList, BadService, Service


@pytest.mark.parametrize(
    ("text", "service"),
    [
        ("http://web", Service("http", "http://web", "http", "web", 80)),
        ("https://web:8443", Service("http", "https://web:8443", "https", "web", 8443, tls=True)),
        ("ws://mosquitto:9001", Service("http", "ws://mosquitto:9001", "ws", "mosquitto", 9001)),
        ("wss://[2001:db8::1]", Service("http", "wss://[2001:db8::1]", "wss", "2001:db8::1", 443, tls=True)),
        ("unix:/run/app.sock", Service("http", "unix:/run/app.sock", "http", path="/run/app.sock")),
        ("unix+tls:/a", Service("http", "unix+tls:/a", "https", path="/a", tls=True)),
        ("http_status:404", Service("status", "http_status:404", status=404)),
        ("tcp://mosquitto:1883", Service("tcp", "tcp://mosquitto:1883", "tcp", "mosquitto", 1883)),
        ("tcp://host", Service("tcp", "tcp://host", "tcp", "host", 7864)),
        ("ssh://host", Service("tcp", "ssh://host", "ssh", "host", 22)),
        ("rdp://host", Service("tcp", "rdp://host", "rdp", "host", 3389)),
        ("smb://host", Service("tcp", "smb://host", "smb", "host", 445)),
        ("mqtt://mosquitto", Service("tcp", "mqtt://mosquitto", "mqtt", "mosquitto", 1883)),
        ("other://host:7", Service("tcp", "other://host:7", "other", "host", 7)),
    ],
)
def test_a_service_is_read(text: str, service: Service) -> None:
    assert Service.parse(text) == service


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("web:80", "scheme and a host"),
        ("http:web", "scheme and a host"),
        ("http://", "scheme and a host"),
        ("http://web/path", "must not have a path"),
        ("http://web?", "must not have a path"),
        ("http://user@web", "must not have a user"),
        ("http://we b", "spaces"),
        ("http://web:0", "needs a port"),
        ("http://web:99999", "is no URL"),
        ("http://[::1", "is no URL"),
        ("other://host", "needs a port"),
        ("http_status:700", "is no status"),
        ("http_status:20x", "is no status"),
        ("unix:relative", "whole path"),
        ("hello_world", "for a first try"),
        ("socks-proxy", "choose the address"),
        ("bastion", "choose the address"),
    ],
)
def test_a_service_that_cannot_be_used_is_explained(text: str, problem: str) -> None:
    with pytest.raises(BadService, match=problem):
        Service.parse(text)


@given(st.text(max_size=60) | st.text(max_size=20).map("http://{}".format))
def test_any_text_is_a_service_or_a_mistake(text: str) -> None:
    try:
        service = Service.parse(text)
    except BadService:
        return
    assert service.status or service.path or (service.host and 1 <= service.port <= 65_535)


LIST = AllowList.parse(
    ["127.0.0.1:1883", "Mosquitto:1883", "10.0.0.0/8:*", "[2001:db8::1]:8883", "web:*", "unix:/run/app.sock"]
)


@pytest.mark.parametrize(
    ("host", "port", "permitted"),
    [
        ("127.0.0.1", 1883, True),
        ("127.0.0.1", 22, False),
        ("127.0.0.2", 1883, False),
        ("mosquitto", 1883, True),
        ("MOSQUITTO", 1883, True),
        ("mosquitto", 22, False),
        ("10.1.2.3", 22, True),
        ("::ffff:10.1.2.3", 22, True),
        ("::ffff:11.1.2.3", 22, False),
        ("2001:db8::1", 8883, True),
        ("2001:0db8:0::1", 8883, True),
        ("2001:db8::2", 8883, False),
        ("web", 1, True),
        ("localhost", 1883, False),
        ("127.1", 1883, False),
        ("0x7f000001", 1883, False),
        ("2130706433", 1883, False),
        ("", 1883, False),
    ],
)
def test_what_is_not_on_the_list_is_refused(host: str, port: int, permitted: bool) -> None:
    assert LIST.permits(host, port) is permitted


def test_services_are_held_against_the_list() -> None:
    assert LIST.permits_service(Service.parse("http://web:8080"))
    assert LIST.permits_service(Service.parse("unix:/run/app.sock"))
    assert LIST.permits_service(Service.parse("http_status:404"))
    assert not LIST.permits_service(Service.parse("unix:/run/docker.sock"))
    assert not LIST.permits_service(Service.parse("http://169.254.169.254"))
    assert not AllowList().permits("127.0.0.1", 1883)


@pytest.mark.parametrize(
    "entry",
    ["mosquitto", "mosquitto:", ":1883", "host:0", "host:65536", "10.0.0.1/8:*", "::1:1883", "127.1:80", "*:80"],
)
def test_an_entry_that_is_no_target_is_named(entry: str) -> None:
    with pytest.raises(ConfigError, match=r"connector\.allow: .* is no target.*accepted: .*mosquitto:1883"):
        AllowList.parse([entry])
