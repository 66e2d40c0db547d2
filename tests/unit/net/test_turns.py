"""When a turn ends: reads that come alone are answered at once, those that follow each other closely together."""

from __future__ import annotations

import asyncio

import pytest

from lockgate.broker.ports import RESTS
from lockgate.net.turns import Turns
from tests.support.server import Server

APART, CLOSE = 0.001, 0.000_01  # seconds


class Settling:
    """A store that counts the turns."""

    def __init__(self) -> None:
        self.turns = 0
        self.held = 0
        self.fails = False

    def settle(self) -> int:
        self.turns += 1
        if self.fails:
            raise RuntimeError
        return self.held


def begun() -> tuple[Turns, Settling]:
    store = Settling()
    return Turns(Server().broker, store), store


async def test_reads_that_come_alone_are_answered_at_once() -> None:
    turns, store = begun()
    for number in range(5):
        turns.end_read(1000 + number * APART)
        assert store.turns == number + 1


async def test_reads_that_follow_closely_are_answered_together() -> None:
    turns, store = begun()
    for number in range(10):
        turns.end_read(1000 + number * CLOSE)
    before = store.turns
    assert before < 3
    await asyncio.sleep(0)
    assert store.turns == before + 1


async def test_a_read_that_comes_alone_after_two_close_ones_is_answered_at_once() -> None:
    turns, store = begun()
    turns.end_read(1000)
    turns.end_read(1000 + CLOSE)
    turns.end_read(1000 + APART)
    assert store.turns == 3
    await asyncio.sleep(0)
    assert store.turns == 3


async def test_no_more_than_so_many_reads_wait_for_each_other() -> None:
    turns, store = begun()
    for _number in range(200):
        turns.end_read(1000)
    assert store.turns >= 200 // 64


def test_a_store_that_rests_is_left_alone_until_it_is_told_something() -> None:
    server, store = Server(), Settling()
    turns = Turns(server.broker, store)
    store.held = RESTS
    for _number in range(3):
        turns.flush()
    assert store.turns == 1
    server.broker.change()
    for _number in range(3):
        turns.flush()
    assert store.turns == 2


def test_a_store_whose_answer_went_wrong_is_asked_again() -> None:
    server, store = Server(), Settling()
    turns = Turns(server.broker, store)
    store.held = RESTS
    turns.flush()
    server.broker.change()
    store.fails = True
    with pytest.raises(RuntimeError):
        turns.flush()
    store.fails = False
    turns.flush()
    turns.flush()
    assert store.turns == 3


def test_a_store_that_is_at_work_is_asked_in_every_turn_and_what_it_holds_is_counted() -> None:
    server, store = Server(), Settling()
    turns = Turns(server.broker, store)
    used = server.broker.memory.used
    store.held = 500
    turns.flush()
    assert server.broker.memory.used == used + 500
    store.held = 0  # written, but not confirmed yet
    turns.flush()
    assert server.broker.memory.used == used
    store.held = 200
    turns.flush()
    store.held = RESTS
    turns.flush()
    turns.flush()
    assert (store.turns, server.broker.memory.used) == (4, used)
