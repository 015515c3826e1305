"""Gold items: before a judge is believed in a run, it rates features of which all is known."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from ..evaluate.judge_gold import drawn, judge_gold
from ..label.labelling import Ask
from ..store.absorb import absorb_results
from ..store.database import Store, open_work
from ..store.gold import GoldStanding, gold_table, n_gold_runs, read_gold
from ..store.parts import write_part
from ..store.records import content_hash
from .judges import Judge, Texts
from .rate_job import RateJob

PURPOSE = "gold"


def rate_gold(job: RateJob, store: Store, judge: Judge, ask: Ask) -> GoldStanding:
    """Has a judge rate the gold items, and says where it stands.

    Every run asks anew, though the questions are the same: what has changed is to be noticed.

    Raises:
        EndpointRefuses: the model's endpoint answers no request.
        BudgetSpent: the next call might cost more than is left.
    """
    asks_anew = drawn(ask, n_gold_runs(store.connection, judge.name))
    scores = judge_gold(
        lambda token_text, prefix_of: judge.simulator(asks_anew, Texts(token_text, prefix_of)),
        job.settings.seed,
    )
    part = f"gold-{content_hash([job.run_id, judge.name])}"
    table = gold_table(scores, job.run_id, datetime.now(UTC))
    write_part(job.folder.parts, part, "gold", {"gold_scores": table}, {})
    with open_work(job.folder.path) as work:
        absorb_results(work, job.folder.parts, "gold")
        (standing,) = (each for each in read_gold(work) if each.simulator == judge.name)
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
