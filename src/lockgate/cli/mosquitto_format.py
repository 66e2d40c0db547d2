"""How mosquitto_sub and mosquitto_rr print a message: the payload, topic and payload (-v), or a format (-F)."""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from typing import Final, NamedTuple, cast

from lockgate.cli.mosquitto_wire import complain
from lockgate.mqtt.packets import Publish
from lockgate.mqtt.properties import Properties

_NUMBERS: Final = "AEFSlm"  # zeros may pad these
_TEXTS: Final = "CIRt"  # these may be cut
_WIDE: Final = _NUMBERS + _TEXTS + "dfpxX"  # a width means something
_PLAIN: Final = "DPqrUjJ%"
_ESCAPES: Final = {"0": b"\0", "a": b"\a", "e": b"\x1b", "n": b"\n", "r": b"\r", "t": b"\t", "v": b"\v", "\\": b"\\"}
_SEPARATORS: Final = frozenset("!\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~")
_NOTHING: Final = Properties()


class FormatError(Exception):
    """A format that cannot be meant."""


class NotPrintable(Exception):
    """This message is not what the format needs; the text is for standard error, `printed` what there is of it."""

    printed = b""


class Piece(NamedTuple):
    """A literal, or one thing about a message."""

    literal: bytes
    sign: str = ""  # % or @
    letter: str = ""
    left: bool = False
    zeros: bool = False
    width: int = 0
    precision: int | None = None
    separator: str = " "  # of the fields of %x


def parse_format(text: str) -> list[Piece]:
    """Read a format. Raises FormatError."""
    pieces: list[Piece] = []
    at = 0
    while at < len(text):
        letter = text[at]
        if letter == "%":
            piece, at = _parameter(text, at + 1)
            pieces.append(piece)
        elif letter == "@":
            if at + 1 == len(text):
                raise FormatError("Incomplete format specifier.")
            pieces.append(Piece(b"@") if text[at + 1] == "@" else Piece(b"", "@", text[at + 1]))
            at += 2
        elif letter == "\\":
            if at + 1 == len(text):
                raise FormatError("Incomplete escape specifier.")
            if text[at + 1] not in _ESCAPES:
                raise FormatError(f"Invalid escape specifier '{text[at + 1]}'.")
            pieces.append(Piece(_ESCAPES[text[at + 1]]))
            at += 2
        else:
            end = min((found for sign in "%@\\" if (found := text.find(sign, at)) >= 0), default=len(text))
            pieces.append(Piece(_bytes(text[at:end])))
            at = end
    return pieces


def _parameter(text: str, at: int) -> tuple[Piece, int]:
    left, at = (True, at + 1) if text[at : at + 1] == "-" else (False, at)
    zeros, at = (True, at + 1) if text[at : at + 1] == "0" else (False, at)
    width, at = _digits(text, at)
    precision, separator = None, " "
    if text[at : at + 1] == ".":
        precision, at = _digits(text, at + 1)
        if text[at : at + 1] in _SEPARATORS and text[at : at + 1] and text[at + 1 : at + 2] in ("x", "X"):
            separator, at = text[at], at + 1
    if at >= len(text):
        raise FormatError("Incomplete format specifier.")
    letter = text[at]
    if letter not in _WIDE + _PLAIN:
        raise FormatError(f"Invalid format specifier '{letter}'.")
    if letter == "%":
        return Piece(b"%"), at + 1
    return Piece(b"", "%", letter, left, zeros and not left, width, precision, separator), at + 1


def _digits(text: str, at: int) -> tuple[int, int]:
    end = at
    while end < len(text) and text[end] in "0123456789":
        end += 1
    return (int(text[at:end]) if end > at else 0), end


# --- one message -----------------------------------------------------------------------------------------------------


class Printer:
    """Messages as the options say."""

    def __init__(
        self, pieces: Sequence[Piece] | None, *, verbose: bool = False, eol: bool = True, pretty: bool = False
    ) -> None:
        self._pieces = pieces
        self._verbose = verbose
        self._eol = b"\n" if eol else b""
        self._pretty = pretty

    def shown(self, message: Publish, *, quiet: bool) -> bytes:
        """Give what is printed of one, or of as much as can be; what cannot is complained of."""
        try:
            return self.render(message)
        except NotPrintable as error:
            if not quiet:
                complain(str(error))
            return error.printed

    def render(self, message: Publish) -> bytes:
        """Give what is printed of one. Raises NotPrintable."""
        if self._pieces is not None:
            return self._formatted(self._pieces, message) + self._eol
        if self._verbose:
            if message.payload:
                return message.topic.encode() + b" " + message.payload + self._eol
            return message.topic.encode() + b" (null)" + self._eol if self._eol else b""
        return message.payload + self._eol if message.payload else b""

    def _formatted(self, pieces: Sequence[Piece], message: Publish) -> bytes:
        nanoseconds = time.time_ns()
        parts: list[bytes] = []
        for piece in pieces:
            if not piece.sign:
                parts.append(piece.literal)
            elif piece.sign == "@":
                parts.append(_moment(piece.letter, nanoseconds))
            else:
                try:
                    parts.append(self._value(piece, message, nanoseconds))
                except NotPrintable as error:
                    error.printed = b"".join(parts) + self._eol
                    raise
        return b"".join(parts)

    def _value(self, piece: Piece, message: Publish, nanoseconds: int) -> bytes:
        if piece.letter in "jJ":
            return _json(message, nanoseconds, piece.letter == "J", self._pretty)
        return _padded(piece, _value(piece, message, nanoseconds))


def _moment(letter: str, nanoseconds: int) -> bytes:
    if letter == "N":
        return b"%09d" % (nanoseconds % 1_000_000_000)
    return _bytes(time.strftime(f"%{letter}", time.localtime(nanoseconds // 1_000_000_000)))


def _iso(nanoseconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(nanoseconds // 1_000_000_000))


def _value(piece: Piece, message: Publish, nanoseconds: int) -> bytes:
    letter = piece.letter
    properties = message.properties if message.properties is not None else _NOTHING
    value: object = None
    if letter == "t":
        value = message.topic
    elif letter == "p":
        return message.payload
    elif letter in "xX":
        digits = message.payload.hex()
        if piece.precision:
            size = piece.precision
            digits = piece.separator.join(digits[at : at + size] for at in range(0, len(digits), size))
        value = digits.upper() if letter == "X" else digits
    elif letter in "fd":
        value = _number(piece, message)
    elif letter == "l":
        value = len(message.payload)
    elif letter == "m":
        value = message.packet_id if message.qos else 0
    elif letter == "q":
        value = message.qos
    elif letter == "r":
        value = int(message.retain)
    elif letter == "A":
        value = properties.topic_alias
    elif letter == "C":
        value = properties.content_type
    elif letter == "D":
        return properties.correlation_data or b""
    elif letter == "E":
        value = properties.message_expiry_interval
    elif letter == "F":
        value = properties.payload_format_indicator
    elif letter == "P":
        value = " ".join(f"{name}:{text}" for name, text in properties.user_properties)
    elif letter == "R":
        value = properties.response_topic
    elif letter == "S":
        value = properties.subscription_identifiers[0] if properties.subscription_identifiers else None
    elif letter == "I":
        value = _iso(nanoseconds)
    else:  # U
        value = f"{nanoseconds // 1_000_000_000}.{nanoseconds % 1_000_000_000:09d}"
    text = "" if value is None else str(value)
    if letter in _TEXTS and piece.precision is not None:
        text = text[: piece.precision]
    return _bytes(text)


def _number(piece: Piece, message: Publish) -> str:
    size, form = (4, "<f") if piece.letter == "f" else (8, "<d")
    if len(message.payload) != size:
        raise NotPrintable(f"Error: Message payload is not a float of {size} bytes on topic {message.topic}.")
    (value,) = struct.unpack(form, message.payload)
    return f"{value:.{piece.precision if piece.precision is not None else 6}f}"


def _padded(piece: Piece, value: bytes) -> bytes:
    if piece.letter not in _WIDE:
        return value
    if piece.left:
        return value.ljust(piece.width)
    return value.rjust(piece.width, b"0" if piece.zeros and piece.letter not in _TEXTS else b" ")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


# --- JSON ------------------------------------------------------------------------------------------------------------


class _Pairs(list[tuple[str, object]]):
    """A JSON object as it was written: in order, with repeated names."""


_JSON_PROPERTIES: Final = (
    ("content-type", "content_type"),
    ("response-topic", "response_topic"),
    ("correlation-data", "correlation_data"),
    ("payload-format-indicator", "payload_format_indicator"),
    ("user-properties", "user_properties"),
    ("message-expiry-interval", "message_expiry_interval"),
    ("topic-alias", "topic_alias"),
    ("subscription-identifier", "subscription_identifiers"),
)


def _json(message: Publish, nanoseconds: int, parsed: bool, pretty: bool) -> bytes:
    import json

    iso = _iso(nanoseconds)
    object_ = _Pairs()
    object_.append(("tst", f"{iso[:19]}.{nanoseconds % 1_000_000_000 // 1000:06d}{iso[19:]}"))
    object_ += [("topic", message.topic), ("qos", message.qos), ("retain", int(message.retain))]
    object_.append(("payloadlen", len(message.payload)))
    if message.qos:
        object_.append(("mid", message.packet_id))
    properties = _Pairs()
    for name, attribute in _JSON_PROPERTIES:
        value = getattr(message.properties, attribute, None)
        if value is None or value == ():
            continue
        if attribute == "user_properties":
            value = _Pairs(value)
        elif attribute == "subscription_identifiers":
            value = value[0]
        elif isinstance(value, bytes):
            value = value.decode("utf-8", "surrogateescape")
        properties.append((name, value))
    if properties:
        object_.append(("properties", properties))
    payload: object = message.payload.decode("utf-8", "surrogateescape")
    if parsed:
        try:
            payload = json.loads(cast(str, payload), object_pairs_hook=_Pairs)
        except ValueError:
            raise NotPrintable(f"Error: Message payload is not valid JSON on topic {message.topic}.") from None
    object_.append(("payload", payload))
    return _bytes(_dump(object_, "\n" if pretty else None))


def _dump(value: object, line: str | None) -> str:
    """JSON without spaces, or over several lines that begin with `line` and are indented by tabulators."""
    import json

    if isinstance(value, _Pairs):
        inner = line + "\t" if line is not None else None
        colon = ":\t" if line is not None else ":"
        members = [f"{json.dumps(name, ensure_ascii=False)}{colon}{_dump(one, inner)}" for name, one in value]
        if not members:
            return "{}" if line is None else f"{{{line}}}"
        return f"{{{inner or ''}{(',' + (inner or '')).join(members)}{line or ''}}}"
    if isinstance(value, list):
        inner = line + "\t" if line is not None else None
        return "[" + (", " if line is not None else ",").join(_dump(one, inner) for one in value) + "]"
    return json.dumps(value, ensure_ascii=False)
