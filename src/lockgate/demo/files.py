"""The demo's configuration: written once, then the user's to change."""

from __future__ import annotations

from pathlib import Path

CLOUD_PORT = 18080

MOSQUITTO_CONF = """\
# The demo's broker: open to everybody who can reach this machine.
listener 1883
allow_anonymous true
"""

LOCKGATE_TOML = f"""\
# The demo's gateway. Change it and start again; `lockgate check` tells what it thinks of it.

[gateway]
id = "demo"
data_dir = "data"

[broker]
mosquitto_conf = "mosquitto.conf"

# What comes while the processor is away waits for it, from before its first start. Beyond the limit nothing is
# dropped: who publishes gets no acknowledgement until there is room.
[standing_sessions.lockgate-processor]
topics = ["sensors/#"]
limit = "100MB"

[processor]
url = "mqtt://127.0.0.1:1883"

[schemas.reading]
topics = ["sensors/#"]
fields = {{ value = "real", unit = "text" }}
optional = ["unit"]

# One message for each topic and ten seconds, instead of ten.
[rules.mean]
schema = "reading"
class = "telemetry"
every = "10s"
sql = '''
SELECT 'mean/' || topic AS topic, round(avg(value), 3) AS mean, min(value) AS least, max(value) AS most,
       count(*) AS readings, max(unit) AS unit
FROM reading
GROUP BY topic
'''

# At once, and before everything else.
[rules.alarm]
schema = "reading"
class = "alarm"
sql = "SELECT 'alarm/' || :topic AS topic, :value AS value, :unit AS unit WHERE :value > 90"

[sinks.cloud]
type = "http"
url = "http://127.0.0.1:{CLOUD_PORT}/messages"
retry_max = "5s"
"""


def write_configuration(folder: Path) -> Path:
    """Lay the files into `folder` where they are missing; gives the path of lockgate.toml."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("mosquitto.conf", MOSQUITTO_CONF), ("lockgate.toml", LOCKGATE_TOML)):
        path = folder / name
        if not path.exists():
            path.write_text(text)
    return folder / "lockgate.toml"
