"""The tokens that a label names: its words, and what it quotes.

What a label says in its own words is looked for without small words ("the", "of") and without
the words in which labels speak of text at all ("tokens", "mentions of"). What it puts in quotation
marks it names as it stands, small words and signs too. Left out: tokens of words that the
tokenizer writes in several pieces, since a piece is no word's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

_QUOTED = re.compile(r"“([^”]+)”|\"([^\"]+)\"|«([^»]+)»|`([^`]+)`|‘([^’]+)’")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W\d_]+)?")
# "␣×12" is twelve spaces.
_REPEATED = re.compile(r"(.)×(\d{1,3})")
_UNSEEN = str.maketrans({"␣": " ", "⏎": "\n", "⇥": "\t"})

_SMALL = """
    a about after all also among an and any are as at be because been before behind being between
    both but by can could did do does during each either especially etc every few followed
    following for from had has have how if in including into is it its just like many may more
    most near no nor not of often on once one only onto or other others over own particularly per
    preceded preceding same several some such than that the their them then there these they this
    those through to toward towards under until up upon used using usually various very was were
    what when where which while who whose will with within without would you your
"""
_OF_TEXT = """
    activates active appear appearing appears beginning begins character characters concept
    concepts contain containing contains context contexts content contents denote denotes denoting
    describe describes describing discuss discusses discussing discussion discussions end ends
    example examples expression expressions feature features fires indicate indicates indicating
    instance instances kind kinds mention mentioned mentioning mentions name named names occurrence
    occurrences part parts phrase phrases prefix refer reference references referring refers
    related relating sentence sentences something start starts string strings suffix term terms
    text texts thing things token tokens topic topics type types usage use uses word words
"""
_LEFT_OUT = frozenset(f"{_SMALL} {_OF_TEXT}".split())


def named_tokens(text: str, token_of: Callable[[str], int | None]) -> tuple[int, ...]:
    """The ids of the tokens that a label names, rising.

    Args:
        text: of the label.
        token_of: the token that a text is written as; None where it is not one token.
    """
    tokens = {token_of(each) for name in _names(text) for each in _spellings(name)}
    return tuple(sorted(token for token in tokens if token is not None))


def _names(text: str) -> Iterator[str]:
    for quoted in _QUOTED.finditer(text):
        whole = next(filter(None, quoted.groups())).strip()
        if whole:
            yield _as_meant(whole)
    for word in _WORD.findall(_QUOTED.sub(" ", text)):
        if word.lower() not in _LEFT_OUT and (len(word) > 1 or not word.isascii()):
            yield word


def _as_meant(shown: str) -> str:
    """What is shown by a sign, as labels of the token lookup show what cannot be seen."""
    repeated = _REPEATED.fullmatch(shown)
    return (repeated[1] * int(repeated[2]) if repeated else shown).translate(_UNSEEN)


def _spellings(name: str) -> Iterator[str]:
    """As it stands, in small and in capital letters, each with a space before it and without."""
    if name.isspace():
        yield name
        return
    for each in dict.fromkeys((name, name.lower(), name.capitalize(), name.upper())):
        yield each
        yield f" {each}"
