"""Cases for two clients, drawn while they run, repeated from their seed or their steps, and cut down when they fail."""

from __future__ import annotations

import random
import time
import traceback
from dataclasses import dataclass
from typing import Final

from lockgate.mqtt.packets import V3_1, V3_1_1, V5
from tests.fuzz.grammar import CLIENT_IDS, Grammar
from tests.fuzz.world import ALL, BACKWARDS, FIRST, HOUSES, LISTENERS, REFUSING, TWICE, Step, World

STEPS: Final = 60
_BADNESS: Final = (0.0, 0.0, 0.003, 0.01, 0.03, 0.2)
_VERSIONS: Final = (V3_1, V3_1_1, V3_1_1, V5, V5, V5, V5, V5)
_WAITS: Final = (0.1, 0.4, 1.0, 2.0, 6.0, 31.0, 90.0)
_PIECES: Final = (0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 7, 50)
_SLOW_SECONDS: Final = 10.0


@dataclass
class Failure:
    """A case that broke a rule, as short as it could be made."""

    seed: int
    house: int
    listener: int
    steps: list[Step]
    error: str

    def as_test(self) -> str:
        """Give the case as a test to be pasted."""
        lines = [f"        {step!r}," for step in self.steps]
        return "\n".join(
            [
                f"def test_case_{self.seed}() -> None:",
                f"    replay({self.house}, {self.listener}, [",
                *lines,
                "    ])  # fmt: skip",
            ]
        )


def shape(seed: int) -> tuple[int, int]:
    """Say in which house and behind which listener the case of a seed plays."""
    return seed % len(HOUSES), seed // len(HOUSES) % len(LISTENERS)


class Player:
    """Draws the steps of one case while a World carries them out, so that it can react to what happened."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        source = random.Random(seed)
        self.random = source.random
        self.badness = _BADNESS[int(self.random() * len(_BADNESS))]
        self.grammar = Grammar(source, self.badness)
        self.steps: list[Step] = []
        self._versions = [V5, V5]
        self._rest = [b"", b""]  # of a packet that was cut, to follow later

    def play(self) -> None:
        """Run the whole case; the steps so far are in `steps` when it fails."""
        for _ in range(STEPS):
            self._turn()
        self.world.finish()

    def _do(self, *step: object) -> None:
        self.steps.append(step)
        self.world.run(step)

    def _turn(self) -> None:
        rand = self.random
        slot = int(rand() * 2)
        client = self.world.clients[slot]
        if client is None or client.closed:
            self._arrive(slot)
            return
        chance = rand()
        if chance < 0.72:
            self._talk(slot)
            for other in (0, 1):
                if rand() < 0.75:
                    manner = ALL if rand() < 0.8 else self.grammar.pick((FIRST, BACKWARDS, REFUSING, TWICE))
                    self._do("answer", other, manner)
        elif chance < 0.80:
            self._do("settle")
        elif chance < 0.85:
            self._do("wait", self.grammar.pick(_WAITS))
        elif chance < 0.89:
            self._do("lose", slot)
        elif chance < 0.92:
            self._arrive(slot)  # while the former connection stands
        elif client.reading:
            self._do("pause", slot)
        else:
            self._do("read", slot)

    def _arrive(self, slot: int) -> None:
        grammar = self.grammar
        version = self._versions[slot] = grammar.pick(_VERSIONS)
        self._rest[slot] = b""
        self._do("open", slot)
        if grammar.spoilt():
            data = grammar.packet(version)
        else:
            chance = self.random()
            client_id = bytes((0, 2, 99, 48 + slot)) if chance < 0.7 else grammar.pick(CLIENT_IDS)
            data = grammar.connect(version, b"\0\0" if chance > 0.95 else client_id)
            if self.random() < self.badness * 0.5:
                data = grammar.spoil(data)
        self.world.packets += 1
        if self.random() < 0.2:
            self._send(slot, data)
            return
        # Mosquitto's clients wait for CONNACK; nobody has to [MQTT-3.1.4-5].
        count = int(self.random() * 5)
        self.world.packets += count
        self._send(slot, data + b"".join([grammar.packet(version) for _ in range(count)]))

    def _talk(self, slot: int) -> None:
        version = self._versions[slot]
        if self.random() < self.badness:
            version = self.grammar.pick(_VERSIONS)
        count = 1 + int(self.random() * 16)
        self.world.packets += count
        packet = self.grammar.packet
        self._send(slot, b"".join([packet(version) for _ in range(count)]))

    def _send(self, slot: int, data: bytes) -> None:
        data = self._rest[slot] + data
        self._rest[slot] = b""
        if self.random() < 0.08:
            cut = int(self.random() * len(data))
            data, self._rest[slot] = data[:cut], data[cut:]
        if data:
            self._do("send", slot, data, self.grammar.pick(_PIECES))


def replay(house: int, listener: int, steps: list[Step]) -> None:
    """Run the steps of a case in a world of their own; raises what they lead to."""
    world = World(house, listener)
    for step in steps:
        world.run(step)
    world.finish()


def fuzz(seeds: range, packets: int, worlds: dict[tuple[int, int], World]) -> Failure | None:
    """Run cases until so many packets were sent or the seeds run out; give the first failure, cut down."""
    start = sum(world.packets for world in worlds.values())
    for seed in seeds:
        failure = run_case(seed, worlds)
        if failure is not None:
            return failure
        if sum(world.packets for world in worlds.values()) - start >= packets:
            return None
    return None


def run_case(seed: int, worlds: dict[tuple[int, int], World]) -> Failure | None:
    """Run the case of one seed in a world that has seen others before it."""
    house, listener = shape(seed)
    world = worlds.get((house, listener))
    if world is None:
        world = worlds[house, listener] = World(house, listener)
    player = Player(world, seed)
    began = time.process_time()
    try:
        player.play()
        took = time.process_time() - began
        assert took < _SLOW_SECONDS, f"one case took {took:.1f} s"
    except Exception as error:
        told = traceback.format_exc()
        del worlds[house, listener]  # it is not to be trusted any more
        steps = _Shortener(house, listener, _fault(error)).minimise(player.steps)
        return Failure(seed, house, listener, steps, told)
    return None


def _fault(error: BaseException) -> str:
    """Name a fault by its kind and where it came up: what has to stay the same while a case is cut down."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} {frames[-1].name} {frames[-1].lineno}"


@dataclass
class _Shortener:
    house: int
    listener: int
    fault: str

    def fails(self, steps: list[Step]) -> bool:
        """Whether these steps lead to the fault in a world of their own."""
        try:
            replay(self.house, self.listener, steps)
        except Exception as error:
            return _fault(error) == self.fault
        return False

    def minimise(self, steps: list[Step]) -> list[Step]:
        """Leave out steps and packets while the fault stays; gives all where it needs what went before the case."""
        if not self.fails(steps):
            return steps
        size = max(1, len(steps) // 2)
        while True:
            at = 0
            while at < len(steps):
                shorter = steps[:at] + steps[at + size :]
                if self.fails(shorter):
                    steps = shorter
                else:
                    at += size
            if size == 1:
                break
            size //= 2
        for at, step in enumerate(steps):
            if step[0] == "send":
                steps[at] = self._shorten(steps, at)
        return steps

    def _shorten(self, steps: list[Step], at: int) -> Step:
        name, slot, data, piece = steps[at]
        assert isinstance(data, bytes)
        if self.fails([*steps[:at], (name, slot, data, 0), *steps[at + 1 :]]):
            piece = 0
        packets = _split(data)
        place = 0
        while place < len(packets):
            fewer = packets[:place] + packets[place + 1 :]
            if self.fails([*steps[:at], (name, slot, b"".join(fewer), piece), *steps[at + 1 :]]):
                packets = fewer
            else:
                place += 1
        return (name, slot, b"".join(packets), piece)


def _split(data: bytes) -> list[bytes]:
    """Cut bytes where packets seem to end; what is left over stays one piece."""
    packets: list[bytes] = []
    at = 0
    while at < len(data):
        end, shift, length = at + 1, 0, 0
        while end < len(data) and shift < 28:
            length |= (data[end] & 0x7F) << shift
            shift += 7
            end += 1
            if data[end - 1] < 0x80:
                break
        end = min(end + length, len(data))
        packets.append(data[at:end])
        at = end
    return packets
