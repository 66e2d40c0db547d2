"""When a certificate is ordered, and what becomes of it when there is none to be had. Time is the tests'."""

from __future__ import annotations

import datetime
import logging
import stat
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import trustme

from lockgate.tunnel.renewals import OrderError, Renewals

DAY = 86_400.0
BEGIN = 1_800_000_000.0


class Server:
    """Orders by a clock; `refuses` is what it has against the next ones."""

    def __init__(self, folder: Path, days: float = 90) -> None:
        self.now = BEGIN
        self.uptime = 0.0
        self.days = days
        self.refuses = ""
        self.orders: list[str] = []
        self.files = {name: folder / f"{name}.pem" for name in ("a.example", "b.example")}
        self._ca = trustme.CA()

    def order(self, name: str) -> bytes:
        self.orders.append(name)
        if self.refuses:
            raise OrderError(self.refuses)
        begin = datetime.datetime.fromtimestamp(self.now, datetime.UTC)
        end = begin + datetime.timedelta(days=self.days)
        made = self._ca.issue_cert(name, not_before=begin, not_after=end)
        return made.cert_chain_pems[0].bytes() + made.private_key_pem.bytes()

    def renewals(self, order: Callable[[str], bytes] | None = None) -> Renewals:
        return Renewals(self.files, order or self.order, clock=lambda: self.now, steady_clock=lambda: self.uptime)

    def ordered(self, renewals: Renewals) -> list[str]:
        """What is ordered by one look."""
        self.orders.clear()
        renewals.look()
        return self.orders


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


@pytest.mark.parametrize("days", [90, 6, 0.25])
def test_each_name_is_ordered_once_and_again_when_a_third_of_its_time_is_left(server: Server, days: float) -> None:
    server.days = days
    renewals = server.renewals()
    assert server.ordered(renewals) == ["a.example", "b.example"]
    assert not server.ordered(renewals)
    server.now += days * DAY * 2 / 3 - 1
    assert not server.ordered(renewals)
    server.now += 1
    assert server.ordered(renewals) == ["a.example", "b.example"]
    assert not server.ordered(renewals)


def test_a_certificate_with_its_key_belongs_to_its_owner_alone(server: Server) -> None:
    server.renewals().look()
    assert {stat.S_IMODE(file.stat().st_mode) for file in server.files.values()} == {0o600}


def test_a_restart_orders_nothing(server: Server) -> None:
    server.renewals().look()
    again = server.renewals()
    assert not server.ordered(again)
    assert again.status()["a.example"] == {"ends": "2027-04-15T08:00:00Z"}


def test_a_file_that_is_no_certificate_is_ordered_anew(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.renewals().look()
    server.files["a.example"].write_bytes(server.files["a.example"].read_bytes()[:500])
    renewals = server.renewals()
    assert not server.files["a.example"].exists()
    assert "a.example.pem cannot be used, and is ordered anew" in caplog.text
    assert server.ordered(renewals) == ["a.example"]


def test_pauses_after_failures_grow_to_an_hour_and_the_old_certificate_stays(server: Server) -> None:
    renewals = server.renewals()
    renewals.look()
    old = server.files["a.example"].read_bytes()
    server.now += 80 * DAY
    server.refuses = "no"
    tries = []
    for _ in range(10_000):
        if "a.example" in server.ordered(renewals):
            tries.append(server.uptime)
        server.uptime += 10
    pauses = [later - earlier for earlier, later in pairwise(tries)]
    assert all(
        longest / 2 <= pause <= longest + 10
        for pause, longest in zip(pauses, (300, 600, 1200, 2400, *[3600] * 100), strict=False)
    )
    assert server.files["a.example"].read_bytes() == old
    assert renewals.status()["a.example"] == {"ends": "2027-04-15T08:00:00Z", "problem": "no"}
    server.refuses = ""
    server.uptime += 3600
    server.ordered(renewals)
    assert "problem" not in renewals.status()["a.example"]
    server.now, server.refuses = server.now + 80 * DAY, "no"
    assert server.ordered(renewals)
    server.uptime += 300  # the pauses begin anew
    assert server.ordered(renewals)


def test_a_failure_is_told_once_for_each_cause(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    del server.files["b.example"]
    renewals = server.renewals()
    for server.refuses in ("the first cause", "the first cause", "the second cause", "the second cause"):
        assert server.ordered(renewals)
        server.uptime += 3600
    told = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert told == [
        f"No new certificate for a.example, there is none yet: the {which} cause" for which in ("first", "second")
    ]
    assert renewals.status() == {"a.example": {"problem": "the second cause"}}


def test_one_name_that_fails_holds_up_no_other(server: Server) -> None:
    def order(name: str) -> bytes:
        if name == "a.example":
            raise ZeroDivisionError("a mistake of ours")
        return server.order(name)

    renewals = server.renewals(order)
    renewals.look()
    assert renewals.status()["a.example"] == {"problem": "ZeroDivisionError: a mistake of ours"}
    assert server.files["b.example"].exists()


def test_a_clock_that_is_far_ahead_does_not_order_again_and_again(server: Server) -> None:
    issued = Server(server.files["a.example"].parent)
    renewals = server.renewals(issued.order)
    server.now += 365 * DAY
    renewals.look()
    assert issued.orders == ["a.example", "b.example"]
    renewals.look()
    assert issued.orders == ["a.example", "b.example"]
    assert "is the clock right?" in renewals.status()["a.example"]["problem"]


def test_a_file_that_cannot_be_written_is_told(server: Server) -> None:
    server.files["a.example"] /= "below-no-folder.pem"
    renewals = server.renewals()
    renewals.look()
    (problem,) = renewals.status()["a.example"].values()  # and no word of a certificate
    assert problem.endswith("cannot be written: No such file or directory")
    server.uptime += 3600
    assert "a.example" in server.ordered(renewals)


def test_nothing_is_ordered_after_the_end(server: Server) -> None:
    renewals = server.renewals()
    renewals.close()
    assert not server.ordered(renewals)
