"""What a run changed, as it is kept with the run: values, and what they are read from.

A run's summary lies in `runs.summary` under `report`, beside the stages. It covers all that was
done since the last run that left one: also what a run that was killed had finished.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import duckdb

from .calls import Spending, spent
from .label_history import LabelsInForce
from .records import ScoreChange

if TYPE_CHECKING:
    from pydantic import TypeAdapter

REPORT = "report"


@dataclass(frozen=True, slots=True)
class Alert:
    """Something that a person should look at.

    Attributes:
        kind: a word for programs.
        text: a sentence.
    """

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class NewLabels:
    """What an explainer proposed.

    Attributes:
        n: labels.
        n_again: of these, how many are of features that had a label before.
        failures: features for which it came to nothing, by reason.
    """

    explainer: str
    model: str | None
    n: int
    n_again: int
    failures: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Distribution:
    """Headline scores of labels in force.

    Attributes:
        n: how many are defined.
        undefined: how many are not, by reason.
    """

    n: int
    quarter: float | None
    median: float | None
    three_quarters: float | None
    undefined: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ScoreComparison:
    """Scores by one simulator, beside those after the last run.

    Attributes:
        before: as features were last scored before; None where there were no scores.
        medians: of all that are scored; None without any before or now.
        pairs: the mean over features that it scored then and whose label or score is another.
        n_other_judge: features whose last score was by another simulator, and so no pairs.
    """

    simulator: str
    before: Distribution | None
    now: Distribution
    medians: ScoreChange | None
    pairs: ScoreChange | None
    n_other_judge: int = 0


@dataclass(frozen=True, slots=True)
class JudgeStanding:
    """A judge on gold items.

    Attributes:
        mean: of its scores from the items' own labels; None where it gives none.
        change: of that, against all earlier runs.
        n_runs: how many those are.
        drift: why it is not the judge it was; None where it is, or that cannot be told.
    """

    simulator: str
    mean: float | None
    change: float | None
    n_runs: int
    drift: str | None


@dataclass(frozen=True, slots=True)
class TriedWindows:
    """Windows that judges were to rate, and how many of them failed."""

    n: int
    n_failed: int


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What was done since the last run that left a summary.

    Attributes:
        covered: ids of the runs that it is about, this one last; the others were killed.
        labels: that were proposed, by explainer and model.
        in_force: the labels in force beside those that the last run left.
        scores: by simulator.
        windows: that judges were to rate.
        call_failures: calls without a usable reply, by reason.
        cost: of the calls, by purpose and model.
        usd: of these, and `usd_in_all` of all that the run's folder ever saw.
        n_unpriced_in_all: calls of unknown price, which it leaves out.
        gold: the judges that were asked about gold items.
        alerts: what a person should look at.
        error: why it ended early, in a line; None where it did not.
    """

    covered: tuple[str, ...]
    labels: tuple[NewLabels, ...]
    in_force: LabelsInForce
    scores: tuple[ScoreComparison, ...]
    windows: TriedWindows
    call_failures: Mapping[str, int]
    cost: tuple[Spending, ...]
    usd: Decimal | None
    usd_in_all: Decimal | None
    n_unpriced_in_all: int
    gold: tuple[JudgeStanding, ...] = ()
    alerts: tuple[Alert, ...] = field(default=())
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For `runs.summary`, `--json` and whoever is alerted."""
        found: dict[str, Any] = _adapter().dump_python(self, mode="json")
        return found

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> RunSummary:
        """What `as_dict` gave."""
        return _adapter().validate_python(content)


@lru_cache(maxsize=1)
def _adapter() -> TypeAdapter[RunSummary]:
    # Made once: making it takes several times as long as reading a summary.
    from pydantic import TypeAdapter

    return TypeAdapter(RunSummary)


@dataclass(frozen=True, slots=True)
class Covered:
    """The runs that a summary is about.

    Attributes:
        run_ids: in their order, the one that writes it last.
        since: when the last run before them ended; None where there is none.
    """

    run_ids: tuple[str, ...]
    since: datetime | None


def read_covered(connection: duckdb.DuckDBPyConnection, run_id: str) -> Covered:
    """This run, and those before it that died before they could leave a summary."""
    since = connection.execute(
        """
        SELECT greatest(
            -- Those before the history was kept left no summary, but their work is in it.
            (SELECT max(recorded_at) FROM label_history),
            (SELECT max(finished_at) FROM runs
             WHERE json_exists(summary, '$.' || $report) AND run_id <> $run)
        )
        """,
        {"report": REPORT, "run": run_id},
    ).fetchall()[0][0]
    rows = connection.execute(
        """
        SELECT run_id FROM runs
        WHERE run_id <> $run AND started_at > coalesce($since, '-infinity'::TIMESTAMPTZ)
        ORDER BY started_at, run_id
        """,
        {"run": run_id, "since": since},
    ).fetchall()
    return Covered((*(each for (each,) in rows), run_id), since)


def read_new_labels(
    connection: duckdb.DuckDBPyConnection, covered: Covered
) -> tuple[NewLabels, ...]:
    """What explainers proposed in these runs."""
    rows = connection.execute(
        """
        WITH new AS (FROM labels WHERE run_id IN (SELECT unnest($runs))),
        old AS (
            SELECT DISTINCT sae_id, feature FROM labels
            WHERE status = 'done' AND coalesce(run_id, '') NOT IN (SELECT unnest($runs))
        )
        SELECT explainer, model,
            CASE WHEN status = 'done' THEN NULL ELSE coalesce(reason, 'no reason given') END,
            count(*), count(o.feature)
        FROM new n LEFT JOIN old o USING (sae_id, feature)
        GROUP BY ALL ORDER BY 1, 2 NULLS FIRST, 4 DESC, 3
        """,
        {"runs": list(covered.run_ids)},
    ).fetchall()
    found: dict[tuple[str, str | None], dict[str | None, tuple[int, int]]] = {}
    for explainer, model, reason, n, n_again in rows:
        found.setdefault((explainer, model), {})[reason] = (n, n_again)
    return tuple(
        NewLabels(
            explainer,
            model,
            *counts.get(None, (0, 0)),
            {reason: n for reason, (n, _) in counts.items() if reason is not None},
        )
        for (explainer, model), counts in found.items()
    )


def read_tried_windows(connection: duckdb.DuckDBPyConnection, covered: Covered) -> TriedWindows:
    """The windows behind the scores that were computed in these runs."""
    rows = connection.execute(
        """
        SELECT count(*), count(*) FILTER (s.status = 'failed')
        FROM simulations s SEMI JOIN (
            FROM scores WHERE run_id IN (SELECT unnest($runs))
        ) n ON s.label_id = n.label_id AND s.simulator = n.simulator
        """,
        {"runs": list(covered.run_ids)},
    ).fetchall()
    return TriedWindows(*rows[0])


def read_call_failures(connection: duckdb.DuckDBPyConnection, covered: Covered) -> dict[str, int]:
    """Calls that gave nothing usable, by the reason that stands before the endpoint's words."""
    rows = connection.execute(
        """
        SELECT split_part(error, ':', 1) AS reason, count(*)
        FROM (FROM calls UNION ALL BY NAME FROM repeated_calls)
        WHERE error IS NOT NULL AND created_at > coalesce($since, '-infinity'::TIMESTAMPTZ)
        GROUP BY reason ORDER BY count(*) DESC, reason
        """,
        {"since": covered.since},
    ).fetchall()
    return dict(rows)


def read_cost(
    connection: duckdb.DuckDBPyConnection, covered: Covered
) -> tuple[tuple[Spending, ...], tuple[Spending, ...]]:
    """What calls cost since then, and in all."""
    return tuple(spent(connection, covered.since)), tuple(spent(connection))
