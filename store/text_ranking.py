"""Labels ranked by the words of a query: BM25 over `label_words`, or characters as they stand.

BM25 with two fields (Robertson & Zaragoza, The Probabilistic Relevance Framework, 2009, sections
3.4 and 3.6): the words of a label count `TEXT_WEIGHT` times, in frequency and in length. It is
computed exactly, over all labels that have a word of the query; how rare a word is, is a matter of
all labels in force, whatever is filtered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from .label_words import WHOLE, has_label_words, words_to_find

if TYPE_CHECKING:
    import duckdb

# What they are in most uses of BM25.
K1, B = 1.2, 0.75


class TextMatch(StrEnum):
    """What of a query is looked for in labels."""

    WORDS = "words"
    CHARACTERS = "characters"


@dataclass(frozen=True, slots=True)
class TextRanking:
    """How well labels match the text of a query, as a query of its own.

    Attributes:
        match: of what.
        sql: gives `place` in current_features and `relevance`, a row for each label that matches.
        parameters: of that query.
    """

    match: TextMatch
    sql: str
    parameters: Mapping[str, Any]


def text_ranking(connection: duckdb.DuckDBPyConnection, text: str) -> TextRanking:
    """How labels in force are ranked by a text.

    By its words, in any order and however they end. Where it has none, or no label has any of them,
    labels with just these characters match, in whatever case, and all the same.

    Args:
        connection: to a published database.
        text: what is looked for.
    """
    words = words_to_find(connection, text)
    counted = _count(connection, words)
    if not counted.n_with:
        return TextRanking(TextMatch.CHARACTERS, _CHARACTERS, {"text": text.strip()})
    # A query a word: joined with weights by their words, all rows would take three times as long.
    of_words = " UNION ALL ".join(
        _WORD.format(
            number=number,
            weight=math.log(1 + (counted.n_labels - n + 0.5) / (n + 0.5)),
            mean_length=counted.mean_length,
        )
        for number, n in enumerate(counted.n_with.values())
    )
    sql = f"SELECT place, sum(part) / 1e9 AS relevance FROM ({of_words}) GROUP BY place"
    parameters = {f"word_{number}": word for number, word in enumerate(counted.n_with)}
    return TextRanking(TextMatch.WORDS, sql, parameters)


@dataclass(frozen=True, slots=True)
class _Counted:
    """Labels in force, their mean length, and of the words that there are, how many have each."""

    n_labels: int
    mean_length: float
    n_with: Mapping[str, int]


def _count(connection: duckdb.DuckDBPyConnection, words: Sequence[str]) -> _Counted:
    ((n_labels, mean_length),) = connection.execute(
        f"SELECT count(*), avg(length) FROM label_words WHERE word = '{WHOLE}'"
    ).fetchall()
    n_with = {}
    for word in words:
        count = "SELECT count(*) FROM label_words WHERE word = ?"
        ((n,),) = connection.execute(count, [word]).fetchall()
        if n:
            n_with[word] = n
    return _Counted(n_labels, mean_length or 0.0, n_with)


def labels_that_match(connection: duckdb.DuckDBPyConnection, text: str) -> duckdb.DuckDBPyRelation:
    """The labels in force that match a text, with what is known of them, best match first."""
    if not has_label_words(connection):
        return connection.sql(_IN_OLDER, params={"text": text})
    ranking = text_ranking(connection, text)
    return connection.sql(
        f"""
        SELECT l.*, f.simulator, f.score, f.score_reason, f.ci_low, f.ci_high, f.null_value, f.lift,
            f.lift_ci_low, f.lift_ci_high, f.score_stale_since, f.density, r.relevance
        FROM ({ranking.sql}) r JOIN current_features f USING (place) JOIN labels l USING (label_id)
        ORDER BY r.relevance DESC, f.score DESC NULLS LAST, f.place
        """,
        params=dict(ranking.parameters),
    )


# Summed as whole numbers: of floats the sum would depend on the order, which threads decide.
_WORD = f"""
    SELECT place, (
        1e9 * {{weight!r}} * n * {K1 + 1}
        / (n + {K1} * ({1 - B} + {B} * length / {{mean_length!r}}))
    )::BIGINT AS part
    FROM label_words WHERE word = $word_{{number}}
"""

_CHARACTERS = """
    SELECT f.place, 0.0 AS relevance
    FROM current_features f JOIN labels l USING (label_id)
    WHERE contains(lower(l.text), lower($text)) OR contains(lower(l.explanation), lower($text))
"""

# A database that an older version made has no words of labels.
_IN_OLDER = """
    SELECT * FROM current_labels
    WHERE contains(lower(text), lower($text)) OR contains(lower(explanation), lower($text))
    ORDER BY score DESC NULLS LAST, sae_id, feature
"""
