"""What a run changed: the values, worked out from the database as the run leaves it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np

from ..evaluate.intervals import Resamples, draw_resamples
from ..evaluate.score_change import change_of_medians, change_of_pairs
from ..label.explainers import NEVER_ACTIVE
from ..store.batch_record import batches_under_way
from ..store.calls import Spending
from ..store.database import now
from ..store.errors import ScopenoteError
from ..store.gold import GoldStanding, read_gold
from ..store.label_history import compare_in_force, read_scores_twice
from ..store.run_summaries import (
    Covered,
    Distribution,
    JudgeStanding,
    NewLabels,
    RunSummary,
    ScoreComparison,
    read_call_failures,
    read_cost,
    read_covered,
    read_new_labels,
    read_tried_windows,
)
from .alerts import find_alerts

if TYPE_CHECKING:
    from .alert_settings import AlertSection
    from .reports import RunReport

_SEED = 0
_MOST_ERROR_CHARACTERS = 300


def summarize_run(
    connection: duckdb.DuckDBPyConnection,
    run_id: str,
    report: RunReport,
    settings: AlertSection,
    error: Exception | None = None,
) -> RunSummary:
    """What this run changed, beside what the last one left.

    Args:
        connection: the working copy, before this run is added to the history of labels.
        run_id: of the run that ends.
        report: what it did, stage by stage.
        settings: when an alert is raised.
        error: with which it ended, if it did.
    """
    covered = read_covered(connection, run_id)
    cost, cost_in_all = read_cost(connection, covered)
    summary = RunSummary(
        covered=covered.run_ids,
        labels=tuple(map(_of_work, read_new_labels(connection, covered))),
        in_force=compare_in_force(connection),
        scores=compare_scores(read_scores_twice(connection), draw_resamples(_SEED)),
        windows=read_tried_windows(connection, covered),
        call_failures=read_call_failures(connection, covered),
        cost=cost,
        usd=_total(cost),
        usd_in_all=_total(cost_in_all),
        n_unpriced_in_all=sum(each.n_unpriced for each in cost_in_all),
        gold=tuple(_judge(each) for each in read_gold(connection) if _is_of(each, covered)),
        error=None if error is None else in_a_line(error),
    )
    batches = batches_under_way(connection)
    return replace(summary, alerts=find_alerts(summary, report, settings, error, batches, now()))


def in_a_line(error: Exception) -> str:
    """An error as one sentence of bounded length."""
    if isinstance(error, ScopenoteError):
        words = error.what if error.found is None else f"{error.what} ({error.found})"
    else:
        words = f"{type(error).__name__}: {error}"
    line = " ".join(words.split())
    return line if len(line) <= _MOST_ERROR_CHARACTERS else line[:_MOST_ERROR_CHARACTERS] + "…"


def compare_scores(columns: dict[str, Any], resamples: Resamples) -> tuple[ScoreComparison, ...]:
    """By simulator, scores now beside those before; what columns there are is the store's to say.

    Only scores by one simulator are compared with each other: another judge is another scale.
    """
    names = {*columns["simulator_before"], *columns["simulator_now"]} - {None}
    return tuple(_compare(name, columns, resamples) for name in sorted(names))


def _compare(name: str, columns: dict[str, Any], resamples: Resamples) -> ScoreComparison:
    was, is_now = (columns[f"simulator_{when}"] == name for when in ("before", "now"))
    before = np.where(was, columns["score_before"], np.nan)
    now_ = np.where(is_now, columns["score_now"], np.nan)
    is_pair = columns["has_changed"] & np.isfinite(before) & np.isfinite(now_)
    has_other = is_now & ~was & (columns["simulator_before"] != None)  # noqa: E711 - of an array
    return ScoreComparison(
        simulator=name,
        before=_distribution(before, columns["reason_before"], was) if was.any() else None,
        now=_distribution(now_, columns["reason_now"], is_now),
        medians=change_of_medians(before, now_, resamples),
        pairs=change_of_pairs(before[is_pair], now_[is_pair], resamples),
        n_other_judge=int(has_other.sum()),
    )


def _distribution(scores: Any, reasons: Any, is_scored: Any) -> Distribution:
    defined = scores[np.isfinite(scores)]
    undefined = Counter(
        str(reason or "no reason given") for reason in reasons[is_scored & ~np.isfinite(scores)]
    )
    quarter, median, three_quarters = (
        np.quantile(defined, [0.25, 0.5, 0.75]).tolist() if len(defined) else [None] * 3
    )
    by_reason = dict(undefined.most_common())
    return Distribution(len(defined), quarter, median, three_quarters, by_reason)


def _of_work(labels: NewLabels) -> NewLabels:
    """Without the features that there is no text for: that is no failure of the work."""
    failures = {reason: n for reason, n in labels.failures.items() if reason != NEVER_ACTIVE}
    return replace(labels, failures=failures)


def _is_of(standing: GoldStanding, covered: Covered) -> bool:
    return standing.run_id in covered.run_ids


def _judge(standing: GoldStanding) -> JudgeStanding:
    drift = standing.drift
    return JudgeStanding(
        simulator=standing.simulator,
        mean=standing.true.mean,
        change=drift.mean,
        n_runs=drift.n_runs,
        drift=drift.reason if drift.is_beyond_chance else None,
    )


def _total(cost: Sequence[Spending]) -> Decimal | None:
    known = [each.usd for each in cost if each.usd is not None]
    return sum(known, Decimal(0)) if known else None
