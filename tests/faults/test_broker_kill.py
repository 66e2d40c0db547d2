"""`kill -9` and SIGTERM of the broker at random moments under load: nothing that it acknowledged is lost."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.crowd.control import ROUNDS, SEED, Crowd
from tests.support.gateway import Gateway, durable_broker
from tests.support.peers import Mosquitto


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Gateway]:
    store = tmp_path / "store"
    store.mkdir()
    with durable_broker(tmp_path, store).running("broker") as gateway:
        yield gateway


@pytest.mark.timeout(60 + 10 * ROUNDS)
def test_nothing_acknowledged_is_lost_by_kill_9(broker: Gateway) -> None:
    chance = random.Random(SEED)
    with Crowd(broker.port, SEED) as crowd:
        for number in range(1, ROUNDS + 1):
            crowd.round(number, "load")
            acknowledgements = chance.choice((1, 50, 500, 1500))
            crowd.load(chance.randint(1, acknowledgements), 2500)
            time.sleep(chance.choice((0, 0.01)) * chance.random())  # between two acknowledgements
            broker.kill("broker")
            crowd.happened("kill -9")
            if chance.random() < 0.2:
                broker.launch("broker")
                time.sleep(chance.uniform(0.05, 0.6))  # it is starting, or has just started
                broker.kill("broker")
                crowd.happened("kill -9 while it starts")
            broker.start("broker")
            crowd.happened("ready")
            if chance.random() < 0.3 or number == ROUNDS:
                crowd.settle()
                crowd.expect_no_violation(broker.log)
        print(f"seed {SEED}, {ROUNDS} rounds: {crowd.sums}")
        assert crowd.sums["acknowledged"] > 50 * ROUNDS


@pytest.mark.timeout(60 + 10 * ROUNDS)
def test_nothing_acknowledged_is_lost_by_a_stop(broker: Gateway) -> None:
    chance = random.Random(SEED)
    rounds = max(3, ROUNDS // 4)
    with Crowd(broker.port, SEED) as crowd:
        for number in range(1, rounds + 1):
            crowd.round(number, "load")
            crowd.load(chance.randint(1, 1000), 2500)
            broker.stop("broker")
            crowd.happened("SIGTERM")
            broker.start("broker")
            crowd.happened("ready")
        crowd.settle()
        crowd.expect_no_violation(broker.log)
        print(f"seed {SEED}, {rounds} rounds: {crowd.sums}")


@pytest.mark.peers
def test_the_oracle_finds_what_mosquitto_loses(tmp_path: Path) -> None:
    """By default it saves every half hour: the killed broker has forgotten what it acknowledged."""
    settings = ["persistence true", f"persistence_location {tmp_path}/", "max_queued_messages 0"]
    broker = Mosquitto(tmp_path, settings)
    try:
        with Crowd(broker.port, SEED) as crowd:
            crowd.load(500, 2000)
            broker.kill()
            broker.start()
            crowd.settle(quiet_seconds=2)
            assert crowd.violations["session lost"] > 1, crowd.report
    finally:
        broker.stop()


@pytest.mark.peers
def test_the_oracle_finds_what_mosquitto_loses_between_two_saves(tmp_path: Path) -> None:
    """Saved once, by SIGUSR1: the sessions are there, and what was acknowledged since is not."""
    settings = ["persistence true", f"persistence_location {tmp_path}/", "max_queued_messages 0"]
    broker = Mosquitto(tmp_path, settings)
    try:
        with Crowd(broker.port, SEED) as crowd:
            broker.save(tmp_path / "mosquitto.db")
            crowd.load(1500, 1500)
            broker.kill()
            broker.start()
            crowd.settle()
            assert crowd.violations["acknowledged and lost"], crowd.report
            assert crowd.violations["retained message older than acknowledged"], crowd.report
    finally:
        broker.stop()
