"""The other end of the wire: an asyncio MQTT client that reconnects, resends and acknowledges when it is told to."""

from lockgate.client.client import Client
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

__all__ = [
    "Client",
    "ClientError",
    "ConnectionLost",
    "ConnectionRefused",
    "Message",
    "NotConnected",
    "PublishRefused",
    "ServerAddress",
    "SubscribeRefused",
    "parse_url",
]
