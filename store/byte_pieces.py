"""Tokens that are single bytes, spelled `<0xE2>` in `pieces`, and what they spell together."""

from __future__ import annotations

import re
from collections.abc import Sequence

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def join_bytes(
    tokens: Sequence[str], activations: Sequence[float]
) -> tuple[list[str], list[float]]:
    """Joins tokens that are single bytes (`<0xE2>`) into the character that they spell.

    The character has the highest activation of its bytes. Bytes that spell none stay as they are.
    """
    joined: list[str] = []
    strongest: list[float] = []
    place = 0
    while place < len(tokens):
        if not tokens[place].startswith("<0x"):  # nearly all: worth a shortcut
            joined.append(tokens[place])
            strongest.append(activations[place])
            place += 1
            continue
        text, n = _spelled(tokens, place)
        joined.append(text)
        strongest.append(max(activations[place : place + n]))
        place += n
    return joined, strongest


def _spelled(tokens: Sequence[str], place: int) -> tuple[str, int]:
    """The character that begins here and the number of its tokens, or the token as it is."""
    content = b""
    for n, token in enumerate(tokens[place : place + 4], start=1):
        byte = _BYTE.fullmatch(token)
        if byte is None:
            break
        content += bytes.fromhex(byte[1])
        try:
            return content.decode(), n
        except UnicodeDecodeError:
            continue
    return tokens[place], 1
