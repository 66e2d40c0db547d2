"""The control stream: byte vectors seen from a real peer, both ends against each other, and bytes that are none."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.tunnel.capnp import Builder, CapnpError, Framer, Struct
from lockgate.tunnel.registration import (
    LocalConfiguration,
    Options,
    Refused,
    Register,
    Registered,
    RegistrationClient,
    RegistrationError,
    RegistrationServer,
    Reported,
    Unregister,
    Unregistered,
)

BOOTSTRAP = bytes.fromhex(
    "0000000005000000 0000000001000100 0800000000000000 0000000001000100 0000000000000000 0000000000000000"
)
BOOTSTRAP_RETURN = bytes.fromhex(
    "000000000b000000 0000000001000100 0300000000000000 0000000002000100 0000000000000000 0000000000000000"
    "0000000000000200 0300000000000000 0100000017000000 0400000001000100 0100000000000000 0000000000000000"
)
REGISTER_RETURN = bytes.fromhex(
    "0000000011000000 0000000001000100 0300000000000000 0000000002000100 0100000003000000 0000000000000000"
    "0000000000000200 0400000000000100 0000000000000000 0000000001000100 0100000000000000 0000000001000200"
    "0000000000000000 0500000082000000 0900000032000000 e951e5f6ba55476a b6db885d92689d8d 4c414e3031000000"
)
FINISH = bytes.fromhex("0000000004000000 0000000001000100 0400000000000000 0000000001000000 0100000001000000")
CONNECTION = uuid.UUID("e951e5f6-ba55-476a-b6db-885d92689d8d")
TUNNEL = uuid.UUID("6e0f6a4a-7b0a-4a39-9d7e-0c8f4a0e2b11").bytes
OPTIONS = Options(
    client_id=bytes(range(16)),
    features=("allow_remote_config", "serialized_headers"),
    version="1.2.3",
    arch="linux_amd64",
    origin_local_ip=bytes(10) + b"\xff\xff\x0a\x00\x00\x01",
    replace_existing=True,
    previous_attempts=7,
)


def take(end: RegistrationClient | RegistrationServer) -> bytes:
    said = bytes(end.output)
    end.output.clear()
    return said


def registering() -> tuple[RegistrationClient, RegistrationServer, Register]:
    client, server = RegistrationClient(), RegistrationServer()
    client.register("account", b"s" * 32, TUNNEL, 3, OPTIONS)
    calls = server.feed(take(client))
    assert isinstance(calls[0], Register)
    return client, server, calls[0]


def test_the_bootstrap_is_what_a_real_connector_sends() -> None:
    client = RegistrationClient()
    client.register("account", b"s", TUNNEL, 0, OPTIONS)
    assert take(client).startswith(BOOTSTRAP)


def test_the_answer_to_the_bootstrap_is_what_a_real_connector_takes() -> None:
    server = RegistrationServer()
    assert server.feed(BOOTSTRAP) == []
    assert take(server) == BOOTSTRAP_RETURN


def test_the_answer_to_a_registration_is_what_a_real_connector_takes() -> None:
    _, server, call = registering()
    take(server)
    server.accept(call, CONNECTION, "LAN01", remotely_managed=False)
    assert take(server) == REGISTER_RETURN


def test_a_finish_is_understood() -> None:
    server = RegistrationServer()
    assert server.feed(FINISH) == []
    assert take(server) == b""


def test_what_a_connector_says_of_itself_arrives() -> None:
    _, _, call = registering()
    assert (call.account_tag, call.secret, call.tunnel_id, call.index) == ("account", b"s" * 32, TUNNEL, 3)
    assert call.options == OPTIONS
    assert "ssss" not in repr(call)


@pytest.mark.parametrize("managed", [True, False])
def test_a_registration_from_end_to_end(managed: bool) -> None:
    client, server, call = registering()
    server.accept(call, CONNECTION, "here", remotely_managed=managed)
    assert client.feed(take(server)) == [Registered(CONNECTION, "here", managed)]
    client.update_local_configuration(b'{"ingress":[]}')
    (local,) = server.feed(take(client))
    assert isinstance(local, LocalConfiguration)
    assert local.config == b'{"ingress":[]}'
    server.done(local)
    assert client.feed(take(server)) == [Reported(taken=True)]
    client.unregister()
    (last,) = server.feed(take(client))
    assert isinstance(last, Unregister)
    server.done(last)
    assert client.feed(take(server)) == [Unregistered()]


def test_an_edge_need_not_want_to_know_what_is_served() -> None:
    client, server, call = registering()
    server.accept(call, CONNECTION, "here", remotely_managed=False)
    client.feed(take(server))
    client.update_local_configuration(b"{}")
    (local,) = server.feed(take(client))
    server._fail(local.question, 3, "unimplemented")
    assert client.feed(take(server)) == [Reported(taken=False)]


@pytest.mark.parametrize("refusal", [Refused("Unauthorized: revoked", True, 2.5), Refused("EDUPCONN")])
def test_a_refusal_says_why_and_when_to_come_again(refusal: Refused) -> None:
    client, server, call = registering()
    server.refuse(call, refusal)
    assert client.feed(take(server)) == [refusal]


def test_bytes_may_come_one_by_one() -> None:
    client, server = RegistrationClient(), RegistrationServer()
    client.register("account", b"s", TUNNEL, 0, OPTIONS)
    calls = [call for byte in take(client) for call in server.feed(bytes([byte]))]
    assert len(calls) == 1


def test_an_unknown_method_is_answered_by_an_exception() -> None:
    client, server, _ = registering()
    take(server)
    message, _ = client._call(9, 0, 0)
    assert server.feed(message.message()) == []
    with pytest.raises(RegistrationError, match="has no method 9 here"):
        client.feed(take(server))


def test_an_unknown_message_is_answered_by_unimplemented() -> None:
    server = RegistrationServer()
    message = Builder.root(1, 1)
    message.u16(0, 11)
    message.struct(0, 1, 1)
    assert server.feed(message.message()) == []
    (segments,) = Framer().feed(take(server))
    assert Struct.root(segments).u16(0) == 0


def test_an_answer_nobody_asked_for_is_an_error() -> None:
    with pytest.raises(RegistrationError, match="question 1, which was not asked"):
        RegistrationClient().feed(REGISTER_RETURN)


def test_an_id_of_another_length_is_an_error() -> None:
    client, server = RegistrationClient(), RegistrationServer()
    client.register("account", b"s", b"short", 0, OPTIONS)
    with pytest.raises(RegistrationError, match="16 bytes"):
        server.feed(take(client))


def test_one_question_is_open_once() -> None:
    client, server, _ = registering()
    client._next_question = 1
    client.unregister()
    with pytest.raises(RegistrationError, match="question 1 while it is open"):
        server.feed(take(client))


@given(st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for end in (RegistrationServer(), RegistrationClient()):
        try:
            end.feed(data)
        except RegistrationError:
            continue


@given(st.data())
def test_a_flipped_byte_is_read_or_refused(data: st.DataObject) -> None:
    client = RegistrationClient()
    client.register("account", b"s" * 32, TUNNEL, 0, OPTIONS)
    said = bytearray(take(client))
    at = data.draw(st.integers(0, len(said) - 1))
    said[at] ^= data.draw(st.integers(1, 255))
    try:
        RegistrationServer().feed(bytes(said))
    except RegistrationError:
        return


def test_a_message_too_large_is_refused_by_its_head() -> None:
    with pytest.raises(CapnpError, match="at most 1048576"):
        Framer().feed(bytes.fromhex("00000000 00000200") + bytes(8))
    with pytest.raises(CapnpError, match="513 segments"):
        Framer().feed(bytes.fromhex("00020000"))


def test_pointers_in_circles_come_to_an_end() -> None:
    circle = bytes.fromhex("fcffffff00000100")  # a struct of one pointer, which is this one

    def descend(struct: Struct | None) -> None:
        while struct is not None:
            struct = struct.struct(0)

    with pytest.raises(CapnpError, match="deep"):
        descend(Struct.root([circle]))


def test_far_pointers_are_followed() -> None:
    text = b"far away".ljust(16, b"\0")
    nine_bytes = (2 | 9 << 3).to_bytes(4, "little")
    root = bytes.fromhex("0000000000000100")
    single = [root + bytes.fromhex("0200000001000000"), bytes.fromhex("01000000") + nine_bytes + text]
    assert Struct.root(single).text(0) == "far away"
    pad = bytes.fromhex("0200000002000000") + bytes.fromhex("01000000") + nine_bytes
    double = [root + bytes.fromhex("0600000001000000"), pad, text]
    assert Struct.root(double).text(0) == "far away"
