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
        n_lifts: how many of them have one of the token lookup beside them.
    """

    figure: Figure
    name: str | None
    n: int
    n_lifts: int


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
            count(s.value), count(s.lift)
        FROM scores s JOIN labels USING (label_id)
        WHERE s.scorer = $scorer AND s.metric = $metric AND labels.status <> 'withdrawn'
        GROUP BY ALL ORDER BY s.simulator, s.split::VARCHAR, side
        """,
        {"scorer": scorer, "metric": metric},
    ).fetchall()
    return [ScoredSide(Figure(*row[:4]), *row[4:]) for row in rows]


def read_metrics(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """What can be compared, as `scorer/metric`; the headline first."""
    rows = connection.execute(
        """
        SELECT scorer || '/' || metric FROM scores
        WHERE scorer <> 'shuffled_label' AND value IS NOT NULL
        GROUP BY scorer, metric ORDER BY metric = 'correlation' DESC, scorer = 'simulation' DESC, 1
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
    return connection.sql(
        f"""
        WITH mine AS (
            FROM (
                SELECT label_id, sae_id, feature, status, reason, source, created_at,
                    generation, hash(explainer, prompt_version, model) AS proposer
                FROM labels
                WHERE {key_of(by)} IS NOT DISTINCT FROM $name AND status <> 'withdrawn'
            ) LEFT JOIN ({_FIGURES}) ON label_id = scored_id
        ),
        -- Most features have one label: of a million, putting all in order takes six times as long.
        several AS (SELECT sae_id, feature FROM mine GROUP BY ALL HAVING count(*) > 1),
        candidates AS (FROM mine SEMI JOIN several USING (sae_id, feature)),
        one_each AS (
            SELECT *, 1 AS n_candidates FROM mine ANTI JOIN several USING (sae_id, feature)
            UNION ALL BY NAME {_MEAN if figure.split == "select" else _CHOSEN}
        )
        SELECT {_COLUMNS}, n_candidates FROM one_each
        """,
        params={**figure.as_dict(), "name": name},
    ).to_arrow_table()


# Of a feature's candidates the one that was scored: the best on `select`, as it was chosen then; of
# a person's labels the last.
_CHOSEN = """
    SELECT c.*, 1 AS n_candidates FROM candidates c LEFT JOIN (
        SELECT label_id, value AS found_before FROM scores
        WHERE scorer = 'simulation' AND metric = 'correlation' AND split = 'select'
            AND simulator = $simulator
    ) USING (label_id)
    QUALIFY row_number() OVER (
        PARTITION BY sae_id, feature
        ORDER BY (status = 'done') DESC,
            CASE WHEN source = 'human' THEN created_at END DESC NULLS LAST,
            (scored_id IS NOT NULL) DESC, found_before DESC NULLS LAST, generation DESC, label_id
    ) = 1
"""
# The mean of the candidates that were made of the newest contexts.
_ONLY_ONE = ", ".join(
    f"CASE WHEN count(value) = 1 THEN any_value({it}) FILTER (value IS NOT NULL) END AS {it}"
    for it in ("ci_low", "ci_high", "lift", "lift_ci_low", "lift_ci_high")
)
_MEAN = f"""
    SELECT sae_id, feature, arg_max(label_id, coalesce(value, -2)) AS label_id,
        CASE WHEN bool_or(status = 'done') THEN 'done' ELSE 'failed' END AS status,
        min(reason) AS reason, min(scored_id) FILTER (status = 'done') AS scored_id,
        min(why_undefined) FILTER (status = 'done') AS why_undefined,
        avg(value) AS value, {_ONLY_ONE},
        CASE WHEN count(DISTINCT contexts_hash) = 1 THEN min(contexts_hash) END AS contexts_hash,
        greatest(count(value), 1) AS n_candidates
    FROM (
        FROM candidates QUALIFY status <> 'done' OR generation = max(generation)
            FILTER (status = 'done') OVER (PARTITION BY sae_id, feature, proposer)
    )
    GROUP BY sae_id, feature
"""


def read_side_in_force(
    connection: duckdb.DuckDBPyConnection, figure: Figure, sae_ids: Sequence[str]
) -> pa.Table:
    """The figures of the labels in force: a row for each feature that was tried."""
    return connection.sql(
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
        params={**figure.as_dict(), "saes": list(sae_ids)},
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
