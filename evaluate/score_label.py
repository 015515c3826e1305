"""Scores one label of one feature: the headline, the classic and what belongs beside them.

Contexts in, rows out. Every prediction is kept, and every failure, so that each metric can be
computed again from them. The one exception are the token lookup's predictions on silent windows:
they are most of the bulk, and can be computed again from the `explain` contexts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ..label.token_lookup import fit_token_lookup
from ..store.null_ladder import SHUFFLED
from ..store.records import FeatureContexts, FeatureId, Label, Score, Simulation
from .intervals import Resamples
from .label_figures import BY_DEFAULT, LabelFigures, ScoreSettings, ScreenedSilence
from .metrics import HEADLINE, ITSELF_THE_NULL, METRICS, NO_LABEL, SCORER
from .scored_windows import lay_out, require_unseen
from .simulators import Simulator, TokenLookupSimulator, simulate_blind


@dataclass(frozen=True, slots=True)
class ScoredLabel:
    """The rows that scoring one label gives."""

    scores: list[Score]
    simulations: list[Simulation]


def score_label(
    label: Label,
    explain: FeatureContexts,
    score: FeatureContexts,
    simulator: Simulator | Literal["token_lookup"],
    resamples: Resamples,
    settings: ScoreSettings = BY_DEFAULT,
    screened: ScreenedSilence | None = None,
) -> ScoredLabel:
    """Simulates the windows of `score` under the label and scores the predictions.

    A label that could not be made gets the same rows, their values NULL with its reason.

    Args:
        label: what is scored.
        explain: what the null is fitted on.
        score: what is simulated.
        simulator: of the label.
        resamples: behind the intervals.
        settings: their level, and seeds.
        screened: how the silent windows of `score` were chosen, if not by hash alone.

    Raises:
        ScopenoteError: text of `score` is also in `explain`.
    """
    require_unseen(explain, score)
    null = fit_token_lookup(explain)
    is_null = simulator == "token_lookup"
    chosen = TokenLookupSimulator(null) if simulator == "token_lookup" else simulator
    blank = Score(label.label_id, SCORER, chosen.name, HEADLINE, score.split, None)
    if label.status == "failed":
        why = label.reason or NO_LABEL
        blank = replace(blank, reason=why, lift_reason=ITSELF_THE_NULL if is_null else why)
        return ScoredLabel([replace(blank, metric=metric) for metric in METRICS], [])

    table = lay_out(score)
    simulated = simulate_blind(chosen, label, table.windows, settings.seed)
    figures = LabelFigures(
        blank=blank,
        score=score,
        table=table,
        simulated=simulated,
        null_predicted=None if is_null else null.predict(table.windows.token_ids),
        unit=_unit(chosen, explain),
        resamples=resamples,
        settings=settings,
        screened=screened,
    )
    scores = [figures.headline(), *figures.classic(), *figures.quarters()]
    return ScoredLabel(scores, figures.simulations())


def score_shuffled(
    label: Label,
    other: FeatureId,
    text: str | None,
    explain: FeatureContexts,
    score: FeatureContexts,
    simulator: Simulator,
    resamples: Resamples,
    settings: ScoreSettings = BY_DEFAULT,
) -> ScoredLabel:
    """The headline that a feature's windows get under another feature's label: about 0, or worse.

    Args:
        label: the feature's own, whose row it is.
        other: the feature whose label is taken.
        text: that label's; None where the simulator reads none.
        explain: the feature's own contexts, what the null is fitted on.
        score: what is simulated.
        simulator: of the other label.
        resamples: as for the label itself.
        settings: likewise.
    """
    taken = label if text is None else replace(label, text=text)
    scored = score_label(taken, explain, score, simulator, resamples, settings)
    headline = replace(
        scored.scores[0],
        label_id=label.label_id,
        scorer=SHUFFLED,
        design={**scored.scores[0].design, "label_of": str(other)},
    )
    simulations = [
        replace(each, label_id=label.label_id, scorer=SHUFFLED) for each in scored.simulations
    ]
    return ScoredLabel([headline], simulations)


def _unit(simulator: Simulator, explain: FeatureContexts) -> float:
    """What one of the simulator's units is in the activation's: by text that is not scored."""
    if simulator.full_scale is None:
        return 1.0
    peaks = [part.activations.max() for part in (explain.top, explain.active) if len(part)]
    return float(max(peaks, default=0.0)) / simulator.full_scale
