"""Rows of the inbox in a database: laid over what a reader sees, or merged into the tables.

Either way a row counts if the table has none of its key, or an older one. Two databases made by
one and the other show the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .current_features import has_features, lay_over_features
from .inbox import InboxFile

if TYPE_CHECKING:
    import duckdb

# The catalog of a reader's own, beside the published database.
_OWN = "memory"

_LABEL = {
    **dict.fromkeys(("label_id", "sae_id", "text", "explanation", "explainer"), "VARCHAR"),
    **dict.fromkeys(("prompt_version", "source", "author", "status", "reason"), "VARCHAR"),
    **dict.fromkeys(("feature", "draw"), "INTEGER"),
    "created_at": "TIMESTAMPTZ",
    "saw_score": "BOOLEAN",
}
_VOTE = {"label_id": "VARCHAR", "author": "VARCHAR", "vote": "INTEGER", "voted_at": "TIMESTAMPTZ"}

_NONE = "[]"

# By table: the columns that are written, the key, and the time that says which row is the latest.
_TABLES = {
    "labels": (_LABEL, "label_id", "created_at"),
    "votes": (_VOTE, "label_id, author", "voted_at"),
}


def lay_over(
    connection: duckdb.DuckDBPyConnection, published: str, files: Sequence[InboxFile]
) -> list[str]:
    """Shows the rows of the inbox among those of a database that is attached read-only.

    Unqualified names of tables then mean the two together, and so do the database's views.

    Args:
        connection: to a memory of its own.
        published: the attached database's name.
        files: what lies in the inbox.

    Returns:
        Where names are to be looked for, also by other connections to the same memory.
    """
    n_rows = 0
    for table in _TABLES:
        rows = f"{_OWN}.main.inbox_{table}"
        connection.execute(f"CREATE TABLE {rows} AS FROM {published}.main.{table} LIMIT 0")
        newer = _newer(table, f"{published}.main.{table}")
        written = _json(table, files)
        if written != _NONE:
            connection.execute(f"INSERT INTO {rows} BY NAME {newer}", {"rows": written})
            n_rows += len(connection.execute(f"SELECT 1 FROM {rows}").fetchall())
    if not n_rows:
        return [published]
    views = connection.execute(
        "SELECT sql FROM duckdb_views() WHERE database_name = ? AND NOT internal ORDER BY view_oid",
        [published],
    ).fetchall()
    catalogs = [_OWN, published]
    use_catalogs(connection, catalogs)
    for table, (_, key, _) in _TABLES.items():
        rows = f"{_OWN}.main.inbox_{table}"
        connection.execute(
            f"""
            CREATE VIEW {_OWN}.main.{table} AS
            FROM {published}.main.{table} ANTI JOIN {rows} USING ({key})
            UNION ALL BY NAME FROM {rows}
            """
        )
    # Those of the database mean its own tables: made again they mean these.
    for (sql,) in views:
        connection.execute(sql)
    if has_features(connection, published):
        lay_over_features(connection, _OWN, published)
    return catalogs


def use_catalogs(connection: duckdb.DuckDBPyConnection, catalogs: Sequence[str]) -> None:
    """Has unqualified names looked for in these databases, in this order."""
    path = ",".join(f"{name}.main" for name in catalogs)
    connection.execute(f"SET search_path = '{path}'")


def merge_rows(connection: duckdb.DuckDBPyConnection, files: Sequence[InboxFile]) -> None:
    """Merges the rows of the inbox into the tables; within a transaction."""
    for table, (_, key, _) in _TABLES.items():
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE newer AS FROM {table} LIMIT 0; "
            f"INSERT INTO newer BY NAME {_newer(table, table)}",
            {"rows": _json(table, files)},
        )
        connection.execute(f"DELETE FROM {table} WHERE ({key}) IN (SELECT ({key}) FROM newer)")
        connection.execute(f"INSERT INTO {table} FROM newer; DROP TABLE newer")


def _newer(table: str, there: str) -> str:
    """Of the rows in parameter `rows` the latest of each key, if the table has none as late."""
    types, key, at = _TABLES[table]
    columns = ", ".join(f"n.{name}" for name in types)
    return f"""
        SELECT {columns} FROM (
            SELECT unnest(from_json($rows, '{json.dumps([types])}'), max_depth := 2)
        ) n
        LEFT JOIN (SELECT {key}, {at} AS there_since FROM {there}) USING ({key})
        WHERE there_since IS NULL OR there_since < n.{at}
        QUALIFY row_number() OVER (
            PARTITION BY {", ".join(f"n.{name.strip()}" for name in key.split(","))}
            ORDER BY n.{at} DESC, n
        ) = 1
    """


def _json(table: str, files: Sequence[InboxFile]) -> str:
    return json.dumps([row for file in files for row in getattr(file, table)])
