"""Scores from stored predictions are the scores that they were stored with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scopenote.evaluate.intervals import draw_resamples
from scopenote.evaluate.looked_at_label import Allowance, score_within
from scopenote.evaluate.looks import Looks
from scopenote.evaluate.score_label import score_shuffled
from scopenote.evaluate.scored_again import StoredScreen, score_again
from scopenote.evaluate.sparse_screen import SparseScreen
from scopenote.store.records import FeatureId, Score, Stratum
from scopenote.store.scored_before import ScoredBefore

from .planted_feature import make_random_contexts
from .test_looked_at_label import EXPLAIN, LABEL, Judge, KnowingScreen

RESAMPLES = draw_resamples(seed=1, n_resamples=200)
SCORE = make_random_contexts(2, "score", n_active=60, n_silent=400)
# Top windows are in the sample too, some of them behind those that are drawn.
SCORE = replace(
    SCORE,
    top=Stratum(SCORE.active.windows.take(np.arange(30, 50)), SCORE.active.activations[30:50], 20),
)


def before(headline: Score) -> ScoredBefore:
    return ScoredBefore(
        sae_id=LABEL.feature_id.sae_id,
        feature=LABEL.feature_id.feature,
        label_id=headline.label_id,
        simulator=headline.simulator,
        split=headline.split,
        scorer=headline.scorer,
        design=headline.design,
    )


@pytest.mark.parametrize(
    "allowance",
    [
        Allowance(20, 100),
        Allowance(20, 100, looks=Looks((0.2, 1.0), narrow=1.0)),
        Allowance(20, 40, screen=KnowingScreen(0.1), n_screened=300),
        Allowance(20, 40, Looks((0.3, 1.0), threshold=0.0), KnowingScreen(0.1), 300),
    ],
)
@pytest.mark.parametrize("fails", [False, True])
def test_the_same_rows_come_of_what_is_stored(allowance: Allowance, fails: bool) -> None:
    judge = Judge(share=0.1, fails=fails, full_scale=9.0)
    first = score_within(LABEL, EXPLAIN, SCORE, judge, RESAMPLES, allowance)
    known = [each for each in first.simulations if each.scorer == "simulation"]
    screen = allowance.screen
    again = score_again(
        before(first.scores[0]),
        LABEL,
        EXPLAIN,
        SCORE,
        known,
        RESAMPLES,
        sort_again=None if screen is None else lambda windows: screen.sort(LABEL, EXPLAIN, windows),
    )
    assert again is not None
    assert again.scores == first.scores


def test_a_screen_that_was_paid_for_is_read_and_not_asked_again() -> None:
    screen = SparseScreen(Judge(share=0.1, name="sparse"), seed=0)
    allowance = Allowance(20, 40, screen=screen, n_screened=300)
    judge = Judge(share=0.1, full_scale=9.0)
    first = score_within(LABEL, EXPLAIN, SCORE, judge, RESAMPLES, allowance)
    stored = [each for each in first.simulations if each.scorer == "screen"]
    assert {(each.simulator, each.label_id) for each in stored} == {("sparse", LABEL.label_id)}
    assert len(stored) == 300
    known = [each for each in first.simulations if each.scorer == "simulation"]
    again = score_again(
        before(first.scores[0]),
        LABEL,
        EXPLAIN,
        SCORE,
        known,
        RESAMPLES,
        sort_again=StoredScreen(stored),
    )
    assert again is not None
    assert again.scores == first.scores
    assert first.scores[0].design["n_suspects"] > 10


def test_under_another_s_label_likewise() -> None:
    judge = Judge(full_scale=9.0)
    other = FeatureId(LABEL.feature_id.sae_id, 7)
    few = replace(SCORE, active=Stratum(*_first(SCORE.active, 20)))
    first = score_shuffled(LABEL, other, "other", EXPLAIN, few, judge, RESAMPLES)
    again = score_again(
        before(first.scores[0]), LABEL, EXPLAIN, SCORE, first.simulations, RESAMPLES
    )
    assert again is not None
    assert again.scores == first.scores


def _first(stratum: Stratum, n: int) -> tuple[object, ...]:
    return stratum.windows.take(np.arange(n)), stratum.activations[:n], stratum.population_windows


def test_without_predictions_in_silence_nothing_is_made_up() -> None:
    first = score_within(LABEL, EXPLAIN, SCORE, Judge(), RESAMPLES, Allowance(20, 100))
    silent = set(SCORE.silent.windows.window_id.tolist())
    kept = [each for each in first.simulations if each.window_id not in silent]
    found = score_again(before(first.scores[0]), LABEL, EXPLAIN, SCORE, kept, RESAMPLES)
    assert found is None


def test_a_failed_label_has_its_reason_again() -> None:
    failed = replace(LABEL, text=None, status="failed", reason="no reply")
    first = score_within(failed, EXPLAIN, SCORE, Judge(), RESAMPLES, Allowance(20, 100))
    again = score_again(before(first.scores[0]), failed, EXPLAIN, SCORE, [], RESAMPLES)
    assert again is not None
    assert again.scores == first.scores
