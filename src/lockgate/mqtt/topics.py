"""Topic Names and Topic Filters (MQTT 5 §4.7, 3.1.1 §4.7): what is valid and what matches."""

from __future__ import annotations

from typing import Final

from lockgate.mqtt import reason_codes
from lockgate.mqtt.errors import MalformedPacket, ProtocolError

MAXIMUM_LEVELS: Final = 200  # Mosquitto's bound; deeper topics are refused
SHARE_PREFIX: Final = "$share/"
_SHOWN_CHARACTERS: Final = 100  # in an error


def shown(topic: str) -> str:
    """Give a name or filter for an error: its beginning, for it may be long, as Python writes strings."""
    return repr(topic) if len(topic) <= _SHOWN_CHARACTERS else repr(topic[:_SHOWN_CHARACTERS]) + "…"


def check_topic_name(topic_name: str, levels: int = MAXIMUM_LEVELS) -> None:
    """Raise MalformedPacket unless this may be the topic of a PUBLISH: not empty, no wildcard, not too many levels."""
    if not topic_name:
        raise MalformedPacket("an empty Topic Name", reason_codes.TOPIC_NAME_INVALID)
    if "#" in topic_name or "+" in topic_name:
        raise MalformedPacket(f"Topic Name {shown(topic_name)} contains a wildcard")
    if topic_name.count("/") >= levels:
        raise MalformedPacket(f"a Topic Name of more than {levels} levels", reason_codes.TOPIC_NAME_INVALID)


def check_topic_filter(topic_filter: str, levels: int = MAXIMUM_LEVELS) -> None:
    """Raise an error unless this is a valid Topic Filter, shared or not (§4.7.1, §4.8.2)."""
    topic_filter = without_share(topic_filter)
    if not topic_filter:
        raise MalformedPacket("an empty Topic Filter", reason_codes.MALFORMED_PACKET)
    if topic_filter.count("/") >= levels:
        raise MalformedPacket(f"a Topic Filter of more than {levels} levels", reason_codes.TOPIC_FILTER_INVALID)
    if "#" not in topic_filter and "+" not in topic_filter:
        return
    parts = topic_filter.split("/")
    last = len(parts) - 1
    for position, level in enumerate(parts):
        if "#" in level and (level != "#" or position != last):
            raise MalformedPacket(f"Topic Filter {shown(topic_filter)}: # must be the whole last level")
        if "+" in level and level != "+":
            raise MalformedPacket(f"Topic Filter {shown(topic_filter)}: + must be a whole level")


def split_shared(topic_filter: str) -> tuple[str, str]:
    """Split `$share/{ShareName}/{filter}` into its two parts (§4.8.2); raises ProtocolError where one is missing."""
    share_name, slash, rest = topic_filter[len(SHARE_PREFIX) :].partition("/")
    if not share_name or not slash or not rest or "#" in share_name or "+" in share_name:
        raise ProtocolError(f"shared Topic Filter {shown(topic_filter)} is not $share/NAME/FILTER")
    return share_name, rest


def without_share(topic_filter: str) -> str:
    """Give a Topic Filter as it is matched, without `$share/{ShareName}/`; raises ProtocolError as `split_shared`."""
    return split_shared(topic_filter)[1] if topic_filter.startswith(SHARE_PREFIX) else topic_filter


def matches(topic_filter: str, topic_name: str) -> bool:
    """Say whether a Topic Name matches a Topic Filter that is not shared (§4.7)."""
    if topic_name.startswith("$") and topic_filter[:1] in ("+", "#"):
        return False  # [MQTT-4.7.2-1]
    filter_levels = topic_filter.split("/")
    name_levels = topic_name.split("/")
    for position, level in enumerate(filter_levels):
        if level == "#":
            return True
        if position >= len(name_levels):
            return False
        if level != "+" and level != name_levels[position]:
            return False
    return len(filter_levels) == len(name_levels)
