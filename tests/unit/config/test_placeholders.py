"""Texts are parted at their placeholders; what means nothing is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.config.placeholders import Placeholder, parse


def test_a_text_is_parted_at_its_placeholders() -> None:
    assert parse("Pump {payload.pump.0}: {{{topic}}}") == (
        "Pump ", Placeholder("payload", ("pump", "0")), ": {", Placeholder("topic"), "}"
    )  # fmt: skip
    assert parse("") == ("",)
    assert parse("{time_iso}") == (Placeholder("time_iso"),)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{payload", r"\{ stands alone"),
        ("payload}", r"\} stands alone"),
        ("{}", "is no placeholder"),
        ("{payload.}", "is no placeholder"),
        ("{topic.0}", "is no placeholder"),
        ("{paylod}", r"Did you mean \{payload\}\?"),
    ],
)
def test_what_means_nothing_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse(text)


@given(st.text())
def test_a_text_with_its_braces_doubled_is_itself(text: str) -> None:
    assert parse(text.replace("{", "{{").replace("}", "}}")) == (text,)
