"""Features found by what their labels say: filtered, ranked by text and meaning, brought together.

The two rankings are fused by reciprocal rank (Cormack, Clarke & Büttcher, Reciprocal Rank Fusion
outperforms Condorcet and individual Rank Learning Methods, SIGIR 2009): BM25 and cosines have no
scale in common, and ranks need none. Left out: where a query's vector comes from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import UserMistake
from .feature_list import ChosenLabels, FeatureQuery
from .label_vectors import QueryVector, rank_by_meaning
from .text_ranking import TextMatch, text_ranking

if TYPE_CHECKING:
    import duckdb

# So many of each ranking are fused. One that is 1,001st in both would come behind all that are
# among the first 470 of either.
DEPTH = 1000
# The constant of the paper, section 3; it is not sensitive.
_K = 60
_LISTED = 4


@dataclass(frozen=True, slots=True)
class Hit:
    """A feature that was found.

    Attributes:
        relevance: sum of the reciprocal ranks; it has no unit.
        text_rank, meaning_rank: its place in each ranking, from 1; None: not among the first.
        cosine: of its label's vector and the query's.
    """

    place: int
    relevance: float
    text_rank: int | None
    meaning_rank: int | None
    cosine: float | None


@dataclass(frozen=True, slots=True)
class Found:
    """What a search came to.

    Attributes:
        hits: the best first.
        match: what of the text was looked for.
        n_text: how many labels match by text.
        n_chosen: labels in force that the filters let through.
        n_without_vector: of these, those that meaning was not compared of; None where none was.
    """

    hits: tuple[Hit, ...]
    match: TextMatch
    n_text: int
    n_chosen: int
    n_without_vector: int | None


def search_labels(
    connection: duckdb.DuckDBPyConnection,
    text: str,
    filters: FeatureQuery,
    vector: QueryVector | None = None,
) -> Found:
    """Searches the labels in force.

    Args:
        connection: to a published database of this version.
        text: what is looked for.
        filters: which features; their `text` and order do not count.
        vector: the text's, to be compared with those of labels; without, text alone ranks.
    """
    chosen = ChosenLabels.by(filters)
    n_chosen = chosen.count(connection)
    match, by_text, n_text = _rank_by_text(connection, text, chosen)
    by_meaning: Sequence[tuple[int, float]] = ()
    n_without = None
    if vector is not None:
        ranked = rank_by_meaning(connection, vector, DEPTH, chosen)
        by_meaning, n_without = ranked.places, n_chosen - ranked.n_compared
    return Found(fuse(by_text, by_meaning), match, n_text, n_chosen, n_without)


def require_filters(connection: duckdb.DuckDBPyConnection, filters: FeatureQuery) -> None:
    """Makes sure that labels are in force, and that the SAEs are there that a filter names.

    Raises:
        UserMistake: they are not.
    """
    ((n_labels,),) = connection.execute("SELECT count(label_id) FROM current_features").fetchall()
    if not n_labels:
        raise UserMistake(
            "There are no labels to search yet.",
            found="no label in force",
            mend="have them written with `scopenote explain RUN`",
        )
    saes = connection.execute("SELECT sae_id, site, layer FROM saes ORDER BY ALL").fetchall()
    if not any(
        sae_id.startswith(filters.sae)
        and filters.site in ("", site)
        and filters.layer in (None, layer)
        for sae_id, site, layer in saes
    ):
        asked = {"--sae": filters.sae, "--site": filters.site, "--layer": filters.layer}
        raise UserMistake(
            "The run has no such SAE.",
            where=" ".join(name for name, value in asked.items() if value not in ("", None)),
            found=", ".join(str(value) for value in asked.values() if value not in ("", None)),
            expected=", ".join(sae_id for sae_id, *_ in saes[:_LISTED])
            + (", …" if len(saes) > _LISTED else ""),
        )


def _rank_by_text(
    connection: duckdb.DuckDBPyConnection, text: str, chosen: ChosenLabels
) -> tuple[TextMatch, list[int], int]:
    ranking = text_ranking(connection, text)
    rows = connection.execute(
        f"""
        WITH ranked AS MATERIALIZED (
            SELECT place, relevance, score FROM ({ranking.sql}) JOIN ({chosen.sql}) USING (place)
        ),
        counted AS (SELECT count(*) AS n FROM ranked)
        SELECT place, n FROM ranked, counted
        ORDER BY relevance DESC, score DESC NULLS LAST, place LIMIT {DEPTH}
        """,
        {**ranking.parameters, **chosen.parameters},
    ).fetchall()
    return ranking.match, [place for place, _ in rows], rows[0][1] if rows else 0


def fuse(by_text: Sequence[int], by_meaning: Sequence[tuple[int, float]]) -> tuple[Hit, ...]:
    """Two rankings as one, the best first; of equals the one that text ranks higher.

    Args:
        by_text: places of features, the best first.
        by_meaning: the same with cosines.
    """
    text_rank = {place: rank for rank, place in enumerate(by_text, start=1)}
    meaning_rank = {place: rank for rank, (place, _) in enumerate(by_meaning, start=1)}
    cosine = dict(by_meaning)
    hits = [
        Hit(
            place,
            sum(1 / (_K + ranks[place]) for ranks in (text_rank, meaning_rank) if place in ranks),
            text_rank.get(place),
            meaning_rank.get(place),
            cosine.get(place),
        )
        for place in dict.fromkeys([*text_rank, *meaning_rank])
    ]
    # The sort is stable: those of the text come first.
    return tuple(sorted(hits, key=lambda hit: -hit.relevance))
