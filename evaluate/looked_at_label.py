"""Scores a label on as few windows as it takes: at preset looks, with silent windows screened.

What a screen is for is said in `screening`, what looks are in `looks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from jaxtyping import Bool

from ..store.records import FeatureContexts, Label, Simulation, Stratum, Windows
from .intervals import Interval, Resamples
from .label_figures import BY_DEFAULT, ScoreSettings, ScreenedSilence
from .looks import Looks
from .remembered import Remembering
from .score_label import ScoredLabel, score_label
from .scored_windows import Rows, few_windows, take_windows
from .screening import FirstPhase
from .simulators import Simulator

ONE_LOOK = Looks((1.0,))


@dataclass(frozen=True, slots=True)
class Screening:
    """What a screen found.

    Attributes:
        is_suspect: where it fires.
        simulations: the predictions that it was made by, to be kept; none where it is free.
    """

    is_suspect: Bool[np.ndarray, " W"]
    simulations: Sequence[Simulation] = ()


class Screen(Protocol):
    """A cheap way to tell which silent windows a label may be wrong about."""

    @property
    def name(self) -> str: ...  # noqa: D102

    def sort(self, label: Label, explain: FeatureContexts, windows: Windows) -> Screening:
        """Says which windows are suspects."""
        ...


@dataclass(frozen=True, slots=True)
class Allowance:
    """How many windows of a label may be simulated, and when enough is known.

    Attributes:
        n_active, n_silent: at most.
        looks: after which shares of them the interval is looked at.
        screen: what chooses the silent ones; None where the first by hash are taken.
        n_screened: from so many.
    """

    n_active: int
    n_silent: int
    looks: Looks = ONE_LOOK
    screen: Screen | None = None
    n_screened: int = 0


def score_within(
    label: Label,
    explain: FeatureContexts,
    score: FeatureContexts,
    simulator: Simulator,
    resamples: Resamples,
    allowance: Allowance,
    settings: ScoreSettings = BY_DEFAULT,
) -> ScoredLabel:
    """Scores a label, and stops at the first look after which enough is known.

    The interval is the stopping look's, whose level is higher so that all looks together keep to
    the level that was asked for (`looks`). The headline's `design` says which look that was, and
    how many windows the last would have taken.

    Raises:
        ScopenoteError: text of `score` is also in `explain`.
    """
    looks = allowance.looks
    whole = few_windows(score, allowance.n_active, allowance.n_silent)
    if label.status == "failed":
        return score_label(label, explain, whole, simulator, resamples, settings)
    silence = _Silence.of(label, explain, score.silent, allowance)
    remembering = Remembering(simulator)
    settings = replace(settings, level=looks.level_of_each(settings.level))
    for number in range(1, len(looks) + 1):
        rows = silence.rows_at(number, looks)
        seen = replace(
            whole,
            active=take_windows(whole.active, np.arange(looks.n_of(number, len(whole.active)))),
            silent=take_windows(score.silent, rows),
        )
        screened = silence.screened(rows)
        scored = score_label(label, explain, seen, remembering, resamples, settings, screened)
        headline = scored.scores[0]
        interval = None
        if headline.ci_low is not None and headline.ci_high is not None:
            interval = Interval(headline.ci_low, headline.ci_high)
        why = looks.why_stop(number, interval)
        if why is not None:
            break
    if len(looks) > 1:
        n_at_most = len(whole.active) + len(silence.rows_at(len(looks), looks))
        facts = {"look": number, "n_looks": len(looks), "why_stopped": why}
        design = {**headline.design, **facts, "n_windows_at_most": n_at_most}
        scored = replace(scored, scores=[replace(headline, design=design), *scored.scores[1:]])
    kept = (replace(each, label_id=label.label_id) for each in silence.simulations)
    return replace(scored, simulations=[*scored.simulations, *kept])


@dataclass(frozen=True, slots=True)
class _Silence:
    """Which silent windows are rated, suspects and others, each in an order drawn by hash."""

    suspects: Rows
    others: Rows
    screen: str | None = None
    phase: FirstPhase | None = None
    simulations: Sequence[Simulation] = ()

    @classmethod
    def of(
        cls, label: Label, explain: FeatureContexts, silent: Stratum, allowance: Allowance
    ) -> _Silence:
        n, screen = min(allowance.n_silent, len(silent)), allowance.screen
        if screen is None:
            return cls(np.empty(0, np.intp), np.arange(n))
        first = np.arange(min(max(allowance.n_screened, n), len(silent)))
        windows = silent.windows.take(first)
        found = screen.sort(label, explain, windows)
        suspects, others = np.flatnonzero(found.is_suspect), np.flatnonzero(~found.is_suspect)
        # Half for suspects; what one kind does not need is the other's.
        n_suspects = min(len(suspects), max(n - n // 2, n - len(others)))
        phase = FirstPhase(windows.document, windows.copies.astype(np.float64), found.is_suspect)
        return cls(
            suspects[:n_suspects],
            others[: n - n_suspects],
            screen.name,
            phase,
            found.simulations,
        )

    def rows_at(self, number: int, looks: Looks) -> Rows:
        """The rows of the silent stratum that are rated by a look."""
        kinds = (self.suspects, self.others)
        return np.concatenate([rows[: looks.n_of(number, len(rows))] for rows in kinds])

    def screened(self, rows: Rows) -> ScreenedSilence | None:
        if self.screen is None or self.phase is None:
            return None
        return ScreenedSilence(self.screen, self.phase, self.phase.is_suspect[rows])
