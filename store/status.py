"""How far a run is and how good it is: what is collected, labelled, scored, and what failed.

Reads only, from a connection that someone else opened.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .batch_record import Batch, batches_under_way
from .calls import Spending, spent
from .collisions import CollisionRow, read_collisions
from .gold import GoldStanding, read_gold
from .near_features import read_rows
from .null_ladder import LadderRow, imported_sets, read_null_ladder
from .records import FeatureId
from .runs import RunRecord, read_last_ended
from .second_opinions import OpinionRow, read_second_opinions
from .splits import SPLITS

if TYPE_CHECKING:
    import duckdb

HEADLINE = "correlation"
SCORE_BINS = 20


@dataclass(frozen=True, slots=True)
class SplitStatus:
    """What was collected of one split.

    Attributes:
        n_tokens, n_windows: of all its text, copies counted.
        n_kept_windows, n_kept_documents: windows kept for some feature or the background, and
            the documents they are from.
    """

    split: str
    n_tokens: int
    n_windows: int
    n_kept_windows: int
    n_kept_documents: int


@dataclass(frozen=True, slots=True)
class ScoreSummary:
    """The headline scores of the labels in force of one SAE.

    Attributes:
        n: how many are defined.
        histogram: how many fall into each of `SCORE_BINS` equal bins from 0 to 1.
        n_negative: how many are below 0 and in no bin.
        n_stale: how many newer text has overtaken; the next `score` takes them again.
        undefined: how many are not, by reason.
    """

    n: int
    low: float | None
    quarter: float | None
    median: float | None
    three_quarters: float | None
    high: float | None
    histogram: tuple[int, ...]
    n_negative: int
    n_stale: int
    undefined: dict[str, int]


@dataclass(frozen=True, slots=True)
class LossStatus:
    """The model's mean next-token loss in nats, and what becomes of it at an SAE's target.

    Attributes:
        own: as the model is.
        spliced: with the SAE's reconstruction in place of its target.
        zeroed: with zeros there.
        increase: `spliced - own`.
        recovered: the share of the loss that zeros cost which the reconstruction does not:
            `(zeroed - spliced) / (zeroed - own)`; None where zeros cost nothing.
        n_tokens: predictions that the losses are means of.
    """

    own: float
    spliced: float
    zeroed: float
    increase: float
    recovered: float | None
    n_tokens: int


@dataclass(frozen=True, slots=True)
class SaeStatus:
    """One SAE, its features, their labels and the labels' scores.

    Attributes:
        mean_l0: active features per token.
        fvu: fraction of variance unexplained.
        loss: what its reconstruction costs the model; None where that was not measured.
        density: mean share of tokens on which a living feature is active.
        n_alive: features that were active at least once.
        n_labelled: features with a label in force.
        failures: features without one whose labelling failed, by reason.
    """

    sae_id: str
    model: str
    site: str
    layer: int
    width: int
    mean_l0: float | None
    fvu: float | None
    loss: LossStatus | None
    density: float | None
    n_features: int
    n_alive: int
    n_labelled: int
    failures: dict[str, int]
    scores: ScoreSummary


@dataclass(frozen=True, slots=True)
class PastRun:
    """One invocation that worked on the run's folder."""

    run_id: str
    command: str | None
    started_at: datetime | None
    finished_at: datetime | None
    status: str | None
    version: str | None


@dataclass(frozen=True, slots=True)
class RunStatus:
    """How far a run is.

    Attributes:
        ladder: where its scores stand.
        opinions: what judges say of labels beside that.
        gold: how good the judges are.
        collisions: labels that several features have.
        imported: the explainers of labels that others wrote.
        spent: what was spent on what.
        batches: those under way.
        last: the last run that left a summary; None before there is one.
    """

    n_tokens: int
    n_documents: int
    splits: tuple[SplitStatus, ...]
    saes: tuple[SaeStatus, ...]
    ladder: tuple[LadderRow, ...]
    opinions: tuple[OpinionRow, ...]
    gold: tuple[GoldStanding, ...]
    collisions: tuple[CollisionRow, ...]
    spent: tuple[Spending, ...]
    batches: tuple[Batch, ...]
    runs: tuple[PastRun, ...]
    database_bytes: int
    last: RunRecord | None = None
    imported: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "last": None if self.last is None else self.last.as_dict()}


@dataclass(frozen=True, slots=True)
class RankedLabel:
    """A label with its headline score."""

    feature: str
    text: str
    score: float
    ci_low: float | None
    ci_high: float | None


@dataclass(frozen=True, slots=True)
class ModelLabel:
    """A label that a model wrote."""

    feature: str
    text: str
    model: str


@dataclass(frozen=True, slots=True)
class ExtremeLabels:
    """The labels with the highest and the lowest headline scores, the most extreme first."""

    best: tuple[RankedLabel, ...]
    worst: tuple[RankedLabel, ...]


def read_status(
    connection: duckdb.DuckDBPyConnection, database: Path, n_runs: int = 5
) -> RunStatus:
    """How far the run is whose published database this is."""
    corpus = connection.execute(
        "SELECT coalesce(sum(n_tokens), 0), coalesce(sum(n_documents), 0) FROM chunks"
    ).fetchone()
    n_tokens, n_documents = corpus or (0, 0)
    runs = connection.execute(
        """
        SELECT run_id, command, started_at, finished_at, status, version
        FROM runs ORDER BY started_at DESC, run_id LIMIT $1
        """,
        [n_runs],
    ).fetchall()
    return RunStatus(
        n_tokens=int(n_tokens),
        n_documents=int(n_documents),
        splits=_splits(connection),
        saes=_saes(connection),
        ladder=read_null_ladder(connection),
        opinions=read_second_opinions(connection),
        gold=read_gold(connection),
        collisions=read_collisions(connection),
        spent=tuple(spent(connection)),
        batches=tuple(batches_under_way(connection)),
        runs=tuple(PastRun(*row) for row in runs),
        database_bytes=database.stat().st_size if database.exists() else 0,
        last=read_last_ended(connection),
        imported=imported_sets(connection),
    )


def read_extremes(connection: duckdb.DuckDBPyConnection, n: int = 5) -> ExtremeLabels:
    """The n best and the n worst labels in force; no label is in both."""

    def ranked(direction: str, limit: int) -> tuple[RankedLabel, ...]:
        rows = connection.execute(
            f"""
            SELECT sae_id, feature, text, score, ci_low, ci_high
            FROM current_labels WHERE score IS NOT NULL AND text IS NOT NULL
            ORDER BY score {direction}, sae_id, feature LIMIT $1
            """,
            [limit],
        ).fetchall()
        return tuple(
            RankedLabel(str(FeatureId(sae_id, feature)), *rest) for sae_id, feature, *rest in rows
        )

    best = ranked("DESC", n)
    named = {label.feature for label in best}
    worst = [label for label in ranked("ASC", 2 * n) if label.feature not in named]
    return ExtremeLabels(best, tuple(worst[:n]))


def read_model_labels(connection: duckdb.DuckDBPyConnection, n: int = 8) -> tuple[ModelLabel, ...]:
    """Some labels that models wrote, one a feature, drawn by their ids: always the same."""
    rows = connection.execute(
        """
        SELECT sae_id, feature, text, model FROM (
            SELECT * FROM labels WHERE status = 'done' AND model IS NOT NULL
            QUALIFY row_number() OVER (
                PARTITION BY sae_id, feature ORDER BY generation DESC, md5(label_id)) = 1
        ) ORDER BY md5(label_id) LIMIT $n
        """,
        {"n": n},
    ).fetchall()
    return tuple(
        ModelLabel(str(FeatureId(sae_id, number)), *rest) for sae_id, number, *rest in rows
    )


def _splits(connection: duckdb.DuckDBPyConnection) -> tuple[SplitStatus, ...]:
    rows = connection.execute(
        """
        WITH whole AS (
            SELECT split, max(n_tokens) AS n_tokens, max(n_windows) AS n_windows
            FROM feature_splits GROUP BY split
        ),
        kept AS (
            SELECT split, count(*) AS n_windows, count(DISTINCT doc_id) AS n_documents
            FROM windows GROUP BY split
        )
        SELECT split, coalesce(w.n_tokens, 0), coalesce(w.n_windows, 0),
            coalesce(k.n_windows, 0), coalesce(k.n_documents, 0)
        FROM whole w FULL JOIN kept k USING (split)
        """
    ).fetchall()
    return tuple(SplitStatus(*row) for row in sorted(rows, key=lambda row: SPLITS.index(row[0])))


def _saes(connection: duckdb.DuckDBPyConnection) -> tuple[SaeStatus, ...]:
    # All columns, by name: a run of an older version lacks some.
    rows = read_rows(
        connection,
        """
        WITH counted AS (
            SELECT sae_id, count(*) AS n_features,
                count(*) FILTER (n_active > 0) AS n_alive,
                avg(density) FILTER (n_active > 0) AS density
            FROM features GROUP BY sae_id
        ),
        labelled AS (SELECT sae_id, count(*) AS n FROM current_labels GROUP BY sae_id)
        SELECT s.*, c.density, coalesce(c.n_features, 0) AS n_features,
            coalesce(c.n_alive, 0) AS n_alive, coalesce(l.n, 0) AS n_labelled
        FROM saes s LEFT JOIN counted c USING (sae_id) LEFT JOIN labelled l USING (sae_id)
        ORDER BY s.model, s.layer, s.sae_id
        """,
        [],
    )
    failures = _counts_by_sae(
        connection,
        """
        SELECT sae_id, reason, count(*) FROM (
            SELECT sae_id, feature, min(coalesce(reason, 'no reason given')) AS reason
            FROM labels WHERE status = 'failed' GROUP BY sae_id, feature
        ) ANTI JOIN current_labels USING (sae_id, feature)
        GROUP BY sae_id, reason ORDER BY count(*) DESC, reason
        """,
    )
    scores = _scores(connection)
    columns = ("sae_id", "model", "site", "layer", "width", "mean_l0", "fvu", "density")
    counts = ("n_features", "n_alive", "n_labelled")
    return tuple(
        SaeStatus(
            **{name: row[name] for name in (*columns, *counts)},
            loss=_loss(row),
            failures=failures.get(row["sae_id"], {}),
            scores=scores.get(row["sae_id"], _NO_SCORES),
        )
        for row in rows
    )


def _loss(row: dict[str, Any]) -> LossStatus | None:
    own, spliced, zeroed = (row.get(f"loss{which}") for which in ("", "_spliced", "_zeroed"))
    if own is None or spliced is None or zeroed is None:
        return None
    return LossStatus(
        own=own,
        spliced=spliced,
        zeroed=zeroed,
        increase=spliced - own,
        recovered=(zeroed - spliced) / (zeroed - own) if zeroed > own else None,
        n_tokens=row["n_loss_tokens"],
    )


_QUANTILES = ("low", "quarter", "median", "three_quarters", "high")
_NO_SCORES = ScoreSummary(0, None, None, None, None, None, (0,) * SCORE_BINS, 0, 0, {})


def _scores(connection: duckdb.DuckDBPyConnection) -> dict[str, ScoreSummary]:
    undefined = _counts_by_sae(
        connection,
        """
        SELECT sae_id, score_reason, count(*) FROM current_labels
        WHERE score IS NULL AND score_reason IS NOT NULL
        GROUP BY sae_id, score_reason ORDER BY count(*) DESC, score_reason
        """,
    )
    bins = connection.execute(
        """
        SELECT sae_id, least(floor(score * $1)::INTEGER, $1 - 1) AS bin, count(*)
        FROM current_labels WHERE score >= 0 GROUP BY sae_id, bin
        """,
        [SCORE_BINS],
    ).fetchall()
    histograms: dict[str, list[int]] = {}
    for sae_id, place, count in bins:
        histograms.setdefault(sae_id, [0] * SCORE_BINS)[place] = count
    rows = connection.execute(
        """
        SELECT sae_id, count(score), quantile_cont(score, [0, 0.25, 0.5, 0.75, 1]),
            count(*) FILTER (score < 0), count(score_stale_since)
        FROM current_labels GROUP BY sae_id
        """
    ).fetchall()
    return {
        sae_id: ScoreSummary(
            n,
            **dict(zip(_QUANTILES, quantiles or [None] * 5, strict=True)),
            histogram=tuple(histograms.get(sae_id, [0] * SCORE_BINS)),
            n_negative=n_negative,
            n_stale=n_stale,
            undefined=undefined.get(sae_id, {}),
        )
        for sae_id, n, quantiles, n_negative, n_stale in rows
    }


def _counts_by_sae(connection: duckdb.DuckDBPyConnection, sql: str) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for sae_id, reason, count in connection.execute(sql).fetchall():
        counts.setdefault(sae_id, {})[reason] = count
    return counts
