"""The recipes of docs/how-to/recipes: what a page sends is sent to its gateway, what it says arrives is compared."""

from __future__ import annotations

import asyncio
import datetime
import gzip
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import recipes, servers
from tests.support.certificates import Authority
from tests.support.debian import publish
from tests.support.peers import Mosquitto, free_port, program, wait_for_port
from tests.support.recipes import EXAMPLES, PAGES, WAIT, Receiver, Recipe, arrives, shown, until

NAMES = sorted(folder.name for folder in EXAMPLES.iterdir())
TESTED = [name for name in NAMES if "[[rules." in (EXAMPLES / name / "lockgate.toml").read_text()]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as one:
        yield one


# --- pages and folders ------------------------------------------------------------------------------------------------


def test_each_recipe_has_a_page_and_a_test() -> None:
    assert len(NAMES) == 11
    assert [page.stem for page in sorted(PAGES.glob("*.md")) if page.stem != "README"] == NAMES
    here, index = Path(__file__).read_text(), recipes.page("README")
    for name in NAMES:
        assert f"def test_{name.replace('-', '_')}(" in here
        assert f"[{name}]({name}.md)" in index


@pytest.mark.parametrize("name", NAMES)
def test_the_page_shows_the_files_of_its_folder(name: str) -> None:
    text = recipes.page(name)
    for file in (EXAMPLES / name).iterdir():
        kind = {".conf": "conf", ".toml": "toml"}.get(file.suffix, "text")
        assert f"`{file.name}`\n\n```{kind}\n{file.read_text()}```\n" in text, file


@pytest.mark.parametrize("name", TESTED)
def test_the_tests_of_its_rules_are_good(name: str, tmp_path: Path) -> None:
    assert "tests good" in Recipe(name, tmp_path).lockgate("rules", "test")


# --- HTTP -------------------------------------------------------------------------------------------------------------


@pytest.mark.peers
def test_alarm_by_sms(tmp_path: Path, receiver: Receiver) -> None:
    receiver.open_()
    with Recipe("alarm-by-sms", tmp_path, SINKS_SMS_URL=receiver.url).running() as recipe:
        recipe.run(0)
        assert receiver.some(2) == arrives(recipe.name)
    for _ in range(2):
        _, headers, count = receiver.requests.get(timeout=WAIT)
        assert (headers["authorization"], count) == ("Bearer TOKEN", 1)
        assert headers["idempotency-key"]
    assert receiver.messages.empty()


@pytest.mark.peers
def test_geofence(tmp_path: Path, receiver: Receiver) -> None:
    receiver.open_()
    with Recipe("geofence", tmp_path, SINKS_DISPATCH_URL=receiver.url).running() as recipe:
        recipe.run(0)
        got = [receiver.messages.get(timeout=WAIT) for _ in range(4)]
        assert [shown(message) for message in got] == arrives(recipe.name)
        assert [message["device_time"] for message in got] == [
            1767225600000, 1767225600000, 1767229200000, 1767236400000
        ]  # fmt: skip
    assert receiver.messages.empty()


@pytest.mark.peers
def test_metered_link(tmp_path: Path, receiver: Receiver) -> None:
    receiver.open_()
    now = datetime.datetime.now()

    def hours(first: int, last: int) -> str:
        return json.dumps(["-".join(f"{now + datetime.timedelta(hours=n):%H:%M}" for n in (first, last))])

    recipe = Recipe(
        "metered-link",
        tmp_path,
        SINKS_LIVE_URL=f"{receiver.url}/live",
        SINKS_NIGHT_URL=f"{receiver.url}/bulk",
        SINKS_LIVE_BYTES_PER_DAY="70B",  # two messages of telemetry
        SINKS_NIGHT_HOURS=hours(2, 3),
    )
    expected = arrives(recipe.name)
    with recipe.running():
        recipe.run(0)
        first = receiver.some(3)
        assert sorted(map(str, first)) == sorted(map(str, expected[:3]))
        until(lambda: "the bytes of this day are spent" in str(recipe.status("forwarder")["sinks"]["live"]))
    assert receiver.messages.empty()
    while not receiver.requests.empty():
        assert receiver.requests.get()[0] == "/live"
    recipe.environment |= {"LOCKGATE_SINKS_LIVE_BYTES_PER_DAY": "5MB", "LOCKGATE_SINKS_NIGHT_HOURS": hours(-1, 2)}
    with recipe.running():
        second = receiver.some(5)
    bulk = [message for message in second if message["class"] == "bulk"]
    assert bulk == expected[4:]
    assert [message for message in second if message["class"] != "bulk"] == expected[3:4]
    requests = {path: (headers, count) for path, headers, count in iter_queue(receiver)}
    headers, count = requests["/bulk"]
    assert (headers["content-encoding"], count) == ("gzip", 4)


def iter_queue(receiver: Receiver) -> Iterator[tuple[str, dict[str, str], int]]:
    while not receiver.requests.empty():
        yield receiver.requests.get()


@pytest.mark.peers
def test_dashboard_after_outage(tmp_path: Path, receiver: Receiver) -> None:
    recipe = Recipe(
        "dashboard-after-outage",
        tmp_path,
        SINKS_DASHBOARD_URL=receiver.url,
        SINKS_DASHBOARD_RETRY_MAX="500ms",
        CLASSES_TELEMETRY_LIMIT="128KiB",
    )
    with recipe.running():
        recipe.run(0)
        until(lambda: recipe.status("processor")["intake"]["received"] == 2000)
        sent = time.monotonic()
        until(lambda: receiver.refused.get(timeout=WAIT) > sent + 5.5)  # what waited is the past now
        recipe.run(1)
        until(lambda: recipe.status("processor")["intake"]["received"] == 2001)
        receiver.open_()
        got: list[dict[str, Any]] = []
        live = None
        while sum(message["payload"].get("readings", 1) for message in got) < 2001:
            got.append(receiver.next())
            if got[-1]["payload"].get("value") == -1:
                live = len(got)
    assert arrives(recipe.name)[0] in got
    values = [message["payload"]["value"] for message in got if message["class"] == "telemetry"]
    rolled = [message for message in got if message["class"] == "hourly"]
    assert live is not None
    assert live <= 100, "the first batch has the present"
    assert 0 < sum(message["payload"]["readings"] for message in rolled) == 2001 - len(values)
    assert {message["topic"] for message in rolled} == {"hourly/sensors/a"}
    assert sorted(values) == [-1.0, *map(float, range(2001 - len(values) + 1, 2001))]


# --- a file -----------------------------------------------------------------------------------------------------------


@pytest.mark.peers
def test_calibrated_devices(tmp_path: Path) -> None:
    recipe = Recipe("calibrated-devices", tmp_path)

    def lines() -> list[dict[str, Any]]:
        path = recipe.folder / "temperatures.jsonl"
        text = path.read_text() if path.exists() else ""
        return [shown(json.loads(line)) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    with recipe.running():
        recipe.run(0)
        until(lambda: len(lines()) >= 3)
        assert sorted(map(str, lines())) == sorted(map(str, arrives(recipe.name)))
        recipe.run(1)

        def counts() -> bool:
            publish(recipe.port, "sensors/t9/temperature", "7")
            return "temperature/attic" in str(lines())

        until(counts)
        assert {
            "topic": "temperature/attic",
            "class": "telemetry",
            "payload": {"device": "t9", "celsius": 7.5},
        } in lines()


# --- PostgreSQL, InfluxDB, NATS, S3 -----------------------------------------------------------------------------------


@pytest.mark.peers
def test_energy_to_postgres(tmp_path: Path) -> None:
    asyncpg = pytest.importorskip("asyncpg")
    database = servers.Postgres(tmp_path)
    database.start()

    async def ask(query: str) -> list[Any]:
        connection = await asyncpg.connect(database.url)
        try:
            return list(await connection.fetch(query))
        finally:
            await connection.close()

    def rows() -> list[Any]:
        try:
            return asyncio.run(ask("SELECT topic, payload, device_time FROM energy ORDER BY time"))
        except asyncpg.UndefinedTableError:
            return []

    with database.running():
        recipe = Recipe("energy-to-postgres", tmp_path, SINKS_HISTORY_URL=database.url, RULES_ENERGY_EVERY="1s")
        (recipe.folder / "postgres-password").write_text("anything\n")
        with recipe.running():
            recipe.run(0)
            means = [json.loads(row["payload"]) for row in until(lambda: rows_of(2, rows))]
            assert {row["topic"] for row in rows()} == {"energy/heat_pump_power"}
            assert sum(mean["watts"] * mean["readings"] for mean in means) == 4000.0
            assert all(mean["wh"] == pytest.approx(mean["watts"] / 3600, abs=0.001) for mean in means)
            [query] = recipes.blocks(recipe.name, "sql")
            assert len(asyncio.run(ask(query))) == len(means)
        intake = json.loads(recipe.lockgate("ledger", "--json"))["intake"]
        assert (intake["received"], sum(intake["refused"].values())) == (3, 1)


def rows_of(readings: int, rows: Any) -> list[Any]:
    """The rows, once they hold so many readings: a window may end between two of them."""
    found: list[Any] = rows()
    return found if sum(json.loads(row["payload"])["readings"] for row in found) == readings else []


@pytest.mark.peers
def test_sparkplug_to_influx(tmp_path: Path) -> None:
    pytest.importorskip("google.protobuf")
    with servers.influx(tmp_path) as url:

        def points() -> list[dict[str, Any]]:
            words = urllib.parse.urlencode({"db": "gw", "q": "SELECT * FROM plant", "epoch": "ms"})
            with urllib.request.urlopen(f"{url}/query?{words}", timeout=10) as answer:
                [result] = json.load(answer)["results"]
            return [
                dict(zip(series["columns"], values, strict=True))
                for series in result.get("series", [])
                for values in series["values"]
            ]

        recipe = Recipe("sparkplug-to-influx", tmp_path, SINKS_METRICS_URL=f"{url}/write?db=gw&precision=ns")
        (recipe.folder / "influx-token").write_text("anything\n")
        with recipe.running():
            recipe.run(0)
            found = until(lambda: points() if len(points()) >= 4 else [])
        assert {(p["time"], p["node"], p["device"], p["metric"], p["value"]) for p in found if p["online"] is None} == {
            (1767225600000, "line-1", "oven", "temperature", 20.5),
            (1767225600000, "line-1", "oven", "running", 1.0),
            (1767225601000, "line-1", "oven", "temperature", 21.25),
        }
        [death] = [p for p in found if p["online"] is not None]
        assert (death["node"], death["device"], death["online"], death["class"]) == ("line-1", None, 0.0, "alarm")


@pytest.mark.peers
def test_vibration_to_nats(tmp_path: Path) -> None:
    nats = pytest.importorskip("nats")

    async def take(url: str) -> list[tuple[str, dict[str, Any]]]:
        client = await nats.connect(url)
        stream = client.jetstream()
        await stream.add_stream(name="VIBRATION", subjects=["hall-3.>"])
        await asyncio.to_thread(recipe.run, 0)
        subscription = await stream.subscribe("hall-3.>", ordered_consumer=True)
        got: list[tuple[str, dict[str, Any]]] = []
        while sum(payload["samples"] for _, payload in got) < 101:
            message = await subscription.next_msg(WAIT)
            assert message.headers["Nats-Msg-Id"].startswith("hall-3/")
            got.append((message.subject, json.loads(message.data)))
        await client.close()
        return got

    with servers.nats(tmp_path) as url:
        recipe = Recipe("vibration-to-nats", tmp_path, SINKS_BUS_URL=url, RULES_P95_EVERY="1s")
        (recipe.folder / "nats-token").write_text("anything\n")
        with recipe.running():
            got = asyncio.run(take(url))
        assert {subject for subject, _ in got} == {"hall-3.vibration.lathe"}
        assert max(payload["peak"] for _, payload in got) == 100.0
        if len(got) == 1:  # the window did not end between two samples
            assert got[0][1] == {"p95": 95.0, "peak": 100.0, "samples": 101}


@pytest.mark.peers
def test_archive_to_s3(tmp_path: Path) -> None:
    boto3 = pytest.importorskip("boto3")
    with servers.s3(tmp_path) as url:
        store = boto3.client(
            "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="me", aws_secret_access_key="secret"
        )
        store.create_bucket(Bucket="archive")
        recipe = Recipe("archive-to-s3", tmp_path, SINKS_ARCHIVE_ENDPOINT=url, SINKS_ARCHIVE_GATHER="1s")
        (recipe.folder / "s3-secret").write_text("secret\n")

        def objects() -> dict[str, list[dict[str, Any]]]:
            names = [one["Key"] for one in store.list_objects_v2(Bucket="archive").get("Contents", [])]
            bodies = {name: store.get_object(Bucket="archive", Key=name)["Body"].read() for name in names}
            return {
                name: [json.loads(line) for line in gzip.decompress(body).splitlines()] for name, body in bodies.items()
            }

        with recipe.running():
            recipe.run(0)
            found = until(lambda: o if sum(map(len, (o := objects()).values())) >= 50 else {})
        messages = [message for name in sorted(found) for message in found[name]]
        assert [message["payload"]["value"] for message in messages] == [float(n) for n in range(1, 51)]
        assert shown(messages[0]) == arrives(recipe.name)[0]
        assert all(name.startswith("plant/telemetry/20") and name.endswith(".jsonl.gz") for name in found)
        page = re.search(r"^`(plant/.*)-\d+\.jsonl\.gz`", recipes.page(recipe.name), re.M)
        assert page is not None
        assert re.sub(r"/[\d/]+/", "/DAY/", min(found)).startswith(re.sub(r"/[\d/]+/", "/DAY/", page[1]))


# --- a cloud that speaks MQTT -----------------------------------------------------------------------------------------


@pytest.mark.peers
def test_cloud_with_commands(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certfile, keyfile = authority.issue("cloud", "localhost")
    ours, our_key = authority.issue("gateway-7", common_name="gateway-7")
    port = free_port()
    cloud = Mosquitto(
        tmp_path,
        [
            f"listener {port} 127.0.0.1",
            f"cafile {authority.cafile}",
            f"certfile {certfile}",
            f"keyfile {keyfile}",
            "require_certificate true",
            "use_identity_as_username true",
        ],
    )
    recipe = Recipe("cloud-with-commands", tmp_path, SINKS_CLOUD_URL=f"mqtts://localhost:{port}")
    local = f"mqtt://lockgate@127.0.0.1:{recipe.port}"
    recipe.environment |= {"LOCKGATE_PROCESSOR_URL": local, "LOCKGATE_DOWNLINK_URL": local}
    for source, name in ((authority.cafile, "cloud-ca.pem"), (ours, "gateway-7.pem"), (our_key, "gateway-7.key")):
        shutil.copy(source, recipe.folder / name)
    recipe.run(0)
    expected = arrives(recipe.name)
    try:
        with recipe.running():
            there = subscriber(cloud.port, "site/#", len(expected))
            recipe.run(1)
            assert [(topic, json.loads(payload)) for topic, payload in lines_of(there)] == [
                ("site/gateway-7/devices/lamp-1/state", one) for one in expected
            ]
            until(lambda: recipe.status("forwarder")["downlinks"]["cloud"]["connected"])
            lamp = subscriber(recipe.port, "devices/lamp-1/#", 1, "-u", "lamp-1", "-P", "secret")
            publish(cloud.port, "commands/gateway-7/devices/lamp-1/firmware", "evil")
            publish(cloud.port, "commands/gateway-7/devices/lamp-1/set", "off")
            assert lines_of(lamp) == [("devices/lamp-1/set", "off")]

            def told() -> tuple[int, int]:
                said = recipe.status("forwarder")["downlinks"]["cloud"]
                return said["passed"], said["refused"]

            until(lambda: told() == (1, 1))
    finally:
        cloud.stop()


@pytest.mark.peers
def test_modbus_meter(tmp_path: Path) -> None:
    cloud = Mosquitto(tmp_path)
    recipe = Recipe("modbus-meter", tmp_path, SINKS_CLOUD_URL=cloud.url, SOURCES_METERS_INTERVAL="200ms")
    recipe.environment["LOCKGATE_SOURCES_METERS_URL"] = f"mqtt://127.0.0.1:{recipe.port}"
    port = free_port()
    toml = recipe.folder / "lockgate.toml"
    toml.write_text(toml.read_text().replace("192.0.2.10:502", f"127.0.0.1:{port}"))
    online, power, offline = (f"{name} {json.dumps(said)}" for name, said in zip(
        ("main/state", "main/power", "main/state"), arrives(recipe.name), strict=True
    ))  # fmt: skip
    log = tmp_path / "meter"
    with log.open("ab") as said:
        command = [sys.executable, "-m", "tests.support.modbus", str(port)]
        meter = subprocess.Popen(command, stdout=said, stderr=said, cwd=recipes.ROOT)
    try:
        wait_for_port(port, meter, log)
        shown = [line.split() for line in recipe.lockgate("sources", "test").splitlines()]
        assert shown == [
            line.split() for line in recipes.blocks(recipe.name, "text")[-1].replace("2s", "200ms").splitlines()
        ]
        there = subscriber(cloud.port, "site/#", 3)
        with recipe.running():
            until(lambda: recipe.status("source:meters").get("published", 0))
            until(lambda: recipe.status("forwarder")["sinks"]["cloud"]["delivered"] == 2)
            meter.kill()
            came = [f"{topic.removeprefix('site/gateway-7/')} {payload}" for topic, payload in lines_of(there)]
        assert sorted(map(normal, came[:2])) == sorted(map(normal, (online, power)))
        assert normal(came[2]) == normal(offline)
    finally:
        meter.kill()
        meter.wait()
        cloud.stop()


def normal(line: str) -> tuple[str, str]:
    """Topic and JSON, however that is written."""
    topic, _, payload = line.partition(" ")
    return topic, json.dumps(json.loads(payload), sort_keys=True)


def subscriber(port: int, topic_filter: str, count: int, *words: str) -> subprocess.Popen[str]:
    """A mosquitto_sub that is subscribed."""
    command = ["stdbuf", "-oL", program("mosquitto_sub"), "-d", "-v", "-q", "1", "-p", str(port), "-t", topic_filter]
    process = subprocess.Popen([*command, "-C", str(count), "-W", "20", *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while "Subscribed" not in (line := process.stdout.readline()):
        assert line, "it ended"
    return process


def lines_of(process: subprocess.Popen[str]) -> list[tuple[str, str]]:
    """The messages it got: topic and payload."""
    output, _ = process.communicate(timeout=WAIT)
    lines = [line for line in output.splitlines() if not line.startswith("Client ")]
    return [(topic, payload) for topic, _, payload in (line.partition(" ") for line in lines)]
