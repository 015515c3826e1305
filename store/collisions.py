"""Labels that several features of one SAE have: a label that fits two does not say which it is.

Two labels are identical that differ in nothing but case and white space. They are nearly so that
have the same set of words, whatever their order and number, small words and punctuation left out;
what stands in quotation marks, as tokens do, is one word as it is.
Both are decided by a key for each label, so that labels are put together in a dictionary and
never compared in pairs; what differs by a synonym is therefore not found.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

# Words that say nothing on their own. Not among them: "not", "before", "after" and others that
# make of a label its opposite.
_SMALL = (
    "a an and are as at be been being by e.g eg etc for i.e ie in is it its of on or that the "
    "their these this those to when where which with"
)
_SMALL_WORDS = frozenset(_SMALL.split())
# Words with what may stand within.
_WORDS = re.compile(r"\w+(?:['’.-]\w+)*")
_QUOTED = re.compile(r"“([^“”]*)”|‘([^‘’]*)’|«([^«»]*)»|\"([^\"]*)\"|`([^`]*)`")
_N_EXAMPLES, _SHOWN_FEATURES = 3, 5


@dataclass(frozen=True, slots=True)
class _Labelled:
    """A feature and its label."""

    feature: int
    text: str


@dataclass(frozen=True, slots=True)
class Colliding:
    """Features whose labels say nearly the same.

    Attributes:
        n_features: how many there are.
        features: the first of them.
        texts: their labels, each once.
    """

    n_features: int
    features: tuple[int, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CollisionRow:
    """An explainer's labels in force on one SAE.

    Attributes:
        n_labels: how many there are, a feature each.
        n_identical: those that say exactly the same as another feature's.
        n_near_identical: those that say nearly the same, or exactly.
        examples: the largest groups.
    """

    sae_id: str
    explainer: str
    n_labels: int
    n_identical: int
    n_near_identical: int
    examples: tuple[Colliding, ...]

    @property
    def identical_rate(self) -> float:
        """The share of labels that another feature has as well."""
        return self.n_identical / self.n_labels

    @property
    def near_identical_rate(self) -> float:
        """The share of labels that another feature has nearly so, or exactly."""
        return self.n_near_identical / self.n_labels


def read_collisions(connection: duckdb.DuckDBPyConnection) -> tuple[CollisionRow, ...]:
    """A row for each SAE and explainer with labels in force."""
    rows = connection.execute(
        "SELECT sae_id, explainer, feature, text FROM current_labels "
        "WHERE text IS NOT NULL ORDER BY sae_id, explainer, feature"
    ).fetchall()
    labels: dict[tuple[str, str], list[_Labelled]] = defaultdict(list)
    for sae_id, explainer, feature, text in rows:
        labels[sae_id, explainer].append(_Labelled(feature, text))
    return tuple(_row(*names, of_explainer) for names, of_explainer in labels.items())


def say_the_same(one: str, other: str) -> bool:
    """Whether two labels are identical, or nearly so."""
    return near_key(one) == near_key(other)


def exact_key(text: str) -> str:
    """What identical labels have in common: the text without case and runs of white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def near_key(text: str) -> str:
    """What nearly identical labels have in common: their words in order of the alphabet, each once.

    Words are without the ending of a plural, but for what is quoted. A label without any word is
    only ever identical.
    """
    exact = exact_key(text)
    quoted = {"".join(filter(None, found.groups())).strip() for found in _QUOTED.finditer(exact)}
    plain = _WORDS.findall(_QUOTED.sub(" ", exact))
    words = {_singular(word) for word in plain if word not in _SMALL_WORDS}
    return "\t".join(sorted(words | quoted)).strip() or exact


def _singular(word: str) -> str:
    """A word without the ending of a plural (after the S-stemmer of Harman 1991).

    It need not be a word: "news" becomes "new" wherever it stands. Three letters stay as they are.
    """
    if len(word) <= 3 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith(("sses", "xes", "ches", "shes")):
        return word[:-2]
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word.removesuffix("s")


def _row(sae_id: str, explainer: str, labels: list[_Labelled]) -> CollisionRow:
    exact, near = (_groups(key, labels) for key in (exact_key, near_key))
    return CollisionRow(
        sae_id=sae_id,
        explainer=explainer,
        n_labels=len(labels),
        n_identical=sum(map(len, exact)),
        n_near_identical=sum(map(len, near)),
        examples=tuple(map(_example, sorted(near, key=len, reverse=True)[:_N_EXAMPLES])),
    )


def _groups(key: Callable[[str], str], labels: list[_Labelled]) -> list[list[_Labelled]]:
    """The labels that have their key in common with others."""
    found: dict[str, list[_Labelled]] = defaultdict(list)
    for label in labels:
        found[key(label.text)].append(label)
    return [group for group in found.values() if len(group) > 1]


def _example(group: list[_Labelled]) -> Colliding:
    shown = group[:_SHOWN_FEATURES]
    texts = dict.fromkeys(each.text for each in shown)
    return Colliding(len(group), tuple(each.feature for each in shown), tuple(texts))
