"""What is known of each feature now, a row each, so that lists of a million are read at once.

`current_features` joins a feature's statistics, its label in force and what its labels were
scored; `headlines` has every headline on `score` with the feature that it is of; `label_words` what
is searched. All follow from the other tables, and are made anew whenever a state is published.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .facts import REVISION, get_meta, set_meta, transaction
from .label_words import add_label_words, has_label_words
from .null_ladder import HEADLINES

if TYPE_CHECKING:
    import duckdb

# Facts in `meta`, each a revision: that the rows are of; that all of them were last made of at
# once; and up to which all that changed since is noted in `touched_features`.
_MADE_OF = "current_features_of"
_WHOLE_OF = "current_features_whole"
_NOTED_TO = "touched_features_to"
# A memory beside the working copy.
_ASIDE = "aside"

# A number for what a label says apart from case and white space: equal for those that say the same.
_SAME_TEXT = r"md5_number_lower(lower(trim(regexp_replace(text, '\s+', ' ', 'g'))))"

_ROWS = f"""
    WITH counted AS (
        SELECT sae_id, feature, count_if(status = 'done') AS n_labels,
            count_if(status = 'failed') AS n_failed,
            min(coalesce(reason, 'no reason given')) FILTER (status = 'failed') AS failure
        FROM labels GROUP BY ALL
    ),
    opinions AS (
        SELECT label_id, avg(value) AS opinion FROM scores
        WHERE split = 'score' AND scorer IN ('detection', 'fuzzing')
            AND starts_with(metric, 'auroc_') AND value IS NOT NULL
        GROUP BY label_id
    ),
    in_force AS (SELECT *, {_SAME_TEXT} AS text_key FROM current_labels),
    disagreements AS (
        SELECT label_id, abs(
            percent_rank() OVER (PARTITION BY sae_id, explainer, simulator ORDER BY score)
            - percent_rank() OVER (PARTITION BY sae_id, explainer, simulator ORDER BY opinion)
        ) AS disagreement
        FROM in_force JOIN opinions USING (label_id) WHERE score IS NOT NULL
    ),
    voted AS (
        SELECT label_id, count_if(vote > 0) AS n_up, count_if(vote < 0) AS n_down
        FROM votes GROUP BY label_id
    )
    SELECT f.sae_id, f.feature, f.n_active, f.density, f.max_activation,
        c.label_id, c.text, c.explainer, c.model, c.source, c.author, c.created_at,
        c.simulator, c.score, c.score_reason, c.ci_low, c.ci_high, c.null_value,
        c.lift, c.lift_ci_low, c.lift_ci_high, c.score_stale_since, d.disagreement,
        coalesce(k.n_labels, 0) AS n_labels, coalesce(k.n_failed, 0) AS n_failed,
        CASE WHEN c.label_id IS NULL THEN k.failure END AS failure,
        coalesce(v.n_up, 0) AS n_up, coalesce(v.n_down, 0) AS n_down,
        CASE WHEN text_key IS NULL THEN 0 ELSE
            count(*) OVER (PARTITION BY f.sae_id, text_key) - 1 END AS n_same,
        c.text_key,
        row_number() OVER (ORDER BY f.sae_id, f.feature) - 1 AS place
    FROM features f
    LEFT JOIN in_force c USING (sae_id, feature)
    LEFT JOIN counted k USING (sae_id, feature)
    LEFT JOIN disagreements d USING (label_id)
    LEFT JOIN voted v USING (label_id)
    ORDER BY f.sae_id, f.feature
"""

_TABLES = {"current_features": _ROWS, "headlines": f"{HEADLINES} ORDER BY l.sae_id, l.feature"}


def refresh_current_features(connection: duckdb.DuckDBPyConnection, whole: bool = False) -> bool:
    """Makes these tables say what the others do, where the state is another than they were made of.

    Where all that has changed since is noted (`note_touched`), only those features' rows are made
    anew. What compares a label with all others then waits for the next time that all are:
    `disagreement` is NULL for these labels, and `n_same` as it was for others that say the same.

    Args:
        connection: the working copy, outside a transaction.
        whole: make all rows anew if only some were since the last time.

    Returns:
        Whether there was anything to do.
    """
    state = get_meta(connection, REVISION)
    made_of, begun_at = get_meta(connection, _MADE_OF), get_meta(connection, _WHOLE_OF)
    if state is not None and state == (begun_at if whole else made_of):
        return False
    has_noted_all = made_of is not None and state == get_meta(connection, _NOTED_TO)
    ((n_threads,),) = connection.execute("SELECT current_setting('threads')").fetchall()
    # At a million features this takes seconds: readers keep half of the machine meanwhile.
    connection.execute(f"SET threads = {max(1, n_threads // 2)}")
    try:
        if has_noted_all and not whole:
            # Aside: in one transaction DuckDB writes to one database only.
            connection.execute(f"ATTACH ':memory:' AS {_ASIDE}")
            _make_touched_aside(connection)
            with transaction(connection):
                _renew_touched(connection)
                _note_made(connection, state)
        else:
            with transaction(connection):
                for table, rows in _TABLES.items():
                    connection.execute(f"DELETE FROM {table}")
                    connection.execute(f"INSERT INTO {table} BY NAME {rows}")
                connection.execute("DELETE FROM label_words")
                add_label_words(connection, "current_features", "labels", "label_words")
                _set_fact(connection, _WHOLE_OF, state)
                _note_made(connection, state)
    finally:
        connection.execute(f"DETACH DATABASE IF EXISTS {_ASIDE}")
        connection.execute(f"SET threads = {n_threads}")
    return True


def _note_made(connection: duckdb.DuckDBPyConnection, state: str | None) -> None:
    connection.execute("DELETE FROM touched_features")
    for fact in (_MADE_OF, _NOTED_TO):
        _set_fact(connection, fact, state)


def note_touched(
    connection: duckdb.DuckDBPyConnection, before: str | None, keys: str, values: list[Any]
) -> None:
    """Notes which features the change is about that has just been made; within its transaction.

    Args:
        connection: the working copy, with its new revision set.
        before: the revision before that change.
        keys: a query for `sae_id, feature` of them.
        values: its parameters.
    """
    # Whatever changed without being noted breaks the chain, and all rows are made anew.
    if before is not None and before == get_meta(connection, _NOTED_TO):
        connection.execute(f"INSERT INTO touched_features SELECT DISTINCT * FROM ({keys})", values)
        _set_fact(connection, _NOTED_TO, get_meta(connection, REVISION))


def _make_touched_aside(connection: duckdb.DuckDBPyConnection) -> None:
    ((here,),) = connection.execute("SELECT current_database()").fetchall()
    ((view,),) = connection.execute(_VIEW, [here]).fetchall()
    _make_touched(connection, f"{_ASIDE}.main", "SELECT DISTINCT * FROM touched_features", view)
    _compare_touched(connection, f"{_ASIDE}.main", f"{here}.main.current_features", "NULL")
    _add_touched_words(connection, f"{_ASIDE}.main", f"{here}.main")


def _renew_touched(connection: duckdb.DuckDBPyConnection) -> None:
    for table in _TABLES:
        connection.execute(
            f"""
            DELETE FROM {table} WHERE (sae_id, feature) IN (FROM {_ASIDE}.main.keys);
            INSERT INTO {table} BY NAME FROM {_ASIDE}.main.{table};
            """
        )
    connection.execute(
        f"""
        DELETE FROM label_words WHERE place IN (SELECT place FROM {_ASIDE}.main.current_features);
        INSERT INTO label_words FROM {_ASIDE}.main.label_words;
        """
    )


# The definition of the view, which is made again over a few rows.
_VIEW = (
    "SELECT sql FROM duckdb_views() WHERE database_name = ? AND schema_name = 'main' "
    "AND view_name = 'current_labels'"
)


def _make_touched(connection: duckdb.DuckDBPyConnection, schema: str, keys: str, view: str) -> None:
    """Works out the rows of a few features in a schema of their own, from copies of what they need.

    Args:
        connection: where unqualified names mean the tables as they are to be read.
        schema: with its catalog; it is there, and empty.
        keys: a query for `sae_id, feature` of the features.
        view: the definition of `current_labels`.
    """
    ((path,),) = connection.execute("SELECT current_setting('search_path')").fetchall()
    connection.execute(f"CREATE TABLE {schema}.keys AS {keys}")
    for table, among, key in (
        ("features", "keys", "sae_id, feature"),
        ("labels", "keys", "sae_id, feature"),
        ("scores", "labels", "label_id"),
        ("votes", "labels", "label_id"),
    ):
        connection.execute(
            f"CREATE TABLE {schema}.{table} AS "
            f"FROM {table} SEMI JOIN {schema}.{among} USING ({key})"
        )
    connection.execute(f"SET search_path = '{schema}'")
    try:
        connection.execute(view)
        for table, rows in _TABLES.items():
            connection.execute(f"CREATE TABLE {schema}.{table} AS {rows}")
    finally:
        connection.execute(f"SET search_path = '{path}'")


def _compare_touched(
    connection: duckdb.DuckDBPyConnection, schema: str, others: str, disagreement: str
) -> None:
    """Fills in what the rows of a few features need all others for.

    Args:
        connection: to both.
        schema: of the few, as `_make_touched` leaves it.
        others: the table with the rows of all features, those of the few as they were.
        disagreement: what it is, of `b`, the row as it was, and `t`, the row.
    """
    connection.execute(
        f"""
        UPDATE {schema}.current_features AS t SET
            disagreement = {disagreement}, place = b.place, n_same = t.n_same + b.n_others
        FROM (
            SELECT w.sae_id, w.feature, w.place, w.label_id, w.disagreement,
                coalesce(n_others, 0) AS n_others
            FROM (FROM {others} SEMI JOIN {schema}.keys USING (sae_id, feature)) w
            LEFT JOIN (
                SELECT f.sae_id, f.feature, count(*) AS n_others
                FROM {schema}.current_features f
                JOIN (FROM {others} ANTI JOIN {schema}.keys USING (sae_id, feature)) o
                    ON o.sae_id = f.sae_id AND o.text_key = f.text_key
                GROUP BY ALL
            ) USING (sae_id, feature)
        ) b WHERE b.sae_id = t.sae_id AND b.feature = t.feature
        """
    )


def _add_touched_words(connection: duckdb.DuckDBPyConnection, schema: str, published: str) -> None:
    """Makes the words of a few features in their schema, once their places are known."""
    words = f"{schema}.label_words"
    connection.execute(f"CREATE TABLE {words} AS FROM {published}.label_words LIMIT 0")
    add_label_words(connection, f"{schema}.current_features", f"{schema}.labels", words)


def lay_over_features(connection: duckdb.DuckDBPyConnection, own: str, published: str) -> None:
    """Shows what rows laid over `labels` and `votes` make of the features they are about.

    Unqualified names already mean the tables with those rows; `current_features` then does too.
    What compares a label with all others (`disagreement`) is known of one that was in force
    before; it is NULL for another until the rows are absorbed.

    Args:
        connection: to a memory of its own.
        own: that memory's catalog, with tables `inbox_labels` and `inbox_votes`.
        published: the catalog of the database.
    """
    ((view,),) = connection.execute(_VIEW, [published]).fetchall()
    connection.execute(f"CREATE SCHEMA {own}.touched")
    keys = f"""
        SELECT DISTINCT sae_id, feature FROM labels
        WHERE label_id IN (FROM (SELECT label_id FROM {own}.main.inbox_labels UNION
                                 SELECT label_id FROM {own}.main.inbox_votes))
    """
    _make_touched(connection, f"{own}.touched", keys, view)
    was = "CASE WHEN b.label_id = t.label_id THEN b.disagreement END"
    _compare_touched(connection, f"{own}.touched", f"{published}.main.current_features", was)
    connection.execute(
        f"""
        CREATE VIEW {own}.main.current_features AS
        FROM {published}.main.current_features
        ANTI JOIN {own}.touched.keys USING (sae_id, feature)
        UNION ALL BY NAME FROM {own}.touched.current_features;
        """
    )
    if not has_label_words(connection):
        return
    _add_touched_words(connection, f"{own}.touched", f"{published}.main")
    connection.execute(
        f"""
        CREATE VIEW {own}.main.label_words AS
        FROM {published}.main.label_words
        WHERE place NOT IN (SELECT place FROM {own}.touched.current_features)
        UNION ALL FROM {own}.touched.label_words;
        """
    )


def has_features(connection: duckdb.DuckDBPyConnection, catalog: str) -> bool:
    """Whether the database has these tables: older versions made none."""
    found = connection.execute(
        "SELECT 1 FROM duckdb_tables() WHERE database_name = ? AND table_name = 'current_features'",
        [catalog],
    ).fetchall()
    return bool(found)


def _set_fact(connection: duckdb.DuckDBPyConnection, key: str, value: str | None) -> None:
    if value is None:
        connection.execute("DELETE FROM meta WHERE key = ?", [key])
    else:
        set_meta(connection, key, value)
