"""What is known of each feature now, a row each, so that lists of a million are read at once.

`current_features` joins a feature's statistics, its label in force and what its labels were
scored; `headlines` has every headline on `score` with the feature that it is of. Both follow from
the other tables, and are made anew whenever a state is published.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

_MADE_OF = "current_features_of"

# What labels say apart from case and white space, for those that say the same.
_SAME_TEXT = r"lower(trim(regexp_replace(text, '\s+', ' ', 'g')))"

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
    in_force AS (FROM current_labels),
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
        CASE WHEN text IS NULL THEN 0 ELSE
            count(*) OVER (PARTITION BY f.sae_id, {_SAME_TEXT}) - 1 END AS n_same
    FROM features f
    LEFT JOIN in_force c USING (sae_id, feature)
    LEFT JOIN counted k USING (sae_id, feature)
    LEFT JOIN disagreements d USING (label_id)
    LEFT JOIN voted v USING (label_id)
    ORDER BY f.sae_id, f.feature
"""

_HEADLINES = """
    SELECT l.sae_id, l.feature, l.explainer, s.simulator, s.scorer, s.value, s.null_value, s.lift
    FROM scores s JOIN (
        SELECT *, generation < max(generation) OVER (
            PARTITION BY sae_id, feature, explainer, prompt_version, model) AS is_old
        FROM labels
    ) l USING (label_id)
    WHERE s.metric = 'correlation' AND s.split = 'score'
        -- Nobody will score them again: newer labels have taken their place.
        AND NOT (is_old AND s.stale_since IS NOT NULL)
    ORDER BY l.sae_id, l.feature
"""

_TABLES = {"current_features": _ROWS, "headlines": _HEADLINES}


def refresh_current_features(connection: duckdb.DuckDBPyConnection) -> bool:
    """Makes both tables anew where the state is another than they were made of.

    Args:
        connection: the working copy, outside a transaction.

    Returns:
        Whether they had to be.
    """
    state = _fact(connection, "revision")
    if _fact(connection, _MADE_OF) == state and state is not None:
        return False
    ((n_threads,),) = connection.execute("SELECT current_setting('threads')").fetchall()
    # At a million features this takes seconds: readers keep half of the machine meanwhile.
    connection.execute(f"SET threads = {max(1, n_threads // 2)}")
    connection.execute("BEGIN")
    try:
        for table, rows in _TABLES.items():
            connection.execute(f"DELETE FROM {table}")
            connection.execute(f"INSERT INTO {table} BY NAME {rows}")
        if state is not None:
            connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", [_MADE_OF, state])
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    finally:
        connection.execute(f"SET threads = {n_threads}")
    connection.execute("COMMIT")
    return True


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
    ((view,),) = connection.execute(
        "SELECT sql FROM duckdb_views() WHERE database_name = ? AND view_name = 'current_labels'",
        [published],
    ).fetchall()
    ((path,),) = connection.execute("SELECT current_setting('search_path')").fetchall()
    connection.execute(
        f"""
        CREATE SCHEMA {own}.touched;
        CREATE TABLE {own}.touched.keys AS
        SELECT DISTINCT sae_id, feature FROM labels
        WHERE label_id IN (FROM (SELECT label_id FROM {own}.main.inbox_labels UNION
                                 SELECT label_id FROM {own}.main.inbox_votes));
        """
    )
    for table, key in (
        ("features", "sae_id, feature"),
        ("labels", "sae_id, feature"),
        ("scores", "label_id"),
        ("votes", "label_id"),
    ):
        among = "keys" if table in ("features", "labels") else "labels"
        connection.execute(
            f"CREATE TABLE {own}.touched.{table} AS "
            f"FROM {table} SEMI JOIN {own}.touched.{among} USING ({key})"
        )
    connection.execute(f"SET search_path = '{own}.touched'")
    connection.execute(view)
    connection.execute(f"CREATE TABLE {own}.touched.current_features AS {_ROWS}")
    connection.execute(f"SET search_path = '{path}'")
    connection.execute(
        f"""
        UPDATE {own}.touched.current_features AS t SET disagreement = (
            SELECT disagreement FROM {published}.main.current_features p
            WHERE p.sae_id = t.sae_id AND p.feature = t.feature AND p.label_id = t.label_id
        ), n_same = (
            SELECT count(*) FROM {published}.main.current_features p
            WHERE p.sae_id = t.sae_id AND p.feature <> t.feature
                AND {_SAME_TEXT.replace("text", "p.text")} = {_SAME_TEXT.replace("text", "t.text")}
        );
        CREATE VIEW {own}.main.current_features AS
        FROM {published}.main.current_features
        ANTI JOIN {own}.touched.keys USING (sae_id, feature)
        UNION ALL BY NAME FROM {own}.touched.current_features;
        """
    )


def has_features(connection: duckdb.DuckDBPyConnection, catalog: str) -> bool:
    """Whether the database has these tables: older versions made none."""
    found = connection.execute(
        "SELECT 1 FROM duckdb_tables() WHERE database_name = ? AND table_name = 'current_features'",
        [catalog],
    ).fetchall()
    return bool(found)


def _fact(connection: duckdb.DuckDBPyConnection, key: str) -> str | None:
    rows = connection.execute("SELECT value FROM meta WHERE key = ?", [key]).fetchall()
    return rows[0][0] if rows else None
