"""The words of the labels in force, one row a word and label: what text ranking reads.

`label_words` follows from `current_features` and `labels`, and is made with the former. It is
sorted by word, so that what a query needs lies together: a million labels of 15 words are 15
million rows in 17 MB, and a word that half of them have is counted in 50 ms. Left out: how labels
are ranked (`text_ranking.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from .word_stems import STOP_WORDS, stem

if TYPE_CHECKING:
    import duckdb

# What a word of the label counts for, beside one of its explanation: a label is a tenth as long
# and says what the feature is about. It has no unit to be measured in; 2 to 5 rank much the same.
TEXT_WEIGHT = 2
# Of a label as a whole, in the column of words: before all words.
WHOLE = ""

_LONGEST = 65_535

# The text of a migration, never edited. That facts are removed has all rows made anew: the table
# lacks what the state that is there says.
LABEL_WORDS = """
CREATE TABLE label_words (
    word VARCHAR,      -- without its ending; '': the label as a whole
    place INTEGER,     -- in current_features, of the label in force there
    n USMALLINT,       -- how often, where one in the label counts twice
    length USMALLINT   -- of all words of the label, counted so
);
DELETE FROM meta WHERE key IN (
    'current_features_of', 'current_features_whole', 'touched_features_to'
);
"""


def _words_in(text: str) -> str:
    return rf"regexp_extract_all(strip_accents(lower({text})), '[\pL\pN]+')"


def add_label_words(
    connection: duckdb.DuckDBPyConnection, features: str, labels: str, target: str
) -> None:
    """Adds the words of labels in force.

    Args:
        connection: to all three tables.
        features: rows of `current_features`, with their places among all features.
        labels: the table with their explanations.
        target: where the words go, a table of the form of `label_words`.
    """
    connection.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE spelled AS
        SELECT word, place, sum(n) AS n FROM (
            SELECT unnest({_words_in("text")}) AS word, place, {TEXT_WEIGHT} AS n
            FROM {features} WHERE label_id IS NOT NULL
            UNION ALL
            SELECT unnest({_words_in("l.explanation")}), f.place, 1
            FROM {features} f JOIN {labels} l USING (label_id)
        ) GROUP BY word, place
        """
    )
    spellings = connection.execute("SELECT DISTINCT word FROM spelled").fetchall()
    stems = {word: stem(word) for (word,) in spellings}
    table = pa.table({"word": list(stems), "stem": list(stems.values())}, _STEMS)
    connection.register("stems_of_words", table)
    try:
        connection.execute(
            f"""
            INSERT INTO {target}
            WITH counted AS (
                SELECT stem AS word, place, sum(n) AS n
                FROM spelled JOIN stems_of_words USING (word) GROUP BY ALL
            ),
            lengths AS (SELECT place, sum(n) AS length FROM counted GROUP BY place)
            SELECT word, place, least(n, {_LONGEST}), least(length, {_LONGEST})
            FROM counted JOIN lengths USING (place)
            UNION ALL
            SELECT '{WHOLE}', place, 0, least(coalesce(length, 0), {_LONGEST})
            FROM {features} LEFT JOIN lengths USING (place) WHERE label_id IS NOT NULL
            ORDER BY ALL
            """
        )
    finally:
        connection.unregister("stems_of_words")
        connection.execute("DROP TABLE spelled")


_STEMS = pa.schema([("word", pa.string()), ("stem", pa.string())])


def words_to_find(connection: duckdb.DuckDBPyConnection, text: str) -> tuple[str, ...]:
    """What of a query is looked for among `label_words`, each once; nothing where it has no word.

    Words such as `of` are left out, unless there are no others.
    """
    ((words,),) = connection.execute(f"SELECT {_words_in('$text')}", {"text": text}).fetchall()
    telling = [word for word in words if word not in STOP_WORDS] or words
    return tuple(dict.fromkeys(map(stem, telling)))


def has_label_words(connection: duckdb.DuckDBPyConnection) -> bool:
    """Whether the database has them: older versions made none."""
    found = "SELECT 1 FROM duckdb_tables() WHERE table_name = 'label_words' LIMIT 1"
    return bool(connection.execute(found).fetchall())
