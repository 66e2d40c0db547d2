"""The other end of the wire: an asyncio MQTT client that reconnects, resends and acknowledges when it is told to."""

from lockgate.client.client import Client
from lockgate.client.endpoints import parse_endpoint
from lockgate.client.errors import (
    ClientError,
    ConnectionLost,
    ConnectionRefused,
    NotConnected,
    PublishRefused,
    SubscribeRefused,
)
from lockgate.client.message import Message
from lockgate.client.url import ServerAddress, parse_url
from lockgate.mqtt import reason_codes
from lockgate.mqtt.packets import SubscriptionRequest, Will
from lockgate.mqtt.properties import Properties
from lockgate.mqtt.topics import matches
from lockgate.transport.endpoint import Endpoint, Proxy

__all__ = [
    "Client",
    "ClientError",
    "ConnectionLost",
    "ConnectionRefused",
    "Endpoint",
    "Message",
    "NotConnected",
    "Properties",
    "Proxy",
    "PublishRefused",
    "ServerAddress",
    "SubscribeRefused",
    "SubscriptionRequest",
    "Will",
    "matches",
    "parse_endpoint",
    "parse_url",
    "reason_codes",
]
