"""Features that follow written rules in text that ships with the package, to judge judges by.

Which tokens a feature fires at is worked out by its rule, never typed. The texts are short, made
for this purpose and as plain as text can be: a judge that fails here has no excuse. What they
cannot tell is how a judge does on a real feature, whose label is only about right.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from ..store.records import content_hash

Tokens = Sequence[str]
Rule = Callable[[Tokens], list[bool]]

# Digits are tokens of their own, as in Gemma's tokenizer; a space belongs to what follows it.
_TOKEN = re.compile(r" ?[^\W\d_]+(?:'[^\W\d_]+)*| ?\d| ?[^\w\s]")
_SENTENCE_ENDS = frozenset(".?!")
_DISHES = frozenset(("bread", "butter", "cheese"))
_FRENCH = frozenset(
    ["je", "ne", "sais", "quoi", "c'est", "la", "vie", "bonne", "nuit", "et", "merci", "beaucoup"]
)
_NEGATIONS = frozenset(
    ["no", "not", "never", "nobody", "nothing", "none", "neither", "nor", "nowhere"]
)


@dataclass(frozen=True, slots=True)
class GoldItem:
    """A feature of which all is known.

    Attributes:
        name: of its rule.
        label: what the rule says, in words.
        windows: the texts of their tokens.
        truth: where the feature fires, token by token.
    """

    name: str
    label: str
    windows: tuple[tuple[str, ...], ...]
    truth: tuple[tuple[bool, ...], ...]


@cache
def gold_items() -> tuple[GoldItem, ...]:
    """All items, in the order of the file."""
    text = files("scopenote.evaluate").joinpath("gold_texts.toml").read_text("utf-8")
    items = []
    for each in tomllib.loads(text)["items"]:
        texts = (*each["with"], *each["without"], each["near_miss"])
        windows = tuple(cut(text) for text in texts)
        rule = RULES[each["name"]]
        truth = tuple(tuple(rule(window)) for window in windows)
        items.append(GoldItem(each["name"], each["label"], windows, truth))
    return tuple(items)


@cache
def gold_version() -> str:
    """A hash of labels, texts and truth: scores of other versions are not to be compared."""
    return content_hash(
        [[item.name, item.label, item.windows, item.truth] for item in gold_items()]
    )


def cut(text: str) -> tuple[str, ...]:
    """A text's tokens, which joined are the text."""
    return tuple(_TOKEN.findall(text))


def _words(tokens: Tokens) -> list[str]:
    return [token.strip().lower() for token in tokens]


def _one_of(words: frozenset[str]) -> Rule:
    def holds(tokens: Tokens) -> list[bool]:
        return [word in words for word in _words(tokens)]

    return holds


def _after_very(tokens: Tokens) -> list[bool]:
    return [before == "very" for before in ["", *_words(tokens)[:-1]]]


def _inside_quotation_marks(tokens: Tokens) -> list[bool]:
    holds, is_inside = [], False
    for word in _words(tokens):
        is_mark = word == '"'
        is_inside ^= is_mark
        holds.append(is_inside and not is_mark)
    return holds


def _digit_after_digit(tokens: Tokens) -> list[bool]:
    # " 4" begins a number of its own.
    return [
        token.isdigit() and before[-1:].isdigit()
        for before, token in zip(["", *tokens[:-1]], tokens, strict=True)
    ]


def _first_of_a_sentence(tokens: Tokens) -> list[bool]:
    # A window begins a sentence if its first letter is a capital.
    return [
        (before == "" or before in _SENTENCE_ENDS) and token.strip()[:1].isupper()
        for before, token in zip(["", *tokens[:-1]], tokens, strict=True)
    ]


def _negates(tokens: Tokens) -> list[bool]:
    return [word in _NEGATIONS or word.endswith("n't") for word in _words(tokens)]


RULES: Mapping[str, Rule] = {
    "token_set": _one_of(_DISHES),
    "after_another": _after_very,
    "quoted": _inside_quotation_marks,
    "digit_run": _digit_after_digit,
    "rare_word": _one_of(frozenset(("quince",))),
    "french": _one_of(_FRENCH),
    "sentence_start": _first_of_a_sentence,
    "negation": _negates,
}
"""By the item's name, which tokens of a window its feature fires at."""
