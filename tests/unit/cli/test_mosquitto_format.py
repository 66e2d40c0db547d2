"""The formats of `-F`, without a server."""

from __future__ import annotations

import contextlib
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.cli.mosquitto_format import FormatError, NotPrintable, Printer, parse_format
from lockgate.mqtt.packets import Publish
from lockgate.mqtt.properties import Properties

MESSAGE = Publish(
    "a/b", b"payload", 1, True, packet_id=7, properties=Properties(user_properties=(("k", "1"), ("k", "2")))
)


def rendered(form: str, message: Publish = MESSAGE) -> bytes:
    return Printer(parse_format(form), eol=False).render(message)


@given(st.text())
def test_any_text_is_a_format_or_a_clear_error(text: str) -> None:
    with contextlib.suppress(FormatError, NotPrintable):
        assert isinstance(rendered(text), bytes)


@given(st.binary(max_size=40), st.integers(0, 60))
def test_no_width_cuts_a_payload(payload: bytes, width: int) -> None:
    message = Publish("t", payload)
    assert payload in rendered(f"%{width}p", message)
    assert len(rendered(f"%{width}p", message)) == max(width, len(payload))
    assert rendered(f"%-{width}x", message) == payload.hex().encode().ljust(width)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_doubles_are_read_and_printed(value: float) -> None:
    assert float(rendered("%.20d", Publish("t", struct.pack("<d", value)))) == pytest.approx(value, abs=1e-19)


def test_json_keeps_names_that_are_repeated_and_the_order_of_the_payload() -> None:
    told = rendered("%j")
    assert b'"user-properties":{"k":"1","k":"2"}' in told
    assert json.loads(told)["mid"] == 7
    message = Publish("t", b'{"z":1,"a":{"b":[1,{"c":null}]},"z":2}')
    assert rendered("%J", message).endswith(b'"payload":{"z":1,"a":{"b":[1,{"c":null}]},"z":2}}')


def test_what_is_printed_of_a_message_that_does_not_fit_ends_its_line() -> None:
    with pytest.raises(NotPrintable) as error:
        Printer(parse_format("%t %J")).render(Publish("t", b"no"))
    assert error.value.printed == b"t \n"


@pytest.mark.parametrize(
    ("options", "payload", "printed"),
    [
        ({}, b"x", b"x\n"),
        ({}, b"", b""),
        ({"eol": False}, b"x", b"x"),
        ({"verbose": True}, b"x", b"t x\n"),
        ({"verbose": True}, b"", b"t (null)\n"),
    ],
)
def test_without_a_format(options: dict[str, bool], payload: bytes, printed: bytes) -> None:
    assert Printer(None, **options).render(Publish("t", payload)) == printed
