"""Makes text from a corpus or a model safe and legible on a terminal.

Such text may hold escape sequences, characters that turn the direction of a line, or nothing
that can be seen at all. Whatever is not a visible character is shown by a sign of its own.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

NEWLINE = "⏎"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SIGNS = {"\n": NEWLINE, "\t": "⇥", "\r": "␍", "\u00a0": "⍽"}
# Controls, formats (the bidirectional ones and zero-width ones among them), halves of pairs,
# private and unassigned code points, and separators of lines and paragraphs.
_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def visible(text: str) -> str:
    """The text with a visible sign for every character that is none."""
    return "".join(map(_visible_character, text))


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


def _visible_character(character: str) -> str:
    if character in _SIGNS:
        return _SIGNS[character]
    if " " <= character <= "~":
        return character
    if unicodedata.category(character) not in _INVISIBLE:
        return character
    code = ord(character)
    # The control pictures of Unicode stand in the order of the controls themselves.
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨{code:04X}⟩"
