"""Scores and simulations as parts, and which labels still need a score."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from .facts import REVISION, set_meta, transaction
from .null_ladder import SHUFFLED
from .records import Score, Simulation, content_hash
from .simulations import simulations_table

_SCORES = pa.schema(
    {
        **dict.fromkeys(("label_id", "scorer", "simulator", "metric", "split"), pa.string()),
        "value": pa.float64(),
        "reason": pa.string(),
        **dict.fromkeys(
            ("ci_low", "ci_high", "null_value", "lift", "lift_ci_low", "lift_ci_high"),
            pa.float64(),
        ),
        "lift_reason": pa.string(),
        "n_windows": pa.int64(),
        "n_tokens": pa.int64(),
        "design": pa.string(),
        "contexts_hash": pa.string(),
        "run_id": pa.string(),
    }
)


def score_tables(
    scores: Iterable[Score], simulations: Iterable[Simulation], run_id: str
) -> dict[str, pa.Table]:
    """The tables of a part that holds these scores and what they were computed from."""
    rows = [
        {
            **{name: getattr(score, name, None) for name in _SCORES.names},
            "design": json.dumps(score.design, allow_nan=False, sort_keys=True),
            "run_id": run_id,
        }
        for score in scores
    ]
    return {
        "scores": pa.Table.from_pylist(rows, _SCORES),
        "simulations": simulations_table(list(simulations)),
    }


def unscored_features(
    connection: duckdb.DuckDBPyConnection, explainer: str, simulator: str, split: str
) -> dict[str, list[int]]:
    """Per SAE, the features of which the simulator has not scored this explainer's newest label."""
    rows = connection.sql(
        """
        SELECT DISTINCT sae_id, feature FROM (
            SELECT * FROM labels WHERE explainer = $explainer
            QUALIFY generation = max(generation) OVER (
                PARTITION BY sae_id, feature, prompt_version, model)
        ) ANTI JOIN (
            SELECT label_id FROM scores
            WHERE simulator = $simulator AND split = $split AND stale_since IS NULL
        ) USING (label_id)
        ORDER BY ALL
        """,
        params={"explainer": explainer, "simulator": simulator, "split": split},
    ).fetchall()
    missing: dict[str, list[int]] = {}
    for sae_id, feature in rows:
        missing.setdefault(sae_id, []).append(feature)
    return missing


def rivals_to_select_from(
    connection: duckdb.DuckDBPyConnection,
    simulator: str,
    without: Sequence[str],
    at_least: int = 2,
    again: bool = False,
) -> dict[str, list[tuple[int, str]]]:
    """The labels that a simulator must still score on `select` before one of them is chosen.

    Args:
        connection: to any state of the run.
        simulator: what its scores are stored under.
        without: explainers whose labels it does not judge.
        at_least: only features with so many labels.
        again: those too whose scores newer text has overtaken.

    Returns:
        Per SAE, feature and label id. What people wrote is in force whatever it scores, and is not
        among them.
    """
    rows = connection.sql(
        """
        SELECT sae_id, feature, label_id FROM (
            SELECT * FROM labels
            WHERE status = 'done' AND source <> 'human'
                AND explainer NOT IN (SELECT unnest($without))
            QUALIFY count(*) OVER (PARTITION BY sae_id, feature) >= $at_least
        ) ANTI JOIN (
            SELECT label_id FROM scores WHERE simulator = $simulator AND split = 'select'
                AND NOT ($again AND stale_since IS NOT NULL)
        ) USING (label_id)
        ORDER BY ALL
        """,
        params={
            "simulator": simulator,
            "without": list(without),
            "at_least": at_least,
            "again": again,
        },
    ).fetchall()
    return _by_sae(rows)


def chosen_to_score(
    connection: duckdb.DuckDBPyConnection,
    simulator: str,
    without: Sequence[str],
    scorer: str = "simulation",
    asked_as: str | None = None,
    again: bool = False,
) -> dict[str, list[tuple[int, str]]]:
    """The labels that a simulator has still to score on `score`: of candidates the chosen one.

    Candidates are an explainer's labels for one feature, by one model and one version of its
    prompts. Chosen is the one that the simulator scores highest on `select`; a feature of which
    all have failed has one of the failures here. Of a person's labels it is the last, if it was
    not taken back.

    Args:
        connection: to any state of the run.
        simulator: what its scores are stored under.
        without: explainers whose labels it does not judge.
        scorer: whose scores are missing.
        asked_as: what those are stored under, if not under the simulator's name.
        again: labels count too whose scores newer text has overtaken.

    Returns:
        Per SAE, feature and label id.
    """
    rows = connection.sql(
        """
        SELECT sae_id, feature, label_id FROM (
            SELECT l.* FROM labels l LEFT JOIN (
                SELECT label_id, value FROM scores
                WHERE scorer = 'simulation' AND metric = 'correlation' AND split = 'select'
                    AND simulator = $simulator
            ) s USING (label_id)
            WHERE l.explainer NOT IN (SELECT unnest($without)) AND l.status <> 'withdrawn'
            QUALIFY row_number() OVER (
                PARTITION BY l.sae_id, l.feature, l.explainer, l.prompt_version, l.model, l.author
                ORDER BY (l.status = 'done') DESC,
                    CASE WHEN l.source = 'human' THEN l.created_at END DESC NULLS LAST,
                    s.value DESC NULLS LAST, l.generation DESC, l.label_id
            ) = 1
        ) ANTI JOIN (
            SELECT label_id FROM scores
            WHERE simulator = $asked_as AND split = 'score' AND scorer = $scorer
                AND NOT ($again AND stale_since IS NOT NULL)
        ) USING (label_id)
        ORDER BY ALL
        """,
        params={
            "simulator": simulator,
            "without": list(without),
            "scorer": scorer,
            "asked_as": asked_as or simulator,
            "again": again,
        },
    ).fetchall()
    return _by_sae(rows)


def labels_to_shuffle(
    connection: duckdb.DuckDBPyConnection, explainer: str, n: int
) -> frozenset[str]:
    """So many of an explainer's newest labels, drawn by their ids."""
    rows = connection.execute(
        """
        SELECT label_id FROM (
            SELECT * FROM labels WHERE explainer = $explainer
            QUALIFY generation = max(generation) OVER (
                PARTITION BY sae_id, feature, prompt_version, model)
        ) WHERE status = 'done' ORDER BY md5(label_id) LIMIT $n
        """,
        {"explainer": explainer, "n": n},
    ).fetchall()
    return frozenset(label_id for (label_id,) in rows)


@dataclass(frozen=True, slots=True)
class ShuffledLabel:
    """A label whose feature is to be simulated under another feature's label."""

    label_id: str
    sae_id: str
    feature: int
    other_feature: int
    other_text: str


def shuffled_labels(
    connection: duckdb.DuckDBPyConnection, simulator: str, n: int
) -> dict[str, ShuffledLabel]:
    """Those of a sample that a simulator has scored under its own label only, by label id.

    The sample is drawn from the labels that it has scored, by their ids. Each gets the label of the
    next in that order, of the same SAE and explainer, unless it says the same.
    """
    rows = connection.execute(
        """
        WITH scored AS (
            SELECT l.*, md5(l.label_id) AS key FROM labels l SEMI JOIN (
                FROM scores WHERE simulator = $simulator AND scorer = 'simulation'
                    AND split = 'score' AND metric = 'correlation' AND value IS NOT NULL
            ) USING (label_id)
        ),
        paired AS (
            SELECT label_id, sae_id, feature, text,
                coalesce(lead(feature) OVER near, first_value(feature) OVER near) AS other,
                coalesce(lead(text) OVER near, first_value(text) OVER near) AS other_text,
                row_number() OVER (ORDER BY key) AS place
            FROM scored WINDOW near AS (PARTITION BY sae_id, explainer ORDER BY key)
        )
        SELECT label_id, sae_id, feature, other, other_text FROM paired ANTI JOIN (
            SELECT label_id FROM scores WHERE simulator = $simulator AND scorer = $shuffled
        ) USING (label_id)
        WHERE place <= $n AND other <> feature AND other_text <> text
        ORDER BY sae_id, feature
        """,
        {"simulator": simulator, "n": n, "shuffled": SHUFFLED},
    ).fetchall()
    return {row[0]: ShuffledLabel(*row) for row in rows}


def forget_unrated(
    connection: duckdb.DuckDBPyConnection, simulators: Sequence[str], reason: str
) -> int:
    """Removes judges' scores of labels of which windows failed for such a reason; how many labels.

    Of second opinions the scores say which reasons there were.
    """
    found = connection.execute(
        """
        SELECT DISTINCT simulator, label_id FROM simulations
        WHERE simulator IN (SELECT unnest($simulators)) AND status = 'failed'
            AND contains(reason, $reason)
        UNION SELECT simulator, label_id FROM scores
        WHERE simulator IN (SELECT unnest($simulators))
            AND scorer NOT IN ('simulation', $shuffled)
            AND contains(CAST(design AS VARCHAR), $reason)
        """,
        {"simulators": list(simulators), "reason": reason, "shuffled": SHUFFLED},
    ).fetchall()
    if found:
        with transaction(connection):
            for table in ("scores", "simulations"):
                connection.executemany(
                    f"DELETE FROM {table} WHERE simulator = ? AND label_id = ?", found
                )
            set_meta(connection, REVISION, content_hash([list(each) for each in found]))
    return len({label_id for _, label_id in found})


def count_scored_labels(
    connection: duckdb.DuckDBPyConnection, simulators: Sequence[str], split: str
) -> int:
    """Labels that these simulators have scored on the split, undefined scores included.

    A label that two of them have scored counts twice.
    """
    rows = connection.execute(
        "SELECT count(DISTINCT (label_id, simulator)) FROM scores "
        "WHERE scorer = 'simulation' AND split = ? AND simulator IN (SELECT unnest(?))",
        [split, list(simulators)],
    ).fetchall()
    return int(rows[0][0])


def _by_sae(rows: Iterable[tuple[str, int, str]]) -> dict[str, list[tuple[int, str]]]:
    found: dict[str, list[tuple[int, str]]] = {}
    for sae_id, feature, label_id in rows:
        found.setdefault(sae_id, []).append((feature, label_id))
    return found
