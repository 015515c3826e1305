"""Labels ranked by the words of a query: BM25 over `label_words`, or characters as they stand.

BM25 with two fields (Robertson & Zaragoza, The Probabilistic Relevance Framework, 2009, sections
3.4 and 3.6): the words of a label count `TEXT_WEIGHT` times, in frequency and in length. It is
computed exactly, over all labels that have a word of the query; how rare a word is, is a matter of
all labels in force, whatever is filtered.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    named = {f"word_{number}": word for number, word in enumerate(words)}
    among = f"word IN ({', '.join(f'${name}' for name in named)})"
    some = f"SELECT 1 FROM label_words WHERE {among} LIMIT 1"
    if words and connection.execute(some, named).fetchall():
        return TextRanking(TextMatch.WORDS, _BM25.format(among=among), named)
    return TextRanking(TextMatch.CHARACTERS, _CHARACTERS, {"text": text.strip()})


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
# Of each word so many labels have (n_with) the term is weighed by ln(1 + (N - n + .5) / (n + .5)).
_BM25 = f"""
    WITH found AS MATERIALIZED (SELECT * FROM label_words WHERE {{among}}),
    everything AS (
        SELECT count(*) AS n_labels, avg(length) AS mean_length FROM label_words
        WHERE word = '{WHOLE}'
    ),
    weighed AS (
        SELECT word, ln(1 + (n_labels - n_with + 0.5) / (n_with + 0.5)) AS weight, mean_length
        FROM (SELECT word, count(*) AS n_with FROM found GROUP BY word), everything
    )
    SELECT place, sum(
        (1e9 * weight * n * {K1 + 1} / (n + {K1} * ({1 - B} + {B} * length / mean_length)))::BIGINT
    ) / 1e9 AS relevance
    FROM found JOIN weighed USING (word) GROUP BY place
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
