"""Makes text from a corpus or a model safe and legible on a terminal.

Such text may hold escape sequences, characters that turn the direction of a line, or nothing
that can be seen at all. Whatever is not a visible character is shown by a sign of its own.
"""

from __future__ import annotations

import unicodedata

NEWLINE = "⏎"
_SIGNS = {"\n": NEWLINE, "\t": "⇥", "\r": "␍", "\u00a0": "⍽"}
# Controls, formats (the bidirectional ones and zero-width ones among them), halves of pairs,
# private and unassigned code points, and separators of lines and paragraphs.
_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def visible(text: str) -> str:
    """The text with a visible sign for every character that is none."""
    # Most texts are, and a page has thousands of them: one by one is a hundred times as slow.
    if text.isprintable():
        return text
    return "".join(map(_visible_character, text))


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
