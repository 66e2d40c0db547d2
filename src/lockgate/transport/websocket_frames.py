"""The frames of WebSocket, whichever side sends them: their heads, their masks (RFC 6455 §5.2, §5.3)."""

from __future__ import annotations

import os
from typing import Final

try:
    from websockets.speedups import apply_mask as apply_mask
except ImportError:  # the library was built without a C compiler
    from websockets.utils import apply_mask as apply_mask

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA  # opcodes; from CLOSE on: control frames
FIN, RESERVED, OPCODE = 0x80, 0x70, 0x0F  # of a frame's first byte
LONGEST_HEAD: Final = 14  # bytes
LONGEST_CONTROL: Final = 125  # bytes of a control frame's payload (§5.5)
_MASKED, _LENGTH = 0x80, 0x7F  # of the second


def read_head(data: bytes, at: int) -> tuple[int, int, bytes, int] | None:
    """Read the head of the frame that begins at data[at]; None where it is not whole.

    Gives its first byte, how many bytes its payload has, its mask (empty: there is none), and where the payload begins.
    """
    if len(data) < at + 2:
        return None
    second = data[at + 1]
    length, begin, mask = second & _LENGTH, at + 2, b""
    if length > LONGEST_CONTROL:
        begin += 2 if length == 126 else 8
        length = int.from_bytes(data[at + 2 : begin], "big")
    if second & _MASKED:
        begin += 4
        mask = data[begin - 4 : begin]
    return (data[at], length, mask, begin) if len(data) >= begin else None


def frame(opcode: int, payload: bytes, mask: bytes = b"") -> bytes:
    """Give a whole message or a control frame; a client needs four unforeseeable bytes for `mask`."""
    length = len(payload)
    bit = _MASKED if mask else 0
    if length <= LONGEST_CONTROL:
        head = bytes((FIN | opcode, bit | length))
    elif length < 65_536:
        head = bytes((FIN | opcode, bit | 126, length >> 8, length & 0xFF))
    else:
        head = bytes((FIN | opcode, bit | 127)) + length.to_bytes(8, "big")
    return head + mask + apply_mask(payload, mask) if mask else head + payload


def masked_frame(opcode: int, payload: bytes) -> bytes:
    """Give a frame as a client has to send it."""
    return frame(opcode, payload, os.urandom(4))


def turn_mask(mask: bytes, count: int) -> bytes:
    """Give the mask for what follows `count` bytes of a payload."""
    turn = count & 3
    return mask[turn:] + mask[:turn]
