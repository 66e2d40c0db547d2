"""The public clients that play the scenarios."""

from __future__ import annotations

import threading

from tests.interop.scenarios.gmqtt_client import GmqttClient
from tests.interop.scenarios.mqtt_js_client import Driver, MqttJsClient
from tests.interop.scenarios.paho_client import PahoClient
from tests.interop.scenarios.scene import Client, Kind

_lock = threading.Lock()
_drivers: list[Driver] = []


def _mqtt_js(kind: Kind, port: int) -> Client:
    with _lock:
        if not _drivers:
            _drivers.append(Driver())
    return MqttJsClient(kind, port, _drivers[0])


def stop_drivers() -> None:
    """End the node process."""
    while _drivers:
        _drivers.pop().stop()


# paho hands a message of the broker's alias over without its topic
_PAHO = frozenset({"aliases from the broker"})
# gmqtt invents an id where it is given none
_GMQTT = frozenset({"empty client id"})

# mqtt.js checks aliases itself
_MQTT_JS = frozenset({"invalid aliases"})

KINDS = (
    Kind("paho-3.1", 3, False, PahoClient, _PAHO),
    Kind("paho-3.1.1", 4, False, PahoClient, _PAHO),
    Kind("paho-5", 5, False, PahoClient, _PAHO),
    Kind("paho-5-websocket", 5, True, PahoClient, _PAHO),
    Kind("mqtt.js-3.1.1", 4, False, _mqtt_js, _MQTT_JS),
    Kind("mqtt.js-5", 5, False, _mqtt_js, _MQTT_JS),
    Kind("mqtt.js-3.1.1-websocket", 4, True, _mqtt_js, _MQTT_JS),
    Kind("mqtt.js-5-websocket", 5, True, _mqtt_js, _MQTT_JS),
    Kind("gmqtt-3.1.1", 4, False, GmqttClient, _GMQTT),
    Kind("gmqtt-5", 5, False, GmqttClient, _GMQTT),
)
