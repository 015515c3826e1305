"""A screen that costs nothing: the label's own words occur, or the token lookup fires.

Where a label is wrong about silent text, that text mostly holds what the label names, or the
tokens that the feature likes. Half of such windows found is already worth having: what the screen
misses is estimated from the others (`screening`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool

from ..label.token_lookup import fit_token_lookup
from ..store.records import FeatureContexts, Label, Windows
from .looked_at_label import Screening

NAME = "words_or_lookup"
# The lookup expects something everywhere: it is said to fire in the windows of its highest peaks.
_LOOKUP_SHARE = 0.05
# Shorter words are in every text; from this length on endings are let go.
_SHORTEST, _STEM = 3, 5
_WORD = re.compile(r"[^\W_]+")
_IN_MOST_LABELS = """
    and are about after all any before both but especially for from has have into its like of often
    other such than that the their them these they this those token tokens text texts used when
    where which with within word words phrase phrases name names related
"""


@dataclass(frozen=True, slots=True)
class FreeScreen:
    """Suspects are windows with a word of the label, and those that the token lookup likes best.

    Attributes:
        token_text: spells a token of the subject model.
    """

    token_text: Callable[[int], str]
    name: str = NAME
    _stems: dict[int, frozenset[str]] = field(default_factory=dict)

    def sort(self, label: Label, explain: FeatureContexts, windows: Windows) -> Screening:
        """Says which windows are suspects."""
        wanted = stems_of(label.text or "") - _STEMS_IN_MOST_LABELS
        names = windows.window_id.tolist()
        says = [bool(wanted & self._stems_in(windows, row, name)) for row, name in enumerate(names)]
        peaks = fit_token_lookup(explain).predict(windows.token_ids).max(axis=1, initial=0.0)
        fires: Bool[np.ndarray, " W"] = np.zeros(len(windows), np.bool_)
        if len(windows):
            fires = peaks > np.quantile(peaks, 1 - _LOOKUP_SHARE)
        return Screening(fires | np.array(says, dtype=np.bool_))

    def _stems_in(self, windows: Windows, row: int, name: int) -> frozenset[str]:
        """The words of a window, which many labels ask for."""
        if name not in self._stems:
            ids = windows.token_ids[row]
            self._stems[name] = stems_of("".join(map(self.token_text, ids[ids >= 0].tolist())))
        return self._stems[name]


def stems_of(text: str) -> frozenset[str]:
    """The words of a text without case and endings; short ones are left out."""
    words = _WORD.findall(text.casefold())
    return frozenset(word[:_STEM] for word in words if len(word) >= _SHORTEST)


_STEMS_IN_MOST_LABELS = stems_of(_IN_MOST_LABELS)
