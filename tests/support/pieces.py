"""Bytes as a connection brings them."""

from __future__ import annotations


def in_pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    """The same bytes, cut into pieces of these sizes, again and again."""
    pieces, at, turn = [], 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        pieces.append(data[at : at + size])
        at += size
        turn += 1
    return pieces
