"""Which features are to be labelled, why, and with which draws: from what is in the tables.

A feature is labelled where it has no label, where its contexts have changed since, where its
labels scored too low on `select`, and where only an older version of the explainer has seen it;
in that order. Whether contexts have changed only the explainer can say, who chooses what is
shown: here stands which labels newer text may have overtaken, and what those were shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import duckdb

from .facts import get_meta


class Why(StrEnum):
    """Why a feature is to be labelled; in the order in which it is done."""

    NO_LABEL = "no label"
    CHANGED = "other contexts"
    LOW = "low score"
    OLDER = "older version"


@dataclass(frozen=True, slots=True)
class Proposer:
    """Who proposes labels.

    Attributes:
        model: that an explainer asks; None where it asks none.
    """

    explainer: str
    prompt_version: str
    model: str | None = None


@dataclass(frozen=True, slots=True)
class LowScores:
    """What counts as too low.

    Attributes:
        below: a headline on `select` below this, of the best label.
        candidates: labels of one generation at most; no more are tried.
    """

    below: float
    candidates: int


@dataclass(frozen=True, slots=True)
class Standing:
    """What a proposer owes a feature.

    Attributes:
        why: None where it owes nothing, as far as the tables tell.
        may_have_changed: the text has grown since its label was made or last looked at.
    """

    sae_id: str
    feature: int
    why: Why | None
    may_have_changed: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """A feature's newest labels by one proposer.

    Attributes:
        draws: made in this generation.
        window_ids: that they were shown.
        has_dropped: contexts were left out because the model takes no longer prompt.
    """

    generation: int
    label_ids: tuple[str, ...]
    draws: frozenset[int]
    window_ids: frozenset[int]
    has_dropped: bool


def text_state(connection: duckdb.DuckDBPyConnection) -> str | None:
    """A name of the text as collected; None before any was."""
    return get_meta(connection, "merged_part")


# A feature's labels by one proposer, of the newest contexts only.
_NEWEST = """
    SELECT * FROM labels
    WHERE explainer = $explainer AND prompt_version = $version
        AND model IS NOT DISTINCT FROM $model
    QUALIFY generation = max(generation) OVER (PARTITION BY sae_id, feature)
"""


def standings(
    connection: duckdb.DuckDBPyConnection,
    proposer: Proposer,
    n_draws: int = 1,
    low: LowScores | None = None,
) -> list[Standing]:
    """What a proposer owes each feature, by SAE and feature; those that it owes nothing left out.

    Args:
        connection: to any state of the run.
        proposer: who.
        n_draws: how often a feature is labelled.
        low: what counts as too low; None: nothing does.
    """
    rows = connection.execute(
        f"""
        WITH newest AS ({_NEWEST}),
        by_feature AS (
            SELECT sae_id, feature, max(generation) AS generation, count(*) AS n,
                count(DISTINCT draw) FILTER (draw < $draws) AS n_draws,
                bool_and(text_state IS NOT DISTINCT FROM $state) AS is_checked,
                max(s.value) AS best,
                -- A label that is still to be compared may be the better one.
                bool_or(status = 'done' AND s.label_id IS NULL) AS is_open
            FROM newest LEFT JOIN (
                SELECT label_id, max(value) AS value FROM scores
                WHERE scorer = 'simulation' AND metric = 'correlation' AND split = 'select'
                GROUP BY label_id
            ) s USING (label_id)
            GROUP BY sae_id, feature
        ),
        older AS (
            SELECT DISTINCT sae_id, feature FROM labels
            WHERE explainer = $explainer AND prompt_version <> $version
                AND model IS NOT DISTINCT FROM $model
        ),
        found AS (
            SELECT f.sae_id, f.feature,
                CASE
                    WHEN b.feature IS NULL AND o.feature IS NULL THEN $no_label
                    WHEN b.feature IS NULL THEN $older
                    WHEN b.n_draws < $draws AND b.generation > 0 THEN $changed
                    WHEN b.n_draws < $draws THEN $no_label
                    WHEN b.best < $below AND NOT b.is_open AND b.n < $candidates THEN $low
                END AS why,
                b.n_draws >= $draws AND NOT b.is_checked AS may_have_changed
            FROM features f
            LEFT JOIN by_feature b USING (sae_id, feature)
            LEFT JOIN older o USING (sae_id, feature)
        )
        SELECT sae_id, feature, why, coalesce(may_have_changed, false) FROM found
        WHERE why IS NOT NULL OR may_have_changed ORDER BY sae_id, feature
        """,
        {
            **_parameters(proposer),
            "draws": n_draws,
            "state": text_state(connection),
            "below": None if low is None else low.below,
            "candidates": 0 if low is None else low.candidates,
            "no_label": Why.NO_LABEL,
            "changed": Why.CHANGED,
            "low": Why.LOW,
            "older": Why.OLDER,
        },
    ).fetchall()
    return [
        Standing(sae_id, feature, None if why is None else Why(why), changed)
        for sae_id, feature, why, changed in rows
    ]


def newest_shown(
    connection: duckdb.DuckDBPyConnection,
    proposer: Proposer,
    sae_id: str,
    features: Sequence[int],
) -> dict[int, Shown]:
    """What a proposer's newest labels of these features were shown, by feature."""
    rows = connection.execute(
        f"""
        SELECT feature, max(generation), list(DISTINCT label_id ORDER BY label_id),
            list(DISTINCT draw), list(DISTINCT window_id) FILTER (window_id IS NOT NULL),
            coalesce(bool_or(n_dropped_contexts > 0), false)
        FROM ({_NEWEST}) LEFT JOIN label_contexts USING (label_id)
        WHERE sae_id = $sae AND feature IN (SELECT unnest($features))
        GROUP BY feature
        """,
        {**_parameters(proposer), "sae": sae_id, "features": list(features)},
    ).fetchall()
    return {
        feature: Shown(
            generation, tuple(ids), frozenset(draws), frozenset(windows or ()), has_dropped
        )
        for feature, generation, ids, draws, windows, has_dropped in rows
    }


def wanted_draws(shown: Shown | None, why: Why, n_draws: int) -> tuple[int, Sequence[int]]:
    """The generation and the draws in which a feature is to be labelled.

    Args:
        shown: its newest labels; None where there are none.
        why: it is to be labelled.
        n_draws: how often a feature is labelled.
    """
    if shown is None:
        return 0, range(n_draws)
    if why == Why.LOW:
        return shown.generation, (max(shown.draws) + 1,)
    missing = [draw for draw in range(n_draws) if draw not in shown.draws]
    if why == Why.CHANGED and not missing:
        return shown.generation + 1, range(n_draws)
    # A run that died had begun it.
    return shown.generation, missing


def _parameters(proposer: Proposer) -> Mapping[str, str | None]:
    return {
        "explainer": proposer.explainer,
        "version": proposer.prompt_version,
        "model": proposer.model,
    }
