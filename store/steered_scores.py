"""Labels whose features are to be steered, the features that they are compared with, and on what.

And the scores of scorer `intervention` read back, whose `design` has what the model said.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .records import Score

if TYPE_CHECKING:
    import duckdb

INTERVENTION = "intervention"
"""Their scorer."""
PROMOTED = "promoted_tokens"

_DRAWN = """
    SELECT sae_id, feature, label_id FROM current_features WHERE label_id IS NOT NULL
    ORDER BY md5(sae_id || '/' || feature), sae_id, feature LIMIT $n
"""


@dataclass(frozen=True, slots=True)
class PromptWindow:
    """A window of the background, of which a model goes on from the first tokens."""

    window_id: int
    token_ids: tuple[int, ...]


def labels_to_steer(
    connection: duckdb.DuckDBPyConnection, n: int
) -> dict[str, list[tuple[int, str]]]:
    """The labels in force of n features drawn over all SAEs by their names, without those scored.

    Args:
        connection: to any published state of the run.
        n: how many features are drawn; the same are drawn again, and more features have the
            fewer among them.

    Returns:
        Per SAE, feature and label id.
    """
    rows = connection.execute(
        f"""
        SELECT sae_id, feature, label_id FROM ({_DRAWN}) ANTI JOIN (
            SELECT label_id FROM scores WHERE scorer = $scorer AND metric = $metric
        ) USING (label_id)
        ORDER BY ALL
        """,
        {"n": n, "scorer": INTERVENTION, "metric": PROMOTED},
    ).fetchall()
    return _by_sae(rows)


def labels_to_tell_apart(
    connection: duckdb.DuckDBPyConnection, judge: str
) -> dict[str, list[tuple[int, str]]]:
    """The labels in force whose features were steered, and of which a judge was not asked.

    Args:
        connection: to any published state of the run.
        judge: what the judge's scores are stored under.

    Returns:
        Per SAE, feature and label id.
    """
    rows = connection.execute(
        """
        SELECT c.sae_id, c.feature, c.label_id FROM current_features c
        SEMI JOIN (FROM scores WHERE scorer = $scorer AND metric = $metric) USING (label_id)
        ANTI JOIN (
            SELECT label_id FROM scores WHERE scorer = $scorer AND simulator = $judge
        ) USING (label_id)
        ORDER BY ALL
        """,
        {"scorer": INTERVENTION, "metric": PROMOTED, "judge": judge},
    ).fetchall()
    return _by_sae(rows)


def count_to_tell_apart(
    connection: duckdb.DuckDBPyConnection, n: int, judge: str
) -> tuple[int, int]:
    """Of n features drawn as in `labels_to_steer`: how many have a label, and lack a judge's score.

    Args:
        connection: to any published state of the run.
        n: how many are drawn.
        judge: what the judge's scores are stored under.
    """
    rows = connection.execute(
        f"""
        SELECT count(*), count(*) FILTER (label_id NOT IN (
            SELECT label_id FROM scores WHERE scorer = $scorer AND simulator = $judge
        )) FROM ({_DRAWN})
        """,
        {"n": n, "scorer": INTERVENTION, "judge": judge},
    ).fetchall()
    n_drawn, n_missing = rows[0]
    return n_drawn, n_missing


def read_promoted(
    connection: duckdb.DuckDBPyConnection, label_ids: Sequence[str]
) -> dict[str, Score]:
    """The scores of these labels by promoted tokens, with the outputs kept of them, by label id.

    Without figures: value and reason alone.
    """
    rows = connection.execute(
        """
        SELECT label_id, simulator, value, reason, n_windows, n_tokens, design, contexts_hash
        FROM scores WHERE scorer = $scorer AND metric = $metric
            AND label_id IN (SELECT unnest($ids))
        """,
        {"scorer": INTERVENTION, "metric": PROMOTED, "ids": list(label_ids)},
    ).fetchall()
    return {
        label_id: Score(
            label_id=label_id,
            scorer=INTERVENTION,
            simulator=simulator,
            metric=PROMOTED,
            split="score",
            value=value,
            reason=reason,
            n_windows=n_windows,
            n_tokens=n_tokens,
            design=json.loads(design),
            contexts_hash=contexts_hash,
        )
        for label_id, simulator, value, reason, n_windows, n_tokens, design, contexts_hash in rows
    }


def random_features(
    connection: duckdb.DuckDBPyConnection, sae_id: str, seed: int, n: int
) -> list[int]:
    """So many of the SAE's features that fire at all, drawn by the seed, in the order of the draw.

    More of them begin with the fewer.
    """
    rows = connection.execute(
        """
        SELECT feature FROM features WHERE sae_id = $sae AND n_active > 0
        ORDER BY md5($seed || '/' || sae_id || '/' || feature), feature LIMIT $n
        """,
        {"sae": sae_id, "seed": str(seed), "n": n},
    ).fetchall()
    return [feature for (feature,) in rows]


def near_by_direction(
    connection: duckdb.DuckDBPyConnection, sae_id: str, features: Sequence[int]
) -> dict[int, frozenset[int]]:
    """The features that are listed as near each of these by their decoder rows."""
    rows = connection.execute(
        """
        SELECT feature, list(neighbour) FROM neighbours
        WHERE sae_id = $sae AND kind = 'cosine' AND feature IN (SELECT unnest($features))
        GROUP BY feature
        """,
        {"sae": sae_id, "features": list(features)},
    ).fetchall()
    near = {feature: frozenset(neighbours) for feature, neighbours in rows}
    return {feature: near.get(feature, frozenset()) for feature in features}


def prompt_windows(
    connection: duckdb.DuckDBPyConnection, n: int, n_tokens: int
) -> list[PromptWindow]:
    """The first tokens of windows of the background of `score`, equally many of each.

    Args:
        connection: to any state of the run.
        n: of windows, those with the smallest hashes; no two begin alike.
        n_tokens: of each, or as many as the longest has.
    """
    rows = connection.execute(
        """
        WITH pool AS (
            SELECT window_id, token_hash, token_ids FROM windows
            WHERE is_background AND split = 'score'
        ),
        beginnings AS (
            SELECT window_id, token_hash, token_ids[1:$n_tokens] AS token_ids FROM pool
            WHERE len(token_ids) >= least($n_tokens, (SELECT max(len(token_ids)) FROM pool))
            QUALIFY row_number() OVER (
                PARTITION BY token_ids[1:$n_tokens] ORDER BY token_hash, window_id) = 1
        )
        SELECT window_id, token_ids FROM beginnings ORDER BY token_hash, window_id LIMIT $n
        """,
        {"n": n, "n_tokens": n_tokens},
    ).fetchall()
    return [PromptWindow(window_id, tuple(token_ids)) for window_id, token_ids in rows]


def _by_sae(rows: Sequence[tuple[str, int, str]]) -> dict[str, list[tuple[int, str]]]:
    found: dict[str, list[tuple[int, str]]] = {}
    for sae_id, feature, label_id in rows:
        found.setdefault(sae_id, []).append((feature, label_id))
    return found
