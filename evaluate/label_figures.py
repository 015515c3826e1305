"""All figures of one label: its predictions beside the truth, the null's, and what they come to.

What the numbers mean is said in `correlation`, `intervals`, `silence`, `explained` and `classic`;
here is over which windows they are taken, and what stands beside them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from ..store.records import FeatureContexts, Score, Simulation
from .classic import N_WINDOWS, draw_random_windows, quarters_by_peak
from .correlation import (
    NOTHING_SIMULATED,
    Correlation,
    Undefined,
    WindowMoments,
    correlation_of,
    ev_correlation,
    window_moments,
)
from .intervals import (
    TOO_FEW_DOCUMENTS,
    Design,
    Resamples,
    difference_interval,
    guarded_interval,
)
from .metrics import (
    CLASSIC,
    CLASSIC_WINDOWS,
    HEADLINE,
    ITSELF_THE_NULL,
    NO_ACTIVE_WINDOW,
    NO_QUARTERS,
    NO_SILENT_WINDOW,
    QUARTERS,
    Measure,
)
from .scored_windows import Rows, ScoredWindows, hash_of_windows
from .screening import FirstPhase, silent_weights
from .silence import ceiling, predictions_in_silence
from .simulators import Simulated


@dataclass(frozen=True, slots=True)
class ScoreSettings:
    """What a user may choose: the intervals' level; the seed of random windows and of order."""

    level: float = 0.95
    seed: int = 0


BY_DEFAULT = ScoreSettings()


@dataclass(frozen=True, slots=True)
class ScreenedSilence:
    """Silent windows that a screen chose from more of them.

    Attributes:
        screen: its name.
        phase: all that it sorted.
        is_suspect: where it fires, of each silent window to be scored.
    """

    screen: str
    phase: FirstPhase
    is_suspect: Bool[np.ndarray, " S"]


@dataclass(frozen=True, slots=True)
class LabelFigures:
    """The predictions for one label beside the truth, and the rows that come of it.

    Attributes:
        unit: what one unit of the predictions is in the activation's.
        screened: how the silent windows were chosen; None where they are a uniform sample.
    """

    blank: Score
    score: FeatureContexts
    table: ScoredWindows
    simulated: Simulated
    null_predicted: Float32[np.ndarray, "W T"] | None
    unit: float
    resamples: Resamples
    settings: ScoreSettings
    screened: ScreenedSilence | None = None

    def headline(self) -> Score:
        """The correlation at natural density, with its interval."""
        sampled = np.arange(self.table.n_active + self.table.n_silent)
        rows = self._simulated(sampled)
        n_failed = len(sampled) - len(rows)
        weighed = self._weights(rows)
        missing = weighed.reason if isinstance(weighed, Undefined) else None
        weight = np.ones(len(rows)) if isinstance(weighed, Undefined) else weighed
        rows, weight = rows[weight > 0], weight[weight > 0]
        is_weighed = missing is None and bool((rows >= self.table.n_active).any())
        design = self._design(rows, with_screen=is_weighed)
        missing = self._missing_stratum(design) or missing
        found = (
            Undefined(missing) if missing else self._moments(rows, weight, self.simulated.predicted)
        )
        facts = {
            **self._facts(found, design),
            **self._captured_mass(rows),
            "n_failed_windows": n_failed,
        }

        interval = None
        if isinstance(found, WindowMoments):
            interval = guarded_interval(found, design, self.resamples, self.settings.level)
            if interval is None:
                facts["interval_reason"] = TOO_FEW_DOCUMENTS
        scored = replace(
            self._row(HEADLINE, rows, correlation_of(found), facts),
            ci_low=interval.low if interval else None,
            ci_high=interval.high if interval else None,
        )
        if self.null_predicted is None:
            return scored
        of_null = self._moments(rows, weight, self.null_predicted)
        return self._with_lift_interval(
            _beside(scored, correlation_of(of_null)), found, of_null, design
        )

    def classic(self) -> list[Score]:
        """The scores of the literature on the top windows, on random ones, and on both."""
        top = self._simulated(self.table.top[:N_WINDOWS])
        random = self._simulated(self._random_windows())
        both = np.concatenate([top, random[~np.isin(random, top)]])
        facts = {"seed": self.settings.seed}
        return [
            self._agreement(f"{name}_{windows}", measure, rows, facts)
            for windows, rows in zip(CLASSIC_WINDOWS, (top, random, both), strict=True)
            for name, measure in CLASSIC.items()
        ]

    def _random_windows(self) -> Rows:
        weights = None
        if self.screened is not None:
            rows = self.table.n_active + np.arange(self.table.n_silent)
            found = self._silent_weights(self.table.windows.copies[rows].astype(np.float64), rows)
            weights = None if isinstance(found, Undefined) else found
        return draw_random_windows(self.score, self.settings.seed, silent_weights=weights)

    def quarters(self) -> list[Score]:
        """The correlation within each quarter of the active sample, by strength."""
        return [
            self._agreement(metric, ev_correlation, self._simulated(rows), {})
            if len(rows)
            else replace(self.blank, metric=metric, reason=NO_QUARTERS, lift_reason=NO_QUARTERS)
            for metric, rows in zip(QUARTERS, quarters_by_peak(self.score.active), strict=True)
        ]

    def _agreement(self, metric: str, measure: Measure, rows: Rows, facts: dict[str, Any]) -> Score:
        truth, is_token = self.table.truth[rows], self.table.is_token[rows]
        result = measure(np.float32(self.unit) * self.simulated.predicted[rows], truth, is_token)
        if result.reason == NOTHING_SIMULATED:
            result = Correlation(None, self._nothing())
        scored = self._row(metric, rows, result, facts)
        if self.null_predicted is None:
            return scored
        return _beside(scored, measure(self.null_predicted[rows], truth, is_token))

    def simulations(self) -> list[Simulation]:
        """The predictions worth keeping, and every failure."""
        failures, names = self.simulated.failures, self.table.windows.window_id
        n_tokens = self.table.n_tokens
        is_free = self.null_predicted is None
        kept = self.table.kept if is_free else np.arange(len(self.table.windows))
        blank = Simulation(self.blank.label_id, self.blank.simulator, 0, None)
        return [
            replace(
                blank,
                window_id=int(names[row]),
                predicted=self.simulated.predicted[row, : n_tokens[row]],
                captured_mass=self.simulated.captured_mass.get(row),
            )
            for row in kept.tolist()
            if row not in failures
        ] + [
            replace(blank, window_id=int(names[row]), status="failed", reason=reason)
            for row, reason in sorted(failures.items())
        ]

    def _simulated(self, rows: Rows) -> Rows:
        """Those of the rows that were simulated."""
        if not self.simulated.failures:
            return rows
        return rows[~np.isin(rows, list(self.simulated.failures))]

    def _weights(self, rows: Rows) -> Float64[np.ndarray, " R"] | Undefined:
        """How many windows of the split each row stands for, failures made up for."""
        weight = self.table.windows.copies[rows].astype(np.float64)
        is_silent = rows >= self.table.n_active
        if (~is_silent).any():
            weight[~is_silent] *= self.score.active.population_windows / weight[~is_silent].sum()
        if is_silent.any():
            silent = self._silent_weights(weight[is_silent], rows[is_silent])
            if isinstance(silent, Undefined):
                return silent
            weight[is_silent] = silent
        return weight

    def _silent_weights(
        self, copies: Float64[np.ndarray, " S"], rows: Rows
    ) -> Float64[np.ndarray, " S"] | Undefined:
        population = self.score.silent.population_windows
        if self.screened is None:
            weights: Float64[np.ndarray, " S"] = copies * (population / copies.sum())
            return weights
        is_suspect = self.screened.is_suspect[rows - self.table.n_active]
        return silent_weights(copies, is_suspect, self.screened.phase, population)

    def _design(self, rows: Rows, with_screen: bool) -> Design:
        """Where the rows come from, active ones and silent ones."""
        document, is_silent = self.table.windows.document[rows], rows >= self.table.n_active
        if self.screened is None or not with_screen:
            return Design(document, is_silent)
        is_suspect = np.zeros(len(rows), np.bool_)
        is_suspect[is_silent] = self.screened.is_suspect[rows[is_silent] - self.table.n_active]
        return Design(document, is_silent, is_suspect, self.screened.phase)

    def _missing_stratum(self, design: Design) -> str | None:
        """Why the rows cannot stand for the whole split, if they cannot."""
        if not len(design.is_silent):
            return self._nothing()
        if self.score.active.population_windows and design.is_silent.all():
            return NO_ACTIVE_WINDOW
        if self.score.silent.population_windows and not design.is_silent.any():
            return NO_SILENT_WINDOW
        return None

    def _nothing(self) -> str:
        reasons = set(self.simulated.failures.values())
        return f"{NOTHING_SIMULATED}: {reasons.pop()}" if len(reasons) == 1 else NOTHING_SIMULATED

    def _moments(
        self,
        rows: Rows,
        weight: Float64[np.ndarray, " R"],
        predicted: Float32[np.ndarray, "W T"],
    ) -> WindowMoments | Undefined:
        # As a rule no window failed, and the rows need no copying.
        part = slice(len(rows)) if np.array_equal(rows, np.arange(len(rows))) else rows
        return window_moments(
            predicted[part], self.table.truth[part], self.table.is_token[part], weight
        )

    def _row(self, metric: str, rows: Rows, result: Correlation, facts: dict[str, Any]) -> Score:
        return replace(
            self.blank,
            metric=metric,
            value=result.value,
            reason=result.reason,
            lift_reason=ITSELF_THE_NULL if self.null_predicted is None else None,
            n_windows=len(rows),
            n_tokens=int(self.table.n_tokens[rows].sum()),
            design=facts,
            contexts_hash=hash_of_windows(self.table.windows.window_id[rows]),
        )

    def _with_lift_interval(
        self,
        scored: Score,
        found: WindowMoments | Undefined,
        of_null: WindowMoments | Undefined,
        design: Design,
    ) -> Score:
        if isinstance(found, Undefined) or isinstance(of_null, Undefined):
            return scored
        level = self.settings.level
        interval = difference_interval(found, of_null, design, self.resamples, level)
        if interval is None:
            return scored
        return replace(scored, lift_ci_low=interval.low, lift_ci_high=interval.high)

    def _facts(self, found: WindowMoments | Undefined, design: Design) -> dict[str, Any]:
        """What the headline was taken over, and what silence costs it."""
        score = self.score
        return {
            "n_active_drawn": self.table.n_active,
            "n_active_windows": int((~design.is_silent).sum()),
            "n_silent_windows": int(design.is_silent.sum()),
            "population_active_windows": score.active.population_windows,
            "population_silent_windows": score.silent.population_windows,
            "n_documents": _count_distinct(design.document),
            "density": score.n_active / score.n_tokens if score.n_tokens else None,
            **self._silence(found, design),
            **self._screening(design),
            "n_resamples": len(self.resamples),
            "resamples_seed": self.resamples.seed,
            "level": self.settings.level,
        }

    def _screening(self, design: Design) -> dict[str, Any]:
        if self.screened is None or design.is_suspect is None:
            return {}
        return {
            "screen": self.screened.screen,
            "n_screened_windows": len(self.screened.phase.is_suspect),
            "n_suspects": int(self.screened.phase.is_suspect.sum()),
            "n_suspects_rated": int(design.is_suspect.sum()),
        }

    def _captured_mass(self, rows: Rows) -> dict[str, float]:
        """How much of a model's probability lay on ratings, where that is known."""
        by_row = self.simulated.captured_mass
        found = [by_row[row] for row in rows.tolist() if row in by_row] if by_row else []
        return {"captured_mass": float(np.mean(found))} if found else {}

    def _silence(self, found: WindowMoments | Undefined, design: Design) -> dict[str, float | None]:
        """Mean and noise of the predictions on silent windows, and the ceiling they set."""
        unknown = {"silent_mean": None, "silent_sd": None, "ceiling": None}
        if isinstance(found, Undefined):
            return {**unknown}
        silence = predictions_in_silence(found, design.is_silent)
        if silence is None:
            return {**unknown}
        return {
            "silent_mean": silence.predicted.mean,
            "silent_sd": silence.predicted.sd,
            "ceiling": ceiling(found.true, silence.in_units_of(self.unit)),
        }


def _beside(scored: Score, null: Correlation) -> Score:
    """The score with the null's on the same windows, and the lift over it."""
    if scored.value is None:
        return replace(scored, null_value=null.value, lift_reason=scored.reason)
    if null.value is None:
        return replace(scored, lift_reason=f"the null's score is undefined: {null.reason}")
    return replace(scored, null_value=null.value, lift=scored.value - null.value)


def _count_distinct(values: Int64[np.ndarray, " W"]) -> int:
    """How many different values there are (a sort; np.unique and set take ten times as long)."""
    return int(np.count_nonzero(np.diff(np.sort(values)))) + 1 if len(values) else 0
