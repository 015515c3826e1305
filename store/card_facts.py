"""What a data card says of the labels in an export beyond `status.py`: by whom, and how spread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .export_choice import read_chosen_saes
from .null_ladder import SHUFFLED
from .runs import read_last_config

if TYPE_CHECKING:
    import duckdb

SPREAD_BINS = 40
"""Bins of a score from -1 to 1."""


@dataclass(frozen=True, slots=True)
class LabelMaker:
    """What one explainer with one prompt and one model proposed for the features of an export.

    Attributes:
        n_exported: of its labels, how many the export has.
        n_done: that came to a label at all.
        n_failed: that came to nothing.
    """

    source: str
    explainer: str
    prompt_version: str | None
    model: str | None
    n_exported: int
    n_done: int
    n_failed: int


@dataclass(frozen=True, slots=True)
class ScoreSpread:
    """The headlines on `score` of one explainer's labels by one simulator.

    Attributes:
        own, null, shuffled: how many lie in each of `SPREAD_BINS` bins from -1 to 1: the labels',
            the token lookup's on the same windows, and other features' labels'.
    """

    explainer: str
    simulator: str
    own: tuple[int, ...]
    null: tuple[int, ...]
    shuffled: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CardFacts:
    """Of the features and labels that `choose` chose.

    Attributes:
        sae_ids: the SAEs that the features are of.
        failures: labels that came to nothing, by reason.
        undefined: labels of the export whose headline is undefined, by reason.
        n_unscored: labels of the export that were not scored.
        n_stale: headlines that newer text has overtaken.
        n_saw_score: labels by people who had looked at contexts of `score`.
        config: the run's configuration as resolved, the latest; empty where none is recorded.
        last_change: when the run was last worked on, as a date; None where that is not known.
    """

    sae_ids: tuple[str, ...]
    makers: tuple[LabelMaker, ...]
    spreads: tuple[ScoreSpread, ...]
    failures: Mapping[str, int]
    undefined: Mapping[str, int]
    n_unscored: int
    n_stale: int
    n_saw_score: int
    config: Mapping[str, Any]
    last_change: str | None


def read_card_facts(connection: duckdb.DuckDBPyConnection) -> CardFacts:
    """What a data card says.

    Args:
        connection: that `choose` was given.
    """
    makers = connection.execute(
        """
        SELECT l.source, explainer, prompt_version, model, count(c.label_id),
            count_if(status = 'done'), count_if(status = 'failed')
        FROM (FROM labels SEMI JOIN chosen_features USING (sae_id, feature)) l
        LEFT JOIN chosen_labels c USING (label_id)
        GROUP BY ALL
        ORDER BY count(c.label_id) DESC, l.source, explainer, prompt_version, model
        """
    ).fetchall()
    (counts,) = connection.execute(
        """
        SELECT count_if(score IS NULL AND score_reason IS NULL AND status = 'done'),
            count(stale_since), count_if(saw_score)
        FROM chosen_labels JOIN labels USING (label_id)
        LEFT JOIN (
            SELECT label_id, simulator, stale_since FROM scores
            WHERE scorer = 'simulation' AND metric = 'correlation' AND split = 'score'
        ) USING (label_id, simulator)
        """
    ).fetchall()
    ((last_change,),) = connection.execute(
        """
        SELECT strftime(max(coalesce(finished_at, started_at)) AT TIME ZONE 'UTC', '%Y-%m-%d')
        FROM runs
        """
    ).fetchall()
    return CardFacts(
        sae_ids=tuple(sae.sae_id for sae in read_chosen_saes(connection)),
        makers=tuple(LabelMaker(*row) for row in makers),
        spreads=_spreads(connection),
        failures=_by_reason(
            connection,
            "labels SEMI JOIN chosen_features USING (sae_id, feature) WHERE status = 'failed'",
            "reason",
        ),
        undefined=_by_reason(
            connection, "chosen_labels WHERE score IS NULL AND score_reason IS NOT NULL",
            "score_reason",
        ),
        n_unscored=counts[0],
        n_stale=counts[1],
        n_saw_score=counts[2],
        config=read_last_config(connection),
        last_change=last_change,
    )  # fmt: skip


def _by_reason(connection: duckdb.DuckDBPyConnection, rows: str, reason: str) -> dict[str, int]:
    found = connection.execute(
        f"""
        SELECT coalesce({reason}, 'no reason given') AS given, count(*) FROM {rows}
        GROUP BY given ORDER BY count(*) DESC, given
        """
    ).fetchall()
    return dict(found)


def _spreads(connection: duckdb.DuckDBPyConnection) -> tuple[ScoreSpread, ...]:
    rows = connection.execute(
        f"""
        WITH headlines AS (
            FROM headlines WHERE sae_id IN (SELECT DISTINCT sae_id FROM chosen_features)
        ),
        each_value AS (
            SELECT explainer, simulator, if(scorer = '{SHUFFLED}', 'shuffled', 'own') AS what, value
            FROM headlines WHERE value IS NOT NULL
            UNION ALL
            SELECT explainer, simulator, 'null', null_value FROM headlines
            WHERE scorer = 'simulation' AND null_value IS NOT NULL AND lift IS NOT NULL
        )
        SELECT explainer, simulator, what,
            greatest(0, least({SPREAD_BINS} - 1, floor((value + 1) * {SPREAD_BINS} / 2)::INTEGER)),
            count(*)
        FROM each_value GROUP BY ALL
        """
    ).fetchall()
    bins: dict[tuple[str, str], dict[str, list[int]]] = {}
    for explainer, simulator, what, at, n in rows:
        of = bins.setdefault((explainer, simulator), {})
        of.setdefault(what, [0] * SPREAD_BINS)[at] = n
    none = [0] * SPREAD_BINS
    found = [
        ScoreSpread(*who, *(tuple(of.get(what, none)) for what in ("own", "null", "shuffled")))
        for who, of in bins.items()
        if "own" in of
    ]
    return tuple(sorted(found, key=lambda each: (each.explainer, each.simulator)))
