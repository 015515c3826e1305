"""The rows that scoring one label gives: their values, and what is kept beside them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from scopenote.evaluate.classic import draw_random_windows, quarters_by_peak
from scopenote.evaluate.correlation import CONSTANT_PREDICTION, CONSTANT_TRUTH, NOTHING_SIMULATED
from scopenote.evaluate.intervals import TOO_FEW_DOCUMENTS, draw_resamples
from scopenote.evaluate.metrics import (
    ITSELF_THE_NULL,
    METRICS,
    NO_ACTIVE_WINDOW,
    NO_QUARTERS,
    NO_SILENT_WINDOW,
)
from scopenote.evaluate.score_label import ScoredLabel, score_label, score_shuffled
from scopenote.evaluate.simulators import NOT_ITS_OWN_LABEL, Simulated
from scopenote.label.explainers import TokenLookupExplainer
from scopenote.label.token_lookup import fit_token_lookup
from scopenote.store.errors import ScopenoteError
from scopenote.store.records import FeatureContexts, FeatureId, Label, Score, Stratum, Windows

from .planted_feature import make_contexts, make_random_contexts, make_stratum

RESAMPLES = draw_resamples(seed=1, n_resamples=100)
EXPLAIN = make_random_contexts(1, "explain")
SCORE = make_random_contexts(2, "score")
LABEL = TokenLookupExplainer().explain(EXPLAIN, "t{}".format)


@dataclass
class Oracle:
    """Knows the truth by window, adds noise to it, and fails where told."""

    contexts: FeatureContexts
    noise: float = 0.0
    fails: frozenset[int] = frozenset()
    depends_on_order: bool = True
    name: str = "oracle"
    full_scale: float | None = None
    seen: list[int] = field(default_factory=list)

    def simulate(self, label: Label, windows: Windows) -> Simulated:
        self.seen += windows.window_id.tolist()
        kinds = (self.contexts.active, self.contexts.silent, self.contexts.top)
        known = {
            name: truth
            for kind in kinds
            for name, truth in zip(kind.windows.window_id.tolist(), kind.activations, strict=True)
        }
        names = windows.window_id.tolist()
        predicted = np.array([known[name] for name in names])
        predicted = predicted + np.random.default_rng(0).normal(0, self.noise, predicted.shape)
        failures = {row: "no reply" for row, name in enumerate(names) if name in self.fails}
        return Simulated((predicted * windows.is_token).astype(np.float32), failures)


def by_metric(scored: ScoredLabel) -> dict[str, Score]:
    return {score.metric: score for score in scored.scores}


def scores(
    label: Label = LABEL,
    explain: FeatureContexts = EXPLAIN,
    score: FeatureContexts = SCORE,
    simulator="token_lookup",
) -> dict[str, Score]:
    return by_metric(score_label(label, explain, score, simulator, RESAMPLES))


def expanded_r(contexts: FeatureContexts, strata: tuple[Stratum, ...]) -> float:
    """The correlation of the lookup's predictions, token by token."""
    lookup = fit_token_lookup(EXPLAIN)
    p, t, w = [], [], []
    for stratum in strata:
        is_token = stratum.windows.is_token
        p += lookup.predict(stratum.windows.token_ids)[is_token].tolist()
        t += stratum.activations[is_token].tolist()
        w += np.repeat(stratum.weights, is_token.sum(axis=1)).tolist()
    covariance = np.cov(p, t, aweights=w)
    return covariance[0, 1] / (covariance[0, 0] * covariance[1, 1]) ** 0.5


def test_a_label_gets_one_row_for_each_metric() -> None:
    scored = score_label(LABEL, EXPLAIN, SCORE, "token_lookup", RESAMPLES)
    assert tuple(score.metric for score in scored.scores) == METRICS
    for score in scored.scores:
        assert score.label_id == LABEL.label_id
        assert (score.scorer, score.simulator) == ("simulation", "token_lookup")
        assert score.split == "score"


def test_the_headline_weighs_each_stratum_by_its_windows() -> None:
    headline = scores()["correlation"]
    assert headline.value == pytest.approx(expanded_r(SCORE, (SCORE.active, SCORE.silent)))
    assert headline.ci_low < headline.value < headline.ci_high
    assert headline.n_windows == 80
    tokens = sum(int(s.windows.is_token.sum()) for s in (SCORE.active, SCORE.silent))
    assert headline.n_tokens == tokens


def test_the_classic_score_is_that_of_the_concatenated_windows() -> None:
    lookup = fit_token_lookup(EXPLAIN)
    found = scores()
    top = SCORE.top.windows.take(np.arange(5))
    top_truth = SCORE.top.activations[:5]
    everything = [SCORE.active, SCORE.silent]
    ids = np.concatenate([stratum.windows.token_ids for stratum in everything])
    truth = np.concatenate([stratum.activations for stratum in everything])
    rows = draw_random_windows(SCORE, seed=0)
    for metric, token_ids, t in (
        ("ev_correlation_top", top.token_ids, top_truth),
        (
            "ev_correlation_top_and_random",
            np.concatenate([top.token_ids, ids[rows]]),
            np.concatenate([top_truth, truth[rows]]),
        ),
    ):
        is_token = token_ids >= 0
        expected = np.corrcoef(lookup.predict(token_ids)[is_token], t[is_token])[0, 1]
        assert found[metric].value == pytest.approx(expected)
    assert found["ev_correlation_top"].n_windows == 5
    assert found["ev_correlation_top_and_random"].n_windows == 10
    assert found["ev_correlation_random"].n_windows == 5


def test_the_token_lookup_has_no_lift_over_itself() -> None:
    for score in scores().values():
        assert (score.null_value, score.lift, score.lift_reason) == (None, None, ITSELF_THE_NULL)


def test_the_design_says_what_the_headline_was_taken_over() -> None:
    design = scores()["correlation"].design
    assert json.loads(json.dumps(design)) == design
    assert (design["n_active_windows"], design["n_silent_windows"]) == (20, 60)
    assert design["population_active_windows"] == 300
    assert design["population_silent_windows"] == 9_700
    assert design["n_documents"] == 80
    assert design["n_failed_windows"] == 0
    assert design["density"] == SCORE.n_active / SCORE.n_tokens
    assert design["silent_sd"] > 0
    assert 0 < design["ceiling"] < 1
    assert (design["n_resamples"], design["resamples_seed"], design["level"]) == (100, 1, 0.95)


def test_the_silent_mean_is_that_of_the_predictions() -> None:
    silent = SCORE.silent
    predicted = fit_token_lookup(EXPLAIN).predict(silent.windows.token_ids).astype(np.float64)
    weight = silent.weights[:, None] * silent.windows.is_token
    mean = np.average(predicted, weights=weight)
    design = scores()["correlation"].design
    assert design["silent_mean"] == pytest.approx(mean)
    variance = np.average((predicted - mean) ** 2, weights=weight)
    assert design["silent_sd"] == pytest.approx(variance**0.5)


def test_a_failed_label_has_its_reason_in_place_of_every_value() -> None:
    failed = replace(LABEL, text=None, status="failed", reason="never active")
    scored = score_label(failed, EXPLAIN, SCORE, "token_lookup", RESAMPLES)
    assert [(s.metric, s.value, s.reason) for s in scored.scores] == [
        (metric, None, "never active") for metric in METRICS
    ]
    assert scored.simulations == []


def test_all_predictions_of_a_simulator_are_kept_with_what_is_known_of_each() -> None:
    scored = score_label(LABEL, EXPLAIN, SCORE, Oracle(SCORE), RESAMPLES)
    kept = {one.window_id: one.predicted for one in scored.simulations}
    for part in (SCORE.active, SCORE.silent, SCORE.top):
        rows = zip(part.windows.window_id.tolist(), part.activations, strict=True)
        for (name, truth), is_token in zip(rows, part.windows.is_token, strict=True):
            assert np.allclose(kept.pop(name), truth[is_token])
    assert not kept


def test_the_lookup_s_predictions_are_kept_for_the_sample_and_the_top_but_not_for_silence() -> None:
    scored = score_label(LABEL, EXPLAIN, SCORE, "token_lookup", RESAMPLES)
    kept = {one.window_id: one for one in scored.simulations}
    own = [*SCORE.active.windows.window_id.tolist(), *SCORE.top.windows.window_id.tolist()]
    assert len(scored.simulations) == len(kept)
    assert sorted(kept) == sorted(own)
    lookup = fit_token_lookup(EXPLAIN)
    windows = SCORE.active.windows
    for name, ids in zip(windows.window_id.tolist(), windows.token_ids, strict=True):
        assert np.array_equal(kept[name].predicted, lookup.predict(ids[None])[0, : sum(ids >= 0)])


def test_a_window_both_sampled_and_top_is_simulated_and_kept_once() -> None:
    both = replace(SCORE, top=replace(SCORE.active, population_windows=20))
    oracle = Oracle(both)
    scored = score_label(LABEL, EXPLAIN, both, oracle, RESAMPLES)
    assert len(oracle.seen) == len(set(oracle.seen)) == 80
    assert len(scored.simulations) == 80
    assert by_metric(scored)["ev_correlation_top"].value == pytest.approx(1)


def test_a_perfect_simulator_scores_one_with_a_lift_over_the_null() -> None:
    many = make_random_contexts(2, "score", n_active=60, n_silent=1500)
    found, null = scores(score=many, simulator=Oracle(many)), scores(score=many)
    for metric in METRICS:
        assert found[metric].null_value == null[metric].value
        if found[metric].value is None or null[metric].value is None:
            assert found[metric].lift is None
            assert found[metric].lift_reason
        else:
            assert found[metric].value == pytest.approx(1)
            assert found[metric].lift == found[metric].value - null[metric].value
    headline = found["correlation"]
    assert 0 < headline.lift_ci_low <= headline.lift <= headline.lift_ci_high


def test_the_null_s_predictions_do_not_depend_on_the_label() -> None:
    other = replace(LABEL, explainer="by-hand", source="human", author="me", text="words")
    headline = scores(label=other, simulator=Oracle(SCORE, noise=1.0))["correlation"]
    assert headline.null_value == scores()["correlation"].value


def test_on_another_scale_the_ceiling_is_the_same() -> None:
    # The scale is that of the text the label was written from: nothing is fitted to the scored.
    highest = max(float(s.activations.max()) for s in (EXPLAIN.active, EXPLAIN.top))
    own = scores(simulator=Oracle(SCORE, noise=0.5))

    class OfTen(Oracle):
        def simulate(self, label: Label, windows: Windows) -> Simulated:
            simulated = super().simulate(label, windows)
            return Simulated(simulated.predicted * np.float32(10 / highest))

    of_ten = scores(simulator=OfTen(SCORE, noise=0.5, full_scale=10.0))
    headline = of_ten["correlation"]
    assert headline.value == pytest.approx(own["correlation"].value, abs=1e-6)
    assert headline.design["ceiling"] == pytest.approx(own["correlation"].design["ceiling"], 1e-6)
    for metric in ("ev_r_squared_top", "ev_absolute_deviation_explained_random"):
        assert of_ten[metric].value == pytest.approx(own[metric].value, abs=1e-5)


def test_what_is_explained_is_that_of_the_concatenated_windows() -> None:
    lookup = fit_token_lookup(EXPLAIN)
    found = scores()
    top = SCORE.top.windows.take(np.arange(5))
    squares = deviations = all_squares = all_deviations = 0.0
    for ids, truth in zip(top.token_ids, SCORE.top.activations[:5], strict=True):
        for token_id, t in zip(ids.tolist(), truth.tolist(), strict=True):
            if token_id >= 0:
                p = float(lookup.predict(np.array([[token_id]], dtype=np.int32))[0, 0])
                squares, all_squares = squares + (t - p) ** 2, all_squares + t**2
                deviations, all_deviations = deviations + abs(t - p), all_deviations + abs(t)
    r_squared = found["ev_r_squared_top"].value
    assert r_squared == pytest.approx(1 - squares / all_squares, abs=1e-6)
    explained = found["ev_absolute_deviation_explained_top"].value
    assert explained == pytest.approx(1 - deviations / all_deviations, abs=1e-6)


def test_each_quarter_of_the_active_windows_has_its_own_correlation() -> None:
    found = scores(simulator=Oracle(SCORE, noise=0.5))
    quarters = [found[f"correlation_quarter_{number}"] for number in (1, 2, 3, 4)]
    assert sum(quarter.n_windows for quarter in quarters) == len(SCORE.active)
    assert len({quarter.contexts_hash for quarter in quarters}) == 4
    peaks = SCORE.active.activations.max(axis=1)
    for rows, quarter in zip(quarters_by_peak(SCORE.active), quarters, strict=True):
        alone = replace(
            SCORE,
            active=Stratum(
                SCORE.active.windows.take(rows), SCORE.active.activations[rows], len(rows)
            ),
        )
        assert quarter.null_value == pytest.approx(expanded_r_of_one(alone.active))
    lowest, highest = (quarters_by_peak(SCORE.active)[number] for number in (0, 3))
    assert peaks[lowest].max() <= peaks[highest].min()


def expanded_r_of_one(stratum: Stratum) -> float:
    """Unweighted, token by token."""
    lookup = fit_token_lookup(EXPLAIN)
    is_token = stratum.windows.is_token
    p = lookup.predict(stratum.windows.token_ids)[is_token]
    return float(np.corrcoef(p, stratum.activations[is_token])[0, 1])


def test_fewer_than_four_active_windows_have_no_quarters() -> None:
    few = Stratum(SCORE.active.windows.take(np.arange(3)), SCORE.active.activations[:3], 3)
    found = scores(score=replace(SCORE, active=few))
    for number in (1, 2, 3, 4):
        quarter = found[f"correlation_quarter_{number}"]
        assert (quarter.value, quarter.reason) == (None, NO_QUARTERS)


def test_a_failed_window_is_kept_as_failed_and_left_out_of_the_score() -> None:
    gone = SCORE.active.windows.window_id[:3].tolist() + SCORE.silent.windows.window_id[:2].tolist()
    oracle = Oracle(SCORE, noise=0.5, fails=frozenset(gone))
    scored = score_label(LABEL, EXPLAIN, SCORE, oracle, RESAMPLES)
    failed = [one for one in scored.simulations if one.status == "failed"]
    assert sorted(one.window_id for one in failed) == sorted(gone)
    assert {(one.predicted, one.reason) for one in failed} == {(None, "no reply")}
    headline = by_metric(scored)["correlation"]
    assert headline.n_windows == 75
    assert headline.design["n_failed_windows"] == 5
    assert (headline.design["n_active_windows"], headline.design["n_silent_windows"]) == (17, 58)


def test_the_windows_that_are_left_still_stand_for_their_whole_stratum() -> None:
    def kept(stratum: Stratum, n: int) -> Stratum:
        return replace(
            stratum, windows=stratum.windows.take(slice(n)), activations=stratum.activations[:n]
        )

    fewer = replace(SCORE, active=kept(SCORE.active, 15), silent=kept(SCORE.silent, 50))
    gone = (
        SCORE.active.windows.window_id[15:].tolist() + SCORE.silent.windows.window_id[50:].tolist()
    )

    class Failing(Oracle):
        def simulate(self, label: Label, windows: Windows) -> Simulated:
            lookup = fit_token_lookup(EXPLAIN)
            failures = super().simulate(label, windows).failures
            return Simulated(lookup.predict(windows.token_ids), failures)

    found = scores(simulator=Failing(SCORE, fails=frozenset(gone)))["correlation"]
    assert found.value == pytest.approx(scores(score=fewer)["correlation"].value, abs=1e-12)


def test_when_every_window_fails_the_reason_is_given() -> None:
    found = scores(label=replace(LABEL, explainer="by-hand"))
    for score in found.values():
        assert score.value is None
        assert score.reason == f"{NOTHING_SIMULATED}: {NOT_ITS_OWN_LABEL}"
        assert score.n_windows == 0


@pytest.mark.parametrize(
    ("part", "reason"), [("active", NO_ACTIVE_WINDOW), ("silent", NO_SILENT_WINDOW)]
)
def test_a_stratum_that_nothing_stands_for_leaves_the_headline_undefined(
    part: str, reason: str
) -> None:
    missing = replace(SCORE, **{part: make_stratum([], population=77, n_tokens=8)})
    assert scores(score=missing)["correlation"].reason == reason


def test_a_feature_that_fires_in_every_window_needs_no_silent_ones() -> None:
    always = replace(SCORE, silent=make_stratum([], n_tokens=8))
    headline = scores(score=always)["correlation"]
    assert headline.value == pytest.approx(expanded_r(always, (always.active,)))
    assert headline.design["ceiling"] is None


def test_a_feature_that_never_fires_in_the_split_has_no_score() -> None:
    never = replace(
        SCORE, active=make_stratum([], n_tokens=8), top=make_stratum([], n_tokens=8), n_active=0
    )
    found = scores(score=never)
    assert found["correlation"].reason == CONSTANT_TRUTH
    assert found["ev_correlation_top"].reason == NOTHING_SIMULATED
    assert found["ev_correlation_random"].reason == CONSTANT_TRUTH
    assert found["correlation"].ci_low is None


def test_a_null_that_predicts_a_constant_leaves_the_lift_undefined() -> None:
    silent = make_random_contexts(1, "explain", n_active=0)
    found = scores(explain=silent, simulator=Oracle(SCORE))["correlation"]
    assert found.value == pytest.approx(1)
    assert (found.null_value, found.lift) == (None, None)
    assert CONSTANT_PREDICTION in found.lift_reason


def test_active_windows_of_few_documents_have_a_score_but_no_interval() -> None:
    document = np.zeros(20, np.int64)
    active = replace(SCORE.active, windows=replace(SCORE.active.windows, document=document))
    headline = scores(score=replace(SCORE, active=active))["correlation"]
    assert headline.value == scores()["correlation"].value
    assert (headline.ci_low, headline.ci_high) == (None, None)
    assert headline.design["interval_reason"] == TOO_FEW_DOCUMENTS


def test_the_contexts_hash_names_the_windows_in_any_order() -> None:
    order = np.random.default_rng(0).permutation(60)
    silent = SCORE.silent
    shuffled = replace(
        silent, windows=silent.windows.take(order), activations=silent.activations[order]
    )
    first, again = scores(), scores(score=replace(SCORE, silent=shuffled))
    assert first["correlation"].contexts_hash == again["correlation"].contexts_hash
    # All active and silent windows; top, random, both; four quarters.
    assert len({score.contexts_hash for score in first.values()}) == 8


@pytest.mark.parametrize("part", ["active", "silent", "top"])
def test_text_that_the_label_may_have_seen_is_refused(part: str) -> None:
    stratum = getattr(SCORE, part)
    token_hash = stratum.windows.token_hash.copy()
    token_hash[-1] = EXPLAIN.silent.windows.token_hash[3]
    leaked = replace(stratum, windows=replace(stratum.windows, token_hash=token_hash))
    with pytest.raises(ScopenoteError, match="1 of 88 windows") as error:
        scores(score=replace(SCORE, **{part: leaked}))
    assert error.value.mend


def test_contexts_of_the_wrong_split_or_feature_are_refused() -> None:
    for explain, score in (
        (replace(EXPLAIN, split="select"), SCORE),
        (EXPLAIN, replace(SCORE, split="explain")),
        (EXPLAIN, replace(SCORE, feature_id=FeatureId("toy/1-res", 8))),
    ):
        with pytest.raises(ScopenoteError):
            scores(explain=explain, score=score)


def test_the_same_input_gives_the_same_rows() -> None:
    assert scores() == scores()


def test_a_broad_silent_firing_lowers_the_headline_and_not_the_classic_top() -> None:
    quiet = make_contexts(
        SCORE.active, replace(SCORE.silent, population_windows=10), SCORE.top, "score"
    )
    loud = make_contexts(
        SCORE.active, replace(SCORE.silent, population_windows=10**6), SCORE.top, "score"
    )
    before, after = scores(score=quiet), scores(score=loud)
    assert after["correlation"].value < before["correlation"].value - 0.1
    assert after["ev_correlation_top"].value == before["ev_correlation_top"].value


def test_under_another_feature_s_label_a_score_is_its_own_kind_and_about_nothing() -> None:
    class FollowsTheText(Oracle):
        """Right under this feature's label, noise under any other."""

        def simulate(self, label: Label, windows: Windows) -> Simulated:
            if label.text == LABEL.text:
                return super().simulate(label, windows)
            noise = np.random.default_rng(5).normal(size=windows.token_ids.shape)
            return Simulated(noise.astype(np.float32))

    other = replace(EXPLAIN.feature_id, feature=EXPLAIN.feature_id.feature + 1)
    judge = FollowsTheText(SCORE)
    own = scores(simulator=judge)["correlation"]
    found = score_shuffled(LABEL, other, "other words", EXPLAIN, SCORE, judge, RESAMPLES)
    (shuffled,) = found.scores
    assert {each.scorer for each in found.simulations} == {"shuffled_label"}
    assert own.value == pytest.approx(1)
    assert abs(shuffled.value) < 0.3
    assert (shuffled.label_id, shuffled.scorer) == (own.label_id, "shuffled_label")
    assert (shuffled.metric, shuffled.contexts_hash) == ("correlation", own.contexts_hash)
    assert shuffled.null_value == own.null_value
    assert shuffled.design["label_of"] == str(other)
