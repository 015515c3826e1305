"""What a simulator is told, and what is made of its answers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from scopenote.evaluate.simulators import (
    NOT_ITS_OWN_LABEL,
    Simulated,
    TokenLookupSimulator,
    simulate_blind,
)
from scopenote.label.token_lookup import fit_token_lookup
from scopenote.store.records import Label, Windows

from .planted_feature import FEATURE, make_random_contexts, make_stratum

LABEL = Label(FEATURE, "“import”", None, "token_lookup", "1", (1, 2))
WINDOWS = make_stratum([[i, i + 1] for i in range(40)]).windows


@dataclass
class Recorder:
    """Predicts a window's first token, remembers the order, fails where told."""

    depends_on_order: bool = True
    name: str = "recorder"
    full_scale: float | None = None
    fails_at_token: int = -1
    order: list[int] = field(default_factory=list)

    def simulate(self, label: Label, windows: Windows) -> Simulated:
        self.order = windows.token_ids[:, 0].tolist()
        predicted = windows.token_ids.astype(np.float32)
        failed = np.flatnonzero(windows.token_ids[:, 0] == self.fails_at_token)
        return Simulated(predicted, {int(row): "no answer" for row in failed})


def test_windows_come_shuffled_and_answers_go_back_to_their_places() -> None:
    recorder = Recorder()
    simulated = simulate_blind(recorder, LABEL, WINDOWS, seed=1)
    assert recorder.order != sorted(recorder.order)
    assert sorted(recorder.order) == list(range(40))
    assert simulated.predicted[:, 0].tolist() == list(range(40))


def test_a_failure_goes_back_to_its_window() -> None:
    simulated = simulate_blind(Recorder(fails_at_token=17), LABEL, WINDOWS, seed=1)
    assert simulated.failures == {17: "no answer"}


def test_the_seed_decides_the_order() -> None:
    first, again, other = Recorder(), Recorder(), Recorder()
    for recorder, seed in ((first, 1), (again, 1), (other, 2)):
        simulate_blind(recorder, LABEL, WINDOWS, seed)
    assert first.order == again.order != other.order


def test_a_simulator_that_does_not_look_at_the_order_is_not_shuffled() -> None:
    recorder = Recorder(depends_on_order=False)
    simulate_blind(recorder, LABEL, WINDOWS, seed=1)
    assert recorder.order == list(range(40))


def test_the_token_lookup_predicts_by_its_table() -> None:
    contexts = make_random_contexts(1, "explain")
    lookup = fit_token_lookup(contexts)
    windows = contexts.active.windows
    simulated = TokenLookupSimulator(lookup).simulate(LABEL, windows)
    assert np.array_equal(simulated.predicted, lookup.predict(windows.token_ids))
    assert not simulated.failures


def test_the_token_lookup_does_not_speak_for_other_labels() -> None:
    lookup = fit_token_lookup(make_random_contexts(1, "explain"))
    others = replace(LABEL, explainer="by-hand", source="human")
    simulated = TokenLookupSimulator(lookup).simulate(others, WINDOWS)
    assert simulated.failures == dict.fromkeys(range(40), NOT_ITS_OWN_LABEL)
