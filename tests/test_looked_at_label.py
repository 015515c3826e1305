"""Labels scored at looks and with screened silence: the same figures for less, and said so."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from scopenote.evaluate.free_screen import FreeScreen, stems_of
from scopenote.evaluate.intervals import draw_resamples
from scopenote.evaluate.looked_at_label import Allowance, Screening, score_within
from scopenote.evaluate.looks import ABOVE_THRESHOLD, LAST_LOOK, NARROW_ENOUGH, Looks
from scopenote.evaluate.score_label import score_label
from scopenote.evaluate.scored_windows import few_windows
from scopenote.evaluate.screening import NO_OTHER_RATED, NO_SUSPECT_RATED
from scopenote.evaluate.simulators import Simulated
from scopenote.store.records import FeatureContexts, Label, Simulation, Windows

from .planted_feature import make_contexts, make_random_contexts, make_stratum
from .planted_rules import a_label

RESAMPLES = draw_resamples(seed=1, n_resamples=200)
EXPLAIN = make_random_contexts(1, "explain")
SCORE = make_random_contexts(2, "score", n_active=60, n_silent=400)
LABEL = replace(a_label("tokens"), feature_id=EXPLAIN.feature_id)
EVERY = Allowance(40, 200)


@dataclass
class Judge:
    """Right where the feature fires; wrong in this share of silent windows; notes what it saw."""

    share: float = 0.02
    fails: bool = False
    asked: list[int] = field(default_factory=list)
    name: str = "judge"
    depends_on_order: bool = False
    full_scale: float | None = None

    def simulate(self, label: Label, windows: Windows) -> Simulated:
        names = windows.window_id.tolist()
        self.asked += names
        predicted = np.where(windows.token_ids < 3, windows.token_ids + 1.5, 0) * windows.is_token
        predicted = (predicted * is_active(windows)[:, None]).astype(np.float32)
        predicted[is_wrong(windows, self.share), 0] = 3
        failures = dict.fromkeys(range(len(names)), "no reply") if self.fails else {}
        return Simulated(predicted, failures, {})


def is_active(windows: Windows) -> np.ndarray:
    place = windows.window_id.astype(np.int64) % 1_000_000
    return (place < 200_000) | (place >= 300_000)


def is_wrong(windows: Windows, share: float) -> np.ndarray:
    return ~is_active(windows) & (windows.window_id.astype(np.int64) * 7919 % 1000 < 1000 * share)


@dataclass(frozen=True)
class KnowingScreen:
    """Suspects the windows in which such a judge errs, and some more."""

    share: float
    name: str = "knowing"

    def sort(self, label: Label, explain: FeatureContexts, windows: Windows) -> Screening:
        is_suspect = is_wrong(windows, self.share)
        stored = Simulation("another", "sparse", int(windows.window_id[0]), None, scorer="screen")
        return Screening(is_suspect, [stored])


def headline(allowance: Allowance, judge: Judge | None = None, score: FeatureContexts = SCORE):
    return score_within(LABEL, EXPLAIN, score, judge or Judge(), RESAMPLES, allowance)


def test_with_one_look_and_no_screen_a_label_scores_as_on_these_windows() -> None:
    found = headline(EVERY)
    few = few_windows(SCORE, 40, 200)
    whole = score_label(LABEL, EXPLAIN, few, Judge(), RESAMPLES)
    assert found.scores == whole.scores
    assert len(found.simulations) == len(whole.simulations) == 245


def test_scoring_stops_at_the_look_after_which_enough_is_known_and_says_which() -> None:
    judge = Judge()
    allowance = replace(EVERY, looks=Looks((0.25, 0.5, 1.0), threshold=0.05))
    scored = headline(allowance, judge).scores[0]
    assert scored.design["why_stopped"] == ABOVE_THRESHOLD
    assert (scored.design["look"], scored.design["n_looks"]) == (1, 3)
    assert scored.n_windows == 10 + 50
    assert scored.design["n_windows_at_most"] == 240
    assert len(judge.asked) == 10 + 50 + 5  # and the top ones
    # Three looks share the error.
    assert scored.design["level"] == pytest.approx(1 - 0.05 / 3)
    assert scored.ci_low > 0.05


def test_a_look_that_is_not_enough_is_followed_by_the_next_without_asking_again() -> None:
    judge = Judge()
    narrow = headline(replace(EVERY, looks=Looks((0.25, 0.5, 1.0), narrow=1e-6)), judge).scores[0]
    assert narrow.design["why_stopped"] == LAST_LOOK
    assert narrow.design["look"] == 3
    assert len(judge.asked) == len(set(judge.asked)) == 245
    assert narrow.value == headline(EVERY).scores[0].value
    wide = headline(replace(EVERY, looks=Looks((0.25, 0.5, 1.0), narrow=1.9))).scores[0]
    assert wide.design["why_stopped"] == NARROW_ENOUGH


def test_a_judge_that_never_answers_has_no_score_at_any_look() -> None:
    judge = Judge(fails=True)
    scored = headline(replace(EVERY, looks=Looks((0.5, 1.0), narrow=1.9)), judge).scores[0]
    assert scored.value is None
    assert "no reply" in scored.reason
    assert scored.design["why_stopped"] == LAST_LOOK


def test_half_of_the_silent_windows_are_suspects_and_the_estimate_stays_right() -> None:
    allowance = Allowance(40, 40, screen=KnowingScreen(0.1), n_screened=400)
    found = headline(allowance, Judge(share=0.1))
    (scored, *_) = found.scores
    assert scored.design["screen"] == "knowing"
    assert scored.design["n_screened_windows"] == 400
    assert scored.design["n_suspects_rated"] == 20
    assert scored.design["n_silent_windows"] == 40
    every = headline(Allowance(40, 400), Judge(share=0.1)).scores[0]
    assert scored.value == pytest.approx(every.value, abs=0.02)
    # With no such help, so few windows would say something else.
    assert scored.ci_high - scored.ci_low < (lambda plain: plain.ci_high - plain.ci_low)(
        headline(Allowance(40, 40), Judge(share=0.1)).scores[0]
    )
    kept = [each for each in found.simulations if each.scorer == "screen"]
    assert [each.label_id for each in kept] == [LABEL.label_id]


@pytest.mark.parametrize(("share", "n_suspects"), [(0.0, 0), (1.0, 40)])
def test_a_screen_that_fires_nowhere_or_everywhere_changes_nothing(
    share: float, n_suspects: int
) -> None:
    allowance = Allowance(40, 40, screen=KnowingScreen(share), n_screened=400)
    scored = headline(allowance, Judge(share=0.02)).scores[0]
    plain = headline(Allowance(40, 40), Judge(share=0.02)).scores[0]
    assert scored.design["n_suspects_rated"] == n_suspects
    assert scored.value == pytest.approx(plain.value)


@pytest.mark.parametrize(
    ("fails_at", "reason"), [("suspects", NO_SUSPECT_RATED), ("others", NO_OTHER_RATED)]
)
def test_where_all_windows_of_a_kind_fail_the_score_is_undefined(
    fails_at: str, reason: str
) -> None:
    class Partial(Judge):
        def simulate(self, label: Label, windows: Windows) -> Simulated:
            found = super().simulate(label, windows)
            wrong = is_wrong(windows, 0.1)
            fails = (wrong if fails_at == "suspects" else ~wrong) & ~is_active(windows)
            return replace(found, failures={int(row): "no" for row in np.flatnonzero(fails)})

    allowance = Allowance(40, 40, screen=KnowingScreen(0.1), n_screened=400)
    scored = headline(allowance, Partial(share=0.1)).scores[0]
    assert (scored.value, scored.reason) == (None, reason)


def test_the_free_screen_suspects_the_label_s_words_and_what_the_lookup_likes() -> None:
    words = {0: " the", 1: " Quarrels", 2: " about", 3: " cats", 4: " and", 5: " dogs"}
    texts = [[0, 1, 2, 3], [0, 4, 4, 5], [4, 0, 4, 0], [0, 0, 2, 4]]
    fires = make_stratum([[5, 0, 4, 2]], [[4.0, 0, 0, 0]], first_id=90)
    explain = make_contexts(fires, make_stratum([[0, 2, 4, 3]] * 9, first_id=100))
    found = FreeScreen(words.__getitem__).sort(
        a_label("words about a quarrel"), explain, make_stratum(texts).windows
    )
    assert found.is_suspect.tolist() == [True, True, False, False]
    assert not found.simulations


def test_words_are_compared_without_case_and_endings() -> None:
    assert stems_of("Quarrelling, QUARRELS!") == stems_of("quarrel") == {"quarr"}
    assert not stems_of("of a in")
