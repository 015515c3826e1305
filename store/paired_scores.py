"""Scores of two sides for the same features, side by side: as they lie in the tables.

A *side* is a set of labels with something in common, an explainer, a model, an author; or the
labels in force of a run. It has one figure a feature under one simulator. On `score` that is the
figure of the label which the simulator finds best on `select`, since nothing may be chosen by
what is reported. On `select` it is the mean over all candidates: the figure of the best of them
is too high by having been chosen there, the more so the more candidates there are.

How sides are set beside each other is in `side_pairs.py`, what their differences come to in
`evaluate/paired_difference.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa


class SideKey(StrEnum):
    """What labels of one side have in common, as `--by` takes it."""

    explainer = "explainer"
    model = "model"
    prompt_version = "prompt_version"
    source = "source"
    author = "author"


# Versions are numbered by each explainer.
_KEYS = {SideKey.prompt_version: "explainer || ' ' || prompt_version"}


@dataclass(frozen=True, slots=True)
class Figure:
    """Which number of a label is compared.

    Attributes:
        scorer, metric: of the table `scores`.
        simulator: by whom.
    """

    scorer: str
    metric: str
    simulator: str
    split: str

    def as_dict(self) -> dict[str, str]:
        """For a query."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True, slots=True)
class ScoredSide:
    """A side that has such figures.

    Attributes:
        name: None for the labels to which what is compared does not apply.
        n: how many figures are defined.
    """

    figure: Figure
    name: str | None
    n: int


def key_of(by: SideKey | None) -> str:
    """What says which side a label is on, in SQL; of none all labels are on one."""
    return "NULL::VARCHAR" if by is None else _KEYS.get(by, by.value)


def read_scored_sides(
    connection: duckdb.DuckDBPyConnection, by: SideKey, scorer: str, metric: str
) -> list[ScoredSide]:
    """Which sides have how many figures under which simulator and split, by all of these."""
    rows = connection.execute(
        f"""
        SELECT s.scorer, s.metric, s.simulator, s.split::VARCHAR, {key_of(by)} AS side,
            count(s.value)
        FROM scores s JOIN labels USING (label_id)
        WHERE s.scorer = $scorer AND s.metric = $metric AND labels.status <> 'withdrawn'
        GROUP BY ALL ORDER BY s.simulator, s.split::VARCHAR, side
        """,
        {"scorer": scorer, "metric": metric},
    ).fetchall()
    return [ScoredSide(Figure(*row[:4]), *row[4:]) for row in rows]


def read_metrics(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """What can be compared, as `scorer/metric`; the most frequent first."""
    rows = connection.execute(
        """
        SELECT scorer || '/' || metric FROM scores
        WHERE scorer <> 'shuffled_label' AND value IS NOT NULL
        GROUP BY ALL ORDER BY metric = 'correlation' DESC, count(*) DESC, 1
        """
    ).fetchall()
    return [name for (name,) in rows]


# What a figure may be: `failed`, no label came of it; `unscored`, nobody has computed it;
# `undefined`, with its reason; `scored`.
_STATE = """
    CASE WHEN status <> 'done' THEN 'failed' WHEN scored_id IS NULL THEN 'unscored'
        WHEN value IS NULL THEN 'undefined' ELSE 'scored' END
"""
_FIGURES = """
    SELECT label_id AS scored_id, value, reason AS why_undefined, ci_low, ci_high,
        lift, lift_ci_low, lift_ci_high, contexts_hash
    FROM scores
    WHERE scorer = $scorer AND metric = $metric AND simulator = $simulator AND split = $split
"""
_COLUMNS = f"""
    sae_id, feature, label_id, {_STATE} AS state,
    CASE WHEN status <> 'done' THEN reason ELSE why_undefined END AS reason,
    value, ci_low, ci_high, lift, lift_ci_low, lift_ci_high, contexts_hash
"""


def read_side(
    connection: duckdb.DuckDBPyConnection, by: SideKey, name: str | None, figure: Figure
) -> pa.Table:
    """A side's figures: a row for each feature that it has a label for, or has failed to label.

    On `select` a feature with several candidates has their mean, and no interval.
    """
    values = {**figure.as_dict(), "name": name}
    mine = f"""
        mine AS (
            SELECT label_id, sae_id, feature, status, reason, source, created_at, generation
            FROM labels WHERE {key_of(by)} IS NOT DISTINCT FROM $name AND status <> 'withdrawn'
        ),
        figures AS ({_FIGURES})
    """
    if figure.split == "select":
        return connection.execute(
            f"""
            WITH {mine},
            newest AS (
                FROM mine LEFT JOIN figures ON label_id = scored_id
                QUALIFY status = 'failed'
                    OR generation = max(generation) OVER (PARTITION BY sae_id, feature)
            ),
            by_feature AS (
                SELECT sae_id, feature, arg_max(label_id, coalesce(value, -2)) AS label_id,
                    CASE WHEN bool_or(status = 'done') THEN 'done' ELSE 'failed' END AS status,
                    min(reason) AS reason, min(scored_id) AS scored_id, avg(value) AS value,
                    min(why_undefined) AS why_undefined, count(value) AS n,
                    count(DISTINCT contexts_hash) AS n_hashes, min(contexts_hash) AS one_hash,
                    {_only_one("ci_low", "ci_high", "lift", "lift_ci_low", "lift_ci_high")}
                FROM newest GROUP BY sae_id, feature
            )
            SELECT {_COLUMNS.replace("contexts_hash", "CASE WHEN n_hashes = 1 THEN one_hash END")}
                AS contexts_hash, n AS n_candidates
            FROM by_feature
            """,
            values,
        ).to_arrow_table()
    return connection.execute(
        f"""
        WITH {mine},
        chosen_by AS (
            SELECT label_id, value AS found_before FROM scores
            WHERE scorer = 'simulation' AND metric = 'correlation' AND split = 'select'
                AND simulator = $simulator
        )
        SELECT {_COLUMNS}, 1 AS n_candidates
        FROM mine LEFT JOIN figures ON label_id = scored_id LEFT JOIN chosen_by USING (label_id)
        -- Of a person's labels the last, as when they are scored.
        QUALIFY row_number() OVER (
            PARTITION BY sae_id, feature
            ORDER BY (status = 'done') DESC,
                CASE WHEN source = 'human' THEN created_at END DESC NULLS LAST,
                (scored_id IS NOT NULL) DESC, found_before DESC NULLS LAST, generation DESC,
                label_id
        ) = 1
        """,
        values,
    ).to_arrow_table()


def _only_one(*columns: str) -> str:
    return ", ".join(f"CASE WHEN count(value) = 1 THEN max({it}) END AS {it}" for it in columns)


def read_side_in_force(
    connection: duckdb.DuckDBPyConnection, figure: Figure, sae_ids: Sequence[str]
) -> pa.Table:
    """The figures of the labels in force: a row for each feature that was tried."""
    return connection.execute(
        f"""
        WITH figures AS ({_FIGURES}),
        mine AS (
            SELECT sae_id, feature, label_id, text_key, failure AS reason,
                CASE WHEN label_id IS NULL THEN 'failed' ELSE 'done' END AS status
            FROM current_features
            WHERE sae_id IN (SELECT unnest($saes)) AND (label_id IS NOT NULL OR n_failed > 0)
        )
        SELECT {_COLUMNS}, 1 AS n_candidates, text_key
        FROM mine LEFT JOIN figures ON label_id = scored_id
        """,
        {**figure.as_dict(), "saes": list(sae_ids)},
    ).to_arrow_table()


def read_scored_in_force(
    connection: duckdb.DuckDBPyConnection, scorer: str, metric: str
) -> dict[str, int]:
    """How many labels in force each simulator has scored on `score`, by its name."""
    rows = connection.execute(
        """
        SELECT s.simulator, count(s.value) FROM scores s
        SEMI JOIN current_features USING (label_id)
        WHERE s.scorer = $scorer AND s.metric = $metric AND s.split = 'score'
        GROUP BY ALL ORDER BY ALL
        """,
        {"scorer": scorer, "metric": metric},
    ).fetchall()
    return dict(rows)
