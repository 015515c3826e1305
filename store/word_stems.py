"""Words without their endings: plurals, -ed and -ing, so that `doubts` finds `doubting`.

Steps 1 and 5a of Porter's algorithm (An algorithm for suffix stripping, Program 14, 1980). Its
other steps are left out: they would make one word of `import` and `important`.
"""

from __future__ import annotations

import re

# English words that say nothing of what a text is about.
STOP_WORDS = frozenset({
    "a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "from", "has", "have",
    "in", "is", "it", "its", "of", "on", "or", "that", "the", "their", "this", "to", "was",
    "were", "which", "with",
})  # fmt: skip

_VOWEL = "(?:[aeiou]|(?<=[^aeiou])y)"
_CONSONANT = "(?:[^aeiouy]|(?<![^aeiou])y)"
_HAS_VOWEL = re.compile(_VOWEL)
# A vowel and then a consonant, somewhere: Porter's measure is above 0; twice: above 1.
_M_ABOVE_0 = re.compile(f"{_VOWEL}{_CONSONANT}")
_M_ABOVE_1 = re.compile(f"{_VOWEL}{_CONSONANT}.*{_VOWEL}{_CONSONANT}")
_DOUBLED = re.compile(r"([^aeiouylsz])\1$")
# Porter's *o: it ends in consonant, vowel, consonant, the last not w, x or y.
_SHORT_END = re.compile(f"{_CONSONANT}{_VOWEL}[^aeiouwxy]$")


def stem(word: str) -> str:
    """A word in lower case without its ending; what is not of English letters stays as it is."""
    if len(word) <= 2 or not (word.isascii() and word.isalpha()):
        return word
    return _without_e(_y_to_i(_without_participle(_without_plural(word))))


def _without_plural(word: str) -> str:
    if word.endswith(("sses", "ies")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _without_participle(word: str) -> str:
    if word.endswith("eed"):
        return word[:-1] if _M_ABOVE_0.search(word[:-3]) else word
    for ending in ("ed", "ing"):
        rest = word.removesuffix(ending)
        if rest != word and _HAS_VOWEL.search(rest):
            return _mended(rest)
    return word


def _mended(rest: str) -> str:
    """What is left of a word in -ed or -ing, with the end that the word without it has."""
    if rest.endswith(("at", "bl", "iz")):
        return rest + "e"
    if _DOUBLED.search(rest):
        return rest[:-1]
    is_short = _SHORT_END.search(rest) and not _M_ABOVE_1.search(rest)
    return rest + "e" if is_short else rest


def _y_to_i(word: str) -> str:
    return word[:-1] + "i" if word.endswith("y") and _HAS_VOWEL.search(word[:-1]) else word


def _without_e(word: str) -> str:
    rest = word.removesuffix("e")
    if rest == word:
        return word
    is_long = _M_ABOVE_1.search(rest) or (_M_ABOVE_0.search(rest) and not _SHORT_END.search(rest))
    return rest if is_long else word
