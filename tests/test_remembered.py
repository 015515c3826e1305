"""A simulator that remembers asks once for each window, and gives what it was given."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scopenote.evaluate.remembered import NOT_STORED, Remembering, StoredPredictions
from scopenote.evaluate.simulators import Simulated
from scopenote.store.records import Label, Simulation, Windows

from .planted_feature import make_stratum
from .planted_rules import a_label

LABEL = a_label("what it is")
WINDOWS = make_stratum([[n, n + 1, n + 2][: 2 + n % 2] for n in range(12)]).windows


@dataclass
class Counting:
    """Predicts each token's id, fails at every fifth window, and notes what it was asked."""

    asked: list[int] = field(default_factory=list)
    name: str = "counting"
    depends_on_order: bool = True
    full_scale: float | None = 9.0

    def simulate(self, label: Label, windows: Windows) -> Simulated:
        names = windows.window_id.tolist()
        self.asked += names
        predicted = np.where(windows.is_token, windows.token_ids, 0).astype(np.float32)
        failures = {row: "no reply" for row, name in enumerate(names) if name % 5 == 0}
        mass = {row: name / 100 for row, name in enumerate(names) if row not in failures}
        return Simulated(predicted, failures, mass)


@given(st.lists(st.lists(st.integers(0, 11), unique=True), max_size=5))
def test_each_window_is_asked_for_once_and_the_answers_are_those_of_one_asking(
    looks: list[list[int]],
) -> None:
    counting = Counting()
    remembering = Remembering(counting)
    for rows in looks:
        taken = WINDOWS.take(np.array(rows, np.intp))
        found, fresh = remembering.simulate(LABEL, taken), Counting().simulate(LABEL, taken)
        assert found.failures == fresh.failures
        assert found.captured_mass == fresh.captured_mass
        whole = [row for row in range(len(rows)) if row not in fresh.failures]
        assert np.array_equal(found.predicted[whole], fresh.predicted[whole])
    assert (
        len(counting.asked) == len(set(counting.asked)) == len({r for rows in looks for r in rows})
    )


def test_what_is_stored_is_given_again_and_nothing_else_is_made_up() -> None:
    stored = Simulation(
        LABEL.label_id, "m", int(WINDOWS.window_id[0]), np.array([3, 4], np.float32)
    )
    remembering = Remembering.of(StoredPredictions("m", 9.0), [stored])
    found = remembering.simulate(LABEL, WINDOWS.take(np.array([1, 0])))
    assert found.failures == {0: NOT_STORED}
    assert found.predicted[1].tolist()[:2] == [3, 4]
    assert (remembering.name, remembering.full_scale) == ("m", 9.0)
    assert not remembering.depends_on_order


def test_a_failed_window_stays_failed() -> None:
    counting = Counting()
    remembering = Remembering(counting)
    failing = WINDOWS.take(np.flatnonzero(WINDOWS.window_id % 5 == 0))
    for _ in range(2):
        found = remembering.simulate(LABEL, failing)
        assert set(found.failures.values()) == {"no reply"}
        assert not found.predicted.any()
    assert len(counting.asked) == len(failing) == pytest.approx(len(WINDOWS) / 5, abs=1)
