"""The conformance page keeps its promise: no clause without a test or a reason, no test without a clause."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conformance.clauses import BINDS, VERSIONS, by_clause, clause_of, clauses, named_tests, open_clauses
from tests.conformance.page import differences, page

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "conformance.md"


@pytest.mark.parametrize("version", VERSIONS)
def test_every_clause_that_binds_a_server_has_a_test_or_a_reason(version: str) -> None:
    assert open_clauses(version) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_every_test_names_a_clause_that_exists(version: str) -> None:
    known = clauses(version)
    assert [test.name for test in named_tests(version) if test.clause not in known] == []


@pytest.mark.parametrize("version", VERSIONS)
def test_no_two_tests_of_a_version_have_one_name(version: str) -> None:
    names = [test.name for test in named_tests(version)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("version", VERSIONS)
def test_clauses_are_well_formed_and_in_order(version: str) -> None:
    rows = clauses(version).values()
    assert {row.binds for row in rows} <= set(BINDS)
    assert [row.identifier for row in rows if not row.asks.endswith(".")] == []
    places = [[int(part) for part in re.split("[.-]", row.identifier)] for row in rows]
    assert places == sorted(places)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_reason_is_given_only_where_no_test_is(version: str) -> None:
    tested = by_clause(version)
    assert [row.identifier for row in clauses(version).values() if row.reason and row.identifier in tested] == []


def test_the_numbers_of_statements_are_those_of_the_specifications() -> None:
    assert (len(clauses("v5")), len(clauses("v3_1_1"))) == (251, 141)


def test_every_point_where_sources_differ_names_tests_of_one_version() -> None:
    names = [test.name for version in VERSIONS for test in named_tests(version)]
    for difference in differences():
        assert difference.tests, difference.subject
        assert {name: names.count(name) for name in difference.tests} == dict.fromkeys(difference.tests, 1)


def test_a_test_is_matched_to_its_clause_by_its_name() -> None:
    assert clause_of("test_mqtt_3_1_2_24_a_silent_client_is_closed") == "3.1.2-24"
    assert clause_of("test_mqtt_4_1_1_qos_2_is_delivered_once") == "4.1-1"
    assert clause_of("test_something_else") == ""


def test_the_conformance_page_is_the_one_the_tests_make() -> None:
    assert PAGE.read_text() == page(), "run `make docs`"
