"""Scores a label again from stored predictions, on the windows that were simulated for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..store.records import FeatureContexts, FeatureId, Label, Simulation, Stratum, Windows
from ..store.scored_before import ScoredBefore
from ..store.unit_names import unit_number
from .intervals import Resamples
from .label_figures import BY_DEFAULT, ScoreSettings, ScreenedSilence
from .looked_at_label import Screening
from .remembered import Remembering, StoredPredictions
from .score_label import ScoredLabel, score_label, score_shuffled
from .scored_windows import few_windows, only_windows, take_windows
from .screening import FirstPhase
from .token_ratings import HIGHEST

# What the windows alone do not say, and is kept as it was.
_KEPT_FACTS = ("look", "n_looks", "why_stopped", "n_windows_at_most")

SortAgain = Callable[[Windows], Screening]
"""Sorts silent windows as they were sorted before."""


def score_again(
    before: ScoredBefore,
    label: Label,
    explain: FeatureContexts,
    score: FeatureContexts,
    known: Sequence[Simulation],
    resamples: Resamples,
    settings: ScoreSettings = BY_DEFAULT,
    sort_again: SortAgain | None = None,
) -> ScoredLabel | None:
    """The rows of a label from what is stored; the same code gives the same rows.

    Args:
        before: what was scored.
        label: its label.
        explain: what the null is fitted on.
        score: all that is kept of the split.
        known: the predictions.
        resamples: behind the intervals.
        settings: their level where the rows say none, and seeds.
        sort_again: the screen, where the rows say that one chose the silent windows.

    Returns:
        None where predictions on silent windows were not kept, as by an older version.
    """
    settings = replace(settings, level=before.design.get("level", settings.level))
    judge = Remembering.of(StoredPredictions(before.simulator, float(HIGHEST)), known)
    # Drawn are the first ones; that a top window was simulated does not make it drawn.
    part = few_windows(score, before.design.get("n_active_drawn", 0), len(score.silent))
    part = replace(part, silent=only_windows(score.silent, judge.memory))
    if label.status == "done" and not ("n_active_drawn" in before.design and len(part.silent)):
        return None
    if before.scorer != "simulation":
        other = labelled_feature(before)
        return score_shuffled(label, other, None, explain, part, judge, resamples, settings)
    screened = None
    if "screen" in before.design and sort_again is not None:
        part, screened = _sorted_as_before(before, score.silent, part, sort_again)
    scored = score_label(label, explain, part, judge, resamples, settings, screened)
    kept = {name: before.design[name] for name in _KEPT_FACTS if name in before.design}
    headline = scored.scores[0]
    headline = replace(headline, design={**headline.design, **kept})
    return replace(scored, scores=[headline, *scored.scores[1:]])


def labelled_feature(before: ScoredBefore) -> FeatureId:
    """The feature whose label was taken in place of the own one."""
    name = before.design["label_of"].removeprefix(f"{before.sae_id}/")
    number = unit_number(before.sae_id, name)
    assert number is not None, f"{name} was written by `score_shuffled`"
    return FeatureId(before.sae_id, number)


@dataclass(frozen=True, slots=True)
class StoredScreen:
    """What was predicted to sort windows by: suspects are those with any activation, or failed."""

    known: Sequence[Simulation]

    def __call__(self, windows: Windows) -> Screening:
        """Sorts as before."""
        fires = {
            each.window_id: each.predicted is None or bool(each.predicted.any())
            for each in self.known
        }
        names = windows.window_id.tolist()
        return Screening(np.array([fires[name] for name in names], np.bool_))


def _sorted_as_before(
    before: ScoredBefore, silent: Stratum, part: FeatureContexts, sort_again: SortAgain
) -> tuple[FeatureContexts, ScreenedSilence]:
    """The silent windows in the order in which they were rated: suspects, then the others."""
    windows = silent.windows.take(np.arange(before.design["n_screened_windows"]))
    found = sort_again(windows).is_suspect
    phase = FirstPhase(windows.document, windows.copies.astype(np.float64), found)
    fires = dict(zip(windows.window_id.tolist(), found.tolist(), strict=True))
    is_suspect = np.array([fires[name] for name in part.silent.windows.window_id.tolist()], bool)
    order = np.argsort(~is_suspect, kind="stable")
    screened = ScreenedSilence(before.design["screen"], phase, is_suspect[order])
    return replace(part, silent=take_windows(part.silent, order)), screened
