"""Gold items: before a judge is believed in a run, it rates features of which all is known."""

from __future__ import annotations

from collections.abc import Sequence

from ..store.absorb import absorb_results
from ..store.database import open_work
from ..store.gold import GoldStanding, read_gold
from ..store.run_folder import RunFolder


def gold_standing(folder: RunFolder, simulator: str) -> GoldStanding:
    """Where a judge stands that has just rated the gold items; absorbs that."""
    with open_work(folder.path) as work:
        absorb_results(work, folder.parts, "gold")
        (standing,) = (each for each in read_gold(work) if each.simulator == simulator)
    return standing


def gold_notes(standing: GoldStanding) -> Sequence[str]:
    """What a person should know of it, a sentence each."""
    true, wrong = standing.true, standing.wrong
    if true.mean is None:
        notes = [f"{standing.simulator} gives no score to any of {true.n_undefined} gold items"]
    else:
        error = "" if true.standard_error is None else f" ± {true.standard_error:.2f}"
        undefined = f", {true.n_undefined} undefined" if true.n_undefined else ""
        against = "no score" if wrong.mean is None else f"{wrong.mean:.2f}"
        notes = [
            f"{standing.simulator} scores {true.mean:.2f}{error} on features that are known "
            f"(gold{undefined}), and {against} with wrong labels"
        ]
    if standing.n_failed:
        notes.append(f"{standing.n_failed} of {standing.n_windows} gold windows failed")
    drift = standing.drift
    if drift.is_beyond_chance:
        change = "" if drift.mean is None else f" by {drift.mean:+.2f}"
        most = "" if drift.most_changed is None else f", most in {drift.most_changed}"
        notes.append(
            f"{standing.simulator} is not the judge it was: on gold items {drift.reason}{change}"
            f"{most} ({drift.n_runs} earlier runs)"
        )
    return notes
