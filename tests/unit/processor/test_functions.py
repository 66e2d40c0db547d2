"""Functions of rules: ours, those of a folder, and what happens when one does not end or raises."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
from pathlib import Path
from typing import Any

import orjson
import pytest

from lockgate.config.errors import ConfigError
from lockgate.config.model import BufferConfig, ProcessorConfig, RuleConfig
from lockgate.processor import functions, rules
from lockgate.processor.functions import find_functions
from lockgate.processor.runner import Rulebook
from lockgate.processor.sandbox import RuleError, Sandbox
from tests.support.processor import HOT, SCHEMA, SECOND, Gateway, reading

OURS = """
from lockgate.processor.functions import aggregate, scalar, window

@scalar
def twice(x):
    return None if x is None else 2 * x

@aggregate
class WideSpread:
    def __init__(self):
        self.values = []
    def step(self, x):
        self.values.append(x)
    def finalize(self):
        return max(self.values) - min(self.values)

@window
class Total:
    def __init__(self):
        self.sum = 0
    def step(self, x):
        self.sum += x
    def inverse(self, x):
        self.sum -= x
    def value(self):
        return self.sum
    finalize = value

@scalar
def ends_never(x):
    while True:
        try:
            x = x + 1
        except Exception:
            pass

@scalar
def fails(x):
    raise ValueError(f"no {x}")
"""


def ask(expression: str, sandbox: Sandbox | None = None) -> Any:
    return (sandbox or Sandbox()).run(f"SELECT {expression}", {}, 5.0)[0][0]


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("convert(212, 'F', 'C')", 100.0),
        ("convert(0, 'C', 'K')", 273.15),
        ("convert(1, 'kWh', 'MJ')", 3.6),
        ("convert(1, 'bar', 'psi')", 14.503773773),
        ("convert(36, 'km/h', 'm/s')", 10.0),
        ("convert(NULL, 'F', 'C')", None),
        ("distance_m(52.5200, 13.4050, 48.8566, 2.3522)", 877_464.6),
        ("distance_m(0, 0, 0, 180)", math.pi * 6_371_008.8),
        ("in_circle(52.52, 13.405, 52.53, 13.405, 1200)", 1),
        ("in_circle(52.52, 13.405, 52.53, 13.405, 1000)", 0),
        ("in_polygon(1, 1, '[[0, 0], [0, 2], [2, 2], [2, 0]]')", 1),
        ("in_polygon(1, 3, '[[0, 0], [0, 2], [2, 2], [2, 0]]')", 0),
        ("in_polygon(1.5, 0.4, '[[0, 0], [1, 1], [2, 0], [1, 5]]')", 0),
        ("in_polygon(NULL, 3, '[[0, 0], [0, 2], [2, 2]]')", None),
        ("(SELECT p95(value) FROM json_each('[1, 2, 3, 4, 5, null]'))", 4.8),
        ("(SELECT median(value) FROM json_each('[4, 1, 3, 2]'))", 2.5),
        ("(SELECT percentile(value, 0) FROM json_each('[4, 1, 3, 2]'))", 1.0),
        ("(SELECT p95(value) FROM json_each('[]'))", None),
        ("(SELECT stddev(value) FROM json_each('[2, 4, 4, 4, 5, 5, 7, 9]'))", 2.138089935),
        ("(SELECT stddev(value) FROM json_each('[2]'))", None),
    ],
)
def test_what_people_do_most_is_ready(expression: str, result: float | None) -> None:
    assert ask(expression) == (result if result is None else pytest.approx(result, rel=1e-6))


def test_percentiles_move_with_a_frame() -> None:
    query = "SELECT median(value) OVER (ROWS 2 PRECEDING), stddev(value) OVER (ROWS 1 PRECEDING) FROM json_each(:v)"
    found = Sandbox().run(query, {"v": "[5, 1, 9, 2, 2]"}, 5.0)
    assert [row[0] for row in found] == [5.0, 3.0, 5.0, 2.0, 2.0]
    assert [row[1] for row in found[3:]] == [pytest.approx(4.949747), 0.0]


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("convert(1, 'C', 'bar')", "convert: ValueError: 'C' cannot be converted to 'bar'; of one kind are K, C, F; m"),
        ("in_polygon(1, 1, '[[0, 0]]')", "at least three corners"),
        ("in_polygon(1, 1, 'x')", "JSONDecodeError"),
        ("(SELECT percentile(value, 101) FROM json_each('[4]'))", "0 to 100"),
    ],
)
def test_what_cannot_be_computed_is_told(expression: str, problem: str) -> None:
    with pytest.raises(RuleError, match=problem) as caught:
        ask(expression)
    assert caught.value.reason == "function error"


# --- functions that remember ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "passed"),
    [
        ("dead_band(:topic, :value, 2)", [10, 12, 10]),
        ("changed(:topic, CAST(:value AS INTEGER))", [10, 11, 12, 11, 10, 9]),
        ("rate_limit(:topic, 3, :received_at)", [10, 12, 9]),
        ("derivative(:topic, :value, :received_at) < 0", [11, 10, 9]),
    ],
)
async def test_what_is_remembered_survives_restarts(tmp_path: Path, where: str, passed: list[int]) -> None:
    rule = RuleConfig(
        name="r", schema="temperature", sql=f"SELECT :value AS v WHERE {where}", message_class="telemetry", topic="t"
    )
    for restarts in (True, False):
        gateway = Gateway(tmp_path / str(restarts), [rule])
        running = gateway.running()
        runner = await running.__aenter__()
        for value in (10, 11, 11, 12, 11, 10, 9):
            await runner.process([reading(value)])
            gateway.clock.boottime_ns += SECOND
            if restarts:
                await running.__aexit__(None, None, None)
                running = gateway.running()
                runner = await running.__aenter__()
        await running.__aexit__(None, None, None)
        assert [row["v"] for row in gateway.means()] == passed


async def test_a_run_that_fails_remembers_nothing_twice(tmp_path: Path) -> None:
    """The batch fails on its third message and is gone through again one by one."""
    rule = RuleConfig(
        name="r",
        schema="temperature",
        sql="SELECT abs(iif(:value = 3, -9223372036854775807 - 1, :value)) AS v WHERE changed(:topic, :value)",
        message_class="telemetry",
        topic="t",
    )
    gateway = Gateway(tmp_path, [rule])
    async with gateway.running() as runner:
        await runner.process([reading(value) for value in (1, 1, 3, 1, 2, 2)])
    assert [row["v"] for row in gateway.means()] == [1.0, 2.0]


async def test_rules_remember_apart_and_one_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    one, other = (
        RuleConfig(
            name=name,
            schema="temperature",
            sql="SELECT 1 AS v WHERE changed('k', 1)",
            message_class="telemetry",
            topic="t",
        )
        for name in ("one", "other")
    )
    gateway = Gateway(tmp_path, [one, other])
    async with gateway.running() as runner:
        await runner.process([reading(1), reading(2)])
    assert len(gateway.means()) == 2
    gateway.set_rules([one])
    async with gateway.running() as runner:
        await runner.process([reading(1)])
    assert [value.topic for value in gateway.reader.last_values()] == ["#memory/one/changed/k"]
    assert len(gateway.means()) == 2


# --- functions of a folder --------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "functions").mkdir()
    (tmp_path / "functions" / "ours.py").write_text(OURS)
    return tmp_path / "functions"


def test_functions_of_a_folder_are_called(folder: Path) -> None:
    sandbox = Sandbox(functions=find_functions(folder, ()))
    assert ask("twice(4)", sandbox) == 8
    assert ask("(SELECT wide_spread(value) FROM json_each('[4, 1, 3]'))", sandbox) == 3
    query = "SELECT total(value) OVER (ROWS 1 PRECEDING) FROM json_each('[4, 1, 3]')"
    assert [row[0] for row in sandbox.run(query, {}, 5.0)] == [4, 5, 4]


def test_functions_of_a_package_are_called(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    point = importlib.metadata.EntryPoint("shop", "ours", functions.GROUP)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point] if group == functions.GROUP else [])
    assert ask("twice(4)", Sandbox(functions=find_functions(None, ["shop"]))) == 8
    with pytest.raises(ConfigError, match=r"function_packages: there is no 'shoq' \(accepted: shop\)"):
        find_functions(None, ["shoq"])


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("x = 1\ny = = 2\n", 2, "SyntaxError"),
        ("x = 1\n\nraise RuntimeError('no')\n", 3, "RuntimeError: no"),
        ("from lockgate.processor.functions import *\n@aggregate\nclass X: pass\n", 2, "has no method step"),
    ],
)
def test_a_file_that_is_wrong_is_named_with_its_line(folder: Path, text: str, line: int, problem: str) -> None:
    (folder / "wrong.py").write_text(text)
    with pytest.raises(ConfigError, match=problem) as caught:
        find_functions(folder, ())
    assert (caught.value.path, caught.value.line) == (folder / "wrong.py", line)


def test_a_name_stands_once(folder: Path) -> None:
    (folder / "more.py").write_text(OURS)
    with pytest.raises(ConfigError, match="is declared in .*more.py and in .*ours.py"):
        find_functions(folder, ())
    with pytest.raises(ConfigError, match="is no folder"):
        find_functions(folder / "none", ())


def test_a_function_that_does_not_end_is_stopped_and_its_rule_put_aside(folder: Path) -> None:
    runaway = RuleConfig(
        name="runaway",
        schema="temperature",
        sql="SELECT ends_never(:value) AS v",
        message_class="telemetry",
        topic="t",
        budget_seconds=0.05,
    )
    config = ProcessorConfig(schemas=(SCHEMA,), rules=(runaway, HOT), functions=folder)
    book = Rulebook(config, BufferConfig())

    def take(count: int) -> list[rules.Decoded]:
        schema = book.schemas.by_name["temperature"]
        some = [rules.Decoded("sensors/a/temp", b"", schema, [91.0, "sensors/a/temp", 0]) for _ in range(count)]
        book.rules.evaluate(some)
        return some

    some = take(20)
    assert [one.failures[0][0] for one in some] == ["rule runaway: time"] * 3 + ["rule runaway: stopped"] * 17
    assert all(len(one.entries) == 1 for one in some)  # what the other rule makes of it
    stopped = book.rules.by_message["temperature"][0]
    assert stopped.status()["stopped"] is True
    stopped._stopped_until = 1.0  # a minute later
    assert take(1)[0].failures[0][0] == "rule runaway: time"
    book.close()


def test_what_a_function_raises_is_told(folder: Path) -> None:
    with pytest.raises(RuleError, match="function error: fails: ValueError: no 3"):
        ask("fails(3)", Sandbox(functions=find_functions(folder, ())))


async def test_a_reload_takes_functions_anew(folder: Path, tmp_path: Path) -> None:
    rule = RuleConfig(
        name="r", schema="temperature", sql="SELECT twice(:value) AS v", message_class="telemetry", topic="t"
    )
    gateway = Gateway(tmp_path / "buffer", [rule], functions=folder)
    async with gateway.running() as runner:
        await runner.process([reading(1)])
        (folder / "ours.py").write_text(OURS.replace("2 * x", "2 * x + 1"))
        runner = await gateway.go_on_with(gateway.book.successor(gateway.config, BufferConfig()))
        await runner.process([reading(1)])
    assert [orjson.loads(row.payload)["v"] for row in gateway.rows("telemetry")] == [2.0, 3.0]


@pytest.mark.parametrize("given", ["changed('k', x'00')", "dead_band('k', 9e999, 1)", "derivative('k', 1, 9e999)"])
async def test_what_cannot_be_remembered_fails_its_rule_alone(tmp_path: Path, given: str) -> None:
    odd = RuleConfig(
        name="odd", schema="temperature", sql=f"SELECT 1 AS one WHERE {given}", message_class="telemetry", topic="t"
    )
    gateway = Gateway(tmp_path, [odd, HOT])
    async with gateway.running() as runner:
        await runner.process([reading(91)])
    async with gateway.running() as runner:
        await runner.process([reading(92)])
    assert len(gateway.rows("alarm")) == 2
    assert gateway.intake().quarantined == {"rule odd: function error": 2}


async def test_a_smaller_bound_of_what_is_remembered_counts_at_the_next_start(tmp_path: Path) -> None:
    changes = RuleConfig(
        name="changes", schema="temperature", sql="SELECT :value AS v WHERE changed(:value, 1)",
        message_class="telemetry", topic="t",
    )  # fmt: skip
    gateway = Gateway(tmp_path, [changes])
    async with gateway.running() as runner:
        await runner.process([reading(value) for value in range(5)])
    gateway.config = dataclasses.replace(gateway.config, state_topics=2)
    async with gateway.running() as runner:
        await runner.process([reading(3), reading(4), reading(2)])
    assert [mean["v"] for mean in gateway.means()] == [0, 1, 2, 3, 4, 2]
    assert len(gateway.reader.last_values()) == 2


@pytest.mark.parametrize(
    "source",
    [
        "import sys\nsys.exit(3)",
        f"from lockgate.processor.functions import scalar\n@scalar\ndef {'a' * 300}(x): ...",
        "from lockgate.processor.functions import scalar\n@scalar\ndef f("
        + ", ".join(f"a{number}" for number in range(130))
        + "): ...",
    ],
)
def test_a_function_that_cannot_be_one_is_a_mistake_of_the_configuration(tmp_path: Path, source: str) -> None:
    (tmp_path / "odd.py").write_text(source)
    with pytest.raises(ConfigError, match="processor.functions"):
        Rulebook(Gateway(tmp_path / "buffer", [HOT], functions=tmp_path).config, BufferConfig())


async def test_a_rule_may_have_any_name_and_remembers_over_a_restart(tmp_path: Path) -> None:
    changes = RuleConfig(
        name="line 1/changes", schema="temperature", sql="SELECT :value AS v WHERE changed(:topic, :value)",
        message_class="telemetry", topic="t",
    )  # fmt: skip
    gateway = Gateway(tmp_path, [changes])
    for _ in range(2):
        async with gateway.running() as runner:
            await runner.process([reading(1)])
    assert gateway.means() == [{"v": 1.0}]
